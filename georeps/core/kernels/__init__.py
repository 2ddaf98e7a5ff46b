"""Triton kernels of the retrieval core; each stands behind the torch version that specifies it and is reached through that.

    search.py    scores, tile by tile: bin maxima, survivors of a bar, ranks; of inner products or of WeiCom
    pairs.py     sums over all pairs of rows: log-sum-exp and its derivative
    report.py    what the compiler makes of them, without a GPU: registers, spills, shared memory

A score is formed in float32 from float16, bfloat16 or float32 rows, is looked at, and is forgotten: no kernel writes the matrix of scores.
They run on NVIDIA GPUs of compute capability 8.0 or more and, for the tests, on a CPU in Triton's interpreter (TRITON_INTERPRET=1 in the
environment before the first import).
"""

import math

import torch
from torch import Tensor

try:
    import triton
except ImportError:  # not on every platform: the torch versions do without
    triton = None

INTERPRETED = triton is not None and bool(triton.knobs.runtime.interpret)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def cannot_run(*rows: Tensor) -> str | None:
    """Why the kernels cannot take these rows, in words; None where they can."""
    if triton is None:
        return "triton is not installed"
    device = rows[0].device
    if any(x.device != device for x in rows):
        return f"the rows lie on {' and '.join(str(x.device) for x in rows)}"
    for x in rows:
        if x.dtype not in DTYPES:
            return f"the kernels take float16, bfloat16 and float32, not {str(x.dtype).removeprefix('torch.')}"
        if len(x) >= 2**31:
            return f"the kernels count rows in 32 bits, found {len(x)}: split the gallery (sharded)"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return None if capability >= (8, 0) else f"the GPU is of compute capability {capability[0]}.{capability[1]}, the kernels need 8.0"
    if INTERPRETED and device.type == "cpu":
        return None
    return f"the rows are on {device}, the kernels run on CUDA (TRITON_INTERPRET=1 runs them interpreted on CPU, for tests)"


def common(*rows: Tensor) -> tuple[Tensor, ...]:
    """The rows contiguous and of one type: the widest of theirs, float32 where float16 meets bfloat16."""
    dtype = rows[0].dtype
    for x in rows[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return tuple(x.to(dtype).contiguous() for x in rows)


def scatter_step(n: int) -> int:
    """A step through n places that meets each once and comes nowhere near where it was: the golden section, made coprime."""
    return next(step for step in range(max(1, round(0.618 * n)), n + 2) if math.gcd(step, n) == 1)


def product(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32, out: Tensor | None = None) -> Tensor:
    """a b in full, under autocast or where TF32 is allowed too (it is wrong by a thousand times what is compared again).

    Rows of 16 bits are multiplied as they are on CUDA and summed in float32, where that is faster, and made `dtype` on CPU, where it is not.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(a.device.type, enabled=False):
            if a.is_cuda and a.dtype == b.dtype and a.element_size() == 2:
                return torch.mm(a, b, out_dtype=torch.float32, out=out)
            return torch.mm(a.to(dtype), b.to(dtype), out=out)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
