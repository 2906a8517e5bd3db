# SPDX-License-Identifier: Apache-2.0
"""Starts programs under the front door's seccomp filter, from the process that serves them.

:func:`spawn` starts a program; :func:`run` also serves it until it ends. A process with threads
cannot safely run Python between fork and exec. So :func:`spawn` starts a Python process for
:mod:`snpcerts.emulator.frontdoor.launch`, which takes about 60 ms. The new process becomes the
program's keeper, which ends the program's processes when the supervisor ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import IO, Any

from snpcerts.emulator.frontdoor import control, launch, seccomp, ways
from snpcerts.emulator.frontdoor.door import Door
from snpcerts.emulator.frontdoor.layout import Places
from snpcerts.emulator.frontdoor.supervisor import Supervisor
from snpcerts.emulator.frontdoor.ways import Way


class Program:
    """A program whose trapped calls this process serves.

    ``pid`` is its process ID, the same before and after execve; 0 until :meth:`learn_pid` returns.
    ``process`` is its keeper (see :mod:`.keeper`), with the pipes to the program. When all of the
    program's processes have ended, the keeper ends with the program's exit status.
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
        """The program's exit status, or None while it runs. After a signal it is 128 + the signal's
        number, as in a shell.
        """
        return self._code

    def end(self) -> None:
        """Kill every process of the program. :attr:`ended` becomes true when they have ended."""
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.shutdown(socket.SHUT_WR)

    @property
    def ended(self) -> bool:
        """Whether all processes of the program have ended."""
        return self.process.poll() is not None

    def learn_pid(self) -> None:
        """Wait until the keeper sends the program's process ID, and store it."""
        if self._line is None or (said := control.receive(self._line)) is None:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self.pid = int(said[0]["pid"])

    def watch(self) -> None:
        """Let the supervisor's loop watch for the program's end."""
        if self._line is not None:
            self._line.setblocking(False)
            self._supervisor.add_reader(self._line.fileno(), self._hear)
            self._supervisor.on_close(self._close)

    def _close(self) -> None:
        """Close the connection to the keeper, and wait until it has ended all processes."""
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
            # The keeper has ended. If it did not report the program's end first, it was killed, and
            # the kernel killed the program too.
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
    """Start the program ``argv``, which makes progress only while ``supervisor`` serves it.

    If the program does not exist, its exit code is 127; if it cannot be executed, 126.
    ``own_group`` makes it the leader of a new process group. ``way`` is as for
    :func:`~snpcerts.emulator.frontdoor.launch.enter`. ``on_exit`` is called in the supervisor's
    loop when the program ends; processes that it left behind may still exist. :meth:`Program.end`
    ends those too, and so does the end of this process.
    """
    seccomp.check()
    with contextlib.ExitStack() as stack:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line, keepers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours, theirs, keepers = map(stack.enter_context, (ours, theirs, keepers))
        failed = stack.enter_context(contextlib.ExitStack())  # runs only if an error occurs
        failed.callback(line.close)
        numbers = theirs.fileno(), keepers.fileno()
        flags = (door.look, door.watch is not None, own_group)
        # A watch also observes opens, which only the trap passes to the supervisor.
        named = Way.TRAP if door.watch is not None else way or ways.wanted()
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", launch.__name__),
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
        failed.callback(line.close)  # then the keeper ends the program's processes
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
                hint="try again: the machine may be overloaded",
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
    """Run the program ``argv`` with the devices of ``door`` and the standard streams of this
    process.

    Returns the exit code as a shell reports it. The program gets the terminal's signals. Processes
    that it leaves behind are killed; if ``supervisor`` is given, they may run until it is closed.
    """
    with contextlib.ExitStack() as stack:
        if supervisor is None:
            supervisor = stack.enter_context(Supervisor())
        # Do this before the program starts: the user may press Ctrl-C at once.
        stack.enter_context(_terminal_signals_left_to_the_program())
        program = spawn(argv, supervisor, door, env=env)
        supervisor.run(until=lambda: program.exit_code is not None)
        code = program.exit_code
    return launch.NOT_RUN if code is None else code


@contextlib.contextmanager
def _terminal_signals_left_to_the_program() -> Generator[None]:
    """Ignore SIGINT and SIGQUIT in this process, so that only the program gets them.

    This uses a handler, because the program would inherit SIG_IGN. Signals that are already
    ignored, as with nohup, stay ignored.
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
