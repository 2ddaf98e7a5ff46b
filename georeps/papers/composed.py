"""Composed image retrieval: an image and a text ask together (dissertation, chapters 4 and 5); from features to scores.

    WeiCom    s = w Phi(z_text) + (1 - w) Phi(z_image)                      z: standardised over the gallery (Eq. 5.2)
    FreeDom   q = sum_i a_i g(w_i + t)                                      w_i: words of the query's neighbours (Eq. 4.12-4.17)
    BASIC     s = x y - 0.1 (x + y)^2                                       x, y: centred, projected, shifted similarities

All features are unit rows; y is the query image, t the query text, g the text encoder, X the gallery.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from georeps.core import kernels, metrics, moments, search

Encode = Callable[[Sequence[str]], Tensor]  # texts -> unit rows "n d"
Scores = Callable[[slice], Tensor]  # a range of queries -> their scores "b g"


# --- similarities of one kind, and their simplest unions (Eq. 5.1; 4.4.2) ---

BASELINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # (image similarity, text similarity) -> score
    "text": lambda image, text: text,
    "image": lambda image, text: image,
    "average": lambda image, text: (image + text) / 2,  # ranks as the sum does
    "product": lambda image, text: image * text,
}


def weicom(image_sim: Float[Tensor, "q g"], text_sim: Float[Tensor, "q g"], weight: float) -> Float[Tensor, "q g"]:
    """WeiCom's scores from similarities (Eq. 5.2): weight 0 asks by image alone, 1 by text alone; each side as `normalised` by "cdf"."""
    _check_weight(weight)
    image, text = (normalised("cdf", sim, name) for name, sim in (("image_sim", image_sim), ("text_sim", text_sim)))
    return (1 - weight) * image + weight * text


NORMALISATIONS = {
    "none": "similarities as they are (Eq. 5.1)", "log": "their logarithms, (1 + s) / 2: a weighted product", "standardised": "z",
    "cdf": "Phi(z): WeiCom", "rank": "share of the gallery that scores less: the empirical distribution function",
    "reciprocal": "1 / (60 + rank): reciprocal rank fusion (Cormack et al., 2009)",
}  # fmt: skip


def normalised(kind: str, similarity: Float[Tensor, "q g"], name: str = "similarity") -> Float[Tensor, "q g"]:
    """Similarities of one side made comparable with the other's, a row by itself, as NORMALISATIONS says.

    z is by the row's mean and unbiased deviation over the gallery, in float64: in float32 all beyond 5.4 deviations would tie in "cdf". Equal
    similarities share the mean of their ranks. Raises ValueError for a row without spread where one is needed.
    """
    if kind not in NORMALISATIONS:
        raise ValueError(f"kind: expected one of {', '.join(NORMALISATIONS)}, found {kind!r}")
    x = similarity.double()
    if kind in ("none", "log"):
        return x if kind == "none" else ((1 + x) / 2).clamp(min=1e-9).log()
    if kind in ("standardised", "cdf"):
        deviation = x.std(dim=1, keepdim=True) if x.shape[1] > 1 else torch.zeros(len(x), 1)
        moments.check_spread(deviation, x.abs().amax(), name)
        z = (x - x.mean(dim=1, keepdim=True)) / deviation
        return torch.special.ndtr(z) if kind == "cdf" else z
    order = x.sort(dim=1).values
    below, reached = (torch.searchsorted(order, x, right=right) for right in (False, True))
    middle = (below + reached) / 2  # of those that score alike
    return middle / x.shape[1] if kind == "rank" else 1 / (60.5 + x.shape[1] - middle)


def crossfit(
    tried: Mapping[float, Float[Tensor, " q"]], half: Bool[Tensor, " q"], group: Sequence[str]
) -> tuple[Float[Tensor, " q"], list[float]]:  # fmt: skip
    """Outcomes of a method whose setting is chosen on other queries: those of each half by what is best on the other half; both settings.

    `tried`: setting -> an outcome of each query; best is by the mean of the groups' averages. No query judges the setting that was chosen on it.
    """
    found, chosen = torch.empty_like(next(iter(tried.values()))), []
    for part in (half, ~half):
        others = [g for g, own in zip(group, part.tolist(), strict=True) if not own]
        best = max(tried, key=lambda setting, other=~part, names=others: sum(average(tried[setting][other], names).values()))
        found[part] = tried[best][part]
        chosen.append(best)
    return found, chosen


def weicom_scores(
    images: Float[Tensor, "q d"], texts: Float[Tensor, "q d"], gallery: Float[Tensor, "g d"], weight: float, *, found: moments.Moments | None = None
) -> Scores:
    """WeiCom block by block, equal to `weicom` on whole matrices: the statistics come from the gallery's moments, not from scores."""
    _check_weight(weight)
    _check_width(images=images, texts=texts, gallery=gallery)
    found = found or moments.of(gallery)
    sides = [(q, *found.of(q, name)) for name, q in (("images", images), ("texts", texts))]

    def scores(rows: slice) -> Tensor:
        (image, text) = (torch.special.ndtr(((q[rows] @ gallery.T).double() - mean[rows]) / std[rows]) for q, mean, std in sides)
        return image.mul_(1 - weight).add_(text, alpha=weight)

    return scores


@torch.no_grad()
def weicom_rank_of(
    images: Float[Tensor, "q d"], texts: Float[Tensor, "q d"], gallery: Float[Tensor, "g d"], weight: float, target: Int64[Tensor, " q *p"], *,
    found: moments.Moments | None = None, backend: search.Backend = "auto",
) -> Int64[Tensor, " q *p"]:  # fmt: skip
    """Rank of each query's positives under WeiCom, as `search.rank_of` defines it; "triton" counts in one pass over the gallery."""
    asked = _Weicom(images, texts, gallery, weight, found)
    targets = search.checked_targets(target, len(images), len(gallery))
    ranks = torch.full_like(targets, -1)
    rest = torch.ones(len(images), dtype=torch.bool, device=images.device)
    if search.choose(backend, images, gallery, positives=targets.shape[1]) == "triton":
        row, p = (targets >= 0).nonzero(as_tuple=True)
        own = torch.full(targets.shape, -math.inf, device=images.device)  # of -1: nothing scores above 1
        own[row, p] = asked.lacks(row, targets[row, p])
        slack = asked.slack(own.clamp(min=0))
        above, near, listed = search.kernel.count(asked.rows[0], asked.rows[2], -own - slack, -own + slack, targets, 128, **asked.kernel_arguments())
        rest = (near > 128).any(dim=1)
        row, p, place = (torch.arange(128, device=images.device) < near[..., None]).nonzero(as_tuple=True)
        reached = asked.lacks(row, listed[row, p, place].long()) <= own[row, p]
        ranks = torch.where(targets < 0, -1, above.long().index_put_((row, p), reached.long(), accumulate=True))
    for rows in search.blocks(rest, asked.block):
        whole = asked.whole(rows)
        own = whole.gather(1, targets[rows].clamp(min=0))
        if targets.shape[1] > 4:  # values are sorted once, and looked up for each positive
            reached = torch.searchsorted(whole.sort(dim=1).values, own, right=True)
        else:
            reached = torch.stack([(whole <= bar[:, None]).sum(1) for bar in own.unbind(1)], dim=1)
        ranks[rows] = torch.where(targets[rows] < 0, -1, reached - 1)
    return ranks.reshape(target.shape)


class _Weicom:
    """Queries, gallery and statistics, and what scores lack of 1: (1 - w) Q(z_image) + w Q(z_text), Q(z) = Phi(-z)."""

    def __init__(self, images: Tensor, texts: Tensor, gallery: Tensor, weight: float, found: moments.Moments | None):
        _check_weight(weight)
        _check_width(images=images, texts=texts, gallery=gallery)
        self.tolerance = [search.checked(x, gallery) for x in (images, texts)]
        found = found or moments.of(gallery)
        self.images, self.texts, self.gallery, self.weight = images, texts, gallery, weight
        self.statistics = torch.cat([*found.of(images, "images"), *found.of(texts, "texts")], dim=1)
        self.rows = kernels.common(images, texts, gallery)
        self.block = max(1, 2**23 // len(gallery))  # queries whose float64 scores are held at a time

    def _combine(self, image: Tensor, text: Tensor, statistics: Tensor) -> Float[Tensor, "..."]:
        image, text = (image - statistics[..., 0]) / statistics[..., 1], (text - statistics[..., 2]) / statistics[..., 3]
        tails = (0.5 * torch.special.erfc(z * math.sqrt(0.5)) for z in (image, text))  # torch's ndtr is 0 beyond 8.3 deviations
        return ((1 - self.weight) * next(tails) + self.weight * next(tails)).float()

    def lacks(self, row: Tensor, column: Tensor) -> Float[Tensor, " n"]:
        products = (search.pair_products(x, self.gallery, row, column) for x in (self.images, self.texts))
        return self._combine(*products, self.statistics[row])

    def whole(self, rows: Tensor) -> Float[Tensor, "b g"]:
        products = (x[rows].double() @ self.gallery.double().T for x in (self.images, self.texts))
        return self._combine(*products, self.statistics[rows][:, None])

    def slack(self, lack: Float[Tensor, "q p"]) -> Float[Tensor, "q p"]:
        """How far a kernel's score may be off: rounding of the products over their deviation, times the density where the score stands.

        The density phi(z) is a concave function of Q(z): of two sides its mean is at most that at the mean.
        """
        off = torch.maximum(*(t / self.statistics[:, i] for t, i in zip(self.tolerance, (1, 3), strict=True)))
        z = torch.special.ndtri(lack.double().clamp(1e-37, 1))
        density = torch.where(lack < 1, torch.exp(-z.square() / 2), 0) / math.sqrt(2 * math.pi)
        return (off[:, None] * density + 2e-5 * lack).float()

    def kernel_arguments(self) -> dict:
        mean, deviation = self.statistics[:, 0::2], self.statistics[:, 1::2]
        return {"texts": self.rows[1], "stats": torch.stack([mean, 1 / deviation], dim=2).flatten(1).float().contiguous(), "weight": self.weight}


def baseline_scores(name: str, images: Float[Tensor, "q d"], texts: Float[Tensor, "q d"], gallery: Float[Tensor, "g d"]) -> Scores:
    """Scores of a baseline of BASELINES, block by block."""
    if name not in BASELINES:
        raise ValueError(f"name: expected one of {', '.join(BASELINES)}, found {name!r}")
    _check_width(images=images, texts=texts, gallery=gallery)
    return lambda rows: BASELINES[name](images[rows] @ gallery.T, texts[rows] @ gallery.T)


# --- FreeDom ---


@dataclass(frozen=True)
class Vocabulary:
    """The text memory (Eq. 4.3): words and their features."""

    words: list[str]
    features: Float[Tensor, "v d"]

    def __post_init__(self):
        if not self.words or len(self.words) != len(self.features):
            raise ValueError(f"vocabulary: expected words, each with its feature, found {len(self.words)} and {len(self.features)}")

    def nearest(self, images: Float[Tensor, "b d"], n: int) -> list[list[str]]:
        """NN-inversion (Eq. 4.6): the n words nearest to each image, nearest first."""
        index = search.topk(images, self.features, min(n, len(self.words))).index
        return [[self.words[i] for i in row] for row in index.tolist()]

    def without(self, unwanted: Float[Tensor, "1 d"], nearest: int) -> "Vocabulary":
        """The vocabulary less the words nearest to a feature, as the dissertation tests its sensitivity (4.4.7)."""
        gone = set(search.topk(unwanted, self.features, min(nearest, len(self.words))).index[0].tolist())
        keep = [i for i in range(len(self.words)) if i not in gone]
        return Vocabulary([self.words[i] for i in keep], self.features[keep])


def text_labels(neighbour_words: Sequence[Sequence[str]], m: int) -> list[tuple[str, float]]:
    """The m most frequent words of a query's neighbours with weights count / largest count; of equal counts the first seen (Eq. 4.14)."""
    if m < 1:
        raise ValueError(f"m: expected at least 1 label, found {m}")
    counts = Counter(word for words in neighbour_words for word in words)
    best = counts.most_common(m)  # stable: insertion order among equals
    return [(word, n / best[0][1]) for word, n in best]


def proxies(
    images: Float[Tensor, "q d"], memory: Float[Tensor, "z d"], k: int, *, own: Literal["memory", "always", "batch"] = "memory"
) -> Int64[Tensor, "q k"]:
    """The k images of the memory that stand for each query (Eq. 4.13), nearest first; -1 is the query itself.

    "memory", the paper: the k nearest of the visual memory, the query among them only if it lies there. "always": the query itself takes
    the first slot. "batch", the published code: as "always", but only if the least of the batch's best similarities is below 0.98, so
    that one stranger among the queries changes them all; the published batch is the queries of one source domain.
    """
    if own not in ("memory", "always", "batch"):
        raise ValueError(f"own: expected 'memory', 'always' or 'batch', found {own!r}")
    if len(memory) == 0:
        raise ValueError("memory: expected at least one image, found none")
    found = search.topk(images, memory, min(k, len(memory)))
    if own == "always" or (own == "batch" and float(found.scores[:, 0].min()) < 0.98):
        return F.pad(found.index, (1, 0), value=-1)[:, :k]
    return found.index


def labels(
    images: Float[Tensor, "q d"], vocabulary: Vocabulary, *, m: int = 7, n: int = 7, k: int = 20, memory: Float[Tensor, "z d"] | None = None,
    own: Literal["memory", "always", "batch"] = "memory",
) -> list[list[tuple[str, float]]]:  # fmt: skip
    """The weighted words of each query: its m nearest (`memory` None, Eq. 4.6), or the m most frequent of k proxies' n each (Eq. 4.14)."""
    if memory is None:
        return [[(word, 1.0) for word in words] for words in vocabulary.nearest(images, m)]
    near = proxies(images, memory, k, own=own).tolist()
    used = sorted({i for row in near for i in row if i >= 0})
    said = dict(zip(used, vocabulary.nearest(memory[used], n), strict=True)) if used else {}
    mine = vocabulary.nearest(images, n) if any(i < 0 for row in near for i in row) else []
    return [text_labels([mine[q] if i < 0 else said[i] for i in row], m) for q, row in enumerate(near)]


def freedom(
    found: Sequence[Sequence[tuple[str, float]]], texts: Sequence[str], encode: Encode, *, fusion: Literal["early", "late"] = "late",
    weighted: bool = True,
) -> Float[Tensor, "q d"]:  # fmt: skip
    """Composed queries in the space of the gallery, unit rows (Eq. 4.8-4.17): score them against it by inner product.

    `found` are the words of `labels`. "early" encodes all words and the text at once; "late" encodes each word with the text and adds
    the features, by their frequencies where `weighted`.
    """
    if fusion not in ("early", "late"):
        raise ValueError(f"fusion: expected 'early' or 'late', found {fusion!r}")
    if len(found) != len(texts) or not all(found):
        raise ValueError(f"found: expected words for each of {len(texts)} texts, found {sum(map(bool, found))} of {len(found)} with any")
    if fusion == "early":
        return encode([" ".join([*(w for w, _ in words), t]) for words, t in zip(found, texts, strict=True)])
    composed = [(i, f"{w} {t}", a) for i, (words, t) in enumerate(zip(found, texts, strict=True)) for w, a in words]
    weight = torch.tensor([a if weighted else 1.0 for _, _, a in composed])
    rows = encode([text for _, text, _ in composed]) * weight[:, None]
    into = torch.tensor([i for i, _, _ in composed])
    return F.normalize(torch.zeros(len(texts), rows.shape[1]).index_add_(0, into, rows), dim=1)


def feature_scores(queries: Float[Tensor, "q d"], gallery: Float[Tensor, "g d"]) -> Scores:
    """Scores of queries that are features themselves (Eq. 4.1)."""
    _check_width(queries=queries, gallery=gallery)
    return lambda rows: queries[rows] @ gallery.T


# --- BASIC ---


@dataclass(frozen=True)
class Basic:
    """BASIC (Psomas et al., 2025), the same group's later training-free method, written from its description.

    Features are centred; the image query is projected onto what distinguishes subjects from styles; similarities are shifted by the
    least that unrelated pairs reach, and multiplied with Harris's criterion. `images`: any unlabelled images of the domain (there:
    LAION's mean and synthetic pairs); `subjects` and `styles`: features of two lists of words.
    """

    images: Float[Tensor, "z d"]
    subjects: Float[Tensor, "v d"]
    styles: Float[Tensor, "u d"]
    alpha: float = 0.2
    components: int = 250
    expansion: int = 25
    harris: float = 0.1

    def scores(self, images: Float[Tensor, "q d"], texts: Float[Tensor, "q d"], gallery: Float[Tensor, "g d"]) -> Scores:
        """Block by block; the query image is averaged with its `expansion` nearest of the gallery, weighted by exp(similarity / 10)."""
        _check_width(images=images, texts=texts, gallery=gallery, subjects=self.subjects)
        image_mean, text_mean = self.images.mean(0), self.subjects.mean(0)
        x, y, t = gallery - image_mean, images - image_mean, texts - text_mean
        projection = self._projection(text_mean)
        near = search.topk(y @ projection, x, min(self.expansion, len(x))) if self.expansion else None
        calm = self.images[:: max(1, len(self.images) // 1000)] - image_mean
        least_image = float((calm @ calm.T).min())
        least_text = float(((self.subjects - text_mean) @ calm.T).min())

        def block(rows: slice) -> Tensor:
            own = y[rows]
            if near is not None:
                weight = F.pad(near.scores[rows], (0, 1), value=1.0).mul(0.1).softmax(dim=1)
                own = (torch.cat([x[near.index[rows]], own[:, None]], dim=1) * weight[..., None]).sum(1)
            by_image = ((own @ projection @ x.T - least_image) / abs(least_image)).clamp(min=0)
            by_text = ((t[rows] @ x.T - least_text) / abs(least_image)).clamp(min=0)
            return by_image * by_text - self.harris * (by_image + by_text) ** 2

        return block

    def _projection(self, mean: Tensor) -> Float[Tensor, "d d"]:
        """Onto the leading directions of (1 - alpha) Cov(subjects) - alpha Cov(styles) of positive eigenvalue (one that is not rounding)."""
        a, b = ((f - mean).double() for f in (self.subjects, self.styles))
        contrast = (1 - self.alpha) * a.T @ a / max(1, len(a) - 1) - self.alpha * b.T @ b / max(1, len(b) - 1)
        value, vector = torch.linalg.eigh(contrast)
        kept = vector[:, value > 1e-12 * value[-1].abs()][:, -self.components :]
        return (kept @ kept.T).float()


def contextualised(texts: Sequence[str], subjects: Sequence[str], encode: Encode) -> Float[Tensor, "q d"]:
    """BASIC's text queries: the mean of g(subject + text) over the subjects, unit rows."""
    distinct = list(dict.fromkeys(texts))
    features = encode([f"{s} {t}" for t in distinct for s in subjects]).unflatten(0, (len(distinct), len(subjects)))
    return F.normalize(features.mean(1), dim=1)[[distinct.index(t) for t in texts]]


# --- what a ranking is worth ---


@dataclass(frozen=True)
class Judged:
    """Average precision in both forms and recall at each k, one value a query; NaN where nothing is right."""

    hits: Float[Tensor, " q"]  # mean precision at each hit: PatternCom's form
    trapezoid: Float[Tensor, " q"]  # FreeDom's form
    recall: dict[int, Float[Tensor, " q"]]  # share of the positives among the first k


def judge(scores: Scores, positives: Sequence[Int64[Tensor, " _"]], *, ks: Sequence[int] = (10, 50), block: int = 256) -> Judged:
    """Rank every gallery image for every query, a block of queries at a time; a positive tied with others is placed after them."""
    if not len(positives):
        raise ValueError("positives: expected those of at least one query, found none")
    parts = []
    for start in range(0, len(positives), block):
        places = metrics.hit_places(scores(slice(start, start + block)), positives[start : start + block])
        count = (places > 0).sum(1).double()
        parts.append([
            *(metrics.precision_of(places, form).cpu() for form in ("hits", "trapezoid")),
            *((((places > 0) & (places <= k)).sum(1) / count).cpu() for k in ks),  # 0 / 0: NaN
        ])  # fmt: skip
    hits, trapezoid, *recall = map(torch.cat, zip(*parts, strict=True))
    return Judged(hits, trapezoid, dict(zip(ks, recall, strict=True)))


def average(values: Float[Tensor, " q"], group: Sequence[str], *, empty: Literal["left out", "zero"] = "left out") -> dict[str, float]:
    """The mean of each group in order of first appearance; queries without a positive are left out, or count 0 as in the FreeDom code."""
    found = {}
    for name in dict.fromkeys(group):
        part = values[[g == name for g in group]]
        part = part.nan_to_num(0.0) if empty == "zero" else part[~part.isnan()]
        found[name] = float(part.mean()) if len(part) else math.nan
    return found


def balanced(values: Float[Tensor, " q"], group: Sequence[str], *, empty: Literal["left out", "zero"] = "left out") -> Float[Tensor, " k"]:
    """Outcomes a query whose mean is that of the groups' averages (`average`): weighed by q / (groups x queries of the group)."""
    values = values.nan_to_num(0.0) if empty == "zero" else values
    counts = {name: sum(g == name for g, there in zip(group, ~values.isnan()) if there) for name in dict.fromkeys(group)}
    if not all(counts.values()):
        raise ValueError(f"values: expected a query with a positive in every group, found none in {[g for g, n in counts.items() if not n]}")
    weight = torch.tensor([1 / (len(counts) * counts[g]) for g in group], dtype=values.dtype, device=values.device) * sum(counts.values())
    return (values * weight)[~values.isnan()]


def _check_weight(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"weight: expected a share of the text in 0..1, found {weight}")


def _check_width(**features: Tensor) -> None:
    widths = {name: x.shape[1] for name, x in features.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"features: expected one width, found {widths}")
