//! `daypass-broker init`: a commented configuration, the keys, and what to do next.

use crate::certificate::{KeyPurpose, Keys};
use crate::policy;
use anyhow::{Context as _, bail};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// What `init` made.
#[derive(Debug)]
pub struct Made {
    pub config: PathBuf,
    pub keys: Keys,
}

/// Makes everything in `dir`. Never writes over anything: a second run says what is there.
pub fn init(dir: &Path, url: &str) -> anyhow::Result<Made> {
    let config = dir.join("broker.toml");
    let keys_dir = dir.join("data/keys");
    for there in [&config, &dir.join("passphrase")] {
        if there.exists() {
            bail!("{} is there already; init never writes over anything", there.display());
        }
    }
    if Keys::exist(&keys_dir) {
        bail!("{} has keys already; init never writes over anything", keys_dir.display());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir.join("data"))?;

    let passphrase = crate::random::token()?;
    write_new(&dir.join("passphrase"), &format!("{passphrase}\n"), 0o600)?;
    let keys = Keys::create(&keys_dir, &passphrase)?;

    let policies = dir.join("policies");
    if !policies.exists() {
        for (name, text) in policy::shipped::files() {
            let path = policies.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&policies))?;
            write_new(&path, text, 0o644)?;
        }
    }
    write_new(&config, &CONFIG.replace("{url}", url), 0o640)?;
    Ok(Made { config, keys })
}

fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .with_context(|| path.display().to_string())?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(())
}

/// What to do next, for whoever ran it.
pub fn next_steps(made: &Made) -> String {
    let lines = |purpose| made.keys.public_lines(purpose).join("\n");
    format!(
        "Made {config}, five encrypted keys, and the shipped policies.

Keep the file `passphrase` and the folder `data/keys` in two different backups: together they are the broker.

Next:
  1. Register a client at your identity provider, with the redirect address <https.url>/login/callback,
     and fill in [login] in {config}.
  2. Give [https] a certificate, unless everything runs on this machine.
  3. Edit the policies, then: daypass-broker policy check --dir policies && daypass-broker policy test --dir policies
  4. daypass-broker serve --config {config}

Host CA, for engineers' known_hosts (`daypass setup ssh` writes it):
  @cert-authority *.daypass {host}
User CA, for devices that use their own sshd (TrustedUserCAKeys):
  {user}",
        config = made.config.display(),
        host = lines(KeyPurpose::Host),
        user = lines(KeyPurpose::User),
    )
}

/// Every key that there is, with its default; see `config`.
const CONFIG: &str = r#"# Configuration of daypass-broker. Relative paths are relative to this file's folder.
# Every mistake in this file is reported at once: daypass-broker check --config THIS

# Database, keys and recordings live here unless told otherwise below.
data_dir = "data"

[https]
# Where people, the command line and devices connect.
listen = "127.0.0.1:8443"
# How they reach it: no path.
url = "{url}"
# PEM files. Without them a certificate is made, and that is for loopback only.
# certificate = "https.pem"
# key = "https.key"
# Connections at the same time; of those that had no answer yet (a TLS handshake, a request that does not end), so
# many altogether and from one address. When they are taken, the longest waiting gives way to a newcomer.
# connections = 50000
# unanswered = 2048
# unanswered_per_source = 1024
# For the TLS handshake, and for the head of each request.
# patience_s = 15

[ssh]
# Where engineers' SSH clients connect.
listen = "127.0.0.1:2222"
# As clients reach it; the host of https.url and the port of listen otherwise.
# host = "access.example.com"
# port = 22
# Devices are called <device>.<host_suffix>.
# host_suffix = "daypass"
# Time from a connection to a proven person; connections of proven people; and of those who are not proven yet,
# altogether and from one address. When they are taken, the longest waiting gives way to a newcomer.
# login_grace_s = 20
# connections = 1000
# unproven = 512
# unproven_per_source = 16

[database]
# SQLite in data_dir, or PostgreSQL. A URL with a password belongs into the environment variable
# DAYPASS_DATABASE_URL.
# url = "postgres://daypass@db.example.com/daypass"

[keys]
# The passphrase that opens the key files; or the environment variable DAYPASS_KEY_PASSPHRASE.
passphrase_file = "passphrase"
# dir = "data/keys"

[policies]
# Cedar policies, their schema and their cases. Read again on SIGHUP.
dir = "policies"

[recordings]
# dir = "data/recordings"
# No new session starts with less than this free.
# min_free_mib = 256
# No new session starts while all recordings together take this much or more; 0 is without limit.
# total_mib = 0
# A session that says more than this ends; 0 is without limit. Policies may set less: @recording_limit("200MiB")
# session_mib = 16384
# So many days after a session's end its recordings are removed, which the audit log says; 0 is never. A
# policy that says otherwise counts: @keep_recordings("365d")
# keep_days = 0

[requests]
# lapse_after_s = 3600
# pending_per_person = 20

[sessions]
# An identity certificate lives this long after the sign-in.
# identity_lifetime_s = 43200
# channels_per_session = 20
# resume_grace_s = 120        # how long a session waits for a device that lost its connection
# per_person = 20
# per_device = 20
# A session with a terminal on which nobody typed for so long ends; 0 is never. Policies may set less:
# @idle_timeout("10m")
# idle_timeout_s = 3600

[login]
# OpenID Connect. The redirect address is <https.url>/login/callback.
issuer = "https://idp.example.com"
client_id = "daypass"
# Or the environment variable DAYPASS_OIDC_CLIENT_SECRET.
# client_secret_file = "client_secret"
# The claim that lists a person's teams.
# groups_claim = "groups"
# scopes = ["profile", "email"]

[log]
# text or json
# format = "text"
# filter = "info"
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn what_init_makes_is_a_configuration_that_loads_and_keys_that_open() {
        let dir = tempfile::tempdir().unwrap();
        let made = init(dir.path(), "https://127.0.0.1:8443").unwrap();
        let config = Config::load(&made.config, |_| None).unwrap();
        Keys::load(&config.keys_dir, &config.key_passphrase).unwrap();
        policy::Policies::load(&config.policies_dir).unwrap();
        let again = init(dir.path(), "https://127.0.0.1:8443").unwrap_err();
        assert!(again.to_string().contains("there already"), "{again}");
    }
}
