"""Composed queries: an image and a text ask together, of an embedded world or of a benchmark on disk; what would be right.

    bench = compositions.patterncom(root)                bench.queries.image points into bench.images, .positives into bench.gallery
    queries = compositions.attribute_queries(names, compositions.rows_of(tiles))          of embedded tiles
"""  # fmt: skip

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from georeps.readers import compositions as lists, folders
from georeps.worlds import patterns

MERGED = {  # classes that count as one when a result is judged (the published code's groups)
    "denseresidential": "residential", "sparseresidential": "residential", "closedroad": "road", "intersection": "road",
    "bridge": "roadpass", "overpass": "roadpass", "ferryterminal": "pier", "harbor": "pier", "parkingspace": "parking", "parkinglot": "parking",
}  # fmt: skip


@dataclass(frozen=True)
class Queries:
    """What is asked and what would be right: query i shows image `image[i]`, says `text[i]`, and is answered by `positives[i]`.

    `image` points into the images that a benchmark lists, `positives` into its gallery; `group` and `value` are what results are
    averaged over (an attribute and the query's own class and value; a source and a target domain).
    """

    image: Int64[Tensor, " q"]
    text: list[str]
    positives: list[Int64[Tensor, " _"]]
    group: list[str]
    value: list[str]

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class Benchmark:
    """Images to ask with (`queries.image` points into them) and to be found (`queries.positives` point into the gallery)."""

    images: list[Path]
    gallery: list[Path]
    queries: Queries
    left_out: dict[str, list[str]] = field(default_factory=dict)
    called: list[str] = field(default_factory=list)  # what a person calls the class of each image to ask with, where the data says


def merged_class(name: str) -> str:
    """The class that decides what is right: a file's prefix, or its group (a parking lot and a parking space are parking)."""
    found = lists.IMAGE_NAME.fullmatch(name)
    if not found:
        raise ValueError(f"name: expected a PatternNet name <class><3 digits>.jpg, found {name!r}")
    return MERGED.get(found[1], found[1])


def attribute_queries(names: Sequence[str], rows: Sequence[tuple[str, str, str]]) -> Queries:
    """PatternCom's queries: each annotated image with each other value that its class has of the attribute.

    `names` is the gallery, `rows` are (file, attribute, value). Right is what the attribute's rows list with the asked value and the
    query's merged class; all else is wrong, images without annotation included. The query stays in the gallery, where it is wrong. The
    `group` of a query is the attribute, its `value` its class and own value.
    """
    place = {name: i for i, name in enumerate(names)}
    lost = sorted({file for file, _, _ in rows} - set(place))
    if lost:
        raise ValueError(f"rows: expected files of the gallery, found {len(lost)} others: {', '.join(lost[:5])}")
    shown: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for file, attribute, value in rows:
        shown[attribute, merged_class(file)][value].append(place[file])
    found = []
    for (attribute, label), by_value in shown.items():
        positives = {value: torch.tensor(index) for value, index in by_value.items()}
        for own, index in by_value.items():
            found += [(i, value, positives[value], attribute, f"{label} {own}") for i in index for value in by_value if value != own]
    return Queries(
        torch.tensor([row[0] for row in found], dtype=torch.int64), *([row[i] for row in found] for i in (1, 2, 3, 4))
    )  # fmt: skip


def names_of(tiles: Sequence[patterns.Tile]) -> list[str]:
    """PatternNet file names for embedded tiles: the folder's prefix and a number from 001."""
    count: dict[str, int] = defaultdict(int)
    names = []
    for tile in tiles:
        count[tile.folder] += 1
        names.append(f"{patterns.PREFIX[tile.folder]}{count[tile.folder]:03d}.jpg")
    return names


def rows_of(tiles: Sequence[patterns.Tile]) -> list[tuple[str, str, str]]:
    """PatternCom's rows (file, attribute, value) of embedded tiles; tiles that show no value have none."""
    named = zip(names_of(tiles), tiles, strict=True)
    return [(name, patterns.COUNTS[t.folder][0], t.value) for name, t in named if t.value and t.folder in patterns.COUNTS]


def conversion_queries(asked: Sequence[tuple[str, str]], gallery: Sequence[tuple[str, str]], words: dict[str, str]) -> Queries:
    """Each image with each other domain: `asked` and `gallery` are (class, domain); `words` how a domain is called.

    Right is the query's class in the named domain. A query nobody can answer stays, with no positives: the published code counts its
    average precision as 0.
    """
    unknown = sorted({d for _, d in [*asked, *gallery]} - set(words))
    if unknown:
        raise ValueError(f"domain: expected one of {', '.join(words)}, found {', '.join(unknown)}")
    by_label: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, label in enumerate(gallery):
        by_label[label].append(i)
    positives = {label: torch.tensor(index, dtype=torch.int64) for label, index in by_label.items()}
    none = torch.zeros(0, dtype=torch.int64)
    found = [(i, target, positives.get((label, target), none), source) for i, (label, source) in enumerate(asked) for target in words if target != source]
    return Queries(
        torch.tensor([i for i, _, _, _ in found], dtype=torch.int64), [words[t] for _, t, _, _ in found],
        [p for _, _, p, _ in found], [s for _, _, _, s in found], [t for _, t, _, _ in found],
    )  # fmt: skip


def patterncom(root: Path | str, *, missing: Literal["error", "drop"] = "error") -> Benchmark:
    """PatternCom over PatternNet, as `readers.compositions` finds it under `root`."""
    found = lists.patterncom(root, missing=missing)
    return Benchmark(found.gallery, found.gallery, attribute_queries([p.name for p in found.gallery], found.rows), found.left_out)


def conversion(root: Path | str, name: str, *, missing: Literal["error", "drop"] = "error") -> Benchmark:
    """A domain-conversion benchmark: "imagenet_r" and "ltll" ask with the database itself, "minidn" and "nico" with a set of their own."""
    found = lists.conversion(root, name, missing=missing)
    queries = conversion_queries([(c, d) for _, d, c in found.asked], [(c, d) for _, d, c in found.gallery], lists.WORDS[name])
    files = ([Path(root) / p for p, _, _ in rows] for rows in (found.asked, found.gallery))
    return Benchmark(*files, queries, {"missing": found.missing}, found.called)


def free_form(root: Path | str, name: Literal["cirr", "circo", "dress", "shirt", "toptee"], *, missing: Literal["error", "drop"] = "error") -> Benchmark:
    """CIRR, CIRCO, or one kind of Fashion-IQ: texts that say what is to change."""
    folders.one_of("name", name, ("cirr", "circo", "dress", "shirt", "toptee"))
    read = {"cirr": lists.cirr, "circo": lists.circo}.get(name)
    found = read(root, missing=missing) if read else lists.fashion_iq(root, name, missing=missing)
    place = {key: i for i, key in enumerate(found.gallery)}
    positives = [torch.tensor([place[t] for t in targets]).long() for _, _, targets in found.asked]
    group = [name] * len(positives)
    queries = Queries(torch.tensor([place[r] for r, _, _ in found.asked]).long(), [text for _, text, _ in found.asked], positives, group, group)
    files = list(found.gallery.values())
    return Benchmark(files, files, queries, found.left_out)
