/* SPDX-License-Identifier: Apache-2.0 */
/* What the driver of /dev/sev finds around it: the PSP device, and its caller's memory. */
#include <linux/ioctl.h>
#include <linux/psp-sev.h>

#define ENOTSUPP 524
#define FMODE_WRITE 2
#define MAX_PSP_NAME_LEN 16
#define IRQ_HANDLED 1
typedef int irqreturn_t;
typedef int wait_queue_head_t;
struct device;
struct kobject;
struct tsm_dev;
struct sev_tio_status;
struct sev_vdata { unsigned cmdresp_reg, cmdbuff_addr_lo_reg, cmdbuff_addr_hi_reg; };
struct psp_vdata;
struct sp_device;
struct kref { int count; };
struct miscdevice { int minor; };
struct file { unsigned f_mode; };

#define FIELD_PREP(mask, value) (((u64)(value) << __builtin_ctzll(mask)) & (mask))
#define FIELD_GET(mask, value) (((u64)(value) & (mask)) >> __builtin_ctzll(mask))
#define irqs_disabled() false
#define print_hex_dump_debug(...) ((void)0)
#define pr_warn_once(...) ((void)0)
#define __psp_pa(pointer) ((u64)(uintptr_t)(pointer))
#define __pa(pointer) ((unsigned long)(pointer))
#define alloc_page(flags) ((struct page *)calloc(1, PAGE_SIZE))
#define page_address(page) ((void *)(page))
#define __free_pages(page, order) free(page)

/* Left out: without an RMP, pages do not change owners; and nothing shuts down. */
struct cmd_buf_desc { u64 *paddr_ptr; u64 paddr_orig; u32 len; };
#define rmp_mark_pages_firmware(...) 0
#define snp_reclaim_pages(...) 0
#define snp_prep_cmd_buf(...) 0
#define sev_tio_cmd_buffer_len(command) 0 /* no TIO command is issued */
#define snp_reclaim_cmd_buf(...) 0
#define snp_unmap_cmd_buf_desc_list(...) 0
#define sev_write_init_ex_file_if_required(...) 0
#define __sev_platform_init_locked(error) 0
#define __sev_platform_shutdown_locked(error) 0
#define __sev_firmware_shutdown(...) ((void)0)

#define iowrite32(value, at) oracle_iowrite32(value)
#define ioread32(at) 0
struct sev_device;
extern struct psp_device *psp_master;
extern struct mutex sev_cmd_mutex;
void oracle_iowrite32(u32 value);
int sev_wait_cmd_ioc(struct sev_device *sev, unsigned int *reg, unsigned int timeout);
unsigned long copy_from_user(void *to, const void *from, unsigned long size);
unsigned long copy_to_user(void *to, const void *from, unsigned long size);
void *memdup_user(const void *from, unsigned long size);
