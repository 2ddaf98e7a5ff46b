"""What a cell shows, handed to its page with the numbers drawn: of each figure and table a CSV, and an alternative text made of the same table.

A figure's table is `figure.table` where who drew it set one, else what its axes hold: a row a point, a bar, a cell or a picture.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

MIME = "application/vnd.georeps.table+json"  # beside image/png and text/html in a cell's output: {"csv": text, "alt": text}
MOST = 6  # series named in an alternative text


def hand_over() -> None:
    """From now on every figure and table that this notebook shows carries its CSV and its alternative text; nothing outside a notebook."""
    import IPython
    from IPython.core.formatters import BaseFormatter
    from traitlets import Unicode

    class Formatter(BaseFormatter):  # not its registry: the inline backend strikes figures from every one
        format_type = Unicode(MIME)
        __call__ = lambda self, shown: handed(shown)

    if (shell := IPython.get_ipython()) is not None:
        shell.display_formatter.formatters[MIME] = Formatter(parent=shell.display_formatter)


def handed(shown) -> dict[str, str] | None:
    """What a figure or a table (a styled one too) hands to its page; None of anything else."""
    kind = f"{type(shown).__module__}.{type(shown).__name__}"
    if kind == "matplotlib.figure.Figure":
        table = drawn(shown)
    elif kind == "pandas.io.formats.style.Styler" or isinstance(shown, pd.DataFrame):
        table = getattr(shown, "data", shown) if not isinstance(shown, pd.DataFrame) else shown
        table = table if isinstance(table.index, pd.RangeIndex) else table.reset_index()
    else:
        return None
    return {"csv": table.to_csv(index=False), "alt": describe(table)}


def drawn(figure) -> pd.DataFrame:
    """The table behind a figure."""
    if hasattr(figure, "table"):
        return figure.table
    rows = [row for i, ax in enumerate(figure.axes) if ax.get_label() != "<colorbar>" for row in _held(ax, ax.get_title() or f"{i + 1}")]
    return pd.DataFrame(rows, columns=["panel", "series", "x", "y", "value"]).dropna(axis=1, how="all")


def _held(ax, panel: str) -> Iterator[tuple]:
    """(panel, series, x, y, value) of the labelled lines, points, bars, coloured cells and pictures of an axes."""
    for line in ax.lines:
        if not line.get_label().startswith("_"):
            yield from ((panel, line.get_label(), x, y, None) for x, y in zip(*line.get_data(), strict=True))
    for points in ax.collections:
        if hasattr(points, "get_sizes"):  # a scatter: its places, and what their colour says
            values = points.get_array()
            name = points.get_label() if not points.get_label().startswith("_") else ""
            yield from ((panel, name, x, y, None if values is None else values[i]) for i, (x, y) in enumerate(points.get_offsets()))
        elif (cells := points.get_array()) is not None:
            yield from ((panel, "", j, i, v) for (i, j), v in np.ndenumerate(np.asarray(cells)) if np.ndim(cells) == 2)
    names = [t.get_text() for t in ax.get_yticklabels()]
    for bars in ax.containers:
        if all(hasattr(bar, "get_height") for bar in bars):
            flat = len(names) == len(bars) and len({round(b.get_height(), 6) for b in bars}) == 1
            for i, bar in enumerate(bars):
                at = names[i] if flat else bar.get_x() + bar.get_width() / 2
                yield panel, bars.get_label(), at, bar.get_width() if flat else bar.get_height(), None
    for image in ax.images:
        shown = np.asarray(image.get_array())
        if shown.ndim == 3:
            yield panel, ax.get_ylabel() or "picture", shown.shape[1], shown.shape[0], None
        else:
            yield from ((panel, "", j, i, v) for (i, j), v in np.ndenumerate(shown) if np.isfinite(v))


def describe(table: pd.DataFrame) -> str:
    """A table in words: its size, and of its first series or columns of numbers from where to where they go."""
    if {"panel", "series", "x", "y"} <= set(table.columns):
        value = "value" if "value" in table else "y"
        groups = list(table.groupby(["panel", "series"], sort=False, dropna=False))
        said = [f"{' '.join(str(n) for n in name if n and not str(n).isdigit()) or 'points'}: {_range(part[value])}" for name, part in groups[:MOST]]
        return f"{len(groups)} series, {len(table):,} points: " + "; ".join(said) + ("; and others." if len(groups) > MOST else ".")
    numbers = [f"{c}: {_range(table[c])}" for c in table.columns if pd.api.types.is_numeric_dtype(table[c])]
    named = [str(v) for v in table.iloc[:, 0][:MOST]] if len(table) and not pd.api.types.is_numeric_dtype(table.iloc[:, 0]) else []
    said = [f"{len(table)} rows" + (f" ({', '.join(named)}{', and others' if len(table) > MOST else ''})" if named else ""), *numbers[:MOST]]
    return "; ".join(said) + "."


def _range(values: pd.Series) -> str:
    numbers = pd.to_numeric(values, errors="coerce").dropna()
    if not len(numbers):
        return f"{len(values)} values"
    low, high = float(numbers.min()), float(numbers.max())
    return f"{low:.3g}" if low == high else f"from {low:.3g} to {high:.3g}"
