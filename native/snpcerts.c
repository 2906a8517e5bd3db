/* SPDX-License-Identifier: Apache-2.0
 *
 * Serves a request for certificates, from the exit to the hand-shake. See
 * include/snpcerts.h.
 *
 * The library takes the same steps on the certificate file as
 * src/snpcerts/certfile/reader.py, which the explorer examines. tests/native compares the
 * two, call by call.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "include/snpcerts.h"
#include "kvm_abi.h"

static const char zeros[24]; /* the entry that ends a certificate table */
#define ENTRY ((int)sizeof zeros)
#define PAGE 4096u
#define FIRST_PAUSE 500000 /* ns between tries for the lock */
#define LONGEST_PAUSE 5000000
#define READS 100 /* how often a read is tried while signals interrupt it */

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static int lock(int fd, short type)
{
	struct flock whole = { .l_type = type, .l_whence = SEEK_SET };

	return fcntl(fd, F_OFD_SETLK, &whole);
}

static void let_go(int fd)
{
	/* A child that was forked meanwhile shares this open file description, so close(2) alone
	 * would not drop the lock. */
	lock(fd, F_UNLCK);
	close(fd);
}

/* ---- the file ---- */

/* Open and lock the file, and compare it with the path. Return the descriptor, with the
 * shared lock, or -1. After -1, file_problem is 0 if lock_wait has passed: an update has the
 * lock. */
static int open_locked(const struct snpcerts_vm *vm, struct stat *mine,
		       struct snpcerts_served *served)
{
	uint64_t start = 0, pause = FIRST_PAUSE, left;

	for (;;) {
		bool again = false;
		/* Each request has its own open file description, so no other unlock can drop its
		 * lock. O_NONBLOCK, because opening a FIFO must not wait for its other end. */
		int fd = open(vm->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
		int error = 0;
		struct stat there;

		if (fd < 0) {
			error = errno;
		} else if (lock(fd, F_RDLCK) < 0) {
			error = errno;
			again = error == EAGAIN || error == EACCES; /* POSIX allows both */
			close(fd);
		} else {
			if (fstat(fd, mine) < 0 || stat(vm->path, &there) < 0)
				error = errno;
			else if (mine->st_dev == there.st_dev && mine->st_ino == there.st_ino)
				return fd;
			else
				again = true; /* a lock on a replaced file protects nothing */
			let_go(fd);
		}
		if (!again && error != EINTR) { /* try again after EINTR, as Python itself does */
			served->file_problem = error;
			return -1;
		}
		if (!start)
			start = now();
		served->waited = now() - start;
		if (served->waited >= vm->lock_wait)
			return -1;
		left = vm->lock_wait - served->waited;
		/* A signal may end the sleep early, so check the clock. */
		nanosleep(&(struct timespec){ .tv_nsec = left < pause ? left : pause }, NULL);
		pause = 2 * pause < LONGEST_PAUSE ? 2 * pause : LONGEST_PAUSE;
	}
}

/* Whether the locked file has a table. If not, file_problem says why; 0 means that the file
 * is empty or has the empty table. */
static bool has_table(const struct snpcerts_vm *vm, int fd, const struct stat *file,
		      struct snpcerts_served *served)
{
	char first[ENTRY];
	ssize_t got;
	int tries = 0;

	if (!S_ISREG(file->st_mode)) {
		served->file_problem = SNPCERTS_NOT_REGULAR;
		return false;
	}
	served->file_size = file->st_size;
	if (served->file_size > (vm->size_limit ? vm->size_limit : SNPCERTS_MAX_SIZE)) {
		served->file_problem = SNPCERTS_TOO_LARGE;
		return false;
	}
	do
		got = pread(fd, first, ENTRY, 0);
	while (got < 0 && errno == EINTR && ++tries < READS);
	if (got < 0)
		served->file_problem = errno;
	else if (got < (file->st_size < ENTRY ? file->st_size : ENTRY))
		served->file_problem = SNPCERTS_SHRANK;
	else /* A leading terminator means that an update is in progress. Ignore the rest. */
		return got && (got < ENTRY || memcmp(first, zeros, ENTRY));
	return false;
}

/* ---- the guest's memory ---- */

/* Find the memory of the guest's addresses, across adjacent slots. */
static int find_in_slots(const struct snpcerts_vm *vm, uint64_t gpa, uint64_t size,
			 struct iovec *pieces)
{
	int count = 0;

	while (size && count < SNPCERTS_MAX_PIECES) {
		const struct snpcerts_slot *slot = vm->slots, *end = slot + vm->slot_count;
		uint64_t offset, part;

		while (slot < end && gpa - slot->gpa >= slot->size)
			slot++;
		if (slot == end)
			return -EIO;
		offset = gpa - slot->gpa;
		part = slot->size - offset < size ? slot->size - offset : size;
		pieces[count].iov_base = (void *)(uintptr_t)(slot->host + offset);
		pieces[count++].iov_len = part;
		gpa += part;
		size -= part;
	}
	return size ? -EIO : count;
}

/* Return the number of pieces, or 0 with ret and guest_problem set. */
static int find(const struct snpcerts_vm *vm, uint64_t gpa, uint64_t size, struct iovec *pieces,
		struct snpcerts_served *served)
{
	int count = -EIO;

	served->guest_problem = gpa % PAGE ? SNPCERTS_NOT_ALIGNED : SNPCERTS_NOT_MEMORY;
	if (gpa <= UINT64_MAX - size)
		count = vm->find ? vm->find(vm->context, gpa, size, pieces) :
				   find_in_slots(vm, gpa, size, pieces);
	if (count > 0) {
		served->guest_problem = 0;
		return count;
	}
	served->ret = count ? -count : EIO;
	return 0;
}

static void done(const struct snpcerts_vm *vm)
{
	if (vm->find && vm->done)
		vm->done(vm->context);
}

/* Whether the piece is writable; if it is not, memset would crash. The kernel writes the
 * thread's signal mask there (8 bytes), or fails with EFAULT. VMMs' seccomp filters allow
 * rt_sigprocmask(2), but not always process_vm_writev(2). */
static bool is_writable(const struct iovec *piece)
{
	return piece->iov_len < 8 || pthread_sigmask(SIG_SETMASK, NULL, piece->iov_base) != EFAULT;
}

/* Write the empty table. */
static void give_empty(const struct snpcerts_vm *vm, uint64_t gpa, uint64_t npages,
		       struct snpcerts_served *served)
{
	struct iovec pieces[SNPCERTS_MAX_PIECES];
	int count;

	served->outcome = SNPCERTS_EMPTY;
	served->ret = 0;
	served->size = 0;
	if (npages == 0)
		return;
	served->outcome = SNPCERTS_FAILED;
	if (gpa % PAGE) { /* KVM checks this, but a VMM's tests may run without KVM */
		served->guest_problem = SNPCERTS_NOT_ALIGNED;
		served->ret = EIO;
		return;
	}
	count = find(vm, gpa, ENTRY, pieces, served);
	if (!count)
		return;
	served->outcome = SNPCERTS_EMPTY;
	served->size = ENTRY;
	for (int i = 0; i < count; i++) {
		if (is_writable(&pieces[i])) {
			memset(pieces[i].iov_base, 0, pieces[i].iov_len);
		} else {
			served->guest_problem = SNPCERTS_NOT_MEMORY;
			served->outcome = SNPCERTS_FAILED;
			served->ret = EIO;
			served->size = 0;
			break;
		}
	}
	done(vm);
}

/* There is no table to deliver: deliver the empty one, or EIO if the file is unreadable and
 * the VMM chose EIO for that. */
static void give_nothing(const struct snpcerts_vm *vm, uint64_t gpa, uint64_t npages,
			 struct snpcerts_served *served)
{
	if (served->file_problem && vm->flags & SNPCERTS_UNREADABLE_IS_EIO) {
		served->outcome = SNPCERTS_FAILED;
		served->ret = EIO;
	} else {
		give_empty(vm, gpa, npages, served);
	}
}

/* Read the file directly into the guest's memory. Return the number of bytes read. If
 * bytes are missing, ret, file_problem and guest_problem say why. */
static uint64_t copy_table(const struct snpcerts_vm *vm, uint64_t gpa, int fd,
			   struct snpcerts_served *served)
{
	struct iovec pieces[SNPCERTS_MAX_PIECES];
	uint64_t size = served->file_size, got = 0;
	int tries = 0;

	while (got < size) {
		int count = find(vm, gpa + got, size - got, pieces, served), error;
		ssize_t more;

		if (!count)
			return got;
		more = pread(fd, pieces[0].iov_base, pieces[0].iov_len, got);
		error = errno;
		done(vm);
		if (more > 0) {
			got += more;
			continue;
		}
		if (more < 0 && error == EINTR && ++tries < READS)
			continue;
		served->ret = EIO;
		if (more == 0)
			served->file_problem = SNPCERTS_SHRANK;
		else if (error == EFAULT)
			served->guest_problem = SNPCERTS_NOT_MEMORY;
		else
			served->file_problem = error;
		return got;
	}
	return got;
}

/* ---- one request ---- */

static void answer(const struct snpcerts_vm *vm, uint64_t gpa, uint64_t npages,
		   struct snpcerts_served *served)
{
	struct stat file;
	uint64_t pages, got;
	int fd;

	memset(served, 0, sizeof *served);
	served->fd = -1;
	fd = open_locked(vm, &file, served);
	if (fd < 0 && !served->file_problem) {
		served->outcome = SNPCERTS_BUSY;
		served->ret = EAGAIN;
		return;
	}
	if (fd < 0 || !has_table(vm, fd, &file, served)) {
		if (fd >= 0)
			let_go(fd);
		give_nothing(vm, gpa, npages, served);
		return;
	}
	pages = (served->file_size + PAGE - 1) / PAGE;
	if (pages > npages) {
		served->outcome = SNPCERTS_TOO_SMALL;
		served->ret = ENOSPC;
		served->needed_pages = pages;
		served->fd = fd;
		return;
	}
	served->outcome = SNPCERTS_FAILED;
	if (gpa % PAGE) {
		served->guest_problem = SNPCERTS_NOT_ALIGNED;
		served->ret = EIO;
		served->fd = fd;
		return;
	}
	got = copy_table(vm, gpa, fd, served);
	if (got == served->file_size) {
		served->outcome = SNPCERTS_SERVED;
		served->size = got;
		served->fd = fd;
	} else if (served->file_problem) { /* a problem with the file must not cause EIO */
		let_go(fd);
		give_nothing(vm, gpa, npages, served);
	} else {
		served->fd = fd;
		if (got) { /* never leave a torn table */
			struct snpcerts_served torn = *served;

			give_empty(vm, gpa, npages, &torn);
		}
	}
}

/* For immediate_exit. Any value but 0 makes KVM_RUN return; a VMM's kick writes 1. */
#define OURS 2

void snpcerts_begin(const struct snpcerts_vm *vm, struct kvm_run *run,
		    struct snpcerts_served *served)
{
	answer(vm, run->snp_req_certs.gpa, run->snp_req_certs.npages, served);
	run->snp_req_certs.ret = served->ret;
	if (served->needed_pages)
		run->snp_req_certs.npages = served->needed_pages;
	served->immediate_exit = atomic_exchange(&run->immediate_exit, OURS);
}

void snpcerts_end(struct kvm_run *run, struct snpcerts_served *served)
{
	uint8_t still = OURS;

	if (served->fd >= 0)
		let_go(served->fd);
	served->fd = -1;
	/* A kick wrote 1. If it came before the exchange, the saved 1 is restored; if it came
	 * later, the byte is no longer OURS and stays 1. */
	atomic_compare_exchange_strong(&run->immediate_exit, &still, served->immediate_exit);
}

int snpcerts_serve(const struct snpcerts_vm *vm, int vcpu, struct kvm_run *run,
		   struct snpcerts_served *served)
{
	struct snpcerts_served mine;
	sigset_t all, mask;
	int cancel, result, error;

	if (!served)
		served = &mine;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	snpcerts_begin(vm, run, served);
	/* EINTR must mean that KVM has taken the answer. If it meant that a signal arrived
	 * before KVM saw the call, the firmware would sign after the lock is dropped. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &mask);
	result = vm->enter ? vm->enter(vm->context, vcpu) : ioctl(vcpu, KVM_RUN, 0);
	error = result < 0 ? errno : 0;
	snpcerts_end(run, served);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	pthread_setcancelstate(cancel, NULL);
	served->run_errno = error;
	return error;
}

/* Released kernels use 43. Kernels with the series as it was posted use 42, which in released
 * kernels only arm64 uses. */
bool snpcerts_asks(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_SNP_REQ_CERTS ||
	       run->exit_reason == KVM_EXIT_ARM_LDST64B;
}

bool snpcerts_supported(int kvm)
{
	uint64_t value = 0;
	struct kvm_device_attr attr = { .group = KVM_X86_GRP_SEV,
					.attr = KVM_X86_SEV_SNP_REQ_CERTS,
					.addr = (uintptr_t)&value };

	return ioctl(kvm, KVM_GET_DEVICE_ATTR, &attr) == 0 && value == 1;
}

int snpcerts_enable(int vm)
{
	struct kvm_sev_cmd enable = { .id = KVM_SEV_SNP_ENABLE_REQ_CERTS };

	return ioctl(vm, KVM_MEMORY_ENCRYPT_OP, &enable) < 0 ? errno : 0;
}
