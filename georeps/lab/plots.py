"""Every figure the book draws: data in, a matplotlib figure out; nothing is saved or shown here."""

import functools
import importlib
import itertools
import math
import re
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from georeps.core import vmf
from georeps.lab import claims, exhibits, records
from georeps.worlds import earth

Figure, Axes = "matplotlib.figure.Figure", "matplotlib.axes.Axes"
PALETTE = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9")  # seaborn's "colorblind"
TRAIN, TEST = PALETTE[0], PALETTE[1]
VERDICTS = {
    "holds": PALETTE[2], "fails": PALETTE[3], "equal": PALETTE[0], "no signal": PALETTE[4], "undecided": PALETTE[7], "not tested": "0.75",
}  # fmt: skip


def style() -> None:
    """The book's look of tables, and what they and figures hand to their page; called once at the top of a chapter. Figures' look comes with the first."""
    exhibits.hand_over()
    pd.set_option("display.max_colwidth", None)
    pd.set_option("display.max_rows", None)


@functools.cache
def _look() -> None:
    import matplotlib
    import seaborn

    seaborn.set_theme(context="notebook", style="ticks", palette=PALETTE)
    matplotlib.rcParams |= {"figure.dpi": 100, "savefig.bbox": "tight", "axes.spines.top": False, "axes.spines.right": False}


class _Later:
    """A module of figures, imported in the book's look when something of it is first used: nobody waits three seconds for what draws nothing yet."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, what: str):
        _look()
        return getattr(importlib.import_module(self._name), what)


mpl, plt, sns = map(_Later, ("matplotlib", "matplotlib.pyplot", "seaborn"))


def world(*, title: str = "") -> Figure:
    """An empty map, longitude and latitude in degrees, coasts drawn."""
    figure, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
    for line in earth.outlines():
        ax.plot(*split_at_dateline(line), color="0.35", linewidth=0.5, zorder=2)
    ax.set(xlim=(-180, 180), ylim=(-60, 75), xlabel="longitude (degrees)", ylabel="latitude (degrees)", title=title)
    ax.set_aspect("equal")
    return figure


def split_map(train: Float[Tensor, "n 2"], test: Float[Tensor, "m 2"], *, title: str) -> Figure:
    """Where the training and test patches lie."""
    figure = world(title=title)
    ax = figure.axes[0]
    for points, colour, name in ((train, TRAIN, "train"), (test, TEST, "test")):
        ax.scatter(points[:, 1], points[:, 0], s=3, color=colour, label=f"{name} ({len(points):,})", zorder=3, linewidths=0)
    ax.legend(loc="lower left", markerscale=3, frameon=True)
    return figure


def image_grid(rows: Sequence[UInt8[Tensor, "n 3 h w"]], *, names: Sequence[str], titles: Sequence[str] | None = None) -> Figure:
    """Rows of images; column i of every row belongs together, `titles[i]` stands above it."""
    columns = len(rows[0])
    heights = [images.shape[-2] / images.shape[-1] for images in rows]
    width = 1.1 if min(heights) == 1 else max(1.1, 9.0 / columns)  # panoramas want more room
    size = (width * columns, width * sum(heights) + 0.05 * len(rows) + 0.3)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, height_ratios=heights)
    for r, images in enumerate(rows):
        for c in range(columns):
            _show(axes[r, c], images[c])
        low = {"rotation": 0, "ha": "right", "va": "center"} if heights[r] < 0.6 else {}  # a name that runs upwards wants height
        name = names[r] if low else "\n".join(textwrap.fill(line, 15) for line in names[r].split("\n"))
        axes[r, 0].set_ylabel(name, fontsize=9, **low)
    for c, title in enumerate(titles or []):
        axes[0, c].set_title(title, fontsize=8)
    figure.tight_layout(pad=0.3)
    return figure


def balance(labels: Mapping[str, tuple[Sequence[str], Sequence[str]]], *, keep: int = 12) -> Figure:
    """Share of patches (%) by class in the training and the test part, the `keep` most frequent classes; a panel a name."""
    figure, axes = plt.subplots(1, len(labels), figsize=(4.2 * len(labels), 3.6), layout="constrained", squeeze=False)
    for ax, (name, (train, test)) in zip(axes[0], labels.items(), strict=True):
        parts = {"train": pd.Series(train), "test": pd.Series(test)}
        share = pd.DataFrame({p: x.value_counts(normalize=True) * 100 for p, x in parts.items()}).fillna(0.0)
        share = share.loc[share.sum(axis=1).sort_values(ascending=False, kind="stable").index[:keep]]
        table = share.rename_axis("label").reset_index().melt("label", var_name="part", value_name="share")
        sns.barplot(table, y="label", x="share", hue="part", palette=[TRAIN, TEST], ax=ax)
        ax.set(xlabel="share of patches (%)", ylabel="", title=name)
        ax.legend(title="", frameon=False)
    return figure


def recall_curves(recall: Mapping[str, Mapping[int, Sequence[float]]], *, gallery: int, title: str = "") -> Figure:
    """R@k (%) against k, mean over seeds with its 95% t interval as a band; `recall`: name -> k -> one value a seed."""
    figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    _bands(ax, recall)
    ks = np.unique(np.geomspace(1, gallery, 50).round())
    ax.plot(ks, 100 * ks / gallery, color="0.5", linestyle=":", label="chance")
    ax.set(xscale="log", xlabel=f"k (of {gallery:,} in the gallery)", ylabel="R@k (%)", ylim=(0, 100), title=title)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return figure


def sweep(
    curves: Mapping[str, Mapping[float, Sequence[float]]], *, xlabel: str, ylabel: str, chance: float | None = None, percent: bool = True, log: bool = False
) -> Figure:
    """A measure along a setting (`log`: on a log axis), mean over seeds with its 95% t interval as a band; `curves`: name -> setting -> one value a seed."""
    figure, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
    _bands(ax, curves, percent)
    if chance is not None:
        ax.axhline(chance, color="0.5", linestyle=":", label="chance")
    ax.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None) if percent else None, xscale="log" if log else "linear")
    if log:
        settings = sorted({x for curve in curves.values() for x in curve})
        ax.set_xticks(settings, [f"{x:g}" for x in settings])
        ax.minorticks_off()
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return figure


def frontier(curves: Mapping[str, Mapping[float | str, Sequence[float]]], *, names: tuple[str, str], line: bool = True, title: str = "") -> Figure:
    """Two measures of one setting against each other, mean over seeds with its 95% t intervals.

    `names` are the axes'; a `line` joins the settings in their order, each point marked by its setting; without it each has a mark in the legend.
    """
    figure, ax = plt.subplots(figsize=(5 if line else 6.5, 3.6), layout="constrained")
    (x, dx, _), (y, dy, _) = (np.array([records.interval(values) for values in curve.values()]).T for curve in curves.values())
    dx, dy = np.nan_to_num(dx), np.nan_to_num(dy)
    settings = [s if isinstance(s, str) else f"{s:g}" for s in next(iter(curves.values()))]
    if line:
        ax.errorbar(x, y, xerr=dx, yerr=dy, fmt="o-", color=PALETTE[0], ecolor="0.6", elinewidth=1)
        for setting, a, b in zip(settings, x, y, strict=True):
            ax.annotate(setting, (a, b), textcoords="offset points", xytext=(5, 5))
    else:
        for i, setting in enumerate(settings):
            ax.errorbar(x[i], y[i], xerr=dx[i], yerr=dy[i], fmt="osD^vPX"[i % 7], color=["0.3", *PALETTE][i % 9], ecolor="0.6", elinewidth=1, label=setting)
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    ax.set(xlabel=names[0], ylabel=names[1], title=title)
    return figure


def clouds(points: Mapping[str, Float[Tensor, "n 2"]], *, names: tuple[str, str]) -> Figure:
    """Points of a plane by name, the last above the others: left without the first of them, right with it."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharex=True, sharey=True)
    colours = dict(zip(points, ("0.75", *PALETTE), strict=False))
    for ax, shown in zip(axes, (list(points)[1:], list(points)), strict=True):
        for name in shown:
            ax.scatter(*points[name].T.numpy(), s=4, color=colours[name], label=name, linewidths=0)
        ax.set(xlabel=names[0], ylabel=names[1])
        ax.legend(frameon=False, markerscale=3)
    return figure


def strips(
    queries: UInt8[Tensor, "q 3 h w"], gallery: UInt8[Tensor, "g 3 i j"], retrieved: Int64[Tensor, "q k"], right: Bool[Tensor, "q k"], *,
    names: Sequence[str], match: Int64[Tensor, " q"] | None = None, texts: Sequence[str] | None = None,
) -> Figure:  # fmt: skip
    """A row a query, named by `names`: the query, its `match` in the gallery, and the best retrieved, framed green where right and red elsewhere.

    Of a composed query `texts` stand above the image.
    """
    n, first = len(retrieved), 1 + (match is not None)
    columns = first + retrieved.shape[1]
    figure, axes = plt.subplots(n, columns, figsize=(1.05 * columns + bool(texts), (1.4 if texts else 1.17) * n + 0.3), squeeze=False)
    called = names if texts is None else [f"{name} {t}".strip() for name, t in zip(names, texts, strict=True)]
    rows = [(called[r], c + 1, int(i), bool(right[r, c])) for r in range(n) for c, i in enumerate(retrieved[r])]
    figure.table = pd.DataFrame(rows, columns=["query", "place", "gallery image", "right"])
    for r in range(n):
        _show(axes[r, 0], queries[r], frame=texts and "0.3")
        axes[r, 0].set_ylabel(names[r], fontsize=9, **({"rotation": 0, "ha": "right", "va": "center"} if texts else {}))
        axes[r, 0].set_title(texts[r] if texts else "", fontsize=9, loc="left")
        if match is not None:
            _show(axes[r, 1], gallery[int(match[r])], frame="0.3")
        for c, i in enumerate(retrieved[r].tolist(), first):
            _show(axes[r, c], gallery[i], frame=VERDICTS["holds" if right[r, c - first] else "fails"])
    if match is not None:
        for c, title in enumerate(["query", "match", *range(1, columns - 1)]):
            axes[0, c].set_title(str(title), fontsize=9)
    figure.tight_layout(pad=0.3)
    return figure


def place_classes(corner: Float[Tensor, "c 3"], group: Int64[Tensor, " c"], *, side: float) -> Figure:
    """Geographic classes of the place with the most of them: an arrow a class, from the middle of its square to where its sector begins, by group.

    `corner` are metres east and north and degrees, as `progeo.geographic` gives them; without degrees a dot. Places lie over 20 km apart.
    """
    city = (corner[:, 0] // 20_000).long() * 1000 + (corner[:, 1] // 20_000).long()
    names, counts = city.unique(return_counts=True)
    here = city == names[counts.argmax()]
    east, north, heading = corner[here].numpy().T
    figure, ax = plt.subplots(figsize=(5.4, 5.0), layout="constrained")
    for g in range(int(group.max()) + 1):
        own = group[here].numpy() == g
        x, y, angle = east[own] - east.min() + side / 2, north[own] - north.min() + side / 2, np.deg2rad(heading[own])
        colour = PALETTE[g % len(PALETTE)]
        ax.scatter(x, y, s=9, color=colour, label=f"group {g + 1}")
        for a, b in zip(x, y, strict=True):
            ax.add_patch(plt.Rectangle((a - side / 2, b - side / 2), side, side, fc="none", ec="0.8", lw=0.6))
        ax.quiver(x, y, np.sin(angle), np.cos(angle), color=colour, angles="xy", scale_units="xy", scale=2 / side, width=0.006)
    ax.set(xlabel="metres east", ylabel="metres north", aspect="equal")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def tile_heatmap(
    position: Float[Tensor, "g 2"], scores: Float[Tensor, " g"], query: Float[Tensor, "2"], covering: Int64[Tensor, " s"], *, title: str
) -> Figure:
    """Localization heatmap of a city (thesis, Figure 6.1): each tile's centre coloured by its score against one query.

    The dotted lines cross where the query was taken; squares frame the tiles that cover it, the positive with the thicker line.
    """
    figure, ax = plt.subplots(figsize=(5.4, 4.4), layout="constrained")
    local = position - position.min(dim=0).values
    step = float(local[local[:, 0] > 0, 0].min())
    side = round(float(local.max()) / step) + 1
    image = np.full((side, side), np.nan)
    column, row = (local / step).round().long().unbind(1)
    image[row, column] = scores
    shown = ax.imshow(image, origin="lower", cmap=sns.cm.rocket, extent=(-step / 2, side * step - step / 2) * 2)
    for i, tile in enumerate(covering.tolist()):
        corner = (local[tile] - step / 2).tolist()
        ax.add_patch(mpl.patches.Rectangle(corner, step, step, fill=False, color="cyan", linewidth=2 if i == 0 else 1))
    ax.axvline(float(query[0] - position[:, 0].min()), color="cyan", linestyle=":", linewidth=1)
    ax.axhline(float(query[1] - position[:, 1].min()), color="cyan", linestyle=":", linewidth=1)
    ax.set(xlabel="metres east", ylabel="metres north", title=title)
    figure.colorbar(shown, ax=ax, label="cosine similarity to the query", shrink=0.8)
    return figure


def verdicts(ledger: pd.DataFrame) -> Figure:
    """Margins of the tested claims with their 95% intervals, in units of each claim's rope; right of the band is in the claim's favour.

    A claim whose rope is 0 is shown in half-widths of its interval, its mark hollow; what lies beyond 8 is moved there.
    """
    tested = ledger[ledger.verdict != "not tested"]
    figure, ax = plt.subplots(figsize=(7, 0.3 * len(tested) + 1.2), layout="constrained")
    figure.table = tested[["id", "margin", "low", "high", "rope", "n", "queries", "verdict"]]
    for y, row in enumerate(tested.itertuples()):
        unit = row.rope or (row.high - row.low) / 2 or abs(row.margin) / 8 or 1.0
        at, low, high = (np.clip(v / (unit if np.isfinite(unit) else 1.0), -9, 9) for v in (row.margin, row.low, row.high))
        ax.plot([low, high], [y, y], color=VERDICTS[row.verdict], linewidth=2)
        ax.plot(np.clip(at, -8, 8), y, "o", color=VERDICTS[row.verdict], markerfacecolor=VERDICTS[row.verdict] if row.rope else "white")
    ax.axvspan(-1, 1, color="0.92", zorder=0)
    ax.axvline(0, color="0.3", linewidth=1)
    ax.set_yticks(range(len(tested)), [f"{row.id} (n={row.n})" for row in tested.itertuples()], fontsize=9)
    for label, verdict in zip(ax.get_yticklabels(), tested.verdict, strict=True):
        label.set_color(VERDICTS[verdict] if verdict in ("holds", "fails") else "0.35")
    ax.set(xlabel="margin of the check, in units of its rope", xlim=(-9.2, 9.2), ylim=(len(tested) - 0.4, -0.6))
    return figure


def distributions(rows: Mapping[str, Mapping[str, Float[Tensor, "n 2"]]], *, notes: Mapping[str, str], kappa: float) -> Figure:
    """Figures 4.3 and 4.4 of the thesis: a row a start; points in the plane, on the circle, and the density of their angles.

    `rows`: start -> series -> points; `notes` stand beside a row. The density is a von Mises estimate of concentration `kappa`.
    """
    figure, axes = plt.subplots(len(rows), 3, figsize=(9.6, 2.9 * len(rows)), layout="constrained", squeeze=False)
    at = torch.linspace(-math.pi, math.pi, 361)
    for (plane, circle, density), (name, series) in zip(axes, rows.items(), strict=True):
        for (label, points), colour in zip(series.items(), PALETTE, strict=False):
            angle = torch.atan2(points[:, 1], points[:, 0])
            plane.scatter(*points.T, s=4, color=colour, label=label, linewidths=0)
            circle.scatter(angle.cos(), angle.sin(), s=4, color=colour, alpha=0.4, linewidths=0)
            density.plot(at, vmf.circle_kde(angle, at, kappa), color=colour, linewidth=1)
        whole = torch.cat(list(series.values()))
        density.plot(at, vmf.circle_kde(torch.atan2(whole[:, 1], whole[:, 0]), at, kappa), color="black", label="all")
        plane.set(xticks=[], yticks=[], ylabel=name)
        circle.set(xticks=[], yticks=[], aspect="equal", xlabel=notes[name])
        density.set(xlabel="angle (radians)", ylabel="density", ylim=(0, None))
    axes[0, 0].legend(fontsize=7, markerscale=3, frameon=True)
    axes[0, 2].legend(frameon=False)
    for ax, title in zip(axes[0], ("t-SNE", "on the circle", "density of the angles"), strict=True):
        ax.set_title(title)
    return figure


def similarities(panels: Mapping[str, Mapping[str, Float[Tensor, " n"]]], *, xlabel: str) -> Figure:
    """A panel a method: the distribution of its scores in each group of gallery images, every group's area 1."""
    figure, axes = plt.subplots(len(panels), 1, figsize=(7, 1.35 * len(panels) + 0.6), layout="constrained", squeeze=False)
    for ax, (title, groups) in zip(axes[:, 0], panels.items(), strict=True):
        whole = torch.cat(list(groups.values()))
        edges = np.linspace(float(whole.min()), float(whole.max()) + 1e-9, 50)
        for (name, scores), colour in zip(groups.items(), PALETTE, strict=False):
            ax.hist(scores.numpy(), edges, density=True, alpha=0.5, color=colour, label=f"{name} ({len(scores):,})")
        ax.set(yticks=[], title=title)
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[-1, 0].set_xlabel(xlabel)
    return figure


def grid_of(values: pd.DataFrame, *, label: str, title: str = "") -> Figure:
    """A table of numbers as colours, the numbers written in."""
    figure, ax = plt.subplots(figsize=(1.1 * values.shape[1] + 2, 0.55 * values.shape[0] + 1.2), layout="constrained")
    figure.table = values.reset_index()
    sns.heatmap(values.astype(float), annot=True, fmt=".1f", cmap="rocket_r", cbar_kws={"label": label}, ax=ax)
    ax.set_title(title)
    ax.tick_params(axis="y", rotation=0)
    return figure


def heat(maps: Float[Tensor, "n h w"]) -> UInt8[Tensor, "n 3 h w"]:
    """Maps as colours, each from its least to its greatest value, to stand among images."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    colours = sns.cm.rocket(((maps - low) / (high - low).clamp(min=1e-12)).numpy())
    return torch.from_numpy((255 * colours[..., :3]).astype(np.uint8)).permute(0, 3, 1, 2)


def claim_sides(ledger: pd.DataFrame, found: list[records.Record], *, columns: int = 4) -> Figure:
    """A panel a tested claim: the sides of its check, a line a seed; the first side is to be the higher where it says >."""
    tested = list(ledger[ledger.verdict != "not tested"].itertuples())
    rows = -(-len(tested) // columns)
    figure, axes = plt.subplots(max(rows, 1), columns, figsize=(2.6 * columns, 2.5 * max(rows, 1)), layout="constrained", squeeze=False)
    sides = {claim.id: claims.sides(claim.check, found) for claim in tested}
    drawn = [(i, side, seed, v) for i, parts in sides.items() for side, values in parts.items() for seed, v in enumerate(values)]
    figure.table = pd.DataFrame(drawn, columns=["claim", "side", "seed", "value"])
    for ax, claim in zip(axes.flat, tested, strict=False):
        parts = sides[claim.id]
        for line in zip(*parts.values(), strict=True):
            ax.plot(range(len(parts)), line, color=VERDICTS[claim.verdict], marker="o", markersize=4, linewidth=1)
        ax.set_xticks(range(len(parts)), _short_sides(list(parts)))
        ax.set_title(textwrap.fill(claim.id, 30) + f"\n{claim.verdict} (n={claim.n})", fontsize=8)
        ax.tick_params(labelsize=6.5)
        ax.margins(x=0.4)
    for ax in axes.flat[len(tested) :]:
        ax.set_visible(False)
    return figure


def _short_sides(sides: Sequence[str]) -> list[str]:
    """Sides of a check, their metric ids without what these share at either end: "a.safa.r1 > a.siamese.r1" -> "safa", "siamese"."""
    ids = [found.split(".") for side in sides for found in records.METRIC.findall(side)]
    shortest = min((len(i) for i in ids), default=0)
    head = next((k for k in range(shortest) if len({i[k] for i in ids}) > 1), shortest)
    tail = next((k for k in range(shortest - head) if len({i[-1 - k] for i in ids}) > 1), shortest - head)

    def short(match: re.Match) -> str:
        parts = match[0].split(".")
        return ".".join(parts[head : len(parts) - tail]) or parts[head - 1]

    apart = [re.sub(r"([_.+])", "\\1 ", records.METRIC.sub(short, side)) for side in sides]
    return [re.sub(r"([_.+]) ", r"\1", "\n".join(textwrap.wrap(text, 16))) for text in apart]


def dots(samples: Mapping[str, Sequence[float]], *, xlabel: str, title: str = "") -> Figure:
    """A row a setting: one faint dot a seed, the mean with its 95% t interval in front; a line at 0 where values lie on either side of it."""
    figure, ax = plt.subplots(figsize=(7, 0.32 * len(samples) + 1), layout="constrained")
    figure.table = pd.DataFrame([(n, *records.interval(s)) for n, s in samples.items()], columns=["row", xlabel, "half-width of the 95% interval", "seeds"])
    for y, sample in enumerate(samples.values()):
        mean, half, _ = records.interval(sample)
        ax.plot(list(sample), [y] * len(sample), "o", color=PALETTE[0], alpha=0.35, markersize=5)
        ax.errorbar(mean, y, xerr=None if np.isnan(half) else half, fmt="|", color="0.2", markersize=10, capsize=3)
    if (values := [v for sample in samples.values() for v in sample]) and min(values) < 0 < max(values):
        ax.axvline(0, color="0.7", linewidth=1, zorder=0)
    ax.set_yticks(range(len(samples)), list(samples))
    ax.set(xlabel=xlabel, title=title, ylim=(len(samples) - 0.5, -0.5))
    return figure


def levels(samples: Mapping[str, Mapping[str, Sequence[float]]], *, xlabel: str) -> Figure:
    """A row a task, a mark a method in each: mean over seeds with its 95% t interval; `samples`: task -> method -> one value a seed."""
    figure, ax = plt.subplots(figsize=(8, 0.42 * len(samples) + 1.2), layout="constrained")
    cells = [(task, name, *records.interval(values)) for task, row in samples.items() for name, values in row.items()]
    figure.table = pd.DataFrame(cells, columns=["task", "method", xlabel, "half-width of the 95% interval", "seeds"])
    for i, name in enumerate(methods := list(dict.fromkeys(figure.table.method))):
        own = figure.table[figure.table.method == name]
        y = [list(samples).index(task) + 0.14 * (i - (len(methods) - 1) / 2) for task in own.task]
        ax.errorbar(own[xlabel], y, xerr=own.iloc[:, 3].fillna(0), fmt="|osD^vPX"[i % 8], color=["0.3", *PALETTE][i], markersize=6, capsize=2, label=name)
    ax.set_yticks(range(len(samples)), list(samples))
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.3)
    ax.set(xlabel=xlabel, xlim=(-2, 102))
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def _bands(ax: Axes, curves: Mapping[str, Mapping[float, Sequence[float]]], percent: bool = True) -> None:
    bounds, rows = (0, 100) if percent else (-np.inf, np.inf), []
    for (name, curve), colour in zip(curves.items(), itertools.cycle(PALETTE), strict=False):
        if not curve:  # nothing of it was run
            continue
        xs = sorted(curve)
        mean, half, n = map(np.array, zip(*(records.interval(curve[x]) for x in xs), strict=True))
        ax.plot(xs, mean, color=colour, marker=".", label=f"{name} (n={n[0]})")
        if min(n) > 2:  # of two seeds the interval says nothing: they are shown
            ax.fill_between(xs, (mean - half).clip(*bounds), (mean + half).clip(*bounds), color=colour, alpha=0.15, linewidth=0)
        for x in xs if min(n) == 2 else []:
            ax.scatter([x] * len(curve[x]), curve[x], s=6, color=colour, alpha=0.6, linewidths=0)
        rows += [("", name, *row) for row in zip(xs, mean, half, n, strict=True)]
    ax.figure.table = pd.DataFrame(rows, columns=["panel", "series", "x", "y", "half-width of the 95% interval", "seeds"])


def _show(ax: Axes, image: UInt8[Tensor, "3 h w"], frame: str | tuple | None = None) -> None:
    ax.imshow(image.permute(1, 2, 0))
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=frame is not None, color=frame, linewidth=2.5)


def split_at_dateline(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and latitudes of a polyline, with a gap where it jumps across the map."""
    jumps = np.flatnonzero(np.abs(np.diff(line[:, 1])) > 180) + 1
    line = np.insert(line.astype(float), jumps, np.nan, axis=0)
    return line[:, 1], line[:, 0]
