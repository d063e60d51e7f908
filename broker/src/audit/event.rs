//! What an event says.

use daypass_protocol::ids::{DeviceId, PersonId, RequestId, SessionId};
use std::fmt;

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The broker by itself: a window closed, a device came back.
    Broker,
    Person {
        id: PersonId,
        email: String,
    },
    Device(DeviceId),
    /// Somebody who did not prove who they are; where they came from.
    Stranger(String),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker => f.write_str("broker"),
            Self::Person { id, email } => write!(f, "person {id} {email}"),
            Self::Device(id) => write!(f, "device {id}"),
            Self::Stranger(from) => write!(f, "stranger {from}"),
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// What happened. The text form is part of the hash and never changes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $($(#[$doc])* $name),+ }

        impl Kind {
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }
        }
    };
}

kinds! {
    BrokerStarted = "broker.started",
    BrokerStopped = "broker.stopped",
    KeyCreated = "key.created",
    PolicyLoaded = "policy.loaded",
    PolicyRefused = "policy.refused",
    SignInSucceeded = "sign_in.succeeded",
    SignInRefused = "sign_in.refused",
    CliSignInConfirmed = "cli_sign_in.confirmed",
    CliSignInRefused = "cli_sign_in.refused",
    SignedOut = "signed_out",
    TokenReuse = "token.reuse",
    ActionRefused = "action.refused",
    RequestAsked = "request.asked",
    RequestAnswered = "request.answered",
    RequestDenied = "request.denied",
    RequestCancelled = "request.cancelled",
    RequestLapsed = "request.lapsed",
    GrantMade = "grant.made",
    GrantExpired = "grant.expired",
    GrantRevoked = "grant.revoked",
    GrantClosed = "grant.closed",
    CertificateIssued = "certificate.issued",
    SessionOpening = "session.opening",
    SessionOpened = "session.opened",
    SessionRefused = "session.refused",
    /// The device's connection is lost, and the session waits for it.
    SessionWaiting = "session.waiting",
    /// Somebody watches a session while it runs.
    SessionWatched = "session.watched",
    SessionResumed = "session.resumed",
    SessionEnded = "session.ended",
    SessionInterrupted = "session.interrupted",
    ChannelOpened = "channel.opened",
    ChannelRefused = "channel.refused",
    ChannelClosed = "channel.closed",
    GatewayRefused = "gateway.refused",
    RecordingStarted = "recording.started",
    RecordingSealed = "recording.sealed",
    RecordingClosed = "recording.closed",
    RecordingInterrupted = "recording.interrupted",
    RecordingRead = "recording.read",
    /// The recordings of a session were kept as long as they had to be.
    RecordingsRemoved = "recordings.removed",
    LineRegistered = "line.registered",
    JoinTokenMade = "join_token.made",
    DeviceEnrolled = "device.enrolled",
    EnrolmentRefused = "enrolment.refused",
    DeviceConnected = "device.connected",
    DeviceDisconnected = "device.disconnected",
    DeviceRefused = "device.refused",
    /// A second connection with a living device key.
    CloneSuspected = "device.clone_suspected",
    DeviceStateChanged = "device.state_changed",
}

/// One event, before it has a place in the chain.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: Kind,
    pub actor: Actor,
    pub request: Option<RequestId>,
    pub session: Option<SessionId>,
    pub device: Option<DeviceId>,
    /// A JSON object; what it says depends on the kind.
    pub detail: serde_json::Value,
}

impl Event {
    pub fn new(kind: Kind, actor: Actor) -> Self {
        let detail = serde_json::Value::Object(serde_json::Map::new());
        Self { kind, actor, request: None, session: None, device: None, detail }
    }

    #[must_use]
    pub fn request(mut self, id: &RequestId) -> Self {
        self.request = Some(id.clone());
        self
    }

    #[must_use]
    pub fn session(mut self, id: &SessionId) -> Self {
        self.session = Some(id.clone());
        self
    }

    #[must_use]
    pub fn device(mut self, id: &DeviceId) -> Self {
        self.device = Some(id.clone());
        self
    }

    #[must_use]
    pub fn detail(mut self, detail: serde_json::Value) -> Self {
        self.detail = detail;
        self
    }
}
