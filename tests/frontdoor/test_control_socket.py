# SPDX-License-Identifier: Apache-2.0
"""Several launchers, one server: doors by role, one platform."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from snpcerts.emulator.frontdoor import control, ways
from snpcerts.emulator.frontdoor.control import ControlSocket, Hello
from snpcerts.emulator.frontdoor.door import Door
from snpcerts.emulator.frontdoor.layout import Places
from snpcerts.emulator.frontdoor.ways import Way
from snpcerts.errors import InputError, RefusedError, UsageError

from .conftest import Stage
from .toys import MARKER

ENTER = """
import json, pathlib, sys
from snpcerts.emulator.frontdoor import control, launch
where, role, *argv = sys.argv[1:]
launch.enter(argv, control.connect(pathlib.Path(where)), {"role": role})
"""


def _silent(hello: Hello) -> Mapping[str, object]:
    return {}


@pytest.fixture
def served(stage: Stage, tmp_path: Path) -> Iterator[ControlSocket]:
    """A control socket whose doors are "host" and "guest"."""
    doors = {
        "host": stage.toys.door(),
        "guest": Door({"/dev/sev-guest": stage.toys.device}),
    }

    def handler(hello: Hello) -> Mapping[str, object]:
        role = hello.message.get("role")
        if role not in doors or (not hello.descriptors and "layout" not in hello.message):
            for descriptor in hello.descriptors:
                os.close(descriptor)
            raise UsageError(f"no role {role!r}")
        if "layout" in hello.message:
            return {"ok": True, "layout": doors[role].layout().to_json()}
        listener, *given = hello.descriptors
        places = Places.from_json(hello.message["places"]) if given else None
        stage.supervisor.add_listener(listener, doors[role], places=places, namespace=given)
        return {"ok": True, "pid": hello.pid}

    served = ControlSocket(tmp_path / "control", handler)
    served.attach(stage.supervisor)
    yield served
    served.close()


def _enter(served: ControlSocket, way: Way, role: str, *argv: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", ENTER, str(served.path), role, *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {ways.VARIABLE: way.value},
    )


def test_commands_of_two_roles_share_a_server(stage: Stage, served: ControlSocket) -> None:
    argv = ("open", "/dev/kvm", "api", "open", "/dev/sev-guest")
    host = _enter(served, stage.way, "host", stage.probe, *argv)
    argv = ("open", "/dev/kvm", "open", "/dev/sev-guest", "api")
    guest = _enter(served, stage.way, "guest", stage.probe, *argv, "exit", 5)
    stage.serve(lambda: host.poll() is not None and guest.poll() is not None)
    assert host.communicate()[0].split() == [b"0", b"%d" % MARKER, b"-2"]
    assert guest.communicate()[0].split() == [b"-2", b"0", b"%d" % MARKER]
    assert (host.returncode, guest.returncode) == (0, 5)
    assert {info.path for info in stage.toys.opened} == {"/dev/kvm", "/dev/sev-guest"}


def test_a_launcher_hears_why_it_is_refused(stage: Stage, served: ControlSocket) -> None:
    launcher = _enter(served, stage.way, "neighbour", stage.probe)
    stage.serve(lambda: launcher.poll() is not None)
    assert b"no role 'neighbour'" in launcher.communicate()[1]
    assert launcher.returncode == 1


def test_garbage_is_answered_and_leaks_nothing(stage: Stage, served: ControlSocket) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with control.connect(served.path) as peer:
        for packet in (b"{", b"[]", b"\xff", b"[" * 60000, b"x" * 70000):
            socket.send_fds(peer, [packet], [0, 1])
            peer.setblocking(False)
            answers: list[object] = []

            def answered(answers: list[object] = answers) -> bool:
                try:
                    answers.append(control.receive(peer))
                except BlockingIOError:
                    return False
                return True

            stage.serve(answered)
            assert "one JSON object" in str(answers), packet[:4]
    stage.serve(lambda: len(os.listdir("/proc/self/fd")) == before)


def test_the_socket_is_for_its_owner(served: ControlSocket) -> None:
    assert stat.S_IMODE(os.stat(served.path).st_mode) == 0o600


def test_a_second_server_is_refused_and_a_dead_one_replaced(
    stage: Stage, served: ControlSocket, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="another emulator"):
        ControlSocket(served.path, _silent)
    left = tmp_path / "left"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(left))
    ControlSocket(left, _silent).close()
    assert not left.exists()


def test_connecting_without_a_server_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="start the emulator first"):
        control.connect(tmp_path / "nobody")
    with pytest.raises(RefusedError, match="start the emulator first"):
        control.connect(tmp_path / ("x" * 120))
    with pytest.raises(InputError, match="cannot listen"):
        ControlSocket(tmp_path / "absent/control", _silent)


def test_a_socket_may_lie_deeper_than_a_sockets_address_reaches(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    served = ControlSocket(folder / "control", _silent)
    control.connect(folder / "control").close()
    served.close()
    assert list(folder.iterdir()) == []
