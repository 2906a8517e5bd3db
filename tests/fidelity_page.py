# SPDX-License-Identifier: Apache-2.0
"""The table of ``docs/fidelity.md``: ``python -m tests.fidelity_page`` rewrites it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from snpcerts.fidelity import CLAIMS, Claim, ClaimSource

PAGE: Final = Path(__file__).parents[1] / "docs" / "fidelity.md"
BEGIN: Final = "<!-- table: python -m tests.fidelity_page -->\n"
END: Final = "<!-- end of table -->\n"


def table() -> str:
    """The claims, as Markdown."""
    rows = [
        "| claim | what it says | compared with | releases |",
        "| --- | --- | --- | --- |",
        *map(_row, CLAIMS),
    ]
    return "".join(f"{row}\n" for row in rows)


def page() -> str:
    """The whole page, with the table as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


def _row(claim: Claim) -> str:
    held = "; ".join(map(_held, claim.held))
    return f"| `{claim.id}` | {claim.text} | {held} | {', '.join(claim.releases) or '-'} |"


def _held(held: ClaimSource) -> str:
    names = ", ".join(
        f"`{name}`" if "_" in name and " " not in name else name for name in held.names
    )
    return f"**{held.kind.value}** {names}".strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
