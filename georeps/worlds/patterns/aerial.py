"""The 38 classes of PatternNet as procedural scenes: one function a folder paints it on `s`, `value` being the attribute's value where it has one.

A scene keeps to what makes its class: an airplane has swept wings, a storage tank is a round roof with a shadow, a court has its lines.
What varies freely (turn, zoom, colours of cars, trees) is drawn from `r`.
"""

import math

import numpy as np

from georeps.worlds.patterns.paint import Scene

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}


def _places(r: np.random.Generator, n: int, gap: float) -> np.ndarray:
    """n centres at least `gap` apart, close together around the middle."""
    for _ in range(200):
        found = [r.uniform(0.25, 0.75, 2)]
        for _ in range(60):
            p = r.uniform(0.5 - 0.36, 0.5 + 0.36, 2)
            if len(found) < n and min(np.linalg.norm(p - q) for q in found) >= gap:
                found.append(p)
        if len(found) == n:
            return np.array(found)
    angle = np.arange(n) * 2 * math.pi / n
    return 0.5 + 0.3 * np.stack([np.cos(angle), np.sin(angle)], 1)


def _road(s: Scene, points, width: float, material: str = "asphalt", mark: str | None = "paint") -> None:
    s.path(points, width, material)
    if mark:
        s.path(points, width * 0.06, mark)


def _traffic(s: Scene, n: int, width: float, *, y: float = 0.5) -> None:
    for x in s.rng.uniform(-0.2, 1.2, n):
        s.car(x, y + s.rng.choice([-1, 1]) * width / 4, 0.0)


def _house(s: Scene, x: float, y: float, w: float, h: float, a: float) -> None:
    roof = str(s.rng.choice(["roof", "slate", "brown", "gray", "clay"]))
    with s.item("house"):
        s.rect(x, y, w, h, roof, a=a, z=0.05)
        s.rect(x, y, w, h * 0.06, "line", a=a)


def airplane(s, r, value):
    """A plane on the apron, its body in the value's colour."""
    s.ground = str(r.choice(["tarmac", "concrete", "asphalt"]))
    s.path([(-0.5, 0.95), (1.5, 0.95)], 0.012, "gold")
    body = {"white": "white", "purple": "purple"}.get(value, str(r.choice(["red", "blue", "metal", "yellow"])))
    with s.item("airplane"):
        x, long, span = 0.5, r.uniform(0.34, 0.42), r.uniform(0.32, 0.42)
        for side in (-1, 1):
            s.polygon([(x, 0.42), (x + side * span, 0.62), (x + side * span, 0.67), (x, 0.58)], body, 0.03)
            s.polygon([(x, 0.46 + long * 0.8), (x + side * span * 0.4, 0.55 + long * 0.8), (x, 0.52 + long * 0.8)], body, 0.03)
            s.rect(x + side * span * 0.42, 0.52, 0.045, 0.1, "gray", z=0.02)
        s.path([(x, 0.52 - long), (x, 0.52 + long)], 0.085, body, z=0.04)
        s.disc(x, 0.52 - long, 0.0425, body)
        s.rect(x, 0.52 - long + 0.01, 0.05, 0.02, "black")
    s.zoom = (0.8, 1.1)


def nursing_home(s, r, value):
    """A large building of two wings under one roof colour."""
    s.ground = "grass"
    roof = {"white": "white", "gray": "gray"}.get(value, str(r.choice(["brown", "roof"])))
    s.trees(18, keep_out=0.42)
    s.rect(0.5, 0.94, 0.8, 0.16, "asphalt")
    for x in r.uniform(0.15, 0.85, 6):
        s.car(x, 0.94, math.pi / 2)
    with s.item("nursing home"):
        for x in (0.26, 0.74):
            s.rect(x, 0.46, 0.16, 0.6, roof, z=0.05)
        s.rect(0.5, r.choice([0.24, 0.46, 0.68]), 0.5, 0.16, roof, z=0.05)
        s.rect(0.26, 0.46, 0.012, 0.56, "line")
        s.rect(0.74, 0.46, 0.012, 0.56, "line")


def crosswalk(s, r, value):
    """Zebra stripes across a street."""
    s.ground = "concrete"
    s.rect(0.5, 0.5, 3.0, 0.62, "asphalt")
    s.path([(-1, 0.5), (0.3, 0.5)], 0.015, "gold")
    s.path([(0.7, 0.5), (2, 0.5)], 0.015, "gold")
    with s.item("crosswalk"):
        for y in np.linspace(0.24, 0.76, 8):
            s.rect(0.5, y, 0.26, 0.036, "yellow" if value == "yellow" else "paint")
    for x in r.choice([-0.05, 0.06, 0.92, 1.05], 2, replace=False):
        s.car(x, r.choice([0.36, 0.64]), 0.0, 0.15)


def tennis_court(s, r, value):
    """One court of the value's colour with its lines and net."""
    s.ground = "grass"
    court = value or "purple"
    s.trees(10, keep_out=0.52)
    s.rect(0.5, 0.5, 0.62, 0.96, str(r.choice(["slate", "concrete"] if court in ("green", "red", "brown") else ["clay", "green"])))
    with s.item("tennis court"):
        s.rect(0.5, 0.5, 0.4, 0.72, court)
        for x in (0.3, 0.35, 0.65, 0.7):
            s.rect(x, 0.5, 0.014, 0.72, "paint")
        for y, w in ((0.14, 0.4), (0.86, 0.4), (0.31, 0.3), (0.69, 0.3)):
            s.rect(0.5, y, w, 0.014, "paint")
        s.rect(0.5, 0.5, 0.014, 0.38, "paint")
        s.rect(0.5, 0.5, 0.46, 0.012, "black", z=0.015)


def overpass(s, r, value):
    """A concrete bridge over a highway."""
    s.ground = "field"
    s.trees(8, keep_out=0.35)
    s.path([(0.5, -1), (0.5, 2)], 0.26, "asphalt")
    for x in (0.44, 0.5, 0.56):
        s.path([(x, -1), (x, 2)], 0.012, "paint")
    for y in r.uniform(-0.2, 1.2, 5):
        s.car(0.5 + r.choice([-0.06, 0.06]), y, math.pi / 2)
    with s.item("bridge"):
        a = r.uniform(-0.35, 0.35)
        s.path([(-1, 0.5 - 1.5 * a), (2, 0.5 + 1.5 * a)], 0.22, "concrete", z=0.07)
        s.path([(-1, 0.5 - 1.5 * a), (2, 0.5 + 1.5 * a)], 0.012, "gold")
    for x in r.uniform(0, 1, 3):
        s.car(x, 0.5 + (x - 0.5) * a + 0.05, a)


def bridge(s, r, value):
    """A bridge over a river."""
    s.ground = "water"
    for side in (-0.28, 1.28):
        s.rect(side, 0.5, 1.0, 3.0, "field")
    for x, y in zip(r.choice([-0.02, 0.08, 0.92, 1.02], 10), r.uniform(-0.2, 1.2, 10), strict=True):
        s.disc(x, y, 0.04, "tree", z=0.03)
    with s.item("bridge"):
        s.path([(-1, 0.5), (2, 0.5)], 0.15, "concrete", z=0.06)
        for y in (0.44, 0.56):
            s.path([(-1, y), (2, y)], 0.012, "line")
        s.path([(-1, 0.5), (2, 0.5)], 0.01, "paint")
    _traffic(s, 3, 0.15)


def sparse_residential(s, r, value):
    """Two or three houses among trees."""
    s.ground = "grass"
    _road(s, [(-1, 0.92), (0.2, 0.86), (0.8, 0.92), (2, 0.86)], 0.09, mark=None)
    for x, y in _places(r, int(r.integers(2, 4)), 0.42) * [1, 0.9]:
        s.path([(x, y), (x + 0.05, 0.9)], 0.035, "concrete")
        _house(s, x, y, r.uniform(0.16, 0.22), r.uniform(0.12, 0.15), r.uniform(-0.4, 0.4))
    s.trees(22, keep_out=0.2)


def dense_residential(s, r, value):
    """Rows of roofs along streets."""
    s.ground = str(r.choice(["grass", "field", "concrete"]))
    for y in (0.0, 0.5, 1.0):
        s.rect(0.5, y, 3.0, 0.09, "asphalt")
    for row in (0.14, 0.36, 0.64, 0.86, -0.14, 1.14):
        for x in np.arange(-0.3, 1.4, 0.17):
            _house(s, x + r.uniform(-0.01, 0.01), row, r.uniform(0.11, 0.145), r.uniform(0.1, 0.13), 0.0)
    s.trees(10, r=(0.015, 0.03))


def _stalls(s: Scene, rows, step: float, depth: float, share: float) -> None:
    for y in rows:
        for x in np.arange(-0.5, 1.5, step):
            s.rect(x, y, 0.012, depth, "paint")
            if s.rng.random() < share:
                s.car(x + step / 2, y, math.pi / 2, depth * 0.8)


def parking_lot(s, r, value):
    """Rows of narrow stalls from afar."""
    s.ground = "asphalt"
    _stalls(s, (-0.1, 0.15, 0.4, 0.65, 0.9, 1.15), 0.085, 0.13, 0.0 if value == "without cars" else r.uniform(0.45, 0.95))
    for y in (0.275, 0.775):
        s.disc(r.uniform(0.2, 0.8), y, 0.03, "tree", z=0.03)


def parking_space(s, r, value):
    """Two rows of wide stalls from near."""
    s.ground = str(r.choice(["asphalt", "tarmac"]))
    s.rect(0.5, -0.2, 3.0, 0.3, "grass")
    _stalls(s, (0.18, 0.82), 0.16, 0.3, 0.0 if value == "without cars" else r.uniform(0.5, 0.95))


def _boat(s: Scene, x: float, y: float, size: float, a: float) -> None:
    with s.item("boat"):
        hull = np.array([[-0.5, -0.17], [0.25, -0.17], [0.5, 0], [0.25, 0.17], [-0.5, 0.17]]) * size
        turned = hull @ np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
        s.polygon(turned + (x, y), "white", 0.015)
        s.rect(x, y, size * 0.3, size * 0.16, str(s.rng.choice(["gray", "blue", "brown"])), a=a)


def ferry_terminal(s, r, value):
    """A quay with two wide piers and a ferry between them."""
    s.ground = "water"
    s.rect(0.5, -0.4, 3.0, 1.2, "concrete")
    for x in r.uniform(0, 1, 9):
        s.car(x, r.uniform(0.02, 0.16), r.choice([0.0, math.pi / 2]))
    with s.item("pier"):
        for x in (0.22, 0.78):
            s.rect(x, 0.42, 0.1, 0.5, "concrete", z=0.02)
        s.rect(0.5, 0.1, 0.36, 0.12, "gray", z=0.04)
    if value != "without boats":
        _boat(s, 0.5, 0.5, 0.5, math.pi / 2)
        if r.random() < 0.5:
            _boat(s, 0.95, 0.55, 0.4, math.pi / 2)


def harbor(s, r, value):
    """Thin jetties with small boats on both sides."""
    s.ground = "water"
    s.rect(-0.42, 0.5, 1.0, 3.0, "concrete")
    for y in (0.16, 0.5, 0.84):
        with s.item("pier"):
            s.rect(0.5, y, 0.9, 0.05, "gray", z=0.01)
        if value != "without boats":
            for x in np.arange(0.16, 0.95, 0.12):
                for side in (-1, 1):
                    if r.random() < 0.75:
                        _boat(s, x, y + side * 0.095, r.uniform(0.11, 0.15), side * math.pi / 2)


def storage_tank(s, r, value):
    """Round white roofs that throw long shadows; as many as the value says."""
    s.ground = str(r.choice(["soil", "gravel", "concrete", "field"]))
    n = NUMBERS.get(value) or int(r.integers(6, 9))
    radius = {1: r.uniform(0.26, 0.32), 2: 0.2, 3: 0.17, 4: 0.155}.get(n, 0.11)
    _road(s, [(-1, 1.0), (2, 1.0)], 0.1, mark=None)
    for x, y in _places(r, n, 2.25 * radius):
        s.disc(x, y, radius * 1.12, "gravel")
        with s.item("storage tank"):
            s.disc(x, y, radius, str(r.choice(["white", "metal"])), z=0.08)
            s.disc(x, y, radius * 0.92, "metal")
            s.disc(x, y, radius * 0.86, "white")
            s.path([(x, y), (x + radius * 0.9, y)], 0.014, "line")
    s.zoom = (0.9, 1.05)


def wastewater_treatment_plant(s, r, value):
    """Round clarifiers with a bridge across; as many as the value says."""
    s.ground = "grass"
    n = NUMBERS.get(value) or 5
    radius = {1: r.uniform(0.24, 0.3), 2: 0.19, 3: 0.165, 4: 0.15}.get(n, 0.12)
    s.rect(0.5, -0.05, 1.6, 0.2, "concrete")
    for x in (0.2, 0.5, 0.8):
        s.rect(x, -0.05, 0.22, 0.12, "sewage")
    for x, y in _places(r, n, 2.25 * radius) + (0, 0.05):
        a = r.uniform(0, 6.3)
        with s.item("clarifier"):
            s.disc(x, y, radius, "concrete", z=0.02)
            s.disc(x, y, radius * 0.88, "sewage")
            s.disc(x, y, radius * 0.2, "concrete")
            s.rect(x, y, 1.8 * radius, 0.03, "metal", a=a, z=0.01)
    s.zoom = (0.9, 1.05)


def _half_court(s: Scene, x: float, y: float, w: float, h: float, floor: str, up: int) -> None:
    """One end of a basketball court, basket at the upper (-1) or lower (1) short side."""
    end = y + up * h / 2
    s.rect(x, y, w, h, floor)
    t = np.linspace(0, math.pi, 13)
    s.path(np.stack([x + 0.4 * w * np.cos(t), end - up * 0.62 * h * np.sin(t)], 1), 0.014, "paint")
    s.rect(x, end - up * 0.2 * h, 0.34 * w, 0.4 * h, "paint")
    s.rect(x, end - up * 0.2 * h, 0.34 * w - 0.028, 0.4 * h - 0.014, "brown" if floor != "brown" else "red")
    s.rect(x, end - up * 0.03, 0.1, 0.02, "white", z=0.02)


def basketball_court(s, r, value):
    """Courts or half courts with arcs and baskets; as many as the value says."""
    s.ground = str(r.choice(["grass", "concrete"]))
    floor = str(r.choice(["clay", "blue", "green", "slate", "orange"]))
    s.trees(8, keep_out=0.55)
    halves = {"half": 1, "two-halves": 2}.get(value)
    n = halves or NUMBERS.get(value) or 5
    w = {1: 0.46, 2: 0.36, 3: 0.26}.get(n, 0.19)
    for x in 0.5 + (np.arange(n) - (n - 1) / 2) * (w + 0.06):
        with s.item("basketball court"):
            if halves:
                _half_court(s, x, 0.5, w * 1.1, 0.44, floor, -1)
            else:
                long = min(0.86, w * 1.9)
                for up in (-1, 1):
                    _half_court(s, x, 0.5 + up * long / 4, w, long / 2, floor, up)
                s.rect(x, 0.5, w, 0.014, "paint")
                s.disc(x, 0.5, w * 0.18, "paint")
                s.disc(x, 0.5, w * 0.18 - 0.014, floor)
    s.zoom = (0.85, 1.05)


def swimming_pool(s, r, value):
    """A pool of the value's shape on its deck."""
    s.ground = "grass"
    s.trees(12, keep_out=0.45)
    s.rect(0.5, 0.5, 0.84, 0.74, str(r.choice(["concrete", "sand", "clay"])))
    _house(s, 0.5, -0.02, 0.9, 0.2, 0.0)
    with s.item("swimming pool"):
        for grow, material in ((0.03, "white"), (0.0, "pool")):
            if value == "rectangular":
                s.rect(0.5, 0.52, 0.56 + 2 * grow, 0.3 + 2 * grow, material)
            elif value == "oval":
                s.disc(0.5, 0.52, 0.18 + grow, material, aspect=1.6)
            elif value == "kidney-shaped":
                t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
                bean = np.stack([0.3 * np.cos(t), 0.16 * np.sin(t) + 0.16 * np.cos(t) ** 2 - 0.06], 1)
                s.polygon(bean * (1 + grow / 0.2) + (0.5, 0.52), material)
            else:  # an L
                s.rect(0.42, 0.52, 0.4 + 2 * grow, 0.18 + 2 * grow, material)
                s.rect(0.66, 0.48, 0.18 + 2 * grow, 0.36 + 2 * grow, material)
    for x in (0.2, 0.3, 0.7):
        s.rect(x, 0.82, 0.035, 0.08, "white", z=0.01)


def river(s, r, value):
    """Water between sandy banks, curved or straight."""
    s.ground = str(r.choice(["field", "grass", "soil"]))
    x = np.linspace(-0.6, 1.6, 40)
    bend = r.uniform(0.16, 0.26) * np.sin(x * r.uniform(4.5, 6.5) + r.uniform(0, 6)) if value != "straight" else 0 * x
    s.trees(16)
    line = np.stack([x, 0.5 + bend], 1)
    with s.item("river"):
        s.path(line, r.uniform(0.24, 0.3), "sand")
        s.path(line, r.uniform(0.18, 0.22), "water")


def intersection(s, r, value):
    """Two roads that cross."""
    s.ground = str(r.choice(["grass", "concrete"]))
    for x, y in ((0.1, 0.1), (0.9, 0.1), (0.1, 0.9), (0.9, 0.9)):
        _house(s, x, y, 0.24, 0.24, 0.0)
    a = r.uniform(-0.12, 0.12)
    for points in ([(-1, 0.5), (2, 0.5)], [(0.5 - a, -1), (0.5 + a, 2)]):
        _road(s, points, 0.24, mark="gold")
    s.rect(0.5, 0.5, 0.24, 0.24, "asphalt")
    for d in (-0.16, 0.16):
        s.rect(0.5 + d, 0.5, 0.02, 0.22, "paint")
        s.rect(0.5, 0.5 + d, 0.22, 0.02, "paint")
    _traffic(s, 4, 0.24)


def closed_road(s, r, value):
    """A road that ends in a round."""
    s.ground = "grass"
    s.path([(0.5, 0.45), (0.5, 2)], 0.13, "asphalt")
    s.disc(0.5, 0.42, 0.24, "asphalt")
    if r.random() < 0.5:
        s.disc(0.5, 0.42, 0.09, "grass")
    for a in np.linspace(-2.4, 2.4, 6):
        _house(s, 0.5 + 0.46 * math.sin(a), 0.42 - 0.46 * math.cos(a), 0.16, 0.14, a)
    for x in r.uniform(0.35, 0.65, 2):
        s.car(x, r.uniform(0.3, 0.5), r.uniform(0, 3))
