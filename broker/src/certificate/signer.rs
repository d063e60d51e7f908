//! The one file that sees private keys: encrypted key files, and what may be signed with them.

use daypass_protocol::signed::{self, Purpose, SignatureError};
use daypass_protocol::ssh_key::certificate::Builder;
use daypass_protocol::ssh_key::private::Ed25519Keypair;
use daypass_protocol::ssh_key::{Certificate, Cipher, Kdf, LineEnding, PrivateKey, PublicKey};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Cost of opening a key file: ssh-keygen(1)'s default of 24 rounds.
const BCRYPT_ROUNDS: u32 = 24;

#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: others than its owner can read it (mode {mode:o}); run: chmod 600 {path}")]
    Readable { path: PathBuf, mode: u32 },
    #[error("{path}: not an OpenSSH private key: {why}")]
    Malformed { path: PathBuf, why: String },
    #[error("{path}: the passphrase does not open this key")]
    Passphrase { path: PathBuf },
    #[error("{path}: is not encrypted; keys of the broker are never stored in the clear")]
    InTheClear { path: PathBuf },
    #[error("{path}: {algorithm} where Ed25519 is needed")]
    Algorithm { path: PathBuf, algorithm: String },
    #[error(transparent)]
    Randomness(#[from] crate::random::NoRandomness),
}

/// Signs with one key. The key itself cannot be had from it.
pub struct Signer {
    key: PrivateKey,
    seed: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", signed::fingerprint(self.key.public_key()))
    }
}

impl Signer {
    /// Makes a key and stores it encrypted (the openssh-key-v1 format of ssh-keygen(1), bcrypt KDF).
    /// Never writes over a file that is there.
    pub fn create(path: &Path, passphrase: &str, comment: &str) -> Result<Self, KeyFileError> {
        let io = |source| KeyFileError::Io { path: path.to_owned(), source };
        let malformed =
            |error: ssh_key::Error| KeyFileError::Malformed { path: path.to_owned(), why: error.to_string() };
        let mut key = generate()?;
        key.set_comment(comment);
        let kdf = Kdf::Bcrypt { salt: crate::random::bytes::<16>()?.to_vec(), rounds: BCRYPT_ROUNDS };
        let checkint = u32::from_be_bytes(crate::random::bytes()?);
        let encrypted = key.encrypt_with(Cipher::Aes256Ctr, kdf, checkint, passphrase).map_err(malformed)?;
        let pem = encrypted.to_openssh(LineEnding::LF).map_err(malformed)?;
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
        file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
        let public = key.public_key().to_openssh().map_err(malformed)?;
        fs::write(path.with_extension("pub"), format!("{public}\n")).map_err(io)?;
        Self::holding(key, path)
    }

    pub fn load(path: &Path, passphrase: &str) -> Result<Self, KeyFileError> {
        let io = |source| KeyFileError::Io { path: path.to_owned(), source };
        let mode = fs::metadata(path).map_err(io)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyFileError::Readable { path: path.to_owned(), mode });
        }
        let pem = Zeroizing::new(fs::read_to_string(path).map_err(io)?);
        let key = PrivateKey::from_openssh(pem.as_str())
            .map_err(|error| KeyFileError::Malformed { path: path.to_owned(), why: error.to_string() })?;
        if !key.is_encrypted() {
            return Err(KeyFileError::InTheClear { path: path.to_owned() });
        }
        let key = key.decrypt(passphrase).map_err(|_| KeyFileError::Passphrase { path: path.to_owned() })?;
        Self::holding(key, path)
    }

    fn holding(key: PrivateKey, path: &Path) -> Result<Self, KeyFileError> {
        match key.key_data().ed25519() {
            Some(pair) => Ok(Self { seed: Zeroizing::new(pair.private.to_bytes()), key }),
            None => {
                Err(KeyFileError::Algorithm { path: path.to_owned(), algorithm: key.algorithm().to_string() })
            }
        }
    }

    /// A key that lives in memory only: for the gateway's inner hops and for tests.
    pub fn ephemeral() -> Result<Self, crate::random::NoRandomness> {
        let seed = Zeroizing::new(crate::random::bytes::<32>()?);
        Ok(Self { key: PrivateKey::from(Ed25519Keypair::from_seed(&seed)), seed })
    }

    pub fn public_key(&self) -> &PublicKey {
        self.key.public_key()
    }

    /// Signs a statement (SSHSIG).
    pub fn statement(&self, purpose: Purpose, message: &[u8]) -> Result<String, SignatureError> {
        signed::sign(&self.key, purpose, message)
    }

    /// Signs a certificate.
    pub(super) fn certify(&self, builder: Builder) -> Result<Certificate, ssh_key::Error> {
        builder.sign(&self.key)
    }

    /// The seed of the token key, for the JWT library, which wants the key and not a signature. Only the
    /// token key is asked for it, and it signs nothing else.
    pub(super) fn seed(&self) -> Zeroizing<[u8; 32]> {
        self.seed.clone()
    }
}

/// A new Ed25519 key, from the operating system's randomness.
pub fn generate() -> Result<PrivateKey, crate::random::NoRandomness> {
    let seed = Zeroizing::new(crate::random::bytes::<32>()?);
    Ok(PrivateKey::from(Ed25519Keypair::from_seed(&seed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_opens_with_its_passphrase_only_and_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("user_ca");
        let made = Signer::create(&path, "correct horse", "user CA").unwrap();
        let loaded = Signer::load(&path, "correct horse").unwrap();
        assert_eq!(made.public_key().key_data(), loaded.public_key().key_data());
        assert!(matches!(Signer::load(&path, "wrong"), Err(KeyFileError::Passphrase { .. })));
        assert!(matches!(Signer::create(&path, "x", ""), Err(KeyFileError::Io { .. })));
    }

    #[test]
    fn a_key_file_that_others_can_read_or_that_is_not_encrypted_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("user_ca");
        Signer::create(&path, "p", "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Signer::load(&path, "p"), Err(KeyFileError::Readable { .. })));

        let plain = dir.path().join("plain");
        let pem = generate().unwrap().to_openssh(LineEnding::LF).unwrap();
        fs::write(&plain, pem.as_bytes()).unwrap();
        fs::set_permissions(&plain, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Signer::load(&plain, "p"), Err(KeyFileError::InTheClear { .. })));
    }
}
