/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The SNP part of a release's selftest sev_init2_tests. On a host that reserves all ASIDs for SNP,
 * the selftest's own main() skips everything.
 */
#define main whole_test
#include "x86/sev_init2_tests.c"
#undef main

int main(void)
{
	int kvm = open_kvm_dev_path_or_exit();

	TEST_ASSERT(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SNP_VM), "no SNP VMs");
	TEST_ASSERT(kvm_cpu_has(X86_FEATURE_SEV_SNP), "SNP_VM supported without SEV_SNP in CPUID");
	TEST_ASSERT(!__kvm_has_device_attr(kvm, KVM_X86_GRP_SEV, KVM_X86_SEV_VMSA_FEATURES),
		    "no KVM_X86_SEV_VMSA_FEATURES");
	kvm_device_attr_get(kvm, KVM_X86_GRP_SEV, KVM_X86_SEV_VMSA_FEATURES,
			    &supported_vmsa_features);
	test_init2(KVM_X86_SNP_VM, &(struct kvm_sev_init){});
	test_init2_invalid(0, &(struct kvm_sev_init){}, "VM type is KVM_X86_DEFAULT_VM");
	test_flags(KVM_X86_SNP_VM);
	test_features(KVM_X86_SNP_VM, supported_vmsa_features);
	return 0;
}
