/* SPDX-License-Identifier: Apache-2.0
 *
 * The parts of KVM's interface that the shim and the tests' C programs use. The C
 * library's headers may be older than the exit, so the numbers are here, under the
 * kernel's names. tests/kernel compares each of them, and each structure's size
 * and offsets, with the headers of released kernels.
 */
#ifndef SNPCERTS_KVM_ABI_H
#define SNPCERTS_KVM_ABI_H

#include <stdint.h>

/* Linux, include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h. */
#define KVM_GET_API_VERSION 0xAE00u
#define KVM_CREATE_VM 0xAE01u
#define KVM_CHECK_EXTENSION 0xAE03u
#define KVM_GET_VCPU_MMAP_SIZE 0xAE04u
#define KVM_CREATE_VCPU 0xAE41u
#define KVM_SET_USER_MEMORY_REGION 0x4020AE46u
#define KVM_SET_USER_MEMORY_REGION2 0x40A0AE49u
#define KVM_RUN 0xAE80u
#define KVM_GET_REGS 0x8090AE81u
#define KVM_SET_REGS 0x4090AE82u
#define KVM_GET_SREGS 0x8138AE83u
#define KVM_SET_SREGS 0x4138AE84u
#define KVM_SET_SIGNAL_MASK 0x4004AE8Bu
#define KVM_ENABLE_CAP 0x4068AEA3u
#define KVM_MEMORY_ENCRYPT_OP 0xC008AEBAu
#define KVM_SET_MEMORY_ATTRIBUTES 0x4020AED2u
#define KVM_CREATE_GUEST_MEMFD 0xC040AED4u
#define KVM_GET_DEVICE_ATTR 0x4018AEE2u
#define KVM_HAS_DEVICE_ATTR 0x4018AEE3u

#define KVM_CAP_EXIT_HYPERCALL 201
#define KVM_CAP_USER_MEMORY2 231
#define KVM_CAP_MEMORY_ATTRIBUTES 233
#define KVM_CAP_GUEST_MEMFD 234
#define KVM_CAP_VM_TYPES 235

#define KVM_X86_DEFAULT_VM 0
#define KVM_X86_SNP_VM 4
#define KVM_X86_GRP_SEV 1
#define KVM_X86_SEV_SNP_REQ_CERTS 2
#define KVM_MEM_READONLY 2
#define KVM_MEM_GUEST_MEMFD 4
#define KVM_MEMORY_ATTRIBUTE_PRIVATE 8

#define KVM_SEV_INIT2 22
#define KVM_SEV_SNP_LAUNCH_START 100
#define KVM_SEV_SNP_LAUNCH_UPDATE 101
#define KVM_SEV_SNP_LAUNCH_FINISH 102
#define KVM_SEV_SNP_ENABLE_REQ_CERTS 103

#define KVM_EXIT_IO 2
#define KVM_EXIT_HYPERCALL 3
#define KVM_EXIT_SHUTDOWN 8
#define KVM_EXIT_ARM_LDST64B 42
#define KVM_EXIT_SNP_REQ_CERTS 43

#define KVM_HC_MAP_GPA_RANGE 12

/* include/uapi/linux/psp-sev.h */
#define SEV_ISSUE_CMD 0xC0105300u

struct kvm_run { /* only the beginning of the kernel's structure */
	uint8_t request_interrupt_window;
	_Atomic uint8_t immediate_exit; /* another thread sets this byte to kick the vCPU */
	uint8_t padding1[6];
	uint32_t exit_reason;
	uint8_t padding2[20];
	union {
		struct {
			uint8_t direction, size;
			uint16_t port;
			uint32_t count;
			uint64_t data_offset;
		} io;
		struct {
			uint64_t gpa, npages, ret;
		} snp_req_certs;
	};
};

struct kvm_userspace_memory_region { /* also the beginning of kvm_userspace_memory_region2 */
	uint32_t slot, flags;
	uint64_t guest_phys_addr, memory_size, userspace_addr;
};

struct kvm_sev_cmd {
	uint32_t id, pad0;
	uint64_t data;
	uint32_t error, sev_fd;
};

struct kvm_device_attr {
	uint32_t flags, group;
	uint64_t attr, addr;
};

#endif
