"""Where was this seen? Answers from the same features, trained on one budget (Dufour et al., 2025).

    "regression"            one point, mean(c)
    "vmf", "mixture"        p(x | c) in closed form, one von Mises-Fisher density or k of them
    "diffusion", "space"    a point of R3 from normal noise, normalised; "plane": of (latitude, longitude), wrapped
    "sphere"                Riemannian flow matching on S2; "published": the same, its velocity not projected to the tangent plane

All share one AdaLN network (`flow`); a model without noise and time reads a learnt vector in place of the noisy point, as published.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from georeps.core import adaln, flow, metrics, sphere, vmf

Kind = Literal["regression", "vmf", "mixture", "diffusion", "space", "plane", "sphere", "published"]
ON_SPHERE = ("vmf", "mixture", "sphere")  # kinds with a density on S2
RADII = (25, 200, 750, 2500)  # kilometres: city, region, country, continent


class Locator(nn.Module):
    """Features "b d" -> places. `features` are those of the training places: they are standardised by their mean and deviation."""

    def __init__(self, kind: Kind, features: Float[Tensor, "n d"], *, dim: int = 256, depth: int = 6, k: int = 16, dropout: float = 0.0):
        super().__init__()
        if kind not in get_args(Kind):
            raise ValueError(f"kind: expected one of {', '.join(get_args(Kind))}, found {kind!r}")
        _check_features(features, features.shape[1])
        if len(features) < 2:
            raise ValueError(f"features: expected those of at least 2 training places, found {len(features)}")
        self.kind = kind
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("deviation", features.std(0).clamp(min=1e-6))
        self.dropout = nn.Dropout(dropout)
        self.net = adaln.VelocityNet(features.shape[1], dim=dim, depth=depth)
        if kind in ("regression", "vmf", "mixture"):
            self.register = nn.Parameter(torch.randn(1, 3))
            self.head = vmf.Head(dim, k if kind == "mixture" else 1)
            self.net.leave = nn.Identity()  # its last state is what the head reads

    def condition(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Standardised features; ValueError where they are of another width or not finite."""
        _check_features(features, len(self.mean))
        return self.dropout((features - self.mean) / self.deviation)

    def loss(self, features: Float[Tensor, "b d"], x: Float[Tensor, "b 3"]) -> Float[Tensor, ""]:
        """The kind's own training loss at the true places x."""
        condition = self.condition(features)
        if self.kind == "regression":
            return (self._mixture(condition)[1][:, 0] - x).square().sum(1).mean()
        if self.kind in ("vmf", "mixture"):
            return -vmf.mixture_log_prob(x, *self._mixture(condition)).mean()
        if self.kind == "plane":
            return flow.loss(self.net, to_plane(x), condition, kind="space")
        return flow.loss(self.net, x, condition, kind=self.kind)

    @torch.no_grad()
    def sample(
        self, features: Float[Tensor, "b d"], n: int = 1, *, evaluations: int = 32, guidance: float = 0.0, method: str = "rk4",
        even: float = 0.7, generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b n 3"]:  # fmt: skip
        """n places for each row; a regression says the same one n times. Guidance, method (of "sphere") and even are those of `flow.sample`.

        `evaluations` of the network a sample, guidance not counted: steps of Euler and DDIM, half as many of Heun, a fourth of Runge-Kutta.
        """
        condition, rows = self.condition(features), len(features)
        if self.kind not in ("regression", "vmf", "mixture"):
            method = {"sphere": method, "plane": "space"}.get(self.kind, self.kind)
            options = {"device": features.device, "generator": generator, "even": even, "project": self.kind != "plane"}
            steps = evaluations // {"heun": 2, "rk4": 4}.get(method, 1)
            found = flow.sample(self.net, rows * n, condition, steps=steps, guidance=guidance, method=method, **options)
            return (from_plane(found) if self.kind == "plane" else found).view(rows, n, 3)
        weight, mean, kappa = self._mixture(condition)
        if self.kind == "regression":
            return mean.expand(-1, n, -1)
        uniform = torch.rand(rows, n, generator=generator).to(weight)
        which = torch.searchsorted(weight.exp().cumsum(1), uniform).clamp(max=weight.shape[1] - 1)
        mean, kappa = mean.gather(1, which[..., None].expand(-1, -1, 3)), kappa.gather(1, which)
        return vmf.sample(mean.flatten(0, 1).cpu(), kappa.flatten().cpu(), generator=generator).to(mean).view(rows, n, 3)

    @torch.no_grad()
    def log_prob(self, x: Float[Tensor, "m 3"], features: Float[Tensor, "b d"], *, steps: int = 64) -> Float[Tensor, " m"]:
        """Log-density in nats by area: of m / b consecutive points for each row of features; ValueError of a kind without one."""
        condition = self.condition(features)
        flow.check_places(x, condition)
        if self.kind == "sphere":
            return flow.log_prob(self.net, x, condition, steps=steps)
        if self.kind not in ON_SPHERE:
            raise ValueError(f"kind: expected one with a density on the sphere ({', '.join(ON_SPHERE)}), found {self.kind!r}")
        weight, mean, kappa = (part.repeat_interleave(len(x) // len(features), dim=0) for part in self._mixture(condition))
        return vmf.mixture_log_prob(x, weight, mean, kappa)

    def _mixture(self, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.net(self.register.expand(len(condition), -1), condition.new_zeros(1, 1), condition)
        return self.head(hidden)


class Lesson(nn.Module):
    """A training step: indices -> the locator's loss (`train.fit` calls it)."""

    def __init__(self, locator: Locator, features: Float[Tensor, "n d"], x: Float[Tensor, "n 3"]):
        super().__init__()
        self.locator, self.features, self.x = locator, features, x

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        device = self.locator.mean.device
        return self.locator.loss(self.features[index].to(device), self.x[index].to(device))


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
