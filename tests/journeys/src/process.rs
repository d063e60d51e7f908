//! Processes of this machine, which is also the devices' machine.

use std::sync::atomic::{AtomicU32, Ordering};

/// A number of seconds that no other process sleeps.
pub fn marker() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("3000.{}{:04}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn arguments(pid: i32) -> Vec<String> {
    let raw = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    raw.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

fn all() -> impl Iterator<Item = i32> {
    std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The processes that run `sleep MARKER`.
pub fn sleepers(marker: &str) -> Vec<i32> {
    all()
        .filter(|pid| {
            let arguments = arguments(*pid);
            arguments.first().is_some_and(|program| program.rsplit('/').next() == Some("sleep"))
                && arguments.iter().any(|argument| argument == marker)
        })
        .collect()
}

/// Whether a process is there and not a zombie.
pub fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

/// Children of a process that run a program of this name.
pub(crate) fn children(parent: i32, program: &str) -> Vec<i32> {
    let line = format!("PPid:\t{parent}");
    all()
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/status"))
                .is_ok_and(|status| status.lines().any(|found| found == line))
                && arguments(*pid).first().is_some_and(|first| first.ends_with(program))
        })
        .collect()
}

/// The processes that a process has started and that are there.
pub fn children_of(parent: i32) -> Vec<i32> {
    children(parent, "")
}
