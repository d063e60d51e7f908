//! A device and somebody who may use it, with a folder at each end.

use crate::{Device, Done, Program, World};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

/// A device of its own with a live grant for these channels, and a folder on "it".
#[derive(Debug)]
pub struct Place {
    pub world: Arc<World>,
    pub device: Device,
    /// On the device, and with the engineer.
    pub there: PathBuf,
    pub here: PathBuf,
}

impl Place {
    pub fn new(id: &str, channels: &str) -> Self {
        Self::on(World::shared(), id, &["--channel", channels])
    }

    /// In a world of the test's own, with a request that says this too.
    pub fn on(world: Arc<World>, id: &str, wants: &[&str]) -> Self {
        let device = Device::enrol(&world, id, "lab");
        let mut ask = vec!["request", id, "-l", "diag", "--reason", "a journey"];
        ask.extend(wants);
        let _ = world.cli("engineer", &ask).ok();
        let folder = |name: &str| {
            let folder = world.dir().join(format!("{id}-{name}"));
            std::fs::create_dir_all(&folder).unwrap();
            folder
        };
        let (there, here) = (folder("there"), folder("here"));
        Self { world, device, there, here }
    }

    /// One of OpenSSH's programs with what `daypass setup ssh` wrote.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.arg("-F").arg(self.ssh_config()).args(args);
        command.env_remove("SSH_AUTH_SOCK").env("HOME", self.home());
        command
    }

    pub fn home(&self) -> PathBuf {
        self.world.home("engineer")
    }

    pub fn ssh_config(&self) -> PathBuf {
        self.home().join(".ssh/config")
    }

    pub fn host(&self) -> String {
        format!("diag@{}.daypass", self.device.id)
    }

    pub fn sftp(&self, args: &[&str], batch: &str) -> Done {
        let mut all = vec!["-b", "-"];
        all.extend(args);
        Program::run(self.command("sftp", &all), batch.as_bytes())
    }

    /// The newest session of the device, once it has ended.
    pub fn session(&self) -> String {
        let id = self.world.sessions(&self.device.id)[0]["id"].as_str().unwrap().to_owned();
        self.world.ended(&id);
        id
    }

    /// The events of a session.
    pub fn events(&self, session: &str) -> Vec<Value> {
        let raw = self.world.cli("reviewer", &["play", session, "--files", "--json"]).ok();
        raw.out().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The events of every session of the device, once all have ended.
    pub fn all_events(&self) -> Vec<Value> {
        let sessions = self.world.sessions(&self.device.id);
        let of = |session: &Value| {
            let id = session["id"].as_str().unwrap();
            self.world.ended(id);
            self.events(id)
        };
        sessions.iter().flat_map(of).collect()
    }

    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.here.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

/// So many bytes that do not repeat soon, and the same each time.
pub fn content(length: u32) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0]).collect()
}

/// The SHA-256, in hexadecimal digits.
pub fn sha256(content: &[u8]) -> String {
    let bytes: Vec<_> = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.concat()
}
