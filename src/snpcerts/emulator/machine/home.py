# SPDX-License-Identifier: Apache-2.0
"""A platform's directory: the state of a persistent emulated machine.

::

    platform.json   the chip's secret, TCBs, VLEK: the firmware's persistent state
    authority/      the emulated AMD's keys and certificates, created when first needed
    control.sock    the socket of the platform's server while it runs
    server.log      the server's log

All of it is emulated; the secrets in it protect nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from snpcerts.errors import InputError, RefusedError, UsageError
from snpcerts.temporary_directory import TemporaryDirectory

if TYPE_CHECKING:  # most commands need only the server's socket, so these imports would slow them
    from snpcerts.abi.product import Product
    from snpcerts.emulator.amd.authority import EmulatedAuthority
    from snpcerts.emulator.psp.chip import CloudProvider
    from snpcerts.emulator.psp.choices import FirmwareChoices
    from snpcerts.emulator.psp.firmware import Firmware

STATE_LIMIT = 1 << 16  # bytes of platform.json


class PlatformHome:
    """One platform directory. :meth:`prepare` creates it.

    ``temporary`` says that the server removes the directory when it ends.
    """

    def __init__(self, path: Path, *, temporary: TemporaryDirectory | None = None) -> None:
        self.path = path
        self.temporary = temporary

    @property
    def control(self) -> Path:
        """The path of the server's control socket."""
        return self.path / "control.sock"

    @property
    def log(self) -> Path:
        """The path of the server's log."""
        return self.path / "server.log"

    def prepare(self, product: Product | None, choices: FirmwareChoices | None = None) -> None:
        """Create the platform if it does not exist.

        An existing platform must match ``product`` and ``choices`` if they are given.
        """
        with self.alone():
            if not self._state.exists():
                self._create(product, choices)
        if product is not None and (found := self.firmware().product) is not product:
            raise UsageError(
                f"{self.path} is a {found.value} platform, not {product.value}",
                hint="omit --product, or name another platform directory",
            )
        if choices is not None and (played := self.firmware().state.choices) is not choices:
            raise UsageError(
                f"{self.path} has firmware {played}, not {choices}",
                hint="omit --firmware, or name another platform directory",
            )

    def _create(self, product: Product | None, choices: FirmwareChoices | None) -> None:
        from snpcerts.abi.product import Product
        from snpcerts.emulator.psp.chip import Chip
        from snpcerts.emulator.psp.firmware import Firmware

        product = product or Product.MILAN
        self.save(Firmware(Chip.create(product), choices=choices))

    def firmware(self) -> Firmware:
        """Return the firmware in its last saved state, without guests."""
        from snpcerts.emulator.psp.firmware import Firmware

        try:
            with self._state.open("rb") as file:
                data = file.read(STATE_LIMIT + 1)
        except OSError as error:
            raise InputError(f"{self._state}: {error.strerror}") from None
        try:
            if len(data) > STATE_LIMIT:
                raise ValueError(f"the file has more than {STATE_LIMIT} bytes")
            saved = json.loads(data)
            if not isinstance(saved, dict):
                raise TypeError("the file does not contain a JSON object")
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(
                f"{self._state} is not a saved platform: {error}",
                hint=f"delete {self.path} to start with a new platform",
            ) from None
        return Firmware.from_state(saved)

    def save(self, firmware: Firmware) -> None:
        """Write the firmware's persistent state atomically."""
        temporary = self._state.with_suffix(".new")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                json.dump(firmware.save_state(), file, indent=1)
            temporary.rename(self._state)
        except OSError as error:
            raise RefusedError(f"cannot save {self._state}: {error.strerror}") from None

    def authority(self) -> EmulatedAuthority:
        """Return the emulated AMD that certifies this platform's keys.

        The first call creates its keys. That takes a second, and few programs on a machine need
        them.
        """
        from snpcerts.emulator.amd.authority import EmulatedAuthority

        folder = self.path / "authority"
        if not folder.exists():
            with self.alone():
                if not folder.exists():
                    new = folder.with_suffix(".new")
                    EmulatedAuthority.create(self.firmware().product).save(new)
                    try:
                        new.rename(folder)
                    except OSError as error:
                        raise InputError(f"{folder}: {error.strerror}") from None
        return EmulatedAuthority.load(folder)

    def provider(self, csp_id: str) -> CloudProvider:
        """Return the cloud provider called ``csp_id``. Calls with the same name return the same
        provider.
        """
        from snpcerts.emulator.psp.chip import CloudProvider

        secret = hashlib.sha256(self.firmware().chip.provider_seed + csp_id.encode()).digest()
        return CloudProvider(csp_id, secret)

    @property
    def _state(self) -> Path:
        return self.path / "platform.json"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold a lock, so that only one process at a time creates the platform, its authority or
        its control socket.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InputError(f"cannot create a platform in {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
