# SPDX-License-Identifier: Apache-2.0
"""Compares a report with a policy, with one check for each possible demand.

Source: SNP ABI (56860) table "ATTESTATION_REPORT Structure".
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Final, NamedTuple

from snpcerts.abi.product import Product
from snpcerts.abi.report import REPORT_SIZE, Report, SigningKey
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.reason import Reason, ReasonCode
from snpcerts.endorsement.vek import EndorsementCert
from snpcerts.verify.bits import GUEST_POLICY_BITS, PLATFORM_INFO_BITS, Bit
from snpcerts.verify.evidence import RuntimeData
from snpcerts.verify.policy import (
    REPORT_DATA_SIZE,
    GuestPolicyBits,
    PlatformInfoBits,
    Policy,
    ProcessorFloor,
    TcbFloor,
    WithoutCpuid,
)
from snpcerts.verify.verdict import ReportTcbs
from snpcerts.verify.verdict_check import Check, CheckState


class Subject(NamedTuple):
    """The values in a report and its evidence that are compared with a policy. A value that could
    not be read is None.
    """

    report: Report
    product: Product | None
    tcbs: ReportTcbs
    leaf: EndorsementCert | None
    runtime_data: RuntimeData | None


@dataclass(frozen=True, slots=True)
class _DemandResult:
    """The result of comparing one demand. ``passed`` is None if the demand cannot be judged, for
    example because it depends on the product and the product is unknown.
    """

    passed: bool | None
    expected: str
    found: str


_Demand = Callable[[Policy, Subject], _DemandResult | None]


def check_policy(policy: Policy, subject: Subject) -> tuple[tuple[Check, ...], tuple[Reason, ...]]:
    """Make every check of a policy. Return the checks in a fixed order, and a reason for each
    failed one.
    """
    plan = _plan(policy)
    results = [demand(policy, subject) for _, _, demand in plan.asked]
    last, listed = plan.last
    # Most reports give the same results as the previous one.
    if results != last:
        listed = _listed_results(plan, results)
        plan.last = (results, listed)
    return listed


def _listed_results(plan: _PolicyDemands, results: _Results) -> _Listed:
    checks = list(plan.unasked)
    reasons: list[Reason] = []
    for (index, code, _), outcome in zip(plan.asked, results, strict=True):
        if outcome is None:
            raise AssertionError(
                f"{code.value}: whether a policy makes this demand must not depend on the report"
            )
        if outcome.passed:
            state = CheckState.PASSED
        elif outcome.passed is None:
            state = CheckState.NOT_JUDGED
        else:
            state = CheckState.FAILED
            reasons.append(Reason(code, f"expected {outcome.expected}, found {outcome.found}"))
        checks[index] = Check(plan.unasked[index].name, state, outcome.expected, outcome.found)
    return tuple(checks), tuple(reasons)


def unjudged(policy: Policy) -> tuple[Check, ...]:
    """Return the checks of ``policy`` for evidence that contains no report.

    Checks that the policy requests are marked as not judged, the others as not asked.
    """
    checks, _ = check_policy(policy, _NO_SUBJECT)
    return tuple(
        check
        if check.state is CheckState.NOT_ASKED
        else Check(check.name, CheckState.NOT_JUDGED, check.expected)
        for check in checks
    )


_Results = list[_DemandResult | None]
_Listed = tuple[tuple[Check, ...], tuple[Reason, ...]]


@dataclass(slots=True)
class _PolicyDemands:
    """A policy's demands, each with its position and reason code, and the list of all checks, each
    marked as not asked.

    ``last`` holds the last report's results, and the checks and reasons that follow from them.
    """

    policy: Policy
    asked: tuple[tuple[int, ReasonCode, _Demand], ...]
    unasked: tuple[Check, ...]
    last: tuple[_Results | None, _Listed] = (None, ((), ()))


# Keyed by id(), because hashing a policy takes longer than comparing a report with it.
_plans: dict[int, _PolicyDemands] = {}
_MAX_PLANS: Final = 64


def _plan(policy: Policy) -> _PolicyDemands:
    known = _plans.get(id(policy))
    # The entry keeps its policy alive, so no other policy can get the same id().
    if known is not None and known.policy is policy:
        return known
    asked = tuple(
        (index, code, demand)
        for index, (code, demand) in enumerate(_DEMANDS.items())
        if demand(policy, _NO_SUBJECT) is not None
    )
    unasked = tuple(Check(code.value, CheckState.NOT_ASKED) for code in _DEMANDS)
    made = _PolicyDemands(policy, asked, unasked)
    if len(_plans) >= _MAX_PLANS:
        _plans.clear()
    _plans[id(policy)] = made
    return made


def _product(policy: Policy, subject: Subject) -> _DemandResult | None:
    if policy.products is None:
        return None
    expected = " or ".join(each.value for each in policy.products)
    if subject.product is None:
        return _DemandResult(None, expected, "an unknown product")
    return _DemandResult(subject.product in policy.products, expected, subject.product.value)


def _signing_key(policy: Policy, subject: Subject) -> _DemandResult | None:
    if policy.signing_key is None:
        return None
    found = subject.report.signing_key
    name = "a reserved value" if found is None else found.name
    return _DemandResult(found is policy.signing_key, policy.signing_key.name, name)


def _any_of(wanted: tuple[bytes, ...], found: bytes) -> _DemandResult:
    expected = " or ".join(each.hex() for each in wanted)
    return _DemandResult(found in wanted, expected, found.hex())


def _chip_id(policy: Policy, subject: Subject) -> _DemandResult | None:
    if policy.chip_ids is None:
        return None
    return _any_of(policy.chip_ids, subject.report.fields.chip_id)


def _csp_id(policy: Policy, subject: Subject) -> _DemandResult | None:
    if policy.csp_ids is None:
        return None
    expected = " or ".join(map(repr, policy.csp_ids))
    if subject.report.signing_key is not SigningKey.VLEK:
        return _DemandResult(False, expected, "no VLEK")
    if subject.leaf is None:
        return _DemandResult(None, expected, "no readable VLEK")
    return _DemandResult(subject.leaf.csp_id in policy.csp_ids, expected, repr(subject.leaf.csp_id))


def _report_data(policy: Policy, subject: Subject) -> _DemandResult | None:
    if policy.report_data is None:
        return None
    wanted = policy.report_data.ljust(REPORT_DATA_SIZE, b"\0")
    return _any_of((wanted,), subject.report.fields.report_data)


def _user_data(policy: Policy, subject: Subject) -> _DemandResult | None:
    if policy.user_data is None:
        return None
    expected = policy.user_data.hex()
    if subject.runtime_data is None:
        return _DemandResult(False, expected, "no runtime data")
    found = subject.runtime_data.user_data()
    if found is None:
        return _DemandResult(False, expected, "no user data")
    return _DemandResult(found == policy.user_data, expected, found.hex())


def _measurement(policy: Policy, subject: Subject) -> _DemandResult | None:
    if policy.measurements is None:
        return None
    return _any_of(policy.measurements, subject.report.fields.measurement)


def _host_data(policy: Policy, subject: Subject) -> _DemandResult | None:
    if policy.host_data is None:
        return None
    return _any_of((policy.host_data,), subject.report.fields.host_data)


def _id_key(policy: Policy, subject: Subject) -> _DemandResult | None:
    if policy.id_key_digests is None:
        return None
    return _any_of(policy.id_key_digests, subject.report.fields.id_key_digest)


def _author_key(policy: Policy, subject: Subject) -> _DemandResult | None:
    if policy.author_key_digests is None:
        return None
    outcome = _any_of(policy.author_key_digests, subject.report.fields.author_key_digest)
    if not subject.report.author_key_en:
        return _DemandResult(False, outcome.expected, "no author key (AUTHOR_KEY_EN is 0)")
    return outcome


def _family_id(policy: Policy, subject: Subject) -> _DemandResult | None:
    if policy.family_id is None:
        return None
    return _any_of((policy.family_id,), subject.report.fields.family_id)


def _image_id(policy: Policy, subject: Subject) -> _DemandResult | None:
    if policy.image_id is None:
        return None
    return _any_of((policy.image_id,), subject.report.fields.image_id)


def _guest_svn(policy: Policy, subject: Subject) -> _DemandResult | None:
    least = policy.minimum_guest_svn
    if least is None:
        return None
    found = subject.report.fields.guest_svn
    return _DemandResult(found >= least, f"at least {least}", str(found))


def _vmpl(policy: Policy, subject: Subject) -> _DemandResult | None:
    if policy.vmpls is None:
        return None
    found = subject.report.fields.vmpl
    return _DemandResult(found in policy.vmpls, " or ".join(map(str, policy.vmpls)), str(found))


_DEBUG: Final = 1 << GUEST_POLICY_BITS["debug"].index
_MIGRATE_MA: Final = 1 << GUEST_POLICY_BITS["migrate_ma"].index


@functools.lru_cache(maxsize=8)
def _one_bit(name: str, wanted: bool, value: bool) -> _DemandResult:
    bit = GUEST_POLICY_BITS[name]
    expected, found = ((int(each), bit.one if each else bit.zero) for each in (wanted, value))
    return _DemandResult(
        value is wanted, f"{expected[0]} ({expected[1]})", f"{found[0]} ({found[1]})"
    )


def _debug(policy: Policy, subject: Subject) -> _DemandResult | None:
    wanted = policy.guest_policy.debug
    if wanted is None:
        return None
    return _one_bit("debug", wanted, bool(subject.report.fields.policy & _DEBUG))


def _migration_agent(policy: Policy, subject: Subject) -> _DemandResult | None:
    wanted = policy.guest_policy.migrate_ma
    if wanted is None:
        return None
    return _one_bit("migrate_ma", wanted, bool(subject.report.fields.policy & _MIGRATE_MA))


_GUEST_POLICY_NAMES: Final = tuple(
    field.name for field in fields(GuestPolicyBits) if field.name not in ("debug", "migrate_ma")
)
_PLATFORM_INFO_NAMES: Final = tuple(field.name for field in fields(PlatformInfoBits))


def _bits(
    wanted: GuestPolicyBits | PlatformInfoBits,
    names: tuple[str, ...],
    known: dict[str, Bit],
    word: int,
) -> _DemandResult | None:
    asked = {name: getattr(wanted, name) for name in names if getattr(wanted, name) is not None}
    if not asked:
        return None
    found = {name: known[name].of(word) for name in asked}
    return _DemandResult(found == asked, _listed(asked), _listed(found))


def _listed(bits: dict[str, bool]) -> str:
    return " ".join(f"{name}={int(value)}" for name, value in bits.items())


def _guest_policy(policy: Policy, subject: Subject) -> _DemandResult | None:
    word = subject.report.fields.policy
    return _bits(policy.guest_policy, _GUEST_POLICY_NAMES, GUEST_POLICY_BITS, word)


def _policy_abi(policy: Policy, subject: Subject) -> _DemandResult | None:
    least = policy.minimum_policy_abi
    if least is None:
        return None
    word = subject.report.fields.policy
    return _at_least(least, (word >> 8 & 0xFF, word & 0xFF))


def _platform_info(policy: Policy, subject: Subject) -> _DemandResult | None:
    word = subject.report.fields.platform_info
    return _bits(policy.platform_info, _PLATFORM_INFO_NAMES, PLATFORM_INFO_BITS, word)


def _mitigations(policy: Policy, subject: Subject) -> _DemandResult | None:
    fields_ = subject.report.fields
    asked = [
        (name, wanted, found)
        for name, wanted, found in (
            ("launch", policy.launch_mitigations, fields_.launch_mit_vector),
            ("current", policy.current_mitigations, fields_.current_mit_vector),
        )
        if wanted is not None
    ]
    if not asked:
        return None
    return _DemandResult(
        all(found & wanted == wanted for _, wanted, found in asked),
        "all bits of " + " ".join(f"{name}={wanted:#x}" for name, wanted, _ in asked),
        " ".join(f"{name}={found:#x}" for name, _, found in asked),
    )


def _at_least(least: tuple[int, ...], found: tuple[int, ...]) -> _DemandResult:
    return _DemandResult(found >= least, f"at least {_dotted(least)}", _dotted(found))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _current_firmware(report: Report) -> tuple[int, int, int]:
    fields_ = report.fields
    return fields_.current_major, fields_.current_minor, fields_.current_build


def _committed(report: Report) -> tuple[int, int, int]:
    fields_ = report.fields
    return fields_.committed_major, fields_.committed_minor, fields_.committed_build


def _firmware(policy: Policy, subject: Subject) -> _DemandResult | None:
    least = policy.minimum_firmware
    return None if least is None else _at_least(least, _current_firmware(subject.report))


def _committed_firmware(policy: Policy, subject: Subject) -> _DemandResult | None:
    least = policy.minimum_committed_firmware
    return None if least is None else _at_least(least, _committed(subject.report))


def _provisional(policy: Policy, subject: Subject) -> _DemandResult | None:
    if not policy.refuse_provisional_firmware:
        return None
    report = subject.report
    current, committed = _current_firmware(report), _committed(report)
    same = current == committed and report.fields.current_tcb == report.fields.committed_tcb
    return _DemandResult(
        same,
        "committed firmware and TCB",
        f"firmware {_dotted(current)} (committed {_dotted(committed)}), TCB "
        f"{report.fields.current_tcb.hex()} (committed {report.fields.committed_tcb.hex()})",
    )


def _tcb(
    floor: TcbFloor | None, found: TcbVersion | None, subject: Subject
) -> _DemandResult | None:
    if floor is None:
        return None
    if subject.product is None:
        return _DemandResult(None, "a TCB at or above the floor", "the TCB of an unknown product")
    least = floor.of(subject.product)
    if least is None:
        return _DemandResult(
            False,
            "a product with a floor",
            f"{subject.product.value}, for which the policy has no floor",
        )
    expected = f"at least {least} in every component"
    if found is None:
        return _DemandResult(False, expected, "a TCB that cannot be read")
    # TCBs of different layouts cannot be compared, so this does not pass.
    covered = found.layout is least.layout and found.covers(least)
    return _DemandResult(covered, expected, str(found))


def _reported_tcb(policy: Policy, subject: Subject) -> _DemandResult | None:
    return _tcb(policy.minimum_tcb, subject.tcbs.reported, subject)


def _tcb_above_current(policy: Policy, subject: Subject) -> _DemandResult | None:
    if policy.allow_tcb_above_current:
        return None
    tcbs = subject.tcbs
    current, reported = tcbs.current, tcbs.reported
    certified = None if subject.leaf is None else subject.leaf.tcb
    if current is None or reported is None:
        return _DemandResult(None, _NOT_ABOVE, "a TCB that cannot be read")
    above = _above(reported, current)
    if certified is not None and certified != reported:
        above += tuple(f"{each} in the leaf" for each in _above(certified, current))
    if not above:
        return _NOTHING_ABOVE
    return _DemandResult(False, _NOT_ABOVE, ", ".join(above))


_NOT_ABOVE: Final = "at most CURRENT_TCB in every component"
_NOTHING_ABOVE: Final = _DemandResult(True, _NOT_ABOVE, "no component above CURRENT_TCB")


@functools.lru_cache(maxsize=1024)
def _above(tcb: TcbVersion, current: TcbVersion) -> tuple[str, ...]:
    """Describe the components of ``tcb`` that are above those of ``current``. A component that
    ``current`` lacks counts as above.
    """
    running = current.components()
    return tuple(
        f"{name} {value} above {running.get(name, 'none')}"
        for name, value in tcb.components().items()
        if value > running.get(name, -1)
    )


def _current_tcb(policy: Policy, subject: Subject) -> _DemandResult | None:
    return _tcb(policy.minimum_current_tcb, subject.tcbs.current, subject)


def _committed_tcb(policy: Policy, subject: Subject) -> _DemandResult | None:
    return _tcb(policy.minimum_committed_tcb, subject.tcbs.committed, subject)


def _launch_tcb(policy: Policy, subject: Subject) -> _DemandResult | None:
    return _tcb(policy.minimum_launch_tcb, subject.tcbs.launch, subject)


def _floor(policy: Policy, subject: Subject) -> _DemandResult | None:
    if policy.floors is None:
        return None
    fields_ = subject.report.fields
    if fields_.version < 3:
        return _floor_without_cpuid(policy, policy.floors, subject)
    cpuid = (fields_.cpuid_family, fields_.cpuid_model, fields_.cpuid_stepping)
    floors = tuple(each for each in policy.floors if each.processors.contains(*cpuid))
    if not floors:
        family, model, stepping = cpuid
        return _DemandResult(
            False,
            "a processor with a floor",
            (
                f"family {family:#x}, model {model:#x}, stepping {stepping}, for which "
                "the policy has no floor"
            ),
        )
    names = " and ".join(dict.fromkeys(each.name or str(each.processors) for each in floors))
    return _reaches(_highest(floors), names, subject.tcbs)


def _floor_without_cpuid(
    policy: Policy, floors: tuple[ProcessorFloor, ...], subject: Subject
) -> _DemandResult:
    if policy.floors_without_cpuid is WithoutCpuid.REFUSE:
        return _DemandResult(False, "a report with CPUID", "version 2, which has no CPUID")
    if subject.product is None:
        return _DemandResult(None, "a TCB at or above the floor", "the TCB of an unknown product")
    of_product = tuple(each for each in floors if subject.product in each.processors.products)
    if not of_product:
        return _DemandResult(
            False,
            "a product with a floor",
            f"{subject.product.value}, for which the policy has no floor",
        )
    names = f"any {subject.product.value}, because a version 2 report does not name its processor"
    return _reaches(_highest(of_product), names, subject.tcbs)


def _highest(floors: Iterable[ProcessorFloor]) -> dict[str, int]:
    """Return, for each component, the highest value that any of the floors requires."""
    highest: dict[str, int] = {}
    for floor in floors:
        for name, least in floor.components().items():
            highest[name] = max(least, highest.get(name, 0))
    return highest


def _reaches(least: dict[str, int], names: str, tcbs: ReportTcbs) -> _DemandResult:
    """Compare a floor with the reported TCB, which the leaf certifies, and with the current TCB."""
    listed = ", ".join(f"{name} {value}" for name, value in least.items())
    expected = f"at least {listed} ({names})"
    if tcbs.reported is None or tcbs.current is None:
        return _DemandResult(False, expected, "a TCB that cannot be read")
    below = [
        f"{which} {name} {tcb.components().get(name, 'none')}"
        for which, tcb in (("reported", tcbs.reported), ("current", tcbs.current))
        for name, value in least.items()
        if tcb.components().get(name, -1) < value
    ]
    return _DemandResult(not below, expected, ", ".join(below) or str(tcbs.reported))


_DEMANDS: Final[dict[ReasonCode, _Demand]] = {
    ReasonCode.POLICY_PRODUCT: _product,
    ReasonCode.POLICY_SIGNING_KEY: _signing_key,
    ReasonCode.POLICY_CHIP_ID: _chip_id,
    ReasonCode.POLICY_CSP_ID: _csp_id,
    ReasonCode.POLICY_REPORT_DATA: _report_data,
    ReasonCode.POLICY_USER_DATA: _user_data,
    ReasonCode.POLICY_MEASUREMENT: _measurement,
    ReasonCode.POLICY_HOST_DATA: _host_data,
    ReasonCode.POLICY_ID_KEY: _id_key,
    ReasonCode.POLICY_AUTHOR_KEY: _author_key,
    ReasonCode.POLICY_FAMILY_ID: _family_id,
    ReasonCode.POLICY_IMAGE_ID: _image_id,
    ReasonCode.POLICY_GUEST_SVN: _guest_svn,
    ReasonCode.POLICY_VMPL: _vmpl,
    ReasonCode.POLICY_DEBUG: _debug,
    ReasonCode.POLICY_MIGRATION_AGENT: _migration_agent,
    ReasonCode.POLICY_GUEST_POLICY: _guest_policy,
    ReasonCode.POLICY_ABI: _policy_abi,
    ReasonCode.POLICY_PLATFORM_INFO: _platform_info,
    ReasonCode.POLICY_MITIGATIONS: _mitigations,
    ReasonCode.POLICY_FIRMWARE: _firmware,
    ReasonCode.POLICY_COMMITTED_FIRMWARE: _committed_firmware,
    ReasonCode.POLICY_PROVISIONAL_FIRMWARE: _provisional,
    ReasonCode.POLICY_REPORTED_TCB: _reported_tcb,
    ReasonCode.POLICY_TCB_ABOVE_CURRENT: _tcb_above_current,
    ReasonCode.POLICY_CURRENT_TCB: _current_tcb,
    ReasonCode.POLICY_COMMITTED_TCB: _committed_tcb,
    ReasonCode.POLICY_LAUNCH_TCB: _launch_tcb,
    ReasonCode.POLICY_FLOOR: _floor,
}
# A policy's demands do not depend on the report, so any report will do here.
_NO_SUBJECT: Final = Subject(Report.unpack(bytes(REPORT_SIZE)), None, ReportTcbs(), None, None)
