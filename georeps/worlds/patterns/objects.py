"""Tiles of `patterns` with an object whose class the tile has: images, masks and boxes, and the variants of ImageNet-9 made of them.

    found = objects.draw(objects.SEEN, n=60, seed=0)
    objects.images(found, size=48), objects.masks(found, size=48), objects.boxes(found, size=48)
    objects.backgrounds(images, masks, boxes, labels)      Only-FG, Mixed-Same, Mixed-Rand, ... (Xiao et al., 2021; dissertation, Table 3.7)

Each scene is zoomed and shifted, so that where an object lies and how large it is cannot be guessed; half of the objects lie in the surroundings
of a tile of any folder, so that the surroundings tell the class as they do in photographs: often, not always.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from georeps.core import cache
from georeps.worlds import patterns
from georeps.worlds.patterns import paint

SEEN = (
    "airplane", "baseball_field", "basketball_court", "crosswalk", "ferry_terminal", "football_field", "nursing_home", "runway_marking",
    "swimming_pool", "wastewater_treatment_plant", "overpass",
)  # fmt: skip
UNSEEN = ("coastal_mansion", "oil_well", "storage_tank", "tennis_court")  # classes with boxes that no network of chapter 07 is trained on
PARTS = {"swimming_pool": ("swimming pool",), "wastewater_treatment_plant": ("clarifier",)}  # where a scene holds other things than its class


@dataclass(frozen=True)
class Placed:
    tile: patterns.Tile
    zoom: float
    shift: tuple[float, float]  # tile sides
    behind: patterns.Tile | None = None  # in whose surroundings the object lies; None: its own


def draw(folders: Sequence[str], n: int, *, seed: int, zoom: tuple[float, float] = (0.6, 1.0), shift: float = 0.2, own: float = 0.5) -> list[Placed]:
    """n tiles of each folder, a share `own` of them in the surroundings that the folder's scenes have."""
    unknown = [f for f in folders if f not in (*SEEN, *UNSEEN)]
    if unknown:
        raise ValueError(f"folders: expected some of {', '.join((*SEEN, *UNSEEN))}, found {', '.join(unknown)}")
    found = []
    for folder in folders:
        shown = [*patterns.values(folder), *([] if patterns.complete(folder) else [None])] or [None]
        for i in range(n):
            key = patterns.seed_of("objects", seed, folder, i)
            rng = np.random.default_rng(key)
            tile = patterns.Tile(folder, shown[i % len(shown)], scene=key)
            place = float(rng.uniform(*zoom)), tuple(rng.uniform(-shift, shift, 2).tolist())
            other = str(rng.choice(patterns.FOLDERS))
            values = patterns.values(other)
            behind = patterns.Tile(other, values[0] if values else None, scene=int(rng.integers(2**40)))
            found.append(Placed(tile, *place, behind if rng.random() >= own else None))
    return found


def labels(placed: Sequence[Placed]) -> Int64[Tensor, " n"]:
    """Classes 0.. in the order in which folders appear."""
    names = list(dict.fromkeys(p.tile.folder for p in placed))
    return torch.tensor([names.index(p.tile.folder) for p in placed])


def images(placed: Sequence[Placed], *, size: int) -> UInt8[Tensor, "n 3 s s"]:
    """The tiles as photographs; stored by content."""

    def build() -> dict[str, np.ndarray]:
        return {"image": np.stack([paint.paint(_scene(p), size, np.random.default_rng([p.tile.scene, 1, 0])) for p in placed])}

    key = {"version": cache.code(__name__, libraries=("pillow",)), "size": size, "tiles": cache.hash_of([asdict(p) for p in placed])}
    return torch.from_numpy(np.array(cache.cached("objects", key, build)["image"]))


def masks(placed: Sequence[Placed], *, size: int) -> Bool[Tensor, "n s s"]:
    """Where each tile shows its objects."""
    out = np.zeros((len(placed), size, size), bool)
    for i, p in enumerate(placed):
        scene = _scene(p)
        canvas = Image.new("1", (size, size))
        on = ImageDraw.Draw(canvas)
        for shape in scene.shapes:
            own = shape.item >= 0 and _counts(p, scene.items[shape.item])
            on.polygon((shape.points * size).ravel().tolist(), fill=int(own))
        out[i] = np.asarray(canvas)
    return torch.from_numpy(out)


def boxes(placed: Sequence[Placed], *, size: int) -> list[Float[Tensor, "m 4"]]:
    """Left, top, right, bottom in pixels of each object of a tile."""
    found = []
    for p in placed:
        own = [box for name, box in _scene(p).boxes() if _counts(p, name)]
        found.append(size * torch.tensor(own, dtype=torch.float32).reshape(-1, 4))
    return found


def backgrounds(
    pixels: UInt8[Tensor, "n 3 s s"], mask: Bool[Tensor, "n s s"], box: Sequence[Float[Tensor, "_ 4"]], label: Int64[Tensor, " n"], *, seed: int = 0
) -> dict[str, UInt8[Tensor, "n 3 s s"]]:
    """The variants of ImageNet-9: "of" foreground on black, "ms", "mr", "mn" on a background of the same, a random other, the next class, "nf" the
    foreground black, "obb" its box black, "obt" the box filled with what lies beside it; "in9" as it is.
    """
    rng = np.random.default_rng(seed)
    inside = torch.zeros_like(mask)
    for i, rows in enumerate(box):
        for left, top, right, bottom in rows.round().int().tolist():
            inside[i, top : bottom + 1, left : right + 1] = True
    tiled = torch.stack([_tile_over(x, m) for x, m in zip(pixels, inside, strict=True)])
    classes = int(label.max()) + 1
    groups = [(label == c).nonzero()[:, 0].numpy() for c in range(classes)]
    front = mask[:, None]
    found = {"in9": pixels, "of": torch.where(front, pixels, 0), "nf": torch.where(front, 0, pixels),
             "obb": torch.where(inside[:, None], 0, pixels), "obt": tiled}  # fmt: skip
    for name, step in (("ms", lambda: 0), ("mr", lambda: int(rng.integers(1, classes))), ("mn", lambda: 1)):
        behind = []
        for i, c in enumerate(label.tolist()):
            group = groups[(c + step()) % classes]
            behind.append(int(rng.choice(group[group != i] if len(group) > 1 else group)))
        found[name] = torch.where(front, pixels, tiled[behind])
    return found


def _tile_over(x: UInt8[Tensor, "3 s s"], inside: Bool[Tensor, "s s"]) -> UInt8[Tensor, "3 s s"]:
    """Pixels inside become copies of the largest strip beside the boxes, repeated; where a box fills the tile, its mean colour."""
    rows, columns = inside.any(dim=1).nonzero()[:, 0], inside.any(dim=0).nonzero()[:, 0]
    if len(rows) == 0:
        return x
    size = x.shape[1]
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    strips = [x[:, :top], x[:, bottom:], x[:, :, :left], x[:, :, right:]]
    strip = max(strips, key=lambda s: s[0].numel())
    if strip.numel() == 0:
        return torch.where(inside, x.float().mean(dim=(1, 2), keepdim=True).byte(), x)
    repeat = (1, -(-size // strip.shape[1]), -(-size // strip.shape[2]))
    return torch.where(inside, strip.repeat(*repeat)[:, :size, :size], x)


def _scene(p: Placed) -> paint.Scene:
    scene = patterns.scene(p.tile)
    scene.move(zoom=p.zoom, shift=p.shift)
    if p.behind is not None:
        other = patterns.scene(p.behind)
        scene.ground = other.ground
        scene.shapes = [s for s in other.shapes if s.item < 0] + [s for s in scene.shapes if s.item >= 0]
    return scene


def _counts(p: Placed, name: str) -> bool:
    return name in PARTS.get(p.tile.folder, (name,))
