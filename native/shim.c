/* SPDX-License-Identifier: Apache-2.0
 *
 * Serves certificates to the guests of a VMM that does not do so itself. This preloaded
 * library intercepts the VMM's ioctl(2) calls. It enables KVM_EXIT_SNP_REQ_CERTS for
 * an SNP VM, and answers the exit before the VMM sees it.
 *
 *	LD_PRELOAD		the path of this library
 *	SNPCERTS_CERTS_FILENAME	the certificate file, an absolute path
 *	SNPCERTS_CERTS_TIMEOUT	ms to wait for the file's lock before the guest gets BUSY;
 *				default 100
 *	SNPCERTS_TELL_EXIT	if set, print the number of the exit with which KVM first asked
 *				for certificates
 *
 * The library does nothing for a VM that is not SNP, on a kernel without the exit, or if
 * the VMM enables the exit itself.
 *
 * snpcerts.c, which is linked into this library, serves the requests. This file
 * tracks the VMM's VMs, vCPUs, descriptors and memory slots. KVM's numbers: Linux
 * Documentation/virt/kvm/api.rst and x86/amd-memory-encryption.rst; see kvm_abi.h.
 *
 * Each KVM_RUN costs a few more loads from memory. A request takes no lock inside the shim and
 * allocates no memory. All state is in tables of fixed size.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "include/snpcerts.h"
#include "kvm_abi.h"

#define EXPORT __attribute__((visibility("default")))

#define MAX_VMS 16
#define MAX_SLOTS 32768 /* KVM has 32,764 */
#define MAX_FDS 65536
#define TRIES 100 /* to read slots while they change */
#define SLOT_RETURNS 1000000000ull /* nanoseconds for which a slot may be missing */
#define MAX_GONE 16

struct slot {
	_Atomic uint64_t gpa, size, host; /* size 0: no slot, or read-only */
};

static struct vm {
	unsigned names; /* number of descriptors of this VM; 0: free */
	bool offered; /* KVM knows the exit */
	bool ours; /* the shim has enabled the exit */
	bool theirs; /* the VMM has enabled the exit, and answers it */
	_Atomic bool shared; /* another process has a descriptor, so slots may be unknown */
	struct {
		_Atomic uint64_t gpa, size, when;
	} gone[MAX_GONE]; /* recently removed slots */
	_Atomic unsigned gone_next;
	_Atomic unsigned slots; /* slots from this number on are empty */
	_Atomic unsigned sequence; /* odd while a slot changes */
	_Atomic unsigned copying; /* requests that are using the slots */
	struct slot slot[MAX_SLOTS];
} vms[MAX_VMS];

static struct vcpu {
	struct vm *_Atomic vm; /* set only if the shim answers */
	struct kvm_run *_Atomic run; /* where the VMM has mapped kvm_run */
	struct kvm_run *_Atomic second; /* a second mapping of kvm_run */
} vcpus[MAX_FDS];
static _Atomic int vcpus_end; /* no vCPU has this descriptor or a higher one */

static struct vm *_Atomic vm_of[MAX_FDS];
static uint64_t kind_of[MAX_FDS]; /* hash of the descriptor's name in /proc */
static pid_t owner; /* the process that owns this memory */
/* Serialises changes to vcpus, vm_of and kind_of. A request never takes this lock. */
static pthread_mutex_t changing = PTHREAD_MUTEX_INITIALIZER;

static int (*_Atomic next_ioctl)(int, unsigned long, ...);
static void *(*_Atomic next_mmap)(void *, size_t, int, int, int, off_t);
static int (*_Atomic next_munmap)(void *, size_t);
static void *(*_Atomic next_mremap)(void *, size_t, size_t, int, ...);
static int (*_Atomic next_dup)(int);
static int (*_Atomic next_dup2)(int, int);
static int (*_Atomic next_dup3)(int, int, int);
static int (*_Atomic next_fcntl)(int, int, ...);
static ssize_t (*_Atomic next_sendmsg)(int, const struct msghdr *, int);

static char path[PATH_MAX];
static uint64_t timeout = SNPCERTS_LOCK_WAIT;
static bool tell_exit;
static const char *unusable = ""; /* why the settings are unusable; NULL if they are usable */

/* ---- messages for the operator ---- */

/* Whether this program is cloud-hypervisor. Its seccomp filter kills a vCPU thread that calls poll(2)
 * or write(2), but allows openat, sendto and writev. */
static bool few_calls;

/* Print a line to standard error, unless that would block or raise SIGPIPE. */
static void print(struct iovec *line)
{
	struct pollfd out = { .fd = STDERR_FILENO, .events = POLLOUT };
	struct stat found;
	int again;

	if (!few_calls) {
		if (poll(&out, 1, 0) == 1 && out.revents == POLLOUT)
			(void)!writev(STDERR_FILENO, line, 1);
	} else if (fstat(STDERR_FILENO, &found)) {
		return;
	} else if (S_ISSOCK(found.st_mode)) {
		(void)!send(STDERR_FILENO, line->iov_base, line->iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
	} else if (S_ISREG(found.st_mode)) {
		(void)!writev(STDERR_FILENO, line, 1);
	} else {
		/* The same pipe or terminal, but not blocking; no descriptor if a pipe has no reader. */
		again = open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
		if (again >= 0) {
			(void)!writev(again, line, 1);
			close(again);
		}
	}
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	char text[PATH_MAX + 256] = "snpcerts shim: ";
	struct iovec line = { text, strlen(text) };
	va_list list;
	int length;

	va_start(list, format);
	length = vsnprintf(text + line.iov_len, sizeof text - line.iov_len - 1, format, list);
	va_end(list);
	if (length < 0)
		return;
	line.iov_len = strlen(text);
	text[line.iov_len++] = '\n';
	print(&line);
}

#define SAY_ONCE(...)                                    \
	do {                                             \
		static atomic_flag said = ATOMIC_FLAG_INIT; \
		if (!atomic_flag_test_and_set(&said))    \
			say(__VA_ARGS__);                \
	} while (0)

/* Print a line when the file becomes unusable or usable again, not for each request. */
static void note_file_state(int problem)
{
	static _Atomic int last;
	char buffer[128];
	const char *why =
		problem == SNPCERTS_NOT_REGULAR ? "it is not a regular file" :
		problem == SNPCERTS_TOO_LARGE	? "it is too large" :
		problem == SNPCERTS_SHRANK ? "it shrank during the read: a writer does not take the lock" :
					     NULL;

	if (atomic_load_explicit(&last, memory_order_relaxed) == problem ||
	    atomic_exchange(&last, problem) == problem)
		return;
	if (problem == 0)
		say("%s: readable again", path);
	else
		say("%s: guests get no certificates: %s", path,
		    why ? why : strerror_r(problem, buffer, sizeof buffer));
}

/* ---- the guest's memory, where the VMM has mapped it ---- */

static void pause_for(long nanoseconds)
{
	/* A signal may end the sleep early. Callers check the time or count tries. */
	nanosleep(&(struct timespec){ .tv_nsec = nanoseconds }, NULL);
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* Return the errno for a guest whose buffer is in no known slot. EIO means that the
 * buffer is not the guest's memory, and makes a Linux guest destroy its VMPCK. If the
 * buffer may be the guest's memory, use another errno: EAGAIN while a slot that is being
 * replaced may come back, and ENOSPC if another process may have set slots. A Linux
 * guest survives both: its driver repeats the request without certificates and keeps the
 * key (drivers/virt/coco/sev-guest, arch/x86/coco/sev/core.c of Linux 7.3). */
static int not_found(struct vm *vm, uint64_t gpa, uint64_t size)
{
	uint64_t missing = gpa, left = size, time = now();

	for (unsigned i = 0; i < vm->slots && left; i++) { /* find where the memory ends */
		uint64_t offset = missing - vm->slot[i].gpa, part;

		if (offset >= vm->slot[i].size)
			continue;
		part = vm->slot[i].size - offset < left ? vm->slot[i].size - offset : left;
		missing += part;
		left -= part;
		i = -1u;
	}
	for (int i = 0; i < MAX_GONE; i++)
		if (missing - vm->gone[i].gpa < vm->gone[i].size &&
		    time - vm->gone[i].when < SLOT_RETURNS)
			return EAGAIN;
	if (!vm->shared)
		return EIO;
	SAY_ONCE("the VMM may add memory through a descriptor that the shim does not know: "
		 "buffers in that memory get no certificates");
	return ENOSPC;
}

/* Record a removed slot. The VMM may add the slot again with another size. */
static void note_gone(struct vm *vm, uint64_t gpa, uint64_t size)
{
	unsigned i = vm->gone_next++ % MAX_GONE;

	vm->gone[i].size = 0;
	vm->gone[i].gpa = gpa;
	vm->gone[i].when = now();
	vm->gone[i].size = size;
}

/* Record a region that KVM has accepted. Later requests do not use the slot's old memory. */
static void note_region(struct vm *vm, const struct kvm_userspace_memory_region *region)
{
	uint32_t id = region->slot;
	struct slot *slot;
	bool was_memory;

	if (id >> 16) /* another address space: system management mode */
		return;
	if (id >= MAX_SLOTS) { /* a future KVM with more slots */
		vm->shared = true;
		return;
	}
	slot = &vm->slot[id];
	pthread_mutex_lock(&changing);
	was_memory = slot->size != 0;
	if (was_memory && region->memory_size == 0)
		note_gone(vm, slot->gpa, slot->size);
	vm->sequence++;
	slot->gpa = region->guest_phys_addr;
	slot->size = region->flags & KVM_MEM_READONLY ? 0 : region->memory_size;
	slot->host = region->userspace_addr;
	if (vm->slots <= id)
		vm->slots = id + 1;
	vm->sequence++;
	/* The VMM may unmap the memory when its call returns, so wait until no copy uses it.
	 * Wait at most a second: a copy may wait for a page that this thread must provide
	 * (userfaultfd). */
	for (int i = 0; was_memory && vm->copying && i < 10000; i++)
		pause_for(100000);
	pthread_mutex_unlock(&changing);
}

/* Find the guest's addresses in this process, across adjacent slots. Return the number
 * of pieces; 0 if a part is not memory, -1 if the slots keep changing. */
static int pieces_of(struct vm *vm, uint64_t gpa, uint64_t length, struct iovec *pieces)
{
	for (int tries = 0; tries < TRIES; tries++) {
		unsigned before = vm->sequence, slots = vm->slots;
		uint64_t at = gpa, left = length;
		int count = 0;

		if (before & 1) { /* sleep: the thread that changes slots may have a lower priority */
			pause_for(100000);
			continue;
		}
		for (unsigned i = 0; i < slots && left && count < SNPCERTS_MAX_PIECES; i++) {
			uint64_t offset = at - vm->slot[i].gpa, size = vm->slot[i].size, part;

			if (offset >= size)
				continue;
			part = size - offset < left ? size - offset : left;
			pieces[count].iov_base = (void *)(uintptr_t)(vm->slot[i].host + offset);
			pieces[count++].iov_len = part;
			at += part;
			left -= part;
			i = -1u; /* the next piece may be in any slot */
		}
		if (vm->sequence == before)
			return left ? 0 : count;
	}
	return -1;
}

/* ---- one request ---- */

static int find_pieces(void *context, uint64_t gpa, uint64_t size, struct iovec *pieces)
{
	struct vm *vm = context;
	int count;

	vm->copying++;
	count = pieces_of(vm, gpa, size, pieces);
	if (count <= 0) {
		count = -(count < 0 ? EAGAIN : not_found(vm, gpa, size));
		vm->copying--;
	}
	return count;
}

static void pieces_used(void *context)
{
	((struct vm *)context)->copying--;
}

static int enter(void *context, int vcpu)
{
	(void)context;
	return next_ioctl(vcpu, KVM_RUN, 0);
}

/* KVM_RUN has returned with a request. Answer it, make KVM take the answer, and return to
 * the VMM as KVM_RUN does when a thread kicks the vCPU. */
static int serve(int vcpu, struct vm *vm, struct kvm_run *run, int saved)
{
	struct snpcerts_vm certs = { .path = path, .lock_wait = timeout, .find = find_pieces,
				     .done = pieces_used, .enter = enter, .context = vm };
	struct snpcerts_served served;
	int error = snpcerts_serve(&certs, vcpu, run, &served), cancel;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	note_file_state(served.file_problem);
	pthread_setcancelstate(cancel, NULL);
	errno = error ? error : saved;
	return error ? -1 : 0;
}

/* ---- what the VMM calls ---- */

static bool in_table(int fd)
{
	return fd >= 0 && fd < MAX_FDS;
}

/* Forget a descriptor that was closed. Another file may have its number now. */
static void forget(int fd)
{
	struct vm *vm = vm_of[fd], *of_vcpu = vcpus[fd].vm;

	vm_of[fd] = NULL;
	vcpus[fd].vm = NULL;
	vcpus[fd].run = vcpus[fd].second = NULL;
	if (vm)
		vm->names--;
	if (of_vcpu)
		of_vcpu->names--;
}

/* Return the hash (FNV-1a) of a descriptor's name in /proc; 0 if it is not open. */
static uint64_t kind(int fd)
{
	char link[32], name[128];
	uint64_t hash = 14695981039346656037ull;
	ssize_t length;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	length = readlink(link, name, sizeof name);
	for (ssize_t i = 0; i < length; i++)
		hash = (hash ^ (uint8_t)name[i]) * 1099511628211ull;
	return length < 0 ? 0 : hash;
}

static bool is_closed(int fd)
{
	uint64_t now_is = kind(fd);

	if (next_fcntl && next_fcntl(fd, F_GETFD) < 0)
		return true;
	/* Does another file have the number now? A kind of 0 means that there is no /proc, as in
	 * a chroot. */
	return now_is && kind_of[fd] && now_is != kind_of[fd];
}

/* Forget closed descriptors: the shim does not see close(2). Call with `changing` held. */
static void forget_closed(void)
{
	for (int fd = 0; fd < MAX_FDS; fd++)
		if ((vm_of[fd] || vcpus[fd].vm) && is_closed(fd))
			forget(fd);
}

static bool kvm_offers_exit(int kvm)
{
	uint64_t value = 0;
	struct kvm_device_attr attr = { .group = KVM_X86_GRP_SEV,
					.attr = KVM_X86_SEV_SNP_REQ_CERTS,
					 .addr = (uintptr_t)&value };

	return next_ioctl(kvm, KVM_GET_DEVICE_ATTR, &attr) == 0 && value == 1;
}

static void note_vm(int kvm, int fd, unsigned long type)
{
	struct vm *vm = NULL;

	if (in_table(fd)) {
		pthread_mutex_lock(&changing);
		forget(fd);
		for (int round = 0; type == KVM_X86_SNP_VM && !unusable && !vm && round < 2; round++) {
			if (round)
				forget_closed();
			for (int i = 0; !vm && i < MAX_VMS; i++)
				if (vms[i].names == 0)
					vm = &vms[i];
		}
		if (vm) {
			vm->names = 1;
			vm->ours = vm->theirs = vm->shared = false;
			for (int i = 0; i < MAX_GONE; i++)
				vm->gone[i].size = 0;
			for (unsigned i = 0; i < vm->slots; i++)
				vm->slot[i].size = 0;
			vm->slots = vm->copying = 0;
			vm->offered = kvm_offers_exit(kvm);
			vm_of[fd] = vm;
			kind_of[fd] = kind(fd);
		}
		pthread_mutex_unlock(&changing);
	}
	if (type != KVM_X86_SNP_VM)
		return;
	if (unusable)
		SAY_ONCE("guests get no certificates: %s", unusable);
	else if (!vm)
		SAY_ONCE("guests of some VMs get no certificates: "
			 "the VMM has more than %d VMs or %d open files", MAX_VMS, MAX_FDS);
	else if (!vm->offered)
		SAY_ONCE("guests get no certificates: this kernel's KVM does not request them "
			 "(Linux 7.0 does), or SNP is off");
}

static void note_sev_command(struct vm *vm, int fd, const struct kvm_sev_cmd *command)
{
	struct kvm_sev_cmd enable = { .id = KVM_SEV_SNP_ENABLE_REQ_CERTS };

	if (command && command->id == KVM_SEV_SNP_ENABLE_REQ_CERTS)
		vm->theirs = true;
	if (!command || command->id != KVM_SEV_INIT2 || !vm->offered)
		return;
	vm->ours = next_ioctl(fd, KVM_MEMORY_ENCRYPT_OP, &enable) == 0;
	if (!vm->ours)
		say("guests get no certificates: KVM_SEV_SNP_ENABLE_REQ_CERTS failed, errno %d", errno);
}

/* Record a new vCPU. Return its descriptor, or -1 if the shim could not serve the vCPU with
 * that number. */
static int note_vcpu(struct vm *vm, int fd)
{
	bool served = vm && vm->ours && !vm->theirs;

	if (!in_table(fd)) {
		if (!served)
			return fd;
		say("cannot create a vCPU: expected a file descriptor below %d", MAX_FDS);
		close(fd);
		errno = EMFILE;
		return -1;
	}
	pthread_mutex_lock(&changing);
	forget(fd);
	if (served) {
		vm->names++;
		vcpus[fd].vm = vm;
		kind_of[fd] = kind(fd);
		if (vcpus_end <= fd)
			vcpus_end = fd + 1;
	}
	pthread_mutex_unlock(&changing);
	return fd;
}

/* Record that the VMM has duplicated the descriptor of a VM or a vCPU. */
static int note_duplicate(int from, int to)
{
	if (!in_table(from) || !in_table(to) || from == to ||
	    !(vm_of[from] || vcpus[from].vm || vm_of[to] || vcpus[to].vm))
		return to;
	if (getpid() != owner) /* a child of vfork(2) has its own descriptors, but our memory */
		return to;
	pthread_mutex_lock(&changing);
	forget(to);
	vm_of[to] = vm_of[from];
	vcpus[to].run = vcpus[from].run;
	vcpus[to].second = vcpus[from].second;
	vcpus[to].vm = vcpus[from].vm;
	kind_of[to] = kind_of[from];
	if (vm_of[to])
		vm_of[to]->names++;
	if (vcpus[to].vm)
		vcpus[to].vm->names++;
	if (vcpus[to].vm && vcpus_end <= to)
		vcpus_end = to + 1;
	pthread_mutex_unlock(&changing);
	return to;
}

/* Forget each kvm_run that the VMM has unmapped or mapped over. */
static void note_unmapped(const void *where, size_t length)
{
	uintptr_t start = (uintptr_t)where, end = start + length;

	for (int fd = 0; fd < vcpus_end; fd++) {
		uintptr_t run = (uintptr_t)vcpus[fd].run, second = (uintptr_t)vcpus[fd].second;

		if (second && second < end && second + sizeof(struct kvm_run) > start)
			vcpus[fd].second = NULL;
		if (run && run < end && run + sizeof(struct kvm_run) > start) {
			vcpus[fd].run = vcpus[fd].second;
			vcpus[fd].second = NULL;
		}
	}
}

/* A slot was set through an unknown descriptor, for example from a raw dup(2). The slot may
 * belong to any VM, so the slots of every VM are uncertain. */
static void note_region_of_unknown(void)
{
	for (int i = 0; i < MAX_VMS; i++)
		if (vms[i].ours)
			vms[i].shared = true;
}

/* Record a successful call. Return its result for the VMM. */
static int note(int fd, unsigned request, void *argument, int result)
{
	struct vm *vm = in_table(fd) ? vm_of[fd] : NULL;

	switch (request) {
	case KVM_CREATE_VM:
		note_vm(fd, result, (unsigned long)argument);
		break;
	case KVM_CREATE_VCPU:
		return note_vcpu(vm, result);
	case KVM_MEMORY_ENCRYPT_OP:
		if (vm)
			note_sev_command(vm, fd, argument);
		break;
	case KVM_SET_USER_MEMORY_REGION:
	case KVM_SET_USER_MEMORY_REGION2:
		if (vm)
			note_region(vm, argument);
		else
			note_region_of_unknown();
		break;
	}
	return result;
}

static void before_fork(void)
{
	pthread_mutex_lock(&changing);
}

static void after_fork(void)
{
	pthread_mutex_unlock(&changing);
}

static void after_fork_in_child(void) /* the child has no thread that copies */
{
	for (int i = 0; i < MAX_VMS; i++)
		vms[i].copying = 0;
	owner = getpid();
	pthread_mutex_unlock(&changing);
}

static void find_next(void)
{
	next_mmap = (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
	next_ioctl = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
	next_munmap = (int (*)(void *, size_t))dlsym(RTLD_NEXT, "munmap");
	next_dup = (int (*)(int))dlsym(RTLD_NEXT, "dup");
	next_dup2 = (int (*)(int, int))dlsym(RTLD_NEXT, "dup2");
	next_dup3 = (int (*)(int, int, int))dlsym(RTLD_NEXT, "dup3");
	next_fcntl = (int (*)(int, int, ...))dlsym(RTLD_NEXT, "fcntl");
	next_mremap = (void *(*)(void *, size_t, size_t, int, ...))dlsym(RTLD_NEXT, "mremap");
	next_sendmsg = (ssize_t(*)(int, const struct msghdr *, int))dlsym(RTLD_NEXT, "sendmsg");
}

__attribute__((constructor)) static void start(void)
{
	const char *file = getenv("SNPCERTS_CERTS_FILENAME");
	const char *limit = getenv("SNPCERTS_CERTS_TIMEOUT");
	char *end = NULL;
	unsigned long milliseconds = SNPCERTS_LOCK_WAIT / 1000000;

	tell_exit = getenv("SNPCERTS_TELL_EXIT") != NULL;
	find_next();
	owner = getpid();
	few_calls = !strncmp(program_invocation_short_name, "cloud-hypervisor", 16);
	pthread_atfork(before_fork, after_fork, after_fork_in_child);
	if (limit && *limit >= '0' && *limit <= '9')
		milliseconds = strtoul(limit, &end, 10);
	if (limit && (!end || *end || milliseconds >= 60000))
		unusable = "SNPCERTS_CERTS_TIMEOUT is not a number of milliseconds below 60000";
	else if (!file || !*file)
		unusable = "SNPCERTS_CERTS_FILENAME is not set";
	else if (*file != '/' || strlen(file) >= sizeof path)
		unusable = "SNPCERTS_CERTS_FILENAME is not an absolute path";
	else
		unusable = NULL;
	if (!unusable)
		strcpy(path, file);
	timeout = milliseconds * 1000000ull;
}

EXPORT int ioctl(int fd, unsigned long passed, ...)
{
	/* The kernel uses only 32 bits. A VMM that keeps requests in an int passes
	 * KVM_MEMORY_ENCRYPT_OP sign-extended, as QEMU up to 9.1 does. */
	unsigned request = passed;
	void *argument;
	va_list list;
	int result, saved;

	va_start(list, passed);
	argument = va_arg(list, void *);
	va_end(list);
	if (!next_ioctl) /* another library's constructor may run before ours */
		find_next();
	saved = errno;
	result = next_ioctl(fd, passed, argument);
	if (result < 0)
		return result;
	if (request != KVM_RUN) {
		result = note(fd, request, argument, result);
	} else if (in_table(fd) && vcpus[fd].vm) {
		struct kvm_run *run = vcpus[fd].run;

		if (run && !snpcerts_asks(run))
			return result;
		if (run && tell_exit)
			SAY_ONCE("KVM asks for certificates with exit %u", run->exit_reason);
		if (run)
			return serve(fd, vcpus[fd].vm, run, saved);
		SAY_ONCE("a vCPU gets no certificates: "
			 "the shim did not see where its kvm_run was mapped");
	}
	if (result >= 0)
		errno = saved;
	return result;
}

/* Record where the VMM maps a vCPU's kvm_run. A mapping of the shim's own would keep the VM
 * alive. */
EXPORT void *mmap(void *where, size_t length, int protection, int flags, int fd, off_t offset)
{
	void *made;

	if (!next_mmap) /* the lookup itself may need memory */
		return (void *)syscall(SYS_mmap, where, length, protection, flags, fd, offset);
	made = next_mmap(where, length, protection, flags, fd, offset);
	if (made != MAP_FAILED && flags & MAP_FIXED)
		note_unmapped(made, length);
	if (in_table(fd) && vcpus[fd].vm && made != MAP_FAILED && offset == 0 &&
	    length >= sizeof(struct kvm_run) && flags & MAP_SHARED && protection & PROT_WRITE) {
		if (vcpus[fd].run)
			vcpus[fd].second = made;
		else
			vcpus[fd].run = made;
	}
	return made;
}

EXPORT void *mmap64(void *, size_t, int, int, int, off_t) __attribute__((alias("mmap")));

EXPORT int munmap(void *where, size_t length)
{
	if (!next_munmap)
		return (int)syscall(SYS_munmap, where, length);
	note_unmapped(where, length); /* before the call: afterwards other code may get the memory */
	return next_munmap(where, length);
}

EXPORT void *mremap(void *where, size_t length, size_t wanted, int flags, ...)
{
	void *target;
	va_list list;

	va_start(list, flags);
	target = va_arg(list, void *);
	va_end(list);
	if (!next_mremap)
		find_next();
	note_unmapped(where, length);
	return next_mremap(where, length, wanted, flags, target);
}

EXPORT int dup(int fd)
{
	if (!next_dup)
		find_next();
	return note_duplicate(fd, next_dup(fd));
}

EXPORT int dup2(int fd, int wanted)
{
	if (!next_dup2)
		find_next();
	return note_duplicate(fd, next_dup2(fd, wanted));
}

EXPORT int dup3(int fd, int wanted, int flags)
{
	if (!next_dup3)
		find_next();
	return note_duplicate(fd, next_dup3(fd, wanted, flags));
}

EXPORT int fcntl(int fd, int command, ...)
{
	void *argument;
	va_list list;
	int result;

	va_start(list, command);
	argument = va_arg(list, void *);
	va_end(list);
	if (!next_fcntl)
		find_next();
	result = next_fcntl(fd, command, argument);
	return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? note_duplicate(fd, result) : result;
}

EXPORT int fcntl64(int, int, ...) __attribute__((alias("fcntl")));

/* A VM's descriptor may be sent to another process, whose calls the shim does not see. */
EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	if (!next_sendmsg)
		find_next();
	for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part;
	     part = CMSG_NXTHDR((struct msghdr *)message, part)) {
		size_t left = part->cmsg_len < CMSG_LEN(0) ? 0 : part->cmsg_len - CMSG_LEN(0);
		const unsigned char *at = CMSG_DATA(part);

		if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
			continue;
		for (int sent; left >= sizeof sent; left -= sizeof sent, at += sizeof sent) {
			memcpy(&sent, at, sizeof sent);
			if (in_table(sent) && vm_of[sent])
				vm_of[sent]->shared = true;
		}
	}
	return next_sendmsg(fd, message, flags);
}
