/* SPDX-License-Identifier: Apache-2.0
 *
 * Serves one request with the library: one_request FILE GPA NPAGES LOCK_WAIT_NS FLAGS.
 * For a tracer, getuid(2) marks the start of the request, getgid(2) its end, and getppid(2)
 * stands for KVM_RUN. Prints outcome, ret, needed pages, size, and the errno of KVM_RUN.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "snpcerts.h"

static char memory[16 * 4096];
static union {
	uint64_t exit[256];
	uint8_t bytes[2048];
} run;

static int enter(void *context, int vcpu)
{
	(void)context;
	(void)vcpu;
	if (run.bytes[1] == 0 || syscall(SYS_getppid) < 0)
		return -1;
	errno = EINTR;
	return -1;
}

int main(int count, char **words)
{
	const struct snpcerts_slot slots[] = {
		{ 0x10000, sizeof memory / 2, (uintptr_t)memory },
		{ 0x10000 + sizeof memory / 2, sizeof memory / 2, (uintptr_t)memory + sizeof memory / 2 },
	};
	struct snpcerts_vm vm = { .slots = slots, .slot_count = 2, .enter = enter };
	struct snpcerts_served served;
	int error;

	if (count != 6)
		return 2;
	vm.path = words[1];
	run.exit[4] = strtoull(words[2], NULL, 0); /* offset 32: gpa */
	run.exit[5] = strtoull(words[3], NULL, 0); /* npages */
	vm.lock_wait = strtoull(words[4], NULL, 0);
	vm.flags = strtoul(words[5], NULL, 0);
	syscall(SYS_getuid);
	error = snpcerts_serve(&vm, -1, (struct kvm_run *)run.bytes, &served);
	syscall(SYS_getgid);
	if (run.exit[6] != served.ret || run.bytes[1] != 0)
		return 1;
	printf("%d %" PRIu64 " %" PRIu64 " %" PRIu64 " %d\n", served.outcome, served.ret,
	       served.needed_pages, served.size, error);
	return 0;
}
