//! Signs the four people in, through the real command line and the real sign-in page.

use super::Place;
use super::idp::PERSONAS;
use crate::broker::Ctx;
use anyhow::{Context as _, bail};
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::{Certificate, Client, Response, Url};
use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// Leaves a signed-in profile for each person, unless it is signed in already.
pub(super) async fn sign_in_all(ctx: &Ctx, place: &Place, fingerprint: &str) -> anyhow::Result<()> {
    // All at once: each waits some seconds for its next turn to ask whether the code was confirmed.
    let all = PERSONAS.map(|persona| async move {
        let whoami = place.cli().args(["--profile", persona.id, "whoami"]).output().await?;
        if whoami.status.success() {
            return Ok(());
        }
        sign_in(ctx, place, persona.id, fingerprint)
            .await
            .with_context(|| format!("signing {} in", persona.id))
    });
    futures_util::future::try_join_all(all).await?;
    Ok(())
}

async fn sign_in(ctx: &Ctx, place: &Place, persona: &str, fingerprint: &str) -> anyhow::Result<()> {
    let url = ctx.config.https.url.as_str().trim_end_matches('/').to_owned();
    let mut cli = place
        .cli()
        .args(["--profile", persona, "login", "--no-browser", "--broker", &url])
        .args(["--fingerprint", fingerprint])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(cli.stderr.take().context("no stderr")?).lines();
    let mut said = Vec::new();
    let code = loop {
        let Some(line) = lines.next_line().await? else {
            bail!("the command line said: {}", said.join(" / "))
        };
        match user_code(&line) {
            Some(code) => break code,
            None => said.push(line),
        }
    };
    // What it still says must not fill the pipe.
    let rest = tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Browser::open(ctx)?.confirm(&url, persona, &code).await?;
    let status = tokio::time::timeout(Duration::from_secs(60), cli.wait()).await??;
    rest.abort();
    if !status.success() {
        bail!("daypass login ended with {status}");
    }
    Ok(())
}

/// `ABCD-EFGH` anywhere in a line.
fn user_code(line: &str) -> Option<String> {
    line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .find(|word| {
            word.len() == 9
                && word
                    .bytes()
                    .enumerate()
                    .all(|(i, b)| if i == 4 { b == b'-' } else { b.is_ascii_uppercase() })
        })
        .map(str::to_owned)
}

/// As much of a browser as signing in takes: cookies, and redirects followed by hand.
struct Browser {
    client: Client,
    cookies: BTreeMap<String, String>,
}

impl Browser {
    fn open(ctx: &Ctx) -> anyhow::Result<Self> {
        let own = std::fs::read(ctx.config.keys_dir.join("https.pem"))?;
        let client = Client::builder()
            .add_root_certificate(Certificate::from_pem(&own)?)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(20))
            .build()?;
        Ok(Self { client, cookies: BTreeMap::new() })
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

    fn cookie(&self) -> String {
        self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ")
    }

    /// Signs in as the persona and confirms the code that the command line shows.
    async fn confirm(mut self, broker: &str, persona: &str, code: &str) -> anyhow::Result<()> {
        let mut url = Url::parse(&format!("{broker}/login?next=/device"))?;
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
                return self.answer_code(broker, code).await;
            }
            url = next;
        }
        bail!("signing in went round in circles");
    }

    async fn answer_code(&self, broker: &str, code: &str) -> anyhow::Result<()> {
        let csrf = self.cookies.get("daypass-csrf").context("no daypass-csrf cookie")?;
        let answer = self
            .client
            .post(format!("{broker}/v1/cli-sign-ins/{code}"))
            .header(COOKIE, self.cookie())
            .header("x-csrf-token", csrf)
            .header("origin", broker)
            .json(&serde_json::json!({ "confirm": true }))
            .send()
            .await?;
        if !answer.status().is_success() {
            bail!("confirming the code: {} {}", answer.status(), answer.text().await?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_user_code_is_found_in_what_the_command_line_says() {
        assert_eq!(super::user_code("  and enter the code  BCDF-GHJK."), Some("BCDF-GHJK".to_owned()));
        assert_eq!(
            super::user_code("https://127.0.0.1:8443/device?code=BCDF-GHJK"),
            Some("BCDF-GHJK".to_owned())
        );
        assert_eq!(super::user_code("ABCD-1234 gw-0042"), None);
    }
}
