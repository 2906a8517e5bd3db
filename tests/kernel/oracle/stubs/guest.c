/* SPDX-License-Identifier: Apache-2.0 */
/* One guest with one vCPU, its shared pages as the emulator lays them out. */

#include <setjmp.h>
#include "user.c"

#define SHARED_PAGES 7 /* GHCB, request, response, four for certificates */
#define NAMED (1ul << 23) /* bytes from there on that page state changes may name */
#define TERMINATED (-1000)

int oracle_warnings;
unsigned long oracle_jiffies;
u64 oracle_ghcb_msr;
u16 ghcb_version = 2;
int snp_vmpl;
struct mutex snp_cmd_mutex;
oracle_seal_t oracle_seal, oracle_open;
static void (*the_host)(void);
static u64 shared_gpa;
static u8 (*shared)[PAGE_SIZE]; /* at a boundary of 2 MiB, as its GPA is */
static struct snp_secrets_page the_secrets;
static struct snp_msg_desc *the_messages;
static unsigned pages_given;
static jmp_buf the_end;
static u64 the_reason;
static struct snp_guest_dev the_device;

u8 *oracle_shared(void) { return shared[0]; }
u8 *oracle_secrets(void) { return (u8 *)&the_secrets; }
struct ghcb *oracle_ghcb(void) { return (struct ghcb *)shared[0]; }
struct snp_guest_dev *oracle_device(void) { return &the_device; }

u64 oracle_pa(const volatile void *at)
{
	return shared_gpa + ((const u8 *)at - shared[0]);
}

/* Zeros of a private page are not in the shared one. */
void *alloc_pages_exact(unsigned long size, gfp_t flags)
{
	return shared[3];
}

struct page *oracle_page(unsigned order)
{
	return (struct page *)shared[1 + pages_given++ % 2];
}

void oracle_terminate(unsigned set, unsigned reason)
{
	the_reason = (u64)reason << 16 | (u64)set << 12 | 0x100;
	longjmp(the_end, 1);
}

u64 oracle_reason(void) { return the_reason; }

/* The ends of the guest are the ends of these calls. */
#define UNLESS_TERMINATED(result) (setjmp(the_end) ? TERMINATED : (result))

static long change(u64 page, u64 pages, int private)
{
	(private ? snp_set_memory_private : snp_set_memory_shared)(
		(unsigned long)shared[0] + page * PAGE_SIZE, pages);
	return 0;
}

long oracle_change(u64 page, u64 pages, int private)
{
	return UNLESS_TERMINATED(change(page, pages, private));
}

void *memchr_inv(const void *from, int value, unsigned long size)
{
	for (const u8 *at = from; size--; at++)
		if (*at != value)
			return (void *)at;
	return NULL;
}

void oracle_vmgexit(void)
{
	the_host();
}

void oracle_callbacks(void (*host)(void), oracle_seal_t seal, oracle_seal_t open)
{
	the_host = host;
	oracle_seal = seal;
	oracle_open = open;
}

void oracle_reset(u64 gpa, const u8 *key, u32 counter)
{
	if (!shared)
		shared = aligned_alloc(PMD_SIZE, NAMED);
	memset(shared, 0, SHARED_PAGES * PAGE_SIZE);
	memset(&the_secrets, 0, sizeof(the_secrets));
	free(the_messages);
	the_messages = NULL;
	pages_given = 0;
	memset(user_unmapped, 0, sizeof(user_unmapped));
	oracle_warnings = 0;
	oracle_jiffies = 1000;
	shared_gpa = gpa;
	memcpy(the_secrets.vmpck0, key, VMPCK_KEY_LEN);
	the_secrets.os_area.msg_seqno_0 = counter;
}

/* Memory becomes the guest's; then its driver starts. */
static long boot(void)
{
	change(1, SHARED_PAGES - 1, 1);
	the_messages = snp_msg_alloc();
	the_device.msg_desc = the_messages;
	return snp_msg_init(the_messages, 0);
}

long oracle_boot(void)
{
	return UNLESS_TERMINATED(boot());
}

long oracle_ioctl(u32 request, u64 argument)
{
	struct file file = { 0 };

	return UNLESS_TERMINATED(snp_guest_ioctl(&file, request, argument));
}
