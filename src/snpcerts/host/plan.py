# SPDX-License-Identifier: Apache-2.0
"""Plans a firmware command and its effects before anything changes.

Source: SNP ABI (56860): SNP_COMMIT sets Reported and Committed to Current; SNP_SET_CONFIG sets
Reported and both masks together, and zero resets Reported to Committed; SNP_VLEK_LOAD takes a
hashstick made for exactly the reported TCB. Sources disagree on whether a loaded VLEK survives a
change of Reported: AMD's document says that SNP_COMMIT drops it, but AMD's published firmware
(1.55.25) keeps it through SNP_COMMIT and SNP_SET_CONFIG. A plan assumes that the VLEK is dropped,
so that the certificates of the VCEK, which then signs, are fetched in advance. If the firmware
keeps the VLEK, the files for it stay empty (:mod:`snpcerts.host.remembered`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from snpcerts.abi import psp
from snpcerts.abi.tcb import TCB_SIZE, TcbVersion
from snpcerts.certfile.recognise import ForeignFileError, require_certificate_file
from snpcerts.endorsement.encoding import to_der
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError, InputError, RefusedError, RetryLaterError, SnpCertsError
from snpcerts.host.agent import Agent
from snpcerts.host.event import Event, EventKind
from snpcerts.host.expected_content import ExpectedContent, Key, NoKey, expected_content
from snpcerts.host.file_state import FileState
from snpcerts.host.host_firmware import FirmwareState
from snpcerts.host.known import KnownKeys
from snpcerts.host.locked_update import UpdateResult
from snpcerts.host.ownership import group_of
from snpcerts.host.table_cache import UnavailableError
from snpcerts.printable import printable


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One file's current content, and its expected content after the command."""

    file_state: FileState
    after: ExpectedContent


@dataclass(frozen=True, slots=True)
class Plan:
    """A firmware command and its effects.

    ``after`` is the expected state of the firmware; what is published depends on the actual one.
    ``fetch`` lists the keys whose certificates must be fetched first. ``prepare`` runs after
    fetching and before any lock is taken.
    """

    command: str
    before: FirmwareState
    after: FirmwareState
    files: tuple[FilePlan, ...]
    fetch: tuple[Key, ...]
    notes: tuple[str, ...]
    run: Callable[[], None]
    prepare: Callable[[], None] = lambda: None

    def lines(self) -> list[str]:
        """Return the plan as lines of text for people."""
        out = [f"{self.command}:"]
        out.append(f"  reported TCB  {self.before.reported}")
        moved = self.after.reported != self.before.reported
        out.append(f"       becomes  {self.after.reported if moved else 'the same'}")
        out += (f"  note: {note}" for note in self.notes)
        for number, key in enumerate(self.fetch):
            out.append(f"  {'1. fetch' if number == 0 else '        '}  certificates of the {key}")
        if not self.fetch:
            out.append("  1. fetch   nothing: all certificates are cached")
        out.append("  2. lock and empty every file, issue the command, read the status again")
        for each in self.files:
            name = each.file_state.file.path
            out.append(f"  3. publish {name}: {_what(each.after)}")
        return [printable(line) for line in out]

    def to_json(self) -> dict[str, object]:
        """Return the plan as JSON values, for programs."""
        return {
            "command": self.command,
            "reported_tcb": self.before.reported.components(),
            "reported_tcb_after": self.after.reported.components(),
            "vlek_loaded": self.before.vlek_loaded,
            "vlek_loaded_after": self.after.vlek_loaded,
            "fetch": [{"kind": key.kind.value, "tcb": key.tcb.components()} for key in self.fetch],
            "files": [
                {
                    "path": each.file_state.file.path,
                    "standing": each.file_state.match.value,
                    "after": _what(each.after),
                }
                for each in self.files
            ],
            "notes": list(self.notes),
        }


def _what(expected: ExpectedContent) -> str:
    return str(expected) if isinstance(expected, NoKey) else f"the certificates of the {expected}"


@dataclass(frozen=True, slots=True)
class Changed:
    """The result of a planned command. ``unfetched`` says what could not be fetched beforehand."""

    result: UpdateResult
    unfetched: SnpCertsError | None = None


def carry_out(agent: Agent, plan: Plan, *, allow_empty: bool) -> Changed:
    """Fetch the tables; then lock and empty the files, issue the command, publish, and unlock.

    If a certificate is not available (unless ``allow_empty`` is set) or a lock is not granted, this
    raises an error and has changed neither the files nor the firmware. If the command itself fails,
    this returns a result with the error.
    """
    unfetched: SnpCertsError | None = None
    if not agent.force:
        for each in plan.files:
            require_certificate_file(each.file_state.file.path)
    try:
        agent.fetch(plan.fetch)
    except SnpCertsError as error:
        if not allow_empty:
            raise UnavailableError(
                f"{error.message}; nothing has been changed",
                hint="try again later, or use --allow-empty: guests then get no certificates until "
                "the agent can fetch them",
                after=getattr(error, "after", None),
            ) from None
        unfetched = error
    plan.prepare()

    def command() -> None:
        now = agent.firmware.state()
        if _bare(now) != _bare(plan.before):
            raise RetryLaterError(
                (
                    f"{plan.command}: the command was not issued, because the firmware's state "
                    "has changed since the plan was made"
                ),
                hint="check 'host status', and run the command again",
            )
        plan.run()
        agent.tell(Event(EventKind.FIRMWARE, f"{plan.command}: done"))

    done = agent.publish([each.file_state.file for each in plan.files], command)
    return Changed(done, unfetched)


def _bare(state: FirmwareState) -> FirmwareState:
    """Return only what the firmware itself reports, without the number of guests and without what
    the agent remembers about the keys.
    """
    return replace(state, guests=0, known=KnownKeys())


def follow_up(agent: Agent, changed: Changed) -> SnpCertsError | None:
    """Make all files match the signing key, if some do not yet. Return the first error that
    remains; None if there is none.

    The firmware may be at a TCB that was not planned, for example after a reset of the reported
    TCB. The certificates for that TCB are fetched now, while the files are empty.
    """
    result = changed.result
    if result.refused is not None:
        return result.refused
    if result.in_step:
        return next(iter(agent.own(each.file for each in result.files)), None)
    return agent.sync().problem


def commit(agent: Agent) -> Plan:
    """Plan SNP_COMMIT."""
    file_states, before = _looked(agent)
    after = _reporting(before, before.current)
    notes = [
        (
            "this cannot be undone: afterwards the firmware refuses firmware and "
            "microcode below the current TCB"
        )
    ]
    return _plan(agent, "SNP_COMMIT", file_states, before, after, notes, agent.firmware.commit)


def set_config(
    agent: Agent,
    *,
    tcb: Callable[[TcbVersion], TcbVersion] | None,
    mask_chip_id: bool | None = None,
    mask_chip_key: bool | None = None,
) -> Plan:
    """Plan SNP_SET_CONFIG.

    ``tcb`` computes the new reported TCB from the present one; if ``tcb`` is None, the reported TCB
    is reset. A mask that is None does not change. Raises :class:`RefusedError` for a new TCB
    above the current one, which the firmware would refuse, and for one of zeros, which would be a
    reset.
    """
    file_states, before = _looked(agent)
    notes: list[str] = []
    if tcb is None:
        reported, stored = before.current, bytes(TCB_SIZE)
        notes.append(
            "the reset sets the reported TCB to the committed TCB, which no host interface "
            "shows. The plan assumes that the committed TCB equals the current TCB; if it does "
            "not, the files stay empty until the right certificate is fetched"
        )
    else:
        reported = tcb(before.reported)
        stored = reported.pack()
        if not before.current.covers(reported):
            raise RefusedError(
                f"the new reported TCB, {reported}, is above the current TCB, {before.current}",
                hint="choose a TCB whose components are all at or below those of the committed TCB",
            )
        if reported == before.reported:
            notes.append(
                "this sets the same TCB again, so that the firmware derives the VCEK again"
            )
            if before.vlek_loaded:
                notes.append(
                    "the loaded VLEK is for the same TCB and should stay loaded; if it does not, "
                    "load it again"
                )
        notes += (
            (
                f"{name} was set until SNP was initialised again, and is now cleared: "
                f"--{name.lower().replace('_', '-')} sets it again"
            )
            for name in before.known.lost_masks
        )
        if not any(stored):
            raise RefusedError(
                "the new reported TCB is all zeros, which the firmware takes as a reset",
                hint="use --reset instead",
            )
    after = replace(
        _reporting(before, reported),
        chip_id_masked=before.chip_id_masked if mask_chip_id is None else mask_chip_id,
        chip_key_masked=before.chip_key_masked if mask_chip_key is None else mask_chip_key,
    )
    config = psp.SnpConfig(reported_tcb=stored, flags=after.config_flags)
    return _plan(
        agent,
        "SNP_SET_CONFIG",
        file_states,
        before,
        after,
        notes,
        lambda: agent.firmware.set_config(config),
    )


def load_vlek(agent: Agent, hashstick: bytes, certificate: bytes) -> Plan:
    """Plan SNP_VLEK_LOAD of ``hashstick`` (432 bytes). ``certificate`` is its VLEK's certificate.

    Raises an error, before anything changes, if the hashstick or the certificate is not for this
    product and the reported TCB, or if the chain above the certificate cannot be fetched.
    """
    file_states, before = _looked(agent)
    product = agent.firmware.product
    stick = _hashstick(hashstick)
    try:
        tcb = TcbVersion.unpack(stick.tcb_version, product.tcb_layout)
    except FormatError as error:
        raise InputError(f"hashstick: {error}") from None
    if tcb != before.reported:
        raise RefusedError(
            f"the hashstick is for TCB {tcb}, but the firmware reports {before.reported}",
            hint=(
                "ask for a hashstick for the reported TCB, or change the reported TCB "
                "with 'host set-config'"
            ),
        )
    key = Key(VekKind.VLEK, tcb)
    leaf = to_der(certificate, crl=False, what="VLEK certificate")
    agent.table_cache.put(key, agent.table_cache.vlek_table(leaf))
    after = replace(before, vlek_loaded=True, known=replace(before.known, vlek_doubt="", proofs=()))
    notes: list[str] = []
    if before.vlek_loaded:
        notes.append("this replaces the VLEK that is loaded now")
    if not any(isinstance(expected_content(after, each.file), Key) for each in file_states):
        notes.append(
            "no certificate file is for VLEKs, so guests get the empty table (set "
            'kind = "vlek" in the configuration, or use --kind vlek)'
        )
    return replace(
        _plan(
            agent,
            "SNP_VLEK_LOAD",
            file_states,
            before,
            after,
            notes,
            lambda: agent.firmware.load_vlek(hashstick, tcb, leaf),
        ),
        prepare=lambda: agent.table_cache.keep_vlek(tcb, leaf),
    )


def _looked(agent: Agent) -> tuple[tuple[FileState, ...], FirmwareState]:
    for file in agent.config.files:
        group_of(file)  # report a configuration error before changing anything
    file_states = agent.read_files()
    return file_states, agent.firmware.state()


def _reporting(before: FirmwareState, reported: TcbVersion) -> FirmwareState:
    kept = before.vlek_loaded and reported == before.reported
    known = replace(before.known, vcek_doubt="", proofs=())
    return replace(before, reported=reported, vlek_loaded=kept, known=known)


def _plan(
    agent: Agent,
    command: str,
    file_states: Sequence[FileState],
    before: FirmwareState,
    after: FirmwareState,
    notes: Sequence[str],
    run: Callable[[], None],
) -> Plan:
    files = tuple(FilePlan(each, expected_content(after, each.file)) for each in file_states)
    keys = dict.fromkeys(each.after for each in files if isinstance(each.after, Key))
    said = list(notes)
    if before.vlek_loaded and not after.vlek_loaded:
        said.append(
            "the plan assumes that the firmware drops the loaded VLEK, and signs "
            "guests' reports with the VCEK again. If the firmware keeps the VLEK "
            "(AMD's 1.55.25 does), VLEK files stay empty until the next 'host "
            "load-vlek' or 'host prove-key'"
        )
    if not before.initialised:
        said.append("SNP is not initialised on this host")
    said += _doubts(agent, files)
    for each in files:
        if isinstance(each.after, NoKey) and each.file_state.table:
            said.append(f"{each.file_state.file.path}: guests will get {each.after}")
    return Plan(
        command=command,
        before=before,
        after=after,
        files=files,
        fetch=tuple(key for key in keys if key not in agent.table_cache),
        notes=tuple(said),
        run=run,
    )


def _doubts(agent: Agent, files: Sequence[FilePlan]) -> Iterator[str]:
    """Yield a note for each file that the command would refuse to replace without --force."""
    for each in files:
        try:
            require_certificate_file(each.file_state.file.path)
        except ForeignFileError as error:
            what = (
                "WILL BE REPLACED, because of --force"
                if agent.force
                else "the command will be refused"
            )
            yield f"{what}: {error}"


def _hashstick(data: bytes) -> psp.WrappedVlekHashstick:
    """Read the parts of a hashstick that are not encrypted for the chip."""
    size = psp.WrappedVlekHashstick.SIZE
    if len(data) != size:
        raise InputError(f"wrapped VLEK hashstick: expected {size} bytes, found {len(data)}")
    stick = psp.WrappedVlekHashstick.unpack(data)
    if not any(data):
        raise InputError("wrapped VLEK hashstick: expected a hashstick from AMD, found only zeros")
    if any(stick.rsvd1) or any(stick.rsvd2):
        raise InputError(
            "the hashstick's reserved bytes (0x00C and 0x198) are not zero",
            hint="pass the 432 raw bytes, not hexadecimal text or JSON",
        )
    return stick
