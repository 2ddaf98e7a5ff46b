"""Images with classes, as their owners have them on disk: CUB-200-2011, Cars196, SOP and In-Shop for metric learning, revisited Oxford and Paris.

Training and test part share no class (the first and the second half of them).
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from georeps.readers import folders, images

Part = Literal["train", "test"]


@dataclass(frozen=True)
class Labelled:
    """n image files and their classes, 0.. in the order of `names`."""

    files: list[Path]
    labels: Int64[Tensor, " n"]
    names: list[str]
    left_out: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Landmarks:
    """Revisited Oxford or Paris: `easy`, `hard` and `junk` are gallery rows of each query; a query is the part of its image in `boxes`."""

    queries: list[Path]
    boxes: list[tuple[float, float, float, float]]  # left, top, right, bottom in pixels
    gallery: list[Path]
    easy: list[Int64[Tensor, " _"]]
    hard: list[Int64[Tensor, " _"]]
    junk: list[Int64[Tensor, " _"]]


def cub(root: Path | str, part: Part = "train") -> Labelled:
    """CUB-200-2011: images.txt and image_class_labels.txt; classes 1-100 are for training (5,864 images), 101-200 for testing (5,924)."""
    root = Path(root)
    names = _numbered(root / "images.txt", str)
    classes = _numbered(root / "image_class_labels.txt", int)
    if set(names) != set(classes):
        odd = sorted(set(names) ^ set(classes))[:5]
        raise ValueError(f"{root}: expected every image in images.txt and in image_class_labels.txt, found in one only: {', '.join(map(str, odd))}")
    rows = [(root / "images" / names[i], f"{classes[i]:03d}", classes[i]) for i in sorted(names)]
    return _half(rows, part, (100, 200), root / "image_class_labels.txt")


def cars(root: Path | str, part: Part = "train") -> Labelled:
    """Cars196: cars_annos.mat and car_ims; classes 1-98 are for training (8,054 images), 99-196 for testing (8,131)."""
    import scipy.io

    root = Path(root)
    path = folders.there(root / "cars_annos.mat", "the annotations of Cars196")
    found = scipy.io.loadmat(path, simplify_cells=True).get("annotations")
    rows = np.atleast_1d(found) if found is not None else []
    if not len(rows) or not all(isinstance(r, dict) and {"relative_im_path", "class"} <= set(r) for r in rows):
        raise ValueError(f"{path}: expected 'annotations' with relative_im_path and class, found none")
    return _half([(root / r["relative_im_path"], f"{int(r['class']):03d}", int(r["class"])) for r in rows], part, (98, 196), path)


def sop(root: Path | str, part: Part = "train") -> Labelled:
    """Stanford Online Products: Ebay_train.txt (11,318 classes, 59,551 images) and Ebay_test.txt (11,316, 60,502)."""
    folders.one_of("part", part, ("train", "test"))
    root = Path(root)
    rows = _table(root / f"Ebay_{part}.txt", ("image_id", "class_id", "super_class_id", "path"), header=1)
    return _labelled([(root / path, class_id) for _, class_id, _, path in rows], root)


def in_shop(root: Path | str, part: Literal["train", "query", "gallery"] = "train") -> Labelled:
    """In-Shop: Eval/list_eval_partition.txt; the classes of "query" and "gallery" are numbered alike, for one is searched in the other."""
    root = Path(root)
    folders.one_of("part", part, ("train", "query", "gallery"))
    path = next((p for p in (root / "Eval" / "list_eval_partition.txt", root / "list_eval_partition.txt") if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{root}: expected Eval/list_eval_partition.txt, found none")
    rows = _table(path, ("image_name", "item_id", "evaluation_status"), header=2)
    for number, (_, _, status) in enumerate(rows, 3):
        if status not in ("train", "query", "gallery"):
            raise ValueError(f"{path}, line {number}: expected train, query or gallery, found {status!r}")
    names = sorted({item for _, item, status in rows if (status == "train") == (part == "train")})
    folder = root / "Img" if (root / "Img").is_dir() else root
    return _labelled([(folder / name, item) for name, item, status in rows if status == part], root, names)


def class_folders(root: Path | str, part: Literal["train", "test", "all"] = "train") -> Labelled:
    """A folder of your own, one folder of images a class: of the classes in alphabetical order the first half trains, the second tests.

    Files of other kinds are named in `left_out`.
    """
    folders.one_of("part", part, ("train", "test", "all"))
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected a folder with a folder a class, found none")
    classes = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    least = 2 if part == "all" else 4
    if len(classes) < least:
        raise ValueError(f"{root}: expected at least {least} folders, one a class, found {len(classes)}")
    middle = len(classes) // 2
    half = {"train": classes[:middle], "test": classes[middle:], "all": classes}[part]
    rows = [(p, c.name) for c in half for p in sorted(c.iterdir()) if not p.name.startswith(".") and p.suffix.lower() in images.SUFFIXES]
    empty = [c.name for c in half if c.name not in {name for _, name in rows}]
    if empty:
        raise ValueError(f"{root}: expected images ({', '.join(images.SUFFIXES)}) in every folder, found none in {', '.join(empty)}")
    found = _labelled(rows, root)
    other = [str(p) for c in half for p in sorted(c.iterdir()) if not p.name.startswith(".") and p.suffix.lower() not in images.SUFFIXES]
    return replace(found, left_out={"no images": other} if other else {})


def landmarks(root: Path | str, name: Literal["roxford5k", "rparis6k"]) -> Landmarks:
    """Revisited Oxford or Paris: <name>/gnd_<name>.pkl and <name>/jpg (Radenovic et al., 2018). The pickle may hold numbers and lists, no code."""
    folders.one_of("name", name, ("roxford5k", "rparis6k"))
    folder = Path(root) / name
    path = folders.there(folder / f"gnd_{name}.pkl", "the ground truth")
    with path.open("rb") as file:
        try:
            found = _Plain(file).load()
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path}: {error}") from None
    for key in ("imlist", "qimlist", "gnd"):
        if not isinstance(found, dict) or key not in found:
            raise ValueError(f"{path}: expected a dictionary with imlist, qimlist and gnd, found no {key}")
    if len(found["gnd"]) != len(found["qimlist"]):
        raise ValueError(f"{path}: expected a ground truth for each of {len(found['qimlist'])} queries, found {len(found['gnd'])}")
    queries, gallery = ([folder / "jpg" / f"{stem}.jpg" for stem in found[key]] for key in ("qimlist", "imlist"))
    folders.check_missing(folder, [str(p) for p in (*queries, *gallery) if not p.is_file()])
    rows = {}
    for key in ("easy", "hard", "junk"):
        rows[key] = [torch.as_tensor(np.asarray(q[key], dtype=np.int64)).reshape(-1) for q in found["gnd"]]
        wrong = [i for i, r in enumerate(rows[key]) if len(r) and not 0 <= int(r.min()) <= int(r.max()) < len(gallery)]
        if wrong:
            raise ValueError(f"{path}, query {wrong[0] + 1}, {key}: expected rows of the {len(gallery)} images, found one beyond")
    return Landmarks(queries, [tuple(map(float, q["bbx"])) for q in found["gnd"]], gallery, **rows)


class _Plain(pickle.Unpickler):
    """Arrays, lists and dictionaries; nothing that runs."""

    def find_class(self, module: str, name: str):
        if (module.split(".")[0], name) in {("numpy", n) for n in ("ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer")}:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"expected arrays, lists and dictionaries, found {module}.{name}")


def _half(rows: Sequence[tuple[Path, str, int]], part: str, ends: tuple[int, int], path: Path) -> Labelled:
    """The classes up to ends[0] for training, the others for testing."""
    folders.one_of("part", part, ("train", "test"))
    for file, _, number in rows:
        if not 1 <= number <= ends[1]:
            raise ValueError(f"{path}: expected classes 1..{ends[1]}, found {number} for {file.name}")
    return _labelled([(file, name) for file, name, number in rows if (number <= ends[0]) == (part == "train")], path.parent)


def _labelled(rows: Sequence[tuple[Path, str]], root: Path, names: list[str] | None = None) -> Labelled:
    """Numbers for the classes; files that are not there are an error."""
    folders.check_missing(root, [str(file) for file, _ in rows if not file.is_file()])
    if not rows:
        raise ValueError(f"{root}: expected at least one image, found none")
    names = names or sorted({name for _, name in rows})
    number = {name: i for i, name in enumerate(names)}
    return Labelled([file for file, _ in rows], torch.tensor([number[name] for _, name in rows]), names)


def _numbered(path: Path, kind: Callable) -> dict[int, str | int]:
    """Lines "<id> <value>"; each id once."""

    def parse(line: str):
        cells = line.split()
        if len(cells) != 2:
            raise ValueError(f"expected '<id> <value>', found {line!r}")
        try:
            return int(cells[0]), kind(cells[1])
        except ValueError:
            raise ValueError(f"expected a whole number, found {line!r}") from None

    rows = folders.read_lines(path, parse)
    found = dict(rows)
    if len(found) != len(rows):
        ids = [i for i, _ in rows]
        raise ValueError(f"{path}: expected each id once, found {next(i for i in ids if ids.count(i) > 1)} twice")
    return found


def _table(path: Path, columns: Sequence[str], *, header: int) -> list[list[str]]:
    """The rows of a table in columns of words, after `header` lines whose last names the columns."""
    lines = folders.read_lines(path, str.split)
    if len(lines) < header or lines[header - 1] != list(columns):
        raise ValueError(
            f"{path}, line {header}: expected the columns {' '.join(columns)}, found {' '.join(lines[header - 1]) if len(lines) >= header else 'the end'}"
        )
    for number, cells in enumerate(lines[header:], header + 1):
        if len(cells) != len(columns):
            raise ValueError(f"{path}, line {number}: expected {len(columns)} columns, found {len(cells)}")
    return lines[header:]
