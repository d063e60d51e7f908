//! A request as it is shown to somebody who may read it.

use super::{StoredRequest, store};
use crate::broker::Ctx;
use crate::http::Problem;
use crate::login::VerifiedPerson;
use crate::policy::{Action, DeviceFacts, Resource};
use daypass_protocol::api::{self, Answer, Grant, Request, RequestState};
use daypass_protocol::ids::RequestId;
use sqlx::AnyConnection;

pub fn no_such(id: &RequestId) -> Problem {
    Problem::not_found(format!("There is no request {id} that you may see."))
}

/// The request with its device, for somebody who may read it; for anybody else it does not exist.
pub async fn readable(
    ctx: &Ctx,
    conn: &mut AnyConnection,
    person: &VerifiedPerson,
    id: &RequestId,
) -> Result<(StoredRequest, DeviceFacts), Problem> {
    let request = store::find(conn, id).await?.ok_or_else(|| no_such(id))?;
    let device = store::device_facts(conn, &request.device).await?.ok_or_else(|| no_such(id))?;
    let facts = request.facts(device.clone());
    if !ctx.permits(person, Action::ReadRequest, &Resource::Request(&facts)) {
        return Err(no_such(id));
    }
    Ok((request, device))
}

/// A request as the API shows it to `person`.
pub async fn shown(
    ctx: &Ctx,
    conn: &mut AnyConnection,
    person: &VerifiedPerson,
    request: StoredRequest,
    device: DeviceFacts,
) -> Result<Request, sqlx::Error> {
    let now = ctx.clock.now();
    let answers = store::answers(conn, &request.id).await?;
    let grant = store::grant(conn, &request.id).await?;
    let pending = request.state == RequestState::Pending && request.lapses_at > now;
    let facts = request.facts(device);
    let may_answer = pending
        && !answers.iter().any(|answer| answer.by.id == *person.id())
        && ctx.permits(person, Action::Approve, &Resource::Request(&facts));
    Ok(Request {
        person: store::person_ref(conn, &request.person).await?,
        state: if request.state == RequestState::Pending && !pending {
            RequestState::Lapsed
        } else {
            request.state
        },
        id: request.id,
        device: request.device,
        product_line: facts.device.product_line,
        login: request.login,
        channels: request.channels,
        duration_s: request.duration.as_secs(),
        reason: request.reason,
        ticket: request.ticket,
        emergency: request.emergency,
        command: request.command,
        forward_targets: request.forward_targets,
        asked_at: request.asked_at,
        lapses_at: request.lapses_at,
        why: request.why,
        approver_teams: request.approver_teams,
        answers: answers
            .into_iter()
            .map(|answer| Answer {
                by: answer.by,
                at: answer.at,
                verdict: answer.verdict,
                comment: answer.comment,
                teams: answer.teams,
                duration_s: answer.duration.map(|span| span.as_secs()),
                channels: answer.channels,
            })
            .collect(),
        grant: grant.map(|grant| Grant {
            state: match grant.state {
                api::GrantState::Live if !grant.is_live(now) => api::GrantState::Expired,
                state => state,
            },
            channels: grant.scope.channels,
            starts_at: grant.starts_at,
            ends_at: grant.ends_at,
            ended_by: grant.ended_by,
        }),
        may_answer,
    })
}

/// As [`shown`], of a request that is looked for first.
pub async fn shown_by_id(ctx: &Ctx, person: &VerifiedPerson, id: &RequestId) -> Result<Request, Problem> {
    let mut conn = ctx.db.pool().acquire().await?;
    let (request, device) = readable(ctx, &mut conn, person, id).await?;
    Ok(shown(ctx, &mut conn, person, request, device).await?)
}
