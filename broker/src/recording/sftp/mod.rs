//! Reading SFTP as it passes: what was done to which file, with which result.
//!
//! Version 3 (draft-ietf-secsh-filexfer-02) with the extensions of OpenSSH's PROTOCOL. A [`Reader`] is fed
//! both directions of one channel, cut anywhere, and gives back what may go on and what has to be on
//! record before it does. It is pure: no clock, no socket, no disk.
//!
//! Nothing passes that it does not understand: a request goes on when all of it was read, an answer when
//! it fits its request. Only the content of files and the listings of directories stream through as they
//! come; content is hashed on its way and kept nowhere. The first thing that does not read ends the
//! channel ([`Broken`]).
//!
//! Memory is bounded by the limits below, whatever is sent.

mod fields;
mod file;
mod operation;
mod packet;
mod reader;
mod request;

#[cfg(test)]
pub(super) mod tests;

pub use operation::{Attributes, MAX_NAME, NO_ANSWER, Name, Op, Operation, Transfer, WhyNone};
pub use packet::Passed;
pub use reader::{Reader, Seen};

/// Longest packet, its length field left out: OpenSSH's 256 KiB of data and room for what stands before.
pub const MAX_PACKET: u32 = 257 * 1024;
/// Longest packet without content, and so most bytes that are held back.
pub const MAX_HELD: usize = 64 * 1024;
/// Longest handle (draft section 6.3).
pub const MAX_HANDLE: usize = 256;
/// Requests without an answer at which a client waits for one: some ask as fast as they can write.
pub const ENOUGH: usize = 1024;
/// Most requests without an answer: that many, and all that one more piece of 32 KiB can bring.
pub const MAX_OUTSTANDING: usize = 5 * 1024;
/// Most files and directories open at once.
pub const MAX_OPEN: usize = 1024;
/// Most bytes of names in memory, of open files and unanswered requests together.
pub const MAX_KEPT: usize = 1 << 20;

/// Whose words they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The engineer's client: requests.
    Client,
    /// The device's server: answers.
    Device,
}

/// The stream cannot be accounted for, and the channel has to end. Nothing passes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} {what}, so the file transfer cannot be recorded and was ended", match .side {
    Side::Client => "your client sent",
    Side::Device => "the device sent",
})]
pub struct Broken {
    pub side: Side,
    pub what: What,
}

/// What does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum What {
    #[error("an SFTP packet of {0} bytes, which is too long")]
    TooLong(u32),
    #[error("an SFTP packet without a type")]
    Empty,
    #[error("an SFTP packet that is shorter than its fields")]
    CutShort,
    #[error("an SFTP packet that is longer than its fields")]
    TooMuch,
    #[error("an SFTP packet whose lengths disagree")]
    LengthsDisagree,
    #[error("an SFTP handle of more than {MAX_HANDLE} bytes")]
    LongHandle,
    #[error("SFTP attributes that are not of version 3")]
    UnknownAttributes,
    #[error("an SFTP packet of type {0}, which does not belong here")]
    UnknownType(u8),
    #[error("an SFTP extension that is not known here")]
    UnknownExtension,
    #[error("something other than the greeting of SFTP")]
    NoGreeting,
    #[error("version {0} of SFTP, and only version 3 is read here")]
    Version(u32),
    #[error("an SFTP request under the number of another that is unanswered")]
    NumberInUse,
    #[error("more than {MAX_OUTSTANDING} SFTP requests without waiting for an answer")]
    TooManyRequests,
    #[error("more than {MAX_OPEN} open files at once")]
    TooManyOpen,
    #[error("too many long names at once")]
    TooMuchKept,
    #[error("a handle that the device did not give, or that is being closed")]
    UnknownHandle,
    #[error("a handle for a file where a directory is needed, or the other way round")]
    WrongHandle,
    #[error("an SFTP answer to no request")]
    UnknownNumber,
    #[error("an SFTP answer that does not fit its request")]
    WrongAnswer,
    #[error("more of a file than was asked for")]
    MoreThanAsked,
    #[error("a handle that is in use")]
    HandleInUse,
    #[error("something after the SFTP stream had been given up")]
    Over,
}
