//! Signs the four people in, through the real command line and the real sign-in page.

use super::idp::PERSONAS;
use super::{Browser, Place};
use crate::broker::Ctx;
use anyhow::{Context as _, bail};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// Leaves a signed-in profile for each person, unless it is signed in already.
pub(super) async fn sign_in_all(
    ctx: &Ctx,
    place: &Place,
    at: SocketAddr,
    fingerprint: &str,
) -> anyhow::Result<()> {
    // All at once: each waits some seconds for its next turn to ask whether the code was confirmed.
    let all = PERSONAS.map(|persona| async move {
        let whoami = place.cli().args(["--profile", persona.id, "whoami"]).output().await?;
        if whoami.status.success() {
            return Ok(());
        }
        sign_in(ctx, place, at, persona.id, fingerprint)
            .await
            .with_context(|| format!("signing {} in", persona.id))
    });
    futures_util::future::try_join_all(all).await?;
    Ok(())
}

async fn sign_in(
    ctx: &Ctx,
    place: &Place,
    at: SocketAddr,
    persona: &str,
    fingerprint: &str,
) -> anyhow::Result<()> {
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
    let mut browser = Browser::open(ctx, Browser::client(ctx, at)?);
    browser.sign_in(persona).await?;
    browser.confirm(&code).await?;
    let status = tokio::time::timeout(Duration::from_mins(1), cli.wait()).await??;
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
