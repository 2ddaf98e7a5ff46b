"""von Mises kernels on the circle against scipy's."""

import math

import pytest
import torch
from scipy import stats

from georeps.core import sphere, vmf


@pytest.mark.parametrize("kappa", [0.0, 5.0, 800.0])
def test_the_density_estimate_is_the_mean_of_scipy_s_kernels_and_integrates_to_one(kappa):
    angles = torch.tensor([-3.0, 0.2, 3.1], dtype=torch.float64)
    at = torch.linspace(-math.pi, math.pi, 4001, dtype=torch.float64)
    density = vmf.circle_kde(angles, at, kappa)
    if kappa:
        expected = sum(stats.vonmises.pdf(at.numpy(), kappa, loc=a) for a in angles.tolist()) / 3
        assert torch.allclose(density, torch.from_numpy(expected))
    assert float(torch.trapezoid(density, at)) == pytest.approx(1.0)


def test_no_sample_is_an_error(unchecked):
    with pytest.raises(ValueError, match="found 0 angles"):
        vmf.circle_kde(torch.zeros(0), torch.zeros(3), 1.0)


@pytest.mark.parametrize("kappa", [0.0, 1e-8, 1e-3, 1.0, 50.0, 800.0, 1e5])
def test_the_density_equals_scipy_s_and_integrates_to_one(kappa):
    mean = sphere.from_latlon(torch.tensor([30.0, -60.0], dtype=torch.float64))
    x = sphere.fibonacci(20_000).double()
    density = vmf.log_prob(x, mean.expand_as(x), torch.full((len(x),), kappa, dtype=torch.float64))
    if kappa >= 1e-3:
        near = torch.nn.functional.normalize(mean + 0.01 * torch.randn(20, 3, dtype=torch.float64), dim=1)
        expected = stats.vonmises_fisher(mean.numpy(), kappa).logpdf(near.numpy())
        assert torch.allclose(
            vmf.log_prob(near, mean.expand_as(near), torch.full((20,), kappa, dtype=torch.float64)), torch.from_numpy(expected), rtol=1e-6, atol=1e-5
        )
    if kappa <= 800:
        assert float(density.exp().mean()) * 4 * math.pi == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize(("kappa", "cosine"), [(1e-6, 0.0), (1.0, 0.3130), (50.0, 0.98), (1e4, 0.9999)])
def test_samples_have_the_mean_cosine_of_the_closed_form(kappa, cosine):
    mean = sphere.uniform(1, generator=torch.Generator().manual_seed(1)).double().expand(100_000, 3)
    x = vmf.sample(mean, torch.full((100_000,), kappa, dtype=torch.float64), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(x.norm(dim=1), torch.ones(100_000, dtype=torch.float64))
    assert float((x * mean).sum(1).mean()) == pytest.approx(cosine, abs=6e-3 if kappa < 10 else 1e-4)


def test_a_mixture_of_equals_is_one_of_them_and_underflows_nowhere():
    x, mean = sphere.uniform(5), sphere.uniform(5)[:, None].expand(5, 3, 3)
    kappa, weight = torch.full((5, 3), 7.0), torch.full((5, 3), 1 / 3).log()
    assert torch.allclose(vmf.mixture_log_prob(x, weight, mean, kappa), vmf.log_prob(x, mean[:, 0], kappa[:, 0]), atol=1e-5)
    far = vmf.mixture_log_prob(-mean[:, 0], weight, mean, torch.full((5, 3), 1e5))
    assert bool(far.isfinite().all()) and float(far.max()) < -1e5


def test_a_head_learns_two_places_that_one_density_cannot():
    torch.manual_seed(0)
    centres = sphere.from_latlon(torch.tensor([[40.0, 10.0], [-30.0, 140.0]]))
    x = torch.nn.functional.normalize(centres[torch.arange(400) % 2] + 0.05 * torch.randn(400, 3), dim=1)
    nll = {}
    for k in (1, 2):
        head = vmf.Head(4, k)
        optimizer = torch.optim.Adam(head.parameters(), 0.1)
        for _ in range(300):
            optimizer.zero_grad()
            value = -vmf.mixture_log_prob(x, *head(torch.ones(400, 4))).mean()
            value.backward()
            optimizer.step()
        nll[k] = float(value)
    assert nll[2] < nll[1] - 2
