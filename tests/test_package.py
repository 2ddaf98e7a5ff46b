"""The shape of the project: import order, sizes, the environment files, committed notebooks."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

import georeps
from georeps.core import cache

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "georeps").rglob("*.py"))
HOUSE = {  # a folder -> those it imports from, beside itself
    "core": (), "nets": ("core",), "papers": ("core", "nets"), "worlds": ("core",), "readers": ("core", "worlds"),
    "tasks": ("core", "nets", "papers", "worlds", "readers"), "lab": ("core", "nets", "papers", "worlds", "readers", "tasks"),
}  # fmt: skip


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in PACKAGE}


def imports(module: str) -> set[str]:
    return cache.imported(ast.parse(MODULES[module].read_text())) - {module}


def test_no_module_stays_at_the_root_and_folders_are_those_of_the_map():
    assert {path.name for path in (ROOT / "georeps").glob("*.py")} == {"__init__.py"}
    assert {path.parent.name for path in (ROOT / "georeps").glob("*/__init__.py")} == set(HOUSE)


@pytest.mark.parametrize("module", [m for m in MODULES if m != "georeps"])
def test_a_module_imports_only_from_the_folders_above_its_own(module):
    own = module.split(".")[1]
    for other in imports(module):
        assert [*other.split("."), ""][1] in (own, *HOUSE[own]), f"{module} imports {other}"


def test_no_modules_import_each_other_in_a_circle():
    """A package's __init__ and the modules beside it count apart: what an import runs first is Python's affair, what depends on what is ours."""
    graphlib.TopologicalSorter({module: imports(module) for module in MODULES}).prepare()


def test_the_map_has_a_line_for_every_module_in_its_folder():
    mapped, folder = set(), ""
    for line in georeps.__doc__.splitlines():
        if head := re.match(r"(\w+)/ ", line):
            folder = head[1]
        elif entry := re.match(r"    ([\w, /]+?)  +(.*)", line):
            names = [name.strip(" /") for name in entry[1].split(",")]
            mapped |= {f"georeps.{folder}.{name}" for name in names}
            if entry[1].endswith("/"):  # a folder of modules, which its line names
                mapped |= {m for m in MODULES if m.startswith(f"georeps.{folder}.{names[0]}.") and re.search(rf"\b{m.split('.')[-1]}\b", entry[2])}
    assert mapped == {m for m in MODULES if m.count(".") > 1}


def test_nothing_heavy_is_imported_before_it_is_used():
    """What costs a kernel seconds: a chapter that does not draw or train with it does not wait for it."""
    heavy = {"open_clip", "timm", "torchvision", "transformers", "sklearn", "playwright", "faiss", "matplotlib", "seaborn", "snakemake"}
    modules = ", ".join(m for m in MODULES if not m.endswith("kernels.report"))
    run = subprocess.run([sys.executable, "-c", f"import sys, {modules}; print(*sys.modules)"], capture_output=True, text=True, check=True)
    assert not heavy & set(run.stdout.split())


def test_tests_mirror_the_folders():
    for path in (ROOT / "tests").glob("*/test_*.py"):
        assert path.parent.name in HOUSE, path


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small_and_open_with_what_they_are(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 450
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
            if not node.name.startswith("_") and node in tree.body:
                assert ast.get_docstring(node), f"{node.name} has no docstring"


def locked() -> dict[str, str]:
    """The lock's entries by package: a version, a marker, hashes."""
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text().strip())
    return {re.sub(r"[._-]+", "-", entry.split("==")[0]).lower(): entry for entry in entries}


def test_the_lock_holds_exact_versions_with_hashes_and_no_address():
    for entry in locked().values():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry[:200]


def test_every_requirement_is_locked():
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, groups = whole["project"], whole["dependency-groups"]
    for requirement in (r for group in [project["dependencies"], *project["optional-dependencies"].values(), *groups.values()] for r in group):
        assert re.sub(r"[._-]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower() in locked(), requirement


def test_conda_users_get_what_is_locked():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any(d.startswith(f"python{project['requires-python']}") for d in environment["dependencies"] if isinstance(d, str))
    for file in ("Makefile", "environment.yml"):
        assert "--no-deps --require-hashes -r requirements.lock" in (ROOT / file).read_text()


def chapters() -> list[Path]:
    return sorted((ROOT / "book" / "chapters").glob("*.ipynb"))


@pytest.mark.parametrize("path", chapters(), ids=lambda p: p.stem)
def test_chapters_are_committed_with_outputs_and_smoke_parameters(path):
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code), "a cell without execution count is run but never compared by nbval"
    assert not any(o.get("name") == "stderr" or o.output_type == "error" for c in code for o in c.outputs)
    assert "widgets" not in notebook.metadata
    bare = [re.sub(r"\A(#.*\n)+", "", c.source) for c in code if "parameters" not in c.metadata.get("tags", [])]  # without caption and fold
    assert max(len(source.splitlines()) for source in bare) <= 20
    assert max(len(line) for c in code if "parameters" not in c.metadata.get("tags", []) for line in c.source.splitlines()) <= 88
    tagged = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1 and "hide-input" in tagged[0].metadata.tags
    lines = tagged[0].source.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["profile", "seed", "device", "data_root"]
    assert lines[0].startswith('profile: str = "smoke"')
    defaults = {node.target.id: ast.literal_eval(node.value) for node in ast.parse(tagged[0].source).body}
    smoke = yaml.safe_load((ROOT / "book" / "params" / f"{path.stem}.yml").read_text())["smoke"] or {}
    assert {k: defaults[k] for k in smoke} == smoke, "the notebook's defaults are the smoke profile"


@pytest.mark.parametrize("path", chapters(), ids=lambda p: p.stem)
def test_every_profile_names_only_parameters_of_its_chapter(path):
    source = next(c.source for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", []))
    names = {node.target.id for node in ast.parse(source).body}
    profiles = yaml.safe_load((ROOT / "book" / "params" / f"{path.stem}.yml").read_text())
    assert list(profiles) == ["smoke", "laptop", "gpu", "paper"]
    for values in profiles.values():
        assert set(values or {}) <= names


def test_the_toc_lists_every_chapter():
    toc = (ROOT / "book" / "_toc.yml").read_text()
    assert re.findall(r"file: chapters/(\w+)", toc) == [p.stem for p in chapters()]


def test_nothing_needs_the_workplace():
    this = Path(__file__)
    for path in (p for folder in ("georeps", "book", "tests") for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".ipynb", ".md", ".yml")):
        if path != this and "runs" not in path.parts:
            assert "../shared" not in path.read_text(), path


def test_the_readme_s_examples_run():
    """On fewer places than they name."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(examples) == 2
    shared = {}
    for code in examples:
        exec(code.replace("n=200", "n=8"), shared)
    assert len(shared["ranks"]) == 8 and shared["features"].shape[1] == 496
