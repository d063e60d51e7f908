//! A small identity provider that can lie, a browser that keeps cookies, and what they show.

mod browser;
mod cli;
mod id_token;

use super::{Caller, Login, LoginConfig, Secret, TokenKey, http};
use crate::clock::Clock;
use crate::db::Db;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use daypass_protocol::time::Timestamp;
use http_body_util::BodyExt as _;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use sqlx::Row as _;
use ssh_key::private::Ed25519Keypair;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tower::ServiceExt as _;
use url::Url;

pub const NOW: Timestamp = Timestamp(1_795_345_512_000);
pub const ORIGIN: &str = "https://daypass.example.com";
const CLIENT_SECRET: &str = "a client secret that is long enough for an HMAC";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignedBy {
    Provider,
    AnotherKey,
    Nobody,
    ClientSecret,
    PublicKeyAsSecret,
}

/// What the provider will say; a claim that is null is left out.
pub struct Says {
    pub claims: Value,
    pub signed_by: SignedBy,
    pub id_token: bool,
    pub user_info: Value,
    nonce: String,
    verifier: Option<String>,
    pub challenge: String,
}

#[derive(Clone)]
pub struct Idp {
    pub issuer: String,
    pub says: Arc<Mutex<Says>>,
}

fn pkcs8(seed: u8) -> Vec<u8> {
    let mut der =
        vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend_from_slice(&[seed; 32]);
    der
}

impl Idp {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let says = Says {
            claims: json!({
                "iss": issuer, "aud": "daypass", "sub": "ana", "email": "ana@example.com", "name": "Ana Silva",
                "groups": ["support"], "iat": NOW.as_secs(), "exp": NOW.as_secs() + 300, "amr": ["pwd", "mfa"],
            }),
            signed_by: SignedBy::Provider,
            id_token: true,
            user_info: json!({}),
            nonce: String::new(),
            verifier: None,
            challenge: String::new(),
        };
        let idp = Self { issuer, says: Arc::new(Mutex::new(says)) };
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/jwks", get(keys))
            .route("/token", post(token))
            .route(
                "/userinfo",
                get(|State(idp): State<Idp>| async move { Json(idp.says().user_info.clone()) }),
            )
            .with_state(idp.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        idp
    }

    pub fn says(&self) -> std::sync::MutexGuard<'_, Says> {
        self.says.lock().unwrap()
    }

    pub fn claim(&self, name: &str, value: Value) {
        self.says().claims[name] = value;
    }
}

async fn discovery(State(idp): State<Idp>) -> Json<Value> {
    let issuer = &idp.issuer;
    Json(json!({
        "issuer": issuer, "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"), "jwks_uri": format!("{issuer}/jwks"),
        "userinfo_endpoint": format!("{issuer}/userinfo"), "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        // More than the broker believes: what the provider claims to support opens nothing.
        "id_token_signing_alg_values_supported": ["EdDSA", "HS256", "none"],
    }))
}

async fn keys() -> Json<Value> {
    let public = Ed25519Keypair::from_seed(&[1; 32]).public.0;
    Json(
        json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "use": "sig", "x": URL_SAFE_NO_PAD.encode(public) }] }),
    )
}

async fn token(State(idp): State<Idp>, body: String) -> Response {
    let mut says = idp.says();
    let form: BTreeMap<String, String> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    assert_eq!(form["redirect_uri"], format!("{ORIGIN}/login/callback"));
    says.verifier = form.get("code_verifier").cloned();
    if form["code"] != "good" {
        return (StatusCode::BAD_REQUEST, Json(json!({ "error": "invalid_grant" }))).into_response();
    }
    let mut claims = says.claims.clone();
    if claims.get("nonce").is_none() {
        claims["nonce"] = says.nonce.clone().into();
    }
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    let public = Ed25519Keypair::from_seed(&[1; 32]).public.0;
    let sign =
        |algorithm, key: EncodingKey| jsonwebtoken::encode(&Header::new(algorithm), &claims, &key).unwrap();
    let jwt = match says.signed_by {
        SignedBy::Provider => sign(Algorithm::EdDSA, EncodingKey::from_ed_der(&pkcs8(1))),
        SignedBy::AnotherKey => sign(Algorithm::EdDSA, EncodingKey::from_ed_der(&pkcs8(2))),
        SignedBy::ClientSecret => sign(Algorithm::HS256, EncodingKey::from_secret(CLIENT_SECRET.as_bytes())),
        SignedBy::PublicKeyAsSecret => sign(Algorithm::HS256, EncodingKey::from_secret(&public)),
        SignedBy::Nobody => format!(
            "{}.{}.",
            URL_SAFE_NO_PAD.encode(json!({ "alg": "none", "typ": "JWT" }).to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        ),
    };
    let mut answer = json!({ "access_token": "at", "token_type": "Bearer", "expires_in": 60 });
    if says.id_token {
        answer["id_token"] = jwt.into();
    }
    Json(answer).into_response()
}

/// The broker's sign-in over one database, and its provider.
pub struct House {
    pub idp: Idp,
    pub db: Db,
    pub clock: Clock,
    pub login: Login,
    pub router: Router,
}

impl House {
    pub async fn new(db: Db) -> Self {
        Self::with(db, |_| {}).await
    }

    pub async fn with(db: Db, change: impl FnOnce(&mut LoginConfig)) -> Self {
        let idp = Idp::start().await;
        let clock = Clock::fixed(NOW);
        let mut config = LoginConfig::of(&idp.issuer, "daypass");
        change(&mut config);
        let mut settings = config.check(|_| None).unwrap();
        settings.client_secret = Some(Secret::new(CLIENT_SECRET));
        let url = Url::parse(ORIGIN).unwrap();
        let login =
            Login::new(db.clone(), clock.clone(), settings, url, TokenKey::from_seed(&[7; 32])).unwrap();
        let whoami =
            |Caller(person): Caller| async move { format!("{} {:?}", person.email(), person.teams()) };
        let router = http::routes::<Login>()
            .route("/whoami", get(whoami).post(whoami))
            .split_for_parts()
            .0
            .with_state(login.clone());
        Self { idp, db, clock, login, router }
    }

    /// The kinds of audit events so far, each with the cause it names.
    pub async fn audit(&self) -> Vec<(String, String)> {
        let rows = sqlx::query("SELECT kind, detail FROM audit_event ORDER BY seq")
            .fetch_all(self.db.pool())
            .await
            .unwrap();
        rows.iter()
            .map(|row| {
                let detail: Value = serde_json::from_str(&row.get::<String, _>(1)).unwrap();
                (row.get(0), detail["cause"].as_str().unwrap_or_default().to_owned())
            })
            .collect()
    }

    /// A form sent by a command line: status and JSON.
    pub async fn form(&self, path: &str, fields: &[(&str, &str)]) -> (StatusCode, Value) {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let request = Request::post(path)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(body))
            .unwrap();
        let answer = send(&self.router, request).await;
        let status = answer.status();
        (status, serde_json::from_str(&text(answer).await).unwrap_or(Value::Null))
    }

    pub async fn whoami(&self, access_token: &str) -> (StatusCode, String) {
        let request = Request::get("/whoami")
            .header("authorization", format!("Bearer {access_token}"))
            .body(Body::empty());
        let answer = send(&self.router, request.unwrap()).await;
        (answer.status(), text(answer).await)
    }
}

pub async fn send(router: &Router, mut request: Request<Body>) -> Response {
    request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([192, 0, 2, 7], 4711))));
    router.clone().oneshot(request).await.unwrap()
}

pub async fn text(answer: Response) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Keeps cookies, and follows nothing by itself.
#[derive(Default)]
pub struct Browser {
    pub cookies: BTreeMap<String, String>,
}

impl Browser {
    pub fn request(&self, method: &str, path: &str) -> axum::http::request::Builder {
        let cookies: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let builder = Request::builder().method(method).uri(path);
        if cookies.is_empty() { builder } else { builder.header(header::COOKIE, cookies.join("; ")) }
    }

    pub async fn send(&mut self, house: &House, request: Request<Body>) -> Response {
        let answer = send(&house.router, request).await;
        for set in answer.headers().get_all(header::SET_COOKIE) {
            let set = set.to_str().unwrap();
            assert!(set.contains("; Secure; SameSite=Lax") && set.contains("Path=/"), "{set}");
            assert_eq!(set.contains("HttpOnly"), !set.starts_with("daypass-csrf="), "{set}");
            let (name, value) = set.split(';').next().unwrap().split_once('=').unwrap();
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
        answer
    }

    pub async fn get(&mut self, house: &House, path: &str) -> Response {
        let request = self.request("GET", path).body(Body::empty()).unwrap();
        self.send(house, request).await
    }

    /// Goes to the provider, which remembers the nonce and the challenge; gives the state to return with.
    pub async fn leave(&mut self, house: &House, next: &str) -> String {
        let answer = self.get(house, &format!("/login?next={next}")).await;
        assert_eq!(answer.status(), 302);
        let to = Url::parse(answer.headers()["location"].to_str().unwrap()).unwrap();
        let query: BTreeMap<String, String> = to.query_pairs().into_owned().collect();
        assert_eq!(query["code_challenge_method"], "S256");
        assert_eq!(query["response_type"], "code");
        let mut says = house.idp.says();
        says.nonce.clone_from(&query["nonce"]);
        says.challenge.clone_from(&query["code_challenge"]);
        query["state"].clone()
    }

    pub async fn come_back(&mut self, house: &House, state: &str) -> Response {
        self.get(house, &format!("/login/callback?code=good&state={state}")).await
    }

    pub async fn sign_in(&mut self, house: &House) -> Response {
        let state = self.leave(house, "/requests").await;
        self.come_back(house, &state).await
    }

    pub async fn signed_in(house: &House) -> Self {
        let mut browser = Self::default();
        assert_eq!(browser.sign_in(house).await.status(), 303);
        browser
    }

    pub fn meant(&self, method: &str, path: &str) -> axum::http::request::Builder {
        self.request(method, path).header("x-csrf-token", &self.cookies["daypass-csrf"])
    }
}
