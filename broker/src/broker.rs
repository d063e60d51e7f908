//! The broker as a whole: what every part is made of, put together once.

use crate::audit::{self, Actor, Event, Kind};
use crate::certificate::{Keys, issue};
use crate::clock::Clock;
use crate::config::Config;
use crate::db::{Db, Tx};
use crate::device::{EvidenceSigner, HostCertifier, Trust, TrustError};
use crate::http::Problem;
use crate::login::limit::Strangers;
use crate::login::{Login, TokenKey, VerifiedPerson};
use crate::policy::{self, Action, Permission, Policies, PolicyErrors, PolicyStore, Resource, Subject};
use crate::recording::{self, Recordings};
use crate::session::Sessions;
use crate::tunnel::{self, TunnelServer, Tunnels};
use anyhow::Context as _;
use axum::extract::FromRef;
use daypass_protocol::ids::{DeviceId, RequestId};
use daypass_protocol::signed::Purpose;
use daypass_protocol::ssh_key::PublicKey;
use daypass_protocol::time::Timestamp;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a device's host certificate lives. The tunnel does not look at it: it is for a service port on
/// the device, which comes later, and its renewal with it.
const DEVICE_CERTIFICATE: Duration = Duration::from_hours(365 * 24);

#[derive(Debug)]
pub struct Broker {
    pub config: Config,
    pub db: Db,
    pub clock: Clock,
    pub keys: Arc<Keys>,
    pub policies: PolicyStore,
    pub login: Login,
    pub recordings: Recordings,
    pub sessions: Sessions,
    pub tunnels: Tunnels,
    pub tunnel_server: Arc<TunnelServer>,
    /// Ids of requests that changed, for whoever waits for an answer.
    pub changed_requests: broadcast::Sender<RequestId>,
    /// The SSH port that clients see, known once the gateway listens.
    pub ssh_port: std::sync::OnceLock<u16>,
    /// How many strangers whom the gateway refuses get into the audit log.
    pub strangers: Strangers,
    /// Everything that runs for sessions; waited for when the broker stops.
    pub tasks: TaskTracker,
    /// Cancelled when the broker is asked to stop.
    pub stopping: CancellationToken,
}

/// The broker, as it is handed around.
#[derive(Clone, Debug)]
pub struct Ctx(Arc<Broker>);

impl Deref for Ctx {
    type Target = Broker;
    fn deref(&self) -> &Broker {
        &self.0
    }
}

impl FromRef<Ctx> for Login {
    fn from_ref(ctx: &Ctx) -> Self {
        ctx.login.clone()
    }
}

impl FromRef<Ctx> for Arc<TunnelServer> {
    fn from_ref(ctx: &Ctx) -> Self {
        ctx.tunnel_server.clone()
    }
}

impl Ctx {
    /// Puts the broker together: database, keys, policies, and what an earlier run left behind.
    pub async fn open(config: Config, clock: Clock) -> anyhow::Result<Self> {
        let keys = Keys::load(&config.keys_dir, &config.key_passphrase)
            .context("the broker's keys; `daypass-broker init` makes them")?;
        let policies = Policies::load(&config.policies_dir).map_err(|errors: PolicyErrors| {
            anyhow::anyhow!("the policies in {} do not load:\n{errors}", config.policies_dir.display())
        })?;
        Self::assemble(config, clock, keys, policies).await
    }

    /// As [`Ctx::open`], with keys and policies at hand.
    pub async fn assemble(
        config: Config,
        clock: Clock,
        keys: Keys,
        policies: Policies,
    ) -> anyhow::Result<Self> {
        let db = Db::open(&config.database_url).await?;
        keys.register(&db, clock.now()).await?;
        let keys = Arc::new(keys);

        let recordings = Recordings::new(
            db.clone(),
            clock.clone(),
            config.recordings.dir.clone(),
            recording::Limits {
                min_free_bytes: config.recordings.min_free_bytes,
                total_bytes: config.recordings.total_bytes,
                ..recording::Limits::default()
            },
        );
        let sessions_left = crate::session::store::recover(&db, clock.now()).await?;
        let recordings_left = recordings.recover().await?;
        if sessions_left + recordings_left > 0 {
            tracing::warn!(
                sessions = sessions_left,
                recordings = recordings_left,
                "the broker was not shut down in order; what was open is marked interrupted"
            );
        }

        let token_key = TokenKey::from_seed(&keys.token_seed());
        let login =
            Login::new(db.clone(), clock.clone(), config.login.clone(), config.https.url.clone(), token_key)?;
        let trust = Trust { evidence: keys.clone(), cas: keys.clone() };
        let sessions = Sessions::default();
        let limits = tunnel::Limits { hellos: config.https.limits.unanswered, ..tunnel::Limits::default() };
        let tunnel_server = TunnelServer::new(db.clone(), clock.clone(), trust, limits, sessions.clone());
        let tunnels = tunnel_server.tunnels().clone();

        let started = Event::new(Kind::BrokerStarted, Actor::Broker).detail(serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"), "policy_set": policies.hash(),
        }));
        audit::note(&db, clock.now(), started).await?;

        Ok(Self(Arc::new(Broker {
            config,
            db,
            clock,
            keys,
            policies: PolicyStore::new(policies),
            login,
            recordings,
            sessions,
            tunnels,
            tunnel_server,
            changed_requests: broadcast::channel(1024).0,
            ssh_port: std::sync::OnceLock::new(),
            strangers: Strangers::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        })))
    }

    /// Asks policy whether somebody may do something. A refusal is an audit event and a 403 that says
    /// which policy refuses, in its own words.
    pub async fn authorize(
        &self,
        person: &VerifiedPerson,
        action: Action,
        resource: &Resource<'_>,
    ) -> Result<(), Problem> {
        let now = self.clock.now();
        match policy::may(&self.policies.current(), &Subject::from(person), action, resource, now) {
            Permission::Permitted { .. } => Ok(()),
            Permission::Refused(refusal) => {
                let event = Event::new(Kind::ActionRefused, person.actor()).detail(serde_json::json!({
                    "action": action.as_str(), "reason": refusal.reason, "policies": refusal.policies,
                    "cause": refusal.cause,
                }));
                audit::note(&self.db, now, event).await?;
                Err(Problem::forbidden("policy", refusal.reason))
            }
        }
    }

    /// Whether somebody may, for choosing what a list shows: nothing is noted.
    pub fn permits(&self, person: &VerifiedPerson, action: Action, resource: &Resource<'_>) -> bool {
        let now = self.clock.now();
        policy::may(&self.policies.current(), &Subject::from(person), action, resource, now).is_permitted()
    }

    /// Tells everybody who waits for it that a request has changed.
    pub fn request_changed(&self, id: &RequestId) {
        // Nobody waiting is no error.
        let _ = self.changed_requests.send(id.clone());
    }

    /// Host and port of the gateway, as clients reach it.
    pub fn ssh_address(&self) -> (String, u16) {
        let port = match self.config.ssh.port {
            0 => self.ssh_port.get().copied().unwrap_or_else(|| self.config.ssh.listen.port()),
            port => port,
        };
        (self.config.ssh.host.clone(), port)
    }
}

impl EvidenceSigner for Keys {
    fn sign(&self, purpose: Purpose, message: &[u8]) -> Result<String, TrustError> {
        Ok(self.evidence.statement(purpose, message)?)
    }

    fn public_keys(&self) -> Vec<PublicKey> {
        vec![self.evidence.public_key().clone()]
    }
}

#[async_trait::async_trait]
impl HostCertifier for Keys {
    async fn host_certificate(
        &self,
        tx: &mut Tx,
        device: &DeviceId,
        key: &PublicKey,
        now: Timestamp,
    ) -> Result<String, TrustError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| TrustError::Certificate(error);
        let names = vec![device.to_string()];
        // The caller's own event, of the enrolment, is what it commits with.
        let (certificate, _recorded) =
            issue::host(tx, self, names, Some(device), key, now, now + DEVICE_CERTIFICATE)
                .await
                .map_err(|error| failed(Box::new(error)))?;
        certificate.to_openssh().map_err(|error| failed(Box::new(error)))
    }

    fn user_cas(&self) -> Vec<PublicKey> {
        vec![self.user.public_key().clone()]
    }
}
