# SPDX-License-Identifier: Apache-2.0
"""The hosts that the emulator plays: each Linux release with each firmware.

The clients' tests and the checks for VMMs run on the default host. With
``SNPCERTS_EVERY_HOST=1`` they run on every host, which takes six times as long.
"""

from __future__ import annotations

import os
from typing import Final

from snpcerts.emulator.kvm.release import NEWEST, SERIES
from snpcerts.emulator.psp.choices import DEFAULT, NAMES

# Pairs of kernel and firmware; the default pair comes first.
EVERY_HOST: Final = tuple(
    sorted(
        ((kernel, firmware) for firmware in NAMES for kernel in SERIES),
        key=lambda host: host != (NEWEST.series, DEFAULT),
    )
)
HOSTS: Final = EVERY_HOST if os.environ.get("SNPCERTS_EVERY_HOST") == "1" else EVERY_HOST[:1]


def name(host: tuple[str, str]) -> str:
    """Return the test id for that host."""
    return "-".join(host)


def options(host: tuple[str, str]) -> tuple[str, ...]:
    """Return the host as options of ``snpcerts conformance``."""
    kernel, firmware = host
    return ("--kernel", kernel, "--firmware", firmware)
