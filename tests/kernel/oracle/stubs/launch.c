/* SPDX-License-Identifier: Apache-2.0 */
/* One VM before it runs: a slot backed by a guest_memfd, the firmware, and the VMM's memory. */

#include "user.c"

#define PRIVATE_PAGES 8
enum { DEV_SEV, CLOSED, OTHER };

int oracle_warnings;
static struct kvm_svm the_vm;
static struct vcpu_svm the_vcpus[2];
static struct kvm_memory_slot the_slot = { 0, PRIVATE_PAGES };
static struct file the_file;
static struct page private[PRIVATE_PAGES];
static u8 shared[PRIVATE_PAGES], assigned[PRIVATE_PAGES];

static struct { u32 fd, start, update, finish; } firmware;
static struct { u32 commands, last; u8 payload[256]; u8 page[PAGE_SIZE]; } reached;

void *oracle_firmware(void) { return &firmware; }
void *oracle_reached(void) { return &reached; }
u8 *oracle_shared(void) { return shared; }
bool oracle_has_context(void) { return the_vm.sev_info.snp_context; }
bool oracle_certs(void) { return the_vm.sev_info.snp_certs_enabled; }

struct page *oracle_private(u64 pfn)
{
	return &private[pfn];
}

struct fd oracle_get_fd(int fd)
{
	return (struct fd){ fd == 6 ? &the_file : fd == 5 ? (struct file *)&firmware : NULL };
}

struct file *oracle_get_gmem_get_file(struct kvm_memory_slot *slot)
{
	return &the_file;
}

struct kvm_memory_slot *gfn_to_memslot(struct kvm *kvm, gfn_t gfn)
{
	return gfn < PRIVATE_PAGES ? &the_slot : NULL;
}

long __kvm_gmem_populate(struct kvm *kvm, struct kvm_memory_slot *slot, struct file *file, gfn_t gfn,
			 struct page *page, kvm_gmem_populate_cb populate, void *opaque)
{
	return shared[gfn] ? -EINVAL : populate(kvm, gfn, gfn, page, opaque);
}

int get_user_pages_fast(unsigned long at, int pages, unsigned flags, struct page **page)
{
	*page = (struct page *)user_at((void *)at, PAGE_SIZE);
	return *page ? 1 : -EFAULT;
}

int snp_lookup_rmpentry(u64 pfn, bool *is, int *level)
{
	*is = assigned[pfn];
	return 0;
}

void *psp_copy_user_blob(u64 at, u32 size)
{
	void *made;

	if (!at || !size)
		return ERR_PTR(-EINVAL);
	made = calloc(1, size);
	if (copy_from_user(made, (void *)at, size)) {
		free(made);
		return ERR_PTR(-EFAULT);
	}
	return made;
}

int sev_do_cmd(int id, void *data, int *error)
{
	return 0;
}

int sev_issue_cmd_external_user(struct file *file, unsigned id, void *data, int *error)
{
	u32 status = 0;

	if (file == &the_file)
		return -EBADF;
	if (id == SEV_CMD_SNP_LAUNCH_START || id == SEV_CMD_SNP_LAUNCH_UPDATE)
		memset(reached.payload, 0, sizeof(reached.payload));
	if (id == SEV_CMD_SNP_LAUNCH_START) {
		struct sev_data_snp_launch_start *start = data;

		status = firmware.start;
		memcpy(reached.payload, &start->policy, 8);
		memcpy(reached.payload + 8, start->gosvw, 16);
		memcpy(reached.payload + 24, &start->desired_tsc_khz, 4);
	} else if (id == SEV_CMD_SNP_LAUNCH_UPDATE) {
		struct sev_data_snp_launch_update *update = data;
		u64 pfn = update->address >> PAGE_SHIFT;

		status = update->page_type == SNP_PAGE_TYPE_VMSA ? 0 : firmware.update;
		reached.payload[0] = update->page_type;
		if (update->page_type != SNP_PAGE_TYPE_VMSA) {
			memcpy(reached.page, &private[pfn], PAGE_SIZE);
			if (update->page_type == SNP_PAGE_TYPE_ZERO)
				memset(reached.page, 0, PAGE_SIZE);
			if (!status)
				assigned[pfn] = true;
			else if (update->page_type == SNP_PAGE_TYPE_CPUID && status == SEV_RET_INVALID_PARAM)
				memset(&private[pfn], 0xc5, PAGE_SIZE);
		}
	} else if (id == SEV_CMD_SNP_LAUNCH_FINISH) {
		struct sev_data_snp_launch_finish *finish = data;

		status = firmware.finish;
		memset(reached.payload, 0, sizeof(reached.payload));
		memcpy(reached.payload, finish->host_data, 32);
		reached.payload[32] = finish->id_block_en;
		reached.payload[33] = finish->auth_key_en;
		reached.payload[34] = finish->vcek_disabled;
		if (finish->id_block_en)
			memcpy(reached.payload + 40, (void *)(uintptr_t)finish->id_block_paddr, 96);
	} else {
		*error = 0;
		return 0; /* GCTX_CREATE, ACTIVATE */
	}
	reached.commands++;
	reached.last = id;
	*error = status;
	return status ? -EIO : 0;
}

void oracle_reset(void)
{
	memset(&the_vm, 0, sizeof(the_vm));
	memset(the_vcpus, 0, sizeof(the_vcpus));
	memset(private, 0, sizeof(private));
	memset(assigned, 0, sizeof(assigned));
	memset(shared, 0, sizeof(shared));
	memset(user_unmapped, 0, sizeof(user_unmapped));
	memset(&reached, 0, sizeof(reached));
	oracle_warnings = 0;
	sev_enabled = sev_es_enabled = sev_snp_enabled = true;
	sev_supported_vmsa_features = 1 << 5 | 1 << 9;
	snp_supported_policy_bits = 0x3ffffff & ~(1 << 18);
	the_vm.kvm.arch.vm_type = KVM_X86_SNP_VM;
	the_vm.sev_info.need_init = true;
}

void oracle_create_vcpu(void)
{
	struct vcpu_svm *svm = &the_vcpus[the_vm.kvm.created_vcpus];

	svm->vcpu.kvm = &the_vm.kvm;
	the_vm.kvm.vcpus[the_vm.kvm.created_vcpus++] = &svm->vcpu;
}

void oracle_tsc_khz(u32 khz)
{
	the_vm.kvm.arch.default_tsc_khz = khz;
}

int oracle_attribute(u32 group, u64 attribute, u64 *value)
{
	return sev_dev_get_attr(group, attribute, value);
}

int oracle_ioctl(u64 argument)
{
	return sev_mem_enc_ioctl(&the_vm.kvm, (void *)(uintptr_t)argument);
}
