"""The kernels against float64: interpreted on CPU over odd shapes, types and ties; compiled for sm_90 without a GPU; at size on one."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from georeps.core import kernels, metrics, moments, search
from georeps.core.kernels import pairs, search as kernel
from georeps.nets import losses
from georeps.papers import composed

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
on_gpu = pytest.mark.skipif(not CUDA, reason="needs a GPU: kernels at size, and what only a GPU does")


def rows(n: int, d: int, seed: int, dtype=torch.float32) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1).to(DEVICE, dtype)


def scores(queries, gallery):
    return (queries.double() @ gallery.double().T).float()


def scramble(gallery, world):
    """The same gallery with duplicates, with one row only, sorted so that what is near a query comes last, or in tight classes one after another."""
    if world == "classes":
        centre = gallery[torch.arange(len(gallery), device=gallery.device) // 200]
        return F.normalize(centre.float() + 0.03 * gallery.float(), dim=1).to(gallery.dtype)
    if world == "duplicates":
        return gallery[torch.arange(len(gallery), device=gallery.device) % max(1, len(gallery) // 3)]
    if world == "collapsed":
        return gallery[:1].expand_as(gallery).contiguous()
    if world == "sorted":
        return gallery[gallery[:, 0].argsort()]
    return gallery


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("world", ["distinct", "duplicates", "sorted", "collapsed"])
@pytest.mark.parametrize("shape", [(1, 500, 3, 7), (33, 401, 20, 1), (129, 1100, 65, 17)])
def test_neighbours_are_those_of_float64(shape, world, dtype):
    q, g, d, k = shape
    queries, gallery = rows(q, d, 0, dtype), scramble(rows(g, d, 1, dtype), world)
    if world == "sorted":
        queries = F.normalize(queries.float() + 3 * torch.eye(d, device=DEVICE)[0], dim=1).to(dtype)
    found = search.topk(queries, gallery, k, backend="triton")
    value, index = scores(queries, gallery).sort(dim=1, descending=True, stable=True)
    assert torch.equal(found.index, index[:, :k])
    assert torch.allclose(found.scores, value[:, :k], atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("world", ["distinct", "duplicates", "collapsed"])
@pytest.mark.parametrize("shape", [(1, 200, 3, 1), (70, 390, 20, 1), (35, 300, 65, 4)])
def test_ranks_are_those_of_float64(shape, world, dtype):
    q, g, d, p = shape
    queries, gallery = rows(q, d, 0, dtype), scramble(rows(g, d, 1, dtype), world)
    target = torch.randint(g, (q, p), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    whole = scores(queries, gallery)
    expected = (whole[:, None] >= whole.gather(1, target)[..., None]).sum(-1) - 1
    assert torch.equal(search.rank_of(queries, gallery, target, backend="triton"), expected)


@pytest.mark.parametrize("world", ["sorted", "classes"])
def test_galleries_kept_in_order_are_searched_as_surely_as_others(world):
    gallery = scramble(rows(8000, 32, 1), world)
    queries = F.normalize(gallery[::400] + 0.02 * rows(20, 32, 0), dim=1)
    value, index, unsure = kernel.candidates(queries, gallery, 18, first=2000)
    best = scores(queries, gallery).topk(18)
    assert not unsure.any()
    assert torch.allclose(value, best.values, atol=1e-6)


def test_no_queries_one_row_and_rows_that_want_a_gradient():
    queries, gallery = rows(3, 8, 0).requires_grad_(), rows(1, 8, 1).requires_grad_()
    for backend in ("torch", "triton"):
        assert search.topk(queries, gallery, 1, backend=backend).index.tolist() == [[0]] * 3
        assert search.rank_of(queries, gallery, torch.zeros(3, dtype=torch.int64, device=DEVICE), backend=backend).tolist() == [0] * 3
        assert search.rank_of(queries[:0], gallery, torch.zeros(0, 2, dtype=torch.int64, device=DEVICE), backend=backend).shape == (0, 2)


@pytest.mark.parametrize(("small", "large"), [(1e-23, 1e18), (1e-20, 1e-21), (1e18, 1e17)])
def test_lengths_whose_squares_float32_cannot_hold(small, large):
    queries, gallery = small * rows(40, 16, 0), large * scramble(rows(1200, 16, 1), "duplicates")
    target = torch.arange(40, device=DEVICE)
    whole = scores(queries, gallery)
    for backend in ("torch", "triton"):
        assert torch.equal(search.topk(queries, gallery, 5, backend=backend).index, whole.sort(dim=1, descending=True, stable=True).indices[:, :5])
        assert torch.equal(search.rank_of(queries, gallery, target, backend=backend), (whole >= whole.gather(1, target[:, None])).sum(1) - 1)


@pytest.mark.parametrize("first", [128, 512, 4000])
def test_candidates_do_not_depend_on_how_the_bar_is_found(first):
    queries, gallery = rows(20, 32, 0), rows(4000, 32, 1)
    value, index, unsure = kernel.candidates(queries, gallery, 6, first=first)
    best = scores(queries, gallery).topk(6)
    assert torch.equal(index, best.indices) and not unsure.any()
    assert torch.allclose(value, best.values, atol=1e-6)


def test_a_row_with_more_survivors_than_room_is_said_to_be_unsure_and_found_otherwise():
    copies = rows(2000, 16, 1)[torch.arange(2000) % 20]  # a hundred of each
    queries, gallery = ((8 * x).round() / 8 for x in (rows(5, 16, 0), copies))  # products without rounding, so that copies tie on every processor
    _, _, unsure = kernel.candidates(queries, gallery, 4)
    assert unsure.all()
    for q, g in ((queries, gallery), (rows(5, 16, 0), copies)):
        assert torch.equal(search.topk(q, g, 3, backend="triton").index, search.topk(q, g, 3, backend="torch").index)


def test_k_beyond_the_kernels_and_a_whole_gallery_are_found_by_torch():
    queries, gallery = rows(40, 8, 0), rows(300, 8, 1)
    assert search.choose("triton", queries, gallery, width=300) == "torch"
    assert torch.equal(search.topk(queries, gallery, 300, backend="triton").index, scores(queries, gallery).sort(dim=1, descending=True, stable=True).indices)


def test_products_of_pairs_are_taken_in_float64():
    queries, gallery = rows(9, 300, 0), rows(50, 300, 1)
    row, column = (torch.randint(n, (77,), generator=torch.Generator().manual_seed(3)).to(DEVICE) for n in (9, 50))
    found = kernel.exact(queries, gallery, row.int(), column)
    assert torch.allclose(found, (queries[row].double() * gallery[column].double()).sum(1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("n", [2, 3, 4, 127, 128, 1000, 12345])
def test_the_scattered_order_visits_every_row_once(n):
    step = kernels.scatter_step(n)
    assert sorted(i * step % n for i in range(n)) == list(range(n))


def test_normal_tails_keep_their_precision_far_out():
    z = torch.linspace(-5, 12, 4001, device=DEVICE)
    gallery = torch.stack([z, torch.zeros_like(z)], dim=1)  # the product with (1, 0) is z itself
    stats = torch.tensor([[0.0, 1.0, 0.0, 1.0]], device=DEVICE)
    query = torch.tensor([[1.0, 0.0]], device=DEVICE)
    bar = torch.full((1,), -2.0, device=DEVICE)
    tiles = math.ceil(len(z) / kernel.TILE)
    _, value, index = kernel.collect(query, gallery, bar, 0, tiles, len(z), texts=query, stats=stats, weight=0.25)
    expected = 0.5 * torch.special.erfc(z.double() / math.sqrt(2))[index[0].long()]
    assert torch.allclose(-value[0].double(), expected, rtol=2e-5, atol=1e-37)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("shape", "weight"), [((5, 2000, 64), 0.3), ((40, 1500, 32), 0.0), ((12, 2500, 48), 0.5)])
def test_weicom_in_one_pass_equals_its_scores_in_float64(shape, weight, dtype, monkeypatch):
    q, g, d = shape
    images, texts, gallery = rows(q, d, 0, dtype), rows(q, d, 1, dtype), scramble(rows(g, d, 2, dtype), "duplicates")
    target = torch.randint(-1, g, (q, 3), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    sides = [x.double() @ gallery.double().T for x in (images, texts)]
    tails = [0.5 * torch.special.erfc((s - s.mean(1, keepdim=True)) / s.std(1, keepdim=True) / math.sqrt(2)) for s in sides]
    whole = (1 - weight) * tails[0] + weight * tails[1]
    assert torch.allclose(1 - whole, composed.weicom(*sides, weight), atol=1e-12)
    own = whole.float().gather(1, target.clamp(min=0))
    ranks = torch.where(target < 0, -1, (whole.float()[:, None] <= own[..., None]).sum(-1) - 1)
    for backend in ("torch", "triton"):
        assert torch.equal(composed.weicom_rank_of(images, texts, gallery, weight, target, backend=backend), ranks)
    bad = gallery.clone()
    bad[3, 2] = math.nan
    with pytest.raises(ValueError, match="gallery: expected finite descriptors, found 1 rows"):
        composed.weicom_rank_of(images, texts, bad, weight, target, found=moments.of(gallery))
    with pytest.raises(ValueError, match=f"target: expected gallery indices in -1..{g - 1}, found {g}"):
        composed.weicom_rank_of(images, texts, gallery, weight, torch.full_like(target, g))
    if dtype == torch.float32 and weight:  # and the kernels, not their fallback, found it
        monkeypatch.setattr(composed._Weicom, "whole", None)
        composed.weicom_rank_of(images, texts, gallery[: g // 3], weight, target[:, :1] % (g // 3), backend="triton")


def plain_log_sum(x, scale):
    exponent = scale * (x @ x.T - 1)
    return exponent.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), -math.inf).logsumexp((0, 1))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "d", "scale"), [(2, 3, 4.0), (5, 7, 4.0), (300, 65, 4.0), (150, 128, 100.0)])
def test_log_sum_over_pairs_and_its_derivative_are_those_of_the_matrix(n, d, scale, dtype):
    x = rows(n, d, 0, dtype).requires_grad_()
    y = x.detach().double().requires_grad_()
    total, _ = pairs.log_sum(x, scale)
    expected = plain_log_sum(y, scale)
    (total * 3).backward(), (expected * 3).backward()
    assert abs(float(total.detach()) - float(expected.detach())) < 1e-5
    small = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert (x.grad.double() - y.grad).norm() <= small * y.grad.norm()


def test_uniformity_beyond_the_matrix_equals_uniformity_within_it(monkeypatch):
    x = rows(200, 24, 0)
    near, far = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = losses.uniformity(near)
    value.backward()
    monkeypatch.setattr(pairs, "BAND", 8 * 200 * 64)  # three bands and a bit
    tiled = losses.uniformity(far)
    tiled.backward()
    assert float(tiled.detach()) == pytest.approx(float(value.detach()), abs=1e-5)
    assert torch.allclose(near.grad, far.grad, atol=1e-7)
    assert metrics.uniformity(x) == pytest.approx(float(value.detach()), abs=1e-5)


def test_autocast_does_not_reach_the_sums(monkeypatch):
    monkeypatch.setattr(pairs, "cannot_run", lambda *rows: "for this test")
    x = F.normalize(1 + 0.01 * rows(50, 16, 0), dim=1).requires_grad_()
    plain = pairs.log_sum(x, 4.0)[0]
    gradient = torch.autograd.grad(plain, x)[0]
    with torch.autocast(DEVICE, torch.bfloat16):
        cast = pairs.log_sum(x, 4.0)[0]
    assert torch.equal(cast, plain) and torch.equal(torch.autograd.grad(cast, x)[0], gradient)


def test_the_ops_are_registered_for_autograd_and_compilation():
    x, y = rows(40, 16, 0).requires_grad_(), rows(300, 16, 1)
    torch.library.opcheck(pairs.log_sum, (x, 4.0))
    torch.library.opcheck(kernel.best, (x.detach(), y, 2, 16))
    bar = torch.zeros(40, device=DEVICE)
    torch.library.opcheck(kernel.collect, (x.detach(), y, bar, 0, 3, 300), test_utils=["test_schema", "test_faketensor"])
    target = torch.zeros(40, 1, dtype=torch.int64, device=DEVICE)
    torch.library.opcheck(kernel.count, (x.detach(), y, bar[:, None] + 2, bar[:, None] + 3, target, 128))
    torch.library.opcheck(kernel.exact, (x.detach(), y, target[:, 0], target[:, 0]))
    far = torch.compile(lambda z: pairs.log_sum(z, 4.0)[0] * 2, backend="aot_eager", fullgraph=True)
    far(x).backward()
    assert torch.allclose(x.grad, 2 * torch.autograd.grad(plain_log_sum(x, 4.0), x)[0], atol=1e-6)


def test_why_the_kernels_cannot_run_is_said(unchecked, monkeypatch):
    assert kernels.cannot_run(rows(40, 8, 0).double()) == "the kernels take float16, bfloat16 and float32, not float64"
    with pytest.raises(ValueError, match="queries: expected float16, bfloat16 or float32 descriptors, found float64"):
        search.topk(rows(40, 8, 0).double(), rows(40, 8, 0), 1)
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    if not CUDA:
        with pytest.raises(ValueError, match="the rows are on cpu, the kernels run on CUDA"):
            search.rank_of(rows(2, 8, 0), rows(3, 8, 0), torch.tensor([0, 1]), backend="triton")
    monkeypatch.setattr(kernels, "triton", None)
    with pytest.raises(ValueError, match="triton is not installed"):
        search.topk(rows(2, 8, 0), rows(3, 8, 0), 1, backend="triton")


@pytest.fixture(scope="module")
def report():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "georeps.core.kernels.report"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_hot_kernels_compile_for_sm_90_without_spills_and_fit_its_shared_memory(report):
    assert len(report) == 13
    for row in report:
        assert row["spilled"] == 0, row
        assert row["shared"] <= 232448, row
        assert (row["matrix"] > 0) == (row["rows"] != "float32"), row  # float32 rows are multiplied in full, outside the tensor cores


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_at_size_neighbours_and_ranks_are_those_of_float64(dtype):
    for q, g, d, k in ((2000, 200_000, 512, 100), (700, 60_001, 4096, 10), (64, 1_000_000, 128, 1000)):
        queries, gallery = rows(q, d, 0, dtype), rows(g, d, 1, dtype)
        gallery[g // 2 : g // 2 + 1000] = gallery[:1000]
        found = search.topk(queries, gallery, k, backend="triton")
        target = torch.randint(g, (q,), generator=torch.Generator().manual_seed(2)).cuda()
        ranks = search.rank_of(queries, gallery, target, backend="triton")
        for part in torch.arange(q, device="cuda").split(50):
            whole = scores(queries[part], gallery)
            value, index = whole.sort(dim=1, descending=True, stable=True)
            assert torch.allclose(found.scores[part], value[:, :k], atol=5e-6)
            assert torch.equal(found.index[part], index[:, :k])
            assert torch.equal(ranks[part], (whole >= whole.gather(1, target[part, None])).sum(1) - 1)


@on_gpu
def test_on_a_gpu_backends_agree_and_auto_takes_the_kernels():
    queries, gallery = rows(300, 64, 0, torch.float16), rows(5000, 64, 1, torch.float16)
    assert search.choose("auto", queries, gallery) == "triton" and search.choose("auto", queries[:5], gallery) == "torch"
    for k in (1, 10, 100):
        a, b = (search.topk(queries, gallery, k, backend=name).index for name in ("torch", "triton"))
        assert torch.equal(a, b)
