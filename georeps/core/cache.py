"""What is built once and stored by content: arrays, folders, and the hashes that say what content depends on.

Everything lies under GEOREPS_CACHE (default: the user's cache folder) and is opened memory-mapped; deleting the folder costs only time.
"""

import ast
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Container, Iterable
from importlib import metadata
from pathlib import Path

import numpy as np
from torch import Tensor

PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """GEOREPS_CACHE, or georeps in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "georeps"
    return Path(os.environ.get("GEOREPS_CACHE", default))


def scratch(name: str) -> Path | None:
    """Where a run keeps the checkpoint `name` until it ends; None outside the runner (GEOREPS_SCRATCH unset): keep none.

    The runner names the folder by the content of chapter, parameters and package, so that a checkpoint never outlives
    the code that made it.
    """
    return Path(os.environ["GEOREPS_SCRATCH"]) / name if "GEOREPS_SCRATCH" in os.environ else None


def stored(name: str, parameters: dict, write: Callable[[Path], None]) -> Path:
    """The folder that `write` filled, once for all who ask with the same (name, parameters).

    `parameters` must hold all that the content depends on, a hash of the code included (`code`). A kill while writing leaves
    nothing behind that a later call would take for whole.
    """
    return _once(folder() / f"{name}-{hash_of(name, parameters)}", write)


def _once(place: Path, write: Callable[[Path], None]) -> Path:
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
        try:
            write(partial)
            partial.chmod(0o755)
            os.rename(partial, place)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not (isinstance(error, OSError) and place.is_dir()):  # else another process was first with the same content
                raise
    return place


def cached(name: str, parameters: dict, build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that `build` returns, from disk where they were built before (`stored`); memory-mapped, read-only."""

    def write(place: Path) -> None:
        for part, array in build().items():
            np.save(place / f"{part}.npy", array)

    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(stored(name, parameters, write).glob("*.npy"))}


def rows(
    name: str, parameters: dict, items: np.ndarray, compute: Callable[[np.ndarray], dict[str, np.ndarray]], *, batch: int
) -> dict[str, np.ndarray]:  # fmt: skip
    """What `compute` gives for each of the items "n ...", row by row, from disk for every item that was computed before under (name, parameters).

    An item is known by its content, so that all who ask for some of the same items share them; `compute` gets at most `batch` unknown ones, and what it
    gave is kept at once: a kill costs a batch.
    """
    if not len(items):
        raise ValueError("items: expected at least one, found none")
    place = folder() / f"{name}-{hash_of(name, parameters)}"
    place.mkdir(parents=True, exist_ok=True)
    keys = [hashlib.sha256(np.ascontiguousarray(item)).digest()[:16] for item in items]
    where = _index(place)
    unknown = list({key: i for i, key in enumerate(keys) if key not in where}.values())
    for i in range(0, len(unknown), batch):
        part = unknown[i : i + batch]
        own = [keys[j] for j in part]

        def write(chunk: Path, part: list[int] = part, own: list[bytes] = own) -> None:
            for array, values in {**compute(items[part]), "keys": np.frombuffer(b"".join(own), np.uint8).reshape(-1, 16)}.items():
                np.save(chunk / f"{array}.npy", values)

        chunk = _once(place / hashlib.sha256(b"".join(own)).hexdigest()[:16], write)
        where |= {key: (chunk, j) for j, key in enumerate(own)}
    found: dict[str, np.ndarray] = {}
    asked = [where[key] for key in keys]
    for chunk in {chunk for chunk, _ in asked}:
        here = [i for i, (c, _) in enumerate(asked) if c == chunk]
        for path in chunk.glob("*.npy"):
            if path.stem != "keys":
                values = np.load(path, mmap_mode="r")
                out = found.setdefault(path.stem, np.empty((len(items), *values.shape[1:]), values.dtype))
                out[here] = values[[asked[i][1] for i in here]]
    return found


_CHUNKS: dict[Path, dict[Path, dict[bytes, tuple[Path, int]]]] = {}  # of each folder of `rows`, what this process has read


def _index(place: Path) -> dict[bytes, tuple[Path, int]]:
    """Chunk and row of each item under a folder of `rows`; a chunk's keys are read once a process."""
    known, there = _CHUNKS.setdefault(place, {}), sorted(place.glob("[!.]*"))
    for chunk in there:
        if chunk not in known:
            known[chunk] = {key: (chunk, i) for i, key in enumerate(np.load(chunk / "keys.npy").view("V16").ravel().tolist())}
    return {key: at for chunk in there for key, at in known[chunk].items()}


def hash_of(*values) -> str:
    """16 hexadecimal digits that depend on values JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def digest(*tensors: Tensor) -> str:
    """16 hexadecimal digits that depend on the shapes, types and values of tensors."""
    found = hashlib.sha256()
    for x in tensors:
        found.update(str((tuple(x.shape), x.dtype)).encode())
        found.update(x.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()[:16]


@functools.cache
def code(*modules: str, libraries: tuple[str, ...] = ()) -> str:
    """16 hexadecimal digits of modules of georeps and of all that these import of it (`sources`), and of libraries' versions."""
    return hash_of(sources(modules), {name: metadata.version(name) for name in libraries})


def sources(modules: Iterable[str], *, without: Container[str] = ()) -> dict[str, str]:
    """Modules of georeps and all that these import of it, directly and through others -> their code, without comments, docstrings and line breaks.

    `without`: modules that do not count, nor what only they import.
    """
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found and name not in without:
            if (path := _file(name)) is None:
                raise ValueError(f"modules: expected modules of {PACKAGE.name}, found {name!r}")
            found[name], others = _read(path, path.stat().st_mtime_ns)
            waiting += others
    return found


@functools.cache
def _read(path: Path, when: int) -> tuple[str, frozenset[str]]:
    tree = ast.parse(path.read_text())
    return bare(tree), frozenset(imported(tree))


def imported(tree: ast.AST) -> set[str]:
    """The modules of georeps that a syntax tree imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            names |= {name if _file(name := f"{node.module}.{alias.name}") else node.module for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith(f"{PACKAGE.name}.")}
    return names


def _file(name: str) -> Path | None:
    """The source of a module of georeps; None of what is none."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def bare(tree: ast.Module) -> str:
    """The code of a syntax tree, without docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
