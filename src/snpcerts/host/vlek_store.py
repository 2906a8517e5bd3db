# SPDX-License-Identifier: Apache-2.0
"""Stores the provider's VLEK certificates, which are used when their VLEKs are loaded.

AMD issues VLEK certificates only to the provider, with the provider's credentials, so the agent
cannot fetch them. The operator who loads a VLEK supplies its certificate. ``/dev/sev`` reports
*that* a VLEK is loaded, but not which one. The agent finds the VLEK's certificate by product and
TCB: a VLEK's TCB is the reported TCB, and a host has only one provider.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import tempfile
from pathlib import Path
from typing import Final

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import SHORT_NAME_OF, SHORT_NAMES, TcbVersion
from snpcerts.errors import FormatError, RefusedError

_SIZE_LIMIT: Final = 1 << 16
_TCBS_LIMIT: Final = 64


class VlekStore:
    """A directory with one VLEK certificate (DER) for each product and TCB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, product: Product, tcb: TcbVersion) -> Path:
        """Return the path of the certificate for ``product`` and ``tcb``."""
        components = tcb.components().items()
        parts = "_".join(f"{SHORT_NAME_OF[name]}{value}" for name, value in components)
        return self.folder / f"{product.keyword}_{parts}_vlek.der"

    def find(self, product: Product, tcb: TcbVersion) -> bytes | None:
        """Return the stored certificate, not yet verified; None if there is no readable one."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            # Open without blocking, so that a FIFO cannot hold the agent up.
            with open(os.open(self.path(product, tcb), flags), "rb") as file:
                data = file.read(_SIZE_LIMIT)
        except OSError:
            return None
        return data or None

    def tcbs(self, product: Product) -> tuple[TcbVersion, ...]:
        """Return the TCBs that have a stored certificate, sorted by file name; at most 64."""
        try:
            names = sorted(path.name for path in self.folder.iterdir())
        except OSError:
            return ()
        found = (_tcb(product, name) for name in names)
        return tuple(itertools.islice((each for each in found if each is not None), _TCBS_LIMIT))

    def keep(self, product: Product, tcb: TcbVersion, der: bytes) -> None:
        """Store a certificate atomically. Raises :class:`RefusedError` if that fails."""
        path = self.path(product, tcb)
        temporary = ""
        try:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd, temporary = tempfile.mkstemp(prefix=".vlek-", dir=self.folder)
            with os.fdopen(fd, "wb") as file:
                file.write(der)
                file.flush()
                os.fsync(fd)
            Path(temporary).rename(path)
        except OSError as error:
            if temporary:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
            raise RefusedError(
                f"cannot store the VLEK certificate in {path}: {error.strerror}"
            ) from None


def _tcb(product: Product, name: str) -> TcbVersion | None:
    match = re.fullmatch(rf"{product.keyword}_((?:[a-z]+[0-9]{{1,3}}_)+)vlek\.der", name)
    if match is None:
        return None
    parts = re.findall(r"([a-z]+)([0-9]+)", match[1])
    try:
        return TcbVersion.of({SHORT_NAMES[short]: int(value) for short, value in parts})
    except (KeyError, TypeError, FormatError):
        return None
