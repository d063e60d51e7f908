//! The one module of the library with `unsafe`: five system interfaces that the type system cannot see
//! through.

#![allow(unsafe_code, reason = "see the safety comment at each block")]

use nix::libc;
use nix::sys::signal::{SigHandler, Signal, signal};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use tokio::io::unix::AsyncFd;

/// Gives every signal its default meaning. What a parent ignores stays ignored through exec, and a shim
/// started by a script in the background would hand on an ignored SIGINT.
pub fn reset_signals() -> nix::Result<()> {
    for number in Signal::iterator() {
        if matches!(number, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        // SAFETY: SIG_DFL installs no handler, so no code of ours runs at a signal. The caller is a
        // single-threaded process about to exec and relies on no handler.
        unsafe { signal(number, SigHandler::SigDfl) }?;
    }
    for number in libc::SIGRTMIN()..=libc::SIGRTMAX() {
        // SAFETY: as above; these have no name in `Signal`.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    Ok(())
}

/// Keeps every descriptor but the standard ones from the next program. Ours are so from birth; whoever
/// started the shim may have left others open.
pub fn keep_descriptors() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        if fd > 2 {
            // SAFETY: borrowed for one call that fails cleanly if the number is closed by now (that of this
            // very directory is, at the end); nothing is read, written or closed.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            let _ = rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC);
        }
    }
    Ok(())
}

/// Takes over a descriptor that the parent process left open for this one, and keeps it from going
/// further. Fails for a number that is not open or is standard input, output or error.
pub fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: called once, first thing in a fresh process, before anything is opened: whatever is open
    // under this number was put there by the parent for this purpose, and nothing else owns it. A number
    // that is not open is closed again as such by the failing call below.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    match rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC) {
        Ok(()) => Ok(owned),
        Err(errno) => {
            // Dropping it would close a number that is not ours.
            std::mem::forget(owned);
            Err(errno.into())
        }
    }
}

/// Registers a descriptor with the runtime.
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open until it is dropped and answers with the same number each time; the
    // AsyncFd owns it and deregisters before it closes.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Lets go of the program's code as this process has it mapped. What is still needed comes back page by page
/// from what the machine has cached anyway; what only the start needed does not.
pub fn let_go_of_code() {
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    let (start, end) = (&raw const __executable_start, &raw const etext);
    // Whole pages only, so that nothing behind the code is meant.
    let length = (end.addr() - start.addr()) & !4095;
    // SAFETY: the linker's names for where the program begins and its code ends; in between are read-only
    // mappings of its file, which nothing has written to and which read the same when they are mapped again.
    // Nothing is read through the pointers here. A kernel that does not want to says so, and nothing changed.
    unsafe { libc::madvise(start.cast_mut().cast(), length, libc::MADV_DONTNEED) };
}
