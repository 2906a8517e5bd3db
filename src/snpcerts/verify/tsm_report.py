# SPDX-License-Identifier: Apache-2.0
"""Writes a report and its certificate table as a tsm-report, the pair that configfs-tsm returns.

The media types are ``application/vnd.veraison.tsm-report+json`` and ``+cbor``.
``Evidence.from_bytes`` reads both.

Source: veraison/ratsd, tokens/tsm-report.go.
"""

from __future__ import annotations

import base64
import enum
import json
from typing import Final

PROVIDER: Final = "sev_guest\n"  # as configfs-tsm returns it, with its line feed


class TsmForm(enum.StrEnum):
    """The two encodings of a tsm-report."""

    JSON = "tsm-json"
    CBOR = "tsm-cbor"


def tsm_report(report: bytes, table: bytes, form: TsmForm) -> bytes:
    """Return a tsm-report that holds a report (1184 bytes) and a certificate table.

    ``table`` is empty if no certificate table came with the report.
    """
    if form is TsmForm.CBOR:
        import cbor2

        blobs = {"auxblob": table, "outblob": report, "provider": PROVIDER}
        return cbor2.dumps(blobs, canonical=True)
    text = {"auxblob": _base64url(table), "outblob": _base64url(report), "provider": PROVIDER}
    return f"{json.dumps(text)}\n".encode("ascii")


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
