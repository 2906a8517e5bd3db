# SPDX-License-Identifier: Apache-2.0
"""KVM_IRQFD: an eventfd can be tied to one interrupt only.

Expected values are from Linux 7.3, ``virt/kvm/eventfd.c``, and its selftest
``irqfd_test``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress

import pytest

from snpcerts.abi.kvm import Ioctl, Irqfd
from snpcerts.emulator.kvm.vm import Vm
from tests.emulator.kvm_calls import Process

DEASSIGN, RESAMPLE = 1, 2


@pytest.fixture
def process() -> Iterator[Process]:
    process = Process()
    yield process
    assert len(process.platform.irqfds) == 0, "left behind"


@pytest.fixture
def vms(process: Process) -> Iterator[list[Vm]]:
    made = [process.create_vm() for _ in range(2)]
    for vm in made:
        process.ioctl(vm, Ioctl.CREATE_IRQCHIP)
    yield made
    for vm in made:
        vm.close()


@pytest.fixture
def eventfd() -> Iterator[int]:
    descriptor = os.eventfd(0)
    yield descriptor
    with suppress(OSError):
        os.close(descriptor)


def tie(
    process: Process, vm: Vm, fd: int, gsi: int = 5, flags: int = 0, resamplefd: int = 0
) -> int:
    """Call KVM_IRQFD; return 0 or the errno."""
    try:
        process.ioctl(vm, Ioctl.IRQFD, Irqfd(fd, gsi, flags, resamplefd))
    except OSError as error:
        return error.errno or -1
    return 0


def test_a_second_tie_is_refused_on_the_whole_host(
    process: Process, vms: list[Vm], eventfd: int
) -> None:
    assert tie(process, vms[0], eventfd) == 0
    assert tie(process, vms[0], eventfd) == errno.EBUSY
    assert tie(process, vms[0], eventfd, gsi=6) == errno.EBUSY
    assert tie(process, vms[1], eventfd) == errno.EBUSY
    again = os.dup(eventfd)
    assert tie(process, vms[0], again) == errno.EBUSY
    os.close(again)


def test_what_is_untied_can_be_tied_again(process: Process, vms: list[Vm], eventfd: int) -> None:
    assert tie(process, vms[0], eventfd) == 0
    assert tie(process, vms[0], eventfd, gsi=6, flags=DEASSIGN) == 0  # another interrupt's
    assert tie(process, vms[1], eventfd, flags=DEASSIGN) == 0  # another VM's
    assert tie(process, vms[1], eventfd) == errno.EBUSY
    assert tie(process, vms[0], eventfd, flags=DEASSIGN) == 0
    assert tie(process, vms[1], eventfd) == 0
    vms[1].close()
    assert tie(process, vms[0], eventfd) == 0
    vms[1] = process.create_vm()


def test_an_eventfd_made_after_another_was_closed_is_another(
    process: Process, vms: list[Vm], eventfd: int
) -> None:
    for _ in range(3):
        assert tie(process, vms[0], eventfd) == 0
        os.close(eventfd)
        assert os.eventfd(0) == eventfd, "the same number"


def test_a_descriptor_must_be_of_an_eventfd(
    process: Process, vms: list[Vm], eventfd: int, tmp_path: os.PathLike[str]
) -> None:
    for flags in (0, DEASSIGN):
        assert tie(process, vms[0], 2**32 - 1, flags=flags) == errno.EBADF
        file = os.open(tmp_path, os.O_RDONLY)
        assert tie(process, vms[0], file, flags=flags) == errno.EINVAL
        os.close(file)
        assert tie(process, vms[0], file, flags=flags) == errno.EBADF
    assert tie(process, vms[0], eventfd, flags=RESAMPLE, resamplefd=2**32 - 1) == errno.EBADF
    assert tie(process, vms[0], eventfd, flags=4) == errno.EINVAL
    assert tie(process, vms[0], eventfd) == 0, "nothing was kept"


def test_interrupts_need_a_controller(process: Process, eventfd: int) -> None:
    vm = process.create_vm()
    assert tie(process, vm, eventfd) == errno.EINVAL
    vm.close()
