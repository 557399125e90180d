"""What all tests share."""

import jax
import pytest
from loading import EXAMPLE, files_of


@pytest.fixture
def x64():
    """Double precision for one test; brainstate 0.5.4 switches it off when it is imported."""
    import brainstate  # noqa: F401  (imported first, so that its switch comes before ours)

    before = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    jax.config.update('jax_enable_x64', True)
    yield
    jax.config.update('jax_enable_x64', before)


@pytest.fixture
def example():
    """Imports a file of the ModernCNN example."""
    with files_of(EXAMPLE) as load:
        yield load
