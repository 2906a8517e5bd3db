# SPDX-License-Identifier: Apache-2.0
"""Lets a guest of this host request certificates and reports, and records what the answers show.

The steps are: the agent makes the file match the signing key; a guest makes a request; the guest
makes another while this program holds the file's lock, and should get BUSY. If the operator asks
for it, the guest also makes requests during and after an update of the signing key, which is then
undone. Each report must be fresh (its REPORT_DATA is 64 random bytes that this program chose), come
from this chip, and verify with the certificates that came with it.

A failure becomes an observation and the trial continues, so that the result is complete.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Final

from snpcerts.abi.guest_message import KeySelect
from snpcerts.abi.kvm import ExitReason
from snpcerts.abi.tcb import TcbVersion
from snpcerts.certfile.hold import hold
from snpcerts.certfile.writer import LockHeldError
from snpcerts.endorsement.anchors import Anchor, is_amds
from snpcerts.errors import SnpCertsError
from snpcerts.host import plan
from snpcerts.host.agent import Agent
from snpcerts.host.claim_report import ClaimReport, RootOfTrust, Showing
from snpcerts.host.config import FileConfig
from snpcerts.host.expected_content import Key, expected_content, key_sel
from snpcerts.host.host_firmware import FirmwareState
from snpcerts.host.proof import (
    NONCE_SIZE,
    NoProofError,
    candidate_keys,
    is_of_another_chip,
    judged,
)
from snpcerts.host.remembered import expected_kind
from snpcerts.verify.evidence import Evidence
from snpcerts.verify.judging import verify
from snpcerts.verify.policy import Policy
from snpcerts.verify.verdict import Status, Verdict

AskGuest = Callable[[bytes, KeySelect], bytes]
"""Lets a guest request an extended report with 64 bytes of report data; returns the report with its
table.
"""

_PATH: Final = "certificate-path"
_FIRMWARE: Final = "firmware-platform"
_EXIT: Final = ExitReason.SNP_REQ_CERTS
_BUSY_LEAST: Final = 3.0  # seconds; a Linux guest repeats the request 2 s after BUSY
_BUSY_MOST: Final = 20.0  # a Linux guest gives up permanently after 60
_RELEASE: Final = 2.0  # seconds for the VMM to drop its lock
_PAUSE: Final = 0.02


@dataclass(frozen=True, slots=True)
class _GuestAnswer:
    """One answer that the guest got. Times are in ``time.monotonic`` seconds."""

    evidence: Evidence
    verdict: Verdict
    nonce: bytes
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def entries(self) -> int:
        table = self.evidence.table
        return 0 if table is None else len(table)


@dataclass(slots=True)
class ClaimTrial:
    """One trial, which adds its observations to ``report``.

    ``exit_number`` returns the number of the exit that KVM used, or None if it is unknown.
    """

    agent: Agent
    file: FileConfig
    ask_guest: AskGuest
    anchors: tuple[Anchor, ...]
    report: ClaimReport
    exit_number: Callable[[], int | None] = lambda: None

    def run(self, update: Callable[[TcbVersion], TcbVersion] | None) -> None:
        """Run the trial. If ``update`` is not None, make the firmware report another TCB for a
        while; ``update`` chooses it.
        """
        if not self._look():
            return
        first = self._extended()
        if first is not None:
            self._lock_is_free()
            self._busy(first)
        if update is None:
            why = (
                "not tried without --update, which makes the firmware report another TCB for "
                "a while"
            )
            self._note("update", _PATH, Showing.NOT_TRIED, why)
            self._note("set-config", _FIRMWARE, Showing.NOT_TRIED, why)
        elif first is not None:
            self._update(update)

    # The steps.

    def _look(self) -> bool:
        """Read the firmware's status and make the file match the signing key."""
        try:
            state = self.agent.firmware.state()
        except SnpCertsError as error:
            self._note("platform-status", "dev-sev", Showing.NOT_TRIED, str(error))
            return False
        detail = f"firmware {state.version}, reported TCB {state.reported}"
        self._note("platform-status", "dev-sev", Showing.SEEN, detail)
        try:
            problem = self.agent.sync().problem
        except SnpCertsError as error:
            problem = error
        wanted = expected_content(self.agent.firmware.state(), self.file)
        if problem is not None:
            self._note(
                "agent",
                _PATH,
                Showing.NOT_TRIED,
                f"the file does not match the signing key: {problem}",
            )
        elif isinstance(wanted, Key):
            what = f"the file holds the certificates of the {wanted}"
            self._note("agent", _PATH, Showing.SEEN, what)
        else:
            self._note("agent", _PATH, Showing.NOT_TRIED, f"the file holds {wanted}")
        return True

    def _extended(self) -> _GuestAnswer | None:
        holds = self._holds_certificates()
        try:
            asked = self._ask()
        except SnpCertsError as error:
            showing = Showing.DIFFERS if holds and self.exit_number() else Showing.NOT_TRIED
            self._note("extended-request", "vmgexit", showing, f"no answer: {error}")
            self._note_exit(None)
            return None
        fields = asked.evidence.report.fields
        self._note(
            "report-message",
            "firmware-messages",
            Showing.SEEN,
            f"MSG_REPORT_REQ returned a report of version {fields.version}",
        )
        self._note_exit(asked)
        if holds and not asked.entries:
            self._note(
                "extended-request",
                "vmgexit",
                Showing.DIFFERS,
                f"{self.file.path} holds certificates, but the guest got none",
            )
        elif asked.entries:
            what = f"an extended request returned {asked.entries} certificates with the report"
            self._note("extended-request", "vmgexit", Showing.SEEN, what)
            self._note("report-ioctl", "guest-driver", Showing.SEEN, what)
        self._note_certificates("first-report", asked)
        self._note_signer("signing-key", asked, self.agent.firmware.state())
        return asked

    def _note_exit(self, asked: _GuestAnswer | None) -> None:
        number = self.exit_number()
        if number is None:
            why = "the VMM did not say which exit KVM used for the request"
            self._note("exit-number", "numbers", Showing.NOT_TRIED, why)
            return
        right = number == int(_EXIT)
        detail = f"KVM requested certificates with exit {number}"
        if not right:
            detail += f", expected {int(_EXIT)}"
        showing = Showing.SEEN if right else Showing.DIFFERS
        self._note("exit-number", "numbers", showing, detail)
        if asked is not None and right:
            self._note("guest-runs", "launch", Showing.SEEN, "an SNP guest was launched and runs")

    def _lock_is_free(self) -> None:
        """Check that the VMM holds no lock once the guest has its answer."""
        deadline = time.monotonic() + _RELEASE
        while True:
            try:
                with hold(self.file.path, shared=False):
                    pass
            except LockHeldError as error:
                if time.monotonic() >= deadline:
                    self._note("lock-dropped", "kvm-run", Showing.DIFFERS, error.message)
                    return
                time.sleep(_PAUSE)
                continue
            except SnpCertsError as error:
                self._note("lock-dropped", "kvm-run", Showing.NOT_TRIED, str(error))
                return
            what = (
                "the VMM dropped the lock after the answer, so KVM_RUN with immediate_exit returned"
            )
            self._note("lock-dropped", "kvm-run", Showing.SEEN, what)
            return

    def _busy(self, first: _GuestAnswer) -> None:
        """Let the guest make a request while this program holds the file's lock for longer than a
        request takes.
        """
        seconds = max(_BUSY_LEAST, 2 * first.seconds + 1)
        if not first.entries or seconds > _BUSY_MOST:
            why = (
                (
                    f"a request takes {first.seconds:.0f} s here, so the lock would have to "
                    "be held for too long"
                )
                if first.entries
                else "the guest gets no certificates"
            )
            self._note("busy", _PATH, Showing.NOT_TRIED, why)
            return
        try:
            with hold(self.file.path, shared=False):
                asking = self._ask_meanwhile()
                done = wait([asking], seconds).done
            answer = asking.result()
        except SnpCertsError as error:
            self._note("busy", _PATH, Showing.NOT_TRIED, str(error))
            return
        if done:
            self._note(
                "busy",
                _PATH,
                Showing.DIFFERS,
                (
                    f"the guest got its answer in {answer.seconds:.1f} s while another "
                    "program held the file's lock, so the VMM does not take the lock"
                ),
            )
            return
        # The guest's program cannot tell BUSY from a VMM that waits for the lock.
        unless = "unless the VMM waits for the lock without a limit"
        what = (
            f"the file was locked for {seconds:.1f} s, and the guest got its answer after that, so "
            f"it first got BUSY, {unless}"
        )
        self._note("busy", _PATH, Showing.SEEN, what)
        self._note(
            "busy-again",
            "guest-driver",
            Showing.SEEN,
            f"the guest repeated its request after BUSY, {unless}",
        )
        self._note_certificates("report-after-busy", answer)

    def _update(self, update: Callable[[TcbVersion], TcbVersion]) -> None:
        """Make the firmware report another TCB for a while. At the end, always restore the earlier
        one.
        """
        before = self.agent.firmware.state().reported
        try:
            self._ask_while_changing(update, before)
        finally:
            self._take_back(before)

    def _ask_while_changing(
        self, update: Callable[[TcbVersion], TcbVersion], before: TcbVersion
    ) -> None:
        try:
            asking = self._ask_meanwhile()
            self._report_tcb(update)
            during = asking.result()
        except SnpCertsError as error:
            self._note("update", _PATH, Showing.NOT_TRIED, str(error))
        else:
            self._note_certificates("report-during-update", during)
            self._after_update(before)

    def _take_back(self, before: TcbVersion) -> None:
        try:
            if self.agent.firmware.state().reported != before:
                self._report_tcb(lambda _: before)
        except SnpCertsError as error:
            detail = f"could not restore the reported TCB {before}: {error}"
            self._note("update-undone", _PATH, Showing.DIFFERS, detail)

    def _after_update(self, before: TcbVersion) -> None:
        state = self.agent.firmware.state()
        moved = f"the reported TCB changed from {before} to {state.reported}"
        self._note("update", _PATH, Showing.SEEN, moved)
        try:
            asked = self._ask()
        except SnpCertsError as error:
            self._note("set-config", _FIRMWARE, Showing.NOT_TRIED, f"no answer: {error}")
            return
        self._note_certificates("report-after-update", asked)
        self._note_signer("set-config", asked, state)

    def _report_tcb(self, change: Callable[[TcbVersion], TcbVersion]) -> None:
        made = plan.set_config(self.agent, tcb=change)
        problem = plan.follow_up(self.agent, plan.carry_out(self.agent, made, allow_empty=False))
        if problem is not None:
            raise problem

    # What several steps have in common.

    def _ask(self) -> _GuestAnswer:
        nonce = os.urandom(NONCE_SIZE)
        start = time.monotonic()
        data = self.ask_guest(nonce, key_sel(self.file))
        end = time.monotonic()
        evidence = Evidence.from_bytes(data)
        verdict = verify(
            evidence,
            policy=Policy(report_data=nonce),
            anchors=self.anchors,
            at=self.agent.table_cache.clock(),
        )
        return _GuestAnswer(evidence, verdict, nonce, start, end)

    def _ask_meanwhile(self) -> Future[_GuestAnswer]:
        asking: Future[_GuestAnswer] = Future()

        def ask() -> None:
            try:
                asking.set_result(self._ask())
            except BaseException as error:
                asking.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        return asking

    def _holds_certificates(self) -> bool:
        return any(
            each.table is not None and len(each.table) > 0
            for each in self.agent.read_files()
            if each.file.path == self.file.path
        )

    def _note_certificates(self, name: str, asked: _GuestAnswer) -> None:
        """Record whether a report of this chip verifies with the certificates that came with it."""
        if not asked.entries:
            self._note(
                name, "certificates", Showing.NOT_TRIED, "the report came without certificates"
            )
            return
        verdict = asked.verdict
        if verdict.status is Status.VERIFIED and verdict.root is not None:
            if is_of_another_chip(asked.evidence.report, self.agent.firmware.hwid):
                self._note(name, "certificates", Showing.DIFFERS, "the report is from another chip")
                return
            self._trust(verdict.root)
            detail = f"the report verifies with the root {verdict.root.name}"
            self._note(name, "certificates", Showing.SEEN, detail)
            return
        why = "; ".join(f"{reason.code}: {reason}" for reason in verdict.reasons)
        self._note(name, "certificates", Showing.DIFFERS, f"the report does not verify: {why}")

    def _trust(self, root: Anchor) -> None:
        """Remember the root of the reports so far. A root that is not AMD's takes precedence."""
        known = self.report.root
        if known is None or known.is_amds:
            self.report.root = RootOfTrust(root.name, is_amds(root))

    def _note_signer(self, name: str, asked: _GuestAnswer, state: FirmwareState) -> None:
        """Record whether the signing key is the one that the firmware's status implies."""
        select = key_sel(self.file)
        kind = expected_kind(state, select)
        believed = Key(kind, state.reported)
        firmware = self.agent.firmware
        try:
            proof = judged(
                asked.evidence.report.raw,
                asked.nonce,
                state,
                select,
                tuple(candidate_keys(self.agent, state, kind)),
                chip=firmware.hwid,
                product=firmware.product,
                at=self.agent.table_cache.clock(),
            )
        except NoProofError as error:
            self._note(name, _FIRMWARE, Showing.DIFFERS, error.message)
            return
        found = Key(proof.kind, proof.tcb)
        if found == believed:
            detail = f"the {found} signs, as the firmware's status implies"
            self._note(name, _FIRMWARE, Showing.SEEN, detail)
        else:
            detail = f"the {found} signs, but the firmware's status implies the {believed}"
            self._note(name, _FIRMWARE, Showing.DIFFERS, detail)

    def _note(self, name: str, claim: str, showing: Showing, detail: str) -> None:
        self.report.note(name, claim, showing, detail)
