/* SPDX-License-Identifier: Apache-2.0
 *
 * A small VMM that serves certificates as the kernel's documentation recommends:
 * vmm FILE VCPUS. Compiled with -DNO_LOCK, it neither locks the file nor checks that the
 * path still leads to it. KVM's numbers come from kvm_abi.h, because the C library's
 * headers may be too old.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../native/kvm_abi.h"

#define PAGE 4096ul
#define MEMORY (PAGE * 512)
#define RUN_SIZE 12288
#define LOCK_TRIES 100 /* a millisecond each, then BUSY */


static const char *path;
static int vm, sev;
static uint8_t *memory;

static long must(long result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

static void command(uint32_t id, void *data)
{
	uint64_t issued[3] = { id, (uintptr_t)data, (uint64_t)sev << 32 };

	must(ioctl(vm, KVM_MEMORY_ENCRYPT_OP, issued), "KVM_MEMORY_ENCRYPT_OP");
}

/* Open and lock the file that the path leads to. Return its descriptor, or -1 with errno set. */
static int locked_file(struct stat *mine)
{
	struct flock lock = { .l_type = F_RDLCK, .l_whence = SEEK_SET };
	struct stat there;

	for (int tries = 0; tries < LOCK_TRIES; tries++) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);

		if (fd < 0)
			return -1;
#ifdef NO_LOCK
		(void)lock;
		if (!fstat(fd, mine))
			return fd;
#else
		if (!fcntl(fd, F_OFD_SETLK, &lock) && !fstat(fd, mine) && !stat(path, &there) &&
		    mine->st_dev == there.st_dev && mine->st_ino == there.st_ino)
			return fd;
#endif
		(void)there;
		close(fd);
		usleep(1000);
	}
	errno = EAGAIN;
	return -1;
}

static void serve(int vcpu, struct kvm_run *run, unsigned *seed)
{
	struct stat file;
	int fd = locked_file(&file);
	uint64_t pages = fd < 0 ? 0 : (file.st_size + PAGE - 1) / PAGE;

	if (fd < 0) {
		run->snp_req_certs.ret = errno == EAGAIN ? EAGAIN : EIO;
	} else if (run->snp_req_certs.npages < pages) {
		run->snp_req_certs.npages = pages;
		run->snp_req_certs.ret = ENOSPC;
	} else {
		must(run->snp_req_certs.gpa + file.st_size <= MEMORY ? 0 : -1, "the guest's buffer");
		must(pread(fd, memory + run->snp_req_certs.gpa, file.st_size, 0), path);
		run->snp_req_certs.ret = 0;
	}
	/* The kernel may suspend a thread at any point. Here, without the lock, that would matter. */
	usleep(rand_r(seed) % 4 ? rand_r(seed) % 1000 : rand_r(seed) % 20000);
	run->immediate_exit = 1;
	if (ioctl(vcpu, KVM_RUN, 0) == 0 || errno != EINTR)
		must(-1, "KVM_RUN with immediate_exit");
	run->immediate_exit = 0;
	if (fd >= 0)
		close(fd);
}

static void set_private(uint64_t gpa, uint64_t size, uint64_t private)
{
	uint64_t range[4] = { gpa, size, private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0 };

	must(ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, range), "KVM_SET_MEMORY_ATTRIBUTES");
}

/* Serve KVM_HC_MAP_GPA_RANGE (GPA, pages, attributes); bit 4 of the attributes means private. */
static void change_page_state(uint64_t *exit)
{
	set_private(exit[1], exit[2] * PAGE, exit[3] >> 4 & 1);
	exit[7] = 0;
}

static void *vcpu_thread(void *argument)
{
	int vcpu = (int)(intptr_t)argument;
	unsigned seed = vcpu;
	struct kvm_run *run = mmap(NULL, RUN_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);

	must(run == MAP_FAILED ? -1 : 0, "mmap of kvm_run");
	for (;;) {
		if (ioctl(vcpu, KVM_RUN, 0) < 0 && errno == EINTR)
			continue;
		if (run->exit_reason == KVM_EXIT_SNP_REQ_CERTS)
			serve(vcpu, run, &seed);
		else if (run->exit_reason == KVM_EXIT_HYPERCALL)
			change_page_state(&run->snp_req_certs.gpa /* the union */);
		else if (run->exit_reason == KVM_EXIT_SHUTDOWN)
			return NULL;
		else
			must(-1, "an exit this VMM does not know");
	}
}

int main(int argc, char **argv)
{
	uint64_t supported = 0, attr[3] = { (uint64_t)KVM_X86_GRP_SEV << 32,
					    KVM_X86_SEV_SNP_REQ_CERTS, (uintptr_t)&supported };
	uint64_t init[6] = { 0, 2ul << 32 }, start[8] = { 3 << 16 }, finish[11] = { 0 };
	uint64_t memfd[8] = { MEMORY }, hypercalls[13] = { KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE };
	uint64_t region[20] = { (uint64_t)KVM_MEM_GUEST_MEMFD << 32, 0, MEMORY };
	int kvm, vcpus = argc == 3 ? atoi(argv[2]) : 0, fds[64];
	pthread_t threads[64];

	if (vcpus < 1 || vcpus > 64) {
		fprintf(stderr, "usage: vmm FILE VCPUS\n");
		return 2;
	}
	path = argv[1];
	kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	sev = must(open("/dev/sev", O_RDWR | O_CLOEXEC), "/dev/sev");
	must(ioctl(kvm, KVM_GET_DEVICE_ATTR, attr), "KVM_X86_SEV_SNP_REQ_CERTS");
	must(supported == 1 ? 0 : -1, "certificates are not supported");
	vm = must(ioctl(kvm, KVM_CREATE_VM, KVM_X86_SNP_VM), "KVM_CREATE_VM");
	command(KVM_SEV_INIT2, init);
	must(ioctl(vm, KVM_ENABLE_CAP, hypercalls), "KVM_CAP_EXIT_HYPERCALL");
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	region[3] = (uintptr_t)memory;
	region[5] = must(ioctl(vm, KVM_CREATE_GUEST_MEMFD, memfd), "KVM_CREATE_GUEST_MEMFD");
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION2, region), "KVM_SET_USER_MEMORY_REGION2");
	set_private(0, MEMORY, 1);
	command(KVM_SEV_SNP_ENABLE_REQ_CERTS, NULL);
	for (int i = 0; i < vcpus; i++)
		fds[i] = must(ioctl(vm, KVM_CREATE_VCPU, i), "KVM_CREATE_VCPU");
	command(KVM_SEV_SNP_LAUNCH_START, start);
	for (uint64_t page = 0; page < 2; page++) {
		uint64_t update[8] = { page, (uintptr_t)memory + page * PAGE, PAGE, page ? 5 : 1 };

		command(KVM_SEV_SNP_LAUNCH_UPDATE, update);
	}
	command(KVM_SEV_SNP_LAUNCH_FINISH, finish);
	for (int i = 0; i < vcpus; i++)
		pthread_create(&threads[i], NULL, vcpu_thread, (void *)(intptr_t)fds[i]);
	for (int i = 0; i < vcpus; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
