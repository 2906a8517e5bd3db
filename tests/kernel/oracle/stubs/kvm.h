/* SPDX-License-Identifier: Apache-2.0 */
/* The VM and the vCPU that KVM's SEV code works on: only the parts that it uses. */
#include <linux/kvm.h>
#include <linux/psp-sev.h>
#include <linux/sev-guest.h>
#include <linux/kvm_para.h>
#include <asm/svm.h>

#define X86_TRAP_GP 13
#define GP_VECTOR 13
#define KVM_REQ_EVENT 0
#define KVM_REQ_UPDATE_PROTECTED_GUEST_STATE 1
#define INVALID_PAGE (~(hpa_t)0)
#define VALID_PAGE(x) ((x) != INVALID_PAGE)
#define MSR_IA32_XSS 0xda0
#define KVM_PIO_BUS 1
#define KVM_PIO_PAGE_OFFSET 1
#define KVM_X86_QUIRK_OUT_7E_INC_RIP (1 << 3)
enum kvm_reg {
	VCPU_REGS_RAX, VCPU_REGS_RCX, VCPU_REGS_RDX, VCPU_REGS_RBX,
	VCPU_REGS_RSP, VCPU_REGS_RBP, VCPU_REGS_RSI, VCPU_REGS_RDI,
	NR_VCPU_REGS = 17,
};

struct kvm_host_map { void *hva; };
struct kvm_mmio_fragment { gpa_t gpa; void *data; unsigned len; };
struct kvm_pio_request { unsigned long count; int in, port, size; };
struct kvm_queued_exception {
	bool injected, pending, has_error_code, has_payload;
	u8 vector;
	u32 error_code;
	unsigned long payload;
};
struct hv_vmcb_enlightenments { u8 bytes[32]; };

struct kvm_vcpu;
struct kvm_vcpu_arch {
	unsigned long regs[NR_VCPU_REGS];
	int (*complete_userspace_io)(struct kvm_vcpu *vcpu);
	int mp_state;
	u64 apic_base, cr8;
	bool guest_state_protected, exception_from_userspace, at_instruction_boundary;
	struct kvm_queued_exception exception;
	struct { bool pv_unhalted; } pv;
	struct kvm_pio_request pio;
	void *pio_data, *sev_pio_data;
	unsigned sev_pio_count;
	unsigned long cui_linear_rip;
	int cui_rdmsr_imm_reg;
};
struct kvm_arch {
	u64 hypercall_exit_enabled;
	u32 user_space_msr_mask;
	u64 vm_type;
	bool has_protected_state, irqchip, pre_fault_allowed;
	u32 default_tsc_khz;
};
struct kvm {
	struct kvm_arch arch;
	bool vm_bugged;
	unsigned created_vcpus;
	struct kvm_vcpu *vcpus[2];
	struct mutex lock, slots_lock;
};
struct kvm_vcpu {
	struct kvm *kvm;
	int vcpu_id;
	struct kvm_run *run;
	bool wants_to_run;
	struct kvm_vcpu_arch arch;
	struct { u64 nmi_window_exits, io_exits, halt_exits, hypercalls, signal_exits; } stat;
	int mmio_needed, mmio_is_write, mmio_cur_fragment, mmio_nr_fragments;
	struct kvm_mmio_fragment mmio_fragments[2];
};

#define vcpu_unimpl(...) ((void)0)
#define is_64_bit_mode(vcpu) true
#define kvm_reg_mode_mask(vcpu) (~0ul)
#define trace_kvm_vmgexit_enter(...) ((void)0)
#define trace_kvm_vmgexit_exit(...) ((void)0)
#define trace_kvm_vmgexit_msr_protocol_enter(...) ((void)0)
#define trace_kvm_vmgexit_msr_protocol_exit(...) ((void)0)
#define trace_kvm_pio(...) ((void)0)
#define trace_kvm_hypercall(...) ((void)0)
#define trace_kvm_msr_read(...) ((void)0)
#define trace_kvm_msr_write(...) ((void)0)
#define trace_kvm_msr_read_ex(...) ((void)0)
#define trace_kvm_msr_write_ex(...) ((void)0)
#define KVM_BUG_ON(condition, kvm) WARN_ON(condition)
#define kvm_x86_call(function) oracle_##function
#define kvm_nested_call(function) oracle_##function
#define current NULL
#define signal_pending(task) false
#define vcpu_load(vcpu) ((void)0)
#define vcpu_put(vcpu) ((void)0)
#define kvm_sigset_activate(vcpu) ((void)0)
#define kvm_sigset_deactivate(vcpu) ((void)0)
#define kvm_load_guest_fpu(vcpu) ((void)0)
#define kvm_put_guest_fpu(vcpu) ((void)0)
#define kvm_vcpu_srcu_read_lock(vcpu) ((void)0)
#define kvm_vcpu_srcu_read_unlock(vcpu) ((void)0)
#define kvm_mmu_post_init_vm(kvm) 0
#define kvm_vcpu_block(vcpu) ((void)0)
#define kvm_apic_accept_events(vcpu) 0
#define sync_regs(vcpu) 0
#define store_regs(vcpu) ((void)0)
#define is_smm(vcpu) false
#define is_guest_mode(vcpu) false
#define kvm_queue_exception_vmexit(...) ((void)0)
#define oracle_is_exception_vmexit(...) false
#define lapic_in_kernel(vcpu) ((vcpu)->kvm->arch.irqchip)
#define pic_in_kernel(kvm) ((kvm)->arch.irqchip)
#define kvm_lapic_set_tpr(vcpu, value) ((vcpu)->arch.cr8 = (value))
#define kvm_lapic_get_cr8(vcpu) ((vcpu)->arch.cr8)
#define X86_CR8_TPR 0xful
#define kvm_vcpu_ready_for_interrupt_injection(vcpu) false
#define kvm_vcpu_has_events(vcpu) false
#define kvm_skip_emulated_instruction(vcpu) 1
#define kvm_emulate_instruction(vcpu, type) (abort(), 0)
#define kvm_get_linear_rip(vcpu) 0
#define kvm_is_linear_rip(vcpu, rip) true
#define kvm_check_has_quirk(kvm, quirk) true
#define vcpu_mmio_write(...) 0
#define vcpu_mmio_read(...) 0
#define kvm_io_bus_read(...) (-EOPNOTSUPP)
#define kvm_io_bus_write(...) (-EOPNOTSUPP)
#define object_is_on_stack(data) false
#define kvm_make_request(...) ((void)0)
#define kvm_is_cpuid_allowed(vcpu) true
#define kvm_queue_exception_e(...) ((void)0)
#define kvm_complete_insn_gp(vcpu, error) 1
#define kvm_xen_hypercall_enabled(kvm) false
#define kvm_hv_hypercall_enabled(vcpu) false
#define kvm_xen_hypercall(vcpu) (abort(), 0)
#define kvm_hv_hypercall(vcpu) (abort(), 0)
#define guest_pv_has(vcpu, feature) false
#define kvm_pv_kick_cpu_op(...) ((void)0)
#define kvm_pv_send_ipi(...) 0
#define kvm_sched_yield(...) ((void)0)
#define kvm_pv_clock_pairing(...) (-KVM_EOPNOTSUPP)
#define __kvm_set_xcr(...) 0
#define __kvm_emulate_msr_write(...) 0
#define kvm_register_read(...) 0
#define kvm_register_write(...) ((void)0)
#define page_address_valid(vcpu, gpa) (PAGE_ALIGNED(gpa) && !((gpa) >> 48))
#define __psp_pa(pointer) ((u64)(uintptr_t)(pointer))
#define kvm_lockdep_assert_sev_lock_held(kvm) ((void)0)
#define kvm_vcpu_is_bsp(vcpu) ((vcpu)->vcpu_id == 0)
#define gfn_to_gpa(gfn) ((gpa_t)(gfn) << PAGE_SHIFT)
#define gpa_to_gfn(gpa) ((gfn_t)(gpa) >> PAGE_SHIFT)

int kvm_read_guest(struct kvm *kvm, gpa_t gpa, void *data, unsigned long len);
int kvm_write_guest(struct kvm *kvm, gpa_t gpa, const void *data, unsigned long len);
int kvm_clear_guest(struct kvm *kvm, gpa_t gpa, unsigned long len);
int kvm_vcpu_map(struct kvm_vcpu *vcpu, gfn_t gfn, struct kvm_host_map *map);
void kvm_vcpu_unmap(struct kvm_vcpu *vcpu, struct kvm_host_map *map);
struct kvm_vcpu *kvm_get_vcpu_by_id(struct kvm *kvm, int id);
int kvm_emulate_msr_read(struct kvm_vcpu *vcpu, u32 index, u64 *data);
int kvm_emulate_msr_write(struct kvm_vcpu *vcpu, u32 index, u64 data);
bool kvm_cpuid(struct kvm_vcpu *vcpu, u32 *eax, u32 *ebx, u32 *ecx, u32 *edx, bool exact);
int svm_invoke_exit_handler(struct kvm_vcpu *vcpu, u64 code);
int vcpu_run(struct kvm_vcpu *vcpu);
int kvm_x86_vcpu_pre_run(struct kvm_vcpu *vcpu);
int oracle_complete_emulated_msr(struct kvm_vcpu *vcpu, int error);
u8 oracle_get_cpl(struct kvm_vcpu *vcpu);
bool oracle_get_if_flag(struct kvm_vcpu *vcpu);
void __sev_snp_reload_vmsa(struct kvm_vcpu *vcpu, gpa_t gpa);
void kvm_make_request_and_kick(unsigned request, struct kvm_vcpu *vcpu);
int sev_issue_cmd_external_user(struct file *file, unsigned id, void *data, int *error);

struct fd { struct file *file; };
#define CLASS(kind, name) CLASS_##kind name = oracle_get_##kind
typedef struct fd CLASS_fd;
#define fd_empty(f) (!(f).file)
#define fd_file(f) ((f).file)
struct fd oracle_get_fd(int fd);
