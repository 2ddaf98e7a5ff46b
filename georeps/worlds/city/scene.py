"""A city's plan as rasters at one moment: heights, colours, sunlight, crowns of trees; and the satellite tiles cut from them.

`street` looks at the same rasters from the ground.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from georeps.worlds.city import plan as plans

CELL = 0.5  # metres a raster cell
MATERIALS = ("yard", "grass", "path", "plaza", "parking", "water", "pavement", "road", "marking")
FACADE = ("wall_r", "wall_g", "wall_b", "shop_r", "shop_g", "shop_b", "storey", "bay", "glass", "has_shop", "kind")
FRAME = ("x", "y", "half_a", "half_b", "cos", "sin", "height")
TRUNK, BUILDING, CAR = 0.0, 1.0, 2.0
LEAVES = {  # season -> colours of the crowns, from tone 0 to 1
    "summer": ((58, 92, 44), (106, 132, 62)),
    "autumn": ((150, 84, 36), (196, 160, 60)),
    "winter": ((98, 84, 70), (128, 116, 104)),
}
SUN = {"satellite": (155.0, 52.0), "day": (205.0, 38.0), "dusk": (262.0, 12.0), "night": (0.0, -20.0)}  # azimuth, elevation


@dataclass(frozen=True)
class Moment:
    """When a picture is taken: season, time of day, the share of lots rebuilt by then, and which cars are on the road."""

    season: Literal["summer", "autumn", "winter"] = "summer"
    daylight: Literal["satellite", "day", "dusk", "night"] = "day"
    construction: float = 0.0
    traffic: int = 0


@dataclass(frozen=True)
class Scene:
    """Rasters of a city at one moment; row 0 is the southern edge. Heights in metres, light 0..1, colours 0..255."""

    side: float
    moment: Moment
    height: Float[Tensor, "n n"]  # of what stands on the ground: buildings, cars, trunks
    owner: Tensor  # row of `solids`
    colour: Float[Tensor, "n n 3"]  # of the ground and the roofs, unlit
    blurred: Float[Tensor, "m m 3"]  # the same, averaged over squares of 4 cells
    light: Float[Tensor, "n n"]  # share of the sun that reaches the cell
    crown_top: Float[Tensor, "n n"]  # 0 where there is no tree
    crown_bottom: Float[Tensor, "n n"]
    crown_tone: Float[Tensor, "n n"]
    solids: Float[Tensor, "k c"]  # FRAME + FACADE

    def above(self) -> UInt8[np.ndarray, "n n 3"]:
        """The whole city from above, in the light of the moment; row 0 is the northern edge."""
        return _from_above(self).flip(0).numpy()


def scene(plan: plans.Plan, moment: Moment) -> Scene:
    """The rasters of a plan at a moment."""
    material, buildings = _materials(plan), _standing(plan, moment)
    cars = plans.cars(plan, moment.traffic)
    n = material.shape[0]
    owner = _draw_boxes(n, buildings, np.argsort(buildings.height.to_numpy(), kind="stable"), first=1)
    owner[(material >= MATERIALS.index("road")) | (material == MATERIALS.index("water"))] = 0
    traffic = _draw_boxes(n, cars, range(len(cars)), first=1 + len(buildings))
    owner = np.where((traffic > 0) & (owner == 0), traffic, owner)
    solids = _solids(buildings, cars)
    height = np.where(owner > 0, solids[owner, FRAME.index("height")], 0.0).astype(np.float32)
    colour = _ground_colours(plan, moment, material)
    _paint_roofs(colour, owner, buildings, moment)
    is_car = owner > len(buildings)
    colour[is_car] = solids[owner[is_car]][:, len(FRAME) : len(FRAME) + 3]
    crowns = _crowns(_rooted(plan.trees, material, owner), n, moment)
    trunk = (crowns[3] > 0) & (owner == 0)
    height[trunk] = crowns[3][trunk]
    tensors = [torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)) for x in (height, colour, *crowns[:3], solids)]
    light = _sunlight(torch.maximum(tensors[0], tensors[2] * 0.9), SUN[moment.daylight])
    blurred = F.avg_pool2d(tensors[1].permute(2, 0, 1).double(), 4).permute(1, 2, 0).float().contiguous()
    return Scene(plan.side, moment, tensors[0], torch.from_numpy(owner), tensors[1], blurred, light, *tensors[2:])


def tiles(above: UInt8[np.ndarray, "n n 3"], centres: Float[np.ndarray, "t 2"], *, size: int, extent: float) -> UInt8[Tensor, "t 3 size size"]:
    """Squares of `extent` metres about the centres, north up, averaged to size x size pixels."""
    image = Image.fromarray(above)
    out = np.empty((len(centres), size, size, 3), np.uint8)
    for i, (x, y) in enumerate(np.asarray(centres) / CELL):
        half, south = extent / 2 / CELL, image.height - y
        box = (x - half, south - half, x + half, south + half)
        if min(box) < 0 or max(box) > image.height:
            raise ValueError(f"centres: expected tiles of {extent:g} m inside the city, found one at {tuple(centres[i])}")
        out[i] = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


@functools.lru_cache(maxsize=4)
def grain(n: int, coarse: int = 1) -> Float[np.ndarray, "n n"]:
    """Fixed noise in 0..1, a value a cell (or a square of `coarse` cells)."""
    table = np.random.default_rng(coarse).random((256, 256), np.float32).repeat(coarse, 0).repeat(coarse, 1)
    times = -(-n // len(table))
    return np.tile(table, (times, times))[:n, :n]


def _standing(plan: plans.Plan, moment: Moment) -> pd.DataFrame:
    """The buildings of the moment: a share of the lots was rebuilt or cleared, the same lots first for every share."""
    stays = (plan.turn >= moment.construction)[:, None]
    buildings = pd.DataFrame(np.where(stays, plan.buildings, plan.rebuilt), columns=plan.buildings.columns)
    return buildings[buildings.height > 0].reset_index(drop=True)


def _solids(buildings: pd.DataFrame, cars: pd.DataFrame) -> np.ndarray:
    """One table of all that has walls; row 0 stands for every trunk."""
    trunk = pd.DataFrame({"half_a": [1.0], "half_b": [1.0], "cos": [1.0], "wall_r": [84.0], "wall_g": [68.0], "wall_b": [54.0], "kind": [TRUNK]})
    cars = cars.rename(columns={"red": "wall_r", "green": "wall_g", "blue": "wall_b"})
    table = pd.concat([trunk, buildings.assign(kind=BUILDING), cars.assign(kind=CAR)])
    return table.reindex(columns=[*FRAME, *FACADE]).fillna(0.0).to_numpy()


def _materials(plan: plans.Plan) -> np.ndarray:
    """What the ground is, an index into MATERIALS a cell."""
    n = math.ceil(plan.side / CELL)
    image = Image.new("L", (n, n), MATERIALS.index("yard"))
    pen = ImageDraw.Draw(image)
    put = lambda xy: [tuple(p) for p in (xy / CELL).tolist()]  # noqa: E731
    for sides, kind in plan.blocks:
        if kind != "built":
            pen.polygon(put(sides[:, :-1].reshape(-1, 2)), fill=MATERIALS.index({"park": "grass"}.get(kind, kind)))
        if kind == "park":
            for a, b in ((0, 2), (1, 3)):
                pen.line(put(sides[[a, b], 0]), fill=MATERIALS.index("path"), width=round(2.5 / CELL))
            pond, r = sides[0, 0] * 0.3 + sides[2, 0] * 0.7, np.ptp(sides[[0, 2], 0], axis=0).min() / 8
            pen.ellipse(put(np.stack([pond - r, pond + r])), fill=MATERIALS.index("water"))
    _dig_gardens(pen, plan.buildings)
    if plan.river is not None:
        pen.polygon(put(_ribbon(plan.river, plan.style.river)), fill=MATERIALS.index("water"))
    for extra, name in ((plans.PAVEMENT, "pavement"), (0.0, "road")):
        for line, half in plan.streets:
            pen.polygon(put(_ribbon(line, half + extra)), fill=MATERIALS.index(name))
    for line, half in plan.streets:
        for at in range(2, len(line) - 3, 3 if half > 6 else 5):
            pen.line(put(line[at : at + 2]), fill=MATERIALS.index("marking"), width=1)
    return np.array(image)


def _dig_gardens(pen: ImageDraw.ImageDraw, buildings: pd.DataFrame) -> None:
    """What lies behind each house, as wide as the house."""
    along = buildings[["cos", "sin"]].to_numpy()
    inward = np.stack([-along[:, 1], along[:, 0]], axis=1) * buildings[["inward"]].to_numpy()
    half_a, deep, garden = (buildings[[name]].to_numpy() for name in ("half_a", "half_b", "garden"))
    pool = buildings[["behind"]].to_numpy() == plans.BEHIND.index("water")
    front = buildings[["x", "y"]].to_numpy() + inward * (deep + np.where(pool, 3.0, 0.0))
    back = front + inward * np.where(pool, np.minimum(garden, 7.0), garden)
    side = along * np.where(pool, 2.2, half_a)
    for quad, kind in zip(np.stack([front - side, front + side, back + side, back - side], axis=1) / CELL, buildings.behind, strict=True):
        pen.polygon(quad.ravel().tolist(), fill=MATERIALS.index(plans.BEHIND[int(kind)]))


def _ribbon(line: np.ndarray, half: float) -> np.ndarray:
    """The outline of a band about a centre line."""
    step = np.gradient(line, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], axis=1) / np.linalg.norm(step, axis=1, keepdims=True)
    return np.concatenate([line + half * normal, (line - half * normal)[::-1]])


def _draw_boxes(n: int, boxes: pd.DataFrame, order: Sequence[int] | np.ndarray, *, first: int) -> np.ndarray:
    """The number of the box in each cell (`first` + row), 0 for none; later ones over earlier ones."""
    image = Image.new("I", (n, n), 0)
    pen = ImageDraw.Draw(image)
    a = boxes[["cos", "sin"]].to_numpy() * boxes[["half_a"]].to_numpy()
    b = np.stack([-boxes.sin, boxes.cos], axis=1) * boxes[["half_b"]].to_numpy()
    corners = boxes[["x", "y"]].to_numpy()[:, None] + np.stack([a + b, a - b, -a - b, b - a], axis=1)
    rows = (corners / CELL - 0.5).reshape(-1, 8).tolist()
    for i in order:
        pen.polygon(rows[i], fill=first + int(i))
    return np.array(image)


def _ground_colours(plan: plans.Plan, moment: Moment, material: np.ndarray) -> np.ndarray:
    palette = np.stack([plan.style.ground[name] for name in MATERIALS])
    if moment.season != "summer":
        green = [MATERIALS.index("grass"), MATERIALS.index("yard")]
        palette[green] = palette[green] * 0.5 + 0.5 * np.array({"autumn": (150, 128, 84), "winter": (206, 208, 212)}[moment.season])
    tone, colour = 0.9 + 0.2 * grain(len(material)), np.empty((*material.shape, 3), np.float32)
    for rows in np.array_split(np.arange(len(material)), len(material) // 32 + 1):  # float64 of a few rows at a time stays in the processor's cache
        colour[rows] = palette[material[rows]] * tone[rows, :, None]
    return colour


def _paint_roofs(colour: np.ndarray, owner: np.ndarray, buildings: pd.DataFrame, moment: Moment) -> None:
    """Roof colours, the two sides of a gable, parapets and what stands on flat roofs."""
    iy, ix = np.nonzero((owner > 0) & (owner <= len(buildings)))
    row = owner[iy, ix] - 1
    at = lambda name: buildings[name].to_numpy()[row]  # noqa: E731
    side = -((ix + 0.5) * CELL - at("x")) * at("sin") + ((iy + 0.5) * CELL - at("y")) * at("cos")
    shade = np.where(at("gabled") > 0, np.where(side > 0, 1.12, 0.82), 1.0)
    n = len(owner)
    clutter = grain(n, coarse=5)[iy, ix]
    shade = np.where((at("gabled") == 0) & (clutter > 0.9), np.where(clutter > 0.95, 1.3, 0.65), shade)
    edge = (owner[np.minimum(iy + 1, n - 1), ix] != row + 1) | (owner[iy, np.minimum(ix + 1, n - 1)] != row + 1)
    shade = np.where(edge, 0.72, shade) * (0.94 + 0.12 * grain(n)[iy, ix])
    roof = np.stack([at(f"roof_{c}") for c in "rgb"], axis=1) * shade[:, None]
    colour[iy, ix] = roof * 0.6 + 84 if moment.season == "winter" else np.clip(roof, 0, 255)


def _rooted(trees: pd.DataFrame, material: np.ndarray, owner: np.ndarray) -> pd.DataFrame:
    """The trees whose trunks stand neither on a road, nor in water, nor in a building."""
    n = len(owner)
    column, row = (np.clip(trees[name] / CELL, 0, n - 1).astype(int) for name in ("x", "y"))
    bare = ~np.isin(material[row, column], [MATERIALS.index(name) for name in ("road", "marking", "water", "parking")])
    return trees[bare & (owner[row, column] == 0)]


def _crowns(trees: pd.DataFrame, n: int, moment: Moment) -> tuple[np.ndarray, ...]:
    """Top, bottom and tone of the crown over each cell, and the height of a trunk in it."""
    trees = trees.sort_values("top", kind="stable")
    image = Image.new("I", (n, n), 0)
    pen = ImageDraw.Draw(image)
    x, y, radius = (trees[name].to_numpy() / CELL for name in ("x", "y", "radius"))
    for i in range(len(trees)):
        pen.ellipse((x[i] - radius[i], y[i] - radius[i], x[i] + radius[i], y[i] + radius[i]), fill=i + 1)
    owner = np.array(image)
    iy, ix = np.nonzero(owner)
    row = owner[iy, ix] - 1
    at = lambda name: trees[name].to_numpy()[row]  # noqa: E731
    away = ((ix + 0.5 - x[row]) ** 2 + (iy + 0.5 - y[row]) ** 2) / radius[row] ** 2
    dome = np.sqrt(np.clip(1 - away, 0.04, 1))
    if moment.season == "winter":  # bare: what is left are branches
        keep = grain(n)[iy, ix] < 0.4
        iy, ix, row, dome, away = iy[keep], ix[keep], row[keep], dome[keep], away[keep]
    top, bottom, tone, trunk = (np.zeros((n, n), np.float32) for _ in range(4))
    middle = at("bottom") * 0.6 + at("top") * 0.4
    top[iy, ix] = middle + (at("top") - middle) * dome
    bottom[iy, ix] = middle - (middle - at("bottom")) * dome
    tone[iy, ix] = np.clip(at("tone") + 0.5 * (dome - 0.6) + 0.4 * (grain(n)[iy, ix] - 0.5), 0, 1)
    inside = ((trees.x > 1) & (trees.x < n * CELL - 1) & (trees.y > 1) & (trees.y < n * CELL - 1)).to_numpy()
    trunk[y[inside].astype(int), x[inside].astype(int)] = trees.bottom.to_numpy()[inside] + 0.6
    return top, bottom, tone, trunk


def _sunlight(height: Float[Tensor, "n n"], sun: tuple[float, float]) -> Float[Tensor, "n n"]:
    """1 where the sun reaches the cell, 0 in shadow (or at night), on a raster of twice the cell."""
    azimuth, rise = math.radians(sun[0]), math.tan(math.radians(sun[1]))
    if rise <= 0:
        return torch.zeros_like(height)
    coarse = F.max_pool2d(height[None, None], 2, ceil_mode=True)[0, 0]
    reach = int(min(90.0, 60.0 / rise) / (2 * CELL))  # cells; shadows of more than 90 m are cut off
    padded = F.pad(coarse, (reach + 1,) * 4)
    lit = torch.ones_like(coarse, dtype=torch.bool)
    n = len(coarse)
    for step in range(1, reach + 1):
        if step > 12 and step % 2:
            continue
        dx, dy = round(step * math.sin(azimuth)) + reach + 1, round(step * math.cos(azimuth)) + reach + 1
        lit &= padded[dy : dy + n, dx : dx + n] <= coarse + (step * 2 * CELL * rise)
    light = F.interpolate(lit[None, None].float(), scale_factor=2, mode="nearest")[0, 0]
    return light[: len(height), : len(height)].contiguous()


def _from_above(view: Scene) -> UInt8[Tensor, "n n 3"]:
    crown = view.crown_top > view.height
    leaves = torch.tensor(LEAVES[view.moment.season], dtype=torch.float32)
    colour = torch.where(crown[..., None], leaves[0] + view.crown_tone[..., None] * (leaves[1] - leaves[0]), view.colour)
    lit = torch.where(crown, 0.8 + 0.2 * view.light, 0.5 + 0.5 * view.light)
    return (colour * lit[..., None]).clamp(0, 255).to(torch.uint8)
