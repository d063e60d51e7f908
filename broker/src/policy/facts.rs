//! What policy is told: the person, the device, the ask, the approvals.

use daypass_protocol::api::{CraClass, DeviceState};
use daypass_protocol::channel::ChannelSet;
use daypass_protocol::ids::{DeviceId, LineName, Login, PersonId};
use daypass_protocol::target::ForwardTarget;
use daypass_protocol::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::separation;

/// Who acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub id: PersonId,
    pub email: String,
    /// Groups of the identity provider, as it spells them.
    pub teams: Vec<String>,
    /// Whether the sign-in used a second factor.
    pub mfa: bool,
    pub signed_in_at: Timestamp,
}

/// A device, as the inventory knows it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    pub id: DeviceId,
    pub product_line: LineName,
    pub cra_class: CraClass,
    pub state: DeviceState,
    pub labels: BTreeMap<String, String>,
    /// Those that are listed for its product line.
    pub forward_targets: Vec<ForwardTarget>,
}

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectAsk {
    pub subject: Subject,
    pub device: DeviceFacts,
    pub login: Login,
    pub channels: ChannelSet,
    pub duration: Duration,
    pub reason: String,
    pub ticket: Option<String>,
    pub emergency: bool,
    pub on_site: bool,
    /// The one command, where only that is asked for.
    pub command: Option<String>,
    /// Where forwards may lead; policy is told of them where the channel is asked for.
    pub forward_targets: Vec<ForwardTarget>,
}

impl ConnectAsk {
    /// The same as a request that people answer.
    pub fn as_request(&self) -> RequestFacts {
        RequestFacts {
            requester: self.subject.id.clone(),
            device: self.device.clone(),
            login: self.login.clone(),
            channels: self.channels.clone(),
            duration: self.duration,
            emergency: self.emergency,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFacts {
    pub requester: PersonId,
    pub device: DeviceFacts,
    pub login: Login,
    pub channels: ChannelSet,
    pub duration: Duration,
    pub emergency: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFacts {
    /// Whose session it is.
    pub person: PersonId,
    pub device: DeviceFacts,
    pub login: Login,
}

/// What an action is done to.
#[derive(Clone, Copy, Debug)]
pub enum Resource<'a> {
    Fleet,
    Device(&'a DeviceFacts),
    Request(&'a RequestFacts),
    Session(&'a SessionFacts),
}

/// Approvals of one request, counted so that they cannot be padded: each person once, the requester never.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Approvals {
    count: u32,
    teams: BTreeSet<String>,
}

impl Approvals {
    pub fn none() -> Self {
        Self::default()
    }

    /// Counts who approved a request of `requester`, with the teams that each was in.
    pub fn of<'a, T>(requester: &PersonId, approvers: impl IntoIterator<Item = (&'a PersonId, T)>) -> Self
    where
        T: IntoIterator<Item = &'a String>,
    {
        let mut people = BTreeSet::new();
        let mut teams = BTreeSet::new();
        for (approver, of_approver) in approvers {
            if !separation::approver_is_requester(approver, requester) {
                people.insert(approver);
                teams.extend(of_approver.into_iter().cloned());
            }
        }
        Self { count: u32::try_from(people.len()).unwrap_or(u32::MAX), teams }
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn teams(&self) -> &BTreeSet<String> {
        &self.teams
    }

    /// These, and `more` people between them in `teams`.
    pub(super) fn and<'a>(&'a self, more: u32, teams: impl IntoIterator<Item = &'a String>) -> Self {
        Self {
            count: self.count.saturating_add(more),
            teams: self.teams.iter().chain(teams).cloned().collect(),
        }
    }
}
