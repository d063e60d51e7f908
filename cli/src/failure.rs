//! Everything that can go wrong, as data. What is said about it stands in [`crate::ui::failures`].

use daypass_protocol::api::{Problem, Request};
use daypass_protocol::ids::{DeviceId, RequestId, SessionId};
use daypass_protocol::text::UnfitText;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub enum Failure {
    /// No tokens, or tokens that the broker no longer takes.
    NotSignedIn,
    /// The profile does not know a broker yet.
    NoBroker,
    BadBrokerUrl {
        url: String,
        why: &'static str,
    },
    Unreachable {
        url: String,
        why: String,
    },
    /// What HTTPS_PROXY names lets nobody through, or not us.
    Proxy {
        url: String,
        why: String,
    },
    /// A connection that was open ended without a goodbye.
    Cut {
        url: String,
        why: String,
    },
    /// TLS: the broker's certificate is not one that this profile trusts.
    Untrusted {
        url: String,
        why: String,
    },
    /// The broker said no, in its own words.
    Problem(Box<Problem>),
    /// An answer that is not what the API promises.
    BadAnswer {
        what: &'static str,
        why: String,
    },
    /// RFC 6749 section 5.2, other than the cases with a name of their own.
    Token {
        error: String,
        description: Option<String>,
    },
    /// Tokens are gone from here, and the broker still takes them.
    NotRevoked(Box<Failure>),
    SignInRefused,
    SignInLapsed,
    Denied(Box<Request>),
    Cancelled(RequestId),
    Lapsed(RequestId),
    /// The grant was over before the wait for it was.
    GrantOver(RequestId),
    /// Ctrl-C while a request waits: the request stays.
    StoppedWaiting(RequestId),
    Interrupted,
    NoReason(DeviceId),
    NeedsYes,
    Refused,
    Text(UnfitText),
    File {
        path: PathBuf,
        error: io::Error,
    },
    Corrupt {
        path: PathBuf,
        why: String,
    },
    /// A path that ssh_config(5) or the shell behind it would read as something else.
    UnfitPath(PathBuf),
    NoHome,
    Ssh(io::Error),
    /// The gateway's SSH port.
    NoGateway {
        host: String,
        port: u16,
        why: String,
    },
    /// Standard output is not where `ssh` waits for a connection.
    NotHandedOver(io::Error),
    Key(String),
    NoRecording(SessionId),
    NoSuchChannel {
        session: SessionId,
        channel: u32,
    },
    SeveralRecordings {
        session: SessionId,
        channels: Vec<u32>,
    },
    RawToTerminal,
    /// Targets of `-L` beside a SOCKS proxy for which none are named: the request would be for one or the other.
    ProxyToWhere,
    /// The right to watch a session ended before the session did.
    NoLongerWatched(SessionId),
    /// The broker could not show on what a session does.
    NotShown(SessionId),
    Output(io::Error),
    Random,
}

impl Failure {
    /// Whether the same question may well be answered a moment later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Problem(problem) => problem.status >= 500 || problem.status == 429,
            _ => false,
        }
    }

    pub fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |error| Self::File { path: path.to_owned(), error }
    }
}

impl From<UnfitText> for Failure {
    fn from(unfit: UnfitText) -> Self {
        Self::Text(unfit)
    }
}
