/* SPDX-License-Identifier: Apache-2.0 */
/* KVM_CHECK_EXTENSION of /dev/kvm, or of a VM. */

int oracle_warnings;
struct kvm_nested kvm_nested_ops;
struct kvm_ops kvm_x86_ops = { &kvm_nested_ops, NULL };
struct kvm_caps kvm_caps = { true, true, false, 0xff, 1 << 0 | 1 << 4 };
bool tdp_enabled = true, enable_pmu = true, allow_smaller_maxphyaddr;
static int processors;

int oracle_processors(void)
{
	return processors;
}

int oracle_check_extension(long number, int type, bool split, int online)
{
	bool snp = type == KVM_X86_SNP_VM;
	struct kvm vm = {
		.arch = {
			.has_private_mem = snp, .has_protected_state = snp,
			.split = split, .apic_bus_cycle_ns = 1,
		},
		.max_vcpus = KVM_MAX_VCPUS,
	};

	processors = online;
	return kvm_vm_ioctl_check_extension_generic(type < 0 ? NULL : &vm, number);
}
