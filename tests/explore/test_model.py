# SPDX-License-Identifier: Apache-2.0
"""The model behaves as Linux does: names, descriptions, locks, and what a power failure leaves."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from explore.model import EXCLUSIVE, NONE, PATH, SHARED, Budget, File, World, table
from explore.process import IN_TIME, Program
from explore.readers import r1

from snpcerts.abi.cert_table import EMPTY
from snpcerts.abi.lock import EXCLUSIVE as EXCLUSIVE_FLOCK
from snpcerts.abi.lock import F_OFD_SETLK
from snpcerts.abi.lock import SHARED as SHARED_FLOCK
from snpcerts.certfile import step


def world_with_power() -> tuple[World, int]:
    world = World()
    world.budget = Budget(power=1)
    file = world.new_file()
    world.files[file] = File(table(0), table(0), ())
    world.names[PATH] = file
    world.disk = {PATH: file}
    return world, file


def contents_after_power_loss(world: World) -> set[bytes | None]:
    return {
        after.files[after.names[PATH]].data if PATH in after.names else None
        for after in world.after_power_loss()
    }


def test_locks_conflict_as_the_kernels_do(tmp_path: Path) -> None:
    """Two descriptions ask for each pair of locks; after a conflict, the first changes its lock."""
    path = tmp_path / "file"
    path.touch()
    real = {SHARED: SHARED_FLOCK, EXCLUSIVE: EXCLUSIVE_FLOCK}

    def had(fd: int, lock: int) -> bool:
        try:
            fcntl.fcntl(fd, F_OFD_SETLK, real[lock])
        except BlockingIOError:
            return False
        return True

    for first in (SHARED, EXCLUSIVE):
        for second in (SHARED, EXCLUSIVE):
            fds = [os.open(path, os.O_RDWR) for _ in range(2)]
            world = World()
            file = world.new_file()
            mine, other = world.open(file), world.open(file)
            try:
                assert had(fds[0], first)
                world.set_lock(mine, first)
                assert had(fds[1], second) is not world.conflicts(other, second)
                if world.conflicts(other, second):
                    assert had(fds[0], second)
                    assert not world.conflicts(mine, second)
            finally:
                for fd in fds:
                    os.close(fd)


def test_the_last_close_drops_the_lock() -> None:
    world = World()
    file = world.new_file()
    mine, other = world.open(file), world.open(file)
    world.set_lock(mine, EXCLUSIVE)
    assert world.conflicts(other, SHARED)
    world.close(mine)
    assert not world.conflicts(other, SHARED)
    assert world.locked(file) == NONE


def test_a_replaced_file_lives_as_long_as_someone_has_it_open() -> None:
    world = World()
    old = world.new_file()
    world.change_names((PATH, old))
    held = world.open(old)
    new = world.new_file()
    assert new != old
    world.change_names((PATH, new))
    assert old in world.files
    world.close(held)
    assert old not in world.files
    assert world.new_file() == old  # numbers are given again


def test_what_is_not_synced_may_be_lost_piece_by_piece() -> None:
    world, file = world_with_power()
    world.write(file, EMPTY, 0)
    world.sync(file)
    assert contents_after_power_loss(world) == {EMPTY + table(0)[24:]}
    world.truncate(file, len(EMPTY))
    world.write(file, table(2)[24:], 24)
    left = contents_after_power_loss(world)
    assert EMPTY + table(2)[24:] in left  # all of it
    assert EMPTY + table(0)[24:] in left  # nothing
    assert EMPTY + table(2)[24:28] in left  # one piece
    assert EMPTY + bytes(4) + table(2)[28:] in left  # the other
    assert all(data is not None and data.startswith(EMPTY) for data in left)


def test_a_rename_is_on_disk_wholly_or_not_at_all() -> None:
    world, old = world_with_power()
    new = world.new_file()
    world.change_names(("/host/.new", new))
    world.sync_names()
    world.change_names(("/host/.new", None), (PATH, new))
    outcomes = {tuple(sorted(after.names.items())) for after in world.after_power_loss()}
    assert outcomes == {(("/host/.new", new), (PATH, old)), ((PATH, new),)}
    world.sync_names()
    assert [after.names for after in world.after_power_loss()] == [{PATH: new}]


def test_a_program_is_at_the_same_place_after_every_round_of_retries() -> None:
    """Otherwise each retry would be a new state, and the exploration would never end."""
    program = Program("R1", r1)
    position, rounds = program.first, []
    opened, locked, closed = 3, False, None
    for _ in range(8):
        position = position.after(opened).after(locked)
        assert isinstance(position.action, step.Close)
        position = position.after(closed).after(IN_TIME)
        assert isinstance(position.action, step.Pause)
        rounds.append(position)
        position = position.after(None)
    assert len(set(rounds[1:])) == 1
