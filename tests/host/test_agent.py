# SPDX-License-Identifier: Apache-2.0
"""Keeping files in step: what the agent publishes and empties, and what it never does."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from snpcerts.abi.cert_table import CRL_GUID, EMPTY, VCEK_GUID, CertTable, TableEntry
from snpcerts.abi.product import Product
from snpcerts.abi.psp import CONFIG_MASK_CHIP_ID, CONFIG_MASK_CHIP_KEY, SnpConfig
from snpcerts.certfile import step
from snpcerts.certfile.file import CertFile
from snpcerts.certfile.hold import hold
from snpcerts.certfile.reader import Empty
from snpcerts.certfile.recognise import ForeignFileError
from snpcerts.certfile.relay import relay
from snpcerts.certfile.step import Steps
from snpcerts.certfile.writer import LockHeldError, Strategy
from snpcerts.emulator.amd.certificates import vcek_of
from snpcerts.emulator.psp.chip import Chip
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import InputError, RefusedError
from snpcerts.host import plan as plans
from snpcerts.host.config import ExtraEntry, GuestKeySelect
from snpcerts.host.event import EventKind
from snpcerts.host.file_state import FileMatch
from snpcerts.host.host_firmware import FirmwareState
from snpcerts.host.table_cache import UnavailableError
from snpcerts.kds.errors import KdsUnavailableError

from ..keys import authority_of
from .rig import Rig, served


def change_firmware_without_lock(rig: Rig, **flags: bool) -> None:
    """Another program changes the firmware, without the lock."""
    bits = CONFIG_MASK_CHIP_KEY * flags.get("key", False)
    bits |= CONFIG_MASK_CHIP_ID * flags.get("chip", False)
    rig.device.snp_set_config(SnpConfig(reported_tcb=rig.lower().pack(), flags=bits))


def test_a_new_host_gets_its_file(rig: Rig) -> None:
    done = rig.agent().sync()
    assert done.problem is None
    assert rig.seen_by_guest() == "right"
    assert [entry.name for entry in rig.table()] == ["vcek", "ask", "ark"]


def test_in_step_nothing_is_changed_and_no_server_asked(rig: Rig) -> None:
    rig.agent().sync()
    before, asked = rig.file.stat(), list(rig.server.asked)
    done = rig.agent().sync()
    assert done.updates == ()
    after = rig.file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert rig.server.asked == asked


def test_drift_is_emptied_first_and_repaired(rig: Rig) -> None:
    agent = rig.agent()
    agent.sync()
    change_firmware_without_lock(rig)
    assert rig.seen_by_guest() == "wrong", "must be wrong until the agent repairs it"
    found: list[str] = []

    def lie(tcb: object) -> Any:
        found.append(rig.seen_by_guest())
        return vcek_of(rig.server.authority, rig.firmware.chip, rig.reported())

    rig.server.lie = lie
    assert agent.sync().problem is None
    assert found == ["empty"], "must be empty before the key server is asked"
    assert rig.seen_by_guest() == "right"
    assert EventKind.DRIFT in rig.kinds()


@pytest.mark.parametrize("strategy", Strategy, ids=lambda each: each.value)
@pytest.mark.parametrize("harm", ["drift", "lapsed", "revoked"])
def test_a_vmm_that_never_lets_go_does_not_keep_a_wrong_table_in_use(
    rig: Rig, strategy: Strategy, harm: str
) -> None:
    rig.config = replace(rig.config, files=(replace(rig.config.files[0], strategy=strategy),))
    agent = rig.agent()
    agent.sync()
    if harm == "drift":
        change_firmware_without_lock(rig)
    elif harm == "lapsed":
        rig.now = datetime.now(UTC) + timedelta(days=365 * 10)
    else:
        rig.server.revoked = (rig.server.authority.ask.serial_number,)
        agent = rig.agent()
    safe: list[str] = []
    with hold(str(rig.file), shared=True):
        for _ in range(2):
            done = agent.sync(on_safe=lambda: safe.append(rig.seen_by_guest()))
            assert done.problem is not None
            assert done.problem.exit_code == 3
            assert served(rig.file) == Empty()
    if harm != "revoked":  # the agent learns of the revocation later
        assert safe == ["empty", "empty"]
    assert EventKind.EMPTIED in rig.kinds()
    if harm == "drift":
        assert agent.sync().problem is None
        assert rig.seen_by_guest() == "right"


def test_a_file_at_a_mistyped_path_is_refused_and_stays(rig: Rig) -> None:
    text = b"127.0.0.1 localhost\n"
    rig.file.write_bytes(text)
    safe: list[bool] = []
    done = rig.agent().sync(on_safe=lambda: safe.append(True))
    assert isinstance(done.problem, ForeignFileError)
    assert done.before[0].match is FileMatch.FOREIGN
    assert not safe, "must not be called safe: guests would get data that is not a table"
    assert rig.kinds() == [EventKind.FAILED]
    assert rig.file.read_bytes() == text
    assert rig.server.asked == []
    plan = plans.commit(rig.agent())
    assert any("the command will be refused" in note for note in plan.notes)
    with pytest.raises(ForeignFileError, match="check the path"):
        plans.carry_out(rig.agent(), plan, allow_empty=True)
    assert rig.file.read_bytes() == text
    agent = rig.agent()
    agent.force = True
    assert any("WILL BE REPLACED" in note for note in plans.commit(agent).notes)
    assert agent.sync().problem is None
    assert rig.seen_by_guest() == "right"


def test_an_empty_table_has_its_own_reason_after_a_refused_command(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the firmware's status is unknown, the reason is the error of reading it."""
    agent = rig.agent()
    agent.sync()
    messages: list[str] = []
    agent.tell = lambda event: messages.append(event.message)

    read = agent.firmware.state
    issued: list[str] = []

    def state(_: object) -> FirmwareState:
        if issued:
            raise RefusedError("the status cannot be read")
        return read()

    def refused() -> None:
        issued.append("command")
        raise RefusedError("the command was refused")

    monkeypatch.setattr(type(agent.firmware), "state", state)
    done = agent.publish(agent.config.files, refused)
    assert str(done.refused) == "the command was refused"
    (message,) = (each for each in messages if "empty table" in each)
    assert message.endswith("unknown: the status cannot be read")


def test_garbage_in_a_certificate_file_is_not_drift(rig: Rig) -> None:
    rig.agent().sync()
    rig.events.clear()
    rig.file.write_bytes(b"an editor was here")
    assert rig.agent().sync().problem is None
    assert rig.seen_by_guest() == "right"
    assert EventKind.GARBAGE in rig.kinds()
    assert EventKind.DRIFT not in rig.kinds()


def test_with_the_key_server_down_right_files_stay(rig: Rig) -> None:
    rig.agent().sync()
    rig.server.down = True
    done = rig.agent().sync()
    assert done.problem is None
    assert rig.seen_by_guest() == "right"


@pytest.mark.parametrize("fault", ["down", "missing"])
def test_with_the_key_server_down_wrong_files_become_empty(rig: Rig, fault: str) -> None:
    rig.agent().sync()
    change_firmware_without_lock(rig)
    setattr(rig.server, fault, True)
    done = rig.agent().sync()
    assert done.problem is not None
    assert done.problem.exit_code == 3
    assert rig.file.read_bytes() == EMPTY
    setattr(rig.server, fault, False)
    assert rig.agent().sync().problem is None
    assert rig.seen_by_guest() == "right"


def another_chip(rig: Rig) -> Any:
    return lambda tcb: vcek_of(rig.server.authority, Chip.create(Product.MILAN), tcb)


def another_tcb(rig: Rig) -> Any:
    return lambda _: vcek_of(rig.server.authority, rig.firmware.chip, rig.lower(2))


def another_root(rig: Rig) -> Any:
    other = authority_of(Product.MILAN, "other")
    return lambda tcb: vcek_of(other, rig.firmware.chip, tcb)


def a_broken_leaf(rig: Rig) -> Any:
    return lambda tcb: replace(
        vcek_of(rig.server.authority, rig.firmware.chip, tcb), leaf=b"<html>come back later"
    )


@pytest.mark.parametrize("lie", [another_chip, another_tcb, another_root, a_broken_leaf])
def test_a_lie_is_never_published(rig: Rig, lie: Callable[[Rig], Any]) -> None:
    rig.server.lie = lie(rig)
    done = rig.agent().sync()
    assert isinstance(done.problem, UnavailableError)
    assert rig.file.read_bytes() == EMPTY
    rig.server.lie = None
    assert rig.agent().sync().problem is None
    assert rig.seen_by_guest() == "right"


def test_a_clock_a_year_behind_is_reported_and_right_files_stay(rig: Rig) -> None:
    rig.agent().sync()
    rig.now = datetime.now(UTC) - timedelta(days=365)
    done = rig.agent().sync()
    assert rig.seen_by_guest() == "right"
    assert done.before[0].match is FileMatch.OUTDATED
    assert done.problem is not None
    assert "check this host's clock, which says" in str(done.problem)
    rig.file.unlink()
    assert rig.agent().sync().problem is not None
    assert rig.file.read_bytes() == EMPTY


def test_an_expired_certificate_is_not_served(rig: Rig) -> None:
    rig.agent().sync()
    rig.now = datetime.now(UTC) + timedelta(days=365 * 10)
    done = rig.agent().sync()
    assert rig.file.read_bytes() == EMPTY
    assert done.problem is not None
    assert "valid until" in str(done.problem)


def test_a_revoked_ask_is_not_published_and_a_new_one_is(rig: Rig) -> None:
    old = rig.server.authority
    rig.server.revoked = (old.ask.serial_number,)
    done = rig.agent().sync()
    assert rig.file.read_bytes() == EMPTY
    assert done.problem is not None
    assert done.problem.exit_code == 3
    assert "the ASK with serial number" in str(done.problem)
    assert EventKind.PUBLISHED not in rig.kinds()
    rig.server.authority = old.with_new_ask()
    assert rig.agent().sync().problem is None
    assert rig.seen_by_guest() == "right"


def test_an_ask_that_is_revoked_later_is_removed_and_that_is_not_drift(rig: Rig) -> None:
    rig.agent().sync()
    rig.server.revoked = (rig.server.authority.ask.serial_number,)
    done = rig.agent().sync()
    assert rig.file.read_bytes() == EMPTY
    assert done.problem is not None
    assert EventKind.LAPSED in rig.kinds()
    assert EventKind.DRIFT not in rig.kinds()
    # The agent remembers the revocation when the key server is down.
    rig.server.down = True
    assert rig.agent().sync().problem is not None
    assert rig.file.read_bytes() == EMPTY


def test_without_a_revocation_list_there_are_certificates(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> bytes:
        raise KdsUnavailableError("no answer")

    monkeypatch.setattr(rig.server, "crl", unreachable)
    assert rig.agent().sync().problem is None
    assert rig.seen_by_guest() == "right"
    assert EventKind.FAILED not in rig.kinds()


def test_a_strangers_revocation_list_says_nothing(rig: Rig) -> None:
    other = authority_of(Product.MILAN, "other")
    crl = other.crl((rig.server.authority.ask.serial_number,))
    rig.server.known[VekKind.VCEK] = crl.der
    rig.server.down = True
    agent = rig.agent()
    assert agent.table_cache.revocation_lists()
    rig.server.down = False
    agent.sync()
    assert rig.seen_by_guest() == "right"


def test_revocation_lists_are_asked_for_once_a_day(rig: Rig) -> None:
    agent = rig.agent()
    for _ in range(3):
        agent.sync()
    assert rig.server.lists_asked == 1


def test_a_group_that_does_not_exist_is_reported_and_the_file_is_still_right(rig: Rig) -> None:
    rig.config = replace(rig.config, files=(replace(rig.config.files[0], group="no-such-group"),))
    done = rig.agent().sync()
    assert rig.seen_by_guest() == "right"
    assert "no group 'no-such-group'" in str(done.problem)
    assert rig.kinds().count(EventKind.FAILED) == 1
    with pytest.raises(InputError, match="no-such-group"):
        plans.commit(rig.agent())


def test_masked_keys_leave_the_file_empty(rig: Rig) -> None:
    rig.agent().sync()
    change_firmware_without_lock(rig, key=True)
    assert rig.agent().sync().problem is None
    assert rig.file.read_bytes() == EMPTY
    change_firmware_without_lock(rig, chip=True)
    assert rig.agent().sync().problem is None
    assert rig.file.read_bytes() == EMPTY


def load_vlek(rig: Rig) -> None:
    agent = rig.agent()
    plans.carry_out(agent, plans.load_vlek(agent, *rig.vlek()), allow_empty=False)


def test_each_file_follows_its_own_rule_while_a_vlek_is_loaded(rig: Rig) -> None:
    vlek = rig.with_file("vlek.bin", kind=VekKind.VLEK)
    either = rig.with_file("either.bin", kind=VekKind.VLEK, without_vlek=VekKind.VCEK)
    named = rig.with_file("named.bin", key_select=GuestKeySelect.NAMED)
    assert rig.agent().sync().problem is None
    without = [rig.seen_by_guest(path) for path in (rig.file, vlek, either, named)]
    assert without == ["right", "empty", "right", "right"]
    load_vlek(rig)
    assert rig.agent().sync().problem is None
    loaded = [rig.seen_by_guest(path) for path in (rig.file, vlek, either)]
    assert loaded == ["empty", "right", "right"]
    # Guests of ``named.bin`` ask for the VCEK by name.
    assert [entry.name for entry in rig.table(named)] == ["vcek", "ask", "ark"]


def test_a_vlek_without_its_certificate_leaves_the_file_empty(rig: Rig) -> None:
    vlek = rig.with_file("vlek.bin", kind=VekKind.VLEK)
    load_vlek(rig)
    shutil.rmtree(rig.config.vlek_certificates)
    vlek.unlink()
    done = rig.agent().sync()
    assert "load-vlek" in str(done.problem)
    assert vlek.read_bytes() == EMPTY


def test_a_fifo_in_a_vlek_certificates_place_does_not_hold_the_agent_up(rig: Rig) -> None:
    vlek = rig.with_file("vlek.bin", kind=VekKind.VLEK)
    load_vlek(rig)
    (certificate,) = rig.config.vlek_certificates.iterdir()
    certificate.unlink()
    os.mkfifo(certificate)
    vlek.unlink()
    done = rig.agent().sync()
    assert "load-vlek" in str(done.problem)
    assert vlek.read_bytes() == EMPTY


@pytest.mark.parametrize("known_before", [False, True])
def test_a_vlek_that_another_program_loaded_is_of_unknown_tcb(rig: Rig, known_before: bool) -> None:
    """It makes no difference whether the agent has seen this host before the VLEK was loaded."""
    vlek = rig.with_file("vlek.bin", kind=VekKind.VLEK)
    stick, leaf = rig.vlek()
    if known_before:
        assert rig.agent().sync().problem is None
    rig.agent().table_cache.keep_vlek(rig.reported(), leaf)
    rig.device.snp_vlek_load(stick)
    done = rig.agent().sync()
    assert done.problem is None
    assert vlek.read_bytes() == EMPTY
    (wanted,) = (each.expected for each in rig.agent().read_files() if each.file.path == str(vlek))
    assert "was not loaded by 'host load-vlek'" in str(wanted)


def test_other_entries_are_carried_and_kept_up(rig: Rig, tmp_path: Path) -> None:
    extra, guid = tmp_path / "extra", uuid.UUID(int=7)
    file = rig.config.files[0]
    rig.config = replace(
        rig.config, files=(replace(file, entries=(ExtraEntry(guid, str(extra)),)),)
    )
    assert rig.agent().sync().problem is None, "must publish without the extra"
    assert EventKind.FAILED in rig.kinds()
    for content in (b"something", b"something newer"):
        extra.write_bytes(content)
        assert rig.agent().sync().problem is None
        assert rig.table().get(guid) == content
    assert rig.seen_by_guest() == "right"


def test_a_configured_revocation_list_is_judged_before_guests_get_it(
    rig: Rig, tmp_path: Path
) -> None:
    crl = tmp_path / "crl.der"
    file = rig.config.files[0]
    rig.config = replace(
        rig.config, files=(replace(file, entries=(ExtraEntry(CRL_GUID, str(crl)),)),)
    )
    good = rig.server.authority.crl(()).der
    other = authority_of(Product.MILAN, "other").crl(()).der
    pem = b"-----BEGIN X509 CRL-----\n" + good[:40] + b"\n-----END X509 CRL-----\n"
    flipped = good[:-1] + bytes((good[-1] ^ 1,))
    for bad in (b"a list", other, bytes(5000), good[:-1], good + b"\0", pem, flipped, b"", None):
        crl.unlink(missing_ok=True)
        if bad is None:
            os.mkfifo(crl)
        else:
            crl.write_bytes(bad)
        rig.events.clear()
        assert rig.agent().sync().problem is None
        assert rig.seen_by_guest() == "right"
        assert rig.table().get(CRL_GUID) is None
        (message,) = {event.message for event in rig.events if event.kind is EventKind.FAILED}
        assert message.startswith(f"{crl}: ")
    crl.unlink()
    crl.write_bytes(good)
    assert rig.agent().sync().problem is None
    assert rig.table().get(CRL_GUID) == good
    before = rig.file.stat().st_ino
    assert rig.agent().sync().problem is None
    assert rig.file.stat().st_ino == before, "must write nothing while in step"
    # An expired list is removed again. The certificates are still valid at that time.
    rig.now = datetime.now(UTC) + timedelta(days=365 * 2)
    assert rig.agent().sync().problem is None
    assert rig.table().get(CRL_GUID) is None
    assert rig.seen_by_guest() == "right"


def test_a_table_of_another_host_is_replaced(rig: Rig) -> None:
    other = vcek_of(rig.server.authority, Chip.create(Product.MILAN), rig.reported())
    CertFile(str(rig.file)).publish(other.table())
    assert rig.agent().read_files()[0].match is FileMatch.WRONG
    assert rig.agent().sync().problem is None
    assert rig.seen_by_guest() == "right"


def test_a_held_lock_is_reported_with_its_holder(rig: Rig) -> None:
    rig.agent().sync()
    change_firmware_without_lock(rig)
    with hold(str(rig.file), shared=True):
        done = rig.agent().sync()
    assert isinstance(done.problem, LockHeldError)
    assert f"pid {os.getpid()}" in str(done.problem)
    assert rig.agent().sync().problem is None


def failing(*kinds: type, number: int = errno.ENOSPC) -> Any:
    def through(action: Any) -> Steps[Any]:
        if isinstance(action, kinds):
            raise OSError(number, os.strerror(number))
        return (yield action)

    return relay(through)


def test_on_a_full_disk_a_wrong_file_is_still_emptied(rig: Rig) -> None:
    """There is no room for a new file, so the old one is emptied in place."""
    rig.agent().sync()
    change_firmware_without_lock(rig)
    rig.performer = failing(step.Create)
    done = rig.agent().sync()
    assert "No space left on device" in str(done.problem)
    assert rig.file.read_bytes() == EMPTY
    rig.performer = Rig.performer
    assert rig.agent().sync().problem is None
    assert rig.seen_by_guest() == "right"


def test_a_read_only_file_system_is_reported(rig: Rig) -> None:
    rig.performer = failing(step.OpenOrCreate, step.Create, number=errno.EROFS)
    done = rig.agent().sync()
    assert "Read-only file system" in str(done.problem)
    assert done.problem is not None
    assert done.problem.exit_code == 1


def test_firmware_that_does_not_answer_stops_the_look_and_touches_nothing(rig: Rig) -> None:
    rig.agent().sync()
    agent = rig.agent()
    rig.device.broken = True
    with pytest.raises(RefusedError, match="SNP_PLATFORM_STATUS"):
        agent.sync()
    rig.device.broken = False
    assert rig.seen_by_guest() == "right"


def test_firmware_that_changes_while_we_fetch_is_noticed_under_the_lock(rig: Rig) -> None:
    """The fetched table is for the old key by then, and is not published."""
    changes = [True]

    def lie(tcb: Any) -> Any:
        if changes.pop() if changes else False:
            change_firmware_without_lock(rig)
        return vcek_of(rig.server.authority, rig.firmware.chip, tcb)

    rig.server.lie = lie
    done = rig.agent().sync()
    missing = [result.files[0].missing for result in done.updates]
    assert [each is not None for each in missing] == [True, True, False], (
        "must create the file empty, reject the table for the old key, then fetch the right one"
    )
    assert done.problem is None
    assert rig.seen_by_guest() == "right"


def test_firmware_that_keeps_changing_is_reported_and_the_file_stays_empty(rig: Rig) -> None:
    def lie(tcb: Any) -> Any:
        change_firmware_without_lock(rig)
        return vcek_of(rig.server.authority, rig.firmware.chip, tcb)

    rig.server.lie = lie
    done = rig.agent().sync()
    assert "changed 3 times" in str(done.problem)
    assert rig.file.read_bytes() == EMPTY


def test_a_lock_granted_at_the_second_try_is_not_a_problem(rig: Rig) -> None:
    rig.agent().sync()
    change_firmware_without_lock(rig)
    stack = contextlib.ExitStack()
    stack.enter_context(hold(str(rig.file), shared=True))

    def lie(tcb: Any) -> Any:
        stack.close()  # while we fetch, the reader is done
        return vcek_of(rig.server.authority, rig.firmware.chip, tcb)

    rig.server.lie = lie
    safe: list[bool] = []
    done = rig.agent().sync(on_safe=lambda: safe.append(rig.seen_by_guest() != "wrong"))
    assert done.problem is None
    assert safe == [True]
    assert rig.seen_by_guest() == "right"


def test_the_key_server_is_left_alone_between_tries(rig: Rig) -> None:
    rig.server.down, rig.server.retry_after = True, 100.0
    agent = rig.agent()
    agent.sync()
    rig.server.down = False
    done = agent.sync()
    assert isinstance(done.problem, UnavailableError), "must not ask again so soon"
    assert rig.server.asked == []
    assert rig.agent().sync().problem is None


def test_group_and_mode_are_given_and_kept(rig: Rig) -> None:
    file = rig.config.files[0]
    rig.config = replace(rig.config, files=(replace(file, mode=0o600),))
    rig.agent().sync()
    assert rig.file.stat().st_mode & 0o777 == 0o600
    rig.file.chmod(0o644)
    rig.agent().sync()
    assert rig.file.stat().st_mode & 0o777 == 0o600


def test_nothing_that_came_along_is_published(rig: Rig) -> None:
    agent = rig.agent()
    sound = vcek_of(rig.server.authority, rig.firmware.chip, rig.reported()).table()
    more = CertTable((*sound.entries, TableEntry(CRL_GUID, b"from who knows where")))
    rig.server.lie = lambda _: type("Issued", (), {"table": lambda _: more})()
    assert agent.sync().problem is None
    assert rig.table().get(CRL_GUID) is None
    assert rig.table().get(VCEK_GUID) == sound.get(VCEK_GUID)
