/* SPDX-License-Identifier: Apache-2.0
 *
 * KVM_EXIT_SNP_REQ_CERTS in one call, for a VMM in any language.
 *
 * Since Linux 7.0, KVM leaves the guest with this exit when the guest asks for an
 * attestation report and for certificates. The VMM fills the guest's buffer from the
 * certificate file, under a shared lock that it keeps until KVM_RUN has been entered
 * once more and the firmware has signed. snpcerts_serve() does all of that:
 *
 *	const struct snpcerts_vm certs = {
 *		.path = "/var/lib/snpcerts/certs.bin", .lock_wait = SNPCERTS_LOCK_WAIT,
 *		.slots = slots, .slot_count = 2,
 *	};
 *	...
 *	if (ioctl(vcpu, KVM_RUN, 0) == 0 && snpcerts_asks(run))
 *		error = snpcerts_serve(&certs, vcpu, run, NULL);
 *
 * The library keeps no state, allocates nothing and takes no lock but the one on the
 * file, so any number of threads may use it at once. A request needs about 13 KiB of
 * stack. errno is undefined after each function.
 *
 * Sources: Linux Documentation/virt/kvm/api.rst, KVM_EXIT_SNP_REQ_CERTS, and
 * x86/amd-memory-encryption.rst, KVM_SEV_SNP_ENABLE_REQ_CERTS. The protocol on the file:
 * docs/protocol.md. For VMM authors: docs/vmm-authors.md.
 */
#ifndef SNPCERTS_H
#define SNPCERTS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

struct kvm_run;

#define SNPCERTS_LOCK_WAIT 100000000ull /* ns; updates take milliseconds */
#define SNPCERTS_MAX_SIZE (1ull << 20) /* bytes of a table, unless the VMM says otherwise */
#define SNPCERTS_MAX_PIECES 256

/* A missing or unreadable file gives the guest EIO instead of an empty table. A Linux
 * guest that gets EIO destroys its VMPCK and cannot attest until it reboots. */
#define SNPCERTS_UNREADABLE_IS_EIO 1u

/* Memory of the guest: `size` bytes at guest physical address `gpa` are mapped at the
 * address `host` of this process, writable. Slots do not overlap; they may touch. */
struct snpcerts_slot {
	uint64_t gpa, size, host;
};

/* What the requests of one VM have in common. Set what you do not use to 0. */
struct snpcerts_vm {
	const char *path; /* of the certificate file; opened again for each request */
	uint64_t lock_wait; /* ns to wait for an update; then the guest gets BUSY, and retries
			     * 2 s later. Below 60 s: then a Linux guest gives up. */
	uint64_t size_limit; /* bytes; a larger file counts as unreadable. 0: SNPCERTS_MAX_SIZE */
	uint32_t flags; /* SNPCERTS_UNREADABLE_IS_EIO, or 0 */
	uint32_t slot_count;
	const struct snpcerts_slot *slots;

	/* For a VMM whose slots change while its vCPUs run: a function that finds memory,
	 * used instead of `slots`. It puts the addresses of `size` bytes at `gpa` into
	 * `pieces`, in order, and returns their number; or, if the VM cannot say, minus the
	 * errno that the guest gets: EIO for what is not the guest's memory. After each success
	 * `done`, unless NULL, is called once the pieces are no longer used. */
	int (*find)(void *context, uint64_t gpa, uint64_t size,
		    struct iovec pieces[SNPCERTS_MAX_PIECES]);
	void (*done)(void *context);

	/* Issues KVM_RUN as ioctl(2) does: 0, or -1 with errno. NULL: ioctl(vcpu, KVM_RUN, 0). */
	int (*enter)(void *context, int vcpu);

	void *context; /* the first argument of the three */
};

enum snpcerts_outcome {
	SNPCERTS_SERVED, /* ret 0: the table is in the guest's buffer */
	SNPCERTS_EMPTY, /* ret 0: an empty table is */
	SNPCERTS_TOO_SMALL, /* ret ENOSPC: the guest gets the number of pages it needs */
	SNPCERTS_BUSY, /* ret EAGAIN: an update has the lock */
	SNPCERTS_FAILED, /* another ret: see the problems */
};

/* Problems that are not an errno. */
enum snpcerts_problem {
	SNPCERTS_NOT_REGULAR = 1 << 16, /* the path does not lead to a regular file */
	SNPCERTS_TOO_LARGE, /* the file has more bytes than size_limit */
	SNPCERTS_SHRANK, /* the file lost bytes under the lock: a writer does not take it */
	SNPCERTS_NOT_ALIGNED, /* the guest's address is not that of a page */
	SNPCERTS_NOT_MEMORY, /* the guest's buffer is not in its memory */
};

/* What became of one request, for logs and metrics. */
struct snpcerts_served {
	uint64_t ret; /* what KVM gets: 0, ENOSPC, EAGAIN or EIO */
	uint64_t needed_pages; /* TOO_SMALL: what KVM gets as npages; otherwise 0 */
	uint64_t size; /* bytes of the table that are in the guest's buffer */
	uint64_t file_size; /* bytes, if the file was locked */
	uint64_t waited; /* ns spent waiting for the lock */
	int32_t outcome; /* enum snpcerts_outcome */
	int32_t file_problem; /* 0; or why there is no table in the file: errno or a problem */
	int32_t guest_problem; /* 0; or what is wrong with the guest's buffer */
	int32_t run_errno; /* what snpcerts_serve returned */
	int32_t fd, immediate_exit; /* the library's, between snpcerts_begin and snpcerts_end */
};

/* Whether KVM_RUN, which has returned 0, returned with a request for certificates: exit
 * 43, or 42 on kernels that carry the series as it was posted. */
bool snpcerts_asks(const struct kvm_run *run);

/* Answer the request in `run`, the mapping of the vCPU's descriptor, and enter KVM_RUN
 * once, so that the firmware gets the request under the lock. Returns the errno of that
 * KVM_RUN: EINTR is the normal end. 0: the guest has made another exit, which is for you.
 * Another errno: the request is lost, and most VMMs end the VM.
 *
 * All signals wait while KVM_RUN is entered, and pthread_cancel(3) waits for the whole
 * call. A kick, which sets immediate_exit to 1, stays set; check your own flag as after
 * every EINTR. `served`, unless NULL, says what became of the request. */
int snpcerts_serve(const struct snpcerts_vm *vm, int vcpu, struct kvm_run *run,
		   struct snpcerts_served *served);

/* The two halves of snpcerts_serve, for a VMM that enters KVM_RUN itself, once, between
 * them. The first fills the guest's buffer, puts the answer into `run` and sets
 * immediate_exit. The second drops the lock and clears immediate_exit, unless it has been
 * set by a kick; it is due whatever KVM_RUN returned, and does nothing if served->fd is
 * -1 because the first was not called. Signals and pthread_cancel(3) are
 * up to the caller. */
void snpcerts_begin(const struct snpcerts_vm *vm, struct kvm_run *run,
		    struct snpcerts_served *served);
void snpcerts_end(struct kvm_run *run, struct snpcerts_served *served);

/* Whether this host's KVM has the exit; `kvm` is an open /dev/kvm. False on kernels
 * before 7.0, and where SNP is off. */
bool snpcerts_supported(int kvm);

/* Enable the exit for an SNP VM, after KVM_SEV_INIT2 and before its first vCPU: 0, or
 * the errno of KVM_SEV_SNP_ENABLE_REQ_CERTS. */
int snpcerts_enable(int vm);

#ifdef __cplusplus
}
#endif
#endif
