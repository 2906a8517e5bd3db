/* SPDX-License-Identifier: Apache-2.0 */
/* What the launch commands need in addition to stubs/kvm.h. */
#include "kvm.h"

struct file { int unused; };
struct page { u8 bytes[PAGE_SIZE]; };
struct kvm_memory_slot { u64 base_gfn; unsigned long npages; };
typedef int (*kvm_gmem_populate_cb)(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn, struct page *page,
				    void *opaque);
typedef struct file *CLASS_gmem_get_file;
enum pg_level { PG_LEVEL_NONE, PG_LEVEL_4K, PG_LEVEL_2M };
struct sev_platform_init_args { int error; bool probe; };

#define FOLL_WRITE 1
#define KVM_BUG(condition, ...) WARN_ON(condition)
#define INIT_LIST_HEAD(list) ((void)0)
#define kvm_set_apicv_inhibit(...) ((void)0)
#define is_mirroring_enc_context(kvm) false
#define sev_asid_new(sev, type) 0
#define sev_asid_free(sev) ((void)0)
#define sev_get_asid(kvm) 1
#define sev_platform_init(args) 0
#define sev_alloc_have_run_cpus(sev) 0
#define sev_free_have_run_cpus(sev) ((void)0)
#define snp_guest_req_init(kvm) 0
#define snp_alloc_firmware_page(flags) calloc(1, PAGE_SIZE)
#define snp_free_firmware_page(page) free(page)
#define down_write(lock) ((void)0)
#define up_write(lock) ((void)0)
#define __sme_set(x) (x)
#define __sme_pa(x) __psp_pa(x)
#define __pa(x) ((unsigned long)(x))
#define pfn_to_hpa(pfn) ((hpa_t)(pfn) << PAGE_SHIFT)
#define rmp_make_private(...) 0
#define snp_page_reclaim(kvm, pfn) 0
#define kmap_local_page(page) ((void *)(page))
#define kmap_local_pfn(pfn) oracle_private(pfn)
#define kunmap_local(address) ((void)(address))
#define set_page_dirty_lock(page) ((void)0)
#define put_page(page) ((void)0)
#define kvm_lock_all_vcpus(kvm) 0
#define kvm_unlock_all_vcpus(kvm) ((void)0)
#define svm_enable_lbrv(vcpu) ((void)0)
#define kvm_is_vcpu_creation_in_progress(kvm) false
#define kvm_for_each_vcpu(i, vcpu, vm) \
	for ((i) = 0; (i) < (vm)->created_vcpus && ((vcpu) = (vm)->vcpus[i], true); (i)++)
#define sev_es_sync_vmsa(svm) ((svm)->vcpu.arch.guest_state_protected ? -EINVAL : 0)
#define kvm_slot_has_gmem(slot) (slot)

/* Commands for guests other than SNP guests. Each first checks the guest's type, and fails here. */
#define sev_launch_start(...) (-ENOTTY)
#define sev_launch_update_data(...) (-ENOTTY)
#define sev_launch_update_vmsa(...) (-ENOTTY)
#define sev_launch_measure(...) (-ENOTTY)
#define sev_launch_finish(...) (-ENOTTY)
#define sev_launch_secret(...) (-ENOTTY)
#define sev_guest_status(...) (-ENOTTY)
#define sev_dbg_crypt(...) (-ENOTTY)
#define sev_get_attestation_report(...) (-ENOTTY)
#define sev_send_start(...) (-ENOTTY)
#define sev_send_update_data(...) (-ENOTTY)
#define sev_send_finish(...) (-ENOTTY)
#define sev_send_cancel(...) (-ENOTTY)
#define sev_receive_start(...) (-ENOTTY)
#define sev_receive_update_data(...) (-ENOTTY)
#define sev_receive_finish(...) (-ENOTTY)

extern struct page *oracle_private(u64 pfn);
struct file *oracle_get_gmem_get_file(struct kvm_memory_slot *slot);
struct kvm_memory_slot *gfn_to_memslot(struct kvm *kvm, gfn_t gfn);
long __kvm_gmem_populate(struct kvm *kvm, struct kvm_memory_slot *slot, struct file *file, gfn_t gfn,
			 struct page *page, kvm_gmem_populate_cb populate, void *opaque);
int get_user_pages_fast(unsigned long at, int pages, unsigned flags, struct page **page);
int snp_lookup_rmpentry(u64 pfn, bool *assigned, int *level);
int sev_do_cmd(int id, void *data, int *error);
void *psp_copy_user_blob(u64 at, u32 size);
unsigned long copy_from_user(void *to, const void *from, unsigned long size);
unsigned long copy_to_user(void *to, const void *from, unsigned long size);
