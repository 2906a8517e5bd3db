/* SPDX-License-Identifier: Apache-2.0 */
/* A vCPU of an AMD processor: what KVM_SET_SREGS, KVM_GET_SREGS and their newer forms use. */
#include <linux/kvm.h>

#define SEG_TYPE_LDT 2
#define SEG_TYPE_BUSY_TSS16 3
#define _BITUL(n) (1ul << (n))
#define _BITULL(n) (1ull << (n))
#define KVM_NR_INTERRUPTS 256

struct desc_ptr { u16 size; unsigned long address; };
struct vmcb_seg { u16 selector, attrib; u32 limit; u64 base; };
struct vmcb_save_area {
	struct vmcb_seg es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
	u8 cpl;
};
struct vmcb { struct vmcb_save_area save; };
struct kvm_arch { bool has_protected_state; };
struct kvm { struct kvm_arch arch; int srcu; };
struct kvm_vcpu_arch {
	unsigned long cr0, cr2, cr3, cr4, cr8;
	u64 efer, apic_base, cr4_guest_rsvd_bits, reserved_gpa_bits, pdptrs[4];
	int maxphyaddr;
	bool guest_state_protected, pdptrs_from_userspace;
	struct { bool injected, soft; u8 nr; } interrupt;
};
struct kvm_vcpu { struct kvm *kvm; struct kvm_vcpu_arch arch; };
struct kvm_caps { u64 supported_efer_bits; };

extern struct vmcb the_vmcb;
extern struct kvm_caps kvm_caps;
struct vcpu_svm { struct { struct vmcb *ptr; } vmcb01; struct vmcb *vmcb; };
extern struct vcpu_svm the_svm;
#define to_svm(vcpu) (&the_svm)

bool oracle_host_has(int feature);
bool oracle_guest_has(int feature);
#define kvm_cpu_cap_has(feature) oracle_host_has(feature)
#define guest_cpu_cap_has(vcpu, feature) oracle_guest_has(feature)
struct kvm_cpuid_entry2 *oracle_cpuid_entry(u32 function);
#define kvm_find_cpuid_entry(vcpu, function) oracle_cpuid_entry(function)

#define kvm_x86_call(function) svm_##function
#define svm_set_idt(vcpu, dt) (the_vmcb.save.idtr.limit = (dt)->size, the_vmcb.save.idtr.base = (dt)->address)
#define svm_set_gdt(vcpu, dt) (the_vmcb.save.gdtr.limit = (dt)->size, the_vmcb.save.gdtr.base = (dt)->address)
#define svm_get_idt(vcpu, dt) ((dt)->size = the_vmcb.save.idtr.limit, (dt)->address = the_vmcb.save.idtr.base)
#define svm_get_gdt(vcpu, dt) ((dt)->size = the_vmcb.save.gdtr.limit, (dt)->address = the_vmcb.save.gdtr.base)
#define svm_post_set_cr3(vcpu, cr3) ((void)0)
#define svm_set_efer(vcpu, value) ((vcpu)->arch.efer = (value))
#define svm_set_cr0(vcpu, value) ((vcpu)->arch.cr0 = (value))
#define svm_set_cr4(vcpu, value) ((vcpu)->arch.cr4 = (value))
#define kvm_set_segment(vcpu, segment, number) svm_set_segment(vcpu, segment, number)
#define kvm_get_segment(vcpu, segment, number) svm_get_segment(vcpu, segment, number)
#define svm_is_valid_cr0(vcpu, cr0) true
#define svm_is_valid_cr4(vcpu, cr4) true
#define boot_cpu_has(feature) true /* EFER_LMSLE_MBZ: EPYC has no LMSLE */
#define vmcb_mark_dirty(vmcb, bit) ((void)0)

#define lapic_in_kernel(vcpu) false
#define kvm_lapic_set_tpr(vcpu, cr8) ((void)0)
#define kvm_lapic_get_cr8(vcpu) 0
#define __kvm_apic_set_base(vcpu, value) ((vcpu)->arch.apic_base = (value))
#define kvm_recalculate_apic_map(kvm) ((void)0)
#define kvm_vcpu_is_bsp(vcpu) false
#define kvm_rip_read(vcpu) 0
#define kvm_set_mp_state(...) ((void)0)
#define kvm_read_cr3(vcpu) ((vcpu)->arch.cr3)
#define kvm_read_cr0(vcpu) ((vcpu)->arch.cr0)
#define kvm_read_cr4(vcpu) ((vcpu)->arch.cr4)
#define is_protmode(vcpu) false
#define is_long_mode(vcpu) (((vcpu)->arch.efer & EFER_LMA) != 0)
#define kvm_is_cr0_bit_set(vcpu, bit) (((vcpu)->arch.cr0 & (bit)) != 0)
#define kvm_is_cr4_bit_set(vcpu, bit) (((vcpu)->arch.cr4 & (bit)) != 0)
#define rsvd_bits(first, last) ((last) < (first) ? 0 : (2ull << ((last) - (first))) - 1 << (first))
/* The guest has no memory here: reads return zero. */
#define load_pdptrs(vcpu, cr3) memset((vcpu)->arch.pdptrs, 0, sizeof((vcpu)->arch.pdptrs))
#define kvm_pdptr_read(vcpu, i) ((vcpu)->arch.pdptrs[i])
#define kvm_pdptr_write(vcpu, i, value) ((vcpu)->arch.pdptrs[i] = (value))
#define kvm_register_mark_dirty(...) ((void)0)
#define kvm_mmu_reset_context(...) ((void)0)
#define kvm_make_request(...) ((void)0)
#define kvm_handle_exception_payload_quirk(vcpu) ((void)0)
#define srcu_read_lock(srcu) 0
#define srcu_read_unlock(srcu, index) ((void)(index))
#define kvm_vcpu_srcu_read_lock(vcpu) ((void)0)
#define kvm_vcpu_srcu_read_unlock(vcpu) ((void)0)
#define vcpu_load(vcpu) ((void)0)
#define vcpu_put(vcpu) ((void)0)
#define pr_debug(...) ((void)0)
#define kvm_queue_interrupt(vcpu, vector, is_soft) \
	((vcpu)->arch.interrupt.injected = true, (vcpu)->arch.interrupt.soft = (is_soft), \
	 (vcpu)->arch.interrupt.nr = (vector))

static inline int find_first_bit(const unsigned long *bits, int size)
{
	for (int i = 0; i < size; i++)
		if (bits[i / 64] >> i % 64 & 1)
			return i;
	return size;
}

static inline void set_bit(int bit, unsigned long *bits)
{
	bits[bit / 64] |= 1ul << bit % 64;
}
