# SPDX-License-Identifier: Apache-2.0
"""The cache on disk: one file for each certificate, chain or revocation list that has verified.

::

    vcek/{hwid}/bl04_tee00_snp24_ucode219_vcek.der          Milan, Genoa
    vcek/{hwid}/bl01_tee01_snp04_ucode81_fmc01_vcek.der     Turin
    vcek/{hwid}/tee01_snp04_fmc01_vcek.der                  Venice (not in trustee)
    chain/{product}/vcek.pem                                ASK and ARK
    chain/{product}/vlek.pem                                ASVK and ARK
    crl/{product}/vcek.crl, crl/{product}/vlek.crl          DER
    lock/                                                   locks and state of the turns

The offline store of the trustee verifier (confidential-containers/trustee) uses the first two names
below its configured path. Its ``deps/verifier/src/snp/mod.rs`` writes the hwID in lower case (8
bytes on Turin, otherwise 64) and the components of the *reported* TCB in this order, in decimal,
with at least two digits. For ``fmc``, trustee's code, test and guide have ``_fmc05``; only the
description of the change that added the layout (pull request 1498) has a second underscore. So
trustee can use a cache, or a copy of the cache's ``vcek`` directory, unchanged. The file names need
not contain the product, because the certificate names it and is read before use.

The store handles names, sizes and atomic replacement, and verifies nothing. Its callers must judge
what they read from it in the same way as an answer from the network.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Final

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError, UsageError
from snpcerts.file_date import written_at
from snpcerts.kds.body import MAX_BODY
from snpcerts.kds.errors import CacheError
from snpcerts.kds.url import ChainResource, CrlResource, Resource, VcekResource

# Limits the listing of a directory that is never cleaned up.
MAX_ENTRIES: Final = 100_000

_COMPONENTS: Final = {
    "bl": "bootloader",
    "tee": "tee",
    "snp": "snp",
    "ucode": "microcode",
    "fmc": "fmc",
}
_VCEK_NAME = re.compile(
    "".join(f"(?:{short}([0-9]{{2,3}})_)?" for short in _COMPONENTS) + r"vcek\.der"
)
_HWID = re.compile(r"(?:[0-9a-f]{2})+")
_TEMPORARY: Final = ".snpcerts-"
_LEFTOVER_AGE: Final = 3600.0  # seconds; a write takes milliseconds

# The data is public, and trustee, which may run as another user, reads it too.
_FILE_MODE: Final = 0o644
_DIRECTORY_MODE: Final = 0o755


def place_of(resource: Resource) -> PurePosixPath:
    """Return the path of a resource's file, relative to the cache's directory."""
    if isinstance(resource, VcekResource):
        named = resource.tcb.components()
        name = "".join(
            f"{short}{named[component]:02}_"
            for short, component in _COMPONENTS.items()
            if component in named
        )
        return PurePosixPath("vcek", resource.hwid.hex(), f"{name}vcek.der")
    kind = resource.kind.value
    if isinstance(resource, ChainResource):
        return PurePosixPath("chain", resource.product.value, f"{kind}.pem")
    return PurePosixPath("crl", resource.product.value, f"{kind}.crl")


def resource_at(place: PurePosixPath, product: Product) -> Resource | None:
    """Return the resource of ``product`` that a file at ``place`` holds; None if no resource has
    that place.

    Only the spelling that :func:`place_of` returns is accepted.
    """
    try:
        resource = _resource_at(place, product)
    except (FormatError, UsageError):
        return None
    return resource if resource is not None and place_of(resource) == place else None


def _resource_at(place: PurePosixPath, product: Product) -> Resource | None:
    match place.parts:
        case ("vcek", hwid, name):
            found = _VCEK_NAME.fullmatch(name)
            if found is None or _HWID.fullmatch(hwid) is None:
                return None
            numbers = zip(_COMPONENTS.values(), found.groups(), strict=True)
            values = {component: int(text) for component, text in numbers if text is not None}
            return VcekResource(product, bytes.fromhex(hwid), TcbVersion.of(values))
        case ("chain", product.value, name) if name.endswith(".pem"):
            kind = _kind(name.removesuffix(".pem"))
            return None if kind is None else ChainResource(product, kind)
        case ("crl", product.value, name) if name.endswith(".crl"):
            kind = _kind(name.removesuffix(".crl"))
            return None if kind is None else CrlResource(product, kind)
    return None


def _kind(word: str) -> VekKind | None:
    return next((kind for kind in VekKind if kind.value == word), None)


class Store:
    """The cache in one directory, which is created at the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path_of(self, resource: Resource) -> Path:
        """Return the path of a resource's file."""
        return self.root / place_of(resource)

    def read(self, resource: Resource) -> bytes | None:
        """Return the cached body of a resource, unverified; None if it is not cached.

        Raises :class:`CacheError` if the file cannot be read, is not a regular file, or is larger
        than 64 KiB.
        """
        return self.read_place(place_of(resource))

    def read_place(self, place: PurePosixPath) -> bytes | None:
        """Return the body of the file at ``place``, as :meth:`read` does for a resource."""
        path = self.root / place
        try:
            # Non-blocking, so that a FIFO cannot hold the caller up.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            with open(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise CacheError(
                        f"{path}: expected a regular file, found another kind of file",
                        hint="remove the file; its content is then fetched again",
                    )
                data = file.read(MAX_BODY + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(f"cannot read {path}: {error.strerror or error}") from None
        if len(data) > MAX_BODY:
            raise CacheError(
                f"{path}: expected at most {MAX_BODY} bytes, found more",
                hint="remove the file; its content is then fetched again",
            )
        return data

    def kept_since(self, resource: Resource) -> datetime | None:
        """Return the date of the resource's file, as :func:`written_at` judges it; None if the
        resource is not cached.
        """
        try:
            return written_at(self.path_of(resource).stat().st_mtime)
        except OSError:
            return None

    def version(self, resource: Resource) -> object:
        """Return a value that is different after each :meth:`write`; None if the resource is not
        cached.
        """
        try:
            found = self.path_of(resource).stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns

    def write(self, resource: Resource, data: bytes) -> None:
        """Write a resource's body atomically: even after a crash, the file has either all of its
        old content or all of the new content.

        Raises :class:`CacheError` if the file cannot be written. The old file then stays.
        """
        path = self.path_of(resource)
        try:
            path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            _remove_leftovers(path.parent)
            _replace(path, data)
        except OSError as error:
            raise CacheError(f"cannot write {path}: {error.strerror or error}") from None

    def remove(self, resource: Resource) -> None:
        """Remove the resource's file, and its directory if that is then empty."""
        path = self.path_of(resource)
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()

    def places(self) -> Iterator[PurePosixPath]:
        """Yield the places of all files that may hold resources, in order. Raises
        :class:`CacheError` for more than :data:`MAX_ENTRIES`.
        """
        count = 0
        for first in ("chain", "crl", "vcek"):
            for folder in _listed(self.root / first):
                for name in _listed(self.root / first / folder):
                    if name.startswith("."):
                        continue
                    count += 1
                    if count > MAX_ENTRIES:
                        raise CacheError(
                            f"{self.root}: expected at most {MAX_ENTRIES} files, found more"
                        )
                    yield PurePosixPath(first, folder, name)


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CacheError(f"cannot list {folder}: {error.strerror or error}") from None


def _replace(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, _FILE_MODE)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files that processes left behind when they were killed during a write."""
    for name in os.listdir(folder):
        if name.startswith(_TEMPORARY):
            with contextlib.suppress(OSError):
                path = folder / name
                if time.time() - path.lstat().st_mtime > _LEFTOVER_AGE:
                    path.unlink()
