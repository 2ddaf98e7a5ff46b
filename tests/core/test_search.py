"""Search against a float64 sort of the whole score matrix, with every kind of tie."""

import math

import pytest
import torch
import torch.nn.functional as F

from georeps.core import search

SHAPES = [(1, 1, 1, 1), (3, 7, 5, 7), (17, 300, 32, 10), (5, 2000, 8, 100), (70, 1500, 64, 1)]


def descriptors(n: int, d: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def oracle_scores(queries, gallery):
    """Inner products in float64, rounded to float32: the definition of a score."""
    return (queries.double() @ gallery.double().T).float()


def oracle_topk(queries, gallery, k):
    scores, index = oracle_scores(queries, gallery).sort(dim=1, descending=True, stable=True)
    return scores[:, :k], index[:, :k]


def oracle_ranks(queries, gallery, target):
    scores = oracle_scores(queries, gallery)
    own = scores.gather(1, target[:, None])
    return (scores >= own).sum(dim=1) - 1


def worlds(q, g, d):
    """Galleries with no ties, a few duplicates, integer coordinates (ties between different rows) and one value only."""
    queries, gallery = descriptors(q, d, 0), descriptors(g, d, 1)
    duplicated = gallery.clone()
    duplicated[g // 2 :] = gallery[: g - g // 2]
    whole = torch.randint(-1, 2, (g, d), generator=torch.Generator().manual_seed(2)).float()
    return {
        "distinct": (queries, gallery),
        "duplicates": (queries, duplicated),
        "integers": (torch.randint(-1, 2, (q, d), generator=torch.Generator().manual_seed(3)).float(), whole),
        "collapsed": (queries, gallery[:1].expand(g, d).contiguous()),
        "near": (queries, gallery[:1] + 1e-7 * torch.randn(g, d, generator=torch.Generator().manual_seed(4))),
    }


@pytest.mark.parametrize("backend", ["torch", "faiss", "auto", "triton"])
@pytest.mark.parametrize("world", ["distinct", "duplicates", "integers", "collapsed", "near"])
@pytest.mark.parametrize("shape", SHAPES)
def test_topk_equals_the_stable_sort(shape, world, backend):
    q, g, d, k = shape
    queries, gallery = worlds(q, g, d)[world]
    found = search.topk(queries, gallery, k, backend=backend)
    scores, index = oracle_topk(queries, gallery, k)
    assert torch.equal(found.index, index)
    assert torch.allclose(found.scores, scores, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("world", ["distinct", "duplicates", "integers", "collapsed", "near"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rank_equals_the_count_in_the_sorted_matrix(shape, world, backend):
    q, g, d, _ = shape
    queries, gallery = worlds(q, g, d)[world]
    target = torch.randint(g, (q,), generator=torch.Generator().manual_seed(5))
    assert torch.equal(search.rank_of(queries, gallery, target, backend=backend), oracle_ranks(queries, gallery, target))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("world", ["distinct", "duplicates", "integers", "collapsed"])
def test_each_of_several_positives_gets_the_rank_it_would_get_alone(world, backend):
    queries, gallery = worlds(21, 600, 16)[world]
    target = torch.randint(-1, 600, (21, 5), generator=torch.Generator().manual_seed(6))
    found = search.rank_of(queries, gallery, target, backend=backend)
    for own, ranks in zip(target.unbind(1), found.unbind(1), strict=True):
        assert torch.equal(ranks, torch.where(own < 0, -1, oracle_ranks(queries, gallery, own.clamp(min=0))))


@pytest.mark.parametrize("memory", [1, 2**16, 2**22])
def test_results_do_not_depend_on_the_memory_budget(memory):
    queries, gallery = worlds(33, 3000, 16)["duplicates"]
    target = torch.arange(33)
    expected = oracle_topk(queries, gallery, 20)[1]
    assert torch.equal(search.topk(queries, gallery, 20, backend="torch", memory=memory).index, expected)
    assert torch.equal(search.rank_of(queries, gallery, target, memory=memory), oracle_ranks(queries, gallery, target))


def test_a_batch_equals_its_rows():
    queries, gallery = worlds(9, 800, 24)["duplicates"]
    whole = search.topk(queries, gallery, 12).index
    assert torch.equal(whole, torch.cat([search.topk(row[None], gallery, 12).index for row in queries]))


def test_a_collapsed_model_gets_the_last_rank_not_the_first():
    same = torch.ones(10, 4)
    assert search.rank_of(same, same, torch.arange(10)).tolist() == [9] * 10


def test_half_precision_descriptors_are_compared_in_float32():
    queries, gallery = descriptors(20, 64, 0).half(), descriptors(500, 64, 1).half()
    assert torch.equal(search.topk(queries, gallery, 10).index, oracle_topk(queries, gallery, 10)[1])


def test_k_equal_to_the_gallery_is_the_whole_order():
    queries, gallery = descriptors(4, 6, 0), descriptors(50, 6, 1)
    assert torch.equal(search.topk(queries, gallery, 50).index.sort(dim=1).values, torch.arange(50).expand(4, 50))


def test_nearest_is_exact_where_expansion_cancels():
    gallery = 100 + 1e-3 * descriptors(200, 4, 0)
    queries = gallery[:20].clone()
    assert torch.equal(search.nearest(queries, gallery), torch.zeros(20))
    far = search.nearest(descriptors(30, 8, 1), descriptors(90, 8, 2))
    assert torch.allclose(far, torch.cdist(descriptors(30, 8, 1), descriptors(90, 8, 2)).square().amin(1), atol=1e-5)


def test_nearest_finds_the_closer_of_two_near_duplicates():
    base, noise = descriptors(300, 512, 0), descriptors(600, 512, 1)
    gallery = torch.cat([base + 3e-4 * noise[:300], base + 1e-4 * noise[300:]])
    expected = (base[:, None].double() - gallery[None].double()).square().sum(-1).amin(1).float()
    assert torch.allclose(search.nearest(base, gallery), expected, rtol=1e-5, atol=0.0)
    assert torch.allclose(search.nearest(base, gallery, backend="triton"), expected, rtol=1e-5, atol=0.0)
    many = (base[:1] + 1e-4 * descriptors(2000, 512, 2))[torch.arange(2000)]
    exact = (base[:1].double() - many.double()).square().sum(-1).amin()
    assert torch.allclose(search.nearest(base[:1], many).double(), exact, rtol=1e-5, atol=0.0)


def test_no_queries_give_no_rows():
    gallery = descriptors(5, 3, 0)
    assert search.topk(torch.zeros(0, 3), gallery, 2).index.shape == (0, 2)
    assert search.nearest(torch.zeros(0, 3), gallery).shape == (0,)
    assert search.rank_of(torch.zeros(0, 3), gallery, torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("function", ["topk", "rank"])
@pytest.mark.parametrize(
    ("queries", "gallery", "message"),
    [
        (torch.ones(2, 3), torch.ones(0, 3), "gallery: expected at least one row"),
        (torch.ones(2, 3), torch.ones(4, 5), "gallery: expected the queries' width 3, found 5"),
        (torch.tensor([[1.0, math.nan, 0.0]]), torch.ones(4, 3), "queries: expected finite descriptors, found 1 rows"),
        (torch.ones(2, 3), torch.full((4, 3), math.inf), "gallery: expected finite descriptors, found 4 rows"),
    ],
)
def test_bad_descriptors_raise(unchecked, function, queries, gallery, message):
    with pytest.raises(ValueError, match=message):
        if function == "topk":
            search.topk(queries, gallery, 1)
        else:
            search.rank_of(queries, gallery, torch.zeros(len(queries), dtype=torch.int64))


@pytest.mark.parametrize("k", [0, -1, 5])
def test_k_outside_the_gallery_raises(k):
    with pytest.raises(ValueError, match=r"k: expected 1 <= k <= 4 \(the gallery's rows\), found"):
        search.topk(torch.ones(2, 3), torch.eye(4, 3), k)


def test_bad_targets_and_backends_raise(unchecked):
    with pytest.raises(ValueError, match="target: expected gallery indices in 0..3, found 4"):
        search.rank_of(torch.ones(2, 3), torch.eye(4, 3), torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="target: expected one gallery index a query"):
        search.rank_of(torch.ones(2, 3), torch.eye(4, 3), torch.tensor([0]))
    with pytest.raises(ValueError, match="backend: expected 'auto', 'torch', 'faiss' or 'triton', found 'cuvs'"):
        search.topk(torch.ones(2, 3), torch.eye(4, 3), 1, backend="cuvs")


def test_a_missing_backend_is_named_and_auto_does_without_it(monkeypatch):
    monkeypatch.setattr(search, "HAS_FAISS", False)
    with pytest.raises(ValueError, match="faiss is not installed"):
        search.topk(torch.ones(2, 3), torch.eye(4, 3), 1, backend="faiss")
    assert search.topk(torch.ones(2, 3), torch.eye(4, 3), 1).index.tolist() == [[0], [0]]
