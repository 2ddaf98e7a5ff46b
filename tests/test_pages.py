"""From a run to its page: captions and folds, exhibits of a cell, sentences that speak from the records, receipts."""

import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat import v4

from georeps.lab import claims, exhibits, records

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("pages", ROOT / "book" / "pages.py")
pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pages)


def cell(source, *outputs, tags=()):
    return v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})


def shown(csv="a\n1\n", **data):
    return v4.new_output("display_data", data | {exhibits.MIME: {"csv": csv, "alt": "1 rows."}})


PICTURE, TABLE = {"image/png": "aGk="}, {"text/html": "<table><tr><td>1</td></tr></table>"}


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page of chapter 02 made of given cells."""

    def made(*cells, profile="smoke", reference=None):
        run = records.Run("02_search", profile=profile, seed=0, device="cpu", parameters={})
        run["a.r1"] = 1.0
        monkeypatch.setenv("GEOREPS_LIVE", str(tmp_path / "runs"))
        record = records.read_record(run.save())
        nbformat.write(v4.new_notebook(cells=list(cells)), tmp_path / "run.ipynb")
        out = tmp_path / "source"
        pages.Page("02_search", tmp_path / "run.ipynb", record, reference or pages.Reference("nowhere"), out).write()
        return nbformat.read(out / "chapters" / "02_search.ipynb", as_version=4).cells, out / "chapters"

    return made


def test_a_captioned_picture_gets_number_caption_alternative_text_and_links(page):
    (first, second, *_), folder = page(cell("# caption: What is seen,\n#   and of what.\nplot()", shown(**PICTURE)), cell("# caption: B.\nt", shown(**TABLE)))
    figure, image = first.metadata.mystnb.figure, first.metadata.mystnb.image
    assert first.source == "plot()" and figure.name == "figure-2-1" and image.alt == "What is seen, and of what. 1 rows."
    assert figure.caption.startswith("**Figure 2.1.** What is seen, and of what. [CSV](data/02_search-figure-1.csv)")
    assert second.metadata.mystnb.figure.caption.startswith("**Table 2.1.** B.") and second.metadata.mystnb.figure.caption_before
    for link in re.findall(r"\]\((data/[^)]+)\)", figure.caption):
        assert (folder / link).is_file(), link
    assert (folder / "data" / "02_search-figure-1.csv").read_text() == "a\n1\n" and exhibits.MIME not in first.outputs[0].data


def test_each_of_several_exhibits_of_a_cell_stands_alone(page):
    text = v4.new_output("stream", text="hello")
    (first, second, third, *_), _ = page(cell("# caption: A.\nx", text, shown(**PICTURE), shown(**PICTURE), shown(**TABLE)))
    assert [len(c.outputs) for c in (first, second, third)] == [2, 1, 1] and "remove-input" in second.metadata.tags
    captions = [c.metadata.mystnb.figure.caption for c in (first, second, third)]
    assert [c.partition(" [")[0] for c in captions] == ["**Figure 2.1.** A. (1 of 3)", "**Figure 2.2.** A. (2 of 3)", "**Table 2.1.** A. (3 of 3)"]


@pytest.mark.parametrize(
    "counts, said", [((5, 5), "A. 5 seeds."), ((1, 1), "A. One seed."), ((5, 1), "A. 5 seeds, where a cell does not say another number (n)."), ((), "A.")]
)
def test_a_table_says_once_of_how_many_seeds_all_its_numbers_are(page, counts, said):
    cells = "".join(f"<td>3.0\u00a0±\u00a02.0 (n={n})</td>" for n in counts)
    (first, *_), _ = page(cell("# caption: A.\nt", shown(**TABLE | {"text/html": f"<table>{cells}</table>"})))
    assert first.metadata.mystnb.figure.caption.partition(" [")[0] == f"**Table 2.1.** {said}"
    assert ("(n=" in first.outputs[0].data["text/html"]) == (len(set(counts)) == 2)


def test_plumbing_is_folded_under_what_it_does(page):
    cells = [cell("import a\n\na.style()"), cell("seed: int = 0", tags=["parameters"]), cell("# fold: Draws it\nx = 1"), cell("x = 2")]
    found, _ = page(*cells)
    assert [c.metadata.get("mystnb", {}).get("code_prompt_show") for c in found[:4]] == ["Imports", "Parameters", "Draws it", None]
    assert ["hide-input" in c.metadata.tags for c in found[:4]] == [True, True, True, False] and found[2].source == "x = 1"


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """A reference of five seeds in which exact search is as fast as faiss."""
    monkeypatch.setenv("GEOREPS_RESULTS", str(tmp_path / "results"))
    for seed in range(5):
        run = records.Run("02_search", profile="laptop", seed=seed, device="cpu", parameters={"seeds": 5})
        run["search.speed.topk.ratio"], run["a.r1"] = 0.9 + 0.01 * seed, 1.0 + seed
        run.save()
    return pages.Reference("laptop")


def test_sentences_say_verdict_margin_and_seeds_and_lead_to_the_ledger_and_back(page, reference):
    text = "It is: {verdict}`exact-search-is-as-fast-as-faiss`, {measured}`a.r1`; {verdict}`safa-beats-siamese-same-area`."
    (said, *_), _ = page(v4.new_markdown_cell(text), reference=reference)
    assert 'id="said-exact-search-is-as-fast-as-faiss" href="14_claims.html#claim-exact-search-is-as-fast-as-faiss">holds</a> (+0.18, +0.16' in said.source
    assert "5 seeds)" in said.source and ", 3.00\u00a0±\u00a01.96; " in said.source and ">no reference yet</a>." in said.source
    assert reference.sentence("said", "exact-search-is-as-fast-as-faiss", "14_claims") == (
        ' Said in <a href="02_search.html#said-exact-search-is-as-fast-as-faiss">chapter 2</a>.'
    )


def test_a_chapter_s_table_of_claims_has_the_lines_of_the_ledger(reference):
    tested, other = "exact-search-is-as-fast-as-faiss", "safa-beats-siamese-same-area"
    ledger = claims.evaluate(ROOT / "book" / "claims.yml", reference.runs[:3]).set_index("id", drop=False)
    own = claims.table(ledger.loc[[other, tested]])
    output = v4.new_output("display_data", data={"text/html": own.to_html(), exhibits.MIME: {"csv": own.to_csv(), "alt": ""}})
    pages.of_the_ledger(output, reference)
    rows = dict(re.findall(r"<th>([\w-]+)</th>(.*?)</tr>", output.data["text/html"].split("<tbody>")[1], flags=re.DOTALL))
    assert rows[tested].endswith("<td>0.18</td><td>0.16</td><td>0.20</td><td>5</td><td>holds</td>") and "<td>not tested</td>" in rows[other]
    assert 'class="dataframe claims"' in output.data["text/html"]
    csv = output.data[exhibits.MIME]["csv"].splitlines()
    assert csv[1].startswith(other) and csv[2].startswith(tested) and csv[2].endswith("0.18,0.16,0.2,5,holds")


def test_a_paper_s_number_comes_with_its_table_and_unknown_names_are_named(reference):
    assert reference.sentence("paper", "pretraining.siamese.cross.s7.r1", "04") == "7.35 (thesis, Table 4.4)"
    for role, name in (("verdict", "no-such-claim"), ("paper", "no.such.metric")):
        with pytest.raises(SystemExit, match=f"04: {{{role}}}`{name}`: expected"):
            reference.sentence(role, name, "04")


def test_every_role_of_the_chapters_names_what_is_there():
    reference = pages.Reference("nowhere")
    for path in sorted((ROOT / "book" / "chapters").glob("*.ipynb")):
        for c in json.loads(path.read_text())["cells"]:
            for role, name in pages.ROLE.findall("".join(c["source"]) if c["cell_type"] == "markdown" else ""):
                reference.sentence(role, name, path.stem)


def test_a_receipt_names_both_sides_and_counts(page, reference):
    (*_, receipt), folder = page(cell("x"), profile="laptop", reference=reference)
    assert "The reference: 5 seeds on cpu" in receipt.source and "**It was measured with other code or parameters than these.**" in receipt.source
    assert "Of 1 numbers 1 bit-equal, 0 inside its interval, 0 different" in receipt.source
    assert pd.read_csv(folder / "data" / "02_search-receipt.csv").grade.tolist() == ["bit-equal"]
    none, _ = page(cell("x"), profile="laptop")
    assert "There is no reference yet" in none[-1].source
