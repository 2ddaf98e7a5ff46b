"""Where could this be? Densities on the sphere by flow matching and diffusion (Dufour et al., 2025), from a condition to places.

    dx/ds = v(x, s, condition),  s = 0: noise, uniform on S2;  s = 1: the data

A velocity is any callable (x "b 3", s "b 1", condition "b c" or None) -> "b 3"; what it says off the tangent plane is ignored, so that the
density is one on S2 (nats by area). Published code does not project: its integral of the density is not 1 (method "published" samples as it does).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from georeps import sphere

Velocity = Callable[[Tensor, Tensor, Tensor | None], Tensor]
SIGMOID = (-7.0, 3.0)  # where the published schedule starts and ends
UNIFORM = -math.log(4 * math.pi)  # log-density of no knowledge


def schedule(t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Share of the data at time t, the published sigmoid schedule: 1 at t = 0, 0 at t = 1, above 0.87 until t = 0.5."""
    start, end = (torch.tensor(v, dtype=t.dtype, device=t.device).sigmoid() for v in SIGMOID)
    return ((end - ((SIGMOID[1] - SIGMOID[0]) * t + SIGMOID[0]).sigmoid()) / (end - start)).clamp(0, 1)


def grid(steps: int) -> Float[Tensor, "n"]:
    """steps + 1 values of s from 0 to 1, close together near the data: the schedule at even times."""
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, found {steps}")
    return schedule(torch.linspace(1, 0, steps + 1, dtype=torch.float64)).float()


class VelocityNet(nn.Module):
    """The AdaLN MLP: residual blocks whose scale, shift and gate come from the condition and s; raw coordinates in, a vector out.

    512 x 12 for OSV-5M and YFCC100M, 256 x 12 for iNat21. x, s and the condition may have one row where others have many.
    """

    def __init__(self, cond_dim: int, *, dim: int = 512, depth: int = 12, expansion: int = 4):
        super().__init__()
        if dim % 8:
            raise ValueError(f"dim: expected a multiple of 8, found {dim}")
        self.cond_dim, self.dim = cond_dim, dim
        self.enter = nn.Linear(3, dim)
        self.condition = nn.Linear(cond_dim, dim)
        self.time = nn.Sequential(nn.Linear(dim // 4, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(_Block(dim, expansion) for _ in range(depth))
        self.last_modulation = nn.Linear(dim, 2 * dim)
        self.leave = nn.Linear(dim, 3)

    def forward(self, x: Float[Tensor, "b 3"], s: Float[Tensor, "a 1"], condition: Float[Tensor, "c d"] | None) -> Float[Tensor, "b 3"]:
        return self.with_tangents(x, None, s, condition)[0]

    def with_tangents(
        self, x: Float[Tensor, "b 3"], tangents: Float[Tensor, "k b 3"] | None, s: Float[Tensor, "a 1"], condition: Float[Tensor, "c d"] | None
    ) -> tuple[Float[Tensor, "b 3"], Float[Tensor, "k b 3"] | None]:
        """The velocity and its derivatives along k directions a row, exact, by forward mode: one pass, no graph.

        What depends on s and the condition alone is computed for their own rows only.
        """
        context = F.silu(self._context(s, condition))
        h, dh = self.enter(x), None if tangents is None else F.linear(tangents, self.enter.weight)
        for block in self.blocks:
            h, dh = block(h, dh, context)
        scale, shift = self.last_modulation(context).chunk(2, dim=-1)
        h, dh = _normalise(h, dh)
        h = self.leave((1 + scale) * h + shift)
        return h, None if dh is None else F.linear((1 + scale) * dh, self.leave.weight)

    def _context(self, s: Tensor, condition: Tensor | None) -> Tensor:
        half = self.dim // 8
        frequency = 1e-4 ** (torch.arange(half, device=s.device, dtype=s.dtype) / half)
        angle = 1000 * s * frequency
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1)
        waves = (waves - waves.mean(-1, keepdim=True)) / waves.std(-1, keepdim=True)
        if condition is None:  # "no condition" is a vector of zeros, as in training
            condition = s.new_zeros(1, self.cond_dim)
        if condition.shape[-1] != self.cond_dim:
            raise ValueError(f"condition: expected {self.cond_dim} channels, found {condition.shape[-1]}")
        return self.time(waves) + self.condition(condition)


class _Block(nn.Module):
    """x + gate * MLP((1 + scale) * norm(x) + shift); the gate and the last layer make it the identity at first."""

    def __init__(self, dim: int, expansion: int):
        super().__init__()
        self.modulation = nn.Linear(dim, 3 * dim)
        self.rise, self.fall = nn.Linear(dim, expansion * dim), nn.Linear(expansion * dim, dim)
        nn.init.zeros_(self.fall.weight)
        nn.init.zeros_(self.fall.bias)

    def forward(self, x: Tensor, dx: Tensor | None, context: Tensor) -> tuple[Tensor, Tensor | None]:
        scale, shift, gate = self.modulation(context).chunk(3, dim=-1)
        h, dh = _normalise(x, dx)
        z = self.rise((1 + scale) * h + shift)
        if dh is not None:
            slope = 0.5 * (1 + (z * math.sqrt(0.5)).erf()) + z * (-0.5 * z * z).exp() * (1 / math.sqrt(2 * math.pi))  # of GELU
            dx = dx + gate * F.linear(slope * F.linear((1 + scale) * dh, self.rise.weight), self.fall.weight)
        return x + gate * self.fall(F.gelu(z)), dx


def _normalise(x: Tensor, dx: Tensor | None, eps: float = 1e-5) -> tuple[Tensor, Tensor | None]:
    """Layer normalisation without parameters, and its derivative along dx."""
    if dx is None:
        return F.layer_norm(x, x.shape[-1:], eps=eps), None
    centred = x - x.mean(-1, keepdim=True)
    rate = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    h, dc = centred * rate, dx - dx.mean(-1, keepdim=True)
    return h, rate * (dc - h * (h * dc).mean(-1, keepdim=True))


# --- what is learnt ---


def loss(
    velocity: Velocity, x: Float[Tensor, "b 3"], condition: Float[Tensor, "b c"] | None, *,
    kind: Literal["sphere", "space", "diffusion"] = "sphere", drop: float = 0.1,
) -> Float[Tensor, ""]:  # fmt: skip
    """One training loss; noise, times and dropped conditions come from torch's own generator, which `train.fit` seeds.

    "sphere": Riemannian flow matching, the velocity of the geodesic from uniform noise to x; the network's answer is projected to the
    tangent plane (the published one is not). "space": flow matching in R3 from normal noise, velocity x - noise. "diffusion": the
    network names the noise in sqrt(s) x + sqrt(1 - s) noise. All: squared error, mean over the three coordinates.
    """
    s = schedule(torch.rand(len(x), device=x.device, dtype=x.dtype))
    if condition is not None and drop:
        condition = condition * (torch.rand(len(x), 1, device=x.device) >= drop)
    noise = torch.randn_like(x)
    if kind == "sphere":
        point, target = sphere.geodesic(F.normalize(noise, dim=1), x, s)
        return (sphere.tangent(point, velocity(point, s[:, None], condition)) - target).square().mean()
    if kind == "space":
        return (velocity(s[:, None] * x + (1 - s[:, None]) * noise, s[:, None], condition) - (x - noise)).square().mean()
    if kind == "diffusion":
        mixed = s.sqrt()[:, None] * x + (1 - s).sqrt()[:, None] * noise
        return (velocity(mixed, s[:, None], condition) - noise).square().mean()
    raise ValueError(f"kind: expected 'sphere', 'space' or 'diffusion', found {kind!r}")


# --- samples ---


def guided(velocity: Velocity, guidance: float) -> Velocity:
    """(1 + guidance) times the conditional velocity less guidance times the unconditional one; 0 leaves it as it is."""
    if guidance == 0:
        return velocity

    def both(x: Tensor, s: Tensor, condition: Tensor | None) -> Tensor:
        return (1 + guidance) * velocity(x, s, condition) - guidance * velocity(x, s, None)

    return both


@torch.no_grad()
def sample(
    velocity: Velocity, n: int, condition: Float[Tensor, "c d"] | None = None, *, steps: int = 16, guidance: float = 0.0,
    method: Literal["euler", "heun", "rk4", "published"] = "heun", device: str | torch.device = "cpu",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n 3"]:  # fmt: skip
    """n points of S2, from uniform noise along the tangent velocity; a condition of one row serves all.

    "euler" walks along geodesics (exponential map); "heun" and "rk4" are of order 2 and 4 in the step and ask the velocity 2 and 4 times
    a step. "published": from normal noise off the sphere, unprojected Euler steps in R3, normalised after each.
    """
    if method not in ("euler", "heun", "rk4", "published"):
        raise ValueError(f"method: expected 'euler', 'heun', 'rk4' or 'published', found {method!r}")
    v = guided(velocity, guidance)
    x = torch.randn(n, 3, generator=generator).to(device)
    if method != "published":
        x = F.normalize(x, dim=1)
    at = grid(steps).to(device)
    for now, then in zip(at[:-1], at[1:], strict=True):
        if method == "published":
            x = F.normalize(x + (then - now) * v(x, now.view(1, 1), condition), dim=1)
        elif method == "euler":
            x = sphere.exp(x, (then - now) * sphere.tangent(x, v(x, now.view(1, 1), condition)))
        else:
            x, _ = _step(lambda y, s: (sphere.tangent(y, v(y, s, condition)), None), x, now, then, method)
    return x


@torch.no_grad()
def sample_space(
    velocity: Velocity, n: int, condition: Float[Tensor, "c d"] | None = None, *, steps: int = 16, guidance: float = 0.0,
    kind: Literal["space", "diffusion"] = "space", device: str | torch.device = "cpu", generator: torch.Generator | None = None,
) -> Float[Tensor, "n 3"]:  # fmt: skip
    """n points of S2 from a network trained in R3: Euler steps of the flow, or DDIM of the diffusion; what comes out is normalised."""
    v = guided(velocity, guidance)
    x = torch.randn(n, 3, generator=generator).to(device)
    at = grid(steps).to(device).clamp(1e-9, 1)
    for now, then in zip(at[:-1], at[1:], strict=True):
        answer = v(x, now.view(1, 1), condition)
        if kind == "space":
            x = x + (then - now) * answer
        else:
            data = ((x - (1 - now).sqrt() * answer) / now.sqrt()).clamp(-1, 1)
            noise = (x - now.sqrt() * data) / (1 - now).sqrt()
            x = then.sqrt() * data + (1 - then).sqrt() * noise
    return F.normalize(x, dim=1)


def _step(slope, x: Tensor, now: Tensor, then: Tensor, method: str) -> tuple[Tensor, Tensor | float]:
    """One Heun or Runge-Kutta step on the sphere, and the integral of the slope's second part over it.

    Stages are taken in R3 and normalised: the field is tangent and does not change along the radius, so the order of the method stays.
    """
    h, s = then - now, lambda u: u.view(1, 1)
    k1, d1 = slope(x, s(now))
    if method == "heun":
        k2, d2 = slope(F.normalize(x + h * k1, dim=1), s(then))
        return F.normalize(x + h / 2 * (k1 + k2), dim=1), 0.0 if d1 is None else h / 2 * (d1 + d2)
    middle = (now + then) / 2
    k2, d2 = slope(F.normalize(x + h / 2 * k1, dim=1), s(middle))
    k3, d3 = slope(F.normalize(x + h / 2 * k2, dim=1), s(middle))
    k4, d4 = slope(F.normalize(x + h * k3, dim=1), s(then))
    x = F.normalize(x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), dim=1)
    return x, 0.0 if d1 is None else h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)


# --- densities ---


def divergence(
    velocity: Velocity, x: Float[Tensor, "b 3"], s: Float[Tensor, "a 1"], condition: Float[Tensor, "c d"] | None
) -> tuple[Float[Tensor, "b 3"], Float[Tensor, "b"]]:
    """The tangent velocity at x and its divergence on S2, exact: two directional derivatives, less 2 <x, v>.

    The trace of the Jacobian in R3, which published code takes, adds the derivative along the radius, and is no divergence on S2.
    """
    directions = torch.stack(sphere.basis(x))
    if isinstance(velocity, VelocityNet):
        v, along = velocity.with_tangents(x, directions, s, condition)
    else:
        def one(direction: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.jvp(lambda y: velocity(y, s, condition), (x,), (direction,))
        v, along = torch.func.vmap(one, out_dims=(None, 0))(directions)
    return sphere.tangent(x, v), (directions * along).sum(dim=(0, 2)) - 2 * (x * v).sum(1)


@torch.no_grad()
def log_prob(
    velocity: Velocity, x: Float[Tensor, "b 3"], condition: Float[Tensor, "c d"] | None = None, *, steps: int = 32,
    method: Literal["heun", "rk4", "dopri5"] = "rk4", tolerance: float = 1e-6,
) -> Float[Tensor, "b"]:  # fmt: skip
    """log p(x) in nats by area of the unit sphere: along the flow back to the noise; uniform is -log 4 pi = -2.531.

    "dopri5" steps adaptively to `tolerance` (torchdiffeq): all rows share its steps, so a row depends on its batch-mates within the
    tolerance. Raises ValueError for points that are not unit vectors.
    """
    off = (x.norm(dim=1) - 1).abs()
    if bool((off > 1e-3).any()) or not bool(x.isfinite().all()):
        raise ValueError(f"x: expected unit vectors, found {int(((off > 1e-3) | off.isnan()).sum())} that are not")

    def slope(y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return divergence(velocity, y, s, condition)

    if method == "dopri5":
        from torchdiffeq import odeint

        def field(s: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return slope(F.normalize(state[0], dim=1), s.to(x).view(1, 1))

        start = (x, x.new_zeros(len(x)))
        _, total = odeint(field, start, torch.tensor([1.0, 0.0], device=x.device, dtype=x.dtype), rtol=tolerance, atol=tolerance, method="dopri5")
        return UNIFORM + total[-1]
    if method not in ("heun", "rk4"):
        raise ValueError(f"method: expected 'heun', 'rk4' or 'dopri5', found {method!r}")
    at, total = grid(steps).flip(0).to(x), x.new_zeros(len(x))
    for now, then in zip(at[:-1], at[1:], strict=True):
        x, part = _step(slope, x, now, then, method)
        total = total + part
    return UNIFORM + total


def densest(
    velocity: Velocity, condition: Float[Tensor, "b d"], *, n: int = 16, steps: int = 16, guidance: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "b 3"], Float[Tensor, "b"]]:  # fmt: skip
    """A point prediction for each condition, the one of n samples whose density is highest, and the entropy of its density in nats.

    Samples may be guided; densities are those of the conditional flow itself. The entropy is the samples' mean of -log p, so it is one
    of the density only without guidance; published code divides it by -4 pi log 2 and calls it localizability.
    """
    rows = condition.repeat_interleave(n, dim=0)
    x = sample(velocity, len(rows), rows, steps=steps, guidance=guidance, device=condition.device, generator=generator)
    density = log_prob(velocity, x, rows, steps=steps).view(-1, n)
    best = density.argmax(1)
    return x.view(-1, n, 3)[torch.arange(len(condition), device=x.device), best], -density.mean(1)
