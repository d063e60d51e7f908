//! Everything one running shim shares: who it is, what it believes, what it may do.

use crate::clock::{self, Clock};
use crate::config::Config;
use crate::journal::Journal;
use crate::link::{Endpoint, LinkError};
use crate::session::process::Monitors;
use crate::state::{Identity, StateDir, StateError, StateLock};
use crate::trust::{Trust, TrustError};
use daypass_protocol::signed::SignedText;
use daypass_protocol::ssh_key::PrivateKey;
use daypass_protocol::time::Timestamp;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the stored trust bundle is not acceptable: {0}")]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the stored host certificate is not for the device key")]
    OtherKey,
}

/// One enrolled device, loaded and checked.
pub struct Device {
    pub config: Config,
    pub identity: Identity,
    pub key: PrivateKey,
    pub endpoint: Endpoint,
    pub clock: Clock,
    pub journal: Journal,
    pub monitors: Arc<Monitors>,
    state: StateDir,
    trust: Mutex<Trust>,
    _lock: StateLock,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.identity.device)
    }
}

impl Device {
    /// Loads what was stored. Any file that does not read is an error.
    pub fn load(config: Config) -> Result<Self, DeviceError> {
        let state = StateDir::new(&config.state_dir);
        let identity = state.identity()?;
        let lock = state.lock()?;
        let key = state.device_key()?;
        let certificate =
            daypass_protocol::ssh_key::Certificate::from_openssh(&identity.host_certificate).map_err(
                |why| StateError::Damaged { path: state.path().join("identity.json"), why: why.to_string() },
            )?;
        if certificate.public_key() != key.public_key().key_data() {
            return Err(DeviceError::OtherKey);
        }
        let trust = Trust::load(&state.trust()?, &identity.device)?;
        let clock = Clock::new(state.time()?, clock::boottime);
        let url = config.broker_url.as_ref().unwrap_or(&identity.broker_url);
        let endpoint = Endpoint::parse(url)?;
        let journal = Journal::new(config.journal.clone());
        Ok(Self {
            identity,
            key,
            endpoint,
            clock,
            journal,
            monitors: Arc::default(),
            state,
            trust: Mutex::new(trust),
            _lock: lock,
            config,
        })
    }

    pub fn trust(&self) -> MutexGuard<'_, Trust> {
        self.trust.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns a signed time and stores it, so that a power cut cannot take the device back before it.
    pub fn learn_time(&self, proven: Timestamp) -> Result<(), StateError> {
        self.clock.learn(proven);
        self.state.store_time(self.clock.now())
    }

    /// Takes a bundle from the broker, if it is acceptable; stored before it is believed.
    pub fn take_bundle(&self, signed: &SignedText) -> Result<u64, DeviceError> {
        let mut trust = self.trust();
        let (next, record) = trust.check(signed)?;
        if next.bundle.version > trust.version() {
            self.state.store_trust(&record)?;
            trust.take(next);
        }
        Ok(trust.version())
    }

    pub fn wipe(&self, reason: &str) -> Result<(), StateError> {
        self.state.wipe(reason)
    }
}
