/* SPDX-License-Identifier: Apache-2.0 */
/* One VM's slots in a table, and guest_memfds by number: 10 to 12 are the VM's, 13 another VM's. */

#define SLOTS 9 /* 0 to 7, and the last that userspace may have */
#define ROW(id) ((id) < SLOTS - 1 ? (id) : SLOTS - 1)
#define FIRST_MEMFD 10
#define MEMFDS 4
#define OTHER_FD 14

int oracle_warnings;
const int kvm_gmem_fops;
static struct kvm the_vm, another;
static struct kvm_memory_slot *slots_of[SLOTS];
static struct file memfds[MEMFDS], other_file;
static struct gmem_file gmem[MEMFDS];
static u8 private[MEMFD_PAGES];

struct file *fget(unsigned fd)
{
	if (fd == OTHER_FD)
		return &other_file;
	return fd >= FIRST_MEMFD && fd < FIRST_MEMFD + MEMFDS ? &memfds[fd - FIRST_MEMFD] : NULL;
}

struct kvm_memory_slot *id_to_memslot(struct kvm_memslots *slots, int id)
{
	return slots_of[ROW(id)];
}

bool kvm_check_memslot_overlap(struct kvm_memslots *slots, int id, gfn_t start, gfn_t end)
{
	for (int i = 0; i < SLOTS; i++)
		if (slots_of[i] && slots_of[i]->id != id &&
		    start < slots_of[i]->base_gfn + slots_of[i]->npages &&
		    slots_of[i]->base_gfn < end)
			return true;
	return false;
}

void kvm_create_memslot(struct kvm *kvm, struct kvm_memory_slot *new)
{
	slots_of[ROW(new->id)] = new;
	kvm->nr_memslot_pages += new->npages;
}

void kvm_delete_memslot(struct kvm *kvm, struct kvm_memory_slot *old, struct kvm_memory_slot *temporary)
{
	slots_of[ROW(old->id)] = NULL;
	kvm->nr_memslot_pages -= old->npages;
	kvm_gmem_unbind(old);
	free(old);
}

void kvm_move_memslot(struct kvm *kvm, struct kvm_memory_slot *old, struct kvm_memory_slot *new, struct kvm_memory_slot *temporary)
{
	kvm_update_flags_memslot(kvm, old, new);
}

void kvm_update_flags_memslot(struct kvm *kvm, struct kvm_memory_slot *old, struct kvm_memory_slot *new)
{
	slots_of[ROW(new->id)] = new;
	free(old);
}

void kvm_commit_memory_region(struct kvm *kvm, struct kvm_memory_slot *old, const struct kvm_memory_slot *new, int change)
{
}

void kvm_gmem_unbind(struct kvm_memory_slot *slot)
{
	for (int i = 0; i < MEMFDS; i++)
		for (int page = 0; page < MEMFD_PAGES; page++)
			if (gmem[i].bindings.slots[page] == slot)
				gmem[i].bindings.slots[page] = NULL;
}

void *xa_find(struct xarray *array, unsigned long *index, unsigned long last, int mark)
{
	for (unsigned long at = *index; at <= last; at++)
		if (array->slots[at]) {
			*index = at;
			return array->slots[at];
		}
	return NULL; /* the index stays as it was */
}

void *xa_store_range(struct xarray *array, unsigned long first, unsigned long last, void *entry, gfp_t flags)
{
	while (first <= last)
		array->slots[first++] = entry;
	return NULL;
}

int kvm_vm_set_mem_attributes(struct kvm *kvm, gfn_t start, gfn_t end, unsigned long attributes)
{
	for (; start < end && start < MEMFD_PAGES; start++)
		private[start] = attributes != 0;
	return 0;
}

int __kvm_gmem_create(struct kvm *kvm, loff_t size, u64 flags)
{
	return 0;
}

void oracle_reset(int type, const u32 *pages)
{
	for (int i = 0; i < SLOTS; i++) {
		free(slots_of[i]);
		slots_of[i] = NULL;
	}
	memset(&the_vm, 0, sizeof(the_vm));
	memset(gmem, 0, sizeof(gmem));
	memset(private, 0, sizeof(private));
	the_vm.arch.has_private_mem = the_vm.arch.has_protected_state = type == KVM_X86_SNP_VM;
	for (int i = 0; i < MEMFDS; i++) {
		gmem[i].kvm = i + 1 == MEMFDS ? &another : &the_vm;
		memfds[i] = (struct file){ &kvm_gmem_fops, &gmem[i], { pages[i] * PAGE_SIZE } };
	}
}

/* Also checks what kvm_vm_ioctl() does for this ioctl, because that code is not compiled here. */
int oracle_set_region(struct kvm_userspace_memory_region2 *region, bool first_version)
{
	if (first_version && region->flags & ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY))
		return -EINVAL;
	return kvm_vm_ioctl_set_memory_region(&the_vm, region);
}

int oracle_set_attributes(struct kvm_memory_attributes *attributes)
{
	return kvm_vm_ioctl_set_mem_attributes(&the_vm, attributes);
}

int oracle_create_memfd(struct kvm_create_guest_memfd *wanted)
{
	return kvm_gmem_create(&the_vm, wanted);
}

const u8 *oracle_private(void)
{
	return private;
}

/* Get a slot's first guest page, pages, address and flags. Return false if there is no slot. */
bool oracle_slot(int id, u64 *found)
{
	struct kvm_memory_slot *slot = slots_of[ROW(id)];

	if (!slot)
		return false;
	found[0] = slot->base_gfn;
	found[1] = slot->npages;
	found[2] = slot->userspace_addr;
	found[3] = slot->flags;
	return true;
}
