//! A broker for tests: real TLS, real WebSocket, real yamux, the same protocol types; and a real shim
//! process to talk to.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken test may break")]
#![allow(missing_debug_implementations, reason = "nobody prints a broker")]

use bytes::{Bytes, BytesMut};
use daypass_protocol::bundle::TrustBundle;
use daypass_protocol::certificate::{PERMIT_PORT_FORWARDING, PERMIT_PTY, PERMIT_SFTP};
use daypass_protocol::ids::{DeviceId, SessionId};
use daypass_protocol::join::JoinToken;
use daypass_protocol::signed::{Purpose, SignedText};
use daypass_protocol::ssh_key::certificate::{Builder, CertType};
use daypass_protocol::ssh_key::private::Ed25519Keypair;
use daypass_protocol::ssh_key::{PrivateKey, PublicKey};
use daypass_protocol::time::Timestamp;
use daypass_protocol::tunnel::control::{self, FromDevice, ToDevice};
use daypass_protocol::tunnel::frame::{CloseCode, Exit, Frame, Stream};
use daypass_protocol::tunnel::hello::{
    Answer, Binding, Challenge, Conversation, Hello, Nonce, Welcome, decode_nonce, encode_nonce,
};
use daypass_protocol::tunnel::open::{Octets, Open, OpenKind, Pty, Received, Refused, WindowSize};
use daypass_protocol::tunnel::{ENROL_PATH, EXPORTER_LABEL, NONCE_HEADER};
use daypass_shim::state::{Identity, StateDir, TrustRecord};
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

/// Nothing in these tests takes this long unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

pub fn key(seed: u8) -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
}

pub fn public(seed: u8) -> String {
    key(seed).public_key().to_openssh().unwrap()
}

/// Seeds of the keys of these tests.
pub const USER_CA: u8 = 1;
pub const FOREIGN: u8 = 2;
pub const SESSION: u8 = 3;
pub const EVIDENCE: u8 = 4;
pub const HOST_CA: u8 = 5;

#[allow(clippy::disallowed_methods, reason = "the broker has a clock")]
pub fn now() -> Timestamp {
    SystemTime::now().into()
}

pub fn device_id() -> DeviceId {
    "gw-0042".parse().unwrap()
}

pub fn session_id() -> SessionId {
    "S-7K2M9QXD".parse().unwrap()
}

pub fn bundle(version: u64) -> TrustBundle {
    TrustBundle {
        version,
        device: device_id(),
        issued_at: now(),
        user_cas: vec![public(USER_CA)],
        broker_keys: vec![public(EVIDENCE)],
        revoked_serials: vec![99],
    }
}

pub fn sealed_bundle(bundle: &TrustBundle) -> SignedText {
    SignedText::seal(&key(EVIDENCE), Purpose::Bundle, bundle).unwrap()
}

pub fn host_certificate(device_key: &PublicKey) -> String {
    let mut builder = Builder::new([7; 16], device_key, 0, i64::MAX as u64).unwrap();
    builder.serial(1).unwrap().cert_type(CertType::Host).unwrap().key_id("gw-0042").unwrap();
    builder.valid_principal("gw-0042.daypass").unwrap();
    builder.sign(&key(HOST_CA)).unwrap().to_openssh().unwrap()
}

/// A session certificate that is right, to be made wrong by a test.
#[derive(Clone)]
pub struct Cert {
    pub ca: u8,
    pub kind: CertType,
    pub principals: Vec<&'static str>,
    pub from: Timestamp,
    pub until: Timestamp,
    pub serial: u64,
    pub key_id: String,
    pub critical: Vec<(&'static str, &'static str)>,
    pub extensions: Vec<&'static str>,
}

impl Default for Cert {
    fn default() -> Self {
        Self {
            ca: USER_CA,
            kind: CertType::User,
            principals: vec!["diag@gw-0042"],
            from: now() - Duration::from_mins(1),
            until: now() + Duration::from_mins(10),
            serial: 7,
            key_id: format!("person=ana@example.com grant=R-7K2M9QXD session={}", session_id()),
            critical: vec![],
            extensions: vec![PERMIT_PTY, PERMIT_PORT_FORWARDING, PERMIT_SFTP],
        }
    }
}

impl Cert {
    pub fn mint(&self) -> String {
        let (from, until) = (self.from.as_secs(), self.until.as_secs());
        let mut builder = Builder::new([9; 16], key(SESSION).public_key(), from, until).unwrap();
        builder.serial(self.serial).unwrap().cert_type(self.kind).unwrap().key_id(&*self.key_id).unwrap();
        if self.principals.is_empty() {
            builder.all_principals_valid().unwrap();
        }
        for principal in &self.principals {
            builder.valid_principal(*principal).unwrap();
        }
        for (name, value) in &self.critical {
            builder.critical_option(*name, *value).unwrap();
        }
        for name in &self.extensions {
            builder.extension(*name, "").unwrap();
        }
        builder.sign(&key(self.ca)).unwrap().to_openssh().unwrap()
    }
}

pub fn exec(command: &str) -> OpenKind {
    OpenKind::Exec { command: Octets(command.as_bytes().to_vec()), pty: None }
}

pub fn pty() -> Pty {
    let size = WindowSize { cols: 91, rows: 33, width_px: 0, height_px: 0 };
    Pty { term: "xterm-256color".into(), size, modes: vec![] }
}

pub fn open_body(binding: &Binding, counter: u64, certificate: String, kind: OpenKind) -> Open {
    Open {
        v: 1,
        binding: binding.clone(),
        counter,
        session: session_id(),
        channel: 0,
        login: "diag".parse().unwrap(),
        certificate,
        kind,
        env: vec![],
        resume: None,
    }
}

pub struct Broker {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    pub port: u16,
}

/// A device at the other end of a WebSocket, before the hello.
pub struct Caller {
    pub ws: WebSocketStream<TlsStream<TcpStream>>,
    pub exporter: [u8; 32],
    pub device_nonce: Nonce,
    pub what: Conversation,
}

impl Broker {
    pub async fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)), port }
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub fn token(&self) -> JoinToken {
        JoinToken::new(self.url(), key(EVIDENCE).public_key(), [7; 32])
    }

    pub async fn accept(&self) -> Caller {
        let (tcp, _) = soon("a device to dial", self.listener.accept()).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let tls = soon("TLS", Box::pin(self.acceptor.accept(tcp))).await.unwrap();
        let exporter = tls.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None).unwrap();
        let (mut nonce, mut what) = (None, Conversation::Tunnel);
        #[allow(clippy::result_large_err, reason = "the callback's type is given")]
        let upgrade = |request: &Request, mut response: Response| {
            nonce = decode_nonce(request.headers()[NONCE_HEADER].to_str().unwrap());
            if request.uri().path() == ENROL_PATH {
                what = Conversation::Enrolment;
            }
            let protocol = request.headers()["sec-websocket-protocol"].clone();
            response.headers_mut().insert("sec-websocket-protocol", protocol);
            Ok(response)
        };
        let ws =
            soon("the upgrade", Box::pin(tokio_tungstenite::accept_hdr_async(tls, upgrade))).await.unwrap();
        Caller { ws, exporter, device_nonce: nonce.unwrap(), what }
    }

    /// A whole hello that goes well.
    pub async fn join(&self) -> Joined {
        self.accept().await.welcome(Welcome { v: 1, bundle: None, accepts_sessions: true }).await
    }
}

impl Caller {
    pub fn challenge(&self) -> Challenge {
        let nonce = [8; 32];
        let binding = Binding::new(self.what, &self.exporter, &self.device_nonce, &nonce);
        Challenge { v: 1, nonce: encode_nonce(&nonce), binding, time: now() }
    }

    pub async fn say<T: Serialize>(&mut self, message: &T) {
        self.ws.send(Message::text(serde_json::to_string(message).unwrap())).await.unwrap();
    }

    /// The next text message; `None` when the device hung up instead.
    pub async fn hear<T: DeserializeOwned>(&mut self) -> Option<T> {
        loop {
            match soon("a message of the device", self.ws.next()).await {
                Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return None,
            }
        }
    }

    pub async fn hello(&mut self) -> Option<(Challenge, SignedText)> {
        let challenge = self.challenge();
        self.say(&SignedText::seal(&key(EVIDENCE), Purpose::Challenge, &challenge).unwrap()).await;
        Some((challenge, self.hear().await?))
    }

    pub async fn welcome(mut self, welcome: Welcome) -> Joined {
        let (challenge, hello) = self.hello().await.expect("a hello");
        self.say(&Answer::Welcome(welcome)).await;
        Joined::new(self.ws, challenge.binding, hello).await
    }
}

/// A device whose tunnel is up.
pub struct Joined {
    pub binding: Binding,
    hello: SignedText,
    open_stream: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
    pub control: Compat<yamux::Stream>,
    buffer: BytesMut,
    pub counter: u64,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Joined {
    async fn new(ws: WebSocketStream<TlsStream<TcpStream>>, binding: Binding, hello: SignedText) -> Self {
        let (sink, stream) = ws.split();
        let stream = stream.filter_map(|message| async {
            match message {
                Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
                Ok(_) => None,
                Err(error) => Some(Err(std::io::Error::other(error))),
            }
        });
        let sink = sink
            .with(|bytes: Bytes| async { Ok(Message::Binary(bytes)) })
            .sink_map_err(|error: tokio_tungstenite::tungstenite::Error| std::io::Error::other(error));
        let io = tokio::io::join(
            StreamReader::new(Box::pin(stream)),
            SinkWriter::new(CopyToBytes::new(Box::pin(sink))),
        );
        let mut config = yamux::Config::default();
        config.set_max_num_streams(64);
        config.set_max_connection_receive_window(Some(16 * 1024 * 1024));
        let mut connection = yamux::Connection::new(io.compat(), config, yamux::Mode::Client);
        let (open_stream, mut wanted) = mpsc::channel::<oneshot::Sender<yamux::Stream>>(8);
        let driver = tokio::spawn(async move {
            loop {
                tokio::select! {
                    inbound = poll_fn(|cx| connection.poll_next_inbound(cx)) => {
                        if !matches!(inbound, Some(Ok(_))) { return }
                    }
                    Some(answer) = wanted.recv() => {
                        let Ok(stream) = poll_fn(|cx| connection.poll_new_outbound(cx)).await else { return };
                        let _ = answer.send(stream);
                    }
                }
            }
        });
        let mut joined = Self {
            binding,
            hello,
            control: first(&open_stream).await.compat(),
            open_stream,
            buffer: BytesMut::new(),
            counter: 0,
            driver,
        };
        joined.tell(&ToDevice::Tick { time: now() }).await;
        assert!(matches!(joined.told().await, Some(FromDevice::Tock { .. })));
        joined
    }

    pub fn hello(&self, device_key: &PublicKey) -> Hello {
        self.hello.open(std::slice::from_ref(device_key), Purpose::Hello, "a hello").unwrap()
    }

    pub async fn tell(&mut self, message: &ToDevice) {
        let mut wire = BytesMut::new();
        control::encode(message, &mut wire).unwrap();
        self.control.write_all(&wire).await.unwrap();
        self.control.flush().await.unwrap();
    }

    /// The next control message; `None` when the device ended the stream.
    pub async fn told(&mut self) -> Option<FromDevice> {
        loop {
            if let Some(message) = control::decode(&mut self.buffer).unwrap() {
                return Some(message);
            }
            let read = soon("a control message", self.control.read_buf(&mut self.buffer)).await;
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    pub async fn stream(&self) -> Channel {
        Channel { stream: first(&self.open_stream).await.compat(), buffer: BytesMut::new(), sent: 0 }
    }

    pub fn body(&mut self, cert: &Cert, kind: OpenKind) -> Open {
        self.counter += 1;
        open_body(&self.binding, self.counter, cert.mint(), kind)
    }

    pub async fn open_signed(&self, signed: SignedText) -> Channel {
        let mut channel = self.stream().await;
        channel.send(Frame::Open(signed)).await;
        channel
    }

    pub async fn open_body(&self, body: &Open) -> Channel {
        self.open_signed(body.seal(&key(SESSION)).unwrap()).await
    }

    /// Asks to go on with channel 0, and gives the device's answer.
    pub async fn resume(&mut self, cert: &Cert, kind: OpenKind, said: &Said) -> (Channel, Option<Frame>) {
        let mut body = self.body(cert, kind);
        body.resume = Some(Received { data: said.out.len() as u64, stderr: said.err.len() as u64 });
        let mut channel = self.open_body(&body).await;
        let answer = channel.next().await;
        (channel, answer)
    }

    /// Opens a channel that has to open.
    pub async fn open(&mut self, kind: OpenKind) -> Channel {
        self.open_with(&Cert::default(), kind).await
    }

    pub async fn open_with(&mut self, cert: &Cert, kind: OpenKind) -> Channel {
        let body = self.body(cert, kind);
        let mut channel = self.open_body(&body).await;
        assert_eq!(channel.next().await, Some(Frame::Opened));
        channel
    }

    /// What the device answers to an `open` that must not open.
    pub async fn refusal(&mut self, cert: &Cert, kind: OpenKind) -> Refused {
        let body = self.body(cert, kind);
        self.open_body(&body).await.refused().await
    }
}

async fn first(open: &mpsc::Sender<oneshot::Sender<yamux::Stream>>) -> yamux::Stream {
    let (answer, stream) = oneshot::channel();
    open.send(answer).await.expect("the tunnel is up");
    stream.await.expect("the tunnel is up")
}

pub struct Channel {
    pub stream: Compat<yamux::Stream>,
    pub buffer: BytesMut,
    pub sent: u64,
}

/// Everything a channel said.
#[derive(Debug, Default)]
pub struct Said {
    pub out: Vec<u8>,
    pub err: Vec<u8>,
    pub exit: Option<Exit>,
    pub close: Option<(CloseCode, String)>,
    pub acked: u64,
}

impl Said {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

impl Channel {
    pub async fn send(&mut self, frame: Frame) {
        let mut wire = BytesMut::new();
        frame.encode(&mut wire).unwrap();
        self.stream.write_all(&wire).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn try_send(&mut self, frame: Frame) {
        let mut wire = BytesMut::new();
        frame.encode(&mut wire).unwrap();
        if self.stream.write_all(&wire).await.is_ok() {
            let _ = self.stream.flush().await;
        }
    }

    pub async fn data(&mut self, bytes: &[u8]) {
        let frame =
            Frame::Data { stream: Stream::Data, offset: self.sent, bytes: Bytes::copy_from_slice(bytes) };
        self.sent += bytes.len() as u64;
        self.send(frame).await;
    }

    pub async fn eof(&mut self) {
        self.send(Frame::Eof { stream: Stream::Data, offset: self.sent }).await;
    }

    /// The next frame; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            let read = timeout(2 * PATIENCE, self.stream.read_buf(&mut self.buffer)).await.expect("a frame");
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    pub async fn refused(&mut self) -> Refused {
        match self.next().await {
            Some(Frame::Refused(refused)) => refused,
            other => panic!("expected a refusal: {other:?}"),
        }
    }

    /// Reads until the output holds `text`.
    pub async fn until(&mut self, said: &mut Said, text: &str) {
        while !said.text().contains(text) {
            let more = timeout(PATIENCE, self.one(said)).await;
            assert_eq!(more, Ok(true), "no {text:?} in {:?}", said.text());
        }
    }

    /// Reads to the end.
    pub async fn rest(&mut self) -> Said {
        let mut said = Said::default();
        self.rest_into(&mut said).await;
        said
    }

    pub async fn rest_into(&mut self, said: &mut Said) {
        while self.one(said).await {}
    }

    async fn one(&mut self, said: &mut Said) -> bool {
        let Some(frame) = self.next().await else { return false };
        assert!(said.close.is_none(), "nothing follows a close: {frame:?}");
        match frame {
            Frame::Data { stream, offset, bytes } => {
                let to = if stream == Stream::Data { &mut said.out } else { &mut said.err };
                assert_eq!(offset, to.len() as u64, "offsets count every byte");
                to.extend_from_slice(&bytes);
                // A device that has said all does not listen any more.
                self.try_send(Frame::Ack { stream, offset: to.len() as u64 }).await;
            }
            Frame::Eof { stream, offset } => {
                let of = if stream == Stream::Data { &said.out } else { &said.err };
                assert_eq!(offset, of.len() as u64);
            }
            Frame::Ack { offset, .. } => {
                assert!(offset > said.acked);
                said.acked = offset;
            }
            Frame::Exit(exit) => said.exit = Some(exit),
            Frame::Close { code, message } => {
                self.try_send(Frame::Close { code: CloseCode::Done, message: String::new() }).await;
                said.close = Some((code, message));
            }
            other => panic!("{other:?} from a device"),
        }
        true
    }
}

/// A device on disk, and the shim process that runs it.
pub struct Device {
    pub dir: tempfile::TempDir,
    pub shim: Option<Child>,
    pub log: Option<mpsc::UnboundedReceiver<String>>,
}

pub fn me() -> String {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name
}

impl Device {
    pub fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), shim: None, log: None }
    }

    /// Enrolled, as if it had gone through it.
    pub fn enrolled(broker: &Broker) -> Self {
        let device = Self::empty();
        let state = device.state();
        state.create().unwrap();
        let own = state.key_to_enrol().unwrap();
        let record = TrustRecord { v: 1, signers: vec![public(EVIDENCE)], bundle: sealed_bundle(&bundle(5)) };
        state.store_trust(&record).unwrap();
        let identity = Identity {
            v: 1,
            device: device_id(),
            serial_number: "0042".into(),
            broker_url: broker.url(),
            host_certificate: host_certificate(own.public_key()),
        };
        state.store_identity(&identity).unwrap();
        device
    }

    pub fn state(&self) -> StateDir {
        StateDir::new(self.dir.path().join("state"))
    }

    pub fn journal(&self) -> PathBuf {
        self.dir.path().join("journal.ndjson")
    }

    pub fn configure(&self, more: &str) -> PathBuf {
        let path = self.dir.path().join("device.toml");
        let text = format!(
            "state_dir = '{}'\njournal = '{}'\nreconnect_first_ms = 50\nreconnect_max_s = 1\n\
             shell = \"/bin/sh\"\n{more}\nlogins = {{ diag = {:?} }}\n",
            self.state().path().display(),
            self.journal().display(),
            me()
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn run(&mut self) {
        self.run_with("");
    }

    pub fn run_with(&mut self, more: &str) {
        let config = self.configure(more);
        self.run_as_configured(&config);
    }

    pub fn run_as_configured(&mut self, config: &Path) {
        let mut shim = shim(&["run", "--config", config.to_str().unwrap()]).spawn().unwrap();
        let mut lines = BufReader::new(shim.stderr.take().unwrap()).lines();
        let (send, log) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                eprintln!("{line}");
                let _ = send.send(line);
            }
        });
        (self.shim, self.log) = (Some(shim), Some(log));
    }

    /// Waits for a line of the log that contains `text`.
    pub async fn logged(&mut self, text: &str) -> String {
        let log = self.log.as_mut().unwrap();
        loop {
            let line =
                soon(text, log.recv()).await.unwrap_or_else(|| panic!("the log ended before {text:?}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.shim.as_ref().unwrap().id().unwrap()
    }
}

pub fn shim(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_daypass-shim"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Resident memory of a process, in bytes.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Whether a process whose command line contains `mark` lives.
pub fn lives(mark: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&cmdline).contains(mark)
    })
}

/// Waits for the end of every process whose command line contains `mark`; how long it took.
pub async fn gone(mark: &str) -> Duration {
    let start = tokio::time::Instant::now();
    while lives(mark) {
        assert!(start.elapsed() < PATIENCE, "{mark} is still alive");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    start.elapsed()
}

/// A number that names one test's processes.
pub fn mark() -> String {
    format!("9{:09}", getrandom::u32().unwrap() % 1_000_000_000)
}
