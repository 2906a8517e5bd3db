# SPDX-License-Identifier: Apache-2.0
"""Serves a request from the certificate file, or updates the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from snpcerts.abi.cert_table import MAX_SIZE, CertTable
from snpcerts.certfile import reader, system, writer
from snpcerts.certfile.holders import blockers_of
from snpcerts.certfile.lock_check import require_working_locks
from snpcerts.certfile.recognise import require_certificate_file
from snpcerts.certfile.step import Performer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CertFile:
    """One certificate file, given by its path.

    No file is kept open between calls, so threads may share an instance. ``perform`` runs the
    protocol's steps.
    """

    path: str
    perform: Performer = system.perform

    def serve(
        self,
        *,
        deliver: Callable[[reader.Found], None],
        handshake: Callable[[], T],
        lock_wait: float = reader.DEFAULT_LOCK_WAIT,
        size_limit: int = MAX_SIZE,
    ) -> T:
        """Serve one request under the shared lock. See :func:`snpcerts.certfile.reader.serve`."""
        steps = reader.serve(
            self.path,
            deliver=deliver,
            handshake=handshake,
            lock_wait=lock_wait,
            size_limit=size_limit,
        )
        result: T = self.perform(steps)
        return result

    def update(
        self,
        change: Callable[[], CertTable],
        *,
        strategy: writer.Strategy = writer.DEFAULT_STRATEGY,
        lock_wait: float = writer.DEFAULT_LOCK_WAIT,
        force: bool = False,
    ) -> writer.Update:
        """Change the firmware and the table together. See :func:`snpcerts.certfile.writer.update`.

        Raises :class:`~snpcerts.certfile.recognise.ForeignFileError` if the file at the path is not
        a certificate file, unless ``force`` is set.
        """
        return self._update(lambda: change().encode(), strategy, lock_wait, force)

    def publish(
        self,
        table: CertTable,
        *,
        strategy: writer.Strategy = writer.DEFAULT_STRATEGY,
        lock_wait: float = writer.DEFAULT_LOCK_WAIT,
        force: bool = False,
    ) -> writer.Update:
        """Write ``table`` to the file without changing the firmware.

        The table is encoded first, so a table that cannot be encoded changes nothing. ``force`` and
        the errors are as in :meth:`update`.
        """
        data = table.encode()
        return self._update(lambda: data, strategy, lock_wait, force)

    def _update(
        self,
        change: Callable[[], bytes],
        strategy: writer.Strategy,
        lock_wait: float,
        force: bool,
    ) -> writer.Update:
        if not force:
            require_certificate_file(self.path)
        require_working_locks(os.path.dirname(os.path.realpath(self.path)))
        steps = writer.update(self.path, change, strategy=strategy, lock_wait=lock_wait)
        try:
            result: writer.Update = self.perform(steps)
        except writer.LockHeldError as error:
            raise error.with_holders(blockers_of(error.path)) from None
        return result
