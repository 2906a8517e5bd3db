# SPDX-License-Identifier: Apache-2.0
"""Writes a policy as reference values for other verifiers.

Trustee's reference value service (RVPS) takes a message with named values, which Trustee's default
policy looks up. Veraison takes a CoRIM (Concise Reference Integrity Manifest) with AMD's profile,
which has a measurement for each field of the report. Neither form can express every demand of a
policy, so :class:`ReferenceValues` names the demands that were left out.

Sources: Trustee, rvps/src/lib.rs and attestation-service/src/ear_token/ear_default_policy_cpu.rego;
draft-ietf-rats-corim; Veraison's services, scheme/sevsnp, for the profile's keys, which are numbers
for the report's fields.
"""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.errors import UsageError
from snpcerts.verify.policy import Policy, TcbFloor

CORIM_PROFILE: Final = "tag:amd.com,2024:snp-corim-profile"
RVPS_VERSION: Final = "0.1.0"

# left_out never lists these demands: Trustee's own policy makes some of them, and the others are
# not about values that a report can be compared with.
_NOT_REFERENCES: Final = (
    "report_data",
    "user_data",
    "revocation",
    "maximum_crl_age",
    "allow_tcb_above_current",
    "allow_masked_chip_id",
    "floors_without_cpuid",
)
_COMPONENTS: Final = {
    "bootloader": "snp_bootloader",
    "microcode": "snp_microcode",
    "snp": "snp_snp_svn",
    "tee": "snp_tee_svn",
}
_HIGHEST_LEVEL: Final = 255

# CBOR tags (CoRIM section 4, RFC 9164 for OIDs) and map keys.
_TAG_URI, _TAG_OID, _TAG_CORIM, _TAG_COMID = 32, 111, 501, 506
_TAG_MIN_SVN, _TAG_BYTES = 553, 560
_SHA_384: Final = 7  # from the registry of named information hash algorithms
_SEV_SNP_CLASS: Final = bytes.fromhex("2b060104019c780301")  # 1.3.6.1.4.1.3704.3.1
_SVN, _DIGESTS, _RAW_VALUE = 1, 2, 4

# The profile's keys.
_GUEST_SVN, _FAMILY_ID, _IMAGE_ID, _VMPL, _CURRENT_TCB = 1, 3, 4, 5, 6
_MEASUREMENT, _HOST_DATA, _ID_KEY_DIGEST, _AUTHOR_KEY_DIGEST, _REPORTED_TCB = (
    641,
    642,
    643,
    644,
    647,
)
_CHIP_ID, _COMMITTED_TCB, _LAUNCH_TCB = 3328, 3329, 3968


@dataclass(frozen=True, slots=True)
class ReferenceValues:
    """A file with reference values. ``data`` is the file's content. ``left_out`` names the policy's
    fields that the file does not express, except those that reference values are not meant for,
    such as ``report_data``.
    """

    data: bytes
    left_out: tuple[str, ...]


def rvps_message(policy: Policy, product: Product | None = None) -> ReferenceValues:
    """Return the JSON message that registers a policy's values with Trustee's RVPS.

    Trustee's default policy looks up a TCB component in a list of accepted values, so a floor
    becomes a list of all values from the floor up. ``product`` selects the floor if the policy has
    several. Raises :class:`UsageError` if the policy has no value that the message can express.
    """
    values: dict[str, Any] = {}
    said: set[str] = set()
    if policy.measurements is not None:
        values["snp_launch_measurement"] = [each.hex() for each in policy.measurements]
        said.add("measurements")
    floor = _floor(policy.minimum_tcb, product)
    if floor is not None:
        components = floor.components()
        for component, name in _COMPONENTS.items():
            values[name] = list(range(components[component], _HIGHEST_LEVEL + 1))
        if "fmc" not in components:
            said.add("minimum_tcb")
    for name, bits, bit in (
        ("snp_smt_allowed", policy.guest_policy, "smt"),
        ("snp_single_socket", policy.guest_policy, "single_socket"),
        ("snp_smt_enabled", policy.platform_info, "smt_en"),
        ("snp_tsme_enabled", policy.platform_info, "tsme_en"),
    ):
        value = getattr(bits, bit)
        if value is not None:
            values[name] = value
    said |= {
        name
        for name, known in (("guest_policy", _GUEST_BITS), ("platform_info", _PLATFORM_BITS))
        if _asks_only(getattr(policy, name), known)
    }
    if not values:
        raise UsageError(
            "expected a policy with demands that reference values can express, found none",
            hint="add measurements, minimum_tcb or guest_policy to the policy",
        )
    payload = json.dumps(values, sort_keys=True).encode("ascii")
    message = {
        "version": RVPS_VERSION,
        "type": "sample",
        "payload": base64.b64encode(payload).decode("ascii"),
    }
    return ReferenceValues(f"{json.dumps(message)}\n".encode("ascii"), _left_out(policy, said))


# The bits that Trustee's default policy judges. It compares them with reference values, except that
# it always refuses a guest with ``debug`` or ``migrate_ma``.
_GUEST_BITS: Final = ("smt", "single_socket", "debug", "migrate_ma")
_PLATFORM_BITS: Final = ("smt_en", "tsme_en")


def _asks_only(bits: Any, names: tuple[str, ...]) -> bool:
    return all(
        getattr(bits, field.name) is None for field in fields(bits) if field.name not in names
    )


def corim(policy: Policy, product: Product | None = None) -> ReferenceValues:
    """Return a policy's values as an unsigned CoRIM (CBOR, tag 501) with AMD's profile.

    Veraison finds reference values by the launch measurement, so each measurement has its own set.
    A TCB floor becomes a minimum for its 64-bit number. This is weaker, because the profile does
    not compare components. ``product`` selects the floor if the policy has several. Raises
    :class:`UsageError` for a policy without measurements.
    """
    import cbor2

    if policy.measurements is None:
        raise UsageError(
            "expected a policy with measurements, found none",
            hint=(
                "add measurements to the policy, because verifiers look up a CoRIM's values "
                "by measurement"
            ),
        )
    said = {"measurements"}
    common = list(_common(policy, product, said))
    triples: list[list[Any]] = []
    for measurement in policy.measurements:
        digest = _measured(_MEASUREMENT, {_DIGESTS: [[_SHA_384, measurement]]})
        environment = {
            0: {0: cbor2.CBORTag(_TAG_OID, _SEV_SNP_CLASS)},
            1: cbor2.CBORTag(_TAG_BYTES, measurement),
        }
        measured: list[dict[int, Any]] = sorted([*common, digest], key=_key)
        triples.append([environment, measured])
    content = cbor2.dumps(triples, canonical=True)
    identity = uuid.UUID(bytes=hashlib.sha256(content).digest()[:16], version=4)
    comid = {1: {0: identity.bytes}, 4: {0: triples}}
    whole = {
        0: f"snpcerts-{identity}",
        1: [cbor2.CBORTag(_TAG_COMID, cbor2.dumps(comid, canonical=True))],
        3: cbor2.CBORTag(_TAG_URI, CORIM_PROFILE),
    }
    data = cbor2.dumps(cbor2.CBORTag(_TAG_CORIM, whole), canonical=True)
    return ReferenceValues(data, _left_out(policy, said))


def _key(measurement: dict[int, Any]) -> int:
    found: int = measurement[0]
    return found


def _measured(key: int, value: dict[int, Any]) -> dict[int, Any]:
    return {0: key, 1: value}


def _common(policy: Policy, product: Product | None, said: set[str]) -> Iterator[dict[int, Any]]:
    """Yield the reference values that do not depend on the measurement. Add to ``said`` the names
    of the policy fields that they express.
    """
    import cbor2

    def raw(value: bytes) -> dict[int, Any]:
        return {_RAW_VALUE: cbor2.CBORTag(_TAG_BYTES, value)}

    def least(value: int) -> dict[int, Any]:
        return {_SVN: cbor2.CBORTag(_TAG_MIN_SVN, value)}

    for name, key in (
        ("family_id", _FAMILY_ID),
        ("image_id", _IMAGE_ID),
        ("host_data", _HOST_DATA),
    ):
        value = getattr(policy, name)
        if value is not None:
            said.add(name)
            yield _measured(key, raw(value))
    # In a CoRIM, a field has one value, so a demand that accepts several cannot be expressed.
    if policy.chip_ids is not None and len(policy.chip_ids) == 1:
        said.add("chip_ids")
        yield _measured(_CHIP_ID, raw(policy.chip_ids[0]))
    if policy.vmpls is not None and len(policy.vmpls) == 1:
        said.add("vmpls")
        yield _measured(_VMPL, raw(policy.vmpls[0].to_bytes(4, "little")))
    for name, key in (
        ("id_key_digests", _ID_KEY_DIGEST),
        ("author_key_digests", _AUTHOR_KEY_DIGEST),
    ):
        digests = getattr(policy, name)
        if digests is not None and len(digests) == 1:
            said.add(name)
            yield _measured(key, {_DIGESTS: [[_SHA_384, digests[0]]]})
    if policy.minimum_guest_svn is not None:
        said.add("minimum_guest_svn")
        yield _measured(_GUEST_SVN, least(policy.minimum_guest_svn))
    for name, key in (
        ("minimum_tcb", _REPORTED_TCB),
        ("minimum_current_tcb", _CURRENT_TCB),
        ("minimum_committed_tcb", _COMMITTED_TCB),
        ("minimum_launch_tcb", _LAUNCH_TCB),
    ):
        floor = _floor(getattr(policy, name), product)
        if floor is not None:
            said.add(name)
            yield _measured(key, least(int.from_bytes(floor.pack(), "little")))


def _floor(floors: TcbFloor | None, product: Product | None) -> TcbVersion | None:
    """Return the floor of ``product`` or, if that is None, the only floor."""
    if floors is None:
        return None
    if product is not None:
        return floors.of(product)
    found = [(each, floor) for each in Product if (floor := floors.of(each)) is not None]
    if len(found) > 1:
        names = ", ".join(each.keyword for each, _ in found)
        raise UsageError(
            f"expected a policy with a floor for one product, found floors for {names}",
            hint="choose a product with --product, and write one file for each product",
        )
    return found[0][1]


def _left_out(policy: Policy, said: set[str]) -> tuple[str, ...]:
    default = Policy()
    return tuple(
        field.name
        for field in fields(Policy)
        if field.name not in said
        and field.name not in _NOT_REFERENCES
        and getattr(policy, field.name) != getattr(default, field.name)
    )
