# SPDX-License-Identifier: Apache-2.0
"""Every number, size and offset in our code is the same as in released kernels.

``facts.json`` keeps what the headers of some releases say, so these tests need no
network. With ``SNPCERTS_KERNEL_TESTS`` set (``make test-kernel``), they also compile
the fetched headers: the newest that Debian has of each series.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from snpcerts.abi import kvm

from . import claims, headers

ROOT = Path(__file__).parents[2]
FACTS = headers.facts()

needs_headers = pytest.mark.skipif(
    not os.environ.get("SNPCERTS_KERNEL_TESTS"), reason="make test-kernel fetches the headers"
)
needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc on this machine")


def differences(ours: dict[str, int], theirs: dict[str, int]) -> list[str]:
    """A line for each of our expressions that ``theirs`` lacks or gives another value."""
    return [
        f"{name}: {value} here, {theirs.get(name, 'nothing')} in the headers"
        for name, value in ours.items()
        if theirs.get(name) != value
    ]


@pytest.mark.parametrize("release", FACTS)
def test_our_numbers_are_those_of_a_released_kernel(release: str) -> None:
    assert differences(claims.claims_of(release), FACTS[release]) == []


def test_every_number_of_abi_is_compared_or_has_another_source() -> None:
    assert claims.unclaimed() == []


@needs_compiler
@pytest.mark.parametrize("release", FACTS)
def test_the_structures_of_the_c_header_are_laid_out_as_the_kernels(release: str) -> None:
    assert differences(headers.native_layout(), FACTS[release]) == []


def test_the_exit_is_43_in_every_recorded_release() -> None:
    """The posted patches used 42. In each release, that is an arm64 exit."""
    assert {each["KVM_EXIT_SNP_REQ_CERTS"] for each in FACTS.values()} == {43}
    assert {each["KVM_EXIT_ARM_LDST64B"] for each in FACTS.values()} == {42}
    assert {42, 43} == kvm.SNP_REQ_CERTS_EXITS


def test_recorded_releases_are_of_every_series() -> None:
    assert {".".join(version.split(".")[:2]) for version in FACTS} == set(headers.SERIES)


# Matches an ioctl request of KVM or the SEV devices, or an exit reason, written as a number.
_BARE = re.compile(
    r"\b0x[0-9A-Fa-f]{0,4}AE[0-9A-Fa-f]{2}u?l?\b|\b0xC0[12]0530[0-9]|exit_reason\s*[!=]?=\s*\d"
)
# Programs that use the front door's own test device, not KVM.
_NOT_KVM = {"probe.c"}


def test_c_programs_take_kvms_numbers_from_the_header() -> None:
    bare = [
        f"{source.relative_to(ROOT)}:{number}: {line.strip()}"
        for folder in ("native", "tests", "bench", "src")
        for source in (ROOT / folder).rglob("*.c")
        if source.name not in _NOT_KVM
        for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1)
        if _BARE.search(line)
    ]
    assert bare == []


def test_only_abi_makes_request_numbers() -> None:
    makers = [
        str(source.relative_to(ROOT))
        for source in (ROOT / "src").rglob("*.py")
        if source.parent.name != "abi"
        and source.name not in ("seccomp.py", "bpf.py")  # claims.OTHERS has those
        and re.search(
            r"from snpcerts\.abi\.ioctl import [^\n]*\b(?:io|ior|iow|iowr)\b",
            source.read_text(encoding="utf-8"),
        )
    ]
    assert makers == []


@needs_headers
def test_the_fetched_headers_are_of_every_series() -> None:
    found = {".".join(version.split(".")[:2]) for version in headers.releases()}
    assert found == set(headers.SERIES)


@needs_headers
@pytest.mark.parametrize("release", headers.releases())
def test_our_numbers_are_those_of_the_fetched_headers(release: str) -> None:
    path = headers.releases()[release]
    found = headers.values(path, headers.expressions(release))
    assert differences(claims.claims_of(release), found) == []
    assert differences(headers.native_layout(), found) == []
    if release in FACTS:
        assert differences(FACTS[release], found) == []


@needs_headers
def test_a_name_that_the_headers_lack_is_a_failure() -> None:
    path = next(iter(headers.releases().values()))
    with pytest.raises(headers.HeadersError, match="KVM_EXIT_NO_SUCH_THING"):
        headers.values(path, ["KVM_EXIT_IO", "KVM_EXIT_NO_SUCH_THING"])
