# SPDX-License-Identifier: Apache-2.0
"""The announcement that a host's agent sends to the mirror.

An announcement is one JSON object, sent with ``PUT /api/v1/hosts/{product}/{hwid}`` after each
round of the agent. The mirror uses announcements only to decide which certificates to prefetch and
what the fleet's page shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from snpcerts.abi.product import Cpuid, Product, product_of_keyword
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError

VERSION: Final = 1
MAX_BYTES: Final = 256 << 10  # bytes of one announcement
MAX_HOSTS: Final = 20_000  # hosts of one mirror
MAX_NAME: Final = 253  # characters of a host's name, as in DNS
MAX_REPORTED_FILES: Final = 64
_MAX_PATH: Final = 256
_MAX_PROBLEM: Final = 256
_MAX_WORD: Final = 64
_MAX_GUESTS: Final = 1 << 20

# The states of a certificate file, which mean the same as in snpcerts.host.file_state.
FILE_STATES: Final = (
    "right",
    "outdated",
    "empty",
    "missing",
    "wrong",
    "foreign",
    "unreadable",
    "locked",
)


@dataclass(frozen=True, slots=True)
class FileReport:
    """One certificate file of a host.

    ``certificates`` says that the table in the file is not empty. ``not_after`` is the time
    until which all of its certificates are valid. ``reason`` says why the file does not match the
    signing key, or why it is intentionally empty.
    """

    path: str
    kind: VekKind
    state: str
    certificates: bool
    not_after: datetime | None = None
    reason: str = ""

    @property
    def in_step(self) -> bool:
        """Whether the file matches the signing key."""
        return self.state == "right"


@dataclass(frozen=True, slots=True)
class Announcement:
    """The state of one host at one moment.

    ``hwid`` has 64 bytes, or 8 on Turin and Venice. ``committed`` is None in the agent's
    announcements, because no host interface shows the committed TCB. ``cpuid`` is None if
    /proc/cpuinfo does not name an AMD processor.
    """

    host: str
    product: Product
    hwid: bytes
    current: TcbVersion
    reported: TcbVersion
    committed: TcbVersion | None = None
    cpuid: Cpuid | None = None
    agent: str = ""
    firmware: str = ""
    initialised: bool = True
    guests: int = 0
    vlek_loaded: bool = False
    files: tuple[FileReport, ...] = field(default_factory=tuple)

    def to_json(self) -> dict[str, object]:
        """Return the announcement as JSON values."""
        return {
            "version": VERSION,
            "host": self.host,
            "product": self.product.value,
            "hwid": self.hwid.hex(),
            "cpuid": None
            if self.cpuid is None
            else {
                "family": self.cpuid.family,
                "model": self.cpuid.model,
                "stepping": self.cpuid.stepping,
            },
            "agent": self.agent,
            "firmware": self.firmware,
            "initialised": self.initialised,
            "guests": self.guests,
            "vlek_loaded": self.vlek_loaded,
            "current_tcb": self.current.components(),
            "reported_tcb": self.reported.components(),
            "committed_tcb": None if self.committed is None else self.committed.components(),
            "files": [
                {
                    "path": each.path,
                    "kind": each.kind.value,
                    "state": each.state,
                    "certificates": each.certificates,
                    "not_after": None if each.not_after is None else each.not_after.isoformat(),
                    "reason": each.reason,
                }
                for each in self.files
            ],
        }


def read_announcement(data: bytes) -> Announcement:
    """Parse the JSON of an announcement. If it is invalid, raises :class:`FormatError`, which
    names the invalid field.
    """
    if len(data) > MAX_BYTES:
        raise _wrong(f"expected at most {MAX_BYTES} bytes, found {len(data)}")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise _wrong("expected valid JSON, found other bytes") from None
    if not isinstance(found, dict):
        raise _wrong("expected a JSON object, found another value")
    return announcement_of(found)


def announcement_of(found: Mapping[str, Any]) -> Announcement:
    """Return the announcement that a JSON object holds. Raises the same errors as
    :func:`read_announcement`.
    """
    if found.get("version") != VERSION:
        raise _wrong(f"expected {VERSION}, found {_shown(found.get('version'))}", field="version")
    product = product_of_keyword(_text(found, "product", _MAX_WORD))
    if product is None:
        names = ", ".join(each.value for each in Product)
        raise _wrong(f"expected one of {names}, found {_shown(found['product'])}", field="product")
    files = found.get("files")
    if not isinstance(files, Sequence) or isinstance(files, str):
        raise _wrong("expected a list", field="files")
    if len(files) > MAX_REPORTED_FILES:
        raise _wrong(
            f"expected at most {MAX_REPORTED_FILES} items, found {len(files)}", field="files"
        )
    return Announcement(
        host=_text(found, "host", MAX_NAME),
        product=product,
        hwid=_hwid(found, product),
        cpuid=_cpuid(found.get("cpuid")),
        agent=_text(found, "agent", _MAX_WORD, empty=True),
        firmware=_text(found, "firmware", _MAX_WORD, empty=True),
        initialised=_flag(found, "initialised"),
        guests=_number(found, "guests", _MAX_GUESTS),
        vlek_loaded=_flag(found, "vlek_loaded"),
        current=_tcb(found, "current_tcb", product),
        reported=_tcb(found, "reported_tcb", product),
        committed=None
        if found.get("committed_tcb") is None
        else _tcb(found, "committed_tcb", product),
        files=tuple(_file(each, index) for index, each in enumerate(files)),
    )


def tcb_of(components: object, product: Product, name: str = "tcb") -> TcbVersion:
    """Return the TCB, in the product's layout, that a JSON object of components describes.

    Raises :class:`FormatError`, which names ``name``, for anything else.
    """
    names = product.tcb_layout.components
    if not isinstance(components, Mapping) or set(components) != set(names):
        raise _wrong(f"expected an object with {', '.join(names)}", name)
    return TcbVersion.of({each: _number(components, each, 255) for each in names})


def _wrong(problem: str, field: str | None = None) -> FormatError:
    return FormatError("announcement", problem, field=field)


def _shown(value: object) -> str:
    return ascii(value)[:60]


def _text(found: Mapping[str, Any], name: str, most: int, *, empty: bool = False) -> str:
    value = found.get(name)
    if not isinstance(value, str) or len(value) > most or not value.isprintable():
        raise _wrong(f"expected printable text of at most {most} characters", name)
    if not value and not empty:
        raise _wrong("expected text, found an empty string", name)
    return value


def _flag(found: Mapping[str, Any], name: str) -> bool:
    value = found.get(name)
    if not isinstance(value, bool):
        raise _wrong(f"expected true or false, found {_shown(value)}", name)
    return value


def _number(found: Mapping[str, Any], name: str, most: int) -> int:
    value = found.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise _wrong(f"expected a number from 0 to {most}, found {_shown(value)}", name)
    return value


def _hwid(found: Mapping[str, Any], product: Product) -> bytes:
    value = found.get("hwid")
    digits = 2 * product.hwid_size
    try:
        hwid = bytes.fromhex(value) if isinstance(value, str) and len(value) == digits else b""
    except ValueError:
        hwid = b""
    if len(hwid) != product.hwid_size:
        raise _wrong(f"expected {digits} hexadecimal digits on {product.value}", field="hwid")
    return hwid


def _tcb(found: Mapping[str, Any], name: str, product: Product) -> TcbVersion:
    return tcb_of(found.get(name), product, name)


def _cpuid(value: object) -> Cpuid | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _wrong("expected an object or null", field="cpuid")
    family, model, stepping = (
        _number(value, name, 255) for name in ("family", "model", "stepping")
    )
    return Cpuid(family, model, stepping)


def _file(value: object, index: int) -> FileReport:
    where = f"files[{index}]"
    if not isinstance(value, Mapping):
        raise _wrong("expected an object", where)
    if value.get("state") not in FILE_STATES:
        listed = ", ".join(FILE_STATES)
        raise _wrong(
            f"expected one of {listed} as the state, found {_shown(value.get('state'))}", where
        )
    kinds = {each.value: each for each in VekKind}
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise _wrong(f"expected one of {', '.join(kinds)} as the kind, found {_shown(kind)}", where)
    return FileReport(
        path=_text(value, "path", _MAX_PATH),
        kind=kinds[kind],
        state=value["state"],
        certificates=_flag(value, "certificates"),
        not_after=_time(value.get("not_after"), where),
        reason=_text(value, "reason", _MAX_PROBLEM, empty=True),
    )


def _time(value: object, where: str) -> datetime | None:
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
        if found is not None and found.tzinfo is not None:
            return found.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise _wrong(
        "expected a time with a time zone as not_after, such as 2027-01-31T00:00:00+00:00", where
    )


def within(text: str, most: int) -> str:
    """Return ``text`` in a form that fits an announcement: printable, and of at most ``most``
    characters.
    """
    shown = "".join(each if each.isprintable() else "?" for each in text)
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def file_report(
    path: str,
    kind: VekKind,
    state: str,
    *,
    certificates: bool,
    not_after: datetime | None,
    reason: str,
) -> FileReport:
    """Return the report on a file. The path and the reason are cut to the limits of an
    announcement.
    """
    return FileReport(
        within(path, _MAX_PATH),
        kind,
        state,
        certificates,
        not_after,
        within(reason, _MAX_PROBLEM),
    )
