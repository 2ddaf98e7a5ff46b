"""The ledger: each claim a check over recorded metrics, judged on seeds and queries as crossed samples, with one error rate over all claims.

    margin       d[s, q] = left - right on seed s and query q;  variance of its mean = A/(S Q) + max(0, (B - E)/(S Q)),
                 A, B, E the mean squares of seeds, queries and their interaction
    verdict      holds | fails   the 95% interval lies beyond 0, and Benjamini and Hochberg's step-up at 5% over the ledger leaves it there
                 equal           it lies within +- rope, the smallest difference that would matter
                 no signal       the reference row does not beat chance and every row that learns nothing by two standard errors
                 undecided       with how many seeds would decide it;  not tested   what it needs was not recorded
"""  # fmt: skip

import ast
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy import special

from georeps.lab import records

KEYS, OPTIONAL = {"id", "source", "sentence", "check", "rope", "floor"}, {"chosen_on"}
MIN_SEEDS = 3  # fewer give no verdict
ERROR_RATE = 0.05  # of the verdicts "holds" and "fails" of a ledger, the share that may be false
POWER = 0.8  # with which the seeds that would decide would decide
ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
COMPARISONS = {ast.Gt: 1, ast.GtE: 1, ast.Lt: -1, ast.LtE: -1}
VERDICTS = ("holds", "fails", "equal", "no signal", "undecided", "not tested")


@dataclass(frozen=True)
class Margin:
    """A mean difference with its interval and two-sided p; `queries` is 0 where only seeds were sampled.

    `of_seeds` is the variance of one seed's margin, `of_queries` that part of the mean's variance which more seeds do not lower. `verdict` is of this
    comparison alone, without what the rest of a ledger asks.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    queries: int
    of_seeds: float = math.nan
    of_queries: float = 0.0
    rope: float = 0.0

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return math.sqrt(self.of_seeds / self.seeds + self.of_queries)

    @property
    def verdict(self) -> str:
        if self.seeds < MIN_SEEDS:
            return "undecided"
        if -self.rope <= self.low and self.high <= self.rope:
            return "equal"
        return "holds" if self.low > 0 else "fails" if self.high < 0 else "undecided"


def compare(a: np.ndarray, b: np.ndarray | float, *, rope: float = 0.0, level: float = 0.95) -> Margin:
    """The mean of a - b over seeds and queries, both samples: `a` "s q", `b` "s q" of the same seeds and queries, or a number.

    Where the queries were drawn anew with each seed, their own effect is nought and the interval that of t over seeds. Raises ValueError on
    outcomes that are not finite, or of other seeds or queries.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.ndim != 2 or not a.size or b.shape not in ((), a.shape):
        raise ValueError(f"a, b: expected outcomes of as many seeds and queries, or a number as b, found shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"a, b: expected finite outcomes, found {int((~np.isfinite(a)).sum())} and {int((~np.isfinite(b)).sum())} that are not")
    return _margin((a - b).mean(axis=1), [list(a - b)], rope, level)


def evaluate(path: Path | str, found: list[records.Record]) -> pd.DataFrame:
    """The ledger, evaluated: a line a claim with margin, low, high, p, seeds, queries, verdict, why, needed and data.

    A check is a comparison of arithmetic over metric ids: `a - b > 2`, `a > b > c`; a chain shows its worst link, holds where every link does and
    fails where one is reversed. `needed` is the number of seeds that would decide an undecided claim with a power of 80% (infinite: no number would,
    it wants more queries). `p` is that of the claim, corrected for the links of a chain, not for the ledger.
    """
    sample = _Sample(found)
    ledger = pd.DataFrame([_evaluate(claim, sample) for claim in _read_claims(Path(path))])
    judged = ~ledger.verdict.isin(["not tested", "no signal"]) & (ledger.n >= MIN_SEEDS)
    survives = _step_up(ledger.p[judged])
    lost = ledger.index[judged][~survives & ledger.verdict[judged].isin(["holds", "fails"])]
    ledger.loc[lost, "why"] = "not beyond what a ledger of this size shows by chance"
    ledger.loc[lost, "verdict"] = "undecided"
    level = ERROR_RATE * (survives.sum() + 1) / max(1, len(survives))
    ledger["needed"] = [_needed(m, level) if v == "undecided" else math.nan for m, v in zip(ledger.pop("link"), ledger.verdict, strict=True)]
    return ledger


def tested(found: list[records.Record]) -> pd.DataFrame:
    """The claims of the book's ledger that these runs test."""
    ledger = evaluate(records.book_folder() / "claims.yml", found)
    return ledger[ledger.verdict != "not tested"]


def table(ledger: pd.DataFrame) -> pd.DataFrame:
    """A line a claim: its sentence, margin, interval, seeds and verdict."""
    return ledger[["id", "sentence", "margin", "low", "high", "n", "verdict"]].round(2).set_index("id")


def floors(found: list[records.Record]) -> pd.DataFrame:
    """A line a row that claims rely on: its mean and 95% interval over seeds, beside chance and the same of what learns nothing, and what it does not beat."""
    sample = _Sample(found)
    lacks = lambda m: _no_signal(m, sample) if len(sample.values[m]) >= MIN_SEEDS else "too few seeds to say"
    beside = {m: ", ".join(f"{row} {records.cell(sample.values, row)}" for row in f["rows"]) for m, f in sample.floors.items()}
    lines = [(m, records.cell(sample.values, m), f["chance"], beside[m], lacks(m)) for m, f in sorted(sample.floors.items())]
    return pd.DataFrame(lines, columns=["row", "here", "chance", "learns nothing", "why it has no signal"]).set_index("row")


def metrics_of(check: str) -> set[str]:
    """The metric ids that a check names."""
    return _metrics_of(_parse(check))


def sides(check: str, found: list[records.Record]) -> dict[str, list[float]]:
    """What a check compares: the text of each side -> its value on every seed that has all the metrics (none: empty lists)."""
    node, here = _parse(check), records.values(found)
    shared = [set(here.get(m, {})) for m in _metrics_of(node)]
    seeds = sorted(set.intersection(*shared)) if shared else []
    parts = (node.left, *node.comparators)
    return {ast.unparse(p): [_number(p, {m: here[m][s] for m in _metrics_of(p)}) for s in seeds] for p in parts}


class _Sample:
    """What runs measured: metric -> seed -> value, and the outcomes behind it."""

    def __init__(self, found: list[records.Record]):
        self.values, self.floors, self.data = records.values(found), {}, {}
        self._records = {(m, r.seed): r for r in found for m in r.metrics}
        for record in found:
            self.floors |= record.floors
            self.data |= dict.fromkeys(record.metrics, f"{record.data}, profile {record.profile}")

    def outcomes(self, metric: str, seeds: Sequence[int]) -> list[np.ndarray] | None:
        rows = [self._records[metric, s].outcomes.get(metric) for s in seeds]
        return [row.astype(float) for row in rows] if all(row is not None for row in rows) else None

    def shared(self, names: Iterable[str]) -> list[int]:
        """The seeds that all of these metrics have."""
        found = [set(self.values[m]) for m in names]
        return sorted(set.intersection(*found)) if found else []

    def margin(self, node: ast.expr, rope: float, level: float = 0.95, *, seeds: Sequence[int] | None = None) -> Margin:
        """Of an expression over metric ids, on the seeds that all of them have. Outcomes of as many queries are taken as paired."""
        names = sorted(_metrics_of(node))
        seeds = self.shared(names) if seeds is None else seeds
        if not seeds:
            return Margin(math.nan, math.nan, math.nan, math.nan, 0, 0, rope=rope)
        totals = np.array([_number(node, {m: self.values[m][s] for m in names}) for s in seeds])
        parts: dict[tuple[int, ...], list[np.ndarray]] = {}  # by the number of queries of each seed
        for metric, weight in (_linear(node) or {}).items():
            if metric and (rows := self.outcomes(metric, seeds)) is not None:
                size = tuple(map(len, rows))
                parts[size] = [a + weight * b for a, b in zip(parts.get(size, np.zeros(len(rows))), rows, strict=True)]
        return _margin(totals, parts.values(), rope, level)


def _margin(totals: np.ndarray, parts: Iterable[Sequence[np.ndarray]], rope: float, level: float) -> Margin:
    """`totals` "s" are the margins of the seeds, `parts` the outcomes whose means they add up to, of each seed a row "q".

    The t of the interval lies between those of the seeds' and the queries' degrees of freedom, t^2 = w^2 t_seeds^2 + (1 - w^2) t_queries^2 with w the
    seeds' share of the variance: Satterthwaite's approximation alone leaves up to 3.9% on a side at 3 seeds, this 2.2 to 3.0%.
    """
    parts = [d for d in parts if min(map(len, d)) > 1]
    queries = [min(map(len, d)) for d in parts]
    s, mean = len(totals), float(totals.mean())
    if s < 2:
        return Margin(mean, math.nan, math.nan, math.nan, s, min(queries, default=0), rope=rope)
    of_seeds, of_queries = float(totals.var(ddof=1)), sum(map(_of_queries, parts), 0.0)
    error, q = math.sqrt(of_seeds / s + of_queries), min(queries, default=0)
    if error == 0:
        return Margin(mean, mean, mean, float(mean == 0), s, q, 0.0, 0.0, rope)
    above = (1 + level) / 2
    share, t_seeds = of_seeds / s / error**2, special.stdtrit(s - 1, above)
    t = math.sqrt(share**2 * t_seeds**2 + (1 - share**2) * special.stdtrit(q - 1, above) ** 2) if q else t_seeds
    degrees = float(special.stdtridf(above, t)) if q else s - 1
    p = float(2 * special.stdtr(degrees, -abs(mean) / error))
    return Margin(mean, mean - t * error, mean + t * error, p, s, q, of_seeds, of_queries, rope)


def _of_queries(d: Sequence[np.ndarray]) -> float:
    """The variance of the mean that comes of the queries alone: (B - E) / (S Q), not below nought.

    Seeds with other numbers of queries cannot be crossed: then all of the variance within a seed counts as shared by the seeds, which is too much rather
    than too little.
    """
    if len({len(row) for row in d}) > 1:
        return float(np.mean([row.var(ddof=1) / len(row) for row in d]))
    d = np.asarray(d)
    s, q = d.shape
    over_seeds, over_queries = d.mean(axis=0), d.mean(axis=1, keepdims=True)
    b = s * over_seeds.var(ddof=1)
    e = ((d - over_seeds - over_queries + d.mean()) ** 2).sum() / ((s - 1) * (q - 1))
    return max(0.0, float(b - e) / (s * q))


def _step_up(p: pd.Series) -> np.ndarray:
    """Which of these two-sided p are rejected at ERROR_RATE (Benjamini and Hochberg, 1995)."""
    from scipy import stats

    return stats.false_discovery_control(p.to_numpy()) <= ERROR_RATE if len(p) else np.zeros(0, bool)


def _needed(margin: Margin, level: float) -> float:
    """The seeds at which a margin like this would be beyond 0 at `level`, or within its rope, with a power of POWER."""
    if margin.seeds < 2:
        return float(MIN_SEEDS) if margin.seeds else math.nan
    for s in range(max(MIN_SEEDS, margin.seeds + 1), 1001):
        error = math.sqrt(margin.of_seeds / s + margin.of_queries)
        beyond = error * (special.stdtrit(s - 1, 1 - level / 2) + special.stdtrit(s - 1, POWER))
        within = error * (special.stdtrit(s - 1, 0.975) + special.stdtrit(s - 1, POWER))
        if abs(margin.mean) > beyond or abs(margin.mean) + within < margin.rope:
            return float(s)
    return math.inf


def _evaluate(claim: dict, sample: _Sample) -> dict:
    check = _parse(claim["check"])
    needed = _metrics_of(check)
    row = claim | {"margin": math.nan, "low": math.nan, "high": math.nan, "p": math.nan, "n": 0, "queries": 0, "verdict": "not tested"}
    row |= {"chosen_on": claim.get("chosen_on", ""), "data": "; ".join(sorted({sample.data[m] for m in needed & set(sample.data)})), "link": None}
    lost = sorted(needed - set(sample.values))
    if lost or claim["floor"] and claim["floor"] not in sample.floors:
        return row | {"why": f"{len(lost)} metrics were not recorded, as {lost[0]}" if lost else f"no floor of {claim['floor']} was recorded"}
    seeds = sample.shared(needed)
    links = [sample.margin(node, float(claim["rope"]), seeds=seeds) for node in _links(check)]
    said = _verdict(links)
    worst = min((m for m in links if m.verdict == said), key=lambda m: m.mean, default=min(links, key=lambda m: m.mean))
    row |= {"margin": worst.mean, "low": worst.low, "high": worst.high, "n": worst.seeds, "queries": worst.queries, "link": worst, "why": ""}
    reversed_ = [m.p for m in links if m.mean <= 0]
    row |= {"p": min(1.0, len(links) * min(reversed_)) if reversed_ else max(m.p for m in links)}
    weak = _no_signal(claim["floor"], sample) if claim["floor"] else ""
    if worst.seeds < MIN_SEEDS:
        return row | {"verdict": "undecided", "why": f"{worst.seeds} seed{'s' * (worst.seeds != 1)}, of {MIN_SEEDS} at least"}
    return row | ({"verdict": "no signal", "why": weak} if weak else {"verdict": said})


def _verdict(links: list[Margin]) -> str:
    """Of a claim with these links: "fails" where one is reversed (Bonferroni over them), "holds" where all hold, "equal" where all are equal or hold."""
    said = [m.verdict for m in links]
    if any(m.verdict == "fails" and m.p * len(links) <= 0.05 for m in links):
        return "fails"
    return "holds" if set(said) == {"holds"} else "equal" if set(said) <= {"holds", "equal"} else "undecided"


def _no_signal(metric: str, sample: _Sample) -> str:
    """Why `metric` has learnt nothing: what it does not beat by two standard errors; "" where it beats all."""
    floor = sample.floors[metric]
    for row, called in ((repr(floor["chance"]), f"chance ({floor['chance']:.3g})"), *((row, row) for row in floor["rows"])):
        margin = sample.margin(ast.parse(f"{metric} - {row}", mode="eval").body, 0.0)
        if not margin.mean > 2 * margin.error:
            return f"{metric} does not beat {called} by two standard errors"
    return ""


def _read_claims(path: Path) -> list[dict]:
    found = yaml.safe_load(path.read_text())
    for i, claim in enumerate(found):
        if not KEYS <= set(claim) <= KEYS | OPTIONAL:
            raise ValueError(f"{path}, claim {i + 1}: expected the keys {sorted(KEYS)} and perhaps {sorted(OPTIONAL)}, found {sorted(claim)}")
        if not isinstance(claim["rope"], int | float) or claim["rope"] < 0 or claim.get("chosen_on") not in (None, "validation"):
            said = f"rope {claim['rope']!r} and chosen_on {claim.get('chosen_on')!r}"
            raise ValueError(f"{path}, claim {claim['id']}: expected a rope of 0 or more and chosen_on: validation or nothing, found {said}")
        try:
            metrics_of(claim["check"])
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{path}, claim {claim['id']}: {error}") from error
    ids = [claim["id"] for claim in found]
    if len(set(ids)) != len(ids):
        raise ValueError(f"{path}: expected unique ids, found {sorted(i for i in set(ids) if ids.count(i) > 1)} twice")
    return found


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


def _links(check: ast.Compare) -> list[ast.expr]:
    """Each link of a chain as the expression that is positive where it is met."""
    sides = [check.left, *check.comparators]
    pairs = ((a, b) if COMPARISONS[type(op)] > 0 else (b, a) for op, a, b in zip(check.ops, sides[:-1], sides[1:], strict=True))
    return [ast.BinOp(a, ast.Sub(), b) for a, b in pairs]


def _linear(node: ast.expr) -> dict[str, float] | None:
    """An expression as metric -> weight, "" -> what is added; None where it is not linear in its metrics."""
    if isinstance(node, ast.Constant):
        return {"": float(node.value)}
    if isinstance(node, ast.UnaryOp):
        node = ast.BinOp(ast.Constant(-1), ast.Mult(), node.operand)
    if not isinstance(node, ast.BinOp):
        return {ast.unparse(node): 1.0}
    a, b = _linear(node.left), _linear(node.right)
    if a is None or b is None:
        return None
    if isinstance(node.op, ast.Add | ast.Sub):
        sign = 1 if isinstance(node.op, ast.Add) else -1
        return {m: a.get(m, 0.0) + sign * b.get(m, 0.0) for m in a | b}
    a, b = (b, a) if isinstance(node.op, ast.Mult) and set(a) == {""} else (a, b)
    return {m: ARITHMETIC[type(node.op)](w, b[""]) for m, w in a.items()} if set(b) == {""} else None


def _number(node: ast.AST, at: dict[str, float]) -> float:
    if isinstance(node, ast.Constant):
        return float(node.value)
    if isinstance(node, ast.UnaryOp):
        return -_number(node.operand, at)
    if isinstance(node, ast.BinOp):
        left, right = _number(node.left, at), _number(node.right, at)
        return ARITHMETIC[type(node.op)](left, right)
    return at[ast.unparse(node)]
