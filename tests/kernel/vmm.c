/* SPDX-License-Identifier: Apache-2.0
 *
 * A VMM for SNP guests, compiled only with a released kernel's headers: vmm VCPUS [FILE].
 * With FILE, it serves certificates as the kernel's documentation recommends; without
 * FILE, it does not enable the exit. SIGTERM ends it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096ul
#define MEMORY (PAGE * 512) /* in two slots */
#define LOW (PAGE * 128)
#define MAX_VCPUS 16
#define LOCK_TRIES 100 /* a millisecond each */
#define MAX_TABLE (1ul << 20)

static const char *path;
static uint8_t *memory;
static int vm, sev;
static volatile bool stopping;
static struct vcpu {
	int fd;
	struct kvm_run *run;
	pthread_t thread;
} vcpus[MAX_VCPUS];

static int must(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

static void command(uint32_t id, void *data)
{
	struct kvm_sev_cmd issued = { .id = id, .data = (uintptr_t)data, .sev_fd = sev };

	must(ioctl(vm, KVM_MEMORY_ENCRYPT_OP, &issued), "KVM_MEMORY_ENCRYPT_OP");
}

static void set_private(uint64_t gpa, uint64_t size, bool private)
{
	struct kvm_memory_attributes range = {
		.address = gpa, .size = size,
		.attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
	};

	must(ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &range), "KVM_SET_MEMORY_ATTRIBUTES");
}

/* Open and lock the file that the path leads to. Return its descriptor, or -1 with errno set. */
static int locked_file(void)
{
	for (int tries = 0; tries < LOCK_TRIES; tries++, usleep(1000)) {
		struct flock whole = { .l_type = F_RDLCK, .l_whence = SEEK_SET };
		struct stat mine, there;
		int fd = open(path, O_RDONLY | O_CLOEXEC);

		if (fd < 0)
			return -1;
		if (!fcntl(fd, F_OFD_SETLK, &whole) && !fstat(fd, &mine) && !stat(path, &there) &&
		    mine.st_ino == there.st_ino && mine.st_dev == there.st_dev)
			return fd;
		close(fd);
	}
	errno = EAGAIN;
	return -1;
}

static ssize_t contents(int fd, uint8_t *data)
{
	ssize_t size = 0, got;

	while ((got = pread(fd, data + size, MAX_TABLE - size, size)) > 0)
		size += got;
	return got < 0 ? -1 : size;
}

static uint64_t give(struct kvm_run *run, const uint8_t *data, uint64_t size)
{
	uint64_t pages = (size + PAGE - 1) / PAGE, gpa = run->snp_req_certs.gpa;

	if (run->snp_req_certs.npages < pages) {
		run->snp_req_certs.npages = pages;
		return ENOSPC;
	}
	if (gpa > MEMORY || size > MEMORY - gpa)
		return EIO;
	memcpy(memory + gpa, data, size);
	return 0;
}

static uint64_t give_nothing(struct kvm_run *run)
{
	static const uint8_t empty[24];

	return run->snp_req_certs.npages ? give(run, empty, sizeof(empty)) : 0;
}

static void hand_out(struct vcpu *vcpu, uint8_t *data)
{
	struct kvm_run *run = vcpu->run;
	int fd = locked_file();
	bool busy = fd < 0 && errno == EAGAIN;
	ssize_t size = fd < 0 ? -1 : contents(fd, data);

	run->snp_req_certs.ret = busy ? EAGAIN : size <= 0 ? give_nothing(run) : give(run, data, size);
	run->immediate_exit = 1; /* the lock stays until the firmware has signed */
	if (ioctl(vcpu->fd, KVM_RUN, 0) < 0 && errno != EINTR)
		must(-1, "KVM_RUN");
	if (fd >= 0)
		close(fd);
	run->immediate_exit = 0;
}

static void *vcpu_thread(void *argument)
{
	struct vcpu *vcpu = argument;
	struct kvm_run *run = vcpu->run;
	uint8_t *data = malloc(MAX_TABLE);

	while (!stopping) {
		if (ioctl(vcpu->fd, KVM_RUN, 0) < 0) {
			if (errno != EINTR)
				must(-1, "KVM_RUN");
			continue;
		}
		switch (run->exit_reason) {
		case KVM_EXIT_SNP_REQ_CERTS:
			hand_out(vcpu, data);
			break;
		case KVM_EXIT_HYPERCALL:
			if (run->hypercall.nr == KVM_HC_MAP_GPA_RANGE) {
				set_private(run->hypercall.args[0], run->hypercall.args[1] * PAGE,
					    run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED);
				run->hypercall.ret = 0;
			}
			break;
		case KVM_EXIT_SHUTDOWN:
		case KVM_EXIT_SYSTEM_EVENT:
			free(data);
			return NULL;
		default:
			fprintf(stderr, "unknown exit reason %u\n", run->exit_reason);
			exit(1);
		}
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
	for (struct vcpu *each = vcpus; each < vcpus + MAX_VCPUS && each->run; each++) {
		each->run->immediate_exit = 1;
		pthread_kill(each->thread, SIGUSR1);
	}
	return NULL;
}

static void wants_certs(int kvm)
{
	uint64_t value = 0;
	struct kvm_device_attr attr = {
		.group = KVM_X86_GRP_SEV, .attr = KVM_X86_SEV_SNP_REQ_CERTS, .addr = (uintptr_t)&value,
	};

	if (!ioctl(kvm, KVM_GET_DEVICE_ATTR, &attr) && value)
		command(KVM_SEV_SNP_ENABLE_REQ_CERTS, NULL);
}

static void give_memory(void)
{
	struct kvm_create_guest_memfd created = { .size = MEMORY };
	int memfd = must(ioctl(vm, KVM_CREATE_GUEST_MEMFD, &created), "KVM_CREATE_GUEST_MEMFD");

	for (uint32_t slot = 0; slot < 2; slot++) {
		uint64_t start = slot ? LOW : 0;
		struct kvm_userspace_memory_region2 region = {
			.slot = slot, .flags = KVM_MEM_GUEST_MEMFD, .guest_phys_addr = start,
			.memory_size = (slot ? MEMORY : LOW) - start,
			.userspace_addr = (uintptr_t)memory + start,
			.guest_memfd = memfd, .guest_memfd_offset = start,
		};

		must(ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region), "KVM_SET_USER_MEMORY_REGION2");
	}
	set_private(0, 2 * PAGE, true);
}

static void launch(void)
{
	struct kvm_sev_snp_launch_start start = { .policy = 3 << 16 }; /* SMT, and the bit that must be 1 */
	struct kvm_sev_snp_launch_update update = {
		.uaddr = (uintptr_t)memory, .len = PAGE, .type = KVM_SEV_SNP_PAGE_TYPE_NORMAL,
	};
	struct kvm_sev_snp_launch_update secrets = {
		.gfn_start = 1, .uaddr = (uintptr_t)memory + PAGE, .len = PAGE,
		.type = KVM_SEV_SNP_PAGE_TYPE_SECRETS,
	};
	struct kvm_sev_snp_launch_finish finish = { 0 };

	command(KVM_SEV_SNP_LAUNCH_START, &start);
	command(KVM_SEV_SNP_LAUNCH_UPDATE, &update);
	command(KVM_SEV_SNP_LAUNCH_UPDATE, &secrets);
	command(KVM_SEV_SNP_LAUNCH_FINISH, &finish);
}

int main(int argc, char **argv)
{
	struct kvm_enable_cap hypercalls = {
		.cap = KVM_CAP_EXIT_HYPERCALL, .args = { 1 << KVM_HC_MAP_GPA_RANGE },
	};
	struct kvm_sev_init init = { .ghcb_version = 2 };
	int kvm, number = argc > 1 ? atoi(argv[1]) : 0;
	sigset_t stop;

	if (number < 1 || number > MAX_VCPUS || argc > 3) {
		fprintf(stderr, "usage: vmm VCPUS [FILE]\n");
		return 2;
	}
	path = argv[2];
	sigemptyset(&stop);
	sigaddset(&stop, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &stop, NULL);
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = nothing }, NULL);

	kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	sev = must(open("/dev/sev", O_RDWR | O_CLOEXEC), "/dev/sev");
	vm = must(ioctl(kvm, KVM_CREATE_VM, KVM_X86_SNP_VM), "KVM_CREATE_VM");
	must(ioctl(vm, KVM_ENABLE_CAP, &hypercalls), "KVM_ENABLE_CAP");
	command(KVM_SEV_INIT2, &init);
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(memory == MAP_FAILED ? -1 : 0, "memory");
	give_memory();
	if (path)
		wants_certs(kvm);
	for (int i = 0; i < number; i++) {
		int size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");

		vcpus[i].fd = must(ioctl(vm, KVM_CREATE_VCPU, i), "KVM_CREATE_VCPU");
		vcpus[i].run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpus[i].fd, 0);
		must(vcpus[i].run == MAP_FAILED ? -1 : 0, "mmap of kvm_run");
	}
	launch();
	for (int i = 0; i < number; i++)
		pthread_create(&vcpus[i].thread, NULL, vcpu_thread, &vcpus[i]);
	pthread_create(&(pthread_t){ 0 }, NULL, stopper, &stop);
	for (int i = 0; i < number; i++)
		pthread_join(vcpus[i].thread, NULL);
	return 0;
}
