"""Laws of the sphere's geometry."""

import math

import pytest
import torch

from georeps.core import sphere


def points(n: int, seed: int = 0) -> torch.Tensor:
    x = sphere.uniform(n, generator=torch.Generator().manual_seed(seed)).double()
    return x / x.norm(dim=-1, keepdim=True)


def test_latlon_round_trip_with_poles_and_date_line():
    latlon = torch.tensor([[0.0, 0.0], [90.0, 0.0], [-90.0, 0.0], [12.5, 179.999], [-45.0, -180.0], [52.0, 4.36]]).double()
    back = sphere.to_latlon(sphere.from_latlon(latlon))
    assert torch.allclose(sphere.from_latlon(back), sphere.from_latlon(latlon), atol=1e-12)
    assert torch.allclose(back[[0, 3, 5]], latlon[[0, 3, 5]])


def test_distance_is_symmetric_and_exact_at_its_ends():
    x, y = points(1000), points(1000, 1)
    assert torch.equal(sphere.distance(x, y), sphere.distance(y, x))
    assert torch.equal(sphere.distance(x, x), torch.zeros(1000).double())
    assert torch.allclose(sphere.distance(x, -x), torch.full((1000,), math.pi).double())
    assert torch.allclose(sphere.distance(x, y), (x * y).sum(-1).clamp(-1, 1).acos(), atol=1e-7)


def test_float32_distance_of_a_point_to_itself_is_finite_with_finite_gradient():
    x = points(10_000).float().requires_grad_()
    y = points(10_000, 1).float()
    sphere.distance(x, y).sum().backward()
    assert x.grad.isfinite().all()


def test_kilometres_between_known_cities():
    amsterdam, canberra = sphere.from_latlon(torch.tensor([[52.3702, 4.8952], [-35.2809, 149.1300]]).double())
    assert abs(float(sphere.kilometres(amsterdam, canberra)) - 16_620) < 40  # great circle on a sphere of 6371 km


def test_exp_inverts_log():
    x, y = points(1000), points(1000, 1)
    assert torch.allclose(sphere.exp(x, sphere.log(x, y)), y, atol=1e-9)


def test_log_is_tangent_and_as_long_as_the_distance():
    x, y = points(1000), points(1000, 1)
    v = sphere.log(x, y)
    assert (v * x).sum(-1).abs().max() < 1e-12
    assert torch.allclose(v.norm(dim=-1), sphere.distance(x, y))


def test_log_at_the_point_itself_is_zero():
    x = points(100)
    assert torch.equal(sphere.log(x, x).norm(dim=-1) < 1e-15, torch.ones(100, dtype=torch.bool))


def test_geodesic_velocity_matches_finite_differences():
    x, y = points(1000), points(1000, 1)
    s = torch.rand(1000, generator=torch.Generator().manual_seed(2)).double() * 0.98 + 0.01
    point, velocity = sphere.geodesic(x, y, s)
    step = 1e-6
    numeric = (sphere.geodesic(x, y, s + step)[0] - sphere.geodesic(x, y, s - step)[0]) / (2 * step)
    assert torch.allclose(velocity, numeric, atol=1e-6)
    assert torch.allclose(velocity.norm(dim=-1), sphere.distance(x, y))
    assert (velocity * point).sum(-1).abs().max() < 1e-12


def test_geodesic_ends_at_its_ends():
    x, y = points(100), points(100, 1)
    assert torch.allclose(sphere.geodesic(x, y, torch.zeros(100).double())[0], x)
    assert torch.allclose(sphere.geodesic(x, y, torch.ones(100).double())[0], y)


def test_antipodes_raise():
    x = points(3)
    with pytest.raises(ValueError, match="antipodes"):
        sphere.log(x, -x)
    with pytest.raises(ValueError, match="antipodes"):
        sphere.geodesic(x, -x, torch.zeros(3).double())


def test_basis_is_orthonormal_everywhere():
    x = torch.cat([points(1000), torch.eye(3).double(), -torch.eye(3).double()])
    a, b = sphere.basis(x)
    frame = torch.stack([x, a, b], dim=-1)
    assert torch.allclose(frame.mT @ frame, torch.eye(3).double().expand(len(x), 3, 3), atol=1e-12)


def test_uniform_and_fibonacci_have_no_preferred_direction():
    for x in (points(200_000), sphere.fibonacci(20_000).double()):
        assert x.mean(0).abs().max() < 0.01
        assert torch.allclose(x.T @ x / len(x), torch.eye(3).double() / 3, atol=0.01)


def test_fibonacci_points_keep_apart():
    x = sphere.fibonacci(500).double()
    apart = sphere.distance(*torch.broadcast_tensors(x[:, None], x[None])) + 10 * torch.eye(500).double()
    assert apart.min() > 0.8 * math.sqrt(4 * math.pi / 500)
