/* SPDX-License-Identifier: Apache-2.0
 *
 * A fake KVM for the shim's benchmark, preloaded behind the shim. A VM that is created on
 * descriptor -1 is fake: it asks for certificates at each KVM_RUN, which costs a
 * getppid(2). A VM that is created on /dev/kvm is an ordinary one, but the shim takes it
 * for an SNP VM.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../native/kvm_abi.h"

static int vm = -1, vcpu = -1;
static struct kvm_run *run;
static int (*real_ioctl)(int, unsigned long, ...);

__attribute__((constructor)) static void start(void)
{
	real_ioctl = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
}

static int made(int *fd)
{
	*fd = memfd_create("fake", MFD_CLOEXEC);
	return *fd < 0 || ftruncate(*fd, 12288) < 0 ? -1 : *fd;
}

int ioctl(int fd, unsigned long request, ...)
{
	void *argument;
	va_list list;

	va_start(list, request);
	argument = va_arg(list, void *);
	va_end(list);
	if ((unsigned)request == KVM_RUN && fd == vcpu) {
		syscall(SYS_getppid);
		if (run->immediate_exit) {
			errno = EINTR;
			return -1;
		}
		run->exit_reason = KVM_EXIT_SNP_REQ_CERTS;
		return 0;
	}
	switch ((unsigned)request) {
	case KVM_CREATE_VM:
		return fd < 0 ? made(&vm) : real_ioctl(fd, request, 0l);
	case KVM_GET_DEVICE_ATTR: {
		uint64_t *there;

		memcpy(&there, (char *)argument + 16, sizeof there);
		*there = 1;
		return 0;
	}
	case KVM_MEMORY_ENCRYPT_OP:
		return 0;
	}
	if (fd < 0 || fd != vm)
		return real_ioctl(fd, request, argument);
	if ((unsigned)request == KVM_CREATE_VCPU) {
		if (made(&vcpu) < 0)
			return -1;
		run = mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
		return vcpu;
	}
	return 0;
}
