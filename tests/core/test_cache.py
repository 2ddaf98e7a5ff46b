"""What is stored by content: what its key depends on, and on nothing else."""

import ast

import numpy as np
import pytest
import torch

from georeps.core import cache


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of three modules, `a` imports `b` inside a function, `b` imports `c`; nothing imports `d`."""
    root = tmp_path / "georeps"
    (root / "core").mkdir(parents=True)
    texts = {
        "a": "def f():\n    from georeps.core import b\n    return b.g()\n",
        "b": "from georeps.core import c\n\ndef g():\n    return c.X\n",
        "c": "X = 1\n",
        "d": "",
    }
    for name, text in texts.items():
        (root / "core" / f"{name}.py").write_text(text)
    monkeypatch.setattr(cache, "PACKAGE", root)
    return root / "core"


def code(*modules: str) -> str:
    return cache.code.__wrapped__(*(f"georeps.core.{m}" for m in modules))


def test_the_hash_of_code_follows_imports_and_ignores_comments_docstrings_and_layout(package):
    before = code("a")
    (package / "c.py").write_text('"""What c is."""\n# a comment\nX  =  (\n    1\n)\n')
    (package / "d.py").write_text("Y = 2\n")
    assert code("a") == before
    (package / "c.py").write_text("X = 2\n")
    assert code("a") != before and code("a") != code("b")


def test_modules_left_out_do_not_count_nor_what_only_they_import(package):
    assert set(cache.sources(["georeps.core.a"])) == {"georeps.core.a", "georeps.core.b", "georeps.core.c"}
    assert set(cache.sources(["georeps.core.a"], without={"georeps.core.b"})) == {"georeps.core.a"}


def test_the_hash_of_code_depends_on_the_versions_of_libraries():
    assert cache.code("georeps.core.sphere") != cache.code("georeps.core.sphere", libraries=("torch",))


def test_what_is_no_module_is_named():
    with pytest.raises(ValueError, match="modules: expected modules of georeps, found 'georeps.nowhere'"):
        cache.code("georeps.nowhere")


def test_imports_are_found_as_modules_and_as_names_of_modules():
    tree = ast.parse("from georeps.core import search, sphere\nfrom georeps.core.moments import Moments\nimport georeps.nets.train\nimport torch")
    assert cache.imported(tree) == {"georeps.core.search", "georeps.core.sphere", "georeps.core.moments", "georeps.nets.train"}


def test_a_digest_depends_on_values_shapes_types_and_order():
    x = torch.arange(6.0)
    found = [cache.digest(*t) for t in ((x,), (x.view(2, 3),), (x.int(),), (x + 1,), (x, x + 1), (x + 1, x))]
    assert len(set(found)) == len(found) and cache.digest(x.clone()) == found[0]


def test_arrays_are_built_once_and_mapped(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_CACHE", str(tmp_path))
    built = []
    for _ in range(2):
        found = cache.cached("thing", {"v": 1}, lambda: built.append(1) or {"x": np.arange(3)})["x"]
    assert len(built) == 1 and isinstance(found, np.memmap) and not found.flags.writeable
