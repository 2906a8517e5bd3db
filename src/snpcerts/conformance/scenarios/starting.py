# SPDX-License-Identifier: Apache-2.0
"""Scenarios from the VMM's start to its first answer."""

from __future__ import annotations

from snpcerts.conformance.trial import (
    TABLE_SIZE,
    USED_AFTER_END,
    Scenario,
    Script,
    Trial,
    TrialVcpu,
)
from snpcerts.emulator.guest.program import Sleep


def _first_request(trial: Trial, vcpu: TrialVcpu) -> Script:
    trial.judge("vm-starts", None)
    trial.judging("enabled")
    _judge_enabling(trial)
    trial.served.replace(trial.served.table(TABLE_SIZE))
    trial.judging("immediate-exit-cleared")
    answer = yield from vcpu.ask(2)
    if answer.request is None:
        for check in ("immediate-exit-cleared", "exit-reason-stale"):
            trial.skip(check, "no exit occurred")
        return
    yield Sleep(0.001)
    trial.judge("immediate-exit-cleared", None)
    for _ in range(2):
        yield from vcpu.ask(2)
    stale = any(request.file_used_after_end for request in trial.journal.requests)
    trial.judge(
        "exit-reason-stale",
        USED_AFTER_END if stale else None,
    )


def _judge_enabling(trial: Trial) -> None:
    tries = trial.journal.enablings
    if not tries:
        trial.judge(
            "enabled",
            "the VMM never enables the exit, so guests get the empty table that KVM writes",
        )
        trial.skip("attribute-asked", "the exit is not enabled")
        return
    first = tries[0]
    problem: str | None = None
    if all(each.errno for each in tries):
        problem = f"KVM refused to enable the exit (errno {first.errno})"
        if first.vcpus:
            problem += f": the VM already had {first.vcpus} vCPUs"
    trial.judge("enabled", problem)
    asked: str | None = None
    if not first.attribute_asked:
        asked = "the VMM enabled the exit without querying KVM_X86_SEV_SNP_REQ_CERTS"
    elif not first.attribute_got:
        asked = "the VMM only called KVM_HAS_DEVICE_ATTR, which succeeds even if SNP is off"
    trial.judge("attribute-asked", asked)


def _old_kernel(_: Trial, vcpu: TrialVcpu) -> Script:
    yield from vcpu.ask(2)


def _after_old_kernel(trial: Trial) -> None:
    # The VMM may refuse to start, or start without the exit. Both are correct.
    check, journal = "enabled-where-supported", trial.journal
    if not journal.enablings:
        trial.judge(check, None)
    elif journal.attribute.has or journal.attribute.got:
        trial.judge(
            check,
            (
                "the VMM called KVM_SEV_SNP_ENABLE_REQ_CERTS on a kernel that lacks the exit, "
                "although it had queried KVM_X86_SEV_SNP_REQ_CERTS"
            ),
        )
    else:
        trial.advise(
            check,
            "the VMM called KVM_SEV_SNP_ENABLE_REQ_CERTS on a kernel that lacks the exit, and "
            "never queried KVM_X86_SEV_SNP_REQ_CERTS",
        )


def _after_value(trial: Trial) -> None:
    check, journal = "attribute-value", trial.journal
    if not (journal.attribute.has or journal.attribute.got):
        trial.skip(check, "the VMM never queries KVM_X86_SEV_SNP_REQ_CERTS")
        return
    trial.judge(
        check,
        "KVM_X86_SEV_SNP_REQ_CERTS reads 0, but the VMM called KVM_SEV_SNP_ENABLE_REQ_CERTS"
        if journal.enablings
        else None,
    )


FIRST = Scenario(
    checks=(
        "vm-starts",
        "attribute-asked",
        "enabled",
        "immediate-exit-cleared",
        "exit-reason-stale",
    ),
    script=_first_request,
)
SCENARIOS = (
    Scenario(
        checks=("enabled-where-supported",),
        script=_old_kernel,
        after=_after_old_kernel,
        certs_supported=False,
    ),
    Scenario(checks=("attribute-value",), script=_old_kernel, after=_after_value, attribute=0),
)
