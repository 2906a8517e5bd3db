/* SPDX-License-Identifier: Apache-2.0
 *
 * A VMM in C that serves certificates: vmm FILE VCPUS. The VMM runs an SNP guest until the guest
 * shuts down or SIGTERM arrives. A real VMM also loads firmware and has devices, but handles
 * KVM_EXIT_SNP_REQ_CERTS in the same way.
 *
 *	cc -o vmm vmm.c $(pkg-config --cflags --libs snpcerts) -pthread
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <snpcerts.h>

#include "../../native/kvm_abi.h" /* as in <linux/kvm.h> of Linux 7.0 */

#define PAGE 4096ul
#define LOW (PAGE * 128) /* the size of the first of two memory slots */
#define MEMORY (PAGE * (128 + 2048))
#define RUN_SIZE 12288
#define MAX_VCPUS 64
#define ENCRYPTED 16 /* KVM_MAP_GPA_RANGE_ENCRYPTED */

static int vm, sev, vcpus, fds[MAX_VCPUS];
static uint8_t *memory;
static struct kvm_run *runs[MAX_VCPUS];
static pthread_t threads[MAX_VCPUS];
static volatile sig_atomic_t stopping;
static struct snpcerts_slot slots[2];
static struct snpcerts_vm certs = {
	.lock_wait = SNPCERTS_LOCK_WAIT, .slots = slots, .slot_count = 2,
};

static long must(long result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

static void sev_command(uint32_t id, void *data)
{
	struct kvm_sev_cmd command = { .id = id, .data = (uintptr_t)data, .sev_fd = sev };

	must(ioctl(vm, KVM_MEMORY_ENCRYPT_OP, &command), "KVM_MEMORY_ENCRYPT_OP");
}

static void set_private(uint64_t gpa, uint64_t size, bool private)
{
	uint64_t range[4] = { gpa, size, private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0 };

	must(ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, range), "KVM_SET_MEMORY_ATTRIBUTES");
}

static void add_slot(uint32_t number, uint64_t gpa, uint64_t size)
{
	uint64_t memfd[8] = { size }, region[20] = { 0 };
	struct kvm_userspace_memory_region *first = (void *)region;

	*first = (struct kvm_userspace_memory_region){
		number, KVM_MEM_GUEST_MEMFD, gpa, size, (uintptr_t)(memory + gpa)
	};
	region[5] = must(ioctl(vm, KVM_CREATE_GUEST_MEMFD, memfd), "KVM_CREATE_GUEST_MEMFD");
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION2, region), "KVM_SET_USER_MEMORY_REGION2");
	slots[number] = (struct snpcerts_slot){ gpa, size, (uintptr_t)(memory + gpa) };
}

/* Serve KVM_HC_MAP_GPA_RANGE: make pages shared or private. Return the guest's answer. */
static uint64_t change_page_state(uint64_t gpa, uint64_t pages, uint64_t attributes)
{
	if (gpa >= MEMORY || pages > (MEMORY - gpa) / PAGE)
		return EINVAL;
	set_private(gpa, pages * PAGE, attributes & ENCRYPTED);
	if (attributes & ENCRYPTED)
		madvise(memory + gpa, pages * PAGE, MADV_DONTNEED);
	return 0;
}

static void *run_vcpu(void *argument)
{
	int vcpu = (int)(intptr_t)argument, error;
	struct kvm_run *run = runs[vcpu];
	uint64_t *exit_data = &run->snp_req_certs.gpa; /* where the union of all exits begins */

	while (!stopping) {
		if (ioctl(fds[vcpu], KVM_RUN, 0) < 0) {
			must(errno == EINTR ? 0 : -1, "KVM_RUN");
		} else if (snpcerts_asks(run)) {
			error = snpcerts_serve(&certs, fds[vcpu], run, NULL);
			if (error && error != EINTR) {
				errno = error;
				must(-1, "KVM_RUN");
			}
		} else if (run->exit_reason == KVM_EXIT_HYPERCALL) {
			exit_data[7] = change_page_state(exit_data[1], exit_data[2], exit_data[3]);
		} else {
			break;
		}
	}
	return NULL;
}

static void kicked(int number)
{
	(void)number; /* the signal only makes KVM_RUN return EINTR */
}

/* Wait for SIGTERM, then stop the vCPUs, including those that are about to enter KVM_RUN. */
static void *stop(void *signals)
{
	int number;

	sigwait(signals, &number);
	stopping = true;
	for (int i = 0; i < vcpus; i++) {
		runs[i]->immediate_exit = 1;
		pthread_kill(threads[i], SIGUSR1);
	}
	return NULL;
}

int main(int count, char **arguments)
{
	uint64_t init[6] = { 0, 2ul << 32 }, start[8] = { 3 << 16 }, finish[11] = { 0 };
	uint64_t hypercalls[13] = { KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE };
	pthread_t stopper;
	sigset_t term;
	int kvm;

	vcpus = count == 3 ? atoi(arguments[2]) : 0;
	if (vcpus < 1 || vcpus > MAX_VCPUS) {
		fprintf(stderr, "usage: vmm FILE VCPUS\n");
		return 2;
	}
	certs.path = arguments[1];
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &term, NULL);
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = kicked }, NULL);

	kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	sev = must(open("/dev/sev", O_RDWR | O_CLOEXEC), "/dev/sev");
	vm = must(ioctl(kvm, KVM_CREATE_VM, KVM_X86_SNP_VM), "KVM_CREATE_VM");
	sev_command(KVM_SEV_INIT2, init);
	must(ioctl(vm, KVM_ENABLE_CAP, hypercalls), "KVM_CAP_EXIT_HYPERCALL");
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(memory == MAP_FAILED ? -1 : 0, "memory");
	add_slot(0, 0, LOW);
	add_slot(1, LOW, MEMORY - LOW);
	set_private(0, MEMORY, true);

	/* After INIT2 and before the first vCPU. */
	if (snpcerts_supported(kvm)) {
		errno = snpcerts_enable(vm);
		must(errno ? -1 : 0, "KVM_SEV_SNP_ENABLE_REQ_CERTS");
	}
	for (int i = 0; i < vcpus; i++) {
		fds[i] = must(ioctl(vm, KVM_CREATE_VCPU, i), "KVM_CREATE_VCPU");
		runs[i] = mmap(NULL, RUN_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], 0);
		must(runs[i] == MAP_FAILED ? -1 : 0, "kvm_run");
	}
	sev_command(KVM_SEV_SNP_LAUNCH_START, start);
	for (uint64_t page = 0; page < 2; page++) { /* code, then the secrets page */
		uint64_t update[8] = { page, (uintptr_t)memory + page * PAGE, PAGE, page ? 5 : 1 };

		sev_command(KVM_SEV_SNP_LAUNCH_UPDATE, update);
	}
	sev_command(KVM_SEV_SNP_LAUNCH_FINISH, finish);

	for (int i = 0; i < vcpus; i++)
		pthread_create(&threads[i], NULL, run_vcpu, (void *)(intptr_t)i);
	pthread_create(&stopper, NULL, stop, &term);
	for (int i = 0; i < vcpus; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
