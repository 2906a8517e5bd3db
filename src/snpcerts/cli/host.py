# SPDX-License-Identifier: Apache-2.0
"""``snpcerts host``: the agent of an SNP host, and the firmware commands it makes safe."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snpcerts.cli.files import read_input
from snpcerts.errors import InputError, SnpCertsError, UsageError

if TYPE_CHECKING:
    from snpcerts.abi.tcb import TcbVersion
    from snpcerts.endorsement.anchors import Anchor
    from snpcerts.host.agent import Agent
    from snpcerts.host.config import Config
    from snpcerts.host.event import Event, Listener
    from snpcerts.host.firmware import HostFirmware
    from snpcerts.host.metrics import Metrics
    from snpcerts.host.plan import Changed, Plan
    from snpcerts.host.sev import Sev
    from snpcerts.kds.source import CertificateSource

_SHORT = {"bl": "bootloader", "tee": "tee", "snp": "snp", "ucode": "microcode", "fmc": "fmc"}


@click.group()
def command() -> None:
    """Keep this host's certificate files in step with its firmware.

    Every command that changes the firmware's key goes: plan, fetch what the new
    key will need, lock and empty the certificate files, firmware, read its
    status again, publish, unlock. Nothing is fetched with a lock held.
    """


_OPTIONS = (
    click.option(
        "--config",
        "config_path",
        metavar="FILE",
        envvar="SNPCERTS_CONFIG",
        help="Configuration. [default: /etc/snpcerts.toml where there is one]",
    ),
    click.option(
        "--file",
        "file_path",
        metavar="FILE",
        help="The one certificate file, instead of the configuration's. "
        "[default: /var/lib/snpcerts/certs.bin]",
    ),
    click.option(
        "--kind",
        type=click.Choice(["vcek", "vlek"]),
        help="With --file: which key's certificates it holds. [default: vcek]",
    ),
    click.option("--kds", metavar="URL", help="Key server or mirror. [default: AMD's]"),
    click.option("--cache", metavar="DIR", help="Cache. [default: /var/cache/snpcerts]"),
    click.option("--offline", is_flag=True, help="Ask no key server; the cache has it or not."),
    click.option(
        "--anchor",
        "anchors",
        metavar="FILE",
        multiple=True,
        help="Trust this root (ARK) instead of AMD's. May be given several times.",
    ),
    click.option(
        "--product",
        type=click.Choice(["milan", "genoa", "turin"]),
        help="[default: what the processor says]",
    ),
    click.option(
        "--vlek-certs",
        metavar="DIR",
        help="VLEK certificates that are kept. [default: /var/lib/snpcerts/vlek]",
    ),
)
_LOG = click.option(
    "--log",
    "log_form",
    type=click.Choice(["text", "json"]),
    default="text",
    help="Form of the log.",
)
_METRICS_FILE = click.option(
    "--metrics-file", metavar="FILE", help="Write Prometheus metrics to FILE after each round."
)


def _with_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say which host, as one :class:`_Host`."""

    @functools.wraps(function)
    def call(
        config_path: str | None,
        file_path: str | None,
        kind: str | None,
        kds: str | None,
        cache: str | None,
        offline: bool,
        anchors: tuple[str, ...],
        product: str | None,
        vlek_certs: str | None,
        **others: Any,
    ) -> Any:
        if file_path == "":
            raise UsageError("--file: is empty", hint="name the certificate file")
        if kind is not None and file_path is None:
            raise UsageError("--kind is for the file that --file names")
        chosen = {
            "file": file_path and os.path.abspath(file_path),
            "kind": kind,
            "kds": kds,
            "cache": cache,
            "offline": offline,
            "anchors": anchors,
            "product": product,
            "vlek_certs": vlek_certs,
        }
        with contextlib.ExitStack() as stack:
            return function(_Host(config_path, chosen, stack), **others)

    for option in reversed(_OPTIONS):
        call = option(call)
    return call


class _Host:
    """This host as the options and the configuration describe it."""

    def __init__(
        self, config_path: str | None, chosen: dict[str, Any], stack: contextlib.ExitStack
    ) -> None:
        self._config_path = config_path
        self._chosen = chosen
        self._stack = stack
        self._source: CertificateSource | None = None
        self._device: Sev | None = None

    def config(self) -> Config:
        """The configuration file, if there is one, with the options laid over it."""
        from dataclasses import replace

        from snpcerts.abi.product import Product
        from snpcerts.endorsement.vek import VekKind
        from snpcerts.host.config import DEFAULT_PATH, Config, FileConfig, load

        path = self._config_path
        if path is None and os.path.exists(DEFAULT_PATH):
            path = DEFAULT_PATH
        config = Config() if path is None else load(path)
        chosen = self._chosen
        changes: dict[str, Any] = {}
        if chosen["file"] is not None:
            kind = VekKind(chosen["kind"] or "vcek")
            same = [file for file in config.files if file.path == chosen["file"]]
            file = same[0] if same and chosen["kind"] is None else FileConfig(chosen["file"], kind)
            changes["files"] = (file,)
        if chosen["kds"] is not None:
            changes["kds_url"] = chosen["kds"]
        if chosen["offline"]:
            if chosen["kds"] is not None:
                raise UsageError("--offline and --kds exclude each other")
            changes |= {"offline": True, "kds_url": None}
        elif config.offline:
            changes["kds_url"] = None
        if chosen["anchors"]:
            changes["anchors"] = chosen["anchors"]
        if chosen["product"] is not None:
            changes["product"] = Product[chosen["product"].upper()]
        for option, name in (("cache", "cache"), ("vlek_certs", "vlek_certificates")):
            if chosen[option] is not None:
                changes[name] = Path(chosen[option]).absolute()
        return replace(config, **changes)

    def firmware(self, config: Config) -> HostFirmware:
        """The open ``/dev/sev``."""
        from snpcerts.host.firmware import HostFirmware
        from snpcerts.host.processor import product_of_host
        from snpcerts.host.sev import Sev

        if self._device is None:
            self._device = self._stack.enter_context(Sev())
        return HostFirmware(self._device, config.product or product_of_host())

    def agent(self, listener: Listener, *, progress: bool = True) -> Agent:
        """The agent; reads the configuration."""
        from snpcerts.host.agent import Agent
        from snpcerts.host.event import Event, EventKind
        from snpcerts.host.judgement import Judge
        from snpcerts.host.stock import Stock
        from snpcerts.host.vlek_store import VlekStore

        config = self.config()
        firmware = self.firmware(config)
        anchors = _anchors(config)
        source = open_source(config, anchors)
        self._source = source

        def observe(result: str) -> None:
            listener(Event(EventKind.FETCHED, f"asked: {result}", fields={"result": result}))

        stock = Stock(
            Judge(firmware.product, firmware.hwid, anchors),
            _Patient(source) if progress else source,
            VlekStore(config.vlek_certificates),
            observe=observe,
        )
        return Agent(config, firmware, stock, listener=listener)

    def kds_requests(self) -> dict[str, int]:
        """Requests to the key server so far, by result."""
        client = None if self._source is None else self._source.client
        return {} if client is None else dict(client.results)


def open_source(
    config: Config, anchors: tuple[Anchor, ...], cache: Path | None = None
) -> CertificateSource:
    """Where certificates come from."""
    from snpcerts.kds.source import open_source

    return open_source(
        cache=cache or config.cache, url=config.kds_url, offline=config.offline, anchors=anchors
    )


def _anchors(config: Config) -> tuple[Anchor, ...]:
    from snpcerts.endorsement.anchors import AMD_ANCHORS, anchor_from_certificate
    from snpcerts.endorsement.certificate import load_certificate

    if not config.anchors:
        return AMD_ANCHORS
    found: list[Anchor] = []
    for path in config.anchors:
        try:
            found.append(anchor_from_certificate(load_certificate(read_input(path), "root")))
        except InputError as error:
            named = error.message if path in error.message else f"{path}: {error.message}"
            raise InputError(named, hint=error.hint) from None
    return tuple(found)


class _Patient:
    """A certificate source that says what it waits for."""

    def __init__(self, source: CertificateSource) -> None:
        self._source = source

    def vcek(self, *words: Any, **named: Any) -> Any:
        with _told("asking for a VCEK certificate"):
            return self._source.vcek(*words, **named)

    def vlek_chain(self, *words: Any, **named: Any) -> Any:
        with _told("asking for the chain of a VLEK"):
            return self._source.vlek_chain(*words, **named)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Say what is being done, once it takes longer than a second."""
    over = threading.Event()
    start = time.monotonic()

    def tell() -> None:
        pause = 1.0
        while not over.wait(pause):
            click.echo(f"{what} ({time.monotonic() - start:.0f} s)", err=True)
            pause = min(2 * pause, 10.0)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def _listener(form: str, *others: Listener) -> Listener:
    """Events to standard output, warnings of a text log to standard error, and to others."""
    from snpcerts.host.log import json_log, text_log

    def to_out(line: str) -> None:
        click.echo(line)

    def to_err(line: str) -> None:
        click.echo(f"snpcerts: {line}", err=True)

    loud, quiet = (
        (json_log(to_out),) * 2 if form == "json" else (text_log(to_err), text_log(to_out))
    )

    def listen(event: Event) -> None:
        (loud if event.kind.loud else quiet)(event)
        for other in others:
            other(event)

    return listen


@command.command()
@_with_host
@click.option("--online", is_flag=True, help="Also ask the key server.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(host: _Host, online: bool, as_json: bool) -> None:
    """Say whether this machine can serve certificates, line by line, and what to do if not.

    Changes nothing. Exit codes: 0 nothing failed, 1 something did.
    """
    from snpcerts.host import check as checks
    from snpcerts.vmm.enable import supports_req_certs

    config = host.config()
    lines = [
        checks.kernel(platform.release()),
        checks.kvm(supports_req_certs),
        checks.firmware(lambda: host.firmware(config)),
        *checks.files(config),
        checks.cache(config.cache),
    ]
    if online:
        lines.append(checks.key_server(lambda: _ask_key_server(config)))
    if as_json:
        click.echo(
            json.dumps(
                {"passed": checks.passed(lines), "checks": [each.to_json() for each in lines]}
            )
        )
    else:
        for line in lines:
            click.echo(str(line))
    if not checks.passed(lines):
        click.get_current_context().exit(1)


def _ask_key_server(config: Config) -> str:
    from snpcerts.host.processor import product_of_host

    if config.offline:
        return "not asked: offline"
    product = config.product or product_of_host()
    # A cache of its own, so that the answer is the key server's.
    with tempfile.TemporaryDirectory(prefix="snpcerts-check-") as folder:
        source = open_source(config, _anchors(config), Path(folder))
        source.vlek_chain(product)
    return f"answered with a trusted chain for {product.value}"


@command.command()
@_with_host
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(host: _Host, as_json: bool) -> None:
    """Show the firmware, what each certificate file holds, and whether they are in step.

    Exit codes: 0 in step, 1 not in step.
    """
    from snpcerts.host.status import status_of

    agent = host.agent(_listener("text"))
    found = status_of(agent.firmware, agent.look())
    click.echo(json.dumps(found.to_json()) if as_json else "\n".join(found.lines()))
    if not found.in_step:
        click.get_current_context().exit(1)


@command.command()
@_with_host
@click.option("--watch", "watching", is_flag=True, help="Go on, and repair whatever drifts.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 86400),
    metavar="S",
    help="Seconds between two looks of --watch. [default: 30]",
)
@_LOG
@_METRICS_FILE
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="With --watch: serve Prometheus metrics on 127.0.0.1:PORT.",
)
def sync(
    host: _Host,
    watching: bool,
    interval: float | None,
    log_form: str,
    metrics_file: str | None,
    metrics_port: int | None,
) -> None:
    """Bring the certificate files in step with the firmware.

    A file that does not match is emptied at once; its certificates are then
    fetched, verified and published. With --watch, until SIGTERM; SIGHUP has the
    configuration read again.

    Exit codes: 0 in step, 1 refused, 3 a certificate cannot be had now.
    """
    if not watching and (interval is not None or metrics_port is not None):
        raise UsageError("--interval and --metrics-port are for --watch")
    config = host.config()
    metrics_file = metrics_file or config.metrics_file
    metrics_port = metrics_port or config.metrics_port
    metrics = _metrics(metrics_file, metrics_port if watching else None)
    listener = _listener(log_form, *([] if metrics is None else [metrics]))
    if watching:
        _watch(host, interval, listener, metrics, metrics_file, metrics_port)
        return
    agent = host.agent(listener)
    done = agent.sync()
    if metrics is not None and metrics_file is not None:
        metrics.seen(agent.look(), host.kds_requests())
        metrics.write(metrics_file)
    if done.problem is not None:
        click.get_current_context().exit(done.problem.exit_code)
    for each in done.before:
        if each.in_step and log_form == "text":
            click.echo(f"{each.file.path}: in step, holds {_held(each.wanted)}")


def _held(wanted: object) -> str:
    from snpcerts.host.wanted import Key

    return f"the certificates of the {wanted}" if isinstance(wanted, Key) else str(wanted)


def _metrics(file: str | None, port: int | None) -> Metrics | None:
    if file is None and port is None:
        return None
    from snpcerts.host.metrics import Metrics

    return Metrics()


def _watch(
    host: _Host,
    interval: float | None,
    listener: Listener,
    metrics: Metrics | None,
    metrics_file: str | None,
    metrics_port: int | None,
) -> None:
    from dataclasses import replace

    from snpcerts.host.event import Event, EventKind
    from snpcerts.host.log import without_repeats
    from snpcerts.host.notify import ServiceManager
    from snpcerts.host.watch import Signals, watch

    once = without_repeats(listener)

    def make_agent() -> Agent:
        agent = host.agent(once, progress=False)
        if interval is not None:
            agent.config = replace(agent.config, interval=interval)
        return agent

    def after_round(agent: Agent) -> None:
        if metrics is None:
            return
        metrics.seen(agent.look(), host.kds_requests())
        if metrics_file is not None:
            try:
                metrics.write(metrics_file)
            except SnpCertsError as error:
                once(Event(EventKind.FAILED, str(error)))

    signals = Signals()
    with contextlib.ExitStack() as stack:
        if metrics is not None and metrics_port is not None:
            stack.callback(metrics.serve(metrics_port))
        stack.enter_context(signals.noted())
        watch(make_agent, signals, manager=ServiceManager(), after_round=after_round)


_CHANGE_OPTIONS = (
    click.option("--dry-run", is_flag=True, help="Print the plan and change nothing."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    click.option(
        "--allow-empty",
        is_flag=True,
        help="Go on without the new certificates; guests get an empty table meanwhile.",
    ),
)


def _changes_firmware(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command that makes a plan: ``function(agent, ...)`` returns it, here it is carried out."""

    @functools.wraps(function)
    def call(host: _Host, dry_run: bool, as_json: bool, allow_empty: bool, **others: Any) -> None:
        agent = host.agent(_no_listener if as_json else _listener("text"))
        plan = function(agent, **others)
        if dry_run:
            click.echo(json.dumps(plan.to_json()) if as_json else "\n".join(plan.lines()))
            return
        if not as_json:
            click.echo("\n".join(plan.lines()))
        _carry_out(agent, plan, allow_empty=allow_empty, as_json=as_json)

    for option in reversed(_CHANGE_OPTIONS):
        call = option(call)
    return _with_host(call)


def _no_listener(event: Event) -> None:
    del event


def _carry_out(agent: Agent, plan: Plan, *, allow_empty: bool, as_json: bool) -> None:
    from snpcerts.host.plan import carry_out, follow_up

    changed = carry_out(agent, plan, allow_empty=allow_empty)
    problem = follow_up(agent, changed)
    if as_json:
        click.echo(json.dumps(_outcome(plan, changed, problem)))
    else:
        section = changed.section
        click.echo(
            f"lock wait {section.waited * 1000:.1f} ms, lock held {section.held * 1000:.1f} ms, "
            f"of which firmware {section.firmware * 1000:.1f} ms"
        )
    if problem is not None:
        raise problem


def _outcome(plan: Plan, changed: Changed, problem: SnpCertsError | None) -> dict[str, object]:
    section = changed.section
    return {
        **plan.to_json(),
        "done": section.refused is None,
        "in_step": problem is None,
        "problem": None if problem is None else problem.message,
        "reported_tcb_now": None if section.state is None else section.state.reported.components(),
        **section.figures(),
    }


@command.command()
@_changes_firmware
def commit(agent: Agent) -> Plan:
    """Commit the running firmware (SNP_COMMIT): the reported TCB becomes the current one.

    Cannot be undone. The signing key changes where the two differed, and a
    loaded VLEK is then dropped.
    """
    from snpcerts.host import plan

    return plan.commit(agent)


@command.command("set-config")
@click.option(
    "--reported-tcb",
    metavar="bl=N,tee=N,snp=N,ucode=N[,fmc=N]",
    help="TCB to report; a component left out stays as it is.",
)
@click.option("--reset", is_flag=True, help="Report the committed TCB again.")
@click.option(
    "--mask-chip-id/--no-mask-chip-id", default=None, help="Leave CHIP_ID out of reports."
)
@click.option("--mask-chip-key/--no-mask-chip-key", default=None, help="Do not sign reports.")
@_changes_firmware
def set_config(
    agent: Agent,
    reported_tcb: str | None,
    reset: bool,
    mask_chip_id: bool | None,
    mask_chip_key: bool | None,
) -> Plan:
    """Set the reported TCB and the masks (SNP_SET_CONFIG).

    What is not named stays as it is. The signing key changes with the reported
    TCB, and a loaded VLEK is dropped.
    """
    from snpcerts.host import plan

    if reset and reported_tcb is not None:
        raise UsageError("--reset and --reported-tcb exclude each other")
    if not reset and reported_tcb is None and mask_chip_id is None and mask_chip_key is None:
        raise UsageError("what is to be set?", hint="give --reported-tcb, --reset or a mask")
    components = {} if reported_tcb is None else _components(reported_tcb)

    def tcb(now: TcbVersion) -> TcbVersion:
        from dataclasses import replace

        if "fmc" in components and now.fmc is None:
            raise UsageError("--reported-tcb fmc: this product's TCB has no FMC")
        return replace(now, **components)

    return plan.set_config(
        agent,
        tcb=None if reset else tcb,
        mask_chip_id=mask_chip_id,
        mask_chip_key=mask_chip_key,
    )


@command.command("load-vlek")
@click.argument("hashstick")
@click.option(
    "--vlek-cert",
    metavar="FILE",
    required=True,
    help="Certificate of that VLEK, DER or PEM; kept for later.",
)
@_changes_firmware
def load_vlek(agent: Agent, hashstick: str, vlek_cert: str) -> Plan:
    """Load a VLEK (SNP_VLEK_LOAD) from HASHSTICK, the 432 bytes that AMD wrapped for this chip.

    From then on guests' reports are signed with the VLEK unless they ask for
    the VCEK by name.
    """
    from snpcerts.host import plan

    return plan.load_vlek(agent, read_input(hashstick), read_input(vlek_cert))


def _components(text: str) -> dict[str, int]:
    """``bl=3,snp=8`` as component names and values."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if name not in _SHORT or not equals or not value.isdecimal() or int(value) > 255:
            raise UsageError(
                f"--reported-tcb {text}: {part!r} is no component",
                hint="as in bl=3,tee=0,snp=8,ucode=115; each 0 to 255",
            )
        if _SHORT[name] in found:
            raise UsageError(f"--reported-tcb {text}: {name} is there twice")
        found[_SHORT[name]] = int(value)
    return found
