"""Composed retrieval against its definitions: closed forms, second implementations, invariances."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from georeps.core import metrics, moments
from georeps.papers import composed

WORDS = ["plane", "jet", "tank", "pool", "court", "river", "road", "tree"]


def features(n, d=12, seed=0):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def encode(texts):
    """A text encoder that adds its words, each with its own direction."""
    known = {}
    rows = [sum(known.setdefault(w, features(1, seed=sum(map(ord, w)))[0]) for w in text.split()) for text in texts]
    return F.normalize(torch.stack(rows), dim=1)


def vocabulary():
    return composed.Vocabulary(WORDS, encode(WORDS))


def test_weicom_is_scipy_s_normal_distribution_of_standardised_rows_and_its_limits_are_the_sides():
    image, text = torch.randn(3, 40), torch.randn(3, 40) * 0.01 + 0.2
    z = [(s.double() - s.double().mean(1, keepdim=True)) / s.double().std(1, keepdim=True) for s in (image, text)]
    expected = 0.7 * stats.norm.cdf(z[0]) + 0.3 * stats.norm.cdf(z[1])
    assert torch.allclose(composed.weicom(image, text, 0.3), torch.as_tensor(expected))
    assert torch.equal(composed.weicom(image, text, 0.0).argsort(1), image.argsort(1))
    assert torch.equal(composed.weicom(image, text, 1.0).argsort(1), text.argsort(1))


def test_weicom_is_invariant_to_scale_and_shift_of_either_side():
    image, text = torch.randn(2, 30), torch.randn(2, 30)
    assert torch.allclose(composed.weicom(3 * image + 5, text / 7 - 1, 0.4), composed.weicom(image, text, 0.4), atol=1e-6)


def test_the_tail_does_not_tie_in_float64():
    image = torch.randn(1, 30_000, generator=torch.Generator().manual_seed(0))
    image[0, :400] = torch.linspace(6.5, 8.5, 400)  # 5.6 to 7.4 deviations: all 1 in float32
    scores = composed.weicom(image, torch.randn(1, 30_000), 0.0)
    assert len(scores[0, :400].unique()) == 400 > len(scores[0, :400].float().unique())


def test_streamed_weicom_equals_the_whole_matrix():
    images, texts, gallery = features(9), features(9, seed=1), features(200, seed=2)
    whole = composed.weicom(images @ gallery.T, texts @ gallery.T, 0.6)
    scores = composed.weicom_scores(images, texts, gallery, 0.6)
    assert torch.allclose(torch.cat([scores(slice(i, i + 4)) for i in (0, 4, 8)]), whole, atol=1e-6)


def test_moments_are_those_of_the_scores():
    gallery, queries = features(300), features(5, seed=3)
    found = moments.of(gallery, block=70)
    mean, std = found.of(queries, "queries")
    sim = (queries @ gallery.T).double()
    assert torch.allclose(mean[:, 0], sim.mean(1)) and torch.allclose(std[:, 0], sim.std(1), rtol=1e-6)


def test_bad_input_of_weicom_is_named(unchecked):
    image = torch.randn(2, 5)
    with pytest.raises(ValueError, match="text_sim: expected similarities that vary .* found 2"):
        composed.weicom(image, torch.ones(2, 5), 0.5)
    with pytest.raises(ValueError, match="weight: .* found 1.5"):
        composed.weicom(image, image, 1.5)
    with pytest.raises(ValueError, match="at least 2 rows .* found 1"):
        moments.of(features(1))
    with pytest.raises(ValueError, match="images: expected similarities that vary .* found 2"):
        composed.weicom_scores(features(2), features(2), features(1).expand(6, -1), 0.5)
    with pytest.raises(ValueError, match="one width, found {'images': 12, 'texts': 12, 'gallery': 6}"):
        composed.weicom_scores(features(2), features(2), features(9, d=6), 0.5)
    with pytest.raises(ValueError, match="name: expected one of text"):
        composed.baseline_scores("sumo", features(2), features(2), features(9))


def test_labels_count_words_and_the_first_seen_wins_a_tie():
    assert composed.text_labels([["b", "a"], ["a", "c"], ["d", "c"]], 3) == [("a", 1.0), ("c", 1.0), ("b", 0.5)]
    assert composed.text_labels([["b"]], 7) == [("b", 1.0)]


def test_labels_equal_a_plain_loop_over_neighbours():
    images, memory, words = features(6), features(30, seed=4), vocabulary()
    found = composed.labels(images, words, m=3, n=2, k=5, memory=memory)
    for row, image in zip(found, images, strict=True):
        near = (memory @ image).argsort(descending=True)[:5]
        said = [WORDS[w] for z in near for w in (words.features @ memory[z]).argsort(descending=True)[:2]]
        counts = Counter(said)
        order = sorted(counts, key=lambda w: (-counts[w], said.index(w)))[:3]
        assert row == [(w, counts[w] / counts[order[0]]) for w in order]


def test_one_proxy_that_is_the_query_itself_is_plain_inversion():
    images, words = features(5), vocabulary()
    plain = composed.labels(images, words, m=4)
    assert plain == composed.labels(images, words, m=4, n=4, k=1, memory=images)


def test_whose_slot_the_query_takes():
    images, memory = features(3), features(10, seed=5)
    paper = composed.proxies(images, memory, 4)
    always = composed.proxies(images, memory, 4, own="always")
    assert bool((always[:, 0] == -1).all()) and torch.equal(always[:, 1:], paper[:, :3])
    assert torch.equal(composed.proxies(images, memory, 4, own="batch"), always)  # strangers: the query is put first
    known = torch.cat([memory, images])
    assert torch.equal(composed.proxies(images, known, 4, own="batch"), composed.proxies(images, known, 4))
    mixed = torch.cat([images, features(1, seed=9)])  # one stranger changes the neighbours of all
    assert not torch.equal(composed.proxies(mixed, known, 4, own="batch")[:3], composed.proxies(images, known, 4, own="batch"))
    own = composed.labels(images, vocabulary(), memory=memory, k=1, n=4, m=4, own="always")
    assert own == composed.labels(images, vocabulary(), m=4)  # a single slot, taken by the query: plain inversion


def test_late_fusion_is_the_weighted_sum_of_single_words_and_a_single_word_needs_no_fusion():
    found, texts = [[("plane", 1.0), ("jet", 0.5)], [("pool", 1.0)]], ["sketch", "cartoon"]
    late = composed.freedom(found, texts, encode)
    expected = encode(["plane sketch"]) + 0.5 * encode(["jet sketch"])
    assert torch.allclose(late[:1], F.normalize(expected, dim=1), atol=1e-6)
    assert torch.allclose(late[1:], encode(["pool cartoon"]), atol=1e-6)
    assert torch.allclose(composed.freedom(found, texts, encode, fusion="early"), encode(["plane jet sketch", "pool cartoon"]))
    uniform = composed.freedom(found, texts, encode, weighted=False)
    assert torch.allclose(uniform[0], F.normalize(encode(["plane sketch"]) + encode(["jet sketch"]), dim=1)[0], atol=1e-6)


def test_a_query_does_not_depend_on_its_batch_mates():
    images, memory, words = features(6), features(30, seed=4), vocabulary()
    whole = composed.labels(images, words, memory=memory, k=4, n=2)
    assert whole[2:3] == composed.labels(images[2:3], words, memory=memory, k=4, n=2)


def test_a_word_can_be_taken_out_of_the_vocabulary():
    less = vocabulary().without(encode(["pool"]), 2)
    assert "pool" not in less.words and len(less.words) == len(WORDS) - 2 == len(less.features)


def test_empty_memories_and_missing_words_are_errors(unchecked):
    with pytest.raises(ValueError, match="vocabulary: expected words, .* found 0"):
        composed.Vocabulary([], torch.zeros(0, 3))
    with pytest.raises(ValueError, match="memory: expected at least one"):
        composed.proxies(features(2), torch.zeros(0, 12), 3)
    with pytest.raises(ValueError, match="found: expected words for each of 2 texts, found 1"):
        composed.freedom([[("a", 1.0)], []], ["x", "y"], encode)
    with pytest.raises(ValueError, match="positives: expected those of at least one query"):
        composed.judge(composed.feature_scores(features(2), features(3)), [])
    with pytest.raises(ValueError, match="m: expected at least 1"):
        composed.text_labels([["a"]], 0)


def test_basic_without_expansion_or_projection_is_harris_s_criterion_of_centred_similarities():
    images, texts, gallery, loose = features(3), features(3, seed=1), features(20, seed=2), features(50, seed=3)
    subjects = torch.cat([torch.eye(12), -torch.eye(12)])  # isotropic: nothing is projected away
    basic = composed.Basic(loose, subjects, features(4, seed=6) * 1e-6, expansion=0, alpha=0.0)
    x, y = gallery - loose.mean(0), images - loose.mean(0)
    calm = loose - loose.mean(0)
    floors = (calm @ calm.T).min(), (subjects @ calm.T).min()
    a = ((y @ x.T - floors[0]) / floors[0].abs()).clamp(min=0)
    b = ((texts @ x.T - floors[1]) / floors[0].abs()).clamp(min=0)
    assert torch.allclose(basic.scores(images, texts, gallery)(slice(0, 3)), a * b - 0.1 * (a + b) ** 2, atol=1e-4)


def test_context_is_the_mean_over_subjects():
    found = composed.contextualised(["red", "red", "blue"], ["pool", "tank"], encode)
    assert torch.allclose(found[1], F.normalize(encode(["pool red", "tank red"]).mean(0), dim=0), atol=1e-6)
    assert torch.equal(found[0], found[1])


def test_judging_equals_the_dense_metric_and_counts_what_has_no_answer():
    images, gallery = features(7), features(40, seed=2)
    relevant = torch.rand(7, 40, generator=torch.Generator().manual_seed(1)) < 0.2
    relevant[3] = False
    judged = composed.judge(composed.feature_scores(images, gallery), [r.nonzero()[:, 0] for r in relevant], ks=(5,), block=3)
    for form in ("hits", "trapezoid"):
        dense = metrics.average_precision(images @ gallery.T, relevant, form=form)
        assert torch.allclose(getattr(judged, form).float(), dense, equal_nan=True)
    top = (images @ gallery.T).topk(5).indices
    recall = [relevant[i][top[i]].sum() / relevant[i].sum() for i in range(7) if i != 3]
    assert int(judged.hits.isnan().sum()) == 1 and torch.allclose(judged.recall[5][[0, 1, 2, 4, 5, 6]].float(), torch.stack(recall).float())
    means = composed.average(judged.hits, ["a"] * 3 + ["b"] + ["a"] * 3)
    assert math.isnan(means["b"]) and means["a"] == pytest.approx(float(judged.hits[~judged.hits.isnan()].mean()))
    assert composed.average(judged.hits, ["a"] * 7, empty="zero")["a"] == pytest.approx(means["a"] * 6 / 7)


def test_a_perfect_single_positive_scores_one_in_both_forms():
    judged = composed.judge(lambda rows: torch.tensor([[0.1, 0.9, 0.3]]), [torch.tensor([1])], ks=(1,))
    assert float(judged.hits[0]) == float(judged.trapezoid[0]) == float(judged.recall[1][0]) == 1.0


@pytest.mark.parametrize("kind", composed.NORMALISATIONS)
def test_a_normalisation_keeps_each_row_s_order_and_its_batch_does_not_matter(kind):
    x = F.normalize(torch.randn(4, 16), dim=1) @ F.normalize(torch.randn(16, 50), dim=0)
    found = composed.normalised(kind, x)
    assert torch.equal(found.argsort(1), x.double().argsort(1))
    torch.testing.assert_close(composed.normalised(kind, x[2:3]), found[2:3])


def test_ranks_and_their_reciprocals_are_scipy_s():
    x = torch.tensor([[0.3, 0.1, 0.3, 0.9, -0.2]])
    above = stats.rankdata(-x.numpy(), axis=1)  # 1: best, the mean of those alike
    assert np.allclose(composed.normalised("reciprocal", x), 1 / (60 + above))
    assert np.allclose(composed.normalised("rank", x), (5.5 - above) / 5)


def test_no_query_judges_the_setting_that_was_chosen_on_it():
    half = torch.tensor([True, True, False, False])
    tried = {0.0: torch.tensor([1.0, 1.0, 0.0, 0.0]), 1.0: torch.tensor([0.0, 0.0, 1.0, 1.0])}
    found, chosen = composed.crossfit(tried, half, ["a", "a", "b", "b"])
    assert found.tolist() == [0.0, 0.0, 0.0, 0.0] and chosen == [1.0, 0.0], "each half is best where it was not chosen"
