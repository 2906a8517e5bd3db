# SPDX-License-Identifier: Apache-2.0
"""Installs and removes the agent's units, configuration, group and directories.

:func:`plan_installation` and :func:`plan_removal` read the host and change nothing. If something
must not be done, they raise an error that says what to do instead. :func:`carry_out` performs the
steps. Files and links are replaced atomically, and a new plan does not repeat what is already
done. So running the command again performs the steps that an interrupted run left out.

No step touches a certificate file, because guests may be served from it.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import functools
import grp
import hashlib
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Final

from snpcerts.certfile.trusted_path import doubts
from snpcerts.errors import InputError, RefusedError
from snpcerts.host.config import DEFAULT_CACHE, DEFAULT_FILE, DEFAULT_PATH, DEFAULT_VLEK, load

DEFAULT_GROUP: Final = "kvm"
AGENT_UNIT: Final = "snpcerts-sync.service"
UNITS: Final = (AGENT_UNIT, "snpcerts-check.service")
_UNIT_FOLDER: Final = "/etc/systemd/system"
_TMPFILES: Final = "/etc/tmpfiles.d/snpcerts.conf"
_DIRECTORIES: Final = (os.path.dirname(DEFAULT_FILE), DEFAULT_VLEK, DEFAULT_CACHE)
COMMAND_LINK: Final = "/usr/local/bin/snpcerts"
# Where packages install units, and the command that the shipped units run.
_PACKAGE_UNITS: Final = ("/usr/lib/systemd/system", "/lib/systemd/system")
_PACKAGED_COMMAND: Final = "/usr/bin/snpcerts"
# The units have ProtectHome and PrivateTmp, so they cannot see these directories.
_HIDDEN_FROM_UNITS: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 (refused)
_MARK: Final = "# Written by snpcerts host install. SHA-256 of what follows: "
_NAME: Final = re.compile(r"[a-z_][a-z0-9_-]{0,30}\Z")
_PLAIN_PATH: Final = re.compile(r"/[A-Za-z0-9/._+-]+\Z")
_RUNS: Final = re.compile(r"^ExecStart=(\S+)", re.MULTILINE)
_SHARED: Final = (
    "share/man/man1",
    "share/bash-completion/completions",
    "share/zsh/site-functions",
    "share/fish/vendor_completions.d",
)
_OWN_VENV: Final = (
    "install snpcerts where all users of this host can read it: in the source tree, "
    "run 'python3 -m venv /opt/snpcerts', then '/opt/snpcerts/bin/pip install .', "
    "then '/opt/snpcerts/bin/snpcerts host install'"
)


class StepOutcome(enum.Enum):
    """What happens to an item. The values are stable across releases."""

    CREATED = "created"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"
    KEPT = "kept"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class InstallStep:
    """One item, and what happens to it. If ``perform`` is None, nothing is done."""

    item: str
    path: str
    outcome: StepOutcome
    note: str = ""
    perform: Callable[[], None] | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, str]:
        """Return the step as a JSON object."""
        return {
            "item": self.item,
            "path": self.path,
            "outcome": self.outcome.value,
            "note": self.note,
        }

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.item:<13} {self.path}: {self.outcome.value}{note}"


@dataclass(frozen=True, slots=True)
class InstallTarget:
    """The host on which snpcerts is installed, or from which it is removed.

    ``root`` is the host's root directory, as this process sees it. ``command`` is the absolute
    path, inside the root, of the command that the units start. ``replace`` says whether to replace
    files that do not belong to this installation or were edited.
    """

    root: str = "/"
    command: str = _PACKAGED_COMMAND
    group: str = DEFAULT_GROUP
    replace: bool = False

    def at(self, path: str) -> str:
        """Return the path at which this process sees the host's ``path``."""
        return os.path.join(self.root, path.lstrip("/"))

    @property
    def is_this_host(self) -> bool:
        """Whether ``root`` is this machine's own root directory."""
        return os.path.realpath(self.root) == "/"

    @property
    def has_service_manager(self) -> bool:
        """Whether a running systemd reads the host's units."""
        return self.is_this_host and os.path.isdir("/run/systemd/system")


def plan_installation(target: InstallTarget) -> list[InstallStep]:
    """Return the steps of an installation.

    Raises :class:`InputError` for a wrong name, path or configuration, and :class:`RefusedError` if
    something else is in the way.
    """
    _check_names(target)
    if target.is_this_host:
        _check_command(target.command)
    _check_other_installations(target)
    steps = [*_groups(target), _configuration(target)]
    steps += [
        _written(target, "unit", f"{_UNIT_FOLDER}/{name}", _unit(target, name)) for name in UNITS
    ]
    steps.append(
        _written(target, "tmpfiles", _TMPFILES, _marked(_shipped("snpcerts-tmpfiles.conf")))
    )
    steps += [_directory(target, path) for path in _DIRECTORIES]
    steps += _links(target)
    return steps


def plan_removal(target: InstallTarget, *, purge: bool = False) -> list[InstallStep]:
    """Return the steps that remove what :func:`plan_installation` installs.

    The group, the certificate files, the VLEK certificates and the record of the signing keys stay.
    The configuration and the cache stay unless ``purge`` is set.
    """
    _check_names(target)
    steps = [_stopped(target, name) for name in UNITS if _enabled(target, name)]
    for name in UNITS:
        steps += _removed(target, "unit", f"{_UNIT_FOLDER}/{name}")
    steps += _removed(target, "tmpfiles", _TMPFILES)
    steps += _links_removed(target)
    steps += _left(target, "configuration", DEFAULT_PATH, purge, os.unlink)
    steps += _left(target, "cache", DEFAULT_CACHE, purge, shutil.rmtree)
    if os.path.lexists(target.at(DEFAULT_FILE)):
        note = "VMMs may still serve it to guests"
        steps.append(InstallStep("certificates", DEFAULT_FILE, StepOutcome.KEPT, note))
    return steps


def carry_out(target: InstallTarget, steps: Sequence[InstallStep]) -> None:
    """Perform the steps in order, and let the service manager reload the units.

    Raises :class:`RefusedError` if a step fails.
    """
    work = [step for step in steps if step.perform is not None]
    if target.is_this_host and os.geteuid() != 0 and work:
        raise RefusedError(
            "only root may change this host's installation",
            hint="run the command as root; with --dry-run, it only shows the steps",
        )
    for number, step in enumerate(work):
        try:
            assert step.perform is not None  # noqa: S101 (selected above)
            step.perform()
        except OSError as error:
            raise RefusedError(
                f"{step.path}: {error.strerror} ({number} of {len(work)} steps are done)",
                hint=_way_out(error),
            ) from None
    if work and target.has_service_manager:
        _systemctl("daemon-reload")


def next_steps(target: InstallTarget, steps: Sequence[InstallStep]) -> list[str]:
    """Return the commands that the operator must run after an installation on this host; none if
    the target is another root directory.
    """
    was_there = any(
        step.item == "unit" and step.outcome in (StepOutcome.UNCHANGED, StepOutcome.REPLACED)
        for step in steps
    )
    found = [f"snpcerts host check --online   # first edit {DEFAULT_PATH} if you need to"]
    if was_there:
        found.append("systemctl try-restart snpcerts-sync   # a running agent is still the old one")
    found.append("systemctl enable --now snpcerts-sync")
    return found if target.is_this_host else []


# Conditions that must hold before anything changes.


def _check_names(target: InstallTarget) -> None:
    if not os.path.isdir(target.root):
        raise InputError(
            f"{target.root}: not a directory", hint="set --root to the root directory of a host"
        )
    if not _NAME.match(target.group):
        raise InputError(f"{target.group!r} is not a valid group name")
    if not _PLAIN_PATH.match(target.command):
        raise InputError(
            f"{target.command}: a systemd unit cannot run this path",
            hint="set --command to an absolute path of letters, digits and /._+-",
        )


def _check_command(command: str) -> None:
    """Refuse a command that the units could not run, or that other users could change."""
    if not (os.path.isfile(command) and os.access(command, os.X_OK)):
        raise InputError(f"{command}: not a program on this host", hint=_OWN_VENV)
    for place in (command, os.path.realpath(command), _interpreter(command)):
        for hidden in _HIDDEN_FROM_UNITS:
            if place == hidden or place.startswith(hidden + "/"):
                raise RefusedError(
                    f"{place}: not usable, because the unit cannot see files under {hidden}",
                    hint=_OWN_VENV,
                )
        for doubt in doubts(place):
            raise RefusedError(
                (
                    f"{place}: {doubt.place} {doubt.found}, so another user could change "
                    "what root runs"
                ),
                hint=_OWN_VENV,
            )


def _interpreter(command: str) -> str:
    """Return the interpreter that a script's first line names, or the command itself if it is not
    a script.
    """
    with open(command, "rb") as file:
        first = file.readline(4096)
    words = first[2:].split() if first.startswith(b"#!") else []
    return os.path.realpath(os.fsdecode(words[0])) if words else command


def _check_other_installations(target: InstallTarget) -> None:
    for folder in _PACKAGE_UNITS:
        place = f"{folder}/{AGENT_UNIT}"
        if os.path.exists(target.at(place)):
            raise RefusedError(
                (
                    f"{place}: an snpcerts package is already installed, and its units would "
                    "conflict with the new ones"
                ),
                hint="use the package as it is, or remove it first",
            )


def _way_out(error: OSError) -> str:
    if error.errno == errno.EROFS:
        return (
            "make the file system writable, or put the files into the host's image "
            "with snpcerts host install --root DIR"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space and run the command again"
    return "correct this and run the command again; 'host uninstall' undoes the finished steps"


# Steps of an installation.


def _shipped(name: str) -> str:
    return files("snpcerts.host").joinpath("system_files", name).read_text(encoding="utf-8")


def _marked(text: str) -> bytes:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{_MARK}{digest}\n{text}".encode()


def _unit(target: InstallTarget, name: str) -> bytes:
    return _marked(_shipped(name).replace(_PACKAGED_COMMAND, target.command))


def _groups(target: InstallTarget) -> list[InstallStep]:
    """Return the step for the VMMs' group; none if an existing configuration does not use it."""
    place = target.at(DEFAULT_PATH)
    if os.path.lexists(place) and target.group not in {file.group for file in load(place).files}:
        return []
    return [_group(target)]


def _group(target: InstallTarget) -> InstallStep:
    name = target.group
    if _group_exists(target):
        return InstallStep("group", name, StepOutcome.UNCHANGED)
    program = shutil.which("groupadd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise RefusedError(
            f"group {name!r} does not exist, and this machine has no groupadd to create it",
            hint="create the group that your VMMs run in, or name another group with --group",
        )
    where = [] if target.is_this_host else ["--prefix", os.path.abspath(target.root)]
    words = [program, *where, "--system", name]

    def create() -> None:
        made = subprocess.run(words, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise RefusedError(
                f"cannot create group {name}: {made.stderr.strip()}",
                hint="create the group that your VMMs run in, or name another group with --group",
            )

    return InstallStep("group", name, StepOutcome.CREATED, perform=create)


def _group_exists(target: InstallTarget) -> bool:
    if target.is_this_host:
        try:
            grp.getgrnam(target.group)
        except KeyError:
            return False
        return True
    try:
        text = Path(target.at("/etc/group")).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    return any(line.startswith(f"{target.group}:") for line in text.splitlines())


def _configuration(target: InstallTarget) -> InstallStep:
    place = target.at(DEFAULT_PATH)
    if os.path.lexists(place):
        groups = {file.group for file in load(place).files}
        names = ", ".join(sorted(repr(name) for name in groups if name is not None)) or "none"
        note = "" if groups == {target.group} else f"the configured files have the group {names}"
        return InstallStep("configuration", DEFAULT_PATH, StepOutcome.KEPT, note)
    text = _shipped("snpcerts.toml")
    for commented, setting in (
        ('# group = "kvm"', f'group = "{target.group}"'),
        ('# mode = "0640"', 'mode = "0640"'),
    ):
        text = text.replace(commented, setting)
    return InstallStep(
        "configuration",
        DEFAULT_PATH,
        StepOutcome.CREATED,
        f"group {target.group}, mode 0640",
        lambda: _write(place, text.encode()),
    )


def _written(target: InstallTarget, item: str, path: str, data: bytes) -> InstallStep:
    """Return the step that writes ``data`` to ``path``.

    Raises an error if the file there was not written by this installation, or was edited
    afterwards, unless ``target.replace`` is set.
    """
    place = target.at(path)
    found = _content(place)
    if found == data:
        return InstallStep(item, path, StepOutcome.UNCHANGED)
    outcome = StepOutcome.CREATED if found is None else StepOutcome.REPLACED
    if found is not None and not target.replace:
        _refuse_foreign(path, found, data)
    return InstallStep(item, path, outcome, perform=lambda: _write(place, data))


def _content(place: str) -> bytes | None:
    """Return a file's bytes; None if there is no file, b"" if it is not a regular file."""
    try:
        if not stat.S_ISREG(os.lstat(place).st_mode):
            return b""
        return Path(place).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{place}: {error.strerror}") from None


def _refuse_foreign(path: str, found: bytes, data: bytes | None) -> None:
    """Raise an error if this installation did not write the file, or if the file was edited later.
    A file that an earlier release wrote is accepted.
    """
    first, _, rest = found.partition(b"\n")
    if not first.startswith(_MARK.encode()):
        what = "'snpcerts host install' did not write this file"
        if not found:
            what += "; a link to /dev/null means that the unit is masked"
        raise RefusedError(
            f"{path}: {what}", hint="move the file away, or replace the file with --replace"
        )
    if first[len(_MARK) :].decode("ascii", "replace") != hashlib.sha256(rest).hexdigest():
        raise RefusedError(
            f"{path}: the file was edited after 'snpcerts host install' wrote it",
            hint="move your changes to a drop-in (systemctl edit), then use --replace",
        )
    if data is not None and (mine := _runs(data)) != (theirs := _runs(found)):
        raise RefusedError(
            f"{path}: the file belongs to another installation, {theirs}; this one is {mine}",
            hint=f"run '{theirs} host uninstall' first, or replace the file with --replace",
        )


def _runs(data: bytes) -> str | None:
    found = _RUNS.search(data.decode("utf-8", "replace"))
    return None if found is None else found[1]


def _directory(target: InstallTarget, path: str) -> InstallStep:
    place = target.at(path)
    if os.path.isdir(place):
        return InstallStep("directory", path, StepOutcome.UNCHANGED)
    if os.path.lexists(place):
        raise RefusedError(
            f"{path}: not a directory", hint="move this file away, then run the command again"
        )

    def create() -> None:
        os.makedirs(place, mode=0o755, exist_ok=True)
        os.chmod(place, 0o755)  # noqa: S103 (whatever the umask is: VMMs look for the file here)

    return InstallStep("directory", path, StepOutcome.CREATED, perform=create)


def _links(target: InstallTarget) -> Iterator[InstallStep]:
    """Yield the steps that link a command outside /usr, its manual pages and its completions into
    /usr/local.
    """
    for path, goal in _linked(target):
        place = target.at(path)
        if not os.path.lexists(place):
            yield InstallStep("link", path, StepOutcome.CREATED, f"to {goal}", _linker(place, goal))
        elif os.path.islink(place) and os.readlink(place) == goal:
            yield InstallStep("link", path, StepOutcome.UNCHANGED)
        elif target.replace:
            yield InstallStep(
                "link", path, StepOutcome.REPLACED, f"to {goal}", _linker(place, goal)
            )
        else:
            raise RefusedError(
                f"{path}: another installation of snpcerts is already there",
                hint="remove the other installation first, or replace its files with --replace",
            )


def _linked(target: InstallTarget) -> Iterator[tuple[str, str]]:
    prefix = os.path.dirname(os.path.dirname(target.command))
    if prefix in ("/usr", "/usr/local"):
        return
    yield COMMAND_LINK, target.command
    for folder in _SHARED:
        source = target.at(f"{prefix}/{folder}")
        for name in sorted(os.listdir(source)) if os.path.isdir(source) else ():
            if "snpcerts" in name:
                yield f"/usr/local/{folder}/{name}", f"{prefix}/{folder}/{name}"


def _linker(place: str, goal: str) -> Callable[[], None]:
    def make() -> None:
        os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
        new = _new_of(place)
        os.symlink(goal, new)
        os.replace(new, place)

    return make


def _new_of(place: str) -> str:
    """Return a temporary name beside ``place``. Remove a file that a killed run left at that
    name.
    """
    new = os.path.join(os.path.dirname(place), f".{os.path.basename(place)}.snpcerts-new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    return new


def _write(place: str, data: bytes) -> None:
    """Write a file atomically. Leave nothing behind if that fails."""
    os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
    temporary = _new_of(place)
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            os.fchmod(fd, 0o644)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, place)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


# Steps of a removal.


def _enabled(target: InstallTarget, name: str) -> bool:
    return target.has_service_manager or os.path.lexists(_wanted(target, name))


def _wanted(target: InstallTarget, name: str) -> str:
    return target.at(f"{_UNIT_FOLDER}/multi-user.target.wants/{name}")


def _stopped(target: InstallTarget, name: str) -> InstallStep:
    def stop() -> None:
        if target.has_service_manager:
            _systemctl("disable", "--now", name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_wanted(target, name))

    path = f"{_UNIT_FOLDER}/{name}"
    if _content(target.at(path)) is None:
        return InstallStep("service", name, StepOutcome.UNCHANGED, "not installed here")
    return InstallStep("service", name, StepOutcome.REMOVED, "stopped and disabled", stop)


def _systemctl(*words: str) -> None:
    """Run systemctl. If it fails, the error contains what it printed."""
    made = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise RefusedError(
            f"systemctl {' '.join(words)} failed: {made.stderr.strip()}",
            hint="when the service manager answers again, run this systemctl command, then repeat "
            "the snpcerts command",
        )


def _removed(target: InstallTarget, item: str, path: str) -> Iterator[InstallStep]:
    place = target.at(path)
    found = _content(place)
    if found is None:
        return
    if not target.replace:
        mine = _marked(f"ExecStart={target.command}") if item == "unit" else None
        _refuse_foreign(path, found, mine)
    yield InstallStep(item, path, StepOutcome.REMOVED, perform=lambda: os.unlink(place))


def _links_removed(target: InstallTarget) -> Iterator[InstallStep]:
    for path, goal in _linked(target):
        place = target.at(path)
        if os.path.islink(place) and os.readlink(place) == goal:
            yield InstallStep(
                "link", path, StepOutcome.REMOVED, perform=functools.partial(os.unlink, place)
            )
        elif os.path.lexists(place):
            yield InstallStep("link", path, StepOutcome.KEPT, "belongs to another installation")


def _left(
    target: InstallTarget, item: str, path: str, purge: bool, remove: Callable[[str], None]
) -> Iterator[InstallStep]:
    place = target.at(path)
    if not os.path.lexists(place):
        return
    if purge:
        yield InstallStep(item, path, StepOutcome.REMOVED, perform=lambda: remove(place))
    else:
        yield InstallStep(item, path, StepOutcome.KEPT, "--purge removes it")
