//! Devices and product lines over HTTP.

use super::{ChangeError, enrolment, store};
use crate::broker::Ctx;
use crate::http::Problem;
use crate::http::json::Json;
use crate::http::parameters::{Path, Query};
use crate::login::{Caller, VerifiedPerson};
use crate::policy::{Action, DeviceFacts, Resource};
use crate::request::store::device_facts;
use axum::Json as JsonOut;
use axum::extract::State;
use axum::http::StatusCode;
use daypass_protocol::api::{Device, DeviceDetail, EnrolToken, EnrolTokenAsk, Page, ProductLine, WithReason};
use daypass_protocol::ids::{DeviceId, LineName};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub fn routes() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new()
        .routes(routes!(lines, register_line))
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(suspend))
        .routes(routes!(resume))
        .routes(routes!(enrol_token))
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        let text = error.to_string();
        match error {
            ChangeError::UnknownDevice(_) => Self::not_found(text),
            ChangeError::Illegal(_) => Self::conflict("illegal_step", text),
            ChangeError::Reason(_) | ChangeError::NoReason => Self::bad_request("unfit_reason", text),
            ChangeError::Database(error) => error.into(),
        }
    }
}

impl From<enrolment::MakeTokenError> for Problem {
    fn from(error: enrolment::MakeTokenError) -> Self {
        use enrolment::MakeTokenError as E;
        let text = error.to_string();
        match error {
            E::Uses(_) | E::Lifetime(_) | E::Labels | E::LabelName | E::Text(_) => {
                Self::bad_request("unfit_token", text)
            }
            E::UnknownLine(_) => Self::not_found(text),
            E::Randomness(error) => Self::unavailable("a join token", &error),
            E::Trust(error) => Self::unavailable("a join token", &error),
            E::Database(error) => error.into(),
        }
    }
}

fn no_such(id: &DeviceId) -> Problem {
    Problem::not_found(format!("There is no device {id} that you may see.")).hint("See `daypass devices`.")
}

/// A device for somebody who may read it; for anybody else it does not exist.
async fn readable(ctx: &Ctx, person: &VerifiedPerson, id: &DeviceId) -> Result<DeviceFacts, Problem> {
    let mut conn = ctx.db.pool().acquire().await?;
    let facts = device_facts(&mut conn, id).await?.ok_or_else(|| no_such(id))?;
    if ctx.permits(person, Action::ReadDevice, &Resource::Device(&facts)) {
        Ok(facts)
    } else {
        Err(no_such(id))
    }
}

async fn shown(ctx: &Ctx, id: &DeviceId) -> Result<Device, Problem> {
    let row = store::find(ctx.db.pool(), id).await?.ok_or_else(|| no_such(id))?;
    Ok(row.into_api(ctx.tunnels.is_online(id)))
}

/// The product lines.
#[utoipa::path(get, operation_id = "list_product_lines", path = "/v1/product-lines", tag = "devices",
    responses((status = 200, body = [ProductLine]), (status = 401), (status = 403)))]
async fn lines(State(ctx): State<Ctx>, Caller(person): Caller) -> Result<JsonOut<Vec<ProductLine>>, Problem> {
    ctx.authorize(&person, Action::ReadProductLines, &Resource::Fleet).await?;
    Ok(JsonOut(store::lines(ctx.db.pool()).await?))
}

/// Registers a product line.
#[utoipa::path(post, operation_id = "register_product_line", path = "/v1/product-lines", tag = "devices", request_body = ProductLine,
    responses((status = 201, body = ProductLine), (status = 400), (status = 401), (status = 403), (status = 409)))]
async fn register_line(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Json(line): Json<ProductLine>,
) -> Result<(StatusCode, JsonOut<ProductLine>), Problem> {
    ctx.authorize(&person, Action::Administer, &Resource::Fleet).await?;
    let line = super::lines::register(&ctx.db, line, person.actor(), ctx.clock.now()).await?;
    Ok((StatusCode::CREATED, JsonOut(line)))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    #[param(value_type = Option<String>)]
    line: Option<LineName>,
    /// `key=value`; several are separated by commas, and all must be on the device.
    label: Option<String>,
    /// Part of the id, the serial number or a label.
    text: Option<String>,
    /// `next` of the page before.
    #[param(value_type = Option<String>)]
    after: Option<DeviceId>,
}

/// Devices that the caller may see, by id.
#[utoipa::path(get, operation_id = "list_devices", path = "/v1/devices", tag = "devices", params(ListQuery),
    responses((status = 200, body = Page<Device>), (status = 400), (status = 401), (status = 403)))]
async fn list(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Query(query): Query<ListQuery>,
) -> Result<JsonOut<Page<Device>>, Problem> {
    ctx.authorize(&person, Action::ListDevices, &Resource::Fleet).await?;
    let labels = query
        .label
        .iter()
        .flat_map(|text| text.split(','))
        .map(|pair| {
            pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| {
                Problem::bad_request("label", format!("The label {pair:?} is not of the form key=value."))
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let filter = store::Filter { line: query.line, labels, text: query.text, after: query.after };
    let (rows, next) = store::list(ctx.db.pool(), &filter).await?;
    let mut conn = ctx.db.pool().acquire().await?;
    let mut items = Vec::new();
    for row in rows {
        let Some(facts) = device_facts(&mut conn, &row.id).await? else { continue };
        if ctx.permits(&person, Action::ReadDevice, &Resource::Device(&facts)) {
            let online = ctx.tunnels.is_online(&row.id);
            items.push(row.into_api(online));
        }
    }
    Ok(JsonOut(Page { items, next: next.map(|id| id.to_string()) }))
}

/// One device with its ledger.
#[utoipa::path(get, operation_id = "read_device", path = "/v1/devices/{id}", tag = "devices", params(("id" = String, Path)),
    responses((status = 200, body = DeviceDetail), (status = 401), (status = 404)))]
async fn show(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Path(id): Path<DeviceId>,
) -> Result<JsonOut<DeviceDetail>, Problem> {
    readable(&ctx, &person, &id).await?;
    let ledger = store::ledger(ctx.db.pool(), &id).await?;
    Ok(JsonOut(DeviceDetail { device: shown(&ctx, &id).await?, ledger }))
}

/// Suspends a device: its sessions end, and no new one opens.
#[utoipa::path(post, operation_id = "suspend_device", path = "/v1/devices/{id}/suspend", tag = "devices", params(("id" = String, Path)),
    request_body = WithReason,
    responses((status = 200, body = Device), (status = 400), (status = 401), (status = 403), (status = 404), (status = 409)))]
async fn suspend(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Path(id): Path<DeviceId>,
    Json(why): Json<WithReason>,
) -> Result<JsonOut<Device>, Problem> {
    let facts = readable(&ctx, &person, &id).await?;
    ctx.authorize(&person, Action::SuspendDevice, &Resource::Device(&facts)).await?;
    ctx.tunnel_server.suspend(&id, person.actor(), &why.reason).await?;
    Ok(JsonOut(shown(&ctx, &id).await?))
}

/// Takes a suspension back.
#[utoipa::path(post, operation_id = "resume_device", path = "/v1/devices/{id}/resume", tag = "devices", params(("id" = String, Path)),
    request_body = WithReason,
    responses((status = 200, body = Device), (status = 400), (status = 401), (status = 403), (status = 404), (status = 409)))]
async fn resume(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Path(id): Path<DeviceId>,
    Json(why): Json<WithReason>,
) -> Result<JsonOut<Device>, Problem> {
    let facts = readable(&ctx, &person, &id).await?;
    ctx.authorize(&person, Action::ResumeDevice, &Resource::Device(&facts)).await?;
    ctx.tunnel_server.resume(&id, person.actor(), &why.reason).await?;
    Ok(JsonOut(shown(&ctx, &id).await?))
}

/// Makes a join token. It is shown once.
#[utoipa::path(post, operation_id = "make_enrol_token", path = "/v1/enrol-tokens", tag = "devices", request_body = EnrolTokenAsk,
    responses((status = 201, body = EnrolToken), (status = 400), (status = 401), (status = 403), (status = 404)))]
async fn enrol_token(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Json(ask): Json<EnrolTokenAsk>,
) -> Result<(StatusCode, JsonOut<EnrolToken>), Problem> {
    ctx.authorize(&person, Action::EnrolDevice, &Resource::Fleet).await?;
    let url = ctx.config.https.url.as_str().trim_end_matches('/').to_owned();
    let mut tx = ctx.db.begin().await?;
    let (token, recorded) = enrolment::make_token(
        &mut tx,
        ctx.tunnel_server.trust(),
        &url,
        &ask,
        person.actor(),
        ctx.clock.now(),
    )
    .await?;
    tx.commit(recorded).await?;
    Ok((StatusCode::CREATED, JsonOut(token)))
}
