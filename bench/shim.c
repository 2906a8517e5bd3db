/* SPDX-License-Identifier: Apache-2.0
 *
 * Measures what the shim costs. Each command below does one thing COUNT times, and prints
 * the nanoseconds of processor time for one (the machine may do other work meanwhile):
 *
 *	shim requests FILE COUNT	the fake KVM asks for certificates; the preloaded shim
 *					serves them
 *	shim calls FILE COUNT		only the system calls of a served request
 *	shim exits COUNT		a guest on the real KVM writes to a port
 *	shim snp COUNT			the same in a VM that pretends to be an SNP VM, so that
 *					the shim examines each exit
 *
 * The fake KVM is shim_kvm.c, preloaded behind the shim.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "../native/kvm_abi.h"

#define MEMORY (1 << 20)

static char *memory;
static struct kvm_run *run;

static long must(long result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

/* Create a VM with a megabyte of memory and one vCPU, and map its kvm_run. Return the vCPU. */
static int make(int kvm, long type)
{
	uint32_t init[6] = { KVM_SEV_INIT2 };
	int vm = must(ioctl(kvm, KVM_CREATE_VM, type), "KVM_CREATE_VM"), vcpu;
	uint64_t region[4] = { 0, 0, MEMORY };

	if (type)
		must(ioctl(vm, KVM_MEMORY_ENCRYPT_OP, init), "INIT2");
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	region[3] = (uintptr_t)memory;
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, region), "KVM_SET_USER_MEMORY_REGION");
	vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	run = mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	must(run == MAP_FAILED ? -1 : 0, "kvm_run");
	return vcpu;
}

static void request(int vcpu)
{
	run->snp_req_certs.gpa = 0;
	run->snp_req_certs.npages = 4;
	if (ioctl(vcpu, KVM_RUN, 0) == 0 || errno != EINTR || run->snp_req_certs.ret)
		must(-1, "a request was not served");
}

/* Make as many system calls as the shim makes for a request, in the same order. */
static void calls(const char *path)
{
	struct flock lock = { .l_type = F_RDLCK, .l_whence = SEEK_SET };
	struct stat mine, there;
	struct iovec piece = { memory, 0 };
	char first[24];
	sigset_t all, mask;
	int fd;

	syscall(SYS_getppid); /* KVM_RUN returns with the request */
	fd = must(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), path);
	must(fcntl(fd, F_OFD_SETLK, &lock), "lock");
	must(fstat(fd, &mine), "fstat");
	must(stat(path, &there), "stat");
	must(pread(fd, first, sizeof first, 0), "pread");
	piece.iov_len = mine.st_size;
	must(preadv(fd, &piece, 1, 0), "preadv");
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &mask);
	syscall(SYS_getppid); /* KVM_RUN takes the answer */
	lock.l_type = F_UNLCK;
	must(fcntl(fd, F_OFD_SETLK, &lock), "unlock");
	close(fd);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

/* Write the guest's code, an endless loop in real mode: out %al, %dx; jmp back. */
static void write_guest(int vcpu)
{
	static const uint8_t code[] = { 0xEE, 0xEB, 0xFD };
	uint64_t regs[18] = { 0 };
	uint8_t sregs[312];

	memcpy(memory + 0x1000, code, sizeof code);
	must(ioctl(vcpu, KVM_GET_SREGS, sregs), "KVM_GET_SREGS");
	memset(sregs, 0, 8); /* the code segment's base */
	memset(sregs + 12, 0, 2);
	must(ioctl(vcpu, KVM_SET_SREGS, sregs), "KVM_SET_SREGS");
	regs[3] = 0x80; /* RDX: an unused port */
	regs[16] = 0x1000; /* RIP */
	regs[17] = 2; /* RFLAGS */
	must(ioctl(vcpu, KVM_SET_REGS, regs), "KVM_SET_REGS");
}

int main(int argc, char **argv)
{
	const char *what = argc > 2 ? argv[1] : "";
	long count = argc > 2 ? atol(argv[argc - 1]) : 0;
	struct timespec start, end;
	int vcpu = -1;

	if (!strcmp(what, "requests")) {
		vcpu = make(-1, KVM_X86_SNP_VM);
	} else if (!strcmp(what, "calls")) {
		memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	} else if (!strcmp(what, "exits") || !strcmp(what, "snp")) {
		vcpu = make(must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm"), *what == 's' ? KVM_X86_SNP_VM : 0);
		write_guest(vcpu);
	} else {
		return 2;
	}
	for (int round = 0; round < 2; round++) { /* once to warm up */
		long times = round ? count : count / 10;

		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
		for (long i = 0; i < times; i++) {
			if (*what == 'r')
				request(vcpu);
			else if (*what == 'c')
				calls(argv[2]);
			else if (must(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN") || run->exit_reason != KVM_EXIT_IO)
				must(-1, "not a port write");
		}
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
	}
	printf("%f\n", ((end.tv_sec - start.tv_sec) * 1e9 + (end.tv_nsec - start.tv_nsec)) / count);
	return 0;
}
