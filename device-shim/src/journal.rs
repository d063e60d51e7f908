//! The local journal: who came in, for the device's owner to read. One JSON object a line.

use daypass_protocol::target::ForwardTarget;
use daypass_protocol::time::Timestamp;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// At this size the journal moves to `NAME.1`, and one before it is gone: flash is small.
const MAX_SIZE: u64 = 1024 * 1024;

/// One line.
#[derive(Debug, Serialize)]
pub struct Entry<'a> {
    /// RFC 3339, trusted time.
    pub at: String,
    /// `opened` or `ended`.
    pub event: &'a str,
    pub session: &'a str,
    pub channel: u32,
    pub person: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant: Option<&'a str>,
    pub login: &'a str,
    pub kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Where a forward leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<ForwardTarget>,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
}

/// Where entries go; nowhere, if the configuration names no file.
#[derive(Debug)]
pub struct Journal(Option<(PathBuf, Mutex<()>)>);

impl Journal {
    pub fn new(path: Option<PathBuf>) -> Self {
        Self(path.map(|path| (path, Mutex::new(()))))
    }

    /// Appends one line. A caller that is about to let somebody in must not, when this fails.
    pub fn write(&self, entry: &Entry<'_>) -> io::Result<()> {
        let Some((path, lock)) = &self.0 else { return Ok(()) };
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let _held = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file: File = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
        if file.metadata()?.len() + line.len() as u64 > MAX_SIZE {
            let mut old = path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(path, old)?;
            file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
        }
        file.write_all(&line)
    }
}

/// Trusted time as the journal spells it.
pub fn spell(at: Timestamp) -> String {
    at.to_string()
}
