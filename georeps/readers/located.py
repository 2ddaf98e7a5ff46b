"""Images with coordinates, as their owners have them on disk: OSV-5M and the four earth-event lists.

A record holds where each image or event is, what it is called in GeoNames' terms where the data says so, and the image's file or its
published embedding. Coordinates out of range, malformed lines and missing files raise an error that names file and line.
"""

import csv
import io
import json
import math
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from georeps.readers import folders

ADMIN = ("country", "region", "sub-region", "city")  # from the coarse to the fine
MISSING = ("", "nan", "NaN", "None")  # how data sets say that a label is not known
EVENTS = {"volcano": ("volerup.csv", 2), "earthquake": ("quakes_all.csv", 4), "flood": ("flood.csv", 2), "fire": ("fire.csv", 1)}  # header lines


@dataclass(frozen=True)
class Located:
    """n images or events: where they are in degrees, their files or embeddings, their admin labels (None where unknown)."""

    latlon: Float64[Tensor, "n 2"]
    names: list[str]
    files: list[Path] | None = None
    embedding: Float[Tensor, "n d"] | None = None
    labels: dict[str, list[str | None]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)


def coordinates(latitude: str | float | int | None, longitude: str | float | int | None) -> tuple[float, float]:
    """Two numbers as degrees; ValueError says which is not a number or out of range."""
    values = []
    for name, value, most in (("latitude", latitude, 90), ("longitude", longitude, 180)):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"expected a {name} in degrees, found {value!r}") from None
        if not math.isfinite(number) or abs(number) > most:
            raise ValueError(f"expected a {name} in -{most}..{most} degrees, found {value!r}")
        values.append(number)
    return values[0], values[1]


def events(root: Path | str, kind: Literal["volcano", "earthquake", "flood", "fire"]) -> Located:
    """One of the four earth-event lists (latitude,longitude lines after a header) of Mathieu and Nickel (2020)."""
    folders.one_of("kind", kind, EVENTS)
    path = folders.there(Path(root) / EVENTS[kind][0], "the list of events")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if number <= EVENTS[kind][1] or not line.strip():
            continue
        cells = line.split(",")
        if len(cells) != 2:
            raise ValueError(f"{path}, line {number}: expected latitude,longitude, found {line[:60]!r}")
        found.append(_at(path, number, cells[0], cells[1]))
    return Located(torch.tensor(found, dtype=torch.float64).view(-1, 2), [f"{kind} {i}" for i in range(len(found))])


def split(n: int, seed: int, shares: Sequence[float] = (0.8, 0.1, 0.1)) -> list[Tensor]:
    """Indices of train, validation and test, drawn by the seed: the published protocol of the event lists."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    ends = [round(n * sum(shares[: i + 1])) for i in range(len(shares))]
    return [order[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def osv5m(root: Path | str, part: Literal["train", "test"], *, missing: Literal["error", "drop"] = "error") -> Located:
    """OSV-5M's published tree: <part>.csv and images/<part>/<folder>/<id>.jpg, the zip files unpacked."""
    root, path = Path(root), Path(root) / f"{part}.csv"
    names, latlon, labels = [], [], {level: [] for level in ADMIN}
    for number, row in _table(path, ("id", "latitude", "longitude", *(f"unique_{level}" for level in ADMIN))):
        names.append(row["id"])
        latlon.append(_at(path, number, row["latitude"], row["longitude"]))
        for level in ADMIN:
            labels[level].append(None if row[f"unique_{level}"] in MISSING else row[f"unique_{level}"])
    files = {p.stem: p for p in (root / "images" / part).glob("*/*.jpg")}
    lost = [name for name in names if name not in files]
    folders.check_missing(root, lost, missing)
    there = [i for i, name in enumerate(names) if name in files]
    return Located(
        torch.tensor([latlon[i] for i in there], dtype=torch.float64).view(-1, 2), [names[i] for i in there], [files[names[i]] for i in there],
        labels={level: [values[i] for i in there] for level, values in labels.items()}, left_out={"missing": lost},
    )  # fmt: skip


def shards(folder: Path | str, *, embedding: str = "street_clip") -> Located:
    """The published shards (tar files of <id>.json and <id>.<embedding>.npy): coordinates, labels and precomputed features."""
    paths = sorted(Path(folder).glob("*.tar"))
    if not paths:
        raise FileNotFoundError(f"{folder}: expected shards *.tar, found none")
    names, latlon, rows, labels, width = [], [], [], {level: [] for level in ADMIN}, None
    for path in paths:
        for name, parts in _samples(path):
            where = f"{path}, sample {name}"
            for kind in ("json", f"{embedding}.npy"):
                if kind not in parts:
                    raise ValueError(f"{where}: expected {name}.{kind}, found {', '.join(sorted(parts))}")
            told = json.loads(parts["json"])
            vector = np.load(io.BytesIO(parts[f"{embedding}.npy"]), allow_pickle=False).reshape(-1)
            width = width or len(vector)
            if len(vector) != width or not np.isfinite(vector).all():
                raise ValueError(
                    f"{where}: expected a finite embedding of {width} channels, found {len(vector)}, {int((~np.isfinite(vector)).sum())} not finite"
                )
            latlon.append(_at(path, name, told.get("latitude"), told.get("longitude"), "sample"))
            names.append(name)
            rows.append(vector.astype(np.float32))
            for level in ADMIN:
                value = told.get(f"unique_{level}")
                labels[level].append(None if value is None or str(value) in MISSING else str(value))
    if not names:
        raise ValueError(f"{folder}: expected samples in the shards, found {len(paths)} empty ones")
    return Located(torch.tensor(latlon, dtype=torch.float64), names, embedding=torch.from_numpy(np.stack(rows)), labels=labels)


def admin_accuracy(found: Sequence[str | None], true: Sequence[str | None], *, unlabelled: Literal["left out", "wrong"] = "left out") -> tuple[float, int]:
    """Share of places whose name is right, and over how many. A place without a label is left out, or, as published code counts, wrong."""
    folders.one_of("unlabelled", unlabelled, ("left out", "wrong"))
    kept = [(f, t) for f, t in zip(found, true, strict=True) if t is not None or unlabelled == "wrong"]
    return (sum(t is not None and f == t for f, t in kept) / len(kept) if kept else math.nan), len(kept)


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Consecutive files of a shard that share a name before the first dot."""
    name, parts = None, {}
    with tarfile.open(path) as shard:
        for member in shard:
            if member.isfile():
                own, _, kind = Path(member.name).name.partition(".")
                if name not in (None, own):
                    yield name, parts
                    parts = {}
                name = own
                parts[kind] = shard.extractfile(member).read()
    if name is not None:
        yield name, parts


def _table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV with their line numbers; it must have the columns."""
    with open(folders.there(path, f"a table with columns {', '.join(columns[:3])}, ..."), newline="", encoding="utf-8") as handle:
        rows = csv.DictReader(handle)
        lacking = [c for c in columns if c not in (rows.fieldnames or ())]
        if lacking:
            raise ValueError(f"{path}, line 1: expected columns {', '.join(columns)}, found none named {', '.join(lacking)}")
        for row in rows:
            if None in row or None in row.values():
                raise ValueError(f"{path}, line {rows.line_num}: expected {len(rows.fieldnames)} columns, found another number")
            yield rows.line_num, row


def _at(path: Path, number: int | str, latitude: str | float | int | None, longitude: str | float | int | None, what: str = "line") -> tuple[float, float]:
    try:
        return coordinates(latitude, longitude)
    except ValueError as error:
        raise ValueError(f"{path}, {what} {number}: {error}") from None
