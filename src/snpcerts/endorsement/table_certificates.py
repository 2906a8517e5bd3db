# SPDX-License-Identifier: Apache-2.0
"""Selects certificates for the slots of a certificate table, and checks whether a verifier could
use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from snpcerts.endorsement.anchors import Anchor, spki_sha384
from snpcerts.endorsement.bundle import read_bundle
from snpcerts.endorsement.ca_name import CaRole, parse_ca_name
from snpcerts.endorsement.certificate import common_name, load_certificate
from snpcerts.endorsement.file_kind import kind_of
from snpcerts.endorsement.judge import ChainBytes, find
from snpcerts.endorsement.reason import Reason, ReasonCode
from snpcerts.endorsement.sorting import Sorted, sort
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import InputError, RefusedError

_MISSING: Final = frozenset(
    {
        ReasonCode.VCEK_MISSING,
        ReasonCode.VLEK_MISSING,
        ReasonCode.ASK_MISSING,
        ReasonCode.ARK_MISSING,
    }
)
_TITLES: Final = {"vcek": "a VCEK", "vlek": "a VLEK", "ask": "an ASK or ASVK", "ark": "an ARK"}
_OTHER: Final = "give another file"


def certificate_for(slot: str, data: bytes, what: str, *, vlek: bool, force: bool) -> bytes:
    """Return the certificate (DER) for a slot (``vcek``, ``vlek``, ``ask`` or ``ark``) from a file.

    The file may contain other certificates too. If it contains both an ASK and an ASVK, ``vlek``
    selects the ASVK. Raises :class:`InputError`, which names ``what``, if the file has no
    certificate or more than one that fits, and :class:`RefusedError` if none fits. ``force``
    accepts the only certificate in a file even if it does not fit.
    """
    found = certificates_in(data, what)
    fitting = [each for each in found if slot_of(each) == slot]
    if len(fitting) > 1 and slot == "ask":
        role = CaRole.ASVK if vlek else CaRole.ASK
        fitting = [each for each in fitting if each.authority and each.authority.role is role]
    if len(fitting) > 1:
        raise InputError(f"{what}: expected one certificate for {slot}, found {len(fitting)}")
    if fitting:
        return fitting[0].der
    if force and len(found) == 1:
        return found[0].der
    titles = ", ".join(each.title for each in found)
    hint = _OTHER if len(found) > 1 else f"{_OTHER}, or use this certificate anyway with --force"
    raise RefusedError(f"{what}: expected {_TITLES[slot]}, found {titles}", hint=hint)


def certificates_in(data: bytes, what: str) -> list[Sorted]:
    """Return all certificates in a file.

    Raises :class:`InputError`, which says what was found instead, if the file has no certificate.
    """
    bundle = read_bundle(data)
    if not bundle.certificates:
        said = bundle.others[0] if bundle.others else kind_of(data).name
        raise InputError(f"{what}: expected a certificate, found {said}", hint=kind_of(data).unwrap)
    return [each for each in map(sort, bundle.certificates) if each is not None]


def list_in(data: bytes, what: str) -> bytes:
    """Return the only revocation list in a file, in DER.

    Raises :class:`InputError` if the file does not contain exactly one.
    """
    bundle = read_bundle(data)
    if len(bundle.lists) == 1:
        return bundle.lists[0]
    said = str(len(bundle.lists) or "none")
    kind = kind_of(data)
    if not bundle.lists and bundle.empty:
        said = bundle.others[0] if bundle.others else kind.name
    raise InputError(f"{what}: expected one revocation list, found {said}", hint=kind.unwrap)


def slot_of(certificate: Sorted) -> str | None:
    """Return the certificate table slot that a certificate belongs in; None if it fits no slot."""
    if certificate.kind is not None:
        return certificate.kind.value
    if certificate.authority is not None:
        return "ark" if certificate.authority.role is CaRole.ARK else "ask"
    return None


def useless(slots: Mapping[str, bytes]) -> tuple[Reason, ...]:
    """Return the reasons why no verifier could use a table with these certificates.

    The result is empty if a verifier could use the table. Whether the ARK is trusted does not
    matter, because the verifier decides that. A table may lack some of the three certificates. If
    it has both a VCEK and a VLEK, one of them must form a chain with the rest.
    """
    ark = slots.get("ark")
    anchors = () if ark is None else _trusting(ark)
    kinds = [kind for kind in VekKind if kind.value in slots] or [_kind_of_ask(slots.get("ask"))]
    first: tuple[Reason, ...] = ()
    for kind in kinds:
        chain = ChainBytes(slots.get(kind.value), slots.get("ask"), ark)
        reasons = find(kind, chain, anchors).reasons
        wrong = tuple(each for each in reasons if each.code not in _MISSING)
        if not wrong:
            return ()
        first = first or wrong
    return first


def _trusting(ark: bytes) -> tuple[Anchor, ...]:
    certificate = load_certificate(ark, "ARK")
    name = parse_ca_name(common_name(certificate.subject))
    # If the name is not of AMD's form, find() gives a reason that says so.
    return () if name is None else (Anchor(name.product, spki_sha384(certificate), "the table's"),)


def _kind_of_ask(ask: bytes | None) -> VekKind:
    found = None if ask is None else sort(ask)
    if found is not None and found.authority is not None and found.authority.role is CaRole.ASVK:
        return VekKind.VLEK
    return VekKind.VCEK
