//! The log: lines on standard error, for the init system to keep.

use std::fmt;
use std::io::Write as _;

/// Writes one line. A log that cannot be written must not stop the device, so unlike `eprintln!` this does
/// not panic when standard error is gone.
pub fn line(text: fmt::Arguments<'_>) {
    let text = text.to_string();
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let _ = writeln!(std::io::stderr(), "daypass-shim: {text}");
}

/// One line of the log, formatted as by `format!`. Control characters become spaces: causes can quote what
/// the far side sent.
#[macro_export]
macro_rules! note {
    ($($part:tt)*) => { $crate::log::line(format_args!($($part)*)) };
}
