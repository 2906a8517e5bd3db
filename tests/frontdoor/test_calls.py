# SPDX-License-Identifier: Apache-2.0
"""Calls on emulated devices: where they arrive, what they can access, how they wait and end."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snpcerts.emulator.frontdoor.supervisor import SIGNAL_INTERVAL
from snpcerts.emulator.frontdoor.tasks import task

from ..sizes import sized
from . import toys
from .conftest import Stage
from .toys import MARKER

EINTR, EFAULT, EBADF = str(-errno.EINTR), str(-errno.EFAULT), str(-errno.EBADF)
NOWHERE = 8


def test_an_ioctl_passes_a_value_in_and_out(stage: Stage) -> None:
    assert stage.printed("open", "/dev/kvm", "echo", 123456) == ["0", "456", "1"]


def test_an_unknown_request_gets_the_devices_own_error(stage: Stage) -> None:
    printed = stage.printed("open", "/dev/kvm", "ioctl", 0xAEFF, 0, "ioctl", 0x5301, 0)
    assert printed == ["0", str(-errno.EBADRQC), str(-errno.EBADRQC)]


def test_only_device_ioctls_come_to_the_device(stage: Stage) -> None:
    fionread, tcgets = 0x541B, 0x5401
    printed = stage.printed(
        "open", "/dev/kvm", "ioctl", tcgets, NOWHERE, "ioctl", fionread, NOWHERE
    )
    assert str(-errno.EBADRQC) not in printed


def test_bad_pointers_are_efault(stage: Stage) -> None:
    steps = [("ioctl", request, NOWHERE) for request in (toys.READ_BAD, toys.WRITE_BAD, toys.ECHO)]
    printed = stage.printed("open", "/dev/kvm", *steps[0], *steps[1], *steps[2], "echo", 1)
    assert printed == ["0", EFAULT, EFAULT, EFAULT, "1", "1"]


def test_closed_descriptors_are_ebadf(stage: Stage) -> None:
    assert (
        stage.printed("open", "/dev/kvm", "close", "api", "use", -1, "api")
        == ["0", "0"] + [EBADF] * 2
    )


def test_a_device_ioctl_on_something_else_is_enotty(stage: Stage) -> None:
    sev_issue_cmd, cdrom_pause = 0xC0105300, 0x5301
    printed = stage.printed(
        *("flags", os.O_RDONLY, "/etc/passwd", "api"),
        *("ioctl", sev_issue_cmd, 0, "ioctl", cdrom_pause, 0),
    )
    assert printed == ["0"] + [str(-errno.ENOTTY)] * 3


def test_a_real_device_answers_nothing(stage: Stage) -> None:
    """The second line of defence: a real descriptor is useless, however the program got it."""
    try:
        real = os.open("/dev/kvm", os.O_RDWR)
    except OSError:
        pytest.skip("needs a real /dev/kvm that this user can open")
    plain = os.open("/dev/kvm", os.O_RDWR | os.O_PATH)
    vm = fcntl.ioctl(real, 0xAE01, 0)
    try:
        for descriptor in (real, plain, vm):
            # The program's standard input stands for a descriptor that is older than the filter.
            running = stage.start("use", 0, "api", "ioctl", 0xAE03, 4, stdin=descriptor)
            assert stage.finish(running) == [str(-errno.ENODEV)] * 2
    finally:
        os.close(real)
        os.close(vm)
        os.close(plain)


@pytest.mark.parametrize("way", ["dup", "fork", "pass"])
def test_descriptors_keep_their_device(stage: Stage, way: str) -> None:
    steps = ("open", "/dev/kvm", way) + (("api",) if way == "dup" else ())
    assert stage.printed(*steps) == ["0", str(MARKER)]


def test_descriptors_keep_their_device_over_exec(stage: Stage) -> None:
    assert stage.printed("open", "/dev/kvm", "keep", "exec") == ["0", str(MARKER)]
    assert stage.printed("open", "/dev/kvm", "exec") == ["0", EBADF], "close-on-exec"


def test_each_open_is_a_device_of_its_own(stage: Stage) -> None:
    printed = stage.printed(
        "open", "/dev/kvm", "find", "open", "/dev/sev", "find", "use", 3, "find"
    )
    assert printed == ["0", "0", "0", "1", "0"]
    assert stage.printed("open", "/dev/kvm", "ioctl", toys.FIND, 1) == ["0", EBADF]


def test_a_device_learns_who_calls(stage: Stage) -> None:
    running = stage.start(
        *("flags", os.O_RDONLY, "/dev/kvm", "ioctl", toys.WRITABLE, 0),
        *("ioctl", toys.PROCESS, 0, "ioctl", toys.INTERRUPTED, 0),
    )
    assert stage.finish(running) == ["0", "0", str(running.pid), "0"]


def test_shared_memory_is_shared(stage: Stage) -> None:
    printed = stage.printed("open", "/dev/kvm", "shared")
    assert printed == ["0", str(MARKER), "42", "2"], "the mapping must outlive its descriptor"


def test_devices_are_closed_when_the_last_descriptor_goes(stage: Stage) -> None:
    running = stage.start(
        "open",
        "/dev/kvm",
        "api",
        "dup",
        "until-input",
        "close",
        "until-input",
        "use",
        3,
        "close",
        "until-input",
    )
    stage.serve(lambda: len(stage.toys.open) == 1)
    stage.tell(running)
    stage.tell(running)
    stage.serve(lambda: not stage.toys.open)
    assert stage.toys.closed == 1
    assert running.exit_code is None, "must be closed by close(2), before the program ends"
    stage.tell(running)
    assert stage.finish(running) == ["0", str(MARKER), "0", "0"]


def test_a_stranger_that_opens_and_closes_ends_nothing(stage: Stage) -> None:
    """A debugger may look at a descriptor through /proc."""
    running = stage.start("open", "/dev/kvm", "api", "until-input", "api")
    stage.serve(lambda: len(stage.toys.open) == 1)
    os.close(os.open(f"/proc/{running.pid}/fd/3", os.O_RDWR))
    end = time.monotonic() + 0.05
    stage.serve(lambda: time.monotonic() > end)
    stage.tell(running)
    assert stage.finish(running) == ["0", str(MARKER), str(MARKER)]
    assert len(stage.toys.opened) == 1, "must still be the first open"


def test_a_full_descriptor_table_is_emfile(stage: Stage, probe: Path) -> None:
    steps = ("open", "/dev/kvm", "api", "open", "/dev/kvm", "api", "plain")
    running = stage.start("until-input", *steps)
    resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (5, 5))
    stage.tell(running)
    printed = stage.finish(running)
    assert printed == ["0", str(MARKER), "0", str(MARKER), str(-errno.EMFILE)]
    stage.serve(lambda: not stage.toys.open)
    assert stage.toys.closed == 3, "given or not"


def test_a_waiting_call_does_not_hold_up_others(stage: Stage) -> None:
    waiter = stage.start("open", "/dev/kvm", "wait")
    stage.serve(lambda: len(stage.toys.waiting) == 1)
    assert stage.printed("open", "/dev/kvm", "api", "ioctl", toys.RELEASE, 0) == [
        "0",
        str(MARKER),
        "1",
    ]
    assert stage.finish(waiter) == ["0", "7"]


def test_a_waiting_call_is_asked_at_its_deadline(stage: Stage) -> None:
    stage.toys.limit = time.monotonic() + 0.05
    running = stage.start("open", "/dev/kvm", "wait")
    stage.serve(lambda: bool(stage.toys.waiting))
    stage.toys.waiting[0].released = True
    assert stage.finish(running) == ["0", "7"]


def test_a_signal_breaks_a_waiting_call(stage: Stage) -> None:
    """Even with SA_RESTART, because the kernel never restarts KVM_RUN."""
    running = stage.start("open", "/dev/kvm", "kicked", "api")
    stage.serve(lambda: len(stage.toys.waiting) == 1)
    stage.tell(running)
    assert stage.finish(running) == ["0", EINTR, str(MARKER)]
    assert stage.toys.cancelled == 1
    assert SIGNAL_INTERVAL <= 0.01


def test_a_signal_to_the_process_breaks_a_waiting_call(stage: Stage) -> None:
    """The program's other thread blocks the signal, so the waiting thread must take it."""
    running = stage.start("open", "/dev/kvm", "kicked", "api")
    stage.serve(lambda: len(stage.toys.waiting) == 1)
    os.kill(running.pid, signal.SIGUSR1)
    stage.serve(lambda: stage.toys.cancelled == 1)
    stage.tell(running)
    assert stage.finish(running) == ["0", EINTR, str(MARKER)]


def test_a_call_that_cannot_be_interrupted_is_not(stage: Stage) -> None:
    """A guest message that is on its way must be answered."""
    stage.toys.interruptible = False
    running = stage.start("open", "/dev/kvm", "kicked", "api")
    stage.serve(lambda: len(stage.toys.waiting) == 1)
    os.kill(running.pid, signal.SIGUSR1)
    looks = []
    stage.serve(lambda: looks.append(task(running.pid)) or len(looks) > 5)  # type: ignore[func-returns-value]
    assert stage.toys.cancelled == 0
    assert any(each is not None and each.shared for each in looks), "a signal must be pending"
    stage.toys.waiting[0].released = True
    stage.tell(running)
    assert stage.finish(running) == ["0", "7", str(MARKER)]


def test_memory_unmapped_while_the_call_waits_is_efault(stage: Stage) -> None:
    running = stage.start("open", "/dev/kvm", "unmapped")
    stage.serve(lambda: len(stage.toys.waiting) == 1)
    stage.tell(running)
    assert stage.finish(running) == ["0", EFAULT]


def test_a_killed_program_leaves_nothing(stage: Stage) -> None:
    running = stage.start("open", "/dev/kvm", "plain", "open", "/dev/sev", "wait")
    stage.serve(lambda: len(stage.toys.waiting) == 1)
    running.process.kill()
    stage.serve(lambda: running.exit_code is not None and not stage.toys.open)
    assert running.exit_code == 128 + signal.SIGKILL
    stage.serve(lambda: not stage.toys.waiting)
    assert (stage.toys.cancelled, stage.toys.closed) == (1, 3)
    running.process.communicate()
    said = stage.printed("open", "/dev/kvm", "api")
    assert said == ["0", str(MARKER)], "other programs must still be served"


def test_what_an_ended_program_had_open_can_be_closed_before_other_events(stage: Stage) -> None:
    running = stage.start("open", "/dev/kvm", "api", "api")
    stage.serve(lambda: len(stage.toys.open) == 1)
    running.process.kill()
    running.process.communicate()
    assert stage.supervisor.devices, "the device must still be open"
    stage.supervisor.reap()
    assert not stage.supervisor.devices
    assert stage.toys.closed == 1


def test_a_killed_child_cancels_its_call_only(stage: Stage) -> None:
    """Its parent lives on with the same descriptor."""
    running = stage.start("open", "/dev/kvm", "waiting-child", "until-input", "api")
    stage.serve(lambda: len(stage.toys.waiting) == 1)
    os.kill(stage.toys.waiting[0].caller.pid, signal.SIGKILL)
    stage.serve(lambda: not stage.toys.waiting)
    assert (stage.toys.cancelled, len(stage.toys.open)) == (1, 1)
    stage.tell(running)
    assert stage.finish(running)[2:] == [str(signal.SIGKILL.value), str(MARKER)]


def test_exit_codes_are_a_shells(stage: Stage, tmp_path: Path) -> None:
    running = stage.start("exit", 3)
    stage.finish(running)
    assert running.exit_code == 3
    running = stage.start("raise", signal.SIGTERM.value)
    stage.finish(running)
    assert running.exit_code == 128 + signal.SIGTERM
    running = stage.start(program=tmp_path / "absent")
    stage.finish(running)
    assert running.exit_code == 127


STORM = sized(250, 3125)  # calls of each thread


def _storm(stage: Stage, threads: int, calls: int) -> None:
    printed = stage.printed("open", "/dev/kvm", "storm", threads, calls)
    assert printed == ["0", "0"], "every answer must reach the thread that asked"
    assert len(stage.toys.echoed) == threads * calls, "none lost"
    assert set(stage.toys.echoed.values()) == {1}, "none twice"


def test_no_call_is_lost_or_repeated_under_signals(stage: Stage) -> None:
    _storm(stage, 16, 250)


@pytest.mark.slow
def test_a_storm_of_calls_of_32_threads_under_signals(stage: Stage) -> None:
    _storm(stage, 32, STORM)


@pytest.mark.slow
def test_a_storm_of_calls_of_a_static_go_program_under_signals(
    stage: Stage, tmp_path: Path
) -> None:
    """Go's runtime also sends signals to the program's threads, for scheduling."""
    if shutil.which("go") is None:
        pytest.skip("no go on this machine to build the program with")
    program = tmp_path / "storm"
    built = subprocess.run(
        ["go", "build", "-o", program, Path(__file__).with_name("storm.go")],
        env=os.environ | {"CGO_ENABLED": "0", "GO111MODULE": "off"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert stage.printed(32, STORM, program=program) == ["0"]
    assert len(stage.toys.echoed) == 32 * STORM, "none lost"
    assert set(stage.toys.echoed.values()) == {1}, "none twice"


@pytest.mark.parametrize("seed", range(sized(1, 3)))
def test_nonsense_does_not_end_the_supervisor(stage: Stage, tmp_path: Path, seed: int) -> None:
    """Nor does it leave a device open."""
    printed = stage.printed("chdir", tmp_path, "open", "/dev/kvm", "fuzz", seed, 5000)
    assert printed == ["0", "0", "survived"]
    stage.serve(lambda: not stage.toys.open)
    assert stage.toys.closed > stage.by_way(10, 2)


def _server(probe: Path, *steps: object) -> subprocess.Popen[bytes]:
    """Start a supervisor as a separate process, in the foreground group of a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", toys.__name__, str(probe), *map(str, steps)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )


def test_an_interrupt_from_the_terminal_is_the_programs(probe: Path) -> None:
    """When SIGINT has ended the program, the supervisor exits as a shell would: 128 + SIGINT."""
    server = _server(probe, "open", "/dev/kvm", "until-input")
    assert server.stdout is not None
    assert server.stdout.readline() == b"0\n"
    os.killpg(server.pid, signal.SIGINT)
    assert server.wait() == 128 + signal.SIGINT
    server.communicate()


def test_a_program_ends_with_its_supervisor(probe: Path) -> None:
    """A supervisor that gets SIGKILL cannot end its programs. They must end, closing the pipe."""
    server = _server(*(probe, "open", "/dev/kvm", "waiting-child", "until-input"))
    assert server.stdout is not None
    assert server.stdout.readline() == b"0\n"
    server.kill()
    server.wait()
    assert server.stdout.read() is not None
    server.communicate()
