# SPDX-License-Identifier: Apache-2.0
"""Warns that the list of security bulletins is old."""

from __future__ import annotations

from datetime import UTC, datetime

from snpcerts.cli.say import present


def warn_if_old() -> None:
    """Warn on standard error if this release's list of security bulletins is old."""
    from snpcerts.verify.bulletins import bulletin_data

    problem = bulletin_data().age_problem(datetime.now(UTC).date())
    if problem is not None:
        present(f"snpcerts: warning: {problem}", err=True)
