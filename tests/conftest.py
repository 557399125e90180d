"""What all tests share."""

import jax
import pytest


@pytest.fixture
def x64():
    """Double precision for one test; brainstate 0.5.4 switches it off when it is imported."""
    import brainstate  # noqa: F401  (imported first, so that its switch comes before ours)

    before = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    jax.config.update('jax_enable_x64', True)
    yield
    jax.config.update('jax_enable_x64', before)
