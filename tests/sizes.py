# SPDX-License-Identifier: Apache-2.0
"""The sizes of tests that have two.

``make test`` uses the small ones, so that a user has an answer within minutes: it kills
commands at fewer places, makes fewer calls at once, tries half as many random inputs, and runs
for a wrong VMM only the checks that it fails. ``SNPCERTS_FULL_TESTS=1``, which ``.ci/run`` sets,
uses the full ones.
"""

from __future__ import annotations

import os
from typing import TypeVar

Size = TypeVar("Size")

FULL = os.environ.get("SNPCERTS_FULL_TESTS") == "1"


def sized(small: Size, full: Size) -> Size:
    """Return the size for this run."""
    return full if FULL else small
