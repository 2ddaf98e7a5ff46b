"""The chapters as runs: what a broken or a changed one does, what the smoke runs recorded, and runs on a reader's own data.

`make test` makes the smoke runs first and names their book in GEOREPS_SMOKE_BOOK; without it the tests of these runs say so and skip.
"""

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat import v4
from PIL import Image

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"


def python(*arguments, cwd=ROOT, **environment) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, env=os.environ | environment, check=False)


@pytest.fixture(scope="module")
def smoke(smoke_book):
    """metric -> value of the smoke runs that `make test` just made."""
    from georeps.lab import records

    return {m: v[0] for m, v in records.values(records.records("smoke")).items()}


@pytest.fixture
def small_book(tmp_path):
    """A book of one chapter, whose second code cell divides by its parameter."""
    cells = [
        v4.new_code_cell('profile: str = "smoke"\nseed: int = 0\ndivisor: int = 1', metadata={"tags": ["parameters", "hide-input"]}),
        v4.new_code_cell("print(6 // divisor)"),
    ]
    book = tmp_path / "book"
    for folder in ("chapters", "params"):
        (book / folder).mkdir(parents=True)
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(v4.new_notebook(cells=cells, metadata=kernel), book / "chapters" / "01_small.ipynb")
    (book / "params" / "01_small.yml").write_text("smoke: {}\nlaptop: {divisor: 0}\ngpu: {divisr: 1}\n")
    for name in ("execute.py", "sanitize.cfg"):
        shutil.copy(BOOK / name, book)
    return book


def test_a_chapter_that_raises_is_named_kept_apart_and_leaves_no_page(small_book):
    run = python(small_book / "execute.py", "01", "--profile", "laptop")
    assert run.returncode == 1
    assert "chapter 01_small (laptop, seed 0) FAILED in cell" in run.stderr and "ZeroDivisionError" in run.stderr
    assert "book/runs/failed/01_small-s0-laptop.ipynb" in run.stderr
    assert (small_book / "runs/failed/01_small-s0-laptop.ipynb").is_file()
    assert not (small_book / "runs/laptop/01_small-s0.ipynb").exists()


def test_no_recipe_for_a_laptop_asks_for_16_bits(monkeypatch):
    from georeps.lab import clip, records, trained
    from georeps.nets import train

    chapters = [p.stem for p in (BOOK / "params").glob("*.yml")]
    asked = {(c, profile): records.parameters_of(c, profile).get("amp", "off") for c in chapters for profile in ("smoke", "laptop")}
    assert set(asked.values()) == {"off"}, asked
    recipes = []
    monkeypatch.setattr(train, "half_units", lambda amp: False)
    monkeypatch.setattr(trained, "once", lambda *_, recipe, **__: recipes.append(recipe) or sys.exit())
    with pytest.raises(SystemExit):
        clip.small(tiles=2, epochs=1)
    assert recipes[0].amp == "off"


def test_a_chapter_that_succeeds_shows_its_position_and_its_parameters(small_book):
    run = python(small_book / "execute.py", "01", "--profile", "smoke", "-p", "divisor=2")
    assert run.returncode == 0, run.stderr
    assert "chapter 1 of 1: 01_small (custom, seed 0)" in run.stderr
    cells = nbformat.read(small_book / "runs/custom/01_small-s0.ipynb", as_version=4).cells
    assert [c.metadata.tags[0] for c in cells[:2]] == ["parameters", "injected-parameters"] and cells[-1].outputs[0].text == "3\n"
    assert 'profile = "custom"' in cells[1].source, "a run with parameters of its own is no part of a profile"


def test_a_change_that_moves_no_number_costs_one_seed_and_one_that_does_is_refused(small_book):
    path, results = small_book / "chapters" / "01_small.ipynb", small_book / "results" / "laptop"
    (small_book / "_toc.yml").touch()
    (small_book / "params" / "01_small.yml").write_text("laptop: {seeds: 3}\n")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += '\nseeds: int = 1\ndevice: str = "cpu"'
    notebook.cells[1].source = """from georeps.lab import records

run = records.Run.of("01_small", globals())
run.outcomes("small.r1", [100.0 * (seed > 0), 6 // divisor])
run["small.gone"] = 1.0
run.save()"""
    nbformat.write(notebook, path)
    for seed in (0, 1):
        assert python(small_book / "execute.py", "01", "--seed", seed, "--reference").returncode == 0
    before = {p.name: p.read_bytes() for p in results.iterdir()}
    change(path, 1, "source", "6 //", "7 //")
    run = python(small_book / "execute.py", "01", "--seed", "1", "--restamp")
    said = ("01_small: 2 of 2 numbers of seed 1 moved or are new (0), small.r1 first; see ", ": make records CHAPTER=01")
    assert run.returncode != 0 and all(part in run.stderr for part in said), run.stderr
    assert {p.name: p.read_bytes() for p in results.iterdir()} == before
    found = json.loads((small_book / "runs" / "reference" / "laptop" / "01_small-s1.json").read_text())
    assert found["metrics"]["small.r1"] == 53.5 and (small_book / "runs/reference/laptop/01_small-s1.npz").is_file()
    change(path, 1, "source", "7 //", "3 + 3 //")
    change(path, 1, "source", 'run[\\"small.gone\\"] = 1.0', "")
    run = python(small_book / "execute.py", "01", "--seed", "1", "--restamp")
    assert run.returncode == 0 and "01_small-s0.json: no number moved" in run.stderr, run.stderr
    old, (first, second) = json.loads(before["01_small-s0.json"]), (json.loads((results / f"01_small-s{s}.json").read_text()) for s in (0, 1))
    assert first["code"] == second["code"] != old["code"] == first["versions"]["numbers of code"] and first["versions"]["the same by seed"] == "1"
    assert first["metrics"] == {"small.r1": old["metrics"]["small.r1"]} and (results / "01_small-s0.npz").read_bytes() == before["01_small-s0.npz"]
    run = python(small_book / "execute.py", "01", "--seed", "2", "--restamp")
    assert run.returncode != 0 and "found none of seed 2" in run.stderr
    run = python(small_book / "execute.py", "01", "--seed", "1", "--restamp")
    assert run.returncode != 0 and "expected a record of older code, found that of seed 1 to be of today's" in run.stderr
    (small_book / "params" / "01_small.yml").write_text("laptop: {seeds: 3, searching: 1}\n")
    (results / "01_small-s1.json").write_text(json.dumps(second | {"parameters": second["parameters"] | {"searching": 1}}))
    run = python(small_book / "execute.py", "01", "--seed", "1", "--restamp")
    assert run.returncode != 0 and "expected one that searches, 0..0" in run.stderr


def test_data_of_one_s_own_does_not_replace_a_profile_s_run(small_book):
    path = small_book / "chapters" / "01_small.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += '\ndata_root: str = ""'
    nbformat.write(notebook, path)
    run = python(small_book / "execute.py", "01", "--profile", "smoke", "--data-root", small_book)
    assert run.returncode == 0, run.stderr
    assert (small_book / "runs/custom/01_small-s0.ipynb").is_file() and not (small_book / "runs/smoke").exists()
    refused = python("-m", "snakemake", "-n", "--config", "profile=laptop", "data_root=/own", "out=_build/none")
    assert refused.returncode != 0 and "data_root: a whole book on your own data" in refused.stderr + refused.stdout


def test_jobs_side_by_side_take_one_gpu_each(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("execute", BOOK / "execute.py")
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    monkeypatch.setattr(runner, "list_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(runner.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with runner.one_gpu("gpu"):
        first = os.environ.pop("CUDA_VISIBLE_DEVICES")
        with runner.one_gpu("gpu"):
            assert {first, os.environ["CUDA_VISIBLE_DEVICES"]} == {"0", "1"}
    with runner.one_gpu("laptop"):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_unknown_chapters_profiles_and_parameters_are_named(small_book):
    for arguments, message in (
        (["07"], "chapter: expected one of 01_small or its number, found '07'"),
        (["01", "--profile", "huge"], "01_small.yml has profiles smoke, laptop, gpu; found 'huge'"),
        (["01", "--profile", "gpu"], "gpu: 01_small has no parameter named divisr"),
        (["01", "--profile", "smoke", "-p", "clipp=3"], "-p: 01_small has no parameter named clipp"),
        (["01", "-p", "divisor"], "expected NAME=VALUE, found 'divisor'"),
    ):
        run = python(small_book / "execute.py", *arguments)
        assert run.returncode != 0 and message in run.stderr, run.stderr


def test_a_kernel_that_dies_is_a_chapter_that_failed(small_book):
    path = small_book / "chapters" / "01_small.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = "import os; os._exit(1)"
    nbformat.write(notebook, path)
    run = python(small_book / "execute.py", "01", "--profile", "smoke")
    assert run.returncode == 1 and "chapter 01_small (smoke, seed 0) FAILED" in run.stderr
    assert not (small_book / "runs/smoke/01_small-s0.ipynb").exists()


def test_snakemake_plans_a_page_a_chapter_and_for_the_reference_every_seed():
    book = python("-m", "snakemake", "-n", "--forceall", "--config", "profile=laptop", "out=_build/none")
    records = python("-m", "snakemake", "-n", "--forceall", "--config", "profile=laptop", "only=", "--", "records")
    one = python("-m", "snakemake", "-n", "--forceall", "--config", "profile=laptop", "only=02", "--", "records")
    for plan in (book, records, one):
        assert plan.returncode == 0, plan.stderr[-2000:]
    assert re.search(r"chapter +14\b", book.stdout) and "reference " not in book.stdout
    seeds = [yaml.safe_load(p.read_text())["laptop"].get("seeds", 1) for p in sorted((BOOK / "params").glob("*.yml")) if p.stem != "14_claims"]
    assert re.search(rf"reference +{sum(seeds)}\b", records.stdout) and re.search(r"reference +10\b", one.stdout)
    for plan in (book, records):
        assert re.search(r"features +4\b", plan.stdout) and re.search(r"located +1\b", plan.stdout), "what towers see, once a world"
        assert re.search(r"clip +1\b", plan.stdout), "one small CLIP for all who ask it"
        assert re.search(r"drives +1\b", plan.stdout), "one set of pictures for all seeds of chapter 10"


def test_snakemake_refuses_an_unknown_profile():
    run = python("-m", "snakemake", "-n", "--config", "profile=huge", "out=_build/none")
    assert run.returncode != 0 and "found 'huge'" in run.stderr + run.stdout


TABLE = 'import pandas as pd\n\npd.DataFrame({"R@1": [51.5, 76.0]}, index=["frozen", "trained"])'


def change(path, cell: int, part: str, old: str, new: str) -> None:
    """In a cell's "source" or its stored "outputs"."""
    notebook = nbformat.read(path, as_version=4)
    text = json.dumps(notebook.cells[cell][part])
    assert old in text
    notebook.cells[cell][part] = nbformat.from_dict(json.loads(text.replace(old, new)))
    nbformat.write(notebook, path)


@pytest.mark.long
def test_a_broken_chapter_a_changed_number_and_a_changed_table_cell_fail_and_leave_no_page(small_book):
    path, page = small_book / "chapters" / "01_small.ipynb", small_book / "runs" / "smoke" / "01_small-s0.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(v4.new_code_cell(TABLE))
    nbformat.write(notebook, path)
    assert python(small_book / "execute.py", "01", "--refresh").returncode == 0
    whole = path.read_text()
    run = python(small_book / "execute.py", "01", "--check")
    assert run.returncode == 0 and "3 passed" in run.stdout, run.stdout
    assert nbformat.read(page, as_version=4).cells[1].outputs[0].text == "6\n" and "76.0" in page.read_text()
    for *where, said in (
        (1, "outputs", "6", "7", "Cell 1"), (2, "outputs", "76.0", "76.1", "Cell 2"), (1, "source", "6 //", "1 / 0 //", "ZeroDivisionError"),
    ):  # fmt: skip
        path.write_text(whole)
        change(path, *where)
        run = python(small_book / "execute.py", "01", "--check")
        assert run.returncode == 1 and said in run.stdout, run.stdout
        assert not page.exists()


def test_smoke_records_keep_their_bounds(smoke):
    recalls = {m: v for m, v in smoke.items() if ".r1" in m or ".r5" in m or ".r10" in m}
    assert len(recalls) > 20 and all(0 <= v <= 100 for v in recalls.values())
    for m, v in smoke.items():
        if m.endswith(".r1"):
            assert v <= smoke[m[:-2] + "r5"] if m[:-2] + "r5" in smoke else True


def test_places_of_the_smoke_run_are_found_as_often_as_the_ranks_say(smoke):
    for row in ("zero_shot", "untrained", "both", "depth0"):
        for condition in ("day", "night", "winter", "construction", "all"):
            r = [smoke[f"progeo.{row}.{condition}.r{k}"] for k in (1, 5, 10, 20)]
            assert r == sorted(r)
    assert smoke["progeo.untrained.day.r20"] > 40, "a start that knows nothing is right by chance one time in four"
    assert 0 < smoke["progeo.cost.stage1.share"] < 1 and smoke["progeo.cost.both.memory"] >= 1


def test_densities_of_the_smoke_run_are_densities(smoke):
    assert smoke["density.integral.projected.mass"] == pytest.approx(1, abs=0.02)
    assert smoke["density.speed.nll_apart"] < 0.05 and 0 <= smoke["density.sphere.within90"] <= 100
    assert all(0 <= v <= 5000 for m, v in smoke.items() if m.endswith("geoscore"))


def test_the_pretrained_tower_sees_more_than_floors_even_in_the_smoke_run(smoke):
    """Ten places six times each, 38 classes in other styles, 30 tiles for 30 panoramas."""
    for task in ("places_at_other_times", "the_same_in_other_styles", "class_and_value"):
        right = {floor: smoke[f"worlds.floors.{task}.{floor}.r1"] for floor in ("frozen", "histogram", "thumbnail", "untrained")}
        assert right["frozen"] > max(right["histogram"], right["untrained"]) and right["frozen"] > 25, task


def test_the_search_chapter_found_what_it_says(smoke):
    assert smoke["search.collapsed.strict.r1"] == 100 and smoke["search.collapsed.here.r1"] == 0
    precision = {k: smoke[f"search.precision.{k}.changed_pct"] for k in ("descriptors_fp16", "descriptors_bf16", "scores_fp16", "scores_bf16")}
    assert precision["descriptors_fp16"] < precision["descriptors_bf16"] < precision["scores_bf16"]


def test_pages_of_the_smoke_book_hold_no_widget_and_no_stderr(smoke):
    for path in sorted((BOOK / "runs" / "smoke").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        assert "widgets" not in notebook.metadata
        for cell in notebook.cells:
            if {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", [])):
                assert "hide-input" in cell.metadata.tags
            assert not any(o.get("name") == "stderr" for o in cell.get("outputs", []))


def write_pairs(root):
    from georeps.worlds import earth

    for part in ("train", "test"):
        pairs = earth.pairs(split="cross", part=part, n=40, size=32)
        for name, views in (("ground", pairs.optical), ("satellite", pairs.relief)):
            (root / part / name).mkdir(parents=True)
            for i, image in enumerate(views):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / part / name / f"-place_{i:03d},.png")


def write_patternnet(root):
    from georeps.tasks import export
    from georeps.worlds import patterns

    tiles = patterns.benchmark(scale=0.003)
    export.patterncom(root, tiles, patterns.render(tiles, size=32))


def write_freedom(root):
    """LTLL's list and images, of embedded places."""
    from PIL import Image

    from georeps.worlds import patterns

    tiles = patterns.conversion("places", n=2)
    rows = []
    for i, (tile, image) in enumerate(zip(tiles, patterns.render(tiles, size=32), strict=True)):
        domain, label = {"today": "New", "archive": "Old"}[tile.domain], tile.label.replace(" ", "_")
        path = root / "ltll" / domain / "images" / label / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        rows.append(f"{path.relative_to(root)} {domain} {label}")
    (root / "ltll" / "full_files.csv").write_text("\n".join(rows))


def write_osv5m(root):
    """OSV-5M's tree of embedded patches; a few have no label."""
    from georeps.tasks import export
    from georeps.worlds import earth

    for part, n in (("train", 30), ("test", 12)):
        pairs = earth.pairs(split="blocks", part=part, n=n, size=32, extent_km=120.0)
        export.osv5m(root, part, pairs.optical, pairs.places.latlon, earth.admin_names(pairs.places.latlon))


def write_places(root):
    """A tree of place recognition with one folder of queries."""
    from georeps.tasks import drives

    drives.export(root, tiles=4, size=64, step=16.0, drives=2, queries=6, conditions=("day",))
    for part in ("val", "test"):
        (root / "images" / part / "queries_day").rename(root / "images" / part / "queries")


def write_classes(root, parts=("",)):
    """Class folders of random pictures of a colour a class, one set of them a part."""
    import numpy as np

    rng = np.random.default_rng(0)
    for part in parts:
        for c in range(12):
            (root / part / f"class {c:02d}").mkdir(parents=True)
            for i in range(6):
                pixels = np.clip(rng.normal(20 * c, 30, (20, 20, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / f"class {c:02d}" / f"{i}.png")


def write_tree(root, layout):
    from georeps.tasks import export

    small = {"tiles": 4, "ground": (32, 64), "satellite": 32}
    {"classes": write_classes, "train_val": functools.partial(write_classes, parts=("train", "val")), "patterncom": write_patternnet,
     "freedom": write_freedom, "osv5m": write_osv5m, "pairs": write_pairs,
     "places": write_places, "vigor": functools.partial(export.vigor, **small), "cvact": functools.partial(export.cvact, **small)}[layout](root)  # fmt: skip


def run_chapter(tmp_path, chapter, *parameters) -> dict[str, float]:
    """The metrics of a smoke run of a chapter with parameters of its own, by papermill alone."""
    run = python(
        "-m", "papermill", "--cwd", BOOK, "-k", "python3", "--no-progress-bar", BOOK / "chapters" / f"{chapter}.ipynb", tmp_path / "out.ipynb", *parameters,
        GEOREPS_RESULTS=str(tmp_path / "results"), TQDM_DISABLE="1", OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((tmp_path / "results" / "smoke" / f"{chapter}-s0.json").read_text())["metrics"]


def run_on_own_data(tmp_path, chapter, layout, *parameters) -> dict[str, float]:
    """The metrics of a smoke run of a chapter on a tree of the reader's own."""
    write_tree(tmp_path / "own", layout)
    return run_chapter(tmp_path, chapter, "-p", "data_root", tmp_path / "own", *parameters)


@pytest.mark.long
@pytest.mark.parametrize(("layout", "split"), [("pairs", "own"), ("vigor", "cross"), ("cvact", "same")])
def test_chapter_03_runs_on_a_reader_s_own_tree(tmp_path, layout, split):
    """The path of an owner of VIGOR, CVACT or a folder of pairs, on trees of their form."""
    found = run_on_own_data(tmp_path, "03_crossview", layout, "-p", "layout", layout, "-p", "own_split", split, "-p", "n_val", 8, "-p", "batch", 4)
    assert {f"crossview.{m}.{split}.r1" for m in ("siamese", "safa", "directions_polar")} <= set(found)
    assert ("crossview.grid.plain.hit_published" in found) == ("crossview.grid.plain.within_50m" in found) == (layout == "vigor")
    assert not any(m.startswith(("crossview.offset", "crossview.moment", "crossview.earth")) for m in found), "these need the renderer"


@pytest.mark.long
def test_chapter_04_runs_on_a_tree_of_vigor_s_form(tmp_path):
    found = run_on_own_data(tmp_path, "04_pretraining", "vigor", "-p", "layout", "vigor", "-p", "batch", 4, "-p", "n_val", 4, "-y", "tables: ['4.4', '4.6']")
    wanted = {f"pretraining.siamese.cross.s{n}.r1" for n in range(1, 8)} | {"pretraining.siamese.swapped.s6.r1pct"}
    assert wanted <= set(found) and not any("earth" in m or "leak" in m for m in found)


@pytest.mark.long
def test_chapter_05_runs_on_a_tree_of_vigor_s_form(tmp_path):
    found = run_on_own_data(tmp_path, "05_distribution", "vigor", "-p", "layout", "vigor", "-p", "batch", 4, "-p", "n_val", 4, "-y", "splits: [cross]")
    assert {"distribution.cross.s7.uniformity_all", "distribution.safa.cross.s2.alpha_0p1.r5", "distribution.unified.printed.r1"} <= set(found)


@pytest.mark.long
def test_chapter_08_runs_on_a_tree_of_patterncom_s_form(tmp_path):
    found = run_on_own_data(tmp_path, "08_composed", "patterncom")
    assert {f"attributes.weicom_0p5.{a}" for a in ("color", "context", "density", "existence", "quantity", "shape", "avg")} <= set(found)
    named = {f"attributes.clip.{part}" for part in ("name", "phrase", "held_out", "unheard_name")}
    assert not named & set(found), "no caption is known of a reader's images"


@pytest.mark.long
def test_chapter_09_runs_on_a_tree_of_freedom_s_form(tmp_path):
    found = run_on_own_data(tmp_path, "09_domains", "freedom", "-y", "worlds: [ltll]")
    assert {"domains.ltll.freedom.avg", "domains.ltll.freedom.New", "domains.ltll.memory_database", "domains.ltll.oracle"} <= set(found)


@pytest.mark.long
def test_the_floors_are_set_on_folders_of_classes(tmp_path):
    run_on_own_data(tmp_path, "01_worlds", "classes")
    notebook = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    text = "".join(o.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs)
    assert all(name in text for name in ("chance", "colour histogram", "frozen tower"))


def test_chapter_06_runs_on_a_folder_of_class_folders(tmp_path):
    found = run_on_own_data(tmp_path, "06_metrix", "classes", "-p", "layout", "folders", "-p", "batch", 12, "-p", "each", 3)
    assert {"metrix.classes.contrastive.feature.map_at_r", "metrix.classes.proxy_anchor.clean.r1", "metrix.positivity.trained.gap"} <= set(found)
    assert not any(m.startswith("metrix.instances") for m in found), "a reader's tree is one world"


@pytest.mark.long
def test_chapter_07_runs_on_a_folder_of_train_and_val(tmp_path):
    found = run_on_own_data(tmp_path, "07_pooling", "train_val", "-y", "tournament: [gap, gap_ln, simpool, simpool_plain]")
    assert {"pooling.tournament.simpool.accuracy", "pooling.self_supervised.vit.simpool.knn", "pooling.gamma.frozen.g2_0.accuracy"} <= set(found)
    assert not any(m.startswith(("pooling.boxes", "pooling.background", "pooling.segmentation")) for m in found), "these need boxes and masks"


@pytest.mark.long
def test_chapter_10_runs_on_a_tree_of_the_benchmark_s_form(tmp_path):
    found = run_on_own_data(tmp_path, "10_prompts", "places", "-y", "{rows: [classification, both], depths: [0], token_sweep: [], tokens: 2, prompt_batch: 64}")
    assert {"progeo.zero_shot.test.r1", "progeo.both.all.r20", "progeo.depth0.test.r5", "progeo.text.nearest.accuracy", "progeo.cost.both.memory"} <= set(found)
    assert not any(".night." in m or m.startswith("progeo.prompts.") for m in found)


@pytest.mark.long
def test_chapter_11_runs_on_a_tree_of_osv5m_s_form(tmp_path):
    found = run_on_own_data(tmp_path, "11_geolocation", "osv5m", "-p", "batch", 16)
    assert {"geo.sphere.vote.geoscore", "geo.mixture.nll", "geo.regression.one.country", "geo.guidance.w1.recall"} <= set(found)
    assert not any(m.startswith("geo.cross") for m in found), "a reader's tree has one split"


@pytest.mark.long
def test_chapter_12_reads_the_event_lists(tmp_path):
    from georeps.readers import located

    for name, head in located.EVENTS.values():
        (tmp_path / name).write_text("about\n" * head + "".join(f"{i % 60 - 30}.5,{(37 * i) % 300 - 150}\n" for i in range(120)))
    found = run_chapter(tmp_path, "12_density", "-p", "events_root", tmp_path, "-p", "batch", 32, "-p", "event_epochs", 0.02)
    assert {f"density.events.{m}.{k}" for m in ("sphere", "mixture") for k in located.EVENTS} <= set(found)


NO_MEAN = re.compile(  # over queries: of pairs, of a whole set, a bound over thresholds, a clock's
    r"uniformity|alignment|utilization|similarity|positivity|segmentation|boxes|selection|spearman|miscalibration|integral|^search\.|cost\.|density\.(speed|known)"
    r"|\.(coverage|precision|recall)$"
)
OWN_QUERIES = {"08_composed", "09_domains"}  # each seed draws its own: nothing is crossed, what seeds differ by has the queries' share in it


def test_every_metric_that_a_claim_names_has_its_outcomes_a_query(smoke_book):
    from georeps.lab import claims, records

    recorded = {m: r for r in records.records("smoke") for m in r.metrics}
    ledger = yaml.safe_load((BOOK / "claims.yml").read_text())
    named = set().union(*(claims.metrics_of(c["check"]) | {c["floor"]} - {None} for c in ledger))
    assert len(ledger) >= 200 and len(named & set(recorded)) > 450
    means = {m for m in named & set(recorded) if not NO_MEAN.search(m)}
    assert not sorted(m for m in means if recorded[m].chapter not in OWN_QUERIES and m not in recorded[m].outcomes)
    assert not sorted(m for m in means if recorded[m].chapter in OWN_QUERIES and m in recorded[m].outcomes)


def test_every_floor_that_a_claim_names_is_recorded_where_its_metric_is(smoke_book):
    from georeps.lab import records

    runs = records.records("smoke")
    recorded, floors = {m for r in runs for m in r.metrics}, {m for r in runs for m in r.floors}
    named = {c["floor"] for c in yaml.safe_load((BOOK / "claims.yml").read_text())} - {None}
    assert not sorted(named & recorded - floors)
