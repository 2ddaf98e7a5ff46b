"""Aerial tiles with PatternCom's classes, attributes and values (dissertation, Table 5.1), in several styles and seasons, with captions.

    benchmark(scale=0.05)      the gallery of PatternCom in small: the counts of Table 5.1 times scale, 38 folders, all photographs
    conversion("styles")       folders x styles, in the role of ImageNet-R and MiniDomainNet; "contexts": of NICO++; "places": of LTLL
    training(80)               tiles to learn a small CLIP from: no tile of the others, no combination that HELD_OUT names

A tile is known by its folder, value, style, context and seeds alone; `render` paints it the same on every machine.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from georeps.core import cache
from georeps.worlds.patterns import aerial, distractors, paint

COUNTS = {  # folder: attribute, value -> tiles of the 800 (Table 5.1); folders of one merged class share its counts
    "airplane": ("color", {"white": 672, "purple": 53}), "nursing_home": ("color", {"white": 85, "gray": 383}),
    "crosswalk": ("color", {"white": 412, "yellow": 388}),
    "tennis_court": ("color", {"blue": 339, "brown": 2, "gray": 50, "green": 211, "red": 24}),
    "overpass": ("context", {"concrete": 800}), "bridge": ("context", {"water": 800}),
    "sparse_residential": ("density", {"sparse": 800}), "dense_residential": ("density", {"dense": 800}),
    "parking_lot": ("existence", {"with cars": 474, "without cars": 326}),
    "parking_space": ("existence", {"with cars": 473, "without cars": 327}),
    "ferry_terminal": ("existence", {"with boats": 645, "without boats": 155}),
    "harbor": ("existence", {"with boats": 700, "without boats": 100}),
    "storage_tank": ("quantity", {"one": 356, "two": 119, "three": 65, "four": 77}),
    "wastewater_treatment_plant": ("quantity", {"one": 724, "two": 44, "three": 10, "four": 24}),
    "basketball_court": ("quantity", {"one": 340, "two": 286, "three": 21, "half": 61, "two-halves": 15}),
    "swimming_pool": ("shape", {"rectangular": 261, "oval": 52, "kidney-shaped": 247}),
    "river": ("shape", {"curved": 177, "straight": 623}),
    "intersection": ("shape", {"cross": 800}), "closed_road": ("shape", {"round": 800}),
}  # fmt: skip
ATTRIBUTES = ("color", "context", "density", "existence", "quantity", "shape")
CARRIERS = {  # what the classes without an attribute can show of the attributes' words
    "baseball_field": (), "beach": ("with boats", "without boats"), "cemetery": ("sparse", "dense"), "chaparral": ("sparse", "dense"),
    "christmas_tree_farm": ("sparse", "dense"), "coastal_mansion": ("white", "gray", "brown", "red"),
    "football_field": ("green", "brown", "blue", "red", "half"), "forest": ("sparse", "dense"),
    "freeway": ("curved", "straight", "with cars", "without cars", "concrete"), "golf_course": ("oval", "kidney-shaped", "water"),
    "mobile_home_park": ("white", "gray", "blue", "brown"), "oil_gas_field": (), "oil_well": ("one", "two", "three"),
    "railway": ("curved", "straight"), "runway": (), "runway_marking": ("white", "yellow", "cross"),
    "shipping_yard": ("red", "blue", "green", "purple", "yellow", "brown"), "solar_panel": (), "transformer_station": (),
}  # fmt: skip
FOLDERS = tuple(sorted([*COUNTS, *CARRIERS]))
PREFIX = {f: "wastewaterplant" if f == "wastewater_treatment_plant" else f.replace("_", "") for f in FOLDERS}  # of PatternNet's file names
HELD_OUT = frozenset({  # (folder, value) that no training tile shows
    ("airplane", "purple"), ("nursing_home", "gray"), ("tennis_court", "blue"), ("harbor", "without boats"), ("ferry_terminal", "without boats"),
    ("storage_tank", "two"), ("wastewater_treatment_plant", "three"), ("swimming_pool", "oval"), ("river", "straight"),
})  # fmt: skip
HELD_OUT_STYLES = frozenset((f, paint.STYLES[1 + i // 3 % 3]) for i, f in enumerate(FOLDERS) if i % 3 == 0)  # (folder, style)
HELD_OUT_CONTEXTS = frozenset((f, list(paint.CONTEXTS)[i // 3 % 5]) for i, f in enumerate(FOLDERS) if i % 3 == 1)
PLACES = 25  # of the instance-level variant, as in LTLL
DOMAINS = {"styles": paint.STYLES, "contexts": tuple(paint.CONTEXTS), "places": ("today", "archive")}


@dataclass(frozen=True)
class Tile:
    folder: str
    value: str | None = None
    style: str = "photo"
    context: str | None = None
    scene: int = 0  # seed of what is there
    view: int | None = None  # seed of how it is seen; None: as the scene comes

    @property
    def label(self) -> str:
        """The class that a query shares with what it looks for; of a place, the place."""
        return self.folder if self.view is None else f"{self.folder} {self.scene}"

    @property
    def domain(self) -> str:
        """The style, the context, or of a place "today" and "archive"."""
        if self.view is not None:
            return "archive" if self.style == "archive" else "today"
        return self.context or self.style


def values(folder: str) -> tuple[str, ...]:
    """The values of an attribute that tiles of this folder can show."""
    return tuple(COUNTS[folder][1]) if folder in COUNTS else CARRIERS[folder]


def complete(folder: str) -> bool:
    """Does every tile of the folder show one of its values: Table 5.1 counts all of its 800."""
    return folder in COUNTS and sum(COUNTS[folder][1].values()) >= 800


def benchmark(*, scale: float, seed: int = 0) -> list[Tile]:
    """PatternCom in small: 800 tiles a folder times `scale`, the counts of Table 5.1 times scale (at least 2 of each value).

    What is left of a folder shows none of its values (five tanks, a red airplane), as PatternNet's unannotated images do; the classes that
    the benchmark asks nothing about show what they can of the attributes' words, so that a text alone finds them too.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"scale: expected a share of PatternNet's 800 tiles a folder in (0, 1], found {scale}")
    tiles = []
    for folder in FOLDERS:
        counts = {v: max(2, round(scale * n)) for v, n in COUNTS[folder][1].items()} if folder in COUNTS else {}
        rest = max(0, max(4, round(800 * scale)) - sum(counts.values())) * (not complete(folder))
        shown = [v for v, n in counts.items() for _ in range(n)]
        shown += [None if folder in COUNTS else _drawn("benchmark", seed, folder, i) for i in range(rest)]
        tiles += [Tile(folder, v, scene=seed_of("benchmark", seed, folder, i)) for i, v in enumerate(shown)]
    return tiles


def conversion(world: str, *, n: int, seed: int = 0) -> list[Tile]:
    """n tiles of each class in each domain of DOMAINS[world]; the values of attributes are drawn."""
    if world not in DOMAINS:
        raise ValueError(f"world: expected one of {', '.join(DOMAINS)}, found {world!r}")
    if world == "places":
        return [_place(p, domain, seed, i) for p in range(PLACES) for domain in DOMAINS[world] for i in range(n)]
    key = "style" if world == "styles" else "context"
    return [
        Tile(folder, _drawn(world, seed, folder, i), **{key: domain}, scene=seed_of(world, seed, folder, domain, i))
        for folder in FOLDERS
        for domain in DOMAINS[world]
        for i in range(n)
    ]


def training(n: int, *, seed: int = 0) -> list[Tile]:
    """About 2n tiles a folder to learn language from: n photographs, the other styles and the contexts.

    No combination of HELD_OUT, HELD_OUT_STYLES or HELD_OUT_CONTEXTS is among them; scenes are no other world's.
    """
    tiles = []
    for folder in FOLDERS:
        shown = [v for v in values(folder) if (folder, v) not in HELD_OUT]
        shown += [] if complete(folder) else [None]
        styles = [s for s in paint.STYLES[1:] if (folder, s) not in HELD_OUT_STYLES]
        contexts = [c for c in paint.CONTEXTS if (folder, c) not in HELD_OUT_CONTEXTS]
        looks = [("photo", None)] * n + [(s, None) for s in styles] * (n // 5) + [("photo", c) for c in contexts] * (n // 8)
        tiles += [Tile(folder, shown[i % len(shown)], s, c, seed_of("training", seed, folder, i)) for i, (s, c) in enumerate(looks)]
    return tiles


def _place(place: int, domain: str, seed: int, i: int) -> Tile:
    """View i of a place: 25 scenes of 12 folders, so that the folder alone does not tell places apart."""
    folder = FOLDERS[(place % 12 * 5 + seed) % len(FOLDERS)]
    style = "archive" if domain == "archive" else "photo"
    return Tile(folder, _drawn("places", seed, folder, place), style, None, seed_of("place", seed, place), seed_of("view", seed, place, domain, i))


def _drawn(*key) -> str | None:
    """One of the values that a folder, the last but one of the key, can show."""
    shown = values(key[-2])
    return shown[seed_of("value", *key) % len(shown)] if shown else None


def seed_of(*key) -> int:
    """A seed that depends on all of the key and on nothing else."""
    return int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[:6], "big")


def scene(tile: Tile) -> paint.Scene:
    """The shapes of a tile; a view turns, shifts and zooms the scene a little, and lets some of its small parts be absent."""
    draw = getattr(aerial, tile.folder, None) or getattr(distractors, tile.folder)
    r = np.random.default_rng(tile.scene)
    draw(s := paint.Scene(r), r, tile.value)
    s.move(turn=r.uniform(0, 2 * np.pi), zoom=r.uniform(*s.zoom), shift=tuple(r.uniform(-0.06, 0.06, 2)))
    if tile.view is not None:
        r = np.random.default_rng(tile.view)
        s.shapes = [x for x in s.shapes if x.item >= 0 or np.ptp(x.points, axis=0).max() > 0.15 or r.random() > 0.3]
        s.move(turn=r.normal(0, 0.2), zoom=r.uniform(0.9, 1.1), shift=tuple(r.normal(0, 0.05, 2)))
    return s


def render(tiles: Sequence[Tile], *, size: int) -> UInt8[Tensor, "n 3 s s"]:
    """The tiles as images of `size` pixels; stored by content."""
    if not tiles:
        raise ValueError("tiles: expected at least one, found none")
    if size % 8:
        raise ValueError(f"size: expected a multiple of 8 pixels, found {size}")
    key = {"version": cache.code(__name__, libraries=("pillow",)), "size": size, "tiles": cache.hash_of([asdict(t) for t in tiles])}

    def build() -> dict[str, np.ndarray]:
        out = np.empty((len(tiles), 3, size, size), np.uint8)
        for i, tile in enumerate(tiles):
            light = np.random.default_rng([tile.scene, 1 if tile.view is None else tile.view, paint.STYLES.index(tile.style)])
            out[i] = paint.paint(scene(tile), size, light, style=tile.style, context=tile.context)
        return {"image": out}

    return torch.from_numpy(np.array(cache.cached("patterns", key, build)["image"]))
