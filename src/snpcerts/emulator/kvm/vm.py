# SPDX-License-Identifier: Apache-2.0
"""A VM's file descriptor: memory, vCPUs, and the ioctls that carry SEV commands.

Calls that are not emulated fail with ENOTTY, as on a kernel that does not have them, and write one
log line.
"""

from __future__ import annotations

import errno
import logging
import struct
from collections.abc import Callable
from typing import TypeVar

from snpcerts.abi.cstruct import CStruct
from snpcerts.abi.ghcb import PAGE_SIZE, ProcessorRequest
from snpcerts.abi.kvm import (
    ENABLE_CAP_SIZE,
    MEM_LOG_DIRTY_PAGES,
    MEM_READONLY,
    MEMORY_ATTRIBUTE_PRIVATE,
    X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST,
    X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST,
    Cap,
    CreateGuestMemfd,
    EncRegion,
    Ioctl,
    Irqfd,
    MemoryAttributes,
    UserspaceMemoryRegion,
    UserspaceMemoryRegion2,
    VmType,
)
from snpcerts.emulator.guest.memory_slots import GuestMemfd, MemorySlots, SlotMemory
from snpcerts.emulator.guest.program import Guest, GuestCpu, GuestFactory, Program
from snpcerts.emulator.kvm import host_cpuid
from snpcerts.emulator.kvm.board import Board
from snpcerts.emulator.kvm.capability import (
    HYPERCALLS,
    IRQ_ROUTES_MAX,
    VCPU_IDS_MAX,
    VCPUS_MAX,
    WITHOUT_EFFECT,
    X2APIC_FLAGS,
    capability,
)
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.kvm.private_ranges import PrivateRanges
from snpcerts.emulator.kvm.processor_state import TSC_KHZ, checked_tsc_khz
from snpcerts.emulator.kvm.release import KernelRelease
from snpcerts.emulator.kvm.sev_commands import SECURE_TSC, SevCommands
from snpcerts.emulator.kvm.vcpu import MP_RUNNABLE, Vcpu
from snpcerts.emulator.psp.firmware import GuestContext
from snpcerts.emulator.syscall.device import Caller, NewDescriptor, Result
from snpcerts.emulator.syscall.same_memory import require_shared_memory

log = logging.getLogger(__name__)

MMU_PAGES_MIN = 64  # KVM_MIN_ALLOC_MMU_PAGES
PRIVATE_RANGES_MAX = 1 << 16  # a limit of the emulator
ENCRYPTED_REGIONS_MAX = 1 << 12  # a limit of the emulator
SEV_FEATURES_SNP = 1 << 0
_U64 = 1 << 64
_APIC_CYCLE_END = -(-_U64 // (0xFFFF_FFFF * 128))  # 32-bit timer count, divisor of up to 128
_S = TypeVar("_S", bound=CStruct)


class Vm:
    """One VM, which exists while its own descriptor or a vCPU's is open."""

    def __init__(
        self,
        platform: Platform,
        kind: VmType,
        creator: int,
        guest: GuestFactory,
        kernel: KernelRelease,
    ) -> None:
        self.platform = platform
        self.kernel = kernel
        self._make_guest = guest
        self.kind = kind
        self.creator = creator
        self.name = platform.name_for(creator)
        self.slots = MemorySlots(
            protected=kind == VmType.SNP, binds_first=kernel.binds_guest_memfd_first
        )
        self.private = PrivateRanges()
        self.vcpus: dict[int, Vcpu] = {}
        self.initialised = False  # whether INIT2 has succeeded
        self.certs_enabled = False
        self.ghcb_version = 2
        self.vmsa_features = 0
        self.irqchip = False
        self.split_irqchip = False
        self.hypercalls = 0
        self.context: GuestContext | None = None
        self.sev_fd: int | None = None  # kept as a number and resolved again for each guest request
        self.secrets: tuple[int, bytes] | None = None  # GPA, page
        self.guest: Guest | None = None
        self.jump_table = 0
        self.request_page = bytes(PAGE_SIZE)
        self.response_page = bytes(PAGE_SIZE)
        self._cpuid: dict[tuple[int, int | None], tuple[int, int, int, int]] = {}
        self._encrypted: list[tuple[int, int]] = []
        self._max_vcpu_id = 0  # 0: not set yet
        self._boot_cpu = 0
        self.tsc_khz = TSC_KHZ
        self._apic_bus_cycle_ns = 1
        self._open = 1
        self._sev = SevCommands(self)
        self._board = Board(platform.clock)
        platform.vms[self.name] = self

    # Used by vCPUs, the guest and the SEV commands.

    @property
    def snp(self) -> bool:
        """Whether the VM is an initialised SNP guest."""
        return self.kind == VmType.SNP and self.initialised

    @property
    def processors(self) -> int:
        """The number of vCPUs that have been created."""
        return len(self.vcpus)

    @property
    def protected(self) -> bool:
        """Whether vCPU state is protected: true for SNP, initialised or not."""
        return self.kind == VmType.SNP

    @property
    def secure_tsc(self) -> bool:
        """Whether the VMM has given the firmware control of the guest's TSC."""
        return self.snp and bool(self.vmsa_features & SECURE_TSC)

    @property
    def awaits_init(self) -> bool:
        """Whether this is an SNP VM that has not been initialised with INIT2 yet."""
        return self.kind == VmType.SNP and not self.initialised

    @property
    def exits_for_page_state(self) -> bool:
        """Whether the VMM has enabled the KVM_HC_MAP_GPA_RANGE exit."""
        return bool(self.hypercalls & HYPERCALLS)

    @property
    def alive(self) -> bool:
        """Whether a descriptor of the VM or of one of its vCPUs is open."""
        return self._open > 0

    @property
    def secrets_page(self) -> bytes | None:
        """The secrets page that the firmware has written; None if it has written none."""
        return self.secrets[1] if self.secrets is not None else None

    @property
    def clock(self) -> Callable[[], float]:
        """The platform's clock, which returns seconds."""
        return self.platform.clock

    def memory(self, caller: Caller) -> SlotMemory:
        """Return guest memory, accessed through the caller's address space."""
        return SlotMemory(self.slots, caller.memory)

    def is_private(self, gpa: int) -> bool:
        """Whether the VMM has made the page at ``gpa`` private."""
        return self.private.holds(gpa)

    def cpuid(self, function: int, index: int = 0) -> tuple[int, int, int, int]:
        """Return EAX, EBX, ECX and EDX of a CPUID function; zeros if the VMM has not set that
        function.
        """
        return host_cpuid.entry(self._cpuid, function, index)

    def set_cpuid(self, entries: dict[tuple[int, int | None], tuple[int, int, int, int]]) -> None:
        """Store the CPUID table of KVM_SET_CPUID2, which all vCPUs share."""
        self._cpuid = entries

    def program(self, cpu: GuestCpu) -> Program:
        """Return the guest's program for a vCPU; the first call starts the guest."""
        if self.guest is None:
            self.guest = self._make_guest(self)
        return self.guest.program(cpu)

    def start_processors(self) -> None:
        """Make every vCPU runnable."""
        for vcpu in self.vcpus.values():
            vcpu.mp_state = MP_RUNNABLE

    @property
    def sev_features(self) -> int:
        """The SEV_FEATURES field of the guest's VMSAs: what INIT2 requested, and the SNP bit."""
        return self.vmsa_features | SEV_FEATURES_SNP

    def has_processor(self, apic_id: int) -> bool:
        """Whether a vCPU has this APIC ID."""
        return apic_id in self.vcpus

    def processor_requested(self, apic_id: int, request: ProcessorRequest) -> None:
        """Record that the guest asked to stop a vCPU, or to start one from a VMSA that the guest
        created.

        A vCPU started in this way runs its part of the emulated guest, not the code that the VMSA
        points to. A request to start a vCPU on INIT changes nothing, because nothing sends an INIT.
        """
        vcpu = self.vcpus[apic_id]
        if request == ProcessorRequest.CREATE:
            vcpu.start()
        elif request == ProcessorRequest.DESTROY:
            vcpu.hold()

    def issue_guest_request(self, caller: Caller) -> int:
        """Issue SNP_GUEST_REQUEST with the VM's request and response pages.

        Returns the firmware's status. Raises ``OSError`` if the command did not reach the firmware.
        """
        return self._sev.guest_request(caller)

    def release(self, vcpu: Vcpu | None) -> None:
        """Record that the descriptor of ``vcpu`` has been closed, or the VM's own if ``vcpu`` is
        None. The VM ends with its last descriptor.
        """
        if vcpu is not None:
            vcpu.launched = False
        self._open -= 1
        if self._open == 0:
            if self.context is not None:
                self.platform.firmware.decommission(self.context)
                self.context = None
            self.platform.vms.pop(self.name, None)
            self.platform.irqfds.release(self)

    # The methods that every Device has.

    def close(self) -> None:
        """Close the VM's own descriptor. Open vCPUs keep the VM alive."""
        self.release(None)

    def ioctl(self, caller: Caller, request: int, argument: int) -> Result:
        """Serve an ioctl on the VM's descriptor."""
        require_shared_memory(caller.pid, self.creator)
        match request:
            case Ioctl.SET_USER_MEMORY_REGION:
                self._set_region(caller, argument)
            case Ioctl.SET_USER_MEMORY_REGION2:
                self._set_region2(caller, argument)
            case Ioctl.CREATE_GUEST_MEMFD:
                made = self._create_memfd(caller, argument)
                return NewDescriptor(made, shared=made.memfd)
            case Ioctl.SET_MEMORY_ATTRIBUTES:
                self._set_attributes(caller, argument)
            case Ioctl.CHECK_EXTENSION:
                if argument == Cap.X86_APIC_BUS_CYCLES_NS:
                    return self._apic_bus_cycle_ns
                return capability(
                    self.platform, argument, self.kind, split_irqchip=self.split_irqchip
                )
            case Ioctl.GET_TSC_KHZ:
                return self.tsc_khz
            case Ioctl.SET_TSC_KHZ:
                wanted_khz = checked_tsc_khz(argument)
                if self.vcpus:
                    raise OSError(
                        errno.EINVAL, "the VM's TSC frequency cannot change once the VM has vCPUs"
                    )
                self.tsc_khz = wanted_khz
            case Ioctl.SET_NR_MMU_PAGES:
                if argument < MMU_PAGES_MIN:
                    raise OSError(
                        errno.EINVAL,
                        f"number of MMU pages: expected at least {MMU_PAGES_MIN}, found {argument}",
                    )
            case Ioctl.SET_BOOT_CPU_ID:
                self._set_boot_cpu(argument)
            case Ioctl.ENABLE_CAP:
                self._enable_cap(caller, argument)
            case Ioctl.CREATE_VCPU:
                vcpu = self._create_vcpu(argument)
                return NewDescriptor(vcpu, shared=vcpu.run_memfd)
            case Ioctl.MEMORY_ENCRYPT_OP:
                self._sev.command(caller, argument)
            case Ioctl.MEMORY_ENCRYPT_REG_REGION:
                self._register_region(caller, argument)
            case Ioctl.MEMORY_ENCRYPT_UNREG_REGION:
                self._unregister_region(caller, argument)
            case Ioctl.IRQFD:
                full = self.irqchip and not self.split_irqchip
                wanted = _copied(Irqfd, caller, argument)
                irqfds = self.platform.irqfds
                irqfds.call(self, caller, wanted, in_kernel=self.irqchip, full=full)
            case r if r == Ioctl.CREATE_IRQCHIP:
                self._create_irqchip()
            case _:
                full = self.irqchip and not self.split_irqchip
                if not self._board.ioctl(
                    caller.memory, request, argument, chips=full, vcpus=bool(self.vcpus)
                ):
                    log.info("%s: VM ioctl %#x is not emulated", self.name, request)
                    raise OSError(errno.ENOTTY, f"unknown VM ioctl {request:#x}")
        return 0

    # Memory.

    def _set_region(self, caller: Caller, argument: int) -> None:
        region = _copied(UserspaceMemoryRegion, caller, argument)
        if region.flags & ~(MEM_LOG_DIRTY_PAGES | MEM_READONLY):
            raise OSError(errno.EINVAL, f"unknown memory region flags: {region.flags:#x}")
        self.slots.set(
            UserspaceMemoryRegion2(
                region.slot,
                region.flags,
                region.guest_phys_addr,
                region.memory_size,
                region.userspace_addr,
            )
        )

    def _set_region2(self, caller: Caller, argument: int) -> None:
        region = _copied(UserspaceMemoryRegion2, caller, argument)

        def find_memfd() -> GuestMemfd:
            device = caller.find(region.guest_memfd)
            if device is None:
                raise OSError(
                    errno.EBADF, f"guest_memfd {region.guest_memfd} is not an open descriptor"
                )
            if not isinstance(device, GuestMemfd) or device.owner is not self:
                raise OSError(
                    errno.EINVAL, f"descriptor {region.guest_memfd} is not a guest_memfd of this VM"
                )
            return device

        self.slots.set(region, find_memfd)

    def _create_memfd(self, caller: Caller, argument: int) -> GuestMemfd:
        wanted = _copied(CreateGuestMemfd, caller, argument)
        if wanted.flags or not 0 < wanted.size < 1 << 63 or wanted.size % PAGE_SIZE:
            raise OSError(errno.EINVAL, "the size or the flags of the guest_memfd are invalid")
        return GuestMemfd(self, wanted.size)

    def _set_attributes(self, caller: Caller, argument: int) -> None:
        wanted = _copied(MemoryAttributes, caller, argument)
        known = MEMORY_ATTRIBUTE_PRIVATE if self.kind == VmType.SNP else 0
        end = wanted.address + wanted.size
        if (
            wanted.flags
            or wanted.attributes & ~known
            or wanted.size == 0
            or end >= _U64
            or (wanted.address | wanted.size) % PAGE_SIZE
        ):
            raise OSError(errno.EINVAL, "the memory attributes or their range are invalid")
        if not wanted.attributes:
            self.private.remove(wanted.address, end)
        elif len(self.private) >= PRIVATE_RANGES_MAX:
            raise OSError(
                errno.ENOMEM, f"a VM cannot have more than {PRIVATE_RANGES_MAX} private ranges"
            )
        else:
            self.private.add(wanted.address, end)

    def _register_region(self, caller: Caller, argument: int) -> None:
        region = _copied(EncRegion, caller, argument)
        self._need_sev()
        if region.size == 0 or region.addr + region.size >= _U64:
            raise OSError(errno.EINVAL, "the encrypted region is empty or wraps around")
        if len(self._encrypted) >= ENCRYPTED_REGIONS_MAX:
            raise OSError(
                errno.ENOMEM,
                f"a VM cannot have more than {ENCRYPTED_REGIONS_MAX} encrypted regions",
            )
        self._encrypted.append((region.addr, region.size))

    def _unregister_region(self, caller: Caller, argument: int) -> None:
        region = _copied(EncRegion, caller, argument)
        self._need_sev()
        if (region.addr, region.size) not in self._encrypted:
            raise OSError(
                errno.EINVAL, "the region is not registered, so it cannot be unregistered"
            )
        self._encrypted.remove((region.addr, region.size))

    def _need_sev(self) -> None:
        if not self.snp:
            raise OSError(
                errno.ENOTTY,
                "encrypted regions need a VM that is initialised with INIT2",
            )

    # Processors.

    def _create_vcpu(self, number: int) -> Vcpu:
        if number >= VCPU_IDS_MAX or len(self.vcpus) >= VCPUS_MAX:
            raise OSError(
                errno.EINVAL,
                f"expected a vCPU ID below {VCPU_IDS_MAX} and fewer than {VCPUS_MAX} other vCPUs, "
                f"found ID {number} and {len(self.vcpus)} vCPUs",
            )
        if number in self.vcpus:
            raise OSError(errno.EEXIST, f"vCPU {number} already exists")
        self._max_vcpu_id = self._max_vcpu_id or VCPU_IDS_MAX
        if number >= self._max_vcpu_id:
            raise OSError(
                errno.EINVAL,
                f"vCPU ID: expected at most {self._max_vcpu_id - 1}, found {number}",
            )
        boot = number == self._boot_cpu
        vcpu = Vcpu(self, number, len(self.vcpus), runnable=boot or not self.irqchip, boot=boot)
        self.vcpus[number] = vcpu
        self._open += 1
        return vcpu

    def _create_irqchip(self) -> None:
        if self.irqchip:
            raise OSError(errno.EEXIST, "the VM already has an interrupt controller")
        if self.vcpus:
            raise OSError(
                errno.EINVAL, "an interrupt controller cannot be created once the VM has vCPUs"
            )
        self.irqchip = True

    def _enable_cap(self, caller: Caller, argument: int) -> None:
        data = caller.memory.read(argument, ENABLE_CAP_SIZE)
        cap, flags, value = struct.unpack_from("<IIQ", data)
        if flags:
            raise OSError(errno.EINVAL, f"unknown KVM_ENABLE_CAP flags: {flags:#x}")
        if cap == Cap.EXIT_HYPERCALL:
            if value & ~HYPERCALLS:
                raise OSError(errno.EINVAL, f"unknown hypercalls: {value:#x}")
            self.hypercalls = value
        elif cap == Cap.SPLIT_IRQCHIP:
            self._split_irqchip(value)
        elif cap == Cap.MAX_VCPU_ID:
            self._limit_vcpu_ids(value)
        elif cap == Cap.X2APIC_API:
            self._set_x2apic(value)
        elif cap == Cap.X86_APIC_BUS_CYCLES_NS:
            self._set_apic_bus(value)
        elif cap not in WITHOUT_EFFECT:
            log.info("%s: capability %d cannot be enabled", self.name, cap)
            raise OSError(errno.EINVAL, f"capability {cap} cannot be enabled")
        elif value & ~WITHOUT_EFFECT[cap]:
            known = WITHOUT_EFFECT[cap]
            raise OSError(
                errno.EINVAL,
                f"capability {cap}: expected only bits of {known:#x}, found {value:#x}",
            )

    def _split_irqchip(self, reserved_pins: int) -> None:
        if reserved_pins > IRQ_ROUTES_MAX:
            raise OSError(
                errno.EINVAL,
                f"number of interrupt pins: expected at most {IRQ_ROUTES_MAX}, found "
                f"{reserved_pins}",
            )
        if self.irqchip or self.vcpus:
            raise OSError(
                errno.EEXIST,
                "KVM_CAP_SPLIT_IRQCHIP cannot be enabled once the VM has an interrupt controller "
                "or vCPUs",
            )
        self.irqchip = self.split_irqchip = True

    def _limit_vcpu_ids(self, limit: int) -> None:
        """Set KVM_CAP_MAX_VCPU_ID. It can be set only once, but setting the same value again
        succeeds.
        """
        too_much = limit > VCPU_IDS_MAX or self._boot_cpu > limit
        if too_much or self._max_vcpu_id not in (0, limit):
            raise OSError(errno.EINVAL, "the limit on vCPU IDs is out of range or already set")
        self._max_vcpu_id = limit

    def _set_boot_cpu(self, number: int) -> None:
        if self.vcpus:
            raise OSError(errno.EBUSY, "the boot vCPU cannot change once the VM has vCPUs")
        if number > (self._max_vcpu_id or VCPU_IDS_MAX):
            raise OSError(errno.EINVAL, f"the boot vCPU's ID {number} is too large")
        self._boot_cpu = number

    def _set_apic_bus(self, cycle_ns: int) -> None:
        if not 0 < cycle_ns < _APIC_CYCLE_END:
            raise OSError(
                errno.EINVAL,
                f"APIC bus cycle: expected 1 to {_APIC_CYCLE_END - 1} ns, found {cycle_ns}",
            )
        if not self.irqchip:
            raise OSError(
                errno.ENXIO,
                "the APIC bus cycle cannot be set while the VM has no interrupt controller",
            )
        if self.vcpus:
            raise OSError(errno.EINVAL, "the APIC bus cycle cannot change once the VM has vCPUs")
        self._apic_bus_cycle_ns = cycle_ns

    def _set_x2apic(self, flags: int) -> None:
        enable = flags & X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST
        disable = flags & X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST
        if flags & ~X2APIC_FLAGS or (enable and (disable or not self.split_irqchip)):
            raise OSError(
                errno.EINVAL,
                f"KVM_CAP_X2APIC_API flags {flags:#x} are unknown, contradict each other, or need "
                "a split interrupt controller",
            )


def _copied(kind: type[_S], caller: Caller, address: int) -> _S:
    return kind.unpack(caller.memory.read(address, kind.SIZE))
