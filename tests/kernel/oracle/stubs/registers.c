/* SPDX-License-Identifier: Apache-2.0 */
/* KVM_SET_SREGS and KVM_SET_SREGS2 on a new vCPU, and what the corresponding GET ioctls return. */

int oracle_warnings;
struct vmcb the_vmcb;
struct vcpu_svm the_svm = { { &the_vmcb }, &the_vmcb };
struct kvm_caps kvm_caps;
static struct kvm the_vm;
static struct kvm_vcpu the_vcpu;
static u32 host[32], guest[32];
static s64 largest, sizes; /* EAX of CPUID 0x80000000 and 0x80000008, -1 without the function */

bool oracle_host_has(int feature)
{
	return host[feature / 32] >> feature % 32 & 1;
}

bool oracle_guest_has(int feature)
{
	return oracle_host_has(feature) && guest[feature / 32] >> feature % 32 & 1;
}

struct kvm_cpuid_entry2 *oracle_cpuid_entry(u32 function)
{
	static struct kvm_cpuid_entry2 entry;
	s64 eax = function == 0x80000000 ? largest : sizes;

	entry.function = function;
	entry.eax = eax;
	return eax < 0 ? NULL : &entry;
}

/* Set the guest's CPUID (feature words as in cpufeatures.h), and what kvm_vcpu_after_set_cpuid()
 * derives from it. */
void oracle_set_cpuid(const u32 *words, s64 last, s64 address_sizes)
{
	memcpy(guest, words, sizeof(guest));
	largest = last;
	sizes = address_sizes;
	the_vcpu.arch.maxphyaddr = cpuid_query_maxphyaddr(&the_vcpu);
	the_vcpu.arch.reserved_gpa_bits = kvm_vcpu_reserved_gpa_bits_raw(&the_vcpu);
#define host_has(unused, feature) oracle_host_has(feature)
	the_vcpu.arch.cr4_guest_rsvd_bits = __cr4_reserved_bits(host_has, 0) |
		__cr4_reserved_bits(guest_cpu_cap_has, &the_vcpu);
}

void oracle_reset(const u32 *words, bool boot)
{
	struct vmcb_save_area *save = &the_vmcb.save;
	struct vmcb_seg *data[] = { &save->es, &save->ss, &save->ds, &save->fs, &save->gs };
	static const u32 nothing[32];

	memcpy(host, words, sizeof(host));
	memset(&the_vm, 0, sizeof(the_vm));
	memset(&the_vcpu, 0, sizeof(the_vcpu));
	memset(&the_vmcb, 0, sizeof(the_vmcb));
	the_vcpu.kvm = &the_vm;
	for (size_t i = 0; i < ARRAY_SIZE(data); i++)
		init_seg(data[i]);
	save->cs.selector = 0xf000;
	save->cs.base = 0xffff0000;
	save->cs.attrib = SVM_SELECTOR_P_MASK | SVM_SELECTOR_S_MASK | 1 << 1 | 1 << 3;
	save->cs.limit = save->gdtr.limit = save->idtr.limit = 0xffff;
	init_sys_seg(&save->ldtr, SEG_TYPE_LDT);
	init_sys_seg(&save->tr, SEG_TYPE_BUSY_TSS16);
	the_vcpu.arch.cr0 = X86_CR0_ET | X86_CR0_NW | X86_CR0_CD;
	the_vcpu.arch.apic_base = APIC_DEFAULT_PHYS_BASE | MSR_IA32_APICBASE_ENABLE |
		(boot ? MSR_IA32_APICBASE_BSP : 0);
	kvm_setup_efer_caps();
	oracle_set_cpuid(nothing, -1, -1);
}

int oracle_set_sregs(const void *data)
{
	struct kvm_sregs sregs;

	memcpy(&sregs, data, sizeof(sregs));
	return kvm_arch_vcpu_ioctl_set_sregs(&the_vcpu, &sregs);
}

int oracle_set_sregs2(const void *data)
{
	struct kvm_sregs2 sregs2;

	memcpy(&sregs2, data, sizeof(sregs2));
	return kvm_vcpu_ioctl_x86_set_sregs2(&the_vcpu, &sregs2);
}

int oracle_get_sregs(struct kvm_sregs *sregs, struct kvm_sregs2 *sregs2)
{
	memset(sregs, 0, sizeof(*sregs));
	memset(sregs2, 0, sizeof(*sregs2));
	kvm_vcpu_ioctl_x86_get_sregs2(&the_vcpu, sregs2);
	return kvm_arch_vcpu_ioctl_get_sregs(&the_vcpu, sregs);
}

/* Copy segments and descriptor tables, which are also in the VMSA. Return their size in bytes. */
int oracle_segments(void *data)
{
	const int size = offsetof(struct vmcb_save_area, cpl);

	memcpy(data, &the_vmcb.save, size);
	return size;
}
