"""Embeddings in files: float16 shards with a manifest, written once, taken up again after a kill, read without loading.

    folder/manifest.json      how many rows, how many a shard, and what made them
    folder/shard-00000.npy    float16 "n d", any library reads it

A shard takes its name only when it is complete, so that what has a name is never done again. Ranks write shards in turns.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from georeps import search

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
    path = folder / "manifest.json"
    if path.exists():
        found = json.loads(path.read_text())
        differ = [k for k in manifest if found.get(k) != manifest[k]]
        if differ:
            raise ValueError(f"folder: expected {differ[0]} {manifest[differ[0]]!r} in {path}, found {found.get(differ[0])!r}: embed into another folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        _complete(path, lambda f: f.write(json.dumps(manifest, indent=1).encode()))
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
        manifest = json.loads(path.read_text())
        self.items, self.rows, self.made_by = manifest["items"], manifest["rows"], manifest["made_by"]
        self.missing = [i for i in range(-(-self.items // self.rows)) if not _shard(self.folder, i).exists()]

    def __len__(self) -> int:
        return self.items

    def shards(self, rank: int = 0, ranks: int = 1) -> Iterator[tuple[int, Float[Tensor, "n d"]]]:
        """(number of its first row, rows) of each shard, of a rank's run of shards where there are several; float16, on disk until they are touched."""
        if self.missing:
            raise ValueError(f"folder: expected {-(-self.items // self.rows)} shards in {self.folder}, {len(self.missing)} are missing, first {self.missing[0]}")
        count = -(-self.items // self.rows)
        width = None
        for i in range(count * rank // ranks, count * (rank + 1) // ranks):
            array = np.load(_shard(self.folder, i), mmap_mode="c")
            expected = (min(self.rows, self.items - i * self.rows), width or array.shape[-1])
            if array.dtype != np.float16 or array.shape != expected:
                raise ValueError(f"folder: expected float16 {expected} in {_shard(self.folder, i)}, found {array.dtype} {array.shape}")
            width = array.shape[1]
            yield i * self.rows, torch.from_numpy(array)

    def part(self, rank: int = 0, ranks: int = 1, *, device: str | torch.device = "cpu") -> Float[Tensor, "n d"]:
        """A rank's run of shards in memory, as `sharded` wants it; of one rank the whole gallery."""
        parts = [rows.to(device) for _, rows in self.shards(rank, ranks)]
        return torch.cat(parts) if parts else next(self.shards())[1][:0].to(device)

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


def _complete(path: Path, write_to: Callable) -> None:
    """Write beside the path and rename: the path is there complete or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(beside, "wb") as file:
        write_to(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
