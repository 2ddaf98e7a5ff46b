"""The plan of a procedural city: streets, blocks, buildings, trees and cars as tables of metres, drawn from one seed.

    street pattern (grid, radial, organic) -> blocks -> lots -> buildings;  streets -> trees, cars, cameras

x runs east and y north from the south-west corner. Every city has its own pattern, palette, density and skyline. Nothing
here is an image: `scene` and `street` draw the plan, from above and from a street.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

PATTERNS = ("grid", "radial", "organic")
PAVEMENT = 3.0  # metres between the kerb and a block
STREET_STEP = 2.0  # metres between the points of a street's centre line
BEHIND, BEHIND_SHARE = ("yard", "grass", "path", "parking", "water"), (0.25, 0.42, 0.12, 0.17, 0.04)  # of a house: gardens, courts, pools
KINDS = ("built", "park", "plaza", "parking")
WALLS = ((152, 84, 66), (206, 182, 142), (226, 221, 210), (150, 150, 152), (112, 134, 156), (204, 158, 146), (176, 186, 152),
         (120, 96, 82), (228, 196, 120), (168, 176, 190), (96, 100, 108), (190, 120, 84))  # fmt: skip
ROOFS = ((172, 94, 68), (142, 136, 130), (78, 84, 94), (212, 212, 208), (112, 148, 130), (112, 92, 78), (96, 92, 90), (184, 168, 146))
CARS = ((20, 20, 24), (235, 235, 235), (150, 152, 158), (150, 20, 24), (28, 56, 120), (210, 180, 60), (60, 80, 66))
SHOPS = ((176, 40, 44), (36, 84, 60), (240, 200, 70), (50, 60, 110), (210, 110, 40), (235, 230, 220), (90, 40, 80))


@dataclass(frozen=True)
class Style:
    """What makes a city itself; drawn by its seed."""

    pattern: str  # of the streets
    angle: float  # of the streets, radians
    spacing: tuple[float, float]  # metres between streets, least and most
    density: float  # share of the lots that are built
    floors: float  # usual number of floors
    skyline: float  # how many times higher the buildings of the centre are
    attached: bool  # rows of houses, or houses apart
    trees: float  # share of the places for a tree that have one
    parks: float  # share of the blocks that are parks
    river: float  # half-width in metres, 0 for none
    walls: np.ndarray  # rgb rows
    roofs: np.ndarray
    ground: dict[str, np.ndarray]  # material -> rgb


@dataclass(frozen=True)
class Plan:
    side: float  # metres, of the square that the city fills
    style: Style
    streets: list[tuple[np.ndarray, float]]  # centre line "m 2", half-width of the roadway
    blocks: list[tuple[np.ndarray, str]]  # four sides "4 p 2", each from corner to corner; kind
    river: np.ndarray | None  # centre line "m 2"
    buildings: pd.DataFrame  # as the satellite saw them
    rebuilt: pd.DataFrame  # what stands on the same lots after construction, or not: height 0
    turn: np.ndarray  # 0..1, when a lot's turn comes to be rebuilt
    trees: pd.DataFrame
    points: pd.DataFrame  # of all centre lines: x, y, direction (dx, dy), half-width


def style(seed: int) -> Style:
    """The character of city `seed`; the three street patterns take turns."""
    rng = np.random.default_rng([seed, 0])
    low = rng.uniform(52, 78)
    jitter = lambda rows: np.clip(rows + rng.normal(0, 10, rows.shape), 0, 255)  # noqa: E731
    grey = rng.uniform(68, 118)
    ground = {
        "road": grey + np.array([0.0, 0.0, rng.uniform(-4, 8)]),
        "marking": np.full(3, 225.0),
        "pavement": rng.uniform(135, 190) + rng.normal(0, 5, 3),
        "yard": rng.choice([[120, 138, 84], [150, 136, 112], [136, 134, 130]]) + rng.normal(0, 6, 3),
        "grass": np.array([104.0, 134.0, 70.0]) + rng.normal(0, 9, 3),
        "path": np.array([186.0, 168.0, 138.0]) + rng.normal(0, 8, 3),
        "plaza": rng.uniform(150, 200) + rng.normal(0, 8, 3),
        "parking": grey + 14 + np.zeros(3),
        "water": np.array([52.0, 84.0, 104.0]) + rng.normal(0, 10, 3),
    }
    return Style(
        pattern=PATTERNS[seed % len(PATTERNS)],
        angle=rng.uniform(0, math.pi / 2),
        spacing=(low, low * rng.uniform(1.2, 1.7)),
        density=rng.uniform(0.72, 0.97),
        floors=rng.choice([2.0, 3.0, 4.0, 5.0]),
        skyline=rng.uniform(0.5, 6.0),
        attached=bool(rng.random() < 0.6),
        trees=rng.uniform(0.25, 0.85),
        parks=rng.uniform(0.06, 0.2),
        river=float(rng.choice([0.0, rng.uniform(12, 26)], p=[0.4, 0.6])),
        walls=jitter(np.array(WALLS, float)[rng.choice(len(WALLS), 5, replace=False)]),
        roofs=jitter(np.array(ROOFS, float)[rng.choice(len(ROOFS), 3, replace=False)]),
        ground=ground,
    )


def draw(seed: int, side: float) -> Plan:
    """City `seed` on a square of `side` metres; the same on every machine."""
    character = style(seed)
    rng = np.random.default_rng([seed, 1])
    layout = _radial if character.pattern == "radial" else _woven
    streets, outlines = layout(rng, character, side)
    streets = [(line, half) for part, half in streets for line in _inside(part, side)]
    outlines = [o for o in outlines if ((o.mean(axis=(0, 1)) > -40) & (o.mean(axis=(0, 1)) < side + 40)).all()]
    weights = [1 - character.parks - 0.09, character.parks, 0.03, 0.06]
    blocks = [(o, str(k)) for o, k in zip(outlines, rng.choice(KINDS, len(outlines), p=weights), strict=True)]
    river = _river(rng, side) if character.river else None
    lots = [row for o, kind in blocks if kind == "built" for row in _lots(rng, character, o)]
    lots = pd.DataFrame(lots, columns=["x", "y", "half_a", "half_b", "cos", "sin", "inward", "garden"])
    if river is not None:
        lots = lots[_distance(lots[["x", "y"]].to_numpy(), river) > character.river + 8].reset_index(drop=True)
    points = _points(streets)
    buildings, rebuilt = (_clothe(rng, character, lots, side) for _ in range(2))
    rebuilt.loc[rng.random(len(lots)) < 0.25, "height"] = 0.0
    return Plan(side, character, streets, blocks, river, buildings, rebuilt, rng.random(len(lots)), _plant(rng, character, points, blocks), points)


def cars(plan: Plan, seed: int) -> pd.DataFrame:
    """Cars at one moment: parked along the kerbs and driving in the lanes; another seed, other cars."""
    rng = np.random.default_rng([seed, 2])
    p = plan.points.iloc[rng.permutation(len(plan.points))[: len(plan.points) // 7]]
    parked = rng.random(len(p)) < 0.7
    offset = np.where(parked, p.half - 1.2, p.half / 2.6) * rng.choice([-1, 1], len(p))
    colour = np.array(CARS, float)[rng.integers(len(CARS), size=len(p))]
    table = {"x": p.x - p.dy * offset, "y": p.y + p.dx * offset, "half_a": rng.uniform(1.9, 2.5, len(p)), "half_b": 0.95,
             "cos": p.dx, "sin": p.dy, "height": rng.uniform(1.4, 1.9, len(p))}  # fmt: skip
    return pd.DataFrame(table | dict(zip(("red", "green", "blue"), colour.T, strict=True))).reset_index(drop=True)


def _woven(rng: np.random.Generator, style: Style, side: float) -> tuple[list, list]:
    """Two families of streets that cross; "organic" bends both by a smooth field."""
    amplitude = side / 60 + 12 if style.pattern == "organic" else 0.0
    waves = rng.uniform(2 * math.pi / 420, 2 * math.pi / 230, (6, 2)) * rng.choice([-1, 1], (6, 2))
    phases = rng.uniform(0, 2 * math.pi, 6)
    turn = np.array([[math.cos(style.angle), -math.sin(style.angle)], [math.sin(style.angle), math.cos(style.angle)]])

    def place(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        uv = np.stack(np.broadcast_arrays(u, v), axis=-1)
        bend = np.sin(uv @ waves.T + phases)
        return uv @ turn.T + side / 2 + amplitude / 2 * np.stack([bend[..., :3].sum(-1), bend[..., 3:].sum(-1)], axis=-1)

    reach = 0.8 * side
    lines = [_spaced(rng, style, -reach, reach) for _ in range(2)]
    halves = [np.where(np.arange(len(x)) % 4 == 1, rng.uniform(7.5, 10), rng.uniform(4, 5.5)) for x in lines]
    along = np.arange(-reach, reach, STREET_STEP)
    streets = [(place(np.array(u), along), h) for u, h in zip(lines[0], halves[0], strict=True)]
    streets += [(place(along, np.array(v)), h) for v, h in zip(lines[1], halves[1], strict=True)]
    (us, vs), (hu, hv) = lines, [h + PAVEMENT for h in halves]
    outlines = []
    for i in range(len(us) - 1):
        for j in range(len(vs) - 1):
            u = np.array([us[i] + hu[i], us[i + 1] - hu[i + 1]])[[0, 1, 1, 0]]
            v = np.array([vs[j] + hv[j], vs[j + 1] - hv[j + 1]])[[0, 0, 1, 1]]
            outlines.append(place(*_sides(u, v)))
    return streets, outlines


def _radial(rng: np.random.Generator, style: Style, side: float) -> tuple[list, list]:
    """Rings about a centre and spokes, whose number doubles as the rings grow."""
    centre = side * rng.uniform(0.4, 0.6, 2)
    rings = np.concatenate([[34.0], _spaced(rng, style, 34.0, 0.9 * side)])
    halves = np.where(np.arange(len(rings)) % 4 == 2, rng.uniform(7.5, 10), rng.uniform(4, 5.5))
    place = lambda r, t: centre + np.stack(np.broadcast_arrays(r * np.cos(t), r * np.sin(t)), axis=-1)  # noqa: E731
    streets = [(place(r, np.linspace(0, 2 * math.pi, math.ceil(2 * math.pi * r / STREET_STEP))), h) for r, h in zip(rings, halves, strict=True)]
    outlines = [place(*_sides(np.full(4, rings[0] - halves[0] - PAVEMENT), np.arange(4) * math.pi / 2, turn=2 * math.pi))]
    for i in range(len(rings) - 1):
        n = 6 * 2 ** int(math.log2(rings[i] / rings[0] + 0.5))
        angles = style.angle + 2 * math.pi * np.arange(n) / n
        widths = np.where(np.arange(n) % (n // 6) == 0, 6.5, 4.2)
        along = np.arange(rings[i], rings[i + 1], STREET_STEP)
        streets += [(place(along, np.array(t)), h) for t, h in zip(angles, widths, strict=True)]
        low, high = rings[i] + halves[i] + PAVEMENT, rings[i + 1] - halves[i + 1] - PAVEMENT
        for t, h, t2, h2 in zip(angles, widths, np.append(angles[1:], angles[0] + 2 * math.pi), np.roll(widths, -1), strict=True):
            r = np.array([low, high, high, low])
            inset = (np.array([h, h, -h2, -h2]) + np.array([1, 1, -1, -1]) * PAVEMENT) / r
            outlines.append(place(*_sides(r, np.array([t, t, t2, t2]) + inset)))
    return streets, outlines


def _sides(u: np.ndarray, v: np.ndarray, turn: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The four sides between four corners, in the coordinates of the streets; `turn` closes a circle of angles v."""
    share = np.linspace(0, 1, 9)
    u2, v2 = np.roll(u, -1), np.roll(v, -1) + np.array([0, 0, 0, turn])
    return u[:, None] + share * (u2 - u)[:, None], v[:, None] + share * (v2 - v)[:, None]


def _spaced(rng: np.random.Generator, style: Style, low: float, high: float) -> np.ndarray:
    steps = rng.uniform(*style.spacing, math.ceil((high - low) / style.spacing[0])) + 14  # the roadway and two pavements
    line = low + np.cumsum(steps)
    return line[line < high]


def _inside(line: np.ndarray, side: float) -> list[np.ndarray]:
    """The stretches of a line within the square (and 30 m around it)."""
    within = ((line > -30) & (line < side + 30)).all(axis=1)
    cuts = np.flatnonzero(np.diff(within.astype(int))) + 1
    return [part for part, keep in zip(np.split(line, cuts), np.split(within, cuts), strict=True) if keep[0] and len(part) > 3]


def _river(rng: np.random.Generator, side: float) -> np.ndarray:
    t = np.linspace(-0.1, 1.1, int(side))
    angle, shift = rng.uniform(0, 2 * math.pi), rng.uniform(-0.2, 0.2) * side
    across = shift + side * (0.06 * np.sin(2 * math.pi * t * rng.uniform(0.8, 1.6) + rng.uniform(0, 6)) + 0.02 * np.sin(15 * t))
    along = (t - 0.5) * side * 1.5
    return side / 2 + np.stack([along * math.cos(angle) - across * math.sin(angle), along * math.sin(angle) + across * math.cos(angle)], axis=1)


def _lots(rng: np.random.Generator, style: Style, sides: np.ndarray) -> list[list[float]]:
    """Rectangles along the four sides of a block, each with a garden behind, and one in the middle of a deep block."""
    centre = sides.mean(axis=(0, 1))
    shortest = np.linalg.norm(sides[:, -1] - sides[:, 0], axis=1).min()
    if shortest < 12:
        return []
    depth = min(rng.uniform(10, 17), shortest / 2 - 1)
    setback = 0.0 if style.attached else rng.uniform(1, 4)
    gap = 0.0 if style.attached else rng.uniform(2, 5)
    garden = max(0.0, shortest / 2 - depth - 2)
    rows = []
    for line in sides:
        travelled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
        shares = rng.uniform(0.6, 1.4, max(1, round(travelled[-1] / rng.uniform(11, 24))))
        edges = np.concatenate([[0.0], np.cumsum(shares)]) / shares.sum() * travelled[-1]
        ends = np.stack([np.interp(edges, travelled, line[:, i]) for i in (0, 1)], axis=1)
        for start, end in zip(ends[:-1], ends[1:], strict=True):
            length = np.linalg.norm(end - start)
            along = (end - start) / length
            inward = math.copysign(1.0, along[0] * (centre - start)[1] - along[1] * (centre - start)[0])
            deep = depth * rng.uniform(0.75, 1.0)
            if rng.random() < style.density and length - gap > 4:
                middle = (start + end) / 2 + inward * np.array([-along[1], along[0]]) * (setback + deep / 2)
                rows.append([*middle, (length - gap) / 2 + 0.3 * style.attached, deep / 2, *along, inward, garden])
    if shortest > 2 * depth + 26 and rng.random() < 0.5:
        rows.append([*centre, *(rng.uniform(0.12, 0.22, 2) * shortest), *along, 1.0, 0.0])
    return rows


def _clothe(rng: np.random.Generator, style: Style, lots: pd.DataFrame, side: float) -> pd.DataFrame:
    """Heights, colours and facades for the buildings on `lots`."""
    n = len(lots)
    from_centre = np.hypot(lots.x - side / 2, lots.y - side / 2) / side
    boost = 1 + style.skyline * np.exp(-((from_centre / 0.16) ** 2)) * rng.random(n) ** 2
    storey = rng.uniform(2.9, 3.6, n)
    floors = np.clip(np.round(style.floors * rng.lognormal(0, 0.35, n) * boost), 1, 32)
    wall = style.walls[rng.integers(len(style.walls), size=n)] + rng.normal(0, 9, (n, 3))
    roof = style.roofs[rng.choice(len(style.roofs), n, p=[0.6, 0.25, 0.15])] + rng.normal(0, 8, (n, 3))
    shop = np.array(SHOPS, float)[rng.integers(len(SHOPS), size=n)]
    table = lots.copy()
    table["height"] = floors * storey + rng.uniform(0.2, 1.0, n)
    for name, rgb in (("wall", wall), ("roof", roof), ("shop", shop)):
        table[[f"{name}_{c}" for c in "rgb"]] = np.clip(rgb, 8, 247)
    table["storey"] = storey
    table["bay"] = rng.uniform(2.2, 4.2, n)
    table["glass"] = rng.choice([0.35, 0.5, 0.62, 0.9], n, p=[0.35, 0.35, 0.2, 0.1])  # share of a bay's width that is window
    table["has_shop"] = (rng.random(n) < 0.25 + 0.5 * np.exp(-((from_centre / 0.3) ** 2))).astype(float)
    table["behind"] = rng.choice(len(BEHIND), n, p=BEHIND_SHARE)
    table["gabled"] = ((floors <= 3) & (rng.random(n) < 0.5)).astype(float)
    return table


def _points(streets: list[tuple[np.ndarray, float]]) -> pd.DataFrame:
    rows = []
    for line, half in streets:
        step = np.gradient(line, axis=0)
        step /= np.linalg.norm(step, axis=1, keepdims=True)
        rows.append(np.column_stack([line, step, np.full(len(line), half)]))
    return pd.DataFrame(np.concatenate(rows), columns=["x", "y", "dx", "dy", "half"])


def _plant(rng: np.random.Generator, style: Style, points: pd.DataFrame, blocks: list) -> pd.DataFrame:
    """Trees along the kerbs, in parks and in yards; x, y, radius, top and bottom of the canopy in metres, tone 0..1."""
    stride = int(rng.integers(4, 8))
    row = points.iloc[::stride]
    kerb = [row[["x", "y"]].to_numpy() + sign * (row.half.to_numpy() + 1.3)[:, None] * np.stack([-row.dy, row.dx], axis=1) for sign in (-1, 1)]
    kerb = np.concatenate(kerb)
    kerb = kerb[rng.random(len(kerb)) < style.trees]
    free = []
    for sides, kind in blocks:
        corners = sides[:, 0]
        many = {"park": 0.010, "built": 0.0018, "plaza": 0.001, "parking": 0.0005}[kind] * (0.5 + style.trees)
        (a, b), (c, d) = corners[2] - corners[0], corners[3] - corners[1]
        area = abs(a * d - b * c) / 2
        s, t = rng.random((2, rng.poisson(many * area)))[..., None]
        free.append((1 - s) * (1 - t) * corners[0] + s * (1 - t) * corners[1] + s * t * corners[2] + (1 - s) * t * corners[3])
    xy = np.concatenate([kerb, *free])
    radius = rng.uniform(1.6, 4.2, len(xy))
    top = radius * rng.uniform(2.2, 3.2, len(xy))
    bottom = np.minimum(rng.uniform(2.0, 3.4, len(xy)), 0.5 * top)
    return pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1], "radius": radius, "top": top, "bottom": bottom, "tone": rng.random(len(xy))})


def _distance(xy: np.ndarray, line: np.ndarray) -> np.ndarray:
    return np.sqrt(((xy[:, None] - line[None, ::4]) ** 2).sum(-1)).min(axis=1) if len(xy) else np.zeros(0)
