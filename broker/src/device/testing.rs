//! Keys in memory, for tests.

use super::trust::{EvidenceSigner, HostCertifier, Trust, TrustError};
use crate::audit::{self, Actor, Event, Kind};
use crate::db::{Db, Tx};
use daypass_protocol::api::{CraClass, ProductLine};
use daypass_protocol::ids::DeviceId;
use daypass_protocol::signed::{self, Purpose};
use daypass_protocol::ssh_key::certificate::{Builder, CertType};
use daypass_protocol::ssh_key::private::Ed25519Keypair;
use daypass_protocol::ssh_key::{PrivateKey, PublicKey};
use daypass_protocol::time::Timestamp;
use sqlx::Row as _;
use std::sync::{Arc, Mutex};

pub(crate) const NOW: Timestamp = Timestamp(1_795_345_512_000);

pub(crate) fn key(seed: u8) -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
}

/// The broker's evidence key is `key(200)`, its host CA `key(201)`, its user CA `key(202)`.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) user_cas: Mutex<Vec<PublicKey>>,
}

impl EvidenceSigner for Keys {
    fn sign(&self, purpose: Purpose, message: &[u8]) -> Result<String, TrustError> {
        Ok(signed::sign(&key(200), purpose, message)?)
    }

    fn public_keys(&self) -> Vec<PublicKey> {
        vec![key(200).public_key().clone()]
    }
}

#[async_trait::async_trait]
impl HostCertifier for Keys {
    async fn host_certificate(
        &self,
        _tx: &mut Tx,
        device: &DeviceId,
        device_key: &PublicKey,
        now: Timestamp,
    ) -> Result<String, TrustError> {
        let mut builder = Builder::new([7; 16], device_key, now.as_secs(), now.as_secs() + 3600).unwrap();
        builder.serial(1).unwrap().cert_type(CertType::Host).unwrap();
        builder.key_id("test").unwrap().valid_principal(device.as_str()).unwrap();
        Ok(builder.sign(&key(201)).unwrap().to_openssh().unwrap())
    }

    fn user_cas(&self) -> Vec<PublicKey> {
        self.user_cas.lock().unwrap().clone()
    }
}

pub(crate) fn trust() -> (Trust, Arc<Keys>) {
    let keys = Arc::new(Keys { user_cas: Mutex::new(vec![key(202).public_key().clone()]) });
    (Trust { evidence: keys.clone(), cas: keys.clone() }, keys)
}

pub(crate) async fn commit(mut tx: Tx) {
    let recorded = audit::append(&mut tx, NOW, Event::new(Kind::BrokerStarted, Actor::Broker)).await.unwrap();
    tx.commit(recorded).await.unwrap();
}

pub(crate) async fn add_line(db: &Db, name: &str) {
    let line = ProductLine {
        name: name.parse().unwrap(),
        title: name.to_owned(),
        cra_class: CraClass::Important1,
        support_end: "2031-12-31".to_owned(),
        forward_targets: vec![],
    };
    let mut tx = db.begin().await.unwrap();
    super::store::add_line(&mut tx, &line, NOW).await.unwrap();
    commit(tx).await;
}

/// How many events of a kind are in the audit log.
pub(crate) async fn events(db: &Db, kind: Kind) -> usize {
    let row = sqlx::query("SELECT COUNT(*) FROM audit_event WHERE kind = $1")
        .bind(kind.as_str())
        .fetch_one(db.pool())
        .await
        .unwrap();
    usize::try_from(row.get::<i64, _>(0)).unwrap()
}
