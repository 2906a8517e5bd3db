# SPDX-License-Identifier: Apache-2.0
"""Tells one initialisation of SNP from another. Each initialisation changes keys, but /dev/sev does
not show that one has happened.

Linux shuts SNP down when ``kvm_amd`` is unloaded. It initialises SNP when ``kvm_amd`` is loaded
(7.3: ``svm/sev.c``, ``sev-dev.c``), and at every boot. Two things identify an initialisation:

* The boot ID (``/proc/sys/kernel/random/boot_id``). It is new at each boot,
  including kexec, and is conclusive.
* The inode number of ``/sys/module/kvm_amd``. sysfs numbers the directory when
  the module is loaded, and does not reuse a number within a boot (kernfs counts
  in 64 bits). It is conclusive if this process can see it. A built-in ``kvm_amd``
  has the directory too, and cannot be unloaded.

If this process cannot see the directory (in a container without /sys), a re-initialisation within a
boot goes unnoticed. Callers must then not conclude that there was none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
MODULE: Final = "/sys/module/kvm_amd"
_LIMIT: Final = 64


@dataclass(frozen=True, slots=True)
class Initialisation:
    """One initialisation of SNP, identified by the boot ID and the inode number of
    ``/sys/module/kvm_amd``. Each is empty if this process cannot see it.
    """

    boot: str
    module: str

    @property
    def certain(self) -> bool:
        """Whether the next initialisation can be distinguished from this one with certainty."""
        return bool(self.boot and self.module)

    def change_to(self, after: Initialisation) -> str:
        """Return, as text for a message, how ``after`` differs from this initialisation.

        The text is empty if the two seem to be the same initialisation.
        """
        if self.boot != after.boot:
            return f"the host was rebooted ({BOOT_ID})"
        if self.module != after.module:
            return f"kvm_amd was reloaded ({MODULE} is a new directory)"
        return ""


def initialisation(boot_id: str = BOOT_ID, module: str = MODULE) -> Initialisation:
    """Return the current initialisation, as far as this process can identify it."""
    try:
        with open(boot_id, encoding="ascii", errors="replace") as file:
            boot = file.read(_LIMIT).strip()
    except OSError:
        boot = ""
    try:
        directory = str(os.stat(module).st_ino)
    except OSError:
        directory = ""
    return Initialisation(boot, directory)
