# SPDX-License-Identifier: Apache-2.0
"""The shim's numbers, which stand in it by hand, are those of ``abi`` and of the reader."""

from __future__ import annotations

import re

from snpcerts.abi import cert_table, kvm
from snpcerts.certfile import reader

from .conftest import ROOT

SOURCE = (ROOT / "native" / "shim.c").read_text(encoding="utf-8")


def defined() -> dict[str, int]:
    """Every ``#define`` of a plain number."""
    found = re.findall(r"^#define (\w+) (0x[0-9A-Fa-f]+|\d+)(?:ul|u)?(?:\s*/\*.*)?$", SOURCE, re.M)
    return {name: int(value, 0) for name, value in found}


def test_the_calls_of_kvm() -> None:
    named = {name.removeprefix("KVM_"): value for name, value in defined().items()}
    requests = {name: value for name, value in named.items() if value >> 8 & 0xFF == kvm.KVMIO}
    assert requests.keys() == {
        "CREATE_VM",
        "CREATE_VCPU",
        "SET_USER_MEMORY_REGION",
        "SET_USER_MEMORY_REGION2",
        "RUN",
        "MEMORY_ENCRYPT_OP",
        "GET_DEVICE_ATTR",
    }
    assert requests == {name: kvm.Ioctl[name] for name in requests}


def test_the_other_numbers_of_kvm() -> None:
    named = defined()
    assert named["KVM_X86_SNP_VM"] == kvm.VmType.SNP
    assert named["KVM_MEM_READONLY"] == kvm.MEM_READONLY
    assert named["KVM_SEV_INIT2"] == kvm.SevCommand.INIT2
    assert named["KVM_SEV_SNP_ENABLE_REQ_CERTS"] == kvm.SevCommand.SNP_ENABLE_REQ_CERTS
    assert named["KVM_EXIT_SNP_REQ_CERTS"] == kvm.ExitReason.SNP_REQ_CERTS
    group = re.search(r"\.group = (\d+), \.attr = (\d+)", SOURCE)
    assert group is not None
    assert tuple(map(int, group.groups())) == (kvm.GROUP_SEV, kvm.ATTR_SNP_REQ_CERTS)


def test_the_bounds_and_waits_of_the_reader() -> None:
    named = defined()
    assert named["PAGE"] == cert_table.PAGE_SIZE
    assert "#define MAX_TABLE (1 << 20)" in SOURCE
    assert cert_table.MAX_SIZE == 1 << 20
    assert f"zeros[{cert_table.ENTRY_SIZE}]" in SOURCE
    assert named["FIRST_PAUSE"] == reader._FIRST_PAUSE * 1e9
    assert named["LONGEST_PAUSE"] == reader._LONGEST_PAUSE * 1e9
    assert f"timeout = {int(reader.DEFAULT_LOCK_WAIT * 1e9)};" in SOURCE
