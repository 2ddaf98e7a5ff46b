"""Kernels of exact search: a tiled matrix product, and what is done with a tile of scores before it is forgotten.

    score(q, g) = <q, g> + bias(g)    or    -(1 - w) Q(z_image) - w Q(z_text),    Q(z) = 1 - Phi(z)        (WeiCom less 1, Eq. 5.2)

    best       the largest score of every bin of columns: the k-th largest bin maximum bounds the k-th largest score from below
    collect    the columns whose score reaches the row's bar, with their scores
    count      how many columns score above an interval about a positive's score, and which lie in it
    exact      float64 inner products of listed pairs

Rows of the gallery are visited in a scattered order, so that the first of them speak for all and a bin holds no class by itself, in
whatever order a gallery is kept.
The specification of all of them is `georeps.core.search`, which alone calls them, and compares again in float64 what lies within rounding.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from georeps.core.kernels import INTERPRETED, scatter_step

TILE = 128  # columns of a tile


@triton.jit
def _tail(z):
    """Q(z) = 1 - Phi(z), to a relative 2e-5 up to z = 12 (there 1 - erf would cancel): exp(-x^2) times a polynomial in (x - 2) / (x + 2), fitted."""
    x = tl.abs(z) * 0.7071067811865476
    u = (x - 2.0) / (x + 2.0)
    p = -0.000992431992 - 0.000199496802 * u
    p = 0.00833487212 + u * (0.00107908401 + u * p)
    p = -0.054084752 + u * (-0.00796997458 + u * p)
    p = -0.166047114 + u * (0.164043528 + u * p)
    p = 1.27697872 + u * (-0.0927636725 + u * p)
    upper = 0.5 * p / (1.0 + 2.0 * x) * tl.exp(-x * x)
    return tl.where(z < 0.0, 1.0 - upper, upper)


@triton.jit
def _product(q_ptr, g_ptr, rows, columns, D: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr):
    """Inner products of the rows at `rows` and `columns`, accumulated in float32."""
    depth = tl.arange(0, BLOCK_D)
    q_at = q_ptr + rows.to(tl.int64)[:, None] * D + depth[None, :]
    g_at = g_ptr + columns.to(tl.int64)[None, :] * D + depth[:, None]
    score = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    for start in range(0, D, BLOCK_D):
        if D % BLOCK_D == 0:
            q, g = tl.load(q_at + start), tl.load(g_at + start)
        else:
            q = tl.load(q_at + start, mask=(depth < D - start)[None, :], other=0.0)
            g = tl.load(g_at + start, mask=(depth < D - start)[:, None], other=0.0)
        if UPCAST:
            q, g = q.to(tl.float32), g.to(tl.float32)
        score = tl.dot(q, g, score, input_precision="ieee")
    return score


@triton.jit
def _scores(
    q_ptr, text_ptr, g_ptr, bias_ptr, stats_ptr, weight, rows, columns, n_q, n_g,
    D: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr, BIAS: tl.constexpr, WEICOM: tl.constexpr,
):  # fmt: skip
    """A tile of scores; rows and columns beyond the last repeat it, for the caller to mask."""
    rows, columns = tl.minimum(rows, n_q - 1), tl.minimum(columns, n_g - 1)
    score = _product(q_ptr, g_ptr, rows, columns, D, BLOCK_D, UPCAST)
    if BIAS:
        score += tl.load(bias_ptr + columns)[None, :]
    if WEICOM:  # stats: mean and 1 / deviation of the image's scores over the gallery, then of the text's
        at = stats_ptr + rows * 4
        image = _tail((score - tl.load(at)[:, None]) * tl.load(at + 1)[:, None])
        text = _product(text_ptr, g_ptr, rows, columns, D, BLOCK_D, UPCAST)
        text = _tail((text - tl.load(at + 2)[:, None]) * tl.load(at + 3)[:, None])
        score = -(1.0 - weight) * image - weight * text
    return score


@triton.jit
def _place(n_q, first, BLOCK_Q: tl.constexpr, GROUP: tl.constexpr):
    """(row tile, gallery tile) of this program, the latter from `first`: GROUP row tiles share the gallery tiles they read."""
    program = tl.program_id(0)
    row_tiles = tl.cdiv(n_q, BLOCK_Q)
    visited = tl.num_programs(0) // row_tiles
    group = program // (GROUP * visited)
    height = tl.minimum(row_tiles - group * GROUP, GROUP)
    inside = program - group * GROUP * visited
    return group * GROUP + inside % height, first + inside // height


@triton.jit
def _scattered_columns(tile, scatter, n_g, BLOCK_G: tl.constexpr):
    """The columns at the places of this tile in the scattered order, and which of the places there are."""
    place = tile * BLOCK_G + tl.arange(0, BLOCK_G)
    return (place.to(tl.int64) * scatter % n_g).to(tl.int32), place < n_g


@triton.jit
def _slots(count_ptr, kept, rows, columns, SIZE: tl.constexpr):
    """A slot in its row's list for every cell that is kept, with the cell's row and column; flat, in 32 bits, which saves registers.

    In no order, by atomics: few are kept. A running sum along the row would keep the order and spill registers.
    """
    row = tl.reshape(rows[:, None] + tl.zeros_like(columns)[None, :], [SIZE])
    column = tl.reshape(tl.zeros_like(rows)[:, None] + columns[None, :], [SIZE])
    return tl.atomic_add(count_ptr + row, 1, mask=tl.reshape(kept, [SIZE]), sem="relaxed"), row, column


@triton.jit
def _best(
    q_ptr, text_ptr, g_ptr, bias_ptr, stats_ptr, weight, n_q, n_g, scatter, out_ptr, BIN: tl.constexpr,
    D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
    UPCAST: tl.constexpr, BIAS: tl.constexpr, WEICOM: tl.constexpr,
):  # fmt: skip
    row_tile, tile = _place(n_q, 0, BLOCK_Q, GROUP)
    visited = tl.num_programs(0) // tl.cdiv(n_q, BLOCK_Q)
    rows = row_tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns, there = _scattered_columns(tile, scatter, n_g, BLOCK_G)
    score = _scores(q_ptr, text_ptr, g_ptr, bias_ptr, stats_ptr, weight, rows, columns, n_q, n_g, D, BLOCK_D, UPCAST, BIAS, WEICOM)
    score = tl.where(there[None, :], score, -float("inf"))
    largest = tl.max(tl.reshape(score, [BLOCK_Q, BLOCK_G // BIN, BIN]), axis=2)
    at = rows.to(tl.int64)[:, None] * (visited * (BLOCK_G // BIN)) + tile * (BLOCK_G // BIN) + tl.arange(0, BLOCK_G // BIN)[None, :]
    tl.store(out_ptr + at, largest, mask=(rows < n_q)[:, None])


@triton.jit
def _collect(
    q_ptr, text_ptr, g_ptr, bias_ptr, stats_ptr, weight, n_q, n_g, scatter, first, bar_ptr, count_ptr, score_ptr, index_ptr,
    room, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
    UPCAST: tl.constexpr, BIAS: tl.constexpr, WEICOM: tl.constexpr,
):  # fmt: skip
    row_tile, tile = _place(n_q, first, BLOCK_Q, GROUP)
    rows = row_tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns, there = _scattered_columns(tile, scatter, n_g, BLOCK_G)
    score = _scores(q_ptr, text_ptr, g_ptr, bias_ptr, stats_ptr, weight, rows, columns, n_q, n_g, D, BLOCK_D, UPCAST, BIAS, WEICOM)
    bar = tl.load(bar_ptr + rows, mask=rows < n_q, other=float("inf"))
    kept = (score >= bar[:, None]) & there[None, :] & (rows < n_q)[:, None]
    slot, row, column = _slots(count_ptr, kept, rows, columns, BLOCK_Q * BLOCK_G)
    fits = tl.reshape(kept, [BLOCK_Q * BLOCK_G]) & (slot < room)
    tl.store(score_ptr + row * room + slot, tl.reshape(score, [BLOCK_Q * BLOCK_G]), mask=fits)
    tl.store(index_ptr + row * room + slot, column, mask=fits)


@triton.jit
def _count(
    q_ptr, text_ptr, g_ptr, bias_ptr, stats_ptr, weight, n_q, n_g, low_ptr, high_ptr, target_ptr, above_ptr, near_ptr, index_ptr,
    room, P: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
    UPCAST: tl.constexpr, BIAS: tl.constexpr, WEICOM: tl.constexpr,
):  # fmt: skip
    row_tile, tile = _place(n_q, 0, BLOCK_Q, GROUP)
    rows, columns = row_tile * BLOCK_Q + tl.arange(0, BLOCK_Q), tile * BLOCK_G + tl.arange(0, BLOCK_G)
    score = _scores(q_ptr, text_ptr, g_ptr, bias_ptr, stats_ptr, weight, rows, columns, n_q, n_g, D, BLOCK_D, UPCAST, BIAS, WEICOM)
    there = rows < n_q
    score = tl.where(there[:, None] & (columns < n_g)[None, :], score, -float("inf"))
    for p in range(P):
        own = rows * P + p
        low, high = tl.load(low_ptr + own, mask=there, other=0.0), tl.load(high_ptr + own, mask=there, other=0.0)
        other = columns[None, :] != tl.load(target_ptr + own, mask=there, other=-1)[:, None]
        above = other & (score > high[:, None])
        tl.atomic_add(above_ptr + own, tl.sum(above.to(tl.int32), axis=1), mask=there, sem="relaxed")
        near = other & (score >= low[:, None]) & (score <= high[:, None])
        slot, row, column = _slots(near_ptr, near, own, columns, BLOCK_Q * BLOCK_G)
        tl.store(index_ptr + row * room + slot, column, mask=tl.reshape(near, [BLOCK_Q * BLOCK_G]) & (slot < room))


@triton.jit
def _exact(q_ptr, g_ptr, row_ptr, column_ptr, out_ptr, n, D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr):
    pairs = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    row = tl.load(row_ptr + pairs, mask=pairs < n, other=0).to(tl.int64)
    column = tl.load(column_ptr + pairs, mask=pairs < n, other=0).to(tl.int64)
    depth = tl.arange(0, BLOCK_D)
    score = tl.zeros([BLOCK_P], tl.float64)
    for start in range(0, D, BLOCK_D):
        there = (depth < D - start)[None, :]
        q = tl.load(q_ptr + row[:, None] * D + (start + depth)[None, :], mask=there, other=0.0)
        g = tl.load(g_ptr + column[:, None] * D + (start + depth)[None, :], mask=there, other=0.0)
        score += tl.sum(q.to(tl.float64) * g.to(tl.float64), axis=1)
    tl.store(out_ptr + pairs, score, mask=pairs < n)


def tile_constants(queries: Tensor, narrow: bool = False) -> dict[str, int | bool]:
    """Tile sizes: fewer rows where there are fewer or two products share the registers, half the depth where numbers are twice as long."""
    return {
        "D": queries.shape[1], "BLOCK_Q": 64 if narrow or len(queries) <= 64 else 128, "BLOCK_G": TILE, "BLOCK_D": 128 // queries.element_size(),
        "GROUP": 16, "UPCAST": INTERPRETED and queries.dtype == torch.bfloat16, "num_warps": 8, "num_stages": 3,
    }  # fmt: skip


def _given(
    queries: Tensor, texts: Tensor | None, gallery: Tensor, bias: Tensor | None, stats: Tensor | None, weight: float, narrow: bool = False
) -> tuple[tuple, dict, int]:
    """The arguments that all kernels begin with, their constants, and the tiles of queries; what is not used is pointed at the queries."""
    first = (queries, queries if texts is None else texts, gallery, *(queries if x is None else x for x in (bias, stats)))
    constants = tile_constants(queries, narrow or stats is not None) | {"BIAS": bias is not None, "WEICOM": stats is not None}
    return (*first, weight, len(queries), len(gallery)), constants, triton.cdiv(len(queries), constants["BLOCK_Q"])


@torch.library.custom_op("georeps::best", mutates_args=())
def best(queries: Tensor, gallery: Tensor, tiles: int, bin: int, bias: Tensor | None = None) -> Tensor:
    """Largest score of each bin of `bin` rows, float32 "q n", over the first `tiles` tiles of the gallery in scattered order."""
    given, constants, rows = _given(queries, None, gallery, bias, None, 0.0)
    out = queries.new_empty((len(queries), tiles * TILE // bin), dtype=torch.float32)
    with torch.cuda.device_of(queries):
        _best[(rows * tiles,)](*given, scatter_step(len(gallery)), out, BIN=bin, **constants)
    return out


@best.register_fake
def _(queries, gallery, tiles, bin, bias=None):
    return queries.new_empty((len(queries), tiles * TILE // bin), dtype=torch.float32)


@torch.library.custom_op("georeps::collect", mutates_args=())
def collect(
    queries: Tensor, gallery: Tensor, bar: Tensor, first: int, tiles: int, room: int, bias: Tensor | None = None, texts: Tensor | None = None,
    stats: Tensor | None = None, weight: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Per query the number of columns of `tiles` gallery tiles that reach its bar, and of `room` of these scores and index, in no order; -inf fills."""
    given, constants, rows = _given(queries, texts, gallery, bias, stats, weight)
    n = _counted(len(queries), room)
    count = torch.zeros(n, dtype=torch.int32, device=queries.device)
    score = torch.full((n, room), -math.inf, device=queries.device)
    index = torch.zeros((n, room), dtype=torch.int32, device=queries.device)
    with torch.cuda.device_of(queries):
        _collect[(rows * tiles,)](*given, scatter_step(len(gallery)), first, bar, count, score, index, room, **constants)
    return count, score, index


@collect.register_fake
def _(queries, gallery, bar, first, tiles, room, bias=None, texts=None, stats=None, weight=0.0):
    n = len(queries)
    return bar.new_empty(n, dtype=torch.int32), bar.new_empty((n, room)), bar.new_empty((n, room), dtype=torch.int32)


def _counted(rows: int, room: int) -> int:
    if rows * room >= 2**31:
        raise ValueError(f"queries: expected fewer than {2**31 // room} at a time (the kernels count places in 32 bits), found {rows}")
    return rows


@torch.library.custom_op("georeps::count", mutates_args=())
def count(
    queries: Tensor, gallery: Tensor, low: Tensor, high: Tensor, target: Tensor, room: int, texts: Tensor | None = None,
    stats: Tensor | None = None, weight: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """For low, high, target "q p": how many other columns score above high, how many within [low, high], and `room` of the latter, in no order."""
    _counted(target.numel(), room)
    given, constants, rows = _given(queries, texts, gallery, None, stats, weight, narrow=target.shape[1] > 1)
    above, near = (torch.zeros(target.shape, dtype=torch.int32, device=target.device) for _ in range(2))
    index = torch.zeros((*target.shape, room), dtype=torch.int32, device=target.device)
    bounds = (low.contiguous(), high.contiguous(), target.int().contiguous())
    with torch.cuda.device_of(queries):
        tiles = triton.cdiv(len(gallery), TILE)
        _count[(rows * tiles,)](*given, *bounds, above, near, index, room, P=target.shape[1], **constants)
    return above, near, index


@count.register_fake
def _(queries, gallery, low, high, target, room, texts=None, stats=None, weight=0.0):
    return tuple(target.new_empty(shape, dtype=torch.int32) for shape in (target.shape, target.shape, (*target.shape, room)))


@torch.library.custom_op("georeps::exact", mutates_args=())
def exact(queries: Tensor, gallery: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Inner products of the pairs (row, column) in float64."""
    out = torch.empty(len(row), dtype=torch.float64, device=queries.device)
    constants = {"D": queries.shape[1], "BLOCK_P": 16, "BLOCK_D": min(256, triton.next_power_of_2(queries.shape[1]))}
    if len(row):
        with torch.cuda.device_of(queries):
            _exact[(triton.cdiv(len(row), 16),)](queries, gallery, row.contiguous(), column.contiguous(), out, len(row), **constants)
    return out


@exact.register_fake
def _(queries, gallery, row, column):
    return queries.new_empty(len(row), dtype=torch.float64)


def candidates(queries: Tensor, gallery: Tensor, width: int, *, bias: Tensor | None = None, first: int = 8192) -> tuple[Tensor, Tensor, Tensor]:
    """The `width` best columns of each row by float32 scores, descending, ties in any order: scores, index (int64), and where that is not sure.

    The bar of a row is the width-th best score of the rows already seen; it begins with the width-th largest bin maximum of the first
    tiles. What reaches it is kept, merged each time that four times as many are seen. `first` is the least number of columns for the bar;
    as many as the gallery has make it two passes, the second with a fixed bar. Not sure: where more columns reached the bar than there was room for.
    """
    total = triton.cdiv(len(gallery), TILE)
    bin = next((b for b in (128, 64, 32, 16) if len(gallery) >= 4 * width * b and first >= len(gallery)), 16)
    tiles = min(total, triton.cdiv(max(first, 4 * width * bin), TILE))
    if tiles * TILE // bin < width:
        raise ValueError(f"width: expected at most {total * TILE // 16}, a sixteenth of the gallery's {len(gallery)} rows, found {width}")
    bar = best(queries, gallery, tiles, bin, bias).topk(width, dim=1).values[:, -1].contiguous()
    scores = torch.full((len(queries), width), -math.inf, device=queries.device)
    index = torch.zeros((len(queries), width), dtype=torch.int32, device=queries.device)
    unsure = torch.zeros(len(queries), dtype=torch.bool, device=queries.device)
    room, start = 4 * width + 64, 0
    while start < total:
        step = min(max(tiles, 3 * start), total - start)
        found, score, at = collect(queries, gallery, bar, start, step, room, bias)
        unsure |= found > room
        scores, order = torch.cat([scores, score], dim=1).topk(width, dim=1)
        index = torch.cat([index, at], dim=1).gather(1, order)
        bar, start = torch.maximum(bar, scores[:, -1]), start + step
    return scores, index.long(), unsure | (scores[:, -1] == -math.inf)
