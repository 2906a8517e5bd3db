# SPDX-License-Identifier: Apache-2.0
"""``python fork_server.py [MODULE...]``: commands of snpcerts, each in a process of its own.

Starting Python costs more than most commands do. Here each command is a fork of a process that
has imported them: it opens its own devices, takes its own locks, and can be killed. A line of
standard input is a JSON object with the command's ``arguments`` and the files for ``out`` and
``err``; the answers are ``started PID`` and, in any order, ``ended PID STATUS``.

A command that becomes another Python program (``emulate host -- python -m MODULE``, or ``-c``)
runs that program in the same process instead of calling execve(2). An order can name a
FIFO as ``in``, the command's standard input; the command may then be this program again, so that
further commands are forked behind a front door.

When a command has ended, this process imports the modules that the command imported, so that later
commands need not.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import traceback
from typing import Any, Final, NoReturn

from snpcerts.cli.main import main

execve: Final = os.execve
# For each running child, by process id: a memory file with the names of modules to import.
modules_of: dict[int, int] = {}


def command(order: dict[str, Any]) -> int:
    """Run the command in this process."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    given = os.open(order.get("in", os.devnull), os.O_RDONLY)
    os.dup2(given, 0)
    os.close(given)
    for name, fd in (("err", 2), ("out", 1)):
        opened = os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, fd)
        os.close(opened)
    os.execve = become  # type: ignore[assignment]  # in this process alone
    try:
        return main(order["arguments"])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def become(path: str, argv: list[str], environment: dict[str, str]) -> NoReturn:
    """Run that program in this process, as execve(2) would."""
    arguments = [word for word in argv[1:] if word != "-P"]
    if path != sys.executable or not arguments:
        execve(path, argv, environment)
    os.environ.update(environment)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_IGN)  # as Python does when it starts
    if arguments[0] == __file__:
        modules_of.clear()
        serve(arguments[1:])
        sys.exit(0)
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})  # noqa: S102 (as the interpreter would)
        sys.exit(0)
    if arguments[0] != "-m":
        execve(path, argv, environment)
    if arguments[1] == "snpcerts":
        sys.exit(main(arguments[2:]))
    sys.exit(importlib.import_module(arguments[1]).main(arguments[2:]))


def answer(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def started(line: bytes) -> None:
    order = json.loads(line)
    names = os.memfd_create("modules")
    before = set(sys.modules)
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = command(order)
            os.write(names, "\n".join(sys.modules.keys() - before).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    modules_of[pid] = names
    answer(f"started {pid}")


def learn(names: int) -> None:
    """Import the modules that a command needed; a killed command has reported none."""
    with os.fdopen(names, encoding="ascii") as file:
        file.seek(0)
        new = file.read().split()
    if not new:
        return
    for name in new:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that a child's collections do not copy the pages that it shares


def reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        learn(modules_of.pop(pid))
        answer(f"ended {pid} {os.waitstatus_to_exitcode(status)}")


def serve(modules: list[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writable)
    waiting = b""
    answer("ready")
    while True:
        if readable in select.select([0, readable], [], [])[0]:
            os.read(readable, 4096)
            reap()
            continue
        data = os.read(0, 65536)
        if not data:
            for pid in modules_of:
                os.kill(pid, signal.SIGKILL)
            return
        *lines, waiting = (waiting + data).split(b"\n")
        for line in lines:
            started(line)


if __name__ == "__main__":
    serve(sys.argv[1:])
