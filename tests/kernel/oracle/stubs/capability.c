/* SPDX-License-Identifier: Apache-2.0 */
/* KVM_CHECK_EXTENSION of /dev/kvm and of a VM, and KVM_ENABLE_CAP of the VM. */

int oracle_warnings;
struct kvm_nested kvm_nested_ops;
struct kvm_ops kvm_x86_ops = { &kvm_nested_ops };
struct kvm_caps kvm_caps = { true, true, false, 0xff, 1 << 0 | 1 << 4 };
bool tdp_enabled = true, enable_pmu = true, allow_smaller_maxphyaddr;
static int processors;
static struct kvm the_vm;

int oracle_processors(void)
{
	return processors;
}

void oracle_reset(int type, int online)
{
	bool snp = type == KVM_X86_SNP_VM;

	processors = online;
	memset(&the_vm, 0, sizeof(the_vm));
	the_vm.arch.has_private_mem = the_vm.arch.has_protected_state = snp;
	the_vm.arch.apic_bus_cycle_ns = 1;
	the_vm.max_vcpus = KVM_MAX_VCPUS;
}

/* The next three functions change what other calls would change, whose code is not compiled here. */
void oracle_create_vcpu(void)
{
	the_vm.created_vcpus++;
	if (!the_vm.arch.max_vcpu_ids)
		the_vm.arch.max_vcpu_ids = KVM_MAX_VCPU_IDS;
}

void oracle_create_irqchip(void)
{
	the_vm.arch.irqchip_mode = KVM_IRQCHIP_KERNEL;
}

void oracle_set_boot_cpu(u32 id)
{
	the_vm.arch.bsp_vcpu_id = id;
}

int oracle_check_extension(long number, bool of_vm)
{
	return kvm_vm_ioctl_check_extension_generic(of_vm ? &the_vm : NULL, number);
}

int oracle_enable_cap(u32 number, u32 flags, const u64 *arguments)
{
	struct kvm_enable_cap cap = { .cap = number, .flags = flags };

	memcpy(cap.args, arguments, sizeof(cap.args));
	return kvm_vm_ioctl_enable_cap_generic(&the_vm, &cap);
}

/* The hypercalls that exit to the VMM. */
u64 oracle_hypercalls(void)
{
	return the_vm.arch.hypercall_exit_enabled;
}
