"""Exact nearest-neighbour search over descriptors.

    score(q, g) = <q, g>;  Neighbours = the k best of the gallery, descending;  equal scores: lower gallery index first
    rank(q) = number of gallery rows, the match left out, whose score is >= the score of the match

A float32 matrix product rounds the same inner product differently from block to block and from library to library, so
two equal gallery rows need not get equal scores. Scores closer than that rounding are therefore compared again as
float64 inner products rounded to float32: neighbours, ranks and ties are then the same for every backend, block size
and number of threads, and a collapsed model (all descriptors equal) gets the rank it deserves, the last.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

try:
    import faiss
except ImportError:  # an optional peer: torch alone does the same, more slowly on CPU
    faiss = None

Backend = Literal["auto", "torch", "faiss"]
MEMORY_BUDGET = 256 * 2**20  # bytes of scores held at a time
SLACK = 8  # candidates kept beyond k, so that a tie at the k-th place is seen


class Neighbours(NamedTuple):
    scores: Float[Tensor, "q k"]
    index: Int64[Tensor, "q k"]


def topk(
    queries: Float[Tensor, "q d"],
    gallery: Float[Tensor, "g d"],
    k: int,
    *,
    backend: Backend = "auto",
    memory: int = MEMORY_BUDGET,
) -> Neighbours:
    """The k gallery rows of largest inner product for each query, in descending order; ties by lower gallery index.

    Descriptors may be float16 (stored) or float32; products accumulate and compare in float32. The torch backend never
    holds more than `memory` bytes of scores, faiss has tiles of its own. Raises ValueError for a non-finite descriptor, an
    empty gallery, k outside 1..g, unequal widths, or a backend that cannot run here.
    """
    tolerance = _checked(queries, gallery)
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k: expected 1 <= k <= {len(gallery)} (the gallery's rows), found {k}")
    width = min(k + SLACK, len(gallery))
    if _backend(backend, queries) == "faiss":
        scores, index = _candidates_faiss(queries, gallery, width)
    else:
        scores, index = _candidates_torch(queries, gallery, width, memory)
    scores, index, rows = _order_ties(scores, index, queries, gallery, tolerance)
    if width < len(gallery):  # a tie may reach past the candidates: those rows are searched again, exactly
        rows = rows & (scores[:, k - 1] - scores[:, -1] <= tolerance)
        scores, index = scores[:, :k].contiguous(), index[:, :k].contiguous()
        for block in _blocks(rows):
            scores[block], index[block] = _topk_exact(queries[block], gallery, k, memory)
    return Neighbours(scores[:, :k], index[:, :k])


def rank_of(
    queries: Float[Tensor, "q d"],
    gallery: Float[Tensor, "g d"],
    target: Int64[Tensor, "q"],
    *,
    backend: Backend = "auto",
    memory: int = MEMORY_BUDGET,
) -> Int64[Tensor, "q"]:
    """Rank of each query's match, 0 = best: how many other gallery rows score at least as high as row `target`.

    A tie counts against the query (published code compares strictly and gives a collapsed model 100%). Counting needs
    no sort and holds at most `memory` bytes of scores. Raises ValueError as `topk` does, and for a target outside 0..g-1.
    """
    tolerance = _checked(queries, gallery)
    if target.shape != queries.shape[:1]:
        raise ValueError(f"target: expected one gallery index a query, {len(queries)}, found shape {tuple(target.shape)}")
    if len(target) and not (0 <= int(target.min()) and int(target.max()) < len(gallery)):
        bad = target[(target < 0) | (target >= len(gallery))][0]
        raise ValueError(f"target: expected gallery indices in 0..{len(gallery) - 1}, found {int(bad)}")
    _backend(backend, queries)  # counting is one matrix product and a comparison: torch on every device
    own = _pair_scores(queries, gallery, torch.arange(len(queries), device=queries.device), target)
    ranks = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for rows, columns, score in _score_tiles(queries, gallery, memory):
        inside = (target[rows] >= columns.start) & (target[rows] < columns.stop)
        score[inside.nonzero().flatten(), target[rows][inside] - columns.start] = -math.inf
        above = score > (own + tolerance)[rows, None]
        near = (score >= (own - tolerance)[rows, None]) ^ above
        ranks[rows] += _count(above) + _count_near(near, queries[rows], gallery[columns], own[rows])
    return ranks


def nearest(
    queries: Float[Tensor, "q d"], gallery: Float[Tensor, "g d"], *, memory: int = MEMORY_BUDGET
) -> Float[Tensor, "q"]:
    """Squared Euclidean distance of each query to its closest gallery row.

    Candidates are the rows of largest <q, g> - |g|^2 / 2, both centred on the gallery's mean; their distances are then taken
    in float64 from the differences, which do not cancel. Where more rows stand within rounding of the best than were kept,
    the query is searched again in float64.
    """
    _checked(queries, gallery)
    centre = gallery.double().mean(dim=0).float()
    q, g = queries.float() - centre, gallery.float() - centre
    half_norm = g.double().square().sum(1) / 2
    width = min(SLACK, len(g))
    scores, index = _candidates_torch(q, g, width, memory, bias=-half_norm.float())
    if width < len(g):
        unsure = scores[:, 0] - scores[:, -1] <= _rounding(q.norm(dim=1) + g.norm(dim=1).max(), g.norm(dim=1).max(), q.shape[1])
        for block in _blocks(unsure):
            index[block, 0] = _closest_exact(q[block].double(), g, half_norm)
    distances = [
        (query[:, None].double() - gallery[at].double()).square().sum(-1).amin(1).float()
        for query, at in zip(queries.split(256), index.split(256), strict=True)
    ]
    return torch.cat(distances) if distances else q.new_zeros(0)


def _closest_exact(queries: Tensor, gallery: Tensor, half_norm: Tensor) -> Int64[Tensor, "q"]:
    best = torch.full((len(queries),), -math.inf, dtype=torch.float64, device=queries.device)
    index = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for start in range(0, len(gallery), 16384):
        part = slice(start, start + 16384)
        value, at = (queries @ gallery[part].double().T - half_norm[part]).max(dim=1)
        index = torch.where(value > best, at + start, index)
        best = torch.maximum(value, best)
    return index


def _checked(queries: Tensor, gallery: Tensor) -> Float[Tensor, "q"]:
    """Raise on bad input; otherwise the gap below which two float32 scores of a query may be equal."""
    if queries.ndim != 2 or gallery.ndim != 2:
        raise ValueError(f"queries, gallery: expected two axes each, found {queries.ndim} and {gallery.ndim}")
    if len(gallery) == 0:
        raise ValueError("gallery: expected at least one row, found none")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"gallery: expected the queries' width {queries.shape[1]}, found {gallery.shape[1]}")
    norms = [_finite_norms(name, x) for name, x in (("queries", queries), ("gallery", gallery))]
    return _rounding(norms[0], norms[1].max(), queries.shape[1])


def _rounding(query_norm: Tensor, gallery_norm: Tensor | float, d: int) -> Tensor:
    """Gap that float32 rounding may open or close between two d-term inner products: errors add like a random walk."""
    return torch.finfo(torch.float32).eps * math.sqrt(d) * query_norm * gallery_norm


def _finite_norms(name: str, x: Tensor) -> Float[Tensor, "n"]:
    """Row norms in one pass; a norm that is not finite shows the row that is not."""
    norms = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
    bad = (~norms.isfinite()).nonzero().flatten()
    if len(bad):
        raise ValueError(f"{name}: expected finite descriptors, found {len(bad)} rows with NaN or infinity, first row {int(bad[0])}")
    return norms


def _backend(name: str, queries: Tensor) -> str:
    if name not in ("auto", "torch", "faiss"):
        raise ValueError(f"backend: expected 'auto', 'torch' or 'faiss', found {name!r}")
    if name == "faiss" and (faiss is None or queries.device.type != "cpu"):
        why = "faiss is not installed (pip install faiss-cpu)" if faiss is None else f"it searches on CPU, the queries are on {queries.device}"
        raise ValueError(f"backend: 'faiss' cannot run here: {why}")
    if name == "auto":
        return "faiss" if faiss is not None and queries.device.type == "cpu" else "torch"
    return name


def _score_tiles(queries: Tensor, gallery: Tensor, memory: int):
    """(rows, columns, scores) of tiles that cover the score matrix; the next tile overwrites the last one's scores.

    A tile holds whole rows where at least 64 of them fit: small tiles cost a matrix product its speed.
    """
    cells = max(memory // 4, 1024)
    width = min(len(gallery), max(1024, cells // min(64, max(1, len(queries)))))
    height = max(1, min(len(queries), cells // width))
    buffer = torch.empty(height * width, device=queries.device)
    for top in range(0, len(queries), height):
        rows = slice(top, min(top + height, len(queries)))
        block = queries[rows].float()
        for left in range(0, len(gallery), width):
            columns = slice(left, min(left + width, len(gallery)))
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            score = buffer[: shape[0] * shape[1]].view(shape)
            yield rows, columns, torch.mm(block, gallery[columns].float().T, out=score)


def _blocks(rows: Bool[Tensor, "q"]):
    """The marked rows, 256 at a time; none where none is marked."""
    return [block for block in rows.nonzero().flatten().split(256) if len(block)]


def _candidates_faiss(queries: Tensor, gallery: Tensor, width: int) -> Neighbours:
    scores, index = faiss.knn(
        queries.float().contiguous().numpy(), gallery.float().contiguous().numpy(), width, metric=faiss.METRIC_INNER_PRODUCT
    )
    return Neighbours(torch.from_numpy(scores), torch.from_numpy(index))


def _candidates_torch(
    queries: Tensor, gallery: Tensor, width: int, memory: int, bias: Tensor | None = None
) -> Neighbours:
    scores = torch.full((len(queries), width), -math.inf, device=queries.device)
    index = torch.zeros(len(queries), width, dtype=torch.int64, device=queries.device)
    for rows, columns, score in _score_tiles(queries, gallery, memory):
        if bias is not None:
            score += bias[columns]
        value, at = score.topk(min(width, score.shape[1]), dim=1)
        if score.shape[1] < len(gallery):
            merged = torch.cat([scores[rows], value], dim=1)
            at = torch.cat([index[rows], at + columns.start], dim=1)
            value, order = merged.topk(width, dim=1)
            at = at.gather(1, order)
        scores[rows], index[rows] = value, at
    return Neighbours(scores, index)


def _order_ties(
    scores: Tensor, index: Tensor, queries: Tensor, gallery: Tensor, tolerance: Tensor
) -> tuple[Tensor, Tensor, Bool[Tensor, "q"]]:
    """Rescore what stands within rounding of a neighbour and put those rows in order; say which rows had any.

    In numpy on every device: these arrays are small, and on CPU the threads of faiss and torch get in each other's way.
    """
    s, at = scores.cpu().numpy(), index.cpu().numpy()
    close = s[:, :-1] - s[:, 1:] <= tolerance.cpu().numpy()[:, None]
    near = np.zeros(s.shape, bool)
    near[:, :-1] |= close
    near[:, 1:] |= close
    row, column = near.nonzero()
    pairs = (torch.from_numpy(x).to(queries.device) for x in (row, at[row, column]))
    s[row, column] = _pair_scores(queries, gallery, *pairs).cpu().numpy()
    swapped = (s[:, :-1] < s[:, 1:]) | ((s[:, :-1] == s[:, 1:]) & (at[:, :-1] > at[:, 1:]))
    wrong = swapped.any(axis=1)
    order = np.lexsort((at[wrong], -s[wrong]), axis=1)
    s[wrong], at[wrong] = (np.take_along_axis(x[wrong], order, axis=1) for x in (s, at))
    return *(torch.from_numpy(x).to(queries.device) for x in (s, at)), torch.from_numpy(near.any(axis=1)).to(queries.device)


def _count(mask: Bool[Tensor, "r c"]) -> Int64[Tensor, "r"]:
    """True cells of each row; on CPU by numpy, whose count is seven times faster than the sum of a bool tensor."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=1))
    return mask.sum(dim=1)


def _pair_scores(queries: Tensor, gallery: Tensor, row: Tensor, column: Tensor) -> Float[Tensor, "n"]:
    """Float64 inner products of listed pairs, rounded to float32."""
    parts = [
        (queries[r].double() * gallery[c].double()).sum(1).float()
        for r, c in zip(row.split(16384), column.split(16384), strict=True)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, device=queries.device)


def _count_near(near: Bool[Tensor, "r c"], queries: Tensor, gallery: Tensor, own: Tensor) -> Int64[Tensor, "r"]:
    """Of the pairs marked near, those whose float64 score, rounded to float32, is at least the match's own."""
    many = _count(near) > max(256, near.shape[1] // 16)
    count = torch.zeros(len(near), dtype=torch.int64, device=near.device)
    for block in _blocks(many):
        score = (queries[block].double() @ gallery.double().T).float()
        count[block] = _count(near[block] & (score >= own[block, None]))
    row, column = (near & ~many[:, None]).nonzero(as_tuple=True)
    reached = _pair_scores(queries, gallery, row, column) >= own[row]
    return count.index_add_(0, row, reached.long())


def _topk_exact(queries: Tensor, gallery: Tensor, k: int, memory: int) -> Neighbours:
    """Float64 scores rounded to float32, merged by stable sorts: ties keep gallery order."""
    scores = torch.empty(len(queries), 0, device=queries.device)
    index = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    step = max(1024, memory // (16 * len(queries)))
    for start in range(0, len(gallery), step):
        part = (queries.double() @ gallery[start : start + step].double().T).float()
        at = torch.arange(start, start + part.shape[1], device=queries.device).expand(len(queries), -1)
        scores, order = torch.cat([scores, part], dim=1).sort(dim=1, descending=True, stable=True)
        index = torch.cat([index, at], dim=1).gather(1, order)[:, :k]
        scores = scores[:, :k]
    return Neighbours(scores, index)
