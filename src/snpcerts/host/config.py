# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration: its certificate files, and where certificates come from.

The configuration file is TOML; docs/operators.md describes it. An error about a key or value names
its line. An unknown key is an error.
"""

from __future__ import annotations

import enum
import math
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, GUID_NAMES, VCEK_GUID, VLEK_GUID
from snpcerts.abi.product import Product
from snpcerts.certfile.several import MAX_FILES
from snpcerts.certfile.writer import DEFAULT_LOCK_WAIT, DEFAULT_STRATEGY, Strategy
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import InputError
from snpcerts.mirror.announcement import MAX_NAME
from snpcerts.mirror.mirror_client import MirrorAccess, sent_in_clear
from snpcerts.toml_file import Path as TomlPath
from snpcerts.toml_file import TomlFileError, line_of, read_toml

DEFAULT_PATH: Final = "/etc/snpcerts.toml"
DEFAULT_FILE: Final = "/var/lib/snpcerts/certs.bin"
DEFAULT_CACHE: Final = "/var/cache/snpcerts"
DEFAULT_VLEK: Final = "/var/lib/snpcerts/vlek"
DEFAULT_MEMORY: Final = "signing-key.json"  # in the directory of the first certificate file
DEFAULT_INTERVAL: Final = 30.0
MAX_ENTRIES: Final = 32  # entries of one file besides the certificates
_SIZE_LIMIT: Final = 1 << 16

T = TypeVar("T")


class ConfigError(InputError):
    """The configuration file has an error, or cannot be read."""

    code = "config"


class GuestKeySelect(enum.Enum):
    """The KEY_SEL that the guests of one certificate file use in their report requests."""

    DEFAULT = "default"  # the VLEK if one is loaded, otherwise the VCEK; Linux requests this
    NAMED = "named"  # explicitly the file's kind of key


@dataclass(frozen=True, slots=True)
class ExtraEntry:
    """An additional entry of a table. ``path`` is a file whose content is used unchanged."""

    guid: uuid.UUID
    path: str


@dataclass(frozen=True, slots=True)
class FileConfig:
    """One certificate file.

    ``without_vlek`` says what a VLEK file contains while no VLEK is loaded: the VCEK's
    certificates, or None for the empty table. ``masked_vlek_signs`` is true if the operator knows
    that a loaded VLEK signs on this host's firmware although MASK_CHIP_KEY is set. The agent sets
    ``group`` and ``mode`` on the file unless they are None.
    """

    path: str
    kind: VekKind = VekKind.VCEK
    key_select: GuestKeySelect = GuestKeySelect.DEFAULT
    without_vlek: VekKind | None = None
    masked_vlek_signs: bool = False
    strategy: Strategy = DEFAULT_STRATEGY
    group: str | None = None
    mode: int | None = None
    entries: tuple[ExtraEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class MirrorConfig:
    """The fleet's mirror, to which the agent announces this host.

    ``name`` is the host's name in the fleet. None means the system's host name.
    """

    access: MirrorAccess
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration. If ``product`` is None, the host's processor determines it. Times
    are in seconds.
    """

    files: tuple[FileConfig, ...] = (FileConfig(DEFAULT_FILE),)
    product: Product | None = None
    kds_url: str | None = None
    cache: Path = Path(DEFAULT_CACHE)
    offline: bool = False
    anchors: tuple[str, ...] = ()
    vlek_certificates: Path = Path(DEFAULT_VLEK)
    memory: Path | None = None
    interval: float = DEFAULT_INTERVAL
    lock_wait: float = DEFAULT_LOCK_WAIT
    metrics_file: str | None = None
    metrics_port: int | None = None
    mirror: MirrorConfig | None = None
    source: str | None = field(default=None, compare=False)  # the file that it was read from

    @property
    def memory_path(self) -> Path:
        """The path of the record of the signing keys. The default is in the first certificate
        file's directory.
        """
        return self.memory or Path(self.files[0].path).with_name(DEFAULT_MEMORY)


def load(path: str) -> Config:
    """Read a configuration file. Raises :class:`ConfigError` if the file cannot be read or contains
    a mistake. The message names the mistake's line.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_SIZE_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    return parse(data, path)


def parse(text: str | bytes, path: str = "configuration") -> Config:
    """Parse the text of a configuration. ``path`` is the file name that errors show."""
    try:
        document, text = read_toml(text, _SIZE_LIMIT)
    except TomlFileError as error:
        line = "" if error.line is None else f", line {error.line}"
        raise ConfigError(f"{path}{line}: {error.problem}") from None
    top = _TomlTable(_Document(path, text), (), document)
    mirror = _mirror(top)
    config = Config(
        product=top.take("product", _product, None),
        files=_files(top),
        **_kds(top),
        **_section(top, "vlek", {"certificates": ("vlek_certificates", _absolute_path)}),
        **_section(top, "memory", {"file": ("memory", _absolute_path)}),
        **_section(top, "watch", {"interval": ("interval", _seconds(0.1, 86400))}),
        **_section(top, "lock", {"wait": ("lock_wait", _seconds(0.001, 3600))}),
        **_section(
            top,
            "metrics",
            {"file": ("metrics_file", _absolute), "port": ("metrics_port", _port)},
        ),
        mirror=mirror,
        source=path,
    )
    top.done()
    if mirror is not None and config.kds_url is None and not config.offline:
        config = replace(config, kds_url=mirror.access.url)
    return config


def _mirror(top: _TomlTable) -> MirrorConfig | None:
    table = top.table("mirror")
    if table is None:
        return None
    if "url" not in table.values:
        raise table.error(None, "[mirror] needs the key 'url'")
    access = MirrorAccess(
        url=table.take("url", _url, "").rstrip("/"),
        token_file=table.take("token_file", _absolute, None),
        certificate=table.take("certificate", _absolute, None),
        key=table.take("key", _absolute, None),
    )
    name = table.take("name", _host_name, None)
    table.done()
    if (access.certificate is None) != (access.key is None):
        raise table.error("certificate", "certificate and key must be set together")
    if access.token_file is not None and sent_in_clear(access.url):
        raise table.error(
            "url", "expected https://, because http:// would send the token unencrypted"
        )
    return MirrorConfig(access, name)


def _kds(top: _TomlTable) -> dict[str, Any]:
    return _section(
        top,
        "kds",
        {
            "url": ("kds_url", _url),
            "cache": ("cache", _absolute_path),
            "offline": ("offline", _boolean),
            "anchors": ("anchors", _list_of(_absolute, 16)),
        },
    )


def _section(
    top: _TomlTable, name: str, keys: Mapping[str, tuple[str, Callable[[Any], Any]]]
) -> dict[str, Any]:
    """Return the fields of :class:`Config` that a table ``[name]`` sets."""
    table = top.table(name)
    if table is None:
        return {}
    found = {name: (key, table.take(key, read, None)) for key, (name, read) in keys.items()}
    table.done()
    return {name: value for name, (key, value) in found.items() if key in table.values}


def _files(top: _TomlTable) -> tuple[FileConfig, ...]:
    tables = top.tables("file", MAX_FILES)
    if not tables:
        return (FileConfig(DEFAULT_FILE),)
    files: list[FileConfig] = []
    for table in tables:
        file = _file(table)
        if any(file.path == other.path for other in files):
            raise table.error("path", f"{file.path} is listed twice")
        files.append(file)
    return tuple(files)


def _file(table: _TomlTable) -> FileConfig:
    if "path" not in table.values:
        raise table.error(None, "a [[file]] table needs the key 'path'")
    kind = table.take("kind", _one_of(VekKind), VekKind.VCEK)
    without = table.take("without_vlek", _choice({"empty": None, "vcek": VekKind.VCEK}), None)
    file = FileConfig(
        path=table.take("path", _absolute, ""),
        kind=kind,
        key_select=table.take("key_select", _one_of(GuestKeySelect), GuestKeySelect.DEFAULT),
        without_vlek=without,
        masked_vlek_signs=table.take(
            "with_mask_chip_key", _choice({"empty": False, "vlek": True}), False
        ),
        strategy=table.take("strategy", _one_of(Strategy), DEFAULT_STRATEGY),
        group=table.take("group", _text, None),
        mode=table.take("mode", _mode, None),
        entries=_entries(table),
    )
    table.done()
    if kind is VekKind.VCEK and "without_vlek" in table.values:
        raise table.error("without_vlek", 'only files of kind "vlek" may have this key')
    if kind is VekKind.VCEK and "with_mask_chip_key" in table.values:
        raise table.error("with_mask_chip_key", 'only files of kind "vlek" may have this key')
    return file


def _entries(table: _TomlTable) -> tuple[ExtraEntry, ...]:
    entries: list[ExtraEntry] = []
    for each in table.tables("entry", MAX_ENTRIES):
        for key in ("guid", "path"):
            if key not in each.values:
                raise each.error(None, f"a [[file.entry]] table needs the key '{key}'")
        entry = ExtraEntry(
            each.take("guid", _guid, uuid.UUID(int=0)), each.take("path", _absolute, "")
        )
        if any(entry.guid == other.guid for other in entries):
            raise each.error("guid", "this GUID appears twice; a table has one entry for each GUID")
        each.done()
        entries.append(entry)
    return tuple(entries)


# Errors that name the line and the key of the wrong value.


@dataclass(frozen=True, slots=True)
class _Document:
    path: str
    text: str

    def error(self, where: TomlPath, message: str) -> ConfigError:
        name = next((part for part in reversed(where) if isinstance(part, str)), None)
        line = line_of(self.text, where) if where else None
        at = "" if line is None else f", line {line}"
        return ConfigError(f"{self.path}{at}: {f'{name}: ' if name else ''}{message}")


class _TomlTable:
    """A table of the configuration file, which records which of its keys have been read."""

    def __init__(self, document: _Document, where: TomlPath, values: Mapping[str, Any]) -> None:
        self._document = document
        self._where = where
        self._asked: set[str] = set()
        self.values = values

    def error(self, key: str | None, message: str) -> ConfigError:
        return self._document.error(self._where if key is None else (*self._where, key), message)

    def take(self, key: str, read: Callable[[Any], T], default: T) -> T:
        self._asked.add(key)
        if key not in self.values:
            return default
        try:
            return read(self.values[key])
        except ValueError as error:
            raise self.error(key, str(error)) from None

    def table(self, key: str) -> _TomlTable | None:
        self._asked.add(key)
        if key not in self.values:
            return None
        value = self.values[key]
        if not isinstance(value, dict):
            raise self.error(key, f"expected a table, written [{key}]")
        return _TomlTable(self._document, (*self._where, key), value)

    def tables(self, key: str, limit: int) -> list[_TomlTable]:
        self._asked.add(key)
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            names = (part for part in (*self._where, key) if isinstance(part, str))
            raise self.error(key, f"expected tables, each written [[{'.'.join(names)}]]")
        if len(value) > limit:
            raise self.error(key, f"expected at most {limit} tables, found {len(value)}")
        return [
            _TomlTable(self._document, (*self._where, key, index), each)
            for index, each in enumerate(value)
        ]

    def done(self) -> None:
        """Refuse unknown keys."""
        for key in self.values:
            if key not in self._asked:
                known = ", ".join(sorted(self._asked))
                raise self.error(key, f"this key is unknown; the known keys are {known}")


# Each of these reads one value, or raises ValueError with what was expected.


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"expected text in quotes, found {value!r}")
    return value


def _host_name(value: Any) -> str:
    text = _text(value)
    if len(text) > MAX_NAME or not text.isprintable():
        raise ValueError(
            f"expected printable text of at most {MAX_NAME} characters, found {value!r}"
        )
    return text


def _absolute(value: Any) -> str:
    if not os.path.isabs(_text(value)):
        raise ValueError(f"expected an absolute path, found {value!r}")
    return _text(value)


def _absolute_path(value: Any) -> Path:
    return Path(_absolute(value))


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, found {value!r}")  # noqa: TRY004 (one error)
    return value


def _url(value: Any) -> str:
    text = _text(value)
    if not text.startswith(("https://", "http://")):
        raise ValueError(f"expected a URL that starts with https:// or http://, found {value!r}")
    return text


def _port(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
        raise ValueError(f"expected a port number from 1 to 65535, found {value!r}")
    return value


def _seconds(least: float, most: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        right = isinstance(value, int | float) and not isinstance(value, bool)
        if not right or not math.isfinite(value) or not least <= value <= most:
            raise ValueError(f"expected {least:g} to {most:g} seconds, found {value!r}")
        return float(value)

    return read


def _mode(value: Any) -> int:
    # Text, as for chmod: a TOML number 640 would be decimal.
    try:
        mode = int(_text(value), 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise ValueError(f'expected octal digits in quotes, such as "0640", found {value!r}')
    if mode & 0o400 == 0:
        raise ValueError(f"expected a mode that lets the owner read the file, found {value!r}")
    return mode


def _product(value: Any) -> Product | None:
    names = {product.keyword: product for product in Product if product.is_pinned}
    return _choice(names)(value.lower() if isinstance(value, str) else value)


def _guid(value: Any) -> uuid.UUID:
    named = {name: guid for guid, name in GUID_NAMES.items()}
    text = _text(value)
    try:
        guid = named[text] if text in named else uuid.UUID(text)
    except ValueError:
        raise ValueError(f'expected a GUID or "crl", found {value!r}') from None
    if guid in (VCEK_GUID, VLEK_GUID, ASK_GUID, ARK_GUID):
        raise ValueError(
            "this GUID is reserved, because the agent itself adds the certificates of the "
            "signing key"
        )
    return guid


def _choice(choices: Mapping[str, T]) -> Callable[[Any], T]:
    def read(value: Any) -> T:
        if not isinstance(value, str) or value not in choices:
            listed = ", ".join(f'"{name}"' for name in choices)
            raise ValueError(f"expected one of {listed}, found {value!r}")
        return choices[value]

    return read


E = TypeVar("E", bound=enum.Enum)


def _one_of(kind: type[E]) -> Callable[[Any], E]:
    return _choice({str(each.value): each for each in kind})


def _list_of(read: Callable[[Any], T], limit: int) -> Callable[[Any], tuple[T, ...]]:
    def read_all(value: Any) -> tuple[T, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f"expected a list, found {value!r}")  # noqa: TRY004 (one error)
        if len(value) > limit:
            raise ValueError(f"expected at most {limit} items, found {len(value)}")
        return tuple(read(each) for each in value)

    return read_all
