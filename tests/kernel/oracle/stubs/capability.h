/* SPDX-License-Identifier: Apache-2.0 */
/* What KVM_CHECK_EXTENSION and KVM_ENABLE_CAP look at: a host with an AMD processor, and a VM. */
#include <linux/kvm.h>
#include <linux/kvm_para.h>

#define IS_ENABLED(option) oracle_##option
#define oracle_CONFIG_KVM_SMM true
#define oracle_CONFIG_NEED_KVM_DIRTY_RING_WITH_BITMAP false

struct kvm_arch {
	bool has_private_mem, has_protected_state, has_protected_pmu, created_mediated_pmu;
	bool x2apic_format, x2apic_broadcast_quirk_disabled, guest_can_read_msr_platform_info;
	bool exception_payload_enabled, triple_fault_event, bus_lock_detection_enabled;
	bool sgx_provisioning_allowed, exit_on_emulation_error, enable_pmu, disable_nx_huge_pages;
	int irqchip_mode, suppress_eoi_broadcast_mode, nr_reserved_ioapic_pins;
	u32 user_space_msr_mask, notify_window, notify_vmexit_flags, bsp_vcpu_id, max_vcpu_ids;
	u64 disabled_quirks, hypercall_exit_enabled, apic_bus_cycle_ns;
};
struct kvm {
	struct kvm_arch arch;
	struct mutex lock, slots_lock;
	int max_vcpus, created_vcpus;
	u32 dirty_ring_size, max_halt_poll_ns;
	u64 manual_dirty_log_protect;
	bool dirty_ring_with_bitmap, override_halt_poll_ns;
};
struct kvm_nested { bool enabled; void *enable_evmcs; };
struct kvm_ops {
	struct kvm_nested *nested_ops;
	void *enable_l2_tlb_flush, *vm_copy_enc_context_from, *vm_move_enc_context_from;
};
struct kvm_caps {
	bool has_tsc_control, has_bus_lock_exit, has_notify_vmexit;
	u64 supported_quirks, supported_vm_types;
};

extern struct kvm_nested kvm_nested_ops;
extern struct kvm_ops kvm_x86_ops;
extern struct kvm_caps kvm_caps;
extern bool tdp_enabled, enable_pmu, allow_smaller_maxphyaddr;

#define kvm_x86_call(function) oracle_##function
#define kvm_nested_call(function) oracle_##function
#define oracle_has_emulated_msr(kvm, number) true
#define oracle_get_state(...) 0
#define oracle_vm_copy_enc_context_from(...) (-EINVAL)
#define oracle_vm_move_enc_context_from(...) (-EINVAL)
#define MSR_IA32_SMBASE 0x9e
#define SGX_ATTR_PROVISIONKEY (1 << 4)
#define CAP_SYS_BOOT 22
#define sgx_set_attribute(...) (-EINVAL)
#define capable(capability) true
#define smp_wmb() ((void)0)
#define pr_warn_once(...) ((void)0)
#define sched_info_on() true
#define num_online_cpus() oracle_processors()
#define boot_cpu_has(feature) true
#define boot_cpu_has_bug(bug) false
#define cpu_smt_possible() true
#define mitigate_smt_rsb false
#define kvm_can_mwait_in_guest() true
#define kvm_disable_exits(...) ((void)0)
#define kvm_clear_apicv_inhibit(...) ((void)0)
#define xstate_required_size(xcr0, compacted) 0x340
#define kvm_get_filtered_xcr0() 7
#define irqchip_split(kvm) ((kvm)->arch.irqchip_mode == KVM_IRQCHIP_SPLIT)
#define irqchip_in_kernel(kvm) ((kvm)->arch.irqchip_mode != KVM_IRQCHIP_NONE)
#define kvm_arch_has_private_mem(kvm) ((kvm)->arch.has_private_mem)
#define kvm_arch_has_readonly_mem(kvm) (!(kvm)->arch.has_protected_state)
#define kvm_arch_nr_memslot_as_ids(kvm) ((kvm)->arch.has_protected_state ? 1 : 2)
#define kvm_are_all_memslots_empty(kvm) true
#define kvm_vm_ioctl_enable_dirty_log_ring(...) (-EINVAL)

int oracle_processors(void);
