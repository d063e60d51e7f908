//! Requests: somebody asks for a device, a login, channels and a time, and says why.
//!
//! `pending → granted | denied | cancelled | lapsed`. What follows a request is decided in
//! [`crate::approval`], the only door to a grant.

pub mod desk;
#[allow(unused_qualifications, reason = "what utoipa writes for query parameters")]
pub mod http;
mod scope;
pub mod store;
mod submit;
mod targets;
pub mod view;

pub use scope::{OutOfScope, Scope};
pub use submit::{Limits, SubmitError, cancel, lapse, submit};
pub use targets::UnfitTargets;

use crate::login::VerifiedPerson;
use crate::policy::{ConnectAsk, DeviceFacts, RequestFacts, Subject};
use daypass_protocol::api::{GrantState, RequestState};
use daypass_protocol::channel::ChannelSet;
use daypass_protocol::ids::{DeviceId, Login, PersonId, RequestId};
use daypass_protocol::target::ForwardTarget;
use daypass_protocol::time::Timestamp;
use std::time::Duration;

/// A request as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRequest {
    pub id: RequestId,
    pub person: PersonId,
    pub device: DeviceId,
    pub login: Login,
    pub channels: ChannelSet,
    pub duration: Duration,
    pub reason: String,
    pub ticket: Option<String>,
    pub emergency: bool,
    /// The one command that is asked for.
    pub command: Option<String>,
    /// Where forwards may lead; none without the channel.
    pub forward_targets: Vec<ForwardTarget>,
    pub state: RequestState,
    pub asked_at: Timestamp,
    pub lapses_at: Timestamp,
    pub why: Vec<String>,
    pub approver_teams: Vec<String>,
}

/// A grant as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredGrant {
    pub request: RequestId,
    pub person: PersonId,
    pub device: DeviceId,
    pub login: Login,
    pub scope: Scope,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
    pub state: GrantState,
    pub ended_by: Option<String>,
}

impl StoredGrant {
    /// Live in the database, and its window is not over: the sweeper may be a moment behind.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.state == GrantState::Live && self.starts_at <= now && now < self.ends_at
    }
}

impl StoredRequest {
    /// As policy is asked about it.
    pub fn as_ask(&self, subject: Subject, device: DeviceFacts) -> ConnectAsk {
        ConnectAsk {
            subject,
            device,
            login: self.login.clone(),
            channels: self.channels.clone(),
            duration: self.duration,
            reason: self.reason.clone(),
            ticket: self.ticket.clone(),
            emergency: self.emergency,
            on_site: false,
            command: self.command.clone(),
            forward_targets: self.forward_targets.clone(),
        }
    }

    pub fn facts(&self, device: DeviceFacts) -> RequestFacts {
        RequestFacts {
            requester: self.person.clone(),
            device,
            login: self.login.clone(),
            channels: self.channels.clone(),
            duration: self.duration,
            emergency: self.emergency,
        }
    }
}

impl From<&VerifiedPerson> for Subject {
    fn from(person: &VerifiedPerson) -> Self {
        Self {
            id: person.id().clone(),
            email: person.email().to_owned(),
            teams: person.teams().to_vec(),
            mfa: person.mfa(),
            signed_in_at: person.signed_in_at(),
        }
    }
}
