"""The embedded worlds written in the official trees of VIGOR, CVACT, PatternCom and OSV-5M, so that what reads them can be tried without them.

    export.vigor("trees/vigor", tiles=8);  folders.vigor("trees/vigor", split="cross", part="test")

Names, coordinates, offsets and label files are made as the originals are, traps included (`folders` lists them); the places
are as imaginary as the pictures, though they carry the names of VIGOR's cities.
"""

import base64
import csv
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from georeps.core import sphere
from georeps.readers import folders, located
from georeps.tasks import compositions
from georeps.worlds import city, patterns

VIGOR = {"NewYork": 0, "Seattle": 1, "SanFrancisco": 4, "Chicago": 5}  # whose place our cities take: 4 and 5 are the test cities
ORIGIN = {"NewYork": (40.70, -74.01), "Seattle": (47.60, -122.34), "SanFrancisco": (37.75, -122.44), "Chicago": (41.85, -87.65)}
CVACT = {"small": (0, 1, 2, 3, *city.TEST_CITIES), "test": (6,)}  # folder -> cities; the test cities are the val part
METRES_PER_DEGREE = math.radians(1) * sphere.EARTH_RADIUS_KM * 1000


def vigor(root: Path | str, *, tiles: int = 8, ground: tuple[int, int] = (128, 256), satellite: int = 128) -> None:
    """VIGOR's official tree, four cities of tiles x tiles; image sizes in pixels (VIGOR's own: 1024 x 2048 and 640)."""
    root = Path(root)
    for name, number in VIGOR.items():
        where = city.places(cities=[number], tiles=tiles)
        order = where.row.argsort()
        part = {p: set(city.places(split="same", part=p, cities=[number], tiles=tiles).row.tolist()) for p in ("train", "test")}
        gallery = [f"satellite_{a:.12f}_{o:.12f}.png" for a, o in _degrees(name, where.gallery_position, number)]
        panoramas = [
            f"{_identity(number, row)},{a:.6f},{o:.6f},.jpg" for row, (a, o) in zip(where.row.tolist(), _degrees(name, where.position, number), strict=True)
        ]
        _save(root / name / "satellite", gallery, city.gallery(where, size=satellite))
        _save(root / name / "panorama", panoramas, city.ground(where, size=ground))
        lines = {int(where.row[i]): _line(where, int(i), panoramas[i], gallery) for i in order}
        _write(root / "splits" / name / "satellite_list.txt", gallery)
        _write(root / "splits" / name / "pano_label_balanced.txt", list(lines.values()))
        for p, rows in part.items():
            _write(root / "splits" / name / f"same_area_balanced_{p}.txt", [line for row, line in lines.items() if row in rows])


def cvact(root: Path | str, *, tiles: int = 8, ground: tuple[int, int] = (128, 256), satellite: int = 128) -> None:
    """CVACT's tree and ACT_data.mat: cities 0-3 train, 4-5 val, 6 test; panoramas of the whole sphere, as CVACT's are."""
    import scipy.io

    root = Path(root)
    ids, utm, rows = [], [], {"train": [], "val": [], "test": []}
    for folder, cities in CVACT.items():
        for number in cities:
            where = city.places(cities=[number], tiles=tiles)
            part = "test" if folder == "test" else "val" if number in city.TEST_CITIES else "train"
            rows[part] += range(len(ids) + 1, len(ids) + len(where) + 1)  # MATLAB counts from 1
            names = [_identity(number, row) for row in where.row.tolist()]
            ids, utm = ids + names, [*utm, where.position.numpy()]
            _save(root / f"ANU_data_{folder}" / "streetview", [f"{n}_grdView.jpg" for n in names], city.ground(where, size=ground))
            _save(root / f"ANU_data_{folder}" / "satview_polish", [f"{n}_satView_polish.jpg" for n in names], city.satellite(where, size=satellite))
    column = {part: np.array(indices)[:, None] for part, indices in rows.items()}
    scipy.io.savemat(root / "ACT_data.mat", {
        "panoIds": np.array(ids), "utm": np.concatenate(utm), "trainSet": {"trainInd": column["train"]},
        "valSet": {"valInd": column["val"]}, "valSetAll": {"valInd": column["test"]},
    })  # fmt: skip


def patterncom(root: Path | str, tiles: Sequence[patterns.Tile], pixels: UInt8[Tensor, "n 3 s s"]) -> None:
    """Embedded tiles in the published form, to be read by `compositions.patterncom` or by the published code."""
    root = Path(root)
    for name, tile, image in zip(compositions.names_of(tiles), tiles, pixels, strict=True):
        folder = root / "images" / tile.folder
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name, quality=95)
    (root / "PatternCom").mkdir(parents=True, exist_ok=True)
    rows = compositions.rows_of(tiles)
    for attribute in patterns.ATTRIBUTES:
        with open(root / "PatternCom" / f"{attribute}.csv", "w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows(row for row in rows if row[1] == attribute)


def osv5m(root: Path | str, part: str, pixels: Tensor, latlon: Float[Tensor, "n 2"], labels: dict[str, list[str | None]]) -> None:
    """Images "n 3 s s" with coordinates in OSV-5M's tree, so that what reads it can be tried without it."""
    names = [10**15 + i for i in range(len(pixels))]
    _save(Path(root) / "images" / part / "00", [f"{name}.jpg" for name in names], pixels)
    columns = {f"unique_{level}": [v or "" for v in labels.get(level, [None] * len(names))] for level in located.ADMIN}
    with open(Path(root) / f"{part}.csv", "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("id", "latitude", "longitude", *columns), *zip(names, *latlon.T.tolist(), *columns.values(), strict=True)])


def _line(where: city.Places, i: int, panorama: str, gallery: list[str]) -> str:
    tiles = [int(where.positive[i]), *where.semi[i].tolist()]
    pixels = (where.gallery_position[tiles] - where.position[i]).flip(1) * folders.VIGOR_TILE / city.TILE
    return " ".join([panorama, *(f"{gallery[t]} {d[0]:.4f} {d[1]:.4f}" for t, d in zip(tiles, pixels.tolist(), strict=True))])


def _degrees(name: str, metres: Tensor, number: int) -> list[tuple[float, float]]:
    """(latitude, longitude) of positions in metres, about the origin of the city whose name is borrowed."""
    latitude, longitude = ORIGIN[name]
    east, north = (metres - number * city.APART).unbind(1)
    scale = METRES_PER_DEGREE * torch.deg2rad(latitude + north / METRES_PER_DEGREE).cos()
    return list(zip((latitude + north / METRES_PER_DEGREE).tolist(), (longitude + east / scale).tolist(), strict=True))


def _identity(number: int, row: int) -> str:
    """22 characters of A-Z a-z 0-9 - _, as Google's panorama ids."""
    return base64.urlsafe_b64encode(hashlib.sha256(f"{number}/{row}".encode()).digest())[:22].decode()


def _save(folder: Path, names: list[str], images: Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name, quality=95, subsampling=0)


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))  # the last line without newline, as in four of VIGOR's files
