# SPDX-License-Identifier: Apache-2.0
"""How much of what can be made smaller is tried.

``make test`` tries less of it, so that a user has an answer within minutes: some
of the places to be killed at, storms of fewer calls, for a wrong VMM the checks
that it fails. With ``SNPCERTS_FULL_TESTS=1``, as ``.ci/run`` sets it, everything.
"""

from __future__ import annotations

import os
from typing import TypeVar

Size = TypeVar("Size")

FULL = os.environ.get("SNPCERTS_FULL_TESTS") == "1"


def sized(small: Size, full: Size) -> Size:
    """The size for this run."""
    return full if FULL else small
