# SPDX-License-Identifier: Apache-2.0
"""``snpcerts host commit``, ``set-config``, ``load-vlek``: change the firmware and update the
certificate files.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from snpcerts.cli.files import read_input
from snpcerts.cli.host.options import FORCE, Host, with_host
from snpcerts.cli.host.output import event_printer, ignore_event
from snpcerts.cli.say import present, say
from snpcerts.cli.tcb_components import METAVAR, tcb_components
from snpcerts.errors import SnpCertsError, UsageError

if TYPE_CHECKING:
    from snpcerts.abi.tcb import TcbVersion
    from snpcerts.host.agent import Agent
    from snpcerts.host.plan import Changed, Plan

_CHANGE_OPTIONS = (
    click.option("--dry-run", is_flag=True, help="Print the plan, and change nothing."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object."),
    FORCE,
    click.option(
        "--allow-empty",
        is_flag=True,
        help=(
            "Continue even if the new certificates are not available. Guests get an empty table "
            "until the certificates are available."
        ),
    ),
)


def _changes_firmware(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command that carries out the plan that ``function(agent, ...)`` returns.

    The function's other arguments are the command's options. With ``--dry-run``, the command only
    prints the plan.
    """

    @functools.wraps(function)
    def call(
        host: Host, dry_run: bool, as_json: bool, force: bool, allow_empty: bool, **others: Any
    ) -> None:
        patience = others.pop("wait_for_mirror", None)
        agent = host.agent(ignore_event if as_json else event_printer("text"), force=force)
        plan = function(agent, **others)
        if dry_run:
            if as_json:
                say(json.dumps(plan.to_json()))
            else:
                present("\n".join(plan.lines()))
            return
        if not as_json:
            present("\n".join(plan.lines()))
        if patience is not None:
            host.wait_for_mirror(agent, plan, patience)
        try:
            _carry_out(agent, plan, allow_empty=allow_empty, as_json=as_json)
        finally:
            host.announce(agent, wait=True)

    for option in reversed(_CHANGE_OPTIONS):
        call = option(call)
    return with_host(call)


def _carry_out(agent: Agent, plan: Plan, *, allow_empty: bool, as_json: bool) -> None:
    from snpcerts.host.plan import carry_out, follow_up

    changed = carry_out(agent, plan, allow_empty=allow_empty)
    problem = follow_up(agent, changed)
    if as_json:
        say(json.dumps(_outcome(plan, changed, problem)))
    else:
        result = changed.result
        present(
            f"lock wait {result.waited * 1000:.1f} ms, lock held {result.held * 1000:.1f} ms "
            f"(firmware command {result.firmware * 1000:.1f} ms)"
        )
    if problem is not None:
        raise problem


def _outcome(plan: Plan, changed: Changed, problem: SnpCertsError | None) -> dict[str, object]:
    result = changed.result
    return {
        **plan.to_json(),
        "done": result.refused is None,
        "in_step": problem is None,
        "problem": None if problem is None else problem.message,
        "reported_tcb_now": None if result.state is None else result.state.reported.components(),
        **result.figures(),
    }


@click.command(short_help="Commit the running firmware (SNP_COMMIT).")
@click.option(
    "--wait-for-mirror",
    is_flag=False,
    flag_value=3600.0,
    type=click.FloatRange(0, 86400),
    metavar="[S]",
    help=(
        "First wait up to S seconds (3600 if S is omitted) for the configured mirror to get the "
        "new certificates. If the mirror does not have them by then, change nothing."
    ),
)
@_changes_firmware
def commit(agent: Agent) -> Plan:
    """Commit the running firmware (SNP_COMMIT), which sets the reported TCB to the current TCB.

    This cannot be undone. If the two TCBs differ, the signing key changes. Some firmware then drops
    a loaded VLEK.
    """
    from snpcerts.host import plan

    return plan.commit(agent)


@click.command("set-config")
@click.option(
    "--reported-tcb",
    metavar=METAVAR,
    help="TCB that reports should carry. Omitted components stay unchanged.",
)
@click.option("--reset", is_flag=True, help="Set the reported TCB to the committed TCB.")
@click.option(
    "--again",
    is_flag=True,
    help=(
        "Repeat SNP_SET_CONFIG with the current settings, so that the firmware derives the "
        "VCEK again."
    ),
)
@click.option(
    "--mask-chip-id/--no-mask-chip-id",
    default=None,
    help="Hide the chip ID in reports (MASK_CHIP_ID).",
)
@click.option(
    "--mask-chip-key/--no-mask-chip-key",
    default=None,
    help="Stop the firmware from signing reports with the VCEK (MASK_CHIP_KEY).",
)
@_changes_firmware
def set_config(
    agent: Agent,
    reported_tcb: str | None,
    reset: bool,
    again: bool,
    mask_chip_id: bool | None,
    mask_chip_key: bool | None,
) -> Plan:
    """Set the reported TCB and the masks (SNP_SET_CONFIG).

    Settings that no option names stay unchanged. A new reported TCB changes the signing key. Some
    firmware then drops a loaded VLEK, and some keeps it. If it is kept, certificate files for VLEKs
    are empty until the next load-vlek or prove-key.

    Use --again after SNP was initialised again (kvm_amd was reloaded) while the reported TCB was
    below the current TCB. Some firmware then signs with the VCEK of the current TCB until
    SNP_SET_CONFIG is repeated.
    """
    from snpcerts.host import plan

    if reset and reported_tcb is not None:
        raise UsageError("--reset and --reported-tcb cannot be combined")
    if again and (reset or reported_tcb is not None):
        raise UsageError(
            "--again keeps the reported TCB, so it cannot be combined with --reset or "
            "--reported-tcb"
        )
    masks = mask_chip_id is not None or mask_chip_key is not None
    if not reset and not again and reported_tcb is None and not masks:
        raise UsageError(
            "no setting to change was given",
            hint=(
                "give at least one of --reported-tcb, --reset, --again, --mask-chip-id and "
                "--mask-chip-key"
            ),
        )
    return plan.set_config(
        agent,
        tcb=None if reset else changed_tcb("--reported-tcb", reported_tcb or ""),
        mask_chip_id=mask_chip_id,
        mask_chip_key=mask_chip_key,
    )


@click.command("load-vlek", short_help="Load a VLEK (SNP_VLEK_LOAD).")
@click.argument("hashstick")
@click.option(
    "--vlek-cert",
    metavar="FILE",
    required=True,
    help=(
        "File with the VLEK's certificate, in DER or PEM. The command stores the certificate for "
        "'snpcerts host sync'."
    ),
)
@_changes_firmware
def load_vlek(agent: Agent, hashstick: str, vlek_cert: str) -> Plan:
    """Load a VLEK (SNP_VLEK_LOAD) from HASHSTICK, the 432 bytes that AMD wrapped for this chip.

    The firmware then signs reports with the VLEK, except those for which a guest requests the VCEK.
    """
    from snpcerts.host import plan

    return plan.load_vlek(agent, read_input(hashstick), read_input(vlek_cert))


def changed_tcb(option: str, text: str) -> Callable[[TcbVersion], TcbVersion]:
    """Return a function that takes a TCB, and returns it with the components that ``text`` sets,
    such as ``bl=3,snp=8``.
    """
    components = tcb_components(option, text)

    def tcb(now: TcbVersion) -> TcbVersion:
        from dataclasses import replace

        for name in components:
            if name not in now.components():
                raise UsageError(f"{option}: this product's TCB has no component {name}")
        return replace(now, **components)

    return tcb
