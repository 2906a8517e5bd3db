/* SPDX-License-Identifier: Apache-2.0
 *
 * An SNP VMM that does not serve certificates: plain_vmm VCPUS [SECONDS]. The guest's memory
 * is in two adjacent slots. The VMM ends when its vCPUs have shut down. With SECONDS,
 * another thread kicks random vCPUs, as VMMs do (a note, immediate_exit, a signal), for at
 * most that long. It waits after each kick until the vCPU has noticed it; if that takes
 * more than 30 s, the VMM exits with 3.
 *
 * Compiled with -DREQUEST_TYPE=int, it passes ioctl requests as QEMU did up to 9.1:
 * sign-extended, which the kernel ignores. With -DFEW_CALLS, the kernel kills it if a
 * vCPU's thread makes a system call that cloud-hypervisor 53 forbids such threads.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../../native/kvm_abi.h"

#define PAGE 4096ul
#define MEMORY (PAGE * 512)
#define RUN_SIZE 12288
#define MAX_VCPUS 64
#define KICK SIGUSR1

#ifndef REQUEST_TYPE
#define REQUEST_TYPE unsigned long
#endif

static int vm, sev;
static _Atomic int stop;
static struct vcpu {
	int fd;
	pthread_t thread;
	struct kvm_run *run;
	_Atomic int ready, ended;
	_Atomic uint64_t kicked, noticed;
} vcpus[MAX_VCPUS];

static long must(long result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

static int call(int fd, REQUEST_TYPE request, uintptr_t argument)
{
	return ioctl(fd, request, argument);
}

static void command(uint32_t id, void *data)
{
	uint64_t issued[3] = { id, (uintptr_t)data, (uint64_t)sev << 32 };

	must(call(vm, KVM_MEMORY_ENCRYPT_OP, (uintptr_t)issued), "KVM_MEMORY_ENCRYPT_OP");
}

static void set_private(uint64_t gpa, uint64_t size, uint64_t private)
{
	uint64_t range[4] = { gpa, size, private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0 };

	/* Behind the front door, a signal can interrupt this call; in a kernel, it cannot
	 * (docs/fidelity.md). */
	while (call(vm, KVM_SET_MEMORY_ATTRIBUTES, (uintptr_t)range) < 0)
		must(errno == EINTR ? 0 : -1, "KVM_SET_MEMORY_ATTRIBUTES");
}

#ifdef FEW_CALLS
/* vcpu_thread_rules in cloud-hypervisor's vmm/src/seccomp_filters.rs, which also check arguments */
static const int allowed[] = {
	SYS_brk, SYS_clock_gettime, SYS_clock_nanosleep, SYS_close, SYS_dup, SYS_epoll_ctl, SYS_exit,
	SYS_fallocate, SYS_fcntl, SYS_fstat, SYS_fsync, SYS_futex, SYS_getcwd, SYS_getpid, SYS_getrandom,
	SYS_ioctl, SYS_lseek, SYS_madvise, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_nanosleep,
	SYS_newfstatat, SYS_open, SYS_openat, SYS_pread64, SYS_pwrite64, SYS_read, SYS_readlink,
	SYS_recvfrom, SYS_recvmsg, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_yield,
	SYS_sendmsg, SYS_sendto, SYS_shutdown, SYS_sigaltstack, SYS_statx, SYS_tgkill, SYS_tkill,
	SYS_unlink, SYS_writev,
};

static void restrict_calls(void)
{
	const size_t count = sizeof(allowed) / sizeof(*allowed);
	struct sock_filter steps[2 * count + 2];
	struct sock_fprog program = { 2 * count + 2, steps };

	steps[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0);
	for (size_t i = 0; i < count; i++) {
		steps[2 * i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], 0, 1);
		steps[2 * i + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	steps[2 * count + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
	must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "PR_SET_SECCOMP");
}
#endif

static __thread struct vcpu *mine;

static void on_kick(int number)
{
	(void)number;
	if (mine)
		mine->run->immediate_exit = 1;
}

static void *vcpu_thread(void *argument)
{
	struct vcpu *vcpu = argument;

	vcpu->run = mmap(NULL, RUN_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	must(vcpu->run == MAP_FAILED ? -1 : 0, "mmap of kvm_run");
	mine = vcpu;
	vcpu->ready = 1;
#ifdef FEW_CALLS
	restrict_calls();
#endif
	for (;;) {
		int failed = call(vcpu->fd, KVM_RUN, 0) < 0;

		if (failed && errno != EINTR && errno != EAGAIN)
			must(-1, "KVM_RUN");
		if (failed) {
			/* As VMMs do: clear immediate_exit, then look for the reason of the kick. */
			vcpu->run->immediate_exit = 0;
			atomic_thread_fence(memory_order_seq_cst);
			vcpu->noticed = vcpu->kicked;
			if (stop)
				break;
		} else if (vcpu->run->exit_reason == KVM_EXIT_HYPERCALL) {
			/* KVM_HC_MAP_GPA_RANGE (GPA, pages, attributes); attribute bit 4 means private. */
			uint64_t *exit = &vcpu->run->snp_req_certs.gpa; /* the union */

			set_private(exit[1], exit[2] * PAGE, exit[3] >> 4 & 1);
			exit[7] = 0;
		} else if (vcpu->run->exit_reason == KVM_EXIT_SHUTDOWN) {
			break;
		} else {
			fprintf(stderr, "exit %u, which this VMM does not know\n", vcpu->run->exit_reason);
			exit(1);
		}
	}
	vcpu->ended = 1;
	return NULL;
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec * 1e-9;
}

static int all_ended(int count)
{
	for (int i = 0; i < count; i++)
		if (!vcpus[i].ended)
			return 0;
	return 1;
}

/* Kick a vCPU and wait until it has noticed. Return the seconds that this took. */
static double kick(struct vcpu *vcpu)
{
	double start = seconds();

	while (!vcpu->ready)
		;
	vcpu->kicked++;
	vcpu->run->immediate_exit = 1;
	if (!vcpu->ended)
		pthread_kill(vcpu->thread, KICK);
	while (vcpu->noticed != vcpu->kicked && !vcpu->ended)
		if (seconds() > start + 30) {
			fprintf(stderr, "a kick was lost\n");
			exit(3);
		}
	return seconds() - start;
}

static void kick_them(int count, double length)
{
	unsigned seed = 1;
	long kicks = 0;
	double took, longest = 0, end = seconds() + length;

	for (; seconds() < end && !all_ended(count); kicks++) {
		took = kick(&vcpus[rand_r(&seed) % count]);
		longest = took > longest ? took : longest;
		usleep(rand_r(&seed) % 3000);
	}
	stop = length > 0;
	for (int i = 0; i < count && stop; i++)
		kick(&vcpus[i]);
	printf("kicks %ld, longest %.3f ms\n", kicks, longest * 1e3);
}

static int open_files(void)
{
	DIR *folder = opendir("/proc/self/fd");
	int count = 0;

	while (readdir(folder))
		count++;
	closedir(folder);
	return count;
}

int main(int argc, char **argv)
{
	uint64_t init[6] = { 0, 2ul << 32 }, start[8] = { 3 << 16 }, finish[11] = { 0 };
	uint64_t memfd[8] = { MEMORY }, hypercalls[13] = { KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE };
	uint8_t *lower, *upper;
	int kvm, guest, before, count = argc > 1 ? atoi(argv[1]) : 0;
	double length = argc > 2 ? atof(argv[2]) : 0;

	if (count < 1 || count > MAX_VCPUS) {
		fprintf(stderr, "usage: plain_vmm VCPUS [SECONDS]\n");
		return 2;
	}
	sigaction(KICK, &(struct sigaction){ .sa_handler = on_kick }, NULL);
	kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	sev = must(open("/dev/sev", O_RDWR | O_CLOEXEC), "/dev/sev");
	vm = must(call(kvm, KVM_CREATE_VM, KVM_X86_SNP_VM), "KVM_CREATE_VM");
	command(KVM_SEV_INIT2, init);
	must(call(vm, KVM_ENABLE_CAP, (uintptr_t)hypercalls), "KVM_CAP_EXIT_HYPERCALL");
	/* The slots are adjacent in the guest, and in the opposite order here. */
	upper = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	lower = upper + MEMORY / 2;
	guest = must(call(vm, KVM_CREATE_GUEST_MEMFD, (uintptr_t)memfd), "KVM_CREATE_GUEST_MEMFD");
	for (int half = 0; half < 2; half++) {
		uint64_t region[20] = { half | (uint64_t)KVM_MEM_GUEST_MEMFD << 32, half * MEMORY / 2, MEMORY / 2,
					(uintptr_t)(half ? upper : lower), half * MEMORY / 2, guest };

		must(call(vm, KVM_SET_USER_MEMORY_REGION2, (uintptr_t)region), "KVM_SET_USER_MEMORY_REGION2");
	}
	set_private(0, MEMORY, 1);
	for (int i = 0; i < count; i++)
		vcpus[i].fd = must(call(vm, KVM_CREATE_VCPU, i), "KVM_CREATE_VCPU");
	command(KVM_SEV_SNP_LAUNCH_START, start);
	for (uint64_t page = 0; page < 2; page++) {
		uint64_t update[8] = { page, (uintptr_t)lower + page * PAGE, PAGE, page ? 5 : 1 };

		command(KVM_SEV_SNP_LAUNCH_UPDATE, update);
	}
	command(KVM_SEV_SNP_LAUNCH_FINISH, finish);
	before = open_files();
	for (int i = 0; i < count; i++)
		pthread_create(&vcpus[i].thread, NULL, vcpu_thread, &vcpus[i]);
	kick_them(count, length);
	for (int i = 0; i < count; i++)
		pthread_join(vcpus[i].thread, NULL);
	printf("open files more than at the start: %d\n", open_files() - before);
	return 0;
}
