/* SPDX-License-Identifier: Apache-2.0
 *
 * A VMM that serves certificates correctly: vmm FILE VCPUS. SIGTERM ends it, by a kick of
 * each vCPU. Compiled with -DWRONG=NAME, it makes one mistake; is_wrong(NAME) marks the
 * code that makes it. With -DWRONG=RIGHT_NAME, it is correct too, but works in another way.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
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
	CACHED_BY_MTIME, PROBES_THE_LOCK, SIZE_BEFORE_LOCK, LOCK_TIMES_OUT, LOCKS_AGAIN,
	INODE_CHECKED_ONCE, MTIME_FOR_INODE, LINKS_FOR_INODE, PATH_READ_AGAIN, SIZE_OF_PATH,
	LOCK_ERROR_IGNORED, READ_ERROR_IGNORED, HANDSHAKE_ERROR_KEEPS_LOCK,
	STALE_BYTES_BEHIND, WORDS_ONLY, LIMIT_16_KIB, LIMIT_64_KIB, NO_BUFFER_WRITTEN,
	EMPTY_FILE_UNWRITTEN, EMPTY_FILE_IS_EIO, FORBIDDEN_IS_EIO, LINK_COMPARED, LINK_REFUSED,
	LEAKS_WHEN_BUSY, LEAKS_WHEN_REPLACED, LEAKS_ON_ERROR, CREATES_FILE, OPENS_FOR_WRITING,
	PEEKS_AND_COPIES, COPY_FOR_SECOND_VCPU, GIVES_UP_WHEN_BUSY, NEEDED_ONLY_GROWS,
	OPEN_ERROR_IS_EIO, LEAKS_ON_EMPTY_FILE, LEAKS_MAPPINGS, LEAKS_THREADS, LEAKS_CHILDREN,
	LEAKS_MEMORY, LEAKS_MEMORY_WHEN_BUSY, LEAKS_A_LITTLE, WAITS_ADD_UP, LATE_LOCK_STAYS, GPA_TRUNCATED, WAITS_TOO_LONG,
	VALUE_IGNORED, LOGS_EACH_TRY, LOGS_EACH_BUSY, SPINS, ONE_DESCRIPTION, UNCOUNTED_ON_ENOSPC,
	INODE_CHECKED_TWICE, REMOVED_IS_SAME, REMOVED_IS_EIO, LINK_RESOLVED_AT_START, SIZE_WITHOUT_LOCK,
	SIZE_KEPT, ONE_BUFFER, SHARES_BUFFER, LOGS_EACH_EIO, LEAKS_TIMERS, LOCKS_FROM_END, LOCKS_FIRST_BYTE,
	READS_TWICE, NEEDS_ONE_MORE, READ_ERROR_IS_EIO, KICK_ERASED_WHEN_BUSY, KICK_ERASED_WHEN_TOO_SMALL,
	KICK_ERASED_WHEN_EIO, KICK_ERASED_AT_UNLOCK, KICK_TAKEN_WHILE_WAITING,
	KICK_ERASED_WITHOUT_FILE, CLOSES_ANOTHERS,
	OPENS_TWICE, LOCKS_TWICE, READS_BESIDE_LOCK, LOCK_STAYS_ON_ERROR, LOCK_STAYS_ON_EMPTY_FILE,
	UNCOUNTED_ON_READ_ERROR, JOINS_WITHOUT_LOCK, NAME_FOR_INODE, CTIME_FOR_INODE, CACHED_BY_CTIME,
	BLOCKS_FOR_SIZE, BUFFER_OF_NPAGES, LEAKS_MEMORY_ON_EIO, LEAKS_MEMORY_WITHOUT_FILE, GIVES_UP_AFTER_SIX,
	WAIT_GROWS, INHERITABLE, READS_INTO_GUEST, EMPTY_UNCHECKED, LEAKS_ON_SHORT_READ, STALE_WHEN_BUSY, JOINS_OLD_FILE,
	WRITES_LATE, LINK_MUST_BE_RELATIVE, DIRECTORY_KEPT, UNCHECKED_AFTER_WAIT,
	SIZE_READ_ONCE, ONE_SIZE, INTO_GUEST_BEFORE_CHECK, BUFFERS_LOST_ON_EIO, GIVES_UP_WITHOUT_FILE,
	DESCRIPTOR_KEPT_WHEN_BUSY, INODE_CHECKED_EIGHT_TIMES, UNCOUNTED_WHEN_BUSY, FIRST_PAGE_COMPARED,
	LEAKS_COPIES, LEAKS_FILES, LOGS_TO_FILE, MAPPING_UNCHECKED, ZEROES_WHOLE_BUFFER,
	BYTES_IN_32_BITS, GPA_BIT_CLEARED, HOLE_IS_MEMORY, INTERRUPTED_IS_LOCKED,
	RIGHT_DUPLICATE, RIGHT_HELPER, RIGHT_MAPPING, RIGHT_COUNTED, RIGHT_ONE_AT_A_TIME,
	RIGHT_EXCLUSIVE, RIGHT_CHECKS_AT_START, RIGHT_SIGWAIT_IN_MAIN, RIGHT_CHILD_RUNS,
	RIGHT_PIECES, RIGHT_PEEKS, RIGHT_MAIN_LOOP, RIGHT_KEPT_MAPPING, RIGHT_SIGNAL_MASK,
	RIGHT_LATE_CLOSE, RIGHT_SPLICES, RIGHT_JOINS, RIGHT_READS_AGAIN, RIGHT_SUBMITS,
	RIGHT_OWN_LINK, RIGHT_CONTROL, RIGHT_CLONES, RIGHT_TRIES_ONCE, RIGHT_THREADS, RIGHT_OWN_TABLES,
	PAGE_STATE_NOT_ENABLED, PAGE_STATE_REFUSED, PAGE_STATE_IGNORED, LARGE_PAGES_REFUSED,
	PAGE_STATE_ONE_SLOT, DISCARDS_2_MIB, DISCARDS_ONE_MORE,
};

#ifndef WRONG
#define WRONG NOTHING
#endif
#define is_wrong(what) (WRONG == (what))

#define PAGE 4096ul
#define LOW (PAGE * 128) /* the size of the first of two adjacent slots, the smaller one */
#define LARGE (PAGE * 512)
#define MEMORY (PAGE * (128 + 2048)) /* with room for an aligned page of 2 MiB */
#define RUN_SIZE 12288
#define LOCK_WAIT (is_wrong(WAIT_GROWS) ? 100 << refused : is_wrong(WAITS_TOO_LONG) ? 5000 : is_wrong(SPINS) ? 1000 : 100) /* ms, then BUSY */
#define LOCK_TRIES (is_wrong(RIGHT_TRIES_ONCE) ? 1 : LOCK_WAIT)
#define SIZE_MAX_SERVED (1ul << 20)
#define WAITS_FOR_KICK (WRONG == KICK_ERASED || (WRONG >= KICK_ERASED_WHEN_BUSY && WRONG <= KICK_ERASED_WITHOUT_FILE))


#define ONE_FOR_ALL (is_wrong(ONE_DESCRIPTION) || is_wrong(UNCOUNTED_ON_ENOSPC) || is_wrong(RIGHT_COUNTED) || \
		     is_wrong(UNCOUNTED_ON_READ_ERROR) || is_wrong(RIGHT_JOINS) || is_wrong(JOINS_OLD_FILE) || \
		     is_wrong(KICK_ERASED_AT_UNLOCK) || is_wrong(UNCOUNTED_WHEN_BUSY))
#define MASKS_KICK (is_wrong(RIGHT_SIGNAL_MASK) || is_wrong(KICK_TAKEN_WHILE_WAITING))

static char *path;
static int vm, sev, vcpus, fds[64];
static uint8_t *memory[2];
static struct kvm_run *runs[64];
static pthread_t threads[64];
static pid_t clones[64]; /* processes that run the vCPUs */
static volatile bool stopping;

/* State of the variants. */
static int shared_fd = -1;
static __thread bool exited; /* the hand-shake returned with another exit */
static uint8_t copy[SIZE_MAX_SERVED];
static ssize_t copied = -1;
static struct stat copied_from;
static int users; /* requests that use the one open file description */
static bool first_try;
static int checked; /* inode comparisons in this request */
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static int helper = -1;
static uint64_t needed;
static __thread uint64_t wanted; /* pages in the guest's buffer */
static __thread uint64_t wanted_at; /* the buffer's address */
static int buffers = 16; /* left for requests */
static __thread uint64_t blocks; /* the file's blocks, in pages */
static int refused; /* consecutive requests without a table */
static void *volatile lost;
static __thread int last_opened = -1;
static __thread int kept_fd = -1; /* stays open until a later request */
static __thread long asked; /* ms: when the request arrived that this thread serves */

static long must(long result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

/* Return the address of a range of guest memory, and in `room` how much of it is in one slot. */
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

	if (is_wrong(RIGHT_EXCLUSIVE) && type == F_RDLCK)
		whole.l_type = F_WRLCK;

	if (is_wrong(LOCKS_FROM_END))
		whole.l_whence = SEEK_END;
	if (is_wrong(LOCKS_FIRST_BYTE))
		whole.l_len = 1;
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
	if (is_wrong(INTERRUPTED_IS_LOCKED) && type == F_RDLCK) {
		struct flock probe = whole;

		fcntl(fd, F_OFD_GETLK, &probe);
		errno = EAGAIN;
		return probe.l_type == F_UNLCK && (!fcntl(fd, F_OFD_SETLKW, &whole) || errno == EINTR);
	}
	if (!fcntl(fd, is_wrong(CLASSIC_LOCK) ? F_SETLK : command, &whole))
		return true;
	return is_wrong(LOCK_ERROR_IGNORED) && errno != EAGAIN;
}

static bool same_file(int fd)
{
	struct stat mine, there;

	if (is_wrong(NO_INODE_CHECK))
		return true;
	if (is_wrong(INODE_CHECKED_ONCE) && !first_try)
		return true;
	first_try = false;
	if (is_wrong(INODE_CHECKED_TWICE) && checked++ > 1)
		return true;
	if (is_wrong(INODE_CHECKED_EIGHT_TIMES) && checked++ > 7)
		return true;
	if (is_wrong(REMOVED_IS_SAME) && stat(path, &there))
		return true;
	if (fstat(fd, &mine) || (is_wrong(LINK_COMPARED) ? lstat(path, &there) : stat(path, &there)))
		return false;
	if (is_wrong(CTIME_FOR_INODE))
		return !memcmp(&mine.st_ctim, &there.st_ctim, sizeof(mine.st_ctim));
	if (is_wrong(NAME_FOR_INODE)) {
		char link[32], name[4096] = { 0 };

		snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
		readlink(link, name, sizeof(name) - 1);
		return !strstr(name, " (deleted)");
	}
	if (is_wrong(MTIME_FOR_INODE))
		return !memcmp(&mine.st_mtim, &there.st_mtim, sizeof(mine.st_mtim));
	if (is_wrong(LINKS_FOR_INODE))
		return mine.st_nlink > 0;
	return mine.st_ino == there.st_ino &&
	       (mine.st_dev == there.st_dev || is_wrong(INODE_WITHOUT_DEVICE));
}

static int open_file(void)
{
	if ((is_wrong(ONE_DESCRIPTOR_FOR_LIFE)) && shared_fd >= 0)
		return shared_fd;
	int flags = is_wrong(OPENS_FOR_WRITING) || is_wrong(RIGHT_EXCLUSIVE) ? O_RDWR : O_RDONLY;

	if (is_wrong(CREATES_FILE))
		flags = O_RDWR | O_CREAT;
	if (is_wrong(LINK_REFUSED))
		flags |= O_NOFOLLOW;
	if (is_wrong(LINK_MUST_BE_RELATIVE)) {
		char target = 0;

		if (readlink(path, &target, 1) > 0 && target == '/') {
			errno = ELOOP;
			return -1;
		}
	}
	int fd = open(path, flags | (is_wrong(CHILD_KEEPS_LOCK) || is_wrong(INHERITABLE) ? 0 : O_CLOEXEC), 0644);

	last_opened = fd < 0 ? last_opened : fd;
	if (fd < 0 && is_wrong(RIGHT_EXCLUSIVE))
		fd = open(path, O_RDONLY | O_CLOEXEC);

	if (is_wrong(ONE_DESCRIPTOR_FOR_LIFE) || is_wrong(SHARED_DESCRIPTOR))
		shared_fd = fd;
	return fd;
}

/* Read the whole file. Return its size, or -1 with errno set. */
static ssize_t contents(int fd, uint8_t *data)
{
	ssize_t size = 0, got;

	if (is_wrong(POINTER_STAYS)) { /* counts what is left, but does not advance `data` */
		ssize_t left = lseek(fd, 0, SEEK_END);

		lseek(fd, 0, SEEK_SET);
		for (size = left; left > 0; left -= got)
			if ((got = read(fd, data, left)) <= 0)
				return -1;
		return size;
	}
	if (is_wrong(LEAKS_ON_SHORT_READ)) {
		struct stat found;

		if (fstat(fd, &found) || !S_ISREG(found.st_mode))
			return -1;
		while ((size = pread(fd, data, found.st_size, 0)) < found.st_size && size >= 0)
			fcntl(fd, F_DUPFD_CLOEXEC, 0); /* leak a descriptor, then read again */
		return size;
	}
	if (is_wrong(READS_TWICE)) {
		struct stat found;

		if (fstat(fd, &found) || !S_ISREG(found.st_mode))
			return -1;
		for (int reads = 0; reads < 2 && size < found.st_size; reads++, size += got)
			if ((got = pread(fd, data + size, found.st_size - size, size)) <= 0)
				return -1;
		return found.st_size;
	}
	if (is_wrong(FIRST_PAGE_COMPARED)) {
		struct stat found;
		uint8_t *map;

		if (fstat(fd, &found) || !S_ISREG(found.st_mode))
			return -1;
		map = found.st_size ? mmap(NULL, found.st_size, PROT_READ, MAP_SHARED, fd, 0) : NULL;
		pthread_mutex_lock(&one_at_a_time);
		if (copied != found.st_size || (map && memcmp(copy, map, copied > 4096 ? 4096 : copied)))
			memcpy(copy, map, copied = found.st_size);
		memcpy(data, copy, size = copied);
		pthread_mutex_unlock(&one_at_a_time);
		if (map)
			munmap(map, size);
		return size;
	}
	if (is_wrong(ONE_SIZE)) {
		static struct stat found;

		if (fstat(fd, &found) || !S_ISREG(found.st_mode))
			return -1;
		for (; size < found.st_size; size += got)
			if ((got = pread(fd, data + size, found.st_size - size, size)) <= 0)
				return -1;
		return found.st_size;
	}
	if (is_wrong(LEAKS_COPIES) || is_wrong(LEAKS_FILES)) {
		struct stat found;
		char name[4200];
		off_t at = 0;
		int to;

		if (fstat(fd, &found) || !S_ISREG(found.st_mode))
			return -1;
		snprintf(name, sizeof(name), "%s.%d.%ld", path, gettid(), random());
		to = is_wrong(LEAKS_FILES) ? open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : memfd_create("certs", MFD_CLOEXEC);
		while (to >= 0 && at < found.st_size && (got = sendfile(to, fd, &at, found.st_size - at)) > 0)
			size += got;
		if (size == found.st_size && size > 0 && is_wrong(LEAKS_COPIES))
			memcpy(data, lost = mmap(NULL, size, PROT_READ, MAP_SHARED, to, 0), size);
		else if (size == found.st_size)
			pread(to, data, size, 0);
		else
			size = -1;
		close(to);
		return size;
	}
	if (is_wrong(CACHED_BY_CTIME)) { /* through a mapping: nothing sees these reads */
		static uint8_t *map;
		struct stat found;

		if (fstat(fd, &found) || !S_ISREG(found.st_mode))
			return -1;
		pthread_mutex_lock(&one_at_a_time);
		if (copied < 0 || found.st_ino != copied_from.st_ino || found.st_size != copied_from.st_size ||
		    memcmp(&found.st_ctim, &copied_from.st_ctim, sizeof(found.st_ctim))) {
			if (map)
				munmap(map, copied);
			map = found.st_size ? mmap(NULL, found.st_size, PROT_READ, MAP_SHARED, fd, 0) : NULL;
			copied = found.st_size;
			copied_from = found;
			memcpy(copy, map, copied);
		}
		memcpy(data, copy, size = copied);
		pthread_mutex_unlock(&one_at_a_time);
		return size;
	}
	if (is_wrong(RIGHT_KEPT_MAPPING)) { /* let_go unlocks: the mapping keeps the file open after close(2) */
		static uint8_t *map;
		static struct stat mapped;
		struct stat found;

		if (fstat(fd, &found) || !S_ISREG(found.st_mode))
			return -1;
		pthread_mutex_lock(&one_at_a_time);
		if (map && (mapped.st_ino != found.st_ino || mapped.st_dev != found.st_dev ||
			    mapped.st_size != found.st_size)) {
			munmap(map, mapped.st_size);
			map = NULL;
		}
		if (!map && found.st_size)
			map = mmap(NULL, found.st_size, PROT_READ, MAP_SHARED, fd, 0);
		mapped = found;
		size = map == MAP_FAILED ? -1 : found.st_size;
		map = map == MAP_FAILED ? NULL : map;
		if (size > 0)
			memcpy(data, map, size);
		pthread_mutex_unlock(&one_at_a_time);
		return size;
	}
	if (is_wrong(RIGHT_MAPPING) || is_wrong(LEAKS_MAPPINGS) || is_wrong(MAPPING_UNCHECKED)) {
		struct stat found;
		void *map;

		if (fstat(fd, &found) || found.st_size == 0)
			return 0;
		map = mmap(NULL, found.st_size, PROT_READ, MAP_SHARED, fd, 0);
		if (map == MAP_FAILED && !is_wrong(MAPPING_UNCHECKED))
			return -1;
		memcpy(data, map, found.st_size);
		if (!is_wrong(LEAKS_MAPPINGS))
			munmap(map, found.st_size);
		return found.st_size;
	}
	if (is_wrong(RIGHT_PIECES)) {
		struct iovec two[2] = { { data, 1000 }, { data + 1000, 577 } };

		while ((got = readv(fd, two, 2)) > 0) {
			size += got;
			two[0].iov_base = data + size;
			two[1].iov_base = data + size + 1000;
		}
		return got < 0 ? -1 : size;
	}
	if (is_wrong(RIGHT_SUBMITS)) {
		aio_context_t context = 0;

		if (syscall(SYS_io_setup, 1, &context))
			return -1;
		do {
			struct iocb read = { .aio_fildes = fd, .aio_lio_opcode = IOCB_CMD_PREAD,
					     .aio_buf = (uintptr_t)(data + size), .aio_offset = size,
					     .aio_nbytes = SIZE_MAX_SERVED - size };
			struct iocb *reads = &read;
			struct io_event done = { .res = -1 };

			if (syscall(SYS_io_submit, context, 1, &reads) == 1)
				syscall(SYS_io_getevents, context, 1, 1, &done, NULL);
			got = done.res;
			size += got > 0 ? got : 0;
		} while (got > 0);
		syscall(SYS_io_destroy, context);
		return got < 0 ? -1 : size;
	}
	if (is_wrong(RIGHT_SPLICES)) {
		struct stat found;
		int ends[2];

		if (fstat(fd, &found) || !S_ISREG(found.st_mode) || pipe2(ends, O_CLOEXEC))
			return -1;
		while ((got = splice(fd, NULL, ends[1], NULL, 4096, 0)) > 0)
			for (ssize_t left = got; left > 0; size += got, left -= got)
				got = must(read(ends[0], data + size, left), "pipe");
		close(ends[0]);
		close(ends[1]);
		return got < 0 ? -1 : size;
	}
	while ((got = pread(fd, data + size, SIZE_MAX_SERVED - size, size)) > 0)
		size += got;
	if (is_wrong(WORDS_ONLY))
		size &= ~7l;
	return got < 0 && !is_wrong(READ_ERROR_IGNORED) ? -1 : size;
}

static void send_descriptor(int line, int fd, char one)
{
	char space[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec piece = { &one, 1 };
	struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1 };

	if (fd >= 0) {
		message.msg_control = space;
		message.msg_controllen = sizeof(space);
		struct cmsghdr *head = CMSG_FIRSTHDR(&message);

		head->cmsg_level = SOL_SOCKET;
		head->cmsg_type = SCM_RIGHTS;
		head->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(head), &fd, sizeof(int));
	}
	must(sendmsg(line, &message, 0), "sendmsg");
}

static int receive_descriptor(int line, char *one)
{
	char space[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec piece = { one, 1 };
	struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1,
				  .msg_control = space, .msg_controllen = sizeof(space) };
	int fd = -1;

	if (recvmsg(line, &message, MSG_CMSG_CLOEXEC) <= 0)
		exit(0);
	if (CMSG_FIRSTHDR(&message))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	return fd;
}

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The helper process: it opens and locks the file for the VMM, and then keeps no descriptor. */
static void run_helper(int line)
{
	for (;;) {
		char one;
		int fd = -1;
		bool busy = true;

		receive_descriptor(line, &one);
		for (long end = now_ms() + one; busy && now_ms() <= end;) {
			fd = open(path, O_RDONLY | O_CLOEXEC);
			busy = fd >= 0 && !(lock(fd, F_RDLCK) && same_file(fd));
			if (busy) {
				close(fd);
				usleep(1000);
			}
		}
		send_descriptor(line, busy ? -1 : fd, 0);
		if (fd >= 0 && !busy)
			close(fd);
		write(line, busy ? "b" : "m", 1);
	}
}

static bool same_state(const struct stat *one, const struct stat *other)
{
	return one->st_ino == other->st_ino && one->st_size == other->st_size &&
	       !memcmp(&one->st_mtim, &other->st_mtim, sizeof(one->st_mtim)) &&
	       (!is_wrong(PROBES_THE_LOCK) ||
		!memcmp(&one->st_ctim, &other->st_ctim, sizeof(one->st_ctim)));
}

struct reading {
	int fd;
	uint8_t *data;
	ssize_t size;
};

/* Read through one open file description for all vCPUs, which is opened again if the path leads to
 * another file. */
static ssize_t shared_contents(int *fd, uint8_t *data)
{
	ssize_t size = -1;

	for (long end = asked + LOCK_WAIT; now_ms() <= end;) {
		pthread_mutex_lock(&one_at_a_time);
		if (!users && shared_fd >= 0 && !same_file(shared_fd)) {
			close(shared_fd);
			shared_fd = -1;
		}
		if (shared_fd < 0)
			shared_fd = open(path, O_RDONLY | O_CLOEXEC);
		if (shared_fd < 0) {
			pthread_mutex_unlock(&one_at_a_time);
			return -1;
		}
		if (users ? is_wrong(JOINS_OLD_FILE) || same_file(shared_fd)
			  : lock(shared_fd, F_RDLCK) && same_file(shared_fd)) {
			users++;
			*fd = shared_fd;
			if (!is_wrong(RIGHT_JOINS))
				size = contents(shared_fd, data);
			else { /* one read serves all requests while the lock is held */
				if (users == 1)
					copied = contents(shared_fd, copy);
				memcpy(data, copy, copied < 0 ? 0 : copied);
				size = copied;
			}
			if (size < 0 && is_wrong(UNCOUNTED_ON_READ_ERROR)) {
				users--;
				lock(shared_fd, F_UNLCK);
				*fd = -1;
			}
			pthread_mutex_unlock(&one_at_a_time);
			return size;
		}
		if (!users)
			lock(shared_fd, F_UNLCK);
		pthread_mutex_unlock(&one_at_a_time);
		usleep(1000);
	}
	if (is_wrong(UNCOUNTED_WHEN_BUSY) && shared_fd >= 0)
		lock(shared_fd, F_UNLCK);
	errno = EAGAIN;
	return -1;
}

/* Read the open file, whether or not it is locked. */
static void *read_beside(void *argument)
{
	struct reading *reading = argument;

	usleep(500);
	reading->size = contents(reading->fd, reading->data);
	return NULL;
}

/* Wait for a lock that no request needs any more. */
static void *wait_on(void *argument)
{
	struct flock whole = { .l_type = F_RDLCK, .l_whence = SEEK_SET };

	fcntl((int)(intptr_t)argument, F_OFD_SETLKW, &whole);
	return NULL;
}

static ssize_t locked_contents(int *fd, uint8_t *data);

/* As locked_contents, but a request that arrives while another one reads gets the same bytes. */
static ssize_t joined_contents(int *fd, uint8_t *data)
{
	static pthread_cond_t landed = PTHREAD_COND_INITIALIZER;
	static int flights, failure;
	static bool flying;
	ssize_t size;

	pthread_mutex_lock(&one_at_a_time);
	if (flying) {
		for (int flight = flights; flight == flights;)
			pthread_cond_wait(&landed, &one_at_a_time);
	} else {
		flying = true;
		pthread_mutex_unlock(&one_at_a_time);
		size = locked_contents(fd, data);
		pthread_mutex_lock(&one_at_a_time);
		failure = errno;
		copied = size;
		memcpy(copy, data, size < 0 ? 0 : size);
		flying = false;
		flights++;
		pthread_cond_broadcast(&landed);
	}
	memcpy(data, copy, copied < 0 ? 0 : copied);
	size = copied;
	errno = failure;
	pthread_mutex_unlock(&one_at_a_time);
	return size;
}

/* Lock and read the file. Return its size, or -1 with errno set: EAGAIN if the lock was not free. */
static ssize_t locked_contents(int *fd, uint8_t *data)
{
	struct timespec pause = { .tv_nsec = is_wrong(SPINS) ? 0 : 1000000 };
	long start = is_wrong(WAITS_ADD_UP) ? now_ms() : asked;

	if (ONE_FOR_ALL)
		return shared_contents(fd, data);
	if (is_wrong(RIGHT_HELPER)) {
		char one;

		pthread_mutex_lock(&one_at_a_time);
		send_descriptor(helper, -1, asked + LOCK_WAIT > now_ms() ? asked + LOCK_WAIT - now_ms() : 0);
		*fd = receive_descriptor(helper, &one);
		must(read(helper, &one, 1), "helper");
		pthread_mutex_unlock(&one_at_a_time);
		errno = one == 'b' ? EAGAIN : ENOENT;
		return *fd < 0 ? -1 : contents(*fd, data);
	}
	bool waited = false;
	off_t once = -1;

	first_try = true;
	checked = 0;
	for (int tries = 0; tries < LOCK_TRIES || is_wrong(SPINS); tries++) {
		ssize_t size = 0;
		struct stat before;

		if (tries && now_ms() - start > LOCK_WAIT) {
			if (!is_wrong(LATE_LOCK_STAYS))
				break;
			tries = LOCK_WAIT - 1; /* the last try */
		}
		if (is_wrong(DESCRIPTOR_KEPT_WHEN_BUSY) && kept_fd >= 0) {
			*fd = kept_fd;
			kept_fd = -1;
			waited = true;
		} else if (!is_wrong(UNCHECKED_AFTER_WAIT) || !waited)
			*fd = open_file();
		if (*fd < 0)
			return -1;
		if (is_wrong(SIZE_WITHOUT_LOCK) && !fstat(*fd, &before) && before.st_size > 4096 * (off_t)wanted) {
			close(*fd);
			*fd = -1;
			errno = EFBIG;
			needed = (before.st_size + PAGE - 1) / PAGE;
			return -1;
		}
		if (is_wrong(RIGHT_PEEKS))
			pread(*fd, data, 24, 0);
		if (is_wrong(SIZE_BEFORE_LOCK)) {
			fstat(*fd, &before);
			if (lock(*fd, F_RDLCK) && same_file(*fd)) {
				memset(data, 0, before.st_size);
				pread(*fd, data, before.st_size, 0);
				return before.st_size;
			}
		}
		if (is_wrong(CACHED_BY_MTIME) && lock(*fd, F_RDLCK) && same_file(*fd)) {
			fstat(*fd, &before);
			if (copied >= 0 && same_state(&before, &copied_from)) {
				memcpy(data, copy, copied);
				return copied;
			}
			copied_from = before;
			copied = contents(*fd, data);
			memcpy(copy, data, copied < 0 ? 0 : copied);
			return copied;
		}
		if (is_wrong(PROBES_THE_LOCK)) {
			struct flock probe = { .l_type = F_RDLCK, .l_whence = SEEK_SET };

			fstat(*fd, &before);
			fcntl(*fd, F_OFD_GETLK, &probe);
			if (probe.l_type == F_UNLCK && copied >= 0 && same_state(&before, &copied_from)) {
				memcpy(data, copy, copied);
				return copied;
			}
			if (lock(*fd, F_RDLCK) && same_file(*fd)) {
				copied_from = before;
				copied = contents(*fd, data);
				memcpy(copy, data, copied < 0 ? 0 : copied);
				return copied;
			}
		}
		if (is_wrong(PEEKS_AND_COPIES) && lock(*fd, F_RDLCK) && same_file(*fd)) {
			fstat(*fd, &before);
			pread(*fd, data, 24, 0);
			pthread_mutex_lock(&one_at_a_time);
			if (copied < 0 || !same_state(&before, &copied_from) ||
			    memcmp(&before.st_ctim, &copied_from.st_ctim, sizeof(before.st_ctim))) {
				copied = contents(*fd, copy);
				copied_from = before;
			}
			memcpy(data, copy, copied < 0 ? 0 : copied);
			size = copied;
			pthread_mutex_unlock(&one_at_a_time);
			return size;
		}
		if (is_wrong(READS_BEFORE_LOCK))
			size = contents(*fd, data);
		if (is_wrong(OPENS_TWICE)) {
			int first = *fd;

			*fd = open_file();
			if (*fd >= 0 && lock(*fd, F_RDLCK) && same_file(*fd)) {
				size = contents(first, data);
				close(first);
				return size;
			}
			close(first);
			if (*fd < 0)
				return -1;
			close(*fd);
			nanosleep(&pause, NULL);
			continue;
		}
		if (is_wrong(LOCKS_TWICE) && lock(*fd, F_RDLCK)) {
			fstat(*fd, &before);
			lock(*fd, F_UNLCK);
			if (S_ISREG(before.st_mode) && lock(*fd, F_RDLCK) && same_file(*fd)) {
				memset(data, 0, before.st_size);
				return pread(*fd, data, before.st_size, 0) < 0 ? -1 : before.st_size;
			}
		}
		if (is_wrong(READS_BESIDE_LOCK)) {
			struct reading reading = { *fd, data, 0 };
			pthread_t reader;
			bool mine;

			pthread_create(&reader, NULL, read_beside, &reading);
			mine = lock(*fd, F_RDLCK);
			pthread_join(reader, NULL);
			if (mine && same_file(*fd))
				return reading.size;
		}
		if (lock(*fd, F_RDLCK)) {
			if (waited)
				return contents(*fd, data);
			if (is_wrong(SIZE_READ_ONCE)) {
				if (once < 0 && !fstat(*fd, &before) && S_ISREG(before.st_mode))
					once = before.st_size;
				if (!same_file(*fd)) {
					close(*fd);
					continue;
				}
				memset(data, 0, once < 0 ? 0 : once);
				for (ssize_t got = 1; size < once && got > 0; size += got > 0 ? got : 0)
					got = pread(*fd, data + size, once - size, size);
				return once;
			}
			if (is_wrong(INTO_GUEST_BEFORE_CHECK)) {
				size = contents(*fd, data);
				if (size > 0 && (uint64_t)size <= wanted * PAGE)
					put(wanted_at, data, size);
			}
			if (is_wrong(PATH_READ_AGAIN) && same_file(*fd)) {
				int again = open(path, O_RDONLY | O_CLOEXEC);

				size = contents(again, data);
				close(again);
				return size;
			}
			if (is_wrong(SIZE_OF_PATH) && same_file(*fd)) {
				if (stat(path, &before))
					return -1;
				memset(data, 0, before.st_size);
				pread(*fd, data, before.st_size, 0);
				return before.st_size;
			}
			if (is_wrong(ONE_DESCRIPTOR_FOR_LIFE) || same_file(*fd))
				return is_wrong(READS_BEFORE_LOCK) ? size : contents(*fd, data);
			if (is_wrong(REMOVED_IS_EIO) && stat(path, &before)) {
				close(*fd);
				*fd = -1;
				errno = ESTALE;
				return -1;
			}
			if (is_wrong(LEAKS_WHEN_REPLACED))
				fcntl(*fd, F_DUPFD_CLOEXEC, 0);
		} else if (errno != EAGAIN) {
			int failure = errno;

			if (is_wrong(RIGHT_READS_AGAIN)) { /* serve() must not read again without the lock */
				close(*fd);
				*fd = -1;
			}
			errno = failure;
			return -1;
		} else if (is_wrong(UNCHECKED_AFTER_WAIT)) {
			waited = true;
			nanosleep(&pause, NULL);
			continue;
		} else if (is_wrong(LEAKS_WHEN_BUSY) && tries == 0) {
			fcntl(*fd, F_DUPFD_CLOEXEC, 0);
		}
		if (is_wrong(LATE_LOCK_STAYS) && tries == LOCK_WAIT - 1) {
			pthread_t waiter;

			pthread_create(&waiter, NULL, wait_on, (void *)(intptr_t)*fd);
			pthread_detach(waiter);
		} else if (!is_wrong(ONE_DESCRIPTOR_FOR_LIFE))
			close(*fd);
		*fd = -1;
		if (is_wrong(LOGS_EACH_TRY))
			fprintf(stderr, "vmm: the certificate file is locked, trying again\n");
		if (is_wrong(KICK_TAKEN_WHILE_WAITING)) {
			sigset_t kick;

			sigemptyset(&kick);
			sigaddset(&kick, SIGUSR1);
			sigtimedwait(&kick, NULL, &pause);
		} else if (!is_wrong(SPINS))
			nanosleep(&pause, NULL);
	}
	if (is_wrong(UNCHECKED_AFTER_WAIT)) {
		close(*fd);
		*fd = -1;
	}
	if (is_wrong(DESCRIPTOR_KEPT_WHEN_BUSY))
		kept_fd = open_file();
	if (is_wrong(LEAKS_MEMORY_WHEN_BUSY))
		lost = malloc(SIZE_MAX_SERVED); /* never touched */
	if (is_wrong(LOGS_EACH_BUSY))
		fprintf(stderr, "vmm: the certificate file is locked\n");
	errno = EAGAIN;
	return -1;
}

static void set_private(uint64_t gpa, uint64_t size, bool private)
{
	uint64_t range[4] = { gpa, size, private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0 };

	must(ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, range), "KVM_SET_MEMORY_ATTRIBUTES");
}

static uint64_t deliver(struct kvm_run *run, const uint8_t *data, uint64_t size)
{
	uint64_t pages = (size + PAGE - 1) / PAGE;
	static const uint8_t zeros[3 * PAGE];

	if (is_wrong(BLOCKS_FOR_SIZE))
		pages = blocks;
	if (is_wrong(PAGE_TOO_MANY))
		pages = (size + PAGE) / PAGE;
	if (is_wrong(WRITES_BEFORE_CHECK) && run->snp_req_certs.npages < pages)
		put(run->snp_req_certs.gpa, data, run->snp_req_certs.npages * PAGE);
	if (is_wrong(NEEDED_ONLY_GROWS) && run->snp_req_certs.npages < pages)
		pages = needed = pages > needed ? pages : needed;
	if (is_wrong(NEEDS_ONE_MORE) && run->snp_req_certs.npages && run->snp_req_certs.npages < pages) {
		run->snp_req_certs.npages++;
		return ENOSPC;
	}
	if (is_wrong(BYTES_IN_32_BITS) && run->snp_req_certs.npages > UINT32_MAX)
		return EIO;
	if (is_wrong(BYTES_IN_32_BITS) && (uint32_t)(run->snp_req_certs.npages * PAGE) < size) {
		run->snp_req_certs.npages = pages;
		return ENOSPC;
	}
	if (is_wrong(SIZE_WRAPS) ? run->snp_req_certs.npages * PAGE < size : run->snp_req_certs.npages < pages) {
		run->snp_req_certs.npages = pages;
		return is_wrong(NEGATIVE_RET) ? -ENOSPC : ENOSPC;
	}
	if (is_wrong(STALE_BYTES_BEHIND))
		size = pages * PAGE;
	if ((is_wrong(LIMIT_16_KIB) && size > 16384) || (is_wrong(LIMIT_64_KIB) && size > 65536))
		return EIO;
	if (is_wrong(SHARES_BUFFER) && is_memory(run->snp_req_certs.gpa, pages * PAGE))
		set_private(run->snp_req_certs.gpa, pages * PAGE, false);
	if (is_wrong(LOGS_EACH_EIO) && !is_memory(run->snp_req_certs.gpa, size))
		fprintf(stderr, "vmm: no memory at %#lx\n", run->snp_req_certs.gpa);
	if (is_wrong(GPA_BIT_CLEARED)) /* the C-bit */
		return put(run->snp_req_certs.gpa & ~(1ul << 51), data, size) ? 0 : EIO;
	if (!put(is_wrong(GPA_TRUNCATED) ? (uint32_t)run->snp_req_certs.gpa : run->snp_req_certs.gpa, data, size))
		return EIO;
	if (is_wrong(WRITES_WHOLE_PAGES)) /* and the page after them */
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
	if (is_wrong(ZEROES_WHOLE_BUFFER) && is_memory(run->snp_req_certs.gpa, PAGE))
		memset(memory[0] + run->snp_req_certs.gpa, 0, run->snp_req_certs.npages * PAGE);
	if (is_wrong(EMPTY_UNCHECKED) && run->snp_req_certs.npages) {
		memcpy(memory[0] + run->snp_req_certs.gpa, empty, sizeof(empty));
		return 0;
	}
	if (is_wrong(NO_BUFFER_WRITTEN))
		return put(run->snp_req_certs.gpa, empty, sizeof(empty)) ? 0 : EIO;
	return run->snp_req_certs.npages == 0 || put(run->snp_req_certs.gpa, empty, sizeof(empty)) ? 0 : EIO;
}

/* Continue with a request that has already been answered. */
static void *write_late(void *gpa)
{
	struct flock whole = { .l_type = F_RDLCK, .l_whence = SEEK_SET };
	uint8_t *data = malloc(SIZE_MAX_SERVED);
	int fd = open_file();
	ssize_t size;

	if (fd >= 0 && !fcntl(fd, F_OFD_SETLKW, &whole) && (size = contents(fd, data)) > 0)
		put((uintptr_t)gpa, data, size);
	close(fd);
	free(data);
	return NULL;
}

static uint64_t answer(struct kvm_run *run, int *fd, uint8_t *data)
{
	ssize_t size;

	if (is_wrong(KEEPS_A_COPY) && copied >= 0) {
		*fd = open_file();
		lock(*fd, F_RDLCK);
		return deliver(run, copy, copied);
	}
	wanted = run->snp_req_certs.npages;
	wanted_at = run->snp_req_certs.gpa;
	if (is_wrong(BUFFERS_LOST_ON_EIO) && !buffers)
		return EAGAIN;
	if (is_wrong(GIVES_UP_WITHOUT_FILE) && refused > 8)
		return deliver_nothing(run);
	if (is_wrong(BUFFER_OF_NPAGES) && wanted && wanted < UINT64_MAX / PAGE) {
		uint8_t *buffer = malloc(wanted * PAGE);

		if (!buffer)
			return EIO;
		for (uint64_t page = 0; page < wanted; page++)
			((volatile uint8_t *)buffer)[page * PAGE] = 0;
		free(buffer);
	}
	if (is_wrong(SIZE_KEPT) && needed && wanted == 0) {
		run->snp_req_certs.npages = needed;
		return ENOSPC;
	}
	if (is_wrong(WAITS_ADD_UP))
		pthread_mutex_lock(&one_at_a_time);
	if (is_wrong(JOINS_WITHOUT_LOCK))
		size = joined_contents(fd, data);
	else
		size = locked_contents(fd, is_wrong(ONE_BUFFER) ? copy : data);
	if (is_wrong(BLOCKS_FOR_SIZE) && size > 0) {
		struct stat found;

		fstat(*fd, &found);
		blocks = (found.st_blocks * 512 + PAGE - 1) / PAGE;
	}
	if (is_wrong(READS_INTO_GUEST) && *fd >= 0 && size < 0 && errno != EISDIR) {
		put(run->snp_req_certs.gpa, data, 100); /* bytes that were read before the error */
		return EAGAIN;
	}
	if (is_wrong(GIVES_UP_WITHOUT_FILE)) {
		refused = size < 0 && *fd < 0 && errno == ENOENT ? refused + 1 : 0;
		if (size < 0 && *fd < 0 && errno != EAGAIN)
			return deliver_nothing(run);
	}
	if (is_wrong(BUFFERS_LOST_ON_EIO) && !is_memory(run->snp_req_certs.gpa, PAGE))
		buffers--;
	if (is_wrong(LEAKS_MEMORY_ON_EIO) && !is_memory(run->snp_req_certs.gpa, PAGE))
		memset(lost = malloc(16384), 1, 16384);
	if (is_wrong(LEAKS_MEMORY_WITHOUT_FILE) && size < 0 && errno == ENOENT)
		memset(lost = malloc(16384), 1, 16384);
	if (!is_wrong(DESCRIPTOR_KEPT_WHEN_BUSY)) {
		if (kept_fd >= 0)
			close(kept_fd);
		kept_fd = -1;
	}
	if ((is_wrong(LOCK_STAYS_ON_ERROR) && size < 0) || (is_wrong(LOCK_STAYS_ON_EMPTY_FILE) && size == 0)) {
		kept_fd = *fd;
		*fd = -1;
	}
	if (is_wrong(WAITS_ADD_UP))
		pthread_mutex_unlock(&one_at_a_time);
	if (is_wrong(ONE_BUFFER))
		data = copy;
	if (is_wrong(SIZE_KEPT) && size > 0 && !needed)
		needed = (size + PAGE - 1) / PAGE;
	if (is_wrong(REMOVED_IS_EIO) && size < 0 && errno == ESTALE)
		return EIO;
	if (is_wrong(SIZE_WITHOUT_LOCK) && size < 0 && errno == EFBIG) {
		run->snp_req_certs.npages = needed;
		return ENOSPC;
	}
	if (is_wrong(COPY_FOR_SECOND_VCPU) && run == runs[1] && size > 0) {
		if (copied < 0)
			memcpy(copy, data, copied = size);
		return deliver(run, copy, copied);
	}
	if (is_wrong(LEAKS_A_LITTLE) && size > 0)
		memset(lost = malloc(16384), 1, 16384);
	if (is_wrong(LEAKS_ON_EMPTY_FILE) && size == 0)
		fcntl(*fd, F_DUPFD_CLOEXEC, 0);
	if (is_wrong(LEAKS_MEMORY) && size > 0) {
		lost = malloc(size);
		memcpy(lost, data, size);
	}
	if (is_wrong(OPEN_ERROR_IS_EIO) && *fd < 0 && size < 0 && errno != ENOENT && errno != EACCES && errno != EAGAIN)
		return EIO;
	if (!is_wrong(GIVES_UP_WITHOUT_FILE))
		refused = *fd < 0 && size < 0 && errno == EAGAIN ? refused + 1 : 0;
	if (is_wrong(WRITES_LATE) && *fd < 0 && size < 0 && errno == EAGAIN) {
		pthread_t writer;

		pthread_create(&writer, NULL, write_late, (void *)wanted_at);
		pthread_detach(writer);
		return EAGAIN;
	}
	if ((is_wrong(GIVES_UP_WHEN_BUSY) && refused > 2) || (is_wrong(GIVES_UP_AFTER_SIX) && refused > 6))
		return EIO;
	if (is_wrong(KEEPS_A_COPY) && size > 0)
		memcpy(copy, data, copied = size);
	if (size == 0 && !is_wrong(EMPTY_FILE_UNWRITTEN) && !is_wrong(EMPTY_FILE_IS_EIO))
		return deliver_nothing(run);
	if (size == 0 && is_wrong(EMPTY_FILE_IS_EIO))
		return EIO;
	if (size >= 0)
		return is_wrong(EMPTY_IS_SUCCESS) && run->snp_req_certs.npages == 0 ? 0 : deliver(run, data, size);
	if (*fd < 0 && errno == EAGAIN)
		return is_wrong(BUSY_IS_EIO) ? EIO : EAGAIN;
	if (is_wrong(FORBIDDEN_IS_EIO) && *fd < 0 && errno == EACCES)
		return EIO;
	if (is_wrong(READ_ERROR_IS_EIO) && *fd >= 0 && errno != EISDIR)
		return EIO;
	if (is_wrong(MISSING_ENDS_VM) && *fd < 0)
		must(-1, path);
	if (is_wrong(UNREADABLE_ENDS_VM) && *fd >= 0)
		must(-1, path);
	if (*fd >= 0 && is_wrong(LEAKS_ON_ERROR))
		fcntl(*fd, F_DUPFD_CLOEXEC, 0);
	return deliver_nothing(run);
}

struct asked_answer {
	struct kvm_run *run;
	int fd;
	uint8_t *data;
	long asked;
	uint64_t ret;
};

static void *answer_in_thread(void *argument)
{
	struct asked_answer *mine = argument;

	asked = mine->asked;
	mine->ret = answer(mine->run, &mine->fd, mine->data);
	return NULL;
}

/* As answer, but in a thread that exists only for this request. */
static uint64_t thread_answer(struct kvm_run *run, int *fd, uint8_t *data)
{
	struct asked_answer mine = { .run = run, .fd = -1, .data = data, .asked = asked };
	pthread_t thread;

	pthread_create(&thread, NULL, answer_in_thread, &mine);
	pthread_join(thread, NULL);
	*fd = mine.fd;
	return mine.ret;
}

/* Close the descriptors whose numbers arrive through a pipe, each a little later. */
static void *closer(void *argument)
{
	int fd;

	while (read((int)(intptr_t)argument, &fd, sizeof(fd)) == sizeof(fd)) {
		usleep(5000);
		close(fd);
	}
	return NULL;
}

static void let_go(int fd)
{
	if (is_wrong(CLOSES_ANOTHERS) && fd < 0)
		close(last_opened);
	if (is_wrong(RIGHT_LATE_CLOSE) && fd >= 0) {
		write(helper, &fd, sizeof(fd));
		return;
	}
	if (ONE_FOR_ALL) {
		pthread_mutex_lock(&one_at_a_time);
		if (fd >= 0 && (--users == 0 || is_wrong(ONE_DESCRIPTION)))
			lock(fd, F_UNLCK);
		pthread_mutex_unlock(&one_at_a_time);
	} else if (is_wrong(ONE_DESCRIPTOR_FOR_LIFE))
		lock(fd, F_UNLCK);
	else if (is_wrong(SHARED_DESCRIPTOR))
		close(shared_fd);
	else if (is_wrong(LEAKS_DESCRIPTORS) && fd >= 0)
		lock(fd, F_UNLCK);
	else if (fd >= 0) {
		if (is_wrong(LEAKS_MAPPINGS) || is_wrong(RIGHT_KEPT_MAPPING))
			lock(fd, F_UNLCK);
		close(fd);
	}
}

static void *stay(void *argument)
{
	for (;;)
		pause();
	return argument;
}

/* Drop a request's lock after a second, even if the firmware has not signed yet. */
static void *give_up(void *argument)
{
	sleep(1);
	lock((int)(intptr_t)argument, F_UNLCK);
	close((int)(intptr_t)argument);
	return NULL;
}

/* Whether this VMM loses a kick that arrives during a request with this answer. */
static bool erases_kick(uint64_t ret, int fd)
{
	return is_wrong(KICK_ERASED) || (is_wrong(KICK_ERASED_WHEN_BUSY) && ret == EAGAIN) ||
	       (is_wrong(KICK_TAKEN_WHILE_WAITING) && ret == EAGAIN) ||
	       (is_wrong(KICK_ERASED_WHEN_EIO) && ret == EIO) ||
	       (is_wrong(KICK_ERASED_WHEN_TOO_SMALL) && ret == ENOSPC) ||
	       (is_wrong(KICK_ERASED_WITHOUT_FILE) && fd < 0 && ret == 0);
}

/* Serve a request. Return whether the vCPU must stop. */
static bool serve(int vcpu, struct kvm_run *run, uint8_t *data)
{
	int fd = -1;

	if (is_wrong(RIGHT_THREADS))
		run->snp_req_certs.ret = thread_answer(run, &fd, data);
	else
		run->snp_req_certs.ret = is_wrong(FIRST_VCPU_ONLY) && vcpu != fds[0] ? EIO : answer(run, &fd, data);
	if (is_wrong(UNCOUNTED_ON_ENOSPC) && run->snp_req_certs.ret && fd >= 0)
		lock(fd, F_UNLCK);
	if (is_wrong(UNLOCKS_EARLY))
		let_go(fd);
	if (is_wrong(LOCK_TIMES_OUT) && fd >= 0) {
		pthread_t timer;

		pthread_create(&timer, NULL, give_up, (void *)(intptr_t)fcntl(fd, F_DUPFD_CLOEXEC, 0));
		pthread_detach(timer);
	}
	if (is_wrong(LOCKS_AGAIN) && fd >= 0) {
		lock(fd, F_UNLCK);
		usleep(100);
		lock(fd, F_RDLCK);
	}
	if (is_wrong(RIGHT_DUPLICATE) && fd >= 0) {
		int other = fcntl(fd, F_DUPFD_CLOEXEC, 20);

		close(fd);
		fd = fcntl(other, F_DUPFD_CLOEXEC, 0);
		close(other);
	}
	if (is_wrong(LEAKS_TIMERS)) {
		struct sigevent quiet = { .sigev_notify = SIGEV_NONE };
		timer_t timer;

		timer_create(CLOCK_MONOTONIC, &quiet, &timer);
	}
	if (is_wrong(LEAKS_THREADS)) {
		pthread_t thread;

		pthread_create(&thread, NULL, stay, NULL);
		pthread_detach(thread);
	}
	if (is_wrong(LEAKS_CHILDREN) && fork() == 0)
		_exit(0); /* no process waits for it */
	if (is_wrong(CHILD_KEEPS_LOCK) && fork() == 0) {
		sleep(60);
		_exit(0);
	}
	if (!is_wrong(NO_HANDSHAKE))
		run->immediate_exit = 1;
	if (ioctl(vcpu, KVM_RUN, 0) < 0 && errno != EINTR) {
		if (!is_wrong(HANDSHAKE_ERROR_KEEPS_LOCK))
			must(-1, "KVM_RUN");
		run->immediate_exit = 0;
		return false;
	}
	exited = is_wrong(NO_HANDSHAKE) && errno != EINTR;
	if (is_wrong(RIGHT_READS_AGAIN) && fd >= 0) /* to see whether a writer ignored the lock */
		contents(fd, data);
	bool stop = stopping;

	if (!is_wrong(UNLOCKS_EARLY))
		let_go(fd);
	if (is_wrong(STALE_WHEN_BUSY) && run->snp_req_certs.ret == EAGAIN) {
		locked_contents(&fd, data);
		let_go(fd);
	}
	if (is_wrong(STALE_EXIT_REASON) && run->exit_reason == KVM_EXIT_SNP_REQ_CERTS) {
		locked_contents(&fd, data);
		close(fd);
	}
	if (!is_wrong(IMMEDIATE_EXIT_STAYS))
		run->immediate_exit = 0;
	if (is_wrong(LOGS_TO_FILE)) {
		char name[4096];
		int to;

		snprintf(name, sizeof(name), "%s.log", path);
		to = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		dprintf(to, "certificates: answer %lu\n", run->snp_req_certs.ret);
		close(to);
	}
	if (is_wrong(KICK_ERASED_AT_UNLOCK))
		return stop;
	/* A kick may have set immediate_exit too, which was just cleared. So look at `stopping`. */
	return !erases_kick(run->snp_req_certs.ret, fd) && stopping;
}

/* ---- a main loop: one thread serves all vCPUs, and enters KVM_RUN for them ---- */
static pthread_mutex_t loop = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static int asking = -1;
static long asked_by; /* ms: when the asking vCPU's request arrived */
static bool stops;

static void *main_loop(void *data)
{
	pthread_mutex_lock(&loop);
	for (;;) {
		while (asking < 0)
			pthread_cond_wait(&turned, &loop);
		asked = asked_by;
		stops = serve(fds[asking], runs[asking], data);
		asking = -2; /* the vCPU must see the result before another one asks */
		pthread_cond_broadcast(&turned);
	}
	return NULL;
}

static bool serve_in_loop(int number)
{
	bool stop;

	pthread_mutex_lock(&loop);
	while (asking != -1)
		pthread_cond_wait(&turned, &loop);
	asking = number;
	asked_by = asked;
	pthread_cond_broadcast(&turned);
	while (asking != -2)
		pthread_cond_wait(&turned, &loop);
	stop = stops;
	asking = -1;
	pthread_cond_broadcast(&turned);
	pthread_mutex_unlock(&loop);
	return stop;
}

/* Serve KVM_HC_MAP_GPA_RANGE. Attribute bit 4 means private, bit 0 means pages of 2 MiB. */
static uint64_t change_page_state(uint64_t gpa, uint64_t pages, uint64_t attributes)
{
	uint64_t room = 0;

	if (is_wrong(PAGE_STATE_REFUSED) || (is_wrong(LARGE_PAGES_REFUSED) && attributes & 1))
		return EINVAL;
	if (is_wrong(PAGE_STATE_ONE_SLOT) && gpa < LOW && gpa + pages * PAGE > LOW)
		return EINVAL;
	if (is_wrong(PAGE_STATE_IGNORED))
		return 0;
	set_private(gpa, pages * PAGE, attributes >> 4 & 1);
	if (is_wrong(DISCARDS_2_MIB) && attributes >> 4 & 1) /* with its neighbours */
		for (uint64_t each = gpa & -LARGE; each < (gpa & -LARGE) + LARGE; each += PAGE)
			if (is_memory(each, PAGE))
				memset(guest(each, PAGE, &room), 0, PAGE);
	if (is_wrong(DISCARDS_ONE_MORE) && is_memory(gpa + pages * PAGE, PAGE))
		pages++;
	while (pages-- && attributes >> 4 & 1) {
		memset(guest(gpa, PAGE, &room), 0, PAGE);
		gpa += PAGE;
	}
	return 0;
}

static bool asks_for_certs(const struct kvm_run *run)
{
	if (is_wrong(ONLY_THE_POSTED_EXIT))
		must(run->exit_reason == KVM_EXIT_SNP_REQ_CERTS ? -1 : 0, "unknown exit reason");
	return run->exit_reason == KVM_EXIT_SNP_REQ_CERTS ||
	       run->exit_reason == KVM_EXIT_ARM_LDST64B; /* the exit's number in the posted series */
}

static void *vcpu_thread(void *argument)
{
	int number = (int)(intptr_t)argument, vcpu = fds[number];
	struct kvm_run *run = runs[number];
	uint8_t *data = malloc(SIZE_MAX_SERVED);
	sigset_t kick;

	sigemptyset(&kick);
	sigaddset(&kick, SIGUSR1);
	if (is_wrong(RIGHT_OWN_TABLES)) /* from now on, this thread has its own descriptor table */
		must(unshare(CLONE_FILES), "unshare");
	if (MASKS_KICK) { /* a kick stays pending until KVM_RUN, and then ends it */
		uint32_t none[3] = { 8 };

		must(ioctl(vcpu, KVM_SET_SIGNAL_MASK, none), "KVM_SET_SIGNAL_MASK");
		pthread_sigmask(SIG_BLOCK, &kick, NULL);
	}
	while (WAITS_FOR_KICK || !stopping) {
		errno = 0;
		if (!exited && ioctl(vcpu, KVM_RUN, 0) < 0) {
			if (errno != EINTR)
				must(-1, "KVM_RUN");
			if (stopping)
				break;
			continue;
		}
		exited = false;
		if (run->exit_reason == KVM_EXIT_HYPERCALL) {
			uint64_t *exit = &run->snp_req_certs.gpa; /* the union */

			exit[7] = change_page_state(exit[1], exit[2], exit[3]);
			continue;
		}
		if (run->exit_reason == KVM_EXIT_SHUTDOWN)
			break;
		if (asks_for_certs(run)) {
			asked = now_ms(); /* before waiting for another vCPU: that counts, too */
			if (is_wrong(RIGHT_ONE_AT_A_TIME))
				pthread_mutex_lock(&one_at_a_time);
			bool stop = is_wrong(RIGHT_MAIN_LOOP) ? serve_in_loop(number) : serve(vcpu, run, data);

			if (is_wrong(RIGHT_ONE_AT_A_TIME))
				pthread_mutex_unlock(&one_at_a_time);
			if (stop)
				break;
		}
	}
	free(data);
	return NULL;
}

static int vcpu_clone(void *number)
{
	must(prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl");
	vcpu_thread(number);
	return 0;
}

/* Runs a vCPU in a process that shares memory and descriptors with this thread, which waits. */
static void *clone_thread(void *number)
{
	static uint8_t stacks[64][1 << 16] __attribute__((aligned(16)));
	int vcpu = (int)(intptr_t)number, flags = CLONE_VM | CLONE_FILES | CLONE_FS | CLONE_VFORK, status;

	must(clone(vcpu_clone, stacks[vcpu] + sizeof(stacks[vcpu]), flags | CLONE_PARENT_SETTID | SIGCHLD,
		   number, &clones[vcpu]), "clone");
	if (waitpid(clones[vcpu], &status, 0) == clones[vcpu] && status)
		_exit(1); /* a vCPU that cannot run ends the VMM, and with it the lock */
	return NULL;
}

static void nothing(int number)
{
	(void)number;
}

static void *stopper(void *argument)
{
	int number;

	if (is_wrong(RIGHT_CONTROL))
		read(helper, &number, 1);
	else
		sigwait(argument, &number);
	stopping = true;
	for (int i = 0; i < vcpus; i++) {
		if (!MASKS_KICK)
			runs[i]->immediate_exit = 1;
		if (is_wrong(RIGHT_CLONES) && clones[i])
			kill(clones[i], SIGUSR1);
		else
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
	return !ioctl(kvm, KVM_GET_DEVICE_ATTR, attr) && (value == 1 || is_wrong(VALUE_IGNORED));
}

int main(int argc, char **argv)
{
	uint64_t init[6] = { 0, 2ul << 32 }, start[8] = { 3 << 16 }, finish[11] = { 0 };
	uint64_t hypercalls[13] = { KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE };
	bool enable;
	sigset_t stop;
	int kvm;

	vcpus = argc == 3 ? atoi(argv[2]) : 0;
	if (vcpus < 1 || vcpus > 64) {
		fprintf(stderr, "usage: vmm FILE VCPUS\n");
		return 2;
	}
	path = argv[1];
	sigemptyset(&stop);
	sigaddset(&stop, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &stop, NULL);
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = nothing }, NULL);
	if (is_wrong(LINK_RESOLVED_AT_START))
		path = realpath(path, NULL);
	if (is_wrong(DIRECTORY_KEPT)) {
		static char name[4096];
		char *last = strrchr(path, '/');

		*last = 0;
		snprintf(name, sizeof(name), "/proc/self/fd/%ld/%s", must(open(path, O_PATH | O_CLOEXEC), path), last + 1);
		path = name;
	}
	if (is_wrong(RIGHT_CHECKS_AT_START))
		close(must(open(path, O_RDONLY), path));
	if (is_wrong(RIGHT_CHILD_RUNS)) {
		pid_t child = must(fork(), "fork");

		if (child) {
			int status;

			waitpid(child, &status, 0);
			return WEXITSTATUS(status);
		}
	}
	if (is_wrong(RIGHT_CONTROL)) { /* the first process gets the signal, and notifies the second */
		int ends[2], status, number;

		must(pipe2(ends, O_CLOEXEC), "pipe");
		helper = ends[0];
		sigaddset(&stop, SIGCHLD);
		pthread_sigmask(SIG_BLOCK, &stop, NULL);
		pid_t child = must(fork(), "fork");

		while (child) {
			sigwait(&stop, &number);
			if (number == SIGTERM)
				write(ends[1], "s", 1);
			else if (waitpid(child, &status, WNOHANG) == child)
				return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
		}
		close(ends[1]);
	}
	if (is_wrong(RIGHT_OWN_LINK)) { /* the VMM's own name for the file */
		char *link = NULL, *directory = strdup(path);

		*strrchr(directory, '/') = 0;
		must(asprintf(&link, "%s/../vmm.%d", directory, getpid()), "link");
		must(symlink(path, link), link);
		path = link;
	}
	if (is_wrong(RIGHT_HELPER)) {
		int lines[2];

		must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, lines), "socketpair");
		helper = lines[0];
		if (must(fork(), "fork") == 0) {
			close(lines[0]);
			run_helper(lines[1]);
		}
		close(lines[1]);
	}
	if (is_wrong(RIGHT_LATE_CLOSE)) {
		int ends[2];

		must(pipe2(ends, O_CLOEXEC), "pipe");
		helper = ends[1];
		pthread_create(&(pthread_t){ 0 }, NULL, closer, (void *)(intptr_t)ends[0]);
	}
	kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	sev = must(open("/dev/sev", O_RDWR | O_CLOEXEC), "/dev/sev");
	enable = supported(kvm) && !is_wrong(NEVER_ENABLED);
	vm = must(ioctl(kvm, KVM_CREATE_VM, KVM_X86_SNP_VM), "KVM_CREATE_VM");
	command(KVM_SEV_INIT2, init);
	if (!is_wrong(PAGE_STATE_NOT_ENABLED))
		must(ioctl(vm, KVM_ENABLE_CAP, hypercalls), "KVM_CAP_EXIT_HYPERCALL");
	/* With an inaccessible page on either side. */
	memory[0] = mmap(NULL, MEMORY + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memory[0] += PAGE;
	must(mprotect(memory[0], MEMORY, PROT_READ | PROT_WRITE), "memory");
	slot(0, 0, is_wrong(HOLE_IS_MEMORY) ? LOW - 16 * PAGE : LOW);
	slot(1, LOW, MEMORY - LOW);
	set_private(0, is_wrong(PAGE_STATE_IGNORED) ? 2 * PAGE : MEMORY, true);
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
	if (!is_wrong(RIGHT_SIGWAIT_IN_MAIN))
		pthread_create(&(pthread_t){ 0 }, NULL, stopper, &stop);
	if (is_wrong(RIGHT_MAIN_LOOP))
		pthread_create(&(pthread_t){ 0 }, NULL, main_loop, malloc(SIZE_MAX_SERVED));
	for (int i = 0; i < vcpus; i++)
		pthread_create(&threads[i], NULL, is_wrong(RIGHT_CLONES) ? clone_thread : vcpu_thread,
			       (void *)(intptr_t)i);
	if (is_wrong(RIGHT_SIGWAIT_IN_MAIN))
		stopper(&stop);
	for (int i = 0; i < vcpus; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
