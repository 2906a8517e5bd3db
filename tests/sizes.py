# SPDX-License-Identifier: Apache-2.0
"""Chooses between the small and the full size of the tests that have both.

``make test`` uses the small size, so that a user has an answer within minutes: it kills
commands at fewer places, makes fewer calls at once, tries half as many random inputs, and, if a
test runs a faulty VMM, runs only the checks which that VMM must fail. ``SNPCERTS_FULL_TESTS=1``,
which ``.ci/run`` sets, selects the full size.
"""

from __future__ import annotations

import os
from typing import TypeVar

Size = TypeVar("Size")

FULL = os.environ.get("SNPCERTS_FULL_TESTS") == "1"


def sized(small: Size, full: Size) -> Size:
    """Return the size for this run."""
    return full if FULL else small
