# SPDX-License-Identifier: Apache-2.0
"""Several files are emptied before one firmware command; after it, each gets its own table."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snpcerts.abi.cert_table import EMPTY, VCEK_GUID, CertTable, TableEntry
from snpcerts.certfile import several, step, system
from snpcerts.certfile.file import CertFile
from snpcerts.certfile.hold import hold
from snpcerts.certfile.reader import Busy, Found
from snpcerts.certfile.relay import relay
from snpcerts.certfile.several import Target
from snpcerts.certfile.step import Steps
from snpcerts.certfile.writer import LockHeldError, Strategy
from snpcerts.errors import InputError, SnpCertsError, UsageError

STRATEGIES = st.sampled_from(Strategy)


def table(name: str, key: str) -> bytes:
    return CertTable((TableEntry(VCEK_GUID, f"{name} for the {key} key".encode()),)).encode()


class Scene:
    """Files with tables for the old key. A string, the name of the key, stands for the firmware."""

    def __init__(self, folder: Path, strategies: Sequence[Strategy]) -> None:
        self.firmware = "old"
        names = [f"file-{number}" for number in reversed(range(len(strategies)))]
        self.targets = [
            Target(str(folder / name), strategy)
            for name, strategy in zip(names, strategies, strict=True)
        ]
        self.names = names
        for target, name in zip(self.targets, names, strict=True):
            Path(target.path).write_bytes(table(name, "old"))
        self.during: list[list[bytes]] = []

    def change(self) -> list[bytes]:
        self.during.append(self.contents())
        self.firmware = "new"
        return self.right()

    def right(self) -> list[bytes]:
        return [table(name, self.firmware) for name in self.names]

    def contents(self) -> list[bytes]:
        return [Path(target.path).read_bytes() for target in self.targets]

    def update(
        self,
        perform: Callable[[Any], Any] = system.perform,
        *,
        lock_wait: float = 5.0,
        change: Callable[[], list[bytes]] | None = None,
    ) -> several.SeveralUpdate:
        return several.perform(
            self.targets,
            change or self.change,
            self.right,
            lock_wait=lock_wait,
            performer=perform,
        )


def found(path: str) -> Found:
    seen: list[Found] = []
    CertFile(path).serve(deliver=seen.append, handshake=lambda: None, lock_wait=0)
    return seen[0]


@settings(max_examples=30)
@given(st.lists(STRATEGIES, min_size=1, max_size=5))
def test_all_are_empty_during_the_change_and_right_after_it(strategies: list[Strategy]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder), strategies)
        done = scene.update()
        assert scene.during == [[EMPTY] * len(strategies)]
        assert scene.contents() == scene.right()
        assert done.sizes == tuple(len(content) for content in scene.contents())
        assert not done.problems


def test_all_are_locked_during_the_change(tmp_path: Path) -> None:
    scene = Scene(tmp_path, [Strategy.SWAP, Strategy.IN_PLACE, Strategy.SWAP])
    seen: list[type] = []

    def change() -> list[bytes]:
        seen.extend(type(found(target.path)) for target in scene.targets)
        return scene.change()

    scene.update(change=change)
    assert seen == [Busy] * 3


@settings(max_examples=60)
@given(st.lists(STRATEGIES, min_size=1, max_size=3), st.data())
def test_an_error_at_any_step_leaves_each_file_empty_or_right(
    strategies: list[Strategy], data: st.DataObject
) -> None:
    """The right table is the one for the key that the firmware has after the error."""
    with tempfile.TemporaryDirectory() as folder:
        total: list[str] = []

        def count(action: Any) -> Steps[Any]:
            total.append(type(action).__name__)
            return (yield action)

        Scene(Path(folder), strategies).update(relay(count))
        at = data.draw(st.integers(0, len(total) - 1))
        number = data.draw(st.sampled_from([errno.ENOSPC, errno.EIO, errno.EROFS]))
        scene = Scene(Path(folder), strategies)
        passed: list[None] = []

        def fail(action: Any) -> Steps[Any]:
            passed.append(None)
            if len(passed) == at + 1 and not isinstance(action, step.Close | step.Now):
                raise OSError(number, os.strerror(number))
            return (yield action)

        try:
            done: several.SeveralUpdate | None = scene.update(relay(fail))
        except (SnpCertsError, OSError):
            done = None
        right = scene.right()
        for index, content in enumerate(scene.contents()):
            # To readers, a file that starts with the empty table is empty.
            assert content == right[index] or content.startswith(EMPTY), total[at]
        if done is not None:
            late = {path for path, _ in done.problems}
            for target, content, table_ in zip(scene.targets, scene.contents(), right, strict=True):
                assert content == table_ or target.path in late
        scene.update()
        assert scene.contents() == scene.right(), "the next update must complete the job"


@pytest.mark.parametrize(
    "strategies",
    [[Strategy.SWAP] * 2, [Strategy.IN_PLACE] * 2, [Strategy.SWAP, Strategy.IN_PLACE]],
    ids=["swap", "in-place", "both"],
)
def test_an_end_before_any_step_leaves_each_file_empty_or_right(
    tmp_path: Path, strategies: list[Strategy]
) -> None:
    """A process ends between two steps: its locks are released, its files stay as they are."""
    ended, at = True, 0
    while ended:
        scene = Scene(tmp_path, strategies)
        ended = _ends_before(scene, at, tmp_path / "firmware")
        if (tmp_path / "firmware").exists():
            scene.firmware = "new"
            (tmp_path / "firmware").unlink()
        right = scene.right()
        for index, content in enumerate(scene.contents()):
            assert content == right[index] or content.startswith(EMPTY), at
        scene.update(change=scene.right)
        assert scene.contents() == scene.right(), "the next update must complete the job"
        at += 1
    assert at > 20 * len(strategies)


def _ends_before(scene: Scene, at: int, firmware: Path) -> bool:
    """Update in a child that ends before step ``at``; return whether it got that far."""
    pid = os.fork()
    if pid == 0:
        left = [None] * at

        def through(action: Any) -> Steps[Any]:
            if not left:
                os._exit(7)
            left.pop()
            return (yield action)

        def change() -> list[bytes]:
            firmware.touch()
            return scene.change()

        try:
            scene.update(relay(through), change=change)
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 7)
    return code == 7


@pytest.mark.parametrize("held", [0, 1, 2])
def test_if_a_lock_is_not_granted_every_file_gets_its_table_back(tmp_path: Path, held: int) -> None:
    scene = Scene(tmp_path, [Strategy.SWAP, Strategy.IN_PLACE, Strategy.SWAP])
    before = scene.contents()
    start = time.monotonic()
    with (
        hold(scene.targets[held].path, shared=True),
        pytest.raises(LockHeldError, match=f"pid {os.getpid()}") as caught,
    ):
        scene.update(lock_wait=0.1)
    assert time.monotonic() - start < 2, "lock_wait must limit the wait for all locks together"
    assert caught.value.path == scene.targets[held].path
    assert scene.firmware == "old"
    assert scene.contents() == before


def test_a_file_that_cannot_be_filled_again_is_named(tmp_path: Path) -> None:
    """The first file was emptied, the second is locked, and then the first cannot be written."""
    scene = Scene(tmp_path, [Strategy.IN_PLACE] * 2)
    first, second = sorted(target.path for target in scene.targets)
    chosen: list[None] = []

    def fail(action: Any) -> Steps[Any]:
        if isinstance(action, step.Change):
            chosen.append(None)
        elif chosen and isinstance(action, step.Write) and action.data != EMPTY:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return (yield action)

    with hold(second, shared=True), pytest.raises(several.LeftEmptyError) as caught:
        scene.update(relay(fail), lock_wait=0.1)
    said = str(caught.value)
    assert f"{first} stays empty" in said
    assert "the lock" in said.partition(f"{second}: ")[2]
    assert f"pid {os.getpid()}" in said
    assert scene.firmware == "old"
    assert Path(first).read_bytes() == EMPTY


def test_when_the_change_raises_every_file_stays_empty(tmp_path: Path) -> None:
    scene = Scene(tmp_path, [Strategy.SWAP, Strategy.IN_PLACE])

    def change() -> list[bytes]:
        raise InputError("no idea what the key is now")

    with pytest.raises(InputError, match="no idea"):
        scene.update(change=change)
    assert scene.contents() == [EMPTY, EMPTY]


def test_locks_are_always_taken_in_the_same_order(tmp_path: Path) -> None:
    """Two updates that list the same files in opposite orders must not deadlock."""
    scene = Scene(tmp_path, [Strategy.SWAP] * 3)
    done: list[several.SeveralUpdate] = []

    def run(targets: list[Target]) -> None:
        for _ in range(10):
            names = [os.path.basename(target.path) for target in targets]
            tables = [table(name, "old") for name in names]
            done.append(
                several.perform(targets, lambda t=tables: t, lambda t=tables: t, lock_wait=20)  # type: ignore[misc]
            )

    threads = [
        threading.Thread(target=run, args=(order,))
        for order in (scene.targets, scene.targets[::-1])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 20
    assert scene.contents() == scene.right()


def test_a_file_under_two_names_is_refused(tmp_path: Path) -> None:
    scene = Scene(tmp_path, [Strategy.SWAP])
    link = tmp_path / "link"
    link.symlink_to(scene.targets[0].path)
    with pytest.raises(UsageError, match="listed twice"):
        several.perform([*scene.targets, Target(str(link))], scene.change, scene.right)
    with pytest.raises(UsageError, match="expected 1 to"):
        several.perform([], scene.change, scene.right)
