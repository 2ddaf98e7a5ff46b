"""Figures of what is spread over the Earth: paths on a globe, densities, values of places, calibration.

A map is equirectangular, in degrees; a globe is seen from infinitely far (orthographic), what lies behind it is not drawn.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from georeps.core import sphere
from georeps.lab import elements, plots, records
from georeps.worlds import earth

plt, sns, Figure = plots.plt, plots.sns, plots.Figure
TRUTH, SAMPLES = plots.PALETTE[2], plots.PALETTE[0]


def globes(paths: Float[Tensor, "t n 3"], truth: Float[Tensor, "3"], *, shares: Sequence[float], title: str = "") -> Figure:
    """n paths of t moments on the globe turned to the true place: a panel for each share of the way that is shown."""
    last = len(paths) - 1
    figure, axes = plt.subplots(1, len(shares), figsize=(2.9 * len(shares), 3.3), layout="constrained", squeeze=False)
    east, north = sphere.basis(truth)
    if abs(float(truth[2])) < 0.999:  # north up
        north = torch.nn.functional.normalize(torch.tensor([0.0, 0, 1]) - truth[2] * truth, dim=0)
        east = torch.linalg.cross(north, truth)
    frame = torch.stack([east, north, truth])
    figure.table = pd.DataFrame(sphere.to_latlon(paths[-1]).numpy(), columns=["latitude of a sample", "longitude of a sample"])
    for ax, share in zip(axes[0], shares, strict=True):
        ax.add_patch(plt.Circle((0, 0), 1, facecolor="0.97", edgecolor="0.5"))
        for line in earth.outlines():
            ax.plot(*_seen(sphere.from_latlon(torch.from_numpy(line.copy()).float()) @ frame.T), color="0.6", linewidth=0.5)
        upto = round(share * last)
        for i in range(paths.shape[1]):
            ax.plot(*_seen(paths[: upto + 1, i] @ frame.T), color=SAMPLES, linewidth=0.6, alpha=0.5)
        ax.plot(*_seen(paths[upto] @ frame.T), ".", color=SAMPLES, markersize=4)
        ax.plot(0, 0, "*", color=TRUTH, markersize=11, markeredgecolor="white")
        ax.set(xlim=(-1.03, 1.03), ylim=(-1.03, 1.03), xticks=[], yticks=[], aspect="equal", title=f"{share:.0%} of the way")
        sns.despine(ax=ax, left=True, bottom=True)
    figure.suptitle(title)
    return figure


def densities(images: Sequence[UInt8[Tensor, "3 h w"]], log_density: Float[Tensor, "a g"], truth: Float[Tensor, "a t 3"], *, names: Sequence[str]) -> Figure:
    """A row an image: what was seen, and the regions that hold 50, 75, 90 and 99% of its density's mass on the map; stars: its t true places."""
    rows = round((log_density.shape[1] / 2) ** 0.5)
    inside = elements.shares(log_density, rows).view(len(images), rows, 2 * rows)
    figure, axes = plt.subplots(len(images), 2, figsize=(9, 2.5 * len(images)), layout="constrained", width_ratios=[1, 3.2], squeeze=False)
    figure.table = pd.DataFrame(sphere.to_latlon(truth).flatten(0, 1).numpy(), columns=["true latitude", "true longitude"])
    figure.table.insert(0, "image", np.repeat(list(names), truth.shape[1]))
    latitude = 90 - (np.arange(rows) + 0.5) * 180 / rows
    longitude = (np.arange(2 * rows) + 0.5) * 180 / rows - 180
    for (left, right), image, mass, latlon, name in zip(axes, images, inside, sphere.to_latlon(truth), names, strict=True):
        left.imshow(image.permute(1, 2, 0), interpolation="nearest")
        left.set(xticks=[], yticks=[], title=name)
        levels = [0, 0.5, 0.75, 0.9, 0.99]
        right.contourf(longitude, latitude, mass, levels, colors=sns.color_palette("rocket", 4).as_hex(), alpha=0.85)
        for line in earth.outlines():
            right.plot(*plots.split_at_dateline(line), color="0.35", linewidth=0.4)
        right.plot(latlon[:, 1], latlon[:, 0], "*", color=TRUTH, markersize=11, markeredgecolor="white")
        right.set(xlim=(-180, 180), ylim=(-60, 80), xticks=[], yticks=[], aspect="equal")
    return figure


def places(latlon: Float[Tensor, "n 2"], values: Float[Tensor, " n"], *, label: str, title: str = "") -> Figure:
    """A value of each place as a colour on the map."""
    figure = plots.world(title=title)
    ax = figure.axes[0]
    shown = ax.scatter(latlon[:, 1], latlon[:, 0], c=values, s=5, cmap="viridis", linewidths=0, zorder=3)
    figure.colorbar(shown, ax=ax, label=label, shrink=0.7)
    return figure


def calibration(curves: Mapping[str, Float[Tensor, " b"]], areas: Mapping[str, Float[Tensor, " b"]]) -> Figure:
    """Left: share of places inside their credible region against its mass; the diagonal is calibrated. Right: against its area.

    `curves` hold for each place the mass that is denser than the truth, `areas` the area (km2) of that region.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    left.plot([0, 100], [0, 100], color="0.5", linestyle=":", label="calibrated")
    for (name, mass), colour in zip(curves.items(), plots.PALETTE, strict=False):
        share = np.linspace(0, 100, len(mass), endpoint=False) + 100 / len(mass)
        left.plot(np.sort(100 * mass.numpy()), share, color=colour, label=name)
        right.plot(np.sort(areas[name].numpy()), share, color=colour, label=name)
    left.set(xlabel="mass of the credible region (%)", ylabel="places inside (%)", xlim=(0, 100), ylim=(0, 100))
    right.set(xscale="log", xlabel="area searched (km$^2$)", ylabel="places found (%)", ylim=(0, 100))
    left.legend(frameon=False)
    return figure


def by_band(values: Mapping[str, Mapping[str, Sequence[float]]], *, xlabel: str, ylabel: str) -> Figure:
    """Bars of a measure by band, one colour a model, mean over seeds with its 95% t interval; `values`: model -> band -> seeds."""
    figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    width = 0.8 / len(values)
    for j, (name, bands) in enumerate(values.items()):
        mean, half, _ = zip(*(records.interval(v) for v in bands.values()), strict=True)
        at = np.arange(len(bands)) + (j - (len(values) - 1) / 2) * width
        ax.bar(at, mean, width, yerr=np.nan_to_num(half), color=plots.PALETTE[j], label=name, error_kw={"elinewidth": 1})
    ax.set_xticks(range(len(bands)), list(bands))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def _seen(points: Float[Tensor, "n 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Where points in the globe's frame are seen; NaN behind it."""
    hidden = points[:, 2] < 0
    x, y = points[:, 0].clone(), points[:, 1].clone()
    x[hidden] = float("nan")
    return x.numpy(), y.numpy()
