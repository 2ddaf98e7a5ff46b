"""What the compiler makes of the kernels for an H100 (sm_90), on any Linux machine, with or without a GPU.

    python -m georeps.core.kernels.report        a line of JSON for each kernel: registers and spilled bytes a thread, shared memory and matrix instructions

Spills are stores of registers to memory in the middle of the work, shared memory above LIMIT keeps a kernel from starting.
"""

import json
import os
import re
import subprocess
import tempfile
import warnings
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from georeps.core.kernels import INTERPRETED, pairs, search

LIMIT = 232448  # bytes of shared memory that a program may have on sm_90
TYPES = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}
FLOATS = ("bias_ptr", "stats_ptr", "bar_ptr", "score_ptr", "low_ptr", "high_ptr", "highest_ptr", "sum_ptr")
WHOLES = ("count_ptr", "index_ptr", "target_ptr", "above_ptr", "near_ptr")
HOT = (  # kernel, its rows' type, constants beyond the tile's, what is said of it
    (search._best, "float16", {"D": 512, "BIN": 16}, "bin maxima"),
    (search._collect, "float16", {"D": 512}, "survivors of a bar"),
    (search._collect, "bfloat16", {"D": 4096}, "survivors of a bar"),
    (search._collect, "float16", {"D": 500, "BIAS": True}, "survivors, squared Euclidean, odd width"),
    (search._collect, "float32", {"D": 512}, "survivors of a bar"),
    (search._count, "float16", {"D": 4096, "P": 1}, "rank of one positive"),
    (search._count, "float16", {"D": 512, "P": 16, "BLOCK_Q": 64}, "ranks of sixteen"),
    (search._count, "float16", {"D": 768, "P": 1, "WEICOM": True, "BLOCK_Q": 64}, "rank of one, WeiCom"),
    (search._collect, "float16", {"D": 512, "n_q": 1, "first": 1, "scatter": 1}, "survivors, one query"),  # Triton compiles ones in
    (search._count, "float16", {"D": 512, "P": 1, "n_q": 1, "n_g": 1}, "rank of one query among one"),
    (pairs._log_sums, "float16", {"D": 512}, "log-sum-exp of rows"),
    (pairs._log_sums, "bfloat16", {"D": 4096}, "log-sum-exp of rows"),
    (pairs._weights, "float16", {"D": 4096}, "its derivative's weights"),
)


def compiled(kernel, dtype: str, constants: dict) -> dict[str, int]:
    """Registers and spilled bytes a thread, bytes of shared memory, and matrix instructions of one kernel for sm_90."""
    if INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET: expected unset, found 1: what is interpreted is not compiled")
    constants = {"BLOCK_Q": 128, "BLOCK_G": search.TILE, "BLOCK_D": 32 if dtype == "float32" else 64, "GROUP": 16, "UPCAST": False,
                 "BIAS": False, "WEICOM": False} | constants  # fmt: skip
    signature, aligned = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            own = TYPES[dtype] if name == "out_ptr" and kernel is pairs._weights else "*fp32"
            used = name not in ("bias_ptr", "stats_ptr") or constants["BIAS" if name == "bias_ptr" else "WEICOM"]
            kinds = {**dict.fromkeys(FLOATS, "*fp32"), **dict.fromkeys(WHOLES, "*i32"), "out_ptr": own}
            signature[name] = kinds.get(name, TYPES[dtype]) if used else TYPES[dtype]
            aligned[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name in ("weight", "scale") else "i32"
    source = ASTSource(kernel, signature, {k: v for k, v in constants.items() if k in kernel.arg_names}, aligned)
    with warnings.catch_warnings():  # of what a later Triton will do
        warnings.simplefilter("ignore")
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "num_stages": 3})
    ptx = made.asm["ptx"]
    registers, stored, loaded = _assembled(ptx)
    return {"registers": registers, "spilled": stored + loaded, "shared": made.metadata.shared, "matrix": ptx.count("wgmma.mma_async")}


def _assembled(ptx: str) -> tuple[int, int, int]:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    tool = next(t for t in (tools / "ptxas-blackwell", tools / "ptxas") if t.exists())  # the newer reads the PTX of both
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        target = re.search(r"\.target (sm_\w+)", ptx)[1]
        said = subprocess.run([tool, "-v", f"-arch={target}", path, "-o", os.devnull], capture_output=True, text=True, check=True).stderr
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    return int(re.search(r"Used (\d+) registers", said)[1]), int(spills[1]), int(spills[2])


def rows():
    """A row for each hot kernel: its name, type and width, what it is for, and `compiled`'s figures."""
    for kernel, dtype, constants, what in HOT:
        yield {"kernel": kernel.__name__.lstrip("_"), "what": what, "rows": dtype, "width": constants["D"], **compiled(kernel, dtype, constants)}


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row), flush=True)
