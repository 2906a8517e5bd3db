# SPDX-License-Identifier: Apache-2.0
"""Compares the numbers of the running kernel's interface with those of ``abi``.

The kernel's headers define the number of the exit. The kernel's BTF has the layout of ``struct
kvm_run`` and the number of KVM_SEV_SNP_ENABLE_REQ_CERTS. Headers and BTF may be missing. Headers of
another release are not used instead, because they say nothing about this kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from snpcerts.abi.kvm import RUN_SNP_GPA, ExitReason, SevCommand
from snpcerts.errors import FormatError
from snpcerts.host.btf import KERNEL, Btf
from snpcerts.host.claim_report import Observation, Showing

_EXIT: Final = re.compile(r"^#define\s+KVM_EXIT_SNP_REQ_CERTS\s+(\d+)", re.MULTILINE)
_CLAIM: Final = "numbers"
_LIMIT: Final = 4 << 20  # bytes of a header
_COMMAND: Final = "KVM_SEV_SNP_ENABLE_REQ_CERTS"


def observe(
    release: str, *, modules: Path = Path("/lib/modules"), btf: Path = KERNEL
) -> Iterator[Observation]:
    """Yield, for each number, what the headers and the BTF of the kernel ``release`` say about it.

    For a number that the kernel does not show, the observation is "not tried".
    """
    yield _exit_number(release, modules)
    yield from _layout(btf)


def _exit_number(release: str, modules: Path) -> Observation:
    tried = []
    for tree in ("build", "source"):
        header = modules / release / tree / "include" / "uapi" / "linux" / "kvm.h"
        try:
            with header.open(encoding="utf-8", errors="replace") as file:
                found = _EXIT.search(file.read(_LIMIT))
        except OSError:
            continue
        if found is not None:
            detail = f"KVM_EXIT_SNP_REQ_CERTS is {found[1]} in {header}"
            return _compared("header-exit-number", detail, int(found[1]), ExitReason.SNP_REQ_CERTS)
        tried.append(str(header))
    why = (
        f"{tried[0]} does not define KVM_EXIT_SNP_REQ_CERTS"
        if tried
        else f"the headers of {release} are not installed"
    )
    return Observation("header-exit-number", _CLAIM, Showing.NOT_TRIED, why)


def _layout(folder: Path) -> Iterator[Observation]:
    try:
        types = Btf.of_kernel("kvm", folder)
    except (OSError, FormatError) as error:
        why = str(error.strerror) if isinstance(error, OSError) else str(error)
        for name in ("btf-kvm-run", "btf-command"):
            yield Observation(name, _CLAIM, Showing.NOT_TRIED, f"{folder}/vmlinux: {why}")
        return
    offset = types.offset_of("kvm_run", "snp_req_certs")
    if offset is None:
        yield _missing("btf-kvm-run", "kvm_run.snp_req_certs")
    else:
        detail = f"kvm_run.snp_req_certs is at offset {offset}"
        yield _compared("btf-kvm-run", detail, offset, RUN_SNP_GPA)
    command = types.constant(_COMMAND)
    if command is None:
        yield _missing("btf-command", _COMMAND)
    else:
        detail = f"{_COMMAND} is {command}"
        yield _compared("btf-command", detail, command, SevCommand.SNP_ENABLE_REQ_CERTS)


def _missing(name: str, what: str) -> Observation:
    why = f"the kernel's BTF does not contain {what}: the kernel is too old, or kvm is not loaded"
    return Observation(name, _CLAIM, Showing.NOT_TRIED, why)


def _compared(name: str, detail: str, found: int, expected: int) -> Observation:
    if found == expected:
        return Observation(name, _CLAIM, Showing.SEEN, detail)
    return Observation(name, _CLAIM, Showing.DIFFERS, f"{detail}, expected {expected}")
