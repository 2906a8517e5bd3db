/* SPDX-License-Identifier: Apache-2.0
 *
 * A program whose arguments are steps. It takes one step after the other, most on the
 * descriptor of the last successful open, and prints the result of each: usually a line
 * with the call's result, or with -errno.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define API_VERSION 0xAE00
#define CREATE_PLAIN 0xAE01
#define CREATE_SHARED 0xAE41
#define WAIT 0xAE80
#define RELEASE 0xAE81
#define ECHO _IOWR(0xAE, 0x10, struct echo)

struct echo {
	unsigned long number, answer;
};

static int last = -1;
static const unsigned long key = 0x5eed5eed5eed5eed;

static long said(long result)
{
	printf("%ld\n", result < 0 ? -errno : result);
	fflush(stdout);
	return result;
}

static void opened(int result)
{
	if (result >= 0)
		last = result;
	printf("%d\n", result < 0 ? -errno : 0);
	fflush(stdout);
}

static void kind_of(int result, const struct stat *status)
{
	if (result < 0)
		said(result);
	else
		printf("%o %lu\n", status->st_mode, status->st_rdev >> 8 & 0xfff);
}

static void on_signal(int number)
{
	(void)number;
}

/* ---- storm: threads make calls without a pause while signals arrive ---- */

static unsigned long calls, threads, wrong, repeats;
static volatile int stop;

static void *caller(void *argument)
{
	unsigned long first = (unsigned long)argument * calls;

	for (unsigned long i = first; i < first + calls; i++) {
		struct echo *echo = &(struct echo){ .number = i };
		int result;

		while ((result = ioctl(last, ECHO, echo)) < 0 && errno == EINTR)
			__atomic_add_fetch(&repeats, 1, __ATOMIC_RELAXED);
		if (result != (int)(i % 1000) || echo->answer != (i ^ key))
			__atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void storm(void)
{
	pthread_t ids[64];
	struct sigaction plain = { .sa_handler = on_signal };
	struct sigaction again = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	unsigned long sent = 0;

	sigaction(SIGUSR1, &plain, NULL);
	sigaction(SIGUSR2, &again, NULL);
	for (unsigned long i = 0; i < threads; i++)
		pthread_create(&ids[i], NULL, caller, (void *)i);
	for (unsigned long i = 0; i < threads;) {
		/* Send a signal to each thread that is not joined yet. */
		for (unsigned long j = i; j < threads; j++, sent++)
			pthread_kill(ids[j], sent & 1 ? SIGUSR1 : SIGUSR2);
		usleep(200);
		while (i < threads && pthread_tryjoin_np(ids[i], NULL) == 0)
			i++;
	}
	printf("%lu\n", wrong);
	fprintf(stderr, "%lu signals, %lu calls repeated\n", sent, repeats);
}

static void *kicker(void *thread)
{
	char byte;

	/* The test writes a byte when the call is waiting. */
	if (read(0, &byte, 1) == 1)
		pthread_kill(*(pthread_t *)thread, SIGUSR1);
	return NULL;
}

static void kicked(void)
{
	pthread_t self = pthread_self(), other;
	struct sigaction again = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	sigset_t mask;

	sigaction(SIGUSR1, &again, NULL);
	/* The other thread must not take a signal that is sent to the process. */
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &mask, NULL);
	pthread_create(&other, NULL, kicker, &self);
	pthread_sigmask(SIG_UNBLOCK, &mask, NULL);
	said(ioctl(last, WAIT, 0));
	pthread_join(other, NULL);
}

static void *unmapper(void *page)
{
	char byte;

	if (read(0, &byte, 1) == 1) {
		munmap(page, 4096);
		ioctl(last, RELEASE, 0);
	}
	return NULL;
}

static void unmapped(void)
{
	pthread_t other;
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	pthread_create(&other, NULL, unmapper, page);
	said(ioctl(last, WAIT, page));
	pthread_join(other, NULL);
}

static void in_child(const char *self)
{
	pid_t child = fork();
	char number[16];

	if (child == 0) {
		snprintf(number, sizeof(number), "%d", last);
		if (self)
			execl(self, self, "use", number, "api", NULL);
		else
			said(ioctl(last, API_VERSION, 0));
		_exit(0);
	}
	waitpid(child, NULL, 0);
}

static void waiting_child(void)
{
	pid_t child = fork();
	int status;

	if (child == 0) {
		ioctl(last, WAIT, 0);
		_exit(0);
	}
	said(child);
	waitpid(child, &status, 0);
	said(WTERMSIG(status));
}

static void over_a_socket(void)
{
	int ends[2], got = -1;
	char byte = 0, room[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1,
				  .msg_control = room, .msg_controllen = sizeof(room) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	pid_t child;

	socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
	child = fork();
	if (child == 0) {
		close(last);
		recvmsg(ends[1], &message, 0);
		header = CMSG_FIRSTHDR(&message);
		memcpy(&got, CMSG_DATA(header), sizeof(int));
		said(ioctl(got, API_VERSION, 0));
		_exit(0);
	}
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &last, sizeof(int));
	sendmsg(ends[0], &message, 0);
	waitpid(child, NULL, 0);
}

static void shared_page(void)
{
	int fd = ioctl(last, CREATE_SHARED, 0);
	unsigned *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (page == MAP_FAILED) {
		said(-1);
		return;
	}
	page[0] = 41;
	/* The device adds one to the number in the page. */
	said(ioctl(fd, API_VERSION, 0));
	said(page[0]);
	close(fd);
	/* A mapping keeps the device open, as a descriptor does. */
	said(ioctl(last, 0xAE24, 0));
	munmap(page, 4096);
}

/* Make trapped calls with random, mostly senseless arguments; the seed determines the calls. */
static void fuzz(unsigned seed, long count)
{
	static const long numbers[] = { SYS_open, SYS_openat, SYS_openat2, SYS_ioctl, SYS_ioctl,
					SYS_stat, SYS_lstat, SYS_newfstatat, SYS_statx, SYS_access,
					SYS_faccessat, 439, SYS_readlink, SYS_readlinkat,
					SYS_getxattr, SYS_llistxattr };
	static const char *const paths[] = { "/dev/sev", "/dev/kvm", "", "/", "sev", "../../dev/sev",
					     "/proc/self/fd/3", "/dev/fd/0/../3", "\xff\xfe/sev",
					     "/sys/module/kvm_amd/parameters/sev", "/proc/self/fd" };
	/* More than one page, for calls that write from the end of the first page into the next. */
	char *page = mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long requests[] = { API_VERSION, CREATE_PLAIN, CREATE_SHARED, ECHO, 0xAE30, 0xC0105300 };

	srandom(seed);
	for (long i = 0; i < count; i++) {
		unsigned long words[6];

		for (int j = 0; j < 6; j++) {
			switch (random() % 8) {
			case 0: words[j] = random() % 16; break;
			case 1: words[j] = (unsigned long)paths[random() % 11]; break;
			case 2: words[j] = (unsigned long)page + random() % 4100; break;
			case 3: words[j] = -(random() % 128); break;
			case 4: words[j] = requests[random() % 6]; break;
			case 5: words[j] = (unsigned long)random() << 32 | random(); break;
			case 6: words[j] = random() & ~(O_CREAT | O_TRUNC); break;
			default: words[j] = last; break;
			}
		}
		page[random() % 4096] = random();
		long result = syscall(numbers[random() % 16], words[0], words[1], words[2], words[3],
				      words[4], words[5]);
		if (result > last && result < 4096)
			close(result);
	}
	puts("survived");
}

static long int80(long number)
{
	long result;

	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number) : "memory");
	return result;
}

int main(int argc, char **argv)
{
	struct stat status;
	struct statx statx_;
	char text[64];

	for (int i = 1; i < argc; i++) {
		const char *word = argv[i];
#define NEXT (argv[++i])
		if (!strcmp(word, "open")) {
			opened(open(NEXT, O_RDWR | O_CLOEXEC));
		} else if (!strcmp(word, "flags")) {
			int flags = strtol(NEXT, NULL, 0);
			opened(open(NEXT, flags, 0600));
		} else if (!strcmp(word, "sysopen")) {
			opened(syscall(SYS_open, NEXT, O_RDWR));
		} else if (!strcmp(word, "creat")) {
			opened(syscall(SYS_creat, NEXT, 0600));
		} else if (!strcmp(word, "at")) {
			int dir = open(NEXT, O_RDONLY | O_DIRECTORY);
			opened(openat(dir, NEXT, O_RDWR));
		} else if (!strcmp(word, "openat2")) {
			int dir = open(NEXT, O_PATH);
			const char *path = NEXT;
			struct open_how how = { .flags = O_RDWR, .resolve = strtol(NEXT, NULL, 0) };
			opened(syscall(SYS_openat2, dir, path, &how, sizeof(how)));
		} else if (!strcmp(word, "chdir")) {
			said(chdir(NEXT));
		} else if (!strcmp(word, "chroot")) {
			said(chroot(NEXT));
		} else if (!strcmp(word, "again")) {
			snprintf(text, sizeof(text), "/proc/self/fd/%d", last);
			opened(open(text, O_RDWR));
		} else if (!strcmp(word, "devfd")) {
			snprintf(text, sizeof(text), "/dev/fd/%d", last);
			opened(open(text, O_RDWR));
		} else if (!strcmp(word, "use")) {
			last = atoi(NEXT);
		} else if (!strcmp(word, "api")) {
			said(ioctl(last, API_VERSION, 0));
		} else if (!strcmp(word, "ioctl")) {
			unsigned long request = strtoul(NEXT, NULL, 0);
			said(ioctl(last, request, strtoul(NEXT, NULL, 0)));
		} else if (!strcmp(word, "plain")) {
			opened(ioctl(last, CREATE_PLAIN, 0));
		} else if (!strcmp(word, "find")) {
			said(ioctl(last, 0xAE20, (long)last));
		} else if (!strcmp(word, "echo")) {
			struct echo echo = { .number = strtoul(NEXT, NULL, 0) };
			said(ioctl(last, ECHO, &echo));
			printf("%d\n", echo.answer == (echo.number ^ key));
		} else if (!strcmp(word, "dup")) {
			last = dup(last);
		} else if (!strcmp(word, "keep")) {
			fcntl(last, F_SETFD, 0);
		} else if (!strcmp(word, "cloexec")) {
			said(fcntl(last, F_GETFD));
		} else if (!strcmp(word, "access-mode")) {
			said(fcntl(last, F_GETFL) & O_ACCMODE);
		} else if (!strcmp(word, "close")) {
			said(close(last));
		} else if (!strcmp(word, "fork")) {
			in_child(NULL);
		} else if (!strcmp(word, "waiting-child")) {
			waiting_child();
		} else if (!strcmp(word, "exec")) {
			in_child(argv[0]);
		} else if (!strcmp(word, "pass")) {
			over_a_socket();
		} else if (!strcmp(word, "shared")) {
			shared_page();
		} else if (!strcmp(word, "wait")) {
			said(ioctl(last, WAIT, 0));
		} else if (!strcmp(word, "kicked")) {
			kicked();
		} else if (!strcmp(word, "unmapped")) {
			unmapped();
		} else if (!strcmp(word, "storm")) {
			threads = atoi(NEXT);
			calls = atoi(NEXT);
			storm();
		} else if (!strcmp(word, "fuzz")) {
			unsigned seed = atoi(NEXT);
			fuzz(seed, atol(NEXT));
		} else if (!strcmp(word, "stat")) {
			int result = stat(NEXT, &status);
			kind_of(result, &status);
		} else if (!strcmp(word, "lstat")) {
			int result = lstat(NEXT, &status);
			kind_of(result, &status);
		} else if (!strcmp(word, "sysstat")) {
			int result = syscall(SYS_stat, NEXT, &status);
			kind_of(result, &status);
		} else if (!strcmp(word, "statx")) {
			int result = statx(AT_FDCWD, NEXT, 0, STATX_BASIC_STATS, &statx_);
			status.st_mode = statx_.stx_mode;
			status.st_rdev = statx_.stx_rdev_major << 8;
			kind_of(result, &status);
		} else if (!strcmp(word, "access")) {
			int mode = atoi(NEXT);
			said(access(NEXT, mode));
		} else if (!strcmp(word, "faccessat2")) {
			int mode = atoi(NEXT);
			said(syscall(439, AT_FDCWD, NEXT, mode, 0));
		} else if (!strcmp(word, "readlink")) {
			said(readlink(NEXT, text, sizeof(text)));
		} else if (!strcmp(word, "stat-into")) {
			void *to = (void *)strtoul(NEXT, NULL, 0);
			said(syscall(SYS_stat, NEXT, to));
		} else if (!strcmp(word, "pread")) {
			long offset = strtol(NEXT, NULL, 0), got = pread(last, text, 8, offset);
			if (got < 0)
				said(got);
			else
				printf("%.*s\n", (int)got, text);
		} else if (!strcmp(word, "write")) {
			said(pwrite(last, "x", 1, 0));
		} else if (!strcmp(word, "bad-path")) {
			said(syscall(SYS_open, (void *)8, O_RDWR));
		} else if (!strcmp(word, "path-at-edge")) {
			/* The string ends where its page ends, and the next page is not mapped. */
			const char *path = NEXT;
			char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE,
					  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			munmap(page + 4096, 4096);
			page += 4096 - strlen(path) - 1;
			strcpy(page, path);
			opened(open(page, O_RDWR));
		} else if (!strcmp(word, "path-across")) {
			const char *path = NEXT;
			char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE,
					  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			page += 4096 - strlen(path) / 2;
			strcpy(page, path);
			opened(open(page, O_RDWR));
		} else if (!strcmp(word, "syscall")) {
			said(syscall(strtol(NEXT, NULL, 0), 0, 0, 0, 0, 0, 0));
		} else if (!strcmp(word, "int80")) {
			printf("%ld\n", int80(strtol(NEXT, NULL, 0)));
		} else if (!strcmp(word, "mknod")) {
			const char *path = NEXT;
			said(mknod(path, S_IFCHR | 0600, strtoul(NEXT, NULL, 0)));
		} else if (!strcmp(word, "until-input")) {
			if (read(0, text, 1) != 1)
				return 1;
		} else if (!strcmp(word, "exit")) {
			return atoi(NEXT);
		} else if (!strcmp(word, "raise")) {
			raise(atoi(NEXT));
		} else {
			fprintf(stderr, "%s: no such step\n", word);
			return 100;
		}
		fflush(stdout);
	}
	return 0;
}
