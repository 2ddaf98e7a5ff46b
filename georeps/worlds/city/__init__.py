"""The embedded city: street panoramas and satellite tiles of procedural cities, in VIGOR's and in CVACT's geometry.

    places = city.places(split="cross", part="test", n=500)
    queries = city.ground(places, size=(32, 128))                  panoramas, north in the centre column
    gallery = city.gallery(places, size=32)                        VIGOR: every tile of a grid; places.positive, .semi, .offset
    tiles = city.satellite(places, size=32)                        CVACT: a tile centred on each camera (or off by `offset` metres)

Tiles are 72.96 m a side and lie on a grid of half that step, as in VIGOR: the tile whose centre is nearest is the positive,
the three others that hold the camera are semi-positives. `plan` draws a city's plan, `scene` and `street` its pictures. A city depends on
its number and size alone; all that is rendered is stored (`cache.cached`).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from georeps.core import cache
from georeps.worlds.city import plan as plans, scene as scenes, street
from georeps.worlds.city.scene import Moment

TRAIN_CITIES = (0, 1, 2, 3)  # of the cross-area split
TEST_CITIES = (4, 5)  # of both splits
TILE = 72.96  # metres a side: 640 pixels of 0.114 m
STEP = TILE / 2
MARGIN = 20.0  # metres around the outermost tiles
APART = 100_000.0  # metres between the origins of two cities
TWO = 0.307  # share of the tiles with two cameras, one of each part: then 47% of test positives are training positives
SATELLITE = Moment(daylight="satellite", traffic=1)  # when every satellite picture was taken


@dataclass(frozen=True)
class Places:
    """Cameras on streets. `positive`, `semi` and `gallery_position` refer to the gallery: all tiles of `cities`, in order."""

    cities: tuple[int, ...]
    tiles: int  # of the grid, along each side of a city
    city: Int64[Tensor, " q"]
    row: Int64[Tensor, " q"]  # of the camera among those of its city
    position: Float[Tensor, "q 2"]  # metres east and north; cities lie 100 km apart
    heading: Float[Tensor, " q"]  # of the street, degrees clockwise from north
    positive: Int64[Tensor, " q"]
    semi: Int64[Tensor, "q 3"]
    offset: Float[Tensor, "q 2"]  # VIGOR's delta: tile centre minus camera, north and east, in pixels of 640 a tile
    gallery_position: Float[Tensor, "g 2"]  # metres east and north, of the tiles' centres

    def __len__(self) -> int:
        return len(self.row)


def places(
    *, split: Literal["same", "cross", "swapped"] = "cross", part: Literal["train", "test"] = "train", n: int | None = None, tiles: int = 24,
    seed: int = 0, cities: Sequence[int] | None = None,
) -> Places:  # fmt: skip
    """Cameras of a part: n drawn with `seed` (all without n), the first n of one order.

    Both splits test on the same cameras of the same cities. "cross" trains on all cameras of other cities, "same" on the
    training cameras of these and of the test cities; "swapped" is "cross" with the cities' roles exchanged. As in VIGOR a tile
    has at most two cameras, one of each part where it has two, so that nearly half of the test positives of "same" are training
    positives. `cities` names other cities.
    """
    for name, value, allowed in (("split", split, ("same", "cross", "swapped")), ("part", part, ("train", "test"))):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, found {value!r}")
    if tiles < 4:
        raise ValueError(f"tiles: expected at least 4 along a side, found {tiles}")
    everyone = part == "train" and split != "same"
    if cities is None:
        learn, judge = (TEST_CITIES, TRAIN_CITIES) if split == "swapped" else (TRAIN_CITIES, TEST_CITIES)
        cities = judge if part == "test" else learn if everyone else (*learn, *judge)
    cities = tuple(cities)
    tables = [_cameras(c, tiles) for c in cities]
    keep = [np.flatnonzero(everyone | (t["part"] == ("train", "test").index(part))) for t in tables]
    join = lambda name: torch.from_numpy(np.concatenate([t[name][k] for t, k in zip(tables, keep, strict=True)]))  # noqa: E731
    where = torch.cat([torch.full((len(k),), i) for i, k in enumerate(keep)])
    total = len(where)
    if n is not None and not 1 <= n <= total:
        raise ValueError(f"n: expected 1..{total} (the {part} cameras of cities {cities} of {tiles} x {tiles} tiles), found {n}")
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:n]
    where = where[chosen]
    origin = torch.tensor(cities)[:, None] * APART
    shift = (where * tiles**2)[:, None]
    return Places(
        cities, tiles, torch.tensor(cities)[where], torch.cat([torch.from_numpy(k) for k in keep])[chosen],
        join("xy")[chosen] + origin[where], join("heading")[chosen], *((join(m)[chosen] + s) for m, s in (("positive", shift[:, 0]), ("semi", shift))),
        join("offset")[chosen].float(), (torch.from_numpy(_centres(tiles)) + origin[:, None]).flatten(0, 1),
    )  # fmt: skip


def ground(
    where: Places,
    *,
    size: tuple[int, int],
    moment: Moment = Moment(),  # noqa: B008, it is frozen
    heading: Literal["north", "street"] | float = "north",
    elevation: tuple[float, float] = (-90.0, 90.0),
    fov: float = 360.0,
) -> UInt8[Tensor, "q 3 h w"]:
    """Panoramas of the places, (height, width) in pixels; columns run from south over west, north (centre) and east.

    `heading` turns the centre column to the street or to degrees clockwise from north; `elevation` are the degrees of the last
    and first row (CVACT's crop, the middle half, is (-45, 45)); `fov` the degrees that the width spans. VIGOR's own are twice as
    wide as high.
    """
    _check_size("size", size)
    if not 0 < fov <= 360 or not -90 <= elevation[0] < elevation[1] <= 90:
        raise ValueError(f"fov, elevation: expected 0 < fov <= 360 and -90 <= low < high <= 90, found {fov} and {elevation}")
    settings = {"size": list(size), "moment": dataclasses.asdict(moment), "heading": heading, "elevation": list(elevation), "fov": fov}

    out = np.empty((len(where), 3, *size), np.uint8)
    for c in where.cities:
        cameras = _cameras(c, where.tiles)
        for part in (0, 1):  # stored apart: most uses need one of them
            pool = np.flatnonzero(cameras["part"] == part)
            own = (where.city.numpy() == c) & np.isin(where.row.numpy(), pool)
            if own.any():
                build = functools.partial(_panoramas, c, where.tiles, pool, moment, heading, size=tuple(size), elevation=elevation, fov=fov)
                stored = _stored("city-ground", {**settings, "part": part}, c, where.tiles, build)
                out[own] = stored[np.searchsorted(pool, where.row.numpy()[own])]
    return torch.from_numpy(out)


def satellite(where: Places, *, size: int, offset: float = 0.0, seed: int = 0) -> UInt8[Tensor, "q 3 size size"]:
    """A tile a place, north up, its centre on the camera or `offset` metres from it in a direction drawn with `seed`."""
    _check_size("size", (size,))
    if not 0 <= offset <= STEP:
        raise ValueError(f"offset: expected 0..{STEP:g} metres (half a tile), found {offset}")
    angle = 2 * np.pi * np.random.default_rng([seed, 4]).random(len(where))
    centres = where.position.numpy() - where.city.numpy()[:, None] * APART + offset * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    out = torch.empty(len(where), 3, size, size, dtype=torch.uint8)
    for c in where.cities:
        own = where.city == c
        out[own] = scenes.tiles(_above(c, where.tiles), centres[own.numpy()], size=size, extent=TILE)
    return out


def views(where: Places, *, size: int, seen: Sequence[tuple[Moment, float]], fov: float = 100.0) -> tuple[UInt8[Tensor, "n 3 size size"], Int64[Tensor, " n"]]:
    """Street pictures of each place and the number of the place: one for each moment and heading (degrees) in `seen`, `fov` degrees wide."""
    if not seen:
        raise ValueError("seen: expected at least one (moment, heading), found none")
    options = {"size": (size, size), "fov": fov, "elevation": (-0.3 * fov, 0.7 * fov)}
    found = [ground(where, moment=moment, heading=float(heading), **options) for moment, heading in seen]
    return torch.stack(found, dim=1).flatten(0, 1), torch.arange(len(where)).repeat_interleave(len(seen))


def gallery(where: Places, *, size: int) -> UInt8[Tensor, "g 3 size size"]:
    """Every tile of the grids of the places' cities, north up, in the order that `positive` and `semi` count."""
    _check_size("size", (size,))
    parts = [scenes.tiles(_above(c, where.tiles), _centres(where.tiles), size=size, extent=TILE) for c in where.cities]
    return torch.cat(parts)


def _panoramas(c: int, tiles: int, rows: np.ndarray, moment: Moment, heading: str | float, **options) -> np.ndarray:
    cameras = _cameras(c, tiles)
    turn = cameras["heading"][rows] if heading == "street" else np.full(len(rows), 0.0 if heading == "north" else float(heading))
    taken = int(cache.hash_of(c, dataclasses.asdict(moment))[:8], 16)  # exposure and clouds of one moment tell nothing of another's
    return street.panoramas(scene_of(c, tiles, moment), cameras["xy"][rows], heading=turn, seed=taken, **options).numpy()


@functools.lru_cache(maxsize=16)
def _cameras(c: int, tiles: int) -> dict[str, np.ndarray]:
    """At most two cameras a tile, in a lane, where a street crosses the middle quarter of the tile."""
    rng = np.random.default_rng([c, 5])
    x, y, dx, dy, half = plan_of(c, tiles).points[["x", "y", "dx", "dy", "half"]].to_numpy().T
    side = rng.choice([-1, 1], len(x))
    xy = np.stack([x, y], axis=1) + (half / 2.6 * side)[:, None] * np.stack([dy, -dx], axis=1)
    heading = np.degrees(np.arctan2(dx, dy) + np.where(side > 0, 0, np.pi)) % 360
    first = MARGIN + TILE / 2
    cell = np.round((xy - first) / STEP).astype(int)
    away = first + STEP * cell - xy  # east, north
    beyond = cell - np.where(away > 0, 1, -1)
    whole = ((cell >= 0) & (cell < tiles) & (beyond >= 0) & (beyond < tiles)).all(axis=1)
    order = rng.permutation(np.flatnonzero(whole))
    number = cell[:, 1] * tiles + cell[:, 0]
    chosen, part = _balance(rng, number[order])
    at = order[chosen]
    semi = np.stack([cell[at, 1] * tiles + beyond[at, 0], beyond[at, 1] * tiles + cell[at, 0], beyond[at, 1] * tiles + beyond[at, 0]], axis=1)
    return {"xy": xy[at], "heading": heading[at], "positive": number[at], "semi": semi, "offset": away[at][:, ::-1] * 640 / TILE, "part": part}


def _balance(rng: np.random.Generator, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which candidates become cameras, and their parts: one a tile, a share of the tiles two."""
    _, first = np.unique(number, return_index=True)
    rest = np.setdiff1d(np.arange(len(number)), first)
    _, second = np.unique(number[rest], return_index=True)
    twin = dict(zip(number[rest[second]].tolist(), rest[second].tolist(), strict=True))
    chosen, part = [], []
    for i in first:
        chosen.append(i)
        part.append(int(rng.integers(2)))
        if int(number[i]) in twin and rng.random() < TWO:
            chosen.append(twin[int(number[i])])
            part.append(1 - part[-1])
    return np.array(chosen), np.array(part)


def _centres(tiles: int) -> Float[np.ndarray, "t 2"]:
    """East and north of the tiles' centres in their city, row by row from the south-west."""
    line = MARGIN + TILE / 2 + STEP * np.arange(tiles)
    return np.stack([np.tile(line, tiles), np.repeat(line, tiles)], axis=1)


@functools.lru_cache(maxsize=8)
def plan_of(c: int, tiles: int) -> plans.Plan:
    """The plan of city `c` of tiles x tiles."""
    return plans.draw(c, 2 * MARGIN + TILE + STEP * (tiles - 1))


@functools.lru_cache(maxsize=1)
def scene_of(c: int, tiles: int, moment: Moment) -> scenes.Scene:
    """A city at a moment."""
    return scenes.scene(plan_of(c, tiles), moment)


def _above(c: int, tiles: int) -> np.ndarray:
    return _stored("city-above", {}, c, tiles, lambda: scene_of(c, tiles, SATELLITE).above())


def _stored(name: str, settings: dict, c: int, tiles: int, build: Callable[[], np.ndarray]) -> np.ndarray:
    return cache.cached(name, {"version": cache.code(__name__, libraries=("pillow",)), "city": c, "tiles": tiles, **settings}, lambda: {"pixels": build()})[
        "pixels"
    ]


def _check_size(name: str, size: Sequence[int]) -> None:
    if min(size) < 4:
        raise ValueError(f"{name}: expected at least 4 pixels, found {tuple(size)}")
