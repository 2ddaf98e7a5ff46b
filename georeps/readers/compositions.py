"""Benchmarks of composed retrieval as their owners have them on disk: which files, what is said of them, what would be right.

    PatternCom                              attribute modification, CSVs of (file, attribute, value) over PatternNet's images
    ImageNet-R, MiniDomainNet, NICO++, LTLL domain conversion, FreeDom's lists of (path, domain, class)
    Fashion-IQ, CIRR, CIRCO                 free-form text, JSON

With `missing="drop"` images that are not there are left out and named. `tasks.compositions` makes queries of what is read here.
"""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from georeps.readers import folders
from georeps.worlds import patterns

IMAGE_NAME = re.compile(r"([a-z]+)(\d{3,4})\.jpg")
WORDS = {  # how a domain is called in the query text (FreeDom)
    "imagenet_r": {"cartoon": "cartoon", "origami": "origami", "toy": "toy", "sculpture": "sculpture", "real": "photo"},
    "minidn": {"clipart": "clipart", "painting": "painting", "real": "photo", "sketch": "sketch"},
    "nico": {"autumn": "autumn", "dim": "dimlight", "grass": "grass", "outdoor": "outdoor", "rock": "rock", "water": "water"},
    "ltll": {"New": "today", "Old": "archive"},
}  # fmt: skip
IMAGENET_R = ("cartoon", "origami", "toy", "sculpture")  # domain of an id below 4000: id // 1000; what is above is real


class Attributes(NamedTuple):
    gallery: list[Path]
    rows: list[tuple[str, str, str]]  # file name, attribute, value
    left_out: dict[str, list[str]]


class Conversion(NamedTuple):
    asked: list[tuple[str, str, str]]  # path below the root, domain, class
    gallery: list[tuple[str, str, str]]
    called: list[str]  # what a person calls the class of each image to ask with
    missing: list[str]


class FreeForm(NamedTuple):
    gallery: dict[Any, Path]  # by the name that the annotations use
    asked: list[tuple[Any, str, list]]  # reference, text, what is right
    left_out: dict[str, list[str]]


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


def patterncom(root: Path | str, *, missing: Literal["error", "drop"] = "error") -> Attributes:
    """PatternCom over PatternNet: images/<folder>/<prefix><NNN>.jpg and PatternCom/<attribute>.csv under `root`."""
    root = Path(root)
    gallery = sorted((root / "images").glob("*/*.jpg"))
    if not gallery:
        raise FileNotFoundError(f"{root / 'images'}: expected PatternNet's folders of .jpg images, found none")
    names = {path.name for path in gallery}
    rows, left_out = [], {"listed twice": [], "missing": []}
    for attribute in patterns.ATTRIBUTES:
        path = folders.there(root / "PatternCom" / f"{attribute}.csv", "a CSV of PatternCom (file, attribute, value)")
        found, twice = read_attribute_rows(path)
        rows += [row for row in found if row[0] in names]
        left_out["missing"] += [row[0] for row in found if row[0] not in names]
        left_out["listed twice"] += twice
    folders.check_missing(root, left_out["missing"], missing)
    return Attributes(gallery, rows, left_out)


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


def conversion(root: Path | str, name: str, *, missing: Literal["error", "drop"] = "error") -> Conversion:
    """A domain-conversion benchmark from FreeDom's lists under root/<name>; images lie where the lists say, relative to `root`.

    "imagenet_r" and "ltll" ask with the database itself, "minidn" and "nico" with a set of their own.
    """
    folders.one_of("name", name, WORDS)
    lists = {"imagenet_r": ("imgnet_targets.txt",), "ltll": ("full_files.csv",)}  # the other ImageNet list repeats its photographs under other numbers
    domains = tuple(WORDS[name])
    if name in lists:
        gallery = [row for file in lists[name] for row in read_conversion_list(Path(root) / name / file, domains)]
        asked = gallery
    else:
        asked, gallery = (read_conversion_list(Path(root) / name / f"{part}_files.csv", domains) for part in ("query", "database"))
    absent = {p for p, _, _ in [*asked, *gallery] if not (Path(root) / p).is_file()}
    folders.check_missing(root, sorted(absent), missing)
    asked, gallery = ([row for row in rows if row[0] not in absent] for rows in (asked, gallery))
    called = [c.replace("_", " ") for _, _, c in asked]
    if name == "imagenet_r":
        names = read_words(Path(root) / name / "label_names.csv")
        called = [names[int(c)] for c in called]
    return Conversion(asked, gallery, called, sorted(absent))


def read_words(path: Path | str) -> list[str]:
    """A text memory or a list of names: the first column of a CSV without header, UTF-8 (Open Images V7's class names, 20,931 lines)."""
    with open(folders.there(Path(path), "words, one a line"), newline="", encoding="utf-8") as handle:
        words = [row[0].strip() if row else "" for row in csv.reader(handle)]
    if not words or "" in words:
        raise ValueError(f"{path}, line {words.index('') + 1 if words else 1}: expected a word, found none")
    return words


def fashion_iq(root: Path | str, kind: Literal["dress", "shirt", "toptee"], *, missing: Literal["error", "drop"] = "error") -> FreeForm:
    """Fashion-IQ's validation part of one kind: captions/cap.<kind>.val.json, image_splits/split.<kind>.val.json, images/."""
    root = Path(root)
    names = _json(root / "image_splits" / f"split.{kind}.val.json", list)
    rows = _json(root / "captions" / f"cap.{kind}.val.json", list)
    suffix = ".jpg" if any((root / "images").glob("*.jpg")) else ".png"
    _has(rows, ("candidate", "captions", "target"), root / "captions" / f"cap.{kind}.val.json")
    asked = [(r["candidate"], " and ".join(c.strip() for c in r["captions"]), [r["target"]]) for r in rows]
    return _free(root, {name: root / "images" / f"{name}{suffix}" for name in names}, asked, missing)


def cirr(root: Path | str, *, missing: Literal["error", "drop"] = "error") -> FreeForm:
    """CIRR's validation part: cirr/captions/cap.rc2.val.json and cirr/image_splits/split.rc2.val.json under `root`."""
    root = Path(root)
    names = _json(root / "cirr" / "image_splits" / "split.rc2.val.json", dict)
    rows = _json(root / "cirr" / "captions" / "cap.rc2.val.json", list)
    _has(rows, ("reference", "caption", "target_hard"), root / "cirr" / "captions" / "cap.rc2.val.json")
    asked = [(r["reference"], r["caption"], [r["target_hard"]]) for r in rows]
    return _free(root, {name: root / file for name, file in names.items()}, asked, missing)


def circo(root: Path | str, *, missing: Literal["error", "drop"] = "error") -> FreeForm:
    """CIRCO's validation part over COCO's unlabelled images, several right answers a query."""
    root = Path(root)
    coco = root / "COCO2017_unlabeled"
    listed = _json(coco / "annotations" / "image_info_unlabeled2017.json", dict)["images"]
    rows = _json(root / "annotations" / "val.json", list)
    _has(rows, ("reference_img_id", "relative_caption", "gt_img_ids"), root / "annotations" / "val.json")
    asked = [(r["reference_img_id"], r["relative_caption"], r["gt_img_ids"]) for r in rows]
    return _free(root, {r["id"]: coco / "unlabeled2017" / r["file_name"] for r in listed}, asked, missing)


def _free(root: Path, files: dict[Any, Path], asked: list[tuple[Any, str, list]], missing: str) -> FreeForm:
    unlisted = [str(n) for reference, _, targets in asked for n in (reference, *targets) if n not in files]
    if unlisted:
        raise ValueError(f"{root}: expected every image of the annotations in the split, found {len(unlisted)} that are not: {', '.join(unlisted[:5])}")
    absent = {name for name, path in files.items() if not path.is_file()}
    folders.check_missing(root, sorted(str(files[n]) for n in absent), missing)
    gallery = {name: path for name, path in files.items() if name not in absent}
    left_out = {"missing": sorted(map(str, absent)), "queries": [text for r, text, _ in asked if r not in gallery]}
    kept = [(r, text, [target for target in targets if target in gallery]) for r, text, targets in asked if r in gallery]
    return FreeForm(gallery, kept, left_out)


def _json(path: Path, kind: type) -> Any:
    try:
        found = json.loads(folders.there(path, "annotations").read_text(encoding="utf-8"))
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
