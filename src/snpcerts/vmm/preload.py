# SPDX-License-Identifier: Apache-2.0
"""Starts a VMM with the shim, or says why the shim cannot serve it.

The program's dynamic loader preloads the shim (native/shim.c), which intercepts the program's calls
to the C library's ioctl(). A program that has no dynamic loader, uses another C library, or makes
its own system calls would silently run without the shim. This module examines the binary to detect
that.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NoReturn

from snpcerts.abi.cert_table import MAX_SIZE
from snpcerts.certfile.reader import DEFAULT_LOCK_WAIT
from snpcerts.errors import FormatError, InputError, RefusedError
from snpcerts.vmm.elf import MACHINE_X86_64, Elf, read_elf
from snpcerts.vmm.enable import supports_req_certs

DEFAULT_TIMEOUT: Final = round(DEFAULT_LOCK_WAIT * 1000)  # milliseconds
MAX_TIMEOUT: Final = 59_999  # a Linux guest destroys its VMPCK after 60 s of BUSY

# If TELL_EXIT is set, the shim prints EXIT_TOLD once, with the number of the exit that KVM used.
TELL_EXIT: Final = "SNPCERTS_TELL_EXIT"
EXIT_TOLD: Final = "KVM asks for certificates with exit {}"

# Symbolic links are resolved, because AppArmor compares the real path. In the packages, __file__
# goes through a link that is named after Python's version.
_SHIM = Path(__file__).resolve().with_name("libsnpcerts_shim.so")
_LOADER_LIMIT = 30.0  # time limit for the loader to list what it would load, in seconds
_INTERPRETERS = 4  # nested interpreters; the same limit as in Linux
_VERSION_TIME: Final = 10.0  # time limit for a VMM to print its version, in seconds
_FCNTL_SINCE: Final = 52  # the first version of cloud-hypervisor whose vCPU threads may call fcntl
_LINE = 256  # bytes of a script's first line that Linux reads


def shim_library() -> str:
    """Return the path of the shim. Raises :class:`RefusedError` if it is not installed."""
    if not _SHIM.is_file():
        raise RefusedError(
            "the shim is not installed",
            hint=(
                "on Linux for x86-64, install a C compiler (cc), then snpcerts again: the shim "
                "is compiled when snpcerts is installed"
            ),
        )
    if any(character in str(_SHIM) for character in " :"):
        raise RefusedError(
            f"{_SHIM}: LD_PRELOAD cannot name a file with a space or a colon in its path",
            hint="install snpcerts in a directory whose path has neither a space nor a colon",
        )
    return str(_SHIM)


def environment(certs: str, timeout: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that a VMM needs to run with the shim. Libraries that
    ``inherited`` preloads come after the shim.

    ``timeout`` is in milliseconds. A relative ``certs`` is resolved against the working directory.
    """
    before = inherited.get("LD_PRELOAD", "")
    shim = shim_library()
    return {
        "LD_PRELOAD": f"{shim}:{before}" if before else shim,
        "SNPCERTS_CERTS_FILENAME": os.path.abspath(certs),
        "SNPCERTS_CERTS_TIMEOUT": str(timeout),
    }


def become(argv: Sequence[str], variables: Mapping[str, str]) -> NoReturn:
    """Replace this process with ``argv``, which :func:`find_program` has checked."""
    # Python ignores these signals. The program would inherit that.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execvpe(argv[0], list(argv), {**os.environ, **variables})  # noqa: S606 (as asked for)


def sandbox_warnings(argv: Sequence[str], certs: str) -> list[str]:
    """Return a warning if the VMM's own sandbox options would hide the certificate file from the
    shim.

    Raises :class:`RefusedError` for a sandbox whose filter would kill the VMM at its guest's first
    request. cloud-hypervisor's filter for vCPU threads (``vmm/src/seccomp_filters.rs``,
    ``vcpu_thread_rules``) does not allow ``fcntl`` before version 52, so those threads cannot lock
    a file. Later filters allow neither ``poll`` nor ``write``; the shim then prints with other
    calls.
    """
    name, options = os.path.basename(argv[0]), list(argv[1:])
    if name.startswith("cloud-hypervisor"):
        values = [value for option, value in pairwise(options) if option == "--seccomp"]
        values += [each.partition("=")[2] for each in options if each.startswith("--seccomp=")]
        if values[-1:] not in (["false"], ["log"]):
            _refuse_without_fcntl(argv[0])
    root = ""
    for option, value in pairwise(options):
        if option in ("-chroot", "--chroot"):
            root = value
        elif option in ("-run-with", "--run-with"):
            fields = [each for each in value.split(",") if each.startswith("chroot=")]
            root = fields[-1].removeprefix("chroot=") if fields else root
    inside = os.path.join(root, os.path.abspath(certs).lstrip("/"))
    if root and not os.path.exists(inside):
        return [
            (
                f"after a chroot to {root}, the shim will look for the certificate file at "
                f"{inside}, which does not exist. Guests get an empty table until it does: "
                "bind-mount the file's directory there"
            )
        ]
    return []


def _refuse_without_fcntl(program: str) -> None:
    """Raise :class:`RefusedError` unless ``--version`` prints a version of cloud-hypervisor whose
    seccomp filter allows ``fcntl``.
    """
    said = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        argv = [program, "--version"]
        made = subprocess.run(argv, check=False, capture_output=True, timeout=_VERSION_TIME)
        said = made.stdout.decode("ascii", "replace").partition("\n")[0]
    found = re.match(r"cloud-hypervisor v(\d+)\.", said)
    if found is None or int(found[1]) < _FCNTL_SINCE:
        raise RefusedError(
            (
                f"{os.path.basename(program)}: expected version {_FCNTL_SINCE} or later; an older "
                "one does not allow its vCPU threads to lock a file, so the kernel would kill "
                "the VMM when a guest requests certificates"
            ),
            hint="run the VMM with --seccomp false",
        )


def certificate_warnings(certs: str) -> list[str]:
    """Return the reasons why a guest that this user starts now would get no certificates."""
    found: list[str] = []
    try:
        fd = os.open(certs, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        found.append(f"{certs}: {reason}. Guests get an empty table until this is fixed")
    else:
        status = os.fstat(fd)
        os.close(fd)
        if not stat.S_ISREG(status.st_mode):
            found.append(f"{certs}: not a regular file. Guests get an empty table")
        elif status.st_size > MAX_SIZE:
            found.append(f"{certs}: larger than {MAX_SIZE} bytes. Guests get an empty table")
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return [*found, f"/dev/kvm: {error.strerror}"]
    try:
        if not supports_req_certs(kvm):
            found.append(
                "this kernel's KVM does not request certificates (Linux 7.0 does), or "
                "SNP is off. Guests get no certificates"
            )
    except OSError as error:
        found.append(f"/dev/kvm: KVM_X86_SEV_SNP_REQ_CERTS: {error.strerror}")
    finally:
        os.close(kvm)
    return found


def find_program(name: str, variables: Mapping[str, str]) -> list[str]:
    """Find the program ``name``, check that the shim can serve it, and return warnings.

    Raises :class:`InputError` if the program cannot be run, and :class:`RefusedError` if it would
    run without the shim.
    """
    path = shutil.which(name)
    if path is None:
        if "/" in name and os.path.isdir(name):
            raise InputError(f"{name}: expected a program, found a directory")
        if "/" in name and os.path.exists(name):
            raise InputError(f"{name}: this user may not execute the program (permission denied)")
        raise InputError(f"{name}: no such program")
    _refuse_privileged(path)
    interpreter = path
    for _ in range(_INTERPRETERS + 1):
        following = _interpreter_of_script(interpreter)
        if following is None:
            break
        interpreter = following
    else:
        raise InputError(f"{path}: the script needs more than {_INTERPRETERS} nested interpreters")
    elf = _read(path, interpreter)
    _refuse_loaderless(path, elf)
    libraries = _loaded(path, interpreter, elf, variables)
    if interpreter != path:
        return [
            f"{path} is a script; the programs it starts are not checked (a static VMM, for "
            "example, would run without certificates)"
        ]
    if not _imports_ioctl(elf, libraries):
        raise RefusedError(
            (
                f"{path} does not call the C library's ioctl. It makes its own system "
                "calls, as programs in Go do, or it is not a VMM"
            ),
            hint=(
                "put 'snpcerts run' right before the VMM, not before a program that "
                "starts it. If the VMM loads its KVM library at run time, set the "
                "variables that --print-environment prints"
            ),
        )
    return []


def _refuse_privileged(path: str) -> None:
    """Refuse programs that gain privileges, because the loader ignores LD_PRELOAD for them."""
    status = os.stat(path)
    what = None
    if status.st_mode & stat.S_ISUID and status.st_uid != os.getuid():
        what = "is setuid"
    elif status.st_mode & stat.S_ISGID and status.st_gid != os.getgid():
        what = "is setgid"
    elif os.getuid() != 0:
        try:
            os.getxattr(path, "security.capability")
            what = "has file capabilities"
        except OSError:
            pass
    if what is not None:
        raise RefusedError(
            f"{path} {what}, so the loader would ignore the shim",
            hint="copy the program without this privilege, and start the copy as a user who "
            "may use /dev/kvm",
        )


def _interpreter_of_script(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            line = file.read(_LINE)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not line.startswith(b"#!"):
        return None
    words = line[2:].partition(b"\n")[0].split(None, 1)
    if not words:
        raise InputError(f"{path}: the first line names no interpreter")
    return os.fsdecode(words[0])


def _read(path: str, interpreter: str) -> Elf:
    try:
        return read_elf(interpreter)
    except OSError as error:
        raise InputError(f"{interpreter}: {error.strerror}") from None
    except FormatError as error:
        place = path if interpreter == path else f"{interpreter}, the interpreter of {path}"
        raise InputError(f"cannot run {place}: {error}") from None


def _refuse_loaderless(path: str, elf: Elf) -> None:
    if elf.bits != 64 or elf.machine != MACHINE_X86_64:
        raise RefusedError(
            f"{path} is a {elf.bits}-bit program for ELF machine {elf.machine}; the shim is for "
            f"64-bit x86 ({MACHINE_X86_64})"
        )
    if elf.interpreter is None:
        raise RefusedError(
            f"{path} is statically linked, so the shim cannot be preloaded",
            hint="use a dynamically linked build, or a VMM that serves certificates itself",
        )
    if "ld-musl" in elf.interpreter:
        raise RefusedError(
            f"{path} is linked to musl ({elf.interpreter}); the shim is for the GNU C library",
            hint="use a build for the GNU C library",
        )


def _loaded(path: str, program: str, elf: Elf, variables: Mapping[str, str]) -> list[str]:
    """Return the libraries that the program's loader would load besides the shim. Raises an error
    if the loader would not load the shim.
    """
    loader = elf.interpreter or ""
    shim = shim_library()
    try:
        made = subprocess.run(
            [loader, "--list", program],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LOADER_LIMIT,
            check=False,
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot run the program's loader, {loader}: {error}") from None
    except subprocess.TimeoutExpired:
        raise RefusedError(f"{path}: the program's loader, {loader}, timed out") from None
    complaint = made.stderr.decode(errors="replace").strip().replace("\n", "; ")
    if made.returncode != 0:
        raise InputError(
            f"cannot load {path}: {complaint or f'the loader ended with code {made.returncode}'}"
        )
    # "name => /path (0x...)", or "/path (0x...)" for a library given by path.
    lines = [line.split() for line in os.fsdecode(made.stdout).splitlines()]
    found = [
        words[2] if words[1:2] == ["=>"] and len(words) > 2 else words[0]
        for words in lines
        if words
    ]
    if shim not in found:
        reason = complaint or "the loader gives no reason"
        raise RefusedError(f"{path}: the program's loader does not load the shim: {reason}")
    return [each for each in found if each != shim and each.startswith("/")]


def _imports_ioctl(elf: Elf, libraries: Sequence[str]) -> bool:
    if "ioctl" in elf.imports:
        return True
    for library in libraries:
        try:
            if "ioctl" in read_elf(library).imports:
                return True
        except (OSError, FormatError):
            continue
    return False
