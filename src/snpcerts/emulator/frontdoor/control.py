# SPDX-License-Identifier: Apache-2.0
"""The Unix socket through which launchers reach the server that owns the devices.

Each message is one packet (SOCK_SEQPACKET) with a JSON object, and may carry descriptors. The
answer to each is one JSON object. The socket of a server has mode 0600, and the server accepts only
its own user and root.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from snpcerts.errors import InputError, RefusedError, SnpCertsError, UsageError

if TYPE_CHECKING:  # launchers start without loading the supervisor
    from snpcerts.emulator.frontdoor.supervisor import Supervisor

log = logging.getLogger(__name__)

MESSAGE_MAX: Final = 65536  # bytes
DESCRIPTORS_MAX: Final = 32
CONNECTIONS_MAX: Final = 256
PATIENCE: Final = 30.0  # seconds to wait for an answer
_SUN_PATH: Final = 107  # bytes of a socket's path
_UCRED = struct.Struct("<iII")  # SO_PEERCRED: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Hello:
    """A message from a launcher, with its sender. The handler must close ``descriptors``."""

    message: dict[str, Any]
    descriptors: tuple[int, ...]
    pid: int
    uid: int


def send(
    peer: socket.socket, message: Mapping[str, object], descriptors: tuple[int, ...] = ()
) -> None:
    """Send ``message`` with copies of ``descriptors``, which the caller still owns."""
    socket.send_fds(peer, [json.dumps(message).encode()], list(descriptors))


def receive(peer: socket.socket) -> tuple[dict[str, Any], tuple[int, ...]] | None:
    """Receive one message; return None if the peer has closed the connection. Raises InputError if
    the message is not a JSON object.
    """
    room = socket.CMSG_SPACE(DESCRIPTORS_MAX * 4)
    data, ancillary, flags, _ = peer.recvmsg(MESSAGE_MAX, room, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % 4])
    if not data and not descriptors:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("the message is too long")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise TypeError("the message is not a JSON object")
    except (ValueError, TypeError, RecursionError) as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise InputError(
            f"message on the control socket: expected one JSON object of at most"
            f" {MESSAGE_MAX} bytes ({error})"
        ) from error
    return message, tuple(descriptors)


def connect(path: Path) -> socket.socket:
    """Connect to the server at ``path``. Raises RefusedError if no server listens."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.settimeout(PATIENCE)
    try:
        with _address(path) as address:
            peer.connect(address)
    except OSError as error:
        peer.close()
        raise RefusedError(
            f"no emulator answers at {path} ({error.strerror})",
            hint="start the emulator first: 'snpcerts emulate host' or 'snpcerts emulate guest'",
        ) from error
    return peer


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """Yield a name for ``path`` that fits into a socket's address, even if the path is long."""
    if len(os.fsencode(path)) <= _SUN_PATH:
        yield str(path)
        return
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{path.parent}: {error.strerror}") from None
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class ControlSocket:
    """The server's end of the control socket, served in the supervisor's loop.

    ``handler`` gets each :class:`Hello` and returns the answer. If it raises a
    :class:`SnpCertsError`, the answer is ``{"error": ..., "code": ...}``. A socket that a dead
    server left behind is replaced; if a server still listens there, this raises
    :class:`snpcerts.errors.UsageError`.
    """

    def __init__(self, path: Path, handler: Callable[[Hello], Mapping[str, object]]) -> None:
        self.path = path
        self._handler = handler
        self._supervisor: Supervisor | None = None
        self._peers: dict[int, socket.socket] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            with _address(path) as address:
                self._bind(address)
        except BaseException:
            self._socket.close()
            raise

    def _bind(self, address: str) -> None:
        # The mode of the socket file is the socket's own mode without the bits of the umask.
        os.fchmod(self._socket.fileno(), 0o600)
        try:
            self._socket.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise InputError(f"cannot listen at {self.path}: {error.strerror}") from error
            with contextlib.suppress(RefusedError):
                connect(self.path).close()
                raise UsageError(
                    f"another emulator listens at {self.path}", hint="use that emulator, or stop it"
                ) from error
            os.unlink(address)
            self._socket.bind(address)
        self._socket.listen(16)

    @property
    def connected(self) -> bool:
        """Whether a launcher is connected."""
        return bool(self._peers)

    def attach(self, supervisor: Supervisor) -> None:
        """Let the supervisor's loop serve this socket."""
        self._supervisor = supervisor
        supervisor.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Close all connections, and remove the socket's file."""
        for peer in list(self._peers.values()):
            self._hang_up(peer)
        if self._supervisor is not None:
            self._supervisor.remove_reader(self._socket.fileno())
        # Remove the file first: after the close, another server may have created a file there.
        self.path.unlink(missing_ok=True)
        self._socket.close()

    def _accept(self) -> None:
        try:
            peer, _ = self._socket.accept()
        except OSError:  # the launcher has gone, or no descriptor is left; it can connect again
            return
        _, uid, _ = _credentials(peer)
        if uid not in (0, os.geteuid()) or len(self._peers) >= CONNECTIONS_MAX:
            peer.close()
            return
        peer.setblocking(False)
        self._peers[peer.fileno()] = peer
        if self._supervisor is not None:
            self._supervisor.add_reader(peer.fileno(), lambda: self._hear(peer))

    def _hear(self, peer: socket.socket) -> None:
        try:
            received = receive(peer)
        except BlockingIOError:
            return
        except OSError:
            self._hang_up(peer)
            return
        except InputError as error:
            self._reply(peer, {"error": str(error), "code": error.code})
            return
        if received is None:
            self._hang_up(peer)
            return
        pid, uid, _ = _credentials(peer)
        try:
            answer = self._handler(Hello(*received, pid, uid))
        except SnpCertsError as error:
            answer = {"error": str(error), "code": error.code}
        except Exception:
            # A message from one peer must not end the emulator, which serves other peers too.
            log.exception("cannot handle the control message from process %d", pid)
            answer = {
                "error": "the emulator failed while it handled the control message",
                "code": InputError.code,
            }
        self._reply(peer, answer)

    def _reply(self, peer: socket.socket, answer: Mapping[str, object]) -> None:
        try:
            send(peer, answer)
        except OSError:  # the peer does not read its answers, or has ended
            self._hang_up(peer)

    def _hang_up(self, peer: socket.socket) -> None:
        if self._peers.pop(peer.fileno(), None) is None:
            return
        if self._supervisor is not None:
            self._supervisor.remove_reader(peer.fileno())
        peer.close()


def _credentials(peer: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = _UCRED.unpack(
        peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    return pid, uid, gid
