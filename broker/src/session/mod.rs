//! Sessions: one connection of one person to one device under one grant.
//!
//! `opening → open → ended(reason)`. [`open`] is the only way in: it finds the live grant, asks policy once
//! more, takes a [`Permit`], has one certificate minted, and starts the recorder; without each of these
//! there is nothing to call next. [`join`] lets bytes flow between engineer and device, through the
//! recorder. Whatever ends a session (the window, a revocation, a person, the device's state, policy, the
//! recorder) ends it through [`Live::end`], and everything that runs for it watches for that.

mod absence;
mod activity;
mod asking;
mod door;
#[allow(unused_qualifications, reason = "what utoipa writes for query parameters")]
pub mod http;
mod join;
mod open;
mod permit;
mod running;
pub mod store;
#[allow(unused_qualifications, reason = "what utoipa writes for query parameters")]
mod watch;
pub mod wire;

pub use door::{Arrived, GatewayDoor};
pub(crate) use open::still_allowed;
pub use open::{Client, OpenRefused, open};
pub use permit::Permit;

use crate::policy::SessionLimits;
use crate::recording::{RecordError, Screens};
use crate::request::Scope;
use activity::Activity;
use daypass_protocol::api::EndReason;
use daypass_protocol::ids::{DeviceId, Login, PersonId, RequestId, SessionId};
use daypass_protocol::time::Timestamp;
use daypass_protocol::tunnel::frame::CloseCode;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::broadcast;
use tokio::sync::watch::Sender as Told;

/// Why a session ends: for the record, and in words for both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    pub reason: EndReason,
    /// Who, where a person did it; what, where something failed. For the record.
    pub detail: Option<String>,
}

impl End {
    pub fn because(reason: EndReason) -> Self {
        Self { reason, detail: None }
    }

    pub fn with(reason: EndReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: Some(detail.into()) }
    }

    /// For a session whose bytes the recorder does not take any more.
    fn unrecorded(error: &RecordError) -> Self {
        let reason = match error {
            RecordError::TooLong { .. } => EndReason::RecordingLimit,
            _ => EndReason::RecorderFailed,
        };
        Self::with(reason, error.to_string())
    }

    /// The line that the engineer sees.
    pub fn message(&self) -> String {
        let detail = self.detail.as_deref().unwrap_or_default();
        match self.reason {
            EndReason::Closed => "the session is closed".to_owned(),
            EndReason::Expired => "your access has ended: its time is over".to_owned(),
            EndReason::Revoked => format!("your access was revoked {detail}"),
            EndReason::EndedByPerson => format!("the session was ended {detail}"),
            EndReason::DeviceSuspended => format!("the device was suspended: {detail}"),
            EndReason::DeviceLost if detail.is_empty() => "the connection to the device is lost".to_owned(),
            EndReason::DeviceLost => format!("the connection to the device is lost: {detail}"),
            EndReason::RecorderFailed => {
                "recording failed, and nothing happens here unrecorded; ask the operator of the broker"
                    .to_owned()
            }
            EndReason::Idle => "the session was ended: nobody typed for too long".to_owned(),
            EndReason::RecordingLimit => format!("the session was ended: {detail}"),
            EndReason::PolicyChanged => format!("policy does not allow this session any more: {detail}"),
            EndReason::BrokerStopped => "the broker is stopping".to_owned(),
            EndReason::Interrupted => "the session was interrupted".to_owned(),
            EndReason::Failed => "the session failed; the cause is in the broker's log".to_owned(),
        }
        .trim_end()
        .to_owned()
    }

    fn close_code(&self) -> CloseCode {
        match self.reason {
            EndReason::Closed => CloseCode::Done,
            EndReason::Expired => CloseCode::Expired,
            EndReason::DeviceSuspended => CloseCode::Suspended,
            EndReason::Failed | EndReason::RecorderFailed => CloseCode::Failed,
            _ => CloseCode::Ended,
        }
    }
}

/// A session that runs.
#[derive(Debug)]
pub struct Live {
    pub id: SessionId,
    pub grant: RequestId,
    pub person: PersonId,
    pub device: DeviceId,
    pub login: Login,
    pub scope: Scope,
    pub ends_at: Timestamp,
    pub limits: SessionLimits,
    /// Hash of the policies that allowed it last.
    allowed_by: Mutex<Option<String>>,
    activity: Activity,
    /// What its recorder says of its terminals, once there is one.
    screens: OnceLock<Screens>,
    end: Told<Option<End>>,
    notices: broadcast::Sender<String>,
    /// For channels without a terminal.
    alarms: broadcast::Sender<String>,
}

impl Live {
    fn new(permit: &Permit, person: PersonId) -> Self {
        Self {
            id: permit.session.clone(),
            grant: permit.grant.clone(),
            person,
            device: permit.device.clone(),
            login: permit.login.clone(),
            scope: permit.scope.clone(),
            ends_at: permit.ends_at,
            limits: permit.limits,
            allowed_by: Mutex::new(Some(permit.policy_set.clone())),
            activity: Activity::default(),
            screens: OnceLock::new(),
            end: Told::new(None),
            notices: broadcast::channel(8).0,
            alarms: broadcast::channel(8).0,
        }
    }

    fn allowed_by(&self) -> MutexGuard<'_, Option<String>> {
        self.allowed_by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether these policies, by their hash, have allowed the session already.
    pub fn is_allowed_by(&self, policy_set: &str) -> bool {
        self.allowed_by().as_deref() == Some(policy_set)
    }

    pub fn set_allowed_by(&self, policy_set: &str) {
        *self.allowed_by() = Some(policy_set.to_owned());
    }

    /// Something else than the policies has changed: they have to be asked again.
    pub fn judge_again(&self) {
        *self.allowed_by() = None;
    }

    /// Ends the session; the first reason stands.
    pub fn end(&self, end: End) {
        self.end.send_if_modified(|held| {
            let first = held.is_none();
            if first {
                *held = Some(end);
            }
            first
        });
    }

    /// Waits for the end.
    pub async fn ended(&self) -> End {
        let mut watch = self.end.subscribe();
        // The sender lives in self, so waiting cannot fail.
        match watch.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or_else(|| End::because(EndReason::Failed)),
            Err(_) => End::because(EndReason::Failed),
        }
    }

    pub fn is_ended(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// Shows a line on the session's terminals.
    pub fn notice(&self, line: String) {
        // No terminal, nobody to show it to.
        let _ = self.notices.send(line);
    }

    /// Shows a line where there is no terminal: on the standard error of commands and file transfers. Only for
    /// what somebody in front of one has to know.
    fn alarm(&self, line: String) {
        // Nobody there to read it is no error.
        let _ = self.alarms.send(line);
    }
}

/// The sessions that run in this broker, and who watches them.
/// Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Mutex<Held>>, watch::Watchers);

#[derive(Debug, Default)]
struct Held {
    running: HashMap<SessionId, Arc<Live>>,
    /// Of sessions that are being opened: device and person.
    coming: Vec<(DeviceId, PersonId)>,
}

impl Held {
    fn count(&self, which: impl Fn(&DeviceId, &PersonId) -> bool) -> usize {
        let running = self.running.values().filter(|live| which(&live.device, &live.person)).count();
        running + self.coming.iter().filter(|(device, person)| which(device, person)).count()
    }

    fn leave(&mut self, of: &(DeviceId, PersonId)) {
        if let Some(at) = self.coming.iter().position(|other| other == of) {
            self.coming.swap_remove(at);
        }
    }
}

/// Whose limit is reached, and how many sessions there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Full {
    Device(usize),
    Person(usize),
}

/// The place of a session that is being opened, counted from here on; given back when dropped.
#[derive(Debug)]
struct Place {
    sessions: Sessions,
    /// Device and person; none once the session runs.
    of: Option<(DeviceId, PersonId)>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(of) = self.of.take() {
            self.sessions.locked().leave(&of);
        }
    }
}

impl Sessions {
    fn locked(&self) -> MutexGuard<'_, Held> {
        // A panic while holding the lock leaves a map that is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts and takes a place in one step: however many ask at once, no more get in than may.
    fn take_place(
        &self,
        device: &DeviceId,
        person: &PersonId,
        limits: &SessionLimits,
    ) -> Result<Place, Full> {
        let mut held = self.locked();
        let there = held.count(|other, _| other == device);
        if limits.per_device.is_some_and(|most| there >= most as usize) {
            return Err(Full::Device(there));
        }
        let own = held.count(|_, other| other == person);
        if limits.per_person.is_some_and(|most| own >= most as usize) {
            return Err(Full::Person(own));
        }
        let of = (device.clone(), person.clone());
        held.coming.push(of.clone());
        Ok(Place { sessions: self.clone(), of: Some(of) })
    }

    /// The session runs, in the place that was taken for it.
    fn add(&self, live: Arc<Live>, mut place: Place) {
        let mut held = self.locked();
        held.running.insert(live.id.clone(), live);
        if let Some(of) = place.of.take() {
            held.leave(&of);
        }
    }

    fn remove(&self, id: &SessionId) {
        self.locked().running.remove(id);
    }

    pub fn get(&self, id: &SessionId) -> Option<Arc<Live>> {
        self.locked().running.get(id).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Live>> {
        self.locked().running.values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.locked().running.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends every session that `which` picks; how many.
    pub fn end_where(&self, which: impl Fn(&Live) -> bool, end: &End) -> usize {
        let picked: Vec<_> = self.all().into_iter().filter(|live| which(live)).collect();
        for live in &picked {
            live.end(end.clone());
        }
        picked.len()
    }
}
