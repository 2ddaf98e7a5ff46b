"""Benchmarks of composed retrieval as their owners have them on disk: who is asked, what is said, what would be right.

    PatternCom                              attribute modification, CSVs of (file, attribute, value) over PatternNet's images
    ImageNet-R, MiniDomainNet, NICO++, LTLL domain conversion, FreeDom's lists of (path, domain, class)
    Fashion-IQ, CIRR, CIRCO                 free-form text, JSON

A line that is not what its format says raises an error that names file and line; images that are missing are listed in one error.
"""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from georeps import composed
from georeps.data import patterns

MERGED = {  # classes that count as one when a result is judged (the published code's groups)
    "denseresidential": "residential", "sparseresidential": "residential", "closedroad": "road", "intersection": "road",
    "bridge": "roadpass", "overpass": "roadpass", "ferryterminal": "pier", "harbor": "pier", "parkingspace": "parking", "parkinglot": "parking",
}  # fmt: skip
IMAGE_NAME = re.compile(r"([a-z]+)(\d{3,4})\.jpg")
WORDS = {  # how a domain is called in the query text (FreeDom)
    "imagenet_r": {"cartoon": "cartoon", "origami": "origami", "toy": "toy", "sculpture": "sculpture", "real": "photo"},
    "minidn": {"clipart": "clipart", "painting": "painting", "real": "photo", "sketch": "sketch"},
    "nico": {"autumn": "autumn", "dim": "dimlight", "grass": "grass", "outdoor": "outdoor", "rock": "rock", "water": "water"},
    "ltll": {"New": "today", "Old": "archive"},
}  # fmt: skip
IMAGENET_R = ("cartoon", "origami", "toy", "sculpture")  # domain of an id below 4000: id // 1000; what is above is real


@dataclass(frozen=True)
class Benchmark:
    """Images to ask with (`queries.image` points into them) and to be found (`queries.positives` point into the gallery)."""

    images: list[Path]
    gallery: list[Path]
    queries: composed.Queries
    left_out: dict[str, list[str]] = field(default_factory=dict)
    called: list[str] = field(default_factory=list)  # what a person calls the class of each image to ask with, where the data says


# --- PatternCom ---


def merged_class(name: str) -> str:
    """The class that decides what is right: a file's prefix, or its group (a parking lot and a parking space are parking)."""
    found = IMAGE_NAME.fullmatch(name)
    if not found:
        raise ValueError(f"expected a PatternNet name <class><3 digits>.jpg, found {name!r}")
    return MERGED.get(found[1], found[1])


def attribute_queries(names: Sequence[str], rows: Sequence[tuple[str, str, str]]) -> composed.Queries:
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
    return composed.Queries(
        torch.tensor([row[0] for row in found], dtype=torch.int64), *([row[i] for row in found] for i in (1, 2, 3, 4))
    )  # fmt: skip


def read_attribute_rows(path: Path | str) -> tuple[list[tuple[str, str, str]], list[str]]:
    """One CSV of PatternCom (no header): rows (file, attribute, value), and the files listed twice, of which the last row counts."""
    path = Path(path)
    rows: dict[str, tuple[str, str, str]] = {}
    twice = []
    with open(path, newline="", encoding="utf-8") as handle:
        for number, cells in enumerate(csv.reader(handle), 1):
            where = f"{path}, line {number}"
            if len(cells) != 3:
                raise ValueError(f"{where}: expected 3 columns (file, attribute, value), found {len(cells)}")
            name, attribute, value = (c.strip() for c in cells)
            if not IMAGE_NAME.fullmatch(name):
                raise ValueError(f"{where}: expected a file <class><3 digits>.jpg, found {name!r}")
            if attribute != path.stem or attribute not in patterns.ATTRIBUTES:
                raise ValueError(f"{where}: expected the attribute {path.stem!r} of {', '.join(patterns.ATTRIBUTES)}, found {attribute!r}")
            if not value:
                raise ValueError(f"{where}: expected a value of {attribute}, found none")
            twice += [name] if name in rows else []
            rows[name] = (name, attribute, value)
    if not rows:
        raise ValueError(f"{path}: expected rows (file, attribute, value), found none")
    return list(rows.values()), twice


def patterncom(root: Path | str, *, missing: Literal["error", "drop"] = "error") -> Benchmark:
    """PatternCom over PatternNet: images/<folder>/<prefix><NNN>.jpg and PatternCom/<attribute>.csv under `root`."""
    root = Path(root)
    gallery = sorted((root / "images").glob("*/*.jpg"))
    if not gallery:
        raise FileNotFoundError(f"{root / 'images'}: expected PatternNet's folders of .jpg images, found none")
    names = {path.name for path in gallery}
    rows, left_out = [], {"listed twice": [], "missing": []}
    for attribute in patterns.ATTRIBUTES:
        path = root / "PatternCom" / f"{attribute}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a CSV of PatternCom (file, attribute, value), found no file")
        found, twice = read_attribute_rows(path)
        rows += [row for row in found if row[0] in names]
        left_out["missing"] += [row[0] for row in found if row[0] not in names]
        left_out["listed twice"] += twice
    _check_missing(root, left_out["missing"], missing)
    return Benchmark(gallery, gallery, attribute_queries([p.name for p in gallery], rows), left_out)


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


def write_patterncom(root: Path | str, tiles: Sequence[patterns.Tile], pixels: UInt8[Tensor, "n 3 s s"]) -> None:
    """Embedded tiles in the published form, to be read by `patterncom` or by the published code."""
    root = Path(root)
    for name, tile, image in zip(names_of(tiles), tiles, pixels, strict=True):
        folder = root / "images" / tile.folder
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name, quality=95)
    (root / "PatternCom").mkdir(parents=True, exist_ok=True)
    rows = rows_of(tiles)
    for attribute in patterns.ATTRIBUTES:
        with open(root / "PatternCom" / f"{attribute}.csv", "w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows(row for row in rows if row[1] == attribute)


# --- domain conversion ---


def conversion_queries(asked: Sequence[tuple[str, str]], gallery: Sequence[tuple[str, str]], words: dict[str, str]) -> composed.Queries:
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
    return composed.Queries(
        torch.tensor([i for i, _, _, _ in found], dtype=torch.int64), [words[t] for _, t, _, _ in found],
        [p for _, _, p, _ in found], [s for _, _, _, s in found], [t for _, t, _, _ in found],
    )  # fmt: skip


def read_conversion_list(path: Path | str, domains: Sequence[str]) -> list[tuple[str, str, str]]:
    """FreeDom's lists, a line `path domain class`; Pic2Word's ImageNet lists, a line `path number`, are told apart by their columns."""
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        cells = line.split()
        where = f"{path}, line {number}"
        if len(cells) == 2 and cells[1].isdigit():
            code = int(cells[1])
            cells = [cells[0], IMAGENET_R[code // 1000] if code < 4000 else "real", str(code % 1000)]
        if len(cells) != 3:
            raise ValueError(f"{where}: expected `path domain class` or `path number`, found {line[:80]!r}")
        if cells[1] not in domains:
            raise ValueError(f"{where}: expected a domain of {', '.join(domains)}, found {cells[1]!r}")
        rows.append((cells[0], cells[1], cells[2]))
    if not rows:
        raise ValueError(f"{path}: expected lines `path domain class`, found none")
    return rows


def conversion(root: Path | str, name: str, *, missing: Literal["error", "drop"] = "error") -> Benchmark:
    """A domain-conversion benchmark from FreeDom's lists under root/<name>; images lie where the lists say, relative to `root`.

    "imagenet_r" and "ltll" ask with the database itself, "minidn" and "nico" with a set of their own.
    """
    if name not in WORDS:
        raise ValueError(f"name: expected one of {', '.join(WORDS)}, found {name!r}")
    lists = {"imagenet_r": ("imgnet_targets.txt",), "ltll": ("full_files.csv",)}  # the other ImageNet list repeats its photographs under other numbers
    domains = tuple(WORDS[name])
    if name in lists:
        gallery = [row for file in lists[name] for row in read_conversion_list(Path(root) / name / file, domains)]
        asked = gallery
    else:
        asked, gallery = (read_conversion_list(Path(root) / name / f"{part}_files.csv", domains) for part in ("query", "database"))
    absent = {p for p, _, _ in [*asked, *gallery] if not (Path(root) / p).is_file()}
    _check_missing(root, sorted(absent), missing)
    asked, gallery = ([row for row in rows if row[0] not in absent] for rows in (asked, gallery))
    queries = conversion_queries([(c, d) for _, d, c in asked], [(c, d) for _, d, c in gallery], WORDS[name])
    called = [c.replace("_", " ") for _, _, c in asked]
    if name == "imagenet_r":
        names = read_words(Path(root) / name / "label_names.csv")
        called = [names[int(c)] for c in called]
    return Benchmark([Path(root) / p for p, _, _ in asked], [Path(root) / p for p, _, _ in gallery], queries, {"missing": sorted(absent)}, called)


def read_words(path: Path | str) -> list[str]:
    """A text memory or a list of names: the first column of a CSV without header, UTF-8 (Open Images V7's class names, 20,931 lines)."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: expected words, one a line, found no file")
    with open(path, newline="", encoding="utf-8") as handle:
        words = [row[0].strip() if row else "" for row in csv.reader(handle)]
    if not words or "" in words:
        raise ValueError(f"{path}, line {words.index('') + 1 if words else 1}: expected a word, found none")
    return words


# --- free-form text ---


def fashion_iq(root: Path | str, kind: Literal["dress", "shirt", "toptee"], *, missing: Literal["error", "drop"] = "error") -> Benchmark:
    """Fashion-IQ's validation part of one kind: captions/cap.<kind>.val.json, image_splits/split.<kind>.val.json, images/."""
    root = Path(root)
    names = _json(root / "image_splits" / f"split.{kind}.val.json", list)
    rows = _json(root / "captions" / f"cap.{kind}.val.json", list)
    suffix = ".jpg" if any((root / "images").glob("*.jpg")) else ".png"
    _has(rows, ("candidate", "captions", "target"), root / "captions" / f"cap.{kind}.val.json")
    asked = [(r["candidate"], " and ".join(c.strip() for c in r["captions"]), [r["target"]]) for r in rows]
    return _free(root, {name: root / "images" / f"{name}{suffix}" for name in names}, asked, kind, missing)


def cirr(root: Path | str, *, missing: Literal["error", "drop"] = "error") -> Benchmark:
    """CIRR's validation part: cirr/captions/cap.rc2.val.json and cirr/image_splits/split.rc2.val.json under `root`."""
    root = Path(root)
    names = _json(root / "cirr" / "image_splits" / "split.rc2.val.json", dict)
    rows = _json(root / "cirr" / "captions" / "cap.rc2.val.json", list)
    _has(rows, ("reference", "caption", "target_hard"), root / "cirr" / "captions" / "cap.rc2.val.json")
    asked = [(r["reference"], r["caption"], [r["target_hard"]]) for r in rows]
    return _free(root, {name: root / file for name, file in names.items()}, asked, "cirr", missing)


def circo(root: Path | str, *, missing: Literal["error", "drop"] = "error") -> Benchmark:
    """CIRCO's validation part over COCO's unlabelled images, several right answers a query."""
    root = Path(root)
    coco = root / "COCO2017_unlabeled"
    listed = _json(coco / "annotations" / "image_info_unlabeled2017.json", dict)["images"]
    rows = _json(root / "annotations" / "val.json", list)
    _has(rows, ("reference_img_id", "relative_caption", "gt_img_ids"), root / "annotations" / "val.json")
    asked = [(r["reference_img_id"], r["relative_caption"], r["gt_img_ids"]) for r in rows]
    return _free(root, {r["id"]: coco / "unlabeled2017" / r["file_name"] for r in listed}, asked, "circo", missing)


def _free(root: Path, files: dict[Any, Path], asked: list[tuple[Any, str, list]], group: str, missing: str) -> Benchmark:
    unlisted = [str(n) for reference, _, targets in asked for n in (reference, *targets) if n not in files]
    if unlisted:
        raise ValueError(f"{root}: expected every image of the annotations in the split, found {len(unlisted)} that are not: {', '.join(unlisted[:5])}")
    absent = {name for name, path in files.items() if not path.is_file()}
    _check_missing(root, sorted(str(files[n]) for n in absent), missing)
    gallery = {name: path for name, path in files.items() if name not in absent}
    place = {name: i for i, name in enumerate(gallery)}
    kept = [(place[r], text, torch.tensor([place[t] for t in ts if t in place])) for r, text, ts in asked if r in place]
    queries = composed.Queries(
        torch.tensor([i for i, _, _ in kept], dtype=torch.int64), [t for _, t, _ in kept], [p.long() for _, _, p in kept], [group] * len(kept), [group] * len(kept)
    )  # fmt: skip
    left_out = {"missing": sorted(map(str, absent)), "queries": [text for r, text, _ in asked if r not in place]}
    return Benchmark(list(gallery.values()), list(gallery.values()), queries, left_out)


def _json(path: Path, kind: type) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected annotations, found no file")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: expected JSON, found {error.msg}") from error
    if not isinstance(found, kind):
        raise ValueError(f"{path}: expected a JSON {kind.__name__}, found {type(found).__name__}")
    return found


def _has(rows: list[dict], keys: Sequence[str], path: Path) -> None:
    for i, row in enumerate(rows):
        lacking = [k for k in keys if k not in row]
        if lacking:
            raise ValueError(f"{path}, entry {i}: expected keys {', '.join(keys)}, found none named {', '.join(lacking)}")


def _check_missing(root: Path | str, names: list[str], missing: str) -> None:
    if missing not in ("error", "drop"):
        raise ValueError(f"missing: expected 'error' or 'drop', found {missing!r}")
    if names and missing == "error":
        raise FileNotFoundError(f"{root}: expected all images the lists name, found {len(names)} missing: {', '.join(names[:10])}")
