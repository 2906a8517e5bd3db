# SPDX-License-Identifier: Apache-2.0
"""Putting a program behind a door.

:func:`enter` turns this process into the program, with a server elsewhere that
is reached over a socket. :func:`spawn` starts one from a process that serves
itself; :func:`run` does that and serves until it ends.

The filter is the last thing before execve(2). A process with threads cannot
safely run Python between fork and exec, so :func:`spawn` starts this module as
a program of its own, which then becomes the one wanted; its start-up (some
60 ms) is the price.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final, NoReturn

from snpcerts.emulator.frontdoor import bpf, control, seccomp
from snpcerts.emulator.frontdoor.door import Door
from snpcerts.emulator.frontdoor.supervisor import Supervisor
from snpcerts.errors import InputError, RefusedError, SnpCertsError

# What shells answer for a program that is not there, or cannot be run.
NOT_FOUND: Final = 127
NOT_RUN: Final = 126
_USAGE: Final = 2
_TRAMPOLINE_ARGUMENTS: Final = 5  # socket, look, watch, "--", program


def enter(
    argv: Sequence[str],
    server: socket.socket,
    hello: Mapping[str, object],
    *,
    look: bool = True,
    watch: bool = False,
    env: Mapping[str, str] | None = None,
) -> NoReturn:
    """Become ``argv`` behind the door of the server at the other end of ``server``.

    ``hello`` is sent with the seccomp listener, and the answer ``{"ok": true}``
    awaited. There is no way back once the filter is in place: an error after
    that leaves a process that can do little but end.
    """
    environment = dict(os.environ if env is None else env)
    program = shutil.which(argv[0], path=environment.get("PATH", os.defpath))
    if program is None:
        raise InputError(f"cannot run {argv[0]}: no such program", hint="give its path")
    seccomp.check()
    _give_signals_back()
    listener = seccomp.install(bpf.program(look=look, watch=watch))
    control.send(server, hello, (listener,))
    os.close(listener)
    answer = control.receive(server)
    if answer is None or answer[0].get("ok") is not True:
        said = "hung up" if answer is None else str(answer[0].get("error", "did not agree"))
        raise RefusedError(f"the emulator {said}")
    server.close()
    os.execve(program, list(argv), environment)  # noqa: S606 (running a program is the purpose)


def _give_signals_back() -> None:
    """Undo what Python does to signals at its start, which would outlive execve."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)


@dataclass(slots=True)
class Program:
    """A program behind a door of ours."""

    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Its process id, which it has had since before the exec."""
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """What a shell would say: the exit status, or 128 + the signal; None while it runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code


def spawn(
    argv: Sequence[str],
    supervisor: Supervisor,
    door: Door,
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    own_group: bool = False,
    on_exit: Callable[[], None] = lambda: None,
) -> Program:
    """Start ``argv``; it runs as far as ``supervisor`` serves it.

    A program that does not exist ends with 127, one that cannot be executed
    with 126. ``own_group`` makes it the first of a process group of its own.
    ``on_exit`` is called in the supervisor's loop at its end, when processes it
    left behind may still be there.
    """
    seccomp.check()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        number = theirs.fileno()
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", __name__),
                *(str(number), str(int(door.look)), str(int(door.watch is not None)), "--", *argv),
            ],
            env=None if env is None else dict(env),
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(number,),
            process_group=0 if own_group else None,
        )
        theirs.close()
        ours.settimeout(control.PATIENCE)
        program = Program(process)
        try:
            received = control.receive(ours)
            if received is not None:
                control.send(ours, {"ok": True})
        except OSError as error:
            process.kill()
            process.wait()
            raise seccomp.FrontDoorUnavailableError(
                f"{argv[0]} did not get as far as the front door ({error})",
                hint="the machine may be overloaded: try again",
            ) from error
    if received is not None:
        (listener,) = received[1]
        supervisor.add_listener(listener, door)
    _watch(supervisor, program, on_exit)
    return program


def _watch(supervisor: Supervisor, program: Program, on_exit: Callable[[], None]) -> None:
    handle = os.pidfd_open(program.pid)

    def ended() -> None:
        supervisor.remove_reader(handle)
        os.close(handle)
        program.process.wait()
        on_exit()

    supervisor.add_reader(handle, ended)


def run(
    argv: Sequence[str],
    door: Door,
    *,
    env: Mapping[str, str] | None = None,
    supervisor: Supervisor | None = None,
) -> int:
    """Run ``argv`` behind ``door`` with our standard streams; its exit code, as a shell says it.

    Signals from the terminal are the program's. Processes that it leaves behind
    get ENOSYS for what they open, unless ``supervisor`` goes on being served.
    """
    with contextlib.ExitStack() as stack:
        if supervisor is None:
            supervisor = stack.enter_context(Supervisor())
        program = spawn(argv, supervisor, door, env=env)
        stack.enter_context(_terminal_signals_ignored())
        supervisor.run(until=lambda: program.process.returncode is not None)
        code = program.exit_code
    return NOT_RUN if code is None else code


@contextlib.contextmanager
def _terminal_signals_ignored() -> Generator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGQUIT)}
    for number in before:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _trampoline(arguments: list[str]) -> int:
    """``launch SOCKET LOOK WATCH -- PROGRAM ...``: the process that :func:`spawn` starts."""
    if len(arguments) < _TRAMPOLINE_ARGUMENTS or arguments[3] != "--":
        print("this module is started by a front door, not by hand", file=sys.stderr)
        return _USAGE
    server = socket.socket(fileno=int(arguments[0]))
    server.set_inheritable(False)
    try:
        look, watch = arguments[1] == "1", arguments[2] == "1"
        enter(arguments[4:], server, {}, look=look, watch=watch)
    except SnpCertsError as error:
        print(error, file=sys.stderr)
        return NOT_FOUND if isinstance(error, InputError) else NOT_RUN
    except OSError as error:
        print(f"cannot run {arguments[4]}: {error.strerror}", file=sys.stderr)
        return NOT_RUN


if __name__ == "__main__":
    sys.exit(_trampoline(sys.argv[1:]))
