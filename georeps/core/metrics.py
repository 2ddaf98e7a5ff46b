"""From ranks, scores and distances to the numbers that papers print.

Recall, average precision, GeoScore, and the spread of descriptors on the sphere: uniformity and alignment (Wang & Isola,
2020; thesis, Eq. 3.5) and utilization (dissertation, Eq. 2.24).
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from georeps.core import search, sphere
from georeps.core.kernels import pairs


def recall_at(ranks: Int64[Tensor, " q"], k: int) -> float:
    """R@k: share of queries whose match is among the k best (rank < k, rank 0 = best)."""
    if len(ranks) == 0:
        raise ValueError("ranks: expected at least one query, found none")
    if k < 1:
        raise ValueError(f"k: expected k >= 1, found {k}")
    return (ranks < k).double().mean().item()


def recall_at_percent(ranks: Int64[Tensor, " q"], gallery_size: int, percent: float = 1.0, convention: Literal["floor", "floor+1"] = "floor") -> float:
    """R@p%: recall at a share of the gallery.

    "floor": k = floor(p N / 100), at least 1 (Sample4Geo, TransGeo, SAFA's test scripts). "floor+1": one more (VIGOR,
    SAFA's training scripts). On a gallery of N = 46,563 the two differ by one place in 466.
    """
    if convention not in ("floor", "floor+1"):
        raise ValueError(f"convention: expected 'floor' or 'floor+1', found {convention!r}")
    k = math.floor(gallery_size * percent / 100 + 1e-9) + (convention == "floor+1")
    return recall_at(ranks, max(1, k))


def hit_rate(
    queries: Float[Tensor, "q d"], gallery: Float[Tensor, "g d"], positive: Int64[Tensor, " q"], semi: Int64[Tensor, "q s"], *,
    definition: Literal["covers", "published"] = "covers",
) -> float:  # fmt: skip
    """VIGOR's hit rate: the share of queries whose place is found at rank 1; ties count against the query.

    "covers", the paper's words: the best tile is the positive or a semi-positive. "published", the paper's code and all that
    followed it: no tile but semi-positives scores as high as the positive. The latter is stricter: a semi-positive at
    rank 1 and a wrong tile before the positive is a miss.
    """
    if definition not in ("covers", "published"):
        raise ValueError(f"definition: expected 'covers' or 'published', found {definition!r}")
    found = search.topk(queries, gallery, min(semi.shape[1] + 2, len(gallery)))
    member = (found.index[:, :, None] == torch.cat([positive[:, None], semi], dim=1)[:, None, :]).any(-1)
    if definition == "covers":
        bar = found.scores[:, :1]
    else:  # out of reach where the positive is not among the first 1 + s: more than the semi-positives are ahead of it
        own = torch.where(found.index == positive[:, None], found.scores, -math.inf)
        bar = own.amax(dim=1, keepdim=True)
    return (~(~member & (found.scores >= bar)).any(dim=1)).double().mean().item()


def metres(found: Float[Tensor, "q 2"], true: Float[Tensor, "q 2"], *, unit: Literal["metres", "degrees"]) -> Float[Tensor, " q"]:
    """Metre-level error: from each retrieved position to the true one. Degrees are (latitude, longitude), by great circle."""
    if unit not in ("metres", "degrees"):
        raise ValueError(f"unit: expected 'metres' or 'degrees', found {unit!r}")
    if unit == "metres":
        return (found - true).norm(dim=1)
    return 1000 * sphere.kilometres(sphere.from_latlon(found.double()), sphere.from_latlon(true.double()))


def average_precision(scores: Float[Tensor, "q g"], relevant: Bool[Tensor, "q g"], *, form: Literal["hits", "trapezoid"] = "hits") -> Float[Tensor, " q"]:
    """Average precision of each query over its whole gallery; NaN where nothing is relevant.

    "hits": the mean of the precision at each hit (PatternCom, metric learning). "trapezoid": the area under the
    precision-recall curve by trapezoids (revisited Oxford and Paris). A relevant row tied with irrelevant ones is placed
    after them. The mean over queries is left to the caller, who must say what becomes of NaN.
    """
    if form not in ("hits", "trapezoid"):
        raise ValueError(f"form: expected 'hits' or 'trapezoid', found {form!r}")
    return precision_of(hit_places(scores, [row.nonzero()[:, 0] for row in relevant]), form).to(scores)


def hit_places(scores: Float[Tensor, "q g"], positives: Sequence[Int64[Tensor, " _"]]) -> Int64[Tensor, "q p"]:
    """Where each query's positives stand in its ranking, from 1, ascending; 0 fills the rows of queries with fewer.

    Among equal scores positives come last. Values are sorted, never indices: on CPU by numpy's vector sort, 30 times faster than argsort.
    """
    _check_finite("scores", scores)
    if len(scores) != len(positives):
        raise ValueError(f"positives: expected those of {len(scores)} queries, found {len(positives)}")
    ordered = scores.sort(dim=1).values if scores.is_cuda else torch.from_numpy(np.sort(scores.numpy(), axis=1))
    places = scores.new_zeros((len(scores), max(map(len, positives), default=0)), dtype=torch.int64)
    for i, own in enumerate(positives):
        hits = scores[i, own.to(scores.device)].sort().values
        ahead = len(ordered[i]) - torch.searchsorted(ordered[i], hits)  # all that score at least as high, misses and hits
        ahead -= len(hits) - torch.searchsorted(hits, hits)  # ... and of these the hits
        places[i, : len(hits)] = ahead.flip(0) + torch.arange(1, len(hits) + 1, device=hits.device)
    return places


def precision_of(places: Int64[Tensor, "q p"], form: Literal["hits", "trapezoid"]) -> Float64[Tensor, " q"]:
    """Average precision from the places of the positives, as `hit_places` gives them; NaN of none."""
    there = places > 0
    found = torch.arange(1, places.shape[1] + 1, device=places.device, dtype=torch.float64)
    precision = found / places.clamp(min=1)
    if form == "trapezoid":
        before = torch.where(places == 1, 1.0, (found - 1) / (places - 1).clamp(min=1))
        precision = (before + precision) / 2
    return (precision * there).sum(1) / there.sum(1)


def landmark_ap(
    scores: Float[Tensor, "q g"], easy: Sequence[Int64[Tensor, " _"]], hard: Sequence[Int64[Tensor, " _"]], junk: Sequence[Int64[Tensor, " _"]], *,
    protocol: Literal["easy", "medium", "hard"],
) -> Float64[Tensor, " q"]:  # fmt: skip
    """Average precision of each query on revisited Oxford and Paris, by trapezoids; NaN of a query without positives.

    "medium" looks for the easy and the hard rows of the gallery, "hard" for the hard alone; what is neither sought nor wrong is taken out.
    """
    if protocol not in ("easy", "medium", "hard"):
        raise ValueError(f"protocol: expected 'easy', 'medium' or 'hard', found {protocol!r}")
    sought = {"easy": (easy,), "medium": (easy, hard), "hard": (hard,)}[protocol]
    ignored = {"easy": (hard, junk), "medium": (junk,), "hard": (easy, junk)}[protocol]
    found = []
    for i, row in enumerate(scores):
        relevant, keep = torch.zeros_like(row, dtype=torch.bool), torch.ones_like(row, dtype=torch.bool)
        relevant[torch.cat([group[i] for group in sought])] = True
        keep[torch.cat([group[i] for group in ignored])] = False
        found.append(average_precision(row[None, keep].double(), relevant[None, keep], form="trapezoid")[0])
    return torch.stack(found).double()


UNMATCHED = 2**62  # a rank that no k reaches


class ClassRetrieval(NamedTuple):
    rank: Int64[Tensor, " q"]  # of the first of the query's class, 0 = best; UNMATCHED where there is none
    map_at_r: Float64[Tensor, " q"]  # NaN where there is none


def class_retrieval(
    queries: Float[Tensor, "q d"], labels: Int64[Tensor, " q"], gallery: Float[Tensor, "g d"] | None = None,
    gallery_labels: Int64[Tensor, " g"] | None = None, *, chunk: int = 1024,
) -> ClassRetrieval:  # fmt: skip
    """Who of the query's class is found where: leave-one-out among the queries, or in a gallery (In-Shop).

    `recall_at(rank, k)` is the Recall@k of metric learning (dissertation, 2.4.1); MAP@R is the mean over the R gallery items of the query's
    class of the precision at those of them that are among the first R ("A Metric Learning Reality Check", 2020). Ties count
    against the query.
    """
    alone = gallery is None
    if not alone and gallery_labels is None:
        raise ValueError("gallery_labels: expected the classes of the gallery, found none")
    gallery, gallery_labels = (queries, labels) if alone else (gallery, gallery_labels)
    ranks, precisions = [], []
    for start in range(0, len(queries), chunk):
        scores = queries[start : start + chunk] @ gallery.T
        same = labels[start : start + chunk, None] == gallery_labels
        if alone:
            same.diagonal(offset=start).fill_(False)
            scores.diagonal(offset=start).fill_(torch.finfo(scores.dtype).min)
        places = hit_places(scores, [row.nonzero()[:, 0] for row in same])
        r = same.sum(dim=1)
        first = torch.where(r > 0, places[:, 0] - 1, UNMATCHED) if places.shape[1] else torch.full_like(r, UNMATCHED)
        found = torch.arange(1, places.shape[1] + 1, device=places.device, dtype=torch.float64)
        within = (places > 0) & (places <= r[:, None])
        ranks.append(first)
        precisions.append((found / places.clamp(min=1) * within).sum(dim=1) / r)
    return ClassRetrieval(torch.cat(ranks), torch.cat(precisions))


def place_ranks(queries: Float[Tensor, "q d"], gallery: Float[Tensor, "g d"], positives: Sequence[Int64[Tensor, " _"]]) -> Int64[Tensor, " q"]:
    """Rank of the best of each query's positives, 0 = best; UNMATCHED where it has none. A tie with a wrong row counts against the query.

    `recall_at` of it is the R@N of place recognition: a query is right when any of the first N is near enough, and those without
    positives are in the denominator, as published.
    """
    if len(queries) != len(positives):
        raise ValueError(f"positives: expected those of {len(queries)} queries, found {len(positives)}")
    ranks = torch.full((len(queries),), UNMATCHED, dtype=torch.int64)
    asked = [i for i, own in enumerate(positives) if len(own)]
    if not asked:
        return ranks
    best, tied = [], []
    for i in asked:
        scores = (gallery[positives[i]].double() @ queries[i].double()).float()
        best.append(int(positives[i][scores.argmax()]))
        tied.append(int((scores == scores.max()).sum()) - 1)
    found = search.rank_of(queries[asked], gallery, torch.tensor(best, device=queries.device))
    ranks[asked] = (found.cpu() - torch.tensor(tied)).clamp(min=0)
    return ranks


def geoscore(km: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """GeoGuessr's score, 5000 exp(-km / 1492.7), between 0 and 5000 (OSV-5M)."""
    return 5000 * torch.exp(-km / 1492.7)


class PRDC(NamedTuple):
    """Shares: precision, recall and coverage in 0..1; density is 1 where fake points lie as densely as real ones."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: Float[Tensor, "n 3"], fake: Float[Tensor, "m 3"], k: int = 3) -> PRDC:
    """Precision, recall, density and coverage (Naeem et al., 2020) of fake points of S2, by great-circle distance.

    A point's ball reaches to its k-th nearest other of its own kind. Values depend on the number of points: published ones (PLONK) average
    20 consecutive chunks of the test set, each measured alone.
    """
    if min(len(real), len(fake)) <= k or k < 1:
        raise ValueError(f"real, fake: expected more than k = {k} >= 1 points of each, found {len(real)} and {len(fake)}")
    _check_finite("real", real)
    _check_finite("fake", fake)

    def apart(x: Tensor, y: Tensor) -> Tensor:
        return sphere.distance(*torch.broadcast_tensors(x[:, None], y[None]))

    radius, other = (apart(x, x).kthvalue(k + 1, dim=1).values for x in (real, fake))
    between = apart(real, fake)
    inside = between < radius[:, None]
    return PRDC(
        inside.any(0).double().mean().item(), (between < other[None]).any(1).double().mean().item(),
        inside.double().sum(0).mean().item() / k, (between.min(1).values < radius).double().mean().item(),
    )  # fmt: skip


def uniformity(x: Float[Tensor, "b d"], t: float = 2.0) -> float:
    """Log of the average Gaussian potential over pairs i != j (Eq. 3.5), without the pairwise matrix; lower is more uniform.

    Rows are l2-normalised first, on CPU in float64, on a GPU in float32 and then rounded to their own type. 0 for collapsed rows, about
    -2t for rows spread over many dimensions.
    """
    if len(x) < 2:
        raise ValueError(f"x: uniformity needs at least 2 rows, found {len(x)}")
    _check_finite("x", x)
    rows = F.normalize(x.double(), dim=1) if x.device.type == "cpu" else F.normalize(x.float(), dim=1).to(x.dtype)
    return float(pairs.log_sum(rows, 2 * t)[0]) - math.log(len(x) * (len(x) - 1))


def alignment(x: Float[Tensor, "b d"], y: Float[Tensor, "b d"], alpha: float = 2.0) -> float:
    """Mean distance to the power alpha between matched rows, l2-normalised first; 0 where matches coincide."""
    _check_finite("x", x)
    _check_finite("y", y)
    return (F.normalize(x, dim=1) - F.normalize(y, dim=1)).norm(dim=1).pow(alpha).mean().item()


def utilization(test: Float[Tensor, "q d"], train: Float[Tensor, "g d"]) -> float:
    """Mean squared distance of test descriptors to their closest training descriptor (Eq. 2.24); rows l2-normalised first."""
    return search.nearest(F.normalize(test, dim=1), F.normalize(train, dim=1)).mean().item()


def _check_finite(name: str, x: Tensor) -> None:
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name}: expected finite values, found {int((~x.isfinite()).sum())} NaN or infinite")
