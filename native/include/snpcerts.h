/* SPDX-License-Identifier: Apache-2.0
 *
 * KVM_EXIT_SNP_REQ_CERTS in one call, for a VMM in any language.
 *
 * Since Linux 7.0, KVM exits with KVM_EXIT_SNP_REQ_CERTS when the guest requests an
 * attestation report with certificates. The VMM fills the guest's buffer from the
 * certificate file. It holds a shared lock on the file until it has entered KVM_RUN once
 * more and the firmware has signed the report. snpcerts_serve() does all of that:
 *
 *	const struct snpcerts_vm certs = {
 *		.path = "/var/lib/snpcerts/certs.bin", .lock_wait = SNPCERTS_LOCK_WAIT,
 *		.slots = slots, .slot_count = 2,
 *	};
 *	...
 *	if (ioctl(vcpu, KVM_RUN, 0) == 0 && snpcerts_asks(run))
 *		error = snpcerts_serve(&certs, vcpu, run, NULL);
 *
 * The library keeps no state, allocates no memory and takes no lock but that on the file,
 * so any number of threads may use it at the same time. A request needs about 13 KiB
 * of stack. errno is undefined after each function.
 *
 * Sources: Linux Documentation/virt/kvm/api.rst, KVM_EXIT_SNP_REQ_CERTS, and
 * x86/amd-memory-encryption.rst, KVM_SEV_SNP_ENABLE_REQ_CERTS. docs/protocol.md describes
 * the protocol on the file; docs/vmm-authors.md is for VMM authors.
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

#define SNPCERTS_LOCK_WAIT 100000000ull /* ns; a good lock_wait: updates take milliseconds */
#define SNPCERTS_MAX_SIZE (1ull << 20) /* bytes of a table; the default of size_limit */
#define SNPCERTS_MAX_PIECES 256 /* pieces of memory that one buffer may consist of */

/* Flag: if the file is missing or unreadable, the guest gets EIO instead of an empty table. A Linux
 * guest that gets EIO destroys its VMPCK and cannot attest until it reboots. */
#define SNPCERTS_UNREADABLE_IS_EIO 1u

/* A range of guest memory: `size` bytes at the guest physical address `gpa` are mapped,
 * writable, at the address `host` in this process. Slots must not overlap, but may be adjacent. */
struct snpcerts_slot {
	uint64_t gpa, size, host;
};

/* Settings for all requests of one VM. Set unused fields to 0. */
struct snpcerts_vm {
	const char *path; /* the certificate file; opened again for each request */
	uint64_t lock_wait; /* ns to wait for an update's lock; after that the guest gets BUSY
			     * and retries 2 s later. Must be below 60 s, after which a Linux
			     * guest gives up. */
	uint64_t size_limit; /* bytes; a larger file counts as unreadable. 0: SNPCERTS_MAX_SIZE */
	uint32_t flags; /* SNPCERTS_UNREADABLE_IS_EIO, or 0 */
	uint32_t slot_count;
	const struct snpcerts_slot *slots;

	/* For a VMM whose slots change while its vCPUs run: a function that finds memory,
	 * used instead of `slots`. It puts the addresses of `size` bytes at `gpa` into
	 * `pieces`, in order, and returns their number. If it fails, it returns the negative
	 * of the errno that the guest gets: EIO if the buffer is not the guest's memory. After a
	 * success, `done`, unless NULL, is called when the pieces are no longer used. */
	int (*find)(void *context, uint64_t gpa, uint64_t size,
		    struct iovec pieces[SNPCERTS_MAX_PIECES]);
	void (*done)(void *context);

	/* Issues KVM_RUN and returns 0, or -1 with errno set, like ioctl(2). If `enter` is NULL,
	 * the library calls ioctl(vcpu, KVM_RUN, 0). */
	int (*enter)(void *context, int vcpu);

	void *context; /* the first argument of `find`, `done` and `enter` */
};

/* How a request was answered. */
enum snpcerts_outcome {
	SNPCERTS_SERVED, /* ret 0: the table is in the guest's buffer */
	SNPCERTS_EMPTY, /* ret 0: an empty table is in the guest's buffer */
	SNPCERTS_TOO_SMALL, /* ret ENOSPC: the guest gets the number of pages it needs */
	SNPCERTS_BUSY, /* ret EAGAIN: an update has the lock */
	SNPCERTS_FAILED, /* ret is another errno: see file_problem and guest_problem */
};

/* Problems that are not an errno. */
enum snpcerts_problem {
	SNPCERTS_NOT_REGULAR = 1 << 16, /* the path does not lead to a regular file */
	SNPCERTS_TOO_LARGE, /* the file has more bytes than size_limit */
	SNPCERTS_SHRANK, /* the file shrank while it was read: a writer does not take the lock */
	SNPCERTS_NOT_ALIGNED, /* the guest's address is not page-aligned */
	SNPCERTS_NOT_MEMORY, /* the buffer is not in the guest's memory */
};

/* The result of one request, for logs and metrics. */
struct snpcerts_served {
	uint64_t ret; /* the answer to KVM: 0, ENOSPC, EAGAIN or EIO */
	uint64_t needed_pages; /* for TOO_SMALL, the npages that KVM gets; otherwise 0 */
	uint64_t size; /* bytes of the table that were written to the guest's buffer */
	uint64_t file_size; /* bytes of the file; 0 if it was not locked */
	uint64_t waited; /* ns spent waiting for the lock */
	int32_t outcome; /* enum snpcerts_outcome */
	int32_t file_problem; /* 0, or why the file has no table: errno or a problem */
	int32_t guest_problem; /* 0, or the problem with the guest's buffer */
	int32_t run_errno; /* what snpcerts_serve returned */
	int32_t fd, immediate_exit; /* used by the library between snpcerts_begin and snpcerts_end */
};

/* Whether the exit is a request for certificates: exit 43, or 42 on kernels with the series as
 * it was posted. Call this only after KVM_RUN has returned 0. */
bool snpcerts_asks(const struct kvm_run *run);

/* Answer the request in `run`, the mapping of the vCPU's descriptor, and enter KVM_RUN
 * once, so that the firmware gets the request while the file is locked. Return the errno of
 * that KVM_RUN. EINTR is the normal result. 0 means that the guest has made another exit,
 * which the VMM must handle. Any other errno means that the request is lost; most VMMs
 * then end the VM.
 *
 * Signals are blocked during KVM_RUN, and pthread_cancel(3) during the whole call. If
 * another thread kicks the vCPU by setting immediate_exit to 1, it stays 1. Check your own
 * kick flag as after every EINTR. `served`, unless NULL, gets the result. */
int snpcerts_serve(const struct snpcerts_vm *vm, int vcpu, struct kvm_run *run,
		   struct snpcerts_served *served);

/* The two halves of snpcerts_serve, for a VMM that enters KVM_RUN itself, once, between
 * them. The first fills the guest's buffer, puts the answer into `run` and sets
 * immediate_exit. The second drops the lock and restores immediate_exit, unless a kick has
 * set it. Call the second whatever KVM_RUN returned. If the first was not called and
 * served->fd is -1, the second does nothing. The caller must block signals and
 * pthread_cancel(3). */
void snpcerts_begin(const struct snpcerts_vm *vm, struct kvm_run *run,
		    struct snpcerts_served *served);
void snpcerts_end(struct kvm_run *run, struct snpcerts_served *served);

/* Whether this host's KVM has the exit. `kvm` is a descriptor of /dev/kvm. The answer is
 * false on kernels before 7.0, and if SNP is off. */
bool snpcerts_supported(int kvm);

/* Enable the exit for an SNP VM, after KVM_SEV_INIT2 and before its first vCPU is created.
 * Return 0 or the errno of KVM_SEV_SNP_ENABLE_REQ_CERTS. */
int snpcerts_enable(int vm);

#ifdef __cplusplus
}
#endif
#endif
