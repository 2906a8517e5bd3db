# SPDX-License-Identifier: Apache-2.0
"""The options that all host commands share, which override the configuration."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snpcerts.cli.host.host_source import source_of_host
from snpcerts.cli.host.output import show_progress
from snpcerts.cli.product_option import product_option
from snpcerts.cli.say import present
from snpcerts.cli.source_options import SourceOptions, anchors_of, source_options_of_host
from snpcerts.errors import SnpCertsError, UsageError

if TYPE_CHECKING:
    from snpcerts.abi.product import Product
    from snpcerts.host.agent import Agent
    from snpcerts.host.agent_trace import AgentTrace
    from snpcerts.host.announce import BackgroundAnnouncer
    from snpcerts.host.config import Config
    from snpcerts.host.event import Listener
    from snpcerts.host.file_state import FileState
    from snpcerts.host.host_firmware import HostFirmware, SevDriver
    from snpcerts.host.plan import Plan
    from snpcerts.host.sev import Sev
    from snpcerts.kds.source import CertificateSource

_OPTIONS = (
    click.option(
        "--config",
        "config_path",
        metavar="FILE",
        envvar="SNPCERTS_CONFIG",
        help="Configuration file. [default: /etc/snpcerts.toml, if it exists]",
    ),
    click.option(
        "--file",
        "file_path",
        metavar="FILE",
        help=(
            "Use only this certificate file. [default: the certificate files in the "
            "configuration, or /var/lib/snpcerts/certs.bin if it names none]"
        ),
    ),
    click.option(
        "--kind",
        type=click.Choice(["vcek", "vlek"]),
        help=(
            "With --file: the kind of key that the file's certificates are for. [default: the "
            "file's kind in the configuration, or vcek if the configuration does not name the file]"
        ),
    ),
    source_options_of_host,
    product_option("[default: the processor's product]"),
    click.option(
        "--vlek-certs",
        metavar="DIR",
        help="Directory of stored VLEK certificates. [default: /var/lib/snpcerts/vlek]",
    ),
)


FORCE = click.option(
    "--force", is_flag=True, help="Also replace a file whose content is not a certificate table."
)


def with_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the host options to a command, which gets them as one :class:`Host`."""

    @functools.wraps(function)
    def call(
        config_path: str | None,
        file_path: str | None,
        kind: str | None,
        product: Product | None,
        vlek_certs: str | None,
        *,
        server: SourceOptions,
        **others: Any,
    ) -> Any:
        if file_path == "":
            raise UsageError(
                "--file: expected a path, found an empty string",
                hint="give the path of the certificate file",
            )
        if kind is not None and file_path is None:
            raise UsageError("--kind can only be used with --file")
        chosen = {
            "file": file_path and os.path.abspath(file_path),
            "kind": kind,
            "cache": server.cache,
            "product": product,
            "vlek_certs": vlek_certs,
        }
        with contextlib.ExitStack() as stack:
            return function(Host(config_path, chosen, server, stack), **others)

    for option in reversed(_OPTIONS):
        call = option(call)
    return call


class Host:
    """This host, as the options and the configuration file describe it."""

    def __init__(
        self,
        config_path: str | None,
        chosen: dict[str, Any],
        server: SourceOptions,
        stack: contextlib.ExitStack,
    ) -> None:
        self._config_path = config_path
        self._chosen = chosen
        self._server = server
        self._stack = stack
        self._source: CertificateSource | None = None
        self._device: Sev | None = None
        self._announcer: BackgroundAnnouncer | None = None

    def config(self) -> Config:
        """Return the configuration, with the options applied."""
        from dataclasses import replace

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
            if path is not None:
                changes["memory"] = config.memory_path  # not the one beside --file's file
        server = self._server
        if server.url is not None:
            changes["kds_url"] = server.url
        if server.offline:
            changes |= {"offline": True, "kds_url": None}
        elif config.offline:
            changes["kds_url"] = None
        if server.anchors:
            changes["anchors"] = server.anchors
        if chosen["product"] is not None:
            changes["product"] = chosen["product"]
        for option, name in (("cache", "cache"), ("vlek_certs", "vlek_certificates")):
            if chosen[option] is not None:
                changes[name] = Path(chosen[option]).absolute()
        return replace(config, **changes)

    def firmware(self, config: Config, trace: AgentTrace | None = None) -> HostFirmware:
        """Open ``/dev/sev`` and return the firmware behind it. With ``trace``, record the firmware
        commands in that timeline.
        """
        from snpcerts.host.host_firmware import HostFirmware
        from snpcerts.host.host_processor import product_of_host
        from snpcerts.host.key_memory import Memory, MemoryFile
        from snpcerts.host.sev import Sev

        if self._device is None:
            self._device = self._stack.enter_context(Sev())
        product = config.product or product_of_host()
        store = MemoryFile(config.memory_path, product, lock_wait=config.lock_wait)
        device: SevDriver = self._device if trace is None else trace.driver(self._device)
        return HostFirmware(device, product, lambda chip: Memory(store, chip))

    def agent(
        self,
        listener: Listener,
        *,
        progress: bool = True,
        force: bool = False,
        trace: AgentTrace | None = None,
    ) -> Agent:
        """Read the configuration and create the agent. With ``trace``, record the agent's work in
        that timeline.
        """
        from snpcerts.certfile import system
        from snpcerts.certfile.span import timed
        from snpcerts.endorsement.judge import ChipJudge
        from snpcerts.host.agent import Agent
        from snpcerts.host.event import Event, EventKind
        from snpcerts.host.table_cache import TableCache
        from snpcerts.host.vlek_store import VlekStore

        config = self.config()
        firmware = self.firmware(config, trace)
        performer = system.perform if trace is None else timed(trace.span)
        anchors = anchors_of(config.anchors)
        source = source_of_host(config, anchors, progress=progress)
        self._source = source

        def observe(result: str, seconds: float) -> None:
            fields: dict[str, str | float] = {"result": result, "seconds": round(seconds, 6)}
            listener(Event(EventKind.FETCHED, f"asked: {result}", fields=fields))

        table_cache = TableCache(
            ChipJudge(
                firmware.product,
                firmware.hwid,
                anchors,
                functools.partial(source.known_crl, firmware.product),
            ),
            source,
            VlekStore(config.vlek_certificates),
            observe=observe,
        )
        return Agent(
            config,
            firmware,
            table_cache,
            listener=listener,
            performer=performer,
            force=force,
            during=(lambda: show_progress("waiting for the locks and the firmware"))
            if progress
            else contextlib.nullcontext,
        )

    def kds_requests(self) -> dict[str, int]:
        """Return how many requests to the key server this process has made, by result."""
        client = None if self._source is None else self._source.client
        return {} if client is None else dict(client.results)

    def announce(
        self,
        agent: Agent,
        file_states: Sequence[FileState] | None = None,
        *,
        observe: Callable[[str], None] | None = None,
        wait: bool = False,
    ) -> None:
        """Announce this host's state to the configured mirror, in the background. Never raises.

        If ``file_states`` is None, read the states from the files. With ``wait``, return only when
        the mirror has the announcement, or after a few seconds.
        """
        if agent.config.mirror is None:
            return
        from snpcerts.host.announce import Announcer, BackgroundAnnouncer, announcement_of

        if self._announcer is None or self._announcer.mirror != agent.config.mirror:
            self._announcer = BackgroundAnnouncer(
                Announcer(agent.config.mirror), agent.tell, observe or (lambda _: None)
            )
        try:
            seen = agent.read_files() if file_states is None else file_states
            announcement = announcement_of(agent.firmware, seen, agent.config.mirror.name)
        except SnpCertsError as error:
            self._announcer.note_failure(str(error), error.code)
            return
        self._announcer.announce(announcement)
        if wait:
            self._announcer.finish()

    def wait_for_mirror(self, agent: Agent, plan: Plan, patience: float) -> None:
        """Wait until the configured mirror has the certificates that ``plan`` will fetch.

        Raises the same errors as :func:`snpcerts.host.mirror_wait.wait_for_mirror`, and
        :class:`UsageError` if no mirror is configured.
        """
        from snpcerts.host.announce import Announcer, announcement_of
        from snpcerts.host.mirror_wait import wait_for_mirror

        config = agent.config
        if config.mirror is None:
            raise UsageError(
                "--wait-for-mirror: the configuration names no mirror",
                hint="set url in the [mirror] section of the configuration",
            )
        announcement = announcement_of(agent.firmware, agent.read_files(), config.mirror.name)
        wait_for_mirror(
            Announcer(config.mirror),
            announcement,
            plan.fetch,
            patience,
            notice=lambda text: present(f"snpcerts: {text}", err=True),
        )
