"""The exercises: each has a solution, and the python in it runs and holds what it asserts."""

import re
from pathlib import Path

import nbformat
import pytest
import torch

CHAPTERS = sorted((Path(__file__).parents[1] / "book" / "chapters").glob("*.ipynb"))
TEXT = {p.stem: "\n".join(c.source for c in nbformat.read(p, as_version=4).cells if c.cell_type == "markdown") for p in CHAPTERS}
SOLUTION = re.compile(r"^(`{3,})\{solution\} (\S+)\n(.*?)\n\1$", re.MULTILINE | re.DOTALL)
SOLUTIONS = {label: body for text in TEXT.values() for _, label, body in SOLUTION.findall(text)}
CODE = {label: "\n".join(found) for label, body in SOLUTIONS.items() if (found := re.findall(r"^```python\n(.*?)\n```$", body, re.MULTILINE | re.DOTALL))}


def test_every_exercise_has_one_solution_of_its_own():
    exercises = [label for text in TEXT.values() for label in re.findall(r"\{exercise\}\n:label: (\S+)", text)]
    assert len(exercises) == len(set(exercises)) > 25 and sorted(exercises) == sorted(SOLUTIONS)


def test_nearly_every_solution_can_be_run():
    assert len(CODE) >= len(SOLUTIONS) - 1, sorted(set(SOLUTIONS) - set(CODE))


@pytest.mark.parametrize("label", CODE)
def test_a_solution_runs_and_holds(label):
    assert "assert" in CODE[label]
    torch.manual_seed(0)
    exec(compile(CODE[label], label, "exec"), {"__name__": label})
