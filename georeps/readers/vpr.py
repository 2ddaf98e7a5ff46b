"""Visual place recognition as it lies on disk: views whose names say where they were taken (the layout of CosPlace and its benchmark).

    @east@north@zone@letter@latitude@longitude@id@tile@heading@pitch@roll@height@timestamp@note@.jpg     UTM metres; all but the first two may be empty
    <root>/[images/]{train,val,test}/{database,queries...}

That layout serves SF-XL (queries_v1, queries_v2), Pitts30k and Pitts250k, Tokyo 24/7, MSLS, St Lucia, Nordland and a folder of your own. A query
is answered by a view within 25 metres of it.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from georeps.readers import folders, images

FIELDS = 15  # between the @ of a whole name
PUBLISHED = {  # name: database, queries of the part that results are reported on
    "pitts30k": (10_000, 6_816), "tokyo247": (75_984, 315), "msls": (18_871, 740), "nordland*": (27_592, 2_760), "sped": (607, 607),
}  # fmt: skip
NUMBER = re.compile(r"-?\d+(\.\d+)?")
ZONE = re.compile(r"(?:[1-9]|0[1-9]|[1-5]\d|60)[C-HJ-NP-X]|")


class Name(NamedTuple):
    """What a file name says; heading NaN and texts "" where it says nothing."""

    east: float  # UTM metres
    north: float
    zone: str = ""  # number and letter: "10S"
    identity: str = ""
    heading: float = math.nan  # degrees clockwise from north
    timestamp: str = ""  # YYYYMMDD_hhmmss or the first part of it
    note: str = ""


@dataclass(frozen=True)
class Views:
    """n image files and what their names say."""

    files: list[Path]
    position: Float64[Tensor, "n 2"]  # east and north, metres
    zone: list[str]
    heading: Float64[Tensor, " n"]
    identity: list[str]
    note: list[str]
    left_out: list[Path] = field(default_factory=list)  # other files below the folder, which are no images

    def __len__(self) -> int:
        return len(self.files)

    def pick(self, rows: Sequence[int]) -> "Views":
        """Some of the views, in the order of `rows`."""
        rows = [int(r) for r in rows]
        listed = {name: [getattr(self, name)[r] for r in rows] for name in ("files", "zone", "identity", "note")}
        return replace(self, position=self.position[rows], heading=self.heading[rows], **listed)


@dataclass(frozen=True)
class Recognition:
    """`positives[i]` are the rows of the database that answer query i: none for some queries, which count as missed."""

    database: Views
    queries: Views
    positives: list[Int64[Tensor, " _"]]

    @property
    def alone(self) -> list[Path]:
        """The queries that nothing answers."""
        return [f for f, p in zip(self.queries.files, self.positives, strict=True) if not len(p)]


def parse_name(name: str) -> Name:
    """The fields of a file's name, folders left away. Raises ValueError saying which field is not what it should be."""
    cells = name.rpartition("/")[2].split("@")
    if len(cells) < 3 or cells[0] != "":
        raise ValueError(f"expected a name @<east>@<north>@..., found {name!r}")
    cells[-1] = re.sub(r"\.[A-Za-z]+$", "", cells[-1])
    cells = cells[1:] + [""] * (FIELDS - len(cells) + 1)
    for what, cell in (("east", cells[0]), ("north", cells[1])):
        if not NUMBER.fullmatch(cell):
            raise ValueError(f"{what}: expected UTM metres, found {cell!r} in {name!r}")
    zone = cells[2] + cells[3]
    if not ZONE.fullmatch(zone):
        raise ValueError(f"zone: expected a UTM zone and its letter (10, S) or nothing, found {cells[2]!r} and {cells[3]!r} in {name!r}")
    if cells[8] and not NUMBER.fullmatch(cells[8]):
        raise ValueError(f"heading: expected degrees or nothing, found {cells[8]!r} in {name!r}")
    return Name(float(cells[0]), float(cells[1]), zone.lstrip("0"), cells[6], float(cells[8]) % 360 if cells[8] else math.nan, cells[12], cells[13])


def file_name(name: Name) -> str:
    """The inverse of `parse_name`, in the widths of the benchmark's own names: metres to the centimetre, whole degrees."""
    for what, value in (("identity", name.identity), ("timestamp", name.timestamp), ("note", name.note)):
        if "@" in value or "/" in value:
            raise ValueError(f"{what}: expected no @ and no /, found {value!r}")
    zone, letter = (name.zone[:-1].zfill(2), name.zone[-1]) if name.zone else ("", "")
    heading = "" if math.isnan(name.heading) else f"{int(name.heading % 360):03d}"
    cells = [f"{name.east:010.2f}", f"{name.north:010.2f}", zone, letter, "", "", name.identity, "", heading, "", "", "", name.timestamp, name.note]
    return f"@{'@'.join(cells)}@.jpg"


def views(folder: Path | str) -> Views:
    """Every image below a folder, links followed, by name; zones are said by all names or by none.

    Files of other kinds are named in `left_out`, hidden ones passed over.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of views @<east>@<north>@..., found none")
    every = sorted(Path(where) / name for where, _, names in os.walk(folder, followlinks=True) for name in names if not name.startswith("."))
    files = [p for p in every if p.suffix.lower() in images.SUFFIXES]
    other = [p for p in every if p.suffix.lower() not in images.SUFFIXES]
    if not files:
        raise FileNotFoundError(f"{folder}: expected images ({', '.join(images.SUFFIXES)}), found none")
    names = []
    for path in files:
        try:
            names.append(parse_name(path.name))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    zoned = [bool(n.zone) for n in names]
    if any(zoned) and not all(zoned):
        raise ValueError(f"{files[zoned.index(False)]}: expected a UTM zone, as {files[zoned.index(True)].name} has one, found none")
    position = torch.tensor([[n.east, n.north] for n in names], dtype=torch.float64)
    heading = torch.tensor([n.heading for n in names], dtype=torch.float64)
    return Views(files, position, [n.zone for n in names], heading, [n.identity for n in names], [n.note for n in names], other)


def training(root: Path | str) -> Views:
    """The training views: train/database where there is one, else all below train (SF-XL)."""
    folder = _part_folder(root, "train")
    return views(folder / "database" if (folder / "database").is_dir() else folder)


def query_sets(root: Path | str, part: str = "test") -> list[str]:
    """The folders of queries that a part has: "queries", or "queries_v1", "queries_v2", ..."""
    folder = _part_folder(root, part)
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name.startswith("queries"))
    if not found:
        raise FileNotFoundError(f"{folder}: expected a folder queries..., found none")
    return found


def part(
    root: Path | str, part: str = "test", *, queries: str = "queries", metres: float = 25.0, frames: int | None = None, only: Path | str | None = None,
    published: str | None = None,
) -> Recognition:  # fmt: skip
    """A part of a data set, and which database views answer which query: those within `metres`, in the same UTM zone.

    Published evaluations do not look at zones, and so match cities that lie on top of each other (MSLS). With `frames` two views match whose
    identities, or names where these are no numbers, are frame numbers at most so far apart (Nordland, whose official names instead lie 2.4 m apart so
    that 25 m are 10 frames). `only` is a file that lists the queries to keep, an identity or a file name a line: the official 740 of MSLS.
    `published` names a data set whose number of views must be the published one. Raises ValueError where names or numbers are not what they should be.
    """
    folder = _part_folder(root, part)
    database, asked = views(folder / "database"), views(folder / queries)
    if only is not None:
        asked = _only(asked, Path(only))
    if published is not None:
        _check_published(published, len(database), len(asked), folder)
    return Recognition(database, asked, positives(asked, database, metres) if frames is None else _by_frame(asked, database, frames))


def positives(queries: Views, database: Views, metres: float = 25.0) -> list[Int64[Tensor, " _"]]:
    """The database rows at most so many metres from each query, ascending. Across the border of two zones nothing matches."""
    from scipy.spatial import cKDTree

    if metres < 0:
        raise ValueError(f"metres: expected a distance >= 0, found {metres}")
    if bool(queries.zone[0]) != bool(database.zone[0]):
        without = queries if database.zone[0] else database
        raise ValueError(f"{without.files[0]}: expected UTM zones in queries and database or in neither, found none here")
    found = [torch.empty(0, dtype=torch.int64)] * len(queries)
    asked, there = ([_grid(z) for z in seen.zone] for seen in (queries, database))
    for zone in sorted(set(asked)):
        rows = [i for i, z in enumerate(there) if z == zone]
        if not rows:
            continue
        tree, row = cKDTree(database.position[rows].numpy()), torch.tensor(rows)
        own = [i for i, z in enumerate(asked) if z == zone]
        for i, near in zip(own, tree.query_ball_point(queries.position[own].numpy(), metres, return_sorted=True), strict=True):
            found[i] = row[near]
    return found


def _grid(zone: str) -> str:
    """What has coordinates of its own: a zone's number and the hemisphere; the letters are bands of latitude within it."""
    return zone[:-1] + ("N" if zone[-1] >= "N" else "S") if zone else ""


def _by_frame(queries: Views, database: Views, frames: int) -> list[Int64[Tensor, " _"]]:
    at = torch.tensor(_frames(database))
    order = at.argsort(stable=True)
    ordered = at[order]
    asked = torch.tensor(_frames(queries))
    first, last = torch.searchsorted(ordered, asked - frames), torch.searchsorted(ordered, asked + frames, right=True)
    return [order[a:b].sort().values for a, b in zip(first.tolist(), last.tolist(), strict=True)]


def _frames(seen: Views) -> list[int]:
    found = []
    for path, identity in zip(seen.files, seen.identity, strict=True):
        number = re.findall(r"\d+", identity or path.stem)
        if not number:
            raise ValueError(f"{path}: expected a frame number, found {identity or path.stem!r}")
        found.append(int(number[-1]))
    return found


def _only(asked: Views, path: Path) -> Views:
    wanted = folders.read_lines(path, lambda line: line.strip())
    row = {key: i for i in range(len(asked)) for key in (asked.identity[i], asked.files[i].name) if key}
    twice = [w for w in wanted if wanted.count(w) > 1 or asked.identity.count(w) > 1]
    if twice:
        raise ValueError(f"{path}, line {wanted.index(twice[0]) + 1}: expected each query once, found {twice[0]!r} for two")
    lost = [w for w in wanted if w not in row]
    if lost:
        raise ValueError(f"{path}, line {wanted.index(lost[0]) + 1}: expected an identity or file name of a query, found {lost[0]!r} ({len(lost)} such lines)")
    return asked.pick([row[w] for w in wanted])


def _check_published(name: str, database: int, queries: int, folder: Path) -> None:
    folders.one_of("published", name, PUBLISHED)
    if (database, queries) != PUBLISHED[name]:
        want = "{:,} database views and {:,} queries".format(*PUBLISHED[name])
        hint = "; of MSLS the downloader writes all 11,120 validation queries: pass the official 740 as `only`" if name == "msls" else ""
        raise ValueError(f"{folder}: expected the published {want} of {name}, found {database:,} and {queries:,}{hint}")


def _part_folder(root: Path | str, part: str) -> Path:
    folders.one_of("part", part, ("train", "val", "test"))
    for folder in (Path(root) / "images" / part, Path(root) / part):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{root}: expected images/{part} or {part}, found neither")
