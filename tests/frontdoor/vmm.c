/* SPDX-License-Identifier: Apache-2.0
 *
 * A minimal VMM: vmm FILE [VCPUS]. It launches an SNP VM with VCPUS vCPUs (default 1),
 * and answers each certificate request with the content that FILE had at the start. It
 * takes no lock. KVM's numbers come from kvm_abi.h, because the C library's headers may
 * be too old.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../native/kvm_abi.h"

#define PAGE 4096ul
#define MEMORY (PAGE * 512)
#define RUN_SIZE 12288

struct region2 { uint32_t slot, flags; uint64_t gpa, size, address, offset; uint32_t memfd, pad; uint64_t pad2[14]; };
struct attributes { uint64_t address, size, attributes, flags; };
struct create_memfd { uint64_t size, flags, reserved[6]; };
struct enable_cap { uint32_t cap, flags; uint64_t args[4]; uint8_t pad[64]; };

static int vm, sev;
static uint8_t *memory;
static char table[PAGE * 4];
static size_t table_size;

static int must(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

static void command(uint32_t id, void *data)
{
	struct kvm_sev_cmd issued = { .id = id, .data = (uintptr_t)data, .sev_fd = sev };

	must(ioctl(vm, KVM_MEMORY_ENCRYPT_OP, &issued), "KVM_MEMORY_ENCRYPT_OP");
}

static void set_private(uint64_t gpa, uint64_t size, int private)
{
	struct attributes change = { gpa, size, private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0, 0 };

	must(ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &change), "KVM_SET_MEMORY_ATTRIBUTES");
}

static void certificates(uint64_t *exit)
{
	uint64_t pages = (table_size + PAGE - 1) / PAGE;

	if (exit[1] < pages) {
		exit[1] = pages;
		exit[2] = ENOSPC;
		return;
	}
	memcpy(memory + exit[0], table, table_size);
	exit[2] = 0;
}

static void *vcpu(void *argument)
{
	int fd = (int)(intptr_t)argument;
	struct kvm_run *run = mmap(NULL, RUN_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	uint64_t *exit = &run->snp_req_certs.gpa /* the union */;

	must(run == MAP_FAILED ? -1 : 0, "mmap of kvm_run");
	for (;;) {
		must(ioctl(fd, KVM_RUN, 0), "KVM_RUN");
		switch (run->exit_reason) {
		case KVM_EXIT_HYPERCALL: /* KVM_HC_MAP_GPA_RANGE */
			set_private(exit[1], exit[2] * PAGE, exit[3] >> 4 & 1);
			exit[7] = 0;
			break;
		case KVM_EXIT_SHUTDOWN:
			return NULL;
		case KVM_EXIT_SNP_REQ_CERTS:
			certificates(exit);
			/* The firmware signs the report; then this returns with EINTR. */
			run->immediate_exit = 1;
			must(ioctl(fd, KVM_RUN, 0) < 0 && errno == EINTR ? 0 : -1, "completing KVM_RUN");
			run->immediate_exit = 0;
			break;
		default:
			fprintf(stderr, "exit %u\n", run->exit_reason);
			_exit(2);
		}
	}
}

int main(int argc, char **argv)
{
	uint64_t init[6] = { [1] = 2ul << 32 }, start[8] = { 3 << 16 }, finish[11] = { 0 };
	struct create_memfd memfd = { .size = MEMORY };
	struct enable_cap hypercalls = { .cap = KVM_CAP_EXIT_HYPERCALL, .args = { 1 << KVM_HC_MAP_GPA_RANGE } };
	struct region2 region = { .flags = KVM_MEM_GUEST_MEMFD, .size = MEMORY };
	pthread_t threads[64];
	int kvm, file, vcpus = argc > 2 ? atoi(argv[2]) : 1, fds[64];

	kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	sev = must(open("/dev/sev", O_RDWR | O_CLOEXEC), "/dev/sev");
	file = must(open(argv[1], O_RDONLY), argv[1]);
	table_size = must(read(file, table, sizeof(table)), argv[1]);
	must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0) == RUN_SIZE ? 0 : -1, "KVM_GET_VCPU_MMAP_SIZE");
	vm = must(ioctl(kvm, KVM_CREATE_VM, KVM_X86_SNP_VM), "KVM_CREATE_VM");
	init[1] = 2ul << 32;
	command(KVM_SEV_INIT2, init);
	must(ioctl(vm, KVM_ENABLE_CAP, &hypercalls), "KVM_CAP_EXIT_HYPERCALL");
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	region.address = (uintptr_t)memory;
	region.memfd = must(ioctl(vm, KVM_CREATE_GUEST_MEMFD, &memfd), "KVM_CREATE_GUEST_MEMFD");
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region), "KVM_SET_USER_MEMORY_REGION2");
	set_private(0, 2 * PAGE, 1);
	command(KVM_SEV_SNP_ENABLE_REQ_CERTS, NULL);
	for (int i = 0; i < vcpus; i++)
		fds[i] = must(ioctl(vm, KVM_CREATE_VCPU, i), "KVM_CREATE_VCPU");
	command(KVM_SEV_SNP_LAUNCH_START, start);
	for (uint64_t page = 0; page < 2; page++) {
		uint64_t update[8] = { page, (uintptr_t)(memory + page * PAGE), PAGE, page ? 5 : 1 };

		command(KVM_SEV_SNP_LAUNCH_UPDATE, update);
	}
	command(KVM_SEV_SNP_LAUNCH_FINISH, finish);
	for (int i = 0; i < vcpus; i++)
		pthread_create(&threads[i], NULL, vcpu, (void *)(intptr_t)fds[i]);
	for (int i = 0; i < vcpus; i++)
		pthread_join(threads[i], NULL);
	puts("shut down");
	return 0;
}
