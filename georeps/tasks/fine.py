"""Fine classes for metric learning: what is tested on, values, cities or regions, is never trained on.

    world = fine.of_values(size=64, n=36, n_test=20, seed=0)                              values of attributes, in folders of PatternNet
    world = fine.of_places(size=64, places=400, test_places=150, tiles=28, seed=0)        street pictures of places, six a place
    world = fine.of_earth(size=64, n=120, n_test=60, seed=0)                              real patches by land cover and climate
    world = fine.of_tree(root, layout="cub", size=224)                                    CUB, Cars196, SOP, In-Shop, your own folders
    fine.seen(world, fine.sight(world, tower))                                            the same as a frozen tower has seen them

Rates are chosen on a validation part that shares nothing with the training part. `seed` draws it where the world holds none of its own:
a third of the values or of the places, which all seeds share, so that they are rendered and seen by a tower once.
"""  # fmt: skip

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from georeps.core import metrics
from georeps.nets import towers
from georeps.readers import images, labelled
from georeps.worlds import city, earth, patterns
from georeps.worlds.city.scene import Moment

SEEN = (  # when a street is photographed, and how far the camera is turned: degrees
    (Moment(), 0.0), (Moment(season="autumn", traffic=1), 20.0), (Moment(season="winter", traffic=2), -20.0), (Moment(daylight="dusk", traffic=3), 10.0),
    (Moment(construction=0.1, traffic=4), -30.0), (Moment(season="autumn", daylight="dusk", traffic=5), 30.0),
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Images, bytes, or what a tower has seen of them, rows, and classes 0..; searched are each other, or `gallery` where the data has its own."""

    x: Shaped[Tensor, "n ..."]
    labels: Int64[Tensor, " n"]
    gallery: tuple[Shaped[Tensor, "g ..."], Int64[Tensor, " g"]] | None = None

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1


@dataclass(frozen=True)
class World:
    train: Part
    val: Part
    test: Part


def of_values(*, size: int, n: int, n_test: int | None = None, seed: int = 0) -> World:
    """n tiles of every other value of each attribute of PatternNet's folders, n_test (n without) of the others: the folders are known, the values not."""
    tiles, labels = _values(0, n, "train")
    test, others = _values(1, n_test or n, "test")
    return World(*_parted(patterns.render(tiles, size=size), labels, labels, seed), Part(patterns.render(test, size=size), others))


def of_places(*, size: int, places: int, test_places: int, tiles: int, seed: int = 0) -> World:
    """Six views of each of so many places, by seasons, daylight and headings (`SEEN`); test places lie in cities never trained on."""
    x, place = city.views(city.places(split="cross", part="train", n=places, tiles=tiles), size=size, seen=SEEN)
    test = city.views(city.places(split="cross", part="test", n=test_places, tiles=tiles), size=size, seen=SEEN)
    return World(*_parted(x, place, place, seed), Part(*test))


def of_earth(*, size: int, n: int, n_test: int, least: int = 20, extent_km: float = 120.0, spacing_km: float = 60.0, seed: int = 0) -> World:
    """Optical patches by the land cover and the climate of most of their land; validation and test blocks are never trained on.

    Classes of which training and test blocks hold `least` patches each, the others are left out; of a class at most n (validation, test: n_test), the
    training ones drawn with `seed`. The validation part may hold fewer classes.
    """
    where = {
        p: earth.places(split="blocks", part=p, extent_km=extent_km, spacing_km=spacing_km, seed=seed if p == "train" else 0) for p in ("train", "val", "test")
    }
    named = {p: np.char.add(np.char.add(w.cover.astype(str), ", "), w.climate.astype(str)) for p, w in where.items()}
    names, count = np.unique(named["test"], return_counts=True)
    names = [name for name in names[count >= least] if (named["train"] == name).sum() >= least]

    def part(p: str) -> Part:
        rows = [np.flatnonzero(named[p] == name)[: n if p == "train" else n_test] for name in names]
        rows, labels = np.concatenate(rows), np.repeat(np.arange(len(names)), [len(r) for r in rows])
        labels = np.unique(labels, return_inverse=True)[1]
        found = earth.cut(earth.layer("optical"), where[p].latlon[rows], size=size, extent_km=extent_km)
        return Part(found, torch.from_numpy(labels))

    return World(*map(part, where))


def of_tree(root: Path | str, *, layout: Literal["cub", "cars", "sop", "in_shop", "folders"], size: int, seed: int = 0) -> World:
    """A data set on disk, every image decoded to `size` pixels a side."""
    readers = {"cub": labelled.cub, "cars": labelled.cars, "sop": labelled.sop, "folders": labelled.class_folders, "in_shop": labelled.in_shop}
    if layout not in readers:
        raise ValueError(f"layout: expected one of {', '.join(readers)}, found {layout!r}")

    def load(part: str) -> tuple[Tensor, Tensor]:
        found = readers[layout](root, part)
        return images.load_all(found.files, size=(size, size)), found.labels

    x, labels = load("train")
    test = Part(*load("query"), gallery=load("gallery")) if layout == "in_shop" else Part(*load("test"))
    return World(*_parted(x, labels, labels, seed), test)


def sight(world: World, tower: towers.Image, *, device: str = "cpu") -> Callable[[Shaped[Tensor, "n 3 h w"]], Float[Tensor, "n d"]]:
    """Images -> `of_images`, each channel less its mean over the training part and by its deviation there."""
    rows = of_images(world.train.x, tower, device=device)
    mean, spread = rows.mean(0), rows.std(0).clamp(min=1e-3)
    return lambda x: (of_images(x, tower, device=device) - mean) / spread


def seen(world: World, see: Callable[[Tensor], Tensor]) -> World:
    """The same with what `see` makes of images in their place."""
    return World(*(Part(see(p.x), p.labels, p.gallery and (see(p.gallery[0]), p.gallery[1])) for p in (world.train, world.val, world.test)))


def of_images(x: Shaped[Tensor, "n 3 h w"], tower: towers.Image, *, device: str = "cpu") -> Float[Tensor, "n d"]:
    """Means and deviations over space of a frozen tower's maps at all its strides, stored."""
    found = towers.stored(tower, x, device=device)
    return torch.cat([found["mean"], found["deviation"]], dim=1).float()


def judge(describe: Callable[[Tensor], Tensor], part: Part, ks: Sequence[int]) -> dict[str, Float[Tensor, " q"]]:
    """R@k and MAP@R in percent, a query each, of a part that `describe(x)` turns into rows, which are compared by their cosine.

    A query without another of its class is a miss to R@k and not counted in MAP@R, which is not defined for it.
    """
    queries, *gallery = (F.normalize(describe(x), dim=1) for x in (part.x, *(part.gallery or ())[:1]))
    found = metrics.class_retrieval(queries, part.labels, *gallery, *(part.gallery or ())[1:])
    return {**{f"r{k}": 100.0 * (found.rank < k) for k in ks}, "map_at_r": 100 * found.map_at_r[~found.map_at_r.isnan()]}


def balanced(labels: Int64[Tensor, " n"], batch: int, each: int, *, seed: int) -> Callable[[int], list[Int64[Tensor, " b"]]]:
    """Index batches of `each` images of batch / each classes, drawn from (seed, epoch); an epoch has as many images as there are."""
    groups = labels.argsort(stable=True).split(labels.unique(return_counts=True)[1].tolist())
    if batch % each or batch // each > len(groups):
        raise ValueError(f"batch, each: expected batch to hold {each} images of at most {len(groups)} classes, found {batch}")

    def draw(rows: Tensor, generator: torch.Generator) -> Tensor:
        order = torch.randperm(len(rows), generator=generator)
        return rows[order.repeat(-(-each // len(rows)))[:each]]  # a class with fewer gives some twice

    def batches(epoch: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        found = []
        for _ in range(max(1, len(labels) // batch)):
            chosen = torch.randperm(len(groups), generator=generator)[: batch // each]
            found.append(torch.cat([draw(groups[c], generator) for c in chosen]))
        return found

    return batches


def flipped(pixels: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Bytes to [0, 1], each image mirrored or not."""
    x = pixels.float() / 255
    return torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)


def _values(first: int, n: int, key: str) -> tuple[list[patterns.Tile], Int64[Tensor, " m"]]:
    """n tiles of every other value of each folder, from its `first` on, and their classes."""
    classes = [(folder, value) for folder in patterns.FOLDERS for value in patterns.values(folder)[first::2]]
    tiles = [patterns.Tile(folder, value, scene=patterns.seed_of("fine", key, folder, value, i)) for folder, value in classes for i in range(n)]
    return tiles, torch.arange(len(classes)).repeat_interleave(n)


def _parted(x: Tensor, labels: Tensor, group: Tensor, seed: int) -> tuple[Part, Part]:
    """Training and validation part: a third of the groups, drawn with `seed`, validates; classes are numbered anew."""
    groups = group.unique()
    if len(groups) < 3:
        raise ValueError(f"group: expected at least 3 groups of training images, of which one validates, found {len(groups)}")
    held = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))[: len(groups) // 3]]
    keep = ~torch.isin(group, held)
    return tuple(Part(x[k], torch.unique(labels[k], return_inverse=True)[1]) for k in (keep, ~keep))
