# SPDX-License-Identifier: Apache-2.0
"""Measures the cost of each :class:`Way`: per call, and in programs that touch no device."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.compare import Skip, compare
from snpcerts.emulator.frontdoor import namespace
from snpcerts.emulator.frontdoor.door import Door, OpenInfo
from snpcerts.emulator.frontdoor.spawn import spawn
from snpcerts.emulator.frontdoor.supervisor import Supervisor
from snpcerts.emulator.frontdoor.ways import Way
from snpcerts.emulator.syscall.device import Caller

# Prints the seconds that one call takes.
CALLS = r"""
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
    struct stat status;
    int fd = open("/dev/sev", O_RDWR);
    double begin = now();

    for (int i = 0; i < 4000; i++) {
        if (!strcmp(argv[1], "ioctl") && ioctl(fd, 0xAE00, 0) != 12)
            return 1;
        if (!strcmp(argv[1], "open"))
            close(open("/etc/passwd", O_RDONLY));
        if (!strcmp(argv[1], "missing"))
            open("/etc/passwd.missing", O_RDONLY);
        if (!strcmp(argv[1], "device"))
            close(open("/dev/sev", O_RDWR));
        if (!strcmp(argv[1], "stat"))
            stat("/etc/passwd", &status);
    }
    printf("%.9f\n", (now() - begin) / 4000);
    return argc != 2;
}
"""
# Runs a program and prints the seconds it took, so that starting the door does not count.
TIMED = r"""
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
    double begin = now();
    pid_t child = fork();
    int status = 1;

    if (child == 0) {
        execv(argv[1], argv + 1);
        _exit(127);
    }
    waitpid(child, &status, 0);
    printf("%.9f\n", now() - begin);
    return argc < 2 || status;
}
"""
# Opens and examines many files, and does nothing else.
STORM = (
    "import os\n"
    "for _ in range(40):\n"
    "    for name in os.listdir('/usr/bin')[:500]:\n"
    "        path = '/usr/bin/' + name\n"
    "        os.path.exists(path) and os.close(os.open(path, os.O_RDONLY))\n"
)
# Keeps a compiler busy with work other than opening files.
SOURCE = "".join(
    f"int f{number}(int x) {{ int s = 0; for (int i = 0; i < x; i++) s += i % {number + 2};"
    " return s; }\n"
    for number in range(400)
)
STARTS = 20
# Starts a program without a door, but with the same imports as a start with a door, so that only
# the door makes a difference.
BARE = "import os, sys, snpcerts.emulator.frontdoor.launch; os.execvp(sys.argv[1], sys.argv[1:])"


class _Answers:
    """A device that answers at once."""

    def __init__(self, info: OpenInfo) -> None:
        del info

    def ioctl(self, caller: Caller, request: int, argument: int) -> int:
        del caller, request, argument
        return 12

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def _run(argv: list[str], way: Way | None) -> tuple[float, bytes]:
    """Run a program, without a door if ``way`` is None. Return the seconds and the output."""
    begin = time.perf_counter()
    if way is None:
        done = subprocess.run([sys.executable, "-P", "-c", BARE, *argv], stdout=-1, check=True)
        return time.perf_counter() - begin, done.stdout
    with Supervisor() as supervisor:
        door = Door({"/dev/sev": _Answers})
        program = spawn(argv, supervisor, door, stdout=subprocess.PIPE, way=way)
        supervisor.run(until=lambda: program.exit_code is not None)
        took = time.perf_counter() - begin
        said, _ = program.process.communicate()
    assert program.exit_code == 0
    return took, said


def _seconds(argv: list[str], way: Way | None) -> float:
    """Run a program that measures a time itself. Return the seconds that it prints."""
    return float(_run(argv, way)[1])


def main() -> None:
    """Print the times of calls and of programs, with and without a door."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise Skip("no gcc")
    ways: dict[str, Way | None] = {"no door": None, "namespace": Way.NAMESPACE, "trap": Way.TRAP}
    if reason := namespace.missing():
        print(f"no mount namespace here: {reason}")
        del ways["namespace"]
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source.c"
        source.write_text(SOURCE)
        for each, text in {"calls": CALLS, "timed": TIMED}.items():
            (Path(name) / f"{each}.c").write_text(text)
            argv = ["-O1", "-o", str(Path(name) / each), str(Path(name) / f"{each}.c")]
            subprocess.run([compiler, *argv], check=True)
        program, timed = str(Path(name) / "calls"), str(Path(name) / "timed")

        kinds = {
            "open": "open and close",
            "missing": "open of a missing file",
            "stat": "stat",
            "device": "open and close of a device",
            "ioctl": "ioctl on a device",
        }
        calls: dict[str, Callable[[], float]] = {
            f"{title}, {what}": partial(_seconds, [program, kind], way)
            for kind, title in kinds.items()
            for what, way in ways.items()
            if way is not None or kind not in ("device", "ioctl")
        }
        compare("one call", calls, unit="us", scale=1e6)

        starts: dict[str, Callable[[], float]] = {
            what: partial(lambda way: _run(["/bin/true"], way)[0], way)
            for what, way in ways.items()
        }
        compare("a program that does nothing, including its launcher", starts, unit="ms", scale=1e3)

        python = os.path.realpath(sys.executable)
        programs = {
            f"{STARTS} starts of python": [
                *("/bin/sh", "-c"),
                f"for i in $(seq {STARTS}); do {python} -I -c 'import json'; done",
            ],
            "20,000 stats and opens": [python, "-I", "-c", STORM],
            "gcc -O2, 400 functions": [compiler, "-O2", "-c", str(source), "-o", os.devnull],
            "arithmetic in python": [python, "-I", "-c", "sum(i * i for i in range(10_000_000))"],
        }
        for title, argv in programs.items():
            subjects: dict[str, Callable[[], float]] = {
                what: partial(_seconds, [timed, *argv], way) for what, way in ways.items()
            }
            compare(f"no device touched: {title}", subjects, unit="s", scale=1)


if __name__ == "__main__":
    main()
