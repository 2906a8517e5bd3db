/* SPDX-License-Identifier: Apache-2.0
 *
 * As much of SNP as QEMU needs to start an SNP VM on a machine that has KVM but no SNP.
 * Preloaded behind the shim, this library answers the calls that only an SNP host's kernel
 * can answer, and passes all others to the real /dev/kvm. Nothing is encrypted or
 * measured. A guest asks for certificates by a write to REQUEST_PORT: EBX is the buffer's
 * address, ECX its number of pages. KVM's answer comes back in EAX (ret) and, if that is
 * ENOSPC, in EBX (pages).
 *
 * With NO_REQ_CERTS in the environment, it behaves like a kernel that does not know the exit.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../native/kvm_abi.h"

#define REQUEST_PORT 0x5C0
#define MAX_FDS 1024

enum what { NOTHING, SEV_DEVICE, VM, VCPU };

static struct {
	enum what what;
	int initialised, certs, vcpus; /* of a VM */
	int vm, pending; /* of a vCPU */
	struct kvm_run *run;
} fds[MAX_FDS];

static int (*real_ioctl)(int, unsigned long, ...);
static int (*real_open)(const char *, int, ...);

__attribute__((constructor)) static void start(void)
{
	real_ioctl = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
	real_open = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
}

static int failed(int error)
{
	errno = error;
	return -1;
}

static int sev_command(int vm, uint32_t *command)
{
	uint64_t *data;

	if (!command)
		return 0;
	memcpy(&data, command + 2, sizeof data);
	switch (command[0]) {
	case KVM_SEV_INIT2:
		if (fds[vm].initialised || fds[vm].vcpus)
			return failed(EINVAL);
		fds[vm].initialised = 1;
		return 0;
	case KVM_SEV_SNP_LAUNCH_UPDATE:
		data[0] += data[2] / 4096;
		data[2] = 0;
		return 0;
	case KVM_SEV_SNP_LAUNCH_START:
	case KVM_SEV_SNP_LAUNCH_FINISH:
		return fds[vm].initialised ? 0 : failed(EINVAL);
	case KVM_SEV_SNP_ENABLE_REQ_CERTS:
		if (!fds[vm].initialised || fds[vm].vcpus || getenv("NO_REQ_CERTS"))
			return failed(EINVAL);
		fds[vm].certs = 1;
		return 0;
	}
	return failed(EINVAL);
}

static int device_attr(int kvm, unsigned request, void *argument)
{
	uint32_t group;
	uint64_t attr, value[] = { 0, ~0ul, 1 }, *there;

	memcpy(&group, (char *)argument + 4, sizeof group);
	memcpy(&attr, (char *)argument + 8, sizeof attr);
	memcpy(&there, (char *)argument + 16, sizeof there);
	if (group != KVM_X86_GRP_SEV)
		return real_ioctl(kvm, request, argument);
	if (attr > KVM_X86_SEV_SNP_REQ_CERTS ||
	    (attr == KVM_X86_SEV_SNP_REQ_CERTS && getenv("NO_REQ_CERTS")))
		return failed(ENXIO);
	if (request == KVM_GET_DEVICE_ATTR)
		*there = value[attr];
	return 0;
}

/* Complete the port write, and give the guest the VMM's answer. */
static int complete(int fd, struct kvm_run *run)
{
	uint64_t regs[18];
	uint64_t ret = run->snp_req_certs.ret, npages = run->snp_req_certs.npages;
	uint8_t before = run->immediate_exit;

	fds[fd].pending = 0;
	if (ret != 0 && ret != ENOSPC && ret != EAGAIN && ret != EIO)
		return failed(EINVAL);
	run->immediate_exit = 1;
	if (real_ioctl(fd, KVM_RUN, 0) == 0 || errno != EINTR || real_ioctl(fd, KVM_GET_REGS, regs) < 0)
		return failed(EFAULT);
	run->immediate_exit = before;
	regs[0] = ret; /* RAX */
	if (ret == ENOSPC)
		regs[1] = npages; /* RBX */
	return real_ioctl(fd, KVM_SET_REGS, regs) < 0 ? failed(EFAULT) : 0;
}

static int run_vcpu(int fd)
{
	struct kvm_run *run = fds[fd].run;
	uint64_t regs[18];
	int result;

	if (!run) {
		run = mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (run == MAP_FAILED)
			return failed(EFAULT);
		fds[fd].run = run;
	}
	if (fds[fd].pending && complete(fd, run) < 0)
		return -1;
	result = real_ioctl(fd, KVM_RUN, 0);
	if (result != 0 || run->exit_reason != KVM_EXIT_IO || run->io.port != REQUEST_PORT)
		return result;
	if (real_ioctl(fd, KVM_GET_REGS, regs) < 0)
		return failed(EFAULT);
	fds[fd].pending = 1;
	run->exit_reason = KVM_EXIT_SNP_REQ_CERTS;
	run->snp_req_certs.gpa = regs[1];
	run->snp_req_certs.npages = regs[2];
	run->snp_req_certs.ret = 0;
	if (fds[fds[fd].vm].certs)
		return 0;
	run->snp_req_certs.ret = EIO; /* the exit is not enabled: the guest gets EIO at once */
	return run_vcpu(fd);
}

static int on_vm(int fd, unsigned request, void *argument)
{
	int made;

	switch (request) {
	case KVM_MEMORY_ENCRYPT_OP:
		return sev_command(fd, argument);
	case KVM_CREATE_GUEST_MEMFD:
		made = memfd_create("guest", MFD_CLOEXEC);
		if (made >= 0 && ftruncate(made, *(uint64_t *)argument) < 0)
			return -1;
		return made;
	case KVM_SET_MEMORY_ATTRIBUTES:
		return 0;
	case KVM_SET_USER_MEMORY_REGION2: { /* its first 32 bytes are the older call's */
		uint32_t region[8];

		memcpy(region, argument, sizeof region);
		region[1] &= ~(uint32_t)KVM_MEM_GUEST_MEMFD;
		return real_ioctl(fd, KVM_SET_USER_MEMORY_REGION, region);
	}
	case KVM_CREATE_VCPU:
		made = real_ioctl(fd, request, argument);
		if (made >= 0 && made < MAX_FDS) {
			memset(&fds[made], 0, sizeof fds[made]);
			fds[made].what = VCPU;
			fds[made].vm = fd;
			fds[fd].vcpus++;
		}
		return made;
	}
	return real_ioctl(fd, request, argument);
}

int ioctl(int fd, unsigned long passed, ...)
{
	unsigned request = passed; /* what the kernel looks at */
	enum what what = fd >= 0 && fd < MAX_FDS ? fds[fd].what : NOTHING;
	void *argument;
	va_list list;
	int made;

	va_start(list, passed);
	argument = va_arg(list, void *);
	va_end(list);
	if (request == KVM_RUN && what == VCPU)
		return run_vcpu(fd);
	if (request == SEV_ISSUE_CMD && what == SEV_DEVICE) { /* platform status */
		void *data;

		memcpy(&data, (char *)argument + 4, sizeof data);
		memset(data, 0, 12);
		memcpy(data, (uint8_t[]){ 1, 55, 1 }, 3);
		return 0;
	}
	if (request == KVM_CHECK_EXTENSION)
		switch ((uintptr_t)argument) {
		case KVM_CAP_USER_MEMORY2:
		case KVM_CAP_GUEST_MEMFD:
			return 1;
		case KVM_CAP_MEMORY_ATTRIBUTES:
			return KVM_MEMORY_ATTRIBUTE_PRIVATE;
		case KVM_CAP_VM_TYPES:
			return real_ioctl(fd, request, argument) | 1 << KVM_X86_SNP_VM;
		}
	if (request == KVM_GET_DEVICE_ATTR || request == KVM_HAS_DEVICE_ATTR)
		return device_attr(fd, request, argument);
	if (request == KVM_CREATE_VM) {
		int snp = (uintptr_t)argument == KVM_X86_SNP_VM;

		made = real_ioctl(fd, request, snp ? NULL : argument);
		if (made >= 0 && made < MAX_FDS) {
			memset(&fds[made], 0, sizeof fds[made]);
			fds[made].what = snp ? VM : NOTHING;
		}
		return made;
	}
	if (what == VM)
		return on_vm(fd, request, argument);
	return real_ioctl(fd, request, argument);
}

int open64(const char *path, int flags, ...)
{
	int made;
	va_list list;
	mode_t mode;

	va_start(list, flags);
	mode = va_arg(list, mode_t);
	va_end(list);
	if (strcmp(path, "/dev/sev"))
		return real_open(path, flags, mode);
	made = memfd_create("sev", MFD_CLOEXEC);
	if (made >= 0 && made < MAX_FDS)
		fds[made].what = SEV_DEVICE;
	return made;
}

int open(const char *, int, ...) __attribute__((alias("open64")));
