//! Asking, taking back, and letting lapse.

use super::targets::{self, UnfitTargets};
use super::{StoredRequest, store};
use crate::approval::{self, Outcome};
use crate::audit::{self, Actor, Event, Kind, Recorded};
use crate::db::Tx;
use crate::login::VerifiedPerson;
use crate::policy::{Policies, Subject};
use daypass_protocol::api::{Ask, RequestState};
use daypass_protocol::channel::ChannelKind;
use daypass_protocol::ids::RequestId;
use daypass_protocol::text::{self, MAX_REASON, MAX_TICKET, UnfitText};
use daypass_protocol::time::Timestamp;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a request waits for answers.
    pub lapse_after: Duration,
    /// Requests of one person that may wait at the same time.
    pub pending_per_person: i64,
    /// Names and addresses of the broker itself, to which no forward leads.
    pub own_hosts: Vec<String>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { lapse_after: Duration::from_hours(1), pending_per_person: 20, own_hosts: Vec::new() }
    }
}

/// Shortest and longest window that can be asked for at all; policy sets its own, within.
const SHORTEST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_hours(7 * 24);

#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error(transparent)]
    Text(#[from] UnfitText),
    #[error("no device is called {0}")]
    UnknownDevice(String),
    #[error("a request names at least one channel")]
    NoChannels,
    #[error("a request for one command is for exec and nothing else")]
    CommandAndMore,
    #[error(transparent)]
    Forward(#[from] UnfitTargets),
    #[error("a window is at least 30 seconds and at most 7 days long")]
    Duration,
    #[error("{0} of your requests are waiting already; cancel one first")]
    TooManyPending(i64),
    #[error("you are not known here any more; sign in again")]
    UnknownPerson,
    #[error("the request is {0:?} already")]
    NotPending(RequestState),
    #[error(transparent)]
    Randomness(#[from] crate::random::NoRandomness),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Stores the ask and decides it as far as it can be decided without people.
///
/// The request is kept whatever the outcome: a refusal is history too.
pub async fn submit(
    tx: &mut Tx,
    person: &VerifiedPerson,
    ask: Ask,
    policies: &Policies,
    limits: Limits,
    now: Timestamp,
) -> Result<(RequestId, Outcome, Recorded), SubmitError> {
    let reason = text::visible_lines("the reason", &ask.reason, MAX_REASON)?;
    let ticket = ask
        .ticket
        .as_deref()
        .map(|ticket| text::visible_line("the ticket", ticket, MAX_TICKET))
        .transpose()?
        .filter(|ticket| !ticket.is_empty());
    if ask.channels.is_empty() {
        return Err(SubmitError::NoChannels);
    }
    if let Some(command) = &ask.command {
        text::visible_command(command)?;
        if !ask.channels.iter().eq([ChannelKind::Exec]) {
            return Err(SubmitError::CommandAndMore);
        }
    }
    let duration = Duration::from_secs(ask.duration_s);
    if !(SHORTEST..=LONGEST).contains(&duration) {
        return Err(SubmitError::Duration);
    }
    let device = store::device_facts(tx.conn(), &ask.device)
        .await?
        .ok_or_else(|| SubmitError::UnknownDevice(ask.device.to_string()))?;
    let pending = store::count_pending(tx.conn(), person.id()).await?;
    if pending >= limits.pending_per_person {
        return Err(SubmitError::TooManyPending(pending));
    }

    let forward_targets = targets::of(&ask, &device, &limits.own_hosts)?;
    let request = StoredRequest {
        id: RequestId::from_random(crate::random::bytes()?),
        person: person.id().clone(),
        device: ask.device,
        login: ask.login,
        channels: ask.channels,
        duration,
        reason,
        ticket,
        emergency: ask.emergency,
        command: ask.command,
        forward_targets,
        state: RequestState::Pending,
        asked_at: now,
        lapses_at: now + limits.lapse_after,
        why: Vec::new(),
        approver_teams: Vec::new(),
    };
    store::add(tx, &request).await?;
    let event = Event::new(Kind::RequestAsked, person.actor())
        .request(&request.id)
        .device(&request.device)
        .detail(serde_json::json!({
            "login": request.login, "channels": request.channels, "duration_s": duration.as_secs(),
            "reason": request.reason, "ticket": request.ticket, "emergency": request.emergency,
            "command": request.command, "forward_targets": request.forward_targets,
        }));
    let asked = audit::append(tx, now, event).await?;
    let outcome = approval::decide(tx, &request, Subject::from(person), device, policies, now).await?;
    Ok((request.id, outcome, asked))
}

/// The requester takes a pending request back.
pub async fn cancel(
    tx: &mut Tx,
    person: &VerifiedPerson,
    request: &StoredRequest,
    now: Timestamp,
) -> Result<Recorded, SubmitError> {
    if !store::decide(tx, &request.id, RequestState::Cancelled, now).await? {
        return Err(SubmitError::NotPending(request.state));
    }
    let event =
        Event::new(Kind::RequestCancelled, person.actor()).request(&request.id).device(&request.device);
    Ok(audit::append(tx, now, event).await?)
}

/// A request that nobody answered in time; `None` if it was decided meanwhile.
pub async fn lapse(tx: &mut Tx, id: &RequestId, now: Timestamp) -> Result<Option<Recorded>, sqlx::Error> {
    if !store::decide(tx, id, RequestState::Lapsed, now).await? {
        return Ok(None);
    }
    let event = Event::new(Kind::RequestLapsed, Actor::Broker).request(id);
    audit::append(tx, now, event).await.map(Some)
}
