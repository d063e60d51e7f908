//! What one operation of an SFTP channel was, as the events file says it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Longest name that is kept, in bytes: Linux's PATH_MAX. A longer one is cut, and says so.
pub const MAX_NAME: usize = 4096;

/// An operation with what is known of it. What a kind does not have is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    pub op: Op,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Name>,
    /// Of a rename the new name, of a link what it points to, of a copy the file that is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Name>,
    /// How a file was to be opened, as in `write,creat,trunc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// What was to be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Attributes>,
    /// The device's answer in one word; [`NO_ANSWER`] when the channel ended first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// The name that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Name>,
    /// Bytes of the file, as the device told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Names that a directory's listing had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<Transfer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Transfer>,
}

/// The result of an operation that the device did not answer.
pub const NO_ANSWER: &str = "no_answer";

/// Kinds of operation: those of draft-ietf-secsh-filexfer-02, and the extensions of OpenSSH's PROTOCOL.
/// Reads and writes are told with the close of their file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    Open,
    Close,
    Opendir,
    Closedir,
    Mkdir,
    Rmdir,
    Remove,
    Rename,
    PosixRename,
    Symlink,
    Hardlink,
    Setstat,
    Lsetstat,
    Fsetstat,
    Stat,
    Lstat,
    Fstat,
    Realpath,
    ExpandPath,
    HomeDirectory,
    Readlink,
    Statvfs,
    Fstatvfs,
    Fsync,
    CopyData,
    Limits,
    UsersGroupsById,
}

/// A name: its text, and its exact bytes where they are no UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// The name had this many bytes; its first [`MAX_NAME`] are here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_from: Option<usize>,
}

impl Name {
    pub(super) fn weight(&self) -> usize {
        self.text.len() + self.base64.as_ref().map_or(0, String::len)
    }
}

impl From<&[u8]> for Name {
    fn from(bytes: &[u8]) -> Self {
        let kept = bytes.get(..MAX_NAME).unwrap_or(bytes);
        let cut_from = (kept.len() < bytes.len()).then_some(bytes.len());
        match std::str::from_utf8(kept) {
            Ok(text) => Self { text: text.to_owned(), base64: None, cut_from },
            Err(_) => Self {
                text: String::from_utf8_lossy(kept).into_owned(),
                base64: Some(STANDARD.encode(kept)),
                cut_from,
            },
        }
    }
}

/// Attributes that a request set; times are seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// In octal, as in `0644`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub atime: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime: Option<u32>,
}

/// What went through an open file in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    pub bytes: u64,
    /// Of the bytes from the file's start up to `bytes`, in hex; `null` when not each of them went
    /// through exactly once and in order, and then `why_none` says why.
    pub sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_none: Option<WhyNone>,
    /// These bytes are all of the file: the device said that it ends there, or it was empty before.
    pub whole: bool,
}

/// Why a transfer has no hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhyNone {
    /// No byte of a file that may have some.
    NothingTransferred,
    /// The first bytes are missing: a transfer that was taken up again.
    NotFromStart,
    /// With gaps, or some bytes more than once.
    OutOfOrder,
    /// Behind what was there before.
    Appended,
    /// The device did not take some of them.
    WriteFailed,
    /// The file's size was set, or the device copied into it, while it was open.
    Changed,
    /// The channel ended, or the file was closed, with answers outstanding.
    Unfinished,
}

impl Operation {
    pub(super) fn new(op: Op) -> Self {
        Self {
            op,
            path: None,
            to: None,
            flags: None,
            attributes: None,
            result: None,
            answer: None,
            size: None,
            entries: None,
            read: None,
            written: None,
        }
    }

    pub(super) fn on(op: Op, path: Name) -> Self {
        Self { path: Some(path), ..Self::new(op) }
    }

    /// May change the device: it is on record before the device is asked.
    pub(super) fn changes(&self) -> bool {
        match self.op {
            Op::Open => self.flags.as_deref().is_some_and(|flags| flags != "read" && !flags.is_empty()),
            Op::Mkdir
            | Op::Rmdir
            | Op::Remove
            | Op::Rename
            | Op::PosixRename
            | Op::Symlink
            | Op::Hardlink
            | Op::Setstat
            | Op::Lsetstat
            | Op::Fsetstat
            | Op::CopyData => true,
            Op::Close
            | Op::Opendir
            | Op::Closedir
            | Op::Stat
            | Op::Lstat
            | Op::Fstat
            | Op::Realpath
            | Op::ExpandPath
            | Op::HomeDirectory
            | Op::Readlink
            | Op::Statvfs
            | Op::Fstatvfs
            | Op::Fsync
            | Op::Limits
            | Op::UsersGroupsById => false,
        }
    }

    /// Bytes that it keeps in memory while it is unanswered.
    pub(super) fn weight(&self) -> usize {
        [&self.path, &self.to].into_iter().flatten().map(Name::weight).sum()
    }
}

/// The word for a status code, draft-ietf-secsh-filexfer-02 section 7.
pub(super) fn result(code: u32) -> String {
    let known = match code {
        0 => "ok",
        1 => "eof",
        2 => "no_such_file",
        3 => "permission_denied",
        4 => "failure",
        5 => "bad_message",
        6 => "no_connection",
        7 => "connection_lost",
        8 => "unsupported",
        _ => return format!("code_{code}"),
    };
    known.to_owned()
}
