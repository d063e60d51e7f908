//! The accept loop, and who may wait at it.

use super::connection::{Place, serve};
use super::door::{Door, HostIdentity};
use super::gate::Gate;
use super::limits::Limits;
use super::ssh;
use super::ticket::{self, Announced, Promise, Tickets};
use crate::waiting::{Full, Slot, Waiting};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, info, info_span, warn};

/// Bytes read from a client at once.
const READ: usize = 32 * 1024;

/// What a gateway is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The gateway's own host key and certificate.
    pub identity: HostIdentity,
    /// Devices are reached as `<id>.<suffix>` or `<id>`.
    pub suffix: String,
    pub limits: Limits,
}

/// What every connection of a gateway shares.
pub struct Inside<D> {
    pub door: Arc<D>,
    pub gate: Gate,
    pub limits: Limits,
    pub stopping: CancellationToken,
}

/// A running gateway. Dropping it leaves it running; [`Gateway::stop`] ends it.
#[derive(Debug)]
pub struct Gateway<D: Door> {
    address: SocketAddr,
    entrance: Entrance<D>,
    accepting: JoinHandle<()>,
}

impl<D: Door> Gateway<D> {
    /// Serves engineers on `listener` until [`Gateway::stop`].
    pub fn serve(listener: TcpListener, settings: Settings, door: Arc<D>) -> io::Result<Self> {
        let Settings { identity, suffix, limits } = settings;
        let address = listener.local_addr()?;
        let stopping = CancellationToken::new();
        let gate = Gate { suffix: suffix.to_ascii_lowercase(), command: limits.command };
        let config = Arc::new(ssh::config(identity, &limits));
        let inside = Arc::new(Inside { door, gate, limits, stopping });
        let entrance = Entrance(Arc::new(Hall {
            inside,
            waiting: Waiting::new(limits.unproven),
            connections: Mutex::default(),
            accepted: AtomicU64::new(0),
            tickets: Tickets::default(),
        }));
        let accepting = tokio::spawn(accept(listener, config, entrance.clone()));
        Ok(Self { address, entrance, accepting })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The way in for connections that the listener does not accept.
    pub fn entrance(&self) -> Entrance<D> {
        self.entrance.clone()
    }

    /// Accepts nobody any more, tells everybody who is connected, and waits until they are gone.
    pub async fn stop(self) {
        self.entrance.inside().stopping.cancel();
        if let Err(error) = self.accepting.await {
            warn!(%error, "the accept loop failed");
        }
    }
}

/// What every connection passes, whichever way it came: one count, one set of limits.
pub struct Entrance<D: Door>(Arc<Hall<D>>);

struct Hall<D: Door> {
    inside: Arc<Inside<D>>,
    waiting: Waiting,
    connections: Mutex<JoinSet<()>>,
    accepted: AtomicU64,
    tickets: Tickets<D::Person>,
}

impl<D: Door> Clone for Entrance<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Door> std::fmt::Debug for Entrance<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entrance")
    }
}

impl<D: Door> Entrance<D> {
    pub(super) fn inside(&self) -> &Arc<Inside<D>> {
        &self.0.inside
    }

    pub(super) fn tickets(&self) -> &Tickets<D::Person> {
        &self.0.tickets
    }

    fn connections(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more connection from there; or which limit is reached.
    pub(super) fn admit(&self, source: SocketAddr) -> Result<Slot, &'static str> {
        let limits = &self.inside().limits;
        let connected = {
            let mut connections = self.connections();
            while connections.try_join_next().is_some() {}
            connections.len()
        };
        // Those who wait have a bound of their own, and do not shut out anybody by this one.
        let proven = connected.saturating_sub(self.0.waiting.taken());
        let place = if proven >= limits.connections {
            Err("connections")
        } else {
            self.0.waiting.enter(source.ip()).map_err(Full::as_str)
        };
        if let Err(why) = &place {
            metrics::counter!("daypass_gateway_turned_away_total", "why" => *why).increment(1);
            debug!(%source, why, "turned away");
        }
        place
    }

    /// Runs one connection that was admitted; not any more once the gateway stops.
    pub(super) fn run(&self, source: SocketAddr, serving: impl Future<Output = ()> + Send + 'static) {
        let connection = self.0.accepted.fetch_add(1, Ordering::Relaxed) + 1;
        let span = info_span!("ssh", connection, %source);
        let counted = async move {
            metrics::counter!("daypass_gateway_connections_total").increment(1);
            let gauge = metrics::gauge!("daypass_gateway_connections");
            gauge.increment(1.0);
            serving.await;
            gauge.decrement(1.0);
        };
        let mut connections = self.connections();
        // Asked under the lock: what is in the set when it is taken, to wait for it, is all there is.
        if !self.inside().stopping.is_cancelled() {
            connections.spawn(counted.instrument(span));
        }
    }
}

/// What the listener accepted, from its first byte to its end.
async fn enter<D: Door>(
    entrance: Entrance<D>,
    mut stream: BufReader<TcpStream>,
    source: SocketAddr,
    config: Arc<russh::server::Config>,
    slot: Slot,
) {
    let inside = entrance.inside().clone();
    let (place, config) = {
        let beginning = async {
            let ahead = timeout_at(slot.since() + inside.limits.login_grace, ticket::ahead(&mut stream));
            match ahead.await {
                Ok(Ok(None)) => Some((Place::Front, config)),
                Ok(Ok(Some(ticket))) => {
                    let Promise { caller, device, identity, .. } =
                        entrance.redeem(&ticket, source, &mut stream).await?;
                    let config = Arc::new(ssh::config(identity, &inside.limits));
                    Some((Place::Direct { device, caller: caller.person, tls: None }, config))
                }
                Ok(Err(error)) => {
                    debug!(%error, "not an SSH client");
                    None
                }
                Err(_) => {
                    debug!("not a word in time");
                    None
                }
            }
        };
        let give_way = slot.give_way();
        let begun = tokio::select! {
            begun = beginning => begun,
            () = give_way.cancelled() => {
                debug!("gave way before a word");
                None
            }
            () = inside.stopping.cancelled() => None,
        };
        let Some(begun) = begun else { return };
        begun
    };
    serve(inside, Announced::new(stream), place, source, config, Some(slot)).await;
}

async fn accept<D: Door>(listener: TcpListener, config: Arc<russh::server::Config>, entrance: Entrance<D>) {
    let inside = entrance.inside().clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = inside.stopping.cancelled() => break,
        };
        let (stream, source) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: those who are connected go on.
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(slot) = entrance.admit(source) else { continue };
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%source, %error, "no TCP_NODELAY");
        }
        // The library reads a packet's length first and then the rest: two calls where one would do.
        let stream = BufReader::with_capacity(READ, stream);
        entrance.run(source, enter(entrance.clone(), stream, source, config.clone(), slot));
    }
    drop(listener);
    let mut connections = std::mem::take(&mut *entrance.connections());
    info!(connections = connections.len(), "the gateway is stopping");
    let all = async { while connections.join_next().await.is_some() {} };
    let patience = inside.limits.step + inside.limits.linger * 2;
    if tokio::time::timeout(patience, all).await.is_err() {
        warn!("connections did not end in time");
    }
    connections.abort_all();
}
