# SPDX-License-Identifier: Apache-2.0
"""Correct VMMs pass every check; each wrong one fails exactly the expected checks."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from snpcerts.conformance.vmm_check import BY_ID, CHECKS, Level
from snpcerts.errors import RefusedError
from snpcerts.vmm.preload import shim_library

from ..emulated import SNPCERTS
from ..emulated_hosts import EVERY_HOST, name, options
from ..sizes import FULL, sized
from .conftest import Build, failed, judged

NO_LOCK = {"lock-kind", "lock-before-read", "lock-until-signed", "busy"}
NOT_READ_ANEW = {
    "table-delivered",
    "large-table",
    "too-small",
    "exact-pages",
    "lock-before-read",
    "busy",
    "file-replaced",
    "file-rewritten",
    "file-grown",
    "file-shrunk",
    "changed-before-lock",
    "missing-file",
    "unreadable-file",
    "empty-file",
    "permission-denied",
    "symbolic-link",
}
NO_FILE = {"missing-file", "unreadable-file", "empty-file", "permission-denied"}
# The next request takes the lock for held, too.
UNLOCKED_BY_ANOTHER = {"vcpus-keep-locks", "lock-before-read", "lock-until-signed"}
ADVICE = {check.id for check in CHECKS if check.level is Level.ADVICE}

# What each wrong VMM of vmm.c fails, or is advised against.
EXPECTED: dict[str, set[str]] = {
    "ATTRIBUTE_NOT_ASKED": {"attribute-asked", "enabled-where-supported"},
    "ONLY_HAS_ASKED": {"attribute-asked", "attribute-value"},
    "ENABLED_TOO_LATE": {"enabled"},
    "NEVER_ENABLED": {"enabled"},
    "NO_LOCK": NO_LOCK,
    "FLOCK_LOCK": NO_LOCK,
    "CLASSIC_LOCK": {"lock-kind", "vcpus-keep-locks"},
    "LOCK_ON_ANOTHER_FILE": NO_LOCK,
    "READS_BEFORE_LOCK": {"lock-before-read", "changed-before-lock"},
    "UNLOCKS_EARLY": {"lock-until-signed"},
    "NO_HANDSHAKE": {"lock-released"},
    "NO_INODE_CHECK": {"same-inode", "same-device"},
    "INODE_WITHOUT_DEVICE": {"same-device"},
    "WAITS_FOR_EVER": {"busy"},
    "BUSY_IS_EIO": {"busy"},
    "SHARED_DESCRIPTOR": {"vcpus-keep-locks", "lock-released"},
    "ONE_DESCRIPTOR_FOR_LIFE": {
        "same-inode",
        "same-device",
        "file-replaced",
        "symbolic-link",
        "vcpus-keep-locks",
        *NO_FILE,
    },
    "KEEPS_A_COPY": NOT_READ_ANEW,
    "POINTER_STAYS": {"short-read"},
    "PAGE_TOO_MANY": {"exact-pages", "large-table"},
    "NEGATIVE_RET": {"ret-supported"},
    "WRITES_BEFORE_CHECK": {"too-small"},
    "WRITES_WHOLE_PAGES": {"nothing-outside"},
    "EMPTY_IS_SUCCESS": {"no-buffer"},
    "SIZE_WRAPS": {"huge-npages"},
    "GPA_WRAPS": {"buffer-wraps"},
    "GPA_UNCHECKED": {"buffer-past-memory", "buffer-outside-memory", "buffer-wraps"},
    "ONE_SLOT_ONLY": {"buffer-across-slots"},
    "MISSING_ENDS_VM": {"missing-file", "permission-denied"},
    "MISSING_IS_EIO": NO_FILE,
    "MISSING_WRITES_NOTHING": NO_FILE,
    "UNREADABLE_ENDS_VM": {"unreadable-file", "read-fails"},
    "IMMEDIATE_EXIT_STAYS": {"immediate-exit-cleared"},
    "KICK_ERASED": {"kick-not-lost"},
    "STALE_EXIT_REASON": {"exit-reason-stale"},
    "LEAKS_DESCRIPTORS": {"descriptors"},
    "LAST_PAGE_REFUSED": {"buffer-at-slot-end"},
    "FIRST_VCPU_ONLY": {"vcpus-served"},
    "ONLY_THE_POSTED_EXIT": {"exit-number"},
    "PAGE_STATE_NOT_ENABLED": {"page-state"},
    "PAGE_STATE_REFUSED": {"page-state"},
    "PAGE_STATE_IGNORED": {"page-state"},
    "LARGE_PAGES_REFUSED": {"page-state"},
    "CHILD_KEEPS_LOCK": {"lock-released", "descriptors", "lock-ends-with-vmm"},
    "CACHED_BY_MTIME": {"lock-before-read", "file-rewritten"},
    "PROBES_THE_LOCK": {"lock-before-read", "lock-until-signed", "lock-kind"},
    "SIZE_BEFORE_LOCK": {"changed-before-lock"},
    "LOCK_TIMES_OUT": {"slow-firmware"},
    "LOCKS_AGAIN": {"lock-until-signed"},
    "INODE_CHECKED_ONCE": {"same-inode"},
    "MTIME_FOR_INODE": {"same-inode"},
    "LINKS_FOR_INODE": {"same-inode", "same-device"},
    "PATH_READ_AGAIN": {"replaced-after-lock"},
    "LOCK_ERROR_IGNORED": {"lock-fails"},
    "READ_ERROR_IGNORED": {"read-fails"},
    "HANDSHAKE_ERROR_KEEPS_LOCK": {"handshake-fails"},
    "STALE_BYTES_BEHIND": {"no-stale-bytes"},
    "WORDS_ONLY": {"large-table"},
    "LIMIT_16_KIB": {"large-table"},
    "LIMIT_64_KIB": {"large-table"},
    "NO_BUFFER_WRITTEN": {"no-buffer"},
    "EMPTY_FILE_UNWRITTEN": {"empty-file"},
    "EMPTY_FILE_IS_EIO": {"empty-file"},
    "FORBIDDEN_IS_EIO": {"permission-denied"},
    "LINK_COMPARED": {"symbolic-link"},
    "LINK_REFUSED": {"symbolic-link"},
    "LEAKS_WHEN_BUSY": {"descriptors"},
    "LEAKS_WHEN_REPLACED": {"descriptors"},
    "LEAKS_ON_ERROR": {"descriptors"},
    "CREATES_FILE": {"missing-file", "read-only-file"},
    "OPENS_FOR_WRITING": {"read-only-file"},
    "PEEKS_AND_COPIES": {"lock-before-read"},
    "COPY_FOR_SECOND_VCPU": {"vcpus-served"},
    "GIVES_UP_WHEN_BUSY": {"busy"},
    "NEEDED_ONLY_GROWS": {"too-small"},
    "OPEN_ERROR_IS_EIO": {"open-fails"},
    "LEAKS_ON_EMPTY_FILE": {"descriptors"},
    "LEAKS_MAPPINGS": {"nothing-left"},
    "LEAKS_THREADS": {"nothing-left"},
    "LEAKS_CHILDREN": {"nothing-left"},
    "LEAKS_MEMORY": {"memory-bounded"},
    "LATE_LOCK_STAYS": {"lock-released"},
    "GPA_TRUNCATED": {"buffer-outside-memory"},
    "WAITS_TOO_LONG": {"busy"},
    "VALUE_IGNORED": {"attribute-value"},
    "LOGS_EACH_TRY": {"log-bounded"},
    "LOGS_EACH_BUSY": {"log-bounded"},
    "SPINS": {"waits-asleep"},
    "ONE_DESCRIPTION": UNLOCKED_BY_ANOTHER,
    "UNCOUNTED_ON_ENOSPC": UNLOCKED_BY_ANOTHER,
}
# Styles of right VMMs, and what cannot be judged of each.
RIGHT: dict[str, set[str]] = {
    "NOTHING": set(),
    "RIGHT_DUPLICATE": set(),
    "RIGHT_HELPER": set(),
    "RIGHT_MAPPING": {"short-read", "read-fails"},
    "RIGHT_COUNTED": set(),
    "RIGHT_ONE_AT_A_TIME": set(),
    "RIGHT_EXCLUSIVE": set(),
    "RIGHT_CHECKS_AT_START": set(),
    "RIGHT_SIGWAIT_IN_MAIN": set(),
    "RIGHT_CHILD_RUNS": set(),
    "RIGHT_PIECES": set(),
    "RIGHT_PEEKS": set(),
    "RIGHT_MAIN_LOOP": set(),
    "RIGHT_KEPT_MAPPING": {"short-read", "read-fails"},
}
# Never judged on this machine without the right to mount.
PRIVILEGED = set() if os.geteuid() == 0 else {"same-device"}


def test_every_wrong_vmm_has_a_row_in_the_table() -> None:
    source = Path(__file__).with_name("vmm.c").read_text(encoding="utf-8")
    (body,) = re.findall(r"enum wrong \{(.*?)\};", source, re.DOTALL)
    body = re.sub(r"/\*.*?\*/", "", body)
    named = set(re.findall(r"[A-Z][A-Z_0-9]+", body))
    assert named == EXPECTED.keys() | RIGHT.keys()


def test_every_check_is_failed_by_some_vmm() -> None:
    """A check that nothing can fail checks nothing."""
    caught = set().union(*EXPECTED.values())
    # In another test, programs that are not VMMs fail these.
    assert BY_ID.keys() - caught == {"vm-starts"}


def one_for_each_check() -> list[str]:
    """Return wrong VMMs that fail every check between them, each one that fails another."""
    chosen, failing = [], set[str]()
    for wrong, checks in EXPECTED.items():
        if not checks <= failing:
            chosen.append(wrong)
            failing |= checks
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("wrong", sized(one_for_each_check(), list(EXPECTED)))
def test_a_wrong_vmm_fails_only_the_checks_it_violates(
    build: Build, wrong: str, host: tuple[str, ...]
) -> None:
    """Other checks may fail for the same cause, and are not asked."""
    asked = sorted(EXPECTED[wrong])
    found = failed(judged(build(wrong), "{certs}", "2", options=(*host, *only(*asked))))
    assert found.keys() == EXPECTED[wrong] - PRIVILEGED, found


def only(*checks: str) -> tuple[str, ...]:
    return tuple(word for check in checks for word in ("--only", check))


# One of each kind.
SOME = (
    "table-delivered",
    "page-state",
    "too-small",
    "buffer-across-slots",
    "missing-file",
    "file-replaced",
    "lock-until-signed",
    "vcpus-keep-locks",
    "kick-not-lost",
    "busy",
    "descriptors",
    "lock-ends-with-vmm",
)
# What tells the styles apart: who holds the lock, by which descriptor, and who is stopped.
TELLING = ("lock-until-signed", "vcpus-keep-locks", "kick-not-lost", "busy", "same-device")


def assert_all_passed(
    *arguments: str | Path,
    skips: set[str] | None = None,
    checks: tuple[str, ...] = (),
    host: tuple[str, ...] = (),
) -> None:
    # Nothing waits for the limit to pass; a busy machine starts slowly.
    found = judged(*arguments, options=("--timeout", "40", *host, *only(*checks)))
    assert failed(found).keys() <= ADVICE, failed(found)
    skipped = {name for name, check in found.items() if check["state"] == "skipped"}
    assert skipped <= PRIVILEGED | (skips or set()), found
    assert found.keys() == set(checks or BY_ID)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("PAGE_STATE_NOT_ENABLED", "KVM_CAP_EXIT_HYPERCALL is not enabled"),
        ("PAGE_STATE_REFUSED", "shared: answered with an error; a Linux guest then ends"),
        ("PAGE_STATE_IGNORED", "ret 0, but KVM_SET_MEMORY_ATTRIBUTES has not made it"),
        ("LARGE_PAGES_REFUSED", "512 pages at GPA"),
    ],
)
def test_a_vmm_that_ignores_page_states_is_told_what_it_left_undone(
    build: Build, wrong: str, said: str
) -> None:
    """What it does with certificates is judged all the same."""
    checks = only("page-state", "table-delivered", "vcpus-served")
    found = judged(build(wrong), "{certs}", "2", options=checks)
    assert failed(found).keys() == {"page-state"}
    assert said in found["page-state"]["detail"]
    assert {each["state"] for each in found.values()} == {"failed", "passed"}


def test_a_correct_vmm_in_c_passes_everything(build: Build, host: tuple[str, ...]) -> None:
    assert_all_passed(build("NOTHING"), "{certs}", "2", host=host)


@pytest.mark.slow
@pytest.mark.parametrize("each", sized(EVERY_HOST[-1:], EVERY_HOST), ids=name)
def test_verdicts_do_not_depend_on_the_kernel_and_the_firmware(
    build: Build, each: tuple[str, str]
) -> None:
    host = options(each)
    assert_all_passed(build("NOTHING"), "{certs}", "2", checks=SOME, host=host)
    wrong = "NO_LOCK"
    found = failed(judged(build(wrong), "{certs}", "2", options=(*host, *only(*NO_LOCK))))
    assert found.keys() == EXPECTED[wrong]


@pytest.mark.slow
@pytest.mark.parametrize("style", sized(["RIGHT_HELPER", "RIGHT_EXCLUSIVE"], list(RIGHT)))
def test_a_right_vmm_passes_whatever_its_style(
    build: Build, style: str, host: tuple[str, ...]
) -> None:
    checks = () if FULL else TELLING
    assert_all_passed(build(style), "{certs}", "2", skips=RIGHT[style], checks=checks, host=host)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrapper",
    [
        ("sh", "-c", '"$0" "$@"; exit $?'),
        ("timeout", "60"),
        ("unshare", "-p", "-f", "--kill-child"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_vmm_behind_a_wrapper_that_forks_is_judged(
    build: Build, wrapper: tuple[str, ...]
) -> None:
    if wrapper[0] == "unshare" and os.geteuid() != 0:
        pytest.skip("only root may create a pid namespace")
    checks = () if FULL else (*TELLING, "lock-ends-with-vmm")
    assert_all_passed(*wrapper, build("NOTHING"), "{certs}", "2", checks=checks)


def test_single_checks_provoke_what_they_judge(build: Build) -> None:
    """A check that is judged in passing has scenarios that show it."""
    for wrong, check in (
        ("NEGATIVE_RET", "ret-supported"),
        ("WRITES_WHOLE_PAGES", "nothing-outside"),
    ):
        assert failed(judged(build(wrong), "{certs}", "1", options=only(check))).keys() == {check}


def test_the_exit_service_passes_everything(host: tuple[str, ...]) -> None:
    vmm = Path(__file__).with_name("python_vmm.py")
    assert_all_passed(sys.executable, vmm, "{certs}", "2", checks=() if FULL else SOME, host=host)


def test_the_shim_passes_everything_for_an_unmodified_vmm(
    build: Build, host: tuple[str, ...]
) -> None:
    """The VMM serves no file and enables nothing: what is judged is the library before it."""
    try:
        shim_library()
    except RefusedError as error:
        pytest.skip(str(error))
    run = [*SNPCERTS, "run", "--certs-filename", "{certs}", "--"]
    checks = () if FULL else SOME
    assert_all_passed(*run, build("NEVER_ENABLED"), "/dev/null", "2", checks=checks, host=host)


def test_checks_that_need_two_vcpus_are_skipped_with_one(build: Build) -> None:
    asked = () if FULL else only("vcpus-served", "vcpus-keep-locks", "busy")
    checks = judged(build("NOTHING"), "{certs}", "1", options=asked)
    skipped = {name: each["detail"] for name, each in checks.items() if each["state"] == "skipped"}
    assert skipped.keys() - PRIVILEGED == {"vcpus-served", "vcpus-keep-locks"}
    assert skipped["vcpus-served"] == "the VM has one vCPU"
