# SPDX-License-Identifier: Apache-2.0
"""Starts programs under the front door's seccomp filter.

:func:`enter` turns this process into the program; another process serves it, reached
over a socket. :func:`spawn` starts a program from the process that serves it;
:func:`run` also serves until the program ends.

The filter is the last thing before execve(2). A process with threads cannot safely run Python
between fork and exec, so :func:`spawn` starts this module as a program of its own; its start-up
(some 60 ms) is the price. It forks: the child becomes the requested program, the parent is its
keeper (:mod:`snpcerts.emulator.frontdoor.keeper`), so that no process of the program's outlives
the supervisor.
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
from typing import IO, Any, Final, NoReturn

from snpcerts.emulator.frontdoor import bpf, control, keeper, namespace, seccomp, ways
from snpcerts.emulator.frontdoor.door import Door
from snpcerts.emulator.frontdoor.layout import Layout, Places
from snpcerts.emulator.frontdoor.supervisor import Supervisor
from snpcerts.emulator.frontdoor.ways import Way
from snpcerts.errors import InputError, RefusedError, SnpCertsError

# A shell's exit codes for a program that does not exist or cannot be run.
NOT_FOUND: Final = 127
NOT_RUN: Final = 126
_USAGE: Final = 2
_TRAMPOLINE_ARGUMENTS: Final = 8  # door, line, look, watch, own group, way, "--", program


def enter(
    argv: Sequence[str],
    server: socket.socket,
    hello: Mapping[str, object],
    *,
    look: bool = True,
    watch: bool = False,
    way: Way | None = None,
    env: Mapping[str, str] | None = None,
) -> NoReturn:
    """Become the program ``argv``, served by the process at the other end of ``server``.

    ``hello`` is sent with the seccomp listener, and the answer ``{"ok": true}``
    awaited. In a mount namespace ``hello`` with ``"layout": true`` is sent first, and
    answered with the ``"layout"`` of the door. ``way`` is the way to use, by default
    what the environment names or else the kernel allows. Filter and namespace cannot
    be left: after a later error the process can do little but end.
    """
    environment = dict(os.environ if env is None else env)
    program = shutil.which(argv[0], path=environment.get("PATH", os.defpath))
    if program is None:
        raise InputError(f"cannot run {argv[0]}: no such program", hint="give its path")
    seccomp.check()
    chosen, reason = ways.choose(ways.wanted() if way is None else way)
    _give_signals_back()
    hello = {**hello, "way": chosen.value, "why": reason}
    given: tuple[int, ...] = ()
    if chosen is Way.NAMESPACE:
        control.send(server, {**hello, "layout": True})
        made = _enter_namespace(Layout.from_json(_answer(server).get("layout")))
        given = made.descriptors
        hello = {**hello, "places": made.places.to_json()}
        if made.lacks:
            hello["why"] = f"{reason}; {made.lacks}"
    opens = chosen is Way.TRAP
    listener = seccomp.install(bpf.program(look=look and opens, watch=watch, opens=opens))
    try:
        control.send(server, hello, (listener, *given))
    finally:
        # A process that holds its own listener deadlocks in its first trapped call.
        os.close(listener)
    _answer(server)
    server.close()
    os.execve(program, list(argv), environment)  # noqa: S606 (running a program is the purpose)


def _answer(server: socket.socket) -> dict[str, Any]:
    answer = control.receive(server)
    if answer is None:
        raise RefusedError("the emulator closed the connection")
    if answer[0].get("ok") is not True:
        raise RefusedError(f"the emulator refused: {answer[0].get('error', 'no reason given')}")
    return answer[0]


def _enter_namespace(layout: Layout) -> namespace.Namespace:
    try:
        return namespace.build(layout)
    except OSError as error:
        raise seccomp.FrontDoorUnavailableError(
            f"the mount namespace of the front door cannot be built: {error}",
            hint=f"use --door trap, or set {ways.VARIABLE}=trap",
        ) from error


def _give_signals_back() -> None:
    """Undo Python's changes to signal dispositions, which execve would preserve."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)


class Program:
    """A program whose trapped calls this process serves.

    ``pid`` is its process id, which it had before the exec; 0 if it did not start.
    ``process`` is its keeper, which has the program's pipes and, once no process of
    the program is left, its exit status.
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
        """The exit status, or 128 + the signal number as in a shell; None while the program
        runs.
        """
        return self._code

    def end(self) -> None:
        """Kill every process of the program; :attr:`ended` becomes true when they have ended."""
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.shutdown(socket.SHUT_WR)

    @property
    def ended(self) -> bool:
        """Whether no process of the program remains."""
        return self.process.poll() is not None

    def learn_pid(self) -> None:
        """Wait until the keeper sends the program's process id."""
        if self._line is None or (said := control.receive(self._line)) is None:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self.pid = int(said[0]["pid"])

    def watch(self) -> None:
        """Register with the supervisor's loop, which reports the program's end."""
        if self._line is not None:
            self._line.setblocking(False)
            self._supervisor.add_reader(self._line.fileno(), self._hear)
            self._supervisor.on_close(self._close)

    def _close(self) -> None:
        """Close the connection, and wait for the end of every process."""
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
            # The keeper ends after the program; if it is killed, the program is killed too.
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
    way: Way | None = None,
    on_exit: Callable[[], None] = lambda: None,
) -> Program:
    """Start ``argv``; it makes progress only while ``supervisor`` serves it.

    A program that does not exist ends with 127, one that cannot be executed with
    126. ``own_group`` makes it the leader of a new process group, ``way`` is as for
    :func:`enter`. ``on_exit`` is
    called in the supervisor's loop when the program ends; processes that it left
    behind may still exist. :meth:`Program.end` ends those too, and so does any end
    of this process.
    """
    seccomp.check()
    with contextlib.ExitStack() as stack:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line, keepers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours, theirs, keepers = map(stack.enter_context, (ours, theirs, keepers))
        failed = stack.enter_context(contextlib.ExitStack())  # undone on an error from here on
        failed.callback(line.close)
        numbers = theirs.fileno(), keepers.fileno()
        flags = (door.look, door.watch is not None, own_group)
        # A watch acts between a program's calls on a file, the next open included.
        named = Way.TRAP if door.watch is not None else way or ways.wanted()
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", __name__),
                *(*map(str, numbers), *(str(int(each)) for each in flags)),
                *("auto" if named is None else named.value, "--", *argv),
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
        failed.callback(line.close)  # which ends all its processes
        theirs.close()
        keepers.close()
        ours.settimeout(control.PATIENCE)
        line.settimeout(control.PATIENCE)
        program = Program(process, line, supervisor, on_exit)
        try:
            program.learn_pid()
            received = control.receive(ours)
            if received is not None and received[0].get("layout"):
                control.send(ours, {"ok": True, "layout": door.layout().to_json()})
                received = control.receive(ours)
            if received is not None:
                _let_in(supervisor, door, *received)
                control.send(ours, {"ok": True})
        except OSError as error:
            raise seccomp.FrontDoorUnavailableError(
                f"{argv[0]} did not start behind the front door ({error})",
                hint="the machine may be overloaded: try again",
            ) from error
        program.watch()
        failed.pop_all()
    return program


def _let_in(
    supervisor: Supervisor, door: Door, hello: Mapping[str, Any], descriptors: tuple[int, ...]
) -> None:
    listener, *given = descriptors
    places = Places.from_json(hello["places"]) if "places" in hello else None
    supervisor.add_listener(listener, door, places=places, namespace=given)


def run(
    argv: Sequence[str],
    door: Door,
    *,
    env: Mapping[str, str] | None = None,
    supervisor: Supervisor | None = None,
) -> int:
    """Run ``argv`` with the devices of ``door`` and the streams of this process; return a shell's
    exit code.

    Signals from the terminal go to the program. Processes that it leaves behind are
    killed; if ``supervisor`` is given, they may run until it is closed.
    """
    with contextlib.ExitStack() as stack:
        if supervisor is None:
            supervisor = stack.enter_context(Supervisor())
        # Before the program starts: it may be interrupted at once.
        stack.enter_context(_terminal_signals_left_to_the_program())
        program = spawn(argv, supervisor, door, env=env)
        supervisor.run(until=lambda: program.exit_code is not None)
        code = program.exit_code
    return NOT_RUN if code is None else code


@contextlib.contextmanager
def _terminal_signals_left_to_the_program() -> Generator[None]:
    """Ignore SIGINT and SIGQUIT in this process; the program gets them.

    A handler, not SIG_IGN, which the program would inherit; what is ignored already,
    as by nohup, stays so.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGQUIT)}
    handled = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])


def _trampoline(arguments: list[str]) -> NoReturn:
    """``launch DOOR LINE LOOK WATCH GROUP WAY -- PROGRAM ...``: the process that spawn() starts."""
    if len(arguments) < _TRAMPOLINE_ARGUMENTS or arguments[6] != "--":
        print("this module is started only by the front door", file=sys.stderr)
        sys.exit(_USAGE)
    _give_signals_back()
    server, line = (socket.socket(fileno=int(number)) for number in arguments[:2])
    for each in (server, line):
        each.set_inheritable(False)
    look, watch, own_group = (flag == "1" for flag in arguments[2:5])
    way = ways.wanted(arguments[5])

    def become() -> int:
        code = _become(arguments[7:], server, look=look, watch=watch, way=way)
        sys.stderr.flush()
        return code

    keeper.keep(line, become, own_group=own_group)


def _become(
    argv: list[str], server: socket.socket, *, look: bool, watch: bool, way: Way | None
) -> int:
    """Become the program; return an exit code if that fails."""
    try:
        enter(argv, server, {}, look=look, watch=watch, way=way)
    except SnpCertsError as error:
        print(error, file=sys.stderr)
        return NOT_FOUND if isinstance(error, InputError) else NOT_RUN
    except OSError as error:
        print(f"cannot run {argv[0]}: {error.strerror}", file=sys.stderr)
        return NOT_RUN


if __name__ == "__main__":
    _trampoline(sys.argv[1:])
