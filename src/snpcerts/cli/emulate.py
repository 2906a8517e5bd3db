# SPDX-License-Identifier: Apache-2.0
"""``snpcerts emulate``: run programs on an emulated SNP platform."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from snpcerts.abi.product import Product
from snpcerts.cli.files import make_directory, write_output
from snpcerts.cli.product_option import product_option
from snpcerts.cli.say import say, say_line
from snpcerts.cli.signals import ends_cleanly
from snpcerts.cli.tcb_components import METAVAR, tcb_components
from snpcerts.errors import InputError, UsageError

if TYPE_CHECKING:
    from snpcerts.emulator.machine.home import PlatformHome
    from snpcerts.emulator.psp.choices import FirmwareChoices

_LEVEL = click.IntRange(0, 255)
_PROGRAM = {"ignore_unknown_options": True, "allow_interspersed_args": False}
_door = click.option(
    "--door",
    type=click.Choice(["auto", "namespace", "trap"]),
    default="auto",
    show_default=True,
    envvar="SNPCERTS_DOOR",
    help=(
        "How PROGRAM finds the emulated devices. 'namespace' runs it in its own mount namespace, "
        "which does not slow down the opening of other files. 'trap' intercepts every call that "
        "opens or examines a path. 'auto' uses the namespace if the kernel allows one. server.log "
        "in the platform's directory says which of the two was used and why."
    ),
)


class _PlatformOptions:
    """The options that select the platform. They come before the subcommand."""

    def __init__(self, platform: str | None, product: Product | None, firmware: str | None) -> None:
        self._platform = platform
        self.product = product
        self._firmware = firmware

    def name(self, platform: str) -> None:
        """Select the platform whose directory was given after the subcommand."""
        self._platform = platform

    @property
    def choices(self) -> FirmwareChoices | None:
        from snpcerts.emulator.psp.choices import choices_of

        return None if self._firmware is None else choices_of(self._firmware)

    @contextlib.contextmanager
    def home(self) -> Iterator[PlatformHome]:
        """Yield the platform that --platform names, and create it if it does not exist.

        Without --platform, yield a temporary platform.
        """
        from snpcerts.emulator.machine.enter import throw_away

        with ends_cleanly():
            if self._platform is not None:
                yield self.lasting_home()
                return
            with throw_away(self.product, self.choices) as home:
                yield home

    def lasting_home(self) -> PlatformHome:
        """Return the platform that --platform names. Raises :class:`UsageError` without that
        option.
        """
        from snpcerts.emulator.machine.home import PlatformHome

        if self._platform is None:
            raise UsageError("the option --platform is missing", hint="give --platform DIR")
        home = PlatformHome(Path(self._platform).absolute())
        home.prepare(self.product, self.choices)
        return home


def _named_after(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    """Accept --platform after the subcommand too. Raises :class:`UsageError` if two different
    values are given.
    """
    options = ctx.find_object(_PlatformOptions)
    if value is None or options is None:
        return
    group = ctx
    while group.parent is not None and "platform" not in group.params:
        group = group.parent
    before = group.params.get("platform")
    given = group.get_parameter_source("platform") is ParameterSource.COMMANDLINE
    if given and before != value:
        raise UsageError(f"--platform is given twice: {before} and {value}")
    options.name(value)


_platform = click.option(
    "--platform",
    metavar="DIR",
    expose_value=False,
    callback=_named_after,
    help="Use the machine stored in DIR (the same as --platform before the subcommand).",
)


@click.group()
@click.option(
    "--platform",
    metavar="DIR",
    envvar="SNPCERTS_PLATFORM",
    help=(
        "Use the machine stored in DIR, and create it if it does not exist. [default: a "
        "temporary machine]"
    ),
)
@product_option("[default: milan]")
@click.option(
    "--firmware",
    type=click.Choice(["genoa-1.55.25", "documented", "observed-2022"]),
    help=(
        "What the emulated firmware follows where sources disagree about AMD's firmware: AMD's "
        "published code for Genoa, AMD's document, or observations on a real host. [default: "
        "documented]"
    ),
)
@click.pass_context
def command(
    ctx: click.Context, platform: str | None, product: Product | None, firmware: str | None
) -> None:
    """Run unmodified programs on an emulated SNP platform.

    When a program opens /dev/sev, /dev/kvm or /dev/sev-guest, it gets an emulated device. Commands
    with the same --platform DIR share one machine: its chip, TCBs and running VMs. 'snpcerts
    emulate firmware rows' shows where sources disagree about AMD's firmware.
    """
    ctx.obj = _PlatformOptions(platform, product, firmware)


@command.command(context_settings=_PROGRAM, short_help="Run PROGRAM on the emulated host.")
@_platform
@click.option(
    "--requests",
    type=click.IntRange(0, 10_000_000),
    help=(
        "Number of extended reports that each vCPU of a VM requests before the vCPU ends. "
        "[default: 1]"
    ),
)
@click.option(
    "--pages",
    type=click.IntRange(0, 64),
    help="Size of the certificate buffer in a guest's first request, in pages.",
)
@click.option(
    "--pause",
    type=click.FloatRange(0, 3600),
    default=0.0,
    help="Seconds between a vCPU's requests.",
)
@click.option(
    "--busy-delay",
    type=click.FloatRange(0, 3600),
    default=2.0,
    show_default=True,
    help="Seconds that a guest waits after BUSY before it tries again.",
)
@click.option(
    "--outcomes",
    metavar="FILE",
    help="Append one line of JSON to FILE for each report that a guest requests.",
)
@click.option(
    "--exit-number",
    type=click.Choice(["43", "42"]),
    default="43",
    show_default=True,
    help=(
        "Exit number of KVM_EXIT_SNP_REQ_CERTS: 43 in released kernels, 42 in kernels built "
        "from the patch series as posted."
    ),
)
@click.option(
    "--kernel",
    type=click.Choice(["7.2", "7.3"]),
    default="7.3",
    show_default=True,
    help="Linux release to emulate. Some answers of KVM differ between releases.",
)
@click.option(
    "--serve",
    is_flag=True,
    help="Keep VMs running, so that programs under 'snpcerts emulate guest' can attach to them.",
)
@click.option(
    "--with-guest",
    is_flag=True,
    help=(
        "Like --serve, but PROGRAM also sees /dev/sev-guest, so that PROGRAM can also act as the "
        "guest of its own VM."
    ),
)
@_door
@click.argument("program", nargs=-1, required=True)
@click.pass_obj
def host(
    options: _PlatformOptions,
    requests: int | None,
    pages: int | None,
    pause: float,
    busy_delay: float,
    outcomes: str | None,
    exit_number: str,
    kernel: str,
    serve: bool,
    with_guest: bool,
    door: str,
    program: tuple[str, ...],
) -> None:
    """Run PROGRAM on the emulated host, where it sees /dev/sev and /dev/kvm."""
    from snpcerts.emulator.frontdoor import ways
    from snpcerts.emulator.guest.script import GuestScript
    from snpcerts.emulator.kvm.release import KernelRelease
    from snpcerts.emulator.machine.enter import become_host_program

    serve = serve or with_guest
    if serve and requests is not None:
        raise UsageError("--serve and --with-guest cannot be combined with --requests")
    script = GuestScript(
        requests=1 if requests is None else requests,
        serve=serve,
        pages=pages,
        pause=pause,
        busy_delay=busy_delay,
        outcomes=None if outcomes is None else os.path.abspath(outcomes),
    )
    with options.home() as home:
        become_host_program(
            home,
            program,
            script,
            KernelRelease(kernel, int(exit_number)),
            ways.wanted(door),
            with_guest=with_guest,
        )


@command.command(context_settings=_PROGRAM, short_help="Run PROGRAM in an emulated guest.")
@_platform
@click.option(
    "--vm",
    metavar="NAME",
    help="Run PROGRAM in the guest of this running VM. [default: the only VM whose guest can run "
    "programs]",
)
@click.option(
    "--certs",
    metavar="FILE",
    help="Start a VM for PROGRAM, with a VMM that serves this certificate file.",
)
@click.option(
    "--kernel",
    type=click.Choice(["7.2", "7.3"]),
    help="Linux release of the host on which --certs starts the VM. [default: 7.3]",
)
@_door
@click.argument("program", nargs=-1, required=True)
@click.pass_obj
def guest(
    options: _PlatformOptions,
    vm: str | None,
    certs: str | None,
    kernel: str | None,
    door: str,
    program: tuple[str, ...],
) -> None:
    """Run PROGRAM in an emulated guest, where it sees /dev/sev-guest."""
    from snpcerts.emulator.frontdoor import ways
    from snpcerts.emulator.kvm.release import NEWEST
    from snpcerts.emulator.machine.enter import become_guest_program, start_reference_vm

    if vm is not None and certs is not None:
        raise UsageError("--vm and --certs cannot be combined")
    if certs is None and kernel is not None:
        raise UsageError(
            "--kernel can only be used with --certs",
            hint="omit --kernel: a running VM already has its host's kernel",
        )
    if certs is not None and not os.path.exists(certs):
        raise InputError(f"{certs}: No such file or directory")
    if certs is None:
        become_guest_program(options.lasting_home(), program, vm, ways.wanted(door))
    with options.home() as home:
        vm = start_reference_vm(home, os.path.abspath(certs), kernel or NEWEST.series)
        become_guest_program(home, program, vm, ways.wanted(door))


@command.command(short_help="Write the certificates for the signing key.")
@_platform
@click.argument("directory")
@click.option(
    "--vlek",
    metavar="CSP",
    help="Also write a VLEK's certificates and hashstick, for the cloud provider CSP.",
)
@click.pass_obj
def certificates(options: _PlatformOptions, directory: str, vlek: str | None) -> None:
    """Write the emulated AMD's certificates for the signing key into DIRECTORY.

    The command writes vcek.der, ask.der, ark.der and table.bin. With --vlek it also writes
    vlek.der, asvk.der, table-vlek.bin, and hashstick.bin, which SNP_VLEK_LOAD takes.
    """
    from snpcerts.abi.tcb import TcbVersion
    from snpcerts.emulator.amd.certificates import vcek_of, vlek_of

    home = options.lasting_home()
    firmware, authority = home.firmware(), home.authority()
    status = firmware.snp_platform_status()
    tcb = TcbVersion.unpack(status.reported_tcb, firmware.product.tcb_layout)
    issued = vcek_of(authority, firmware.chip, tcb)
    files = {
        "vcek.der": issued.leaf,
        "ask.der": issued.intermediate,
        "ark.der": issued.root,
        "table.bin": issued.table().encode(),
    }
    if vlek is not None:
        provider = home.provider(vlek)
        of_vlek = vlek_of(authority, provider, tcb)
        files |= {
            "vlek.der": of_vlek.leaf,
            "asvk.der": of_vlek.intermediate,
            "table-vlek.bin": of_vlek.table(vlek=True).encode(),
            "hashstick.bin": provider.hashstick_for(firmware.chip, tcb),
        }
    make_directory(directory)
    for name, data in files.items():
        write_output(os.path.join(directory, name), data)
        say_line(f"{os.path.join(directory, name)}: {len(data)} bytes")


@command.command("key-server", short_help="Run the emulated AMD's key server.")
@_platform
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="TCP port to listen on. [default: a free port]",
)
@click.option(
    "--throttle",
    type=click.FloatRange(0, 3600),
    default=0.0,
    metavar="SECONDS",
    help=(
        "Serve each client address at most one VCEK certificate every SECONDS seconds, as AMD's "
        "server does. [default: no limit]"
    ),
)
@click.option(
    "--throttle-by",
    type=click.Choice(["address", "certificate"]),
    default="address",
    show_default=True,
    help=(
        "What --throttle limits: how often an address gets any VCEK certificate, or how "
        "often it gets the same one."
    ),
)
@click.option(
    "--throttle-lengthens",
    is_flag=True,
    help="Restart the interval of --throttle after each refused request.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="NAME",
    help=(
        "Fault to put into every answer. May be given several times. For a list of the faults, "
        "give a NAME that does not exist."
    ),
)
@click.option(
    "--delay",
    type=click.FloatRange(0, 3600),
    default=5.0,
    metavar="SECONDS",
    help="Seconds that an answer takes if a fault slows it down. [default: 5]",
)
@click.pass_obj
def key_server(
    options: _PlatformOptions,
    port: int,
    throttle: float,
    throttle_by: str,
    throttle_lengthens: bool,
    faults: tuple[str, ...],
    delay: float,
) -> None:
    """Run the emulated AMD's key server on this machine until interrupted.

    The command prints the server's URL, which 'snpcerts kds fetch --kds' takes. The root to trust
    is the ark.der that 'snpcerts emulate certificates' writes. The server's path /stats returns
    request counts in JSON.
    """
    from snpcerts.emulator.amd.key_server_faults import Faults, Throttle, Throttled, faults_of_names
    from snpcerts.emulator.machine.key_server import KeyServer

    fault_plan = Faults(faults_of_names(faults))
    homes = [options.lasting_home()]
    limit = Throttle(throttle, Throttled(throttle_by), throttle_lengthens)
    server = KeyServer.of_homes(homes, faults=fault_plan, throttle=limit, delay=delay, port=port)
    try:
        say_line(server.url)
        server.serve()
    finally:
        server.close()


@command.command()
@_platform
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.pass_obj
def status(options: _PlatformOptions, as_json: bool) -> None:
    """Show the machine: product, firmware, TCBs and running VMs.

    The command also shows which TCBs the current VCEK and VLEK belong to. No interface of real
    firmware reports that.
    """
    from snpcerts.emulator.machine.enter import ask

    home = options.lasting_home()
    answer = ask(home, {"ask": "status"})
    if as_json:
        say(json.dumps(answer))
        return
    say_line(f"{home.path}: emulated {answer['product']} platform")
    say_line(f"  firmware      {answer['version']}, behaves as {answer['firmware']}")
    say_line(f"  chip ID       {answer['chip_id']}")
    _say_tcbs(answer)
    for vm in answer["vms"]:
        serves = "serves programs" if vm["serves"] else "busy with its own requests"
        say_line(f"  VM {vm['name']}, pid {vm['pid']}, on Linux {vm['kernel']}, {serves}")


@command.group(short_help="Change the firmware in ways that no ioctl can.")
def firmware() -> None:
    """Change the emulated firmware in ways that no ioctl can, or list where sources about AMD's
    firmware disagree.
    """


@firmware.command()
@_platform
@click.pass_obj
def reload(options: _PlatformOptions) -> None:
    """Shut the firmware down and initialise it again.

    On a real host, 'modprobe -r kvm_amd' and 'modprobe kvm_amd' do this. The firmware refuses while
    VMs run.
    """
    _order(options, {"do": "reload"})


@command.command()
@_platform
@click.option(
    "--bios",
    metavar=METAVAR,
    default="",
    help="TCB components that the BIOS installs. The others return to their committed values.",
)
@click.option(
    "--version", metavar="MAJOR.MINOR.BUILD", help="Firmware version that the BIOS installs."
)
@click.pass_obj
def reboot(options: _PlatformOptions, bios: str, version: str | None) -> None:
    """Reboot the machine, with a new BIOS if --bios is given.

    The machine loses a loaded VLEK, the masks, a configured reported TCB and an uncommitted update.
    The command fails while VMs run, and if the BIOS has a TCB or version below the committed one.
    """
    order: dict[str, object] = {"do": "reboot", "tcb": _changed_levels(options, "--bios", bios)}
    if version is not None:
        order["version"] = _version_parts(version)
    _order(options, order)


@firmware.command(short_help="Update the running firmware without committing.")
@_platform
@click.option(
    "--current",
    metavar=METAVAR,
    default="",
    help="Components of the new current TCB, as in snp=25,ucode=220.",
)
@click.option("--fmc", type=_LEVEL, help="New FMC level of the current TCB (Turin only).")
@click.option("--bootloader", type=_LEVEL)
@click.option("--tee", type=_LEVEL)
@click.option("--snp", type=_LEVEL)
@click.option("--microcode", type=_LEVEL)
@click.option("--version", "version", metavar="MAJOR.MINOR.BUILD")
@click.option(
    "--mitigations",
    metavar="VECTOR",
    help="Bit vector of the mitigations that the new firmware can verify.",
)
@click.pass_obj
def update(
    options: _PlatformOptions,
    /,
    current: str,
    version: str | None,
    mitigations: str | None,
    **levels: int | None,
) -> None:
    """Update the running firmware without committing: the current TCB changes.

    Components that no option names keep their values. 'snpcerts host commit' commits the update.
    """
    named = {name: level for name, level in levels.items() if level is not None}
    layout = options.lasting_home().firmware().product.tcb_layout
    for name in named:
        if name not in layout.components:
            raise UsageError(f"--{name}: this product's TCB has no component {name}")
    together = _changed_levels(options, "--current", current)
    if twice := named.keys() & together.keys():
        raise UsageError(f"--{min(twice)}: --current already sets this component")
    order: dict[str, object] = {"do": "update", "tcb": {**together, **named}}
    if version is not None:
        order["version"] = _version_parts(version)
    if mitigations is not None:
        order["mitigations"] = _vector("--mitigations", mitigations)
    _order(options, order)


@firmware.command("verify-mitigation", short_help="Have the firmware verify one mitigation.")
@_platform
@click.argument("vector")
@click.pass_obj
def verify_mitigation(options: _PlatformOptions, vector: str) -> None:
    """Tell the firmware to verify the one mitigation whose bit is set in VECTOR.

    On a real host, an operator writes VECTOR to
    /sys/firmware/sev/vulnerabilities/verified_mitigations instead.
    """
    _order(options, {"do": "verify-mitigation", "vector": _vector("VECTOR", vector)})


@firmware.command(short_help="Show where sources disagree about AMD's firmware.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def rows(as_json: bool) -> None:
    """Show where sources disagree about AMD's firmware, and what each choice of --firmware does
    there.
    """
    from snpcerts.emulator.psp.choices import DEFAULT, DEFAULT_REASON, NAMES, ROWS

    table = [
        {
            "choice": row.choice,
            "question": row.question,
            "answers": {
                name: {"answer": row.reading(name).shown, "source": row.reading(name).source}
                for name in NAMES
            },
        }
        for row in ROWS
    ]
    if as_json:
        say(json.dumps({"default": DEFAULT, "reason": DEFAULT_REASON, "rows": table}))
        return
    say_line(f"Default: {DEFAULT}. {DEFAULT_REASON}")
    for row in ROWS:
        say(f"\n{row.question}  [{row.choice}]")
        for name in NAMES:
            reading = row.reading(name)
            say_line(f"  {name:<14} {reading.shown}: {reading.source}")


def _order(options: _PlatformOptions, order: dict[str, object]) -> None:
    """Send a command to the emulated machine, and print its TCBs afterwards."""
    from snpcerts.emulator.machine.enter import ask

    home = options.lasting_home()
    answer = ask(home, {"ask": "firmware", **order})
    say_line(f"{home.path}: done")
    _say_tcbs(answer)


def _say_tcbs(answer: Mapping[str, Any]) -> None:
    """Print the TCBs in a machine's status."""
    from snpcerts.abi.tcb import TcbVersion

    layout = Product(answer["product"]).tcb_layout
    for name in ("current_tcb", "committed_tcb", "reported_tcb", "vcek_tcb", "vlek_tcb"):
        of_key = name.startswith("v")
        shown = f"{name[:4].upper()}'s TCB" if of_key else f"{name.removesuffix('_tcb')} TCB"
        packed = answer[name]
        tcb = TcbVersion.unpack(bytes.fromhex(packed), layout) if packed else "no VLEK is loaded"
        say_line(f"  {shown:<13} {tcb}")


def _changed_levels(options: _PlatformOptions, option: str, text: str) -> dict[str, int]:
    """Return the TCB components in ``text`` and their values. Raises :class:`UsageError` if the
    product's TCB lacks one of them.
    """
    found = tcb_components(option, text)
    layout = options.lasting_home().firmware().product.tcb_layout
    for name in found:
        if name not in layout.components:
            raise UsageError(f"{option}: this product's TCB has no component {name}")
    return found


def _version_parts(text: str) -> list[int]:
    parts = [_integer("--version", part, 10) for part in text.split(".")]
    if len(parts) != 3 or not all(0 <= part <= 255 for part in parts):
        raise UsageError(f"--version {text}: expected three numbers from 0 to 255, as in 1.55.25")
    return parts


def _integer(what: str, text: str, base: int) -> int:
    try:
        return int(text, base)
    except ValueError:
        raise UsageError(f"{what}: expected an integer, found {text!r}") from None


def _vector(what: str, text: str) -> int:
    value = _integer(what, text, 0)
    if not 0 <= value < 1 << 64:
        raise UsageError(f"{what}: expected a 64-bit integer, found {text}")
    return value
