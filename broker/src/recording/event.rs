//! What the events file of a session says: one JSON object a line.

use super::sftp::Operation;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use daypass_protocol::api::EndReason;
use daypass_protocol::channel::ChannelKind;
use daypass_protocol::tunnel::frame::Exit;
use daypass_protocol::tunnel::open::Pty;
use serde::{Deserialize, Serialize};

/// One line of the events file. `event` names the kind; channels are numbered within their session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum SessionEvent {
    /// The first line.
    SessionOpened {
        session: String,
        request: String,
        person: String,
        email: String,
        device: String,
        login: String,
        client_address: String,
    },
    ChannelOpened {
        channel: u32,
        kind: ChannelKind,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        command: Option<Command>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pty: Option<Pty>,
        /// Number of the recording that has its output; an SFTP channel has none, its operations are here.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        recording: Option<u32>,
    },
    /// A forward carries bytes that are counted and not kept.
    ForwardOpened {
        channel: u32,
        /// `HOST:PORT`, as the device sees it.
        target: String,
    },
    ForwardClosed {
        channel: u32,
        target: String,
        duration_ms: u64,
        bytes_to_device: u64,
        bytes_from_device: u64,
    },
    ChannelRefused {
        /// As the client named it; need not be a kind that exists.
        kind: String,
        why: String,
    },
    Resized {
        channel: u32,
        cols: u32,
        rows: u32,
    },
    Exited {
        channel: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<u32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<String>,
    },
    /// The device is about to be asked for something that may change it. What came of it is told by `sftp`.
    SftpAsked {
        channel: u32,
        #[serde(flatten)]
        operation: Operation,
    },
    /// An operation on files, with its outcome.
    Sftp {
        channel: u32,
        #[serde(flatten)]
        operation: Operation,
    },
    /// The channel was ended, because what one side sent could not be accounted for.
    SftpUnreadable {
        channel: u32,
        why: String,
    },
    /// What the device's SFTP server wrote to its standard error.
    SftpStderr {
        channel: u32,
        output: Command,
    },
    /// Input is counted and never stored: it has passwords in it.
    ChannelClosed {
        channel: u32,
        input_bytes: u64,
        stdout_bytes: u64,
        stderr_bytes: u64,
    },
    /// The device's connection is lost; what its processes say from here on comes when it is back.
    DeviceLost,
    DeviceBack {
        after_ms: u64,
    },
    /// A line that the broker itself showed, such as that access ends in a minute.
    Notice {
        text: String,
    },
    /// The last line.
    SessionEnded {
        reason: EndReason,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
}

impl SessionEvent {
    pub fn exited(channel: u32, exit: &Exit) -> Self {
        match exit {
            Exit::Status(status) => Self::Exited { channel, status: Some(*status), signal: None },
            Exit::Signal { name, .. } => Self::Exited { channel, status: None, signal: Some(name.clone()) },
        }
    }
}

/// A command: its text, and its exact bytes where they are no UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
}

impl From<&[u8]> for Command {
    fn from(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self { text: text.to_owned(), base64: None },
            Err(_) => Self {
                text: String::from_utf8_lossy(bytes).into_owned(),
                base64: Some(STANDARD.encode(bytes)),
            },
        }
    }
}

/// The line with its time, in milliseconds since the session started.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    pub t: u64,
    #[serde(flatten)]
    pub event: &'a SessionEvent,
}
