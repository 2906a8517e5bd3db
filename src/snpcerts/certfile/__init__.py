# SPDX-License-Identifier: Apache-2.0
"""The certificate file: how VMMs serve it and how updates change it, under its lock.

:class:`CertFile`, in ``file``, is the interface. ``reader`` and ``writer`` are the two sides of the
protocol, made of the steps in ``step``; ``system`` runs the steps as real system calls. ``several``
updates several files around one firmware command. ``relay`` lets a function watch or disturb the
steps, and ``span`` times them. ``hold`` only holds a lock; ``holders`` finds the processes that
hold one; ``lock_check`` tests whether locks work on a file system. ``recognise`` tells certificate
files from others; ``trusted_path`` refuses paths that another user can redirect. Imports ``abi``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snpcerts.certfile.file import CertFile as CertFile
    from snpcerts.certfile.holders import Holder as Holder
    from snpcerts.certfile.holders import holders_of as holders_of
    from snpcerts.certfile.reader import Busy as Busy
    from snpcerts.certfile.reader import Empty as Empty
    from snpcerts.certfile.reader import Found as Found
    from snpcerts.certfile.reader import Table as Table
    from snpcerts.certfile.reader import Unreadable as Unreadable
    from snpcerts.certfile.recognise import ForeignFileError as ForeignFileError
    from snpcerts.certfile.writer import LockHeldError as LockHeldError
    from snpcerts.certfile.writer import Strategy as Strategy
    from snpcerts.certfile.writer import Update as Update
else:
    from snpcerts.exports import lazy_exports

    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "file": ("CertFile",),
            "holders": ("Holder", "holders_of"),
            "reader": ("Busy", "Empty", "Found", "Table", "Unreadable"),
            "recognise": ("ForeignFileError",),
            "writer": ("LockHeldError", "Strategy", "Update"),
        },
    )
