"""Fixtures that several test files share."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """Switch the shape and type checks off, as they are for users: the package's own errors must do without them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
