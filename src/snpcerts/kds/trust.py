# SPDX-License-Identifier: Apache-2.0
"""The trusted roots for a key server's TLS certificate: the system's, unless the environment
variable SSL_CERT_FILE or SSL_CERT_DIR names others.

OpenSSL silently ignores a missing file. Then no server's certificate verifies, and the reason is
hard to find. In this module, a missing file is therefore an error that names the file.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

from snpcerts.errors import InputError

_FILE, _FOLDER = "SSL_CERT_FILE", "SSL_CERT_DIR"


def trusted(environment: Mapping[str, str]) -> ssl.SSLContext:
    """Return a TLS context with the trusted roots. Raises :class:`InputError` if there are none."""
    file, folder = environment.get(_FILE) or None, environment.get(_FOLDER) or None
    if folder is not None and not any(Path(each).is_dir() for each in folder.split(":")):
        raise InputError(
            f"the environment variable {_FOLDER}: expected a directory, found {folder!r}",
            hint=_HINT,
        )
    try:
        if file is None and folder is None:
            context = ssl.create_default_context()
        else:
            # OpenSSL itself reads both variables, but ignores a missing file. Load the file again,
            # which raises an error if it is missing.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.set_default_verify_paths()
            if file is not None:
                context.load_verify_locations(cafile=file)
    except OSError as error:  # ssl.SSLError is an OSError
        reason = error.strerror or error.args[-1]
        raise InputError(
            (
                f"the environment variable {_FILE}: expected a file of PEM roots, found {file!r}, "
                f"which has no usable roots: {reason}"
            ),
            hint=_HINT,
        ) from None
    if not context.get_ca_certs() and not _may_have(environment):
        raise InputError(
            f"no trusted TLS roots were found ({places_of_roots(environment)})",
            hint=_HINT,
        )
    return context


def places_of_roots(environment: Mapping[str, str]) -> str:
    """Return the paths where trusted roots may be, for messages."""
    paths = ssl.get_default_verify_paths()
    file = environment.get(_FILE) or paths.openssl_cafile
    folder = environment.get(_FOLDER) or paths.openssl_capath
    return f"{file}, {folder}"


_HINT = "install the package ca-certificates, or name a PEM file of roots in SSL_CERT_FILE"


def _may_have(environment: Mapping[str, str]) -> bool:
    """Return whether a directory of roots contains any file. OpenSSL reads such files only when
    needed.
    """
    folders = environment.get(_FOLDER) or ssl.get_default_verify_paths().openssl_capath
    for folder in folders.split(":"):
        try:
            if any(Path(folder).iterdir()):
                return True
        except OSError:
            continue
    return False
