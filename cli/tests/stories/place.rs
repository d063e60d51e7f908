//! A person's machine: a home of its own, and a `ssh` that only takes notes.

use crate::broker::{Broker, access, now, refresh};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

pub struct Place {
    pub dir: TempDir,
}

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Told {
    pub out: String,
    pub err: String,
    pub code: i32,
}

impl From<Output> for Told {
    fn from(output: Output) -> Self {
        Self {
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
            code: output.status.code().unwrap(),
        }
    }
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("daypass cli ").tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir_all(&bin).unwrap();
        let ssh = bin.join("ssh");
        fs::write(&ssh, "#!/bin/sh\nfor word; do printf '%s\\n' \"$word\"; done > \"$NOTES\"\nexit 7\n")
            .unwrap();
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    /// With a profile that is signed in, whose access token is good for so many seconds.
    pub fn signed_in(broker: &Broker, seconds: u64) -> Self {
        let place = Self::new();
        let profile = place.profile();
        fs::create_dir_all(&profile).unwrap();
        fs::write(
            profile.join("config.toml"),
            format!("broker = {:?}\nfingerprint = {:?}\n", broker.url, broker.fingerprint),
        )
        .unwrap();
        let expires_at = now() + Duration::from_secs(seconds);
        let tokens =
            json!({"access_token": access(0), "refresh_token": refresh(0), "expires_at": expires_at});
        fs::write(profile.join("tokens.json"), tokens.to_string()).unwrap();
        place
    }

    pub fn profile(&self) -> PathBuf {
        self.dir.path().join("config/daypass/profiles/default")
    }

    pub fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.profile().join(name)).ok()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_daypass"));
        let path = format!("{}:{}", self.dir.path().join("bin").display(), std::env::var("PATH").unwrap());
        command
            .args(args)
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.dir.path().join("home"))
            .env("XDG_CONFIG_HOME", self.dir.path().join("config"))
            .env("NOTES", self.dir.path().join("notes"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Told {
        self.command(args).output().unwrap().into()
    }

    /// In a terminal of its own; what is typed goes to the standard input of the child.
    pub fn terminal(&self, words: &str) -> Child {
        let command = self.command(&[]);
        let mut script = Command::new("script");
        script.args(["-qec", &format!("exec \"$DAYPASS\" {words}"), "/dev/null"]);
        script.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        script.env("DAYPASS", env!("CARGO_BIN_EXE_daypass")).env("TERM", "xterm").env("NO_COLOR", "1");
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        script.spawn().unwrap()
    }

    /// The words that `ssh` was called with.
    pub fn notes(&self) -> Option<Vec<String>> {
        let text = fs::read_to_string(self.dir.path().join("notes")).ok()?;
        Some(text.lines().map(str::to_owned).collect())
    }
}
