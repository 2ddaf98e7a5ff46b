"""What figures and tables hand to their page."""

import io

import pandas as pd
import pytest
import torch

from georeps.lab import exhibits, maps, plots


def table(figure) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(exhibits.handed(figure)["csv"]))


def test_a_curve_hands_over_its_means_and_intervals():
    figure = plots.sweep({"a": {1.0: [1.0, 3.0], 2.0: [5.0, 5.0]}, "b": {1.0: [2.0]}}, xlabel="x", ylabel="y")
    found = table(figure)
    assert found.x.tolist() == [1, 2, 1] and found.y.tolist() == [2, 5, 2] and found.seeds.tolist() == [2, 2, 1]
    assert exhibits.handed(figure)["alt"] == "2 series, 3 points: a: from 2 to 5; b: 2."


def test_a_figure_without_a_table_of_its_own_hands_over_what_its_axes_hold():
    latlon = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    found = table(maps.places(latlon, torch.tensor([1.0, 2.0]), label="v"))
    assert found[["x", "y", "value"]].to_numpy().tolist() == [[20, 10, 1], [40, 30, 2]]
    bars = table(plots.balance({"climate": (["a", "a", "b"], ["b"])}))
    assert set(bars.x) == {"a", "b"} and bars.y.max() == 100
    pictures = exhibits.handed(plots.image_grid([torch.zeros(3, 3, 8, 8, dtype=torch.uint8)], names=["tiles"]))
    assert pictures["csv"].count("\n") == 4 and "tiles" in pictures["alt"]


def test_tables_are_handed_over_with_their_index_and_nothing_else_is():
    frame = pd.DataFrame({"R@1": [1.5, 2.0]}, index=["SAFA", "Siamese"])
    assert exhibits.handed(frame) == {"csv": "index,R@1\nSAFA,1.5\nSiamese,2.0\n", "alt": "2 rows (SAFA, Siamese); R@1: from 1.5 to 2."}
    assert exhibits.handed(frame.style)["csv"] == exhibits.handed(frame)["csv"] and exhibits.handed("text") is None


@pytest.mark.parametrize("rope", [0.0, 2.0])
def test_margins_are_drawn_in_units_of_their_rope(rope):
    row = {"id": "c", "margin": 4.0, "low": 2.0, "high": 6.0, "rope": rope, "n": 5, "queries": 0, "verdict": "holds"}
    ax = plots.verdicts(pd.DataFrame([row, row | {"verdict": "not tested"}])).axes[0]
    assert [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"] == [2.0]
    assert table(ax.figure).shape[0] == 1
