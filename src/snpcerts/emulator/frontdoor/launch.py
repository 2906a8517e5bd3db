# SPDX-License-Identifier: Apache-2.0
"""Turns a process into a program under the front door's seccomp filter.

:func:`enter` turns this process into the program. Another process, reached over a socket, serves
it. The filter is installed last, just before execve(2).

:mod:`snpcerts.emulator.frontdoor.spawn` runs this module as a program. It then forks: the child
becomes the requested program, and the parent its keeper
(:mod:`snpcerts.emulator.frontdoor.keeper`). This happens for every program behind a front door, so
this module imports little.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from snpcerts.emulator.frontdoor import bpf, control, keeper, namespace, seccomp, ways
from snpcerts.emulator.frontdoor.layout import Layout
from snpcerts.emulator.frontdoor.ways import Way
from snpcerts.errors import InputError, RefusedError, SnpCertsError

# A shell's exit codes for a program that does not exist or cannot be executed.
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
    """Replace this process with the program ``argv``. The process at the other end of ``server``
    serves the program's devices.

    ``way`` says how the program gets the emulated devices: in a mount namespace, or because the
    filter traps its opens. The default is the way that the environment names, or else one that the
    kernel allows. For a mount namespace, this first sends ``hello`` with ``"layout": true``; the
    answer's ``"layout"`` says which files the namespace must have. In every case, it then sends
    ``hello`` with the seccomp listener and waits for the answer ``{"ok": true}``.

    If this raises an error, the process should exit, because it cannot leave a filter or namespace
    that it has already entered.
    """
    environment = dict(os.environ if env is None else env)
    program = shutil.which(argv[0], path=environment.get("PATH", os.defpath))
    if program is None:
        raise InputError(
            f"cannot run {argv[0]}: no such program",
            hint="install the program, or use its full path",
        )
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
        raise RefusedError("the emulator closed the connection without an answer")
    if answer[0].get("ok") is not True:
        raise RefusedError(
            "the emulator refused to serve the program: "
            f"{answer[0].get('error', 'no reason given')}"
        )
    return answer[0]


def _enter_namespace(layout: Layout) -> namespace.Namespace:
    try:
        return namespace.build(layout)
    except OSError as error:
        raise seccomp.FrontDoorUnavailableError(
            f"cannot build the front door's mount namespace: {error}",
            hint=f"use --door trap, or set {ways.VARIABLE}=trap",
        ) from error


def _give_signals_back() -> None:
    """Undo Python's changes to signal dispositions, which execve would preserve."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)


def _trampoline(arguments: list[str]) -> NoReturn:
    """Become the program that :func:`spawn` asked for.

    The arguments are ``DOOR LINE LOOK WATCH GROUP WAY -- PROGRAM ...``. DOOR and LINE are the
    descriptors of two sockets; LOOK, WATCH and GROUP are 0 or 1.
    """
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
