//! A gateway, its door, and an engineer's machine: keys, ssh_config and known_hosts in a folder.

use async_trait::async_trait;
use bytes::Bytes;
use daypass_broker::clock::Clock;
use daypass_broker::gateway::{
    Client, Door, EndNotice, Gateway, HostIdentity, Limits, NotAuthenticated, Refusal, Refused, RefusedKind,
    SessionDoor, Settings,
};
use daypass_broker::session::wire::{EngineerChannel, FromEngineer, ToEngineer};
use daypass_protocol::certificate::{self, Expectation, Principal, Refusal as Wrong};
use daypass_protocol::ids::{DeviceId, Login};
use daypass_protocol::ssh_key::certificate::{Builder, CertType};
use daypass_protocol::ssh_key::private::Ed25519Keypair;
use daypass_protocol::ssh_key::{Certificate, LineEnding, PrivateKey, PublicKey};
use daypass_protocol::tunnel::frame::Exit;
use daypass_protocol::tunnel::open::OpenKind;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::process::Command;
use tokio::sync::{broadcast, watch};

pub const ANA: &str = "P-7K2M9QXD";
pub const BEN: &str = "P-0GJ5V2KQ";
/// Longest any client may take; the machine of the tests may be slow.
pub const PATIENCE: Duration = Duration::from_mins(2);

pub fn key(seed: u8) -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
}

pub const IDENTITY_CA: u8 = 1;
pub const HOST_CA: u8 = 2;
pub const FOREIGN_CA: u8 = 3;
pub const ANAS_KEY: u8 = 10;
pub const BENS_KEY: u8 = 11;
const GATEWAYS_KEY: u8 = 20;

/// A certificate, by default Ana's good one.
pub struct Mint {
    pub ca: u8,
    pub key: u8,
    pub kind: CertType,
    pub principals: Vec<&'static str>,
    /// Seconds from now.
    pub from: i64,
    pub until: i64,
    pub critical: Vec<(&'static str, &'static str)>,
}

impl Default for Mint {
    fn default() -> Self {
        Self {
            ca: IDENTITY_CA,
            key: ANAS_KEY,
            kind: CertType::User,
            principals: vec![ANA],
            from: -60,
            until: 3600,
            critical: vec![],
        }
    }
}

impl Mint {
    pub fn mint(&self) -> Certificate {
        let now = i64::try_from(Clock::system().now().as_secs()).unwrap();
        let at = |offset: i64| u64::try_from(now + offset).unwrap();
        let subject = key(self.key);
        let mut builder = Builder::new([9; 16], subject.public_key(), at(self.from), at(self.until)).unwrap();
        builder.serial(7).unwrap().cert_type(self.kind).unwrap();
        builder.key_id("person=ana@example.com").unwrap();
        if self.principals.is_empty() {
            builder.all_principals_valid().unwrap();
        }
        for principal in &self.principals {
            builder.valid_principal(*principal).unwrap();
        }
        for (name, value) in &self.critical {
            builder.critical_option(*name, *value).unwrap();
        }
        builder.sign(&key(self.ca)).unwrap()
    }
}

fn host(names: &[&'static str], seed: u8) -> HostIdentity {
    let certificate =
        Mint { ca: HOST_CA, key: seed, kind: CertType::Host, principals: names.to_vec(), ..Mint::default() };
    HostIdentity { key: key(seed), certificate: certificate.mint() }
}

/// A person of the tests: what the certificate proves.
pub type Person = certificate::Verified;

#[derive(Clone, Debug)]
pub struct Begun {
    pub person: Principal,
    pub device: DeviceId,
    pub login: Login,
    pub client: Client,
}

/// A channel's kind and environment, as the door was given them.
pub type Opened = (OpenKind, Vec<(String, String)>);

#[derive(Debug, Default)]
pub struct Seen {
    pub begun: Mutex<Vec<Begun>>,
    pub opened: Mutex<Vec<Opened>>,
    pub refused: Mutex<Vec<Refused>>,
    pub closed: AtomicUsize,
    /// Bytes that reached any program.
    pub delivered: AtomicUsize,
}

pub struct TestDoor {
    pub seen: Arc<Seen>,
    pub end: watch::Sender<Option<EndNotice>>,
    pub notices: broadcast::Sender<String>,
}

#[async_trait]
impl Door for TestDoor {
    type Person = Person;

    async fn authenticate(
        &self,
        certificate: &Certificate,
        source: SocketAddr,
    ) -> Result<Person, NotAuthenticated> {
        let cas = [key(IDENTITY_CA).public_key().clone()];
        let expect = Expectation {
            cas: &cas,
            principal: None,
            now: Clock::system().now(),
            source: Some(source.ip()),
            revoked_serials: &[],
        };
        certificate::verify(certificate, &expect).map_err(|wrong| match wrong {
            Wrong::ForeignCa { .. } => NotAuthenticated::Stranger,
            _ => NotAuthenticated::Known(
                Refusal::new("your identity certificate opens nothing").hint("daypass login"),
            ),
        })
    }

    async fn bare_key(&self, offered: &PublicKey) -> Option<Refusal> {
        (offered.key_data() == key(ANAS_KEY).public_key().key_data())
            .then(|| Refusal::new("your identity certificate has expired").hint("run daypass login"))
    }

    fn same_person(&self, a: &Person, b: &Person) -> bool {
        a.principal() == b.principal()
    }

    async fn host_identity(&self, device: &DeviceId) -> Result<HostIdentity, Refusal> {
        match device.as_str() {
            "gw-0042" => Ok(host(&["gw-0042", "gw-0042.daypass"], 42)),
            "gw-0043" => Ok(host(&["gw-0043", "gw-0043.daypass"], 43)),
            // An impostor's name on it.
            "gw-0666" => Ok(host(&["gw-0042"], 66)),
            _ => Err(Refusal::new(format!("no device {device}"))),
        }
    }

    async fn begin(
        &self,
        person: &Person,
        device: &DeviceId,
        login: &Login,
        _first: &OpenKind,
        client: Client,
    ) -> Result<Arc<dyn SessionDoor>, Refusal> {
        if login.as_str() == "root" {
            return Err(Refusal::new("no live grant for root on this device").hint("daypass request gw-0042"));
        }
        self.seen.begun.lock().unwrap().push(Begun {
            person: person.principal().clone(),
            device: device.clone(),
            login: login.clone(),
            client,
        });
        Ok(Arc::new(TestSession {
            seen: self.seen.clone(),
            end: self.end.subscribe(),
            notices: self.notices.clone(),
        }))
    }

    async fn refused(&self, _: Option<&Person>, refused: Refused) {
        self.seen.refused.lock().unwrap().push(refused);
    }
}

struct TestSession {
    seen: Arc<Seen>,
    end: watch::Receiver<Option<EndNotice>>,
    notices: broadcast::Sender<String>,
}

#[async_trait]
impl SessionDoor for TestSession {
    async fn open_channel(
        &self,
        kind: OpenKind,
        env: Vec<(String, String)>,
        engineer: EngineerChannel,
    ) -> Result<(), Refusal> {
        self.seen.opened.lock().unwrap().push((kind.clone(), env.clone()));
        let command = match &kind {
            OpenKind::Exec { command, .. } => String::from_utf8(command.0.clone()).unwrap(),
            // The ports of inetd's services, RFC 862 to 864; and two that do not open.
            OpenKind::Forward { port: 7, .. } => "cat".to_owned(),
            OpenKind::Forward { port: 9, .. } => "stall".to_owned(),
            OpenKind::Forward { port: 19, .. } => "yes".to_owned(),
            OpenKind::Forward { port: 81, .. } => return Err(Refusal::failure("connection refused")),
            OpenKind::Forward { .. } => return Err(Refusal::new("not granted")),
            _ => "shell".to_owned(),
        };
        if command == "refused" {
            return Err(Refusal::new("the device does not serve this"));
        }
        let seen = self.seen.clone();
        tokio::spawn(async move { program(&command, &kind, env, engineer, &seen).await });
        Ok(())
    }

    fn notices(&self) -> broadcast::Receiver<String> {
        self.notices.subscribe()
    }

    async fn ended(&self) -> EndNotice {
        let mut end = self.end.clone();
        let notice = end.wait_for(Option::is_some).await.ok().and_then(|notice| notice.clone());
        match notice {
            Some(notice) => notice,
            None => std::future::pending().await,
        }
    }

    async fn closed(&self) {
        self.seen.closed.fetch_add(1, Ordering::SeqCst);
    }
}

/// Small programs, as a device would run them. Ends when the engineer's end is gone.
async fn program(
    command: &str,
    kind: &OpenKind,
    env: Vec<(String, String)>,
    channel: EngineerChannel,
    seen: &Seen,
) -> Option<()> {
    let EngineerChannel { mut input, output } = channel;
    let say = async |text: String| output.send(ToEngineer::Data(Bytes::from(text))).await.ok();
    let (name, rest) = command.split_once(' ').unwrap_or((command, ""));
    let mut status = 0;
    match name {
        "cat" | "shell" => loop {
            match input.recv().await? {
                FromEngineer::Data(bytes) => {
                    seen.delivered.fetch_add(bytes.len(), Ordering::SeqCst);
                    let leave = name == "shell" && bytes.windows(4).any(|part| part == b"exit");
                    output.send(ToEngineer::Data(bytes)).await.ok()?;
                    if leave {
                        break;
                    }
                }
                FromEngineer::Eof => break,
                _ => {}
            }
        },
        "sum" => {
            let (mut count, mut hash) = (0, Sha256::new());
            loop {
                match input.recv().await? {
                    FromEngineer::Data(bytes) => {
                        count += bytes.len();
                        hash.update(&bytes);
                    }
                    FromEngineer::Eof => break,
                    _ => {}
                }
            }
            say(format!("{count} {}\n", hex::encode(hash.finalize()))).await?;
        }
        "bytes" => {
            let mut left: usize = rest.parse().unwrap();
            let mut at = 0;
            while left > 0 {
                let part = pattern(at, left.min(32 * 1024));
                at += part.len();
                left -= part.len();
                output.send(ToEngineer::Data(part)).await.ok()?;
            }
        }
        "yes" => loop {
            say("y\n".repeat(8000)).await?;
        },
        "stall" => output.closed().await,
        "exit" => status = rest.parse().unwrap(),
        "err" => {
            output.send(ToEngineer::Stderr(Bytes::from_static(b"to stderr\n"))).await.ok()?;
            say("to stdout\n".to_owned()).await?;
            status = 3;
        }
        "env" => {
            for (name, value) in env {
                say(format!("{name}={value}\n")).await?;
            }
        }
        "killed" => {
            output.send(ToEngineer::Eof).await.ok()?;
            let exit = Exit::Signal { name: "KILL".to_owned(), core_dumped: false };
            output.send(ToEngineer::Exit(exit)).await.ok()?;
            return output.send(ToEngineer::Close).await.ok();
        }
        "size" => {
            let size = kind.pty().map(|pty| pty.size).unwrap_or_default();
            say(format!("{}x{}\r\n", size.cols, size.rows)).await?;
            loop {
                if let FromEngineer::Resize(size) = input.recv().await? {
                    say(format!("{}x{}\r\n", size.cols, size.rows)).await?;
                    break;
                }
            }
        }
        other => panic!("no program {other:?}"),
    }
    output.send(ToEngineer::Eof).await.ok()?;
    output.send(ToEngineer::Exit(Exit::Status(status))).await.ok()?;
    output.send(ToEngineer::Close).await.ok()
}

/// Bytes that are the same for the same place, and different elsewhere.
pub fn pattern(at: usize, len: usize) -> Bytes {
    (at..at + len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect()
}

pub struct World {
    pub gateway: Gateway<TestDoor>,
    pub door: Arc<TestDoor>,
    pub seen: Arc<Seen>,
    pub folder: tempfile::TempDir,
}

/// What a client did.
#[derive(Debug)]
pub struct Done {
    pub status: Option<i32>,
    pub out: Vec<u8>,
    pub err: String,
}

impl Done {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

impl World {
    pub async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    pub async fn with(limits: Limits) -> Self {
        // RUST_LOG=daypass_broker=debug,russh=debug shows what went on.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let seen = Arc::new(Seen::default());
        let door = Arc::new(TestDoor {
            seen: seen.clone(),
            end: watch::Sender::new(None),
            notices: broadcast::Sender::new(8),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings =
            Settings { identity: host(&["gateway"], GATEWAYS_KEY), suffix: "daypass".to_owned(), limits };
        let gateway = Gateway::serve(listener, settings, door.clone()).unwrap();
        let world = Self { gateway, door, seen, folder: tempfile::tempdir().unwrap() };
        world.engineer();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(self.path(name), mode).unwrap();
    }

    pub fn write_key(&self, name: &str, seed: u8) {
        self.write(name, &key(seed).to_openssh(LineEnding::LF).unwrap());
        self.write(&format!("{name}.pub"), &key(seed).public_key().to_openssh().unwrap());
    }

    pub fn write_certificate(&self, mint: &Mint) {
        self.write("id-cert.pub", &mint.mint().to_openssh().unwrap());
    }

    /// Ana's machine.
    fn engineer(&self) {
        self.write_key("id", ANAS_KEY);
        self.write_certificate(&Mint::default());
        let host_ca = key(HOST_CA).public_key().to_openssh().unwrap();
        self.write("known_hosts", &format!("@cert-authority * {host_ca}\n"));
        let folder = self.folder.path().display();
        let mut config = String::new();
        write!(
            config,
            "Host gateway\n  HostName 127.0.0.1\n  Port {port}\n  HostKeyAlias gateway\n\
             Host gw-*\n  ProxyJump gateway\n  User diag\n\
             Host *\n  IdentityFile {folder}/id\n  CertificateFile {folder}/id-cert.pub\n  IdentitiesOnly yes\n  \
             IdentityAgent none\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n  \
             StrictHostKeyChecking yes\n  BatchMode yes\n  ForwardX11 no\n  ControlPath none\n",
            port = self.gateway.address().port(),
        )
        .unwrap();
        self.write("config", &config);
    }

    /// A client's command with this machine's configuration.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-F").arg(self.path("config"));
        command.env_remove("SSH_AUTH_SOCK").env_remove("DISPLAY").env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    pub async fn ssh(&self, args: &[&str]) -> Done {
        let mut command = self.command("ssh");
        command.args(args);
        run(command, None).await
    }

    pub async fn ssh_with(&self, args: &[&str], stdin: Vec<u8>) -> Done {
        let mut command = self.command("ssh");
        command.args(args).stdin(Stdio::piped());
        run(command, Some(stdin)).await
    }

    /// A line of shell, where `$SSH` is the client with its configuration.
    pub async fn shell(&self, line: &str) -> Done {
        let mut command = Command::new("sh");
        command.arg("-c").arg(line);
        command.env("SSH", format!("ssh -F {}", self.path("config").display()));
        command.env("CONFIG", self.path("config"));
        command.env("FOLDER", self.folder.path());
        command.env_remove("SSH_AUTH_SOCK").env_remove("DISPLAY").env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        run(command, None).await
    }

    pub fn refusals(&self) -> Vec<RefusedKind> {
        self.seen.refused.lock().unwrap().iter().map(|refused| refused.kind).collect()
    }

    /// Waits until the door was told of a refusal of this kind.
    pub async fn refusal(&self, kind: RefusedKind) {
        until(&format!("a refusal of {kind:?}"), || self.refusals().contains(&kind)).await;
    }

    pub fn nothing_was_opened(&self) -> bool {
        self.seen.begun.lock().unwrap().is_empty() && self.seen.opened.lock().unwrap().is_empty()
    }
}

async fn run(mut command: Command, stdin: Option<Vec<u8>>) -> Done {
    use tokio::io::AsyncWriteExt as _;
    let mut child = command.spawn().unwrap();
    if let (Some(bytes), Some(mut pipe)) = (stdin, child.stdin.take()) {
        tokio::spawn(async move {
            // A client that was refused does not read; that is what the test looks at.
            let _ = pipe.write_all(&bytes).await;
        });
    }
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let output = output.unwrap_or_else(|_| panic!("the client did not end: {command:?}")).unwrap();
    Done {
        status: output.status.code(),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Waits for a condition that another task brings about.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "waited in vain for {what}");
}
