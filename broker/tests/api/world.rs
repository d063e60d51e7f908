//! A broker with its demonstration's sign-in page, a device, and people who are signed in.

use daypass_broker::audit::{self, Actor, Event, Kind};
use daypass_broker::broker::Ctx;
use daypass_broker::certificate::Keys;
use daypass_broker::clock::Clock;
use daypass_broker::config::Config;
use daypass_broker::demo::Browser;
use daypass_broker::demo::idp::{self, PERSONAS, Persona};
use daypass_broker::device::store::NewDevice;
use daypass_broker::device::{Step, lines, store};
use daypass_broker::login::CLIENT_SECRET_VARIABLE;
use daypass_broker::policy::shipped;
use daypass_broker::random;
use daypass_broker::recording::SessionFacts;
use daypass_broker::serve::{self, Running};
use daypass_protocol::api::{CraClass, DeviceState, EndReason, Me, ProductLine, TokenAnswer};
use daypass_protocol::ids::{DeviceId, SessionId};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Without a port: the client is told where that is.
pub const URL: &str = "https://localhost";
/// In the field, where every session needs an approval.
pub const FIELD: &str = "gw-0042";
/// In the lab, where support needs none.
pub const LAB: &str = "gw-0043";

/// An engineer of the same team.
const COLLEAGUE: Persona =
    Persona { id: "colleague", name: "Eva Lind", email: "eva@example.com", team: "support", does: "" };
/// Somebody of the company for whom policy permits nothing.
const VISITOR: Persona =
    Persona { id: "visitor", name: "Finn Roth", email: "finn@example.com", team: "sales", does: "" };

pub struct World {
    pub ctx: Ctx,
    pub client: Client,
    _running: Running,
    _idp: idp::Handle,
    pub folder: tempfile::TempDir,
}

/// Somebody who is signed in, at the command line and in a browser.
pub struct Person {
    pub access: String,
    pub refresh: String,
    pub browser: Browser,
    pub me: Me,
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The code and the words of a problem; fails if it is none.
    #[track_caller]
    pub fn problem(&self, status: u16) -> (String, String) {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text);
        let problem: daypass_protocol::api::Problem = self.json();
        assert_eq!(problem.status, status);
        (problem.code, format!("{} {}", problem.detail.unwrap_or_default(), problem.hint.unwrap_or_default()))
    }
}

impl World {
    pub async fn new() -> Self {
        // RUST_LOG=daypass_broker=debug shows what went on.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        // The client of the tests and the broker's own share one TLS library.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();

        let people = PERSONAS.into_iter().chain([COLLEAGUE, VISITOR]).collect();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let idp = idp::start_with(any, Clock::system(), people).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("data/keys")).unwrap();
        std::fs::write(folder.path().join("passphrase"), "correct horse").unwrap();
        let text = format!(
            "data_dir = \"data\"\n[https]\nlisten = \"{any}\"\nurl = \"{URL}\"\n[ssh]\nlisten = \"{any}\"\n\
             [keys]\npassphrase_file = \"passphrase\"\n[policies]\ndir = \"policies\"\n\
             [recordings]\nmin_free_mib = 0\n[requests]\npending_per_person = 1000\n\
             [login]\nissuer = \"{}\"\nclient_id = \"{}\"\n",
            idp.issuer, idp.client_id
        );
        let secret = idp.client_secret.clone();
        let config = Config::parse(&text, folder.path(), |name| {
            (name == CLIENT_SECRET_VARIABLE).then(|| secret.clone())
        })
        .unwrap();
        let (keys, policies) = (Keys::ephemeral().unwrap(), shipped::policies().unwrap());
        let ctx = Ctx::assemble(config, Clock::system(), keys, policies).await.unwrap();
        let running = serve::start(ctx.clone()).await.unwrap();
        let client = Browser::client(&ctx, running.https).unwrap();
        let world = Self { ctx, client, _running: running, _idp: idp, folder };
        world.add_devices().await;
        world
    }

    async fn add_devices(&self) {
        let line = ProductLine {
            name: "edge-gateway".parse().unwrap(),
            title: "Edge gateway".to_owned(),
            cra_class: CraClass::Important1,
            support_end: "2031-12-31".to_owned(),
            forward_targets: vec!["127.0.0.1:80".parse().unwrap()],
        };
        let now = self.ctx.clock.now();
        lines::register(&self.ctx.db, line.clone(), Actor::Broker, now).await.unwrap();
        for (id, env) in [(FIELD, "field"), (LAB, "lab")] {
            let id: DeviceId = id.parse().unwrap();
            let mut tx = self.ctx.db.begin().await.unwrap();
            let device = NewDevice {
                id: &id,
                serial_number: id.as_str(),
                product_line: &line.name,
                public_key: "ssh-ed25519 AAAA",
                key_fingerprint: id.as_str(),
                labels: &BTreeMap::from([("env".to_owned(), env.to_owned())]),
                shim_version: "1",
            };
            let step = Step::new(None, DeviceState::Active).unwrap();
            store::add_enrolled(&mut tx, &device, step, now).await.unwrap();
            let event = Event::new(Kind::DeviceEnrolled, Actor::Broker).device(&id);
            let recorded = audit::append(&mut tx, now, event).await.unwrap();
            tx.commit(recorded).await.unwrap();
        }
    }

    /// Signs somebody in as they would: code at the command line, sign-in page and code in the browser.
    pub async fn sign_in(&self, persona: &str) -> Person {
        let mut browser = Browser::open(&self.ctx, self.client.clone());
        browser.sign_in(persona).await.unwrap();
        let (device_code, user_code) = self.cli_asks().await;
        browser.confirm(&user_code).await.unwrap();
        let tokens: TokenAnswer = self
            .form(
                "/v1/token",
                &[
                    ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
                    ("device_code", &device_code),
                    ("client_id", "daypass-cli"),
                ],
            )
            .await
            .json();
        let me = self.client.get(format!("{URL}/v1/me")).bearer_auth(&tokens.access_token);
        let me = answer(me).await.json();
        Person { access: tokens.access_token, refresh: tokens.refresh_token, browser, me }
    }

    /// A command line that waits: its device code and its user code.
    pub async fn cli_asks(&self) -> (String, String) {
        let codes: Value = self
            .form("/v1/device-authorization", &[("client_id", "daypass-cli"), ("client", "a test")])
            .await
            .json();
        let text = |name: &str| codes[name].as_str().unwrap().to_owned();
        (text("device_code"), text("user_code"))
    }

    pub async fn form(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        answer(self.client.post(format!("{URL}{path}")).form(fields)).await
    }

    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method: Method = method.parse().unwrap();
        self.client.request(method, format!("{URL}{path}"))
    }

    pub async fn get(&self, who: &Person, path: &str) -> Answer {
        answer(self.request("GET", path).bearer_auth(&who.access)).await
    }

    pub async fn post(&self, who: &Person, path: &str, body: Value) -> Answer {
        answer(self.request("POST", path).bearer_auth(&who.access).json(&body)).await
    }

    /// Asks for access and returns the request's id.
    pub async fn ask(&self, who: &Person, device: &str) -> String {
        let asked = self.post(who, "/v1/requests", ask_for(device)).await;
        assert_eq!(asked.status, 201, "{}", asked.text);
        asked.json::<Value>()["id"].as_str().unwrap().to_owned()
    }

    /// A session that is over, under a grant of its own, with its recording.
    pub async fn past_session(&self, who: &Person) -> String {
        let request = self.ask(who, LAB).await;
        let id = SessionId::from_random(random::bytes().unwrap());
        let now = self.ctx.clock.now();
        sqlx::query(
            "INSERT INTO session (id, request, person, device, login, state, started_at, ended_at, end_reason,
                                  client_address, client_kex, device_kex)
             VALUES ($1, $2, $3, $4, 'diag', 'ended', $5, $5, 'closed', '127.0.0.1', 'none', 'none')",
        )
        .bind(id.to_string())
        .bind(request.clone())
        .bind(who.me.id.to_string())
        .bind(LAB)
        .bind(now.as_millis())
        .execute(self.ctx.db.pool())
        .await
        .unwrap();
        let facts = SessionFacts {
            session: id.clone(),
            request: request.parse().unwrap(),
            person: who.me.id.clone(),
            email: who.me.email.clone(),
            device: LAB.parse().unwrap(),
            login: "diag".parse().unwrap(),
            client_address: "127.0.0.1".to_owned(),
        };
        let recorder = self.ctx.recordings.start(&facts, None).await.unwrap();
        recorder.close(EndReason::Closed, None).await.unwrap();
        id.to_string()
    }
}

/// A body that policy would let pass for an engineer.
pub fn ask_for(device: &str) -> Value {
    json!({
        "device": device, "login": "diag", "channels": ["shell"], "duration_s": 900,
        "reason": "The fan of unit 3 is loud",
    })
}

pub async fn answer(request: RequestBuilder) -> Answer {
    let answer = request.send().await.unwrap();
    Answer {
        status: answer.status(),
        headers: answer.headers().clone(),
        text: String::from_utf8_lossy(&answer.bytes().await.unwrap()).into_owned(),
    }
}
