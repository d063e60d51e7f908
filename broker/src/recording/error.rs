//! Why a session is not recorded, in words for the people at both ends of it.

use std::io;
use std::sync::Arc;

/// A session that gets one of these ends: nothing goes on unrecorded. The text is for a person; the
/// cause, with paths, is the error's source and goes to the log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RecordError {
    #[error("the disk that holds the recordings is full")]
    Full(#[source] Arc<io::Error>),
    #[error(
        "the disk that holds the recordings has only {free_mib} MiB free, and {min_mib} MiB are to be kept; an operator must make room before new sessions can start"
    )]
    TooLittleRoom { free_mib: u64, min_mib: u64 },
    #[error(
        "the recordings take {used_mib} MiB, and {most_mib} MiB are allowed; an operator must make room before new sessions can start"
    )]
    Quota { used_mib: u64, most_mib: u64 },
    /// Not a failure of the recorder: it closes in order after this.
    #[error("the recording of this session has reached its limit of {mib} MiB")]
    TooLong { mib: u64 },
    #[error("the recording cannot be started")]
    Start(#[source] Arc<io::Error>),
    #[error("the recording cannot be written")]
    Write(#[source] Arc<io::Error>),
    #[error("the recording cannot be put safely on the disk")]
    Sync(#[source] Arc<io::Error>),
    #[error("the recording cannot be entered into the audit log")]
    Log(#[source] Arc<sqlx::Error>),
    #[error("the recording could not be sealed in time")]
    SealTooSlow,
    #[error("the recording is over")]
    Closed,
    #[error("the recorder stopped unexpectedly")]
    Stopped,
}

impl RecordError {
    pub(super) fn starting(error: io::Error) -> Self {
        Self::full_or(error, Self::Start)
    }

    pub(super) fn writing(error: io::Error) -> Self {
        Self::full_or(error, Self::Write)
    }

    pub(super) fn syncing(error: io::Error) -> Self {
        Self::full_or(error, Self::Sync)
    }

    fn full_or(error: io::Error, otherwise: fn(Arc<io::Error>) -> Self) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(Arc::new(error)),
            _ => otherwise(Arc::new(error)),
        }
    }
}

impl From<sqlx::Error> for RecordError {
    fn from(error: sqlx::Error) -> Self {
        Self::Log(Arc::new(error))
    }
}
