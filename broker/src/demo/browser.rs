//! As much of a browser as signing in takes: cookies, and redirects followed by hand.

use crate::broker::Ctx;
use anyhow::{Context as _, bail};
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::{Certificate, Client, RequestBuilder, Response, Url};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// One browser: what it is signed in as, it stays.
#[derive(Clone, Debug)]
pub struct Browser {
    client: Client,
    /// The broker's address, without a slash at the end.
    broker: String,
    cookies: BTreeMap<String, String>,
}

impl Browser {
    /// A client that trusts the broker's self-made certificate. `at` is where the broker listens, for a
    /// URL without a port.
    pub fn client(ctx: &Ctx, at: SocketAddr) -> anyhow::Result<Client> {
        let own = std::fs::read(ctx.config.keys_dir.join("https.pem"))?;
        let host = ctx.config.https.url.host_str().unwrap_or_default();
        Ok(Client::builder()
            .add_root_certificate(Certificate::from_pem(&own)?)
            .redirect(reqwest::redirect::Policy::none())
            // Everything is on this machine.
            .no_proxy()
            .resolve(host, at)
            .timeout(Duration::from_mins(1))
            .build()?)
    }

    pub fn open(ctx: &Ctx, client: Client) -> Self {
        let broker = ctx.config.https.url.as_str().trim_end_matches('/').to_owned();
        Self { client, broker, cookies: BTreeMap::new() }
    }

    async fn get(&mut self, url: Url) -> anyhow::Result<Response> {
        let answer = self.client.get(url).header(COOKIE, self.cookie()).send().await?;
        for cookie in answer.headers().get_all(SET_COOKIE) {
            let pair = cookie.to_str()?.split(';').next().unwrap_or_default();
            if let Some((name, value)) = pair.split_once('=') {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(answer)
    }

    /// What goes into the `Cookie` header.
    pub fn cookie(&self) -> String {
        self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ")
    }

    /// Adds what a page of the console adds to its requests.
    pub fn as_console(&self, request: RequestBuilder) -> anyhow::Result<RequestBuilder> {
        let csrf = self.cookies.get("daypass-csrf").context("no daypass-csrf cookie")?;
        Ok(request.header(COOKIE, self.cookie()).header("x-csrf-token", csrf).header("origin", &self.broker))
    }

    /// Signs in at the demonstration's sign-in page.
    pub async fn sign_in(&mut self, persona: &str) -> anyhow::Result<()> {
        let mut url = Url::parse(&format!("{}/login?next=/device", self.broker))?;
        for _ in 0..6 {
            let answer = self.get(url.clone()).await?;
            let Some(location) = answer.headers().get(LOCATION) else {
                bail!("{} answered {}", url.path(), answer.status());
            };
            let mut next = url.join(location.to_str()?)?;
            if next.path() == "/authorize" {
                next.query_pairs_mut().append_pair("login_hint", persona).append_pair("prompt", "none");
            }
            if next.path() == "/device" {
                return Ok(());
            }
            url = next;
        }
        bail!("signing in went round in circles");
    }

    /// Confirms the code that a command line shows.
    pub async fn confirm(&self, code: &str) -> anyhow::Result<()> {
        let url = format!("{}/v1/cli-sign-ins/{code}", self.broker);
        let confirmed = self.client.post(url).json(&serde_json::json!({ "confirm": true }));
        let answer = self.as_console(confirmed)?.send().await?;
        if !answer.status().is_success() {
            bail!("confirming the code: {} {}", answer.status(), answer.text().await?);
        }
        Ok(())
    }
}
