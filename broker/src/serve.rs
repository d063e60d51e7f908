//! Running: listeners, background work, signals, and an orderly end.

use crate::audit::{self, Actor, Event, Kind, checkpoint};
use crate::broker::Ctx;
use crate::certificate::issue;
use crate::config::{Config, LogFormat};
use crate::gateway::{self, Gateway, HostIdentity};
use crate::http::server::{self, Tls};
use crate::http::{ops, router};
use crate::session::{End, GatewayDoor};
use crate::sweep;
use anyhow::Context as _;
use daypass_protocol::api::EndReason;
use daypass_protocol::signed::Purpose;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

/// How long the gateway's own host certificate lives. Its key is in memory only, and both are made anew at
/// each start: a broker is restarted within a year, if only to be updated.
const GATEWAY_CERTIFICATE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How long sessions get to be written down when the broker stops.
const LAST_WORDS: Duration = Duration::from_secs(15);

/// A broker that answers.
#[derive(Debug)]
pub struct Running {
    pub ctx: Ctx,
    pub https: SocketAddr,
    pub ssh: SocketAddr,
    pub tls: Tls,
    gateway: Gateway<GatewayDoor>,
    serving: Vec<JoinHandle<()>>,
}

/// Sends the log to stderr as the configuration says.
pub fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter: tracing_subscriber::EnvFilter = config.log.filter.parse()?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// Binds both ports and serves.
pub async fn start(ctx: Ctx) -> anyhow::Result<Running> {
    // One provider for every TLS connection of this process; set already when started twice in tests.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    ops::start_metrics()?;
    let config = &ctx.config;
    let tls = Tls::load(&config.https, &config.keys_dir)?;
    let https = TcpListener::bind(config.https.listen)
        .await
        .with_context(|| format!("https.listen: {}", config.https.listen))?;
    let ssh = TcpListener::bind(config.ssh.listen)
        .await
        .with_context(|| format!("ssh.listen: {}", config.ssh.listen))?;
    let (https_address, ssh_address) = (https.local_addr()?, ssh.local_addr()?);
    // Set once: a context is started once.
    let _ = ctx.ssh_port.set(ssh_address.port());

    let own = gateway_identity(&ctx).await?;
    let door = Arc::new(GatewayDoor::new(ctx.clone())?);
    let mut serving = Vec::new();
    serving.push(tokio::spawn(sweep::run(ctx.clone())));
    let (db, clock, stopping) = (ctx.db.clone(), ctx.clock.clone(), ctx.stopping.clone());
    let rhythm = checkpoint::Rhythm::default();
    serving.push(tokio::spawn(checkpoint::run(db, clock, signer(&ctx), rhythm, stopping)));
    let settings = gateway::Settings {
        identity: own,
        suffix: config.ssh.host_suffix.clone(),
        limits: gateway::Limits {
            channels: config.sessions.channels_per_session as usize,
            login_grace: config.ssh.login_grace,
            connections: config.ssh.connections,
            unproven: config.ssh.unproven,
            ..gateway::Limits::default()
        },
    };
    let gateway = Gateway::serve(ssh, settings, door)?;
    let routes = router::router(ctx.clone(), gateway.entrance());
    let limits = server::Limits { connections: connections(config), ..config.https.limits };
    serving.push(tokio::spawn(server::serve(https, tls.clone(), routes, limits, ctx.stopping.clone())));
    tracing::info!(https = %https_address, ssh = %ssh_address, "the broker answers");
    Ok(Running { ctx, https: https_address, ssh: ssh_address, tls, gateway, serving })
}

/// Asks for all the file descriptors that this process may have, and leaves those that are not for the HTTPS
/// port to the rest: out of descriptors, nothing could be recorded and nobody end a session.
fn connections(config: &Config) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let have = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files could not be raised");
            limit.current
        }
    };
    let Some(have) = have.and_then(|have| usize::try_from(have).ok()) else {
        return config.https.limits.connections;
    };
    // The SSH port's, and for each of its sessions the files of a recording; the database, the rest.
    let others = config.ssh.unproven.altogether + 4 * config.ssh.connections.min(have / 16) + 256;
    let left = have.saturating_sub(others).max(16);
    if left < config.https.limits.connections {
        tracing::info!(
            files = have,
            connections = left,
            "fewer connections than configured: this process may open no more files"
        );
    }
    left.min(config.https.limits.connections)
}

/// The gateway's own key lives as long as the process: what clients trust is the host CA.
async fn gateway_identity(ctx: &Ctx) -> anyhow::Result<HostIdentity> {
    let key = crate::certificate::signer::generate()?;
    let now = ctx.clock.now();
    let (host, _) = ctx.ssh_address();
    let mut names = vec![host];
    for name in ["localhost", "127.0.0.1", "::1"] {
        if ctx.config.ssh.listen.ip().is_loopback() && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    let mut tx = ctx.db.begin().await?;
    let (certificate, recorded) =
        issue::host(&mut tx, &ctx.keys, names, None, key.public_key(), now, now + GATEWAY_CERTIFICATE)
            .await?;
    tx.commit(recorded).await?;
    Ok(HostIdentity { key, certificate })
}

/// What signs checkpoints of the audit log.
fn signer(ctx: &Ctx) -> checkpoint::Sign {
    let keys = ctx.keys.clone();
    Arc::new(move |message| keys.evidence.statement(Purpose::Checkpoint, message).map_err(Into::into))
}

impl Running {
    /// Ends everything in order: sessions with their reason, recordings closed, a last checkpoint.
    pub async fn stop(self) {
        let ctx = self.ctx;
        tracing::info!("the broker stops");
        ctx.sessions.end_where(|_| true, &End::because(EndReason::BrokerStopped));
        ctx.tasks.close();
        if tokio::time::timeout(LAST_WORDS, ctx.tasks.wait()).await.is_err() {
            tracing::error!(
                "some sessions could not be ended in order; the next start marks them interrupted"
            );
        }
        self.gateway.stop().await;
        ctx.stopping.cancel();
        ctx.tunnel_server.close_all();
        for part in self.serving {
            if tokio::time::timeout(Duration::from_secs(5), part).await.is_err() {
                tracing::warn!("a part of the broker took too long to stop");
            }
        }
        if let Err(connections) = ctx.tunnel_server.settle(LAST_WORDS).await {
            tracing::error!(connections, "ends of devices' connections were not written down");
        }
        if tokio::time::timeout(LAST_WORDS, ctx.recordings.settle()).await.is_err() {
            tracing::warn!("a recording is still to be compressed; the next start does it");
        }
        let event = Event::new(Kind::BrokerStopped, Actor::Broker);
        if let Err(error) = audit::note(&ctx.db, ctx.clock.now(), event).await {
            tracing::error!(%error, "the end of the broker was not written down");
        }
        if let Err(error) = checkpoint::take(&ctx.db, ctx.clock.now(), &signer(&ctx)).await {
            tracing::error!(%error, "the end of the audit log was not signed");
        }
        ctx.db.close().await;
    }

    /// Waits for SIGTERM or SIGINT; SIGHUP reads policies and the HTTPS certificate again.
    pub async fn until_signal(&self) -> anyhow::Result<()> {
        let (mut term, mut int, mut hup) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        );
        loop {
            tokio::select! {
                _ = term.recv() => return Ok(()),
                _ = int.recv() => return Ok(()),
                _ = hup.recv() => {
                    sweep::reload_policies(&self.ctx).await;
                    match Tls::load(&self.ctx.config.https, &self.ctx.config.keys_dir) {
                        Ok(tls) => self.tls.replace(&tls),
                        Err(error) => tracing::error!(
                            error = format!("{error:#}"),
                            "the HTTPS certificate does not load; the one in use stays"
                        ),
                    }
                }
            }
        }
    }
}
