# SPDX-License-Identifier: Apache-2.0
"""However a command ends, it leaves no process and no lock.

It leaves no directory either, except after SIGKILL; then a later command removes it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snpcerts.emulator.frontdoor import seccomp
from snpcerts.emulator.frontdoor.seccomp import FrontDoorUnavailableError
from snpcerts.temporary_directory import TemporaryDirectory, remove_abandoned, temporary_directory

from .leftovers import Marked, end, has
from .sizes import sized

DEMO = (sys.executable, str(Path(__file__).with_name("quick_demo.py")))

# A VMM that has left its process group and its parent, as a daemon does, and holds a lock.
DAEMON = (
    "import fcntl, os, sys, time\n"
    "file = open(sys.argv[1], 'rb')\n"
    "fcntl.flock(file, fcntl.LOCK_SH)\n"
    "os.set_inheritable(file.fileno(), True)\n"
    "os.fork() or (os.setsid(), os.fork() and os._exit(0), os.execvp('sleep', ['sleep', '777']))\n"
    "time.sleep(1000)\n"
)
VMM = ("conformance", "--timeout", "600", "--", sys.executable, "-c", DAEMON, "{certs}")
_OFTEN = [
    (signal.SIGINT, True),  # Ctrl-C: the whole foreground group
    (signal.SIGTERM, False),
    (signal.SIGKILL, False),
]
_SELDOM = [(signal.SIGINT, False), (signal.SIGHUP, True), (signal.SIGKILL, True)]
ENDINGS = sized(_OFTEN, _OFTEN + _SELDOM)
names = [f"{number.name}-{'group' if group else 'alone'}" for number, group in ENDINGS]


@pytest.fixture(autouse=True)
def _kernel() -> None:
    try:
        seccomp.check()
    except FrontDoorUnavailableError as error:
        pytest.skip(str(error))


def _judge(marked: Marked, number: signal.Signals, said: str) -> None:
    marked.gone()
    assert "Traceback" not in said
    if number is not signal.SIGKILL:
        assert marked.files() == []
    else:  # after SIGKILL the next start removes it
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tempfile.tempdir", str(marked.place))

            def swept(_: object) -> bool:
                # A process is gone from /proc a moment before its locks are.
                for kind in ("conformance", "demo", "platform"):
                    remove_abandoned(f"snpcerts-{kind}-")
                return marked.files() == []

            marked.wait_until(swept)


@pytest.mark.parametrize(("number", "group"), ENDINGS, ids=names)
def test_conformance_leaves_nothing(tmp_path: Path, number: signal.Signals, group: bool) -> None:
    marked = Marked(tmp_path / "tmp")
    started = marked.start(*VMM)
    marked.wait_until(lambda found: any(line.startswith("sleep 777") for line in found.values()))
    said = end(started, number, group=group)
    assert started.returncode == (-number if number is signal.SIGKILL else 128 + number)
    _judge(marked, number, said)


@pytest.mark.parametrize(("number", "group"), ENDINGS, ids=names)
def test_the_demo_leaves_nothing(tmp_path: Path, number: signal.Signals, group: bool) -> None:
    marked = Marked(tmp_path / "tmp")
    started = marked.run(*DEMO, "--guests", "2", "--seconds", "600")
    marked.wait_until(has(["snpcerts.demo.vmm"], 2))
    said = end(started, number, group=group)
    assert started.returncode == (-number if number is signal.SIGKILL else 128 + number)
    _judge(marked, number, said)


@pytest.mark.parametrize(("number", "group"), ENDINGS, ids=names)
def test_a_program_with_a_vm_leaves_nothing(
    tmp_path: Path, number: signal.Signals, group: bool
) -> None:
    """The command has become the program by exec; server and VMM must end when the program does."""
    marked = Marked(tmp_path / "tmp")
    served = tmp_path / "table"
    served.write_bytes(b"")
    argv = ["emulate", "guest", "--certs", str(served), "--", "sleep", "1000"]
    started = marked.start(*argv)
    marked.wait_until(lambda found: found.get(started.pid, "").startswith("sleep "))
    end(started, number, group=group)
    assert started.returncode == -number
    marked.gone()
    assert marked.files() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_ended_while_it_makes_its_machine(tmp_path: Path, number: signal.Signals) -> None:
    marked = Marked(tmp_path / "tmp")
    started = marked.start("emulate", "host", "--", "sleep", "1000")
    marked.wait_until(lambda _: marked.place.exists() and bool(marked.files()))
    said = end(started, number, group=True)
    _judge(marked, number, said)


def test_the_file_that_probes_the_temporary_directory_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call of Python's tempfile creates that file, so signals must be blocked then."""
    masks = []

    def place() -> str:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return str(tmp_path)

    monkeypatch.setattr("tempfile.gettempdir", place)
    TemporaryDirectory.make("demo").remove()
    assert masks
    assert all(signal.SIGTERM in mask for mask in masks)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_program_whose_machine_is_gone_gets_errors(
    tmp_path: Path, number: signal.Signals
) -> None:
    """The program must not reach a real device, nor wait for an answer that cannot come."""
    marked = Marked(tmp_path / "tmp")
    program = (
        "import fcntl, os, signal\n"
        "print(os.open('/dev/kvm', os.O_RDWR) >= 0, flush=True)\n"
        "signal.sigwait({signal.SIGUSR1})\n"
        "try: fcntl.ioctl(os.open('/dev/kvm', os.O_RDWR), 0xAE00)\n"
        "except OSError as error: print(error.strerror)\n"
    )
    mask = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n"
    started = marked.start("emulate", "host", "--", sys.executable, "-c", mask + program)
    assert started.stdout is not None
    assert started.stdout.readline() == b"True\n"
    name = "emulator.machine.server"
    (server,) = (pid for pid, line in marked.processes().items() if name in line)
    handle = os.pidfd_open(server)
    signal.pidfd_send_signal(handle, number)
    marked.wait_until(lambda found: server not in found)
    os.close(handle)
    said = end(started, signal.SIGUSR1, group=False)
    assert said == f"{os.strerror(38)}\n"
    _judge(marked, number, said)


WAITS = "import os\ntry: print(os.wait())\nexcept ChildProcessError: print('no child')\n"


@pytest.mark.parametrize("certs", [False, True], ids=["host", "guest"])
def test_a_program_has_no_children_that_it_did_not_start(tmp_path: Path, certs: bool) -> None:
    served = tmp_path / "table"
    served.write_bytes(b"")
    role = ["guest", "--certs", str(served)] if certs else ["host"]
    marked = Marked(tmp_path / "tmp")
    started = marked.start("emulate", *role, "--", sys.executable, "-c", WAITS)
    said, _ = started.communicate(timeout=60)
    assert said == b"no child\n"
    marked.gone()
    assert marked.files() == []


def test_a_launcher_that_fails_behind_its_filter_ends(tmp_path: Path) -> None:
    """With the listener still open, the launcher's next open would wait for itself forever."""
    script = (
        "import socket\n"
        "from snpcerts.emulator.frontdoor import launch\n"
        "ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "theirs.close()\n"
        "launch.enter(['true'], ours, {})\n"
    )
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert b"Broken pipe" in made.stderr


def test_with_sigint_ignored_a_command_still_ends(tmp_path: Path) -> None:
    """A shell script starts commands in the background with SIGINT ignored."""
    marked = Marked(tmp_path / "tmp")
    started = marked.run(*DEMO, "--guests", "1", "--seconds", "600", ignored=True)
    marked.wait_until(has(["snpcerts.demo.vmm"], 1))
    os.killpg(started.pid, signal.SIGINT)
    said = end(started, signal.SIGTERM, group=False)
    assert started.returncode == 128 + signal.SIGTERM, said
    _judge(marked, signal.SIGTERM, said)


def test_an_abandoned_directory_is_removed_and_one_in_use_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    abandoned = tmp_path / "snpcerts-demo-abcdefgh"
    (abandoned / "deep").mkdir(parents=True)
    others = [tmp_path / name for name in ("snpcerts-demo-mine", "snpcerts-check-abcdefgh")]
    for other in others:
        other.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "snpcerts-demo-lnk_lnk_").symlink_to(elsewhere)
    in_use = TemporaryDirectory.make("demo")
    assert not abandoned.exists()
    with temporary_directory("demo") as made:
        (made / "file").touch()
        assert in_use.path.exists()
    assert not made.exists()
    assert all(path.exists() for path in (*others, elsewhere))
    in_use.remove()


def test_a_directory_lives_as_long_as_a_process_that_inherited_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = TemporaryDirectory.make("platform")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[made.lease]) as heir:
        os.close(made.lease)
        remove_abandoned("snpcerts-platform-")
        assert made.path.exists()
        heir.communicate()
    remove_abandoned("snpcerts-platform-")
    assert not made.path.exists()


MANY = """
import datetime, itertools, sys
from snpcerts.verify.bulk import verify_many
from snpcerts.verify.evidence import Evidence
if __name__ == "__main__":
    at = datetime.datetime.now(datetime.UTC)
    for verdict in verify_many(itertools.repeat(Evidence(bytes(1184))), at=at, jobs=3):
        pass
"""


def test_the_verifiers_processes_end_with_it(tmp_path: Path) -> None:
    marked = Marked(tmp_path / "tmp")
    script = tmp_path / "many.py"
    script.write_text(MANY)
    started = marked.run(sys.executable, str(script))
    marked.wait_until(has(["spawn_main"], 2))
    end(started, signal.SIGKILL, group=False)
    marked.gone()
