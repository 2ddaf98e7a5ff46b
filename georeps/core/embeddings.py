"""Embeddings in files: float16 shards with a manifest, written once, taken up again after a kill, read without loading.

    folder/manifest.json      how many rows, how many a shard, and what made them
    folder/shard-00000.npy    float16 "n d", any library reads it

A shard takes its name only when it is complete, so that what has a name is never done again. Ranks write shards in turns.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from georeps.core import search

Embed = Callable[[slice], Tensor]  # a range of items -> their descriptors "n d"


def write(folder: Path | str, n: int, embed: Embed, *, made_by: dict, rows: int = 65536, rank: int = 0, ranks: int = 1) -> "Embeddings":
    """Embed items 0..n-1 into shards of `rows`; what is already there is kept. `made_by` says from what: network, weights, data, image size.

    Of several ranks each writes every ranks-th shard. ValueError where the folder holds something else, by name; for a shard that is not
    "rows d", not finite, or beyond float16 (65,504), by its rows.
    """
    folder = Path(folder)
    if n < 1 or rows < 1 or not 0 <= rank < ranks:
        raise ValueError(f"n, rows, rank: expected n >= 1, rows >= 1 and a rank below {ranks}, found {n}, {rows} and {rank}")
    manifest = {"items": n, "rows": rows, "dtype": "float16", "made_by": json.loads(json.dumps(made_by))}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.json"
    if not path.exists():
        _complete(path, lambda f: f.write(json.dumps(manifest, indent=1).encode()), first=True)
    found = _manifest(path)  # of the rank that was first
    differ = [k for k in manifest if found[k] != manifest[k]]
    if differ:
        raise ValueError(f"folder: expected {differ[0]} {manifest[differ[0]]!r} in {path}, found {found[differ[0]]!r}: embed into another folder")
    starts = [s for i, s in enumerate(range(0, n, rows)) if i % ranks == rank and not _shard(folder, i).exists()]
    for start in tqdm(starts, desc="embed"):
        part = slice(start, min(start + rows, n))
        value = _checked(embed(part), part)
        _complete(_shard(folder, start // rows), lambda f, value=value: np.save(f, value))
    return Embeddings(folder)


class Embeddings:
    """The shards of a folder as one gallery, memory-mapped. `missing` lists the shards that are not written yet."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        if not path.is_file():
            raise FileNotFoundError(f"folder: expected the manifest of an embedding in {self.folder}, found no {path}")
        manifest = _manifest(path)
        self.items, self.rows, self.made_by = manifest["items"], manifest["rows"], manifest["made_by"]
        self.missing = [i for i in range(-(-self.items // self.rows)) if not _shard(self.folder, i).exists()]

    def __len__(self) -> int:
        return self.items

    def shards(self, rank: int = 0, ranks: int = 1) -> Iterator[tuple[int, Float[Tensor, "n d"]]]:
        """(number of its first row, rows) of each shard, of a rank's run of shards where there are several; float16, on disk until they are touched."""
        if self.missing:
            raise ValueError(
                f"folder: expected {-(-self.items // self.rows)} shards in {self.folder}, {len(self.missing)} are missing, first {self.missing[0]}"
            )
        count = -(-self.items // self.rows)
        for i in range(count * rank // ranks, count * (rank + 1) // ranks):
            array = _mapped(_shard(self.folder, i))
            expected = (min(self.rows, self.items - i * self.rows), self.width)
            if array.dtype != np.float16 or array.shape != expected:
                raise ValueError(f"folder: expected float16 {expected} in {_shard(self.folder, i)}, found {array.dtype} {array.shape}")
            yield i * self.rows, torch.from_numpy(array)

    @property
    def width(self) -> int:
        """Channels of a descriptor: those of the first shard, which all others must have."""
        return _mapped(_shard(self.folder, 0)).shape[-1]

    def part(self, rank: int = 0, ranks: int = 1, *, device: str | torch.device = "cpu") -> Float[Tensor, "n d"]:
        """A rank's run of shards in memory, as `sharded` wants it; of one rank the whole gallery."""
        n = sum(len(rows) for _, rows in self.shards(rank, ranks))
        whole, filled = torch.empty((n, self.width), dtype=torch.float16, device=device), 0
        for _, rows in self.shards(rank, ranks):
            whole[filled : filled + len(rows)] = rows.to(device)
            filled += len(rows)
        return whole

    def topk(self, queries: Float[Tensor, "q d"], k: int, *, backend: search.Backend = "auto") -> search.Neighbours:
        """`search.topk` over a gallery that no memory holds: shard by shard on the queries' device, the best of each merged."""
        if not 1 <= k <= len(self):
            raise ValueError(f"k: expected 1 <= k <= {len(self)} (the gallery's rows), found {k}")
        best = None
        for first, rows in self.shards():
            rows = rows.to(queries.device)
            found = search.rescored(search.topk(queries, rows, min(k, len(rows)), backend=backend), queries, rows, first)
            best = found if best is None else search.merged([best, found], k)
        return best


def _shard(folder: Path, i: int) -> Path:
    return folder / f"shard-{i:05d}.npy"


def _checked(value: Tensor, part: slice) -> np.ndarray:
    if value.ndim != 2 or len(value) != part.stop - part.start:
        raise ValueError(f"embed: expected descriptors of items {part.start}..{part.stop - 1} as rows, found shape {tuple(value.shape)}")
    half = value.detach().to("cpu", torch.float16)
    bad = (~half.isfinite()).any(dim=1).nonzero().flatten()
    if len(bad):
        raise ValueError(f"embed: expected finite descriptors within float16, found {len(bad)} that are not, first of item {part.start + int(bad[0])}")
    return half.numpy()


def _manifest(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
        if found["items"] < 1 or found["rows"] < 1 or found["dtype"] != "float16" or "made_by" not in found:
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"folder: expected a manifest with items, rows, dtype float16 and made_by in {path}, found another text") from error
    return found


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="c")
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"folder: expected a whole .npy file of float16 in {path}, found one that cannot be read: {error}") from error


def _complete(path: Path, write_to: Callable, *, first: bool = False) -> None:
    """Write beside the path and rename: the path is there complete or not at all. `first`: what another was first to write stays."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with open(beside, "wb") as file:
        write_to(file)
        file.flush()
        os.fsync(file.fileno())
    if not first:
        os.replace(beside, path)
        return
    try:
        os.link(beside, path)
    except FileExistsError:
        pass
    finally:
        beside.unlink()
