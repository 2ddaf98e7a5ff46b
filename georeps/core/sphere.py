"""Geometry of the unit sphere S2 in R3.

A point is a unit vector; latitude and longitude are degrees, north and east positive; angles are radians.

    exp_x(v) = cos|v| x + sin|v| v / |v|        log_x(y) = theta (y - cos(theta) x) / sin(theta),  theta = d(x, y)
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

EARTH_RADIUS_KM = 6371.0


def from_latlon(latlon: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b 3"]:
    """Unit vectors of (latitude, longitude) in degrees; x points to (0, 0), z to the north pole."""
    latitude, longitude = torch.deg2rad(latlon).unbind(-1)
    return torch.stack([latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin(), latitude.sin()], dim=-1)


def to_latlon(x: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 2"]:
    """(latitude, longitude) in degrees, longitude in (-180, 180]; the vectors need not be normalised."""
    latitude = torch.atan2(x[..., 2], torch.hypot(x[..., 0], x[..., 1]))
    return torch.rad2deg(torch.stack([latitude, torch.atan2(x[..., 1], x[..., 0])], dim=-1))


def distance(x: Float[Tensor, "*b 3"], y: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
    """Great-circle distance in radians, 2 atan2(|x - y|, |x + y|).

    The arc cosine of the inner product loses half the digits near 0 and pi and is NaN where rounding leaves [-1, 1].
    """
    return 2 * torch.atan2((x - y).norm(dim=-1), (x + y).norm(dim=-1))


def kilometres(x: Float[Tensor, "*b 3"], y: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
    """Great-circle distance in kilometres on a sphere of R = 6371 km."""
    return EARTH_RADIUS_KM * distance(x, y)


def tangent(x: Float[Tensor, "*b 3"], v: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
    """The part of v that lies in the tangent plane at x."""
    return v - (v * x).sum(-1, keepdim=True) * x


def exp(x: Float[Tensor, "*b 3"], v: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
    """Walk from x along the tangent vector v for |v| radians."""
    angle = v.norm(dim=-1, keepdim=True)
    y = angle.cos() * x + torch.sinc(angle / math.pi) * v
    return y / y.norm(dim=-1, keepdim=True)


def log(x: Float[Tensor, "*b 3"], y: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
    """The tangent vector at x that `exp` carries to y.

    Undefined at the antipode of x, where every direction is shortest: raises ValueError.
    """
    angle = distance(x, y)
    _reject_antipodes(angle)
    return tangent(x, y) / torch.sinc(angle / math.pi).unsqueeze(-1)


def geodesic(
    x0: Float[Tensor, "*b 3"], x1: Float[Tensor, "*b 3"], s: Float[Tensor, "*b"], *, checked: bool = False
) -> tuple[Float[Tensor, "*b 3"], Float[Tensor, "*b 3"]]:
    """The point at share s of the way from x0 to x1, and its velocity d/ds (tangent there, of length d(x0, x1)).

    Raises ValueError where x1 is the antipode of x0, unless the caller has `checked`, which costs a GPU a wait.
    """
    angle = distance(x0, x1)
    if not checked:
        _reject_antipodes(angle)
    scale = 1 / torch.sinc(angle / math.pi)

    def weight(u: Tensor) -> Tensor:  # sin(u angle) / sin(angle), finite at angle 0
        return u * torch.sinc(u * angle / math.pi) * scale

    point = weight(1 - s).unsqueeze(-1) * x0 + weight(s).unsqueeze(-1) * x1
    velocity = scale.unsqueeze(-1) * (torch.cos(s * angle).unsqueeze(-1) * x1 - torch.cos((1 - s) * angle).unsqueeze(-1) * x0)
    point = point / point.norm(dim=-1, keepdim=True)
    return point, tangent(point, velocity)


def basis(x: Float[Tensor, "*b 3"]) -> tuple[Float[Tensor, "*b 3"], Float[Tensor, "*b 3"]]:
    """Two orthonormal tangent vectors at x (Duff et al., 2017: continuous but for the south pole's plane)."""
    sign = torch.where(x[..., 2] >= 0, 1.0, -1.0).to(x)
    a = -1 / (sign + x[..., 2])
    b = x[..., 0] * x[..., 1] * a
    first = torch.stack([1 + sign * x[..., 0] ** 2 * a, sign * b, -sign * x[..., 0]], dim=-1)
    second = torch.stack([b, sign + x[..., 1] ** 2 * a, -x[..., 1]], dim=-1)
    return first, second


def uniform(n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n 3"]:
    """n independent points, uniform by area."""
    x = torch.randn(n, 3, generator=generator, device=generator.device if generator else None)
    return x / x.norm(dim=-1, keepdim=True)


def fibonacci(n: int) -> Float[Tensor, "n 3"]:
    """n nearly evenly spaced points (the Fibonacci lattice): each stands for an area of 4 pi / n."""
    i = torch.arange(n, dtype=torch.float64)
    z = 1 - (2 * i + 1) / n
    longitude = i * math.pi * (3 - math.sqrt(5))
    ring = (1 - z**2).sqrt()
    return torch.stack([ring * longitude.cos(), ring * longitude.sin(), z], dim=-1).float()


def _reject_antipodes(angle: Tensor) -> None:
    if bool((angle > math.pi - 1e-5).any()):
        raise ValueError("sphere: the geodesic between antipodes is not unique; found a pair pi radians apart")
