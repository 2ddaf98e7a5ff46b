"""The locators of one network, their decisions and their errors."""

import math

import pytest
import torch
import torch.nn.functional as F

from georeps.core import flow, sphere, vmf
from georeps.papers import geolocation
from georeps.papers.geolocation import ON_SPHERE

KINDS = ("regression", "cells", "hybrid", "retrieval", "vmf", "mixture", "diffusion", "space", "plane", "sphere", "published")


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
    locator = geolocation.Locator(request.param, features, x, dim=32, depth=2, k=3)
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
        geolocation.Locator("vmf", torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="kind: expected one of regression, cells"):
        geolocation.Locator("guess", torch.zeros(2, 2), torch.zeros(2, 3))


def test_cells_cover_the_earth_and_hold_few_places_each():
    _, x = task(2000)
    cells = geolocation.quadtree(x, most=50)
    assert float(cells.area.sum()) == pytest.approx(4 * math.pi, rel=1e-5)
    anywhere = sphere.uniform(3000, generator=seeded())
    own = cells.of(anywhere)
    assert cells.of(x).bincount(minlength=len(own)).max() <= 50
    offset = cells.within(anywhere, own)
    assert float(offset.abs().max()) <= 1 + 1e-4
    again = cells.at(offset[:, None].expand(-1, len(cells.mean), -1))[torch.arange(3000), own]
    assert float(sphere.kilometres(again, anywhere).max()) < 5
    assert (cells.of(cells.mean) == torch.arange(len(cells.mean))).all()


def test_neighbours_are_the_places_of_the_most_similar_features():
    features, x = torch.randn(64, 8, generator=seeded()), sphere.uniform(64, generator=seeded(1))
    found = geolocation.neighbours(features, x, features[:5], 3)
    assert torch.equal(found[:, 0], x[:5]) and found.shape == (5, 3, 3)


def test_the_energy_score_is_least_for_the_distribution_the_truth_is_of():
    mean = sphere.from_latlon(torch.tensor([[10.0, 20.0]])).expand(4000, 3)
    draw = lambda kappa, seed: vmf.sample(mean, torch.full((4000,), kappa), generator=seeded(seed))  # noqa: E731
    truth = draw(20.0, 0)
    scores = {kappa: float(geolocation.energy_score(draw(kappa, 1).view(100, 40, 3).repeat(40, 1, 1), truth).mean()) for kappa in (5.0, 20.0, 80.0)}
    assert min(scores, key=scores.get) == 20.0


def test_the_energy_distance_is_nothing_between_samples_of_one_density_and_grows_with_the_angle():
    mean = sphere.from_latlon(torch.tensor([[0.0, 0.0], [0.0, 20.0], [0.0, 90.0]]))
    draw = lambda i, seed: vmf.sample(mean[i].expand(1500, 3), torch.full((1500,), 30.0), generator=seeded(seed))  # noqa: E731
    same, near, far = (geolocation.energy_distance(draw(0, 0), draw(i, 1)) for i in range(3))
    assert abs(same) < 20 < near < far


def test_a_flow_is_trained_on_more_draws_at_even_times_where_it_is_asked_to_be(unchecked):
    features, x = task(64)
    asked = []
    locator = geolocation.Locator("sphere", features, x, dim=16, depth=1, times="even", draws=3, coupled=True)
    locator.net.register_forward_pre_hook(lambda net, inputs: asked.append(inputs))
    torch.manual_seed(0)
    locator.loss(features, x).backward()
    (_, s, condition), near_data = asked[0], 0.8
    assert len(s) == len(condition) == 192 and float((s > near_data).double().mean()) < 0.35
    with pytest.raises(ValueError, match="times: expected 'schedule' or 'even', found 'late'"):
        geolocation.Locator("sphere", features, x, dim=16, depth=1, times="late").loss(features, x)
    with pytest.raises(ValueError, match="draws: expected at least 1, found 0"):
        geolocation.Locator("sphere", features, x, dim=16, depth=1, draws=0).loss(features, x)


def test_coupled_noise_goes_the_shorter_ways_to_the_same_places():
    x = sphere.uniform(200, generator=seeded())

    def length(coupled):
        ways = []
        torch.manual_seed(0)
        flow.loss(lambda y, s, condition: ways.append(y) or torch.zeros_like(y), x, None, times="even", coupled=coupled)
        return float(sphere.kilometres(ways[0], x).mean())

    assert length(True) < 0.4 * length(False)
