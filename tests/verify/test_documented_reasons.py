# SPDX-License-Identifier: Apache-2.0
"""The documentation lists every reason code with its sentence, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from snpcerts.verify.reason import ReasonCode

PAGE = Path(__file__).parents[2] / "docs" / "relying-parties.md"


def test_the_page_for_relying_parties_has_the_codes() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert dict(rows) == {code.value: code.description for code in ReasonCode}
