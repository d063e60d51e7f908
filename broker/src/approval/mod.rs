//! People's answers, and the only door to a grant.
//!
//! [`decide`] makes every grant there is, also for requests that need no approval: it asks policy, now,
//! with the approvals at hand. Nobody answers their own request; that is refused here, before policy.

#[cfg(test)]
mod tests;

use crate::audit::{self, Actor, Event, Kind, Recorded};
use crate::db::{Tx, violates};
use crate::login::VerifiedPerson;
use crate::policy::{
    self, Action, Approvals, Decision, DeviceFacts, Permission, Policies, Refusal, Resource, Subject,
    separation,
};
use crate::request::store::{self, StoredAnswer};
use crate::request::{Scope, StoredGrant, StoredRequest};
use daypass_protocol::api::{Approval, GrantState, PersonRef, RequestState, Verdict};
use daypass_protocol::channel::{ChannelKind, ChannelSet};
use daypass_protocol::ids::RequestId;
use daypass_protocol::text::{self, MAX_REASON, UnfitText};
use daypass_protocol::time::Timestamp;
use std::time::Duration;

/// What became of a request when policy was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    Granted { ends_at: Timestamp },
    Waiting { why: Vec<String>, approver_teams: Vec<String>, approvals_needed: u32 },
    Denied(Refusal),
}

#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("nobody answers their own request")]
    OwnRequest,
    #[error("{}", .0.reason)]
    NotPermitted(Refusal),
    #[error("the request is {0:?} already")]
    NotPending(RequestState),
    #[error("you have answered this request already")]
    AnsweredAlready,
    #[error("an approval may shorten the window and narrow the channels, not widen them")]
    Widens,
    #[error("a refusal says why")]
    NoComment,
    #[error(transparent)]
    Text(#[from] UnfitText),
    #[error("whoever asked is not known any more")]
    UnknownRequester,
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// An answer, as a person gives it.
#[derive(Clone, Debug)]
pub enum Answer {
    Approve(Approval),
    Deny { comment: String },
}

/// Takes one person's answer and decides the request again. `request` was read with
/// [`store::find_for_update`] in this transaction.
pub async fn answer(
    tx: &mut Tx,
    person: &VerifiedPerson,
    request: &StoredRequest,
    answer: Answer,
    policies: &Policies,
    now: Timestamp,
) -> Result<(Outcome, Recorded), AnswerError> {
    if separation::approver_is_requester(person.id(), &request.person) {
        return Err(AnswerError::OwnRequest);
    }
    let device =
        store::device_facts(tx.conn(), &request.device).await?.ok_or(AnswerError::UnknownRequester)?;
    let facts = request.facts(device.clone());
    match policy::may(policies, &Subject::from(person), Action::Approve, &Resource::Request(&facts), now) {
        Permission::Permitted { .. } => {}
        Permission::Refused(refusal) => return Err(AnswerError::NotPermitted(refusal)),
    }
    if request.state != RequestState::Pending || request.lapses_at <= now {
        let state = if request.state == RequestState::Pending { RequestState::Lapsed } else { request.state };
        return Err(AnswerError::NotPending(state));
    }

    let stored = read_answer(person, request, &answer, now)?;
    match store::add_answer(tx, &request.id, &stored).await {
        Err(error) if violates(&error, &["answer_is_one_per_person", "answer.request"]) => {
            return Err(AnswerError::AnsweredAlready);
        }
        done => done?,
    }
    let event = Event::new(Kind::RequestAnswered, person.actor())
        .request(&request.id)
        .device(&request.device)
        .detail(serde_json::json!({
            "verdict": stored.verdict, "comment": stored.comment, "teams": stored.teams,
            "duration_s": stored.duration.map(|d| d.as_secs()), "channels": stored.channels,
        }));
    let answered = audit::append(tx, now, event).await?;

    if stored.verdict == Verdict::Deny {
        let refusal = Refusal {
            reason: format!("{} refused: {}", person.email(), stored.comment.as_deref().unwrap_or_default()),
            policies: Vec::new(),
            would_allow: Vec::new(),
            cause: None,
        };
        deny(tx, request, person.actor(), &refusal, now).await?;
        return Ok((Outcome::Denied(refusal), answered));
    }
    let subject = store::subject(tx.conn(), &request.person).await?.ok_or(AnswerError::UnknownRequester)?;
    let outcome = decide(tx, request, subject, device, policies, now).await?;
    Ok((outcome, answered))
}

fn read_answer(
    person: &VerifiedPerson,
    request: &StoredRequest,
    answer: &Answer,
    now: Timestamp,
) -> Result<StoredAnswer, AnswerError> {
    let by = PersonRef {
        id: person.id().clone(),
        email: person.email().to_owned(),
        name: person.name().to_owned(),
    };
    let comment = |text: &str| text::visible_lines("the comment", text, MAX_REASON);
    let blank = StoredAnswer {
        by,
        at: now,
        verdict: Verdict::Approve,
        comment: None,
        teams: person.teams().to_vec(),
        duration: None,
        channels: None,
    };
    match answer {
        Answer::Deny { comment: text } => {
            let text = comment(text)?;
            if text.is_empty() {
                return Err(AnswerError::NoComment);
            }
            Ok(StoredAnswer { verdict: Verdict::Deny, comment: Some(text), ..blank })
        }
        Answer::Approve(approval) => {
            let duration = approval.duration_s.map(Duration::from_secs);
            if duration.is_some_and(|d| d > request.duration || d.is_zero())
                || approval.channels.as_ref().is_some_and(|c| c.is_empty() || !c.is_subset(&request.channels))
            {
                return Err(AnswerError::Widens);
            }
            let comment =
                approval.comment.as_deref().map(comment).transpose()?.filter(|text| !text.is_empty());
            Ok(StoredAnswer { comment, duration, channels: approval.channels.clone(), ..blank })
        }
    }
}

/// Asks policy about a pending request with the approvals it has, and does what policy says: grants,
/// refuses, or lets it wait. The window of a grant starts now.
pub async fn decide(
    tx: &mut Tx,
    request: &StoredRequest,
    subject: Subject,
    device: DeviceFacts,
    policies: &Policies,
    now: Timestamp,
) -> Result<Outcome, sqlx::Error> {
    let answers = store::answers(tx.conn(), &request.id).await?;
    let approved: Vec<_> = answers.iter().filter(|answer| answer.verdict == Verdict::Approve).collect();
    let approvals =
        Approvals::of(&request.person, approved.iter().map(|answer| (&answer.by.id, answer.teams.iter())));

    // Each approver may have allowed less: what all of them allow is what is asked of policy.
    let mut ask = request.as_ask(subject, device);
    for answer in &approved {
        if let Some(duration) = answer.duration {
            ask.duration = ask.duration.min(duration);
        }
        if let Some(channels) = &answer.channels {
            ask.channels = ChannelSet(ask.channels.0.intersection(&channels.0).copied().collect());
        }
    }

    match policy::evaluate(policies, &ask, &approvals, now) {
        Decision::Allow(terms) => {
            // Whole seconds, as a certificate has them: device and broker end at the same moment.
            let starts_at = Timestamp::from_secs(now.as_secs());
            let grant = StoredGrant {
                request: request.id.clone(),
                person: request.person.clone(),
                device: request.device.clone(),
                login: terms.login,
                scope: Scope {
                    targets: if terms.channels.contains(ChannelKind::Forward) {
                        request.forward_targets.clone()
                    } else {
                        Vec::new()
                    },
                    channels: terms.channels,
                    command: request.command.clone(),
                },
                starts_at,
                ends_at: starts_at + terms.duration,
                state: GrantState::Live,
                ended_by: None,
            };
            store::decide(tx, &request.id, RequestState::Granted, now).await?;
            store::add_grant(tx, &grant).await?;
            let event = Event::new(Kind::GrantMade, Actor::Broker)
                .request(&request.id)
                .device(&request.device)
                .detail(serde_json::json!({
                    "person": request.person, "login": grant.login, "channels": grant.scope.channels,
                    "command": grant.scope.command, "forward_targets": grant.scope.targets,
                    "starts_at": grant.starts_at, "ends_at": grant.ends_at,
                    "policies": terms.policies, "policy_set": policies.hash(),
                    "approvals": approved.iter().map(|answer| &answer.by.email).collect::<Vec<_>>(),
                }));
            let _granted = audit::append(tx, now, event).await?;
            Ok(Outcome::Granted { ends_at: grant.ends_at })
        }
        Decision::NeedsApproval(asked) => {
            store::set_approvers(tx, &request.id, &asked.why, &asked.approver_teams).await?;
            Ok(Outcome::Waiting {
                why: asked.why,
                approver_teams: asked.approver_teams,
                approvals_needed: asked.approvals_needed,
            })
        }
        Decision::Deny(refusal) => {
            deny(tx, request, Actor::Broker, &refusal, now).await?;
            Ok(Outcome::Denied(refusal))
        }
    }
}

async fn deny(
    tx: &mut Tx,
    request: &StoredRequest,
    by: Actor,
    refusal: &Refusal,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    store::decide(tx, &request.id, RequestState::Denied, now).await?;
    let event = Event::new(Kind::RequestDenied, by).request(&request.id).device(&request.device).detail(
        serde_json::json!({ "reason": refusal.reason, "policies": refusal.policies, "cause": refusal.cause }),
    );
    let _denied = audit::append(tx, now, event).await?;
    Ok(())
}

/// Ends a live grant before its time: `closed` when its owner gives it back, `revoked` otherwise. `None` if
/// it was not live. Its sessions are ended by the caller once this is committed.
pub async fn revoke(
    tx: &mut Tx,
    person: &VerifiedPerson,
    grant: &StoredGrant,
    reason: &str,
    now: Timestamp,
) -> Result<Option<Recorded>, AnswerError> {
    let reason = text::visible_line("the reason", reason, MAX_REASON)?;
    let own = person.id() == &grant.person;
    let (state, kind) =
        if own { (GrantState::Closed, Kind::GrantClosed) } else { (GrantState::Revoked, Kind::GrantRevoked) };
    if !store::end_grant(tx, &grant.request, state, person.email(), now).await? {
        return Ok(None);
    }
    let event = Event::new(kind, person.actor())
        .request(&grant.request)
        .device(&grant.device)
        .detail(serde_json::json!({ "reason": reason }));
    Ok(Some(audit::append(tx, now, event).await?))
}

/// The window of a grant is over; `None` if it was ended meanwhile.
pub async fn expire(tx: &mut Tx, grant: &RequestId, now: Timestamp) -> Result<Option<Recorded>, sqlx::Error> {
    if !store::end_grant(tx, grant, GrantState::Expired, "broker", now).await? {
        return Ok(None);
    }
    let event = Event::new(Kind::GrantExpired, Actor::Broker).request(grant);
    audit::append(tx, now, event).await.map(Some)
}
