/* SPDX-License-Identifier: Apache-2.0 */
/* What KVM_CHECK_EXTENSION looks at: a host with an AMD processor, and a VM or none. */
#include <linux/kvm.h>
#include <linux/kvm_para.h>

#define IS_ENABLED(option) true

struct kvm_arch { bool has_private_mem, has_protected_state, split; u32 apic_bus_cycle_ns; };
struct kvm { struct kvm_arch arch; int max_vcpus; };
struct kvm_nested { bool enabled; void *enable_evmcs; };
struct kvm_ops { struct kvm_nested *nested_ops; void *enable_l2_tlb_flush; };
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
#define MSR_IA32_SMBASE 0x9e
#define sched_info_on() true
#define num_online_cpus() oracle_processors()
#define boot_cpu_has(feature) true
#define mitigate_smt_rsb false
#define kvm_can_mwait_in_guest() true
#define xstate_required_size(xcr0, compacted) 0x340
#define kvm_get_filtered_xcr0() 7
#define irqchip_split(kvm) ((kvm)->arch.split)
#define kvm_arch_has_private_mem(kvm) ((kvm)->arch.has_private_mem)
#define kvm_arch_has_readonly_mem(kvm) (!(kvm)->arch.has_protected_state)
#define kvm_arch_nr_memslot_as_ids(kvm) ((kvm)->arch.has_protected_state ? 1 : 2)

int oracle_processors(void);
