//! Requests over HTTP.

use super::view::{no_such, readable, shown, shown_by_id};
use super::{SubmitError, cancel, desk, store};
use crate::approval::{self, AnswerError, Outcome};
use crate::audit::{self, Event, Kind};
use crate::broker::Ctx;
use crate::http::Problem;
use crate::http::json::Json;
use crate::http::parameters::{Path, Query};
use crate::login::{Caller, VerifiedPerson};
use crate::policy::{Action, Resource};
use crate::session::End;
use axum::Json as JsonOut;
use axum::extract::State;
use axum::http::StatusCode;
use daypass_protocol::api::{Approval, Ask, Denial, EndReason, Page, Request, RequestState, WithReason};
use daypass_protocol::ids::{DeviceId, RequestId};
use serde::Deserialize;
use std::time::Duration;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub fn routes() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .routes(routes!(ask, list))
        .routes(routes!(show))
        .routes(routes!(approve))
        .routes(routes!(deny))
        .routes(routes!(take_back))
        .routes(routes!(revoke))
}

/// Most items of one page.
const PAGE: usize = 50;
/// Most rows looked at for one page: what the caller may not read is passed over.
const LOOKED_AT: usize = 2000;

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        let text = error.to_string();
        match error {
            SubmitError::UnknownDevice(_) => Self::not_found(text).hint("See `daypass devices`."),
            SubmitError::TooManyPending(_) => Self::too_many(text),
            SubmitError::UnknownPerson => Self::unauthenticated(text),
            SubmitError::NotPending(_) => Self::conflict("not_pending", text),
            SubmitError::Database(error) => error.into(),
            SubmitError::Randomness(error) => Self::unavailable("no randomness", &error),
            SubmitError::Text(_)
            | SubmitError::NoChannels
            | SubmitError::CommandAndMore
            | SubmitError::Forward(_)
            | SubmitError::Duration => Self::bad_request("unfit_request", text),
        }
    }
}

impl From<AnswerError> for Problem {
    fn from(error: AnswerError) -> Self {
        let text = error.to_string();
        match error {
            AnswerError::OwnRequest => Self::forbidden("own_request", text),
            AnswerError::NotPermitted(_) => Self::forbidden("policy", text),
            AnswerError::NotPending(_) => Self::conflict("not_pending", text),
            AnswerError::AnsweredAlready => Self::conflict("answered_already", text),
            AnswerError::Database(error) => error.into(),
            AnswerError::UnknownRequester => Self::conflict("unknown_requester", text),
            AnswerError::Widens | AnswerError::NoComment | AnswerError::Text(_) => {
                Self::bad_request("unfit_answer", text)
            }
        }
    }
}

/// Asks for access. What policy refuses at once is a 403 that says what would have been allowed; the
/// refused request stays in the history.
#[utoipa::path(post, operation_id = "ask_for_access", path = "/v1/requests", tag = "requests", request_body = Ask,
    responses((status = 201, body = Request), (status = 400), (status = 401), (status = 403), (status = 404)))]
async fn ask(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Json(ask): Json<Ask>,
) -> Result<(StatusCode, JsonOut<Request>), Problem> {
    let (id, outcome) = desk::ask(&ctx, &person, ask).await?;
    match outcome {
        Outcome::Denied(refusal) => Err(denied(&id, &refusal.reason, &refusal.would_allow)),
        Outcome::Granted { .. } | Outcome::Waiting { .. } => {
            Ok((StatusCode::CREATED, JsonOut(shown_by_id(&ctx, &person, &id).await?)))
        }
    }
}

fn denied(id: &RequestId, reason: &str, would_allow: &[String]) -> Problem {
    let problem = Problem::forbidden("policy", format!("{id} is refused. {reason}"));
    if would_allow.is_empty() {
        problem
    } else {
        problem.hint(format!("Would be possible: {}.", would_allow.join("; ")))
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    state: Option<RequestState>,
    #[serde(default)]
    mine: bool,
    /// Only those that the caller may answer now.
    #[serde(default)]
    answerable: bool,
    #[param(value_type = Option<String>)]
    device: Option<DeviceId>,
    /// `next` of the page before.
    #[param(value_type = Option<String>)]
    after: Option<RequestId>,
}

/// Requests that the caller may read, newest first.
#[utoipa::path(get, operation_id = "list_requests", path = "/v1/requests", tag = "requests", params(ListQuery),
    responses((status = 200, body = Page<Request>), (status = 401), (status = 403)))]
async fn list(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Query(query): Query<ListQuery>,
) -> Result<JsonOut<Page<Request>>, Problem> {
    ctx.authorize(&person, Action::ListRequests, &Resource::Fleet).await?;
    let mut conn = ctx.db.pool().acquire().await?;
    let before = match &query.after {
        Some(id) => store::find(&mut conn, id).await?.map(|request| (request.asked_at, request.id)),
        None => None,
    };
    let mut filter = store::Filter {
        state: if query.answerable { Some(RequestState::Pending) } else { query.state },
        person: query.mine.then(|| person.id().clone()),
        device: query.device,
        before,
    };
    let mut items = Vec::new();
    let mut looked_at = 0;
    loop {
        let rows = store::list_newest(&mut conn, &filter, 100).await?;
        let whole = rows.len() < 100;
        for request in rows {
            looked_at += 1;
            filter.before = Some((request.asked_at, request.id.clone()));
            let Some(device) = store::device_facts(&mut conn, &request.device).await? else { continue };
            let facts = request.facts(device.clone());
            if !ctx.permits(&person, Action::ReadRequest, &Resource::Request(&facts)) {
                continue;
            }
            let item = shown(&ctx, &mut conn, &person, request, device).await?;
            if (query.answerable && !item.may_answer) || query.state.is_some_and(|state| state != item.state)
            {
                continue;
            }
            items.push(item);
            if items.len() == PAGE {
                break;
            }
        }
        if whole && items.len() < PAGE {
            return Ok(JsonOut(Page { items, next: None }));
        }
        if items.len() == PAGE || looked_at >= LOOKED_AT {
            let next = filter.before.map(|(_, id)| id.to_string());
            return Ok(JsonOut(Page { items, next }));
        }
    }
}

/// Less than any request may take.
const LONGEST_WAIT_S: u64 = 45;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct WaitQuery {
    /// Seconds, at most 45: wait until the request is not in `state` any more.
    wait_s: Option<u64>,
    state: Option<RequestState>,
}

/// One request. With `wait_s` and `state` the answer comes when it is no longer in that state, or after
/// that time.
#[utoipa::path(get, operation_id = "read_request", path = "/v1/requests/{id}", tag = "requests", params(("id" = String, Path), WaitQuery),
    responses((status = 200, body = Request), (status = 401), (status = 404)))]
async fn show(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Path(id): Path<RequestId>,
    Query(query): Query<WaitQuery>,
) -> Result<JsonOut<Request>, Problem> {
    let mut changes = desk::Changes::of(&ctx, &id);
    let until =
        tokio::time::Instant::now() + Duration::from_secs(query.wait_s.unwrap_or(0).min(LONGEST_WAIT_S));
    loop {
        let request = shown_by_id(&ctx, &person, &id).await?;
        if query.state != Some(request.state) || tokio::time::Instant::now() >= until {
            return Ok(JsonOut(request));
        }
        tokio::select! {
            () = changes.next() => {}
            () = tokio::time::sleep_until(until) => {}
            () = ctx.stopping.cancelled() => return Ok(JsonOut(request)),
        }
    }
}

async fn answer(
    ctx: &Ctx,
    person: &VerifiedPerson,
    id: &RequestId,
    answer: approval::Answer,
) -> Result<JsonOut<Request>, Problem> {
    let now = ctx.clock.now();
    let mut tx = ctx.db.begin().await?;
    readable(ctx, tx.conn(), person, id).await?;
    let request = store::find_for_update(&mut tx, id).await?.ok_or_else(|| no_such(id))?;
    let answered = approval::answer(&mut tx, person, &request, answer, &ctx.policies.current(), now).await;
    let (_outcome, recorded) = match answered {
        Ok(answered) => answered,
        Err(error) => {
            drop(tx);
            if let AnswerError::OwnRequest | AnswerError::NotPermitted(_) = &error {
                // An attempt to approve what one may not is evidence too.
                let event = Event::new(Kind::ActionRefused, person.actor())
                    .request(id)
                    .device(&request.device)
                    .detail(serde_json::json!({
                        "action": Action::Approve.as_str(), "reason": error.to_string(),
                    }));
                audit::note(&ctx.db, now, event).await?;
            }
            return Err(error.into());
        }
    };
    tx.commit(recorded).await?;
    ctx.request_changed(id);
    Ok(JsonOut(shown_by_id(ctx, person, id).await?))
}

/// Approves a request, whole or narrower.
#[utoipa::path(post, operation_id = "approve_request", path = "/v1/requests/{id}/approve", tag = "requests", params(("id" = String, Path)),
    request_body = Approval,
    responses((status = 200, body = Request), (status = 400), (status = 401), (status = 403), (status = 404), (status = 409)))]
async fn approve(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Path(id): Path<RequestId>,
    Json(approval): Json<Approval>,
) -> Result<JsonOut<Request>, Problem> {
    answer(&ctx, &person, &id, approval::Answer::Approve(approval)).await
}

/// Refuses a request, and says why.
#[utoipa::path(post, operation_id = "deny_request", path = "/v1/requests/{id}/deny", tag = "requests", params(("id" = String, Path)),
    request_body = Denial,
    responses((status = 200, body = Request), (status = 400), (status = 401), (status = 403), (status = 404), (status = 409)))]
async fn deny(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Path(id): Path<RequestId>,
    Json(denial): Json<Denial>,
) -> Result<JsonOut<Request>, Problem> {
    answer(&ctx, &person, &id, approval::Answer::Deny { comment: denial.comment }).await
}

/// Takes a pending request back.
#[utoipa::path(post, operation_id = "cancel_request", path = "/v1/requests/{id}/cancel", tag = "requests", params(("id" = String, Path)),
    responses((status = 200, body = Request), (status = 401), (status = 403), (status = 404), (status = 409)))]
async fn take_back(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Path(id): Path<RequestId>,
) -> Result<JsonOut<Request>, Problem> {
    let (request, device) = {
        let mut conn = ctx.db.pool().acquire().await?;
        readable(&ctx, &mut conn, &person, &id).await?
    };
    ctx.authorize(&person, Action::Cancel, &Resource::Request(&request.facts(device))).await?;
    let mut tx = ctx.db.begin().await?;
    let request = store::find_for_update(&mut tx, &id).await?.ok_or_else(|| no_such(&id))?;
    let recorded = cancel(&mut tx, &person, &request, ctx.clock.now()).await?;
    tx.commit(recorded).await?;
    ctx.request_changed(&id);
    Ok(JsonOut(shown_by_id(&ctx, &person, &id).await?))
}

/// Ends a live grant now, and the sessions under it.
#[utoipa::path(post, operation_id = "revoke_grant", path = "/v1/requests/{id}/revoke", tag = "requests", params(("id" = String, Path)),
    request_body = WithReason,
    responses((status = 200, body = Request), (status = 400), (status = 401), (status = 403), (status = 404), (status = 409)))]
async fn revoke(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Path(id): Path<RequestId>,
    Json(why): Json<WithReason>,
) -> Result<JsonOut<Request>, Problem> {
    let (request, device) = {
        let mut conn = ctx.db.pool().acquire().await?;
        readable(&ctx, &mut conn, &person, &id).await?
    };
    ctx.authorize(&person, Action::RevokeGrant, &Resource::Request(&request.facts(device))).await?;
    let mut tx = ctx.db.begin().await?;
    let live = store::grant(tx.conn(), &id).await?.ok_or_else(|| {
        Problem::conflict("not_granted", format!("{id} was never granted.")).hint("Cancel it instead.")
    })?;
    let revoked = approval::revoke(&mut tx, &person, &live, &why.reason, ctx.clock.now()).await?;
    let recorded =
        revoked.ok_or_else(|| Problem::conflict("not_live", format!("The grant {id} is over already.")))?;
    tx.commit(recorded).await?;
    let end = End::with(EndReason::Revoked, format!("by {}: {}", person.email(), why.reason.trim()));
    ctx.sessions.end_where(|session| session.grant == id, &end);
    ctx.request_changed(&id);
    Ok(JsonOut(shown_by_id(&ctx, &person, &id).await?))
}
