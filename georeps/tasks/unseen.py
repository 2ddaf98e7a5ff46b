"""Images whose test classes are never trained on: the task of metric learning, with a validation split of the training classes.

    world = unseen.of_patterns(size=32, n=40, seed=0)     19 classes of PatternNet to learn from, 19 others to test on
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
from georeps.worlds import patterns


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


def judge(model: torch.nn.Module | None, part: Part, ks: Sequence[int], describe) -> dict[str, Float[Tensor, " q"]]:
    """R@k and MAP@R in percent, a query each, of a part whose images `describe(model, images)` turns into unit rows.

    A query without another of its class is a miss to R@k and not counted in MAP@R, which is not defined for it.
    """
    queries = describe(model, part.images)
    gallery = () if part.gallery is None else (describe(model, part.gallery[0]), part.gallery[1])
    found = metrics.class_retrieval(queries, part.labels, *gallery)
    return {**{f"r{k}": 100.0 * (found.rank < k) for k in ks}, "map_at_r": 100 * found.map_at_r[~found.map_at_r.isnan()]}


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
