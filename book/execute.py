"""Execute one chapter with papermill: `python book/execute.py 03 --profile laptop --seed 0`; --refresh renews the
smoke outputs that are committed; --check runs it under nbval, which compares them, and keeps what the run wrote;
--restamp runs one seed of the reference again after a change that should move no number, and if none moved says so of all its records.

A chapter that succeeds lands in book/runs/<profile>/ with its record; --reference writes the record to book/results/<profile>/,
the reference that is committed, unless it is there and was measured with the same code and parameters. One that fails
lands in book/runs/failed/, its error is printed with the chapter's name, and the exit status is 1.
A run that was killed goes on from its checkpoints when started again.
"""

import argparse
import ast
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import numpy as np
import papermill
import yaml
from nbclient.exceptions import DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

BOOK = Path(__file__).resolve().parent
PROFILES = ("smoke", "laptop", "gpu", "paper")
TABLE = "application/vnd.georeps.table+json"  # what an output hands to its page (georeps.lab.exhibits)
SMOKE = {"TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}  # what is compared is computed on a CPU, whatever there is


class BookEngine(NBClientEngine):
    """papermill's engine, then `tidy`."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
        super().execute_managed_notebook(nb_man, kernel_name, **kwargs)
        tidy(nb_man.nb)


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Progress bars and warnings (stderr) left out of the page."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]


papermill_engines.register("book", BookEngine)


def chapters() -> list[Path]:
    return sorted((BOOK / "chapters").glob("*.ipynb"))


def find_chapter(name: str) -> Path:
    """The chapter whose file name starts with `name` (a number is enough)."""
    found = [path for path in chapters() if path.stem == name or path.stem.split("_")[0] == name]
    if len(found) != 1:
        sys.exit(f"chapter: expected one of {', '.join(p.stem for p in chapters())} or its number, found {name!r}")
    return found[0]


def defaults(chapter: Path) -> dict:
    """The parameters of a notebook: the literals assigned in its cell tagged `parameters`."""
    cells = [c for c in nbformat.read(chapter, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        sys.exit(f"{chapter}: expected one cell tagged 'parameters', found {len(cells)}")
    lines = ast.parse(cells[0].source).body
    names = [(line.target if isinstance(line, ast.AnnAssign) else line.targets[0]).id for line in lines]
    return dict(zip(names, (ast.literal_eval(line.value) for line in lines), strict=True))


def parameters(chapter: Path, profile: str, seed: int, own: dict) -> dict:
    """The parameter set of a profile, then what the command line sets; every name must be a parameter of the notebook."""
    path = BOOK / "params" / f"{chapter.stem}.yml"
    sets = yaml.safe_load(path.read_text()) if path.is_file() else {}
    if profile not in sets:
        known = f"profiles {', '.join(sets)}" if sets else "no such file"
        sys.exit(f"profile: {path} has {known}; found {profile!r}")
    known = defaults(chapter)
    for where, chosen in ((f"{path}, {profile}", sets[profile] or {}), ("-p", own)):
        unknown = sorted(set(chosen) - set(known))
        if unknown:
            sys.exit(f"{where}: {chapter.stem} has no parameter named {', '.join(unknown)}; it has {', '.join(known)}")
    own = {name: float(value) if isinstance(known[name], float) else value for name, value in own.items()}
    return {"profile": profile, "seed": seed, **(sets[profile] or {}), **own}


def execute(chapter: Path, profile: str, seed: int, own: dict, data_root: str, reference: bool) -> None:
    """Run a chapter. With parameters of its own, or data of its own in a profile that has none, a run is no part of the
    profile: it goes to runs/custom.
    """
    values = parameters(chapter, profile, seed, own)
    label = "custom" if own or (data_root and profile != "paper") else profile
    values |= {"profile": label} | ({"data_root": data_root} if data_root else {})
    name = f"{chapter.stem}-s{seed}"
    folder, failed = BOOK / "runs" / ("reference" * reference) / label, BOOK / "runs" / "failed" / f"{name}-{label}.ipynb"
    if reference and fresh(chapter.stem, values, BOOK / "results" / label / f"{name}.json"):
        return print(f"chapter {position(chapter)}: {chapter.stem} ({label}, seed {seed}) is in the reference", file=sys.stderr)
    scratch = folder / "scratch" / f"{name}-{content_hash(chapter, values)}"
    folder.mkdir(parents=True, exist_ok=True)
    print(f"chapter {position(chapter)}: {chapter.stem} ({label}, seed {seed})", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as away, one_gpu(profile):
        os.environ |= {"GEOREPS_SCRATCH": str(scratch)} | ({} if reference else {"GEOREPS_LIVE": str(folder)})
        partial = Path(away) / "run.ipynb"
        try:
            run_notebook(chapter, partial, values)
        except (PapermillExecutionError, DeadKernelError, RuntimeError) as error:
            keep_failed(partial, failed)
            sys.exit(f"\nchapter {chapter.stem} ({label}, seed {seed}) FAILED{reason(error)}\nthe notebook: {failed.relative_to(BOOK.parent)}")
        failed.unlink(missing_ok=True)
        shutil.move(partial, folder / f"{name}.ipynb")
    shutil.rmtree(scratch, ignore_errors=True)
    print(f"done: {(folder / f'{name}.ipynb').relative_to(BOOK.parent)}", file=sys.stderr)


def fresh(chapter: str, values: dict, path: Path) -> bool:
    """Whether a record is there that the same code and parameters made."""
    from georeps.lab import records

    own = {k: v for k, v in (defaults(find_chapter(chapter)) | values).items() if k not in ("profile", "seed", "device")}
    return path.is_file() and records.read_record(path).code == records.code_of(chapter, own)


def restamp(chapter: Path, profile: str, seed: int) -> None:
    """A change of code that moves no number costs one seed, not ten: where all metrics, outcomes and floors of this seed, run again, are equal bit for bit,
    all records of the code that had made it get today's, and the old one's hash beside it. Metrics that today's code no longer records are taken out.

    The seed must be one that searches, where some do: one that takes the choices of others says nothing of how they are made.
    """
    from georeps.lab import records

    folder = BOOK / "results" / profile
    pair = [(folder / f"{chapter.stem}-s{seed}.json").with_suffix(end) for end in (".json", ".npz")]
    if not all(path.is_file() for path in pair):
        sys.exit(f"seed: expected one of the reference of {chapter.stem} ({profile}), found none of seed {seed}")
    kept, before = [path.read_bytes() for path in pair], read(*pair)
    if seed >= (searching := before["parameters"].get("searching", seed + 1)):
        sys.exit(f"seed: expected one that searches, 0..{searching - 1}, for the others take its choices; found {seed}")
    if fresh(chapter.stem, parameters(chapter, profile, seed, {}), pair[0]):
        sys.exit(f"seed: expected a record of older code, found that of seed {seed} to be of today's")
    execute(chapter, profile, seed, {}, "", True)
    after = read(*pair)
    moved = [m for m in after["metrics"] if before["metrics"].get(m) != after["metrics"][m] and not records.TIMED.search(m)]
    moved += [f"{m}, a query" for m in after["outcomes"] if m in before["outcomes"] and not np.array_equal(before["outcomes"][m], after["outcomes"][m])]
    moved += [f"{m}, its floor" for m, floor in after["floors"].items() if before["floors"].get(m) != floor]
    if moved:
        beside = BOOK / "runs" / "reference" / profile  # what the run found is not lost
        beside.mkdir(parents=True, exist_ok=True)
        for path, content in zip(pair, kept, strict=True):
            shutil.copy(path, beside / path.name)
            path.write_bytes(content)
        new = sum(m not in before["metrics"] for m in after["metrics"])
        said = f"{len(moved)} of {len(after['metrics'])} numbers of seed {seed} moved or are new ({new}), {moved[0]} first"
        sys.exit(f"{chapter.stem}: {said}; see {beside.relative_to(BOOK.parent)}: make records CHAPTER={chapter.stem[:2]}")
    for path in sorted(folder.glob(f"{chapter.stem}-s*.json")):
        record = json.loads(path.read_text())
        if record["code"] == before["code"] != after["code"]:
            record |= {key: after[key] for key in ("code", "modules", "parameters")}
            record |= {key: {m: v for m, v in record[key].items() if m in after["metrics"]} for key in ("metrics", "floors")}
            record["versions"] |= {"numbers of code": before["code"], "the same by seed": str(seed)}
            path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
            print(f"{path.name}: no number moved", file=sys.stderr)


def read(record: Path, outcomes: Path) -> dict:
    with np.load(outcomes) as arrays:
        return json.loads(record.read_text()) | {"outcomes": dict(arrays)}


def keep_failed(partial: Path, failed: Path) -> None:
    failed.parent.mkdir(parents=True, exist_ok=True)
    if partial.is_file():
        shutil.move(partial, failed)


def reason(error: Exception) -> str:
    if isinstance(error, PapermillExecutionError):
        return f" in cell {error.exec_count}: {error.ename}: {error.evalue}"
    return f": {error} (the kernel's process ended, often for want of memory)"


def run_notebook(source: Path, target: Path, values: dict) -> None:
    papermill.execute_notebook(
        str(source), str(target), values, engine_name="book", kernel_name="python3", cwd=str(BOOK),
        progress_bar=False, stderr_file=sys.stderr, extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )  # fmt: skip


def refresh(chapter: Path) -> None:
    """Run a chapter with its own defaults, the smoke profile, and write text and tables into it, without timestamps, pictures and page elements."""
    os.environ |= SMOKE
    with tempfile.TemporaryDirectory() as away:
        target = Path(away) / chapter.name
        run_notebook(chapter, target, {})
        notebook = nbformat.read(target, as_version=4)
    notebook.metadata = {k: notebook.metadata[k] for k in ("kernelspec", "language_info") if k in notebook.metadata}
    for cell in notebook.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            data.pop("image/png", None)
            data.pop(TABLE, None)
            if "<script>" in "".join(data.get("text/html", "")):  # a page element, with pictures of its own
                del data["text/html"]
    nbformat.write(notebook, chapter)


class Kept:
    """A pytest plugin: what nbval's cells gave, written as a notebook where all of them passed; tables of figures are not compared."""

    def __init__(self, target: Path):
        self.target = target

    def pytest_collectstart(self, collector):
        if hasattr(collector, "skip_compare"):
            collector.skip_compare += (TABLE,)

    def pytest_sessionfinish(self, session, exitstatus):
        if exitstatus == 0:
            for item in session.items:
                item.cell.outputs = nbformat.from_dict(item.test_outputs)
            notebook = session.items[0].parent.nb
            tidy(notebook)
            self.target.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, self.target)


def check(chapter: Path) -> int:
    """Run a chapter once, with its own defaults, under nbval: a cell that raises or whose text differs fails; the run becomes the smoke page."""
    import pytest

    os.environ |= SMOKE
    target = BOOK / "runs" / "smoke" / f"{chapter.stem}-s0.ipynb"
    target.unlink(missing_ok=True)
    options = ["-q", "--no-header", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:jaxtyping"]
    options += ["--nbval", "--nbval-current-env", "--nbval-cell-timeout", "600", "--nbval-sanitize-with", str(BOOK / "sanitize.cfg")]
    return int(pytest.main([*options, str(chapter)], plugins=[Kept(target)]))


def content_hash(chapter: Path, values: dict) -> str:
    """Of all that decides what a run computes: the notebook's code, its parameters, the package."""
    cells = [c.source for c in nbformat.read(chapter, as_version=4).cells if c.cell_type == "code"]
    sources = [path.read_text() for path in sorted((BOOK.parent / "georeps").rglob("*.py"))]
    return hashlib.sha256(repr([cells, sorted(values.items()), sources]).encode()).hexdigest()[:12]


def position(chapter: Path) -> str:
    names = [path.stem for path in chapters()]
    return f"{names.index(chapter.stem) + 1} of {len(names)}"


@contextlib.contextmanager
def one_gpu(profile: str):
    """Jobs that run side by side on a machine with several GPUs take one each: the first whose lock is free."""
    gpus = list_gpus() if profile in ("gpu", "paper") and "CUDA_VISIBLE_DEVICES" not in os.environ else []
    if len(gpus) < 2:
        yield
        return
    import fcntl

    with contextlib.ExitStack() as stack:
        for gpu in gpus:
            lock = stack.enter_context((Path(tempfile.gettempdir()) / f"georeps-gpu-{gpu}-{os.getuid()}.lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            break
        try:
            yield
        finally:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)


def list_gpus() -> list[str]:
    try:
        listed = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return listed.stdout.split()


def assignment(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    return name, yaml.safe_load(value)


def main() -> None:
    os.environ["GEOREPS_BOOK"] = str(BOOK)  # wherever it was called from
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # what tqdm says of a notebook without widgets
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapter", nargs="?", help="a chapter's number or name; all with --refresh and no chapter")
    parser.add_argument("--profile", help=f"{' | '.join(PROFILES)}; laptop without")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-p", "--parameter", type=assignment, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--data-root", default="", help="a folder of your own data; what is in it, each chapter says")
    parser.add_argument("--reference", action="store_true", help="write the record to book/results, where the committed ones are")
    parser.add_argument("--restamp", action="store_true", help="run one seed of the reference again; if no number moved, all are of today's code")
    parser.add_argument("--refresh", action="store_true", help="renew the committed smoke outputs in place")
    parser.add_argument("--check", action="store_true", help="compare a smoke run with the committed outputs, and keep it")
    args = parser.parse_args()
    args.profile = args.profile or ("smoke" if args.refresh or args.check else "laptop")
    if (args.refresh or args.check) and (args.profile != "smoke" or args.seed or args.parameter or args.data_root):
        parser.error("--refresh and --check run a chapter with its own defaults: no profile, seed, parameter or data root beside them")
    if args.refresh:
        for chapter in [find_chapter(args.chapter)] if args.chapter else chapters():
            print(f"chapter {position(chapter)}: {chapter.stem} (refresh)", file=sys.stderr, flush=True)
            refresh(chapter)
    elif args.check and args.chapter:
        sys.exit(check(find_chapter(args.chapter)))
    elif args.chapter and args.restamp:
        restamp(find_chapter(args.chapter), args.profile, args.seed)
    elif args.chapter:
        execute(find_chapter(args.chapter), args.profile, args.seed, dict(args.parameter), args.data_root, args.reference)
    else:
        parser.error("name a chapter")


if __name__ == "__main__":
    main()
