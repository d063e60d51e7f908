//! A device of a test's own, to be harmed without harming anybody else's.

use crate::program::Done;
use crate::proxy::Proxy;
use crate::world::{World, programs};
use crate::{Program, until};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A device that was enrolled, and its shim. Dropped, the shim is ended.
#[derive(Debug)]
pub struct Device {
    pub id: String,
    pub dir: PathBuf,
    shim: Option<Program>,
}

impl Device {
    /// Enrols a device with a token of the operator's, starts its shim, and waits until it is connected.
    pub fn enrol(world: &World, id: &str, env: &str) -> Self {
        let token = join_token(world, env);
        let dir = world.dir().join("own").join(id);
        configure(&dir);
        let _ = shim_enrol(&dir, &token, id).ok();
        let mut device = Self { id: id.to_owned(), dir, shim: None };
        device.start();
        device.is_online(world);
        device
    }

    /// As [`Device::enrol`], with its connection going through `proxy` and more in its configuration.
    pub fn enrol_behind(world: &World, id: &str, proxy: &Proxy, more: &str) -> Self {
        let mut device = Self::enrol(world, id, "lab");
        device.kill();
        let config = device.dir.join("device.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        let behind = format!("broker_url = \"https://127.0.0.1:{}\"\n{more}\n{text}", proxy.port);
        std::fs::write(&config, behind).unwrap();
        let before = proxy.accepted();
        device.start();
        until("the device to come through the proxy", || proxy.accepted() > before);
        device.is_online(world);
        device
    }

    /// One more device over the files in `dir`, which may be a copy of another's.
    pub fn over(id: &str, dir: PathBuf) -> Self {
        let mut device = Self { id: id.to_owned(), dir, shim: None };
        device.start();
        device
    }

    pub fn start(&mut self) {
        let mut command = Command::new(programs().join("daypass-shim"));
        command.arg("run").arg("--config").arg(self.dir.join("device.toml"));
        self.shim = Some(Program::start(command));
    }

    pub fn shim(&mut self) -> &mut Program {
        self.shim.as_mut().unwrap()
    }

    /// Ends the shim as a power cut would.
    pub fn kill(&mut self) {
        if let Some(shim) = self.shim.take() {
            shim.signal(Signal::SIGKILL);
            let _ = shim.ends();
        }
    }

    pub fn is_online(&self, world: &World) {
        until(&format!("{} to be connected", self.id), || {
            let shown = world.cli("operator", &["--json", "device", "show", &self.id]);
            shown.code() == 0 && shown.json()["online"].as_bool() == Some(true)
        });
    }

    pub fn journal(&self) -> String {
        journal(&self.dir)
    }
}

/// What a device's owner can read about who came in.
pub(crate) fn journal(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("journal.ndjson")).unwrap_or_default()
}

/// A token that one device can enrol with.
pub fn join_token(world: &World, env: &str) -> String {
    let made = world.cli(
        "operator",
        &["--json", "device", "enrol-token", "--line", "edge-gateway", "--label", &format!("env={env}")],
    );
    made.ok().json()["token"].as_str().unwrap().to_owned()
}

/// Writes a device's configuration.
pub fn configure(dir: &Path) {
    let user = Program::run(
        {
            let mut id = Command::new("id");
            id.arg("-un");
            id
        },
        b"",
    );
    std::fs::create_dir_all(dir).unwrap();
    let text = format!(
        "state_dir = \"{}\"\njournal = \"{}\"\nlogins = {{ diag = \"{}\" }}\n\
         reconnect_first_ms = 100\nreconnect_max_s = 1\n",
        dir.join("state").display(),
        dir.join("journal.ndjson").display(),
        user.out().trim()
    );
    std::fs::write(dir.join("device.toml"), text).unwrap();
}

/// Runs `daypass-shim enrol`.
pub fn shim_enrol(dir: &Path, token: &str, id: &str) -> Done {
    let mut command = Command::new(programs().join("daypass-shim"));
    command
        .args(["enrol", "-", "--device", id, "--serial-number", &format!("serial-{id}")])
        .arg("--config")
        .arg(dir.join("device.toml"));
    Program::run(command, format!("{token}\n").as_bytes())
}
