//! Five keys for five purposes, never one for two.

use super::signer::{KeyFileError, Signer};
use crate::audit::{self, Actor, Event, Kind};
use crate::db::Db;
use daypass_protocol::signed::fingerprint;
use daypass_protocol::ssh_key::PublicKey;
use daypass_protocol::time::Timestamp;
use sqlx::Row as _;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPurpose {
    /// Signs identity certificates; trusted only by the gateway.
    Identity,
    /// Signs session and on-site certificates; trusted only by devices.
    User,
    /// Signs host certificates; trusted by engineers' clients.
    Host,
    /// Signs challenges, trust bundles and audit checkpoints: the broker's identity.
    Evidence,
    /// Signs access tokens.
    Token,
}

impl KeyPurpose {
    pub const ALL: [Self; 5] = [Self::Identity, Self::User, Self::Host, Self::Evidence, Self::Token];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::User => "user",
            Self::Host => "host",
            Self::Evidence => "evidence",
            Self::Token => "token",
        }
    }

    fn file(self, dir: &Path) -> PathBuf {
        dir.join(match self {
            Self::Identity => "identity_ca",
            Self::User => "user_ca",
            Self::Host => "host_ca",
            Self::Evidence => "evidence_key",
            Self::Token => "token_key",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error(transparent)]
    File(#[from] KeyFileError),
    #[error("{0}: {1}")]
    Folder(PathBuf, std::io::Error),
    #[error(
        "the key folder holds {found} for {purpose}, and the database knows {known}; restore the folder that belongs to this database"
    )]
    Foreign { purpose: &'static str, found: String, known: String },
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// The broker's keys, opened.
#[derive(Debug)]
pub struct Keys {
    pub identity: Signer,
    pub user: Signer,
    pub host: Signer,
    pub evidence: Signer,
    token: Signer,
}

impl Keys {
    /// Makes all keys in `dir`, which is created with mode 0700. Fails where one is there already.
    pub fn create(dir: &Path, passphrase: &str) -> Result<Self, KeysError> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| KeysError::Folder(dir.to_owned(), error))?;
        Self::each(|purpose| {
            Signer::create(&purpose.file(dir), passphrase, &format!("daypass {}", purpose.as_str()))
        })
    }

    pub fn load(dir: &Path, passphrase: &str) -> Result<Self, KeysError> {
        Self::each(|purpose| Signer::load(&purpose.file(dir), passphrase))
    }

    /// Whether any key of ours is in `dir`.
    pub fn exist(dir: &Path) -> bool {
        KeyPurpose::ALL.iter().any(|purpose| purpose.file(dir).exists())
    }

    /// Keys in memory only, for tests.
    pub fn ephemeral() -> Result<Self, crate::random::NoRandomness> {
        Ok(Self {
            identity: Signer::ephemeral()?,
            user: Signer::ephemeral()?,
            host: Signer::ephemeral()?,
            evidence: Signer::ephemeral()?,
            token: Signer::ephemeral()?,
        })
    }

    fn each(make: impl Fn(KeyPurpose) -> Result<Signer, KeyFileError>) -> Result<Self, KeysError> {
        Ok(Self {
            identity: make(KeyPurpose::Identity)?,
            user: make(KeyPurpose::User)?,
            host: make(KeyPurpose::Host)?,
            evidence: make(KeyPurpose::Evidence)?,
            token: make(KeyPurpose::Token)?,
        })
    }

    pub fn get(&self, purpose: KeyPurpose) -> &Signer {
        match purpose {
            KeyPurpose::Identity => &self.identity,
            KeyPurpose::User => &self.user,
            KeyPurpose::Host => &self.host,
            KeyPurpose::Evidence => &self.evidence,
            KeyPurpose::Token => &self.token,
        }
    }

    /// What the JWT library signs access tokens with.
    pub fn token_seed(&self) -> Zeroizing<[u8; 32]> {
        self.token.seed()
    }

    /// One-line public keys of a purpose, as clients and devices are told.
    pub fn public_lines(&self, purpose: KeyPurpose) -> Vec<String> {
        vec![one_line(self.get(purpose).public_key())]
    }

    /// Enters the public halves into the inventory at first start, and afterwards refuses a key folder
    /// that belongs to another database.
    pub async fn register(&self, db: &Db, now: Timestamp) -> Result<(), KeysError> {
        for purpose in KeyPurpose::ALL {
            let key = self.get(purpose).public_key();
            let found = fingerprint(key);
            let mut tx = db.begin().await?;
            let known = sqlx::query("SELECT fingerprint FROM ca_key WHERE purpose = $1 AND state = 'active'")
                .bind(purpose.as_str())
                .fetch_optional(tx.conn())
                .await?;
            match known {
                Some(row) => {
                    let known: String = row.try_get(0)?;
                    if known != found {
                        return Err(KeysError::Foreign { purpose: purpose.as_str(), found, known });
                    }
                }
                None => {
                    sqlx::query(
                        "INSERT INTO ca_key (fingerprint, purpose, state, public_key, created_at)
                         VALUES ($1, $2, 'active', $3, $4)",
                    )
                    .bind(found.clone())
                    .bind(purpose.as_str())
                    .bind(one_line(key))
                    .bind(now.as_millis())
                    .execute(tx.conn())
                    .await?;
                    let event = Event::new(Kind::KeyCreated, Actor::Broker)
                        .detail(serde_json::json!({ "purpose": purpose.as_str(), "fingerprint": found }));
                    let recorded = audit::append(&mut tx, now, event).await?;
                    tx.commit(recorded).await?;
                }
            }
        }
        Ok(())
    }
}

/// A public key on one line, without the trailing newline. An Ed25519 or P-256 key always has one.
pub fn one_line(key: &PublicKey) -> String {
    key.to_openssh().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn a_key_folder_of_another_database_is_refused() {
        for db in testing::databases().await {
            let keys = Keys::ephemeral().unwrap();
            keys.register(&db, Timestamp(1)).await.unwrap();
            keys.register(&db, Timestamp(2)).await.unwrap();
            let other = Keys::ephemeral().unwrap();
            assert!(matches!(other.register(&db, Timestamp(3)).await, Err(KeysError::Foreign { .. })));
        }
    }

    #[test]
    fn no_two_purposes_share_a_key() {
        let keys = Keys::ephemeral().unwrap();
        let prints: std::collections::BTreeSet<_> =
            KeyPurpose::ALL.iter().map(|purpose| fingerprint(keys.get(*purpose).public_key())).collect();
        assert_eq!(prints.len(), 5);
    }
}
