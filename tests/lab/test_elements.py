"""The world map of a page: cells, shares, what it refuses."""

import json
import re

import pytest
import torch

from georeps.core import sphere, vmf
from georeps.lab import elements


def test_shares_are_the_mass_of_denser_cells_by_area():
    rows = 30
    grid = elements.grid(rows)
    mean = sphere.from_latlon(torch.tensor([70.0, 20.0]))
    kappa = torch.full((len(grid),), 12.0)
    shares = elements.shares(vmf.log_prob(grid, mean.expand_as(grid), kappa)[None], rows)[0]
    cosine = (grid * mean).sum(1)
    inside = 1 - (12 * (cosine - 1)).exp()  # mass nearer than this, closed form for large kappa
    assert float((shares - inside).abs().max()) < 0.06 and float(shares.min()) == 0


def test_the_page_holds_its_data_and_asks_no_network():
    n, rows = 2, 6
    images = torch.zeros(n, 3, 8, 8, dtype=torch.uint8)
    density = torch.zeros(n, 2 * rows * rows)
    page = elements.worldmap(images, density, sphere.uniform(6).view(n, 3, 3), sphere.uniform(n), ["a </script>", "b"], name="m1")
    data = json.loads(re.search(r"data = (\{.*?\}), canvas", page)[1].replace("<\\/", "</"))
    assert data["notes"][0] == "a </script>" and len(data["samples"][0]) == 3 and len(data["coasts"]) > 10
    assert "http" not in page and page.count("</script>") == 1


def test_maps_of_another_shape_are_named(unchecked):
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="log_density: expected 1 maps"):
        elements.worldmap(images, torch.zeros(1, 17), sphere.uniform(1)[None], sphere.uniform(1), ["a"])
    with pytest.raises(ValueError, match="expected as many of each, found 1, 1, 1, 2"):
        elements.worldmap(images, torch.zeros(1, 8), sphere.uniform(1)[None], sphere.uniform(1), ["a", "b"])
