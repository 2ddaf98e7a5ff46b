"""A part of a world as a two-branch model takes it: street pictures, a gallery of tiles, and which tile holds which.

    shape = pairs.Shape(ground=(16, 64), satellite=(32, 32), views=("plain", "polar"))
    part = pairs.of_city(shape, split="cross", part="test", n=500)      embedded;  part.ground, part.tiles["polar"], part.positive
    part = pairs.of_tree(shape, "/your/vigor", layout="vigor", split="cross", part="test")
"""  # fmt: skip

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from georeps.core import panorama
from georeps.readers import folders, images
from georeps.worlds import city, earth

LAYOUTS = ("pairs", "vigor", "vigor-corrected", "cvact", "cvusa")


@dataclass(frozen=True)
class Shape:
    """How pictures are taken: sizes in pixels, height and width."""

    ground: tuple[int, int]
    satellite: tuple[int, int]
    elevation: tuple[float, float] = (-90.0, 90.0)  # degrees that the rows of a panorama of the whole sphere are cut to
    polar_from: int = 64  # pixels a side of the tiles that polar maps, of the size of `ground`, are made from
    views: tuple[str, ...] = ("plain",)  # of the tiles: plain | polar

    def __post_init__(self):
        if not self.views or set(self.views) - {"plain", "polar"}:
            raise ValueError(f"views: expected 'plain', 'polar' or both, found {self.views}")


@dataclass(frozen=True)
class Pairs:
    ground: UInt8[Tensor, "q 3 h w"]  # the queries
    tiles: dict[str, Tensor]  # "plain" | "polar" -> the gallery, uint8 "g 3 i j"
    positive: Int64[Tensor, " q"]  # gallery row of each query
    semi: Int64[Tensor, "q s"] | None = None  # VIGOR's other tiles that hold the camera
    position: Float[Tensor, "q 2"] | None = None  # of the queries
    where: Float[Tensor, "g 2"] | None = None  # the gallery's positions
    unit: str = ""  # of the positions: metres | degrees
    label: Int64[Tensor, " q"] | None = field(default=None)  # the city of each query

    def __len__(self) -> int:
        return len(self.positive)

    def gallery(self, view: str | None = None) -> UInt8[Tensor, "g 3 i j"]:
        """The tiles in a view; without one in the only view there is."""
        if view is None:
            (view,) = self.tiles
        return self.tiles[view]

    def pick(self, view: str | None = None) -> Callable[[Int64[Tensor, " b"]], tuple[Tensor, Tensor]]:
        """Indices of queries -> their pictures and their positive tiles."""
        gallery = self.gallery(view)
        return lambda index: (self.ground[index], gallery[self.positive[index]])

    def held(self) -> Int64[Tensor, "q t"]:
        """The tiles that hold each query, which no two pairs of a batch may share."""
        return torch.cat([self.positive[:, None]] + ([] if self.semi is None else [self.semi]), dim=1)


def of_city(shape: Shape, *, split: str, part: str, n: int | None = None, tiles: int = 24, seed: int = 0, grid: bool = False) -> Pairs:
    """The embedded city: a tile centred on each camera (CVACT's way) or, with `grid`, every tile of VIGOR's grid."""
    where = city.places(split=split, part=part, n=n, tiles=tiles, seed=seed)
    ground = city.ground(where, size=shape.ground, elevation=shape.elevation)
    if grid:
        shown = in_views(shape, lambda size: city.gallery(where, size=size[0]))
        return Pairs(ground, shown, where.positive, where.semi, where.position, where.gallery_position, "metres", where.city)
    shown = in_views(shape, lambda size: city.satellite(where, size=size[0]))
    return Pairs(ground, shown, torch.arange(len(where)), None, where.position, where.position, "metres", where.city)


def of_earth(shape: Shape, *, split: str, part: str, n: int | None = None, seed: int = 0) -> Pairs:
    """Optical against relief patches of the real Earth, `shape.satellite` pixels a side, plain; all places of a part that has fewer than n."""
    most = len(earth.places(split=split, part=part))
    found = earth.pairs(split=split, part=part, n=min(n or most, most), size=shape.satellite[0], seed=seed)
    here = found.places.latlon
    return Pairs(found.optical, {"plain": found.relief}, torch.arange(len(here)), None, here, here, "degrees")


def of_tree(shape: Shape, root: Path | str, *, layout: str, split: str, part: str) -> Pairs:
    """Your data: <root>/<part>/{ground,satellite}/<name>.jpg (`pairs`), or an official tree (`folders`).

    `split` is VIGOR's (same, cross, swapped); `part` train or test (val of CVACT and CVUSA). VIGOR's and CVACT's panoramas are of the
    whole sphere and cut to `shape.elevation`; others are taken whole.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {LAYOUTS}, found {layout!r}")
    if layout == "pairs":
        queries, gallery = images.paired(Path(root) / part, "ground", "satellite")
        listed = folders.Retrieval(queries, gallery, torch.arange(len(queries)))
    elif layout.startswith("vigor"):
        listed = folders.vigor(root, split=split, part=part, labels=layout.partition("-")[2] or "official")
    else:
        read = {"cvact": folders.cvact, "cvusa": folders.cvusa}[layout]
        listed = read(root, "val" if part == "test" else part)
    low, high = ((90 - e) / 180 for e in shape.elevation[::-1])
    rows = (0.0, 1.0) if layout in ("pairs", "cvusa") else (low, high)
    ground = images.load_all(listed.queries, size=shape.ground, rows=rows)
    shown = in_views(shape, lambda size: images.load_all(listed.gallery, size=size))
    return Pairs(ground, shown, listed.positive, listed.semi, listed.query_position, listed.gallery_position, listed.unit)


def in_views(shape: Shape, make: Callable[[tuple[int, int]], Tensor]) -> dict[str, Tensor]:
    """The gallery in each view that is asked for; `make(size)` renders or reads it."""
    out = {"plain": make(shape.satellite)} if "plain" in shape.views else {}
    if "polar" in shape.views:
        tiles = make((shape.polar_from,) * 2)
        out["polar"] = torch.cat([panorama.polar(part.float(), *shape.ground).byte() for part in tiles.split(512)])
    return out
