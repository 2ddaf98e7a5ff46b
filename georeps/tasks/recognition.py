"""Recognition by an attention map: objects seen from above, with their masks and boxes, and land cover of the real Earth.

    world = recognition.of_objects(size=224, n=30, n_val=10, n_test=30, pool=60, seed=0)
    world = recognition.of_earth(size=112, n=60, n_val=20, n_test=40, seed=0)
    world = recognition.of_tree(root, size=224, seed=0)                             class folders: train/<class>/*.jpg, val/<class>/*.jpg
"""  # fmt: skip

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from georeps.readers import images, labelled
from georeps.worlds import earth
from georeps.worlds.patterns import objects


@dataclass(frozen=True)
class Part:
    x: UInt8[Tensor, "n 3 s s"]
    labels: Int64[Tensor, " n"]
    masks: Bool[Tensor, "n s s"] | None = None
    boxes: Sequence[Float[Tensor, "_ 4"]] | None = None  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class World:
    train: Part
    val: Part
    test: Part
    other: Part | None = None  # objects of classes that nothing is trained on
    pool: UInt8[Tensor, "p 3 s s"] | None = None  # of which each seed draws its training and validation images ...
    rows: Int64[Tensor, " n"] | None = None  # ... these the training ones

    @property
    def classes(self) -> int:
        return int(self.train.labels.max()) + 1


def of_objects(*, size: int, n: int, n_val: int, n_test: int, pool: int, seed: int = 0) -> World:
    """Tiles of `worlds.patterns.objects`. Of each class a pool that all seeds share, of which a seed draws n images to train on and n_val to validate."""
    placed = objects.draw(objects.SEEN, pool, seed=1)
    labels = objects.labels(placed)
    train, val = _drawn(labels, n, n_val, seed)
    pixels = objects.images(placed, size=size)

    def part(folders: Sequence[str]) -> Part:
        found = objects.draw(folders, n_test, seed=0)
        return Part(objects.images(found, size=size), objects.labels(found), objects.masks(found, size=size), objects.boxes(found, size=size))

    def held(rows: Tensor) -> Part:
        own = [placed[i] for i in rows.tolist()]
        return Part(pixels[rows], labels[rows], objects.masks(own, size=size), objects.boxes(own, size=size))

    return World(held(train), Part(pixels[val], labels[val]), part(objects.SEEN), part(objects.UNSEEN), pixels, train)


def of_earth(*, size: int, n: int, n_val: int, n_test: int, extent_km: float = 120.0, spacing_km: float = 60.0, seed: int = 0) -> World:
    """Optical patches by what covers most of their land; validation and test blocks are never trained on.

    Covers of which each part has as many patches as are asked for, the others are left out; `seed` draws the training patches.
    """
    most = {"train": n, "val": n_val, "test": n_test}
    where = {
        p: earth.places(split="blocks", part=p, extent_km=extent_km, spacing_km=spacing_km, seed=seed if p == "train" else 0) for p in ("train", "val", "test")
    }
    names = [c for c in np.unique(where["test"].cover) if all((w.cover == c).sum() >= most[p] for p, w in where.items())]
    if len(names) < 2:
        raise ValueError(f"n, n_val, n_test: expected sizes that at least 2 covers have, found {n}, {n_val}, {n_test}, which {len(names)} have")

    def part(p: str) -> Part:
        rows = np.concatenate([np.flatnonzero(where[p].cover == c)[: most[p]] for c in names])
        return Part(
            earth.cut(earth.layer("optical"), where[p].latlon[rows], size=size, extent_km=extent_km), torch.arange(len(names)).repeat_interleave(most[p])
        )

    return World(part("train"), part("val"), part("test"))


def of_tree(root: Path | str, *, size: int, seed: int = 0) -> World:
    """Class folders on disk: train/<class>/ of which a fifth, drawn with `seed`, validates, and val/<class>/, which is tested on."""
    learn, judge = (labelled.class_folders(Path(root) / part, "all") for part in ("train", "val"))
    if learn.names != judge.names:
        apart = sorted(set(learn.names) ^ set(judge.names))
        raise ValueError(f"{root}: expected the same classes in train and val, found {', '.join(apart[:5])} in one of them")
    x, y = (images.load_all(found.files, size=(size, size)) for found in (learn, judge))
    least = int(learn.labels.bincount().min())
    if least < 2:
        raise ValueError(f"{root}: expected at least 2 training images a class, of which one validates, found {least}")
    train, val = _drawn(learn.labels, None, max(1, least // 5), seed)
    return World(Part(x[train], learn.labels[train]), Part(x[val], learn.labels[val]), Part(y, judge.labels))


def _drawn(labels: Int64[Tensor, " p"], n: int | None, n_val: int, seed: int) -> tuple[Int64[Tensor, " t"], Int64[Tensor, " v"]]:
    """n_val rows of each class, and n others (None: all)."""
    generator, train, val = torch.Generator().manual_seed(seed), [], []
    for c in labels.unique():
        rows = (labels == c).nonzero()[:, 0]
        if len(rows) < n_val + (n or 1):
            raise ValueError(f"n, n_val: expected at most {len(rows)} images of class {int(c)} together, found {n} and {n_val}")
        rows = rows[torch.randperm(len(rows), generator=generator)]
        val.append(rows[:n_val])
        train.append(rows[n_val:] if n is None else rows[n_val : n_val + n])
    return torch.cat(train), torch.cat(val)
