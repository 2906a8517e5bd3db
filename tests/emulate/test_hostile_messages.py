# SPDX-License-Identifier: Apache-2.0
"""No launcher's message and no program may end the emulated machine, or stall it for others."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from snpcerts.emulator.frontdoor import bpf, control
from snpcerts.emulator.machine.enter import start_server
from snpcerts.emulator.machine.home import PlatformHome

from ..emulated import Emulated

SCRIPTS: list[object] = [
    [],
    [[]],
    "pages",
    7,
    None,
    {"requests": "1"},
    {"requests": float("nan")},
    {"requests": 10**400},
    {"pages": []},
    {"pages": ""},
    {"pages": 65},
    {"pause": True},
    {"serve": 1},
    {"outcomes": 5},
    {"outcomes": ["/"]},
    {"outcomes": "relative"},
    {"outcomes": "/nul\0"},
    {"outcomes": "/\ud800"},
    {"unknown": 1},
]
VMS: tuple[object, ...] = ([], {}, 7, ["a"], "\ud800", "x" * 60000, True)
ASKED: tuple[object, ...] = ([], {}, None, 7, "\udc00", "")
EXIT_NUMBERS: tuple[object, ...] = ([], {}, "43", 44, True)
MESSAGES: list[object] = [
    *({"ask": "host", "guest": script} for script in SCRIPTS),
    *({"ask": "guest", "vm": vm} for vm in VMS),
    *({"ask": ask} for ask in ASKED),
    *({"ask": "host", "exit_number": number} for number in EXIT_NUMBERS),
    {"ask": "host", "kernel": "6.1"},
    {"ask": "host", "kernel": 7.3},
    {"ask": "host", "kernel": ["7.3"]},
    {"ask": "firmware", "do": []},
    {},
]


@pytest.fixture
def home(unserved: Emulated) -> Iterator[PlatformHome]:
    """A platform whose server belongs to this test."""
    home = PlatformHome(unserved.directory)
    server = start_server(home, detached=False)
    yield home
    assert server.poll() is None, "it still serves"
    server.terminate()
    assert server.wait() == 0


def test_no_message_ends_the_machine(home: PlatformHome) -> None:
    with closing(control.connect(home.control)) as peer:
        for message in MESSAGES:
            for descriptors in ((), (0,), (0, 1, 2)):
                control.send(peer, message, descriptors)  # type: ignore[arg-type]  # hostile
                received = control.receive(peer)
                assert received is not None, message
                assert "error" in received[0], message
        control.send(peer, {"ask": "status"})
        assert control.receive(peer) is not None


def test_a_descriptor_that_is_not_a_listener_is_refused(home: PlatformHome, tmp_path: Path) -> None:
    """The server must not wait for its events: such a descriptor may always be ready, or block."""
    (tmp_path / "file").touch()
    reader, writer = os.pipe()
    os.write(writer, b"x")
    ours, theirs = socket.socketpair()
    with ours, theirs, closing(control.connect(home.control)) as peer:
        ours.send(b"x")
        others = [
            os.open(tmp_path / "file", os.O_RDONLY),
            os.open(tmp_path, os.O_RDONLY),
            os.memfd_create("listener"),
            os.eventfd(1),
            os.pidfd_open(os.getpid()),
            os.open(home.control, os.O_PATH),
            os.open("/dev/null", os.O_RDWR),
        ]
        for descriptor in (reader, writer, theirs.fileno(), *others):
            control.send(peer, {"ask": "host", "guest": {}}, (descriptor,))
            received = control.receive(peer)
            assert received is not None
            assert "expected a seccomp listener" in str(received[0])
        for descriptor in (reader, writer, *others):
            os.close(descriptor)


TWICE = """
import sys
from pathlib import Path
from snpcerts.emulator.frontdoor import bpf, control, seccomp
peer = control.connect(Path(sys.argv[1]))
listener = seccomp.install(bpf.program(look=False))
for _ in range(2):
    control.send(peer, {"ask": "host", "guest": {}}, (listener,))
    print(control.receive(peer)[0])
"""


def test_a_listener_sent_twice_is_served_once(home: PlatformHome) -> None:
    made = subprocess.run(
        [sys.executable, "-c", TWICE, str(home.control)], capture_output=True, text=True, timeout=60
    )
    first, second = made.stdout.splitlines()
    assert "ok" in first
    assert "already in use" in second


def test_outcomes_to_a_pipe_without_a_reader(home: PlatformHome, tmp_path: Path) -> None:
    served = tmp_path / "table"
    served.write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    argv = ["--platform", str(home.path), "host", "--outcomes", str(tmp_path / "pipe"), "--"]
    vmm = [sys.executable, "-P", "-m", "snpcerts.emulator.machine.vmm_program", str(served)]
    made = subprocess.run(
        [sys.executable, "-m", "snpcerts", "emulate", *argv, *vmm], timeout=60, check=False
    )
    assert made.returncode == 0
    assert "cannot write the outcome" in home.log.read_text()


# Opens a path in a page that userfaultfd(2) never provides, so a process that reads the path waits.
UNANSWERED = """
import ctypes, fcntl, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
def make():
    number = libc.syscall(ctypes.c_long(323), ctypes.c_int(os.O_CLOEXEC))
    if number >= 0:
        return number
    print(os.strerror(ctypes.get_errno()))
    device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    return fcntl.ioctl(device, 0xAA00, os.O_CLOEXEC)
try:
    fault = make()
except OSError as error:
    print(error.strerror)
    sys.exit()
fcntl.ioctl(fault, 0xC018AA3F, bytearray(struct.pack("<QQQ", 0xAA, 0, 0)))
page = libc.mmap(None, 4096, 3, 0x22, -1, 0)
fcntl.ioctl(fault, 0xC020AA00, bytearray(struct.pack("<QQQQ", page, 4096, 1, 0)))
print("waiting", flush=True)
libc.open(ctypes.c_void_p(page), 0)
"""


def test_memory_that_never_answers_does_not_stall_others(home: PlatformHome) -> None:
    assert bpf.USERFAULTFD_IOC_NEW == 0xAA00
    argv = ["--platform", str(home.path), "host", "--", sys.executable, "-c", UNANSWERED]
    made = subprocess.run(
        [sys.executable, "-m", "snpcerts", "emulate", *argv],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert made.stdout.splitlines()[0] == "Function not implemented"
    assert made.stdout.splitlines()[1] in (
        "Inappropriate ioctl for device",
        "No such file or directory",
        "Permission denied",
    )
    with closing(control.connect(home.control)) as peer:
        control.send(peer, {"ask": "status"})
        answer = control.receive(peer)
    assert answer is not None
    assert json.dumps(answer[0]["product"]) == '"Milan"'
