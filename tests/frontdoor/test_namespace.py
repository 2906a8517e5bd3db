# SPDX-License-Identifier: Apache-2.0
"""A program's own mount namespace: its contents, what it does not change, and which users can have
one.
"""

from __future__ import annotations

import os
import select
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.emulator.frontdoor import namespace, ways
from snpcerts.emulator.frontdoor.door import Door
from snpcerts.emulator.frontdoor.layout import Layout, Places
from snpcerts.emulator.frontdoor.seccomp import FrontDoorUnavailableError
from snpcerts.emulator.frontdoor.supervisor import Supervisor
from snpcerts.emulator.frontdoor.ways import Way
from snpcerts.emulator.syscall.device import Device
from snpcerts.errors import InputError, UsageError

from . import toys
from .conftest import LIMIT, Stage
from .toys import MARKER, Toys

SHELL = Path("/bin/sh")
MODULE = "/sys/module/kvm_amd"


@pytest.fixture
def stage(probe: Path) -> Iterator[Stage]:
    """A fresh supervisor with toys, whose programs have namespaces."""
    if reason := namespace.missing():
        pytest.skip(reason)
    with Supervisor() as supervisor:
        yield Stage(probe, supervisor, Way.NAMESPACE)


def test_a_program_that_touches_no_device_never_waits_for_the_supervisor(stage: Stage) -> None:
    """The supervisor serves nothing here while the program opens and reads files."""
    running = stage.start("open", "/dev/null", "stat", "/etc/passwd", "open", "/proc/self/fd/0")
    assert running.process.wait(60) == 0
    stage.finish(running)


def test_the_machine_and_its_mounts_stay_as_they_are(stage: Stage) -> None:
    def seen() -> tuple[list[str], list[str], list[str]]:
        text = Path("/proc/self/mountinfo").read_text()
        ours = [line for line in text.splitlines() if line.split()[4].startswith(("/dev", "/sys"))]
        return ours, sorted(os.listdir("/dev")), sorted(os.listdir("/sys/module"))

    before = seen()
    running = stage.start("open", "/dev/kvm", "api", "until-input")
    stage.serve(lambda: len(stage.toys.open) == 1)
    assert seen() == before
    stage.tell(running)
    stage.finish(running)
    assert seen() == before


def test_the_rest_of_dev_works_as_before(stage: Stage) -> None:
    program = (
        "import os, pty\n"
        "one, two = pty.openpty()\n"
        "os.write(two, b'through a terminal')\n"
        "print(os.read(one, 100).decode())\n"
        "print(len(os.urandom(4)), open('/dev/null').read() == '', open('/dev/zero', 'rb').read(1))"
    )
    said = stage.printed("-I", "-c", program, program=Path(sys.executable))
    assert said == ["through", "a", "terminal", "4", "True", r"b'\x00'"]
    ours = {"kvm", "sev", "sev-guest", "cpu", ".real"}
    listed = stage.printed("-c", "ls -A /dev", program=SHELL)
    assert set(listed) - ours == set(os.listdir("/dev")) - ours
    assert set(listed) & {"kvm", "sev", "sev-guest"} == {"kvm", "sev"}


def test_a_working_directory_that_is_covered_is_left_for_its_cover(stage: Stage) -> None:
    program = "import os; os.chdir('/dev'); os.execv({0!r}, [{0!r}, 'open', 'sev', 'api'])"
    argv = ("-I", "-c", program.format(str(stage.probe)))
    assert stage.printed(*argv, program=Path(sys.executable)) == ["0", str(MARKER)]


def test_a_namespace_of_the_programs_own_keeps_the_devices(stage: Stage) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare on this machine")
    inner = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    script = " ".join((*inner, str(stage.probe), "open", "/dev/sev", "api"))
    assert stage.printed("-c", script, program=SHELL) == ["0", str(MARKER)]


def test_no_privilege_is_gained(stage: Stage) -> None:
    command = "grep -E '^(CapEff|CapPrm|NoNewPrivs)' /proc/self/status; id -u; id -g"
    said = stage.printed("-c", command, program=SHELL)
    status = Path("/proc/self/status").read_text()
    mine = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    capabilities = dict(zip(said[0:6:2], said[1:6:2], strict=True))
    for name in ("CapPrm:", "CapEff:"):
        assert int(capabilities[name], 16) & ~int(mine, 16) == 0
    assert capabilities["NoNewPrivs:"] == "1"
    assert said[6:] == [str(os.geteuid()), str(os.getegid())]


def test_files_and_directories_follow_what_they_show(stage: Stage) -> None:
    """Opening and calling the device stands for a reload: contents and the inode must change."""

    class Changing(Toys):
        loaded = 2000
        version: object = None

        def device(self, info: object) -> toys.Toy:
            made = super().device(info)  # type: ignore[arg-type]  # passed on as it came
            self.loaded, self.version = self.loaded + 1, object()
            return made

    changing = Changing()
    file = f"{MODULE}/parameters/loaded"
    door = Door(
        {"/dev/kvm": changing.device},
        {
            file: lambda: b"%d\n" % changing.loaded,
            "/proc/cpuinfo": lambda: b"c%d\n" % changing.loaded,
        },
        inodes={MODULE: lambda: changing.loaded},
        version=lambda: changing.version,
    )
    look = f"cat {file} /proc/cpuinfo; stat -c %i {MODULE};"
    script = (
        f"{look} {stage.probe} open /dev/kvm api; {look} {stage.probe} open /dev/kvm api; {look}"
    )
    said = stage.printed("-c", script, program=SHELL, door=door)
    shown = [[str(number), f"c{number}", str(number)] for number in (2000, 2001, 2002)]
    called = ["0", str(MARKER)]
    assert said == [*shown[0], *called, *shown[1], *called, *shown[2]]


def test_opens_that_reuse_a_number_are_devices_of_their_own(stage: Stage) -> None:
    steps = ("open", "/dev/kvm", "api", "close") * 20
    printed = stage.printed(*steps)
    assert printed == ["0", str(MARKER), "0"] * 20
    stage.serve(lambda: stage.toys.closed == 20)
    assert len(stage.toys.opened) == 20


def test_ends_are_found_when_events_are_lost(stage: Stage) -> None:
    devices = stage.supervisor._namespaces
    running = stage.start("open", "/dev/kvm", "api", "open", "/dev/sev", "api", "until-input")
    stage.serve(lambda: len(stage.toys.open) == 2)
    assert devices._look_at_all() == []
    running.process.kill()
    ended: list[Device] = []
    while len(ended) < 2:
        assert select.select([devices], [], [], LIMIT)[0], "must report the end of each device"
        os.read(devices.fileno(), 1 << 16)
        ended += devices._look_at_all()
    for device in ended:
        device.close()
    stage.finish(running)


def test_a_namespace_that_cannot_be_had_is_named_in_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(namespace, "missing", lambda: "unshare: Operation not permitted")
    way, why = ways.choose(None)
    assert way is Way.TRAP
    assert "Operation not permitted" in why
    with pytest.raises(FrontDoorUnavailableError, match="Operation not permitted"):
        ways.choose(Way.NAMESPACE)
    assert ways.choose(Way.TRAP)[0] is Way.TRAP


def test_the_attempt_tells_why_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "_DEVPTS", "no such option")
    assert "devpts" in namespace.missing() or "unshare" in namespace.missing()


def test_an_unknown_way_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ways.VARIABLE, "window")
    with pytest.raises(UsageError, match="window"):
        ways.wanted()
    monkeypatch.setenv(ways.VARIABLE, "auto")
    assert ways.wanted() is None


plain = st.lists(st.sampled_from(["dev", "sev", "a b", "ä"]), min_size=1).map(
    lambda parts: "/" + "/".join(parts)
)
places = st.dictionaries(plain, st.tuples(st.integers(0, 3), plain.map(lambda path: path[1:])))


@given(
    st.lists(plain), st.lists(plain), st.dictionaries(plain, st.integers(0, 0o777)), places, places
)
def test_messages_come_out_as_they_went_in(
    some: list[str],
    others: list[str],
    modes: dict[str, int],
    files: dict[str, tuple[int, str]],
    directories: dict[str, tuple[int, str]],
) -> None:
    layout = Layout(tuple(some), tuple(others), modes, tuple(some), tuple(others))
    assert Layout.from_json(layout.to_json()) == layout
    found = Places(tuple(some), 4, files, directories, tuple(others))
    assert Places.from_json(found.to_json()) == found


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
keys = ("devices", "hidden", "files", "directories", "roots", "trees")


@given(json | st.fixed_dictionaries({}, optional=dict.fromkeys(keys, json)))
def test_garbage_in_messages_is_an_input_error(found: object) -> None:
    for kind in (Layout, Places):
        try:
            kind.from_json(found)
        except InputError:
            continue


@pytest.mark.parametrize("name", ["../etc/passwd", "/etc/passwd", "a/../../b", "", "."])
def test_a_place_outside_its_root_is_an_input_error(name: str) -> None:
    message = Places((), 1, {"/proc/cpuinfo": (0, "0")}, {}).to_json()
    message["files"] = {"/proc/cpuinfo": [0, name]}
    with pytest.raises(InputError):
        Places.from_json(message)
