"""Scenes of flat shapes seen from above, painted as a photograph, a sketch, a cartoon or an archive print.

A scene is a list of polygons in tile units (0..1, y down) with a material and a height. Painting draws the index of the topmost
shape and the shadows at twice the size, looks colours up, and halves: one scene, many styles.
"""

import functools
import math
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter

MATERIALS = {  # name: colour, kind, contrast of its texture
    "grass": ((96, 122, 66), "plant", 0.16), "field": ((142, 142, 84), "plant", 0.16), "tree": ((52, 86, 46), "plant", 0.34),
    "bush": ((92, 98, 58), "plant", 0.3), "fairway": ((122, 158, 84), "plant", 0.08), "soil": ((158, 128, 96), "ground", 0.2),
    "sand": ((218, 198, 158), "ground", 0.1), "gravel": ((172, 166, 154), "ground", 0.22), "clay": ((178, 112, 78), "ground", 0.08),
    "asphalt": ((96, 96, 100), "paved", 0.08), "concrete": ((184, 182, 174), "paved", 0.08), "tarmac": ((132, 132, 134), "paved", 0.08),
    "water": ((46, 82, 108), "water", 0.1), "pool": ((70, 186, 208), "pool", 0.06), "foam": ((232, 238, 236), "water", 0.1),
    "sewage": ((74, 84, 66), "pool", 0.1), "white": ((238, 238, 236), "built", 0.04), "gray": ((142, 142, 144), "built", 0.05),
    "black": ((48, 48, 52), "built", 0.05), "purple": ((118, 62, 148), "built", 0.05), "blue": ((58, 98, 172), "built", 0.05),
    "brown": ((134, 92, 62), "built", 0.06), "green": ((66, 128, 84), "built", 0.05), "red": ((178, 66, 54), "built", 0.05),
    "yellow": ((236, 204, 62), "built", 0.04), "orange": ((222, 132, 58), "built", 0.05), "panel": ((42, 52, 92), "built", 0.08),
    "roof": ((168, 104, 82), "built", 0.1), "slate": ((112, 112, 122), "built", 0.1), "metal": ((204, 206, 208), "built", 0.05),
    "paint": ((240, 240, 238), "mark", 0.02), "gold": ((230, 190, 60), "mark", 0.02), "line": ((70, 70, 74), "mark", 0.02),
}  # fmt: skip
CONTEXTS = {  # what a season or surface does to each kind: (colour, share of it)
    "autumn": {"plant": ((196, 122, 44), 0.75), "ground": ((176, 108, 48), 0.4), "paved": ((168, 108, 56), 0.3)},
    "snow": {"plant": ((234, 238, 244), 0.85), "ground": ((236, 240, 246), 0.85), "paved": ((214, 220, 228), 0.6), "built": ((240, 242, 246), 0.3)},
    "desert": {"plant": ((216, 186, 136), 0.85), "ground": ((222, 192, 142), 0.8), "paved": ((206, 182, 142), 0.45)},
    "flood": {"plant": ((104, 94, 76), 0.85), "ground": ((112, 100, 80), 0.85), "paved": ((108, 98, 82), 0.7)},
    "dusk": {},  # a matter of light
}
STYLES = ("photo", "sketch", "cartoon", "archive")
SHADOW = 0.5


@dataclass
class Shape:
    points: np.ndarray  # n 2, tile units
    material: str
    height: float  # tile units; throws a shadow
    item: int  # index into Scene.items, -1: none


class Scene:
    """Shapes in the order they are drawn; `items` names the objects that have a box."""

    def __init__(self, rng: np.random.Generator, ground: str = "grass"):
        self.rng, self.ground, self.zoom = rng, ground, (0.85, 1.15)
        self.shapes: list[Shape] = []
        self.items: list[str] = []
        self._item = -1

    @contextmanager
    def item(self, name: str):
        """What is drawn within is one object of this name."""
        self.items.append(name)
        self._item = len(self.items) - 1
        yield
        self._item = -1

    def polygon(self, points: ArrayLike, material: str, z: float = 0.0) -> None:
        """A polygon of this material, z above the ground."""
        self.shapes.append(Shape(np.asarray(points, float), material, z, self._item))

    def rect(self, x: float, y: float, w: float | int, h: float | int, material: str, *, a: float = 0.0, z: float = 0.0) -> None:
        """A rectangle around (x, y), turned by a radians."""
        corners = np.array([[-w, -h], [w, -h], [w, h], [-w, h]]) / 2
        self.polygon(_turned(corners, a) + (x, y), material, z)

    def disc(self, x: float, y: float, r: float, material: str, *, z: float = 0.0, aspect: float = 1.0, a: float = 0.0) -> None:
        """A disc, or with an aspect an ellipse whose axis along a is the longer."""
        t = np.linspace(0, 2 * math.pi, 24 if r > 0.04 else 10, endpoint=False)
        self.polygon(_turned(r * np.stack([aspect * np.cos(t), np.sin(t)], 1), a) + (x, y), material, z)

    def blob(self, x: float, y: float, r: float, material: str, *, z: float = 0.0, rough: float = 0.25) -> None:
        """A rounded patch without corners."""
        t = np.linspace(0, 2 * math.pi, 20, endpoint=False)
        wave = sum(self.rng.normal() / k * np.cos(k * t + self.rng.uniform(0, 6.3)) for k in (2, 3, 4))
        radius = r * np.clip(1 + rough * wave, 0.4, 1.7)
        self.polygon(np.stack([radius * np.cos(t), radius * np.sin(t)], 1) + (x, y), material, z)

    def path(self, points: ArrayLike, width: float, material: str, *, z: float = 0.0) -> None:
        """A line of some width along the points."""
        p = np.asarray(points, float)
        d = np.gradient(p, axis=0)
        n = np.stack([-d[:, 1], d[:, 0]], 1) / np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-9) * width / 2
        self.polygon(np.concatenate([p + n, (p - n)[::-1]]), material, z)

    def trees(self, n: int, *, r: tuple[float, float] = (0.025, 0.06), keep_out: float = 0.0) -> None:
        """n trees anywhere, but for a disc of this radius in the middle."""
        for x, y in self.rng.uniform(-0.2, 1.2, (n, 2)):
            if math.hypot(x - 0.5, y - 0.5) > keep_out:
                self.disc(x, y, self.rng.uniform(*r), "tree", z=0.03)

    def car(self, x: float, y: float, a: float, size: float = 0.07) -> None:
        """A car whose length along a is `size`."""
        self.rect(x, y, size, size * 0.5, str(self.rng.choice(["white", "gray", "black", "red", "blue", "metal"])), a=a, z=0.01)

    def move(self, *, turn: float = 0.0, zoom: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> None:
        """Turn and scale all about the middle, then shift."""
        for shape in self.shapes:
            shape.points = zoom * _turned(shape.points - 0.5, turn) + 0.5 + shift

    def boxes(self) -> list[tuple[str, tuple[float, float, float, float]]]:
        """Name and (left, top, right, bottom) in tile units of each object that is in sight."""
        found = []
        for i, name in enumerate(self.items):
            own = np.concatenate([s.points for s in self.shapes if s.item == i]).clip(0, 1)
            (left, top), (right, bottom) = own.min(0), own.max(0)
            if right - left > 0.02 and bottom - top > 0.02:
                found.append((name, (left, top, right, bottom)))
        return found


def _turned(points: np.ndarray, a: float) -> np.ndarray:
    return points @ np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])


@functools.cache
def _noise(side: int) -> np.ndarray:
    """Two octaves of smooth noise of unit deviation, twice as wide as a tile, to be cut from anywhere."""
    rng = np.random.default_rng(7)
    total = np.zeros((2 * side, 2 * side), np.float32)
    for cells, weight in ((side // 2, 0.6), (side // 8, 0.5)):
        small = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
        total += weight * np.asarray(small.resize((2 * side, 2 * side), Image.Resampling.BICUBIC))
    return total / total.std()


def paint(scene: Scene, size: int, rng: np.random.Generator, *, style: str = "photo", context: str | None = None) -> np.ndarray:
    """The scene as uint8 "3 size size"; light, texture and colours are drawn from `rng`."""
    if style not in STYLES:
        raise ValueError(f"style: expected one of {', '.join(STYLES)}, found {style!r}")
    if context is not None and context not in CONTEXTS:
        raise ValueError(f"context: expected one of {', '.join(CONTEXTS)}, found {context!r}")
    side = 2 * size
    index, shade = _drawn(scene, side, rng)
    colour, contrast = _colours(scene, rng, context)
    if style == "cartoon":
        image = _cartoon(index, shade, colour)
    elif style == "sketch":
        image = _sketch(index, shade, colour, rng)
    else:
        dx, dy = rng.integers(0, side, 2)
        texture = _noise(side)[dy : dy + side, dx : dx + side]
        image = colour[index] * (1 + contrast[index] * texture)[..., None]
        image *= 1 - SHADOW * shade[..., None]
        light = 0.42 if context == "dusk" else rng.uniform(0.85, 1.12)
        cast = np.array([0.8, 0.9, 1.25]) if context == "dusk" else rng.uniform(0.95, 1.05, 3)
        image = light * cast * image
    image = image.reshape(size, 2, size, 2, 3).mean((1, 3))
    if style == "archive":
        image = _archive(image, rng)
    elif style == "photo":
        image += rng.normal(0, 3, image.shape)
    return image.clip(0, 255).astype(np.uint8).transpose(2, 0, 1)


def _drawn(scene: Scene, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Index of the topmost shape (0: the ground) and the shadow mask, both "side side"."""
    top, shadow = Image.new("I", (side, side), 0), Image.new("L", (side, side), 0)
    on_top, on_shadow = ImageDraw.Draw(top), ImageDraw.Draw(shadow)
    sun = rng.uniform(0, 2 * math.pi)
    offset = side * np.array([math.cos(sun), math.sin(sun)])
    for i, shape in enumerate(scene.shapes, 1):
        points = shape.points * side
        if shape.height:
            on_shadow.polygon((points + shape.height * offset).ravel().tolist(), fill=1)
        flat = points.ravel().tolist()
        on_shadow.polygon(flat, fill=0)
        on_top.polygon(flat, fill=i)
    return np.asarray(top), np.asarray(shadow, np.float32)


def _colours(scene: Scene, rng: np.random.Generator, context: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Colour "n 3" and texture contrast "n" of the ground and each shape; shapes of one material share the tile's shift of its colour."""
    names = [scene.ground] + [s.material for s in scene.shapes]
    shift = {name: rng.normal(0, 9) + rng.normal(0, 3.5, 3) for name in sorted(set(names))}
    colour = np.array([MATERIALS[name][0] + shift[name] for name in names]) + rng.normal(0, 4, (len(names), 1))
    for i, name in enumerate(names):
        tint = CONTEXTS.get(context, {}).get(MATERIALS[name][1])
        if tint is not None:
            colour[i] += tint[1] * (tint[0] - colour[i])
    return colour, np.array([MATERIALS[name][2] for name in names], np.float32)


def _edges(index: np.ndarray, colour: np.ndarray, least: float) -> np.ndarray:
    """How strongly colours change between neighbouring pixels, 0..1."""
    flat = colour[index]
    edge = np.zeros(index.shape, np.float32)
    edge[:, 1:] = np.abs(np.diff(flat, axis=1)).sum(2)
    edge[1:] = np.maximum(edge[1:], np.abs(np.diff(flat, axis=0)).sum(2))
    return (edge / least).clip(0, 1)


def _cartoon(index: np.ndarray, shade: np.ndarray, colour: np.ndarray) -> np.ndarray:
    gray = colour.mean(1, keepdims=True)
    flat = (gray + 1.9 * (colour - gray) + 18).clip(0, 255)[index] * (1 - 0.35 * shade[..., None])
    return flat * (1 - _edges(index, colour, 40.0)[..., None])


def _sketch(index: np.ndarray, shade: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    line = np.asarray(Image.fromarray((255 * _edges(index, colour, 90.0)).astype(np.uint8)).filter(ImageFilter.MaxFilter(3))) / 255
    y, x = np.indices(index.shape)
    hatch = 0.45 * shade * ((x + y) % 5 < 2)
    pencil = np.maximum(line * rng.uniform(0.7, 1.0), hatch)
    paper = rng.uniform(225, 250) + rng.normal(0, 4, index.shape)
    return np.repeat((paper * (1 - 0.85 * pencil))[..., None], 3, axis=2)


def _archive(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    gray = Image.fromarray(image.mean(2).clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.5 * len(image) / 64))
    tone = 34 + 0.85 * np.asarray(gray, float) + rng.normal(0, 9, gray.size)
    y, x = np.indices(gray.size) / len(image) - 0.5
    tone *= 1.08 - 0.9 * (x**2 + y**2)
    return tone[..., None] * np.array([1.04, 0.96, 0.80])
