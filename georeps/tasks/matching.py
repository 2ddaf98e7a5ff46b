"""Pairs of the embedded city as the chapters on cross-view matching ask for them, at other moments and off centre too; what a frozen tower sees of them.

    city = matching.City(shape, n=2000, n_test=750, tiles=28, seed=0);    city.part("cross", "train");  city.at("winter");  city.off_centre(8.0)
"""  # fmt: skip

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import UInt8
from torch import Tensor

from georeps.nets import towers
from georeps.papers import crossview
from georeps.tasks import pairs
from georeps.worlds import city

MOMENTS = {
    "summer day": city.Moment(), "autumn": city.Moment(season="autumn"), "winter": city.Moment(season="winter"), "dusk": city.Moment(daylight="dusk"),
    "night": city.Moment(daylight="night"), "rebuilt 10%": city.Moment(construction=0.1), "rebuilt 30%": city.Moment(construction=0.3),
}  # fmt: skip


@dataclass(frozen=True)
class City:
    shape: pairs.Shape
    n: int  # training pairs, those kept for validation among them
    n_test: int
    tiles: int  # along a side of each city
    seed: int = 0  # draws the training places

    def part(self, split: str, part: str, *, grid: bool = False) -> pairs.Pairs:
        """A part of a split (a part that holds fewer places gives all of them): tiles centred on the cameras, or VIGOR's `grid`."""
        most = len(city.places(split=split, part=part, tiles=self.tiles))
        n, seed = (self.n, self.seed) if part == "train" else (self.n_test, 0)
        return pairs.of_city(self.shape, split=split, part=part, n=min(n, most), tiles=self.tiles, seed=seed, grid=grid)

    def at(self, moment: str) -> UInt8[Tensor, "q 3 h w"]:
        """Panoramas of the test places of unseen cities at one of MOMENTS; the satellite's is the first."""
        return city.ground(self._tested(), size=self.shape.ground, elevation=self.shape.elevation, moment=MOMENTS[moment])

    def off_centre(self, metres: float) -> dict[str, Tensor]:
        """Their tiles with centres so many metres away from the cameras, in directions drawn for each place, in each view."""
        where = self._tested()
        return pairs.in_views(self.shape, lambda size: city.satellite(where, size=size[0], offset=float(metres)))

    def _tested(self) -> city.Places:
        return city.places(split="cross", part="test", n=self.n_test, tiles=self.tiles)


def prepare(world: City, *, splits: Iterable[str], offsets: Iterable[float], tower: str = "lite0") -> None:
    """Render and see all that chapter 03 asks of a city with the frozen tower, which then lies stored."""
    network = towers.image(tower)
    parts = [world.part(split, part, grid=grid) for grid, many in ((False, splits), (True, ["cross"])) for split in many for part in ("train", "test")]
    images = [part.ground for part in parts] + [view for part in parts for view in part.tiles.values()]
    images += [world.at(moment) for moment in MOMENTS] + [view for metres in offsets for view in world.off_centre(metres).values()]
    for shown in images:
        crossview.seen(network, shown)
