# SPDX-License-Identifier: Apache-2.0
"""Clients that request reports, for programs inside an SNP guest.

``attestation`` has :func:`attest`, which uses whichever interface the kernel has. ``dev_sev_guest``
is the client of ``/dev/sev-guest``; ``configfs_tsm`` is the client of
``/sys/kernel/config/tsm/report``. Imports ``abi``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snpcerts.guest.attestation import Attested as Attested
    from snpcerts.guest.attestation import Interface as Interface
    from snpcerts.guest.attestation import Paths as Paths
    from snpcerts.guest.attestation import attest as attest
    from snpcerts.guest.configfs_tsm import ConfigfsTsm as ConfigfsTsm
    from snpcerts.guest.configfs_tsm import TsmChangedError as TsmChangedError
    from snpcerts.guest.configfs_tsm import TsmReport as TsmReport
    from snpcerts.guest.configfs_tsm import TsmRequestError as TsmRequestError
    from snpcerts.guest.dev_sev_guest import ExtendedReport as ExtendedReport
    from snpcerts.guest.dev_sev_guest import GuestRequestError as GuestRequestError
    from snpcerts.guest.dev_sev_guest import NoDeviceError as NoDeviceError
    from snpcerts.guest.dev_sev_guest import SevGuest as SevGuest
else:
    from snpcerts.exports import lazy_exports

    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "attestation": ("Attested", "Interface", "Paths", "attest"),
            "configfs_tsm": ("ConfigfsTsm", "TsmChangedError", "TsmReport", "TsmRequestError"),
            "dev_sev_guest": ("ExtendedReport", "GuestRequestError", "NoDeviceError", "SevGuest"),
        },
    )
