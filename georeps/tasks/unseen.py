"""Images whose test classes are never trained on: the task of metric learning, with a validation split of the training classes.

    world = unseen.of_patterns(size=32, n=40, seed=0)     19 classes of PatternNet to learn from, 19 others to test on
    world = unseen.of_city(size=32, places=200, seed=0)   street pictures of places; the test places lie in other cities
    world = unseen.of_tree(root, layout="cub", size=224)  CUB, Cars196, SOP, In-Shop or your own folder of class folders

A third of the training classes is for validation: hyper-parameters and the epoch are chosen there, never on test classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from georeps.core import metrics
from georeps.readers import images, labelled
from georeps.worlds import city, patterns
from georeps.worlds.city.scene import Moment

SEEN = (  # when a street is photographed, and how far the camera is turned: degrees
    (Moment(), 0.0), (Moment(season="autumn", traffic=1), 20.0), (Moment(season="winter", traffic=2), -20.0), (Moment(daylight="dusk", traffic=3), 10.0),
    (Moment(construction=0.1, traffic=4), -30.0), (Moment(season="autumn", daylight="dusk", traffic=5), 30.0),
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Images and classes 0..; in `gallery` these are searched where the data has a gallery of its own, else each other."""

    images: UInt8[Tensor, "n 3 h w"]
    labels: Int64[Tensor, " n"]
    gallery: tuple[UInt8[Tensor, "g 3 h w"], Int64[Tensor, " g"]] | None = None

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1


@dataclass(frozen=True)
class Unseen:
    """Three parts without a class in common."""

    train: Part
    val: Part
    test: Part


def of_patterns(*, size: int, n: int, n_test: int | None = None, seed: int = 0) -> Unseen:
    """n tiles of each training class drawn with `seed`; the same test tiles for every seed, `n_test` a class (n without)."""
    learn, judge = patterns.FOLDERS[::2], patterns.FOLDERS[1::2]
    train = Part(*_tiles(learn, n, size, ("train", seed)))
    return Unseen(*_held_out(train), Part(*_tiles(judge, n_test or n, size, ("test",))))


def of_city(*, size: int, places: int, test_places: int | None = None, tiles: int = 12, seed: int = 0) -> Unseen:
    """Six views of each of so many places, by seasons, daylight and headings; test places lie in cities never trained on."""
    learn = city.places(split="cross", part="train", n=places, tiles=tiles, seed=seed)
    judge = city.places(split="cross", part="test", n=test_places or places, tiles=tiles)
    return Unseen(*_held_out(Part(*city.views(learn, size=size, seen=SEEN))), Part(*city.views(judge, size=size, seen=SEEN)))


def of_tree(root: Path | str, *, layout: Literal["cub", "cars", "sop", "in_shop", "folders"], size: int, workers: int = 0) -> Unseen:
    """A data set on disk, every image decoded to `size` pixels a side."""
    readers = {"cub": labelled.cub, "cars": labelled.cars, "sop": labelled.sop, "folders": labelled.class_folders, "in_shop": labelled.in_shop}
    if layout not in readers:
        raise ValueError(f"layout: expected one of {', '.join(readers)}, found {layout!r}")

    def load(part: str) -> tuple[Tensor, Tensor]:
        found = readers[layout](root, part)
        return images.load_all(found.files, size=(size, size), workers=workers), found.labels

    train = _held_out(Part(*load("train")))
    if layout == "in_shop":
        return Unseen(*train, Part(*load("query"), gallery=load("gallery")))
    return Unseen(*train, Part(*load("test")))


def balanced(labels: Int64[Tensor, " n"], batch: int, each: int, *, seed: int):
    """Index batches of `each` images of batch / each classes, drawn from (seed, epoch); an epoch has as many images as there are."""
    groups = labels.argsort(stable=True).split(labels.unique(return_counts=True)[1].tolist())
    if batch % each or batch // each > len(groups):
        raise ValueError(f"batch, each: expected batch to hold {each} images of at most {len(groups)} classes, found {batch}")

    def batches(epoch: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        found = []
        for _ in range(max(1, len(labels) // batch)):
            chosen = torch.randperm(len(groups), generator=generator)[: batch // each]
            found.append(torch.cat([_draw(groups[c], each, generator) for c in chosen]))
        return found

    return batches


def flipped(pixels: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Bytes to [0, 1], each image mirrored or not."""
    x = pixels.float() / 255
    return torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)


def judge(model: torch.nn.Module | None, part: Part, ks: Sequence[int], describe) -> dict[str, Float[Tensor, " q"]]:
    """R@k and MAP@R in percent, a query each, of a part whose images `describe(model, images)` turns into unit rows.

    A query without another of its class is a miss to R@k and not counted in MAP@R, which is not defined for it.
    """
    queries = describe(model, part.images)
    gallery = () if part.gallery is None else (describe(model, part.gallery[0]), part.gallery[1])
    found = metrics.class_retrieval(queries, part.labels, *gallery)
    return {**{f"r{k}": 100.0 * (found.rank < k) for k in ks}, "map_at_r": 100 * found.map_at_r[~found.map_at_r.isnan()]}


def _draw(rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n of the rows; a class with fewer gives some twice."""
    order = torch.randperm(len(rows), generator=generator)
    return rows[order.repeat(-(-n // len(rows)))[:n]]


def _tiles(folders: Sequence[str], n: int, size: int, key: tuple) -> tuple[Tensor, Tensor]:
    tiles = []
    for folder in folders:
        shown = [*patterns.values(folder), *([] if patterns.complete(folder) else [None])]
        tiles += [patterns.Tile(folder, shown[i % len(shown)], scene=patterns.seed_of("unseen", *key, folder, i)) for i in range(n)]
    return patterns.render(tiles, size=size), torch.arange(len(folders)).repeat_interleave(n)


def _held_out(part: Part) -> tuple[Part, Part]:
    """Every third class for validation; classes are numbered anew."""
    if part.classes < 3:
        raise ValueError(f"part: expected at least 3 training classes, of which one validates, found {part.classes}")
    found = []
    for held in (False, True):
        keep = (part.labels % 3 == 2) == held
        found.append(Part(part.images[keep], torch.unique(part.labels[keep], return_inverse=True)[1]))
    return found[0], found[1]
