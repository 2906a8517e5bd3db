/* SPDX-License-Identifier: Apache-2.0
 *
 * A fake KVM for tests of the shim, preloaded behind it. It enters no guest: it does what
 * the page after a vCPU's kvm_run says, and writes there what it has seen. VMs and vCPUs
 * are files from memfd_create(2). Environment variables:
 *
 *	FAKE_ATTR	the device attribute's value; "none": the kernel does not know the attribute
 *	FAKE_CERTS	a file that each hand-shake tries to lock
 *	FAKE_NEW	a file that replaces FAKE_CERTS between the first open and the lock
 *	FAKE_HOLD	a FIFO; each read of a table waits until it has read a byte from the FIFO
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../../native/kvm_abi.h"

#define MAX_FDS 65536

struct page { /* keep in step with rig.py */
	uint8_t window, immediate_exit, pad[6];
	uint32_t exit_reason, more[5];
	uint64_t gpa, npages, ret;
	uint8_t rest[4096 - 56];
	/* What to do. */
	uint32_t exit, handshake_errno, kick;
	/* What was seen: the numbers of calls and hand-shakes; in the last hand-shake,
	 * immediate_exit, whether the file was locked, and whether SIGUSR1 could interrupt it. */
	uint32_t runs, handshakes, immediate_exit_seen, locked, interruptible;
};

static struct {
	int vcpus, enabled;
	struct page *page;
} fds[MAX_FDS];
static int (*real_ioctl)(int, unsigned long, ...);
static _Atomic int regions;

static int failed(int error)
{
	errno = error;
	return -1;
}

static int made(const char *name)
{
	int fd = memfd_create(name, MFD_CLOEXEC);

	if (fd < 0 || fd >= MAX_FDS || ftruncate(fd, 12288) < 0)
		return failed(EMFILE);
	memset(&fds[fd], 0, sizeof fds[fd]);
	return fd;
}

static int is_locked(void)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	const char *file = getenv("FAKE_CERTS");
	int fd = file ? open(file, O_RDWR | O_CLOEXEC) : -1;
	int locked = fd >= 0 && fcntl(fd, F_OFD_SETLK, &lock) < 0;

	if (fd >= 0)
		close(fd);
	return locked;
}

static int run(int fd)
{
	struct page *page = fds[fd].page;
	sigset_t blocked;

	if (!page) {
		page = mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		fds[fd].page = page;
	}
	page->runs++;
	if (page->immediate_exit) {
		page->handshakes++;
		page->immediate_exit_seen = page->immediate_exit;
		page->locked = is_locked();
		pthread_sigmask(SIG_BLOCK, NULL, &blocked);
		page->interruptible = !sigismember(&blocked, SIGUSR1);
		if (page->kick)
			page->immediate_exit = 1;
		return page->handshake_errno ? failed(page->handshake_errno) : 0;
	}
	page->exit_reason = page->exit;
	page->ret = 0;
	return 0;
}

/* Make the read of the table wait for FAKE_HOLD, but not the shim's first read, of one entry. */
ssize_t pread(int fd, void *data, size_t size, off_t offset)
{
	const char *fifo = size == 24 ? NULL : getenv("FAKE_HOLD");
	int hold = fifo ? open(fifo, O_RDONLY | O_CLOEXEC) : -1;
	char byte;

	if (hold >= 0) {
		(void)!read(hold, &byte, 1);
		close(hold);
	}
	return syscall(SYS_pread64, fd, data, size, offset);
}

int fcntl(int fd, int command, ...)
{
	static int (*real_fcntl)(int, int, ...);
	const char *file = getenv("FAKE_CERTS"), *replacement = getenv("FAKE_NEW");
	void *argument;
	va_list list;

	va_start(list, command);
	argument = va_arg(list, void *);
	va_end(list);
	if (command == F_OFD_SETLK && file && replacement)
		rename(replacement, file); /* only once, because then FAKE_NEW is gone */
	if (!real_fcntl)
		real_fcntl = (int (*)(int, int, ...))dlsym(RTLD_NEXT, "fcntl64");
	return real_fcntl(fd, command, argument);
}

int ioctl(int fd, unsigned long request, ...)
{
	const char *attr = getenv("FAKE_ATTR");
	void *argument;
	va_list list;
	int vcpu;

	va_start(list, request);
	argument = va_arg(list, void *);
	va_end(list);
	switch ((unsigned)request) { /* as the kernel does */
	case KVM_RUN:
		return run(fd);
	case KVM_CREATE_VM:
		return made("vm");
	case KVM_CREATE_VCPU:
		vcpu = made("vcpu");
		fds[fd].vcpus++;
		return vcpu;
	case KVM_MEMORY_ENCRYPT_OP: {
		uint32_t id = *(uint32_t *)argument;

		if (id == KVM_SEV_SNP_ENABLE_REQ_CERTS && fds[fd].vcpus)
			return failed(EINVAL);
		fds[fd].enabled += id == KVM_SEV_SNP_ENABLE_REQ_CERTS;
		return 0;
	}
	case KVM_SET_USER_MEMORY_REGION:
	case KVM_SET_USER_MEMORY_REGION2:
		regions++;
		return *(uint32_t *)argument == 0xFFFF ? failed(EINVAL) : 0;
	case KVM_GET_DEVICE_ATTR: {
		uint64_t value = attr ? strtoul(attr, NULL, 10) : 1, *there;

		if (attr && !strcmp(attr, "none"))
			return failed(ENXIO);
		memcpy(&there, (char *)argument + 16, sizeof there);
		*there = value;
		return 0;
	}
	case 0xFAFA: /* for the test: how often was the exit enabled? */
		return fds[fd].enabled;
	case 0xFAFB: /* and how often has a slot been set? */
		return regions;
	}
	if (!real_ioctl)
		real_ioctl = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
	return real_ioctl(fd, request, argument);
}
