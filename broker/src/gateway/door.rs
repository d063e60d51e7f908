//! What stands behind the gateway: who somebody is, and the session that carries the bytes.
//!
//! The gateway speaks SSH and knows nothing of grants, policy, recorders or devices. It may be cancelled
//! at any await of a [`SessionDoor::open_channel`] when the engineer's connection dies.

use super::terminal::Terminal;
use crate::session::wire::EngineerChannel;
use async_trait::async_trait;
use daypass_protocol::ids::{DeviceId, Login};
use daypass_protocol::ssh_key::{Certificate, PrivateKey, PublicKey};
use daypass_protocol::tunnel::open::OpenKind;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::broadcast;

/// One line for a person, and what to do next. Causes go to the log, not in here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub message: String,
    pub hint: Option<String>,
    /// It was allowed, and did not come about: SSH has a code of its own for that.
    pub failed: bool,
    /// A grant is what is missing: [`Door::ask`] may bring one.
    pub grantable: bool,
}

impl Refusal {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, failed: false, grantable: false }
    }

    /// Of something that was allowed and did not come about.
    pub fn failure(message: impl Into<String>) -> Self {
        Self { failed: true, ..Self::new(message) }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, ": {hint}"),
            None => Ok(()),
        }
    }
}

/// Why a certificate proves nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotAuthenticated {
    /// Not a certificate of ours. The client may try its next one; it learns nothing.
    Stranger,
    /// A certificate of ours that opens nothing now: the line is shown, and the connection ends.
    Known(Refusal),
}

/// What somebody at a terminal wants to begin.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'w> {
    pub device: &'w DeviceId,
    pub login: &'w Login,
    pub kind: &'w OpenKind,
    pub env: &'w [(String, String)],
}

/// Why asking brought no grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotGranted {
    /// Nobody is there to be asked: the refusal stands.
    Unattended,
    Refused(Refusal),
    /// They left; the line says what stays behind.
    Left(Refusal),
}

/// How the gateway proves itself to clients: a key, and its certificate from the host CA.
#[derive(Clone, Debug)]
pub struct HostIdentity {
    pub key: PrivateKey,
    pub certificate: Certificate,
}

/// What is known of the engineer's client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    pub address: SocketAddr,
    /// The identification string, made visible: `SSH-2.0-OpenSSH_9.2p1 …`.
    pub version: String,
    /// The key exchange of the connection's start, by RFC 4253 section 7.1 from the two lists that went
    /// over the wire; `None` if the client's did not read.
    pub kex: Option<String>,
    /// The key exchange of the outer hop of `ssh -J`.
    pub outer_kex: Option<String>,
}

/// Something that the gate does not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusedKind {
    /// Of the way in by HTTPS: no access token, or none that is good.
    Token,
    /// Ahead of SSH: a ticket that is over, was used, or never was.
    Ticket,
    Certificate,
    BareKey,
    OtherPerson,
    UserName,
    Target,
    Session,
    Shell,
    Exec,
    Subsystem,
    Forward,
    RemoteForward,
    StreamLocal,
    Agent,
    X11,
    Limit,
}

impl RefusedKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Ticket => "ticket",
            Self::Certificate => "certificate",
            Self::BareKey => "bare-key",
            Self::OtherPerson => "other-person",
            Self::UserName => "user-name",
            Self::Target => "target",
            Self::Session => "session",
            Self::Shell => "shell",
            Self::Exec => "exec",
            Self::Subsystem => "subsystem",
            Self::Forward => "forward",
            Self::RemoteForward => "remote-forward",
            Self::StreamLocal => "streamlocal",
            Self::Agent => "agent",
            Self::X11 => "x11",
            Self::Limit => "limit",
        }
    }
}

/// A refusal of the gateway's own, for the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub kind: RefusedKind,
    /// The line that the client was given.
    pub message: String,
    pub source: SocketAddr,
    pub device: Option<DeviceId>,
}

/// Why a session is over; the line is shown on every channel and when disconnecting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndNotice {
    pub message: String,
}

#[async_trait]
pub trait Door: Send + Sync + 'static {
    /// Somebody who proved who they are.
    type Person: Clone + Send + Sync + 'static;

    /// Judges an identity certificate whose key has just signed for this connection. Nothing else of it
    /// was checked: CA, type, window, principal and options are the door's to check.
    async fn authenticate(
        &self,
        certificate: &Certificate,
        source: SocketAddr,
    ) -> Result<Self::Person, NotAuthenticated>;

    /// What to tell somebody who signed with this key and without a valid certificate for it, if the key
    /// is one that was certified here: most often that the certificate has expired. SSH libraries refuse
    /// an expired certificate before anybody is asked, and clients then try its bare key.
    async fn bare_key(&self, _key: &PublicKey) -> Option<Refusal> {
        None
    }

    fn same_person(&self, a: &Self::Person, b: &Self::Person) -> bool;

    /// The key and host certificate under a device's name, for the inner hop of `ssh -J`.
    async fn host_identity(&self, device: &DeviceId) -> Result<HostIdentity, Refusal>;

    /// Begins the session: once per connection, at its first channel, which is told;
    /// asked again if it was refused.
    async fn begin(
        &self,
        person: &Self::Person,
        device: &DeviceId,
        login: &Login,
        first: &OpenKind,
        client: Client,
    ) -> Result<Arc<dyn SessionDoor>, Refusal>;

    /// Asks for access together with somebody at a terminal who was refused for want of a grant, and waits
    /// for the answer with them. When a grant was made, [`Door::begin`] is asked again. May take as long as a
    /// request may wait; cancelled when the channel ends.
    async fn ask(
        &self,
        _person: &Self::Person,
        _wanted: Wanted<'_>,
        _refused: &Refusal,
        _terminal: &mut Terminal<'_>,
    ) -> Result<(), NotGranted> {
        Err(NotGranted::Unattended)
    }

    /// Records what the gateway refused by itself.
    async fn refused(&self, person: Option<&Self::Person>, refused: Refused);
}

#[async_trait]
pub trait SessionDoor: Send + Sync {
    /// Resolves when the device has answered; from then on bytes flow through `engineer`.
    async fn open_channel(
        &self,
        kind: OpenKind,
        env: Vec<(String, String)>,
        engineer: EngineerChannel,
    ) -> Result<(), Refusal>;

    /// Lines to show on terminals while the session goes on: access ends in one minute.
    fn notices(&self) -> broadcast::Receiver<String>;

    /// Resolves when the session was ended by the broker.
    async fn ended(&self) -> EndNotice;

    /// The engineer's connection is gone.
    async fn closed(&self);
}
