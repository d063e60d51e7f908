//! A real TLS server with the tunnel's two routes, and a device made of the protocol crate.

use crate::clock::Clock;
use crate::db::Db;
use crate::device::testing::{self as keys, Keys, NOW, key};
use crate::device::{Step, store};
use crate::http::connection::TlsFacts;
use crate::session::Sessions;
use crate::tunnel::{Limits, OpenAsk, Tunnel, TunnelServer, accept};
use axum::Router;
use axum::extract::Extension;
use bytes::{Bytes, BytesMut};
use daypass_protocol::api::DeviceState;
use daypass_protocol::signed::{Purpose, SignedText, fingerprint};
use daypass_protocol::ssh_key::PrivateKey;
use daypass_protocol::tunnel::control::{self, FromDevice, ToDevice};
use daypass_protocol::tunnel::frame::Frame;
use daypass_protocol::tunnel::hello::{
    Answer, Binding, Challenge, Conversation, Hello, RefusalCode, Welcome, decode_nonce, encode_nonce,
};
use daypass_protocol::tunnel::open::{Octets, Open, OpenKind};
use daypass_protocol::tunnel::{
    ENROL_PATH, ENROL_PROTOCOL, EXPORTER_LABEL, NONCE_HEADER, TUNNEL_PATH, TUNNEL_PROTOCOL,
};
use futures_util::{AsyncWrite as _, SinkExt as _, StreamExt as _};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest as _};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

pub(super) const DEVICE: &str = "gw-0042";

pub(super) struct World {
    pub server: Arc<TunnelServer>,
    pub db: Db,
    pub keys: Arc<Keys>,
    pub addr: SocketAddr,
}

pub(super) type Socket = WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>;

/// A connection whose upgrade is done.
pub(super) struct Dialled {
    pub socket: Socket,
    pub exporter: [u8; 32],
}

pub(super) const NONCE: [u8; 32] = [5; 32];

pub(super) fn limits() -> Limits {
    Limits { probe: Duration::from_secs(2), ..Limits::default() }
}

impl World {
    pub async fn new() -> Self {
        Self::with(limits()).await
    }

    pub async fn with(limits: Limits) -> Self {
        let db = crate::testing::sqlite().await;
        keys::add_line(&db, "edge").await;
        let (trust, keys) = keys::trust();
        let server = TunnelServer::new(db.clone(), Clock::fixed(NOW), trust, limits, Sessions::default());
        let addr = serve(server.clone()).await;
        let world = Self { server, db, keys, addr };
        world.add(DEVICE, 1).await;
        world
    }

    pub async fn add(&self, id: &str, seed: u8) {
        let mut tx = self.db.begin().await.unwrap();
        let device = store::NewDevice {
            id: &id.parse().unwrap(),
            serial_number: id,
            product_line: &"edge".parse().unwrap(),
            public_key: &key(seed).public_key().to_openssh().unwrap(),
            key_fingerprint: &fingerprint(key(seed).public_key()),
            labels: &[].into(),
            shim_version: "0",
        };
        let step = Step::new(None, DeviceState::Active).unwrap();
        store::add_enrolled(&mut tx, &device, step, NOW).await.unwrap();
        keys::commit(tx).await;
    }

    pub async fn step(&self, from: DeviceState, to: DeviceState) {
        let mut tx = self.db.begin().await.unwrap();
        let step = Step::new(Some(from), to).unwrap();
        store::take_step(&mut tx, &DEVICE.parse().unwrap(), step).await.unwrap();
        keys::commit(tx).await;
    }

    pub async fn dial(&self) -> Dialled {
        self.dial_with(TUNNEL_PATH, Some(TUNNEL_PROTOCOL), Some(&encode_nonce(&NONCE))).await.unwrap()
    }

    pub async fn dial_enrolment(&self) -> Dialled {
        self.dial_with(ENROL_PATH, Some(ENROL_PROTOCOL), Some(&encode_nonce(&NONCE))).await.unwrap()
    }

    pub async fn dial_with(
        &self,
        path: &str,
        protocol: Option<&str>,
        nonce: Option<&str>,
    ) -> Result<Dialled, tungstenite::Error> {
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let tcp = TcpStream::connect(self.addr).await.unwrap();
        let tls = connector.connect("broker.example".try_into().unwrap(), tcp).await.unwrap();
        let exporter = tls.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None).unwrap();
        let mut request = format!("wss://broker.example{path}").into_client_request().unwrap();
        for (name, value) in [("Sec-WebSocket-Protocol", protocol), (NONCE_HEADER, nonce)] {
            if let Some(value) = value {
                request.headers_mut().insert(name, value.parse().unwrap());
            }
        }
        let (socket, _) = tokio_tungstenite::client_async(request, tls).await?;
        Ok(Dialled { socket, exporter })
    }

    /// Says hello as the device with this key.
    pub async fn hello(&self, id: &str, seed: u8) -> Result<(Device, Welcome), RefusalCode> {
        let mut dialled = self.dial().await;
        let binding = dialled.challenge(Conversation::Tunnel).await;
        let hello = sealed_hello(id, &key(seed), &binding);
        dialled.say(&hello).await;
        match dialled.hear::<Answer<Welcome>>().await {
            Answer::Welcome(welcome) => Ok((Device::start(dialled.socket, binding).await, welcome)),
            Answer::Refused { code, .. } => Err(code),
        }
    }

    /// A device that is connected and has its first tick, with the broker's end of its tunnel.
    pub async fn connect(&self) -> (Device, Arc<Tunnel>) {
        let (mut device, _) = self.hello(DEVICE, 1).await.unwrap();
        assert!(matches!(device.hear().await, Some(ToDevice::Tick { time: NOW })));
        (device, self.tunnel())
    }

    pub fn tunnel(&self) -> Arc<Tunnel> {
        self.server.tunnels().get(&DEVICE.parse().unwrap()).expect("the device is online")
    }
}

pub(super) fn sealed_hello(id: &str, key: &PrivateKey, binding: &Binding) -> SignedText {
    let hello = Hello {
        v: 1,
        device: id.parse().unwrap(),
        binding: binding.clone(),
        bundle_version: 0,
        shim_version: "0.1.0".to_owned(),
        tls_group: "X25519MLKEM768".to_owned(),
    };
    SignedText::seal(key, Purpose::Hello, &hello).unwrap()
}

impl Dialled {
    /// Reads the challenge as a device does, and returns the binding that both ends have.
    pub async fn challenge(&mut self, what: Conversation) -> Binding {
        let signed: SignedText = self.hear().await;
        let pinned = [key(200).public_key().clone()];
        let challenge: Challenge = signed.open(&pinned, Purpose::Challenge, "a challenge").unwrap();
        let binding = Binding::new(what, &self.exporter, &NONCE, &decode_nonce(&challenge.nonce).unwrap());
        assert_eq!((challenge.binding, challenge.time), (binding.clone(), NOW));
        binding
    }

    pub async fn say<T: serde::Serialize>(&mut self, message: &T) {
        self.say_text(&serde_json::to_string(message).unwrap()).await;
    }

    pub async fn say_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    pub async fn hear<T: serde::de::DeserializeOwned>(&mut self) -> T {
        let message = self.socket.next().await.unwrap().unwrap();
        serde_json::from_str(message.to_text().unwrap()).unwrap()
    }

    /// The code with which the broker closes, whatever it says before.
    pub async fn close_code(&mut self) -> u16 {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Close(Some(frame)))) => return frame.code.into(),
                Some(Ok(_)) => {}
                other => panic!("no close frame: {other:?}"),
            }
        }
    }
}

pub(super) type Stream = Compat<yamux::Stream>;

/// The device's end of a tunnel.
pub(super) struct Device {
    pub binding: Binding,
    control: Stream,
    control_input: BytesMut,
    pub channels: mpsc::Receiver<Stream>,
    frozen: Arc<Notify>,
    driver: tokio::task::JoinHandle<()>,
    open_stream: mpsc::Sender<()>,
}

impl Device {
    async fn start(socket: Socket, binding: Binding) -> Self {
        let (sink, stream) = socket.split();
        let incoming = stream.filter_map(|message| {
            std::future::ready(match message {
                Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
                Ok(_) => None,
                Err(error) => Some(Err(io::Error::other(error))),
            })
        });
        let outgoing = sink
            .with(|bytes: Bytes| std::future::ready(Ok::<_, tungstenite::Error>(Message::Binary(bytes))))
            .sink_map_err(io::Error::other);
        let joined =
            tokio::io::join(StreamReader::new(incoming), SinkWriter::new(CopyToBytes::new(outgoing)));
        let mut config = yamux::Config::default();
        config.set_max_num_streams(32);
        config.set_max_connection_receive_window(Some(16 * 1024 * 1024));
        let mut connection = yamux::Connection::new(Box::pin(joined.compat()), config, yamux::Mode::Server);
        let (streams, mut channels) = mpsc::channel(64);
        let (open_stream, mut opens) = mpsc::channel::<()>(1);
        let frozen = Arc::new(Notify::new());
        let freeze = frozen.clone();
        let driver = tokio::spawn(async move {
            let drive = async {
                let mut own = Vec::new();
                while let Some(Ok(stream)) = poll_fn(|cx| {
                    if let Poll::Ready(Some(())) = opens.poll_recv(cx)
                        && let Poll::Ready(Ok(mut stream)) = connection.poll_new_outbound(cx)
                    {
                        // Invisible until something is written.
                        let _ = std::pin::Pin::new(&mut stream).poll_write(cx, b"x");
                        own.push(stream);
                    }
                    connection.poll_next_inbound(cx)
                })
                .await
                {
                    streams.send(stream.compat()).await.unwrap();
                }
            };
            tokio::select! {
                () = freeze.notified() => std::future::pending::<()>().await,
                () = drive => {}
            }
        });
        let control = channels.recv().await.unwrap();
        Self { binding, control, control_input: BytesMut::new(), channels, frozen, driver, open_stream }
    }

    /// The next message of the broker on the control stream; `None` at its end.
    pub async fn hear(&mut self) -> Option<ToDevice> {
        loop {
            if let Some(message) = control::decode(&mut self.control_input).unwrap() {
                return Some(message);
            }
            if !matches!(self.control.read_buf(&mut self.control_input).await, Ok(1..)) {
                return None;
            }
        }
    }

    pub async fn say(&mut self, message: &FromDevice) {
        let mut out = BytesMut::new();
        control::encode(message, &mut out).unwrap();
        self.say_bytes(&out).await;
    }

    pub async fn say_bytes(&mut self, bytes: &[u8]) {
        self.control.write_all(bytes).await.unwrap();
        self.control.flush().await.unwrap();
    }

    /// Stops everything but leaves the connection as it is: what a lost network looks like.
    pub fn freeze(&self) {
        self.frozen.notify_one();
    }

    pub async fn open_a_stream(&self) {
        self.open_stream.send(()).await.unwrap();
    }

    /// The next channel, with the request that the broker signed.
    pub async fn accept(&mut self) -> (Channel, Open) {
        let mut channel = Channel { stream: self.channels.recv().await.unwrap(), input: BytesMut::new() };
        let Some(Frame::Open(signed)) = channel.hear().await else { panic!("no open frame") };
        let open = Open::open_with(&signed, session_key().public_key()).unwrap();
        (channel, open)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The device's end of a channel.
pub(super) struct Channel {
    pub stream: Stream,
    input: BytesMut,
}

impl Channel {
    pub async fn hear(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.input).unwrap() {
                return Some(frame);
            }
            if !matches!(self.stream.read_buf(&mut self.input).await, Ok(1..)) {
                return None;
            }
        }
    }

    pub async fn say(&mut self, frame: &Frame) {
        let mut out = BytesMut::new();
        frame.encode(&mut out).unwrap();
        self.say_bytes(&out).await;
    }

    pub async fn say_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }
}

pub(super) fn session_key() -> PrivateKey {
    key(77)
}

pub(super) fn exec(channel: u32) -> OpenAsk {
    OpenAsk {
        session: "S-00000001".parse().unwrap(),
        channel,
        login: "diag".parse().unwrap(),
        certificate: "certificate".to_owned(),
        kind: OpenKind::Exec { command: Octets(b"cat".to_vec()), pty: None },
        env: vec![],
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The accept loop in small.
async fn serve(server: Arc<TunnelServer>) -> SocketAddr {
    let made = rcgen::generate_simple_self_signed(vec!["broker.example".to_owned()]).unwrap();
    let private = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], private)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let routes = Router::new()
        .route(TUNNEL_PATH, axum::routing::any(accept::tunnel))
        .route(ENROL_PATH, axum::routing::any(accept::enrol))
        .with_state(server);
    tokio::spawn(async move {
        while let Ok((tcp, peer)) = listener.accept().await {
            let (acceptor, routes) = (acceptor.clone(), routes.clone());
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let connection = tls.get_ref().1;
                let facts = TlsFacts {
                    exporter_tunnel: connection
                        .export_keying_material([0; 32], EXPORTER_LABEL, None)
                        .unwrap(),
                    group: format!("{:?}", connection.negotiated_key_exchange_group().unwrap().name()),
                    version: "TLSv1_3".to_owned(),
                    peer,
                };
                let service = hyper_util::service::TowerToHyperService::new(routes.layer(Extension(facts)));
                let io = hyper_util::rt::TokioIo::new(tls);
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(io, service)
                    .with_upgrades()
                    .await;
            });
        }
    });
    addr
}

/// As on a device: any certificate, but its holder must have made the handshake.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &rustls_pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
