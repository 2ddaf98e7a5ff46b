"""The locators of one network, their decisions and their errors."""

import math

import pytest
import torch
import torch.nn.functional as F

from georeps.core import sphere
from georeps.papers import geolocation
from georeps.papers.geolocation import ON_SPHERE

KINDS = ("regression", "vmf", "mixture", "diffusion", "space", "plane", "sphere", "published")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def task(n=512):
    """Two kinds of features: places near Rome, and places near Rome or Tokyo, half each."""
    which = torch.arange(n) % 3
    centres = sphere.from_latlon(torch.tensor([[42.0, 12.0], [42.0, 12.0], [36.0, 140.0]]))
    features = torch.stack([(which == 0).float(), (which > 0).float()], dim=1) + 0.05 * torch.randn(n, 2, generator=seeded())
    return features, F.normalize(centres[which] + 0.1 * torch.randn(n, 3, generator=seeded(1)), dim=1)


@pytest.fixture(scope="module", params=KINDS)
def trained(request):
    torch.manual_seed(0)
    features, x = task()
    locator = geolocation.Locator(request.param, features, dim=32, depth=2, k=3)
    optimizer = torch.optim.Adam(locator.parameters(), 5e-3)
    lesson = geolocation.Lesson(locator, features, x)
    for _ in range(400):
        optimizer.zero_grad()
        lesson(torch.randint(512, (128,))).backward()
        optimizer.step()
    return locator.eval()


def test_every_kind_learns_a_certain_place_and_all_but_the_unimodal_an_ambiguous_one(trained):
    rome, tokyo = sphere.from_latlon(torch.tensor([[42.0, 12.0], [36.0, 140.0]]))
    points = trained.sample(torch.eye(2), 200, evaluations=96, generator=seeded())
    certain = sphere.kilometres(points[0], rome.expand(200, 3))
    assert float(certain.median()) < 1800 and torch.allclose(points.norm(dim=2), torch.ones(2, 200), atol=1e-5)
    near = [float((sphere.kilometres(points[1], place.expand(200, 3)) < 2500).double().mean()) for place in (rome, tokyo)]
    if trained.kind in ("regression", "vmf"):
        assert min(near) < 0.3
    else:
        assert min(near) > 0.25 and sum(near) > 0.75


def test_a_density_is_there_where_a_kind_has_one_and_integrates_to_one(trained):
    grid = sphere.fibonacci(3000)
    if trained.kind not in ON_SPHERE:
        with pytest.raises(ValueError, match="kind: expected one with a density"):
            trained.log_prob(grid, torch.eye(2)[:1])
        return
    density = trained.log_prob(torch.cat([grid, grid]), torch.eye(2), steps=96).view(2, -1)
    assert (density.exp().mean(1) * 4 * math.pi).tolist() == pytest.approx([1, 1], abs=0.05)


def test_samples_repeat_with_the_generator_and_rows_stand_alone(trained):
    features, _ = task(6)
    draws = [trained.sample(features, 3, evaluations=24, generator=seeded(4)) for _ in range(2)]
    assert torch.equal(*draws)
    if trained.kind in ON_SPHERE:
        x = draws[0].flatten(0, 1)
        whole = trained.log_prob(x, features, steps=6).view(6, 3)
        assert torch.allclose(whole[2], trained.log_prob(draws[0][2], features[2:3], steps=6), atol=1e-4)


def test_features_of_another_width_or_not_finite_are_named(trained, unchecked):
    with pytest.raises(ValueError, match="features: expected finite rows of 2 channels, found 3 channels"):
        trained.sample(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="2 channels, 1 rows with NaN"):
        trained.sample(torch.tensor([[math.nan, 0.0], [0.0, 0.0]]))


def test_the_vote_takes_the_sample_of_the_larger_crowd_and_the_densest_the_peak():
    crowd = F.normalize(torch.tensor([1.0, 0, 0]) + 0.05 * torch.randn(5, 3, generator=seeded()), dim=1)
    points = torch.cat([crowd, -crowd[:2]])[None]
    assert float(geolocation.vote(points)[0, 0]) > 0.9
    density = torch.tensor([[0.0, 0, 0, 0, 0, 0, 9]])
    assert torch.equal(geolocation.densest(points, density)[0], points[0, 6])


def test_the_flat_map_is_inverted_and_its_edges_are_kept():
    x = sphere.uniform(50, generator=seeded())
    assert torch.allclose(geolocation.from_plane(geolocation.to_plane(x)), x, atol=1e-4)
    beyond = torch.tensor([[1.2, 0.0, 0.0], [0.0, 1.1, 0.0]])
    assert torch.allclose(sphere.to_latlon(geolocation.from_plane(beyond))[:, 0], torch.tensor([90.0, 0.0]), atol=1e-2)
    assert float(sphere.to_latlon(geolocation.from_plane(beyond))[1, 1]) == pytest.approx(-162, abs=1e-2)


def test_a_judgement_is_of_finite_places_alone():
    x = sphere.uniform(4, generator=seeded())
    found = geolocation.judge(x, x).measures()
    assert found["geoscore"] == pytest.approx(5000, abs=1) and found["within25"] == 100
    with pytest.raises(ValueError, match="found: expected at least one finite place, found 4 of which 1"):
        geolocation.judge(torch.where(torch.arange(4)[:, None] == 2, math.nan, x), x)


def test_kinds_and_too_few_places_are_named(unchecked):
    with pytest.raises(ValueError, match="at least 2 training places, found 1"):
        geolocation.Locator("vmf", torch.zeros(1, 2))
    with pytest.raises(ValueError, match="kind: expected one of regression, vmf"):
        geolocation.Locator("guess", torch.zeros(2, 2))
