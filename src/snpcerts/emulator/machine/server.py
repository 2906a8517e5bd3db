# SPDX-License-Identifier: Apache-2.0
"""The server process of an emulated machine: it owns the firmware and every VM.

Launchers (:mod:`snpcerts.emulator.machine.enter`) send it the seccomp listeners of the programs
they start. It serves all of them in one loop, and ends after the last program or on SIGTERM.

It is started as ``python -m snpcerts.emulator.machine.server DIRECTORY``. Options: with
``--throw-away`` it removes the directory when it ends; with ``--detached`` it is not a child of the
process that started it; with ``--parent=PID`` it runs until that process, its parent, ends; with
``--commands=FILE`` it appends a JSON line to FILE for each firmware command that concerns keys or
reports.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final

from snpcerts.abi.kvm import SNP_REQ_CERTS_EXITS, ExitReason
from snpcerts.emulator.frontdoor import seccomp
from snpcerts.emulator.frontdoor.control import ControlSocket, Hello
from snpcerts.emulator.frontdoor.door import Door, OpenInfo
from snpcerts.emulator.frontdoor.layout import Places
from snpcerts.emulator.frontdoor.supervisor import Supervisor
from snpcerts.emulator.guest.linux import LinuxGuest
from snpcerts.emulator.guest.script import GuestScript
from snpcerts.emulator.guest.scripted_guests import ScriptedGuests
from snpcerts.emulator.guest.sev_guest_device import SevGuestDevice
from snpcerts.emulator.guest.tsm_reports import MOUNT_POINT, TsmReports
from snpcerts.emulator.kvm.kvm_device import KvmDevice
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.kvm.release import NEWEST, SERIES, KernelRelease
from snpcerts.emulator.machine.detached import leave_parent
from snpcerts.emulator.machine.firmware_order import carry_out
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.emulator.machine.virtual_files import guest_files, host_files, host_inodes
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.emulator.psp.sev_device import SevDevice
from snpcerts.emulator.psp.timed_firmware import TimedCommand, TimedFirmware
from snpcerts.emulator.syscall.device import Caller, Device
from snpcerts.errors import InputError, RefusedError, SnpCertsError
from snpcerts.parent_process import end_with_parent
from snpcerts.printable import printable

log = logging.getLogger(__name__)

# How long to wait without clients, because a launcher may be about to connect.
IDLE_SECONDS: Final = 1.0


class PlatformServer:
    """Serves one platform while it is in use."""

    def __init__(
        self, home: PlatformHome, *, stays: bool = False, commands: IO[str] | None = None
    ) -> None:
        """Create the server. It writes a JSON line to ``commands`` for each firmware command that
        concerns keys or reports.
        """
        self._home = home
        self._stays = stays
        self._asked_to_end = False
        self._commands = commands
        firmware = home.firmware()
        self._platform = Platform(
            firmware if commands is None else TimedFirmware.of(firmware, self._write_command)
        )
        self._saved = self._platform.firmware.state
        self._supervisor = Supervisor()
        self._reports: dict[str, TsmReports] = {}  # by VM
        self._programs = 0
        with home.alone():
            self._control = ControlSocket(home.control, self._hear)
        self._control.attach(self._supervisor)

    def run(self) -> None:
        """Serve until :meth:`end` is called or, unless ``stays`` was set, until there have been no
        clients for :data:`IDLE_SECONDS`.
        """
        busy = time.monotonic()
        try:
            while time.monotonic() - busy < IDLE_SECONDS and not self._asked_to_end:
                self._supervisor.step(IDLE_SECONDS / 4)
                self._save()
                if self._programs or self._control.connected or self._stays:
                    busy = time.monotonic()
        finally:
            self._control.close()
            self._supervisor.close()
            self._save()

    def end(self) -> None:
        """Make :meth:`run` return. Calls from programs that are still running then fail."""
        self._asked_to_end = True

    def _write_command(self, command: TimedCommand) -> None:
        creators = (vm.creator for vm in self._platform.vms.values() if vm.context is command.guest)
        line = {
            "name": command.name,
            "start": command.start,
            "end": command.end,
            "vmm": None if command.guest is None else next(creators, None),
        }
        if self._commands is not None:
            try:
                self._commands.write(json.dumps(line) + "\n")
                self._commands.flush()
            except OSError as error:  # a full disk must not make the command fail
                log.warning("%s: cannot write the command: %s", self._commands.name, error.strerror)

    def _save(self) -> None:
        state = self._platform.firmware.state
        if state is not self._saved:
            self._home.save(self._platform.firmware)
            self._saved = state

    def _hear(self, hello: Hello) -> Mapping[str, object]:
        """Answer one control message. Takes ownership of the message's descriptors."""
        descriptors = list(hello.descriptors)
        try:
            ask = hello.message.get("ask")
            self._supervisor.reap()  # so that the VM of a program that has ended is not listed
            wants_layout = bool(hello.message.get("layout"))
            if descriptors and (wants_layout or ask not in ("host", "guest")):
                raise InputError(f"control message: the request {ask!r} must not carry descriptors")
            if ask == "status":
                return self._status()
            if ask == "firmware":
                return self._carry_out(hello.message)
            if ask == "here":
                return {"ok": True}
            if ask in ("host", "guest"):
                door = self._host(hello.message) if ask == "host" else self._guest(hello.message)
                if wants_layout:
                    return {"ok": True, "layout": door.layout().to_json()}
                return self._let_in(hello, descriptors, door)
            raise InputError(f"control message: unknown request {ask!r}")
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def _carry_out(self, message: Mapping[str, Any]) -> Mapping[str, object]:
        """Carry out an operator's change to the firmware, for which Linux has no ioctl.

        Returns the status after the change.
        """
        try:
            return {**carry_out(self._platform, message), **self._status()}
        finally:
            self._supervisor.refresh()
            self._home.save(self._platform.firmware)
            self._saved = self._platform.firmware.state

    def _let_in(self, hello: Hello, descriptors: list[int], door: Door) -> Mapping[str, object]:
        """Serve a program. The supervisor takes ownership of ``descriptors``."""
        found = hello.message.get("places")
        places = None if found is None else Places.from_json(found)
        expected = 1 if places is None else 1 + places.descriptors
        if len(descriptors) != expected:
            raise InputError(
                f"control message: expected {expected} descriptors, found {len(descriptors)}"
            )
        if not seccomp.is_listener(descriptors[0]):
            raise InputError("control message: expected a seccomp listener as the first descriptor")
        if self._supervisor.serves(descriptors[0]):
            raise InputError("control message: the seccomp listener is already in use")
        listener, *namespace = descriptors
        descriptors.clear()
        self._supervisor.add_listener(
            listener, door, self._left, places=places, namespace=namespace
        )
        self._programs += 1
        way, why = (printable(str(hello.message.get(each, ""))) for each in ("way", "why"))
        log.info("program %d: front door uses --door %s (%s)", hello.pid, way, why)
        return {"ok": True}

    def _left(self) -> None:
        self._programs -= 1

    def _status(self) -> Mapping[str, object]:
        firmware = self._platform.firmware
        status, state = firmware.snp_platform_status(), firmware.state
        return {
            "firmware": state.choices.name,
            "version": str(state.version),
            "product": firmware.product.value,
            "chip_id": firmware.chip.chip_id.hex(),
            "current_tcb": status.current_tcb.hex(),
            "committed_tcb": state.committed.pack().hex(),
            "reported_tcb": status.reported_tcb.hex(),
            "vcek_tcb": state.vcek_tcb.pack().hex(),
            "vlek_tcb": None if state.vlek is None else state.vlek.tcb.pack().hex(),
            "programs": self._programs,
            "vms": [
                {
                    "name": vm.name,
                    "pid": vm.creator,
                    "kernel": vm.kernel.series,
                    "serves": _serves(vm.guest),
                }
                for vm in self._platform.vms.values()
            ],
        }

    def _host(self, message: Mapping[str, Any]) -> Door:
        guests = ScriptedGuests(GuestScript.from_json(message.get("guest", {})))
        platform, kernel = self._platform, _kernel(message)
        devices: dict[str, Callable[[OpenInfo], Device]] = {
            "/dev/kvm": lambda _: KvmDevice(platform, guests, kernel),
            "/dev/sev": lambda _: _SavedSevDevice(platform.firmware, self._save),
        }
        if message.get("with_guest") is True:
            devices["/dev/sev-guest"] = lambda _: self._guest_on_host()
        return Door(
            devices,
            host_files(platform.firmware),
            inodes=host_inodes(platform.firmware),
            version=lambda: platform.firmware.state,
        )

    def _guest_on_host(self) -> Device:
        """Open ``/dev/sev-guest`` for a program on the host; ENODEV unless exactly one VM serves
        programs.
        """
        serving = [vm for vm in self._platform.vms.values() if _serves(vm.guest)]
        if len(serving) != 1:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return SevGuestDevice(serving[0])

    def _guest(self, message: Mapping[str, Any]) -> Door:
        vms = self._platform.vms
        name = message.get("vm")
        if name is None:
            serving = [vm.name for vm in vms.values() if _serves(vm.guest)]
            if len(serving) != 1:
                running = ", ".join(serving) or "none"
                raise RefusedError(
                    f"expected one running VM whose guest can run programs, found: {running}",
                    hint=(
                        "name the VM with --vm, or start a VM with 'snpcerts emulate host --serve' "
                        "or 'snpcerts emulate guest --certs FILE'"
                    ),
                )
            name = serving[0]
        if not isinstance(name, str):
            raise InputError(f"vm in the control message: expected a string, found {name!r}")
        vm = vms.get(name)
        if vm is None:
            raise RefusedError(
                f"there is no VM {name!r}", hint="choose a VM that 'snpcerts emulate status' lists"
            )
        reports = self._reports.get(name)
        if reports is None or reports.vm is not vm:
            reports = TsmReports(vm)
            self._reports = {each: of for each, of in self._reports.items() if each in vms}
            self._reports[name] = reports
        return Door(
            {"/dev/sev-guest": lambda _: SevGuestDevice(vm)},
            guest_files(),
            trees={MOUNT_POINT: reports.root},
        )


class _SavedSevDevice(SevDevice):
    """A ``/dev/sev`` that saves the platform's state before each command returns.

    A program that starts later reads the state from the platform's directory.
    """

    __slots__ = ("_save",)

    def __init__(self, firmware: Firmware, save: Callable[[], None]) -> None:
        super().__init__(firmware)
        self._save = save

    def ioctl(self, caller: Caller, request: int, argument: int) -> int:
        """Serve an ioctl as :class:`SevDevice` does, then save the state if it has changed."""
        try:
            return super().ioctl(caller, request, argument)
        finally:
            self._save()


def _kernel(message: Mapping[str, Any]) -> KernelRelease:
    series = message.get("kernel", NEWEST.series)
    if series not in SERIES:
        raise InputError(
            f"kernel in the control message: expected {' or '.join(SERIES)}, found {series!r}"
        )
    return KernelRelease(series, _exit_number(message))


def _exit_number(message: Mapping[str, Any]) -> int:
    number = message.get("exit_number", ExitReason.SNP_REQ_CERTS)
    if not isinstance(number, int) or number not in SNP_REQ_CERTS_EXITS:
        raise InputError(f"exit_number in the control message: expected 43 or 42, found {number!r}")
    return int(number)


def _serves(guest: object) -> bool:
    # A scripted guest is a LinuxGuest too, but does not serve programs.
    return type(guest) is LinuxGuest


def main(arguments: list[str]) -> int:
    """Serve the platform in the directory that ``arguments`` names; print ``ready`` when the server
    listens.
    """
    directory, *options = arguments
    home = PlatformHome(Path(directory))
    parent = next((int(each[9:]) for each in options if each.startswith("--parent=")), None)
    log_path = next((each[11:] for each in options if each.startswith("--commands=")), None)
    if parent is not None:
        end_with_parent(parent, signal.SIGTERM)
    elif "--detached" in options:
        leave_parent()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    # This process keeps a descriptor for each eventfd and memory file of the programs.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        commands = None if log_path is None else open(log_path, "a", encoding="ascii")  # noqa: SIM115 (until the end)
        server = PlatformServer(home, stays=parent is not None, commands=commands)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: server.end())
    except SnpCertsError as error:  # another server may be running, which then owns the platform
        print(error, flush=True)
        return error.exit_code
    try:
        print("ready", flush=True)
        os.close(1)
        os.open(os.devnull, os.O_WRONLY)
        server.run()
    except SnpCertsError as error:
        log.error("%s", error)  # noqa: TRY400 (what was expected and what to do; no trace)
        return error.exit_code
    finally:
        if "--throw-away" in options:
            shutil.rmtree(home.path, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
