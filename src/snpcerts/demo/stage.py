# SPDX-License-Identifier: Apache-2.0
"""Runs guests, their VMMs and a writer as processes on one emulated platform.

The demo uses the shipped code, which makes real system calls: the VMMs use the exit service, and
the writer updates the certificate file and issues commands to ``/dev/sev``. Only what is below the
system calls is emulated.
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Self

from snpcerts.abi.product import Product
from snpcerts.certfile.file import CertFile
from snpcerts.certfile.span import Span
from snpcerts.demo.demo_event import (
    AllUp,
    Answered,
    AttestedEvent,
    Event,
    FirmwareCommand,
    Updated,
)
from snpcerts.demo.demo_host import EmulatedHost
from snpcerts.emulator.guest.script import REQUESTS_MAX, GuestScript
from snpcerts.emulator.machine.enter import host_program, start_server
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.errors import RefusedError

_GUEST_PAUSE: Final = 0.005  # seconds between two reports of one guest
_BUSY_DELAY: Final = 0.05  # seconds; a Linux guest waits 2 s, too long for a demo
_POLL: Final = 0.02  # seconds between reads of the guests' outcomes
_START_LIMIT: Final = 60.0  # seconds for all guests to start


@dataclass(frozen=True, slots=True)
class Script:
    """The parameters of a run: how many guests and updates, for how many seconds.

    ``seed`` determines the order of keys and the delays of VMM threads, but not how the machine
    schedules the processes. ``broken`` is a name in :data:`snpcerts.demo.broken.READERS`, which
    says how the VMMs read the file; None means correctly.
    """

    guests: int = 4
    updates: int = 20
    seconds: float = 5.0
    seed: int = 0
    broken: str | None = None


@dataclass(frozen=True, slots=True)
class DemoMachine:
    """The machine on which the runs take place. Each run works on a copy of its files."""

    home: PlatformHome
    host: EmulatedHost

    @classmethod
    def create(cls, folder: Path) -> Self:
        """Create a Milan machine in ``folder``, with the emulated AMD's keys and the machine's
        certificates.
        """
        home = PlatformHome(folder)
        home.prepare(Product.MILAN)
        return cls(home, EmulatedHost.of(home.firmware(), home.authority()))


class DemoRun:
    """One run of the demo. It creates ``folder`` for its files."""

    def __init__(self, folder: Path, machine: DemoMachine, script: Script) -> None:
        folder.mkdir()
        self._home = PlatformHome(folder / "platform")
        shutil.copytree(machine.home.path, self._home.path)
        self.host = machine.host
        self.path = folder / "certs.bin"
        self._tables = folder / "tables"
        self._outcomes = [folder / f"guest-{number}.jsonl" for number in range(script.guests)]
        self._commands = folder / "commands.jsonl"
        self._script = script
        self._start = 0.0
        self._pids: dict[int, int] = {}  # process ID of a VMM -> number of its guest

    def play(self) -> Generator[Event]:
        """Publish the first table, run everything, and yield events as they happen."""
        self._tables.mkdir()
        for tcb, table in self.host.tables.items():
            (self._tables / f"{tcb.pack().hex()}.bin").write_bytes(table.encode())
        CertFile(str(self.path)).publish(self.host.table())
        with ExitStack() as stack:
            server = start_server(self._home, detached=False, commands=self._commands)
            stack.callback(_stop, server)
            watch = stack.enter_context(selectors.DefaultSelector())
            vmms = [self._vmm(number, stack) for number in range(self._script.guests)]
            self._pids = {vmm.pid: number for number, vmm in enumerate(vmms)}
            writer = self._writer(stack)
            sources = [_Lines(open(path, "rb")) for path in self._outcomes]  # noqa: SIM115 (closed below)
            commands = _Lines(open(self._commands, "rb"))  # noqa: SIM115 (as above)
            for source in (*sources, commands):
                stack.callback(source.file.close)
            for number, process in enumerate((*vmms, writer)):
                if process.stdout is not None:
                    os.set_blocking(process.stdout.fileno(), False)
                    watch.register(process.stdout, selectors.EVENT_READ, number)
            pipes = [_Lines(process.stdout) for process in (*vmms, writer) if process.stdout]
            yield from self._until_all_are_up(vmms, sources)
            yield AllUp(self._now(), self._start)
            if writer.stdin is not None:
                writer.stdin.write(b"go\n")
                writer.stdin.flush()
            end = self._start + self._script.seconds
            while time.monotonic() < end or writer.poll() is None:
                for key, _ in watch.select(_POLL):
                    lines = pipes[key.data].read_once()
                    if not lines and pipes[key.data].ended:
                        watch.unregister(key.fileobj)
                    yield from (self._from_process(key.data, line) for line in lines)
                yield from self._from_guests(sources)
                yield from map(self._from_firmware, commands.read_once())
                self._check(vmms)
            if writer.returncode:
                raise RefusedError(f"the demo's writer ended with exit code {writer.returncode}")
            # A VMM that is killed in the middle of a request writes nothing for that request.
            for vmm in vmms:
                vmm.kill()
                vmm.wait()
            for number, pipe in enumerate(pipes):
                yield from (self._from_process(number, line) for line in pipe)
            for source in sources:
                source.ended = False
            while not all(source.ended for source in sources):
                yield from self._from_guests(sources)
            yield from map(self._from_firmware, commands)

    def _until_all_are_up(
        self, vmms: list[subprocess.Popen[bytes]], sources: list[_Lines]
    ) -> Iterator[Event]:
        limit = time.monotonic() + _START_LIMIT
        waiting = set(range(len(sources)))
        self._start = time.monotonic()
        while waiting:
            for event in self._from_guests(sources):
                if isinstance(event, AttestedEvent):
                    waiting.discard(event.guest)
                yield event
            self._check(vmms)
            if time.monotonic() > limit:
                raise RefusedError(f"{len(waiting)} guests did not start within {_START_LIMIT:g} s")
            time.sleep(_POLL)
        self._start = time.monotonic()

    def _check(self, vmms: list[subprocess.Popen[bytes]]) -> None:
        for number, vmm in enumerate(vmms):
            if vmm.poll() is not None:
                raise RefusedError(
                    f"the VMM of guest {number} ended with exit code {vmm.returncode}"
                )

    def _vmm(self, number: int, stack: ExitStack) -> subprocess.Popen[bytes]:
        script = GuestScript(
            requests=REQUESTS_MAX,
            pause=_GUEST_PAUSE,
            busy_delay=_BUSY_DELAY,
            outcomes=str(self._outcomes[number]),
        )
        self._outcomes[number].touch()
        argv = ["snpcerts.demo.vmm", str(self.path), f"{self._script.seed} vmm {number}"]
        argv += [self._script.broken] if self._script.broken else []
        return self._process(script, argv, stack)

    def _writer(self, stack: ExitStack) -> subprocess.Popen[bytes]:
        script = self._script
        argv = ["snpcerts.demo.demo_writer", str(self.path), str(self._tables)]
        argv += [str(script.updates), str(script.seconds), f"{script.seed} writer"]
        return self._process(GuestScript(), argv, stack)

    def _process(
        self, script: GuestScript, argv: list[str], stack: ExitStack
    ) -> subprocess.Popen[bytes]:
        """Start a child process, which ends when ``stack`` closes or when this process ends."""
        command = host_program(self._home, [sys.executable, "-P", "-m", *argv], script)
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C goes to the demo, which ends these processes
        )
        stack.callback(_end, process)
        return process

    def _now(self) -> float:
        return time.monotonic() - self._start

    def _from_process(self, number: int, line: dict[str, Any]) -> Event:
        if number < self._script.guests:
            return Answered(
                self._now(), number, line["outcome"], line["detail"], line["exited"], _spans(line)
            )
        tcb, times = bytes.fromhex(line["tcb"]), (line["waited"], line["held"])
        return Updated(self._now(), line["number"], tcb, *times, _spans(line))

    def _from_firmware(self, line: dict[str, Any]) -> Event:
        guest = self._pids.get(line["vmm"])
        return FirmwareCommand(self._now(), line["name"], guest, line["start"], line["end"])

    def _from_guests(self, sources: list[_Lines]) -> Iterator[Event]:
        for number, source in enumerate(sources):
            for line in source.read_once():
                report, table = (base64.b64decode(line[name]) for name in ("report", "table"))
                end = line["ended"]
                yield AttestedEvent(
                    self._now(), number, line["errno"], report, table, end - line["seconds"], end
                )


def _spans(line: dict[str, Any]) -> tuple[Span, ...]:
    return tuple(Span.from_json(each) for each in line["spans"])


class _Lines:
    """Reads JSON lines from a pipe or a growing file.

    An iteration yields the complete lines until no more data is available.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.ended = False
        self._rest = b""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while data := self._read():
            yield from self._complete(data)

    def read_once(self) -> list[dict[str, Any]]:
        """Read once, up to a fixed size, and return the lines that are complete."""
        return self._complete(self._read())

    def _complete(self, data: bytes) -> list[dict[str, Any]]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def _read(self) -> bytes:
        try:
            data = os.read(self.file.fileno(), 1 << 20)
        except BlockingIOError:
            return b""
        self.ended = not data
        return data


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _stop(server: subprocess.Popen[str]) -> None:
    server.terminate()
    server.wait()
