//! A profile: one identity at one broker, in a directory of its own.
//!
//! ```text
//! profiles/NAME/              0700
//!   config.toml               broker, and how its certificate is trusted
//!   broker-ca.pem             with --ca-file: the authority, copied
//!   tokens.json               0600
//!   lock                      held while tokens or certificate are renewed
//!   id_ed25519, .pub, -cert.pub
//!   ssh_config, ssh_include, known_hosts     generated
//! ```

pub mod file;
pub mod tokens;

use crate::client::tls::Fingerprint;
use crate::failure::Failure;
use clap::ValueEnum;
use daypass_protocol::ids::Login;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A name that can stand in a path, in a host alias and in a command line as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileName(String);

#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a profile name is 1 to 32 of a-z, 0-9 and -, not starting with -")]
pub struct InvalidProfileName;

impl ProfileName {
    /// The profile of those who never name one.
    pub const USUAL: &str = "default";

    pub fn is_usual(&self) -> bool {
        self.0 == Self::USUAL
    }
}

impl FromStr for ProfileName {
    type Err = InvalidProfileName;

    fn from_str(text: &str) -> Result<Self, InvalidProfileName> {
        let fits = (1..=32).contains(&text.len())
            && !text.starts_with('-')
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if fits { Ok(Self(text.to_owned())) } else { Err(InvalidProfileName) }
    }
}

impl fmt::Display for ProfileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `config.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `https://broker.example.com`, without a path.
    pub broker: String,
    /// Trust exactly this certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// Trust `broker-ca.pem` and nothing else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_ca: bool,
    /// How the gateway is reached.
    #[serde(default, skip_serializing_if = "Over::is_usual")]
    pub over: Over,
    /// Login to ask for when nothing else says which.
    #[serde(default = "usual_login")]
    pub login: Login,
}

/// How the gateway is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// By its SSH port, straight to the device; as a jump host where that cannot be
    #[default]
    Ssh,
    /// By its SSH port as a jump host: SSH and nothing else on the wire, and no help but ssh's own
    Jump,
    /// By the broker's HTTPS port, which gets through firewalls and through the proxy that HTTPS_PROXY names
    Https,
}

impl Over {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

pub fn usual_login() -> Login {
    // Valid by the rule of `Login`; a test parses it.
    #[allow(clippy::expect_used, reason = "a constant")]
    "diag".parse().expect("diag is a login")
}

#[derive(Clone, Debug)]
pub struct Profile {
    pub name: ProfileName,
    dir: PathBuf,
}

impl Profile {
    /// The profile's directory; made when something is first written.
    pub fn locate(name: ProfileName, home: Option<&Path>) -> Result<Self, Failure> {
        let root = match home {
            Some(dir) => std::path::absolute(dir).map_err(Failure::file(dir))?,
            None => match std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from) {
                // The XDG specification: a relative path is invalid and to be ignored.
                Some(dir) if dir.is_absolute() => dir.join("daypass"),
                _ => std::env::home_dir().ok_or(Failure::NoHome)?.join(".config/daypass"),
            },
        };
        let dir = root.join("profiles").join(name.to_string());
        Ok(Self { name, dir })
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    #[cfg(test)]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Two levels up: what `--home` names.
    pub fn home(&self) -> &Path {
        self.dir.ancestors().nth(2).unwrap_or(&self.dir)
    }

    pub fn config(&self) -> Result<Option<Config>, Failure> {
        let path = self.path("config.toml");
        let Some(text) = file::read(&path)? else { return Ok(None) };
        match toml::from_str(&text) {
            Ok(config) => Ok(Some(config)),
            Err(error) => Err(Failure::Corrupt { path, why: error.message().to_owned() }),
        }
    }

    pub fn write_config(&self, config: &Config) -> Result<(), Failure> {
        let path = self.path("config.toml");
        let text = toml::to_string(config)
            .map_err(|e| Failure::Corrupt { path: path.clone(), why: e.to_string() })?;
        self.write("config.toml", text.as_bytes())
    }

    /// Writes a file that only its owner can read, all of it or nothing.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), Failure> {
        file::make_private_dir(&self.dir)?;
        file::write_atomically(&self.path(name), content, file::PRIVATE)
    }

    pub fn remove(&self, name: &str) -> Result<(), Failure> {
        let path = self.path(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Failure::File { path, error }),
            _ => Ok(()),
        }
    }

    /// Waits for, and holds, the right to renew tokens and certificate. Ends with the returned file.
    pub async fn lock(&self) -> Result<File, Failure> {
        file::make_private_dir(&self.dir)?;
        let path = self.path("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Failure::file(&path))?;
        // On a thread of its own, so that Ctrl-C is heard while another process has it.
        tokio::task::spawn_blocking(move || lock.lock().map(|()| lock))
            .await
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(Failure::file(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn profile(home: &Path) -> Profile {
        Profile::locate("work".parse().unwrap(), Some(home)).unwrap()
    }

    #[test]
    fn a_profile_name_cannot_leave_its_directory() {
        for bad in ["", "..", "a/b", "a.b", "-x", "A", "a b", "a\n", "ä"] {
            assert!(bad.parse::<ProfileName>().is_err(), "{bad:?}");
        }
        assert!("support-2".parse::<ProfileName>().is_ok());
    }

    #[test]
    fn a_profile_is_readable_by_its_owner_only() {
        let home = tempfile::tempdir().unwrap();
        let profile = profile(home.path());
        profile.write("tokens.json", b"{}").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(profile.dir()), 0o700);
        assert_eq!(mode(&profile.path("tokens.json")), 0o600);
    }

    #[test]
    fn a_directory_that_others_can_read_is_closed_again() {
        let home = tempfile::tempdir().unwrap();
        let profile = profile(home.path());
        std::fs::create_dir_all(profile.dir()).unwrap();
        std::fs::set_permissions(profile.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
        profile.write("x", b"").unwrap();
        assert_eq!(std::fs::metadata(profile.dir()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_config_reads_back_and_a_corrupt_one_is_an_error() {
        let home = tempfile::tempdir().unwrap();
        let profile = profile(home.path());
        assert!(profile.config().unwrap().is_none());
        let config = Config {
            broker: "https://b".to_owned(),
            fingerprint: Some(Fingerprint([7; 32])),
            own_ca: false,
            over: Over::Https,
            login: usual_login(),
        };
        profile.write_config(&config).unwrap();
        let read = profile.config().unwrap().unwrap();
        assert_eq!((read.broker, read.fingerprint), (config.broker, config.fingerprint));
        assert_eq!(read.over, Over::Https);
        profile.write("config.toml", b"broker = 3").unwrap();
        assert!(matches!(profile.config(), Err(Failure::Corrupt { .. })));
    }
}
