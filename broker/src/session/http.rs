//! Sessions over HTTP: lists, one, its recordings, and ending it.

use super::{End, store, watch};
use crate::audit::{self, Event, Kind};
use crate::broker::Ctx;
use crate::http::Problem;
use crate::http::json::Json;
use crate::http::parameters::{Path, Query};
use crate::login::{Caller, VerifiedPerson};
use crate::policy::{Action, Resource, SessionFacts};
use crate::recording::ReadError;
use crate::request::store::device_facts;
use axum::Json as JsonOut;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use daypass_protocol::api::{EndReason, Page, RecordingKind, Session, SessionState, WithReason};
use daypass_protocol::ids::{DeviceId, SessionId};
use daypass_protocol::text::{MAX_REASON, visible_line};
use serde::Deserialize;
use sqlx::AnyConnection;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub fn routes() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(end))
        .routes(routes!(recording))
        .routes(routes!(watch::live))
}

const PAGE: usize = 50;
const LOOKED_AT: usize = 2000;

pub(super) fn no_such(id: &SessionId) -> Problem {
    Problem::not_found(format!("There is no session {id} that you may see."))
}

async fn facts(conn: &mut AnyConnection, session: &Session) -> Result<Option<SessionFacts>, sqlx::Error> {
    Ok(device_facts(conn, &session.device).await?.map(|device| SessionFacts {
        person: session.person.id.clone(),
        device,
        login: session.login.clone(),
    }))
}

/// A session for somebody who may read it; for anybody else it does not exist.
pub(super) async fn readable(
    ctx: &Ctx,
    person: &VerifiedPerson,
    id: &SessionId,
) -> Result<(Session, SessionFacts), Problem> {
    let mut conn = ctx.db.pool().acquire().await?;
    let session = store::find(&mut conn, id).await?.ok_or_else(|| no_such(id))?;
    let facts = facts(&mut conn, &session).await?.ok_or_else(|| no_such(id))?;
    if !ctx.permits(person, Action::ReadSession, &Resource::Session(&facts)) {
        return Err(no_such(id));
    }
    Ok((session, facts))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    #[serde(default)]
    live: bool,
    #[param(value_type = Option<String>)]
    device: Option<DeviceId>,
    /// An e-mail address or a person's id.
    person: Option<String>,
    /// `next` of the page before.
    #[param(value_type = Option<String>)]
    after: Option<SessionId>,
}

/// Sessions that the caller may read, newest first.
#[utoipa::path(get, operation_id = "list_sessions", path = "/v1/sessions", tag = "sessions", params(ListQuery),
    responses((status = 200, body = Page<Session>), (status = 401), (status = 403)))]
async fn list(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Query(query): Query<ListQuery>,
) -> Result<JsonOut<Page<Session>>, Problem> {
    ctx.authorize(&person, Action::ListSessions, &Resource::Fleet).await?;
    let mut conn = ctx.db.pool().acquire().await?;
    let before = match &query.after {
        Some(id) => store::find(&mut conn, id).await?.map(|session| (session.started_at, session.id)),
        None => None,
    };
    let whose = query.person.as_deref().filter(|text| !text.is_empty());
    let mut filter = store::Filter {
        live: query.live,
        person: whose.and_then(|text| text.parse().ok()),
        email: whose.filter(|text| text.contains('@')).map(str::to_owned),
        device: query.device,
        before,
    };
    if whose.is_some() && filter.person.is_none() && filter.email.is_none() {
        return Err(Problem::bad_request(
            "person",
            "person is an e-mail address or an id such as P-7K2M9QXD.",
        ));
    }
    let mut items = Vec::new();
    let mut looked_at = 0;
    loop {
        let rows = store::list_newest(&mut conn, &filter, 100).await?;
        let whole = rows.len() < 100;
        for session in rows {
            looked_at += 1;
            filter.before = Some((session.started_at, session.id.clone()));
            let Some(facts) = facts(&mut conn, &session).await? else { continue };
            if ctx.permits(&person, Action::ReadSession, &Resource::Session(&facts)) {
                items.push(store::find(&mut conn, &session.id).await?.unwrap_or(session));
            }
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

/// One session with its recordings.
#[utoipa::path(get, operation_id = "read_session", path = "/v1/sessions/{id}", tag = "sessions", params(("id" = String, Path)),
    responses((status = 200, body = Session), (status = 401), (status = 404)))]
async fn show(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Path(id): Path<SessionId>,
) -> Result<JsonOut<Session>, Problem> {
    Ok(JsonOut(readable(&ctx, &person, &id).await?.0))
}

/// Ends a running session now.
#[utoipa::path(post, operation_id = "end_session", path = "/v1/sessions/{id}/end", tag = "sessions", params(("id" = String, Path)),
    request_body = WithReason,
    responses((status = 200, body = Session), (status = 400), (status = 401), (status = 403), (status = 404), (status = 409)))]
async fn end(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Path(id): Path<SessionId>,
    Json(why): Json<WithReason>,
) -> Result<JsonOut<Session>, Problem> {
    let (session, facts) = readable(&ctx, &person, &id).await?;
    ctx.authorize(&person, Action::EndSession, &Resource::Session(&facts)).await?;
    let reason = visible_line("the reason", &why.reason, MAX_REASON)
        .map_err(|error| Problem::bad_request("unfit_reason", error.to_string()))?;
    let live = ctx
        .sessions
        .get(&id)
        .filter(|_| session.state != SessionState::Ended)
        .ok_or_else(|| Problem::conflict("not_live", format!("The session {id} is over already.")))?;
    let mut detail = format!("by {}", person.email());
    if !reason.is_empty() {
        detail = format!("{detail}: {reason}");
    }
    live.end(End::with(EndReason::EndedByPerson, detail));
    // The row follows within moments; the caller sees it ended.
    let ended = async {
        loop {
            let (session, _) = readable(&ctx, &person, &id).await?;
            if session.state == SessionState::Ended {
                return Ok::<_, Problem>(session);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(std::time::Duration::from_secs(10), ended).await {
        Ok(session) => session.map(JsonOut),
        Err(_) => Ok(JsonOut(readable(&ctx, &person, &id).await?.0)),
    }
}

/// The content of a recording. Who replays what is itself on record.
#[utoipa::path(get, operation_id = "read_recording", path = "/v1/sessions/{id}/recordings/{number}", tag = "sessions",
    params(("id" = String, Path), ("number" = u32, Path)),
    responses((status = 200, description = "asciicast v2, or NDJSON"), (status = 401), (status = 403), (status = 404), (status = 410)))]
async fn recording(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Path((id, number)): Path<(SessionId, u32)>,
) -> Result<Response, Problem> {
    let (session, facts) = readable(&ctx, &person, &id).await?;
    ctx.authorize(&person, Action::Replay, &Resource::Session(&facts)).await?;
    let recording = session
        .recordings
        .iter()
        .find(|recording| recording.number == number)
        .ok_or_else(|| Problem::not_found(format!("The session {id} has no recording {number}.")))?;
    let gone = |why: ReadError| Problem::new(StatusCode::GONE, "recording_removed", format!("{why}."));
    if let Some(at) = recording.removed_at {
        return Err(gone(ReadError::Removed(at)));
    }
    let event = Event::new(Kind::RecordingRead, person.actor())
        .session(&id)
        .device(&session.device)
        .detail(serde_json::json!({ "recording": number }));
    audit::note(&ctx.db, ctx.clock.now(), event).await?;
    let content = ctx.recordings.read(&id, number).await.map_err(|error| match error {
        ReadError::Removed(_) => gone(error),
        error => Problem::unavailable("a recording cannot be read", &error),
    })?;
    let kind = match recording.kind {
        RecordingKind::Asciicast => "application/x-asciicast",
        RecordingKind::Output | RecordingKind::Events => "application/x-ndjson",
    };
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_DISPOSITION, "attachment"),
    ];
    Ok((headers, Body::from_stream(content.into_stream())).into_response())
}
