# SPDX-License-Identifier: Apache-2.0
"""Putting a program behind a door.

:func:`enter` turns this process into the program, with a server elsewhere that
is reached over a socket. :func:`spawn` starts one from a process that serves
itself; :func:`run` does that and serves until it ends.

The filter is the last thing before execve(2). A process with threads cannot
safely run Python between fork and exec, so :func:`spawn` starts this module as
a program of its own; its start-up (some 60 ms) is the price. It forks: the child
becomes the program wanted, the parent keeps it
(:mod:`snpcerts.emulator.frontdoor.keeper`), so that no process of the program's
outlives the supervisor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import IO, Final, NoReturn

from snpcerts.emulator.frontdoor import bpf, control, keeper, seccomp
from snpcerts.emulator.frontdoor.door import Door
from snpcerts.emulator.frontdoor.supervisor import Supervisor
from snpcerts.errors import InputError, RefusedError, SnpCertsError

# What shells answer for a program that is not there, or cannot be run.
NOT_FOUND: Final = 127
NOT_RUN: Final = 126
_USAGE: Final = 2
_TRAMPOLINE_ARGUMENTS: Final = 7  # door, line, look, watch, own group, "--", program


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
    try:
        control.send(server, hello, (listener,))
    finally:
        # A trapped call of a process that holds its own listener waits for itself, for ever.
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


class Program:
    """A program behind a door of ours.

    ``pid`` is its process id, which it has had since before the exec; 0 where
    it did not get so far. ``process`` is its keeper, which has the program's
    pipes and, once no process of the program is left, its exit status.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        line: socket.socket,
        supervisor: Supervisor,
        on_exit: Callable[[], None],
    ) -> None:
        self.process = process
        self.pid = 0
        self._line: socket.socket | None = line
        self._code: int | None = None
        self._supervisor = supervisor
        self._on_exit = on_exit

    @property
    def exit_code(self) -> int | None:
        """What a shell would say: the exit status, or 128 + the signal; None while it runs."""
        return self._code

    def end(self) -> None:
        """Have every process of the program killed; they are gone once :attr:`ended` holds."""
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.shutdown(socket.SHUT_WR)

    @property
    def ended(self) -> bool:
        """Whether none of the program's processes is left."""
        return self.process.poll() is not None

    def learn_pid(self) -> None:
        """Wait for the keeper to say whom it keeps."""
        if self._line is None or (said := control.receive(self._line)) is None:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self.pid = int(said[0]["pid"])

    def watch(self) -> None:
        """Hear of the program's end in the supervisor's loop."""
        if self._line is not None:
            self._line.setblocking(False)
            self._supervisor.add_reader(self._line.fileno(), self._hear)
            self._supervisor.on_close(self._close)

    def _close(self) -> None:
        """Hang up, and wait for the end of every process."""
        if self._line is not None:
            self._line.close()
            self._line = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(control.PATIENCE)

    def _hear(self) -> None:
        if self._line is None:
            return
        try:
            said = control.receive(self._line)
        except BlockingIOError:
            return
        except OSError:
            said = None
        if said is None:
            self._supervisor.remove_reader(self._line.fileno())
            self._line.close()
            self._line = None
            # A keeper ends after the program, unless it is killed, and the program with it.
            said = {"ended": 128 + signal.SIGKILL}, ()
        if self._code is None:
            self._code = int(said[0]["ended"])
            self._on_exit()


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
    left behind may still be there; :meth:`Program.end` ends those too, and so
    does the end of this process, whatever its cause.
    """
    seccomp.check()
    with contextlib.ExitStack() as stack:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line, keepers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours, theirs, keepers = map(stack.enter_context, (ours, theirs, keepers))
        failed = stack.enter_context(contextlib.ExitStack())  # undone from here on in an error
        failed.callback(line.close)
        numbers = theirs.fileno(), keepers.fileno()
        flags = (door.look, door.watch is not None, own_group)
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", __name__),
                *(*map(str, numbers), *(str(int(each)) for each in flags), "--", *argv),
            ],
            env=None if env is None else dict(env),
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=numbers,
            process_group=0 if own_group else None,
        )
        failed.callback(process.wait)
        failed.callback(line.close)  # which ends all that there may be
        theirs.close()
        keepers.close()
        ours.settimeout(control.PATIENCE)
        line.settimeout(control.PATIENCE)
        program = Program(process, line, supervisor, on_exit)
        try:
            program.learn_pid()
            received = control.receive(ours)
            if received is not None:
                control.send(ours, {"ok": True})
        except OSError as error:
            raise seccomp.FrontDoorUnavailableError(
                f"{argv[0]} did not get as far as the front door ({error})",
                hint="the machine may be overloaded: try again",
            ) from error
        if received is not None:
            (listener,) = received[1]
            supervisor.add_listener(listener, door)
        program.watch()
        failed.pop_all()
    return program


def run(
    argv: Sequence[str],
    door: Door,
    *,
    env: Mapping[str, str] | None = None,
    supervisor: Supervisor | None = None,
) -> int:
    """Run ``argv`` behind ``door`` with our standard streams; its exit code, as a shell says it.

    Signals from the terminal are the program's. Processes that it leaves behind
    are killed, unless ``supervisor`` is given: then they live as long as that.
    """
    with contextlib.ExitStack() as stack:
        if supervisor is None:
            supervisor = stack.enter_context(Supervisor())
        program = spawn(argv, supervisor, door, env=env)
        stack.enter_context(_terminal_signals_ignored())
        supervisor.run(until=lambda: program.exit_code is not None)
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


def _trampoline(arguments: list[str]) -> NoReturn:
    """``launch DOOR LINE LOOK WATCH GROUP -- PROGRAM ...``: what :func:`spawn` starts."""
    if len(arguments) < _TRAMPOLINE_ARGUMENTS or arguments[5] != "--":
        print("this module is started by a front door, not by hand", file=sys.stderr)
        sys.exit(_USAGE)
    _give_signals_back()
    server, line = (socket.socket(fileno=int(number)) for number in arguments[:2])
    for each in (server, line):
        each.set_inheritable(False)
    look, watch, own_group = (flag == "1" for flag in arguments[2:5])

    def become() -> int:
        code = _become(arguments[6:], server, look=look, watch=watch)
        sys.stderr.flush()
        return code

    keeper.keep(line, become, own_group=own_group)


def _become(argv: list[str], server: socket.socket, *, look: bool, watch: bool) -> int:
    """Become the program; the exit code where that fails."""
    try:
        enter(argv, server, {}, look=look, watch=watch)
    except SnpCertsError as error:
        print(error, file=sys.stderr)
        return NOT_FOUND if isinstance(error, InputError) else NOT_RUN
    except OSError as error:
        print(f"cannot run {argv[0]}: {error.strerror}", file=sys.stderr)
        return NOT_RUN


if __name__ == "__main__":
    _trampoline(sys.argv[1:])
