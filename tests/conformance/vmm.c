/* SPDX-License-Identifier: Apache-2.0
 *
 * A VMM that serves certificates as it should: vmm FILE VCPUS. Compiled with
 * -DWRONG=NAME it is wrong in one way, which stands where the name does. It
 * ends at SIGTERM, by way of a kick of each vCPU.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../../native/kvm_abi.h"

enum wrong {
	NOTHING,
	ATTRIBUTE_NOT_ASKED, ONLY_HAS_ASKED, ENABLED_TOO_LATE, NEVER_ENABLED,
	NO_LOCK, FLOCK_LOCK, CLASSIC_LOCK, LOCK_ON_ANOTHER_FILE, READS_BEFORE_LOCK,
	UNLOCKS_EARLY, NO_HANDSHAKE, NO_INODE_CHECK, INODE_WITHOUT_DEVICE, WAITS_FOR_EVER,
	BUSY_IS_EIO, SHARED_DESCRIPTOR, ONE_DESCRIPTOR_FOR_LIFE, KEEPS_A_COPY,
	POINTER_STAYS, PAGE_TOO_MANY, NEGATIVE_RET, WRITES_BEFORE_CHECK, WRITES_WHOLE_PAGES,
	EMPTY_IS_SUCCESS, SIZE_WRAPS, GPA_WRAPS, GPA_UNCHECKED, ONE_SLOT_ONLY,
	MISSING_ENDS_VM, MISSING_IS_EIO, MISSING_WRITES_NOTHING, UNREADABLE_ENDS_VM,
	IMMEDIATE_EXIT_STAYS, KICK_ERASED, STALE_EXIT_REASON, LEAKS_DESCRIPTORS, CHILD_KEEPS_LOCK,
	FIRST_VCPU_ONLY, LAST_PAGE_REFUSED, ONLY_THE_POSTED_EXIT,
};

#ifndef WRONG
#define WRONG NOTHING
#endif
#define is_wrong(what) (WRONG == (what))

#define PAGE 4096ul
#define LOW (PAGE * 128) /* two slots that touch, the second the larger */
#define MEMORY (PAGE * 640)
#define RUN_SIZE 12288
#define LOCK_WAIT 100 /* ms, then BUSY */
#define SIZE_MAX_SERVED (1ul << 20)


static const char *path;
static int vm, sev, vcpus, fds[64];
static uint8_t *memory[2];
static struct kvm_run *runs[64];
static pthread_t threads[64];
static volatile bool stopping;

/* For those that are wrong. */
static int shared_fd = -1;
static __thread bool exited; /* the hand-shake came to an exit of its own */
static uint8_t copy[SIZE_MAX_SERVED];
static ssize_t copied = -1;

static long must(long result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

/* Where a range of guest memory is, up to the end of its slot. */
static uint8_t *guest(uint64_t gpa, uint64_t size, uint64_t *room)
{
	if (is_wrong(GPA_UNCHECKED) || is_wrong(GPA_WRAPS)) {
		*room = size;
		return memory[0] + gpa;
	}
	*room = (gpa < LOW ? LOW : MEMORY) - gpa;
	if (*room > size)
		*room = size;
	return gpa < LOW ? memory[0] + gpa : memory[1] + (gpa - LOW);
}

static bool is_memory(uint64_t gpa, uint64_t size)
{
	if (is_wrong(GPA_UNCHECKED))
		return true;
	if (is_wrong(GPA_WRAPS))
		return gpa + size <= MEMORY;
	if (is_wrong(ONE_SLOT_ONLY) && gpa < LOW && gpa + size > LOW)
		return false;
	if (is_wrong(LAST_PAGE_REFUSED) && gpa + PAGE * 2 >= MEMORY)
		return false;
	return gpa <= MEMORY && size <= MEMORY - gpa;
}

static bool put(uint64_t gpa, const uint8_t *data, uint64_t size)
{
	if (!is_memory(gpa, size))
		return false;
	while (size) {
		uint64_t room = 0;
		uint8_t *to = guest(gpa, size, &room);

		memcpy(to, data, room);
		gpa += room;
		data += room;
		size -= room;
	}
	return true;
}

static bool lock(int fd, int type)
{
	struct flock whole = { .l_type = type, .l_whence = SEEK_SET };
	int command = is_wrong(WAITS_FOR_EVER) ? F_OFD_SETLKW : F_OFD_SETLK;

	if (is_wrong(NO_LOCK))
		return true;
	if (is_wrong(FLOCK_LOCK))
		return !flock(fd, type == F_UNLCK ? LOCK_UN : LOCK_SH | LOCK_NB);
	if (is_wrong(LOCK_ON_ANOTHER_FILE)) {
		char name[4096];

		snprintf(name, sizeof(name), "%s.lock", path);
		if (shared_fd < 0)
			shared_fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		fd = shared_fd;
	}
	return !fcntl(fd, is_wrong(CLASSIC_LOCK) ? F_SETLK : command, &whole);
}

static bool same_file(int fd)
{
	struct stat mine, there;

	if (is_wrong(NO_INODE_CHECK))
		return true;
	if (fstat(fd, &mine) || stat(path, &there))
		return false;
	return mine.st_ino == there.st_ino &&
	       (mine.st_dev == there.st_dev || is_wrong(INODE_WITHOUT_DEVICE));
}

static int open_file(void)
{
	if ((is_wrong(ONE_DESCRIPTOR_FOR_LIFE)) && shared_fd >= 0)
		return shared_fd;
	int fd = open(path, O_RDONLY | (is_wrong(CHILD_KEEPS_LOCK) ? 0 : O_CLOEXEC));

	if (is_wrong(ONE_DESCRIPTOR_FOR_LIFE) || is_wrong(SHARED_DESCRIPTOR))
		shared_fd = fd;
	return fd;
}

/* The whole file; its size, or -1 with errno. */
static ssize_t contents(int fd, uint8_t *data)
{
	ssize_t size = 0, got;

	if (is_wrong(POINTER_STAYS)) { /* what is wanted is known, and how much of it came */
		ssize_t left = lseek(fd, 0, SEEK_END);

		lseek(fd, 0, SEEK_SET);
		for (size = left; left > 0; left -= got)
			if ((got = read(fd, data, left)) <= 0)
				return -1;
		return size;
	}
	while ((got = pread(fd, data + size, SIZE_MAX_SERVED - size, size)) > 0)
		size += got;
	return got < 0 ? -1 : size;
}

/* The file, locked and read: its size, or -1 with errno, EAGAIN for a lock not had. */
static ssize_t locked_contents(int *fd, uint8_t *data)
{
	struct timespec pause = { .tv_nsec = 1000000 };

	for (int tries = 0; tries < LOCK_WAIT; tries++) {
		ssize_t size = 0;

		*fd = open_file();
		if (*fd < 0)
			return -1;
		if (is_wrong(READS_BEFORE_LOCK))
			size = contents(*fd, data);
		if (lock(*fd, F_RDLCK) && (is_wrong(ONE_DESCRIPTOR_FOR_LIFE) || same_file(*fd)))
			return is_wrong(READS_BEFORE_LOCK) ? size : contents(*fd, data);
		if (!is_wrong(ONE_DESCRIPTOR_FOR_LIFE))
			close(*fd);
		*fd = -1;
		nanosleep(&pause, NULL);
	}
	errno = EAGAIN;
	return -1;
}

static uint64_t deliver(struct kvm_run *run, const uint8_t *data, uint64_t size)
{
	uint64_t pages = (size + PAGE - 1) / PAGE;
	static const uint8_t zeros[3 * PAGE];

	if (is_wrong(PAGE_TOO_MANY))
		pages = (size + PAGE) / PAGE;
	if (is_wrong(WRITES_BEFORE_CHECK) && run->snp_req_certs.npages < pages)
		put(run->snp_req_certs.gpa, data, run->snp_req_certs.npages * PAGE);
	if (is_wrong(SIZE_WRAPS) ? run->snp_req_certs.npages * PAGE < size : run->snp_req_certs.npages < pages) {
		run->snp_req_certs.npages = pages;
		return is_wrong(NEGATIVE_RET) ? -ENOSPC : ENOSPC;
	}
	if (!put(run->snp_req_certs.gpa, data, size))
		return EIO;
	if (is_wrong(WRITES_WHOLE_PAGES)) /* and the page behind them */
		put(run->snp_req_certs.gpa + size, zeros, (pages + 1) * PAGE - size);
	return 0;
}

static uint64_t deliver_nothing(struct kvm_run *run)
{
	static const uint8_t empty[24];

	if (is_wrong(MISSING_IS_EIO))
		return EIO;
	if (is_wrong(MISSING_WRITES_NOTHING))
		return 0;
	return run->snp_req_certs.npages == 0 || put(run->snp_req_certs.gpa, empty, sizeof(empty)) ? 0 : EIO;
}

static uint64_t answer(struct kvm_run *run, int *fd, uint8_t *data)
{
	ssize_t size;

	if (is_wrong(KEEPS_A_COPY) && copied >= 0) {
		*fd = open_file();
		lock(*fd, F_RDLCK);
		return deliver(run, copy, copied);
	}
	size = locked_contents(fd, data);
	if (is_wrong(KEEPS_A_COPY) && size > 0)
		memcpy(copy, data, copied = size);
	if (size >= 0)
		return is_wrong(EMPTY_IS_SUCCESS) && run->snp_req_certs.npages == 0 ? 0 : deliver(run, data, size);
	if (*fd < 0 && errno == EAGAIN)
		return is_wrong(BUSY_IS_EIO) ? EIO : EAGAIN;
	if (is_wrong(MISSING_ENDS_VM) && *fd < 0)
		must(-1, path);
	if (is_wrong(UNREADABLE_ENDS_VM) && *fd >= 0)
		must(-1, path);
	return deliver_nothing(run);
}

static void let_go(int fd)
{
	if (is_wrong(ONE_DESCRIPTOR_FOR_LIFE))
		lock(fd, F_UNLCK);
	else if (is_wrong(SHARED_DESCRIPTOR))
		close(shared_fd);
	else if (is_wrong(LEAKS_DESCRIPTORS) && fd >= 0)
		lock(fd, F_UNLCK);
	else if (fd >= 0)
		close(fd);
}

/* Whether the vCPU shall stop. */
static bool serve(int vcpu, struct kvm_run *run, uint8_t *data)
{
	int fd = -1;

	run->snp_req_certs.ret = is_wrong(FIRST_VCPU_ONLY) && vcpu != fds[0] ? EIO : answer(run, &fd, data);
	if (is_wrong(UNLOCKS_EARLY))
		let_go(fd);
	if (is_wrong(CHILD_KEEPS_LOCK) && fork() == 0) {
		sleep(60);
		_exit(0);
	}
	if (!is_wrong(NO_HANDSHAKE))
		run->immediate_exit = 1;
	if (ioctl(vcpu, KVM_RUN, 0) < 0 && errno != EINTR)
		must(-1, "KVM_RUN");
	exited = is_wrong(NO_HANDSHAKE) && errno != EINTR;
	if (!is_wrong(UNLOCKS_EARLY))
		let_go(fd);
	if (is_wrong(STALE_EXIT_REASON) && run->exit_reason == KVM_EXIT_SNP_REQ_CERTS) {
		locked_contents(&fd, data);
		close(fd);
	}
	if (!is_wrong(IMMEDIATE_EXIT_STAYS))
		run->immediate_exit = 0;
	/* A kick that came meanwhile set it too, and has just been undone. */
	return !is_wrong(KICK_ERASED) && stopping;
}

static bool asks_for_certs(const struct kvm_run *run)
{
	if (is_wrong(ONLY_THE_POSTED_EXIT))
		must(run->exit_reason == KVM_EXIT_SNP_REQ_CERTS ? -1 : 0, "unknown exit reason");
	return run->exit_reason == KVM_EXIT_SNP_REQ_CERTS ||
	       run->exit_reason == KVM_EXIT_ARM_LDST64B; /* its number in the series as posted */
}

static void *vcpu_thread(void *argument)
{
	int number = (int)(intptr_t)argument, vcpu = fds[number];
	struct kvm_run *run = runs[number];
	uint8_t *data = malloc(SIZE_MAX_SERVED);

	while (is_wrong(KICK_ERASED) || !stopping) {
		errno = 0;
		if (!exited && ioctl(vcpu, KVM_RUN, 0) < 0) {
			if (errno != EINTR)
				must(-1, "KVM_RUN");
			if (stopping)
				break;
			continue;
		}
		exited = false;
		if (run->exit_reason == KVM_EXIT_SHUTDOWN)
			break;
		if (asks_for_certs(run) && serve(vcpu, run, data))
			break;
	}
	free(data);
	return NULL;
}

static void nothing(int number)
{
	(void)number;
}

static void *stopper(void *argument)
{
	int number;

	sigwait(argument, &number);
	stopping = true;
	for (int i = 0; i < vcpus; i++) {
		runs[i]->immediate_exit = 1;
		pthread_kill(threads[i], SIGUSR1);
	}
	return NULL;
}

static void command(uint32_t id, void *data)
{
	uint64_t issued[3] = { id, (uintptr_t)data, (uint64_t)sev << 32 };

	must(ioctl(vm, KVM_MEMORY_ENCRYPT_OP, issued), "KVM_MEMORY_ENCRYPT_OP");
}

static void slot(uint32_t number, uint64_t gpa, uint64_t size)
{
	uint64_t memfd[8] = { size }, region[20] = { number | (uint64_t)KVM_MEM_GUEST_MEMFD << 32, gpa, size };

	memory[number] = memory[0] + gpa;
	region[3] = (uintptr_t)memory[number];
	region[5] = must(ioctl(vm, KVM_CREATE_GUEST_MEMFD, memfd), "KVM_CREATE_GUEST_MEMFD");
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION2, region), "KVM_SET_USER_MEMORY_REGION2");
}

static bool supported(int kvm)
{
	uint64_t value = 0, attr[3] = { (uint64_t)KVM_X86_GRP_SEV << 32,
					KVM_X86_SEV_SNP_REQ_CERTS, (uintptr_t)&value };

	if (is_wrong(ATTRIBUTE_NOT_ASKED))
		return true;
	if (is_wrong(ONLY_HAS_ASKED))
		return !ioctl(kvm, KVM_HAS_DEVICE_ATTR, attr);
	return !ioctl(kvm, KVM_GET_DEVICE_ATTR, attr) && value == 1;
}

int main(int count, char **words)
{
	uint64_t init[6] = { 0, 2ul << 32 }, start[8] = { 3 << 16 }, finish[11] = { 0 };
	uint64_t private[4] = { 0, 2 * PAGE, KVM_MEMORY_ATTRIBUTE_PRIVATE };
	bool enable;
	sigset_t stop;
	int kvm;

	vcpus = count == 3 ? atoi(words[2]) : 0;
	if (vcpus < 1 || vcpus > 64) {
		fprintf(stderr, "usage: vmm FILE VCPUS\n");
		return 2;
	}
	path = words[1];
	sigemptyset(&stop);
	sigaddset(&stop, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &stop, NULL);
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = nothing }, NULL);
	kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	sev = must(open("/dev/sev", O_RDWR | O_CLOEXEC), "/dev/sev");
	enable = supported(kvm) && !is_wrong(NEVER_ENABLED);
	vm = must(ioctl(kvm, KVM_CREATE_VM, KVM_X86_SNP_VM), "KVM_CREATE_VM");
	command(KVM_SEV_INIT2, init);
	/* A page on either side that nobody may touch. */
	memory[0] = mmap(NULL, MEMORY + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memory[0] += PAGE;
	must(mprotect(memory[0], MEMORY, PROT_READ | PROT_WRITE), "memory");
	slot(0, 0, LOW);
	slot(1, LOW, MEMORY - LOW);
	must(ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, private), "KVM_SET_MEMORY_ATTRIBUTES");
	if (enable && !is_wrong(ENABLED_TOO_LATE))
		command(KVM_SEV_SNP_ENABLE_REQ_CERTS, NULL);
	for (int i = 0; i < vcpus; i++) {
		fds[i] = must(ioctl(vm, KVM_CREATE_VCPU, i), "KVM_CREATE_VCPU");
		runs[i] = mmap(NULL, RUN_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], 0);
		must(runs[i] == MAP_FAILED ? -1 : 0, "mmap of kvm_run");
	}
	if (enable && is_wrong(ENABLED_TOO_LATE))
		ioctl(vm, KVM_MEMORY_ENCRYPT_OP, (uint64_t[3]){ KVM_SEV_SNP_ENABLE_REQ_CERTS });
	command(KVM_SEV_SNP_LAUNCH_START, start);
	for (uint64_t page = 0; page < 2; page++) {
		uint64_t update[8] = { page, (uintptr_t)memory[0] + page * PAGE, PAGE, page ? 5 : 1 };

		command(KVM_SEV_SNP_LAUNCH_UPDATE, update);
	}
	command(KVM_SEV_SNP_LAUNCH_FINISH, finish);
	pthread_create(&(pthread_t){ 0 }, NULL, stopper, &stop);
	for (int i = 0; i < vcpus; i++)
		pthread_create(&threads[i], NULL, vcpu_thread, (void *)(intptr_t)i);
	for (int i = 0; i < vcpus; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
