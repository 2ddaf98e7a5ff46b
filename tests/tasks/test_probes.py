"""What chapter 01 asks of descriptions: chance, the query itself left out, and each world's questions."""

import numpy as np
import pytest
import torch

from georeps.tasks import floors, probes


def coloured(labels, seed: int = 0) -> torch.Tensor:
    """Images of one colour a label, with noise."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(60, 200, (int(max(labels)) + 1, 3, 1, 1), generator=torch.Generator().manual_seed(7))
    return (colours[torch.as_tensor(labels)] + torch.randint(-20, 20, (len(labels), 3, 32, 32), generator=generator)).to(torch.uint8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("floor", floors.FLOORS)
def test_labels_that_are_colours_are_found_by_every_floor(floor):
    labels = np.arange(12) % 3
    assert probes.outcomes(probes.of_labels("", coloured(labels), labels), floor).tolist() == [100.0] * 12
    apart = probes.of_labels("", coloured(labels), labels, (coloured(labels, 1), labels))
    assert probes.outcomes(apart, floor).tolist() == [100.0] * 12


def test_a_query_does_not_find_itself():
    images = coloured([0, 0, 1, 1])
    images[1] = images[0]  # equal rows tie; each finds the other
    alone = probes.of_labels("", images, [0, 1, 2, 2])
    assert probes.outcomes(alone, "histogram").tolist() == [0.0, 0.0, 100.0, 100.0]


def test_chance_is_what_random_rows_give():
    labels = np.repeat([0, 1, 2], [2, 5, 13])
    within, across = probes.of_labels("", coloured(labels), labels), probes.of_labels("", coloured(labels), labels, (coloured(labels), labels))
    n = len(labels)
    pairs = [(i, j) for i in range(n) for j in range(n)]
    assert within.chance == pytest.approx(100 * np.mean([labels[i] == labels[j] for i, j in pairs if i != j]))
    assert across.chance == pytest.approx(100 * np.mean([labels[i] == labels[j] for i, j in pairs]))


def test_views_are_brought_together_by_what_was_learnt_elsewhere():
    x = torch.randint(256, (300, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    coarse = torch.nn.functional.interpolate(x[:, :, ::8, ::8].float(), size=32).to(torch.uint8)
    probe = probes.of_pairs("", (coarse[:200], coarse[:200].flip(1)), coarse[200:], coarse[200:].flip(1), (4, 4))
    assert probes.outcomes(probe, "thumbnail").mean() == 100 and probe.chance == 1.0


def test_worlds_ask_what_their_chapters_answer():
    drive = {"tiles": 4, "step": 24.0, "drives": 1, "queries": 4, "conditions": ["day", "night"]}
    asked = {
        **probes.city(train=12, test=8, tiles=5, places=4, size=32, ground=(32, 64), elevation=(-45.0, 45.0), polar_from=64, drive=drive),
        **probes.earth(train=20, test=10, size=32, extent_km=240.0, spacing_km=240.0), **probes.patterns(n=2, size=32, scale=0.003),
    }  # fmt: skip
    for name, probe in asked.items():
        for floor in ("histogram", "thumbnail"):
            found = probes.outcomes(probe, floor)
            assert found.shape == (len(probe.queries),) and 0 <= found.min() and found.max() <= 100 and 0 < probe.chance < 50, name
    largest = probes.extents(train=10, test=5, size=32, extents_km=(120.0, 240.0), spacing_km=240.0)
    assert torch.equal(largest[240.0].queries, asked["land cover"].queries[:5])
