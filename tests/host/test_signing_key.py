# SPDX-License-Identifier: Apache-2.0
"""The signing key under every firmware that sources describe: assumed, in doubt, proven."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from snpcerts.abi.cert_table import EMPTY, VCEK_GUID, VLEK_GUID
from snpcerts.abi.guest_message import KeySelect
from snpcerts.abi.product import Product
from snpcerts.abi.psp import SnpConfig
from snpcerts.abi.report import Report, SigningKey
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.amd.certificates import Issued, vcek_of, vlek_of
from snpcerts.emulator.psp.chip import Chip
from snpcerts.emulator.psp.choices import NAMES, PUBLISHED, choices_of
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.endorsement.vek import EndorsementCert, VekKind
from snpcerts.errors import RefusedError, RetryLaterError
from snpcerts.host import plan as plans
from snpcerts.host.config import Config, FileConfig
from snpcerts.host.config import GuestKeySelect as Select
from snpcerts.host.event import EventKind
from snpcerts.host.expected_content import NoKey
from snpcerts.host.initialisation import Initialisation
from snpcerts.host.key_memory import MemoryFile
from snpcerts.host.metrics import Metrics
from snpcerts.host.proof import NONCE_SIZE, NoProofError, Proved, prove
from snpcerts.host.sev import SevError
from snpcerts.verify.report_check import check_signature

from ..emulator.firmware_guest import FirmwareGuest
from ..keys import authority_of
from ..sizes import sized
from .rig import FIRST, FirmwareDevice, KeyServer, Rig
from .test_command_crash import HOW_MANY

SECOND = Initialisation(FIRST.boot, "2")


class KilledError(BaseException):
    """Ends the agent at this point, as SIGKILL would."""


class Host:
    """A host with three files and one firmware; its agent may be killed at any command."""

    def __init__(self, folder: Path, authority: EmulatedAuthority, played: str) -> None:
        chip = Chip(Product.GENOA, bytes(range(32)))
        firmware = Firmware(chip, choices=choices_of(played))
        self.rig = Rig(
            folder, FirmwareDevice(firmware), KeyServer(authority, chip), _config(folder)
        )
        self.rig.server.lie = self._issued
        self._vceks: dict[TcbVersion, Issued] = {}
        self.authority = authority

    def _issued(self, tcb: TcbVersion) -> Issued:
        if tcb not in self._vceks:
            self._vceks[tcb] = vcek_of(self.authority, self.rig.firmware.chip, tcb)
        return self._vceks[tcb]

    def sync(self) -> None:
        """Start a new agent for one round."""
        assert self.rig.agent().sync().problem is None

    def command(self, make: Callable[[object], plans.Plan]) -> None:
        agent = self.rig.agent()
        plan = make(agent)
        changed = plans.carry_out(agent, plan, allow_empty=False)
        problem = plans.follow_up(agent, changed)
        assert problem is None or isinstance(problem, RefusedError), problem

    def load_vlek(self) -> None:
        sticks = self.rig.vlek()
        self.command(lambda agent: plans.load_vlek(agent, *sticks))  # type: ignore[arg-type]  # an Agent

    def set_config(self) -> None:
        current = self.rig.firmware.state.current
        lower = replace(current, microcode=current.components()["microcode"] - 1)
        other = current if self.rig.reported() == lower else lower
        self.command(lambda agent: plans.set_config(agent, tcb=lambda _: other))  # type: ignore[arg-type]  # an Agent

    def commit(self) -> None:
        self.command(plans.commit)  # type: ignore[arg-type]  # an Agent

    def mask(self) -> None:
        masked = not self.rig.firmware.state.mask_chip_key
        self.command(
            lambda agent: plans.set_config(agent, tcb=lambda now: now, mask_chip_key=masked)  # type: ignore[arg-type]  # an Agent
        )

    def reload(self) -> None:
        """Unload kvm_amd and load it again; then run an agent for one round."""
        self.rig.firmware.reload()
        self.rig.initialisation = Initialisation(
            FIRST.boot, str(int(self.rig.initialisation.module) + 1)
        )
        self.sync()

    def attest(self, path: Path, key: KeySelect) -> str:
        """Return ``empty``, or whether the table is ``right`` or ``wrong`` for a guest's report."""
        table = self.rig.table(path)
        if not table.entries:
            return "empty"
        (der,) = (d for d in (table.get(VCEK_GUID), table.get(VLEK_GUID)) if d is not None)
        leaf = EndorsementCert.from_bytes(der)
        guest = FirmwareGuest(self.rig.firmware)
        try:
            status, report = guest.ask_report(key_sel=int(key))
        finally:
            self.rig.firmware.decommission(guest.context)
        if status or report is None:
            return "wrong"
        layout = self.rig.firmware.product.tcb_layout
        tcb = TcbVersion.unpack(report.fields.reported_tcb, layout)
        signed = report.signing_key is not SigningKey.NONE
        sound = signed and leaf.tcb == tcb and not list(check_signature(report, leaf.public_key))
        return "right" if sound else "wrong"

    def check(self, after: object, *, settled: bool = True) -> None:
        """Check that reports match their certificates and that each empty file has a stated reason.

        If not ``settled``, no agent has run since the last change; then an empty file needs no
        reason, but a problem must be reported for it.
        """
        for file_state in self.rig.agent().read_files():
            path = Path(file_state.file.path)
            key = KeySelect.VCEK if path.name == "named.bin" else KeySelect.DEFAULT
            seen_by_guest = self.attest(path, key)
            assert seen_by_guest != "wrong", (after, path.name, file_state.expected)
            if seen_by_guest == "empty":
                if isinstance(file_state.expected, NoKey):
                    assert file_state.expected.reason
                else:
                    assert not settled, (after, path.name, file_state.problems)
                    assert file_state.problems


def _config(folder: Path) -> Config:
    return Config(
        files=(
            FileConfig(str(folder / "certs.bin")),
            FileConfig(str(folder / "vlek.bin"), VekKind.VLEK, without_vlek=VekKind.VCEK),
            FileConfig(str(folder / "named.bin"), key_select=Select.NAMED),
        ),
        vlek_certificates=folder / "vlek",
        lock_wait=0.2,
    )


@pytest.fixture(scope="module")
def genoa() -> EmulatedAuthority:
    return authority_of(Product.GENOA)


@pytest.fixture(params=sized((PUBLISHED,), NAMES))
def host(request: pytest.FixtureRequest, tmp_path: Path, genoa: EmulatedAuthority) -> Host:
    return Host(tmp_path, genoa, request.param)


@pytest.fixture
def published(tmp_path: Path, genoa: EmulatedAuthority) -> Host:
    return Host(tmp_path, genoa, PUBLISHED)


EVENTS = ("load_vlek", "set_config", "commit", "mask", "reload")
# How many of these are tried in every order: all only if ``SNPCERTS_CRASHES`` is ``every``.
LENGTH = 5 if HOW_MANY == "every" else 3


@pytest.mark.slow
@pytest.mark.parametrize("first", EVENTS)
def test_in_every_order_no_guest_gets_certificates_that_do_not_match(
    host: Host, first: str
) -> None:
    """The agent is restarted after each event."""
    for order in (each for each in itertools.permutations(EVENTS, LENGTH) if each[0] == first):
        host.rig.firmware.reload()
        if host.rig.reported() != host.rig.firmware.state.current:
            host.rig.device.snp_set_config(SnpConfig())
        host.sync()
        for number, name in enumerate(order):
            getattr(host, name)()
            host.check(order[: number + 1])


@pytest.mark.slow
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("name", ["load_vlek", "set_config", "commit", "mask"])
def test_killed_around_the_firmware_command_in_every_order(
    host: Host, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    """The agent is killed just before or after it gives the command; another agent takes over."""
    for before, after in itertools.permutations(EVENTS, 2):
        host.sync()
        getattr(host, before)()
        give = FirmwareDevice._do

        def killed(
            device: FirmwareDevice, *arguments: object, give: Callable[..., None] = give
        ) -> None:
            if place == "after":
                # The firmware may refuse the command: after a reload, for example, it accepts no
                # hashstick for a lowered reported TCB.
                with contextlib.suppress(SevError):
                    give(device, *arguments)
            raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr(FirmwareDevice, "_do", killed)
            with pytest.raises(KilledError):
                getattr(host, name)()
        host.check((before, f"{name}, killed"), settled=False)
        host.sync()
        host.check((before, f"{name}, killed", "sync"))
        getattr(host, after)()
        host.check((before, f"{name}, killed", after))


def test_a_kept_vlek_leaves_its_file_empty_until_it_is_loaded_again(published: Host) -> None:
    published.sync()
    published.load_vlek()
    vlek = published.rig.folder / "vlek.bin"
    assert published.attest(vlek, KeySelect.DEFAULT) == "right"
    published.set_config()
    assert published.rig.firmware.state.vlek is not None, "this firmware must keep the VLEK"
    assert vlek.read_bytes() == EMPTY
    (reason,) = {
        str(e.expected) for e in published.rig.agent().read_files() if e.file.path == str(vlek)
    }
    assert "has changed since" in reason
    published.load_vlek()
    assert published.attest(vlek, KeySelect.DEFAULT) == "right"


def guest_answer(host: Host, key: KeySelect | None = None) -> Callable[[bytes, KeySelect], bytes]:
    """Return a hand-over that gets its report from a guest of ``host``."""

    def ask(nonce: bytes, select: KeySelect) -> bytes:
        guest = FirmwareGuest(host.rig.firmware)
        try:
            chosen = select if key is None else key
            return guest.report(data=nonce, key_sel=int(chosen)).raw
        finally:
            host.rig.firmware.decommission(guest.context)

    return ask


def proved(host: Host, index: int = 0, ask: Callable[..., bytes] | None = None) -> Proved:
    agent = host.rig.agent()
    file = agent.config.files[index]
    return prove(agent, file, ask or guest_answer(host), nonce=os.urandom(NONCE_SIZE))


def lowered_and_reloaded(host: Host) -> None:
    host.sync()
    host.set_config()
    assert host.attest(host.rig.file, KeySelect.DEFAULT) == "right"
    host.reload()


def test_after_a_reload_with_a_lowered_tcb_the_file_is_empty_until_proven(host: Host) -> None:
    lowered_and_reloaded(host)
    assert host.rig.file.read_bytes() == EMPTY
    (wanted,) = {str(each.expected) for each in host.rig.agent().read_files()[:1]}
    assert "kvm_amd was reloaded" in wanted
    assert "host set-config --again" in wanted
    done = proved(host)
    published = host.rig.firmware.state.choices.name == PUBLISHED
    assert done.contradicts is published
    # If the current TCB's VCEK signs, no certificate is right for reports that carry another TCB.
    expected = "empty" if published else "right"
    assert host.attest(host.rig.file, KeySelect.DEFAULT) == expected
    assert (EventKind.CONTRADICTED in host.rig.kinds()) is published
    host.command(lambda agent: plans.set_config(agent, tcb=lambda now: now))  # type: ignore[arg-type]  # an Agent
    assert host.attest(host.rig.file, KeySelect.DEFAULT) == "right"


def test_with_the_vcek_masked_a_vleks_file_is_empty_until_proven(host: Host) -> None:
    host.sync()
    host.load_vlek()
    host.mask()
    vlek = host.rig.folder / "vlek.bin"
    assert vlek.read_bytes() == EMPTY
    if host.rig.firmware.state.choices.name != PUBLISHED:
        with pytest.raises(NoProofError, match="not signed"):
            proved(host, 1)
        assert vlek.read_bytes() == EMPTY
        return
    assert not proved(host, 1).contradicts
    assert host.attest(vlek, KeySelect.DEFAULT) == "right"
    # With another firmware version the proof is no longer valid.
    state = host.rig.firmware.state
    host.rig.firmware.update(state.current, replace(state.version, build=state.version.build + 1))
    host.sync()
    assert vlek.read_bytes() == EMPTY


def test_the_operator_may_say_that_a_masked_chips_vlek_signs(published: Host) -> None:
    config = published.rig.config
    files = (config.files[0], replace(config.files[1], masked_vlek_signs=True), config.files[2])
    published.rig.config = replace(config, files=files)
    published.sync()
    published.load_vlek()
    published.mask()
    assert published.attest(published.rig.folder / "vlek.bin", KeySelect.DEFAULT) == "right"
    assert published.rig.file.read_bytes() == EMPTY


def test_a_contradicting_report_empties_the_file_at_once(published: Host) -> None:
    """The agent cannot see the reload, so until the report comes it believes in the wrong key."""
    published.sync()
    published.set_config()
    published.rig.firmware.reload()  # and sysfs shows nothing of it
    seen = published.attest(published.rig.file, KeySelect.DEFAULT)
    assert seen == "wrong", "must be wrong until the proof"
    done = proved(published)
    assert done.contradicts
    assert published.rig.file.read_bytes() == EMPTY
    assert EventKind.CONTRADICTED in published.rig.kinds()
    assert EventKind.CONTRADICTED.loud


def test_metrics_tell_a_believed_key_from_a_proven_one(published: Host) -> None:
    metrics = Metrics()

    def figures() -> str:
        metrics.seen(published.rig.agent().read_files(), {}, {}, lambda _: True)
        for event in published.rig.events:
            metrics(event)
        published.rig.events.clear()
        return generate_latest(metrics.registry).decode()

    def basis(name: str) -> list[str]:
        return [
            f'snpcerts_signing_key_basis{{basis="{each}"}} {float(each == name)}'
            for each in ("proven", "believed", "unknown")
        ]

    since = "snpcerts_signing_key_proven_timestamp_seconds{"
    published.sync()
    text = figures()
    assert all(line in text for line in basis("believed"))
    assert since not in text
    assert not proved(published).contradicts
    assert EventKind.PROVEN in published.rig.kinds()
    (proof,) = published.rig.agent().firmware.state().known.proofs
    text = figures()
    assert all(line in text for line in basis("proven"))
    (line,) = (line for line in text.splitlines() if line.startswith(since))
    assert line.startswith(f'{since}key_sel="0"}}')
    assert float(line.split()[1]) == pytest.approx(proof.at.timestamp(), abs=1)
    assert "snpcerts_signing_key_contradictions_total 0.0" in text
    lowered_and_reloaded(published)
    text = figures()
    assert all(line in text for line in basis("unknown"))
    assert since not in text
    assert proved(published).contradicts
    assert "snpcerts_signing_key_contradictions_total 1.0" in figures()


def test_masks_lost_by_an_initialisation_are_named_until_the_operator_sets_them(
    published: Host,
) -> None:
    published.sync()
    published.mask()
    published.reload()
    assert published.rig.agent().firmware.state().known.lost_masks == ("MASK_CHIP_KEY",)
    agent = published.rig.agent()
    again = plans.set_config(agent, tcb=lambda now: now)
    assert any("--mask-chip-key sets it" in note for note in again.notes)
    published.mask()
    assert published.rig.agent().firmware.state().known.lost_masks == ()


# What proves nothing.


def old_report(host: Host) -> bytes:
    return guest_answer(host)(bytes(64), KeySelect.DEFAULT)


def answers(host: Host) -> Iterator[tuple[str, Callable[[bytes, KeySelect], bytes]]]:
    replayed = old_report(host)
    yield "does not answer this request", lambda _nonce, _select: replayed
    yield "is not a report", lambda _nonce, _select: b"<html>"
    stranger = Host(host.rig.folder, host.authority, PUBLISHED)
    stranger.rig.device = FirmwareDevice(Firmware(Chip(Product.GENOA, b"\7" * 32)))
    yield "another chip", guest_answer(stranger)

    def forged(nonce: bytes, select: KeySelect) -> bytes:
        report = bytearray(guest_answer(host)(bytes(64), select))
        report[0x50:0x90] = nonce
        return bytes(report)

    yield "no available certificate verifies", forged

    def unsigned(nonce: bytes, select: KeySelect) -> bytes:
        report = bytearray(forged(nonce, select))
        report[0x48] |= 7 << 2
        report[0x2A0:] = bytes(len(report) - 0x2A0)
        return bytes(report)

    yield "not signed", unsigned


def test_a_report_that_is_old_forged_or_anothers_neither_proves_nor_contradicts(
    published: Host,
) -> None:
    published.sync()
    before = published.rig.file.read_bytes()
    seen = 0
    for reason, ask in answers(published):
        with pytest.raises(NoProofError, match=reason):
            proved(published, ask=ask)
        assert published.rig.file.read_bytes() == before
        assert published.rig.agent().firmware.state().known.proofs == ()
        seen += 1
    assert seen == 5


def test_a_report_asked_for_with_another_key_neither_proves_nor_contradicts(
    published: Host,
) -> None:
    published.sync()
    published.load_vlek()
    with pytest.raises(NoProofError, match="another KEY_SEL"):
        proved(published, 1, guest_answer(published, KeySelect.VCEK))
    assert published.attest(published.rig.folder / "vlek.bin", KeySelect.DEFAULT) == "right"


def test_a_change_while_the_report_is_made_proves_nothing(published: Host) -> None:
    published.sync()

    def ask(nonce: bytes, select: KeySelect) -> bytes:
        report = guest_answer(published)(nonce, select)
        lower = published.rig.lower()
        published.rig.device.snp_set_config(SnpConfig(reported_tcb=lower.pack()))
        return report

    with pytest.raises(RetryLaterError, match="state changed"):
        proved(published, ask=ask)
    assert published.rig.agent().firmware.state().known.proofs == ()


def test_while_a_guest_is_asked_no_update_gets_the_files_lock(published: Host) -> None:
    published.sync()
    with_lock: list[str] = []

    def ask(nonce: bytes, select: KeySelect) -> bytes:
        with pytest.raises(RetryLaterError) as refused:
            published.rig.agent().publish([published.rig.config.files[0]])
        with_lock.append(refused.value.message)
        return guest_answer(published)(nonce, select)

    proved(published, ask=ask)
    assert "waiting for the lock" in with_lock[0]


def test_a_proof_ends_with_a_re_initialisation(published: Host) -> None:
    published.sync()
    proved(published)
    state = published.rig.agent().firmware.state()
    assert state.known.proof(KeySelect.DEFAULT) is not None
    published.rig.initialisation = SECOND
    assert published.rig.agent().firmware.state().known.proofs == ()


# Each of these functions makes the agent's record unusable in another way.


def spoil_torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def spoil_bit(path: Path) -> None:
    path.write_text(path.read_text().replace('"vlek_doubt": "', '"vlek_doubt": "x'))


def spoil_version(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))


def spoil_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def spoil_owner(path: Path) -> None:
    """Make the record another user's, as if a VMM's user had put a file in its place."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    os.chown(path, 65534, 65534)


SPOILED: tuple[Callable[[Path], object], ...] = (
    Path.unlink,
    spoil_torn,
    spoil_bit,
    spoil_version,
    spoil_link,
    spoil_owner,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"[" * 70_000),
    lambda path: path.write_bytes(b'{"sha256": [], "version": {}}'),
)


@pytest.mark.parametrize("spoil", SPOILED)
def test_without_a_sound_record_files_are_empty_rather_than_wrong(
    published: Host, spoil: Callable[[Path], None]
) -> None:
    """Every report matches, the reason is stated, and ordinary commands fill the files again."""
    published.sync()
    published.load_vlek()
    published.set_config()
    published.load_vlek()
    spoil(published.rig.config.memory_path)
    published.sync()
    for name in ("vlek.bin", "named.bin"):
        assert (published.rig.folder / name).read_bytes() == EMPTY
    published.check("spoiled")
    published.load_vlek()
    published.command(lambda agent: plans.set_config(agent, tcb=lambda now: now))  # type: ignore[arg-type]  # an Agent
    assert published.attest(published.rig.folder / "vlek.bin", KeySelect.DEFAULT) == "right"
    assert published.attest(published.rig.folder / "named.bin", KeySelect.VCEK) == "right"


def test_records_of_another_chip_are_ignored(published: Host) -> None:
    published.sync()
    published.load_vlek()
    state, chip = published.rig.firmware.state, Chip(Product.GENOA, b"\7" * 32)
    other = Firmware(chip, choices=choices_of(PUBLISHED))
    published.rig.device = FirmwareDevice(other)
    published.rig.server.chip = chip
    published._vceks.clear()
    stick = published.rig.provider().hashstick_for(chip, state.reported)
    other.snp_vlek_load(stick)
    published.sync()
    assert (published.rig.folder / "vlek.bin").read_bytes() == EMPTY


def test_a_link_planted_where_the_record_is_written_leads_to_no_other_file(published: Host) -> None:
    """The link is planted late: the store has the lock and has already removed leftovers."""
    path = published.rig.config.memory_path
    victim = path.with_name("victim")
    victim.write_bytes(b"precious")
    store = MemoryFile(path, Product.GENOA)
    published.sync()
    found = store.load()
    with store.locked():
        os.link(victim, path.with_name(f".{path.name}.new"))
        store.save(found)
    assert victim.read_bytes() == b"precious"
    assert store.load() == found


def test_firmware_that_changed_while_the_agent_was_down_is_in_doubt(published: Host) -> None:
    published.sync()
    published.load_vlek()
    rig = published.rig
    rig.device.snp_set_config(SnpConfig(reported_tcb=rig.lower().pack()))
    published.sync()
    assert (rig.folder / "vlek.bin").read_bytes() == EMPTY
    published.check("changed while down")


def test_a_record_that_cannot_be_written_counts_as_forgotten(
    published: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.sync()
    published.load_vlek()
    published.set_config()
    published.load_vlek()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("snpcerts.host.key_memory.os.replace", full)
        lower = replace(published.rig.lower(2))
        published.rig.device.snp_set_config(SnpConfig(reported_tcb=lower.pack()))
        agent = published.rig.agent()
        agent.sync()
        assert "cannot save the record" in agent.firmware.memory.problem
        assert (published.rig.folder / "vlek.bin").read_bytes() == EMPTY
        with pytest.raises(RefusedError, match="cannot save the record"):
            agent.firmware.commit()
        assert published.rig.reported() == lower, "must give the firmware no command"
    published.sync()
    published.check("room again")


def test_only_one_agent_at_a_time_changes_the_record(published: Host) -> None:
    published.sync()
    first, second = published.rig.agent(), published.rig.agent()
    seen: list[str] = []

    def read() -> object:
        with pytest.raises(RetryLaterError):
            second.firmware.memory.configure(
                second.firmware.read_firmware, lambda: seen.append("given")
            )
        return first.firmware.read_firmware()

    first.firmware.memory.observe(read)  # type: ignore[arg-type]  # a State
    assert seen == []


def test_a_proof_finds_that_a_kept_vlek_signs(published: Host) -> None:
    """The kept VLEK is for the old TCB, so no certificate matches the reports that it signs."""
    published.sync()
    published.load_vlek()
    published.set_config()
    done = proved(published, 1)
    assert done.contradicts
    assert done.proof.kind is VekKind.VLEK
    assert done.proof.tcb == published.rig.firmware.state.current
    (wanted,) = {
        str(e.expected) for e in published.rig.agent().read_files() if "vlek.bin" in e.file.path
    }
    assert "no certificate matches both" in wanted


def test_the_emulator_signs_as_the_chosen_firmware_does(published: Host) -> None:
    """The tests above rely on this: a VLEK that stays loaded signs reports with another TCB too."""
    published.load_vlek()
    published.set_config()
    report = Report.unpack(old_report(published))
    assert report.signing_key is SigningKey.VLEK
    key = vlek_of(
        published.authority, published.rig.provider(), published.rig.firmware.state.current
    )
    leaf = EndorsementCert.from_bytes(key.leaf)
    assert not list(check_signature(report, leaf.public_key))
