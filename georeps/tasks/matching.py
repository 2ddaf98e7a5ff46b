"""Pairs of the embedded city as the chapters on cross-view matching ask for them, at other moments and off centre too; what a frozen tower sees of them.

    city = matching.City(shape, n=2000, n_test=750, tiles=28, seed=0);    city.part("cross", "train");  city.at("winter");  city.off_centre(8.0)
"""  # fmt: skip

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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

    @classmethod
    def of(cls, parameters: Mapping[str, Any], *, seed: int) -> "City":
        """As the parameters of a chapter say: ground_size, satellite_size, elevation, polar_from, views; n_train, n_test, tiles."""
        sizes = (tuple(parameters["ground_size"]), tuple(parameters["satellite_size"]), tuple(map(float, parameters["elevation"])))
        shape = pairs.Shape(*sizes, parameters["polar_from"], tuple(parameters["views"]))
        return cls(shape, parameters["n_train"], parameters["n_test"], parameters["tiles"], seed)

    def part(self, split: str, part: str, *, grid: bool = False) -> pairs.Pairs:
        """A part of a split (a part that holds fewer places gives all of them): tiles centred on the cameras, or VIGOR's `grid`."""
        most = len(city.places(split=split, part=part, tiles=self.tiles))
        n, seed = (self.n, self.seed) if part == "train" else (self.n_test, 0)
        return pairs.of_city(self.shape, split=split, part=part, n=min(n, most), tiles=self.tiles, seed=seed, grid=grid)

    def at(self, moment: str) -> UInt8[Tensor, "q 3 h w"]:
        """Panoramas of the test places of unseen cities at one of MOMENTS; the satellite's is the first."""
        return city.ground(self.tested(), size=self.shape.ground, elevation=self.shape.elevation, moment=MOMENTS[moment])

    def off_centre(self, metres: float) -> dict[str, Tensor]:
        """Their tiles with centres so many metres away from the cameras, in directions drawn for each place, in each view."""
        where = self.tested()
        return pairs.in_views(self.shape, lambda size: city.satellite(where, size=size[0], offset=float(metres)))

    def tested(self) -> city.Places:
        """The test places of unseen cities."""
        most = len(city.places(split="cross", part="test", tiles=self.tiles))
        return city.places(split="cross", part="test", n=min(self.n_test, most), tiles=self.tiles)


def prepare(parameters: Mapping[str, Any], *, device: str = "cpu") -> None:
    """Render and see all that chapter 03 with these parameters asks of the city with its frozen tower, which then lies stored."""
    world = City.of(parameters, seed=0)
    network = towers.image(parameters["tower"], weights=parameters["tower_weights"] or None)
    asked = [(split, part, grid) for split, grid in (("same", False), ("cross", False), ("cross", True)) for part in ("train", "test")]
    parts = [world.part(split, part, grid=grid) for split, part, grid in asked]
    images = [part.ground for part in parts] + [view for part in parts for view in part.tiles.values()]
    images += [world.at(moment) for moment in MOMENTS] + [view for metres in parameters["offsets"] for view in world.off_centre(metres).values()]
    for shown in images:
        crossview.seen(network, shown, device=device)
