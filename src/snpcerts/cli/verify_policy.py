# SPDX-License-Identifier: Apache-2.0
"""The requirements that options of ``snpcerts verify`` add to a policy file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from snpcerts.abi.product import Product, product_of_keyword
from snpcerts.abi.tcb import TcbVersion
from snpcerts.cli.files import read_input
from snpcerts.cli.hex_option import hex_bytes
from snpcerts.errors import InputError, UsageError

if TYPE_CHECKING:
    from snpcerts.verify.policy import Policy

# AMD's revocation lists are valid for a year, but AMD may publish a new list on any day. The agent
# fetches the lists daily too.
FETCHED_LIST_AGE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """The values of the policy options. None, empty or False means that an option was not given."""

    policy: str | None
    report_data: str | None
    user_data: str | None
    measurement: tuple[str, ...]
    host_data: str | None
    vmpl: tuple[int, ...]
    min_tcb: tuple[str, ...]
    allow_debug: bool
    require_crl: bool
    ignore_crl: bool
    max_crl_age: str | None
    asks_server: bool  # whether the key server can be asked for what is missing

    def read(self) -> Policy:
        """Return the policy in the file, or the default policy if no file is given, as changed by
        the options.
        """
        from snpcerts.verify.policy import Policy, Revocation
        from snpcerts.verify.policy_file import read_age, read_policy

        policy = Policy()
        if self.policy is not None:
            data = read_input(self.policy)
            try:
                policy = read_policy(data)
            except InputError as error:
                raise InputError(f"{self.policy}: {error.message}", hint=error.hint) from None
        changes: dict[str, Any] = {}
        for name in ("report_data", "user_data", "host_data"):
            text = getattr(self, name)
            if text is not None:
                changes[name] = _hex(name, text)
        if self.measurement:
            changes["measurements"] = tuple(_hex("measurement", each) for each in self.measurement)
        if self.vmpl:
            changes["vmpls"] = self.vmpl
        if self.min_tcb:
            changes["minimum_tcb"] = _floor(policy, self.min_tcb)
        if self.allow_debug:
            changes["guest_policy"] = dataclasses.replace(policy.guest_policy, debug=None)
        if self.require_crl and self.ignore_crl:
            raise UsageError("--require-crl and --crl cannot be combined with --ignore-crl")
        if self.require_crl:
            changes["revocation"] = Revocation.REQUIRE
        if self.ignore_crl:
            changes["revocation"] = Revocation.IGNORE
        if self.max_crl_age is not None:
            try:
                changes["maximum_crl_age"] = read_age(self.max_crl_age)
            except ValueError as error:
                raise UsageError(f"--max-crl-age {self.max_crl_age}: {error}") from None
        elif self.asks_server and policy.maximum_crl_age is None:
            changes["maximum_crl_age"] = FETCHED_LIST_AGE
        return dataclasses.replace(policy, **changes)


def _hex(name: str, text: str) -> bytes:
    return hex_bytes(f"--{name.replace('_', '-')}", text)


def _floor(policy: Policy, texts: Iterable[str]) -> Any:
    """Return the policy's floor with the values of ``--min-tcb`` added."""
    from snpcerts.verify.policy import TcbFloor

    floor = policy.minimum_tcb or TcbFloor()
    for text in texts:
        name, _, levels = text.partition(":")
        product = product_of_keyword(name)
        if product is None:
            known = ", ".join(each.keyword for each in Product)
            raise UsageError(
                f"--min-tcb {text}: expected one of the products {known}",
                hint=(
                    "for a floor that holds for one processor model only, use a policy file, which "
                    "'snpcerts policy floors' can write"
                ),
            )
        floor = dataclasses.replace(floor, **{product.keyword: _tcb(text, levels, product)})
    return floor


def _tcb(text: str, levels: str, product: Product) -> TcbVersion:
    try:
        return TcbVersion.parse(levels, product.tcb_layout)
    except InputError as error:
        raise UsageError(f"--min-tcb {text}: {error.message}", hint=error.hint) from None
