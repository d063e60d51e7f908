//! The broker to anybody, and the caller to themselves.

use crate::broker::Ctx;
use crate::certificate::issue::{self, IssueError};
use crate::certificate::keys::KeyPurpose;
use crate::http::Problem;
use crate::http::json::Json;
use crate::login::Caller;
use crate::policy::{self, Subject};
use axum::Json as JsonOut;
use axum::extract::State;
use daypass_protocol::api::{BrokerInfo, IdentityCertificate, IdentityCertificateAsk, Me};
use daypass_protocol::ssh_key::PublicKey;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub fn routes() -> OpenApiRouter<Ctx> {
    OpenApiRouter::new().routes(routes!(broker)).routes(routes!(me)).routes(routes!(certificate))
}

/// What anybody may know: addresses, and the public halves of the CAs.
#[utoipa::path(get, operation_id = "read_broker", path = "/v1/broker", security(()), tag = "broker", responses((status = 200, body = BrokerInfo)))]
async fn broker(State(ctx): State<Ctx>) -> JsonOut<BrokerInfo> {
    let (ssh_host, ssh_port) = ctx.ssh_address();
    JsonOut(BrokerInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        url: ctx.config.https.url.as_str().trim_end_matches('/').to_owned(),
        ssh_host,
        ssh_port,
        host_suffix: ctx.config.ssh.host_suffix.clone(),
        host_cas: ctx.keys.public_lines(KeyPurpose::Host),
        user_cas: ctx.keys.public_lines(KeyPurpose::User),
        identity_cas: ctx.keys.public_lines(KeyPurpose::Identity),
        broker_keys: ctx.keys.public_lines(KeyPurpose::Evidence),
    })
}

/// Who the caller is, and what policy lets them do at all.
#[utoipa::path(get, operation_id = "read_me", path = "/v1/me", tag = "sign-in", responses((status = 200, body = Me), (status = 401)))]
async fn me(State(ctx): State<Ctx>, Caller(person): Caller) -> JsonOut<Me> {
    let may = policy::may_at_all(&ctx.policies.current(), &Subject::from(&person), ctx.clock.now());
    JsonOut(Me {
        id: person.id().clone(),
        email: person.email().to_owned(),
        name: person.name().to_owned(),
        teams: person.teams().to_vec(),
        signed_in_at: person.signed_in_at(),
        may: may.into_iter().map(|action| action.as_str().to_owned()).collect(),
    })
}

/// An identity certificate over the caller's key, for the SSH gateway.
#[utoipa::path(post, operation_id = "issue_identity_certificate", path = "/v1/me/certificate", tag = "sign-in", request_body = IdentityCertificateAsk,
    responses((status = 200, body = IdentityCertificate), (status = 400), (status = 401)))]
async fn certificate(
    State(ctx): State<Ctx>,
    Caller(person): Caller,
    Json(ask): Json<IdentityCertificateAsk>,
) -> Result<JsonOut<IdentityCertificate>, Problem> {
    let unfit =
        |why: String| Problem::bad_request("unfit_key", why).hint("Make one with: ssh-keygen -t ed25519");
    if ask.public_key.len() > 4096 {
        return Err(unfit("The key is longer than 4096 bytes.".to_owned()));
    }
    let key = PublicKey::from_openssh(ask.public_key.trim())
        .map_err(|error| unfit(format!("The key does not read as an OpenSSH public key: {error}.")))?;
    let now = ctx.clock.now();
    // Counted from the sign-in, so that asking again does not stretch a working day.
    let until = person.signed_in_at() + ctx.config.sessions.identity_lifetime;
    if until <= now {
        return Err(Problem::unauthenticated("Your sign-in is older than a working day."));
    }
    let mut tx = ctx.db.begin().await?;
    let (certificate, recorded) = issue::identity(&mut tx, &ctx.keys, &person, &key, now, until)
        .await
        .map_err(|error| match error {
            IssueError::KeyType(_) => unfit(error.to_string()),
            other => Problem::unavailable("an identity certificate", &other),
        })?;
    tx.commit(recorded).await?;
    let certificate =
        certificate.to_openssh().map_err(|error| Problem::unavailable("an identity certificate", &error))?;
    Ok(JsonOut(IdentityCertificate { certificate, valid_until: until }))
}
