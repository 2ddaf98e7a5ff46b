"""Street panoramas, marched through the rasters of a scene.

    for each azimuth walk outwards; a pixel of slope t = tan(elevation) shows the first cell whose height h at range r has
    (h - eye) / r >= t; the crowns of trees float above the ground and are met on their own
Per pixel only + - * / and comparisons of float32 (tables of directions and slopes are made in float64), which no machine
rounds another way than another.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from georeps.worlds.city.scene import BUILDING, CAR, CELL, FACADE, FRAME, LEAVES, SUN, Scene, grain

EYE = 2.5  # metres above the street: the mast of a street-view car
NEAR, FAR, STEPS = 1.2, 150.0, 112  # metres; ranges of the march, a geometric series
CROWNS = 3  # of trees met along one ray; those behind them are left out
SKY = {  # zenith, horizon, share of ambient light, tint of the sun, share of windows that are lit
    "day": ((84, 132, 196), (206, 220, 232), 0.52, (1.0, 0.98, 0.94), 0.0),
    "dusk": ((70, 84, 132), (236, 170, 120), 0.44, (1.0, 0.76, 0.56), 0.3),
    "night": ((10, 12, 26), (40, 36, 48), 0.16, (0.9, 0.9, 1.0), 0.45),
}


def panoramas(
    view: Scene, cameras: Float[np.ndarray, "q 2"], *, size: tuple[int, int], heading: Float[np.ndarray, " q"] | None = None,
    elevation: tuple[float, float] = (-90.0, 90.0), fov: float = 360.0, seed: int = 0, batch: int = 48,
) -> UInt8[Tensor, "q 3 h w"]:  # fmt: skip
    """Equirectangular views from `cameras`; size is (height, width) in pixels, `fov` the degrees that the width spans.

    The centre column looks to `heading` (degrees clockwise from north, default 0: columns run from south over west, north and
    east), rows run down from the higher to the lower `elevation` in degrees. Exposure and clouds are drawn by `seed`.
    """
    heading = np.zeros(len(cameras)) if heading is None else np.asarray(heading, float)
    parts = [
        _march(view, cameras[i : i + batch], heading[i : i + batch], size, elevation, fov, np.random.default_rng([seed, 3, i]))
        for i in range(0, len(cameras), batch)
    ]
    return torch.cat(parts)


@dataclass(frozen=True)
class _Hits:
    """What each pixel of a batch shows: position and height of the point, its range, row of `solids`; all "b w h"."""

    x: Tensor
    y: Tensor
    z: Tensor
    range: Tensor
    owner: Tensor
    flat: Tensor  # seen on its top: ground, roofs of cars
    sky: Tensor


def _march(
    view: Scene, cameras: np.ndarray, heading: np.ndarray, size: tuple[int, int], elevation: tuple[float, float], fov: float,
    rng: np.random.Generator,
) -> UInt8[Tensor, "q 3 h w"]:  # fmt: skip
    height, width = size
    azimuth = np.deg2rad(heading[:, None] + ((np.arange(width) + 0.5) / width - 0.5) * fov)
    degrees = elevation[1] - (np.arange(height) + 0.5) / height * (elevation[1] - elevation[0])
    east, north, slope = (torch.from_numpy(x.astype(np.float32)) for x in (np.sin(azimuth), np.cos(azimuth), np.tan(np.deg2rad(degrees))))
    ranges = torch.from_numpy(np.geomspace(NEAR, FAR, STEPS).astype(np.float32))
    x, y = (torch.from_numpy(cameras[:, i].astype(np.float32))[:, None, None] for i in (0, 1))
    ray = (x, y, east[..., None], north[..., None])
    index = _cells(view, ray, ranges)
    solid = view.height.view(-1)[index]
    highest = ((solid - EYE) / ranges).cummax(dim=-1).values
    hits = _first_hits(view, ray, ranges, highest, slope)
    pixel = math.radians(fov) / width
    colour = _sky(view, hits, slope, azimuth, rng)
    colour[hits.flat] = _ground(view, hits, pixel)
    wall = ~(hits.flat | hits.sky)
    colour[wall] = _facades(view, hits, wall, pixel)
    colour = _haze(view, hits, colour)
    for crown in _nearest_crowns(view, index, solid, ranges):
        colour = _leaves(view, colour, hits, ray, slope, *crown)
    exposure = rng.lognormal(0, 0.1, (len(cameras), 1)) * rng.normal(1, 0.03, (len(cameras), 3))
    colour = colour * torch.from_numpy(exposure.astype(np.float32))[:, None, None]
    return colour.clamp(0, 255).to(torch.uint8).permute(0, 3, 2, 1).contiguous()


def _cells(view: Scene, ray: tuple[Tensor, ...], ranges: Tensor) -> Tensor:
    """Flat index of the raster cell at each range along each ray; beyond the edge, the cell at the edge."""
    n = len(view.height)
    column = ((ray[0] + ray[2] * ranges) / CELL).long().clamp_(0, n - 1)
    row = ((ray[1] + ray[3] * ranges) / CELL).long().clamp_(0, n - 1)
    return row.mul_(n).add_(column)


def _first_hits(view: Scene, ray: tuple[Tensor, ...], ranges: Tensor, highest: Tensor, slope: Tensor) -> _Hits:
    """The range at which each pixel's line of sight first meets something, to an eighth of a step."""
    wanted = slope.expand(*highest.shape[:2], -1).contiguous()
    step = torch.searchsorted(highest.contiguous(), wanted)
    sky = step == len(ranges)
    edges = torch.cat([ranges[:1] * 0, ranges, ranges[-1:]])
    low, high = edges[step], edges[step + 1]
    heights = view.height.view(-1)
    for _ in range(3):
        middle = (low + high) / 2
        met = heights[_cells(view, ray, middle)] - EYE >= slope * middle
        low, high = torch.where(met, low, middle), torch.where(met, middle, high)
    index = _cells(view, ray, high)
    top = heights[index]
    z = EYE + slope * high
    flat = ~sky & (slope < 0) & ((top == 0) | (z > top - 0.12))
    range_ = torch.where(flat & (top == 0), EYE / (-slope).clamp(min=1e-6), high).clamp(max=FAR)
    owner = view.owner.view(-1)[index]
    return _Hits(ray[0] + ray[2] * range_, ray[1] + ray[3] * range_, z, range_, owner, flat, sky)


def _sky(view: Scene, hits: _Hits, slope: Tensor, azimuth: np.ndarray, rng: np.random.Generator) -> Float[Tensor, "b w h 3"]:
    zenith, horizon, *_ = (torch.tensor(c, dtype=torch.float32) for c in SKY[view.moment.daylight][:2])
    rise = (slope.clamp(min=0) / (0.8 + slope.clamp(min=0)))[:, None]
    clouds = _clouds()
    shift = rng.integers(256, size=len(azimuth))
    across = (azimuth * 256 / (2 * math.pi)).astype(int) + shift[:, None]
    down = (rise[:, 0] * 200).long().numpy()
    cover = torch.from_numpy(clouds[down[None, None], across[..., None] % 256])[..., None] * float(rng.uniform(0, 0.9))
    blue = horizon + rise * (zenith - horizon)
    return blue + cover * (0.75 * horizon + 40 - blue).clamp(min=-60)


def _ground(view: Scene, hits: _Hits, pixel: float) -> Float[Tensor, "p 3"]:
    """Ground and tops of cars, between the nearest four cells; a raster four times coarser where a pixel covers a metre."""
    x, y, coarse = hits.x[hits.flat], hits.y[hits.flat], hits.range[hits.flat] * pixel > 1.0
    seen = _between(view.colour, x / CELL, y / CELL)
    seen[coarse] = _between(view.blurred, x[coarse] / (4 * CELL), y[coarse] / (4 * CELL))
    return seen * _lit(view, _between(view.light[..., None], x / CELL, y / CELL)[..., 0])


def _between(raster: Float[Tensor, "n n c"], x: Tensor, y: Tensor) -> Tensor:
    """Bilinear values at (x, y) in cells from the corner; beyond the edge, those at the edge."""
    n = len(raster)
    x, y = ((p - 0.5).clamp(0, n - 1) for p in (x, y))
    left, low = x.floor(), y.floor()
    p, q = (x - left)[..., None], (y - low)[..., None]
    index = low.long() * n + left.long()
    right, up = (left < n - 1).long(), (low < n - 1).long() * n
    flat = raster.view(n * n, -1)
    near = flat[index] * (1 - p) + flat[index + right] * p
    return near * (1 - q) + (flat[index + up] * (1 - p) + flat[index + up + right] * p) * q


def _facades(view: Scene, hits: _Hits, wall: Tensor, pixel: float) -> Float[Tensor, "p 3"]:
    """Walls with windows, shops, lines between the storeys; bodies and windows of cars; trunks."""
    owner, z = hits.owner[wall], hits.z[wall]
    of = dict(zip((*FRAME, *FACADE), view.solids[owner].unbind(1), strict=True))
    dx, dy = hits.x[wall] - of["x"], hits.y[wall] - of["y"]
    a, b = dx * of["cos"] + dy * of["sin"], dy * of["cos"] - dx * of["sin"]
    end = (of["half_a"] - a.abs()) < (of["half_b"] - b.abs())
    u = torch.where(end, b + of["half_b"], a + of["half_a"])
    turn_x, turn_y = torch.where(end, of["cos"] * a.sign(), -of["sin"] * b.sign()), torch.where(end, of["sin"] * a.sign(), of["cos"] * b.sign())
    azimuth, rise = (math.radians(v) for v in SUN[view.moment.daylight])
    sun = (turn_x * math.sin(azimuth) + turn_y * math.cos(azimuth)).clamp(min=0) * math.cos(rise) * (rise > 0)
    storey, bay = z / of["storey"].clamp(min=0.1), u / of["bay"].clamp(min=0.1)
    up, across = storey - storey.floor(), bay - bay.floor()
    shop = (of["has_shop"] > 0) & (z < 3.6)
    sharp = (of["bay"] / (2 * pixel * hits.range[wall])).clamp(0, 1)
    window = ((across - 0.5).abs() < of["glass"] / 2) & (up > 0.28) & (up < 0.84) & (z < of["height"] - 0.6)
    window = sharp * window + (1 - sharp) * of["glass"] * 0.5
    window = torch.where(shop, ((z > 0.4) & (z < 2.6) & ((across - 0.5).abs() < 0.44)).float(), window)
    window = torch.where(of["kind"] == CAR, (z > 0.55 * of["height"]).float(), window * (of["kind"] == BUILDING))
    rgb = lambda name: torch.stack([of[f"{name}_{c}"] for c in "rgb"], dim=-1)  # noqa: E731
    body = torch.where((shop & (z > 2.6))[:, None], rgb("shop"), rgb("wall"))
    body = body * (1 - 0.2 * sharp * ((up < 0.07) & (of["kind"] == BUILDING)))[:, None] * _lit(view, sun)
    cell = (owner * 7919 + storey.long() * 104729 + bay.long() * 1299709) % 65536
    chance = torch.from_numpy(grain(256)).reshape(-1)[cell][:, None]
    glass = torch.tensor((62.0, 78.0, 96.0)) * (0.7 + 0.6 * chance) * _lit(view, 0.4 + 0 * sun)
    lamps = (of["kind"] == BUILDING)[:, None] & (chance < SKY[view.moment.daylight][4])
    glass = torch.where(lamps, torch.tensor((250.0, 206.0, 130.0)) * (0.6 + 0.8 * chance), glass)
    return body + window[:, None] * (glass - body)


def _nearest_crowns(view: Scene, index: Tensor, solid: Tensor, ranges: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Of the first CROWNS stretches of each ray under trees: slopes of top and bottom, range of entry, tone; "b w" each."""
    top, bottom = view.crown_top.view(-1)[index], view.crown_bottom.view(-1)[index]
    under = (top > solid) & (bottom > 0)
    enters = under & ~F.pad(under, (1, 0))[..., :-1]
    number = enters.cumsum(-1, dtype=torch.int32)
    tone = view.crown_tone.view(-1)[index]
    crowns = []
    for i in range(1, CROWNS + 1):
        here = under & (number == i)
        pick = lambda value, none: torch.where(here, value, none)  # noqa: E731, B023
        first = pick(ranges, math.inf).amin(-1)
        crowns.append((
            pick((top - EYE) / ranges, -math.inf).amax(-1), pick((bottom - EYE) / ranges, math.inf).amin(-1), first,
            pick(tone, 0.0).amax(-1),
        ))  # fmt: skip
    return crowns[::-1]  # far ones first


def _leaves(view: Scene, colour: Tensor, hits: _Hits, ray: tuple, slope: Tensor, high: Tensor, low: Tensor, first: Tensor, tone: Tensor) -> Tensor:
    at = torch.where(first.isfinite(), first, 1.0)
    along = ((ray[0] + ray[2] * at[..., None] - ray[1] - ray[3] * at[..., None]) * 3).long()[..., 0]
    visible = (slope <= high[..., None]) & (slope >= low[..., None]) & ((first[..., None] < hits.range) | hits.sky)
    where = torch.stack(visible.nonzero(as_tuple=True))
    leaf_of = lambda i, j, k: torch.from_numpy(grain(256)).reshape(-1)[(along[i, j] % 256) * 256 + ((slope[k] * at[i, j] + EYE) * 4).long() % 256]  # noqa: E731
    leaf = leaf_of(*where)
    kept = leaf > (0.55 if view.moment.season == "winter" else 0.08)
    (i, j, k), leaf = where[:, kept], leaf[kept]
    leaves = torch.tensor(LEAVES[view.moment.season], dtype=torch.float32)
    share = (slope[k] - low[i, j]) / (high - low).clamp(min=1e-3)[i, j]
    green = leaves[0] + (0.6 * tone[i, j] + 0.4 * leaf)[:, None] * (leaves[1] - leaves[0])
    colour[i, j, k] = green * _lit(view, 0.25 + 0.75 * share.clamp(0, 1))
    return colour


def _lit(view: Scene, sun: Tensor) -> Tensor:
    """Factors of a colour that `sun` (0..1) reaches beside the light of the sky."""
    _, _, ambient, tint, _ = SKY[view.moment.daylight]
    return ambient + (1 - ambient) * 1.15 * sun[..., None] * torch.tensor(tint) * (SUN[view.moment.daylight][1] > 0)


def _haze(view: Scene, hits: _Hits, colour: Tensor) -> Tensor:
    horizon = torch.tensor(SKY[view.moment.daylight][1], dtype=torch.float32)
    share = torch.where(hits.sky, 0.0, hits.range / (hits.range + 500))[..., None]
    return colour + share * (horizon - colour)


@functools.lru_cache(maxsize=1)
def _clouds() -> np.ndarray:
    table = np.random.default_rng(11).random((16, 16))
    image = Image.fromarray((np.tile(table, (3, 3)) * 255).astype(np.uint8)).resize((768, 768), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image)[256:512, 256:512] / 255.0 - 0.45, 0, 1).astype(np.float32) * 1.8
