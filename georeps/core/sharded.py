"""Search over a gallery that lies in shards on several processes (torch.distributed): every rank has the queries and rows of its own; exact.

    neighbours   the k best of each shard, gathered; the k best of these
    ranks        the score of the match from the rank that holds it; how many rows of each shard reach it, summed

Gallery rows are numbered through the ranks, rank 0 first. All ranks call with the same queries and get the same answer, that of `search` in
one process; an error on one is raised on all, with its rank.
"""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor

from georeps.core import search

Group = dist.ProcessGroup | None  # None: all processes


def topk(queries: Float[Tensor, "q d"], shard: Float[Tensor, "s d"], k: int, *, group: Group = None, backend: search.Backend = "auto") -> search.Neighbours:
    """The k best rows of the whole gallery for each query, by their numbers in the whole gallery; ties by lower number."""
    first, total = _place(shard, group)
    if not 1 <= k <= total:
        raise ValueError(f"k: expected 1 <= k <= {total} (the rows of all shards), found {k}")

    def best() -> search.Neighbours:
        if not len(shard):
            return search.Neighbours(queries.new_zeros((len(queries), 0), dtype=torch.float32), torch.zeros_like(queries, dtype=torch.int64)[:, :0])
        return search.rescored(search.topk(queries, shard, min(k, len(shard)), backend=backend), queries, shard, first)

    own = _together(best, group)
    spare = k - own.index.shape[1]
    padded = (torch.nn.functional.pad(x, (0, spare), value=fill) for x, fill in zip(own, (-math.inf, 2**32 - 1), strict=True))
    scores, index = (_gathered(x.contiguous(), group) for x in padded)
    return search.merged([search.Neighbours(*part) for part in zip(scores, index, strict=True)], k)


def rank_of(
    queries: Float[Tensor, "q d"], shard: Float[Tensor, "s d"], target: Int64[Tensor, " q *p"], *, group: Group = None, backend: search.Backend = "auto"
) -> Int64[Tensor, " q *p"]:
    """`search.rank_of` over the whole gallery; targets are numbers in the whole gallery, -1 where a row of several has fewer."""
    first, total = _place(shard, group)
    targets = search.checked_targets(target, len(queries), total)
    held = (targets >= first) & (targets < first + len(shard))
    row, p = held.nonzero(as_tuple=True)
    own = torch.zeros(targets.shape, device=queries.device)
    own[row, p] = _together(lambda: search.pair_scores(queries, shard, row, targets[row, p] - first), group)
    dist.all_reduce(own, group=group)  # one rank holds it, the others say 0
    bar = torch.where(targets < 0, math.inf, own)
    left_out = torch.where(held, targets - first, -1)
    ranks = _together(lambda: search.at_least(queries, shard, bar, left_out, backend=backend) if len(shard) else torch.zeros_like(targets), group)
    dist.all_reduce(ranks, group=group)
    return torch.where(targets < 0, -1, ranks).reshape(target.shape)


def _sizes(shard: Tensor, group: Group) -> list[int]:
    shapes = [tuple(x.tolist()) for x in _gathered(torch.tensor(shard.shape, device=shard.device), group)]
    if len({width for _, width in shapes}) > 1:
        raise ValueError(f"shard: expected one width on all ranks, found {', '.join(str(width) for _, width in shapes)}")
    return [n for n, _ in shapes]


def _place(shard: Tensor, group: Group) -> tuple[int, int]:
    """The number of this rank's first row, and of all rows."""
    sizes = _sizes(shard, group)
    if not sum(sizes):
        raise ValueError("shard: expected at least one row on some rank, found none")
    return sum(sizes[: dist.get_rank(group)]), sum(sizes)


def _gathered(x: Tensor, group: Group) -> list[Tensor]:
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x, group=group)
    return parts


def _together(work: Callable, group: Group):
    """What work gives; where it fails on any rank it is an error on all, or the others would wait for ever."""
    result, error = None, None
    try:
        result = work()
    except Exception as found:  # of any kind, out of memory too
        error = str(found) if isinstance(found, ValueError) else f"{type(found).__name__}: {found}"
    errors: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(errors, error, group=group)
    said = [f"rank {rank}: {text}" for rank, text in enumerate(errors) if text]
    if said:
        raise ValueError("; ".join(said))
    return result
