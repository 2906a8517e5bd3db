# SPDX-License-Identifier: Apache-2.0
"""Replaces one of the certificates that come with a report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from snpcerts.verify.collateral import Collateral


def with_slot(collateral: Collateral, slot: str, data: bytes | None) -> Collateral:
    """The same certificates with ``data`` (DER or PEM; None to remove it) as ``slot``."""
    change: dict[str, Any] = {slot: data}
    return replace(collateral, **change)
