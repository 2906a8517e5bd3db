# SPDX-License-Identifier: Apache-2.0
"""Builds the private mount namespace in which a program finds the emulated paths.

The calling process moves into the namespace and then becomes the program. The machine's own file
systems do not change, and the namespace ends with its processes.

- If a name is missing from a directory, or must be hidden, the directory is covered by a
  tmpfs with the same entries: each is a bind mount of the real one, or a copy of a
  link. ``/dev`` is always covered, to hide the real devices that the door guards.
- A device is a bind mount of the ``ptmx`` of its own devpts: the only character device
  that an unprivileged user can create. The kernel counts its opens: each is
  a file in that devpts until its last descriptor is closed
  (:mod:`snpcerts.emulator.frontdoor.namespace_devices`). Its own ioctls, those of a
  terminal, do no harm; those of KVM and SEV are trapped.
- A file is in a tmpfs, which the server fills and keeps up to date
  (:mod:`snpcerts.emulator.frontdoor.namespace_files`).
- A tree is a FUSE file system that the server serves
  (:mod:`snpcerts.emulator.frontdoor.tree_server`). Without ``/dev/fuse`` it is left out.

A process that may not mount file systems first moves into its own user namespace, in which its user
and group keep their numbers. Files of all other users appear to belong to ``nobody``. The process
gains no privilege, because execve(2) takes the namespace's capabilities away.

Sources: mount_namespaces(7), user_namespaces(7), mount(2), devpts in the kernel's
``filesystems/devpts.rst``; numbers of ``linux/mount.h`` and ``linux/sched.h``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from snpcerts.emulator.frontdoor.layout import Layout, Places

CLONE_NEWNS: Final = 0x20000
CLONE_NEWUSER: Final = 0x10000000
MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_SLAVE: Final = 0x80000
MNT_DETACH: Final = 0x2
OPEN_TREE_CLONE: Final = 0x1
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429

DEVICES: Final = "/dev"
_STAGE: Final = "/dev/.snpcerts"  # a mount point while the namespace is built
_PTMX: Final = "/dev/ptmx"
_REAL: Final = "/dev/.real"
_HARMLESS: Final = MS_NOSUID | MS_NOEXEC
_TMPFS: Final = "mode=755,size=64m"
_FUSE: Final = "/dev/fuse"
_DEVPTS: Final = "newinstance,mode=600,ptmxmode=600"
_WORKS: Final = "works"

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """The mount namespace of this process. ``places`` says what each of ``descriptors`` is for.

    ``lacks`` says why a tree of the layout could not be mounted. It is empty if all were.
    """

    def __init__(self, places: Places, descriptors: tuple[int, ...], lacks: str = "") -> None:
        self.places = places
        self.descriptors = descriptors
        self.lacks = lacks


def missing() -> str:
    """Return why this process cannot have its own mount namespace, or an empty string if it can.

    A child process tries to enter one, because a process cannot leave such a namespace.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, _try().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    os.waitpid(child, 0)
    return "" if said == _WORKS else said or "the process that tried to enter one was killed"


def _try() -> str:
    try:
        _Builder().build(Layout(("/dev/sev",), (), {"/proc/cpuinfo": 0o444}, ()), copies=False)
        descriptor = os.open("/dev/sev", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
            if b"\ntty-index:" not in file.read():
                return "the kernel shows no tty-index in the fdinfo of a ptmx"
    except OSError as error:
        return str(error)
    return _WORKS


def build(layout: Layout) -> Namespace:
    """Move this process into a new namespace with ``layout``. After an ``OSError``, the namespace
    is only partly built.
    """
    return _Builder().build(layout)


class _Builder:
    def __init__(self) -> None:
        self._devices: dict[str, int] = {}
        self._roots: list[int] = []
        self._mirrors: dict[str, int] = {}  # covered directory -> number of its root
        self._files: dict[str, tuple[int, str]] = {}
        self._directories: dict[str, tuple[int, str]] = {}
        self._trees: dict[str, int] = {}
        self._lacks = ""

    def build(self, layout: Layout, *, copies: bool = True) -> Namespace:
        """Build the namespace. If ``copies`` is false, covered directories contain only emulated
        files, without the real directories' entries.
        """
        within = tuple(f"{each}/" for each in layout.directories)
        files = {path: mode for path, mode in layout.files.items() if not path.startswith(within)}
        absent = frozenset((*layout.devices, *layout.hidden, *layout.directories))
        _enter()
        before = os.umask(0o022)
        try:
            present = {path: mode for path, mode in files.items() if os.path.exists(path)}
            lacking = {path: mode for path, mode in files.items() if path not in present}
            new_trees = [path for path in layout.trees if not os.path.isdir(path)]
            parents = map(os.path.dirname, (*lacking, *layout.directories, *new_trees))
            above = {_existing(each) for each in parents}
            for directory in (DEVICES, *sorted(above - {DEVICES})):
                self._mirror(directory, absent if copies else None)
            for path in layout.devices:
                self._make_device(path)
            for path, mode in lacking.items():
                self._files[path] = self._place(path)
                _create(path, mode)
            for path in layout.directories:
                self._directories[path] = self._place(path)
            for path in new_trees:
                os.makedirs(path)
            self._cover(present)
            for directory in self._mirrors:
                if os.path.commonpath((directory, DEVICES)) != DEVICES:
                    _seal(directory)
            os.rmdir(_STAGE)
            with contextlib.suppress(OSError):  # it may have been removed
                os.chdir(os.getcwd())  # if a new mount covers the directory, this moves to it
            for path in layout.trees:
                self._mount_tree(path)
        finally:
            os.umask(before)
        places = Places(
            tuple(self._devices),
            len(self._roots),
            dict(self._files),
            dict(self._directories),
            tuple(self._trees),
        )
        given = (*self._devices.values(), *self._roots, *self._trees.values())
        return Namespace(places, given, self._lacks)

    def _mirror(self, directory: str, absent: frozenset[str] | None) -> None:
        """Cover a directory with a tmpfs that shows the directory's entries except ``absent``.

        If ``absent`` is None, the tmpfs shows no entries.
        """
        with contextlib.ExitStack() as stack:
            real = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, real)
            self._mirrors[directory] = len(self._roots)
            if directory == DEVICES:
                tree = _clone(directory)
                stack.callback(os.close, tree)
                _mount("tmpfs", directory, _HARMLESS, kind="tmpfs", options=_TMPFS)
                self._roots.append(_open_directory(directory))
                os.mkdir(_STAGE)
            else:
                with self._staged("tmpfs", _TMPFS) as root:
                    self._roots.append(root)
                    _mount(_STAGE, directory, MS_BIND)
            if absent is not None:
                _copy(real, directory, absent)
                if directory == DEVICES:
                    _make_ptmx(tree, absent)

    @staticmethod
    @contextlib.contextmanager
    def _staged(kind: str, options: str) -> Iterator[int]:
        """Mount a new file system at ``_STAGE``, yield a file descriptor for its root, and unmount
        the file system. The descriptor remains valid.
        """
        _mount(kind, _STAGE, _HARMLESS, kind=kind, options=options)
        try:
            yield _open_directory(_STAGE)
        finally:
            _unmount(_STAGE)

    def _make_device(self, path: str) -> None:
        with self._staged("devpts", _DEVPTS) as root:
            self._devices[path] = root
            _create(path, 0o600)
            _mount(f"{_STAGE}/ptmx", path, MS_BIND)

    def _mount_tree(self, path: str) -> None:
        """Mount a FUSE file system at ``path``. Calls on it block until the server answers."""
        try:
            fuse = os.open(_FUSE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            self._lacks = f"{path} is missing: {_FUSE}: {error.strerror}"
            return
        options = f"fd={fuse},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"
        options += ",default_permissions,allow_other"
        try:
            _mount("snpcerts", path, _HARMLESS, kind="fuse", options=options)
        except OSError as error:
            os.close(fuse)
            self._lacks = f"{path} is missing: {error}"
        else:
            self._trees[path] = fuse

    def _cover(self, files: Mapping[str, int]) -> None:
        """Bind-mount an emulated file over each real file in ``files``, which maps paths to
        modes.
        """
        with self._staged("tmpfs", _TMPFS) as root:
            for number, (path, mode) in enumerate(files.items()):
                self._files[path] = len(self._roots), str(number)
                _create(f"{_STAGE}/{number}", mode)
                _mount(f"{_STAGE}/{number}", path, MS_BIND)
                if not mode & stat.S_IWUSR:
                    _seal(path)
            self._roots.append(root)

    def _place(self, path: str) -> tuple[int, str]:
        """Return the number of the covered directory that contains ``path``, and the path below it.
        Create the parent directory of ``path``.
        """
        directory = max((each for each in self._mirrors if path.startswith(f"{each}/")), key=len)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return self._mirrors[directory], os.path.relpath(path, directory)


def _enter() -> None:
    """Enter a new mount namespace, inside a new user namespace if this process lacks the
    privilege.
    """
    if _libc.unshare(CLONE_NEWNS):
        if ctypes.get_errno() != errno.EPERM:
            raise _failed("cannot create a namespace with unshare")
        user, group = os.geteuid(), os.getegid()
        if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
            raise _failed("cannot create a namespace with unshare")
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            Path("/proc/self", name).write_text(text)
    # Our mounts stay in this namespace. Later mounts of the machine still appear here.
    _mount("none", "/", MS_REC | MS_SLAVE)


def _copy(real: int, directory: str, absent: frozenset[str]) -> None:
    """Create the entries of the directory ``real``, except ``absent``, in the new ``directory``."""
    for name in os.listdir(f"/proc/self/fd/{real}"):
        path = f"{directory}/{name}"
        if path in absent or path == _PTMX:
            continue
        with contextlib.suppress(FileNotFoundError):  # devices come and go
            mode = os.lstat(name, dir_fd=real).st_mode
            if stat.S_ISLNK(mode):
                os.symlink(os.readlink(name, dir_fd=real), path)
            elif stat.S_ISDIR(mode):
                os.mkdir(path)
                _mount(f"/proc/self/fd/{real}/{name}", path, MS_BIND | MS_REC)
            else:
                _create(path, 0o600)
                _mount(f"/proc/self/fd/{real}/{name}", path, MS_BIND)


def _make_ptmx(tree: int, absent: frozenset[str]) -> None:
    """Create the ``ptmx`` that opens terminals in the new ``/dev``.

    It cannot be a bind mount, because it looks for ``pts`` in its own directory.
    """
    with contextlib.suppress(FileNotFoundError):
        found = os.lstat("ptmx", dir_fd=tree)
        if stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink("ptmx", dir_fd=tree), _PTMX)
            return
        try:
            os.mknod(_PTMX, found.st_mode, found.st_rdev)
            os.chown(_PTMX, found.st_uid, found.st_gid)
            os.chmod(_PTMX, stat.S_IMODE(found.st_mode))
        except PermissionError:
            # A user namespace does not allow mknod. Bind the whole real directory again and
            # cover its devices.
            os.mkdir(_REAL)
            _attach(tree, _REAL)
            for path in absent:
                covered = os.path.join(_REAL, os.path.basename(path))
                if os.path.dirname(path) == DEVICES and os.path.exists(covered):
                    _mount(f"{DEVICES}/null", covered, MS_BIND)
            os.symlink(f"{os.path.basename(_REAL)}/ptmx", _PTMX)


def _existing(directory: str) -> str:
    """Return ``directory``, or its deepest ancestor that exists."""
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    return directory


def _create(path: str, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    os.close(os.open(path, flags, mode))


def _open_directory(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _seal(path: str) -> None:
    """Make the mount at ``path`` read-only. Its file system stays writable through other mounts."""
    _mount("none", path, MS_REMOUNT | MS_BIND | MS_RDONLY | _HARMLESS)


def _mount(source: str, target: str, flags: int, *, kind: str = "none", options: str = "") -> None:
    words = (source, target, kind)
    encoded = (os.fsencode(word) for word in words)
    if _libc.mount(*encoded, ctypes.c_ulong(flags), options.encode() or None):
        raise _failed(f"mount {kind if kind != 'none' else source}", target)


def _clone(directory: str) -> int:
    """Return a descriptor for a copy of the mounts at and below ``directory``. The copy is not
    mounted yet.
    """
    flags = OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    words = (ctypes.c_int(_AT_FDCWD), os.fsencode(directory), ctypes.c_uint(flags))
    tree = int(_libc.syscall(ctypes.c_long(_SYS_OPEN_TREE), *words))
    if tree < 0:
        raise _failed("open_tree", directory)
    return tree


def _attach(tree: int, target: str) -> None:
    """Mount ``tree``, a copy that :func:`_clone` returned, at ``target``."""
    to = (ctypes.c_int(_AT_FDCWD), os.fsencode(target), ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH))
    if _libc.syscall(ctypes.c_long(_SYS_MOVE_MOUNT), ctypes.c_int(tree), b"", *to):
        raise _failed("move_mount", target)


def _unmount(target: str) -> None:
    if _libc.umount2(os.fsencode(target), MNT_DETACH):
        raise _failed("umount", target)


def _failed(what: str, where: str = "") -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}", *([where] if where else []))
