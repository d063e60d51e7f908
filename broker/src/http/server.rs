//! The HTTPS port: TLS by rustls, HTTP by hyper, one accept loop with its limits.

use super::connection::TlsFacts;
use crate::config::Https;
use crate::waiting::{Bounds, Slot, Waiting, network};
use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use daypass_protocol::tunnel::EXPORTER_LABEL;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// An HTTP/2 connection on which nobody asked anything for so long is closed. HTTP/1 has `patience` for that.
const IDLE: Duration = Duration::from_mins(2);
/// How long an answer may take to begin, the request's body included. Longer than what a handler waits for people.
const ANSWER: Duration = Duration::from_mins(1);

/// The bounds of the port. A tunnel leaves this port's care once it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at the same time.
    pub connections: usize,
    /// Connections that have had no answer yet: TLS not begun or not finished, a request that does not end.
    pub unanswered: Bounds,
    /// For the TLS handshake, and for the head of each request.
    pub patience: Duration,
}

/// What one network may hold of all connections: so that nobody's take everybody's.
const SHARE: usize = 8;

/// How many connections each network holds.
#[derive(Clone, Debug, Default)]
struct Held(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of a network; given back when dropped.
struct Hold {
    held: Held,
    network: IpAddr,
}

impl Held {
    fn take(&self, source: IpAddr, most: usize) -> Option<Hold> {
        let network = network(source);
        let mut held = lock(&self.0);
        let count = held.entry(network).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Hold { held: self.clone(), network })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = lock(&self.held.0);
        if let Some(count) = held.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.network);
            }
        }
    }
}

/// The TLS side, which can be given a new certificate while it runs.
#[derive(Clone, Debug)]
pub struct Tls {
    current: Arc<RwLock<Arc<ServerConfig>>>,
    /// `SHA256:` and the hex digest of the certificate, as browsers show it.
    fingerprint: String,
    self_made: bool,
}

impl Tls {
    /// From the configured files; or, for loopback, from a certificate made here once and kept beside
    /// the keys.
    pub fn load(config: &Https, keys_dir: &Path) -> anyhow::Result<Self> {
        let (chain, key, self_made) = match &config.certificate {
            Some(files) => {
                (read(&files.certificate, "https.certificate")?, read(&files.key, "https.key")?, false)
            }
            None => {
                let (chain, key) = self_made(config, keys_dir)?;
                (chain, key, true)
            }
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&chain)
            .collect::<Result<_, _>>()
            .context("the HTTPS certificate does not read as PEM")?;
        let leaf = chain.first().context("the HTTPS certificate file has no certificate in it")?;
        let fingerprint = format!("SHA256:{}", hex::encode(Sha256::digest(leaf)));
        let key = PrivateKeyDer::from_pem_slice(&key).context("the HTTPS key does not read as PEM")?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .context("the HTTPS certificate and key do not fit each other")?;
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { current: Arc::new(RwLock::new(Arc::new(server))), fingerprint, self_made })
    }

    /// Takes another's certificate for every connection from now on.
    pub fn replace(&self, by: &Self) {
        let next = by.config();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
    }

    fn config(&self) -> Arc<ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub fn is_self_made(&self) -> bool {
        self.self_made
    }
}

fn read(path: &Path, what: &str) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{what}: {}", path.display()))
}

/// A certificate of our own making, for loopback: made at the first start, the same afterwards, so that
/// its fingerprint stays.
fn self_made(config: &Https, keys_dir: &Path) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let (chain, key) = (keys_dir.join("https.pem"), keys_dir.join("https.key"));
    if !chain.exists() {
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        names.extend(config.url.host_str().map(|host| host.trim_matches(['[', ']']).to_owned()));
        names.dedup();
        let made = rcgen::generate_simple_self_signed(names)?;
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&key)?;
        file.write_all(made.signing_key.serialize_pem().as_bytes())?;
        file.sync_all()?;
        std::fs::write(&chain, made.cert.pem())?;
    }
    Ok((read(&chain, "the self-made certificate")?, read(&key, "its key")?))
}

/// Serves until `stopping`, then lets requests finish for a moment.
pub async fn serve(
    listener: TcpListener,
    tls: Tls,
    router: Router,
    limits: Limits,
    stopping: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(limits.connections));
    let waiting = Waiting::new(limits.unanswered);
    let held = Held::default();
    // Who gives way is gone a moment later, and counts until then.
    let share = (limits.connections / SHARE).max(2 * limits.unanswered.per_source);
    let connections = tokio_util::task::TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stopping.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: wait for some to come free.
                tracing::error!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(hold) = held.take(peer.ip(), share) else {
            metrics::counter!("daypass_https_turned_away_total", "why" => "per-source").increment(1);
            tracing::debug!(%peer, "too many connections of one network; one was turned away");
            continue;
        };
        let slot = match waiting.enter(peer.ip()) {
            Ok(slot) => slot,
            Err(full) => {
                metrics::counter!("daypass_https_turned_away_total", "why" => full.as_str()).increment(1);
                continue;
            }
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            metrics::counter!("daypass_https_turned_away_total", "why" => "connections").increment(1);
            tracing::debug!(%peer, "too many connections; one was turned away");
            continue;
        };
        let (tls, router, stopping) = (tls.clone(), router.clone(), stopping.clone());
        connections.spawn(async move {
            let give_way = slot.give_way();
            let served = connection(stream, peer, &tls, router, slot, limits, stopping);
            let ended = tokio::select! {
                ended = served => ended,
                () = give_way.cancelled() => Err(anyhow::anyhow!("it gave way to somebody who came later")),
            };
            if let Err(error) = ended {
                tracing::debug!(%peer, error = format!("{error:#}"), "a connection ended badly");
            }
            drop((place, hold));
        });
    }
    connections.close();
    if tokio::time::timeout(Duration::from_secs(3), connections.wait()).await.is_err() {
        tracing::info!("some connections were still open when the broker stopped");
    }
}

/// What somebody on a connection has done so far.
struct Activity {
    /// Their place among those who wait, until their first answer.
    slot: Mutex<Option<Slot>>,
    asked: CancellationToken,
    /// Requests that were not answered yet, and when the last one was.
    open: AtomicUsize,
    last: Mutex<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Activity {
    fn new(slot: Slot) -> Self {
        Self {
            slot: Mutex::new(Some(slot)),
            asked: CancellationToken::new(),
            open: AtomicUsize::new(0),
            last: Mutex::new(Instant::now()),
        }
    }

    /// Answers one request.
    async fn answer(&self, router: Router, request: Request<Body>) -> Result<Response, Infallible> {
        self.asked.cancel();
        self.open.fetch_add(1, Ordering::AcqRel);
        let answered = tokio::time::timeout(ANSWER, router.oneshot(request)).await;
        self.open.fetch_sub(1, Ordering::AcqRel);
        *lock(&self.last) = Instant::now();
        drop(lock(&self.slot).take());
        answered.unwrap_or_else(|_| Ok(StatusCode::REQUEST_TIMEOUT.into_response()))
    }

    /// Waits until nobody has asked anything for [`IDLE`].
    async fn idle(&self) {
        loop {
            let until = *lock(&self.last) + IDLE;
            tokio::time::sleep_until(until.max(Instant::now() + Duration::from_secs(1))).await;
            if self.open.load(Ordering::Acquire) == 0 && lock(&self.last).elapsed() >= IDLE {
                return;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: &Tls,
    router: Router,
    slot: Slot,
    limits: Limits,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let patience = limits.patience;
    let acceptor = TlsAcceptor::from(tls.config());
    let stream =
        tokio::time::timeout(patience, acceptor.accept(stream)).await.context("TLS took too long")??;
    let facts = {
        let (_, session) = stream.get_ref();
        TlsFacts {
            exporter_tunnel: session.export_keying_material([0; 32], EXPORTER_LABEL, None)?,
            group: session
                .negotiated_key_exchange_group()
                .map_or_else(|| "none".to_owned(), |group| format!("{:?}", group.name())),
            version: session
                .protocol_version()
                .map_or_else(|| "none".to_owned(), |version| format!("{version:?}")),
            peer,
        }
    };
    let activity = Arc::new(Activity::new(slot));
    let answering = activity.clone();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(facts.clone());
        request.extensions_mut().insert(ConnectInfo(peer));
        let (activity, router) = (answering.clone(), router.clone());
        async move { activity.answer(router, request).await }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(patience);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(64)
        .keep_alive_interval(Duration::from_mins(1))
        .keep_alive_timeout(patience);
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served,
        // hyper's own deadline begins once it knows the version of HTTP, which silence never tells it.
        () = async {
            tokio::time::sleep(patience).await;
            if activity.asked.is_cancelled() {
                std::future::pending::<()>().await;
            }
        } => anyhow::bail!("nothing was asked in time"),
        () = async {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = activity.idle() => {}
            }
        } => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    served.map_err(|error| anyhow::anyhow!(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_holds_its_share_of_the_connections_and_no_more() {
        let held = Held::default();
        let take = |source: &str| held.take(source.parse().unwrap(), 2);
        let (first, _second) = (take("192.0.2.1").unwrap(), take("192.0.2.1").unwrap());
        assert!(take("::ffff:192.0.2.1").is_none(), "the same network");
        let other = take("2001:db8::1").unwrap();
        drop(first);
        let _third = take("192.0.2.1").unwrap();
        drop(other);
        assert_eq!(lock(&held.0).len(), 1, "who has left is not remembered");
    }
}
