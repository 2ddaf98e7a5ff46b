"""Where was this seen? Answers from the same features, trained on one budget (Dufour et al., 2025).

    "regression"            one point, mean(c)
    "cells", "hybrid"       a cell of a quadtree of the training places; and where in it (Astruc et al., 2024)
    "retrieval"             one of the training places, by contrast with GeoCLIP's tower of places (Vivanco Cepeda et al., 2023)
    "vmf", "mixture"        p(x | c) in closed form, one von Mises-Fisher density or k of them
    "diffusion", "space"    a point of R3 from normal noise, normalised; "plane": of (latitude, longitude), wrapped
    "sphere"                Riemannian flow matching on S2; "published": the same, its velocity not projected to the tangent plane

All share one AdaLN network (`flow`); a model without noise and time reads a learnt vector in place of the noisy point, as published.
"""

import copy
import functools
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from georeps.core import adaln, flow, metrics, search, sphere, vmf
from georeps.nets import towers

Kind = Literal["regression", "cells", "hybrid", "retrieval", "vmf", "mixture", "diffusion", "space", "plane", "sphere", "published"]
ON_SPHERE = ("cells", "vmf", "mixture", "sphere")  # kinds with a density on S2
FLOWS = ("diffusion", "space", "plane", "sphere", "published")  # kinds that carry noise to a place
RADII = (25, 200, 750, 2500)  # kilometres: city, region, country, continent


class Locator(nn.Module):
    """Features "b d" -> places.

    `features` are those of the training places: their mean is taken away, and all are divided by one deviation, for to divide each axis by its own makes noise
    as loud as what tells places apart. `x` are these places, of which "cells", "hybrid" and "retrieval" make what they choose from: cells of at most `most`
    places, or the places themselves. `times`, `draws` and `coupled` are those of `flow.loss`.
    """

    def __init__(
        self, kind: Kind, features: Float[Tensor, "n d"], x: Float[Tensor, "n 3"], *, dim: int = 256, depth: int = 6, k: int = 16, dropout: float = 0.0,
        most: int = 50, times: Literal["schedule", "even"] = "schedule", draws: int = 1, coupled: bool = False,
    ):  # fmt: skip
        super().__init__()
        if kind not in get_args(Kind):
            raise ValueError(f"kind: expected one of {', '.join(get_args(Kind))}, found {kind!r}")
        _check_features(features, features.shape[1])
        if len(features) < 2 or len(features) != len(x):
            raise ValueError(f"features, x: expected those of at least 2 training places, found {len(features)} and {len(x)}")
        self.kind, self.path = kind, {"times": times, "draws": draws, "coupled": coupled}
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("deviation", features.std(0).square().mean().sqrt().clamp(min=1e-6))
        self.dropout = nn.Dropout(dropout)
        self.net = adaln.VelocityNet(features.shape[1], dim=dim, depth=depth)
        if kind in FLOWS:
            return
        self.register = nn.Parameter(torch.randn(1, 3))
        self.net.leave = nn.Identity()  # its last state is what the head reads
        if kind in ("cells", "hybrid"):
            self.cells = quadtree(x, most=most)
            self.head = nn.Linear(dim, len(self.cells.mean) * (3 if kind == "hybrid" else 1))
        elif kind == "retrieval":
            self.register_buffer("gallery", x)
            self.register_buffer("known", _embedded(x))
            self.head, self.logit_scale = nn.Linear(dim, self.known.shape[1]), nn.Parameter(torch.tensor(1 / 0.07).log())
        else:
            self.head = vmf.Head(dim, k if kind == "mixture" else 1)

    def condition(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Features about their mean, in units of their deviation; ValueError where they are of another width or not finite."""
        _check_features(features, len(self.mean))
        return self._scaled(features)

    def loss(self, features: Float[Tensor, "b d"], x: Float[Tensor, "b 3"]) -> Float[Tensor, ""]:
        """The kind's own training loss at the true places x."""
        condition = self._scaled(features)
        if self.kind == "plane":
            return flow.loss(self.net, to_plane(x), condition, kind="space", **self.path)
        if self.kind in FLOWS:
            return flow.loss(self.net, x, condition, kind=self.kind, **self.path)
        if self.kind == "retrieval":  # the batch's other places are the negatives
            return F.cross_entropy(self._similarity(condition, _embedded(x)), torch.arange(len(x), device=x.device))
        if self.kind in ("cells", "hybrid"):
            own = self.cells.of(x)
            logits, offset = self._choice(condition)
            rest = 0.0 if offset is None else (offset[torch.arange(len(x)), own] - self.cells.within(x, own)).square().mean()
            return F.cross_entropy(logits, own) + rest
        weight, mean, kappa = self.head(self._hidden(condition))
        if self.kind == "regression":
            return (mean[:, 0] - x).square().sum(1).mean()
        return -vmf.mixture_log_prob(x, weight, mean, kappa).mean()

    @torch.no_grad()
    def answer(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b 3"]:
        """The one place that a model without a density is asked for: the mean, the likeliest cell's place, the likeliest training place."""
        if self.kind == "regression":
            return self.head(self._hidden(self.condition(features)))[1][:, 0]
        log_weight, place = self._choices(self.condition(features))
        return place[torch.arange(len(features)), log_weight.argmax(1)]

    @torch.no_grad()
    def sample(
        self, features: Float[Tensor, "b d"], n: int = 1, *, evaluations: int = 32, guidance: float = 0.0, method: str = "rk4",
        even: float = 0.7, generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b n 3"]:  # fmt: skip
        """n places for each row; a regression says the same one n times. Guidance, method (of "sphere") and even are those of `flow.sample`.

        `evaluations` of the network a sample, guidance not counted: steps of Euler and DDIM, half as many of Heun, a fourth of Runge-Kutta.
        """
        if self.kind == "regression":
            return self.answer(features)[:, None].expand(-1, n, -1)
        condition, rows = self.condition(features), len(features)
        if self.kind in FLOWS:
            method = {"sphere": method, "plane": "space"}.get(self.kind, self.kind)
            options = {"device": features.device, "generator": generator, "even": even, "project": self.kind != "plane"}
            steps = evaluations // {"heun": 2, "rk4": 4}.get(method, 1)
            found = flow.sample(self.net, rows * n, condition, steps=steps, guidance=guidance, method=method, **options)
            return (from_plane(found) if self.kind == "plane" else found).view(rows, n, 3)
        if self.kind in ("cells", "hybrid", "retrieval"):
            log_weight, place = self._choices(condition)
            return place.gather(1, _drawn(log_weight, n, generator)[..., None].expand(-1, -1, 3))
        log_weight, mean, kappa = self.head(self._hidden(condition))
        which = _drawn(log_weight, n, generator)
        mean, kappa = mean.gather(1, which[..., None].expand(-1, -1, 3)), kappa.gather(1, which)
        return vmf.sample(mean.flatten(0, 1).cpu(), kappa.flatten().cpu(), generator=generator).to(mean).view(rows, n, 3)

    @torch.no_grad()
    def log_prob(self, x: Float[Tensor, "m 3"], features: Float[Tensor, "b d"], *, steps: int = 64) -> Float[Tensor, " m"]:
        """Log-density in nats by area: of m / b consecutive points for each row of features; ValueError of a kind without one."""
        if self.kind not in ON_SPHERE:
            raise ValueError(f"kind: expected one with a density on the sphere ({', '.join(ON_SPHERE)}), found {self.kind!r}")
        condition, each = self.condition(features), len(x) // len(features)
        flow.check_places(x, condition)
        if self.kind == "sphere":
            return flow.log_prob(self.net, x, condition, steps=steps)
        if self.kind == "cells":
            log_weight = self._choice(condition)[0].log_softmax(1).repeat_interleave(each, dim=0)
            own = self.cells.of(x)
            return log_weight.gather(1, own[:, None])[:, 0] - self.cells.area[own].log()
        weight, mean, kappa = (part.repeat_interleave(each, dim=0) for part in self.head(self._hidden(condition)))
        return vmf.mixture_log_prob(x, weight, mean, kappa)

    def _scaled(self, features: Tensor) -> Tensor:
        return self.dropout((features - self.mean) / self.deviation)

    def _hidden(self, condition: Tensor) -> Tensor:
        return self.net(self.register.expand(len(condition), -1), condition.new_zeros(1, 1), condition)

    def _choice(self, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits "b c" of the cells, and of a hybrid where in each "b c 2"."""
        found = self.head(self._hidden(condition))
        if self.kind == "cells":
            return found, None
        logits, offset = found.split([found.shape[1] // 3, found.shape[1] // 3 * 2], dim=1)
        return logits, offset.unflatten(1, (-1, 2)).tanh()

    def _choices(self, condition: Tensor) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c 3"]]:
        """What is chosen from: the logarithms of the weights, and the places."""
        if self.kind == "retrieval":
            return self._similarity(condition, self.known).log_softmax(1), self.gallery.expand(len(condition), -1, -1)
        logits, offset = self._choice(condition)
        place = self.cells.mean.expand(len(logits), -1, -1) if offset is None else self.cells.at(offset)
        return logits.log_softmax(1), place

    def _similarity(self, condition: Tensor, known: Tensor) -> Tensor:
        return self.logit_scale.exp().clamp(max=100.0) * F.normalize(self.head(self._hidden(condition)), dim=1) @ known.T


def _drawn(log_weight: Float[Tensor, "b c"], n: int, generator: torch.Generator | None) -> Int64[Tensor, "b n"]:
    uniform = torch.rand(len(log_weight), n, generator=generator).to(log_weight)
    return torch.searchsorted(log_weight.exp().cumsum(1), uniform).clamp(max=log_weight.shape[1] - 1)


@functools.cache
def _places(device: torch.device) -> towers.Places:
    with torch.random.fork_rng():  # to build the tower draws numbers
        return copy.deepcopy(towers.places()).to(device)


def _embedded(x: Tensor) -> Tensor:
    """GeoCLIP's embeddings of places, normalised."""
    return F.normalize(_places(x.device)(sphere.to_latlon(x)), dim=1)


class Cells(nn.Module):
    """Boxes of latitude and longitude (degrees) that cover the Earth, and the mean of the places in each (an empty one's centre)."""

    def __init__(self, low: Float[Tensor, "c 2"], high: Float[Tensor, "c 2"], mean: Float[Tensor, "c 3"]):
        super().__init__()
        for name, value in (("low", low), ("high", high), ("mean", mean)):
            self.register_buffer(name, value)

    @property
    def area(self) -> Float[Tensor, " c"]:
        """Steradians."""
        bands = torch.deg2rad(self.high[:, 0]).sin() - torch.deg2rad(self.low[:, 0]).sin()
        return bands * torch.deg2rad(self.high[:, 1] - self.low[:, 1])

    def of(self, x: Float[Tensor, "b 3"]) -> Int64[Tensor, " b"]:
        """The cell of each place."""
        latlon = sphere.to_latlon(x)[:, None].clamp(torch.tensor([-90.0, -180.0]).to(x), torch.tensor([89.9999, 179.9999]).to(x))
        return ((latlon >= self.low) & (latlon < self.high)).all(2).long().argmax(1)

    def within(self, x: Float[Tensor, "b 3"], cell: Int64[Tensor, " b"]) -> Float[Tensor, "b 2"]:
        """Where in its cell a place lies, -1 to 1 from edge to edge."""
        low, high = self.low[cell], self.high[cell]
        return 2 * (sphere.to_latlon(x) - low) / (high - low) - 1

    def at(self, offset: Float[Tensor, "b c 2"]) -> Float[Tensor, "b c 3"]:
        """The places where `within` is this."""
        return sphere.from_latlon(self.low + (offset + 1) / 2 * (self.high - self.low))


def quadtree(x: Float[Tensor, "n 3"], *, most: int, depth: int = 10) -> Cells:
    """Cells split at the middle of latitude and longitude, as long as one holds more than `most` places, `depth` times at most.

    Paper (Astruc et al., 2024): from the bounds of the data. Here: of the whole Earth, so that the densities integrate to one; and the mean is the sphere's.
    """
    latlon = sphere.to_latlon(x)
    open_, done = [(torch.tensor([-90.0, -180.0]), torch.tensor([90.0, 180.0]), torch.arange(len(x)), 0)], []
    while open_:
        low, high, own, level = open_.pop()
        if len(own) <= most or level == depth:
            centre = x[own].sum(0) if len(own) else sphere.from_latlon((low + high) / 2)
            done.append((low, high, F.normalize(centre, dim=0)))
            continue
        middle = (low + high) / 2
        north_east = latlon[own] >= middle
        for upper in ((False, False), (False, True), (True, False), (True, True)):
            up = torch.tensor(upper)
            open_.append((torch.where(up, middle, low), torch.where(up, high, middle), own[(north_east == up).all(1)], level + 1))
    return Cells(*(torch.stack(part) for part in zip(*done, strict=True)))


def neighbours(
    features: Float[Tensor, "n d"], x: Float[Tensor, "n 3"], asked: Float[Tensor, "b d"], k: int
) -> Float[Tensor, "b k 3"]:  # fmt: skip
    """The places of the k training features most like each asked one, by cosine about the mean: what an untrained index answers."""
    gallery, query = (F.normalize(f - features.mean(0), dim=1) for f in (features, asked))
    return x[search.topk(query, gallery, k).index]


class Lesson(nn.Module):
    """A training step: indices -> the locator's loss (`train.fit` calls it). A function holds the data: a mean of weights copies all that a step has."""

    def __init__(self, locator: Locator, features: Float[Tensor, "n d"], x: Float[Tensor, "n 3"]):
        super().__init__()
        _check_features(features, len(locator.mean))
        self.locator, self.data = locator, lambda index: (features[index], x[index])

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        return self.locator.loss(*(part.to(self.locator.mean.device) for part in self.data(index)))


def to_plane(x: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
    """(latitude / 90, longitude / 180, 0): the Earth as a flat map, cut at the date line and torn at the poles."""
    latlon = sphere.to_latlon(x)
    return torch.stack([latlon[..., 0] / 90, latlon[..., 1] / 180, torch.zeros_like(latlon[..., 0])], dim=-1)


def from_plane(y: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
    """The place on the sphere; what lies beyond the map's edge is put on it (latitude) or wraps around (longitude)."""
    return sphere.from_latlon(torch.stack([(90 * y[..., 0]).clamp(-90, 90), (180 * y[..., 1] + 180) % 360 - 180], dim=-1))


def vote(points: Float[Tensor, "b n 3"]) -> Float[Tensor, "b 3"]:
    """Of each row's samples the one with the best expected GeoScore, the other samples standing for the truth.

    A decision for the measure that judges it; the densest sample, as published, is one for the density alone.
    """
    best = []
    for part in points.split(256):
        km = sphere.kilometres(*torch.broadcast_tensors(part[:, :, None], part[:, None]))
        best.append(part[torch.arange(len(part), device=part.device), metrics.geoscore(km).sum(2).argmax(1)])
    return torch.cat(best)


def densest(points: Float[Tensor, "b n 3"], log_density: Float[Tensor, "b n"]) -> Float[Tensor, "b 3"]:
    """Of each row's samples the one where the density is highest."""
    return points[torch.arange(len(points), device=points.device), log_density.argmax(1)]


def energy_score(points: Float[Tensor, "b n 3"], true: Float[Tensor, "b 3"]) -> Float[Tensor, " b"]:
    """E d(X, y) - E d(X, X') / 2 in kilometres, X, X' of a row's n samples: a proper score of a distribution by its samples alone (Gneiting & Raftery, 2007).

    The great-circle distance is of negative type, so that no other distribution has a lower expectation than the truth's.
    """
    to_truth = sphere.kilometres(points, true[:, None].expand_as(points)).mean(1)
    apart = torch.stack([_between(p, p).sum() for p in points])
    return to_truth - apart / (2 * points.shape[1] * (points.shape[1] - 1))


def energy_distance(x: Float[Tensor, "n 3"], y: Float[Tensor, "m 3"]) -> float:
    """2 E d(X, Y) - E d(X, X') - E d(Y, Y') in kilometres, of samples of two distributions; 0 in the mean if they are one (Szekely & Rizzo, 2013)."""
    own = (float(_between(a, a).double().sum()) / (len(a) * (len(a) - 1)) for a in (x, y))
    return 2 * float(_between(x, y).double().mean()) - sum(own)


def _between(x: Float[Tensor, "n 3"], y: Float[Tensor, "m 3"]) -> Float[Tensor, "n m"]:
    return sphere.kilometres(*torch.broadcast_tensors(x[:, None], y[None]))


def prior(places: Float[Tensor, "m 3"], n: int, *, generator: torch.Generator) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """n answers that know no image: training places drawn at random, and their one `vote`, n times."""
    drawn = places[torch.randint(len(places), (n,), generator=generator)]
    return drawn, vote(drawn[None, :1000]).expand(n, 3)


@dataclass(frozen=True)
class Judged:
    km: Float[Tensor, " b"]  # from each found place to the true one

    def outcomes(self) -> dict[str, Float[Tensor, " b"]]:
        """A query: GeoScore (0..5000), distance (km), 100 where it is strictly within a radius of RADII."""
        return {"geoscore": metrics.geoscore(self.km), "km": self.km, **{f"within{r}": 100.0 * (self.km < r) for r in RADII}}

    def measures(self) -> dict[str, float]:
        """The means of the outcomes: GeoScore, km, recall (%); and the median distance (km)."""
        return {name: float(v.double().mean()) for name, v in self.outcomes().items()} | {"median_km": float(self.km.median())}


def judge(found: Float[Tensor, "b 3"], true: Float[Tensor, "b 3"]) -> Judged:
    """Great-circle distances; ValueError where a place is not finite (published code drops such rows, unsaid)."""
    for name, x in (("found", found), ("true", true)):
        bad = int((~x.isfinite().all(1)).sum())
        if bad or not len(x):
            raise ValueError(f"{name}: expected at least one finite place, found {len(x)} of which {bad} are not finite")
    return Judged(sphere.kilometres(found, true))


def _check_features(features: Tensor, width: int) -> None:
    bad = int((~features.isfinite().all(dim=1)).sum())
    if features.shape[1] != width or bad:
        raise ValueError(f"features: expected finite rows of {width} channels, found {features.shape[1]} channels, {bad} rows with NaN or infinity")
