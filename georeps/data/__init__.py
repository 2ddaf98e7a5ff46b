"""The embedded worlds (earth, city, patterns) and readers of files (images) and of official data sets (folders, compositions).

What a world builds is stored once, by content hash, under `GEOREPS_CACHE` (default: the user's cache folder), and
opened memory-mapped ever after; deleting the folder costs only time.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np


def cache_folder() -> Path:
    """GEOREPS_CACHE, or georeps in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "georeps"
    return Path(os.environ.get("GEOREPS_CACHE", default))


def stored(name: str, parameters: dict, write: Callable[[Path], None]) -> Path:
    """The folder that `write` filled, once for all who ask with the same (name, parameters).

    `parameters` must hold all that the content depends on, a version of the code included. A kill while writing leaves
    nothing behind that a later call would take for whole.
    """
    key = hashlib.sha256(json.dumps([name, parameters], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{name}-{key}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
        try:
            write(partial)
            partial.chmod(0o755)
            os.rename(partial, folder)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not (isinstance(error, OSError) and folder.is_dir()):  # else another process was first with the same content
                raise
    return folder


def cached(name: str, parameters: dict, build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that `build` returns, from disk where they were built before (`stored`); memory-mapped, read-only."""

    def write(folder: Path) -> None:
        for part, array in build().items():
            np.save(folder / f"{part}.npy", array)

    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(stored(name, parameters, write).glob("*.npy"))}
