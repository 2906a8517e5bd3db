// SPDX-License-Identifier: Apache-2.0
//! The parts of `snpcerts.h` that this VMM uses.

use std::ffi::{c_char, c_int, c_void, CString};
use std::ptr;

/// `SNPCERTS_LOCK_WAIT`, in nanoseconds.
const LOCK_WAIT: u64 = 100_000_000;

/// `struct snpcerts_slot`.
#[repr(C)]
pub struct Slot {
    pub gpa: u64,
    pub size: u64,
    pub host: u64,
}

/// `struct snpcerts_vm`.
#[repr(C)]
pub struct Certs {
    pub path: *const c_char,
    pub lock_wait: u64,
    pub size_limit: u64,
    pub flags: u32,
    pub slot_count: u32,
    pub slots: *const Slot,
    pub find: *const c_void,
    pub done: *const c_void,
    pub enter: *const c_void,
    pub context: *const c_void,
}

impl Certs {
    /// Returns settings for one VM's requests. Path and slots stay in memory until the process ends.
    pub fn new(path: CString, slots: Vec<Slot>) -> Certs {
        let (slots, none) = (slots.leak(), ptr::null());
        Certs {
            path: path.into_raw(),
            lock_wait: LOCK_WAIT,
            size_limit: 0,
            flags: 0,
            slot_count: slots.len() as u32,
            slots: slots.as_ptr(),
            find: none,
            done: none,
            enter: none,
            context: none,
        }
    }
}

// The library and this program only read this structure.
unsafe impl Send for Certs {}
unsafe impl Sync for Certs {}

extern "C" {
    pub fn snpcerts_supported(kvm: c_int) -> bool;
    pub fn snpcerts_enable(vm: c_int) -> c_int;
    pub fn snpcerts_asks(run: *const c_void) -> bool;
    pub fn snpcerts_serve(
        certs: *const Certs,
        vcpu: c_int,
        run: *mut c_void,
        served: *mut c_void,
    ) -> c_int;
}
