# SPDX-License-Identifier: Apache-2.0
"""What the headers of released kernels say, according to a compiler.

``python -m tests.kernel.headers`` writes ``facts.json`` anew from the headers that
``fetch.sh`` has fetched. The headers for programs are included as they are. Structures that
only the kernel has (GHCB, guest messages) are cut out of its own headers, by name.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from . import claims

FACTS: Final = Path(__file__).with_name("facts.json")
_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
FETCHED: Final = Path(os.environ.get("SNPCERTS_KERNEL") or _CACHE / "snpcerts" / "kernel")
SERIES: Final = ("7.2", "7.3")

_PRELUDE: Final = """
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
"""
_USER: Final = """
#include <linux/ioctl.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <linux/psp-sev.h>
#include <linux/sev-guest.h>
#include <asm/svm.h>
#include <asm/unistd.h>
#include <linux/aio_abi.h>
#include <linux/audit.h>
#include <linux/falloc.h>
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/filter.h>
#include <linux/fuse.h>
#include <linux/inotify.h>
#include <linux/major.h>
#include <linux/mman.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/stat.h>
#include <linux/uio.h>
#include <linux/userfaultfd.h>
#define IN_CLOSE (IN_CLOSE_WRITE | IN_CLOSE_NOWRITE)
"""
# MASK gives the bits that a bit field has in the 32-bit word (or the byte) at an offset.
_MASK: Final = """
#define MASK(type, at, field) ({ union { type s; unsigned char b[sizeof(type)]; } u; \\
	unsigned word = 0; memset(&u, 0, sizeof u); u.s.field = ~0; \\
	memcpy(&word, u.b + (at), 4 < sizeof(type) - (at) ? 4 : 1); word; })
"""
# Definitions that the parts cut out of the kernel's own headers need.
_KERNEL: Final = """
typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64;
#define __packed __attribute__((packed))
#define BIT_ULL(n) (1ull << (n))
#define BIT(n) (1ul << (n))
#define PAGE_SIZE 4096ul
"""
# Structures, enums and macros cut out of the kernel's own headers.
_CUT: Final[Mapping[str, Sequence[str]]] = {
    "linux/psp-sev.h": (
        "SEV_FW_BLOB_MAX_SIZE",
        "SNP_X86_SHUTDOWN_SUPPORTED",
        "SNP_VERIFY_MITIGATION_SUPPORTED",
    ),
    "asm/msr-index.h": ("MSR_*",),
    "asm/sev-common.h": (
        "GHCB_DATA_LOW",
        "GHCB_MSR_*",
        "GHCB_HV_*",
        "GHCB_ERR_*",
        "VMGEXIT_PSC_*",
        "struct psc_hdr",
        "struct psc_entry",
    ),
    "asm/svm.h": ("struct ghcb_save_area", "GHCB_SHARED_BUF_SIZE", "struct ghcb"),
    "asm/sev.h": (
        "MAX_AUTHTAG_LEN",
        "AUTHTAG_LEN",
        "AAD_LEN",
        "MSG_HDR_VER",
        "VMPCK_KEY_LEN",
        "enum msg_type",
        "enum aead_algo",
        "struct snp_guest_msg_hdr",
        "struct snp_guest_msg",
        "struct secrets_os_area",
        "struct snp_secrets_page",
    ),
}


class HeadersError(Exception):
    """The headers lack something that this project names."""


def releases() -> dict[str, Path]:
    """The fetched headers by version, oldest first; the newest of each series."""
    found = {
        each.name: each for each in (FETCHED / "headers").glob("*") if (each / "complete").exists()
    }
    newest: dict[str, str] = {}
    for version in sorted(found, key=_order):
        newest[".".join(version.split(".")[:2])] = version
    return {version: found[version] for version in newest.values()}


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def user_headers(headers: Path) -> list[str]:
    """The compiler options that make a program include these headers, not the machine's."""
    user = headers / "user" / "usr" / "include"
    return ["-isystem", str(user / "x86_64-linux-gnu"), "-isystem", str(user)]


def values(headers: Path, expressions: Iterable[str]) -> dict[str, int]:
    """The value of each expression, according to a compiler with these headers.

    Raises :class:`HeadersError`, which names the expressions that do not compile.
    """
    flags = user_headers(headers)
    # One program includes the headers for programs and the parts cut out of the kernel's own.
    return compiled(_PRELUDE + _USER + _KERNEL + _cut(headers) + _MASK, expressions, flags)


def compiled(source: str, expressions: Iterable[str], flags: Sequence[str]) -> dict[str, int]:
    """Compile a program of ``source`` and the expressions; return the value of each expression."""
    wanted = list(expressions)
    lines = source.count("\n")
    body = "".join(f"P({each});\n" for each in wanted)
    text = f'{source}#define P(e) printf("%llu\\n", (unsigned long long)(e))\nint main(void){{\n'
    with tempfile.TemporaryDirectory() as folder:
        file, program = Path(folder, "facts.c"), Path(folder, "facts")
        file.write_text(f"{text}{body}return 0; }}\n", encoding="utf-8")
        argv = ["gcc", "-w", "-fmax-errors=0", *flags, "-o", str(program), str(file)]
        made = subprocess.run(argv, capture_output=True, text=True)
        if made.returncode:
            bad = {int(line) for line in re.findall(r"facts\.c:(\d+):\d+: error", made.stderr)}
            names = [each for at, each in enumerate(wanted, lines + 3) if at in bad]
            raise HeadersError(f"not in these headers: {', '.join(names) or made.stderr[:2000]}")
        printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return dict(zip(wanted, map(int, printed.split()), strict=True))


def _cut(headers: Path) -> str:
    (common,) = (headers / "kernel" / "usr" / "src").glob("linux-headers-*-common")
    parts = []
    release = headers.name
    for name, what in _CUT.items():
        root = common / ("include" if name.startswith("linux/") else "arch/x86/include")
        text = (root / name).read_text(encoding="utf-8")
        parts += [_definition(text, each, name) for each in what if claims.is_in(each, release)]
    return "\n".join(parts)


def _definition(text: str, what: str, where: str) -> str:
    if " " in what:
        found = re.search(rf"^{what} {{\n.*?^}}[^;\n]*;$", text, re.M | re.S)
        if found is None:
            raise HeadersError(f"{where} has no {what}")
        return found[0]
    pattern = re.escape(what).replace(r"\*", r"\w*")
    macros = re.findall(rf"^#define\s+{pattern}[ \t]+(?:[^\n]*\\\n)*[^\n]*$", text, re.M)
    if not macros:
        raise HeadersError(f"{where} has no {what}")
    return "\n".join(macros)


def native_layout() -> dict[str, int]:
    """The layout of the structures in native/kvm_abi.h, according to a compiler."""
    return compiled(f'{_PRELUDE}#include "{claims.NATIVE}"\n', claims.NATIVE_LAYOUT, [])


def expressions(release: str) -> list[str]:
    """The expressions that are compared with a release."""
    return sorted({*claims.claims_of(release), *claims.NATIVE_LAYOUT})


def facts() -> dict[str, dict[str, int]]:
    """The recorded facts: expression to value, by release."""
    found: dict[str, dict[str, int]] = json.loads(FACTS.read_text(encoding="utf-8"))["releases"]
    return found


def main() -> int:
    """Record what the fetched headers say."""
    found = releases()
    if not found:
        print("no headers: run tests/kernel/fetch.sh", file=sys.stderr)
        return 1
    record = {version: values(path, expressions(version)) for version, path in found.items()}
    about = "Recorded by python -m tests.kernel.headers from Debian's packages of these versions"
    text = json.dumps({"about": about, "releases": record}, indent=1)
    FACTS.write_text(text + "\n", encoding="utf-8")
    print(f"{FACTS.name}: {len(record[max(record)])} facts each for {', '.join(record)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
