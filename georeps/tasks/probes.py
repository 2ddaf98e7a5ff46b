"""What each chapter asks of an image, as questions that need no training: the nearest neighbour of a description, right or wrong.

    asked = probes.city(...) | probes.earth(...) | probes.patterns(...)       name -> Probe
    found = probes.outcomes(asked["land cover"], "frozen", seed=0)            percent a query, by one of `floors.FLOORS`

Chapter 01 sets the floors of the book by them. A Probe of your own images takes their place.
"""  # fmt: skip

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from georeps.core import metrics, search, sphere
from georeps.readers import images, vpr
from georeps.tasks import drives, fine, floors, pairs
from georeps.worlds import city as cities, earth as globe, patterns as tiles_of

Labels = Sequence | np.ndarray | Tensor


@dataclass(frozen=True)
class Probe:
    """Queries and what is searched for them. `right(index "q") -> "q"` judges each query's nearest row of the gallery, 100 at best.

    Without a gallery the queries search each other. With `learn`, pictures and tiles of other places, the two views are first brought together by
    a ridge regression (`floors.ridge_ranks`), over so many rows and columns of a picture (`grid`), and a query's match is its own row.
    """

    chapters: str
    queries: UInt8[Tensor, "q 3 h w"]
    gallery: UInt8[Tensor, "g 3 i j"] | None
    right: Callable[[Int64[Tensor, " q"]], Float[Tensor, " q"]]
    chance: float  # what a row drawn at random gives, percent
    learn: tuple[Tensor, Tensor] | None = None
    grid: tuple[int, int] | None = None


def outcomes(probe: Probe, floor: str, *, seed: int = 0, device: str = "cpu") -> Float[Tensor, " q"]:
    """How right the nearest neighbour of each query is, by a description that learnt nothing of the task."""
    options = {"grid": probe.grid, "seed": seed, "device": device}
    if probe.learn is not None:
        views = [[floors.describe(floor, x, like=own, **options) for x in (own, other)] for own, other in zip(probe.learn, (probe.queries, probe.gallery))]
        (x, q), (y, g) = views
        return 100.0 * (floors.ridge_ranks((x, y), (q, g)) == 0)
    rows = probe.queries if probe.gallery is None else probe.gallery
    gallery = F.normalize(floors.describe(floor, rows, **options), dim=1)
    if probe.gallery is not None:
        asked = F.normalize(floors.describe(floor, probe.queries, like=rows, **options), dim=1)
        return probe.right(search.topk(asked, gallery, 1).index[:, 0])
    index = search.topk(gallery, gallery, 2).index
    itself = torch.arange(len(gallery))
    return probe.right(torch.where(index[:, 0] == itself, index[:, 1], index[:, 0]))


def of_labels(chapters: str, queries: Tensor, labels: Labels, gallery: tuple[Tensor, Labels] | None = None) -> Probe:
    """Right is a row of the query's own label."""
    names = np.asarray(labels if gallery is None else gallery[1])
    own, same = np.asarray(labels), np.unique(names, return_counts=True)
    count = np.array([dict(zip(*same)).get(label, 0) for label in own]) - (gallery is None)
    return Probe(
        chapters, queries, None if gallery is None else gallery[0], lambda index: 100.0 * torch.from_numpy(own == names[index.numpy()]),
        100 * float(count.mean()) / (len(names) - (gallery is None)),
    )  # fmt: skip


def of_places(queries: Tensor, gallery: Tensor, here: Float[Tensor, "q 2"], there: Float[Tensor, "g 2"]) -> Probe:
    """How right is the GeoScore, in percent of 5,000, of the place (degrees) of a row for that of the query."""
    here, there = (sphere.from_latlon(latlon.double()).float() for latlon in (here, there))

    def near(index: Int64[Tensor, " q"]) -> Float[Tensor, " q"]:
        return metrics.geoscore(sphere.kilometres(there[index], here)) / 50

    blind = torch.randint(len(there), (20, len(here)), generator=torch.Generator().manual_seed(0))
    return Probe("11, 12", queries, gallery, near, float(torch.stack([near(i) for i in blind]).mean()))


def of_pairs(chapters: str, learn: tuple[Tensor, Tensor], queries: Tensor, gallery: Tensor, grid: tuple[int, int]) -> Probe:
    """Right is the row of the query's own number."""
    return Probe(chapters, queries, gallery, lambda index: 100.0 * (index == torch.arange(len(index))), 100 / len(gallery), learn, grid)


def city(
    *, train: int, test: int, tiles: int, places: int, size: int, ground: tuple[int, int], elevation: tuple[float, float], polar_from: int, drive: dict,
    seed: int = 0,
) -> dict[str, Probe]:  # fmt: skip
    """Panoramas and polar maps of tiles, street pictures of places at other times and headings, drives by day and by night, all of unseen cities."""
    shape = pairs.Shape(ground, (size, size), elevation, polar_from, views=("polar",))
    learn = pairs.of_city(shape, split="cross", part="train", n=train, tiles=tiles, seed=seed)
    judge = pairs.of_city(shape, split="cross", part="test", n=test, tiles=tiles)
    where = cities.places(split="cross", part="test", n=places, tiles=tiles)
    found = {
        "street to sky": of_pairs("03-05", (learn.ground, learn.gallery()), judge.ground, judge.gallery(), (1, 16)),
        "places at other times": of_labels("06", *cities.views(where, size=size, seen=fine.SEEN)),
    }
    root = drives.tree(size=size, **drive)
    for condition in ("day", "night"):
        part = vpr.part(root, queries=f"queries_{condition}")
        asked, database = (images.load_all(seen.files, size=(size, size)) for seen in (part.queries, part.database))
        right = [set(p.tolist()) for p in part.positives]
        judged = lambda index, right=right: 100.0 * torch.tensor([i in p for i, p in zip(index.tolist(), right)])  # noqa: E731
        chance = 100 * float(np.mean([len(p) for p in right])) / len(database)
        found[f"a drive by {condition}"] = Probe("10", asked, database, judged, chance)
    return found


def earth(*, train: int, test: int, size: int, extent_km: float, spacing_km: float, split: str = "blocks", seed: int = 0) -> dict[str, Probe]:
    """Optical and relief patches of unseen blocks: which relief is theirs, what covers the land, and where on Earth they are."""
    options = {"split": split, "size": size, "extent_km": extent_km, "spacing_km": spacing_km}
    learn, judge = globe.pairs(part="train", n=train, seed=seed, **options), globe.pairs(part="test", n=test, **options)
    return {
        "optical to relief": of_pairs("03", (learn.optical, learn.relief), judge.optical, judge.relief, (4, 4)),
        "land cover": of_labels("06, 07", judge.optical, judge.places.cover, (learn.optical, learn.places.cover)),
        "where on Earth": of_places(judge.optical, learn.optical, judge.places.latlon, learn.places.latlon),
    }  # fmt: skip


def patterns(*, n: int, size: int, scale: float) -> dict[str, Probe]:
    """Tiles from above: values of folders never trained on, of the classes PatternCom asks about, and classes drawn in another style."""
    folders = [(folder, value) for folder in tiles_of.FOLDERS[1::2] for value in tiles_of.values(folder)]
    values = [tiles_of.Tile(f, v, scene=tiles_of.seed_of("probe", f, v, i)) for f, v in folders for i in range(n)]
    shown = [tile for tile in tiles_of.benchmark(scale=scale) if tile.value and tile.folder in tiles_of.COUNTS]
    styles = tiles_of.conversion("styles", n=n)
    asked, drawn = ([t for t in styles if (t.style == "photo") == photo] for photo in (True, False))
    render = lambda tiles: tiles_of.render(tiles, size=size)  # noqa: E731
    return {
        "values of unseen classes": of_labels("06", render(values), [f"{t.folder} {t.value}" for t in values]),
        "class and value": of_labels("08", render(shown), [f"{t.folder} {t.value}" for t in shown]),
        "the same in other styles": of_labels("09", render(asked), [t.folder for t in asked], (render(drawn), [t.folder for t in drawn])),
    }


def extents(*, train: int, test: int, size: int, extents_km: Sequence[float], spacing_km: float, split: str = "blocks") -> dict[float, Probe]:
    """Where on Earth a patch is, at the same places by so much ground each; no training patch of the largest extent meets a test patch."""
    learn, judge = (
        globe.places(split=split, part=part, n=n, extent_km=max(extents_km), spacing_km=spacing_km) for part, n in (("train", train), ("test", test))
    )
    cut = lambda part, km: globe.patches("optical", dataclasses.replace(part, extent_km=km), size=size)  # noqa: E731
    return {km: of_places(cut(judge, km), cut(learn, km), judge.latlon, learn.latlon) for km in extents_km}
