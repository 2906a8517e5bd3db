/* SPDX-License-Identifier: Apache-2.0 */
/* One guest with one vCPU. Its shared pages have the same layout as in the emulator. */

#include <setjmp.h>
#include "user.c"

#define SHARED_PAGES 7 /* GHCB, request, response, four for certificates */
#define NAMED (1ul << 23) /* bytes, from the GHCB on, that page state changes may name */
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
static u8 (*shared)[PAGE_SIZE]; /* aligned to 2 MiB, like its GPA */
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

/* Writes no zeros: the kernel writes them while the pages are private, so a host never sees them. */
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

/* If the guest terminates itself, the call that it is in ends with TERMINATED. */
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

/* One directory of configfs-tsm. */
static struct config_item *the_item;
static unsigned reads_of_nothing;

unsigned oracle_reads_of_nothing(void) { return reads_of_nothing; }

/* As in the kernel, except where the kernel would read from address 0. */
long memory_read_from_buffer(void *to, size_t count, loff_t *at, const void *from, size_t available)
{
	if (*at >= available || !count)
		return 0;
	count = min(count, available - (size_t)*at);
	if (!from) {
		reads_of_nothing++;
		return -EFAULT;
	}
	memcpy(to, (const u8 *)from + *at, count);
	*at += count;
	return count;
}

static void tsm_reset(void)
{
	if (the_item)
		tsm_report_item_release(the_item);
	the_item = NULL;
	reads_of_nothing = 0;
	memset(&provider, 0, sizeof(provider));
}

/* The driver registers itself when it starts. */
static void tsm_register(void)
{
	sev_tsm_report_ops.privlevel_floor = the_messages->vmpck_id;
	provider.ops = &sev_tsm_report_ops;
	provider.data = &the_device;
}

long oracle_tsm_make(void)
{
	struct config_item *made = tsm_report_make_item(NULL, "entry");

	if (IS_ERR(made))
		return PTR_ERR(made);
	if (the_item)
		tsm_report_item_release(the_item);
	the_item = made;
	return 0;
}

int oracle_tsm_visible(int number, bool binary)
{
	return binary ? tsm_report_is_bin_visible(the_item, NULL, number)
		      : tsm_report_is_visible(the_item, NULL, number);
}

long oracle_tsm_show(int number, char *page)
{
	switch (number) {
	case TSM_REPORT_GENERATION:
		return tsm_report_generation_show(the_item, page);
	case TSM_REPORT_PROVIDER:
		return tsm_report_provider_show(the_item, page);
	default:
		return tsm_report_privlevel_floor_show(the_item, page);
	}
}

long oracle_tsm_privlevel(const char *text, size_t size)
{
	return tsm_report_privlevel_store(the_item, text, size);
}

long oracle_tsm_inblob(const void *data, size_t size)
{
	return tsm_report_inblob_write(the_item, data, size);
}

long oracle_tsm_read(bool certificates, void *to, size_t count)
{
	return UNLESS_TERMINATED((certificates ? tsm_report_auxblob_read
					       : tsm_report_outblob_read)(the_item, to, count));
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
	tsm_reset();
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

/* Make the memory private, then start the driver. */
static long boot(void)
{
	long failed;

	change(1, SHARED_PAGES - 1, 1);
	the_messages = snp_msg_alloc();
	the_device.msg_desc = the_messages;
	failed = snp_msg_init(the_messages, 0);
	if (!failed)
		tsm_register();
	return failed;
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
