# SPDX-License-Identifier: Apache-2.0
"""The exit service, in C and in Python alone, against a KVM_RUN that does what the test says."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snpcerts.abi.kvm import RUN_SIZE, ExitReason, RunView
from snpcerts.abi.lock import EXCLUSIVE, F_OFD_SETLK
from snpcerts.certfile import system
from snpcerts.certfile.file import CertFile
from snpcerts.certfile.step import Steps
from snpcerts.errors import UsageError
from snpcerts.vmm import c_library
from snpcerts.vmm.exit_service import ExitService, Outcome, Served
from snpcerts.vmm.guest_memory import GuestMemoryError, MappedMemory

BASE = 0x10000
SIZE = 0x8000
ENTERED = 2  # the service's own value of immediate_exit; a kick writes 1


def in_c() -> bool:
    """Whether the library in C was compiled; it is if there is a compiler."""
    return c_library.load() is not None


@pytest.fixture(params=["C", "Python"], autouse=True)
def language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run every test with the library in C, and with Python alone."""
    if request.param == "Python":
        monkeypatch.setattr(c_library, "load", lambda: None)
    elif not in_c():
        pytest.skip("libsnpcerts.so was not compiled: no C compiler, or not Linux on x86-64")
    return str(request.param)


def test_c_serves_where_it_can(file: Path, language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python serves if a relay must see the steps, or the memory is not a plain MappedMemory."""
    seen: list[str] = []

    def in_c_instead(*_: object) -> Served:
        seen.append("C")
        return Served(Outcome.EMPTY, 0)

    monkeypatch.setattr(ExitService, "_serve_in_c", in_c_instead)
    Vcpu().serve(file)
    assert seen == (["C"] if language == "C" else [])

    class Copied(MappedMemory):
        pass

    class Relayed:
        def __call__(self, steps: Steps[object]) -> object:
            return system.perform(steps)

    vcpu = Vcpu()
    service = ExitService(CertFile(str(file), Relayed()))
    assert service.serve(vcpu.run, vcpu.memory, vcpu.kvm_run).outcome is Outcome.SERVED
    service = ExitService(CertFile(str(file)))
    memory = Copied([(BASE, vcpu.pages)])
    assert service.serve(vcpu.run, memory, vcpu.kvm_run).outcome is Outcome.SERVED
    assert seen == (["C"] if language == "C" else [])


class Vcpu:
    """A vCPU with a request in its kvm_run, and guest memory to check."""

    def __init__(self, gpa: int = BASE + 0x1000, npages: int = 4) -> None:
        self.run = RunView(bytearray(RUN_SIZE))
        self.run.exit_reason = ExitReason.SNP_REQ_CERTS
        self.run.snp_req_certs = (gpa, npages, 0)
        self.pages = bytearray(b"\xcc" * SIZE)
        self.memory = MappedMemory([(BASE, self.pages)])
        self.entered: list[tuple[int, int, int]] = []
        self.fails_with: int | None = errno.EINTR
        self.while_running: Callable[[], object] = lambda: None

    def kvm_run(self) -> None:
        _, npages, ret = self.run.snp_req_certs
        self.entered.append((self.run.immediate_exit, ret, npages))
        self.while_running()
        if self.fails_with is not None:
            raise OSError(self.fails_with, os.strerror(self.fails_with))

    def written(self) -> dict[int, bytes]:
        """Return what was written, from the first byte that is not 0xcc to the last, by its GPA."""
        touched = [i for i, byte in enumerate(self.pages) if byte != 0xCC]
        if not touched:
            return {}
        return {BASE + touched[0]: bytes(self.pages[touched[0] : touched[-1] + 1])}

    def serve(self, path: Path, **options: object) -> Served:
        service = ExitService(CertFile(str(path)), **options)  # type: ignore[arg-type]
        return service.serve(self.run, self.memory, self.kvm_run)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "certs.bin"
    path.write_bytes(b"\x01" * 5000)
    return path


def test_a_table_is_delivered_byte_for_byte(file: Path) -> None:
    vcpu = Vcpu()
    served = vcpu.serve(file)
    assert (served.outcome, served.ret, served.size) == (Outcome.SERVED, 0, 5000)
    assert vcpu.written() == {BASE + 0x1000: b"\x01" * 5000}
    assert vcpu.entered == [(ENTERED, 0, 4)]
    assert served.run_errno == errno.EINTR
    assert vcpu.run.immediate_exit == 0


@pytest.mark.parametrize(
    ("size", "npages", "needed"),
    [(5000, 1, 2), (4096, 0, 1), (4097, 1, 2), (8192, 1, 2), (8193, 2, 3), (5000, 0, 2)],
)
def test_too_few_pages_gets_the_exact_number_and_nothing_written(
    file: Path, size: int, npages: int, needed: int
) -> None:
    file.write_bytes(b"\x01" * size)
    vcpu = Vcpu(npages=npages)
    served = vcpu.serve(file)
    assert (served.outcome, served.needed_pages) == (Outcome.TOO_SMALL, needed)
    assert vcpu.entered == [(ENTERED, errno.ENOSPC, needed)]
    assert vcpu.written() == {}


@pytest.mark.parametrize("size", [4096, 8192])
def test_a_table_that_fills_its_pages_exactly_fits(file: Path, size: int) -> None:
    file.write_bytes(b"\x01" * size)
    vcpu = Vcpu(npages=size // 4096)
    assert vcpu.serve(file).outcome is Outcome.SERVED
    assert vcpu.written() == {BASE + 0x1000: b"\x01" * size}


@pytest.mark.parametrize("npages", [1 << 52, 2**64 - 1])
def test_a_huge_number_of_pages_is_just_enough(file: Path, npages: int) -> None:
    vcpu = Vcpu(npages=npages)
    assert vcpu.serve(file).outcome is Outcome.SERVED
    assert len(vcpu.written()[BASE + 0x1000]) == 5000


@pytest.mark.parametrize(
    "gpa",
    [
        0,
        BASE - 0x1000,
        BASE + SIZE - 0x1000,  # starts inside, ends outside
        BASE + SIZE,
        BASE + 0x1008,  # not aligned
        2**64 - 0x1000,
    ],
)
def test_a_buffer_that_is_not_the_guests_is_an_error_and_nothing_is_written(
    file: Path, gpa: int
) -> None:
    vcpu = Vcpu(gpa=gpa)
    served = vcpu.serve(file)
    assert (served.outcome, served.ret) == (Outcome.FAILED, errno.EIO)
    assert vcpu.written() == {}
    assert vcpu.entered == [(ENTERED, errno.EIO, 4)]


def test_a_missing_file_gives_an_empty_table_and_a_line_for_the_operator(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vcpu = Vcpu()
    with caplog.at_level(logging.WARNING):
        served = vcpu.serve(tmp_path / "missing")
    assert (served.outcome, served.ret) == (Outcome.EMPTY, 0)
    assert vcpu.written() == {BASE + 0x1000: bytes(24)}
    assert "missing: No such file" in caplog.text


def test_a_missing_file_and_no_pages_is_success_with_nothing_written(tmp_path: Path) -> None:
    vcpu = Vcpu(gpa=0, npages=0)
    assert vcpu.serve(tmp_path / "missing").ret == 0
    assert vcpu.written() == {}


def test_eio_for_a_missing_file_only_where_asked_for(tmp_path: Path) -> None:
    vcpu = Vcpu()
    served = vcpu.serve(tmp_path / "missing", on_error="eio")
    assert (served.outcome, served.ret) == (Outcome.FAILED, errno.EIO)
    assert "No such file" in (served.detail or "")


def test_an_empty_table_is_served_as_24_zero_bytes_without_a_complaint(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_bytes(bytes(24))
    vcpu = Vcpu()
    assert vcpu.serve(file) == Served(Outcome.EMPTY, 0, size=24, run_errno=errno.EINTR)
    assert vcpu.written() == {BASE + 0x1000: bytes(24)}
    assert caplog.text == ""


def test_busy_while_the_lock_is_held(file: Path) -> None:
    vcpu = Vcpu()
    fd = os.open(file, os.O_RDWR)
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, EXCLUSIVE)
        served = vcpu.serve(file, lock_wait=0.01)
    finally:
        os.close(fd)
    assert (served.outcome, served.ret) == (Outcome.BUSY, errno.EAGAIN)
    assert vcpu.written() == {}
    assert vcpu.serve(file).outcome is Outcome.SERVED


@pytest.mark.parametrize("code", [errno.EINTR, errno.EINVAL, errno.EIO, errno.EBADF, None])
def test_the_lock_is_released_for_any_result_of_kvm_run(file: Path, code: int | None) -> None:
    vcpu = Vcpu()
    vcpu.fails_with = code
    held: list[bool] = []

    def try_exclusive() -> None:
        fd = os.open(file, os.O_RDWR)
        try:
            fcntl.fcntl(fd, F_OFD_SETLK, EXCLUSIVE)
            held.append(False)
        except BlockingIOError:
            held.append(True)
        finally:
            os.close(fd)

    vcpu.while_running = try_exclusive
    assert vcpu.serve(file).run_errno == (code or 0)
    try_exclusive()
    assert held == [True, False]


def test_with_a_descriptor_the_service_enters_kvm_run_itself(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The descriptor in this test is of /dev/null, which refuses KVM_RUN."""
    vcpu = Vcpu()
    service = ExitService(CertFile(str(file)))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with open(os.devnull, "rb") as device:
        served = [service.serve(vcpu.run, vcpu.memory, device.fileno()) for _ in range(2)]
    assert served == 2 * [Served(Outcome.SERVED, 0, size=5000, run_errno=errno.ENOTTY)]
    assert vcpu.written() == {BASE + 0x1000: b"\x01" * 5000}
    assert vcpu.run.immediate_exit == 0
    assert f"KVM_RUN failed with errno {errno.ENOTTY}" in caplog.text
    with open(file, "rb+") as writer:
        fcntl.fcntl(writer, F_OFD_SETLK, EXCLUSIVE)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_an_interrupt_while_signals_are_being_blocked_leaves_none_blocked(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it has changed the mask, Python calls the handlers of signals that have arrived."""
    vcpu = Vcpu()
    blocking = signal.pthread_sigmask
    before = blocking(signal.SIG_BLOCK, ())

    def interrupted(how: int, mask: Iterable[int]) -> set[int]:
        found = blocking(how, mask)
        if mask and how == signal.SIG_BLOCK:
            raise KeyboardInterrupt
        return set(found)

    monkeypatch.setattr(c_library, "load", lambda: None)
    monkeypatch.setattr(signal, "pthread_sigmask", interrupted)
    service = ExitService(CertFile(str(file)))
    with open(os.devnull, "rb") as device, pytest.raises(KeyboardInterrupt):
        service.serve(vcpu.run, vcpu.memory, device.fileno())
    assert blocking(signal.SIG_BLOCK, ()) == before
    with open(file, "rb+") as writer:
        fcntl.fcntl(writer, F_OFD_SETLK, EXCLUSIVE)


def test_requests_of_many_threads_at_once_are_all_served(file: Path) -> None:
    service = ExitService(CertFile(str(file)))
    vcpus = [Vcpu(gpa=BASE + 0x1000 * n, npages=2) for n in range(6)]
    together = threading.Barrier(len(vcpus), timeout=60)
    for vcpu in vcpus:
        vcpu.while_running = together.wait  # all hold their locks here

    def ask(vcpu: Vcpu) -> Served:
        return service.serve(vcpu.run, vcpu.memory, vcpu.kvm_run)

    with ThreadPoolExecutor(len(vcpus)) as threads:
        for _ in range(20):
            served = list(threads.map(ask, vcpus, timeout=60))
            assert {each.outcome for each in served} == {Outcome.SERVED}
    for number, vcpu in enumerate(vcpus):
        assert vcpu.written() == {BASE + 0x1000 * number: b"\x01" * 5000}


def test_another_exception_of_the_vmm_passes_with_the_lock_dropped(file: Path) -> None:
    vcpu = Vcpu()

    def stop() -> None:
        raise KeyboardInterrupt

    vcpu.while_running = stop
    with pytest.raises(KeyboardInterrupt):
        vcpu.serve(file)
    assert vcpu.run.immediate_exit == 0
    fd = os.open(file, os.O_RDWR)
    fcntl.fcntl(fd, F_OFD_SETLK, EXCLUSIVE)
    os.close(fd)


def test_an_immediate_exit_that_was_set_before_stays_set(file: Path) -> None:
    vcpu = Vcpu()
    vcpu.run.immediate_exit = 1
    vcpu.serve(file)
    assert vcpu.run.immediate_exit == 1


def test_a_kick_in_the_handshake_stays(file: Path) -> None:
    vcpu = Vcpu()

    def kick() -> None:
        vcpu.run.immediate_exit = 1

    vcpu.while_running = kick
    vcpu.serve(file)
    assert vcpu.run.immediate_exit == 1


def test_c_and_python_report_a_bad_file_in_the_same_words(file: Path, language: str) -> None:
    """The sentences are those of the reader in Python, whichever language serves."""
    said: list[str | None] = []

    def serve(**options: object) -> None:
        said.append(Vcpu().serve(file, **options).detail)

    serve(size_limit=4999)
    file.unlink()
    serve()
    file.mkdir()
    serve()
    serve(on_error="eio")
    where = f"{file}: "
    assert said == [
        f"{where}the file has 5000 bytes; the limit is 4999",
        f"{where}No such file or directory",
        f"{where}not a regular file",
        f"{where}not a regular file",
    ]


def test_a_path_that_c_cannot_express_is_an_unreadable_file(tmp_path: Path) -> None:
    vcpu = Vcpu()
    served = vcpu.serve(tmp_path / "certs\0.bin")
    assert served.outcome is Outcome.EMPTY
    assert "embedded null" in (served.detail or "")


@pytest.mark.parametrize("options", [{"on_error": "ignore"}, {"lock_wait": -1}, {"lock_wait": 60}])
def test_wrong_options_are_refused_at_once(file: Path, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Vcpu().serve(file, **options)


def test_outcomes_are_plain_values_for_a_log(file: Path) -> None:
    assert Vcpu(npages=1).serve(file).to_json() == {
        "outcome": "too-small",
        "ret": errno.ENOSPC,
        "size": 0,
        "needed_pages": 2,
        "detail": None,
        "run_errno": errno.EINTR,
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    gpa=st.integers(0, 2**64 - 1) | st.integers(0, 0x20).map(lambda page: page * 0x1000),
    npages=st.integers(0, 2**64 - 1) | st.integers(0, 8),
    size=st.integers(1, 20000),
)
def test_nothing_is_ever_written_outside_the_buffer(
    tmp_path_factory: pytest.TempPathFactory, gpa: int, npages: int, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "property.bin"
    path.write_bytes(b"\x01" * size)
    vcpu = Vcpu(gpa=gpa, npages=npages)
    served = vcpu.serve(path)
    assert served.ret in (0, errno.ENOSPC, errno.EIO)
    if served.outcome is Outcome.SERVED:
        assert vcpu.written() == {gpa: b"\x01" * size}
        assert size <= npages * 4096
    else:
        assert vcpu.written() == {}


def test_memory_is_written_across_slots_that_touch() -> None:
    low, high = bytearray(0x1000), bytearray(0x1000)
    memory = MappedMemory([(0x2000, high), (0x1000, low)])
    memory.write(0x1FFE, b"abcd")
    assert low[-2:] + high[:2] == b"abcd"


def test_memory_with_a_hole_is_not_written_at_all() -> None:
    low, high = bytearray(0x1000), bytearray(0x1000)
    memory = MappedMemory([(0x1000, low), (0x3000, high)])
    with pytest.raises(GuestMemoryError, match="0x2000"):
        memory.write(0x1FFE, bytes(b"x" * 0x1004))
    assert not any(low)
    assert not any(high)
