"""The ledger: each claim a check over recorded metrics, its margin on every seed, a paired bootstrap over seeds, a verdict."""

import ast
import math
import operator
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from georeps.lab import records

KEYS = {"id", "source", "sentence", "check", "data", "papers_own_data"}
MIN_SEEDS = 3  # fewer give no verdict
RESAMPLES = 10_000
ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
COMPARISONS = {ast.Gt: 1, ast.GtE: 1, ast.Lt: -1, ast.LtE: -1}


def tested(found: list[records.Record]) -> pd.DataFrame:
    """The claims of the book's ledger that these runs test."""
    ledger = evaluate(records.book_folder() / "claims.yml", found)
    return ledger[ledger.verdict != "not tested"]


def table(ledger: pd.DataFrame) -> pd.DataFrame:
    """A line a claim: its sentence, margin, interval, seeds and verdict."""
    return ledger[["id", "sentence", "margin", "low", "high", "n", "verdict"]].round(2).set_index("id")


def evaluate(path: Path | str, found: list[records.Record]) -> pd.DataFrame:
    """The ledger, evaluated: a line a claim with margin, its 95% paired bootstrap interval over seeds, n and verdict.

    A check is a comparison of arithmetic over metric ids: `a - b > 2`, `a > b > c`. Its margin on a seed is how far the
    comparison is met (the worst link of a chain). The verdict is "holds" where the interval lies above 0, "fails" below
    0, "undecided" across 0 or with fewer than three seeds, "not tested" where a metric is missing.
    """
    here = records.values(found)
    return pd.DataFrame([_evaluate(claim, here) for claim in _read_claims(Path(path))])


def sides(check: str, found: list[records.Record]) -> dict[str, list[float]]:
    """What a check compares: the text of each side -> its value on every seed that has all the metrics (none: empty lists)."""
    node, here = _parse(check), records.values(found)
    shared = [set(here.get(m, {})) for m in _metrics_of(node)]
    seeds = sorted(set.intersection(*shared)) if shared else []
    parts = (node.left, *node.comparators)
    return {ast.unparse(p): [_number(p, {m: here[m][s] for m in _metrics_of(p)}) for s in seeds] for p in parts}


def bootstrap(margins: Iterable[float], *, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of the mean over resampled seeds."""
    margins = np.asarray(list(margins), float)
    draws = np.random.default_rng(seed).integers(len(margins), size=(RESAMPLES, len(margins)))
    low, high = np.percentile(margins[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _read_claims(path: Path) -> list[dict]:
    found = yaml.safe_load(path.read_text())
    for i, claim in enumerate(found):
        if set(claim) != KEYS:
            raise ValueError(f"{path}, claim {i + 1}: expected the keys {sorted(KEYS)}, found {sorted(claim)}")
        try:
            _metrics_of(_parse(claim["check"]))
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{path}, claim {claim['id']}: {error}") from error
    ids = [claim["id"] for claim in found]
    if len(set(ids)) != len(ids):
        raise ValueError(f"{path}: expected unique ids, found {sorted(i for i in set(ids) if ids.count(i) > 1)} twice")
    return found


def _evaluate(claim: dict, here: dict[str, dict[int, float]]) -> dict:
    check = _parse(claim["check"])
    needed = _metrics_of(check)
    row = {k: claim[k] for k in ("id", "source", "sentence", "check", "data", "papers_own_data")}
    row |= {"margin": math.nan, "low": math.nan, "high": math.nan, "n": 0, "verdict": "not tested"}
    if not needed <= set(here):
        return row
    seeds = sorted(set.intersection(*(set(here[m]) for m in needed)))
    margins = np.array([_margin(check, {m: here[m][s] for m in needed}) for s in seeds])
    row |= {"n": len(seeds)}
    if len(seeds) == 0:
        return row
    low, high = bootstrap(margins)
    row |= {"margin": float(margins.mean()), "low": low, "high": high, "verdict": "undecided"}
    if len(seeds) >= MIN_SEEDS and (low > 0 or high < 0):
        row["verdict"] = "holds" if low > 0 else "fails"
    return row


def _parse(check: str) -> ast.Compare:
    node = ast.parse(check, mode="eval").body
    if not isinstance(node, ast.Compare) or not all(type(op) in COMPARISONS for op in node.ops):
        raise ValueError(f"check: expected a comparison with > or <, found {check!r}")
    return node


def _metrics_of(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Attribute | ast.Name):
        return {ast.unparse(node)}
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return set()
    minus = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    if isinstance(node, ast.Compare) or minus or isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        parts = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        return set().union(*(_metrics_of(part) for part in parts))
    raise ValueError(f"check: expected metric ids, numbers and + - * /, found {ast.unparse(node)!r}")


def _margin(check: ast.Compare, at: dict[str, float]) -> float:
    sides = [_number(side, at) for side in (check.left, *check.comparators)]
    links = zip(check.ops, sides[:-1], sides[1:], strict=True)
    return min(COMPARISONS[type(op)] * (left - right) for op, left, right in links)


def _number(node: ast.AST, at: dict[str, float]) -> float:
    if isinstance(node, ast.Constant):
        return float(node.value)
    if isinstance(node, ast.UnaryOp):
        return -_number(node.operand, at)
    if isinstance(node, ast.BinOp):
        left, right = _number(node.left, at), _number(node.right, at)
        return ARITHMETIC[type(node.op)](left, right)
    return at[ast.unparse(node)]
