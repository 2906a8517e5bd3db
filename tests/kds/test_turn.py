# SPDX-License-Identifier: Apache-2.0
"""All processes and resources share one turn and one hold-off for a key server."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.product import Product
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.amd.key_server_faults import Fault, Faults, Throttle
from snpcerts.emulator.machine.key_server import KeyServer, ProductLine
from snpcerts.emulator.psp.chip import Chip
from snpcerts.endorsement.encoding import to_pem
from snpcerts.kds.clock import Clock
from snpcerts.kds.errors import KdsUnavailableError
from snpcerts.kds.request_queue import RequestQueue
from snpcerts.kds.retry import MAX_RETRY_AFTER, RetryPolicy
from snpcerts.kds.server_state import Failure, ServerState
from snpcerts.kds.source import Endorsement

from .baton import Baton
from .conftest import MILAN_TCB, Host, SkippingClock

LENGTHENS = pytest.mark.parametrize("lengthens", [False, True])


@contextmanager
def throttling(
    authority: EmulatedAuthority, clock: Clock, interval: float, *, lengthens: bool
) -> Iterator[KeyServer]:
    line = ProductLine(authority, (Chip.create(authority.product),))
    throttle = Throttle(interval, lengthens=lengthens)
    with KeyServer([line], throttle=throttle, clock=clock.now) as server:
        yield server


def vcek(host: Host, snp: int) -> Callable[[], Endorsement]:
    """Return a function that fetches a VCEK as another process with the same cache would."""
    wanted = host.resource()
    return lambda: host.source().vcek(
        wanted.product, wanted.hwid, replace(wanted.tcb, snp=snp), refresh=False
    )


def vcek_requests(server: KeyServer) -> int:
    return sum(
        count
        for path, count in server.requests.items()
        if path.startswith("vcek/v1/Milan/") and "?" in path
    )


@LENGTHENS
@pytest.mark.parametrize("gap", [None, 10.0])
def test_every_client_gets_its_certificate_without_unnecessary_requests(
    milan: EmulatedAuthority, tmp_path: Path, gap: float | None, lengthens: bool
) -> None:
    """20 clients that share a cache want 10 certificates. The server gives one every 10 s.

    If the clients are not told this gap, they learn it from a single refusal.
    """
    clock = Baton()
    with throttling(milan, clock, 10, lengthens=lengthens) as server:
        host = Host(server, tmp_path, RetryPolicy(budget=600, gap=gap), clock=clock)
        started = clock.time
        ended = clock.run([vcek(host, snp) for snp in (*range(10), *range(10))])
    assert [type(found) for found, _ in ended] == [Endorsement] * 20
    refused = 0 if gap else 1
    assert vcek_requests(server) == 10 + refused
    assert server.requests["vcek/v1/Milan/cert_chain"] == 1
    assert server.statuses.get(429, 0) == refused
    ideal = 9 * 10
    assert ideal <= max(when for _, when in ended) - started <= ideal + 5


def test_hosts_behind_one_address_make_way_for_each_other(
    milan: EmulatedAuthority, tmp_path: Path
) -> None:
    """If refusals lengthen the throttle, clients that do not back off never get an answer."""
    clock = Baton()
    with throttling(milan, clock, 10, lengthens=True) as server:
        policy = RetryPolicy(budget=4000, attempts=50, gap=10)
        hosts = [Host(server, tmp_path / name, policy, clock=clock) for name in "abcd"]
        ended = clock.run([vcek(host, snp) for snp, host in enumerate(hosts)])
    assert [type(found) for found, _ in ended] == [Endorsement] * 4
    assert vcek_requests(server) <= 20


def test_a_chain_or_a_list_does_not_wait_for_vceks(host: Host) -> None:
    host.policy = RetryPolicy(gap=10)
    host.vcek()
    host.source().crl(Product.MILAN)
    host.source().chain(Product.TURIN)
    assert host.waits == []
    vcek(host, 99)()
    assert 9 <= sum(host.waits) <= 10


def test_amds_own_server_is_asked_for_one_vcek_in_ten_seconds(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snpcerts.kds.client.AMD_URL", host.server.url)
    for snp in range(3):
        vcek(host, snp)()
    assert 18 <= sum(host.waits) <= 20


def test_a_failed_try_counts_for_every_process_that_wants_the_same(
    milan: EmulatedAuthority, tmp_path: Path
) -> None:
    clock = Baton()
    with throttling(milan, clock, 0, lengthens=False) as server:
        host = Host(server, tmp_path, clock=clock)
        host.source().chain(Product.MILAN)
        server.faults.set(Fault.SERVER_ERROR)
        ended = clock.run([vcek(host, 1)] * 5)
    assert [type(found) for found, _ in ended] == [KdsUnavailableError] * 5
    assert vcek_requests(server) == host.policy.attempts, "must make only as many attempts as one"


class Gated(Faults):
    """Holds every answer back until a test releases it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.gate = threading.Event()

    def take(self) -> frozenset[Fault]:
        self.asked.set()
        assert self.gate.wait(60)
        return super().take()


FETCH = """
import sys
from pathlib import Path
from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.anchors import anchor_from_certificate
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.kds.client import KdsClient
from snpcerts.kds.retry import RetryPolicy
from snpcerts.kds.source import CertificateSource
from snpcerts.kds.store import Store
url, cache, anchor, hwid, snp = sys.argv[1:]
client = KdsClient(url, policy=RetryPolicy(budget=120, gap=0.3))
root = anchor_from_certificate(load_certificate(Path(anchor).read_bytes(), "root"))
source = CertificateSource(Store(Path(cache)), client, anchors=[root])
source.vcek(Product.MILAN, bytes.fromhex(hwid), TcbVersion(4, 0, int(snp), 219))
"""


@pytest.mark.slow
@LENGTHENS
def test_processes_share_the_turn_and_one_that_is_killed_in_it_leaves_it_to_the_others(
    milan: EmulatedAuthority, tmp_path: Path, lengthens: bool
) -> None:
    cache, anchor = tmp_path / "cache", tmp_path / "ark.der"
    anchor.write_bytes(to_pem(milan.ark.public_bytes(Encoding.DER), crl=False))
    with throttling(milan, Clock(), 0.3, lengthens=lengthens) as server:
        host = Host(server, cache, clock=Clock())
        host.source().chain(Product.MILAN)
        server.faults = gated = Gated()
        argv = [server.url, str(cache), str(anchor), host.resource().hwid.hex()]

        def start(snp: int) -> subprocess.Popen[bytes]:
            return subprocess.Popen([sys.executable, "-c", FETCH, *argv, str(snp)])

        first = start(0)
        assert gated.asked.wait(60)
        others = [start(snp) for snp in (0, 1, 1, 2, 2)]
        for other in others:
            _until(lambda other=other: _waits(other.pid))  # type: ignore[misc]
        state = next((cache / "lock").glob("*.json"))
        assert json.loads(state.read_bytes())["asking"] is not None, "must be saved before sending"
        first.send_signal(signal.SIGKILL)
        first.wait(60)
        gated.gate.set()
        assert [other.wait(120) for other in others] == [0] * 5
    assert vcek_requests(server) == 1 + 3, "must be one interrupted, and one per certificate"
    assert set(server.statuses) == {200}
    assert [path.name for path in (cache / "lock").iterdir() if path.suffix == ".new"] == []


def test_an_interrupted_request_still_counts(host: Host) -> None:
    host.policy = RetryPolicy(gap=10)
    line = RequestQueue(host.cache, host.server.url, host.clock)
    with line.turn(host.clock.now() + 9) as turn:
        turn.state.asking = host.clock.now()
        turn.save()
    host.vcek()
    assert 9 <= sum(host.waits) <= 10


def _waits(pid: int) -> bool:
    """Whether a process waits for its turn: it has the lock file open."""
    folder = Path(f"/proc/{pid}/fd")
    try:
        return any(os.readlink(each).endswith(".lock") for each in folder.iterdir())
    except OSError:
        return False


def _until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("never came")


@pytest.mark.parametrize("names", [(".lock",), (".lock", ".spare")])
def test_a_stuck_neighbour_does_not_cut_us_off(host: Host, names: tuple[str, ...]) -> None:
    host.vcek()
    lock = next((host.cache / "lock").glob("*.lock"))
    held = [os.open(lock.with_suffix(name), os.O_RDWR | os.O_CREAT) for name in names]
    try:
        for descriptor in held:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        before = len(host.waits)
        vcek(host, 99)()
        assert sum(host.waits[before:]) < host.policy.budget
    finally:
        for descriptor in held:
            os.close(descriptor)


class Settable(Clock):
    """A clock whose time and time of day a test sets."""

    def __init__(self, boot: str, now: float, wall: float) -> None:
        self.__dict__["boot"] = boot
        self.at, self.day = now, wall

    def now(self) -> float:
        return self.at

    def wall(self) -> float:
        return self.day


DAY = 1e9
THEN = Settable("one", 5000.0, DAY)


def refused_then() -> bytes:
    state = ServerState(saved=THEN.at)
    state.refused(THEN.at, 100.0, 10.0)
    return state.encode(THEN)


@pytest.mark.parametrize("day", [DAY + 30, DAY - 1e8, DAY + 1e8])
def test_setting_the_time_of_day_does_not_touch_a_hold_off(day: float) -> None:
    state = ServerState.decode(refused_then(), Settable("one", 5030.0, day))
    assert state is not None
    assert state.hold_until == 5100.0


@pytest.mark.parametrize(("day", "left"), [(30, 70), (0, 100), (-1, None), (1e8, None)])
def test_after_a_restart_the_time_of_day_is_used(day: float, left: float | None) -> None:
    state = ServerState.decode(refused_then(), Settable("two", 7.0, DAY + day))
    if left is None:
        assert state is None
    else:
        assert state is not None
        assert state.hold_until == pytest.approx(7 + left)


def test_a_state_saved_in_the_future_is_ignored() -> None:
    assert ServerState.decode(refused_then(), Settable("one", 4999.0, DAY)) is None


@st.composite
def hostile_states(draw: st.DrawFn) -> bytes:
    """Return the written state with parts of it replaced."""
    state = json.loads(refused_then())
    failure = Failure(5000, 1, False, 5001, "p", "kds-unavailable", "m", None, 1.0, ())
    full = ServerState(saved=THEN.at, failures={"a path": failure}).encode(THEN)
    state["failures"] = json.loads(full)["failures"]
    values = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=10),
        st.just([]),
        st.just({}),
        st.just([{}]),
        st.sampled_from([1e308, -1e308, "\x1b[2J", "x" * 4000]),
    )
    for _ in range(draw(st.integers(1, 3))):
        target = draw(st.sampled_from([state, *state["failures"][:1]]))
        if isinstance(target, dict) and target and isinstance(state["failures"], list):
            target[draw(st.sampled_from(sorted(target)))] = draw(values)
        if not isinstance(state["failures"], list) or not state["failures"]:
            break
    return json.dumps(state).encode()


@given(st.binary(max_size=300) | hostile_states())
def test_no_file_delays_requests_for_more_than_an_hour(data: bytes) -> None:
    now = 5010.0
    state = ServerState.decode(data, Settable("one", now, DAY + 10))
    if state is None:
        return
    most = now + MAX_RETRY_AFTER
    assert max(state.hold_until, state.next_at) <= most
    for failure in state.failures.values():
        assert failure.again_at <= most
        assert failure.message.isprintable()
    state.saved = now
    assert ServerState.decode(state.encode(THEN), Settable("one", now, DAY)) is not None


def test_the_record_of_failures_is_bounded() -> None:
    clock = Settable("one", 5000.0, DAY)
    state = ServerState(saved=clock.at)
    for index in range(1000):
        failure = Failure(
            4000 + index / 1000,
            1,
            True,
            0.0,
            "p" * 999,
            "c",
            "\x1b\n" * 500,
            "h" * 999,
            None,
            ("r" * 999,) * 9,
        )
        state.failures[f"vcek/v1/Milan/{index:0200}"] = failure
    state.forget(clock.at)
    data = state.encode(clock)
    assert len(data) <= 1 << 15
    found = ServerState.decode(data, clock)
    assert found is not None
    assert f"vcek/v1/Milan/{999:0200}" in found.failures


def _symlink_of_the_folder(lock: Path, elsewhere: Path) -> None:
    lock.symlink_to(elsewhere, target_is_directory=True)


def _file_for_a_folder(lock: Path, _elsewhere: Path) -> None:
    lock.write_bytes(b"")


def _each(make: Callable[[Path, Path], object]) -> Callable[[Path, Path], None]:
    def plant(lock: Path, elsewhere: Path) -> None:
        lock.mkdir(parents=True)
        for name in ("LINE.lock", "LINE.spare", "LINE.json", ".LINE.json.new"):
            make(lock / name, elsewhere / "precious")

    return plant


PLANTED: dict[str, Callable[[Path, Path], None]] = {
    "folder is a symlink": _symlink_of_the_folder,
    "folder is a file": _file_for_a_folder,
    "symlinks": _each(lambda name, precious: name.symlink_to(precious)),
    "symlinks to a device": _each(lambda name, _: name.symlink_to("/dev/zero")),
    "hard links": _each(lambda name, precious: name.hardlink_to(precious)),
    "pipes": _each(lambda name, _: os.mkfifo(name)),
    "folders": _each(lambda name, _: name.mkdir()),
    "nonsense": _each(lambda name, _: name.write_bytes(b'{"at": 1e999, "boot": []}')),
    "large": _each(lambda name, _: name.write_bytes(bytes(1 << 20))),
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_a_hostile_cache_changes_no_other_file_and_costs_no_certificate(
    host: Host, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_bytes(b"precious")
    host.cache.mkdir()
    plant(host.cache / "lock", elsewhere)
    line = RequestQueue(host.cache, host.server.url, host.clock)
    for path in (host.cache / "lock").glob("*LINE*") if (host.cache / "lock").is_dir() else ():
        path.rename(path.with_name(path.name.replace("LINE", line._name)))
    host.policy = RetryPolicy(gap=10)
    source = host.source()
    wanted = host.resource()
    for snp in (1, 2):
        assert source.vcek(wanted.product, wanted.hwid, replace(MILAN_TCB, snp=snp))
    with (
        line.turn(host.clock.now() + 9),
        open(elsewhere / "precious", "rb") as precious,
    ):
        fcntl.flock(precious, fcntl.LOCK_EX | fcntl.LOCK_NB)  # our lock must not be on this file
    assert sum(host.waits) > 9, "the process must obey the gap that it remembers"
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]
    assert (elsewhere / "precious").read_bytes() == b"precious"
    assert host.warnings == []


def test_nothing_is_left_in_the_cache_but_the_lock_and_the_state(host: Host) -> None:
    for snp in range(3):
        vcek(host, snp)()
    names = {path.suffix for path in (host.cache / "lock").iterdir()}
    assert names == {".lock", ".json"}
    assert len(list((host.cache / "lock").iterdir())) == 2


def test_each_server_has_its_own_turn_and_state(host: Host) -> None:
    clock = SkippingClock()
    one, other = (RequestQueue(host.cache, url, clock) for url in ("http://one", "http://other"))
    with one.turn(clock.now() + 9) as turn:
        turn.state.refused(clock.now(), 100, 10)
        turn.save()
    with other.turn(clock.now() + 9) as turn:
        assert turn.state.hold_until < clock.now()
    with RequestQueue(host.cache, "http://one", clock).turn(clock.now() + 9) as turn:
        assert turn.state.hold_until > clock.now()
