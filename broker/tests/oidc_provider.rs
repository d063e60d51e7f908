//! Signing in against whole providers: the npm package `oidc-provider`, driven as a person with a browser
//! would, and the demonstration's own. `tests/run` installs the former (`npm ci` in tests/idp).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, header};
use axum::response::Response;
use daypass_broker::clock::Clock;
use daypass_broker::db::Db;
use daypass_broker::demo::idp::{self, PERSONAS};
use daypass_broker::login::{self, Login, LoginConfig, Secret, TokenKey, VerifiedPerson};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tower::ServiceExt as _;
use url::Url;

const ORIGIN: &str = "https://127.0.0.1:8443";

/// The third party's process and its issuer.
async fn third_party() -> (Child, String) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/idp");
    assert!(folder.join("node_modules").is_dir(), "run `npm ci` in tests/idp, as tests/run does");
    let mut child = Command::new("node")
        .arg("server.mjs")
        .arg(format!("{ORIGIN}/login/callback"))
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node must be installed");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        // Before its address come warnings that it is not meant for production; neither are we.
        if line.starts_with("http://127.0.0.1:") {
            // It goes on talking, and must not fail for want of a listener.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return (child, line);
        }
    }
    panic!("the provider did not start");
}

/// A person's browser at a provider: keeps its cookies, follows its redirects, fills in its forms.
struct Visitor {
    client: reqwest::Client,
    cookies: BTreeMap<String, String>,
}

impl Visitor {
    fn new() -> Self {
        let none = reqwest::redirect::Policy::none();
        let client = reqwest::Client::builder().redirect(none).no_proxy().build().unwrap();
        Self { client, cookies: BTreeMap::new() }
    }

    async fn send(&mut self, request: reqwest::RequestBuilder) -> reqwest::Response {
        let cookies: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let answer = request.header("cookie", cookies.join("; ")).send().await.unwrap();
        for set in answer.headers().get_all("set-cookie") {
            let (name, value) = set.to_str().unwrap().split(';').next().unwrap().split_once('=').unwrap();
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
        answer
    }

    /// From the authorization request to the redirect that leaves the provider.
    async fn sign_in(&mut self, start: Url, as_whom: &str) -> Url {
        let mut at = start;
        let mut answer = self.send(self.client.get(at.clone())).await;
        for _ in 0..12 {
            if let Some(to) = answer.headers().get("location") {
                let to = at.join(to.to_str().unwrap()).unwrap();
                if to.as_str().starts_with(ORIGIN) {
                    return to;
                }
                at = to;
                answer = self.send(self.client.get(at.clone())).await;
                continue;
            }
            assert!(answer.status().is_success(), "{} at {at}", answer.status());
            let html = answer.text().await.unwrap();
            let action = attribute(&html, "<form", "action");
            let prompt = attribute(&html, "name=\"prompt\"", "value");
            let form = [("prompt", prompt.as_str()), ("login", as_whom), ("password", "any")];
            at = at.join(&action).unwrap();
            answer = self.send(self.client.post(at.clone()).form(&form)).await;
        }
        panic!("the provider never came to an end; last at {at}");
    }
}

/// The value of an attribute, at or after `place` in a page.
fn attribute(html: &str, place: &str, name: &str) -> String {
    let rest = &html[html.find(place).unwrap_or_else(|| panic!("no {place} in {html}"))..];
    let rest = rest.split_once(&format!("{name}=\"")).unwrap_or_else(|| panic!("no {name} in {html}")).1;
    rest.split('"').next().unwrap().replace("&amp;", "&")
}

/// A broker's sign-in, and the way there and back.
struct Broker {
    login: Login,
    router: Router,
    _folder: tempfile::TempDir,
}

impl Broker {
    async fn new(issuer: &str, client_id: &str, secret: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let db =
            Db::open(&format!("sqlite:{}?mode=rwc", folder.path().join("d.db").display())).await.unwrap();
        let mut config = LoginConfig::of(issuer, client_id);
        config.scopes = ["profile", "email", "groups"].map(str::to_owned).to_vec();
        let mut settings = config.check(|_| None).unwrap();
        settings.client_secret = Some(Secret::new(secret));
        let url = Url::parse(ORIGIN).unwrap();
        let login = Login::new(db, Clock::system(), settings, url, TokenKey::from_seed(&[7; 32])).unwrap();
        let router = login::http::routes::<Login>().split_for_parts().0.with_state(login.clone());
        Self { login, router, _folder: folder }
    }

    async fn get(&self, path: &str, cookies: &str) -> Response {
        let mut request = Request::get(path).header(header::COOKIE, cookies).body(Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 4711))));
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// The provider's page for a browser that comes from here, and that browser's cookie.
    async fn leave(&self) -> (Url, String) {
        let started = self.get("/login?next=/requests", "").await;
        assert_eq!(started.status(), 302);
        let to = Url::parse(started.headers()["location"].to_str().unwrap()).unwrap();
        (to, cookie(&started, "__Host-daypass-sign-in").unwrap())
    }

    async fn come_back(&self, back: &Url, attempt: &str) -> VerifiedPerson {
        assert_eq!(back.path(), "/login/callback");
        let path = format!("{}?{}", back.path(), back.query().unwrap());
        let arrived = self.get(&path, &format!("__Host-daypass-sign-in={attempt}")).await;
        assert_eq!(arrived.status(), 303);
        assert_eq!(arrived.headers()["location"], "/requests");
        let session = cookie(&arrived, "__Host-daypass").unwrap();
        self.login.from_browser_session(&session).await.unwrap()
    }
}

fn cookie(answer: &Response, name: &str) -> Option<String> {
    answer.headers().get_all(header::SET_COOKIE).iter().find_map(|set| {
        let pair = set.to_str().unwrap().split(';').next().unwrap();
        pair.strip_prefix(&format!("{name}=")).map(str::to_owned)
    })
}

#[tokio::test]
async fn a_person_signs_in_through_a_provider_of_somebody_else() {
    let (_process, issuer) = third_party().await;
    let broker = Broker::new(&issuer, "daypass", "a secret that the test knows").await;
    let (to, attempt) = broker.leave().await;
    let back = Visitor::new().sign_in(to, "ana").await;
    let person = broker.come_back(&back, &attempt).await;
    assert_eq!(person.email(), "ana@third-party.example.com");
    assert_eq!(person.name(), "ana of the third party");
    assert_eq!(person.teams(), ["support", "support-leads"]);
    assert!(!person.mfa(), "the provider says nothing of a second factor");
}

#[tokio::test]
async fn each_persona_of_the_demonstration_signs_in_by_a_link_and_by_a_script() {
    let provider = idp::start("127.0.0.1:0".parse().unwrap(), Clock::system()).await.unwrap();
    let broker = Broker::new(&provider.issuer, &provider.client_id, &provider.client_secret).await;
    for persona in PERSONAS {
        let mut visitor = Visitor::new();
        let (to, attempt) = broker.leave().await;
        let page = visitor.client.get(to.clone()).send().await.unwrap().text().await.unwrap();
        let link = to.join(&attribute(&page, &format!("id=\"{}\"", persona.id), "href")).unwrap();
        let person = broker.come_back(&visitor.sign_in(link, "").await, &attempt).await;
        assert_eq!((person.email(), person.name()), (persona.email, persona.name));
        assert_eq!(person.teams(), [persona.team]);

        let (mut to, attempt) = broker.leave().await;
        to.query_pairs_mut().append_pair("login_hint", persona.id).append_pair("prompt", "none");
        let again = broker.come_back(&visitor.sign_in(to, "").await, &attempt).await;
        assert_eq!(again.id(), person.id());
    }
}

#[tokio::test]
async fn the_demonstrations_provider_gives_nothing_for_a_code_without_its_verifier_or_secret() {
    let provider = idp::start("127.0.0.1:0".parse().unwrap(), Clock::system()).await.unwrap();
    let broker = Broker::new(&provider.issuer, &provider.client_id, &provider.client_secret).await;
    let good = |code: &str| {
        BTreeMap::from([
            ("grant_type", "authorization_code".to_owned()),
            ("code", code.to_owned()),
            ("redirect_uri", format!("{ORIGIN}/login/callback")),
            ("client_id", provider.client_id.clone()),
            ("client_secret", provider.client_secret.clone()),
        ])
    };
    for (field, value, status) in [("code_verifier", "guessed", 400), ("client_secret", "guessed", 401)] {
        let (mut to, _) = broker.leave().await;
        to.query_pairs_mut().append_pair("login_hint", "engineer").append_pair("prompt", "none");
        let mut visitor = Visitor::new();
        let back = visitor.sign_in(to, "").await;
        let code = back.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned();
        let mut form = good(&code);
        form.insert(field, value.to_owned());
        let answer =
            visitor.client.post(format!("{}/token", provider.issuer)).form(&form).send().await.unwrap();
        assert_eq!(answer.status(), status, "{field}");
    }
}
