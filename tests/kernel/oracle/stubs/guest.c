/* SPDX-License-Identifier: Apache-2.0 */
/* One guest with one vCPU, its shared pages as the emulator lays them out. */

#include "user.c"

#define SHARED_PAGES 7 /* GHCB, request, response, four for certificates */

int oracle_warnings;
unsigned long oracle_jiffies;
u64 oracle_ghcb_msr;
u16 ghcb_version = 2;
int snp_vmpl;
struct mutex snp_cmd_mutex;
oracle_seal_t oracle_seal, oracle_open;
static void (*the_host)(void);
static u64 shared_gpa;
static u8 shared[SHARED_PAGES][PAGE_SIZE] __aligned(4096);
static struct snp_secrets_page the_secrets;
static struct snp_msg_desc the_messages;
static struct snp_guest_dev the_device;

u8 *oracle_shared(void) { return shared[0]; }
u8 *oracle_secrets(void) { return (u8 *)&the_secrets; }
struct ghcb *oracle_ghcb(void) { return (struct ghcb *)shared[0]; }
struct snp_guest_dev *oracle_device(void) { return &the_device; }

u64 oracle_pa(const volatile void *at)
{
	return shared_gpa + ((const u8 *)at - shared[0]);
}

void *alloc_pages_exact(unsigned long size, gfp_t flags)
{
	memset(shared[3], 0, size);
	return shared[3];
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

int oracle_reset(u64 gpa, const u8 *key, u32 counter)
{
	memset(shared, 0, sizeof(shared));
	memset(&the_secrets, 0, sizeof(the_secrets));
	memset(&the_messages, 0, sizeof(the_messages));
	memset(user_unmapped, 0, sizeof(user_unmapped));
	oracle_warnings = 0;
	oracle_jiffies = 1000;
	shared_gpa = gpa;
	memcpy(the_secrets.vmpck0, key, VMPCK_KEY_LEN);
	the_secrets.os_area.msg_seqno_0 = counter;
	the_messages.secrets = &the_secrets;
	the_messages.request = (void *)shared[1];
	the_messages.response = (void *)shared[2];
	the_device.msg_desc = &the_messages;
	return snp_msg_init(&the_messages, 0);
}

long oracle_ioctl(u32 request, u64 argument)
{
	struct file file = { 0 };

	return snp_guest_ioctl(&file, request, argument);
}
