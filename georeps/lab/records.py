"""Records and tables: what a run measured, and what the paper printed.

    record    book/results/<profile>/<chapter>-s<seed>.json, one a run: metric id -> value; beside it in .npz the outcomes a query behind them
    reference the records of a profile in book/results, all seeds; a run of the book's own (GEOREPS_LIVE) is judged by them and stays beside them
    table     paper | here mean +- 95% interval over n seeds | where it ran
"""  # fmt: skip

import ast
import contextlib
import csv
import functools
import json
import math
import os
import platform
import re
import subprocess
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from scipy import special

import georeps
from georeps.core import cache

LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "faiss-cpu", "open-clip-torch")
TIMED = re.compile(
    r"\.(ms|seconds\w*|time|\w*points_per_s|limit_ms|peak_mib|tflops|gb_s|ratio)$|^search\.speed\.|^speed\.cpu\.|cost\.(\w+\.)*(time|share|step|sample)$"
)
DRAWING = {f"georeps.lab.{name}" for name in ("plots", "maps", "elements", "exhibits")}  # decide no number
METRIC = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+")  # as the checks of claims name them
REFERENCE_COLUMNS = ["source", "table", "row", "column", "value", "metric"]


@dataclass
class Record:
    """`floors`: metric -> what it must beat, {"chance": value, "rows": metric ids}; `code`: hash of all that decided what was computed (`code_of`).

    `modules`: of each module of georeps that the chapter's numbers rest on, imported directly or through others, a hash of its code.
    """

    chapter: str
    profile: str
    seed: int
    device: str
    parameters: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    floors: dict[str, dict] = field(default_factory=dict)
    data: str = ""
    code: str = ""
    modules: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    wall_s: float = 0.0
    path: Path | None = None

    @functools.cached_property
    def outcomes(self) -> dict[str, np.ndarray]:
        """metric -> the outcomes a query, float32 or small integers, whose mean it is."""
        beside = self.path.with_suffix(".npz") if self.path else None
        if not (beside and beside.is_file()):
            return {}
        with np.load(beside) as arrays:
            return dict(arrays)


class Run:
    """One run of one chapter: collects metrics, then writes the record.

    >>> run = records.Run.of("03_crossview", globals())
    >>> run["crossview.margin"] = 12.3
    >>> run.outcomes("crossview.safa.cross.s1.r1", 100 * (ranks < 1))
    >>> run.floor("crossview.safa.cross.s1.r1", chance=100 / len(gallery), rows=["crossview.thumbnails.r1"])
    >>> run.save()
    """

    def __init__(self, chapter: str, *, profile: str, seed: int, device: str, parameters: dict[str, Any], data: str = ""):
        self.started, self.device = time.monotonic(), device
        self.record = Record(chapter, profile, seed, device_name(device), parameters, data=data, versions=_versions())
        self.record.code, self.record.modules = code_of(chapter, parameters), modules_of(chapter)  # as they are now, not when the run has ended

    @classmethod
    def of(cls, chapter: str, names: dict[str, Any], *, device: str | None = None) -> "Run":
        """The run of a notebook whose names are `names` (globals()): what its parameters cell annotates are its parameters.

        `device`: another than the cell names.
        """
        annotated = names.get("__annotations__") or names["__annotate__"](1)  # from Python 3.14 on
        own = {name: names[name] for name in annotated if name not in ("profile", "seed", "device")}
        worlds = sorted(n for n, v in names.items() if isinstance(v, ModuleType) and v.__name__.startswith("georeps.worlds."))
        data = f"your data, {Path(own['data_root']).name}" if own.get("data_root") else f"embedded: {', '.join(worlds) or 'none'}"
        device = pick_device(device or names["device"])
        return cls(chapter, profile=names["profile"], seed=names["seed"], device=device, parameters=own, data=data)

    def scratch(self, name: str) -> Path | None:
        """Where this run keeps the checkpoint `name` until it ends (`cache.scratch`)."""
        return cache.scratch(name)

    def runs(self) -> list["Record"]:
        """This run with the other seeds of its chapter and profile."""
        return records(self.record.profile, chapter=self.record.chapter, own=self)

    def __setitem__(self, metric: str, value: float) -> None:
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"{metric}: expected a finite value, found {value}")
        if metric in self.record.metrics:
            raise ValueError(f"{metric}: recorded twice in one run")
        self.record.metrics[metric] = value

    def outcomes(self, metric: str, values: Any) -> float:
        """Record a metric as the mean of its outcomes a query (`values` "q", finite), which are stored too where the ledger names it; returns it."""
        values = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, np.float64)
        if values.ndim != 1 or not values.size or not np.isfinite(values).all():
            raise ValueError(f"{metric}: expected finite outcomes a query, found shape {values.shape}, {int((~np.isfinite(values)).sum())} not finite")
        self[metric] = values.mean()
        small = (values == values.astype(np.uint8)).all() if values.min() >= 0 and values.max() < 256 else False
        self.record.outcomes[metric] = values.astype(np.uint8 if small else np.float32)
        return self.record.metrics[metric]

    def recalls(
        self, prefix: str, ranks: torch.Tensor, *, gallery: int, ks: Iterable[int] = (1, 5, 10), percents: Iterable[int] = (1,), rows: Iterable[str] = ()
    ) -> None:
        """R@k and R@p% ("floor") in percent as `prefix`.r<k> and .r<p>pct, with their outcomes, and as floors chance and the same of `rows` (prefixes)."""
        for name, k in {**{f"r{k}": k for k in ks}, **{f"r{p}pct": max(1, gallery * p // 100) for p in percents}}.items():
            self.outcomes(f"{prefix}.{name}", 100.0 * (ranks < k))
            self.floor(f"{prefix}.{name}", chance=100 * k / gallery, rows=[f"{row}.{name}" for row in rows])

    def floor(self, metric: str, *, chance: float, rows: Iterable[str] = ()) -> None:
        """What `metric` must beat before a claim about it gets a verdict: chance, and rows (metric ids) that learn nothing."""
        self.record.floors[metric] = {"chance": float(chance), "rows": list(rows)}

    def save(self) -> Path:
        """Write the record and its outcomes whole or not at all; returns its path. Raises ValueError where a floor names a metric that is not recorded."""
        lost = [m for f, floor in self.record.floors.items() for m in (f, *floor["rows"]) if m not in self.record.metrics]
        if lost:
            raise ValueError(f"floor: expected recorded metrics, found {', '.join(lost)}")
        self.record.wall_s = round(time.monotonic() - self.started, 1)
        live = os.environ.get("GEOREPS_LIVE")
        folder = Path(live) if live else results_folder() / self.record.profile
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.record.chapter}-s{self.record.seed}.json"
        for target, write in ((path.with_suffix(".npz"), self._write_outcomes), (path, self._write_json)):
            partial = target.with_suffix(f".{os.getpid()}.part")
            write(partial)
            os.replace(partial, target)
        return path

    def _write_outcomes(self, path: Path) -> None:
        named = self._named()
        named |= {row for metric, floor in self.record.floors.items() if metric in named for row in floor["rows"]}
        with path.open("wb") as file:
            np.savez_compressed(file, **{m: v for m, v in self.record.outcomes.items() if m in named})

    def _named(self) -> set[str]:
        """Metrics that the ledger names; without one, all."""
        ledger = book_folder() / "claims.yml"
        return set(re.findall(METRIC, ledger.read_text())) if ledger.is_file() else set(self.record.metrics)

    def _write_json(self, path: Path) -> None:
        known = {k: v for k, v in asdict(self.record).items() if k != "path"}
        known["floors"] = {m: floor for m, floor in self.record.floors.items() if m in self._named()}
        path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def code_of(chapter: str, parameters: dict[str, Any]) -> str:
    """16 hexadecimal digits of all that decides what a chapter computes: its cells' code, its parameters, the modules it imports; "" without a notebook."""
    cells = [cache.bare(tree) for tree in _cells(chapter)]
    return cache.hash_of(cells, parameters, modules_of(chapter)) if cells else ""


def modules_of(chapter: str) -> dict[str, str]:
    """The modules of georeps that a chapter's numbers rest on, imported directly or through others -> a hash of each one's code; not what only draws."""
    sources = cache.sources(set().union(*map(cache.imported, _cells(chapter))), without=DRAWING)
    return {module: cache.hash_of(code)[:8] for module, code in sorted(sources.items())}


def stale(profile: str = "laptop") -> list[str]:
    """The chapters whose reference was measured with other code or other parameters than the book's own of today."""
    now = {chapter: code_of(chapter, parameters_of(chapter, profile)) for chapter in {r.chapter for r in records(profile, live=False)}}
    return sorted({r.chapter for r in records(profile, live=False) if r.code != now[r.chapter]})


def parameters_of(chapter: str, profile: str) -> dict[str, Any]:
    """The parameters of a chapter in a profile: those its cell assigns, and what book/params sets instead."""
    (cell,) = _cells(chapter, parameters=True)
    assigned = {line.target.id: ast.literal_eval(line.value) for line in cell.body if isinstance(line, ast.AnnAssign)}
    chosen = yaml.safe_load((book_folder() / "params" / f"{chapter}.yml").read_text())[profile] or {}
    return {k: v for k, v in (assigned | chosen).items() if k not in ("profile", "seed", "device")}


def _cells(chapter: str, *, parameters: bool = False) -> list[ast.Module]:
    """The code of a chapter's cells: of all but the one that holds its parameters, or of this alone; none without a notebook."""
    path = book_folder() / "chapters" / f"{chapter}.ipynb"
    cells = json.loads(path.read_text())["cells"] if path.is_file() else []
    of = lambda c: c["cell_type"] == "code" and ("parameters" in c["metadata"].get("tags", [])) == parameters
    return [ast.parse("".join(c["source"])) for c in cells if of(c)]


def device_name(device: str) -> str:
    """ "cpu, 2 threads" or the GPU's own name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    n = torch.get_num_threads()
    return f"cpu, {n} thread{'s' * (n > 1)}"


def pick_device(device: str) -> str:
    """ "auto" -> "cuda" where torch sees one, else "cpu"; anything else as it is."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def book_folder() -> Path:
    """The folder that holds `_toc.yml`: GEOREPS_BOOK, or the nearest `book/` at or above the working folder."""
    if "GEOREPS_BOOK" in os.environ:
        return Path(os.environ["GEOREPS_BOOK"])
    for folder in (Path.cwd(), *Path.cwd().parents):
        for book in (folder, folder / "book"):
            if (book / "_toc.yml").is_file():
                return book
    raise FileNotFoundError(f"records: no book/_toc.yml at or above {Path.cwd()}; set GEOREPS_BOOK to the book's folder")


def results_folder() -> Path:
    """GEOREPS_RESULTS, or `results` in the book's folder."""
    return Path(os.environ["GEOREPS_RESULTS"]) if "GEOREPS_RESULTS" in os.environ else book_folder() / "results"


def records(profile: str, *, chapter: str | None = None, own: Run | None = None, live: bool = True) -> list[Record]:
    """Records of a profile, by chapter and seed: the reference; where a chapter has none (and `live`) what the book's own run measured, if one is under way.

    Seeds 0..n-1 where a chapter's parameters say `seeds: n`, else seed 0; other seeds that lie in the folder are no part of the profile. The run
    under way (`own`) always belongs, whatever its seed, and records of its chapter with other parameters, left by an earlier run, are named in a
    warning and left out. A run of the book's own stays beside a reference of the same code and parameters, and alone without one.
    """
    found = [read_record(path) for path in sorted((results_folder() / profile).glob("*.json"))]
    beside = os.environ.get("GEOREPS_LIVE") if live else None
    if beside:
        known = {r.chapter for r in found}
        found += [r for r in map(read_record, sorted(Path(beside).glob("*.json"))) if r.chapter not in known]
    found = [r for r in found if r.seed < r.parameters.get("seeds", 1) and chapter in (None, r.chapter)]
    if own is not None:
        has_reference = bool(beside) and own.record.chapter in known
        found = [r for r in found if r.chapter != own.record.chapter] + _seeds_of(own, found, has_reference)
    return sorted(found, key=lambda r: (r.chapter, r.seed))


def _seeds_of(own: Run, found: list[Record], has_reference: bool) -> list[Record]:
    same = [r for r in found if r.chapter == own.record.chapter]
    if has_reference:
        return [r for r in same if r.code == own.record.code] or [own.record]
    same = [r for r in same if r.seed != own.record.seed]
    other = [r.seed for r in same if r.parameters != own.record.parameters]
    if other:
        warnings.warn(f"{own.record.chapter}: left out seeds {other} of an earlier run with other parameters", stacklevel=4)
    return [*(r for r in same if r.seed not in other), own.record]


def grade(run: Record, reference: list[Record]) -> pd.DataFrame:
    """The receipt of a run: a line a metric with its value, the reference's mean and 95% prediction interval of one more seed, and how they compare.

    "bit-equal" to the reference's run of the same seed; "inside" the interval; "timed" (of a clock or a device: no verdict); "different"; "new".
    """
    here, rows = values(reference), []
    for metric, value in run.metrics.items():
        seeds = here.get(metric, {})
        mean, half, n = interval(seeds.values()) if seeds else (math.nan, math.nan, 0)
        half *= math.sqrt(n + 1)
        inside = abs(value - mean) <= half + 1e-9 * abs(mean)
        said = "new" if not n else "bit-equal" if seeds.get(run.seed) == value else "timed" if TIMED.search(metric) else "inside" if inside else "different"
        rows.append((metric, value, mean, mean - half, mean + half, n, said))
    return pd.DataFrame(rows, columns=["metric", "this run", "reference", "low", "high", "seeds", "grade"])


def values(found: Iterable[Record]) -> dict[str, dict[int, float]]:
    """metric id -> seed -> value. Records of one chapter with different parameters are not one sample: ValueError."""
    table: dict[str, dict[int, float]] = {}
    settings: dict[str, dict] = {}
    for record in found:
        first = settings.setdefault(record.chapter, record.parameters)
        if record.parameters != first:
            names = sorted(k for k in first.keys() | record.parameters.keys() if first.get(k) != record.parameters.get(k))
            raise ValueError(f"{record.chapter}, seed {record.seed}: expected the parameters of the other seeds, found other {', '.join(names)}")
        for metric, value in record.metrics.items():
            if record.seed in table.setdefault(metric, {}):
                raise ValueError(f"{metric}: recorded by two chapters for seed {record.seed}, one of them {record.chapter}")
            table[metric][record.seed] = value
    return table


def interval(sample: Iterable[float]) -> tuple[float, float, int]:
    """Mean, half-width of its 95% t interval (NaN for one value), and n."""
    sample = np.asarray(list(sample), float)
    n = len(sample)
    half = special.stdtrit(n - 1, 0.975) * sample.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return float(sample.mean()), float(half), n


def summary(found: list[Record], prefix: str = "") -> pd.DataFrame:
    """A line a metric whose id starts with `prefix`: mean ± 95% interval (n seeds)."""
    here = {m: format_interval(v.values(), 2) for m, v in values(found).items() if m.startswith(prefix)}
    return pd.DataFrame({"metric": list(here), "here": list(here.values())})


def table(here: dict[str, dict[int, float]], rows: Mapping[Any, str], columns: Mapping[str, str] | Iterable[str], digits: int | None = 1) -> pd.DataFrame:
    """Rows by columns of mean ± 95% interval (n seeds), "-" where nothing was recorded.

    `rows`: label, or a tuple of labels, -> the first part of metric ids; `columns`: heading -> the rest, or the rest alone.
    """
    heads = columns if isinstance(columns, Mapping) else {c: c for c in columns}
    cells = {label: {head: cell(here, f"{first}.{rest}", digits) for head, rest in heads.items()} for label, first in rows.items()}
    return pd.DataFrame(cells, index=list(heads)).T


def cell(here: dict[str, dict[int, float]], metric: str, digits: int | None = 1) -> str:
    """`format_interval` of a metric, "-" where it was not recorded."""
    return format_interval(here[metric].values(), digits) if metric in here else "-"


def format_interval(sample: Iterable[float], digits: int | None = 1) -> str:
    """ "mean ± half-width (n=seeds)", with so many digits behind the point (None: three in all, at most two behind it); one value has no interval."""
    mean, half, n = interval(sample)
    digits = min(2, max(0, 2 - math.floor(math.log10(abs(mean) or 1)))) if digits is None else digits
    return f"{mean:.{digits}f}" + (f"\u00a0±\u00a0{half:.{digits}f}" if n > 1 else "") + f" (n={n})"


def reference(path: Path | str) -> pd.DataFrame:
    """A paper's printed numbers: source, table, row, column, value, and the metric id that measures the same here.

    `path` is a file, or the name of one in the book's reference folder ("thesis"). Raises ValueError naming the file and line of a row that has not six
    cells or whose value is no number.
    """
    path = Path(path) if Path(path).suffix else book_folder() / "reference" / f"{path}.csv"
    with path.open(newline="") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        if header != REFERENCE_COLUMNS:
            raise ValueError(f"{path}, line 1: expected the columns {','.join(REFERENCE_COLUMNS)}, found {','.join(header)}")
        rows = [_reference_row(path, lines.line_num, row) for row in lines]
    return pd.DataFrame(rows, columns=REFERENCE_COLUMNS)


def compare(paper: pd.DataFrame, found: list[Record]) -> pd.DataFrame:
    """Paper-vs-here: one line a printed number; `here` is mean ± 95% interval (n seeds) in as many decimals, or "not run"."""
    here = values(found)
    where: dict[str, set[str]] = {}
    for record in found:
        for metric in record.metrics:
            where.setdefault(metric, set()).add(f"{record.profile}, {record.device}")
    table = paper[["table", "row", "column"]].copy()
    table["paper"] = paper.value
    digits = [min(3, max(1, len(repr(v).partition(".")[2]))) for v in paper.value]
    table["here"] = [format_interval(here[m].values(), d) if m in here else "not run" for m, d in zip(paper.metric, digits, strict=True)]
    table["where"] = ["; ".join(sorted(where.get(m, ()))) for m in paper.metric]
    return table


def spread(compared: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What `compare` gives as the paper prints it: table -> rows by columns, each cell "paper | here"; "-" where nothing was run."""
    twice = compared[compared.duplicated(["table", "row", "column"])]
    if len(twice):
        raise ValueError(f"compared: expected one number a table, row and column, found two for {', '.join(twice.iloc[0, :3])}")
    here = compared.here.replace("not run", "-").str.replace(r"\s*\(n=\d+\)", "", regex=True)
    cells = compared.assign(cell=compared.paper.astype(str) + " | " + here)
    found = {}
    for name, part in cells.groupby("table", sort=False):
        wide = part.pivot_table(index="row", columns="column", values="cell", aggfunc="first", sort=False)
        found[name] = wide.fillna("").rename_axis(columns=None)
    return found


def _versions() -> dict[str, str]:
    try:
        command = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git on this machine
        commit = ""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):  # one that is not installed
            found[name] = version(name)
    return found | {"georeps": georeps.__version__, "commit": commit or "unknown", "python": platform.python_version()}


def read_record(path: Path) -> Record:
    """The record of a file; ValueError naming the file where it holds none."""
    try:
        return Record(**json.loads(path.read_text()), path=path)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: expected a results record, found {error}") from error


def _reference_row(path: Path, line: int, row: list[str]) -> list:
    if len(row) != len(REFERENCE_COLUMNS):
        raise ValueError(f"{path}, line {line}: expected {len(REFERENCE_COLUMNS)} cells, found {len(row)}")
    try:
        return [*row[:4], float(row[4]), row[5]]
    except ValueError:
        raise ValueError(f"{path}, line {line}: expected a number as value, found {row[4]!r}") from None
