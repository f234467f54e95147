"""Tests of the minkowski backend skip without it, or fail where FCMAE_REQUIRE_MINKOWSKI=1."""

from __future__ import annotations

import os

import pytest

from sparse import BackendUnavailableError
from sparse.backends.minkowski import load_minkowski_engine


def need() -> None:
    """Skip the calling module or test unless MinkowskiEngine can be imported."""
    try:
        load_minkowski_engine()
    except BackendUnavailableError as error:
        if os.environ.get("FCMAE_REQUIRE_MINKOWSKI") == "1":
            pytest.fail(f"FCMAE_REQUIRE_MINKOWSKI=1, but {error}")
        pytest.skip(str(error), allow_module_level=True)
