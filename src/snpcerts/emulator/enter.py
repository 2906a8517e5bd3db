# SPDX-License-Identifier: Apache-2.0
"""Becoming a program on an emulated machine, with the machine's server started if need be."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from snpcerts.abi.kvm import ExitReason
from snpcerts.abi.product import Product
from snpcerts.emulator.firmware_choices import FirmwareChoices
from snpcerts.emulator.frontdoor import control, launch, seccomp
from snpcerts.emulator.guest_script import GuestScript
from snpcerts.emulator.home import PlatformHome
from snpcerts.errors import RefusedError, RetryLaterError, SnpCertsError

PATIENCE: Final = 30.0  # seconds for a server or a VM to be there
_PAUSE: Final = 0.02


def throw_away(product: Product | None, choices: FirmwareChoices | None = None) -> PlatformHome:
    """A platform of its own for one command, in a temporary directory."""
    home = PlatformHome(Path(tempfile.mkdtemp(prefix="snpcerts-platform-")), throw_away=True)
    home.prepare(product, choices)
    return home


def ask(home: PlatformHome, message: Mapping[str, object]) -> dict[str, Any]:
    """One question to the platform's server, which is started if it is not there."""
    with contextlib.closing(_connect(home)) as peer:
        control.send(peer, message)
        received = control.receive(peer)
    if received is None:
        raise RefusedError(f"the server of {home.path} hung up", hint=f"see {home.log}")
    answer, _ = received
    if "error" in answer:
        raise RefusedError(str(answer["error"]))
    return answer


def become_host_program(
    home: PlatformHome,
    argv: Sequence[str],
    script: GuestScript,
    exit_number: int = ExitReason.SNP_REQ_CERTS,
) -> NoReturn:
    """Replace this process by ``argv``, with ``/dev/sev`` and ``/dev/kvm`` of the platform.

    ``exit_number`` is what its kernel calls KVM_EXIT_SNP_REQ_CERTS.
    """
    hello = {"ask": "host", "guest": script.to_json(), "exit_number": int(exit_number)}
    _become(home, argv, hello)


def become_guest_program(home: PlatformHome, argv: Sequence[str], vm: str | None) -> NoReturn:
    """Replace this process by ``argv``, with ``/dev/sev-guest`` of a VM."""
    _become(home, argv, {"ask": "guest", "vm": vm})


def host_program(home: PlatformHome, argv: Sequence[str], script: GuestScript) -> list[str]:
    """The command line of a process that becomes ``argv`` on the platform's host."""
    words = [sys.executable, "-P", "-m", __name__, str(home.path), json.dumps(script.to_json())]
    return [*words, *argv]


def start_reference_vm(home: PlatformHome, certs: str) -> str:
    """Start the built-in VMM, which serves the file ``certs``; return its VM's name.

    The VMM is a process of its own and ends with the calling one.
    """
    program = [sys.executable, "-P", "-m", "snpcerts.emulator.vmm_program", certs]
    words = host_program(home, program, GuestScript(serve=True))
    vmm = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        for vm in ask(home, {"ask": "status"})["vms"]:
            if vm["pid"] == vmm.pid and vm["serves"]:
                return str(vm["name"])
        if vmm.poll() is not None:
            raise RefusedError(f"the built-in VMM ended with exit code {vmm.returncode}")
        time.sleep(_PAUSE)
    vmm.kill()
    raise RetryLaterError(f"the built-in VMM has no VM after {PATIENCE:g} s", hint="try again")


def _become(home: PlatformHome, argv: Sequence[str], hello: Mapping[str, object]) -> NoReturn:
    seccomp.check()
    launch.enter(argv, _connect(home), hello)


def _connect(home: PlatformHome) -> Any:
    for _ in range(3):  # the server may be on its way out when we come
        with contextlib.suppress(RefusedError):
            return control.connect(home.control)
        _start_server(home)
    return control.connect(home.control)


def _start_server(home: PlatformHome) -> None:
    words = [sys.executable, "-P", "-m", "snpcerts.emulator.server", str(home.path)]
    with _log(home) as log:
        server = subprocess.Popen(
            [*words, "--throw-away"] if home.throw_away else words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is for the program
        )
    said = ""
    if server.stdout is not None:
        with server.stdout as out:
            said = out.readline().strip()
    if said != "ready" and not control_is_up(home):
        raise RefusedError(f"no emulated machine: {said or 'its server ended'}", hint=str(home.log))


def control_is_up(home: PlatformHome) -> bool:
    """Whether a server listens, perhaps one that another command has just started."""
    try:
        control.connect(home.control).close()
    except SnpCertsError:
        return False
    return True


@contextlib.contextmanager
def _log(home: PlatformHome) -> Iterator[int]:
    fd = os.open(home.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _main(arguments: Sequence[str]) -> int:
    directory, script, *argv = arguments
    home = PlatformHome(Path(directory))
    try:
        become_host_program(home, argv, GuestScript.from_json(json.loads(script)))
    except SnpCertsError as error:
        print(f"snpcerts: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
