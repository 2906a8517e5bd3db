/* SPDX-License-Identifier: Apache-2.0 */
/* What the driver of /dev/sev-guest finds around it in a guest: pages, time, AES-GCM, the host. */
#include <linux/ioctl.h>
#include <linux/psp-sev.h>
#include <linux/sev-guest.h>
#include <asm/svm.h>

#define X86_TRAP_UD 6
#define X86_TRAP_GP 13
#define GCM_AES_IV_SIZE 12
#define HZ 250
#define jiffies oracle_jiffies
#define schedule_timeout_killable(delay) (oracle_jiffies += (delay))
extern unsigned long oracle_jiffies;

typedef struct { u8 bytes[16]; } guid_t;
#define guid_is_null(guid) (!memcmp(guid, &(guid_t){ 0 }, sizeof(guid_t)))
struct file { void *private_data; };
struct miscdevice { int minor; };
struct es_fault_info { unsigned long vector, error_code, cr2; };
struct es_em_ctxt { struct es_fault_info fi; };
struct ghcb_state { void *ghcb; };
struct ghcb;

/* AES-GCM, under the names that each release uses; the test supplies the functions. */
struct aesgcm_ctx { unsigned authsize; u8 key[32]; };
struct aes_gcm_key { u8 key[32]; };
typedef int (*oracle_seal_t)(const u8 *key, const u8 *iv, const u8 *aad, u32 aad_size, const u8 *in,
			     u32 size, u8 *out, u8 *tag);
extern oracle_seal_t oracle_seal, oracle_open;
#define aesgcm_expandkey(ctx, from, size, tag) \
	(memcpy((ctx)->key, from, size), (ctx)->authsize = (tag), 0)
#define aes_gcm_preparekey(ctx, from, size, tag) (memcpy((ctx)->key, from, size), 0)
#define aesgcm_encrypt(ctx, out, in, size, aad, aad_size, iv, tag) \
	oracle_seal((ctx)->key, iv, (const u8 *)(aad), aad_size, (const u8 *)(in), size, (u8 *)(out), tag)
#define aesgcm_decrypt(ctx, out, in, size, aad, aad_size, iv, tag) \
	(!oracle_open((ctx)->key, iv, (const u8 *)(aad), aad_size, (const u8 *)(in), size, (u8 *)(out), tag))
#define aes_gcm_encrypt(out, in, size, tag, aad, aad_size, iv, ctx) \
	oracle_seal((ctx)->key, iv, (const u8 *)(aad), aad_size, (const u8 *)(in), size, (u8 *)(out), tag)
#define aes_gcm_decrypt(out, in, size, tag, aad, aad_size, iv, ctx) \
	oracle_open((ctx)->key, iv, (const u8 *)(aad), aad_size, (const u8 *)(in), size, (u8 *)(out), tag)

static inline void free_at_end(void *at)
{
	free(*(void **)at);
}
#define __free(how) __attribute__((cleanup(free_at_end)))
#define no_free_ptr(at) ({ __typeof__(at) _at = (at); (at) = NULL; _at; })

/* configfs: its files are callbacks here, and the test calls them. */
#define SZ_4K 0x1000
#define KBUILD_MODNAME "sev_guest"
struct config_item { int unused; };
struct config_group { int unused; };
struct configfs_attribute { int unused; };
struct configfs_bin_attribute { int unused; };
struct tsm_report;
struct tsm_report_ops;
static struct oracle_provider { const struct tsm_report_ops *ops; void *data; atomic_t count; } provider;
static int tsm_rwsem, tsm_report_type;
#define guard_rwsem_read(semaphore) ((void)(semaphore))
#define guard_rwsem_write(semaphore) ((void)(semaphore))
#define lockdep_assert_held_write(semaphore) ((void)(semaphore))
#define config_item_init_type_name(item, name, type) ((void)(type))
#define atomic_inc(at) ((at)->counter++)
#define sysfs_emit(page, ...) sprintf(page, __VA_ARGS__)
#define sev_svsm_report_new(report, data) (abort(), 0) /* the guest has no SVSM */
#define dev_warn_ratelimited(...) ((void)0)
long memory_read_from_buffer(void *to, size_t count, loff_t *at, const void *from, size_t available);

/* lib/kstrtox.c */
#define _tolower(c) ((c) | 0x20)
#define isxdigit(c) (((c) >= '0' && (c) <= '9') || (_tolower(c) >= 'a' && _tolower(c) <= 'f'))
#define div_u64(a, b) ((a) / (b))
#define noinline
#define EXPORT_SYMBOL(name)
#define CONCATENATE(a, b) CONCATENATE_(a, b)
#define CONCATENATE_(a, b) a##b
#define COUNT_ARGS(...) COUNT_ARGS_(, ##__VA_ARGS__, 2, 1, 0)
#define COUNT_ARGS_(none, a, b, count, ...) count
#define memzero_explicit(at, size) memset(at, 0, size)
#define pr_alert(...) ((void)0)
#define local_irq_save(flags) ((void)(flags))
#define local_irq_restore(flags) ((void)(flags))
/* arch/x86/mm: amd_enc_status_change_prepare and _finish call these. */
#define set_memory_decrypted(at, pages) (snp_set_memory_shared(at, pages), 0)
#define set_memory_encrypted(at, pages) (snp_set_memory_private(at, pages), 0)
#define cc_platform_has(what) true
#define boot_ghcb oracle_ghcb()
#define early_set_pages_state(...) abort() /* there is a GHCB */
#define svsm_get_caa() NULL
#define svsm_get_caa_pa() 0
#define pvalidate_pages(list) ((void)0) /* PVALIDATE does not involve the host */
#define is_vmalloc_addr(at) false
#define PMD_SIZE (1ul << 21)
#define sev_es_terminate(set, reason) oracle_terminate(set, reason)
#define alloc_pages(flags, order) oracle_page(order)
#define page_address(page) ((void *)(page))
#define get_order(size) 0
#define __free_pages(page, order) abort()
#define ioremap_encrypted(at, size) oracle_secrets()
#define iounmap(at) ((void)0)
#define sev_secrets_pa 0
#define snp_leak_pages(...) abort()
#define free_pages_exact(at, size) ((void)0)
#define PHYS_PFN(at) ((at) >> PAGE_SHIFT)
#define __attribute_const__
#define virt_addr_valid(at) true
#define virt_to_phys(at) __pa(at)
#define __pa(at) oracle_pa(at)
#define __sev_get_ghcb(state) oracle_ghcb()
#define __sev_put_ghcb(state) ((void)0)
#define sev_es_wr_ghcb_msr(value) (oracle_ghcb_msr = (value))
#define VMGEXIT() oracle_vmgexit()
#define to_snp_dev(file) oracle_device()
#define runtime_const_ptr(symbol) symbol
#define USER_PTR_MAX ((1ul << 47) - PAGE_SIZE) /* TASK_SIZE_MAX with four-level paging */
#define access_ok(address, size) __access_ok(address, size)
#define valid_user_address(x) ((unsigned long)(x) <= USER_PTR_MAX)

extern u64 oracle_ghcb_msr;
extern u16 ghcb_version;
extern int snp_vmpl;
extern struct mutex snp_cmd_mutex;
struct snp_guest_dev;
struct page;
void oracle_terminate(unsigned set, unsigned reason) __attribute__((noreturn));
struct page *oracle_page(unsigned order);
u8 *oracle_secrets(void);
u64 oracle_pa(const volatile void *at);
struct ghcb *oracle_ghcb(void);
void oracle_vmgexit(void);
struct snp_guest_dev *oracle_device(void);
void *alloc_pages_exact(unsigned long size, gfp_t flags);
void *memchr_inv(const void *from, int value, unsigned long size);
unsigned long copy_from_user(void *to, const void *from, unsigned long size);
unsigned long copy_to_user(void *to, const void *from, unsigned long size);
