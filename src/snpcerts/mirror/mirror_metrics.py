# SPDX-License-Identifier: Apache-2.0
"""The mirror's metrics, in Prometheus' exposition format.

The counts of requests are this instance's. Values from the database are read when the metrics are
read, and are the same for all instances.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from snpcerts import __version__
from snpcerts.kds.client import KdsClient
from snpcerts.mirror.database import DatabaseUnavailableError
from snpcerts.mirror.fleet_view import Fleet, HostState, processors_of, shortfalls
from snpcerts.mirror.wanted import Need
from snpcerts.verify.bulletins import BulletinData, bulletin_data

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1, 5, 15, 60)
_OUTCOMES: Final = (
    "ok",
    "not-found",
    "throttled",
    "server-error",
    "unreachable",
    "unreadable",
    "refused",
)


class MirrorMetrics:
    """The metrics of one instance. ``fleet`` returns the state of the fleet from the database."""

    def __init__(
        self,
        client: KdsClient,
        fleet: Callable[[], Fleet],
        waiting: Callable[[], int],
        crl_ages: Callable[[], dict[tuple[str, str], float]],
    ) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "snpcerts_mirror_requests",
            "Requests for AMD's resources, by kind of resource and outcome",
            ("resource", "outcome"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "snpcerts_mirror_request_seconds",
            'Seconds to answer a request; hit="false" includes any wait for the upstream server',
            ("hit",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._hit = self._seconds.labels("true")
        self._other = self._seconds.labels("false")
        self._children: dict[tuple[str, str], Counter] = {}
        self._registry.register(_DatabaseMetrics(client, fleet, waiting, crl_ages))

    def count(self, kind: str, outcome: str, seconds: float) -> None:
        """Count one answer to a request."""
        key = (kind, outcome)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._requests.labels(*key)
        child.inc()
        (self._hit if outcome == "hit" else self._other).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics, in Prometheus' text format."""
        return generate_latest(self._registry)


class _DatabaseMetrics(Collector):
    def __init__(
        self,
        client: KdsClient,
        fleet: Callable[[], Fleet],
        waiting: Callable[[], int],
        crl_ages: Callable[[], dict[tuple[str, str], float]],
    ) -> None:
        self._client = client
        self._fleet = fleet
        self._waiting = waiting
        self._crl_ages = crl_ages

    def describe(self) -> Iterator[Metric]:
        """Describe nothing, so that registering does not read the database."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, for which the database is read once."""
        info = GaugeMetricFamily(
            "snpcerts_mirror_build_info", "Always 1. The label is the release", labels=["version"]
        )
        info.add_metric([__version__], 1)
        yield info
        asked = CounterMetricFamily(
            "snpcerts_mirror_upstream_requests",
            "Requests from this instance to the upstream server, by outcome",
            labels=["outcome"],
        )
        results = self._client.results
        for outcome in _OUTCOMES:
            asked.add_metric([outcome], results.get(outcome, 0))
        yield asked
        yield _gauge(
            "waiting_callers",
            "Callers that are waiting for this instance's answer",
            self._waiting(),
        )
        try:
            fleet = self._fleet()
            ages = self._crl_ages()
        except DatabaseUnavailableError:
            yield _gauge("database_up", "Whether the database answers", 0)
            return
        yield _gauge("database_up", "Whether the database answers", 1)
        yield from _of_queue(fleet)
        yield from _of_store(fleet, ages)
        yield from _of_hosts(fleet)


def _of_queue(fleet: Fleet) -> Iterator[Metric]:
    queue = fleet.queue
    now = fleet.now.timestamp()
    yield _labelled(
        "queue",
        "Certificates, chains and revocation lists in the queue, by need",
        "need",
        {need.label: queue.waiting.get(need.label, 0) for need in Need},
    )
    ends = 0.0 if queue.ends_at is None else max(0.0, queue.ends_at.timestamp() - now)
    yield _gauge("queue_seconds", "Seconds until the queue is empty", ends)
    hold = 0.0 if queue.hold_until is None else max(0.0, queue.hold_until.timestamp() - now)
    yield _gauge(
        "hold_seconds",
        "Seconds until the upstream server may be asked again after a 429 or a failure",
        hold,
    )
    yield _gauge(
        "gap_seconds",
        "Seconds to wait between two requests for VCEK certificates",
        queue.gap,
    )
    yield _gauge(
        "upstream_failing",
        "Whether the last request to the upstream server failed",
        bool(queue.problem),
    )
    yield _gauge(
        "fetched_last_hour",
        "Certificates, chains and revocation lists fetched or imported in the last hour",
        queue.fetched,
    )
    yield _gauge(
        "refused_last_hour",
        "Certificates, chains and revocation lists refused or not found in the last hour",
        queue.refused,
    )
    yield _gauge("instances", "Instances that share the database", fleet.instances)


def _of_store(fleet: Fleet, ages: dict[tuple[str, str], float]) -> Iterator[Metric]:
    kinds = ("vcek", "chain", "crl")
    counts = {kind: fleet.stored.get(kind, 0) for kind in kinds}
    yield _labelled(
        "certificates", "Stored certificates, chains and revocation lists, by kind", "kind", counts
    )
    age = GaugeMetricFamily(
        "snpcerts_mirror_crl_age_seconds",
        "Seconds since a revocation list was fetched",
        labels=["product", "kind"],
    )
    for (product, kind), value in sorted(ages.items()):
        age.add_metric([product, kind], value)
    yield age
    soonest: dict[str, float] = {}
    for each in fleet.expiring():
        kind = each.what if each.host is None else "host certificate"
        soonest.setdefault(kind, each.at.timestamp())
    yield _labelled(
        "expiry_timestamp_seconds",
        "Earliest expiry of the certificates or lists of a kind, in seconds since the epoch",
        "kind",
        dict(sorted(soonest.items())),
    )


def _of_hosts(fleet: Fleet) -> Iterator[Metric]:
    states = fleet.by_state()
    yield _labelled(
        "hosts", "Hosts by state", "state", {each.slug: states[each] for each in HostState}
    )
    bulletins = _bulletins()
    announcements = [host.announcement for host in fleet.hosts]
    below = sum(
        bool(shortfalls(each.reported, processors_of(each), bulletins)) for each in announcements
    )
    yield _gauge(
        "hosts_below_floor", "Hosts with a reported TCB below a security bulletin's floor", below
    )
    rolls = GaugeMetricFamily(
        "snpcerts_mirror_roll_hosts",
        "Hosts in a roll, by progress",
        labels=["roll", "progress"],
    )
    for roll in fleet.rolls:
        for progress, value in (
            ("all", roll.hosts),
            ("stored", roll.latest.stored),
            ("committed", roll.latest.committed),
            ("in-step", roll.latest.in_step),
        ):
            rolls.add_metric([str(roll.number), progress], value)
    yield rolls


@functools.cache
def _bulletins() -> BulletinData:
    return bulletin_data()


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"snpcerts_mirror_{name}", text, value=value)


def _labelled(
    name: str, text: str, label: str, values: dict[str, float] | dict[str, int]
) -> Metric:
    family = GaugeMetricFamily(f"snpcerts_mirror_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


class FleetCache:
    """Caches the state of the fleet for a moment, so that many readers cause one read.
    Thread-safe.
    """

    def __init__(self, read: Callable[[], Fleet], lasts: float = 2.0) -> None:
        self._read = read
        self._lasts = lasts
        self._lock = threading.Lock()
        self._kept: tuple[float, Fleet] | None = None

    def get(self) -> Fleet:
        """Return the state of the fleet, which was at most ``lasts`` seconds old when the call
        began.

        While one thread reads, the others wait for its result. Raises the errors of reading.
        """
        asked = time.monotonic()
        with self._lock:
            if self._kept is None or self._kept[0] < asked - self._lasts:
                # The values may be as old as the start of the read, so note the time before it.
                began = time.monotonic()
                self._kept = began, self._read()
            return self._kept[1]
