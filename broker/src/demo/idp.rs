//! The demonstration's identity provider: a sign-in page that lets anybody be one of four people.
//!
//! It is a real OpenID provider (discovery, authorization code, PKCE, signed ID tokens), so that the
//! broker signs people in by the very code that a company's provider meets. It asks for no password and
//! therefore listens on this machine only: [`start`] refuses any other address.
//!
//! Scripts choose a person by `login_hint` with `prompt=none` in the authorization request (OpenID
//! Connect Core 1.0 section 3.1.2.1), and see no page.

use crate::clock::Clock;
use crate::http::page::{escape, page};
use crate::random::{self, NoRandomness};
use axum::extract::{DefaultBodyLimit, Form, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use daypass_protocol::time::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use ssh_key::private::Ed25519Keypair;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use url::Url;

const CLIENT_ID: &str = "daypass-demo";
const KEY_ID: &str = "demo";
const CODE_LIFETIME: Duration = Duration::from_mins(1);
const TOKEN_LIFETIME: Duration = Duration::from_mins(5);
/// Codes given out and not yet exchanged.
const MOST_CODES: usize = 1000;

/// One of the people of the demonstration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persona {
    /// What scripts call it: `engineer`.
    pub id: &'static str,
    pub name: &'static str,
    pub email: &'static str,
    pub team: &'static str,
    /// What the sign-in page says of it.
    pub does: &'static str,
}

pub const PERSONAS: [Persona; 4] = [
    Persona {
        id: "engineer",
        name: "Ana Silva",
        email: "ana@example.com",
        team: "support",
        does: "Support engineer: asks for access and connects",
    },
    Persona {
        id: "approver",
        name: "Ben Okafor",
        email: "ben@example.com",
        team: "support-leads",
        does: "Approver: answers requests",
    },
    Persona {
        id: "reviewer",
        name: "Chloe Martin",
        email: "chloe@example.com",
        team: "security",
        does: "Security reviewer: replays sessions",
    },
    Persona {
        id: "operator",
        name: "Dev Patel",
        email: "dev@example.com",
        team: "fleet",
        does: "Fleet operator: enrols and suspends devices",
    },
];

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "the demonstration's sign-in page asks for no password and listens on this machine only, not on {0}"
    )]
    NotLoopback(SocketAddr),
    #[error("the demonstration's sign-in page cannot listen on {0}: {1}")]
    Listen(SocketAddr, #[source] std::io::Error),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// The running provider; dropped, it stops.
#[derive(Debug)]
pub struct Handle {
    pub issuer: String,
    pub client_id: String,
    pub client_secret: String,
    pub addr: SocketAddr,
    task: AbortHandle,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Provider {
    issuer: String,
    client_secret: String,
    key: EncodingKey,
    public: [u8; 32],
    clock: Clock,
    codes: Mutex<HashMap<String, Code>>,
    personas: Vec<Persona>,
}

struct Code {
    persona: Persona,
    challenge: String,
    redirect_uri: String,
    nonce: Option<String>,
    expires_at: Timestamp,
}

/// Starts the provider with a fresh key and a fresh client secret.
pub async fn start(listen: SocketAddr, clock: Clock) -> Result<Handle, StartError> {
    start_with(listen, clock, PERSONAS.to_vec()).await
}

/// As [`start`], for people of one's own choice.
pub async fn start_with(
    listen: SocketAddr,
    clock: Clock,
    personas: Vec<Persona>,
) -> Result<Handle, StartError> {
    if !listen.ip().is_loopback() {
        return Err(StartError::NotLoopback(listen));
    }
    let listener = TcpListener::bind(listen).await.map_err(|error| StartError::Listen(listen, error))?;
    let addr = listener.local_addr().map_err(|error| StartError::Listen(listen, error))?;
    let seed = random::bytes::<32>()?;
    // RFC 8410 section 7: PKCS#8 of an Ed25519 key is these bytes, and the key's 32.
    let mut der =
        vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend_from_slice(&seed);
    let provider = Arc::new(Provider {
        issuer: format!("http://{addr}"),
        client_secret: random::token()?,
        key: EncodingKey::from_ed_der(&der),
        public: Ed25519Keypair::from_seed(&seed).public.0,
        clock,
        codes: Mutex::default(),
        personas,
    });
    let (issuer, client_secret) = (provider.issuer.clone(), provider.client_secret.clone());
    let router = Router::new()
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/jwks", get(keys))
        .route("/authorize", get(authorize))
        .route("/token", post(token))
        .layer(DefaultBodyLimit::max(16 * 1024))
        .with_state(provider);
    let task = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the demonstration's sign-in page stopped");
        }
    });
    Ok(Handle { issuer, client_id: CLIENT_ID.to_owned(), client_secret, addr, task: task.abort_handle() })
}

async fn discovery(State(provider): State<Arc<Provider>>) -> Json<Value> {
    let issuer = &provider.issuer;
    Json(json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"),
        "jwks_uri": format!("{issuer}/jwks"),
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["EdDSA"],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "scopes_supported": ["openid", "profile", "email", "groups"],
        "authorization_response_iss_parameter_supported": true,
    }))
}

async fn keys(State(provider): State<Arc<Provider>>) -> Json<Value> {
    Json(json!({ "keys": [{
        "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": KEY_ID,
        "x": URL_SAFE_NO_PAD.encode(provider.public),
    }] }))
}

#[derive(Deserialize)]
struct AuthorizationRequest {
    response_type: String,
    client_id: String,
    redirect_uri: String,
    #[serde(default)]
    scope: String,
    state: Option<String>,
    nonce: Option<String>,
    code_challenge: Option<String>,
    code_challenge_method: Option<String>,
    login_hint: Option<String>,
    prompt: Option<String>,
}

fn wrong(what: &str) -> Response {
    page(StatusCode::BAD_REQUEST, "This sign-in link is wrong", &format!("<p>{}</p>", escape(what)))
}

async fn authorize(
    State(provider): State<Arc<Provider>>,
    axum::extract::RawQuery(raw): axum::extract::RawQuery,
    Query(ask): Query<AuthorizationRequest>,
) -> Response {
    // Until the client and its address are known to be good, nothing is sent there (RFC 6749 4.1.2.1).
    let Some(mut back) = callback(&ask.redirect_uri) else {
        return wrong("redirect_uri must be /login/callback on this machine.");
    };
    if ask.client_id != CLIENT_ID {
        return wrong("client_id is not daypass-demo.");
    }
    if ask.response_type != "code" || !ask.scope.split(' ').any(|scope| scope == "openid") {
        return wrong("response_type must be code, and scope must have openid.");
    }
    let (Some(challenge), Some("S256")) = (&ask.code_challenge, ask.code_challenge_method.as_deref()) else {
        return wrong("code_challenge by S256 is needed.");
    };
    let persona = ask
        .login_hint
        .as_deref()
        .and_then(|hint| provider.personas.iter().find(|persona| persona.id == hint));
    let answer: Vec<(&str, String)> = match (persona, ask.prompt.as_deref()) {
        (Some(persona), Some("none")) => {
            let code = Code {
                persona: *persona,
                challenge: challenge.clone(),
                redirect_uri: ask.redirect_uri.clone(),
                nonce: ask.nonce.clone(),
                expires_at: provider.clock.now() + CODE_LIFETIME,
            };
            match provider.keep(code) {
                Ok(code) => vec![("code", code)],
                Err(error) => {
                    tracing::error!(%error, "no code");
                    vec![("error", "temporarily_unavailable".to_owned())]
                }
            }
        }
        (None, Some("none")) => vec![("error", "login_required".to_owned())],
        _ => return choice(&provider.personas, &raw.unwrap_or_default()),
    };
    {
        let mut pairs = back.query_pairs_mut();
        for (name, value) in answer {
            pairs.append_pair(name, &value);
        }
        if let Some(state) = &ask.state {
            pairs.append_pair("state", state);
        }
        pairs.append_pair("iss", &provider.issuer);
    }
    Redirect::to(back.as_str()).into_response()
}

/// The page of people: each link is this very request with the choice added.
fn choice(personas: &[Persona], query: &str) -> Response {
    use std::fmt::Write as _;
    let mut body =
        String::from("<p>Choose who you are in this demonstration. There are no passwords here.</p>\n");
    let kept: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes())
        .filter(|(name, _)| name != "login_hint" && name != "prompt")
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    for persona in personas {
        let link = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(&kept)
            .append_pair("login_hint", persona.id)
            .append_pair("prompt", "none")
            .finish();
        let _ = writeln!(
            body,
            "<a class=\"button\" id=\"{}\" href=\"/authorize?{}\">{}<span>{}</span></a>",
            persona.id,
            escape(&link),
            escape(persona.name),
            escape(persona.does)
        );
    }
    body.push_str("<p><small>This sign-in page exists in the demonstration only.</small></p>");
    page(StatusCode::OK, "Sign in to Daypass", &body)
}

/// The broker's callback, if that is what it is.
fn callback(redirect_uri: &str) -> Option<Url> {
    let url = Url::parse(redirect_uri).ok()?;
    let here = match url.host()? {
        url::Host::Ipv4(ip) => ip.is_loopback(),
        url::Host::Ipv6(ip) => ip.is_loopback(),
        url::Host::Domain(name) => name == "localhost",
    };
    (here && url.scheme() == "https" && url.path() == "/login/callback" && url.query().is_none())
        .then_some(url)
}

impl Provider {
    fn codes(&self) -> std::sync::MutexGuard<'_, HashMap<String, Code>> {
        self.codes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, code: Code) -> Result<String, NoRandomness> {
        let text = random::token()?;
        let mut codes = self.codes();
        let now = self.clock.now();
        codes.retain(|_, code| code.expires_at > now);
        if codes.len() >= MOST_CODES {
            codes.clear();
        }
        codes.insert(text.clone(), code);
        Ok(text)
    }
}

#[derive(Deserialize)]
struct TokenRequest {
    grant_type: String,
    code: Option<String>,
    redirect_uri: Option<String>,
    code_verifier: Option<String>,
    client_id: Option<String>,
    client_secret: Option<String>,
}

async fn token(
    State(provider): State<Arc<Provider>>,
    headers: HeaderMap,
    Form(ask): Form<TokenRequest>,
) -> Response {
    let refused = |status: StatusCode, error: &str| (status, Json(json!({ "error": error }))).into_response();
    let (client_id, client_secret) = match basic(&headers) {
        Some(pair) => pair,
        None => (ask.client_id.unwrap_or_default(), ask.client_secret.unwrap_or_default()),
    };
    let known = client_id == CLIENT_ID
        && bool::from(client_secret.as_bytes().ct_eq(provider.client_secret.as_bytes()));
    if !known {
        return refused(StatusCode::UNAUTHORIZED, "invalid_client");
    }
    if ask.grant_type != "authorization_code" {
        return refused(StatusCode::BAD_REQUEST, "unsupported_grant_type");
    }
    let now = provider.clock.now();
    // Taken out: a code works once.
    let code = provider.codes().remove(ask.code.as_deref().unwrap_or_default());
    let proof = ask.code_verifier.map(|verifier| URL_SAFE_NO_PAD.encode(Sha256::digest(verifier)));
    let Some(code) = code.filter(|code| {
        code.expires_at > now
            && ask.redirect_uri.as_deref() == Some(&code.redirect_uri)
            && proof.as_deref() == Some(&code.challenge)
    }) else {
        return refused(StatusCode::BAD_REQUEST, "invalid_grant");
    };
    let persona = code.persona;
    let claims = json!({
        "iss": provider.issuer, "aud": CLIENT_ID, "sub": format!("demo-{}", persona.id),
        "iat": now.as_secs(), "exp": (now + TOKEN_LIFETIME).as_secs(), "auth_time": now.as_secs(),
        "nonce": code.nonce, "amr": ["demo", "mfa"],
        "email": persona.email, "email_verified": true, "name": persona.name, "groups": [persona.team],
    });
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some(KEY_ID.to_owned());
    match (jsonwebtoken::encode(&header, &claims, &provider.key), random::token()) {
        (Ok(id_token), Ok(access_token)) => (
            [(header::CACHE_CONTROL, "no-store")],
            Json(json!({
                "access_token": access_token, "token_type": "Bearer",
                "expires_in": TOKEN_LIFETIME.as_secs(), "id_token": id_token,
            })),
        )
            .into_response(),
        (Err(error), _) => {
            tracing::error!(%error, "an ID token cannot be signed");
            refused(StatusCode::INTERNAL_SERVER_ERROR, "server_error")
        }
        (_, Err(error)) => {
            tracing::error!(%error, "no access token");
            refused(StatusCode::INTERNAL_SERVER_ERROR, "server_error")
        }
    }
}

/// RFC 6749 section 2.3.1: both halves are form-encoded before they are joined.
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let encoded = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let text = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    let decode = |part: &str| {
        url::form_urlencoded::parse(format!("v={part}").as_bytes()).next().map(|(_, v)| v.into_owned())
    };
    Some((decode(id)?, decode(secret)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_demo_provider_listens_on_this_machine_only() {
        for public in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            let refused = start(public.parse().unwrap(), Clock::system()).await;
            assert!(matches!(refused, Err(StartError::NotLoopback(_))), "{public}");
        }
    }

    #[test]
    fn codes_go_to_the_brokers_callback_on_this_machine_only() {
        assert!(callback("https://127.0.0.1:8443/login/callback").is_some());
        assert!(callback("https://localhost:8443/login/callback").is_some());
        for bad in [
            "https://evil.example.com/login/callback",
            "https://127.0.0.1.evil.example.com/login/callback",
            "http://127.0.0.1:8443/login/callback",
            "https://127.0.0.1:8443/elsewhere",
            "https://127.0.0.1:8443/login/callback?x=1",
            "javascript:alert(1)",
        ] {
            assert!(callback(bad).is_none(), "{bad}");
        }
    }

    #[tokio::test]
    async fn the_page_offers_four_people_and_keeps_the_request_as_text() {
        use http_body_util::BodyExt as _;
        let body = choice(&PERSONAS, "state=%22%3E%3Cscript%3E&prompt=none&login_hint=x").into_body();
        let html = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        assert!(!html.contains("<script>"), "{html}");
        for persona in PERSONAS {
            assert!(
                html.contains(persona.name)
                    && html.contains(&format!("login_hint={}&amp;prompt=none", persona.id))
            );
        }
    }
}
