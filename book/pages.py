"""From runs to pages: `python book/pages.py --profile laptop --out _build/source`, then jupyter-book.

    exhibits    the output of a cell that opens with "# caption: ..." gets a number, this caption, an alternative text, its CSV, and links to record and code
    folds       cells that import, hold parameters, or open with "# fold: ..." are collapsed under a line that says what they do
    sentences   {verdict}`claim`, {measured}`metric` and {paper}`metric` in the text become what the reference records and the papers say
    receipts    what the run just made says beside the reference, on each page and for the whole book; `--verify 02` prints it and writes nothing
"""  # fmt: skip

import argparse
import ast
import html
import io
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pandas as pd

from georeps.lab import claims, exhibits, records

BOOK = Path(__file__).resolve().parent
REFERENCE_OF = {"smoke": "laptop", "custom": "laptop"}  # whose verdicts a page of another profile speaks of
WIDE = 7  # headings (its head one of them) of a table that takes the page's margin too
COMMENT = r"# {}: (.*(?:\n#   .*)*)\n?"  # of one line, or more that are indented below it
ROLE = re.compile(r"\{(verdict|measured|paper|said)\}`([^`]+)`")
UNITS = {r"\.(r\d+\w*|\w*accuracy|map_at_r|knn|probe|avg|within\w*|hit_\w+)$": " points", r"geoscore$": " GeoScore", r"nll\w*$": " nats", r"\.km$": " km"}


class Reference:
    """The reference records of a profile, the ledger they give, and what the papers print."""

    def __init__(self, profile: str):
        self.runs = records.records(profile, live=False) if (records.results_folder() / profile).is_dir() else []
        self.values = records.values(self.runs)
        self.stale = records.stale(profile) if self.runs else []
        self.ledger = claims.evaluate(BOOK / "claims.yml", self.runs).set_index("id")
        self.paper = pd.concat(records.reference(path) for path in sorted((BOOK / "reference").glob("*.csv")))
        self.said: dict[str, list[str]] = {}  # claim -> chapters whose text speaks of it

    def of(self, chapter: str) -> list[records.Record]:
        return [r for r in self.runs if r.chapter == chapter]

    def sentence(self, role: str, name: str, page: str) -> str:
        """What stands in the text in place of a role."""
        if role in ("verdict", "said") and name not in self.ledger.index:
            sys.exit(f"{page}: {{{role}}}`{name}`: expected a claim of claims.yml")
        if role == "verdict":
            anchor = f' id="said-{name}"' if page not in self.said.setdefault(name, []) else ""
            self.said[name] += [page] if anchor else []
            row = self.ledger.loc[name]
            words, numbers = ("no reference yet", "") if row.verdict == "not tested" else (row.verdict, f" ({margin(row)})")
            return f'<a class="verdict {words.replace(" ", "-")}"{anchor} href="14_claims.html#claim-{name}">{words}</a>{numbers}'
        if role == "said":
            links = [f'<a href="{page}.html#said-{name}">chapter {int(page[:2])}</a>' for page in self.said.get(name, [])]
            return f" Said in {', '.join(links)}." if links else ""
        if role == "measured":
            return self.number(name, page)
        metric, _, source = name.partition("@")
        rows = self.paper[(self.paper.metric == metric) & self.paper.source.str.contains(source, regex=False)]
        if not len(rows):
            sys.exit(f"{page}: {{paper}}`{name}`: expected a metric of book/reference, found none")
        return f"{rows.value.iloc[0]:g} ({rows.source.iloc[0]}, Table {rows.table.iloc[0]})"

    def number(self, metric: str, page: str) -> str:
        """Mean and interval in three digits, two of them behind the point at most; the number of seeds where it is not the chapter's."""
        if metric not in self.values:
            return "no reference yet"
        said, n = records.cell(self.values, metric, None), len(self.of(page))
        return html.escape(said.removesuffix(f" (n={n})") if n > 1 else said)


def margin(row) -> str:
    unit = next((u for pattern, u in UNITS.items() if all(re.search(pattern, m) for m in claims.metrics_of(row.check))), "")
    said = lambda x: f"{round(x, 9) + 0:+.3g}"  # what is left of sums that cancel is 0
    interval = f", {said(row.low)} to {said(row.high)}" if row.n > 1 else ""
    return f"{said(row.margin)}{unit}{interval}, {row.n} seed{'' if row.n == 1 else 's'}"


class Page:
    """A chapter's page on the way from its run."""

    def __init__(self, chapter: str, run: Path, record: records.Record | None, reference: Reference, out: Path):
        self.chapter, self.record, self.reference, self.out = chapter, record, reference, out
        self.notebook = nbformat.read(run, as_version=4)
        self.data, self.numbers = out / "chapters" / "data", {"Figure": 0, "Table": 0}
        self.data.mkdir(parents=True, exist_ok=True)
        self.links = self.provenance()

    def provenance(self) -> str:
        """Links to the record and to the code at its commit, both copied beside the page."""
        commit = self.record.versions["commit"] if self.record else "no commit"
        code = self.data / f"{self.chapter}.py"
        code.write_text("\n\n".join(c.source for c in self.notebook.cells if c.cell_type == "code") + "\n")
        links = [f"[code at {commit}](data/{code.name})"]
        if self.record:
            shutil.copy(self.record.path, self.data / f"{self.chapter}.json")
            links.insert(0, f"[record](data/{self.chapter}.json)")
        return " · ".join(links)

    def write(self) -> None:
        cells = [new for cell in self.notebook.cells for new in self.dressed(cell)]
        if self.record:
            cells.append(nbformat.v4.new_markdown_cell(receipt_text(self.record, self.reference, self.data)))
        self.notebook.cells = cells
        nbformat.write(self.notebook, self.out / "chapters" / f"{self.chapter}.ipynb")

    def dressed(self, cell):
        if cell.cell_type == "markdown":
            cell.source = ROLE.sub(lambda m: self.reference.sentence(m[1], m[2], self.chapter), cell.source)
        if cell.cell_type != "code":
            return [cell]
        caption, said = take(cell, "caption"), take(cell, "fold")
        for output in cell.outputs:  # what a cell says in Markdown has roles too
            if text := output.get("data", {}).get("text/markdown"):
                output.data["text/markdown"] = ROLE.sub(lambda m: self.reference.sentence(m[1], m[2], self.chapter), text)
        fold(cell, said)
        return self.exhibited(cell, caption)

    def exhibited(self, cell, caption: str) -> list:
        """The cell, and for each exhibit of its outputs but the first a cell that shows this one alone."""
        shown = [o for o in cell.outputs if kind_of(o)] if caption else []
        cells, rest = [cell], list(cell.outputs)
        if mute := [o for o in rest if shown and "data" in o and not kind_of(o)]:
            sys.exit(f"{self.chapter}, {cell.id}: expected nothing beside the exhibits of a captioned cell, found {mute[0].data.get('text/plain')!r}")
        for i, output in enumerate(shown):
            if i:
                cells.append(nbformat.v4.new_code_cell("# shown above", metadata={"tags": ["remove-input"]}))  # one without source is dropped
                at = next(j for j, o in enumerate(rest) if o is output)
                cells[-2].outputs, rest = rest[:at], rest[at:]
                cells[-1].outputs = rest
            more = f" ({i + 1} of {len(shown)})" if len(shown) > 1 else ""
            self.exhibit(cells[-1], output, caption + more)
        for output in cell.outputs if not caption else []:
            output.get("data", {}).pop(exhibits.MIME, None)
        return cells

    def exhibit(self, cell, output, caption: str) -> None:
        kind, caption = kind_of(output), caption + seeds_of(output)
        of_the_ledger(output, self.reference)
        if "".join(output.get("data", {}).get("text/html", "")).partition("</tr>")[0].count("<th") > WIDE:
            cell.metadata.setdefault("tags", []).append("full-width")
        table = output.data.pop(exhibits.MIME, {"csv": "", "alt": ""})
        self.numbers[kind] += 1
        number = f"{int(self.chapter[:2])}.{self.numbers[kind]}"
        links = self.links
        if table["csv"]:
            path = self.data / f"{self.chapter}-{kind.lower()}-{self.numbers[kind]}.csv"
            path.write_text(table["csv"])
            links = f"[CSV](data/{path.name}) · {links}"
        name = f"{kind.lower()}-{number.replace('.', '-')}"
        cell.metadata["mystnb"] = cell.metadata.get("mystnb", {}) | {
            "figure": {"caption": f"**{kind} {number}.** {caption} {links}", "name": name, "caption_before": kind == "Table", "classes": "exhibit"},
            "image": {"alt": f"{caption} {table['alt']}".strip()},
        }


def seeds_of(output) -> str:
    """Of how many seeds most numbers of a table are its caption says, once, and only the others' cells."""
    text = "".join(output.get("data", {}).get("text/html", ""))
    if not (found := Counter(re.findall(r"\(n=(\d+)\)", text)).most_common()):
        return ""
    seeds, of_all = found[0][0], len(found) == 1
    output.data["text/html"] = re.sub(rf"\s*\(n={seeds}\)", "", text)
    return (" One seed" if seeds == "1" else f" {seeds} seeds") + ("." if of_all else ", where a cell does not say another number (n).")


def of_the_ledger(output, reference: Reference) -> None:
    """A chapter's table of claims has the lines of the whole ledger, whose error rate they share, as its text has."""
    text = "".join(output.get("data", {}).get("text/html", ""))
    if not ("<th>sentence</th>" in text and "<th>verdict</th>" in text):
        return
    tested = claims.table(reference.ledger[reference.ledger.verdict != "not tested"].reset_index())

    def judged(row: re.Match) -> str:
        if row[2] not in tested.index:
            return row[0]
        cells = (f"{v:.2f}" if isinstance(v, float) else html.escape(str(v)) for v in tested.loc[row[2]])
        return row[1] + "".join(f"<td>{v}</td>" for v in cells) + "</tr>"

    text = re.sub(r"(<tr>\s*<th>([\w-]+)</th>)\s*<td>(?:(?!</tr>).)*</tr>", judged, text, flags=re.DOTALL)
    output.data["text/html"] = text.replace('class="dataframe"', 'class="dataframe claims"')
    if handed := output.data.get(exhibits.MIME):
        lines = pd.read_csv(io.StringIO(handed["csv"]), index_col="id")
        known = lines.index.intersection(tested.index)
        handed["csv"] = pd.concat([tested.loc[known], lines.drop(known)]).loc[lines.index].to_csv()


def kind_of(output) -> str:
    data = output.get("data", {})
    text = "".join(data.get("text/html", ""))
    return "Figure" if "image/png" in data or "<script>" in text else "Table" if "<table" in text else ""


def take(cell, word: str) -> str:
    """The comment "# word: ..." at the head of a cell, taken out of its source."""
    if not (found := re.search(r"\A(?:#.*\n)*?" + COMMENT.format(word), cell.source)):
        return ""
    at = cell.source.index(f"# {word}:")
    cell.source = cell.source[:at] + cell.source[found.end() :]
    return re.sub(r"\s*\n#\s+", " ", found[1]).strip()


def fold(cell, said: str) -> None:
    """Collapse what is plumbing: a cell that says so, holds parameters, or only imports."""
    tags = cell.metadata.setdefault("tags", [])
    if {"parameters", "injected-parameters"} & set(tags):
        said = "Parameters" if "parameters" in tags else "Parameters of this run"
    elif all(isinstance(line, ast.Import | ast.ImportFrom | ast.Expr) for line in ast.parse(cell.source).body) and "import " in cell.source:
        said = "Imports"
    if said or "hide-input" in tags:
        cell.metadata["tags"] = [*tags, *(["hide-input"] if "hide-input" not in tags else [])]
        cell.metadata["mystnb"] = {"code_prompt_show": said or "Code", "code_prompt_hide": said or "Code"}


def receipt_text(record: records.Record, reference: Reference, data: Path | None = None) -> str:
    """The receipt of a run, as Markdown; its table as CSV beside the page."""
    runs, said = reference.of(record.chapter), f"on {record.device}, torch {record.versions.get('torch')}, at {record.versions['commit']}"
    text = f"## Receipt\n\nThis page was made by a run of profile {record.profile}, seed {record.seed}, {said}, in {record.wall_s:.0f} s. "
    if record.profile == "smoke":
        return text + "A smoke run shows that the chapter works; its numbers are of no worth."
    if not runs:
        return text + "There is no reference yet: no run of all seeds has been committed for this chapter."
    first, graded = runs[0], records.grade(record, runs)
    counts = graded.grade.value_counts()
    text += f"The reference: {len(runs)} seeds on {first.device}, torch {first.versions.get('torch')}, at {first.versions['commit']}. "
    if record.chapter in reference.stale:
        text += "**It was measured with other code or parameters than these.** "
    parts = [("bit-equal", "bit-equal"), ("inside", "inside its interval"), ("different", "different"), ("timed", "of a clock"), ("new", "new")]
    text += f"Of {len(graded)} numbers " + ", ".join(f"{counts.get(grade, 0)} {said}" for grade, said in parts) + ". "
    if data is None:
        return text
    graded.to_csv(data / f"{record.chapter}-receipt.csv", index=False)
    worst = graded[graded.grade == "different"]
    named = f" Different: {', '.join(f'`{m}`' for m in worst.metric[:12])}{' and others' if len(worst) > 12 else ''}." if len(worst) else ""
    return text + f"[Each number (CSV)](data/{record.chapter}-receipt.csv).{named}"


def whole_receipt(made: list[records.Record], reference: Reference) -> str:
    """The receipt of the book: a line a chapter."""
    lines = ["# Receipt", "", "What the runs behind these pages say beside the committed reference, chapter by chapter.", ""]
    lines += ["| chapter | run | reference | bit-equal | inside | different | of a clock | new |", "|---|---|---|---|---|---|---|---|"]
    for record in made:
        runs = reference.of(record.chapter)
        counts = records.grade(record, runs).grade.value_counts() if runs and record.profile != "smoke" else {}
        who = f"{len(runs)} seeds, {runs[0].versions['commit']}" + " (other code)" * (record.chapter in reference.stale) if runs else "none yet"
        own = f"{record.profile}, {record.versions['commit']}, {record.device}"
        cells = [str(counts.get(g, 0)) if len(counts) else "-" for g in ("bit-equal", "inside", "different", "timed", "new")]
        lines.append("| " + " | ".join([f"[{record.chapter}](chapters/{record.chapter})", own, who, *cells]) + " |")
    return "\n".join(lines) + "\n"


def record_of(chapter: str, profile: str) -> records.Record | None:
    folder = records.results_folder() / profile if profile in ("smoke", "custom") else BOOK / "runs" / profile
    path = folder / f"{chapter}-s0.json"
    return records.read_record(path) if path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--verify", metavar="RECORD", type=Path, help="a record to be graded by the reference of its profile; nothing is written")
    args = parser.parse_args()
    reference = Reference(REFERENCE_OF.get(args.profile, args.profile))
    if args.verify:
        record = records.read_record(args.verify)
        graded = records.grade(record, reference.of(record.chapter))
        print(graded.to_string(index=False) if len(graded) else "no numbers", "\n\n" + receipt_text(record, reference).partition("\n\n")[2], sep="")
        return
    shutil.rmtree(args.out, ignore_errors=True)
    (args.out / "chapters").mkdir(parents=True)
    for name in ("_toc.yml", "references.bib", *(p.name for p in BOOK.glob("*.md"))):
        shutil.copy(BOOK / name, args.out)
    shutil.copytree(BOOK / "_static", args.out / "_static")
    made = []
    for chapter in sorted(p.stem for p in (BOOK / "chapters").glob("*.ipynb")):
        record = record_of(chapter, args.profile)
        made += [record] if record else []
        Page(chapter, BOOK / "runs" / args.profile / f"{chapter}-s0.ipynb", record, reference, args.out).write()
    (args.out / "receipt.md").write_text(whole_receipt(made, reference))


if __name__ == "__main__":
    main()
