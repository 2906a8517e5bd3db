// SPDX-License-Identifier: Apache-2.0
//! A VMM on kvm-ioctls that serves certificates: `snpcerts-vmm FILE VCPUS`.
//!
//! The VMM runs an SNP guest until the guest shuts down or SIGTERM arrives. A real VMM also loads
//! firmware and has devices, but handles `KVM_EXIT_SNP_REQ_CERTS` in the same way.

mod snpcerts;

use std::ffi::CString;
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::Arc;
use std::{env, io, mem, process, ptr, thread};

use kvm_bindings::*;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use snpcerts::{Certs, Slot};

const PAGE: u64 = 4096;
/// Two adjacent memory slots.
const SLOTS: [(u64, u64); 2] = [(0, 128 * PAGE), (128 * PAGE, 2048 * PAGE)];
const MEMORY: u64 = (128 + 2048) * PAGE;
const MAP_GPA_RANGE: u32 = 12; // KVM_HC_MAP_GPA_RANGE
const ENCRYPTED: u64 = 1 << 4; // KVM_MAP_GPA_RANGE_ENCRYPTED

static STOPPING: AtomicBool = AtomicBool::new(false);

type Failed = Box<dyn std::error::Error + Send + Sync>;

fn sev_command<T>(vm: &VmFd, sev: RawFd, id: u32, data: &mut T) -> Result<(), Failed> {
    let mut command =
        kvm_sev_cmd { id, data: data as *mut T as u64, sev_fd: sev as u32, ..Default::default() };
    Ok(vm.encrypt_op_sev(&mut command)?)
}

fn set_private(vm: &VmFd, address: u64, size: u64, private: bool) -> Result<(), Failed> {
    let attributes = if private { KVM_MEMORY_ATTRIBUTE_PRIVATE as u64 } else { 0 };
    Ok(vm.set_memory_attributes(kvm_memory_attributes { address, size, attributes, flags: 0 })?)
}

fn add_slot(vm: &VmFd, slot: u32, gpa: u64, size: u64, host: u64) -> Result<Slot, Failed> {
    let memfd = vm.create_guest_memfd(kvm_create_guest_memfd { size, ..Default::default() })?;
    let region = kvm_userspace_memory_region2 {
        slot,
        flags: KVM_MEM_GUEST_MEMFD,
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: host,
        guest_memfd: memfd as u32,
        ..Default::default()
    };
    // SAFETY: the memory is mapped until the process ends.
    unsafe { vm.set_user_memory_region2(region)? };
    Ok(Slot { gpa, size, host })
}

/// Serve KVM_HC_MAP_GPA_RANGE: make pages shared or private. Return the guest's answer.
fn change_page_state(vm: &VmFd, memory: u64, args: [u64; 6]) -> Result<u64, Failed> {
    let (gpa, pages, private) = (args[0], args[1], args[2] & ENCRYPTED != 0);
    if gpa >= MEMORY || pages > (MEMORY - gpa) / PAGE {
        return Ok(libc::EINVAL as u64);
    }
    set_private(vm, gpa, pages * PAGE, private)?;
    if private {
        let (start, size) = ((memory + gpa) as *mut libc::c_void, (pages * PAGE) as usize);
        // SAFETY: the range is inside the guest's memory, which this process may discard.
        unsafe { libc::madvise(start, size, libc::MADV_DONTNEED) };
    }
    Ok(0)
}

fn run_vcpu(vm: &VmFd, vcpu: &mut VcpuFd, certs: &Certs, memory: u64) -> Result<(), Failed> {
    while !STOPPING.load(Ordering::SeqCst) {
        match vcpu.run() {
            Ok(VcpuExit::Hypercall(exit)) => {
                *exit.ret = change_page_state(vm, memory, exit.args)?;
            }
            Ok(VcpuExit::Unsupported(_)) => {
                let fd = vcpu.as_raw_fd();
                let run: *mut kvm_run = vcpu.get_kvm_run();
                // SAFETY: `run` is the mapping of `fd`, and the slots of `certs` are mapped.
                let error = unsafe {
                    if !snpcerts::snpcerts_asks(run.cast()) {
                        return Err("an exit that this VMM does not know".into());
                    }
                    snpcerts::snpcerts_serve(certs, fd, run.cast(), ptr::null_mut())
                };
                if error != 0 && error != libc::EINTR {
                    return Err(io::Error::from_raw_os_error(error).into());
                }
            }
            Ok(_) => break,
            Err(error) if error.errno() == libc::EINTR => continue,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn main() -> Result<(), Failed> {
    let arguments: Vec<_> = env::args_os().collect();
    let count = arguments.get(2).and_then(|text| text.to_str()?.parse::<u64>().ok());
    let (3, Some(vcpus)) = (arguments.len(), count) else {
        eprintln!("usage: snpcerts-vmm FILE VCPUS");
        process::exit(2);
    };
    let path = CString::new(arguments[1].clone().into_vec())?;
    // SAFETY: these are plain system calls, and the handler does nothing.
    let term = unsafe {
        let mut term: libc::sigset_t = mem::zeroed();
        libc::sigaddset(&mut term, libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &term, ptr::null_mut());
        extern "C" fn kicked(_: libc::c_int) {}
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = kicked as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut());
        term
    };

    let kvm = Kvm::new()?;
    let sev_file = OpenOptions::new().read(true).write(true).open("/dev/sev")?;
    let sev = sev_file.as_raw_fd();
    let vm = Arc::new(kvm.create_vm_with_type(KVM_X86_SNP_VM as u64)?);
    let mut init = kvm_sev_init { ghcb_version: 2, ..Default::default() };
    sev_command(&vm, sev, sev_cmd_id_KVM_SEV_INIT2, &mut init)?;
    let mut hypercalls = kvm_enable_cap { cap: KVM_CAP_EXIT_HYPERCALL, ..Default::default() };
    hypercalls.args[0] = 1 << MAP_GPA_RANGE;
    vm.enable_cap(&hypercalls)?;
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANON);
    // SAFETY: this creates a new mapping.
    let memory = unsafe { libc::mmap(ptr::null_mut(), MEMORY as usize, access, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error().into());
    }
    let memory = memory as u64;
    let mut slots = Vec::new();
    for (number, (gpa, size)) in SLOTS.into_iter().enumerate() {
        slots.push(add_slot(&vm, number as u32, gpa, size, memory + gpa)?);
    }
    set_private(&vm, 0, MEMORY, true)?;

    // After INIT2 and before the first vCPU.
    // SAFETY: both functions only take descriptors.
    if unsafe { snpcerts::snpcerts_supported(kvm.as_raw_fd()) } {
        match unsafe { snpcerts::snpcerts_enable(vm.as_raw_fd()) } {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error).into()),
        }
    }
    let certs = Arc::new(Certs::new(path, slots));
    let fds = (0..vcpus).map(|id| vm.create_vcpu(id)).collect::<Result<Vec<_>, _>>()?;

    let mut start = kvm_sev_snp_launch_start { policy: 3 << 16, ..Default::default() };
    sev_command(&vm, sev, sev_cmd_id_KVM_SEV_SNP_LAUNCH_START, &mut start)?;
    for (page, kind) in [(0, KVM_SEV_SNP_PAGE_TYPE_NORMAL), (1, KVM_SEV_SNP_PAGE_TYPE_SECRETS)] {
        let mut update = kvm_sev_snp_launch_update {
            gfn_start: page,
            uaddr: memory + page * PAGE,
            len: PAGE,
            type_: kind as u8,
            ..Default::default()
        };
        sev_command(&vm, sev, sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE, &mut update)?;
    }
    let mut finish = kvm_sev_snp_launch_finish::default();
    sev_command(&vm, sev, sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH, &mut finish)?;

    let (mut kicks, mut threads) = (Vec::new(), Vec::new());
    for mut vcpu in fds {
        // SAFETY: the mapping of kvm_run lives as long as the process. KVM reads this byte.
        let immediate_exit = unsafe { AtomicU8::from_ptr(&mut vcpu.get_kvm_run().immediate_exit) };
        let (vm, certs) = (vm.clone(), certs.clone());
        let thread = thread::spawn(move || {
            let result = run_vcpu(&vm, &mut vcpu, &certs, memory);
            mem::forget(vcpu); // a late kick writes to its mapping
            result
        });
        kicks.push((immediate_exit, thread.as_pthread_t()));
        threads.push(thread);
    }
    thread::spawn(move || unsafe {
        libc::sigwait(&term, &mut 0);
        STOPPING.store(true, Ordering::SeqCst);
        for (immediate_exit, thread) in kicks {
            immediate_exit.store(1, Ordering::SeqCst);
            libc::pthread_kill(thread, libc::SIGUSR1);
        }
    });
    threads.into_iter().try_for_each(|thread| thread.join().expect("a vCPU's thread panicked"))
}
