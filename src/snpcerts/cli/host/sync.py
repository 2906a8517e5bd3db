# SPDX-License-Identifier: Apache-2.0
"""``snpcerts host sync``: make the certificate files match the signing key, once or
continuously.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from snpcerts.cli.files import open_output
from snpcerts.cli.host.options import FORCE, Host, with_host
from snpcerts.cli.host.output import event_printer
from snpcerts.cli.say import present
from snpcerts.errors import SnpCertsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from snpcerts.host.agent import Agent
    from snpcerts.host.agent_trace import AgentTrace
    from snpcerts.host.event import Listener
    from snpcerts.host.file_state import FileState
    from snpcerts.host.metrics import Metrics

_LOG = click.option(
    "--log",
    "log_form",
    type=click.Choice(["text", "json"]),
    default="text",
    help="Format of the events that the command prints.",
)
_METRICS_FILE = click.option(
    "--metrics-file",
    metavar="FILE",
    help="Write Prometheus metrics to FILE after each check of the certificate files.",
)


@click.command(short_help="Make the certificate files match the signing key.")
@with_host
@click.option(
    "--watch",
    "watching",
    is_flag=True,
    help=(
        "Keep running, and update a certificate file whenever the file no longer matches the "
        "signing key."
    ),
)
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 86400),
    metavar="S",
    help="With --watch: seconds between checks of the files. [default: 30]",
)
@_LOG
@_METRICS_FILE
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="With --watch: serve Prometheus metrics on 127.0.0.1:PORT.",
)
@click.option(
    "--trace",
    "trace_path",
    metavar="FILE",
    help="With --watch: write a timeline of locks, firmware commands and fetches, for "
    "ui.perfetto.dev.",
)
@FORCE
def sync(
    host: Host,
    watching: bool,
    interval: float | None,
    log_form: str,
    metrics_file: str | None,
    metrics_port: int | None,
    trace_path: str | None,
    force: bool,
) -> None:
    """Make the certificate files match the key that the firmware signs with.

    If a file does not match, the command empties it at once. Then it fetches, verifies and writes
    the right certificates. With --watch, it runs until SIGTERM, and reads the configuration again
    on SIGHUP.

    Exit codes: 0 all files match, 1 refused, 3 a certificate is not available at the moment.
    """
    if not watching and (interval is not None or metrics_port is not None):
        raise UsageError("--interval and --metrics-port can only be used with --watch")
    if not watching and trace_path is not None:
        raise UsageError("--trace can only be used with --watch")
    config = host.config()
    metrics_file = metrics_file or config.metrics_file
    metrics_port = metrics_port or config.metrics_port
    metrics = _metrics(metrics_file, metrics_port if watching else None)
    listener = event_printer(log_form, *([] if metrics is None else [metrics]))
    if watching:
        with contextlib.ExitStack() as stack:
            trace = None if trace_path is None else stack.enter_context(_traced(trace_path))
            _watch(host, interval, listener, metrics, metrics_file, metrics_port, force, trace)
        return
    agent = host.agent(listener, force=force)
    done = agent.sync()
    file_states = () if config.mirror is None and metrics is None else agent.read_files()
    host.announce(agent, file_states, wait=True)
    if metrics is not None and metrics_file is not None:
        _record(metrics, agent, host, file_states)
        metrics.write(metrics_file)
    if done.problem is not None:
        click.get_current_context().exit(done.problem.exit_code)
    for each in done.before:
        if each.in_step and log_form == "text":
            present(f"{each.file.path}: in step, holds {_held(each.expected)}")


def _held(wanted: object) -> str:
    from snpcerts.host.expected_content import Key

    return f"the certificates of the {wanted}" if isinstance(wanted, Key) else str(wanted)


def _metrics(file: str | None, port: int | None) -> Metrics | None:
    if file is None and port is None:
        return None
    from snpcerts.host.metrics import Metrics

    return Metrics()


def _record(metrics: Metrics, agent: Agent, host: Host, file_states: Sequence[FileState]) -> None:
    metrics.seen(
        file_states,
        host.kds_requests(),
        agent.table_cache.revocation_lists(),
        agent.update_is_prepared,
    )


@contextlib.contextmanager
def _traced(path: str) -> Iterator[AgentTrace]:
    """Write a timeline to the file at ``path`` while the block runs. A write error, as on a full
    disk, ends only the timeline.
    """
    from snpcerts.host.agent_trace import AgentTrace
    from snpcerts.trace import TimelineStream

    with open_output(path) as file:

        def write(text: str) -> None:
            try:
                file.write(text.encode())
            except OSError as error:
                present(f"snpcerts: warning: --trace {path}: {error.strerror}", err=True)
                stream.write = len  # write nothing more

        stream = TimelineStream(AgentTrace.timeline(), write)
        try:
            yield AgentTrace(stream)
        finally:
            stream.close()


def _watch(
    host: Host,
    interval: float | None,
    listener: Listener,
    metrics: Metrics | None,
    metrics_file: str | None,
    metrics_port: int | None,
    force: bool,
    trace: AgentTrace | None,
) -> None:
    from dataclasses import replace

    from snpcerts.host.event import Event, EventKind
    from snpcerts.host.log import without_repeats
    from snpcerts.host.notify import ServiceManager
    from snpcerts.host.watch import Signals, watch

    printed = without_repeats(listener)

    def once(event: Event) -> None:
        printed(event)
        if trace is not None:
            trace.listen(event)

    def make_agent() -> Agent:
        agent = host.agent(once, progress=False, force=force, trace=trace)
        if interval is not None:
            agent.config = replace(agent.config, interval=interval)
        return agent

    def after_round(agent: Agent) -> None:
        if metrics is None and agent.config.mirror is None:
            return
        file_states = agent.read_files()
        host.announce(agent, file_states, observe=None if metrics is None else metrics.announced)
        if metrics is None:
            return
        _record(metrics, agent, host, file_states)
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
