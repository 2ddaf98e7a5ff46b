"""von Mises kernels on the circle against scipy's."""

import math

import pytest
import torch
from scipy import stats

from georeps import vmf


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
