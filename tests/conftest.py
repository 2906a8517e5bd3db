# SPDX-License-Identifier: Apache-2.0
"""What several parts of the suite need."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# A slow machine is not a broken promise.
settings.register_profile("snpcerts", deadline=None, print_blob=True)
settings.load_profile("snpcerts")

_SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The directory of genuine reports and certificates, where this machine has one."""
    path = _SHARED / "vectors"
    if not path.is_dir():
        pytest.skip("genuine reports are not part of the project and are not on this machine")
    return path
