# SPDX-License-Identifier: Apache-2.0
"""Checks whether this host can serve certificates.

The result has one line for each requirement. If a requirement is not met, the line says what to do.

Sources: Linux ``Documentation/virt/kvm/x86/amd-memory-encryption.rst`` for what KVM needs, fcntl(2)
for open-file-description locks, proc_pid_mountinfo(5).
"""

from __future__ import annotations

import enum
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snpcerts.certfile import trusted_path
from snpcerts.certfile.lock_check import lock_problem
from snpcerts.certfile.writer import Strategy
from snpcerts.errors import SnpCertsError
from snpcerts.host import kernel_faults
from snpcerts.host.config import Config, FileConfig
from snpcerts.host.host_firmware import HostFirmware
from snpcerts.host.ownership import differences, group_of
from snpcerts.printable import printable

# File systems on which an exclusive lock might not exclude processes on other machines.
_NETWORK: Final = frozenset(("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "fuse.sshfs"))
_FIRST_KERNEL: Final = (7, 0)


class Severity(enum.Enum):
    """The possible results of a check, in order of severity."""

    PASS = "pass"  # noqa: S105 (no password)
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: its subject, what was found, and what to do."""

    what: str
    outcome: Severity
    found: str
    to_do: str = ""

    def __str__(self) -> str:
        to_do = f"; {self.to_do}" if self.to_do else ""
        return printable(f"{self.outcome.value:<4}  {self.what}: {self.found}{to_do}")

    def to_json(self) -> dict[str, str]:
        """Return the finding as JSON values."""
        return {
            "check": self.what,
            "outcome": self.outcome.value,
            "found": self.found,
            "to_do": self.to_do,
        }


def kernel(release: str) -> Finding:
    """Check the kernel's release. KVM's own answer counts more, because distributions backport
    features.
    """
    match = re.match(r"(\d+)\.(\d+)", release)
    if match is not None and (int(match[1]), int(match[2])) >= _FIRST_KERNEL:
        return Finding("kernel", Severity.PASS, release)
    return Finding(
        "kernel",
        Severity.WARN,
        f"{release} is too old: KVM cannot request certificates before Linux 7.0",
        "see 'KVM certificate requests' below, because your distribution may have backported this",
    )


def faults(release: str) -> Iterator[Finding]:
    """Yield a warning for each known fault of the kernel ``release``.

    They are only warnings, because a distribution may have backported the fix.
    """
    for each in kernel_faults.known(release):
        yield Finding(
            f"kernel fault {each.name}",
            Severity.WARN,
            f"{release}: {each.what} (known as of {kernel_faults.AS_OF}; source: {each.source})",
            f"fixed in {each.fixed_in}; your distribution may have backported the fix",
        )


def kvm(supports: Callable[[int], bool], path: str = "/dev/kvm") -> Finding:
    """Check that KVM can request certificates. ``supports`` takes an open ``/dev/kvm``."""
    what = "KVM certificate requests"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        to_do = "load kvm_amd" if isinstance(error, FileNotFoundError) else "run this as root"
        return Finding(what, Severity.FAIL, f"{path}: {error.strerror}", to_do)
    try:
        if supports(fd):
            return Finding(what, Severity.PASS, "KVM_X86_SEV_SNP_REQ_CERTS is 1")
    except OSError as error:
        return Finding(
            what, Severity.FAIL, f"{path}: {error.strerror}", "check that this is KVM's device"
        )
    finally:
        os.close(fd)
    return Finding(
        what,
        Severity.FAIL,
        "KVM_X86_SEV_SNP_REQ_CERTS is missing or 0",
        (
            "enable SNP in the BIOS setup (SEV-SNP, SMEE, RMP table), and "
            "load kvm_amd with sev_snp=1 on Linux 7.0 or later"
        ),
    )


def firmware(open_firmware: Callable[[], HostFirmware]) -> Finding:
    """Check that ``/dev/sev`` answers and SNP is initialised."""
    what = "/dev/sev"
    try:
        found = open_firmware()
        state = found.state()
    except SnpCertsError as error:
        return Finding(what, Severity.FAIL, error.message, error.hint or "")
    text = f"{found.product.value}, firmware {state.version}, reported TCB {state.reported}"
    if not state.initialised:
        return Finding(
            what,
            Severity.FAIL,
            f"{text}, but SNP is not initialised",
            "load kvm_amd with sev_snp=1",
        )
    return Finding(what, Severity.PASS, text)


def files(config: Config) -> Iterator[Finding]:
    """Check the directory, the locks and the permissions of every certificate file."""
    for folder in dict.fromkeys(os.path.dirname(os.path.realpath(f.path)) for f in config.files):
        yield from _directory(folder)
    for file in config.files:
        yield from _way(file.path)
        yield _file(file)


def cache(folder: Path) -> Finding:
    """Check that the cache directory exists and is writable, or can be created."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        made = "" if there == folder else ": does not exist yet, and will be created"
        return Finding("cache", Severity.PASS, f"{folder}{made}")
    return Finding(
        "cache",
        Severity.FAIL,
        f"{folder}: not writable",
        "run this as root, or choose another directory with --cache",
    )


def shim(library: Callable[[], str]) -> Finding:
    """Check that the shim of ``snpcerts run`` is installed. ``library`` returns its path or
    raises.
    """
    try:
        return Finding("snpcerts run", Severity.PASS, library())
    except SnpCertsError as error:
        return Finding("snpcerts run", Severity.WARN, error.message, error.hint or "")


def key_server(ask: Callable[[], str]) -> Finding:
    """Check that the key server answers. ``ask`` returns a description of the answer, or raises."""
    try:
        return Finding("key server", Severity.PASS, ask())
    except SnpCertsError as error:
        return Finding("key server", Severity.FAIL, error.message, error.hint or "")


def passed(lines: Sequence[Finding]) -> bool:
    """Whether no check failed. Warnings do not count as failures."""
    return all(line.outcome is not Severity.FAIL for line in lines)


def summary(lines: Sequence[Finding]) -> str:
    """Return one line for people: whether this host can serve certificates."""
    failed = sum(line.outcome is Severity.FAIL for line in lines)
    warnings = sum(line.outcome is Severity.WARN for line in lines)
    counted = f"{failed or 'no'} check{'s' * (failed > 1)} failed"
    if warnings:
        counted += f", {warnings} warning{'s' * (warnings > 1)}"
    return f"{counted}: this host {'cannot' if failed else 'can'} serve certificates"


def _directory(folder: str) -> Iterator[Finding]:
    if not os.path.isdir(folder):
        yield Finding(
            "directory", Severity.FAIL, f"{folder}: no such directory", f"mkdir -p {folder}"
        )
        return
    kind = file_system(folder)
    if kind in _NETWORK:
        yield Finding(
            "file system",
            Severity.FAIL,
            f"{folder} is on {kind}, which other machines may mount and lock",
            "keep certificate files on a local file system: each host has its own key",
        )
    else:
        yield Finding(
            "file system",
            Severity.PASS,
            f"{folder} is on {kind or 'a file system without a name'}",
        )
    try:
        problem = lock_problem(folder)
    except OSError as error:
        yield Finding(
            "locks",
            Severity.FAIL,
            f"cannot create a file in {folder}: {error.strerror}",
            "run this as root, and check the free space and the mount options",
        )
        return
    if problem:
        yield Finding(
            "locks",
            Severity.FAIL,
            f"{folder}: {problem}",
            "use another file system for the certificate file",
        )
    else:
        yield Finding("locks", Severity.PASS, f"{folder}: open-file-description locks work")
    status = os.stat(folder)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield Finding(
            "directory",
            Severity.WARN,
            f"{folder}: other users can write to it ({stat.S_IMODE(status.st_mode):04o})",
            f"chmod go-w {folder}: a user who can write here can replace the file",
        )


def _way(path: str) -> Iterator[Finding]:
    """Yield a finding for each place where other users can redirect ``path`` to another file."""
    try:
        found = list(trusted_path.doubts(path))
    except (SnpCertsError, OSError) as error:
        yield Finding("path", Severity.FAIL, str(error))
        return
    for doubt in found:
        yield Finding(
            "path",
            Severity.FAIL if doubt.refused else Severity.WARN,
            f"{path}: {doubt.place} {doubt.found}",
            (
                "updates refuse to follow this link: use the path of the file itself, or "
                "recreate the link as root"
            )
            if doubt.refused
            else (
                "other users can redirect updates to another file: make root the owner, and "
                "remove write permission for group and others"
            ),
        )


def _file(file: FileConfig) -> Finding:
    what = "certificate file"
    try:
        group_of(file)
        status = os.stat(file.path)
        wrong = differences(file)
    except FileNotFoundError:
        return Finding(what, Severity.PASS, f"{file.path}: not created yet; 'host sync' creates it")
    except OSError as error:
        return Finding(what, Severity.FAIL, f"{file.path}: {error.strerror}", "run this as root")
    except SnpCertsError as error:
        return Finding(what, Severity.FAIL, error.message, error.hint or "")
    if not stat.S_ISREG(status.st_mode):
        return Finding(
            what, Severity.FAIL, f"{file.path}: not a regular file", "move this file away"
        )
    if wrong:
        return Finding(
            what,
            Severity.FAIL,
            f"{file.path}: {', '.join(wrong)}",
            "run 'host sync', which sets the configured group and mode",
        )
    if os.path.ismount(file.path) and file.strategy is not Strategy.IN_PLACE:
        return Finding(
            what, Severity.FAIL, f"{file.path}: a mount point", 'set strategy = "in-place"'
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & stat.S_IROTH:
        return Finding(
            what,
            Severity.WARN,
            f"{file.path}: every user can read it ({mode:04o}), and so lock it and block updates",
            'set mode = "0640", and set group to the group that the VMMs run in',
        )
    return Finding(what, Severity.PASS, f"{file.path}: mode {mode:04o}, group {status.st_gid}")


def file_system(path: str, mounts: str = "/proc/self/mountinfo") -> str:
    """Return the type of the file system that contains ``path``, such as ``ext4``; empty if
    unknown.
    """
    try:
        lines = Path(mounts).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    real, best, kind = os.path.realpath(path), -1, ""
    for line in lines:
        # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
        left, _, right = line.partition(" - ")
        words = left.split()
        if len(words) < 5 or not right:
            continue
        place = re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), words[4])
        inside = real == place or real.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= best:
            best, kind = len(place), right.split()[0]
    return kind
