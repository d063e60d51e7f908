//! A demonstration of a test's own.

use crate::device::journal;
use crate::disk::SmallDisk;
use crate::program::{Done, Program};
use crate::{alive, eventually, evidence, process, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use tempfile::TempDir;

/// The folder of `daypass`, `daypass-broker` and `daypass-shim`.
pub fn programs() -> PathBuf {
    if let Some(dir) = std::env::var_os("DAYPASS_TEST_PROGRAMS") {
        return dir.into();
    }
    // target/debug/deps/TEST
    let own = std::env::current_exe().unwrap();
    let dir = own.ancestors().nth(2).unwrap().to_owned();
    assert!(dir.join("daypass-broker").is_file(), "{} has no daypass-broker: cargo build", dir.display());
    dir
}

/// Broker, sign-in page, two devices, four people who are signed in. Dropped, all of it is ended, by the
/// ids of the processes that were started.
#[derive(Debug)]
pub struct World {
    dir: TempDir,
    demo: Mutex<Running>,
    endpoints: Value,
    database: Option<String>,
}

#[derive(Debug)]
struct Running {
    child: Option<Child>,
    shims: Vec<i32>,
}

impl World {
    pub fn start() -> Self {
        Self::start_on(None)
    }

    /// On this database; `None` is SQLite in its own folder.
    pub fn start_on(database: Option<String>) -> Self {
        Self::configured(database, "")
    }

    /// With more in the broker's configuration.
    pub fn start_with(extra: &str) -> Self {
        Self::configured(None, extra)
    }

    pub fn configured(database: Option<String>, extra: &str) -> Self {
        Self::begin(folder(), database, extra)
    }

    /// With a small disk under its SQLite database, and another under its recordings.
    pub fn on_small_disks(mib: u32) -> (Self, [SmallDisk; 2]) {
        let dir = folder();
        let data = dir.path().join("broker/data");
        let disks = [SmallDisk::mount(&data, mib), SmallDisk::mount(&data.join("recordings"), 64)];
        (Self::begin(dir, None, ""), disks)
    }

    fn begin(dir: TempDir, database: Option<String>, extra: &str) -> Self {
        if !extra.is_empty() {
            std::fs::create_dir_all(dir.path().join("broker")).unwrap();
            std::fs::write(dir.path().join("broker/extra.toml"), extra).unwrap();
        }
        let mut running = launch(dir.path(), database.as_deref(), ["0", "0", "0"]);
        let endpoints = ready(dir.path(), &mut running);
        let world = Self { dir, demo: Mutex::new(running), endpoints, database };
        let home = world.home("engineer");
        std::fs::create_dir_all(&home).unwrap();
        let _ = world.cli("engineer", &["setup", "ssh", "--yes"]).ok();
        world
    }

    /// One for the tests of a file that do each other no harm; it ends with the last of them.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<World>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let world = Arc::new(Self::start());
            *shared = Arc::downgrade(&world);
            world
        })
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The broker's folder: configuration, policies, data.
    pub fn broker(&self) -> PathBuf {
        self.dir().join("broker")
    }

    pub(crate) fn database(&self) -> Option<&str> {
        self.database.as_deref()
    }

    pub fn endpoint(&self, name: &str) -> &str {
        self.endpoints[name].as_str().unwrap()
    }

    /// The port of an endpoint that is an address.
    pub fn port(&self, name: &str) -> &str {
        self.endpoint(name).rsplit(':').next().unwrap()
    }

    pub fn home(&self, persona: &str) -> PathBuf {
        self.dir().join("people").join(persona)
    }

    /// A file of a person's profile.
    pub fn profile(&self, persona: &str, file: &str) -> PathBuf {
        self.dir().join("home/profiles").join(persona).join(file)
    }

    pub fn command(&self, persona: &str, args: &[&str]) -> Command {
        let mut command = Command::new(programs().join("daypass"));
        command
            .args(["--profile", persona])
            .args(args)
            .env("DAYPASS_HOME", self.dir().join("home"))
            .env("HOME", self.home(persona))
            .env("NO_COLOR", "1")
            .env_remove("DAYPASS_PROFILE")
            .env_remove("DAYPASS_BROKER");
        command
    }

    /// Runs the command line as one of the four.
    pub fn cli(&self, persona: &str, args: &[&str]) -> Done {
        Program::run(self.command(persona, args), b"")
    }

    /// What the broker answers to a GET: status, type, content.
    pub fn get(&self, path: &str) -> (u16, String, String) {
        let mut curl = Command::new("curl");
        curl.args(["-ks", "--noproxy", "*", "--max-time", "60", "-w", "\n%{http_code} %{content_type}"]);
        curl.arg(format!("https://127.0.0.1:{}{path}", self.port("https")));
        let out = Program::run(curl, b"").ok().out();
        let (body, rest) = out.rsplit_once('\n').unwrap();
        let (status, kind) = rest.split_once(' ').unwrap();
        (status.parse().unwrap(), kind.to_owned(), body.to_owned())
    }

    pub fn json(&self, persona: &str, args: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(args);
        self.cli(persona, &all).ok().json()
    }

    /// The real `ssh` with what `daypass setup ssh` wrote for the engineer.
    pub fn ssh_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        command
            .arg("-F")
            .arg(self.home("engineer").join(".ssh/config"))
            .args(args)
            .env_remove("SSH_AUTH_SOCK")
            .env("HOME", self.home("engineer"));
        command
    }

    pub fn ssh(&self, args: &[&str]) -> Done {
        Program::run(self.ssh_command(args), b"")
    }

    /// Starts `ssh diag@DEVICE.daypass …`.
    pub fn ssh_start(&self, device: &str, options: &[&str], command: &str) -> Program {
        let target = format!("diag@{device}.daypass");
        let mut args = options.to_vec();
        args.extend([target.as_str(), command]);
        Program::start(self.ssh_command(&args))
    }

    /// Asks as the engineer; the request's id.
    pub fn ask(&self, device: &str, duration: &str) -> String {
        let args = ["request", device, "-l", "diag", "--for", duration, "--reason", "a journey"];
        self.json("engineer", &args)["id"].as_str().unwrap().to_owned()
    }

    /// The one session that runs on a device.
    pub fn live_session(&self, device: &str) -> String {
        eventually(&format!("a session on {device}"), || {
            let sessions = self.json("engineer", &["sessions", "--live", "--device", device]);
            sessions[0]["id"].as_str().map(str::to_owned)
        })
    }

    /// A session, once it has ended.
    pub fn ended(&self, session: &str) -> Value {
        eventually(&format!("{session} to end"), || {
            let all = self.json("reviewer", &["sessions", "--limit", "0"]);
            all.as_array()?.iter().find(|one| one["id"] == session && one["state"] == "ended").cloned()
        })
    }

    /// The sessions of a device, newest first.
    pub fn sessions(&self, device: &str) -> Vec<Value> {
        self.json("reviewer", &["sessions", "--device", device]).as_array().unwrap().clone()
    }

    /// What came in, by the journal of a device of the demonstration.
    pub fn journal(&self, device: &str) -> String {
        journal(&self.dir().join("devices").join(device))
    }

    /// Adds a policy to those in force, and waits until it is one of them.
    pub fn add_policy(&self, name: &str, text: &str) {
        let loaded = self.policies_loaded();
        std::fs::write(self.policies().join(format!("zz-{name}.cedar")), text).unwrap();
        self.signal(Signal::SIGHUP);
        until("the policies to be read again", || self.policies_loaded() > loaded);
    }

    fn policies_loaded(&self) -> usize {
        self.log().matches("policies were loaded").count()
    }

    pub fn policies(&self) -> PathBuf {
        self.broker().join("policies")
    }

    pub fn verify(&self) -> Done {
        let mut command = Command::new(programs().join("daypass-broker"));
        command.arg("verify").arg("--config").arg(self.broker().join("broker.toml"));
        if let Some(url) = &self.database {
            command.env("DAYPASS_DATABASE_URL", url);
        }
        Program::run(command, b"")
    }

    /// Fails the test unless log and recordings are whole.
    #[track_caller]
    pub fn evidence_is_whole(&self) {
        let verified = self.verify().ok();
        assert!(verified.out().contains("The evidence is whole."), "{verified}");
    }

    /// Waits for an event of this kind that says all of `words` (SQLite only).
    pub fn audited(&self, kind: &str, words: &[&str]) {
        until(&format!("an event {kind} that says {words:?}"), || self.has_event(kind, words));
    }

    pub fn has_event(&self, kind: &str, words: &[&str]) -> bool {
        evidence::event_in(&self.broker(), kind, words)
    }

    /// The broker's process.
    pub fn broker_pid(&self) -> u32 {
        self.demo.lock().unwrap().child.as_ref().unwrap().id()
    }

    /// Forgets the greatest memory that the broker has had so far, and says what it has now, in KiB.
    pub fn watch_memory(&self) -> u64 {
        std::fs::write(format!("/proc/{}/clear_refs", self.broker_pid()), "5").unwrap();
        self.status("VmRSS:")
    }

    /// The greatest resident memory of the broker since [`World::watch_memory`], in KiB.
    pub fn most_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    fn status(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.broker_pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// How many files and sockets the broker has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.broker_pid())).unwrap().count()
    }

    /// What the broker logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir().join("log")).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        let running = self.demo.lock().unwrap();
        let pid = i32::try_from(running.child.as_ref().unwrap().id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Ends the broker in order, and its two devices with it.
    pub fn stop(&self) {
        self.demo.lock().unwrap().end(Signal::SIGTERM);
    }

    /// `kill -9` for the broker alone, at this very moment; [`World::crash`] then clears away.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Ends the broker as a power cut would, and its two devices too.
    pub fn crash(&self) {
        self.demo.lock().unwrap().end(Signal::SIGKILL);
    }

    /// Starts again on the same data and ports.
    pub fn start_again(&self) {
        let _ = std::fs::remove_file(self.dir().join("endpoints.json"));
        let ports = [self.port("https"), self.port("ssh"), self.port("issuer")];
        let mut running = launch(self.dir(), self.database.as_deref(), ports);
        ready(self.dir(), &mut running);
        *self.demo.lock().unwrap() = running;
    }
}

fn folder() -> TempDir {
    // Short: the path of a socket below it has 108 bytes.
    tempfile::Builder::new().prefix("daypass-").tempdir().unwrap()
}

fn launch(dir: &Path, database: Option<&str>, [https, ssh, idp]: [&str; 3]) -> Running {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
    let mut command = Command::new(programs().join("daypass-broker"));
    command
        .arg("demo")
        .arg("--dir")
        .arg(dir)
        .args(["--https-port", https, "--ssh-port", ssh, "--idp-port", idp, "--quiet"])
        .env_remove("DAYPASS_DATABASE_URL")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    if let Some(url) = database {
        command.env("DAYPASS_DATABASE_URL", url);
    }
    Running { child: Some(command.spawn().unwrap()), shims: Vec::new() }
}

/// Waits until the demonstration has written what it is.
fn ready(dir: &Path, running: &mut Running) -> Value {
    let endpoints = eventually("the demonstration to be ready", || {
        let child = running.child.as_mut().unwrap();
        if let Some(status) = child.try_wait().unwrap() {
            panic!(
                "the demonstration ended, {status}: {}",
                std::fs::read_to_string(dir.join("log")).unwrap()
            );
        }
        let text = std::fs::read_to_string(dir.join("endpoints.json")).ok()?;
        serde_json::from_str::<Value>(&text).ok()
    });
    let pid = i32::try_from(running.child.as_ref().unwrap().id()).unwrap();
    running.shims = process::children(pid, "daypass-shim");
    assert_eq!(running.shims.len(), 2, "two devices");
    endpoints
}

impl Running {
    fn end(&mut self, signal: Signal) {
        let Some(mut child) = self.child.take() else { return };
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        // Gone already is as good, here and below.
        let _ = kill(pid, signal);
        let ended = std::time::Instant::now();
        while matches!(child.try_wait(), Ok(None)) {
            if ended.elapsed() > crate::PATIENCE {
                let _ = child.kill();
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        for shim in self.shims.drain(..).filter(|shim| alive(*shim)) {
            let _ = kill(Pid::from_raw(shim), Signal::SIGKILL);
            until("a device's shim to end", || !alive(shim));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Ok(running) = self.demo.get_mut() {
            running.end(Signal::SIGTERM);
        }
    }
}
