# SPDX-License-Identifier: Apache-2.0
"""The host commands themselves, killed at their system calls, and the same command run again.

Each command is the program that an operator starts. It runs behind the front door,
is stopped with ptrace(2), and is killed with SIGKILL before it makes a system call.
Calls are counted from the moment when it opens ``/dev/sev``: until then it starts
Python and reads its configuration, and changes nothing.

If a call changes nothing, it makes no difference whether the command is killed before
or after it. So the command is killed only before calls that may change something:
calls on contents and names of files, on locks and sockets, and ioctls. Each of these
calls is a place. ``SNPCERTS_CRASHES`` says which places are tried: without it, some of
them, evenly spread and the same each time; with ``changing``, all of them. With
``every``, each system call is a place.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from snpcerts.abi.cert_table import CertTable
from snpcerts.abi.psp import STATUS_VLEK_EN
from snpcerts.abi.tcb import TcbVersion
from snpcerts.certfile.file import CertFile
from snpcerts.emulator.amd.certificates import vcek_of
from snpcerts.emulator.machine.home import PlatformHome

from ..certfile.tracing import Call, can_trace, killed_before
from ..emulated import Emulated
from .site import Site, seen_by_guest

HOW_MANY = os.environ.get("SNPCERTS_CRASHES", "")
SAMPLE = 4  # places of each command, without being asked for more

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_trace(), reason="ptrace is not allowed on this machine"),
]

# Sets the reported TCB as another program would, many times in one process.
HELPER = """
import sys
from snpcerts.abi.psp import SnpConfig
from snpcerts.host.sev import Sev
with Sev() as sev:
    for line in sys.stdin:
        sev.snp_set_config(SnpConfig(reported_tcb=bytes.fromhex(line)))
        print("set", flush=True)
"""


@dataclass
class Firmware:
    """The machine's firmware, read and changed by another program."""

    emulated: Emulated
    process: subprocess.Popen[str]

    def report(self, tcb: TcbVersion) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(tcb.pack().hex() + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "set\n"

    @property
    def home(self) -> PlatformHome:
        return PlatformHome(self.emulated.directory)

    def tcb(self, which: str = "reported_tcb") -> TcbVersion:
        firmware = self.home.firmware()
        status = firmware.snp_platform_status()
        return TcbVersion.unpack(getattr(status, which), firmware.product.tcb_layout)


@pytest.fixture(scope="module")
def firmware(emulated: Emulated) -> Iterator[Firmware]:
    process = subprocess.Popen(
        emulated.command("host", "--", sys.executable, "-c", HELPER),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield Firmware(emulated, process)
    process.kill()
    process.communicate()


@dataclass
class Scene:
    """One command, and the state of the host before each run."""

    site: Site
    firmware: Firmware
    arguments: list[str]
    start: TcbVersion
    wrong: bool = False  # the file is, at first
    online: bool = False  # the cache is empty, at first
    tables: dict[TcbVersion, CertTable] = field(default_factory=dict)

    def prepare(self) -> None:
        """Restore the firmware, and publish a table that is right, or wrong if ``wrong`` is set."""
        self.firmware.report(self.start)
        tcb = (
            replace(self.start, microcode=self.start.components()["microcode"] - 1)
            if self.wrong
            else self.start
        )
        if tcb not in self.tables:
            home = self.firmware.home
            self.tables[tcb] = vcek_of(home.authority(), home.firmware().chip, tcb).table()
        CertFile(str(self.site.file)).publish(self.tables[tcb])
        if self.online:
            shutil.rmtree(self.site.folder / "cache", ignore_errors=True)
        assert self.seen_by_guest() == ("wrong" if self.wrong else "right")

    def seen_by_guest(self) -> str:
        return seen_by_guest(self.site.file, self.firmware.home)

    def killed_at(self, place: int | None, *, every: bool) -> tuple[Call | None, int]:
        """Run the command up to ``place``; return the call there and the number of places."""
        count, open_yet = 0, False

        def here(call: Call) -> bool:
            nonlocal count, open_yet
            open_yet = open_yet or call.path == "/dev/sev"
            if not open_yet or not (every or call.changes_something):
                return False
            count += 1
            return place is not None and count == place + 1

        command = self.site.emulated.command(*self.arguments)
        return killed_before(command, here, execs=2), count

    def places(self) -> list[int]:
        """Return the places to kill at."""
        every = HOW_MANY == "every"
        self.prepare()
        _, count = self.killed_at(None, every=every)
        assert self.seen_by_guest() == "right", "the command must work if it is not killed"
        assert count > 20
        if HOW_MANY:
            return list(range(count))
        return [round(each * (count - 1) / (SAMPLE - 1)) for each in range(SAMPLE)]

    def sweep(self) -> list[str]:
        """Return what the file was after each kill; check that the next run makes it right.

        The number of calls varies a little with the time that a run waits, so a run may end
        before it reaches one of the last places. It must then have done its work.
        """
        truths: list[str] = []
        missed = 0
        every = HOW_MANY == "every"
        places = self.places()
        print(f"{self.arguments[6]}: killed at {len(places)} places")
        for place in places:
            self.prepare()
            call, _ = self.killed_at(place, every=every)
            if call is None:
                missed += 1
                assert self.seen_by_guest() == "right", f"must have worked: ended before {place}"
                continue
            truths.append(self.seen_by_guest())
            if not self.wrong:
                assert truths[-1] != "wrong", f"must not be wrong after {place}, {call.name}"
            made = self.site.run(self.arguments)
            assert made.returncode == 0, f"after {place}, {call.name}: {made.stderr}"
            assert self.seen_by_guest() == "right", f"after {place}, {call.name}"
            self.tidy(place)
        assert missed <= 1 + len(places) // 20, f"must reach most places: {missed} missed"
        return truths

    def tidy(self, place: int) -> None:
        """Check that the run after the killed one has left no temporary file."""
        left = {each.name for each in self.site.folder.iterdir()}
        allowed = {"certs.bin", ".certs.bin.turn", "cache", "vlek", "issued"}
        memory = {"signing-key.json", ".signing-key.json.lock"}
        assert left <= allowed | memory, (place, left)


@pytest.fixture
def low(firmware: Firmware) -> TcbVersion:
    """Report a TCB below the current one, with no VLEK loaded; return it."""
    current = firmware.tcb("current_tcb")
    for below in (3, 2):  # a change drops the VLEK
        firmware.report(replace(current, microcode=current.components()["microcode"] - below))
    return firmware.tcb()


def filled(site: Site, firmware: Firmware, *tcbs: TcbVersion) -> Site:
    """Fill the cache with the certificates of ``tcbs``: the command runs without a key server."""
    firmware.report(firmware.tcb("current_tcb"))
    site.done("sync")  # from here on the agent notices a lowered TCB
    for tcb in tcbs:
        firmware.report(tcb)
        site.done("sync")
    return site


def test_commit_killed_anywhere(site: Site, firmware: Firmware, low: TcbVersion) -> None:
    filled(site, firmware, low, firmware.tcb("current_tcb"))
    argv = site.arguments("commit", "--offline", kds="")
    truths = Scene(site, firmware, argv, low).sweep()
    assert set(truths) == {"right", "empty"}
    assert firmware.tcb() == firmware.tcb("current_tcb")


def test_set_config_killed_anywhere(site: Site, firmware: Firmware, low: TcbVersion) -> None:
    target = replace(low, microcode=low.components()["microcode"] + 1)
    filled(site, firmware, target, low)
    argv = ["--offline", f"--reported-tcb=ucode={target.microcode}"]
    truths = Scene(site, firmware, site.arguments("set-config", *argv, kds=""), low).sweep()
    assert set(truths) == {"right", "empty"}
    assert firmware.tcb() == target


def test_load_vlek_killed_anywhere(site: Site, firmware: Firmware, low: TcbVersion) -> None:
    """The file must follow the signing key, which becomes the VLEK."""
    config = site.folder.parent / "snpcerts.toml"
    config.write_text(f'[[file]]\npath = "{site.file}"\nkind = "vlek"\nwithout_vlek = "vcek"\n')
    options = {"file": "", "config": str(config)}
    issued = site.folder / "issued"
    made = site.emulated.run("certificates", str(issued), "--vlek", "CN=cloud")
    assert made.returncode == 0, made.stderr
    stick = [str(issued / "hashstick.bin"), f"--vlek-cert={issued / 'vlek.der'}"]
    site.done("load-vlek", *stick, **options)  # fills the cache
    scene = VlekScene(
        site,
        firmware,
        site.arguments("load-vlek", "--offline", *stick, kds="", config=str(config), file=""),
        low,
    )
    truths = scene.sweep()
    assert set(truths) == {"right", "empty"}
    assert firmware.home.firmware().snp_platform_status().flags & STATUS_VLEK_EN


class VlekScene(Scene):
    """Before each run, a change of the reported TCB makes the firmware drop the VLEK."""

    def prepare(self) -> None:
        self.firmware.report(
            replace(self.start, microcode=self.start.components()["microcode"] + 1)
        )
        super().prepare()


def test_sync_killed_anywhere(site: Site, firmware: Firmware, low: TcbVersion) -> None:
    """The file is wrong at first. The later the kill, the better the file: empty, then right.

    The certificates come from the key server, so a kill may also interrupt a write to the cache.
    """
    filled(site, firmware, low)
    truths = Scene(site, firmware, site.arguments("sync"), low, wrong=True, online=True).sweep()
    ranks = [("wrong", "empty", "right").index(seen_by_guest) for seen_by_guest in truths]
    assert ranks == sorted(ranks), truths
    assert set(ranks) == {0, 1, 2}


def test_the_scene_itself_can_fail(site: Site, firmware: Firmware, low: TcbVersion) -> None:
    """A firmware command without the lock makes the file wrong, and the test notices."""
    scene = Scene(site, firmware, [], low)
    scene.prepare()
    firmware.report(replace(low, microcode=low.components()["microcode"] + 1))
    assert scene.seen_by_guest() == "wrong"
