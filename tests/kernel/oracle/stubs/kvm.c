/* SPDX-License-Identifier: Apache-2.0 */
/* One VM with one vCPU or two. The test sets guest memory, the firmware's answers and userspace. */

#define PAGES 32
enum { MAPPED, NO_SLOT, UNMAPPED };
#define IN_GUEST (-512) /* not an errno: the guest keeps running, or waits */

int oracle_warnings;
static u8 memory[PAGES][PAGE_SIZE], orphan[PAGE_SIZE];
static u8 state[PAGES];
static struct vmcb the_vmcb;
static struct kvm_svm the_vm;
static struct vcpu_svm the_vcpus[2];
static u8 the_run[3 * 4096] __aligned(4096);
static u8 request_buffer[PAGE_SIZE], response_buffer[PAGE_SIZE];
static bool exiting;
static bool update_requested;
static u64 next_msr;

/* The firmware's next answer, and what has reached the firmware. */
static struct { s32 ret; u32 status; u8 response[PAGE_SIZE]; u32 fd; } firmware;
static struct { u32 commands; u8 request[PAGE_SIZE]; } reached;
static struct { u32 count; struct { u32 function, eax, ebx, ecx, edx; } entries[16]; } cpuid;
static struct { u32 count; struct { u32 index; u64 value; } entries[8]; } msrs;

u8 *oracle_memory(void) { return memory[0]; }
u8 *oracle_page_states(void) { return state; }
u8 *oracle_run_page(void) { return the_run; }
void *oracle_firmware(void) { return &firmware; }
void *oracle_reached(void) { return &reached; }
void *oracle_cpuid(void) { return &cpuid; }
void *oracle_msrs(void) { return &msrs; }
u64 oracle_msr(void) { return the_vmcb.control.ghcb_gpa; }
u64 oracle_registered(void) { return the_vcpus[0].sev_es.ghcb_registered_gpa; }

static u8 *page_at(gpa_t gpa)
{
	gfn_t gfn = gpa >> PAGE_SHIFT;

	return gfn < PAGES && state[gfn] == MAPPED ? memory[gfn] : NULL;
}

int kvm_read_guest(struct kvm *kvm, gpa_t gpa, void *data, unsigned long len)
{
	while (len) {
		unsigned long offset = gpa % PAGE_SIZE, part = min(len, PAGE_SIZE - offset);
		u8 *page = page_at(gpa);

		if (!page)
			return -EFAULT;
		memcpy(data, page + offset, part);
		data += part, gpa += part, len -= part;
	}
	return 0;
}

int kvm_write_guest(struct kvm *kvm, gpa_t gpa, const void *data, unsigned long len)
{
	while (len) {
		unsigned long offset = gpa % PAGE_SIZE, part = min(len, PAGE_SIZE - offset);
		u8 *page = page_at(gpa);

		if (!page)
			return -EFAULT;
		memcpy(page + offset, data, part);
		data += part, gpa += part, len -= part;
	}
	return 0;
}

int kvm_clear_guest(struct kvm *kvm, gpa_t gpa, unsigned long len)
{
	static const u8 zeros[PAGE_SIZE];

	return kvm_write_guest(kvm, gpa, zeros, len);
}

int kvm_vcpu_map(struct kvm_vcpu *vcpu, gfn_t gfn, struct kvm_host_map *map)
{
	map->hva = page_at(gfn_to_gpa(gfn));
	return map->hva ? 0 : -EINVAL;
}

void kvm_vcpu_unmap(struct kvm_vcpu *vcpu, struct kvm_host_map *map)
{
	map->hva = NULL;
}

/* Userspace removes a page. KVM keeps what it has mapped, but userspace no longer sees that. */
void oracle_set_page(unsigned gfn, u8 to)
{
	struct vcpu_sev_es_state *es = &the_vcpus[0].sev_es;
	u8 *page = memory[gfn];

	if (es->ghcb == (void *)page) {
		memcpy(orphan, page, PAGE_SIZE);
		if ((u8 *)es->ghcb_sa >= page && (u8 *)es->ghcb_sa < page + PAGE_SIZE)
			es->ghcb_sa = orphan + ((u8 *)es->ghcb_sa - page);
		if ((u8 *)the_vcpus[0].vcpu.arch.sev_pio_data >= page &&
		    (u8 *)the_vcpus[0].vcpu.arch.sev_pio_data < page + PAGE_SIZE)
			the_vcpus[0].vcpu.arch.sev_pio_data =
				orphan + ((u8 *)the_vcpus[0].vcpu.arch.sev_pio_data - page);
		if (the_vcpus[0].vcpu.mmio_needed)
			the_vcpus[0].vcpu.mmio_fragments[0].data =
				orphan + ((u8 *)the_vcpus[0].vcpu.mmio_fragments[0].data - page);
		es->ghcb = es->ghcb_map.hva = (void *)orphan;
	}
	memset(page, 0, PAGE_SIZE);
	state[gfn] = to;
}

struct kvm_vcpu *kvm_get_vcpu_by_id(struct kvm *kvm, int id)
{
	return (unsigned)id < 2 && kvm->vcpus[id] ? kvm->vcpus[id] : NULL;
}

int kvm_emulate_msr_read(struct kvm_vcpu *vcpu, u32 index, u64 *data)
{
	for (u32 i = 0; i < msrs.count; i++)
		if (msrs.entries[i].index == index) {
			*data = msrs.entries[i].value;
			return 0;
		}
	return 1;
}

int kvm_emulate_msr_write(struct kvm_vcpu *vcpu, u32 index, u64 data)
{
	for (u32 i = 0; i < msrs.count; i++)
		if (msrs.entries[i].index == index) {
			msrs.entries[i].value = data;
			return 0;
		}
	return 1;
}

bool kvm_cpuid(struct kvm_vcpu *vcpu, u32 *eax, u32 *ebx, u32 *ecx, u32 *edx, bool exact)
{
	u32 function = *eax;

	*eax = *ebx = *ecx = *edx = 0;
	for (u32 i = 0; i < cpuid.count; i++)
		if (cpuid.entries[i].function == function) {
			*eax = cpuid.entries[i].eax, *ebx = cpuid.entries[i].ebx;
			*ecx = cpuid.entries[i].ecx, *edx = cpuid.entries[i].edx;
			return true;
		}
	return false;
}

int oracle_complete_emulated_msr(struct kvm_vcpu *vcpu, int error)
{
	return svm_complete_emulated_msr(vcpu, error);
}

u8 oracle_get_cpl(struct kvm_vcpu *vcpu)
{
	return to_svm(vcpu)->vmcb->save.cpl;
}

bool oracle_get_if_flag(struct kvm_vcpu *vcpu)
{
	return false;
}

int kvm_x86_vcpu_pre_run(struct kvm_vcpu *vcpu)
{
	return to_kvm_sev_info(vcpu->kvm)->need_init ? -EINVAL : 1;
}

/* The handlers in svm_exit_handlers of the exits that VMGEXIT may name. */
int svm_invoke_exit_handler(struct kvm_vcpu *vcpu, u64 code)
{
	switch (code) {
	case SVM_EXIT_CPUID:
		return kvm_emulate_cpuid(vcpu);
	case SVM_EXIT_IOIO:
		return io_interception(vcpu);
	case SVM_EXIT_MSR:
		return msr_interception(vcpu);
	case SVM_EXIT_VMMCALL:
		return kvm_emulate_hypercall(vcpu);
	case SVM_EXIT_RDTSC: /* has no handler */
		vcpu->run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
		vcpu->run->internal.suberror = KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON;
		vcpu->run->internal.ndata = 2;
		vcpu->run->internal.data[0] = code;
		vcpu->run->internal.data[1] = 0;
		return 0;
	default: /* has no effect that GHCB, kvm_run or memory would show */
		return 1;
	}
}

/* sev_fd: an open /dev/sev, closed, or open on something else. */
enum { DEV_SEV, CLOSED, OTHER };

struct fd oracle_get_fd(int fd)
{
	return (struct fd){ firmware.fd == CLOSED ? NULL : (struct file *)&firmware };
}

int sev_issue_cmd_external_user(struct file *file, unsigned id, void *data, int *error)
{
	struct sev_data_snp_guest_request *request = data;

	if (id != SEV_CMD_SNP_GUEST_REQUEST)
		abort();
	if (firmware.fd == OTHER)
		return -EBADF;
	reached.commands++;
	memcpy(reached.request, (void *)(uintptr_t)request->req_paddr, PAGE_SIZE);
	*error = firmware.status;
	if (!firmware.ret)
		memcpy((void *)(uintptr_t)request->res_paddr, firmware.response, PAGE_SIZE);
	return firmware.ret;
}

void __sev_snp_reload_vmsa(struct kvm_vcpu *vcpu, gpa_t gpa)
{
}

void kvm_make_request_and_kick(unsigned request, struct kvm_vcpu *vcpu)
{
	update_requested |= vcpu == &the_vcpus[0].vcpu;
}

/* The loop of vcpu_run(), for a guest that does nothing but VMGEXIT. */
static int enter(struct kvm_vcpu *vcpu)
{
	for (;;) {
		int r;

		if (vcpu->arch.mp_state != KVM_MP_STATE_RUNNABLE)
			return IN_GUEST;
		if (update_requested) { /* as at the start of vcpu_enter_guest() */
			update_requested = false;
			sev_snp_init_protected_guest_state(vcpu);
			continue;
		}
		sev_es_unmap_ghcb(to_svm(vcpu));
		if (!exiting)
			return IN_GUEST;
		exiting = false;
		the_vmcb.control.ghcb_gpa = next_msr;
		r = sev_handle_vmgexit(vcpu);
		if (r <= 0)
			return r;
	}
}

int vcpu_run(struct kvm_vcpu *vcpu)
{
	vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
	return enter(vcpu);
}

void oracle_vmgexit(u64 msr)
{
	next_msr = msr;
	exiting = true;
}

/* KVM_RUN: kvm_vcpu_ioctl samples immediate_exit. */
int oracle_run(void)
{
	struct kvm_vcpu *vcpu = &the_vcpus[0].vcpu;
	u8 before[20];
	int r;

	memcpy(before, the_run + 12, sizeof(before));
	vcpu->wants_to_run = !READ_ONCE(vcpu->run->immediate_exit);
	r = kvm_arch_vcpu_ioctl_run(vcpu);
	if (r == IN_GUEST) { /* so post_kvm_run_save() must not have run yet */
		memcpy(the_run + 12, before, sizeof(before));
		vcpu->run->flags = 0;
	}
	return r;
}

/* Let the guest, which is in KVM_RUN, continue. */
int oracle_go_on(void)
{
	struct kvm_vcpu *vcpu = &the_vcpus[0].vcpu;
	int r;

	r = enter(vcpu);
	if (r != IN_GUEST)
		post_kvm_run_save(vcpu);
	return r;
}

void oracle_reset(bool snp, bool certs, bool irqchip, bool hypercalls, u16 ghcb_version,
		  u64 features, bool second)
{
	memset(&the_vm, 0, sizeof(the_vm));
	memset(&the_vmcb, 0, sizeof(the_vmcb));
	memset(the_vcpus, 0, sizeof(the_vcpus));
	memset(the_run, 0, sizeof(the_run));
	memset(memory, 0, sizeof(memory));
	memset(state, 0, sizeof(state));
	memset(&firmware, 0, sizeof(firmware));
	memset(&reached, 0, sizeof(reached));
	memset(request_buffer, 0, PAGE_SIZE);
	memset(response_buffer, 0, PAGE_SIZE);
	oracle_warnings = 0;
	exiting = update_requested = false;
	the_vm.kvm.arch.irqchip = irqchip;
	the_vm.kvm.arch.hypercall_exit_enabled = hypercalls ? BIT(KVM_HC_MAP_GPA_RANGE) : 0;
	the_vm.kvm.arch.has_protected_state = true;
	the_vm.kvm.arch.vm_type = snp ? KVM_X86_SNP_VM : KVM_X86_SEV_ES_VM;
	the_vm.sev_info.active = the_vm.sev_info.es_active = true;
	the_vm.sev_info.vmsa_features = features | (snp ? SVM_SEV_FEAT_SNP_ACTIVE : 0);
	the_vm.sev_info.ghcb_version = ghcb_version;
	the_vm.sev_info.snp_context = &the_vm;
	the_vm.sev_info.guest_req_buf = request_buffer;
	the_vm.sev_info.guest_resp_buf = response_buffer;
	the_vm.sev_info.snp_certs_enabled = certs;
	sev_enc_bit = 51;
	for (int i = 0; i <= second; i++) {
		struct vcpu_svm *svm = &the_vcpus[i];

		svm->vmcb = &the_vmcb;
		svm->vcpu.kvm = &the_vm.kvm;
		svm->vcpu.vcpu_id = i;
		svm->vcpu.run = (void *)the_run;
		svm->vcpu.arch.pio_data = the_run + PAGE_SIZE;
		svm->vcpu.arch.guest_state_protected = true;
		svm->sev_es.snp_pending_vmsa_gpa = INVALID_PAGE;
		svm->vcpu.arch.apic_base = 0xfee00900;
		the_vm.kvm.vcpus[i] = &svm->vcpu;
	}
	the_vmcb.control.ghcb_gpa = GHCB_MSR_SEV_INFO((u64)ghcb_version, GHCB_VERSION_MIN, sev_enc_bit);
}
