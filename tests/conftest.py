"""Fixtures that several test files share; where there is no GPU the kernels run in Triton's interpreter, which is chosen before the first import."""

import os
import sys
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import jaxtyping
import pytest

hooks = [h for h in sys.meta_path if type(h).__module__.startswith("jaxtyping")]
sys.meta_path[:] = [h for h in sys.meta_path if h not in hooks]  # Triton reads the kernels' source and finds their globals: no decorator between
import georeps.core.kernels.pairs  # noqa: E402, F401

sys.meta_path[:0] = hooks


def pytest_collection_modifyitems(items):
    """What takes long comes first, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: not any(item.iter_markers("long")))


@pytest.fixture
def unchecked():
    """Switch the shape and type checks off, as they are for users: the package's own errors must do without them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def smoke_book() -> Path:
    """The HTML of the smoke runs that `make test` just made."""
    if "GEOREPS_SMOKE_BOOK" not in os.environ:
        pytest.skip("no smoke book was built: run `make test`")
    return Path(__file__).parents[1] / os.environ["GEOREPS_SMOKE_BOOK"]
