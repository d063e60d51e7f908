//! `memmove` that leaves bytes alone which are where they are to go.
//!
//! AWS-LC's Rust bindings move each TLS record that is opened onto itself. Others' `memmove` notices;
//! musl's for x86_64 copies it byte for byte, which is a sixth of the processor time of an upload. The linker
//! (`build.rs`) leads every call here.

#![allow(unsafe_code, reason = "the C library's interface")]

use std::ffi::c_void;

unsafe extern "C" {
    fn __real_memmove(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void;
}

/// # Safety
///
/// As C's `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_memmove(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void {
    if std::ptr::eq(to, from) {
        return to;
    }
    // SAFETY: the caller's promise, passed on.
    unsafe { __real_memmove(to, from, bytes) }
}
