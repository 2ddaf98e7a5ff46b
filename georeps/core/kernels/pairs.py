"""All pairs of rows, reduced tile by tile, in memory of the rows: log-sum-exp of similarities, forwards and backwards.

    log_sum(x) = log sum_{i != j} exp(scale (<x_i, x_j> - 1))        for unit rows: the Gaussian potential of Eq. 3.5, scale = 2t
    d log_sum / d x_i = 2 scale sum_j p_ij x_j,     p_ij = exp(scale (<x_i, x_j> - 1) - log_sum)

Forwards nothing of a tile is kept but the largest exponent of each row and the sum beside it. Backwards the tiles are formed again, a band of
rows at a time, and multiplied with the rows by the library. Two kernels, and beside each the same in torch, for rows that no kernel can take.
"""

import math

import torch
from torch import Tensor

from georeps.core.kernels import cannot_run, product

try:
    import triton
    import triton.language as tl

    from georeps.core.kernels.search import TILE, _product, tile_constants
except ImportError:  # `cannot_run` says so
    triton = None

BAND = 2**25  # bytes of exponents held at a time, where any are; on a GPU eight times as much (a CPU is several times slower at more)

if triton is not None:

    @triton.jit
    def _exponents(x_ptr, y_ptr, scale, rows, columns, diagonal, n, m, D: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr):
        """scale (<x, y> - 1) in units of log 2; -1e30, finite so that differences are, where there is no such column, or it is the row's own."""
        score = _product(x_ptr, y_ptr, tl.minimum(rows, n - 1), tl.minimum(columns, m - 1), D, BLOCK_D, UPCAST)
        other = (columns < m)[None, :] & (columns[None, :] != (rows + diagonal)[:, None])
        return tl.where(other, (score - 1.0) * (scale * 1.4426950408889634), -1e30)

    @triton.jit
    def _log_sums(
        x_ptr, y_ptr, scale, n, m, diagonal, each, highest_ptr, sum_ptr, splits,
        D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
    ):  # fmt: skip
        rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
        split = tl.program_id(1)
        highest, total = tl.full([BLOCK_Q], -1e30, tl.float32), tl.zeros([BLOCK_Q], tl.float32)
        for tile in range(split * each, tl.minimum((split + 1) * each, tl.cdiv(m, BLOCK_G))):
            columns = tile * BLOCK_G + tl.arange(0, BLOCK_G)
            exponent = _exponents(x_ptr, y_ptr, scale, rows, columns, diagonal, n, m, D, BLOCK_D, UPCAST)
            above = tl.maximum(highest, tl.max(exponent, axis=1))
            total = total * tl.exp2(highest - above) + tl.sum(tl.exp2(exponent - above[:, None]), axis=1)
            highest = above
        tl.store(highest_ptr + rows * splits + split, highest, mask=rows < n)
        tl.store(sum_ptr + rows * splits + split, total, mask=rows < n)

    @triton.jit
    def _weights(
        x_ptr, y_ptr, scale, n, m, diagonal, highest_ptr, out_ptr,
        D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
    ):  # fmt: skip
        rows, columns = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q), tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G)
        exponent = _exponents(x_ptr, y_ptr, scale, rows, columns, diagonal, n, m, D, BLOCK_D, UPCAST)
        highest = tl.load(highest_ptr + rows, mask=rows < n, other=0.0) * 1.4426950408889634
        weight = tl.exp2(exponent - highest[:, None])
        at = rows.to(tl.int64)[:, None] * m + columns[None, :]
        tl.store(out_ptr + at, weight.to(out_ptr.dtype.element_ty), mask=(rows < n)[:, None] & (columns < m)[None, :])


def _constants(x: Tensor) -> dict:
    constants = tile_constants(x)
    del constants["GROUP"]
    return constants


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _log_sums_triton(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    constants = _constants(x)
    rows, tiles = triton.cdiv(len(x), constants["BLOCK_Q"]), triton.cdiv(len(x), TILE)
    splits = min(tiles, max(1, 512 // rows))  # enough programs for every multiprocessor where rows are few
    highest, total = torch.empty(2, len(x), splits, device=x.device).unbind()
    with torch.cuda.device_of(x):
        _log_sums[(rows, splits)](x, x, scale, len(x), len(x), 0, triton.cdiv(tiles, splits), highest, total, splits, **constants)
    highest = highest * math.log(2)
    return (highest + total.log()).logsumexp(dim=1), highest.amax(dim=1)


def _exponents_of(band: Tensor, x: Tensor, scale: float, first: int) -> Tensor:
    """In torch: scale (<x_i, x_j> - 1) of the rows from number `first` on, a row's own -inf."""
    exponent = product(band, x.T, _wide(x)).sub_(1).mul_(scale)
    row = torch.arange(len(band), device=x.device)
    exponent[row, row + first] = -math.inf
    return exponent


def _rows(x: Tensor, columns: int, size: float):
    """(first row, rows) of bands that hold at most BAND bytes of `size` a pair."""
    step = max(1, int(BAND / (size * max(1, columns))))
    return ((start, x[start : start + step]) for start in range(0, len(x), step))


@torch.library.custom_op("georeps::log_sum", mutates_args=())
def log_sum(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """log sum_{i != j} exp(scale (<x_i, x_j> - 1)), a scalar, and the largest exponent of each row, which its derivative asks for.

    Of two rows or more; in float64 for rows of float64, else in float32.
    """
    if cannot_run(x) is None:
        rows, highest = _log_sums_triton(x.contiguous(), scale)
        return rows.logsumexp(dim=0), highest
    parts, whole = [], x if x.is_cuda else x.to(_wide(x))  # made wide once, not for each band
    for start, band in _rows(x, len(x), 8):
        exponent = _exponents_of(band, whole, scale, start)
        highest = exponent.amax(dim=1)
        parts.append((exponent.sub_(highest[:, None]).exp_().sum(dim=1).log() + highest, highest))
    rows, highest = (torch.cat(p) for p in zip(*parts, strict=True))
    return rows.logsumexp(dim=0), highest


@log_sum.register_fake
def _(x, scale):
    return x.new_empty((), dtype=_wide(x)), x.new_empty(len(x), dtype=_wide(x))


@torch.library.custom_op("georeps::log_sum_backward", mutates_args=())
def log_sum_backward(grad: Tensor, x: Tensor, total: Tensor, highest: Tensor, scale: float) -> Tensor:
    """2 scale grad sum_j p_ij x_j: the weights of a band against its rows' largest exponents, so that 16 bits hold them, times the rows."""
    out = torch.empty_like(x)
    kernel = cannot_run(x) is None
    x = x.contiguous()
    summands = x if x.is_cuda else x.to(grad.dtype)
    for start, band in _rows(x, len(x), x.element_size() / 8 if kernel else 8):
        largest = highest[start : start + len(band)]
        if kernel:
            weight = torch.empty(len(band), len(x), dtype=x.dtype, device=x.device)
            constants = _constants(band)
            grid = (triton.cdiv(len(x), TILE), triton.cdiv(len(band), constants["BLOCK_Q"]))
            with torch.cuda.device_of(x):
                _weights[grid](band, x, scale, len(band), len(x), start, largest.contiguous(), weight, **constants)
        else:
            weight = _exponents_of(band, summands, scale, start).sub_(largest[:, None]).exp_().to(x.dtype)
        out[start : start + len(band)] = (product(weight, summands, grad.dtype) * (2 * scale * grad * (largest - total).exp())[:, None]).to(out.dtype)
    return out


@log_sum_backward.register_fake
def _(grad, x, total, highest, scale):
    return torch.empty_like(x)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], *output)
    ctx.scale = inputs[1]
    ctx.mark_non_differentiable(output[1])


def _derive(ctx, grad, _):
    x, total, highest = ctx.saved_tensors
    return log_sum_backward(grad, x, total, highest, ctx.scale), None


log_sum.register_autograd(_derive, setup_context=_keep)
