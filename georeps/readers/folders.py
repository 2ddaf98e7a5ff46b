"""Data sets that researchers own, read from their official trees into one record: VIGOR, CVACT, CVUSA.

    retrieval = folders.vigor(root, split="cross", part="test")
    retrieval.queries[i]  matches  retrieval.gallery[retrieval.positive[i]]
"""  # fmt: skip

import csv
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from georeps.core import sphere

# Resolution in metres a pixel of the 640 px tiles: one for all cities in the official labels, each city its own in the
# corrected ones (SliceMatch). The order of the cities is the official code's: gallery indices depend on it.
VIGOR_CITIES = {"NewYork": 0.113248, "Seattle": 0.100817, "SanFrancisco": 0.118141, "Chicago": 0.111262}
VIGOR_OFFICIAL_RESOLUTION = 0.114
VIGOR_TILE = 640  # pixels
VIGOR_PARTS = {  # split -> part -> cities
    "cross": {"train": ("NewYork", "Seattle"), "test": ("SanFrancisco", "Chicago")},
    "swapped": {"train": ("SanFrancisco", "Chicago"), "test": ("NewYork", "Seattle")},
    "same": {"train": tuple(VIGOR_CITIES), "test": tuple(VIGOR_CITIES)},
}
NUMBER = r"(-?\d{1,3}\.\d+)"
PANORAMA = re.compile(rf"([A-Za-z0-9_-]{{20,24}}),{NUMBER},{NUMBER},\.jpg")  # the comma before .jpg is part of the name
SATELLITE = re.compile(rf"satellite_{NUMBER}_{NUMBER}\.png")
DECIMAL = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class Retrieval:
    """Query i matches gallery row `positive[i]`; `semi[i]` are tiles that also show its place, off centre.

    `offset` is VIGOR's delta of the positive: tile centre minus camera in pixels of the 640 px tile, north and east
    positive. Positions are (latitude, longitude) in degrees or UTM (east, north) in metres, as `unit` says.
    """

    queries: list[Path]
    gallery: list[Path]
    positive: Int64[Tensor, " q"]
    semi: Int64[Tensor, "q 3"] | None = None
    offset: Float[Tensor, "q 2"] | None = None
    query_position: Float64[Tensor, "q 2"] | None = None
    gallery_position: Float64[Tensor, "g 2"] | None = None
    unit: Literal["degrees", "metres", ""] = ""


class Line(NamedTuple):
    panorama: str
    satellites: list[str]  # the positive, then three semi-positives
    offsets: Float[Tensor, "4 2"]


def parse_vigor_line(line: str) -> Line:
    """One label line: a panorama, then four times a satellite tile and its delta (north, east) in pixels.

    Raises ValueError saying which field is not what it should be.
    """
    cells = line.split()
    if len(cells) != 13:
        raise ValueError(f"expected 13 fields (a panorama, 4 x (satellite, north, east)), found {len(cells)}")
    if not _place(PANORAMA, cells[0]):
        raise ValueError(f"field 1: expected a panorama <id>,<lat>,<lon>,.jpg, found {cells[0]!r}")
    for i in (1, 4, 7, 10):
        if not _place(SATELLITE, cells[i]):
            raise ValueError(f"field {i + 1}: expected a tile satellite_<lat>_<lon>.png, found {cells[i]!r}")
        for j in (i + 1, i + 2):
            if not DECIMAL.fullmatch(cells[j]) or abs(float(cells[j])) > VIGOR_TILE:
                raise ValueError(f"field {j + 1}: expected an offset within {VIGOR_TILE} pixels, found {cells[j]!r}")
    satellites = cells[1::3]
    if len(set(satellites)) != 4:
        raise ValueError(f"expected four different tiles, found {', '.join(satellites)}")
    offsets = torch.tensor([[float(cells[i + 1]), float(cells[i + 2])] for i in (1, 4, 7, 10)])
    return Line(cells[0], satellites, offsets)


def vigor(
    root: Path | str, *, split: Literal["same", "cross", "swapped"] = "cross", part: Literal["train", "test"] = "train",
    labels: Literal["official", "corrected"] = "official", tolerance: float = 64.0,
) -> Retrieval:  # fmt: skip
    """VIGOR, from the official tree (<City>/panorama) or the re-arranged one (ground/<City>, satellite/<City>).

    "cross" trains on New York and Seattle and tests on San Francisco and Chicago, "swapped" the other way round; "same"
    uses all four. The gallery is every tile in the satellite lists of the part's cities, in the official order of the
    cities. `labels="corrected"` reads SliceMatch's files in `splits__corrected`. An offset that disagrees with the
    coordinates in the two names by more than `tolerance` pixels is an error (published ones agree to 6 where corrected).
    """
    root = Path(root)
    one_of("split", split, VIGOR_PARTS)
    one_of("part", part, VIGOR_PARTS[split])
    one_of("labels", labels, ("official", "corrected"))
    cities = VIGOR_PARTS[split][part]
    folder = _vigor_layout(root, cities)
    queries, gallery, lines, index = [], [], [], {}
    for city in cities:
        path = root / ("splits" if labels == "official" else "splits__corrected") / city / "satellite_list.txt"
        for name in read_lines(path, _satellite_name):
            if name in index:
                raise ValueError(f"{path}: tile {name} is listed twice")
            index[name] = len(gallery)
            gallery.append(folder("satellite", city) / name)
    for city in cities:
        resolution = VIGOR_OFFICIAL_RESOLUTION if labels == "official" else VIGOR_CITIES[city]
        check = lambda text, r=resolution: _checked_line(text, index, r, tolerance)  # noqa: E731
        for line in read_lines(_label_file(root, city, split, part, labels), check):
            lines.append(line)
            queries.append(folder("panorama", city) / line.panorama)
    check_missing(root, [str(p) for p in (*gallery, *queries) if not p.is_file()])
    rows = torch.tensor([[index[name] for name in line.satellites] for line in lines]).reshape(-1, 4)
    offset = torch.stack([line.offsets[0] for line in lines]) if lines else torch.zeros(0, 2)
    named = ((PANORAMA, queries), (SATELLITE, gallery))
    positions = (torch.tensor([_place(kind, p.name) for p in paths], dtype=torch.float64).reshape(-1, 2) for kind, paths in named)
    return Retrieval(queries, gallery, rows[:, 0], rows[:, 1:], offset, *positions, "degrees")


def cvact(root: Path | str, part: Literal["train", "val", "test"] = "train") -> Retrieval:
    """CVACT: ACT_data.mat beside ANU_data_small (train, val) and ANU_data_test (test); one-to-one, positions in UTM metres.

    The indices of the file are 1-based. Pairs closer than 25 m show the same place: `crossview.same_place` finds them for the
    training loss to ignore. Published evaluations differ on the test part (one-to-one, or any tile within 5 m): say which.
    """
    import scipy.io

    root = Path(root)
    fields = {"train": ("trainSet", "trainInd"), "val": ("valSet", "valInd"), "test": ("valSetAll", "valInd")}
    one_of("part", part, fields)
    path = next((p for p in (root / "ACT_data.mat", root / "ANU_data_small" / "ACT_data.mat") if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{root}: expected ACT_data.mat, found none")
    content = scipy.io.loadmat(path, simplify_cells=True)
    group, name = fields[part]
    ids = [str(i).strip() for i in _mat_field(path, content, "panoIds")]
    utm = torch.from_numpy(_mat_field(path, content, "utm")).double().reshape(-1, 2)
    chosen = torch.as_tensor(_mat_field(path, content, group, name).astype("int64")).reshape(-1) - 1
    if len(utm) != len(ids):
        raise ValueError(f"{path}: expected one utm row an id, {len(ids)}, found {len(utm)}")
    if len(chosen) and not (0 <= int(chosen.min()) and int(chosen.max()) < len(ids)):
        raise ValueError(f"{path}, {group}.{name}: expected 1-based indices in 1..{len(ids)}, found {int(chosen.min()) + 1}..{int(chosen.max()) + 1}")
    folder = root / ("ANU_data_test" if part == "test" else "ANU_data_small")
    queries = [folder / "streetview" / f"{ids[i]}_grdView.jpg" for i in chosen]
    gallery = [folder / "satview_polish" / f"{ids[i]}_satView_polish.jpg" for i in chosen]
    return _one_to_one(root, queries, gallery, utm[chosen])


def cvusa(root: Path | str, part: Literal["train", "val"] = "train") -> Retrieval:
    """CVUSA: splits/<part>-19zl.csv with lines satellite,panorama,annotation (the annotation is not read); one-to-one."""
    root = Path(root)
    one_of("part", part, ("train", "val"))
    pairs = read_lines(root / "splits" / f"{part}-19zl.csv", _cvusa_pair)
    return _one_to_one(root, [root / street for _, street in pairs], [root / tile for tile, _ in pairs], None)


def _one_to_one(root: Path, queries: list[Path], gallery: list[Path], position: Tensor | None) -> Retrieval:
    check_missing(root, [str(p) for pair in zip(queries, gallery, strict=True) for p in pair if not p.is_file()])
    unit = "" if position is None else "metres"
    return Retrieval(queries, gallery, torch.arange(len(queries)), query_position=position, gallery_position=position, unit=unit)


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """ValueError by the argument's name where its value is none of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, found {value!r}")


def check_missing(root: Path | str, lost: list[str], missing: str = "error") -> None:
    """What the lists name and the disk lacks, in one error, where `missing` is not "drop"."""
    one_of("missing", missing, ("error", "drop"))
    if lost and missing == "error":
        shown = ", ".join(lost[:20]) + (f" and {len(lost) - 20} more" if len(lost) > 20 else "")
        raise FileNotFoundError(f"{root}: expected every image the lists name, found {len(lost)} missing: {shown}")


def there(path: Path, what: str) -> Path:
    """The path of a file; FileNotFoundError naming it and what was expected where there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected {what}, found no file")
    return path


def read_lines(path: Path, parse: Callable[[str], Any]) -> list[Any]:
    """Every line of a text file, parsed; the last may lack its newline; an empty line is an error."""
    parsed = []
    for number, line in enumerate(there(path, "a list").read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            parsed.append(parse(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return parsed


def _satellite_name(line: str) -> str:
    if not _place(SATELLITE, line.strip()):
        raise ValueError(f"expected satellite_<lat>_<lon>.png, found {line!r}")
    return line.strip()


def _cvusa_pair(line: str) -> tuple[str, str]:
    cells = next(csv.reader([line]), [])
    stems = {Path(cell).stem for cell in cells}
    if len(cells) != 3 or len(stems) != 1 or not cells[0].startswith("bingmap/") or not cells[1].startswith("streetview/"):
        raise ValueError(f"expected bingmap/.../<id>.jpg,streetview/.../<id>.jpg,<annotation of the same id>, found {line!r}")
    return cells[0], cells[1]


def _checked_line(text: str, index: dict[str, int], resolution: float, tolerance: float) -> Line:
    """A parsed line whose tiles are in the gallery and whose offsets agree with the coordinates in the names."""
    line = parse_vigor_line(text)
    unknown = [name for name in line.satellites if name not in index]
    if unknown:
        raise ValueError(f"expected tiles of satellite_list.txt, found {', '.join(unknown)}")
    camera = torch.tensor(_place(PANORAMA, line.panorama), dtype=torch.float64)
    tiles = torch.tensor([_place(SATELLITE, name) for name in line.satellites], dtype=torch.float64)
    gap = torch.deg2rad(tiles - camera) * sphere.EARTH_RADIUS_KM * 1000 / resolution
    gap[:, 1] *= math.cos(math.radians(float(camera[0])))
    apart = (gap - line.offsets).abs().max(dim=1).values
    if bool((apart > tolerance).any()):
        worst = int(apart.argmax())
        raise ValueError(
            f"tile {worst + 1}: expected the offset {[round(x) for x in gap[worst].tolist()]} that its coordinates give "
            f"(within {tolerance:g} pixels), found {line.offsets[worst].tolist()}"
        )
    return line


def _vigor_layout(root: Path, cities: Iterable[str]) -> Callable[[str, str], Path]:
    city = next(iter(cities))
    if (root / city / "panorama").is_dir():
        return lambda kind, city: root / city / kind
    if (root / "ground" / city).is_dir():
        return lambda kind, city: root / {"panorama": "ground", "satellite": "satellite"}[kind] / city
    raise FileNotFoundError(f"{root}: expected {city}/panorama (official tree) or ground/{city} (re-arranged), found neither")


def _label_file(root: Path, city: str, split: str, part: str, labels: str) -> Path:
    stem = f"same_area_balanced_{part}" if split == "same" else "pano_label_balanced"
    if labels == "corrected":
        return root / "splits__corrected" / city / f"{stem}__corrected.txt"
    return root / "splits" / city / f"{stem}.txt"


def _place(pattern: re.Pattern, name: str) -> tuple[float, float] | None:
    """(latitude, longitude) in the name, None where the name is not of the pattern or not on the globe."""
    match = pattern.fullmatch(name)
    if match is None:
        return None
    latitude, longitude = float(match.groups()[-2]), float(match.groups()[-1])
    return (latitude, longitude) if abs(latitude) <= 90 and abs(longitude) <= 180 else None


def _mat_field(path: Path, content: dict, *names: str):
    for name in names:
        if not isinstance(content, dict) or name not in content:
            raise ValueError(f"{path}: expected the field {'.'.join(names)}, found none")
        content = content[name]
    return np.atleast_1d(content)
