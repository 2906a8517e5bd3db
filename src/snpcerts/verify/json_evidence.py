# SPDX-License-Identifier: Apache-2.0
"""Decodes evidence in JSON, in the forms that attestation services and tools use.

Some tools write a report's fields one by one: Trustee and others that write virtee/sev's
structures, and those that write go-sev-guest's messages as protojson. This module rebuilds the
report's bytes from the fields, with zeros outside all fields. The signature shows whether the
result is right. Other tools write the report's bytes as one value, in base64, in hexadecimal or as
an array of numbers. Then every value is examined, and exactly one must be a report. Certificates
are taken from any value.

Known to work: ``application/vnd.veraison.tsm-report+json`` and ratsd's tokens around it; Trustee's
SNP and Azure evidence; attestation-rs; Dstack; Google's ``{report, aux_blob}``; objects with
``outblob`` and ``auxblob``, as programs that read configfs-tsm write them.

Sources: veraison/ratsd ``tokens/tsm-report.go``; confidential-containers/trustee
``deps/verifier/src/snp``; virtee/sev 8.0 ``AttestationReport``; go-sev-guest
``proto/sevsnp.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from snpcerts.abi.report import SIGNATURE_PART_SIZE, SIGNATURE_SIZE, ReportLayout
from snpcerts.endorsement.encoded_text import bytes_of_json
from snpcerts.errors import FormatError

WHAT: Final = "evidence in JSON"
_SIZES: Final = {name: size for name, (_, size) in ReportLayout.layout().items()}
# virtee/sev's names, where they differ from ours.
_SEV_NAMES: Final = {
    "signature_algo": "sig_algo",
    "platform_info": "plat_info",
    "flags": "key_info",
    "cpuid_family": "cpuid_fam_id",
    "cpuid_model": "cpuid_mod_id",
    "cpuid_stepping": "cpuid_step",
}
_OLD_NAMES: Final = {"flags": "_author_key_en", "platform_info": "platform_info"}
_VERSIONS: Final = {"current": "current", "committed": "committed"}
_TCBS: Final = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")
_OPTIONAL: Final = frozenset(
    {
        "cpuid_family",
        "cpuid_model",
        "cpuid_stepping",
        "launch_mit_vector",
        "current_mit_vector",
        "vmpl",
        "guest_svn",
    }
)
_MOST: Final = 10_000  # the number of values that are examined
# Providers of configfs-tsm in other kinds of guest.
_PROVIDERS: Final = {"tdx_guest": "Intel TDX", "arm_cca_guest": "Arm CCA"}


def report_by_fields(value: Any) -> bytes | None:
    """Return a report's bytes if ``value`` contains the report's fields one by one, otherwise None.

    Raises :class:`FormatError`, which names the field, if a field is missing or has the wrong size.
    """
    for each in _objects(value):
        if "measurement" in each and "signature" in each and "reported_tcb" in each:
            return _from_sev(each)
        if "measurement" in each and "signature" in each and "reportedTcb" in each:
            return _from_proto(each)
    return None


def other_kind_of_guest(value: Any) -> str | None:
    """Return the kind of guest that the evidence is from, if the evidence names a kind other than
    SEV-SNP; otherwise None.
    """
    for each in _objects(value):
        provider = each.get("provider")
        if isinstance(provider, str) and provider in _PROVIDERS and "outblob" in each:
            return _PROVIDERS[provider]
    return None


def keys_of(value: Any) -> str:
    """Describe a JSON value for a message: an object by its keys, an array by its length."""
    if not isinstance(value, dict):
        return (
            f"an array of {len(value)} values" if isinstance(value, list) else type(value).__name__
        )
    shown = ", ".join(repr(str(key)[:30]) for key in list(value)[:6])
    return f"an object with the keys {shown}{', ...' if len(value) > 6 else ''}"


def blobs(value: Any) -> Iterator[tuple[str, bytes]]:
    """Yield the key and the decoded bytes of each value, at any depth, that decodes to at least
    64 bytes.
    """
    looked = 0
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        key, each = waiting.pop()
        looked += 1
        if looked > _MOST:
            raise FormatError(WHAT, f"expected at most {_MOST} values, found more")
        if isinstance(each, dict):
            waiting += reversed(each.items())
            continue
        if isinstance(each, bytes):
            found: bytes | None = each if len(each) >= 64 else None
        elif isinstance(each, list):
            found = bytes_of_json(each) if len(each) >= 64 else None
            if found is None:
                waiting += ((key, inner) for inner in reversed(each))
        elif isinstance(each, str) and len(each) >= 64:
            found = (
                each.encode() if "-----BEGIN " in each or each[:1] == "{" else bytes_of_json(each)
            )
        else:
            found = None
        if found is not None:
            yield key, found


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    waiting, looked = [value], 0
    while waiting:
        each = waiting.pop()
        looked += 1
        if looked > 10 * _MOST:
            raise FormatError(WHAT, f"expected at most {10 * _MOST} values, found more")
        if isinstance(each, dict):
            yield each
            waiting += reversed(each.values())
        elif isinstance(each, list) and not (each and isinstance(each[0], int)):
            waiting += reversed(each)


def _from_sev(fields: Mapping[str, Any]) -> bytes:
    """Return the report's bytes from virtee/sev's AttestationReport, in the form that serde
    writes.
    """
    values: dict[str, Any] = {}
    for name in ReportLayout.__slots__:
        if name in _TCBS:
            values[name] = _tcb(fields.get(name), name)
        elif name == "signature":
            values[name] = _signature(fields.get(name))
        elif (of_version := _part_of_version(name)) is not None:
            kind, part = of_version
            version = fields.get(kind)
            values[name] = _integer(version.get(part) if isinstance(version, dict) else None, name)
        else:
            written = _SEV_NAMES.get(name, name)
            found = fields.get(written, fields.get(_OLD_NAMES.get(name, written)))
            values[name] = _field(name, found)
    return ReportLayout(**values).pack()


def _part_of_version(name: str) -> tuple[str, str] | None:
    for kind in _VERSIONS:
        for part in ("major", "minor", "build"):
            if name == f"{kind}_{part}":
                return kind, part
    return None


def _field(name: str, found: Any) -> Any:
    size = _SIZES[name]
    default = next(iter([ReportLayout.__dataclass_fields__[name].default]))
    if isinstance(default, int) or name in _OPTIONAL:
        if found is None and name in _OPTIONAL:
            return 0
        return _integer(found, name)
    data = bytes_of_json(found)
    if data is None or len(data) != size:
        raise FormatError(WHAT, f"expected {size} bytes, found another value", field=name)
    return data


def _integer(found: Any, name: str) -> int:
    if isinstance(found, str) and found.isdecimal() and len(found) <= 20:
        found = int(found)  # protojson writes 64-bit numbers as text
    if type(found) is not int or not 0 <= found < 1 << 8 * _SIZES[name]:
        raise FormatError(
            WHAT,
            f"expected a number that fits in {_SIZES[name]} bytes, found another value",
            field=name,
        )
    return found


def _tcb(found: Any, name: str) -> bytes:
    """Return a TCB's 8 bytes from a number, or from an object in which null means that the product
    lacks the component.
    """
    if isinstance(found, int | str) and not isinstance(found, bool):
        return _integer(found, name).to_bytes(8, "little")
    if not isinstance(found, dict):
        raise FormatError(
            WHAT, "expected a TCB as a number or an object, found another value", field=name
        )
    from snpcerts.abi.tcb import SHORT_NAMES, TcbVersion

    parts: dict[str, int] = {}
    for part in SHORT_NAMES.values():
        value = found.get(part)
        if value is None:
            continue
        if type(value) is not int or not 0 <= value <= 255:
            raise FormatError(
                WHAT, f"expected {part} from 0 to 255, found {str(value)[:40]}", field=name
            )
        parts[part] = value
    try:
        return TcbVersion.of(parts).pack()
    except FormatError as error:
        raise FormatError(WHAT, error.message, field=name) from None


def _signature(found: Any) -> bytes:
    if not isinstance(found, dict):
        data = bytes_of_json(found)
        if data is None or len(data) != SIGNATURE_SIZE:
            raise FormatError(
                WHAT, f"expected {SIGNATURE_SIZE} bytes, found another value", field="signature"
            )
        return data
    both = b""
    for part in ("r", "s"):
        data = bytes_of_json(found.get(part))
        if data is None or len(data) != SIGNATURE_PART_SIZE:
            raise FormatError(
                WHAT,
                f"expected {SIGNATURE_PART_SIZE} bytes in {part}, found another value",
                field="signature",
            )
        both += data
    return both.ljust(SIGNATURE_SIZE, b"\0")


_PROTO_NAMES: Final = {"flags": "signerInfo"}


def _from_proto(fields: Mapping[str, Any]) -> bytes:
    """Return the report's bytes from a go-sev-guest Report in protojson, which writes names in
    lowerCamelCase, writes bytes in base64, and omits fields that are zero.
    """
    from snpcerts.verify.attestation_proto import cpuid_fields

    values: dict[str, Any] = {}
    for name in ReportLayout.__slots__:
        if name.startswith("cpuid_"):
            continue
        words = name.split("_")
        written = _PROTO_NAMES.get(name, words[0] + "".join(each.title() for each in words[1:]))
        found = fields.get(written)
        default = ReportLayout.__dataclass_fields__[name].default
        if name in _TCBS:
            values[name] = _integer(0 if found is None else found, name).to_bytes(8, "little")
        elif isinstance(default, int):
            values[name] = _integer(0 if found is None else found, name)
        else:
            values[name] = _field(name, found)
    stamp = fields.get("cpuid1eaxFms", 0)
    if type(stamp) is not int or not 0 <= stamp < 1 << 32:
        raise FormatError(
            WHAT,
            "expected a number that fits in 4 bytes, found another value",
            field="cpuid1eaxFms",
        )
    return ReportLayout(**values, **cpuid_fields(stamp)).pack()
