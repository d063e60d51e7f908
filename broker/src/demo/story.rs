//! What a newcomer finds: a request that waits, a file for scripts, and a page of things to try.

use super::{DEVICES, Place, idp, public_keys};
use crate::broker::Ctx;
use anyhow::bail;
use serde_json::json;
use std::net::SocketAddr;

const REASON: &str = "Modem drops every night, customer reports no data since 02:10";

/// One request from the engineer, so that the approver has something to answer. Left alone if one of them
/// waits already.
pub(super) async fn leave_a_request(place: &Place) -> anyhow::Result<()> {
    let waiting = place
        .cli()
        .args(["--profile", "engineer", "requests", "--mine", "--state", "pending", "--json"])
        .output()
        .await?;
    if waiting.status.success() && String::from_utf8_lossy(&waiting.stdout).contains("R-") {
        return Ok(());
    }
    let asked = place
        .cli()
        .args(["--profile", "engineer", "request", DEVICES[0].0, "-l", "diag", "--for", "30m"])
        .args(["--reason", REASON, "--ticket", "SUP-1041"])
        .output()
        .await?;
    if !asked.status.success() {
        bail!("the first request: {}", String::from_utf8_lossy(&asked.stderr));
    }
    Ok(())
}

/// `endpoints.json`, for anybody's scripts.
pub(super) fn write_endpoints(
    ctx: &Ctx,
    place: &Place,
    idp: &idp::Handle,
    https: SocketAddr,
    ssh: SocketAddr,
    fingerprint: &str,
) -> anyhow::Result<()> {
    let endpoints = json!({
        "url": ctx.config.https.url.as_str().trim_end_matches('/'),
        "https": https.to_string(),
        "https_fingerprint": fingerprint,
        "https_certificate": ctx.config.keys_dir.join("https.pem"),
        "ssh": ssh.to_string(),
        "host_suffix": ctx.config.ssh.host_suffix,
        "issuer": idp.issuer,
        "public_keys": public_keys(&ctx.keys),
        "devices": DEVICES.map(|(id, env)| json!({ "id": id, "login": "diag", "env": env })),
        "profiles": idp::PERSONAS.map(|persona| json!({ "name": persona.id, "email": persona.email })),
        "daypass_home": place.dir.join("home"),
        "daypass": place.program("daypass"),
        "broker": place.program("daypass-broker"),
        "config": place.dir.join("broker/broker.toml"),
        "broker_pid": std::process::id(),
    });
    let path = place.dir.join("endpoints.json");
    let fresh = path.with_extension("json.new");
    std::fs::write(&fresh, serde_json::to_string_pretty(&endpoints)?)?;
    std::fs::rename(fresh, path)?;
    Ok(())
}

pub(super) fn what_to_try(ctx: &Ctx, place: &Place) -> String {
    let daypass =
        format!("DAYPASS_HOME={} {}", place.dir.join("home").display(), place.program("daypass").display());
    format!(
        "
Daypass is running: a broker, two simulated devices with no sshd and no open port, four people.

First, in another terminal:
  alias daypass='{daypass}'

As the engineer: gw-0043 is in the lab, where policy lets you in by itself.
  daypass --profile engineer ssh gw-0043 -l diag --reason 'look around'
gw-0042 is in the field, where somebody must approve. This one waits, and says for whom:
  daypass --profile engineer ssh gw-0042 -l diag --reason 'modem drops'
As the approver, meanwhile:
  daypass --profile approver requests --answerable
  daypass --profile approver approve R-… --for 15m
As the reviewer: what happened, played back.
  daypass --profile reviewer sessions
  daypass --profile reviewer play S-…

The console, for all four of them: {url}
  (your browser will warn: the certificate was made on this machine)

Ctrl-C ends everything. The next start keeps the data; --reset forgets it.
",
        url = ctx.config.https.url
    )
}
