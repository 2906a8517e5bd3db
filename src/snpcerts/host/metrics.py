# SPDX-License-Identifier: Apache-2.0
"""The agent's metrics for Prometheus, in a text file or on a port of the loopback interface.

Source: the Prometheus text exposition format. The node exporter's textfile collector reads
``*.prom`` files, which must be replaced atomically.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

from snpcerts.endorsement.crl import RevocationList
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import RefusedError
from snpcerts.host.event import Event, EventKind
from snpcerts.host.file_state import FileState
from snpcerts.host.host_firmware import FirmwareState
from snpcerts.host.mitigations import mitigations
from snpcerts.host.status import basis

_TEXT_MODE: Final = 0o644  # readable for the node exporter
_BEGINS: Final = b"# HELP snpcerts_"  # the beginning of a metrics file that was written earlier
_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 100)


class Metrics:
    """All metrics of the agent. An instance is a :data:`~snpcerts.host.event.Listener`."""

    def __init__(self) -> None:
        """Create the metrics. Raises :class:`RefusedError` if prometheus-client is not
        installed.
        """
        try:
            import prometheus_client as prometheus
        except ImportError:
            raise RefusedError(
                "metrics need the Python package prometheus-client",
                hint="install prometheus-client, or omit the metrics options",
            ) from None
        self._prometheus = prometheus
        self.registry = registry = prometheus.CollectorRegistry()
        gauge = functools.partial(prometheus.Gauge, registry=registry)
        counter = functools.partial(prometheus.Counter, registry=registry)
        per_file = ["file"]
        self._in_step = gauge(
            "snpcerts_in_step", "1 while the file has the right content", per_file
        )
        self._expiry = gauge(
            "snpcerts_certificate_expiry_timestamp_seconds",
            "When the first of the file's certificates expires",
            per_file,
        )
        self._looked = gauge(
            "snpcerts_last_look_timestamp_seconds", "When files and firmware were last compared"
        )
        self._synced = gauge(
            "snpcerts_last_in_step_timestamp_seconds", "When all files last had the right content"
        )
        self._wait, self._held, self._firmware = (
            prometheus.Histogram(
                f"snpcerts_{name}_seconds", text, registry=registry, buckets=_BUCKETS
            )
            for name, text in (
                ("lock_wait", "Time that updates waited for their locks"),
                ("lock_held", "Time that updates held their locks"),
                ("firmware_command", "Time that firmware commands took while the locks were held"),
            )
        )
        failures = counter("snpcerts_failures", "Failures")
        self._counted = {
            EventKind.DRIFT: counter("snpcerts_drift", "Files found not to match the firmware"),
            EventKind.GARBAGE: counter(
                "snpcerts_garbage", "Certificate files found to hold no valid table"
            ),
            EventKind.LAPSED: counter(
                "snpcerts_lapsed", "Files found with certificates that have expired or were revoked"
            ),
            EventKind.CONTRADICTED: counter(
                "snpcerts_signing_key_contradictions",
                "Reports signed with a key other than the one that the firmware's status implies",
            ),
            EventKind.FAILED: failures,
            EventKind.UNAVAILABLE: failures,
        }
        self._crl = gauge(
            "snpcerts_revocation_list_next_update_timestamp_seconds",
            "When the cached revocation list (CRL) expires; absent if none is cached",
            ["kind"],
        )
        self._fetches = counter(
            "snpcerts_certificate_fetches",
            "Requests to the certificate source, by result",
            ["result"],
        )
        self._kds = gauge(
            "snpcerts_kds_requests",
            "Requests to the key server since the agent's start, by result",
            ["result"],
        )
        self._basis = gauge(
            "snpcerts_signing_key_basis",
            (
                "How the agent knows which key signs by default: 1 for the label that applies "
                "(proven, believed or unknown), 0 for the others"
            ),
            ["basis"],
        )
        self._proven = gauge(
            "snpcerts_signing_key_proven_timestamp_seconds",
            "When a report last proved which key signs; absent if none has",
            ["key_sel"],
        )
        self._mitigations = gauge(
            "snpcerts_mitigation",
            "1 for each mitigation bit that the firmware supports or has verified",
            ["bit", "state"],
        )
        self._announcements = counter(
            "snpcerts_announcements",
            "Announcements of this host to the fleet's mirror, by result",
            ["result"],
        )
        self._tcb = gauge(
            "snpcerts_tcb",
            "The components of the firmware's current and reported TCBs",
            ["tcb", "component"],
        )
        self._build = gauge(
            "snpcerts_firmware_info",
            "Always 1; the label is the firmware's version",
            ["version"],
        )
        self._pending = gauge(
            "snpcerts_commit_pending",
            "1 while the current TCB differs from the reported one: an update is not committed, "
            "or a lower TCB is configured",
        )
        self._prepared = gauge(
            "snpcerts_target_ready",
            "1 while the certificates of the VCEK for the current TCB are cached",
        )
        self._changes = counter(
            "snpcerts_firmware_changes",
            "Changes to the firmware's state by any program, with or without the lock",
            ["what"],
        )

    def __call__(self, event: Event) -> None:
        """Count an event, and record the times in its fields."""
        if event.kind in self._counted:
            self._counted[event.kind].inc()
        elif event.kind is EventKind.CHANGED:
            self._changes.labels(str(event.fields["what"])).inc()
        elif event.kind is EventKind.FETCHED:
            self._fetches.labels(str(event.fields["result"])).inc()
        for name, histogram in (
            ("lock_wait_ms", self._wait),
            ("lock_held_ms", self._held),
            ("firmware_ms", self._firmware),
        ):
            value = event.fields.get(name)
            if isinstance(value, float):
                histogram.observe(value / 1000)

    def announced(self, result: str) -> None:
        """Count an announcement to the mirror. ``result`` is ``ok`` or the error's code."""
        self._announcements.labels(result).inc()

    def seen(
        self,
        file_states: Iterable[FileState],
        kds: Mapping[str, int],
        lists: Mapping[VekKind, RevocationList],
        is_prepared: Callable[[FirmwareState], bool],
    ) -> None:
        """Record the state of every file, the counts of key server requests, and the revocation
        lists.

        ``is_prepared`` says whether the certificates for a commit are cached.
        """
        now = datetime.now(UTC).timestamp()
        all_in_step = True
        file_states = tuple(file_states)
        if file_states:
            self._keys(file_states[0].state)
            self._firmware_state(file_states[0].state)
            self._prepared.set(is_prepared(file_states[0].state))
        for each in file_states:
            all_in_step = all_in_step and each.in_step
            self._in_step.labels(each.file.path).set(each.in_step)
            if each.not_after is not None:
                self._expiry.labels(each.file.path).set(each.not_after.timestamp())
            else:
                with contextlib.suppress(KeyError):
                    self._expiry.remove(each.file.path)
        self._looked.set(now)
        if all_in_step:
            self._synced.set(now)
        for kind, found in lists.items():
            self._crl.labels(kind.value).set(found.next_update.timestamp())
        for result, count in kds.items():
            self._kds.labels(result).set(count)

    def _firmware_state(self, state: FirmwareState) -> None:
        for name, tcb in (("current", state.current), ("reported", state.reported)):
            for component, value in tcb.components().items():
                self._tcb.labels(name, component).set(value)
        self._build.clear()
        self._build.labels(state.version).set(1)
        self._pending.set(state.current != state.reported)

    def _keys(self, state: FirmwareState) -> None:
        for name in ("proven", "believed", "unknown"):
            self._basis.labels(name).set(name == basis(state))
        self._proven.clear()
        for proof in state.known.proofs:
            self._proven.labels(str(int(proof.select))).set(proof.at.timestamp())
        self._mitigations.clear()
        found = mitigations()
        if found is None:
            return
        for name, vector in (("supported", found.supported), ("verified", found.verified)):
            for bit in range(found.supported.bit_length()):
                self._mitigations.labels(str(bit), name).set(vector >> bit & 1)

    def write(self, path: str) -> None:
        """Write all metrics to ``path`` atomically.

        Raises :class:`RefusedError` if that fails, or if the file at the path does not contain
        metrics.
        """
        _require_metrics(path)
        folder = os.path.dirname(path) or "."
        try:
            # The name of the new file is random, so that in a directory where others can write,
            # none of their links is followed.
            fd, temporary = tempfile.mkstemp(prefix=".snpcerts-metrics-", dir=folder)
            try:
                with open(fd, "wb") as file:
                    file.write(self._prometheus.generate_latest(self.registry))
                    os.fchmod(fd, _TEXT_MODE)
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise RefusedError(f"cannot write metrics to {path}: {error.strerror}") from None

    def serve(self, port: int) -> Callable[[], None]:
        """Serve the metrics on ``port`` of 127.0.0.1. Return a function that stops the server."""
        from snpcerts.host.metrics_server import MetricsServer

        handler = self._prometheus.MetricsHandler.factory(self.registry)
        try:
            server = MetricsServer(port, handler)
        except OSError as error:
            raise RefusedError(
                f"cannot serve metrics on 127.0.0.1:{port}: {error.strerror}"
            ) from None
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()

        def end() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return end


def _require_metrics(path: str) -> None:
    """Raise :class:`RefusedError` if the path names a file that does not contain metrics."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return  # there is no file, or a link, which is replaced and not followed
    with open(fd, "rb") as file:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        if regular and file.read(len(_BEGINS)) in (b"", _BEGINS):
            return
    raise RefusedError(
        f"{path}: the file was not replaced, because it does not contain metrics",
        hint="check the path; if it is correct, remove the existing file",
    )
