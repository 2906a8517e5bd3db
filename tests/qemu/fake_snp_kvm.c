/* SPDX-License-Identifier: Apache-2.0
 *
 * As much of SNP as makes QEMU start an SNP VM on a machine that has KVM and no SNP:
 * preloaded behind the shim, it answers what only an SNP host's kernel does and lets
 * everything else through to the real /dev/kvm. Nothing is encrypted or measured. A
 * guest that writes to REQUEST_PORT has asked for certificates: EBX is the buffer's
 * address, ECX its pages; KVM's answer comes back in EAX (ret) and EBX (pages).
 *
 * With NO_REQ_CERTS in the environment it is a kernel that does not know the exit.
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

#define REQUEST_PORT 0x5C0
#define MAX_FDS 1024
#define SNP_VM 4
#define CREATE_VM 0xAE01ul
#define CHECK_EXTENSION 0xAE03ul
#define CREATE_VCPU 0xAE41ul
#define RUN 0xAE80ul
#define GET_REGS 0x8090AE81ul
#define SET_REGS 0x4090AE82ul
#define SET_REGION 0x4020AE46ul
#define SET_REGION2 0x40A0AE49ul
#define ENCRYPT_OP 0xC008AEBAul
#define SET_ATTRIBUTES 0x4020AED2ul
#define CREATE_MEMFD 0xC040AED4ul
#define GET_DEVICE_ATTR 0x4018AEE2ul
#define HAS_DEVICE_ATTR 0x4018AEE3ul
#define SEV_ISSUE_CMD 0xC0105300ul

struct run {
	uint8_t window, immediate_exit, pad[6];
	uint32_t exit_reason, more[5];
	union {
		struct {
			uint8_t direction, size;
			uint16_t port;
			uint32_t count;
			uint64_t data_offset;
		} io;
		struct {
			uint64_t gpa, npages, ret;
		} req_certs;
	};
};
enum what { NOTHING, SEV_DEVICE, VM, VCPU };

static struct {
	enum what what;
	int initialised, certs, vcpus; /* of a VM */
	int vm, pending; /* of a vCPU */
	struct run *run;
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
	case 22: /* INIT2 */
		if (fds[vm].initialised || fds[vm].vcpus)
			return failed(EINVAL);
		fds[vm].initialised = 1;
		return 0;
	case 101: /* SNP_LAUNCH_UPDATE */
		data[0] += data[2] / 4096;
		data[2] = 0;
		return 0;
	case 100: /* SNP_LAUNCH_START */
	case 102: /* SNP_LAUNCH_FINISH */
		return fds[vm].initialised ? 0 : failed(EINVAL);
	case 103: /* SNP_ENABLE_REQ_CERTS */
		if (!fds[vm].initialised || fds[vm].vcpus || getenv("NO_REQ_CERTS"))
			return failed(EINVAL);
		fds[vm].certs = 1;
		return 0;
	}
	return failed(EINVAL);
}

static int device_attr(int kvm, unsigned long request, void *argument)
{
	uint32_t group;
	uint64_t attr, value[] = { 0, ~0ul, 1 }, *there;

	memcpy(&group, (char *)argument + 4, sizeof group);
	memcpy(&attr, (char *)argument + 8, sizeof attr);
	memcpy(&there, (char *)argument + 16, sizeof there);
	if (group != 1)
		return real_ioctl(kvm, request, argument);
	if (attr > 2 || (attr == 2 && getenv("NO_REQ_CERTS")))
		return failed(ENXIO);
	if (request == GET_DEVICE_ATTR)
		*there = value[attr];
	return 0;
}

/* Complete the port write, hand over what the VMM has answered. */
static int complete(int fd, struct run *run)
{
	uint64_t regs[18];
	uint64_t ret = run->req_certs.ret, npages = run->req_certs.npages;
	uint8_t before = run->immediate_exit;

	fds[fd].pending = 0;
	if (ret != 0 && ret != ENOSPC && ret != EAGAIN && ret != EIO)
		return failed(EINVAL);
	run->immediate_exit = 1;
	if (real_ioctl(fd, RUN, 0) == 0 || errno != EINTR || real_ioctl(fd, GET_REGS, regs) < 0)
		return failed(EFAULT);
	run->immediate_exit = before;
	regs[0] = ret; /* RAX */
	if (ret == ENOSPC)
		regs[1] = npages; /* RBX */
	return real_ioctl(fd, SET_REGS, regs) < 0 ? failed(EFAULT) : 0;
}

static int run_vcpu(int fd)
{
	struct run *run = fds[fd].run;
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
	result = real_ioctl(fd, RUN, 0);
	if (result != 0 || run->exit_reason != 2 || run->io.port != REQUEST_PORT)
		return result;
	if (real_ioctl(fd, GET_REGS, regs) < 0)
		return failed(EFAULT);
	fds[fd].pending = 1;
	run->exit_reason = 42;
	run->req_certs.gpa = regs[1];
	run->req_certs.npages = regs[2];
	run->req_certs.ret = 0;
	if (fds[fds[fd].vm].certs)
		return 0;
	run->req_certs.ret = EIO; /* no table from anyone; the guest sees it at once */
	return run_vcpu(fd);
}

static int on_vm(int fd, unsigned long request, void *argument)
{
	int made;

	switch (request) {
	case ENCRYPT_OP:
		return sev_command(fd, argument);
	case CREATE_MEMFD:
		made = memfd_create("guest", MFD_CLOEXEC);
		if (made >= 0 && ftruncate(made, *(uint64_t *)argument) < 0)
			return -1;
		return made;
	case SET_ATTRIBUTES:
		return 0;
	case SET_REGION2: { /* its first 32 bytes are the older call's */
		uint32_t region[8];

		memcpy(region, argument, sizeof region);
		region[1] &= ~4u; /* guest_memfd */
		return real_ioctl(fd, SET_REGION, region);
	}
	case CREATE_VCPU:
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

int ioctl(int fd, unsigned long request, ...)
{
	enum what what = fd >= 0 && fd < MAX_FDS ? fds[fd].what : NOTHING;
	void *argument;
	va_list list;
	int made;

	va_start(list, request);
	argument = va_arg(list, void *);
	va_end(list);
	if (request == RUN && what == VCPU)
		return run_vcpu(fd);
	if (request == SEV_ISSUE_CMD && what == SEV_DEVICE) { /* platform status */
		void *data;

		memcpy(&data, (char *)argument + 4, sizeof data);
		memset(data, 0, 12);
		memcpy(data, (uint8_t[]){ 1, 55, 1 }, 3);
		return 0;
	}
	if (request == CHECK_EXTENSION)
		switch ((uintptr_t)argument) {
		case 231: /* USER_MEMORY2 */
		case 234: /* GUEST_MEMFD */
			return 1;
		case 233: /* MEMORY_ATTRIBUTES */
			return 8;
		case 235: /* VM_TYPES */
			return real_ioctl(fd, request, argument) | 1 << SNP_VM;
		}
	if (request == GET_DEVICE_ATTR || request == HAS_DEVICE_ATTR)
		return device_attr(fd, request, argument);
	if (request == CREATE_VM) {
		int snp = (uintptr_t)argument == SNP_VM;

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
