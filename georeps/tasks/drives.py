"""The embedded city for visual place recognition: drives along its streets, written as the field's trees are.

    root = drives.tree(tiles=8)        images/{train,val,test}/{database,queries*}/@<east>@<north>@...@<heading>@...@<note>@.jpg
    test = vpr.part(root, "test", queries="queries_night")

A drive is one passage of a camera car through every street: its own lane, positions, daylight, season and state of construction. Training,
validation and test cities differ; of a test city one drive is the database, and others, by condition, are the queries. Positions are
in the city's metres; the places are imaginary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from georeps.core import cache
from georeps.readers import vpr
from georeps.worlds import city
from georeps.worlds.city import plan, street
from georeps.worlds.city.scene import Moment

TRAIN_CITIES, VAL_CITIES, TEST_CITIES = city.TRAIN_CITIES, (7, 8), city.TEST_CITIES
ZONE = "10S"  # UTM, of every city
EDGE = 30.0  # metres from the city's edge where no picture is taken
FOV = 90.0  # degrees that a view spans, both ways
BRIGHT, GAIN = 80.0, 4.0  # mean brightness that a camera aims at in the dark, and how far it can go
TRAINING = (  # when the drives of the training cities took place
    Moment(), Moment(season="autumn", traffic=1), Moment(season="winter", daylight="dusk", traffic=2), Moment(construction=0.15, traffic=3),
)  # fmt: skip
CONDITIONS = {  # queries_<name>: of a drive one day later, and of drives under harder conditions
    "day": Moment(traffic=5), "night": Moment(daylight="night", traffic=6), "winter": Moment(season="winter", traffic=7),
    "construction": Moment(construction=0.4, traffic=8),
}  # fmt: skip


@dataclass(frozen=True)
class Cameras:
    """Where views are taken: metres east and north of the city's corner, degrees clockwise from north."""

    position: Float[np.ndarray, "n 2"]
    heading: Float[np.ndarray, " n"]


def cameras(number: int, *, tiles: int, step: float, drive: int, views: int = 4) -> Cameras:
    """The views of one drive through city `number`: at every `step` metres of every street, `views` equally spaced from the street's direction.

    The lane of each street, the first position in it and a few degrees and decimetres everywhere are drawn from (number, drive).
    """
    if tiles < 4 or step < plan.STREET_STEP or not 1 <= views <= 12:
        raise ValueError(f"tiles, step, views: expected tiles >= 4, step >= {plan.STREET_STEP:g} metres and 1..12 views, found {tiles}, {step} and {views}")
    rng = np.random.default_rng([number, drive, 17])
    drawn, position, heading = city.plan_of(number, tiles), [], []
    for line, half in drawn.streets:
        lane = rng.choice((-1, 1))
        along = np.arange(rng.uniform(0, step), _lengths(line)[-1], step)
        xy, direction = _walk(line, along)
        right = np.stack([direction[:, 1], -direction[:, 0]], axis=1)
        position.append(xy + lane * right * half / 2.6 + rng.normal(0, 0.3, xy.shape))
        turned = np.degrees(np.arctan2(direction[:, 0], direction[:, 1])) + (180 if lane < 0 else 0)
        heading.append(turned + rng.normal(0, 3, len(turned)))
    position, heading = np.concatenate(position), np.concatenate(heading)
    inside = ((position > EDGE) & (position < drawn.side - EDGE)).all(axis=1)
    turns = np.arange(views) * 360 / views
    return Cameras(position[inside].repeat(views, 0), ((heading[inside, None] + turns) % 360).ravel())


def pictures(number: int, where: Cameras, moment: Moment, *, tiles: int, size: int, seed: int) -> np.ndarray:
    """The views, uint8 "n 3 size size", as a camera exposes them: what is dark is lit up, at most `GAIN` times."""
    seen = street.panoramas(
        city.scene_of(number, tiles, moment), where.position, size=(size, size), heading=where.heading, elevation=(-0.3 * FOV, 0.7 * FOV), fov=FOV, seed=seed
    ).numpy()
    gain = np.clip(BRIGHT / seen.mean(axis=(1, 2, 3), keepdims=True).clip(1), 1, GAIN)
    return np.clip(seen * gain, 0, 255).astype(np.uint8)


def export(
    root: Path | str, *, tiles: int = 8, size: int = 64, step: float = 5.0, drives: int = 3, queries: int = 200, conditions: Sequence[str] = tuple(CONDITIONS)
) -> None:
    """Write the tree: `drives` of the training cities at every `step` metres, a database at twice the step, `queries` views a condition and city."""
    root = Path(root) / "images"
    unknown = set(conditions) - set(CONDITIONS)
    if unknown or not 1 <= drives <= len(TRAINING):
        raise ValueError(f"conditions, drives: expected some of {', '.join(CONDITIONS)} and 1..{len(TRAINING)} drives, found {list(conditions)} and {drives}")
    for number in TRAIN_CITIES:
        for drive, moment in enumerate(TRAINING[:drives]):
            where = cameras(number, tiles=tiles, step=step, drive=drive)
            _write(root / "train", number, where, moment, tiles=tiles, size=size, note=f"drive{drive}", seed=drive)
    for part, numbers in (("val", VAL_CITIES), ("test", TEST_CITIES)):
        for number in numbers:
            where = cameras(number, tiles=tiles, step=2 * step, drive=10)
            _write(root / part / "database", number, where, Moment(), tiles=tiles, size=size, note="database", seed=10)
            for condition in conditions:
                drive = 11 + list(CONDITIONS).index(condition)
                where = _some(cameras(number, tiles=tiles, step=step, drive=drive), queries, [number, drive, 18])
                _write(root / part / f"queries_{condition}", number, where, CONDITIONS[condition], tiles=tiles, size=size, note=condition, seed=drive)


def tree(**options) -> Path:
    """The folder of `export`, with its options, written once."""
    return cache.stored("drives", {"version": cache.code(__name__, libraries=("pillow",)), **options}, lambda folder: export(folder, **options))


def _write(folder: Path, number: int, where: Cameras, moment: Moment, *, note: str, **options) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    seen = pictures(number, where, moment, tiles=options["tiles"], size=options["size"], seed=1000 * number + options["seed"])
    month = {"summer": "07", "autumn": "10", "winter": "01"}[moment.season]
    for i, (position, heading, pixels) in enumerate(zip(where.position, where.heading, seen, strict=True)):
        east, north = position[0] + number * city.APART, position[1]
        name = vpr.Name(float(east), float(north), ZONE, f"c{number}{note}{i:05d}", float(heading), f"2026{month}", note)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / vpr.file_name(name), quality=95, subsampling=0)


def _some(where: Cameras, n: int, key: list[int]) -> Cameras:
    if not 1 <= n <= len(where.heading):
        raise ValueError(f"queries: expected 1..{len(where.heading)} (the views of a drive), found {n}")
    chosen = np.random.default_rng(key).permutation(len(where.heading))[:n]
    return Cameras(where.position[chosen], where.heading[chosen])


def _lengths(line: np.ndarray) -> np.ndarray:
    """Metres from the start of a line to each of its points."""
    return np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])


def _walk(line: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of a line and its directions there, `along` metres from its start."""
    length = _lengths(line)
    at = np.clip(np.searchsorted(length, along, side="right") - 1, 0, len(line) - 2)
    leg = line[at + 1] - line[at]
    direction = leg / np.hypot(*leg.T)[:, None]
    return line[at] + direction * (along - length[at])[:, None], direction
