"""The shape of the project: import order, sizes, the environment files, committed notebooks."""

import ast
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "georeps").rglob("*.py"))
ORDER = (  # a module imports only from an earlier line
    ("kernels",),
    ("sphere", "losses", "pooling", "adaln"),
    ("search", "encoders", "vmf", "flow", "metrix", "moco", "variants"),
    ("metrics", "crossview", "progeo", "backbones", "dino", "localization"),
    ("composed", "geolocation"),
    ("data", "train", "study", "sharded", "embeddings"),
    ("plots", "pretraining", "clip", "slider", "speed"),
    ("atlas", "worldmap"),
    ("maps",),
)


def top_module(path: Path) -> str:
    return path.relative_to(ROOT / "georeps").parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "georeps":
            below = node.module.split(".")[1:]
            names |= {below[0]} if below else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("georeps.")}
    return names


def level(module: str) -> int:
    return next(i for i, names in enumerate(ORDER) if module in names)


@pytest.mark.parametrize("path", [p for p in PACKAGE if top_module(p) != "__init__"], ids=lambda p: p.stem)
def test_a_module_imports_only_from_its_left(path):
    own = top_module(path)
    for other in imported(path) - {own}:
        assert level(other) < level(own), f"{own} imports {other}"


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


def test_constraints_are_exact_versions_without_addresses():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line), line


def test_every_requirement_is_held_by_a_constraint():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    held = {re.sub(r"[._-]+", "-", line.split("==")[0]).lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for requirement in (r for group in groups for r in group):
        name = re.sub(r"[._-]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()
        assert name in held, requirement


def test_conda_users_get_the_same_package_under_the_same_constraints():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["--constraint constraints.txt", f"--editable .[{','.join(project['optional-dependencies'])}]"]
    assert any(d.startswith(f"python{project['requires-python']}") for d in environment["dependencies"] if isinstance(d, str))
    install = re.search(r"uv pip install .*", (ROOT / "Makefile").read_text())[0]
    assert "-c constraints.txt" in install and "-e '.[book,test]'" in install


def chapters() -> list[Path]:
    return sorted((ROOT / "book" / "chapters").glob("*.ipynb"))


@pytest.mark.parametrize("path", chapters(), ids=lambda p: p.stem)
def test_chapters_are_committed_with_outputs_and_smoke_parameters(path):
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code), "a cell without execution count is run but never compared by nbval"
    assert not any(o.get("name") == "stderr" or o.output_type == "error" for c in code for o in c.outputs)
    assert "widgets" not in notebook.metadata
    assert max(len(c.source.splitlines()) for c in code if "parameters" not in c.metadata.get("tags", [])) <= 20
    assert max(len(line) for c in code if "parameters" not in c.metadata.get("tags", []) for line in c.source.splitlines()) <= 80
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
