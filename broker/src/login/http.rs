//! The sign-in section of the HTTP API.

use super::Login;
use super::browser::{ATTEMPT_LIFETIME, CallbackQuery, Refused, is_local_path};
use super::caller::{BrowserCaller, CSRF_COOKIE, ClientAddress, SESSION_COOKIE};
use super::cli::{CLIENT_ID, TokenRefused, typed_code};
use super::limit::network;
use super::oidc::IdentityError;
use crate::http::Problem;
use crate::http::json;
use crate::http::page::{escape, page};
use crate::http::parameters::Path;
use axum::Json;
use axum::extract::rejection::{FormRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Form, FromRef, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use axum_extra::extract::CookieJar;
use daypass_protocol::api::{CliSignIn, CliSignInAnswer, DeviceAuthorization, TokenAnswer, TokenError};
use serde::Deserialize;
use std::time::Duration;
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Holds nothing but a random value that ties the callback to the browser that started.
const ATTEMPT_COOKIE: &str = "__Host-daypass-sign-in";
const DEVICE_CODE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// Every route of signing in. The server must put `ConnectInfo<SocketAddr>` into each request.
pub fn routes<S>() -> OpenApiRouter<S>
where
    S: Clone + Send + Sync + 'static,
    Login: FromRef<S>,
{
    OpenApiRouter::new()
        .routes(routes!(sign_in))
        .routes(routes!(callback))
        .routes(routes!(sign_out))
        .routes(routes!(authorize_cli))
        .routes(routes!(token))
        .routes(routes!(revoke))
        .routes(routes!(show_cli_sign_in, answer_cli_sign_in))
        .layer(DefaultBodyLimit::max(16 * 1024))
        // Codes, tokens and the pages around them are nobody's to keep (RFC 6749 section 5.1).
        .layer(SetResponseHeaderLayer::if_not_present(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-store"),
        ))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct SignInQuery {
    /// Where to go afterwards: a path of the broker.
    next: Option<String>,
}

/// Sends the browser to the identity provider.
#[utoipa::path(get, operation_id = "sign_in", path = "/login", security(()), tag = "sign-in", params(SignInQuery),
    responses((status = 302, description = "to the identity provider"), (status = 400), (status = 429), (status = 503)))]
async fn sign_in(
    State(login): State<Login>,
    ClientAddress(address): ClientAddress,
    jar: CookieJar,
    query: Result<Query<SignInQuery>, QueryRejection>,
) -> Response {
    let next = match query {
        Ok(Query(query)) => query.next.unwrap_or_else(|| "/".to_owned()),
        Err(_) => return nowhere(),
    };
    if !is_local_path(&next) {
        return nowhere();
    }
    if !login.0.starts.allow(&login.0.clock, &network(address)) {
        return too_many();
    }
    let browser = jar.get(ATTEMPT_COOKIE).map(|cookie| cookie.value().to_owned());
    match login.start(&next, browser).await {
        Ok(started) => {
            let cookie = cookie(ATTEMPT_COOKIE, &started.browser, ATTEMPT_LIFETIME, Readable::No);
            let to = String::from(started.to);
            (StatusCode::FOUND, [(header::SET_COOKIE, cookie), (header::LOCATION, to)]).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "a sign-in cannot be started");
            page(
                StatusCode::SERVICE_UNAVAILABLE,
                "Signing in is not possible now",
                "<p>The company's sign-in page cannot be reached from here. Please try again in a minute.</p>\
                 <p><a href=\"/login\">Try again</a></p>",
            )
        }
    }
}

/// Takes the browser back from the identity provider and signs it in.
#[utoipa::path(get, operation_id = "finish_sign_in", path = "/login/callback", security(()), tag = "sign-in", params(CallbackQuery),
    responses((status = 303, description = "signed in; to where the person wanted to go"), (status = 403), (status = 429), (status = 503)))]
async fn callback(
    State(login): State<Login>,
    ClientAddress(address): ClientAddress,
    jar: CookieJar,
    query: Result<Query<CallbackQuery>, QueryRejection>,
) -> Response {
    if !login.0.callbacks.allow(&login.0.clock, &network(address)) {
        return too_many();
    }
    let Ok(Query(query)) = query else { return nowhere() };
    let value = |name: &str| jar.get(name).map(|cookie| cookie.value().to_owned());
    let (browser, old) = (value(ATTEMPT_COOKIE), value(SESSION_COOKIE));
    match login.finish(query, browser.as_deref(), old.as_deref(), &address.to_string()).await {
        Ok(signed_in) => {
            let lifetime = login.0.browser_lifetime;
            let cookies = AppendHeaders([
                (header::SET_COOKIE, cookie(SESSION_COOKIE, &signed_in.session, lifetime, Readable::No)),
                (header::SET_COOKIE, cookie(CSRF_COOKIE, &signed_in.csrf, lifetime, Readable::Yes)),
            ]);
            (cookies, Redirect::to(&signed_in.next_path)).into_response()
        }
        Err(Refused::Broken(error)) => {
            tracing::error!(%error, "a sign-in failed");
            page(
                StatusCode::SERVICE_UNAVAILABLE,
                "Signing in is not possible now",
                "<p>The broker could not finish this sign-in. Please try again in a minute.</p>\
                 <p><a href=\"/login\">Try again</a></p>",
            )
        }
        Err(refused) => {
            let words = match &refused {
                Refused::ProviderSaid(said) => {
                    format!("The company's sign-in page did not let you in. It said: {}", escape(said))
                }
                Refused::UnknownState | Refused::TooLate | Refused::NoState | Refused::AnotherBrowser => {
                    "This sign-in is over, or it was started in another browser. Nothing is wrong; just start again."
                        .to_owned()
                }
                Refused::Identity(IdentityError::Provider(_) | IdentityError::Exchange(_)) => {
                    "The company's sign-in service did not answer as it should.".to_owned()
                }
                _ => "The answer of the company's sign-in service could not be trusted. \
                      Your administrator finds the cause in the broker's log."
                    .to_owned(),
            };
            page(
                StatusCode::FORBIDDEN,
                "You are not signed in",
                &format!("<p>{words}</p>\n<p><a href=\"/login\">Sign in again</a></p>"),
            )
        }
    }
}

/// Signs the browser out.
#[utoipa::path(post, operation_id = "sign_out", path = "/logout", tag = "sign-in", security(("cookie" = [])),
    responses((status = 204), (status = 401), (status = 403)))]
async fn sign_out(State(login): State<Login>, caller: BrowserCaller) -> Result<Response, Problem> {
    login.end_browser_session(&caller.person, &caller.token).await?;
    let gone = |name, readable| (header::SET_COOKIE, cookie(name, "", Duration::ZERO, readable));
    let cookies = AppendHeaders([gone(SESSION_COOKIE, Readable::No), gone(CSRF_COOKIE, Readable::Yes)]);
    Ok((StatusCode::NO_CONTENT, cookies).into_response())
}

#[derive(Debug, Deserialize, ToSchema)]
struct AuthorizeCliForm {
    client_id: String,
    /// The client's description of itself, for the person who confirms: `daypass 1.0 on ana-laptop`.
    #[serde(default)]
    client: String,
}

/// RFC 8628 section 3.1: a command line asks to be signed in.
#[utoipa::path(post, operation_id = "authorize_cli", path = "/v1/device-authorization", security(()), tag = "sign-in",
    request_body(content = AuthorizeCliForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = DeviceAuthorization), (status = 400, body = TokenError), (status = 429)))]
async fn authorize_cli(
    State(login): State<Login>,
    ClientAddress(address): ClientAddress,
    form: Result<Form<AuthorizeCliForm>, FormRejection>,
) -> Result<Response, Problem> {
    let Ok(Form(form)) = form else {
        return Ok(oauth_error("invalid_request", "The form needs client_id and client."));
    };
    if form.client_id != CLIENT_ID {
        return Ok(oauth_error("invalid_client", "The client is not known here; it must be daypass-cli."));
    }
    let busy =
        || Problem::too_many("Too many sign-ins were started from your network.").hint("Wait a minute.");
    if !login.0.cli_asks.allow(&login.0.clock, &network(address)) {
        return Err(busy());
    }
    let codes = login.authorize_cli(&form.client, &address.to_string()).await?.ok_or_else(busy)?;
    Ok(Json(codes).into_response())
}

#[derive(Deserialize, ToSchema)]
struct TokenForm {
    /// `urn:ietf:params:oauth:grant-type:device_code` or `refresh_token`.
    grant_type: String,
    client_id: Option<String>,
    device_code: Option<String>,
    refresh_token: Option<String>,
}

/// RFC 6749 section 3.2: gives tokens for a confirmed code or for a refresh token.
#[utoipa::path(post, operation_id = "issue_tokens", path = "/v1/token", security(()), tag = "sign-in",
    request_body(content = TokenForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = TokenAnswer), (status = 400, body = TokenError)))]
async fn token(
    State(login): State<Login>,
    form: Result<Form<TokenForm>, FormRejection>,
) -> Result<Response, Problem> {
    let Ok(Form(form)) = form else {
        return Ok(oauth_error("invalid_request", "The form needs grant_type."));
    };
    let outcome = match (form.grant_type.as_str(), form.device_code, form.refresh_token) {
        (DEVICE_CODE_GRANT, Some(code), None) if form.client_id.as_deref() == Some(CLIENT_ID) => {
            login.redeem_device_code(&code).await
        }
        ("refresh_token", None, Some(token)) => login.refresh(&token).await,
        (DEVICE_CODE_GRANT | "refresh_token", ..) => {
            return Ok(oauth_error("invalid_request", "The form lacks what this grant_type needs."));
        }
        _ => {
            return Ok(oauth_error(
                "unsupported_grant_type",
                "Only device_code and refresh_token are known.",
            ));
        }
    };
    match outcome {
        Ok(tokens) => Ok(Json(tokens).into_response()),
        Err(TokenRefused::Broken(error)) => Err(error.into()),
        Err(refused) => Ok((StatusCode::BAD_REQUEST, Json(refused.answer())).into_response()),
    }
}

#[derive(Deserialize, ToSchema)]
struct RevokeForm {
    /// A refresh token.
    token: String,
}

/// RFC 7009: signs a command line out.
#[utoipa::path(post, operation_id = "revoke_tokens", path = "/v1/revoke", security(()), tag = "sign-in",
    request_body(content = RevokeForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200), (status = 400, body = TokenError)))]
async fn revoke(
    State(login): State<Login>,
    form: Result<Form<RevokeForm>, FormRejection>,
) -> Result<Response, Problem> {
    let Ok(Form(form)) = form else {
        return Ok(oauth_error("invalid_request", "The form needs token."));
    };
    login.revoke(&form.token).await?;
    Ok(StatusCode::OK.into_response())
}

/// Shows a person which command line waits for this code.
#[utoipa::path(get, operation_id = "read_cli_sign_in", path = "/v1/cli-sign-ins/{user_code}", tag = "sign-in", params(("user_code" = String, Path)),
    security(("cookie" = [])),
    responses((status = 200, body = CliSignIn), (status = 401), (status = 404), (status = 429)))]
async fn show_cli_sign_in(
    State(login): State<Login>,
    ClientAddress(address): ClientAddress,
    caller: BrowserCaller,
    Path(user_code): Path<String>,
) -> Result<Json<CliSignIn>, Problem> {
    let code = checked_code(&login, address, &caller, &user_code)?;
    login.waiting_cli(&code).await?.map(Json).ok_or_else(no_such_code)
}

/// Confirms or refuses it.
#[utoipa::path(post, operation_id = "answer_cli_sign_in", path = "/v1/cli-sign-ins/{user_code}", tag = "sign-in", params(("user_code" = String, Path)),
    request_body = CliSignInAnswer, security(("cookie" = [])),
    responses((status = 204), (status = 401), (status = 403), (status = 404), (status = 429)))]
async fn answer_cli_sign_in(
    State(login): State<Login>,
    ClientAddress(address): ClientAddress,
    caller: BrowserCaller,
    Path(user_code): Path<String>,
    json::Json(answer): json::Json<CliSignInAnswer>,
) -> Result<StatusCode, Problem> {
    let code = checked_code(&login, address, &caller, &user_code)?;
    if login.answer_cli(&code, &caller.person, answer.confirm).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(no_such_code())
    }
}

/// Counts the try, then reads the code: guessing is bounded for each person and each network (RFC 8628
/// section 5.1).
fn checked_code(
    login: &Login,
    address: std::net::IpAddr,
    caller: &BrowserCaller,
    user_code: &str,
) -> Result<String, Problem> {
    let clock = &login.0.clock;
    if !login.0.codes_by_person.allow(clock, caller.person.id().as_str())
        || !login.0.codes_by_network.allow(clock, &network(address))
    {
        return Err(Problem::too_many("Too many codes were tried.").hint("Wait ten minutes."));
    }
    typed_code(user_code).ok_or_else(no_such_code)
}

fn no_such_code() -> Problem {
    Problem::not_found("No command line waits for this code: it was answered, has expired, or is mistyped.")
        .hint("Run `daypass login` again for a new code.")
}

fn oauth_error(error: &str, description: &str) -> Response {
    let body = TokenError { error: error.to_owned(), error_description: Some(description.to_owned()) };
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}

fn nowhere() -> Response {
    page(
        StatusCode::BAD_REQUEST,
        "This link does not work",
        "<p>It leads nowhere in Daypass.</p>\n<p><a href=\"/login\">Sign in</a></p>",
    )
}

fn too_many() -> Response {
    page(
        StatusCode::TOO_MANY_REQUESTS,
        "One moment, please",
        "<p>Too many sign-ins come from your network. Try again in a minute.</p>",
    )
}

/// Whether scripts of our own pages may read a cookie.
#[derive(Clone, Copy)]
enum Readable {
    Yes,
    No,
}

/// A cookie of this host alone, over HTTPS alone, that other sites' requests do not carry unless a person
/// follows a link. `value` is one of our tokens: base64url needs no quoting.
fn cookie(name: &str, value: &str, lifetime: Duration, readable: Readable) -> String {
    let http_only = match readable {
        Readable::Yes => "",
        Readable::No => "; HttpOnly",
    };
    format!("{name}={value}; Path=/; Max-Age={}; Secure; SameSite=Lax{http_only}", lifetime.as_secs())
}
