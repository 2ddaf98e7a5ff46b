"""The 19 classes of PatternNet that PatternCom asks nothing about: the rest of the gallery.

Several carry the words of an attribute (a purple container, a sparse forest), so that a language model can learn the words elsewhere than
on the classes of the benchmark.
"""

import math

import numpy as np

from georeps.worlds.patterns.aerial import NUMBERS, _boat, _road


def baseball_field(s, r, value):
    """A fan of turf with its clay diamond."""
    s.ground = "grass"
    t = np.linspace(-math.pi / 4, math.pi / 4, 12)
    fan = np.stack([np.sin(t), -np.cos(t)], 1)
    corner = np.array([0.5, 0.86])
    with s.item("baseball field"):
        s.polygon(np.concatenate([[corner], corner + 0.9 * fan]), "fairway")
        s.polygon(np.concatenate([[corner + (0, 0.04)], corner + 0.46 * fan]), "clay")
        s.rect(0.5, 0.65, 0.24, 0.24, "fairway", a=math.pi / 4)
        s.disc(0.5, 0.65, 0.035, "clay")
        for x, y in ((0.5, 0.84), (0.66, 0.66), (0.5, 0.49), (0.34, 0.66)):
            s.rect(x, y, 0.03, 0.03, "paint", a=math.pi / 4)


def beach(s, r, value):
    """Sand, foam and umbrellas."""
    s.ground = "sand"
    x = np.linspace(-1, 2, 40)
    for dy, material in ((0.0, "foam"), (0.05, "water"), (0.16, "foam"), (0.19, "water")):
        shore = 0.5 + dy + 0.03 * np.sin(8 * x + 20 * dy) + 0.02 * np.sin(17 * x)
        s.polygon(np.concatenate([np.stack([x, shore], 1), [(2, 3), (-1, 3)]]), material)
    for px, py in zip(r.uniform(-0.1, 1.1, 14), r.uniform(-0.05, 0.42, 14), strict=True):
        s.disc(px, py, 0.022, str(r.choice(["red", "blue", "yellow", "white"])), z=0.015)
    if value == "with boats":
        for px in r.uniform(0.1, 0.9, 3):
            _boat(s, px, r.uniform(0.75, 0.95), 0.16, r.uniform(0, 6))


def cemetery(s, r, value):
    """Rows of small stones."""
    s.ground = "grass"
    _road(s, [(-1, 0.5), (2, 0.5)], 0.07, "concrete", None)
    for y in np.arange(-0.3, 1.35, 0.075):
        for x in np.arange(-0.3, 1.35, 0.06):
            if abs(y - 0.5) > 0.06 and r.random() < (0.95 if value == "dense" else 0.6):
                s.rect(x, y, 0.022, 0.036, str(r.choice(["white", "gray"])), z=0.01)
    s.trees(5)


def chaparral(s, r, value):
    """Bushes on dry soil."""
    s.ground = str(r.choice(["soil", "sand"]))
    for x, y in r.uniform(-0.3, 1.3, (45 if value == "sparse" else 190, 2)):
        s.blob(x, y, r.uniform(0.015, 0.04), "bush", z=0.012)


def christmas_tree_farm(s, r, value):
    """Small trees in a grid."""
    s.ground = str(r.choice(["field", "soil"]))
    step = 0.16 if value == "sparse" else 0.095
    for y in np.arange(-0.4, 1.4, step):
        for x in np.arange(-0.4, 1.4, step * 0.8):
            if r.random() < 0.95:
                s.disc(x, y, 0.028, "tree", z=0.03)


def coastal_mansion(s, r, value):
    """A villa with wings by the shore."""
    s.ground = "grass"
    x = np.linspace(-1, 2, 30)
    for dy, material in ((0.0, "sand"), (0.07, "foam"), (0.09, "water")):
        s.polygon(np.concatenate([np.stack([x, 0.68 + dy + 0.03 * np.sin(9 * x)], 1), [(2, 3), (-1, 3)]]), material)
    s.trees(10, keep_out=0.4)
    s.rect(0.5, 0.98, 3.0, 0.3, "water")
    roof = value or str(r.choice(["roof", "slate"]))
    with s.item("mansion"):
        s.rect(0.5, 0.34, 0.5, 0.2, roof, z=0.06)
        for x0 in (0.3, 0.7):
            s.rect(x0, 0.42, 0.14, 0.3, roof, z=0.06)
        s.rect(0.5, 0.34, 0.5, 0.012, "line")
    s.rect(0.5, 0.54, 0.2, 0.08, "pool")


def football_field(s, r, value):
    """Turf with yard lines and coloured end zones."""
    s.ground = "grass"
    low = 0.5 if value == "half" else 0.06
    s.disc(0.5, 0.5, 0.5, "clay", aspect=1.05, a=math.pi / 2)
    with s.item("football field"):
        turf = value if value in ("green", "brown", "blue", "red") else "fairway"
        s.rect(0.5, 0.5, 0.52, 0.88, turf)
        for y in np.linspace(0.06, 0.94, 11):
            if y >= low - 0.01:
                s.rect(0.5, y, 0.52, 0.012, "paint")
        for x in (0.24, 0.76):
            s.rect(x, 0.5, 0.012, 0.88, "paint")
        for y in (0.1, 0.9):
            s.rect(0.5, y, 0.52, 0.08, str(r.choice(["red", "blue", "orange"])))
    if value == "half":
        s.move(zoom=1.5, shift=(0.0, -0.3))


def forest(s, r, value):
    """Crowns of trees."""
    s.ground = "field" if value == "sparse" else "tree"
    n = 26 if value == "sparse" else 170
    for x, y in r.uniform(-0.3, 1.3, (n, 2)):
        s.blob(x, y, r.uniform(0.05, 0.09), "tree", z=0.03, rough=0.15)
        s.disc(x - 0.01, y - 0.01, 0.025, "bush")


def freeway(s, r, value):
    """Two carriageways of four lanes."""
    s.ground = str(r.choice(["field", "grass"]))
    x = np.linspace(-0.8, 1.8, 40)
    bend = 0.14 * np.sin(2.6 * x) if value == "curved" else 0 * x
    for side in (-0.16, 0.16):
        s.path(np.stack([x, 0.5 + side + bend], 1), 0.24, "concrete" if value == "concrete" else "asphalt")
        for lane in (-0.1, -0.035, 0.035, 0.1):
            s.path(np.stack([x, 0.5 + side + lane + bend], 1), 0.01, "paint")
    if value != "without cars":
        for i in r.choice(40, 9, replace=False):
            s.car(x[i], 0.5 + r.choice([-0.23, -0.16, -0.09, 0.09, 0.16, 0.23]) + bend[i], 0.0)


def golf_course(s, r, value):
    """Fairways with sand bunkers."""
    s.ground = "grass"
    s.trees(26, r=(0.03, 0.06))
    s.path([(-0.5, 0.9), (0.2, 0.7), (0.5, 0.45), (1.5, 0.2)], 0.3, "fairway")
    s.blob(0.55, 0.42, 0.16, "fairway")
    for x, y in ((0.3, 0.42), (0.78, 0.52), (0.52, 0.72)):
        if value == "oval":
            s.disc(x, y, 0.06, "sand", aspect=1.7, a=r.uniform(0, 3))
        elif value == "kidney-shaped":
            t = np.linspace(0, 2 * math.pi, 24, endpoint=False)
            s.polygon(0.35 * np.stack([0.3 * np.cos(t), 0.16 * np.sin(t) + 0.16 * np.cos(t) ** 2], 1) + (x, y), "sand")
        else:
            s.blob(x, y, 0.07, "sand")
    if value == "water":
        s.blob(0.25, 0.2, 0.17, "water")


def mobile_home_park(s, r, value):
    """Slanted rows of long thin roofs."""
    s.ground = str(r.choice(["grass", "gravel"]))
    roof = value or "white"
    for y in (0.16, 0.84):
        s.rect(0.5, y + 0.34 * (1 if y < 0.5 else -1), 3, 0.1, "asphalt")
        for x in np.arange(-0.4, 1.4, 0.15):
            s.rect(x, y, 0.075, 0.26, roof if r.random() < 0.85 else "gray", a=0.25, z=0.03)


def oil_gas_field(s, r, value):
    """Small pads joined by thin tracks."""
    s.ground = str(r.choice(["soil", "sand", "field"]))
    pads = r.uniform(0, 1, (7, 2))
    for p, q in zip(pads, np.roll(pads, 1, axis=0), strict=True):
        s.path([p, q], 0.018, "sand" if s.ground != "sand" else "gravel")
    for x, y in pads:
        s.rect(x, y, 0.11, 0.11, "gravel", a=r.uniform(0, 1.5))
        s.rect(x, y, 0.025, 0.025, "line", z=0.01)


def oil_well(s, r, value):
    """A pumpjack on its pad."""
    s.ground = str(r.choice(["soil", "sand", "field"]))
    n = NUMBERS.get(value) or 1
    for k in range(n):
        x, y = 0.5 + 0.27 * (k - (n - 1) / 2), 0.5
        s.rect(x, y, 0.25, 0.6, "gravel")
        with s.item("pumpjack"):
            s.rect(x, y, 0.12, 0.2, "concrete")
            s.rect(x, y, 0.03, 0.44, str(r.choice(["black", "red"])), z=0.05)
            s.rect(x, y - 0.2, 0.075, 0.07, "black", z=0.05)
            s.rect(x, y + 0.17, 0.1, 0.05, "gray", z=0.03)


def railway(s, r, value):
    """Three tracks with sleepers."""
    s.ground = str(r.choice(["field", "grass"]))
    x = np.linspace(-0.8, 1.8, 60)
    bend = 0.12 * np.sin(2.8 * x) if value == "curved" else 0 * x
    for side in (-0.17, 0.0, 0.17):
        s.path(np.stack([x, 0.5 + side + bend], 1), 0.13, "gravel")
        for i in range(60):
            s.rect(x[i], 0.5 + side + bend[i], 0.014, 0.09, "brown")
        for rail in (-0.03, 0.03):
            s.path(np.stack([x, 0.5 + side + rail + bend], 1), 0.012, "line")
    if r.random() < 0.4 and value != "curved":
        for k in range(4):
            s.rect(0.1 + 0.27 * k, 0.33, 0.25, 0.075, "metal", z=0.03)


def runway(s, r, value):
    """A wide strip with a dashed middle."""
    s.ground = str(r.choice(["grass", "field"]))
    s.rect(0.5, 0.5, 4.0, 0.32, "tarmac")
    for x in np.arange(-1, 2, 0.16):
        s.rect(x, 0.5, 0.09, 0.018, "paint")
    for y in (0.36, 0.64):
        s.rect(0.5, y, 4.0, 0.012, "paint")
    s.path([(0.8, 0.5), (1.1, 1.6)], 0.13, "tarmac")


def runway_marking(s, r, value):
    """Threshold stripes, or a cross, from near."""
    s.ground = "tarmac"
    material = "yellow" if value == "yellow" else "paint"
    with s.item("runway marking"):
        if value == "cross":
            for a in (math.pi / 4, -math.pi / 4):
                s.rect(0.5, 0.5, 0.9, 0.12, material, a=a)
        else:
            for x in (0.16, 0.26, 0.36, 0.64, 0.74, 0.84):
                s.rect(x, 0.3, 0.055, 0.44, material)
            s.rect(0.5, 0.62, 0.9, 0.025, material)
            s.path([(0.4, 0.95), (0.5, 0.72), (0.6, 0.95)], 0.035, material)


def shipping_yard(s, r, value):
    """Stacks of containers."""
    s.ground = "concrete"
    colours = [value] * 3 if value else ["red", "blue", "orange", "green", "white", "brown"]
    for x in (-0.2, 0.1, 0.4, 0.7, 1.0, 1.3):
        for y in np.arange(-0.4, 1.4, 0.062):
            if r.random() < 0.9:
                s.rect(x, y, 0.22, 0.052, str(r.choice(colours)), z=0.04)


def solar_panel(s, r, value):
    """Rows of dark panels."""
    s.ground = str(r.choice(["soil", "grass", "gravel"]))
    for y in np.arange(-0.5, 1.5, 0.2):
        s.rect(0.5, y, 3.0, 0.13, "panel", z=0.02)
        s.rect(0.5, y, 3.0, 0.01, "metal")
        for x in np.arange(-0.5, 1.5, 0.11):
            s.rect(x, y, 0.01, 0.13, "metal")


def transformer_station(s, r, value):
    """Gantries and boxes on gravel."""
    s.ground = "gravel"
    s.rect(0.5, 0.9, 1.6, 0.1, "asphalt")
    for x in np.arange(0.1, 1.0, 0.2):
        s.rect(x, 0.42, 0.02, 0.7, "metal", z=0.05)
    for y in (0.14, 0.42, 0.7):
        s.rect(0.5, y, 0.95, 0.016, "metal", z=0.05)
        for x in np.arange(0.1, 0.95, 0.1):
            s.rect(x, y + 0.08, 0.04, 0.06, str(r.choice(["gray", "slate", "white"])), z=0.03)
