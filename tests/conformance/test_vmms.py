# SPDX-License-Identifier: Apache-2.0
"""Correct VMMs pass every check; each wrong one fails all the checks that the table expects."""

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
from ..emulated_hosts import EVERY_HOST, name, options
from ..sizes import FULL, sized
from .conftest import Build, failed, judged
from .table import ADVICE, EXPECTED, NO_LOCK, PRIVILEGED, RIGHT, SOURCE, STYLE_CHECKS, only


def test_every_wrong_vmm_has_a_row_in_the_table() -> None:
    source = SOURCE.read_text(encoding="utf-8")
    (body,) = re.findall(r"enum wrong \{(.*?)\};", source, re.DOTALL)
    body = re.sub(r"/\*.*?\*/", "", body)
    named = set(re.findall(r"[A-Z][A-Z_0-9]+", body))
    assert named == EXPECTED.keys() | RIGHT.keys()


def test_every_check_is_failed_by_some_vmm() -> None:
    """A check that nothing can fail checks nothing."""
    caught = set().union(*EXPECTED.values())
    # In another test, programs that are not VMMs fail this check.
    assert BY_ID.keys() - caught == {"vm-starts"}


# Judging these VMMs takes several seconds: a check waits for its time limit.
LONG = {"FIRST_VCPU_ONLY", "NO_HANDSHAKE", "KICK_ERASED", "KICK_ERASED_WHEN_BUSY"}
LONG |= {"CHILD_KEEPS_LOCK", "LEAKS_DESCRIPTORS", "LEAKS_TIMERS", "LEAKS_THREADS", "LEAKS_CHILDREN"}


def one_for_each_check() -> list[str]:
    """Return a few wrong VMMs that between them fail every check; of those that take long to judge,
    only the ones that are needed.
    """
    chosen, left = [], set().union(*EXPECTED.values())
    while left:
        best = max(
            EXPECTED, key=lambda wrong: len(EXPECTED[wrong] & left) / (100 if wrong in LONG else 1)
        )
        chosen.append(best)
        left -= EXPECTED[best]
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("wrong", sized(one_for_each_check(), list(EXPECTED)))
def test_a_wrong_vmm_fails_every_check_in_its_row(
    build: Build, wrong: str, host: tuple[str, ...]
) -> None:
    """Only the checks in the row are run, because others may fail for the same reason."""
    asked = sorted(EXPECTED[wrong])
    found = failed(judged(build(wrong), "{certs}", "2", options=(*host, *only(*asked))))
    assert found.keys() == EXPECTED[wrong] - PRIVILEGED, found


# One check of each kind.
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


def assert_all_passed(
    *arguments: str | Path,
    skips: set[str] | None = None,
    checks: tuple[str, ...] = (),
    host: tuple[str, ...] = (),
) -> None:
    # The time limit is long because VMMs start slowly on a busy machine; no check waits that long.
    found = judged(*arguments, options=("--timeout", "40", *host, *only(*checks)))
    assert failed(found).keys() <= ADVICE, failed(found)
    skipped = {name for name, check in found.items() if check["state"] == "skipped"}
    assert skipped <= PRIVILEGED | (skips or set()), found
    assert found.keys() == set(checks or BY_ID)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("PAGE_STATE_NOT_ENABLED", "KVM_CAP_EXIT_HYPERCALL is not enabled"),
        (
            "PAGE_STATE_REFUSED",
            "shared: the VMM answered with an error; a Linux guest would terminate itself",
        ),
        ("PAGE_STATE_IGNORED", "ret 0, but the VMM has not made this memory"),
        ("LARGE_PAGES_REFUSED", "512 pages at GPA"),
    ],
)
def test_the_detail_says_which_page_states_a_vmm_ignores(
    build: Build, wrong: str, said: str
) -> None:
    """The checks that involve certificates still run, and pass."""
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
    checks = sized(SOME[::2], SOME)
    assert_all_passed(build("NOTHING"), "{certs}", "2", checks=checks, host=host)
    wrong = "NO_LOCK"
    found = failed(judged(build(wrong), "{certs}", "2", options=(*host, *only(*NO_LOCK))))
    assert found.keys() == EXPECTED[wrong]


@pytest.mark.slow
@pytest.mark.parametrize("style", sized(["RIGHT_HELPER", "RIGHT_CONTROL"], list(RIGHT)))
def test_a_right_vmm_passes_whatever_its_style(
    build: Build, style: str, host: tuple[str, ...]
) -> None:
    checks = () if FULL else STYLE_CHECKS
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
    checks = () if FULL else (*STYLE_CHECKS, "lock-ends-with-vmm")
    assert_all_passed(*wrapper, build("NOTHING"), "{certs}", "2", checks=checks)


def test_single_checks_provoke_what_they_judge(build: Build) -> None:
    """Other checks' scenarios usually judge these; asked for alone, they must run too, and fail."""
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
    """The VMM serves no file and enables nothing: only the preloaded shim is judged."""
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
