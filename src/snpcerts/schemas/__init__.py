# SPDX-License-Identifier: Apache-2.0
"""JSON Schemas of what commands print with ``--json``.

There is one file for each kind of output, in JSON Schema 2020-12. Fields are added over time, so
the schemas allow fields that they do not name.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Final

__all__ = ["schema_of"]

# Each command's schema file, without its suffix. ``host sync`` prints JSON with ``--log json``.
NAMES: Final = {
    "conformance": "conformance",
    "demo": "demo",
    "emulate firmware rows": "emulate-firmware-rows",
    "emulate status": "emulate-status",
    "guest report": "guest-report",
    "host check": "host-check",
    "host commit": "host-change",
    "host install": "host-install",
    "host load-vlek": "host-change",
    "host prove": "host-prove",
    "host prove-key": "host-prove-key",
    "host set-config": "host-change",
    "host status": "host-status",
    "host sync": "host-sync-log",
    "host uninstall": "host-install",
    "kds fetch chain": "kds-fetch-chain",
    "kds fetch crl": "kds-fetch-crl",
    "kds fetch vcek": "kds-fetch-vcek",
    "kds show": "kds-show",
    "mirror export": "mirror-export",
    "mirror forget": "mirror-forget",
    "mirror import": "mirror-import",
    "mirror roll": "mirror-roll",
    "policy bulletins": "policy-bulletins",
    "report show": "report-show",
    "table extract": "table-extract",
    "table show": "table-show",
    "verify": "verify",
}


def schema_of(command: str) -> dict[str, Any]:
    """Return the schema of a command's JSON. Raises :class:`KeyError` if the command has none."""
    text = files(__name__).joinpath(f"{NAMES[command]}.json").read_text(encoding="utf-8")
    parsed: dict[str, Any] = json.loads(text)
    return parsed
