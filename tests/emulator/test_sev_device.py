# SPDX-License-Identifier: Apache-2.0
"""``/dev/sev`` answers as the kernel's driver does: errno, firmware status, copy-back."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.cstruct import CStruct
from snpcerts.abi.product import Product
from snpcerts.abi.psp import (
    SEV_ISSUE_CMD,
    Command,
    GetId2,
    IssueCmd,
    PdhCertExport,
    PlatformStatus,
    SevStatus,
    SnpConfig,
    SnpPlatformStatus,
    SnpVlekLoad,
)
from snpcerts.emulator.psp.chip import Chip, CloudProvider
from snpcerts.emulator.psp.chip_model import CHIP_MODELS, ApiVersion
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.emulator.psp.sev_device import MAX_ALLOCATION, SEV_MAX, SevDevice
from snpcerts.emulator.syscall.caller_memory import ProcessMemory
from snpcerts.emulator.syscall.device import Caller, Device
from tests.endorsement.small_ca import PINNED

PROVIDER = CloudProvider("CN=cc-us-east-2.amazonaws.com", bytes(range(32)))
OWN = 0x5A5A5A5A  # what the caller leaves in ``error`` before the call
KEY_COMMANDS = (
    Command.FACTORY_RESET,
    Command.PEK_GEN,
    Command.PEK_CSR,
    Command.PDH_GEN,
    Command.PEK_CERT_IMPORT,
)


class FlatMemory:
    """Memory from 0x1000 on. Using other addresses, or writing to read-only ones, is EFAULT."""

    BASE, SIZE = 0x1000, 0x4000

    def __init__(self) -> None:
        self.bytes = bytearray(self.SIZE)
        self.read_only: range = range(0)

    def read(self, address: int, size: int) -> bytes:
        start = self._at(address, size)
        return bytes(self.bytes[start : start + size])

    def write(self, address: int, data: bytes) -> None:
        start = self._at(address, len(data))
        if address in self.read_only:
            raise OSError(errno.EFAULT, "read-only")
        self.bytes[start : start + len(data)] = data

    def _at(self, address: int, size: int) -> int:
        start = address - self.BASE
        if not 0 <= start <= self.SIZE - size:
            raise OSError(errno.EFAULT, "unmapped")
        return start


COMMAND_AT, DATA_AT, BLOB_AT = 0x1000, 0x2000, 0x3000


class Host:
    """A host program with one descriptor on ``/dev/sev``."""

    def __init__(self, firmware: Firmware) -> None:
        self.firmware = firmware
        self.device = SevDevice(firmware)
        self.memory = FlatMemory()

    def issue(
        self, cmd: int, data: CStruct | None = None, *, at: int = DATA_AT, writable: bool = True
    ) -> tuple[int, int]:
        """Return the errno or 0, and the field ``error`` afterwards."""
        if data is not None:
            self.memory.write(DATA_AT, data.pack())
        self.memory.write(COMMAND_AT, IssueCmd(cmd=cmd, data=at, error=OWN).pack())
        caller = Caller(self.memory, find=lambda _fd: None, writable=writable)
        try:
            assert self.device.ioctl(caller, SEV_ISSUE_CMD, COMMAND_AT) == 0
            code = 0
        except OSError as no:
            code = no.errno or -1
        back = IssueCmd.unpack(self.memory.read(COMMAND_AT, IssueCmd.SIZE))
        assert (back.cmd, back.data) == (cmd, at)
        return code, back.error

    def vlek_load(self, blob: bytes, **change: Any) -> tuple[int, int]:
        self.memory.write(BLOB_AT, blob)
        load = SnpVlekLoad(len=16, vlek_wrapped_address=BLOB_AT)
        return self.issue(Command.SNP_VLEK_LOAD, replace(load, **change))


@pytest.fixture
def host(firmware: Firmware) -> Host:
    return Host(firmware)


def test_it_is_a_device(host: Host) -> None:
    assert isinstance(host.device, Device)
    host.device.close()
    assert host.issue(Command.SNP_COMMIT) == (0, 0)


def test_any_other_request_is_refused(host: Host) -> None:
    caller = Caller(host.memory, find=lambda _fd: None)
    for request in (0, SEV_ISSUE_CMD + 1, 0xAE00, SEV_ISSUE_CMD - (1 << 16)):
        with pytest.raises(OSError) as caught:
            host.device.ioctl(caller, request, COMMAND_AT)
        assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("cmd", [13, 14, 2**32 - 1])
def test_unknown_commands_are_refused_without_copy_back(cmd: int, host: Host) -> None:
    host.memory.read_only = range(COMMAND_AT, COMMAND_AT + 16)
    host.memory.bytes[:16] = IssueCmd(cmd=cmd, error=OWN).pack()
    caller = Caller(host.memory, find=lambda _fd: None)
    with pytest.raises(OSError) as caught:
        host.device.ioctl(caller, SEV_ISSUE_CMD, COMMAND_AT)
    assert caught.value.errno == errno.EINVAL  # EFAULT had there been a copy


def test_the_command_structure_must_be_readable(host: Host) -> None:
    caller = Caller(host.memory, find=lambda _fd: None)
    for argument in (0, 0x4FF8, 2**64 - 8):
        with pytest.raises(OSError) as caught:
            host.device.ioctl(caller, SEV_ISSUE_CMD, argument)
        assert caught.value.errno == errno.EFAULT


def test_a_fault_in_the_copy_back_takes_the_place_of_any_result(host: Host) -> None:
    """This holds for success and refusal; what the firmware has done is not undone."""
    low = replace(CHIP_MODELS[Product.MILAN].tcb, snp=1)
    caller = Caller(host.memory, find=lambda _fd: None)
    host.memory.write(DATA_AT, SnpConfig(reported_tcb=low.pack()).pack())
    for cmd, data in ((Command.SNP_SET_CONFIG, DATA_AT), (Command.SNP_SET_CONFIG, 0)):
        host.memory.read_only = range(0)
        host.memory.write(COMMAND_AT, IssueCmd(cmd=cmd, data=data, error=OWN).pack())
        host.memory.read_only = range(COMMAND_AT, COMMAND_AT + 16)
        with pytest.raises(OSError) as caught:
            host.device.ioctl(caller, SEV_ISSUE_CMD, COMMAND_AT)
        assert caught.value.errno == errno.EFAULT
    assert host.firmware.state.reported == low


def test_the_status_commands_write_their_structures(host: Host) -> None:
    assert host.issue(Command.SNP_PLATFORM_STATUS, writable=False) == (0, 0)
    snp = SnpPlatformStatus.unpack(host.memory.read(DATA_AT, 32))
    assert snp == host.firmware.snp_platform_status()
    assert host.issue(Command.PLATFORM_STATUS, writable=False) == (0, 0)
    assert PlatformStatus.unpack(host.memory.read(DATA_AT, 12)).build == 29


@pytest.mark.parametrize("at", [0, 0x4FFF, 2**64 - 1])
def test_bad_output_addresses_are_efault_after_the_firmwares_success(at: int, host: Host) -> None:
    """Only SNP_PLATFORM_STATUS checks for NULL: it is EINVAL, and the firmware is not asked."""
    for cmd in (Command.PLATFORM_STATUS, Command.GET_ID, Command.SNP_PLATFORM_STATUS):
        null_checked = at == 0 and cmd is Command.SNP_PLATFORM_STATUS
        assert host.issue(cmd, at=at) == (
            (errno.EINVAL, OWN) if null_checked else (errno.EFAULT, 0)
        )
    assert host.issue(Command.GET_ID2, at=at) == (errno.EFAULT, OWN)


@pytest.mark.parametrize("product", PINNED)
def test_the_chip_id_comes_with_its_length(product: Product) -> None:
    host = Host(Firmware(Chip.create(product)))
    identity = host.firmware.get_id()
    assert host.issue(Command.GET_ID2, GetId2(address=BLOB_AT, length=64), writable=False) == (0, 0)
    assert GetId2.unpack(host.memory.read(DATA_AT, 12)).length == len(identity)
    assert host.memory.read(BLOB_AT, 64) == identity.ljust(64, b"\0")
    host.memory.write(DATA_AT, b"\xff" * 128)
    assert host.issue(Command.GET_ID) == (0, 0)
    assert host.memory.read(DATA_AT, 128) == identity.ljust(128, b"\xff")


@pytest.mark.parametrize(
    ("address", "length"), [(0, 0), (0, 64), (BLOB_AT, 0), (BLOB_AT, 63), (0, 2**32 - 1)]
)
def test_without_room_for_the_chip_id_its_length_is_returned(
    address: int, length: int, host: Host
) -> None:
    asked = GetId2(address=address, length=length)
    assert host.issue(Command.GET_ID2, asked) == (errno.EIO, SevStatus.INVALID_LEN)
    assert GetId2.unpack(host.memory.read(DATA_AT, 12)) == replace(asked, length=64)
    assert not any(host.memory.read(BLOB_AT, 64))


def test_get_id2_faults_and_limits(host: Host) -> None:
    huge = GetId2(address=BLOB_AT, length=MAX_ALLOCATION + 1)
    assert host.issue(Command.GET_ID2, huge) == (errno.ENOMEM, OWN)
    assert host.issue(Command.GET_ID2, GetId2(address=8, length=64)) == (errno.EFAULT, 0)
    old = Host(Firmware(Chip.create(Product.MILAN), version=ApiVersion(0, 15, 0)))
    assert old.issue(Command.GET_ID2, GetId2()) == (524, OWN)


def test_commit_needs_neither_write_mode_nor_data(host: Host) -> None:
    tcb = CHIP_MODELS[Product.MILAN].tcb
    newer = replace(tcb, snp=tcb.snp + 1)
    host.firmware.update(newer)
    assert host.issue(Command.SNP_COMMIT, at=0, writable=False) == (0, 0)
    assert host.firmware.state.committed == newer
    host.firmware.snp_shutdown()
    assert host.issue(Command.SNP_COMMIT, at=1, writable=False) == (0, 0)


@pytest.mark.parametrize("cmd", [Command.SNP_SET_CONFIG, Command.SNP_VLEK_LOAD])
def test_the_changing_commands_check_in_the_drivers_order(cmd: Command, host: Host) -> None:
    """The driver checks for NULL, then for write mode, then for initialised SNP; then it copies."""
    host.firmware.snp_shutdown()
    assert host.issue(cmd, at=0, writable=False) == (errno.EINVAL, OWN)
    assert host.issue(cmd, at=8, writable=False) == (errno.EPERM, OWN)
    assert host.issue(cmd, at=8) == (errno.ENODEV, OWN)
    host.firmware.snp_init()
    assert host.issue(cmd, at=8) == (errno.EFAULT, OWN)


def test_set_config_reaches_the_firmware(host: Host) -> None:
    low = replace(CHIP_MODELS[Product.MILAN].tcb, snp=1)
    assert host.issue(Command.SNP_SET_CONFIG, SnpConfig(reported_tcb=low.pack(), flags=1)) == (0, 0)
    assert host.firmware.state.reported == low
    assert host.firmware.state.mask_chip_id
    assert host.issue(Command.SNP_SET_CONFIG, SnpConfig(flags=4)) == (
        errno.EIO,
        SevStatus.INVALID_PARAM,
    )
    assert host.firmware.state.reported == low


def test_vlek_load_reaches_the_firmware(host: Host) -> None:
    tcb = host.firmware.state.reported
    blob = PROVIDER.hashstick_for(host.firmware.chip, tcb)
    assert host.vlek_load(blob[:-1] + bytes((blob[-1] ^ 1,))) == (
        errno.EIO,
        SevStatus.BAD_MEASUREMENT,
    )
    assert host.vlek_load(blob) == (0, 0)
    assert host.firmware.signing_public_key() == PROVIDER.vlek_key(tcb).public_key()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"len": 15}, errno.EINVAL),
        ({"len": 432}, errno.EINVAL),
        ({"vlek_wrapped_version": 1}, errno.EINVAL),
        ({"vlek_wrapped_address": 0}, errno.EINVAL),
        ({"vlek_wrapped_address": 8}, errno.EFAULT),
        ({"vlek_wrapped_address": 0x5000 - 431}, errno.EFAULT),
    ],
)
def test_vlek_loads_fields_are_the_drivers_to_check(
    change: dict[str, int], code: int, host: Host
) -> None:
    blob = PROVIDER.hashstick_for(host.firmware.chip, host.firmware.state.reported)
    assert host.vlek_load(blob, **change) == (code, OWN)
    assert host.firmware.state.vlek is None


def test_key_commands_end_after_the_write_check(host: Host) -> None:
    wrong_state = (errno.EIO, SevStatus.INVALID_PLATFORM_STATE)
    for cmd in KEY_COMMANDS:
        assert host.issue(cmd, writable=False) == (errno.EPERM, OWN)
        if cmd == Command.PEK_CERT_IMPORT:
            certificates = PdhCertExport(DATA_AT + 0x100, 64, DATA_AT + 0x200, 64)
            host.memory.write(DATA_AT, certificates.pack())
        assert host.issue(cmd) == wrong_state


def test_certificates_to_import_are_read_before_anything_else(host: Host) -> None:
    good = PdhCertExport(DATA_AT + 0x100, 64, DATA_AT + 0x200, 64)
    for change, code in (
        ({"pdh_cert_len": 0}, errno.EINVAL),
        ({"cert_chain_len": 0x4001}, errno.EINVAL),
        ({"cert_chain_address": 8}, errno.EFAULT),
    ):
        host.memory.write(DATA_AT, replace(good, **change).pack())
        assert host.issue(Command.PEK_CERT_IMPORT) == (code, OWN)


def asked(host: Host) -> PdhCertExport:
    return PdhCertExport.unpack(host.memory.read(DATA_AT, PdhCertExport.SIZE))


PDH_AT = DATA_AT + 0x100
BOTH = PdhCertExport(PDH_AT, 2084, BLOB_AT, 6252)


@pytest.mark.parametrize(
    "query",
    [
        PdhCertExport(),  # as libvirt asks first
        replace(BOTH, pdh_cert_len=0),
        replace(BOTH, cert_chain_address=0),
        replace(BOTH, pdh_cert_len=2083),
        replace(BOTH, cert_chain_len=6251),
    ],
)
def test_the_platforms_certificates_tell_their_lengths(query: PdhCertExport, host: Host) -> None:
    too_short = (errno.EIO, SevStatus.INVALID_LEN)
    assert host.issue(Command.PDH_CERT_EXPORT, query, writable=False) == too_short
    assert (asked(host).pdh_cert_len, asked(host).cert_chain_len) == (2084, 6252)
    assert not any(host.memory.read(PDH_AT, 2084))


def test_the_platforms_certificates_certify_each_other(host: Host) -> None:
    """PDH by PEK; PEK by OCA and CEK; OCA by itself: SEV API, chapter "Certificate format"."""
    assert host.issue(Command.PDH_CERT_EXPORT, BOTH, writable=False) == (0, 0)
    chain = host.memory.read(BLOB_AT, 6252)
    names = ("PDH", "PEK", "OCA", "CEK")
    blobs = (host.memory.read(PDH_AT, 2084), chain[:2084], chain[2084:4168], chain[4168:])
    keys = {}
    for blob, usage in zip(blobs, (0x1003, 0x1002, 0x1001, 0x1004), strict=True):
        assert struct.unpack_from("<I4xI", blob) == (1, usage)
        x, y = (int.from_bytes(blob[at : at + 72], "little") for at in (20, 92))
        numbers = ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1())
        keys[usage] = numbers.public_key()
    signers = {"PDH": [0x1002], "PEK": [0x1001, 0x1004], "OCA": [0x1001], "CEK": []}
    for name, blob in zip(names, blobs, strict=True):
        found = []
        for at in (1044, 1564):
            usage, algorithm = struct.unpack_from("<II", blob, at)
            if usage == 0x1000:
                assert not any(blob[at + 4 : at + 520])
                continue
            assert algorithm == 2
            r, s = (int.from_bytes(blob[n : n + 72], "little") for n in (at + 8, at + 80))
            signature = encode_dss_signature(r, s)
            keys[usage].verify(signature, blob[:1044], ec.ECDSA(hashes.SHA256()))
            found.append(usage)
        assert found == signers[name]


def test_the_export_of_certificates_is_checked_as_the_driver_does(host: Host) -> None:
    export = Command.PDH_CERT_EXPORT
    assert host.issue(export, at=8) == (errno.EFAULT, OWN)
    assert host.issue(export, replace(BOTH, pdh_cert_len=0x4001)) == (errno.EFAULT, OWN)
    assert host.issue(export, replace(BOTH, cert_chain_len=0x4001)) == (errno.EFAULT, OWN)
    assert host.issue(export, replace(BOTH, cert_chain_address=8)) == (errno.EFAULT, 0)
    host.firmware.snp_shutdown()
    assert host.issue(export, BOTH, writable=False) == (errno.EPERM, OWN)
    assert host.issue(export, BOTH) == (0, 0)


_ADDRESS = st.one_of(
    st.sampled_from([0, COMMAND_AT, DATA_AT, BLOB_AT, 0x5000 - 12, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)


@given(
    request_=st.just(SEV_ISSUE_CMD) | st.integers(0, 2**32 - 1),
    argument=_ADDRESS,
    cmd=st.integers(0, SEV_MAX) | st.integers(0, 2**32 - 1),
    data=_ADDRESS,
    contents=st.binary(max_size=64),
    inner=_ADDRESS,
    writable=st.booleans(),
    initialized=st.booleans(),
)
def test_random_calls_end_in_zero_or_an_errno(
    request_: int,
    argument: int,
    cmd: int,
    data: int,
    contents: bytes,
    inner: int,
    writable: bool,
    initialized: bool,
) -> None:
    firmware = Firmware(_CHIP, initialized=initialized)
    memory = FlatMemory()
    memory.write(DATA_AT, contents)
    memory.write(BLOB_AT, SnpVlekLoad(len=16, vlek_wrapped_address=inner).pack())
    memory.write(COMMAND_AT, IssueCmd(cmd=cmd, data=data).pack())
    caller = Caller(memory, find=lambda _fd: None, writable=writable)
    code: int | None = 0
    try:
        assert SevDevice(firmware).ioctl(caller, request_, argument) == 0
    except OSError as no:
        code = no.errno
    assert code in (0, *errno.errorcode)
    assert firmware.state.committed.covers(firmware.state.reported)


_CHIP = Chip(Product.MILAN, bytes(32))


def test_a_live_process_is_served_at_its_own_addresses(host: Host) -> None:
    """The structures lie in this process, and the device reads and writes its real memory."""
    status = ctypes.create_string_buffer(32)
    command = ctypes.create_string_buffer(
        IssueCmd(cmd=Command.SNP_PLATFORM_STATUS, data=ctypes.addressof(status)).pack(), 16
    )
    caller = Caller(ProcessMemory(os.getpid()), find=lambda _fd: None)
    assert host.device.ioctl(caller, SEV_ISSUE_CMD, ctypes.addressof(command)) == 0
    assert SnpPlatformStatus.unpack(status.raw) == host.firmware.snp_platform_status()
