//! A broker of a few lines: real TLS, real rotation of tokens, real certificates, and otherwise the
//! answers that a story gives it.

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use daypass_protocol::api::{IdentityCertificate, IdentityCertificateAsk};
use daypass_protocol::ssh_key::certificate::{Builder, CertType};
use daypass_protocol::ssh_key::private::{Ed25519Keypair, KeypairData};
use daypass_protocol::ssh_key::{PrivateKey, PublicKey};
use daypass_protocol::time::Timestamp;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One answer that a story has ready.
#[derive(Clone)]
pub struct Reply {
    status: u16,
    kind: &'static str,
    body: String,
    /// Holds the answer back: a long poll that nobody answers.
    never: bool,
}

impl Reply {
    pub fn json(status: u16, body: &Value) -> Self {
        Self { status, kind: "application/json", body: body.to_string(), never: false }
    }

    pub fn problem(status: u16, detail: &str, hint: Option<&str>) -> Self {
        let body = json!({"type": "about:blank", "title": "No", "status": status, "detail": detail,
            "hint": hint, "code": "no"});
        Self { kind: "application/problem+json", ..Self::json(status, &body) }
    }

    pub fn text(kind: &'static str, body: &str) -> Self {
        Self { status: 200, kind, body: body.to_owned(), never: false }
    }

    pub fn never() -> Self {
        Self { never: true, ..Self::json(200, &json!({})) }
    }
}

pub struct Inner {
    replies: Mutex<HashMap<String, VecDeque<Reply>>>,
    pub heard: Mutex<Vec<String>>,
    tokens: Mutex<Tokens>,
    pub identity_ca: PrivateKey,
    pub certificate_lives: Mutex<Duration>,
}

struct Tokens {
    generation: u32,
    revoked: bool,
}

pub struct Broker {
    pub inner: Arc<Inner>,
    pub url: String,
    pub fingerprint: String,
    pub pem: String,
    certificate: CertificateDer<'static>,
    _runtime: tokio::runtime::Runtime,
}

fn ssh_key(seed: u8) -> PrivateKey {
    PrivateKey::new(KeypairData::from(Ed25519Keypair::from_seed(&[seed; 32])), "").unwrap()
}

#[allow(clippy::disallowed_methods)]
pub fn now() -> Timestamp {
    Timestamp::from(std::time::SystemTime::now())
}

pub fn access(generation: u32) -> String {
    format!("access-{generation}")
}

pub fn refresh(generation: u32) -> String {
    format!("refresh-{generation}")
}

impl Broker {
    pub fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        Self::serve(made.cert.der().clone(), made.cert.pem(), &made.signing_key)
    }

    /// Shows the certificate of another, whose key it does not have.
    pub fn impostor(of: &Self) -> Self {
        Self::serve(of.certificate.clone(), of.pem.clone(), &rcgen::KeyPair::generate().unwrap())
    }

    fn serve(certificate: CertificateDer<'static>, pem: String, key: &rcgen::KeyPair) -> Self {
        use base64::Engine as _;
        use sha2::Digest as _;
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let digest = sha2::Sha256::digest(&certificate);
        let fingerprint =
            format!("SHA256:{}", base64::engine::general_purpose::STANDARD_NO_PAD.encode(digest));
        let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private).unwrap();
        let shown = CertifiedKey::new(vec![certificate.clone()], signer);
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));

        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            replies: Mutex::default(),
            heard: Mutex::default(),
            tokens: Mutex::new(Tokens { generation: 0, revoked: false }),
            identity_ca: ssh_key(1),
            certificate_lives: Mutex::new(Duration::from_hours(1)),
        });
        let router = axum::Router::new().fallback(answer).with_state(inner.clone());
        runtime.spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (acceptor, router) = (acceptor.clone(), router.clone());
                tokio::spawn(async move {
                    // A client that does not trust the certificate goes away here.
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    let service = hyper_util::service::TowerToHyperService::new(router);
                    let _ =
                        hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new())
                            .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                            .await;
                });
            }
        });
        let broker = Self {
            inner,
            url: format!("https://localhost:{}", address.port()),
            fingerprint,
            pem,
            certificate,
            _runtime: runtime,
        };
        broker.on("GET /v1/broker", Reply::json(200, &broker.info()));
        broker
    }

    pub fn info(&self) -> Value {
        json!({
            "version": "0.1.0", "url": self.url, "ssh_host": "127.0.0.1", "ssh_port": 2222,
            "host_suffix": "daypass",
            "host_cas": [ssh_key(2).public_key().to_openssh().unwrap()], "user_cas": [],
            "identity_cas": [self.inner.identity_ca.public_key().to_openssh().unwrap()], "broker_keys": []
        })
    }

    /// Answers the next such question, and all later ones unless there is another answer.
    pub fn on(&self, what: &str, reply: Reply) {
        self.inner.replies.lock().unwrap().entry(what.to_owned()).or_default().push_back(reply);
    }

    /// Answers such questions like this, whatever was to be answered before.
    pub fn instead(&self, what: &str, reply: Reply) {
        self.inner.replies.lock().unwrap().insert(what.to_owned(), [reply].into());
    }

    pub fn heard(&self, what: &str) -> Vec<String> {
        self.inner.heard.lock().unwrap().iter().filter(|line| line.starts_with(what)).cloned().collect()
    }

    pub fn was_revoked(&self) -> bool {
        self.inner.tokens.lock().unwrap().revoked
    }

    /// What was issued so far is what the broker takes.
    pub fn accept_generation(&self, generation: u32) {
        self.inner.tokens.lock().unwrap().generation = generation;
    }
}

async fn answer(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = String::from_utf8(to_bytes(body, 1 << 20).await.unwrap().to_vec()).unwrap();
    let what = format!("{} {}", parts.method, parts.uri.path());
    let query = parts.uri.query().unwrap_or("");
    inner.heard.lock().unwrap().push(format!("{what}?{query} {body}"));
    let reply = respond(&inner, &what, &parts.headers, &body).await;
    if reply.never {
        std::future::pending::<()>().await;
    }
    Response::builder()
        .status(StatusCode::from_u16(reply.status).unwrap())
        .header(header::CONTENT_TYPE, reply.kind)
        .body(Body::from(reply.body))
        .unwrap()
}

async fn respond(inner: &Inner, what: &str, headers: &HeaderMap, body: &str) -> Reply {
    let form: HashMap<String, String> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let is_open = ["GET /v1/broker", "POST /v1/device-authorization", "POST /v1/token", "POST /v1/revoke"]
        .contains(&what);
    if !is_open {
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or("");
        let tokens = inner.tokens.lock().unwrap();
        if tokens.revoked || bearer != format!("Bearer {}", access(tokens.generation)) {
            return Reply::problem(401, "the access token is not valid", None);
        }
    }
    if what == "POST /v1/token" && form.get("grant_type").map(String::as_str) == Some("refresh_token") {
        return rotate(inner, &form["refresh_token"]).await;
    }
    if what == "POST /v1/me/certificate" {
        return certificate(inner, body);
    }
    let mut replies = inner.replies.lock().unwrap();
    match replies.get_mut(what) {
        Some(queue) if queue.len() > 1 => queue.pop_front().unwrap(),
        Some(queue) => queue.front().unwrap().clone(),
        None => Reply::problem(404, &format!("there is no {what}"), None),
    }
}

/// RFC 9700 section 4.14.2: an old refresh token ends the family.
async fn rotate(inner: &Inner, refresh_token: &str) -> Reply {
    let generation = {
        let mut tokens = inner.tokens.lock().unwrap();
        if tokens.revoked || refresh_token != refresh(tokens.generation) {
            tokens.revoked = true;
            return Reply::json(400, &json!({"error": "invalid_grant"}));
        }
        tokens.generation += 1;
        tokens.generation
    };
    // The old token is void and the new one not yet written: the moment in which a second refresh would
    // do the harm.
    tokio::time::sleep(Duration::from_millis(200)).await;
    Reply::json(200, &token_answer(generation))
}

pub fn token_answer(generation: u32) -> Value {
    json!({"access_token": access(generation), "token_type": "Bearer", "expires_in": 300,
        "refresh_token": refresh(generation)})
}

fn certificate(inner: &Inner, body: &str) -> Reply {
    let ask: IdentityCertificateAsk = serde_json::from_str(body).unwrap();
    let key = PublicKey::from_openssh(&ask.public_key).unwrap();
    let ends = now() + *inner.certificate_lives.lock().unwrap();
    let mut builder =
        Builder::new(vec![9; 16], key.key_data().clone(), now().as_secs() - 60, ends.as_secs()).unwrap();
    builder.serial(1).unwrap();
    builder.cert_type(CertType::User).unwrap();
    builder.key_id("person=ana@example.com").unwrap();
    builder.valid_principal("P-7K2M9QXD").unwrap();
    let certificate = builder.sign(&inner.identity_ca).unwrap().to_openssh().unwrap();
    Reply::json(200, &serde_json::to_value(IdentityCertificate { certificate, valid_until: ends }).unwrap())
}
