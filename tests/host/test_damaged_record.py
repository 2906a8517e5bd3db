# SPDX-License-Identifier: Apache-2.0
"""What commands do if the agent's record of the signing keys is damaged or another host's.

They must leave files empty rather than wrong, and status must say why. The operator's ordinary
commands must then fill the files again.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import EMPTY
from snpcerts.abi.product import Product
from snpcerts.emulator.psp.choices import PUBLISHED, choices_of

from ..emulated import SNPCERTS, Emulated
from ..keys import prepare_platform
from ..sizes import sized
from .scenario import Course
from .site import key_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def course(emulated: Emulated, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Course]:
    folder = tmp_path_factory.mktemp("record")
    # The fixture ``emulated`` has skipped the test where the emulator cannot run.
    emulated = Emulated(folder / "platform", folder / "certs", emulated.commands)
    prepare_platform(emulated.directory, Product.GENOA, choices_of(PUBLISHED))
    emulated.issue_certificates()
    (folder / "site").mkdir()
    with key_server(emulated) as url:
        course = Course(emulated, folder / "site", url, random.Random(0))
        try:
            done(course, *course.arguments("sync"))
            course.boot_guests()
            yield course
        finally:
            course.close()


def done(course: Course, *arguments: str) -> str:
    code, said = course.hosts.run(*arguments)
    assert code == 0, said
    return said


def filled(course: Course) -> Path:
    """Lower the reported TCB and load a VLEK for it. Return the path of the agent's record.

    Only this record tells the agent which key signs.
    """
    status = course.status()
    below = status["current_tcb"]["microcode"] - 1
    done(course, *course.arguments("set-config", f"--reported-tcb=ucode={below}"))
    done(course, *course._load_vlek())
    assert not course.content("certs.bin"), "must be empty: the VLEK signs by default"
    assert course.content("vlek.bin")
    assert course.content("named.bin")
    return course.folder / "signing-key.json"


def empty_with(course: Course, reason: str) -> None:
    """Check that files whose key only the record could show are empty, and that status says why."""
    course.check()
    wanted = {Path(each["path"]).name: each["wanted"] for each in course.status()["files"]}
    for name in ("vlek.bin", "named.bin"):
        assert not course.content(name)
        assert wanted[name].startswith("the empty table ("), wanted
    assert reason in wanted["named.bin"], wanted


def remove(path: Path, _: Path) -> None:
    path.unlink()


def tear(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def take_another_hosts(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def write_a_later_version(path: Path, _: Path) -> None:
    """Write a complete record, as a newer agent would."""
    content = json.loads(path.read_bytes()) | {"version": 2}
    del content["sha256"]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(content | {"sha256": digest}))


@pytest.fixture(scope="module")
def of_another_chip(course: Course, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record that another host's agent has written, on a chip of the same product."""
    folder = tmp_path_factory.mktemp("other")
    prepare_platform(folder / "platform", Product.GENOA, choices_of(PUBLISHED))
    host = Emulated(folder / "platform", folder / "certs", course.emulated.commands)
    argv = ("status", f"--file={folder / 'certs.bin'}", f"--anchor={course.anchor}", "--offline")
    host.run("host", "--", *SNPCERTS, "host", *argv)
    return folder / "signing-key.json"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    sized(
        [(tear, "damaged or was changed by hand")],
        [
            (remove, "there is no record"),
            (tear, "damaged or was changed by hand"),
            (take_another_hosts, "the record of the keys is from another chip"),
            (write_a_later_version, "written by another version of snpcerts"),
        ],
    ),
)
def test_without_its_record_the_agent_leaves_files_empty_and_says_why(
    course: Course, of_another_chip: Path, spoil: Callable[[Path, Path], None], reason: str
) -> None:
    record = filled(course)
    spoil(record, of_another_chip)
    done(course, *course.arguments("sync"))
    empty_with(course, reason)
    done(course, *course._load_vlek())
    done(course, *course.arguments("set-config", "--again"))
    filled(course)
    course.check()


def test_firmware_that_changed_while_the_agent_was_down(course: Course) -> None:
    """The agent is killed, so it records nothing when another program then sets another TCB."""
    filled(course)
    course.start_agent()
    course.end_agent(signal.SIGKILL)
    status = course.status()
    assert status["vlek"] is not None
    made = course.emulated.python(
        ["host"],
        "from snpcerts.abi.psp import SnpConfig\n"
        "from snpcerts.host.sev import Sev\n"
        "Sev().snp_set_config(SnpConfig())\n",
    )
    assert made.returncode == 0, made.stderr
    course.start_agent()
    course.look()
    course.check()
    assert not course.content("vlek.bin"), "must be empty: the VLEK that stays is for the old TCB"
    course.end_agent(signal.SIGTERM)
    done(course, *course._load_vlek())
    course.check()
    assert course.content("vlek.bin")


def test_two_agents_and_the_operator_at_once(course: Course) -> None:
    """They must take turns, and guests must always get certificates that match their reports."""
    filled(course)
    second = course.hosts.start(*course.arguments("sync", "--watch", "--interval=0.1"))
    course.start_agent()
    try:
        for name in sized(
            ("set_config", "load_vlek"),
            ("set_config", "load_vlek", "mask", "mask", "commit", "set_config"),
        ):
            course.perform(name)
    finally:
        second.kill(signal.SIGTERM)
        assert second.wait() == 0, second.said()
        course.end_agent(signal.SIGTERM)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda _, old: old, "does not answer this request"),
        (lambda new, old: new[:0x90] + old[0x90:], "no available certificate verifies"),
        (lambda new, _: new[:-1], "is not a report"),
        (lambda new, _: new + new, "is not a report"),
    ],
    ids=["replayed", "forged", "cut off", "twice"],
)
def test_a_forged_or_replayed_proof_changes_nothing(
    course: Course, spoil: Callable[[bytes, bytes], bytes], reason: str
) -> None:
    filled(course)
    guest = course.guests[2]
    course.attest(guest)
    old = (guest.folder / "report").read_bytes()
    before = course.status()
    code, said = course.prove(guest, lambda report: spoil(report, old))
    assert code == 1, said
    assert reason in said
    assert "Traceback" not in said
    after = course.status()
    assert after["proofs"] == before["proofs"]
    assert [each["wanted"] for each in after["files"]] == [
        each["wanted"] for each in before["files"]
    ]
    assert course.content("named.bin")
    assert (course.folder / "named.bin").read_bytes() != EMPTY
