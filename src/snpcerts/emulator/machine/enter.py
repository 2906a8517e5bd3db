# SPDX-License-Identifier: Apache-2.0
"""Turns this process into a program on an emulated machine, and starts the machine's server if
needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from snpcerts.emulator.frontdoor import control, launch, seccomp
from snpcerts.emulator.frontdoor.ways import Way
from snpcerts.emulator.guest.script import GuestScript
from snpcerts.emulator.kvm.release import NEWEST, KernelRelease
from snpcerts.emulator.machine.detached import leave_parent
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.errors import RefusedError, RetryLaterError, SnpCertsError
from snpcerts.parent_process import end_with_parent
from snpcerts.temporary_directory import TemporaryDirectory

if TYPE_CHECKING:
    from snpcerts.abi.product import Product
    from snpcerts.emulator.psp.choices import FirmwareChoices

PATIENCE: Final = 30.0  # seconds for a server or a VM to start
_PAUSE: Final = 0.02


@contextlib.contextmanager
def throw_away(
    product: Product | None, choices: FirmwareChoices | None = None
) -> Iterator[PlatformHome]:
    """Yield a temporary platform for one command.

    The platform's server removes the platform's directory when it ends. The block should replace
    this process with the program, and so never end. If it does end, this function removes the
    directory.
    """
    temporary = TemporaryDirectory.make("platform")
    try:
        home = PlatformHome(temporary.path, temporary=temporary)
        home.prepare(product, choices)
        yield home
    finally:
        temporary.remove()


def ask(home: PlatformHome, message: Mapping[str, object]) -> dict[str, Any]:
    """Start the platform's server if needed, send it one message, and return its answer."""
    with contextlib.closing(connect(home)) as peer:
        return _ask(home, peer, message)


def _ask(home: PlatformHome, peer: socket.socket, message: Mapping[str, object]) -> dict[str, Any]:
    control.send(peer, message)
    received = control.receive(peer)
    if received is None:
        raise RefusedError(
            f"the server of the platform in {home.path} closed the connection",
            hint=f"read the server's log: {home.log}",
        )
    answer, _ = received
    if "error" in answer:
        raise RefusedError(str(answer["error"]))
    return answer


def become_host_program(
    home: PlatformHome,
    argv: Sequence[str],
    script: GuestScript,
    kernel: KernelRelease = NEWEST,
    way: Way | None = None,
    *,
    with_guest: bool = False,
) -> NoReturn:
    """Replace this process with ``argv``, which gets ``/dev/sev`` and ``/dev/kvm`` of the platform.

    ``kernel`` is the Linux release of the host. ``with_guest`` adds ``/dev/sev-guest`` of the
    host's VM. ``way`` is as for :func:`~snpcerts.emulator.frontdoor.launch.enter`.
    """
    hello = {
        "ask": "host",
        "guest": script.to_json(),
        "kernel": kernel.series,
        "exit_number": int(kernel.req_certs_exit),
        "with_guest": with_guest,
    }
    _become(home, argv, hello, way)


def become_guest_program(
    home: PlatformHome, argv: Sequence[str], vm: str | None, way: Way | None = None
) -> NoReturn:
    """Replace this process with ``argv``, which gets ``/dev/sev-guest`` of a VM."""
    _become(home, argv, {"ask": "guest", "vm": vm}, way)


def host_program(
    home: PlatformHome,
    argv: Sequence[str],
    script: GuestScript,
    *,
    detached: int | None = None,
    series: str = NEWEST.series,
) -> list[str]:
    """Return the command line of a process that becomes ``argv`` on the platform's host.

    The process is killed when this process ends. If ``detached`` is an inherited descriptor, the
    new process detaches from this one instead, and writes its process ID to that descriptor.
    ``series`` is the host's Linux release.
    """
    keeping = f"{os.getpid()}" if detached is None else f"detached {detached}"
    own = [str(home.path), json.dumps(script.to_json()), series, keeping]
    return [sys.executable, "-P", "-m", __name__, *own, *argv]


def start_reference_vm(home: PlatformHome, certs: str, series: str = NEWEST.series) -> str:
    """Start the built-in VMM, which serves the file ``certs``, on a host with Linux ``series``.

    Returns the name of its VM. The VMM is a separate process, not a child of the calling one, and
    ends when the calling process ends.
    """
    program = [sys.executable, "-P", "-m", "snpcerts.emulator.machine.vmm_program", certs]
    with contextlib.ExitStack() as stack:
        # This connection keeps the server up until the VMM has created its VM.
        peer = stack.enter_context(contextlib.closing(connect(home)))
        ours = os.pidfd_open(os.getpid())
        stack.callback(os.close, ours)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        with open(reading, "rb") as pipe:
            try:
                launcher = subprocess.Popen(
                    host_program(
                        home,
                        [*program, str(ours)],
                        GuestScript(serve=True),
                        detached=writing,
                        series=series,
                    ),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(writing, ours),
                    start_new_session=True,
                )
            finally:
                os.close(writing)
            launcher.wait()
            said = pipe.readline()
        if not said:
            raise RefusedError("the built-in VMM did not start")
        pid = int(said)
        try:
            vmm = os.pidfd_open(pid)
        except ProcessLookupError:
            raise RefusedError("the built-in VMM ended before it created a VM") from None
        stack.callback(os.close, vmm)
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            for vm in _ask(home, peer, {"ask": "status"})["vms"]:
                if vm["pid"] == pid and vm["serves"]:
                    return str(vm["name"])
            if select.select([vmm], [], [], _PAUSE)[0]:
                raise RefusedError("the built-in VMM ended before it created a VM")
        signal.pidfd_send_signal(vmm, signal.SIGKILL)
    raise RetryLaterError(
        f"the built-in VMM did not create a VM within {PATIENCE:g} s",
        hint="try again: the machine may be overloaded",
    )


def _become(
    home: PlatformHome, argv: Sequence[str], hello: Mapping[str, object], way: Way | None
) -> NoReturn:
    seccomp.check()
    launch.enter(argv, connect(home), hello, way=way)


def connect(home: PlatformHome) -> socket.socket:
    """Start the platform's server if needed, and return a connection to it.

    The server stays up while the connection is open.
    """
    for _ in range(3):  # a server may be shutting down while we connect
        with contextlib.suppress(RefusedError):
            return _connect_to_server(home)
        start_server(home)
    return _connect_to_server(home)


def _connect_to_server(home: PlatformHome) -> socket.socket:
    """Return a connection that the server has accepted. The server stays up while the connection is
    open.
    """
    peer = control.connect(home.control)
    try:
        control.send(peer, {"ask": "here"})
        received = control.receive(peer)
    except OSError as error:
        peer.close()
        raise RefusedError(f"no emulator answers at {home.control} ({error.strerror})") from error
    except BaseException:
        peer.close()
        raise
    if received is None:
        peer.close()
        raise RefusedError(f"no emulator answers at {home.control}: the connection was closed")
    return peer


def start_server(
    home: PlatformHome, *, detached: bool = True, commands: Path | None = None
) -> subprocess.Popen[str]:
    """Start the platform's server and wait until it is ready.

    A ``detached`` server is not a child of this process and ends when it is no longer used. A
    server that is not detached ends with this process or on SIGTERM. If ``commands`` is given,
    either server appends a JSON line to that file for each firmware command that concerns keys or
    reports: ``name``, ``start`` and ``end`` (``time.monotonic`` seconds), and ``vmm``, which is the
    VMM's process ID for a guest's request, otherwise null.
    """
    argv = [sys.executable, "-P", "-m", "snpcerts.emulator.machine.server", str(home.path)]
    argv.append("--detached" if detached else f"--parent={os.getpid()}")
    if commands is not None:
        argv.append(f"--commands={commands}")
    if home.temporary is not None:
        argv.append("--throw-away")
    with _log(home) as log:
        server = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C goes only to the program
            pass_fds=() if home.temporary is None else (home.temporary.lease,),
        )
    said = ""
    if server.stdout is not None:
        with server.stdout as out:
            said = out.readline().strip()
    if detached:
        server.wait()  # the child that forked the detached server and has ended
    if said != "ready" and not control_is_up(home):
        raise RefusedError(
            f"the emulated machine did not start: {said or 'its server ended'}",
            hint=f"read the server's log: {home.log}",
        )
    return server


def control_is_up(home: PlatformHome) -> bool:
    """Whether the platform's server listens. Another command may have just started it."""
    try:
        _connect_to_server(home).close()
    except SnpCertsError:
        return False
    return True


@contextlib.contextmanager
def _log(home: PlatformHome) -> Iterator[int]:
    fd = os.open(home.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _main(arguments: Sequence[str]) -> int:
    directory, script, series, keeping, *argv = arguments
    if keeping.startswith("detached"):
        leave_parent()
        pipe = int(keeping.split()[1])
        os.write(pipe, b"%d\n" % os.getpid())
        os.close(pipe)
    else:
        end_with_parent(int(keeping))
    home = PlatformHome(Path(directory))
    try:
        become_host_program(
            home, argv, GuestScript.from_json(json.loads(script)), KernelRelease(series)
        )
    except SnpCertsError as error:
        print(f"snpcerts: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
