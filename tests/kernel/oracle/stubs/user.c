/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of the process that makes the system call. */

#define USER 0x10000000ul
#define USER_PAGES 16

static u8 user_memory[USER_PAGES * PAGE_SIZE], user_unmapped[USER_PAGES];

u8 *oracle_memory(void) { return user_memory; }
u8 *oracle_page_states(void) { return user_unmapped; }

static u8 *user_at(const void *address, unsigned long size)
{
	unsigned long at = (unsigned long)address - USER;

	if (!size)
		return user_memory;
	if (at >= sizeof(user_memory) || size > sizeof(user_memory) - at)
		return NULL;
	for (unsigned long page = at / PAGE_SIZE; page <= (at + size - 1) / PAGE_SIZE; page++)
		if (user_unmapped[page])
			return NULL;
	return user_memory + at;
}

unsigned long copy_from_user(void *to, const void *from, unsigned long size)
{
	u8 *at = user_at(from, size);

	if (!at)
		return size;
	memcpy(to, at, size);
	return 0;
}

unsigned long copy_to_user(void *to, const void *from, unsigned long size)
{
	u8 *at = user_at(to, size);

	if (!at)
		return size;
	memcpy(at, from, size);
	return 0;
}
