/* SPDX-License-Identifier: Apache-2.0 */
/* Memory slots and guest_memfds of a VM: what KVM_SET_USER_MEMORY_REGION2 looks at. */
#include <linux/kvm.h>

#define IS_ENABLED(option) true
typedef u64 uoff_t;
typedef unsigned long pgoff_t;

struct kvm_arch { bool has_private_mem, has_protected_state; };
struct kvm_arch_memory_slot { int unused; };
struct kvm_memslots { int unused; };
struct kvm {
	struct kvm_arch arch;
	struct mutex slots_lock, slots_arch_lock;
	unsigned long nr_memslot_pages;
	struct kvm_memslots memslots;
};
struct inode { loff_t size; void *i_mapping; };
struct file { const void *f_op; void *private_data; struct inode inode; };
struct kvm_memory_slot {
	gfn_t base_gfn;
	unsigned long npages, userspace_addr;
	unsigned long *dirty_bitmap;
	struct kvm_arch_memory_slot arch;
	u32 flags;
	short id;
	u16 as_id;
	struct { struct file *file; pgoff_t pgoff; } gmem;
};
#define MEMFD_PAGES 64
struct xarray { void *slots[MEMFD_PAGES]; };
struct gmem_file { struct kvm *kvm; struct xarray bindings; };
extern const int kvm_gmem_fops;

#define MAXPHYADDR 48
#define lockdep_assert_held(lock) ((void)(lock))
#define untagged_addr(address) (address)
#define USER_END ((1ul << 47) - PAGE_SIZE)
#define access_ok(address, size) \
	((u64)(uintptr_t)(address) + (size) >= (size) && (u64)(uintptr_t)(address) + (size) <= USER_END)
#define __kvm_memslots(kvm, as_id) (&(kvm)->memslots)
#define kvm_arch_has_private_mem(kvm) ((kvm)->arch.has_private_mem)
#define kvm_arch_has_readonly_mem(kvm) (!(kvm)->arch.has_protected_state)
#define kvm_arch_nr_memslot_as_ids(kvm) 1
#define kvm_arch_supports_gmem_init_shared(kvm) (!(kvm)->arch.has_private_mem)
#define kvm_mmu_max_gfn() ((1ull << (MAXPHYADDR - PAGE_SHIFT)) - 1)
#define kvm_page_track_has_external_user(kvm) false
#define kvm_is_gfn_alias(kvm, gfn) false
#define kvm_alloc_memslot_metadata(kvm, slot) 0
#define kvm_arch_free_memslot(kvm, slot) ((void)0)
#define kvm_use_dirty_bitmap(kvm) false
#define kvm_alloc_dirty_bitmap(slot) 0
#define kvm_destroy_dirty_bitmap(slot) ((void)0)
#define kvm_dirty_log_manual_protect_and_init_set(kvm) false
#define bitmap_set(...) ((void)0)
#define kvm_invalidate_memslot(...) ((void)0)
#define kvm_activate_memslot(...) ((void)0)
#define file_inode(file) (&(file)->inode)
#define i_size_read(inode) ((inode)->size)
#define fput(file) ((void)(file))
#define filemap_invalidate_lock(mapping) ((void)0)
#define filemap_invalidate_unlock(mapping) ((void)0)
#define kvm_gmem_supports_mmap(inode) false
#define XA_PRESENT 0
#define xa_empty(array) false
#define xa_err(result) ((void)(result), 0)

struct file *fget(unsigned fd);
struct kvm_memory_slot *id_to_memslot(struct kvm_memslots *slots, int id);
bool kvm_check_memslot_overlap(struct kvm_memslots *slots, int id, gfn_t start, gfn_t end);
void kvm_create_memslot(struct kvm *kvm, struct kvm_memory_slot *new);
void kvm_delete_memslot(struct kvm *kvm, struct kvm_memory_slot *old, struct kvm_memory_slot *temporary);
void kvm_move_memslot(struct kvm *kvm, struct kvm_memory_slot *old, struct kvm_memory_slot *new, struct kvm_memory_slot *temporary);
void kvm_update_flags_memslot(struct kvm *kvm, struct kvm_memory_slot *old, struct kvm_memory_slot *new);
void kvm_commit_memory_region(struct kvm *kvm, struct kvm_memory_slot *old, const struct kvm_memory_slot *new, int change);
void kvm_gmem_unbind(struct kvm_memory_slot *slot);
void *xa_find(struct xarray *array, unsigned long *index, unsigned long last, int mark);
void *xa_store_range(struct xarray *array, unsigned long first, unsigned long last, void *entry, gfp_t flags);
int kvm_vm_set_mem_attributes(struct kvm *kvm, gfn_t start, gfn_t end, unsigned long attributes);
int __kvm_gmem_create(struct kvm *kvm, loff_t size, u64 flags);
