# SPDX-License-Identifier: Apache-2.0
"""Correct VMMs pass every check; each wrong one fails exactly the expected checks."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from snpcerts.conformance.vmm_check import BY_ID
from snpcerts.errors import RefusedError
from snpcerts.vmm.preload import shim_library

from ..emulated import SNPCERTS
from ..sizes import FULL
from .conftest import Build, failed, judged

NO_LOCK = {"lock-kind", "lock-before-read", "lock-until-signed", "busy"}
NOT_READ_ANEW = {
    "table-delivered",
    "too-small",
    "exact-pages",
    "lock-before-read",
    "busy",
    "file-replaced",
    "file-grown",
    "file-shrunk",
    "missing-file",
    "unreadable-file",
}
NO_FILE = {"missing-file", "unreadable-file"}

# What each wrong VMM of vmm.c fails.
EXPECTED: dict[str, set[str]] = {
    "ATTRIBUTE_NOT_ASKED": {"attribute-asked", "enabled-where-supported"},
    "ONLY_HAS_ASKED": {"attribute-asked"},
    "ENABLED_TOO_LATE": {"enabled"},
    "NEVER_ENABLED": {"enabled"},
    "NO_LOCK": NO_LOCK,
    "FLOCK_LOCK": NO_LOCK,
    "CLASSIC_LOCK": {"lock-kind", "vcpus-keep-locks"},
    "LOCK_ON_ANOTHER_FILE": NO_LOCK,
    "READS_BEFORE_LOCK": {"lock-before-read"},
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
        "vcpus-keep-locks",
        *NO_FILE,
    },
    "KEEPS_A_COPY": NOT_READ_ANEW,
    "POINTER_STAYS": {"short-read"},
    "PAGE_TOO_MANY": {"exact-pages"},
    "NEGATIVE_RET": {"ret-supported"},
    "WRITES_BEFORE_CHECK": {"too-small"},
    "WRITES_WHOLE_PAGES": {"nothing-outside"},
    "EMPTY_IS_SUCCESS": {"no-buffer"},
    "SIZE_WRAPS": {"huge-npages"},
    "GPA_WRAPS": {"buffer-wraps"},
    "GPA_UNCHECKED": {"buffer-past-memory", "buffer-outside-memory", "buffer-wraps"},
    "ONE_SLOT_ONLY": {"buffer-across-slots"},
    "MISSING_ENDS_VM": {"missing-file"},
    "MISSING_IS_EIO": NO_FILE,
    "MISSING_WRITES_NOTHING": NO_FILE,
    "UNREADABLE_ENDS_VM": {"unreadable-file"},
    "IMMEDIATE_EXIT_STAYS": {"immediate-exit-cleared"},
    "KICK_ERASED": {"kick-not-lost"},
    "STALE_EXIT_REASON": {"exit-reason-stale"},
    "LEAKS_DESCRIPTORS": {"descriptors"},
    "LAST_PAGE_REFUSED": {"buffer-at-slot-end"},
    "FIRST_VCPU_ONLY": {"vcpus-served"},
    "ONLY_THE_POSTED_EXIT": {"exit-number"},
    "CHILD_KEEPS_LOCK": {"lock-released", "descriptors", "lock-ends-with-vmm"},
}
# Never judged on this machine without the right to mount.
PRIVILEGED = set() if os.geteuid() == 0 else {"same-device"}


def test_every_wrong_vmm_has_a_row_in_the_table() -> None:
    source = Path(__file__).with_name("vmm.c").read_text(encoding="utf-8")
    (body,) = re.findall(r"enum wrong \{(.*?)\};", source, re.DOTALL)
    assert set(re.findall(r"[A-Z][A-Z_]+", body)) - {"NOTHING"} == EXPECTED.keys()


def test_every_check_is_failed_by_some_vmm() -> None:
    """A check that nothing can fail checks nothing."""
    caught = set().union(*EXPECTED.values())
    # In another test, programs that are not VMMs fail these.
    assert BY_ID.keys() - caught == {"vm-starts"}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", EXPECTED)
def test_a_wrong_vmm_fails_only_the_checks_it_violates(build: Build, wrong: str) -> None:
    """Of the checks that it passes, the full run sees that it does."""
    # Every exit shows a ret; this VMM's is wrong where the buffer is too small.
    besides = {"too-small"} if "ret-supported" in EXPECTED[wrong] else set()
    asked = () if FULL else sorted(EXPECTED[wrong] | besides)
    only = tuple(word for check in asked for word in ("--only", check))
    found = failed(judged(build(wrong), "{certs}", "2", options=only))
    assert found.keys() == EXPECTED[wrong] - PRIVILEGED, found


def assert_all_passed(*words: str | Path) -> None:
    checks = judged(*words)
    assert failed(checks) == {}
    skipped = {name for name, check in checks.items() if check["state"] == "skipped"}
    assert skipped <= PRIVILEGED, checks
    assert checks.keys() == BY_ID.keys()


def test_a_correct_vmm_in_c_passes_everything(build: Build) -> None:
    assert_all_passed(build("NOTHING"), "{certs}", "2")


def test_the_exit_service_passes_everything() -> None:
    assert_all_passed(sys.executable, Path(__file__).with_name("python_vmm.py"), "{certs}", "2")


def test_the_shim_passes_everything_for_an_unmodified_vmm(build: Build) -> None:
    """The VMM serves no file and enables nothing: what is judged is the library before it."""
    try:
        shim_library()
    except RefusedError as error:
        pytest.skip(str(error))
    run = [*SNPCERTS, "run", "--certs-filename", "{certs}", "--"]
    assert_all_passed(*run, build("NEVER_ENABLED"), "/dev/null", "2")


def test_checks_that_need_two_vcpus_are_skipped_with_one(build: Build) -> None:
    checks = judged(build("NOTHING"), "{certs}", "1")
    skipped = {name: each["detail"] for name, each in checks.items() if each["state"] == "skipped"}
    assert skipped.keys() - PRIVILEGED == {"vcpus-served", "vcpus-keep-locks"}
    assert skipped["vcpus-served"] == "the VM has one vCPU"
