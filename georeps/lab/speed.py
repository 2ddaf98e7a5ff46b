"""How fast the retrieval and flow core is beside its peers, on one machine, in one run (chapter 13).

    python -m georeps.lab.speed [topk rank ...]     on a GPU: cases at full size (all, within ten minutes), one record, results/gpu/13_speed-s0.json;
                                                    a case that it holds, of this code, is not timed again

Each method of a case does the same work on the same rows. Methods take turns; the time is the median over the turns, on a GPU by its own
events. What a machine can do at all is measured beside it: the rate of one large matrix product, the rate of one large copy. The limit of a
case is the larger of its operations over the one and its bytes, each read or written once, over the other.
"""

import importlib
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from georeps.core import adaln, flow, moments, search, sphere
from georeps.core.kernels import pairs
from georeps.lab import records
from georeps.nets import losses
from georeps.papers import composed

try:
    from flashlib.primitives.knn import flash_knn
except ImportError:  # the closest peer, where its wheel was carried
    flash_knn = None

CHUNK = 2**30  # bytes of float32 scores that the plain chunked products hold at a time
PATIENCE = 5.0  # seconds: a method that takes longer is timed once


@dataclass
class Case:
    """One piece of work: the fewest operations and bytes that it can be done with, and its methods by name."""

    operations: int
    bytes: int
    methods: dict[str, Callable] = field(default_factory=dict)


class Timing(NamedTuple):
    ms: float  # median; NaN where it could not be done
    peak: float  # bytes taken beyond what was held before; NaN on CPU
    why: str  # why there is no time


def race(case: Case, *, repeats: int = 5, device: str = "cpu") -> dict[str, Timing]:
    """The methods of a case, in turns after a round that warms up. What runs out of memory, or a peer that fails, is said and not asked again."""
    seen: dict[str, list[float]] = {name: [] for name in case.methods}
    why, peaks, slow = dict.fromkeys(case.methods, ""), dict.fromkeys(case.methods, math.nan), set()
    for turn in range(repeats + 1):
        names = [n for n in case.methods if not why[n] and n not in slow]
        for name in names if turn % 2 else reversed(names):
            try:
                taken, peaks[name] = _timed(case.methods[name], device)
            except torch.OutOfMemoryError:
                why[name] = "out of memory"
                torch.cuda.empty_cache()
                continue
            except Exception as error:  # a peer's failure costs its own column only
                if name in ("ours", "product"):
                    raise
                why[name] = "failed"
                warnings.warn(f"{name}: {type(error).__name__}: {error}", stacklevel=2)
                continue
            if turn or (device == "cpu" and taken > PATIENCE):  # the first turn warms up, and on a GPU compiles
                seen[name].append(1e3 * taken)
                if taken > PATIENCE:
                    slow.add(name)
    return {n: Timing(statistics.median(t) if t else math.nan, peaks[n], why[n]) for n, t in seen.items()}


def _timed(method: Callable, device: str) -> tuple[float, float]:
    """Seconds, and bytes beyond what was held."""
    if device == "cpu":
        start = time.perf_counter()
        method()
        return time.perf_counter() - start, math.nan
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    method()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3, torch.cuda.max_memory_allocated() - held


class Rates(NamedTuple):
    operations: float  # a second, of a large matrix product
    bytes: float  # a second, read and written, of a large copy


def rates(device: str = "cpu", *, side: int | None = None) -> Rates:
    """What this machine does at best: a square matrix product (float16 on a GPU, float32 on CPU) and a copy."""
    side = side or (8192 if device != "cpu" else 2048)
    dtype = torch.float32 if device == "cpu" else torch.float16
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    whole = torch.randn((2**28 if device == "cpu" else 2**32) // 4, device=device)
    other = torch.empty_like(whole)
    best = race(Case(0, 0, {"product": lambda: a @ b, "copy": lambda: other.copy_(whole)}), repeats=7, device=device)
    return Rates(2 * side**3 / (best["product"].ms / 1e3), 2 * 4 * whole.numel() / (best["copy"].ms / 1e3))


def unit(n: int, d: int, seed: int, device: str) -> Tensor:
    """Random rows of length 1, float16 on a GPU, float32 on CPU; drawn in blocks, so that ten million fit."""
    generator = torch.Generator(device).manual_seed(seed)
    dtype = torch.float32 if device == "cpu" else torch.float16
    parts = [F.normalize(torch.randn(min(2**18, n - i), d, generator=generator, device=device), dim=1).to(dtype) for i in range(0, n, 2**18)]
    return torch.cat(parts)


# --- the cases ---


def _columns(q: Tensor, g: Tensor):
    """Blocks of the gallery whose float32 scores with all queries fill CHUNK bytes."""
    return g.split(max(1, CHUNK // (4 * max(1, len(q)))))


def _scores(q: Tensor, g: Tensor) -> Tensor:
    return torch.mm(q, g.T, out_dtype=torch.float32) if q.is_cuda else q @ g.T


def _products(q: Tensor, g: Tensor) -> None:
    """The matrix product alone, into rows of the type they have, which are overwritten."""
    blocks = _columns(q, g)
    out = q.new_empty(len(q), len(blocks[0]))
    for part in blocks:
        torch.mm(q, part.T, out=out[:, : len(part)])


def _plain_topk(q: Tensor, g: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Chunked product and torch.topk, merged: what one writes without a library."""
    best, index, first = None, None, 0
    for part in _columns(q, g):
        value, at = _scores(q, part).topk(min(k, len(part)), dim=1)
        at = at + first
        if best is not None:
            value, order = torch.cat([best, value], dim=1).topk(k, dim=1)
            at = torch.cat([index, at], dim=1).gather(1, order)
        best, index, first = value, at, first + len(part)
    return best, index


def topk(q: int, n: int, d: int, k: int, *, device: str = "cpu", seed: int = 0) -> Case:
    """`topk_of` random rows: q queries, a gallery of n."""
    return topk_of(unit(q, d, seed, device), unit(n, d, seed + 1, device), k)


def topk_of(queries: Tensor, gallery: Tensor, k: int) -> Case:
    """The k nearest rows of the gallery for each query, exact."""
    (q, d), n, device, size = queries.shape, len(gallery), queries.device.type, queries.element_size()
    case = Case(2 * q * n * d, size * d * (q + n) + 8 * q * k)
    case.methods = {"ours": lambda: search.topk(queries, gallery, k), "torch": lambda: _plain_topk(queries, gallery, k)}
    faiss = importlib.import_module("faiss") if search.HAS_FAISS else None
    if device == "cpu":
        case.methods["numpy"] = lambda: _numpy_topk(queries.numpy(), gallery.numpy(), k)
        if faiss is not None:
            case.methods["faiss"] = lambda: faiss.knn(queries.numpy(), gallery.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
    elif faiss is not None and hasattr(faiss, "StandardGpuResources") and k <= 2048:
        importlib.import_module("faiss.contrib.torch_utils")  # lets faiss read rows that lie on the GPU
        resources = faiss.StandardGpuResources()
        case.methods["faiss"] = lambda: faiss.knn_gpu(resources, queries, gallery, k, metric=faiss.METRIC_INNER_PRODUCT)
    if flash_knn is not None and device != "cpu":
        case.methods["flashlib"] = lambda: flash_knn(queries, gallery, k, return_distances=False)  # Euclidean: of unit rows the same
    case.methods["product"] = lambda: _products(queries, gallery)
    return case


def _numpy_topk(q: np.ndarray, g: np.ndarray, k: int) -> np.ndarray:
    scores = q @ g.T
    part = np.argpartition(scores, -k, axis=1)[:, -k:]
    order = np.argsort(-np.take_along_axis(scores, part, axis=1), axis=1)
    return np.take_along_axis(part, order, axis=1)


def rank(q: int, n: int, d: int, *, device: str = "cpu", seed: int = 0) -> Case:
    """The rank of every query's match: query i is row i of the gallery (those beyond start again) with noise of 1.5 times its length."""
    gallery = unit(n, d, seed, device)
    target = torch.arange(q, device=device) % n
    queries = torch.cat([F.normalize(gallery[at].float() + 1.5 * unit(len(at), d, seed + 1 + i, device).float(), dim=1).to(gallery.dtype)
                         for i, at in enumerate(target.split(8192))])  # fmt: skip
    case = Case(2 * q * n * d, gallery.element_size() * d * (q + n) + 8 * q)

    def plain() -> Tensor:
        own, ranks, first = (queries.float() * gallery[target].float()).sum(1, keepdim=True), 0, 0
        for part in _columns(queries, gallery):
            scores = _scores(queries, part)
            inside = ((target >= first) & (target < first + len(part))).nonzero().flatten()
            scores[inside, target[inside] - first] = -math.inf  # the match's own score is rounded otherwise here
            ranks, first = ranks + (scores >= own).sum(1), first + len(part)
        return ranks

    def with_numpy() -> np.ndarray:
        scores = queries.numpy() @ gallery.numpy().T
        return (scores >= scores[np.arange(q), target.numpy()][:, None]).sum(1) - 1

    case.methods = {"ours": lambda: search.rank_of(queries, gallery, target), "torch": plain}
    if device == "cpu":
        case.methods["numpy"] = with_numpy
    case.methods["product"] = lambda: _products(queries, gallery)
    return case


def uniformity(n: int, d: int, *, device: str = "cpu", seed: int = 0) -> Case:
    """The uniformity loss of n rows, its value and its gradient; three products of n x n x d."""
    rows = unit(n, d, seed, device)
    case = Case(6 * n * n * d, 2 * rows.element_size() * n * d)

    def gradient(loss: Callable) -> Tensor:
        x = rows.clone().requires_grad_()
        loss(x).backward()
        return x.grad

    def pairwise(x: Tensor) -> Tensor:
        return torch.pdist(x.float()).square().mul(-2).exp().mean().log() if n <= 20000 else _matrix_uniformity(x)

    def products() -> None:
        for part in _columns(rows, rows):
            out = torch.mm(part, rows.T)
            torch.mm(part, rows.T, out=out)
            torch.mm(out, rows)

    case.methods = {"ours": lambda: gradient(losses.uniformity), "torch": lambda: gradient(pairwise), "product": products}
    return case


def _matrix_uniformity(x: Tensor) -> Tensor:
    exponent = 4 * (x @ x.T - 1).float()
    return exponent.fill_diagonal_(-math.inf).logsumexp((0, 1)) - math.log(len(x) * (len(x) - 1))


def weicom(q: int, n: int, d: int, *, device: str = "cpu", seed: int = 0) -> Case:
    """The rank of one positive a query under WeiCom: two products, standardised, sent through the normal distribution, added."""
    images, texts, gallery = unit(q, d, seed, device), unit(q, d, seed + 1, device), unit(n, d, seed + 2, device)
    target = torch.arange(q, device=device) % n
    found = moments.of(gallery)
    case = Case(4 * q * n * d, gallery.element_size() * d * (2 * q + n) + 8 * q)

    def plain() -> list[Tensor]:
        ranks = []
        for rows in torch.arange(q, device=device).split(max(1, CHUNK // (32 * n))):
            scores = composed.weicom(_scores(images[rows], gallery), _scores(texts[rows], gallery), 0.5)
            ranks.append((scores >= scores.gather(1, target[rows, None])).sum(1) - 1)
        return ranks

    def both() -> None:
        _products(images, gallery), _products(texts, gallery)

    case.methods = {"ours": lambda: composed.weicom_rank_of(images, texts, gallery, 0.5, target, found=found), "torch": plain, "product": both}
    return case


def network(dim: int, depth: int, device: str, seed: int = 0, *, training: int = 100) -> tuple[adaln.VelocityNet, Tensor, int]:
    """A velocity network, its condition, and the operations of one of its points, condition and modulation left out.

    It has learnt five patches of the sphere, for a little: how often an adaptive solver asks depends on the field, and a random one is no field.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net, condition = adaln.VelocityNet(dim, dim=dim, depth=depth).to(device), torch.randn(1, dim, device=device)
        adam = torch.optim.AdamW(net.parameters(), lr=5e-4)
        centres = sphere.fibonacci(5).to(device, torch.float32)
        for _ in range(training):
            x = F.normalize(centres[torch.randint(5, (256,))] + 0.3 * torch.randn(256, 3, device=device), dim=1)
            adam.zero_grad()
            flow.loss(net, x, condition.expand(256, -1)).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            adam.step()
    point = [net.enter, net.leave, *(layer for block in net.blocks for layer in (block.rise, block.fall))]
    return net.eval().requires_grad_(False), condition, 2 * sum(layer.weight.numel() for layer in point)


def sampling(n: int, dim: int, depth: int, steps: int, *, device: str = "cpu", seed: int = 0, batch: int = 2**16) -> Case:
    """n points of the sphere, of one condition, by Heun's steps. "eager" starts every operation by itself, "compiled" leaves that to torch.compile, "bfloat16"
    multiplies in 16 bits inside the network, "published" does not project."""
    net, condition, each = network(dim, depth, device, seed)
    case = Case(2 * steps * n * each, 24 * n)

    def draw(velocity: Callable, method: str, batch: int = batch) -> Tensor:
        return flow.sample(velocity, n, condition, steps=steps, method=method, device=device, batch=batch)

    case.methods = {"ours": lambda: draw(net, "heun"), "published": lambda: draw(net, "published")}
    if device != "cpu":
        compiled, half = torch.compile(net), (n + 1) // 2  # two batches: too few for a graph

        def in_bfloat16() -> Tensor:
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):  # a cache of weights would be lost with the graph
                return draw(net, "heun")

        case.methods |= {"eager": lambda: draw(net, "heun", half), "compiled": lambda: draw(lambda x, s, c: compiled(x, s, c), "heun", half),
                         "bfloat16": in_bfloat16}  # fmt: skip
    return case


def likelihood(n: int, dim: int, depth: int, steps: int, *, device: str = "cpu", seed: int = 0, batch: int = 4096) -> Case:
    """Log-densities of n points of one condition: ours by Adams's steps, dopri5 with the same divergence, and the published way (reverse mode)."""
    net, condition, each = network(dim, depth, device, seed)
    places = sphere.fibonacci(n).to(device, torch.float32)
    case = Case(3 * (steps + 1) * n * each, 16 * n)

    def density(method: str) -> Tensor:
        return flow.log_prob(net, places, condition, steps=steps, method=method, batch=batch)

    case.methods = {"ours": lambda: density("adams"), "dopri5": lambda: density("dopri5"), "published": lambda: density("reverse")}
    return case


# --- one run ---

GPU = {  # case -> what builds it, and its sizes
    "topk": (topk, (10_000, 1_000_000, 512, 100)),
    "topk_one": (topk, (1, 10_000_000, 512, 100)),
    "rank": (rank, (53_694, 46_563, 4096)),
    "uniformity": (uniformity, (100_000, 512)),
    "uniformity_wide": (uniformity, (100_000, 4096)),
    "weicom": (weicom, (21_000, 30_000, 768)),
    "sampling": (sampling, (1_000_000, 256, 12, 16)),
    "likelihood": (likelihood, (65_341, 256, 12, 96)),
}
METHODS = ("ours", "torch", "faiss", "flashlib", "numpy", "published", "dopri5", "eager", "compiled", "bfloat16", "product")


def measure(run: records.Run, where: str, cases: dict[str, tuple], *, repeats: int, after: Callable[[], object] = lambda: None) -> None:
    """Race cases like those of GPU and record them: `speed.<where>.<case>.<method>.ms`, `.peak_mib`, and `.limit_ms`; `after` is called after each.

    A method that ran out of memory is recorded as `.out_of_memory`, a peer that raised as `.failed`; one that is not installed is not recorded.
    """
    device = "cuda" if where == "gpu" else "cpu"
    pairs.log_sum(torch.eye(2), 1.0)  # the first custom op of a process loads torch's compiler, for seconds
    rate = f"speed.{where}.rate."
    if rate + "tflops" not in run.record.metrics:
        run[rate + "tflops"], run[rate + "gb_s"] = (r / u for r, u in zip(rates(device), (1e12, 1e9), strict=True))
    best = Rates(1e12 * run.record.metrics[rate + "tflops"], 1e9 * run.record.metrics[rate + "gb_s"])
    for name, (build, sizes) in cases.items():
        case = build(*sizes, device=device, seed=run.record.seed)
        key = f"speed.{where}.{name}"
        run[f"{key}.limit_ms"] = 1e3 * max(case.operations / best.operations, case.bytes / best.bytes)
        for method, timing in race(case, repeats=repeats, device=device).items():
            if timing.why:
                run[f"{key}.{method}.{timing.why.replace(' ', '_')}"] = 1
                continue
            run[f"{key}.{method}.ms"] = timing.ms
            if math.isfinite(timing.peak):
                run[f"{key}.{method}.peak_mib"] = timing.peak / 2**20
        case.methods.clear()
        del case
        after()


def table(metrics: Mapping[str, float], where: str, cases: dict[str, tuple], figure: str = "ms") -> pd.DataFrame:
    """A row a case, its sizes and a column a method, from recorded metrics: "ms", "peak_mib", or "share", the limit's time in percent of the method's.

    Empty where a method was not there; "not measured yet" where a case was not.
    """
    rows = []
    for name, (_, sizes) in cases.items():
        key = f"speed.{where}.{name}"
        row: dict[str, object] = {"case": name, "sizes": " x ".join(map(_short, sizes))}
        limit = metrics.get(f"{key}.limit_ms")
        for method in METHODS:
            value = metrics.get(f"{key}.{method}.{'ms' if figure == 'share' else figure}")
            failure = next((f for f in ("out of memory", "failed") if metrics.get(f"{key}.{method}.{f.replace(' ', '_')}")), None)
            if failure:
                row[method] = failure
            elif limit is None:
                row[method] = "not measured yet" if method == "ours" else ""
            elif value is not None:
                value = 100 * limit / value if figure == "share" else value
                row[method] = f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"
        row["limit"] = "" if limit is None or figure != "ms" else f"{limit:,.3g}"
        rows.append(row)
    shown = pd.DataFrame(rows).set_index("case").fillna("")
    used = [c for c in shown if c in ("sizes", "ours") or (shown[c] != "").any()]
    return shown[used if figure == "ms" else used[1:]]


def _short(n: int) -> str:
    return next((f"{n // unit}{sign}" for unit, sign in ((10**6, "M"), (10**3, "k")) if n % unit == 0), f"{n:,}")


def main(names: Sequence[str]) -> None:
    """Time the cases of GPU that are named, those left out that the record of this code holds; saved after each."""
    if unknown := [name for name in names if name not in GPU]:
        sys.exit(f"case: expected some of {', '.join(GPU)}, found {', '.join(unknown)}")
    if not torch.cuda.is_available():
        sys.exit("georeps.lab.speed needs a CUDA GPU; chapter 13 measures this machine's CPU")
    run = records.Run("13_speed", profile="gpu", seed=0, device="cuda", parameters={"repeats": 7})
    kept = next((r.metrics for r in records.records("gpu", chapter="13_speed", live=False) if (r.code, r.device) == (run.record.code, run.record.device)), {})
    run.record.metrics |= kept
    wanted = {name: GPU[name] for name in names or GPU if f"speed.gpu.{name}.ours.ms" not in kept}
    measure(run, "gpu", wanted, repeats=7, after=lambda: print(run.save(), len(run.record.metrics), "metrics", flush=True))
    for figure in ("ms", "share", "peak_mib"):
        print(figure, table(run.record.metrics, "gpu", GPU, figure).to_string(), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
