# SPDX-License-Identifier: Apache-2.0
"""Every way to a device by path leads to the emulated one, and none to a real one."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from snpcerts.emulator.frontdoor.door import Door
from snpcerts.emulator.frontdoor.spawn import spawn
from snpcerts.emulator.frontdoor.take_fd import take_descriptor
from snpcerts.emulator.frontdoor.ways import Way

from .conftest import Stage
from .toys import MARKER

HERE = ["0", str(MARKER)]
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this")

# With and without a real device: most machines that run these tests have no /dev/sev.
DEVICES = pytest.mark.parametrize("device", ["/dev/kvm", "/dev/sev"])


@DEVICES
@pytest.mark.parametrize("call", ["open", "sysopen", "path-at-edge", "path-across"])
def test_a_device_opens_by_its_own_path(stage: Stage, device: str, call: str) -> None:
    assert stage.printed(call, device, "api") == HERE


@DEVICES
def test_a_static_program(stage: Stage, static_probe: Path, device: str) -> None:
    assert stage.printed("open", device, "api", program=static_probe) == HERE


@DEVICES
@pytest.mark.parametrize(
    "form",
    [
        "/dev/../dev/{}",
        "//dev//./{}",
        "/proc/self/root/dev/{}",
        "/proc/thread-self/root/dev/{}",
        "/proc/self/task/../root/dev/{}",
        "/dev/fd/../root/dev/{}",
        "/proc/self/cwd/dev/{}",
        "dev/{}",
        "tmp/../dev/{}",
    ],
)
def test_roundabout_paths(stage: Stage, device: str, form: str) -> None:
    path = form.format(os.path.basename(device), pid=os.getpid())
    assert stage.printed("chdir", "/", "open", path, "api") == ["0", *HERE]


@DEVICES
def test_by_the_root_of_another_process(stage: Stage, device: str) -> None:
    """In a namespace, this path leads to the machine's own device, if any; it answers no call."""
    said = stage.printed("open", f"/proc/{os.getpid()}/root{device}", "api")
    real = ["0", str(-errno.ENODEV)] if os.path.exists(device) else ["-2", str(-errno.EBADF)]
    assert said == stage.by_way(HERE, real)


@DEVICES
def test_directory_descriptors(stage: Stage, device: str) -> None:
    name = os.path.basename(device)
    assert stage.printed("at", "/dev", name, "api") == HERE
    assert stage.printed("at", "/usr/lib", f"../../dev/{name}", "api") == HERE
    assert stage.printed("at", "/usr", device, "api") == HERE


@DEVICES
def test_openat2(stage: Stage, device: str) -> None:
    name = os.path.basename(device)
    assert stage.printed("openat2", "/dev", name, 0, "api") == HERE
    in_root = 0x10
    assert stage.printed("openat2", "/", f"/../{device}", in_root, "api") == HERE


@DEVICES
def test_links(stage: Stage, tmp_path: Path, device: str) -> None:
    (tmp_path / "plain").symlink_to(device)
    (tmp_path / "chain").symlink_to("plain")
    (tmp_path / "directory").symlink_to("/dev")
    (tmp_path / "self").symlink_to(f"/proc/self/root{device}")
    for name in ("plain", "chain", f"directory/{os.path.basename(device)}", "self"):
        assert stage.printed("open", tmp_path / name, "api") == HERE, name
    nofollow = os.O_RDWR | os.O_NOFOLLOW
    assert stage.printed("flags", nofollow, tmp_path / "plain") == [str(-errno.ELOOP)]
    assert stage.printed("flags", nofollow, device, "api") == HERE


def test_links_without_end(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "sev").symlink_to("sev")
    assert stage.printed("open", tmp_path / "sev") == [str(-errno.ELOOP)]


@ROOT_ONLY
def test_another_node_of_the_same_device(stage: Stage, tmp_path: Path) -> None:
    node = tmp_path / "unsuspicious"
    said = stage.printed("mknod", node, os.makedev(10, 232), "open", node, "api")
    # In a namespace, the kernel opens its own device, if it has one, but no call reaches it.
    opened = ["0", str(-errno.ENODEV)]
    absent = [str(-errno.ENODEV), str(-errno.EBADF)]
    kernels = opened if os.path.exists("/dev/kvm") else absent
    assert said == ["0", *stage.by_way(HERE, kernels)]


@ROOT_ONLY
def test_a_program_with_its_own_root_directory(
    stage: Stage, tmp_path: Path, static_probe: Path
) -> None:
    if stage.way is Way.NAMESPACE:
        for name in ("dev", "bare"):
            (tmp_path / name).mkdir()
        script = f"mount --rbind /dev {tmp_path}/dev; exec chroot {tmp_path} /probe open /dev/sev"
        shutil.copy(static_probe, tmp_path / "probe")
        said = stage.printed("-c", f"{script} api", program=Path("/bin/sh"))
        assert said == HERE, "must find the device in the /dev that it was given"
        bare = stage.printed("chroot", tmp_path / "bare", "open", "/dev/sev", program=static_probe)
        assert bare == ["0", str(-errno.ENOENT)], "must find no device without a /dev"
        return
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/link").symlink_to("/dev/sev")
    steps = ("chroot", tmp_path, "chdir", "/", "open")
    for path in ("/dev/sev", "dev/kvm", "/dev/../../dev/sev", "/dev/link"):
        assert stage.printed(*steps, path, "api", program=static_probe) == ["0", "0", *HERE], path


@DEVICES
def test_creating_an_existing_device(stage: Stage, device: str) -> None:
    assert stage.printed("creat", device, "api") == HERE
    exclusive = os.O_RDWR | os.O_CREAT | os.O_EXCL
    assert stage.printed("flags", exclusive, device) == [str(-errno.EEXIST)]
    assert os.path.exists("/dev/kvm") or device != "/dev/kvm"
    assert not Path(device).is_file(), "must make no file on this machine"


@DEVICES
def test_a_device_is_not_a_directory(stage: Stage, device: str) -> None:
    failed = stage.printed("open", device + "/", "open", device + "/x")
    assert set(failed) <= {str(-errno.ENOTDIR), str(-errno.ENOENT)}
    assert stage.toys.opened == []


def test_an_open_device_can_be_opened_again(stage: Stage) -> None:
    """Opening its link in /proc opens the device a second time, as with a real node."""
    assert stage.printed("open", "/dev/sev", "api", "again", "api", "devfd", "api") == HERE * 3
    assert [info.path for info in stage.toys.opened] == ["/dev/sev"] * 3


def test_a_descriptor_made_by_an_ioctl_opens_no_second_device(stage: Stage) -> None:
    printed = stage.printed("open", "/dev/kvm", "plain", "again", "api")
    # In a namespace, the kernel opens the memfd again. While the first descriptor is open, both
    # stand for the same VM.
    assert printed[2:] == stage.by_way([str(-errno.ENXIO), str(MARKER)], ["0", str(MARKER)])
    assert len(stage.toys.opened) == 1


def test_flags_reach_the_device(stage: Stage) -> None:
    for number, flags in enumerate((os.O_RDONLY | os.O_CLOEXEC, os.O_RDWR)):
        printed = stage.printed("flags", flags, "/dev/sev", "access-mode", "cloexec", "api")
        access, cloexec = flags & os.O_ACCMODE, int(bool(flags & os.O_CLOEXEC))
        assert printed == ["0", str(access), str(cloexec), str(MARKER)]
        assert stage.toys.opened[number].writable == (access == os.O_RDWR)


def test_a_device_that_the_door_does_not_have(stage: Stage) -> None:
    """A guest has no /dev/kvm, whatever the machine has."""
    door = Door({"/dev/sev-guest": stage.toys.device})
    printed = stage.printed("open", "/dev/kvm", "open", "/proc/self/root/dev/sev", door=door)
    assert printed == [str(-errno.ENOENT)] * 2
    assert stage.printed("open", "/dev/sev-guest", "api", door=door) == HERE
    looks = ("stat", "/dev/kvm", "access", 0, "/dev/kvm", "flags", os.O_PATH, "/dev/kvm")
    assert stage.printed(*looks, door=door) == [str(-errno.ENOENT)] * 3


def test_a_descriptor_from_behind_another_door(stage: Stage) -> None:
    """It works, but this door lacks its device, so it cannot be opened again."""
    other = Door({"/dev/kvm": stage.toys.device})
    holder = stage.start("open", "/dev/sev", "api", "until-input", "api")
    stage.serve(lambda: len(stage.toys.open) == 1)
    passed = take_descriptor(holder.pid, 3)
    try:
        running = stage.start("use", 0, "api", "again", "api", door=other, stdin=passed)
        again = stage.by_way([str(-errno.ENXIO), str(MARKER)], ["0", str(-errno.ENXIO)])
        assert stage.finish(running) == [str(MARKER), *again]
    finally:
        os.close(passed)
    stage.tell(holder)
    assert stage.finish(holder)[-1] == str(MARKER)
    assert len(stage.toys.opened) == 1


def test_a_device_lives_on_with_a_descriptor_that_left_its_namespace(stage: Stage) -> None:
    holder = stage.start("open", "/dev/sev", "api", "until-input")
    stage.serve(lambda: len(stage.toys.open) == 1)
    passed = take_descriptor(holder.pid, 3)
    try:
        stage.tell(holder)
        stage.finish(holder)
        assert len(stage.toys.open) == 1
        running = stage.start("use", 0, "api", stdin=passed)
        assert stage.finish(running) == [str(MARKER)]
    finally:
        os.close(passed)
    stage.serve(lambda: not stage.toys.open)
    assert len(stage.toys.opened) == 1


def test_a_device_that_refuses_to_open(stage: Stage) -> None:
    def busy(info: object) -> None:
        raise OSError(errno.EBUSY, "one at a time")

    door = Door({"/dev/sev": busy})  # type: ignore[dict-item]  # it returns in no way at all
    refused = str(-errno.EBUSY)
    said = stage.printed("open", "/dev/sev", "api", door=door)
    # In a namespace, the open itself is not seen; the first call fails instead.
    assert said == stage.by_way([refused, str(-errno.EBADF)], ["0", refused])


def test_other_files_are_the_kernels(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "kvm").write_bytes(b"mine")
    assert stage.printed("open", tmp_path / "kvm", "pread", 0) == ["0", "mine"]
    assert stage.printed("open", tmp_path / "absent") == [str(-errno.ENOENT)]
    assert stage.printed("bad-path") == [str(-errno.EFAULT)]
    assert stage.printed("open", "x" * 5000) == [str(-errno.ENAMETOOLONG)]


def test_virtual_files(stage: Stage) -> None:
    printed = stage.printed(
        *("flags", os.O_RDONLY, "/sys/module/kvm_amd/parameters/sev", "pread", 0),
        *("flags", os.O_RDONLY, "/dev/cpu/0/msr", "pread", 0xC0010131),
        *("write", "flags", os.O_RDWR, "/sys/module/kvm_amd/parameters/sev"),
    )
    refused = stage.by_way(errno.EACCES, errno.EROFS if os.geteuid() == 0 else errno.EACCES)
    assert printed == ["0", "Y", "0", "register", str(-errno.EBADF), str(-refused)]


def test_registers_open_for_writing_and_stay_as_they_are(stage: Stage) -> None:
    """Tools open msr(4) read-write although they only read it."""
    printed = stage.printed(
        *("flags", os.O_RDWR, "/dev/cpu/0/msr", "write", "pread", 0xC0010131),
    )
    # In a namespace, the program writes to a file of its own.
    assert printed == ["0", stage.by_way(str(-errno.EPERM), "1"), "register"]


@pytest.mark.parametrize("call", ["stat", "lstat", "sysstat", "statx"])
def test_looking_at_a_device(stage: Stage, call: str) -> None:
    printed = stage.printed(
        *(call, "/dev/sev", call, "/dev/kvm", call, "/dev/sev-guest"),
        *(call, "/sys/module/kvm_amd/parameters/sev", call, "/sys/module/kvm_amd"),
    )
    kvm = f"{os.stat('/dev/kvm').st_mode:o}" if os.path.exists("/dev/kvm") else "20600"
    kvm = stage.by_way(kvm, "20600")
    major = stage.by_way("10", "5")
    file, directory = ["100444", "0"], ["40755", "0"]
    if os.path.exists("/sys/module/kvm_amd"):
        pytest.skip("this machine has a real kvm_amd")
    assert printed == ["20600", major, kvm, major, str(-errno.ENOENT), *file, *directory]


def test_asking_for_access(stage: Stage) -> None:
    printed = stage.printed(
        *("access", os.R_OK | os.W_OK, "/dev/sev", "faccessat2", os.F_OK, "/dev/sev"),
        *("access", os.X_OK, "/dev/sev", "readlink", "/dev/sev"),
        *("access", os.W_OK, "/sys/module/kvm_amd/parameters/sev"),
        *("access", os.W_OK, "/dev/cpu/0/msr", "stat-into", 8, "/dev/sev"),
    )
    not_writable = stage.by_way(errno.EACCES, errno.EROFS)
    assert printed == [
        "0",
        "0",
        *(str(-code) for code in (errno.EACCES, errno.EINVAL)),
        str(-not_writable),
        "0",
        str(-errno.EFAULT),
    ]


def test_ls_and_test_and_cat(stage: Stage) -> None:
    """These are the calls that shell scripts make."""
    script = "ls -l /dev/sev && test -c /dev/sev && cat /sys/module/kvm_amd/parameters/sev"
    running = spawn(
        ["/bin/sh", "-c", script],
        stage.supervisor,
        stage.toys.door(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        way=stage.way,
    )
    said = stage.finish(running)
    assert said[0] == "crw-------"
    assert said[-2:] == ["/dev/sev", "Y"]


def test_a_door_that_does_not_answer_looks(stage: Stage) -> None:
    door = stage.toys.door(look=False)
    printed = stage.printed("stat", "/dev/sev", "open", "/dev/sev", door=door, way=Way.TRAP)
    assert printed == [str(-errno.ENOENT), "0"]


def test_calls_that_bypass_the_filter_are_refused(stage: Stage) -> None:
    io_uring_setup, open_by_handle_at, x32_open = 425, 304, 0x40000002
    printed = stage.printed(
        "syscall", io_uring_setup, "syscall", open_by_handle_at, "syscall", x32_open
    )
    assert printed == [str(-errno.ENOSYS), str(-errno.EPERM), str(-errno.ENOSYS)]
    getpid_of_i386 = 20
    assert stage.printed("int80", getpid_of_i386) == [str(-errno.ENOSYS)]
