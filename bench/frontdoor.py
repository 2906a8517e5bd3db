# SPDX-License-Identifier: Apache-2.0
"""What the front door costs: per trapped call, and to programs that touch no device."""

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
from snpcerts.emulator.frontdoor.door import Door, OpenInfo
from snpcerts.emulator.frontdoor.launch import spawn
from snpcerts.emulator.frontdoor.supervisor import Supervisor
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

int main(int count, char **words)
{
    struct stat status;
    int fd = open("/dev/sev", O_RDWR);
    double begin = now();

    for (int i = 0; i < 4000; i++) {
        if (!strcmp(words[1], "ioctl") && ioctl(fd, 0xAE00, 0) != 12)
            return 1;
        if (!strcmp(words[1], "open"))
            close(open("/etc/passwd", O_RDONLY));
        if (!strcmp(words[1], "missing"))
            open("/etc/passwd.missing", O_RDONLY);
        if (!strcmp(words[1], "device"))
            close(open("/dev/sev", O_RDWR));
        if (!strcmp(words[1], "stat"))
            stat("/etc/passwd", &status);
    }
    printf("%.9f\n", (now() - begin) / 4000);
    return count != 2;
}
"""
# Something for a compiler to do that is not opening files.
SOURCE = "".join(
    f"int f{number}(int x) {{ int s = 0; for (int i = 0; i < x; i++) s += i % {number + 2};"
    " return s; }\n"
    for number in range(400)
)
STARTS = 20
# What the launcher does too, so that the door alone makes the difference.
BARE = "import os, sys, snpcerts.emulator.frontdoor.launch; os.execvp(sys.argv[1], sys.argv[1:])"


class _Answers:
    """A device that answers at once."""

    def __init__(self, info: OpenInfo) -> None:
        del info

    def ioctl(self, caller: Caller, request: int, argument: int) -> int:
        del caller, request, argument
        return 12

    def close(self) -> None:
        """Nothing is kept."""


def _run(argv: list[str], door: Door | None) -> tuple[float, bytes]:
    """The seconds from start to end, and what was printed."""
    begin = time.perf_counter()
    if door is None:
        done = subprocess.run([sys.executable, "-P", "-c", BARE, *argv], stdout=-1, check=True)
        return time.perf_counter() - begin, done.stdout
    with Supervisor() as supervisor:
        program = spawn(argv, supervisor, door, stdout=subprocess.PIPE)
        supervisor.run(until=lambda: program.process.returncode is not None)
        took = time.perf_counter() - begin
        said, _ = program.process.communicate()
    assert program.exit_code == 0
    return took, said


def _seconds(argv: list[str], door: Door | None) -> float:
    return _run(argv, door)[0]


def main() -> None:
    """Print microseconds per call, and seconds of programs with and without a door."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise Skip("no gcc")
    opens, looks = Door({"/dev/sev": _Answers}, look=False), Door({"/dev/sev": _Answers})
    with tempfile.TemporaryDirectory() as name:
        program, source = str(Path(name) / "calls"), Path(name) / "source.c"
        (Path(name) / "calls.c").write_text(CALLS)
        source.write_text(SOURCE)
        subprocess.run([compiler, "-O1", "-o", program, program + ".c"], check=True)

        def call(kind: str, door: Door | None) -> float:
            return float(_run([program, kind], door)[1])

        calls: dict[str, Callable[[], float]] = {
            "open and close, no door": partial(call, "open", None),
            "open and close, not ours": partial(call, "open", opens),
            "open of what is missing": partial(call, "missing", opens),
            "open and close of a device": partial(call, "device", opens),
            "ioctl on a device": partial(call, "ioctl", opens),
            "stat, no door": partial(call, "stat", None),
            "stat, not trapped": partial(call, "stat", opens),
            "stat, trapped": partial(call, "stat", looks),
        }
        compare("one call", calls, unit="us", scale=1e6)

        python = os.path.realpath(sys.executable)
        programs = {
            f"{STARTS} starts of python": [
                *("/bin/sh", "-c"),
                f"for i in $(seq {STARTS}); do {python} -I -c 'import json'; done",
            ],
            "gcc -O2, 400 functions": [compiler, "-O2", "-c", str(source), "-o", os.devnull],
            "arithmetic in python": [python, "-I", "-c", "sum(i * i for i in range(10_000_000))"],
        }
        doors: dict[str, Door | None] = {
            "no door": None,
            "opens trapped": opens,
            "opens and looks trapped": looks,
        }
        for title, argv in programs.items():
            subjects: dict[str, Callable[[], float]] = {
                what: partial(_seconds, argv, door) for what, door in doors.items()
            }
            compare(f"no device touched: {title}", subjects, unit="s", scale=1)


if __name__ == "__main__":
    main()
