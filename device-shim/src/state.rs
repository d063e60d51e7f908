//! The state directory: everything a device holds between two starts.
//!
//! | file | |
//! |---|---|
//! | `device_key` | the device's private key, OpenSSH PEM, mode 0600, born here |
//! | `identity.json` | who this device is: written last when it enrols, so its presence means enrolled |
//! | `trust.json` | the signed trust bundle, and the keys that were pinned when it was accepted |
//! | `clock.json` | the highest time that was proven |
//! | `lock` | held while a shim runs |
//! | `retired` | this device left its fleet; nothing else is left |
//!
//! Every file is written to a temporary name, synced, renamed, and the directory synced. A file that does
//! not read is an error and stays as it is: minting a new identity would hide the damage, or an attack.

use daypass_protocol::ids::DeviceId;
use daypass_protocol::signed::SignedText;
use daypass_protocol::ssh_key::private::Ed25519Keypair;
use daypass_protocol::ssh_key::{LineEnding, PrivateKey};
use daypass_protocol::time::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{}: {why}", path.display())]
    Io { path: PathBuf, why: io::Error },
    #[error("{} is damaged: {why}. Restore it from a copy, or empty the directory and enrol again", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{} can be read by others than its owner (mode {mode:o}); a device key must be 0600", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("this device is not enrolled: there is no {}. Run daypass-shim enrol", path.display())]
    NotEnrolled { path: PathBuf },
    #[error("another daypass-shim runs on {}", path.display())]
    Locked { path: PathBuf },
    #[error("no randomness for a new key: {0}")]
    Random(String),
}

/// Who this device is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    pub v: u32,
    pub device: DeviceId,
    pub serial_number: String,
    pub broker_url: String,
    /// One-line OpenSSH host certificate over the device key.
    pub host_certificate: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustRecord {
    pub v: u32,
    /// The broker keys that were pinned when `bundle` was accepted; one of them signed it.
    pub signers: Vec<String>,
    pub bundle: SignedText,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockRecord {
    v: u32,
    time: Timestamp,
}

/// Largest state file that is read: a bundle with all the revocations it may hold fits twice.
const MAX_FILE: u64 = 1024 * 1024;

#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

/// Held while a shim runs on a state directory.
#[derive(Debug)]
pub struct StateLock(#[expect(dead_code, reason = "the lock is held by being alive")] Flock<File>);

impl StateDir {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes the directory, for its owner only.
    pub fn create(&self) -> Result<(), StateError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .map_err(|why| StateError::Io { path: self.0.clone(), why })
    }

    /// Keeps a second shim off this directory: two would be taken for a clone of the device.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let path = self.file("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|why| StateError::Io { path: path.clone(), why })?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(StateLock(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(StateError::Locked { path }),
            Err((_, errno)) => Err(StateError::Io { path, why: errno.into() }),
        }
    }

    pub fn is_enrolled(&self) -> bool {
        self.file("identity.json").exists()
    }

    pub fn is_retired(&self) -> bool {
        self.file("retired").exists()
    }

    /// The device key of an enrolled device.
    pub fn device_key(&self) -> Result<PrivateKey, StateError> {
        let path = self.file("device_key");
        let mode = fs::metadata(&path)
            .map_err(|why| StateError::Io { path: path.clone(), why })?
            .permissions()
            .mode()
            & 0o777;
        if mode & 0o077 != 0 {
            return Err(StateError::Exposed { path, mode });
        }
        let pem = self.read("device_key")?;
        PrivateKey::from_openssh(&pem).map_err(|error| StateError::Damaged { path, why: error.to_string() })
    }

    /// The key to enrol with. One that an earlier attempt left is used again, so that a lost answer can be
    /// repeated; one that does not read is an error.
    pub fn key_to_enrol(&self) -> Result<PrivateKey, StateError> {
        if self.file("device_key").exists() {
            return self.device_key();
        }
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| StateError::Random(error.to_string()))?;
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
        let pem = key.to_openssh(LineEnding::LF).map_err(|error| StateError::Random(error.to_string()))?;
        self.write("device_key", pem.as_bytes())?;
        Ok(key)
    }

    pub fn identity(&self) -> Result<Identity, StateError> {
        if !self.is_enrolled() {
            return Err(StateError::NotEnrolled { path: self.file("identity.json") });
        }
        self.read_json("identity.json")
    }

    pub fn trust(&self) -> Result<TrustRecord, StateError> {
        self.read_json("trust.json")
    }

    /// The highest proven time; the epoch when none was stored yet.
    pub fn time(&self) -> Result<Timestamp, StateError> {
        if !self.file("clock.json").exists() {
            return Ok(Timestamp(0));
        }
        Ok(self.read_json::<ClockRecord>("clock.json")?.time)
    }

    pub fn store_identity(&self, identity: &Identity) -> Result<(), StateError> {
        self.write_json("identity.json", identity)
    }

    pub fn store_trust(&self, record: &TrustRecord) -> Result<(), StateError> {
        self.write_json("trust.json", record)
    }

    pub fn store_time(&self, time: Timestamp) -> Result<(), StateError> {
        self.write_json("clock.json", &ClockRecord { v: 1, time })
    }

    /// A file that tells why nothing else is here any more.
    fn mark_retired(&self, reason: &str) -> Result<(), StateError> {
        self.write("retired", reason.as_bytes())
    }

    /// The device left its fleet. The key goes first, overwritten: flash may keep old blocks, but nothing
    /// that reads files finds it.
    pub fn wipe(&self, reason: &str) -> Result<(), StateError> {
        let key = self.file("device_key");
        if let Ok(meta) = fs::metadata(&key) {
            let zeros = vec![0; usize::try_from(meta.len()).unwrap_or(4096).min(64 * 1024)];
            let overwrite = || {
                let mut file = OpenOptions::new().write(true).open(&key)?;
                file.write_all(&zeros)?;
                file.sync_all()
            };
            overwrite().map_err(|why| StateError::Io { path: key.clone(), why })?;
        }
        for name in ["device_key", "trust.json", "clock.json", "identity.json"] {
            let path = self.file(name);
            match fs::remove_file(&path) {
                Err(why) if why.kind() != io::ErrorKind::NotFound => {
                    return Err(StateError::Io { path, why });
                }
                _ => {}
            }
        }
        self.mark_retired(reason)
    }

    /// An enrolment starts a new life.
    pub fn forget_retirement(&self) -> Result<(), StateError> {
        let path = self.file("retired");
        match fs::remove_file(&path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(StateError::Io { path, why }),
            _ => Ok(()),
        }
    }

    fn read(&self, name: &str) -> Result<String, StateError> {
        let path = self.file(name);
        let io = |why| StateError::Io { path: path.clone(), why };
        let file = File::open(&path).map_err(io)?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io)?;
        let damaged = |why: &str| StateError::Damaged { path: path.clone(), why: why.to_owned() };
        if bytes.len() as u64 > MAX_FILE {
            return Err(damaged("it is larger than any such file"));
        }
        if bytes.is_empty() {
            return Err(damaged("it is empty"));
        }
        String::from_utf8(bytes).map_err(|_| damaged("it is not text"))
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T, StateError> {
        serde_json::from_str(&self.read(name)?)
            .map_err(|error| StateError::Damaged { path: self.file(name), why: error.to_string() })
    }

    fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let mut text = serde_json::to_vec_pretty(value)
            .map_err(|error| StateError::Damaged { path: self.file(name), why: error.to_string() })?;
        text.push(b'\n');
        self.write(name, &text)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.file(name);
        let temp = self.file(&format!("{name}.new"));
        let write = || {
            // A temporary file of a crash before has no value and may have another mode.
            match fs::remove_file(&temp) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temp)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temp, &path)?;
            File::open(&self.0)?.sync_all()
        };
        write().map_err(|why| StateError::Io { path, why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> (tempfile::TempDir, StateDir) {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::new(temp.path().join("state"));
        state.create().unwrap();
        (temp, state)
    }

    #[test]
    fn the_device_key_is_born_once_and_for_its_owner_only() {
        let (_temp, state) = dir();
        let key = state.key_to_enrol().unwrap();
        assert_eq!(state.key_to_enrol().unwrap().public_key(), key.public_key());
        let path = state.path().join("device_key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(state.device_key(), Err(StateError::Exposed { .. })));
    }

    #[test]
    fn a_damaged_file_is_an_error_and_never_a_new_identity() {
        let (_temp, state) = dir();
        state.key_to_enrol().unwrap();
        let path = state.path().join("device_key");
        let whole = fs::read(&path).unwrap();
        for cut in [0, 1, whole.len() / 2, whole.len() - 20] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(matches!(state.key_to_enrol(), Err(StateError::Damaged { .. })), "{cut}");
            assert_eq!(fs::read(&path).unwrap().len(), cut, "it stays as it was found");
        }
        for name in ["identity.json", "trust.json", "clock.json"] {
            fs::write(state.path().join(name), "{\"v\":1,").unwrap();
        }
        assert!(matches!(state.identity(), Err(StateError::Damaged { .. })));
        assert!(matches!(state.trust(), Err(StateError::Damaged { .. })));
        assert!(matches!(state.time(), Err(StateError::Damaged { .. })));
    }

    #[test]
    fn a_crash_before_the_rename_leaves_the_old_file() {
        let (_temp, state) = dir();
        state.store_time(Timestamp(7)).unwrap();
        fs::write(state.path().join("clock.json.new"), "{\"v\":").unwrap();
        assert_eq!(state.time().unwrap(), Timestamp(7));
        state.store_time(Timestamp(8)).unwrap();
        assert_eq!(state.time().unwrap(), Timestamp(8));
    }

    #[test]
    fn a_second_shim_on_the_same_state_is_refused() {
        let (_temp, state) = dir();
        let held = state.lock().unwrap();
        assert!(matches!(state.lock(), Err(StateError::Locked { .. })));
        drop(held);
        assert!(state.lock().is_ok());
    }

    #[test]
    fn a_wiped_device_has_no_key_and_knows_that_it_was_retired() {
        let (_temp, state) = dir();
        state.key_to_enrol().unwrap();
        state.store_time(Timestamp(7)).unwrap();
        state.wipe("sold").unwrap();
        assert!(state.is_retired() && !state.is_enrolled());
        assert!(!state.path().join("device_key").exists());
        state.wipe("sold").unwrap();
    }
}
