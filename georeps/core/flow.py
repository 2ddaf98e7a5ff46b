"""Where could this be? Densities on the sphere by flow matching and diffusion (Dufour et al., 2025), from a condition to places.

    dx/ds = v(x, s, condition),  s = 0: noise, uniform on S2;  s = 1: the data

A velocity is any callable (x "b 3", s "b 1", condition "b c" or None) -> "b 3"; what it says off the tangent plane is ignored, so that the
density is one on S2 (nats by area). Published code does not project: its integral of the density is not 1 (method "published" samples as it does).
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy import optimize
from torch import Tensor

from georeps.core import adaln, sphere

Velocity = Callable[[Tensor, Tensor, Tensor | None], Tensor]
SIGMOID = (-7.0, 3.0)  # where the published schedule starts and ends
UNIFORM = -math.log(4 * math.pi)  # log-density of no knowledge


def schedule(t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Share of the data at time t, the published sigmoid schedule: 1 at t = 0, 0 at t = 1, above 0.87 until t = 0.5."""
    start, end = _ends(t.dtype, t.device)
    return ((end - ((SIGMOID[1] - SIGMOID[0]) * t + SIGMOID[0]).sigmoid()) / (end - start)).clamp(0, 1)


@functools.cache
def _ends(dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """The sigmoid at SIGMOID, made once: a tensor made on a GPU from a number waits for it."""
    return [torch.tensor(v, dtype=dtype, device=device).sigmoid() for v in SIGMOID]


def grid(steps: int, *, even: float = 0.7) -> Float[Tensor, " n"]:
    """steps + 1 values of s from 0 to 1: the schedule at even times, close together near the data, mixed with even values.

    Networks ripple in s (their time embedding has periods down to 0.006), which even values average out best: chapter 12 measures it.
    Published samplers take `even` = 0.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, found {steps}")
    at = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return ((1 - even) * schedule(at) + even * (1 - at)).float()


# --- what is learnt ---


def loss(
    velocity: Velocity, x: Float[Tensor, "b 3"], condition: Float[Tensor, "b c"] | None, *,
    kind: Literal["sphere", "space", "diffusion", "published"] = "sphere", drop: float = 0.1,
    times: Literal["schedule", "even"] = "schedule", draws: int = 1, coupled: bool = False,
) -> Float[Tensor, ""]:  # fmt: skip
    """One training loss; noise, times and dropped conditions come from torch's own generator, which `train.fit` seeds.

    "sphere": Riemannian flow matching, the velocity of the geodesic from uniform noise to x; the network's answer is projected to the
    tangent plane. "published": the same, not projected. "space": flow matching in R3 from normal noise, velocity x - noise. "diffusion": the
    network names the noise in sqrt(s) x + sqrt(1 - s) noise. All: squared error, mean over the three coordinates.

    Paper: `times` of the schedule, one draw of noise and time an image. "even": s is uniform. `draws`: so many an image. `coupled`: the noise of a
    batch and draw is assigned to its places along the shortest paths (minibatch optimal transport, Tong et al., 2024), which forgets that each place has a
    condition.
    """
    if times not in ("schedule", "even"):
        raise ValueError(f"times: expected 'schedule' or 'even', found {times!r}")
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, found {draws}")
    x, condition = x.repeat(draws, 1), None if condition is None else condition.repeat(draws, 1)
    s = torch.rand(len(x), device=x.device, dtype=x.dtype)
    s = schedule(s) if times == "schedule" else s
    if condition is not None and drop:
        condition = condition * (torch.rand(len(x), 1, device=x.device) >= drop)
    noise = torch.randn_like(x)
    if coupled:
        unit = F.normalize(noise, dim=1) if kind in ("sphere", "published") else noise
        order = [optimize.linear_sum_assignment(-(y @ n.T).cpu().numpy())[1] for y, n in zip(x.chunk(draws), unit.chunk(draws), strict=True)]
        noise = torch.cat([n[torch.from_numpy(own).to(n.device)] for n, own in zip(noise.chunk(draws), order, strict=True)])
    if kind in ("sphere", "published"):
        noise = F.normalize(noise, dim=1)
        noise = torch.where((noise + x).norm(dim=1, keepdim=True) < 1e-4, -noise, noise)  # from an antipode no way is the shortest; its other side is as likely
        point, target = sphere.geodesic(noise, x, s, checked=True)
        answer = velocity(point, s[:, None], condition)
        return ((sphere.tangent(point, answer) if kind == "sphere" else answer) - target).square().mean()
    if kind == "space":
        return (velocity(s[:, None] * x + (1 - s[:, None]) * noise, s[:, None], condition) - (x - noise)).square().mean()
    if kind == "diffusion":
        mixed = s.sqrt()[:, None] * x + (1 - s).sqrt()[:, None] * noise
        return (velocity(mixed, s[:, None], condition) - noise).square().mean()
    raise ValueError(f"kind: expected 'sphere', 'space', 'diffusion' or 'published', found {kind!r}")


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
    method: Literal["euler", "heun", "rk4", "published", "space", "diffusion"] = "heun", device: str | torch.device = "cpu",
    generator: torch.Generator | None = None, even: float = 0.7, project: bool = True, batch: int = 4096,
) -> Float[Tensor, "n 3"]:  # fmt: skip
    """n points of S2, from uniform noise along the tangent velocity; c conditions serve n / c consecutive points each.

    "euler" walks along geodesics (exponential map); "heun" and "rk4" are of order 2 and 4 in the step and ask the velocity 2 and 4 times
    a step. "published": unprojected Euler steps in R3, normalised after each. "space" and "diffusion" are those of a network trained in R3, from
    normal noise: Euler steps of the flow, DDIM; normalised to S2 at the end, where `project` says so. `even` is that of `grid`.
    """
    if method not in ("euler", "heun", "rk4", "published", "space", "diffusion"):
        raise ValueError(f"method: expected 'euler', 'heun', 'rk4', 'published', 'space' or 'diffusion', found {method!r}")
    x, at = torch.randn(n, 3, generator=generator).to(device), grid(steps, even=even).to(device)
    x, at = (x, at.clamp(1e-9, 1)) if method in ("space", "diffusion") else (F.normalize(x, dim=1), at)

    def walk(x: Tensor, condition: Tensor | None) -> Tensor:
        v = guided(_conditioned(velocity, condition), guidance)
        for now, then in zip(at[:-1], at[1:], strict=True):
            if method in ("heun", "rk4"):
                x, _ = _step(lambda y, s: (sphere.tangent(y, v(y, s, condition)), None), x, now, then, method)
                continue
            answer = v(x, now.view(1, 1), condition)
            if method == "published":
                x = F.normalize(x + (then - now) * answer, dim=1)
            elif method == "euler":
                x = sphere.exp(x, (then - now) * sphere.tangent(x, answer))
            elif method == "space":
                x = x + (then - now) * answer
            else:
                data = ((x - (1 - now).sqrt() * answer) / now.sqrt()).clamp(-1, 1)
                noise = (x - now.sqrt() * data) / (1 - now).sqrt()
                x = then.sqrt() * data + (1 - then).sqrt() * noise
        return F.normalize(x, dim=1) if project and method in ("space", "diffusion") else x

    return in_batches(walk, x, condition, batch)


def in_batches(run: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, condition: Tensor | None, batch: int) -> Tensor:
    """run(points, their conditions) over batches of whole conditions; on a GPU the steps of a full batch are one CUDA graph, captured once.

    Small networks spend their time in launching kernels: a graph launches all steps at once.
    """
    parts = _parts(x, condition, batch)
    if not x.is_cuda or len(parts) < 3:
        return torch.cat([run(*part) for part in parts])
    replay = _captured(run, *parts[0])
    return torch.cat([replay(*part) if len(part[0]) == len(parts[0][0]) else run(*part) for part in parts])


def _conditioned(velocity: Velocity, condition: Tensor | None) -> Velocity:
    """What the network does to its condition alone is done once, before the steps; a class made from it may answer otherwise and is left alone."""
    return adaln.Conditioned(velocity, condition) if type(velocity) is adaln.VelocityNet else velocity


def _parts(x: Tensor, condition: Tensor | None, batch: int) -> list[tuple[Tensor, Tensor | None]]:
    """Batches of points with their conditions: c conditions serve len(x) / c consecutive points each, one serves all."""
    if condition is None or len(condition) == 1:
        return [(part, condition) for part in x.split(batch)]
    if len(x) % len(condition):
        raise ValueError(f"condition: expected rows that divide the {len(x)} points, found {len(condition)}")
    each = len(x) // len(condition)
    rows = max(1, batch // each)
    return list(zip(x.split(rows * each), condition.split(rows), strict=True))


def _captured(run: Callable, x: Tensor, condition: Tensor | None) -> Callable[[Tensor, Tensor | None], Tensor]:
    """run as one CUDA graph for inputs of these shapes (PyTorch notes, CUDA graphs: warmed up on a side stream first)."""
    held = [x.clone(), None if condition is None else condition.clone()]
    side = torch.cuda.Stream(x.device)
    side.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(side):
        run(*held)
    torch.cuda.current_stream(x.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(*held)

    def replay(*inputs: Tensor | None) -> Tensor:
        for own, given in zip(held, inputs, strict=True):
            if own is not None:
                own.copy_(given)
        graph.replay()
        return out.clone()

    return replay


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
) -> tuple[Float[Tensor, "b 3"], Float[Tensor, " b"]]:
    """The tangent velocity at x and its divergence on S2, exact: two directional derivatives, less 2 <x, v>.

    The trace of the Jacobian in R3, which published code takes, adds the derivative along the radius, and is no divergence on S2.
    """
    directions = torch.stack(sphere.basis(x))
    if isinstance(velocity, (adaln.VelocityNet, adaln.Conditioned)):
        v, along = velocity.with_tangents(x, directions, s, condition)
    else:

        def one(direction: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.jvp(lambda y: velocity(y, s, condition), (x,), (direction,))

        v, along = torch.func.vmap(one, out_dims=(None, 0))(directions)
    return sphere.tangent(x, v), (directions * along).sum(dim=(0, 2)) - 2 * (x * v).sum(1)


def check_places(x: Tensor, condition: Tensor | None) -> None:
    """Raise ValueError for points that are not unit vectors, or that the rows of a condition do not divide."""
    off = (x.norm(dim=1) - 1).abs()
    if bool((off > 1e-3).any()) or not bool(x.isfinite().all()):
        raise ValueError(f"x: expected unit vectors, found {int(((off > 1e-3) | off.isnan()).sum())} that are not")
    if condition is not None and (len(condition) == 0 or len(x) % len(condition)):
        raise ValueError(f"condition: expected rows that divide the {len(x)} points, found {len(condition)}")


@torch.no_grad()
def log_prob(
    velocity: Velocity, x: Float[Tensor, "b 3"], condition: Float[Tensor, "c d"] | None = None, *, steps: int = 64,
    method: Literal["adams", "heun", "rk4", "dopri5", "reverse"] = "adams", tolerance: float = 1e-6, even: float = 0.7,
    batch: int = 4096,
) -> Float[Tensor, " b"]:  # fmt: skip
    """log p(x) in nats by area of the unit sphere: along the flow back to the noise; uniform is -log 4 pi = -2.531.

    "adams" (Adams and Bashforth's second order) asks the network once a step, "heun" twice, "rk4" four times; each evaluation of
    the first is at another s (chapter 12 compares them). "dopri5" steps adaptively to `tolerance` (torchdiffeq): all rows of a batch share
    its steps, so a row depends on its batch-mates within the tolerance. "reverse" is the published way to the same number, to be compared with: dopri5
    over time instead of the schedule, and the trace of a Jacobian in reverse mode. Raises ValueError for points that are not unit vectors.
    """
    check_places(x, condition)
    if method not in ("adams", "heun", "rk4", "dopri5", "reverse"):
        raise ValueError(f"method: expected 'adams', 'heun', 'rk4', 'dopri5' or 'reverse', found {method!r}")
    if method in ("dopri5", "reverse"):
        way = _adaptive if method == "dopri5" else _reverse
        parts = [way(velocity, y, c, tolerance) for y, c in _parts(x, condition, batch)]
        return UNIFORM + torch.cat(parts)
    at = grid(steps, even=even).flip(0).to(x)

    def back(y: Tensor, condition: Tensor | None) -> Tensor:
        v = _conditioned(velocity, condition)
        if method == "adams":
            return UNIFORM + _adams(lambda z, s: divergence(v, z, s, condition), y, at)
        total = y.new_zeros(len(y))
        for now, then in zip(at[:-1], at[1:], strict=True):
            y, part = _step(lambda z, s: divergence(v, z, s, condition), y, now, then, method)
            total = total + part
        return UNIFORM + total

    return in_batches(back, x, condition, batch)


def _adams(slope, x: Tensor, at: Tensor) -> Tensor:
    """The integral of the slope's second part along the flow: Adams-Bashforth 2 for the path, trapezoids for the integral."""
    total, before = x.new_zeros(len(x)), None
    for i, now in enumerate(at):
        v, part = slope(x, now.view(1, 1))
        if before is not None:
            total = total + (now - at[i - 1]) / 2 * (part + before[1])
        if i + 1 < len(at):
            h = at[i + 1] - now
            ahead = 0.0 if before is None else h / (now - at[i - 1]) / 2 * (v - sphere.tangent(x, before[0]))
            x, before = sphere.exp(x, h * (v + ahead)), (v, part)
    return total


def _adaptive(velocity: Velocity, x: Tensor, condition: Tensor | None, tolerance: float) -> Tensor:
    from torchdiffeq import odeint

    def field(s: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return divergence(velocity, F.normalize(state[0], dim=1), s.to(x).view(1, 1), condition)

    ends = torch.tensor([1.0, 0.0], device=x.device, dtype=x.dtype)
    return odeint(field, (x, x.new_zeros(len(x))), ends, rtol=tolerance, atol=tolerance, method="dopri5")[1][-1]


def _reverse(velocity: Velocity, x: Tensor, condition: Tensor | None, tolerance: float) -> Tensor:
    from torchdiffeq import odeint

    rows = None if condition is None else condition.expand(len(x), -1) if len(condition) == 1 else condition

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        s, rate = torch.func.jvp(schedule, (t,), (torch.ones_like(t),))

        def tangent(y: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
            unit = y / y.norm()
            v = sphere.tangent(unit, velocity(unit[None], s.view(1, 1), None if own is None else own[None])[0])
            return v, v

        jacobian, v = torch.func.vmap(torch.func.jacrev(tangent, has_aux=True), in_dims=(0, None if rows is None else 0))(state[0], rows)
        return rate * v, rate * jacobian.diagonal(dim1=1, dim2=2).sum(1)

    ends = torch.tensor([0.0, 1.0], device=x.device, dtype=x.dtype)
    return odeint(field, (x, x.new_zeros(len(x))), ends, rtol=tolerance, atol=tolerance, method="dopri5", options={"min_step": 1e-5})[1][-1]


@torch.no_grad()
def log_prob_space(
    velocity: adaln.VelocityNet, x: Float[Tensor, "b 3"], condition: Float[Tensor, "c d"] | None = None, *,
    kind: Literal["space", "diffusion", "published"] = "space",
    steps: int = 64, batch: int = 4096,
) -> Float[Tensor, " b"]:  # fmt: skip
    """log p(x) in nats by volume of R3, of a network trained there; the noise is normal.

    Not to be compared with `log_prob`: the data lie on a surface, on which the best density by volume is infinite. Heun's steps; a
    diffusion's by its probability flow, from s = 0.9999 to 0.001, between the poles of that equation. "published" takes a network of S2 as
    published code does: not projected, its noise uniform on S2; what comes out is a density neither there nor here (chapter 12).
    """
    at = grid(steps, even=0.0).flip(0).to(x)
    axes = torch.eye(3, device=x.device, dtype=x.dtype)[:, None].expand(3, 1, 3)
    if kind == "diffusion":
        at = at.clamp(1e-3, 0.9999)

    def slope(given: Velocity, y: Tensor, s: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        v, along = given.with_tangents(y, axes.expand(3, len(y), 3), s.view(1, 1), condition)
        trace = (axes * along).sum(dim=(0, 2))
        if kind != "diffusion":
            return v, trace
        rest = (1 - s).sqrt()
        return (y - v / rest) / (2 * s), (3 - trace / rest) / (2 * s)

    def back(y: Tensor, condition: Tensor | None) -> Tensor:
        total, given = y.new_zeros(len(y)), _conditioned(velocity, condition)
        for now, then in zip(at[:-1], at[1:], strict=True):
            k1, d1 = slope(given, y, now, condition)
            k2, d2 = slope(given, y + (then - now) * k1, then, condition)
            y, total = y + (then - now) / 2 * (k1 + k2), total + (then - now) / 2 * (d1 + d2)
        return total + (UNIFORM if kind == "published" else -0.5 * y.square().sum(1) - 1.5 * math.log(2 * math.pi))

    return in_batches(back, x, condition, batch)
