# SPDX-License-Identifier: Apache-2.0
"""The messages in which server and launcher describe a program's mount namespace to each other.

The server knows the door and sends a :class:`Layout`. The launcher builds the namespace and sends
back a :class:`Places` with its descriptors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from snpcerts.errors import InputError

_PATHS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths that a door emulates or hides: absolute, without links.

    ``devices`` are emulated; ``hidden`` are real devices that the program must not see. ``files``
    maps each file's path to its mode. The server creates ``directories`` with all their contents.
    On each of ``trees``, a file system of the server is mounted.
    """

    devices: tuple[str, ...]
    hidden: tuple[str, ...]
    files: Mapping[str, int]
    directories: tuple[str, ...]
    trees: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return this layout as a JSON object, which :meth:`from_json` parses."""
        return {
            "devices": list(self.devices),
            "hidden": list(self.hidden),
            "files": dict(self.files),
            "directories": list(self.directories),
            "trees": list(self.trees),
        }

    @classmethod
    def from_json(cls, found: object) -> Layout:
        """Return the layout in ``found``, a result of :meth:`to_json`. Raises ``InputError`` if it
        is malformed.
        """
        parts = _object(found)
        files = {path: mode for path, mode in _object(parts.get("files")).items() if _plain(path)}
        if any(type(mode) is not int or not 0 <= mode <= 0o777 for mode in files.values()):
            raise InputError(
                "layout of a namespace: a file has a mode that is not between 0 and 0777"
            )
        devices, hidden, directories, trees = (
            _paths(parts.get(name)) for name in ("devices", "hidden", "directories", "trees")
        )
        return cls(devices, hidden, files, directories, trees)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the launcher put the devices and files of a mount namespace.

    The message comes with descriptors, in this order: for each of ``devices``, the root of a devpts
    instance; the roots of ``roots`` file systems; for each of ``trees``, its open ``/dev/fuse``.
    ``files`` and ``directories`` map a path to the number of its root and its name below that root.
    ``trees`` lists those trees of the layout that could be mounted.
    """

    devices: tuple[str, ...]
    roots: int
    files: Mapping[str, tuple[int, str]]
    directories: Mapping[str, tuple[int, str]]
    trees: tuple[str, ...] = ()

    @property
    def descriptors(self) -> int:
        """The number of descriptors that come with this message."""
        return len(self.devices) + self.roots + len(self.trees)

    def to_json(self) -> dict[str, object]:
        """Return these places as a JSON object, which :meth:`from_json` parses."""
        return {
            "devices": list(self.devices),
            "roots": self.roots,
            "files": {path: list(place) for path, place in self.files.items()},
            "directories": {path: list(place) for path, place in self.directories.items()},
            "trees": list(self.trees),
        }

    @classmethod
    def from_json(cls, found: object) -> Places:
        """Return the places in ``found``, a result of :meth:`to_json`. Raises ``InputError`` if it
        is malformed.
        """
        parts = _object(found)
        roots = parts.get("roots")
        if type(roots) is not int or not 0 <= roots < _PATHS_MAX:
            raise InputError(
                f"places in a namespace: expected 0 to {_PATHS_MAX - 1} roots of file systems"
            )
        files, directories = (_places(parts.get(name), roots) for name in ("files", "directories"))
        devices, trees = _paths(parts.get("devices")), _paths(parts.get("trees"))
        return cls(devices, roots, files, directories, trees)


def _object(found: object) -> dict[str, Any]:
    if not isinstance(found, dict) or len(found) > _PATHS_MAX:
        raise InputError(
            f"message about a namespace: expected a JSON object with at most {_PATHS_MAX} entries"
        )
    return found


def _plain(path: object) -> bool:
    if not isinstance(path, str) or "\0" in path or os.path.normpath(path) != path:
        raise InputError("message about a namespace: a path is not normalised")
    # normpath keeps two slashes at the start.
    if not path.startswith("/") or path.startswith("//"):
        raise InputError("message about a namespace: a path is not absolute")
    return True


def _paths(found: object) -> tuple[str, ...]:
    if not isinstance(found, list) or len(found) > _PATHS_MAX:
        raise InputError(
            f"message about a namespace: expected a list of at most {_PATHS_MAX} paths"
        )
    return tuple(path for path in found if _plain(path))


def _places(found: object, roots: int) -> dict[str, tuple[int, str]]:
    return {path: _place(where, roots) for path, where in _object(found).items() if _plain(path)}


def _place(found: Sequence[object], roots: int) -> tuple[int, str]:
    match found:
        case [int(root), str(name)] if 0 <= root < roots and name and _plain(f"/{name}"):
            return root, name
    raise InputError(
        "message about a namespace: expected each place to be the number of a file system's root "
        "and a name below it"
    )
