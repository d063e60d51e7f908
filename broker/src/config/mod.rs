//! The configuration: one TOML file, read whole, every mistake reported at once.
//!
//! Secrets never stand in the file: they are read from a file that it names, or from the environment.

mod fields;
#[cfg(test)]
mod tests;

use crate::http::server as http;
use crate::login::{LoginConfig, LoginSettings};
use crate::policy::SessionLimits;
use crate::waiting::Bounds;
use fields::Fields;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use url::Url;
use zeroize::Zeroizing;

pub use fields::{Mistake, Mistakes};

/// The environment variable that holds the passphrase of the key files when no file does.
pub const KEY_PASSPHRASE: &str = "DAYPASS_KEY_PASSPHRASE";
/// The environment variable that holds the database's URL when the file has none.
pub const DATABASE_URL: &str = "DAYPASS_DATABASE_URL";

/// Where people, the CLI and devices connect.
#[derive(Clone, Debug)]
pub struct Https {
    pub listen: SocketAddr,
    /// As people and devices reach it, without a path: `https://access.example.com`.
    pub url: Url,
    /// PEM files; without them a certificate is made here, for loopback only.
    pub certificate: Option<CertificateFiles>,
    pub limits: http::Limits,
}

#[derive(Clone, Debug)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Where engineers' SSH clients connect.
#[derive(Clone, Debug)]
pub struct Ssh {
    pub listen: SocketAddr,
    /// Host name as clients write it; a principal of the gateway's host certificate.
    pub host: String,
    /// Port as clients see it; 0 means the port listened on.
    pub port: u16,
    /// Devices are called `<id>.<suffix>`.
    pub host_suffix: String,
    /// From a connection to a proven person.
    pub login_grace: Duration,
    /// Connections with a proven person, and those without one yet.
    pub connections: usize,
    pub unproven: Bounds,
}

#[derive(Clone, Debug)]
pub struct Recordings {
    pub dir: PathBuf,
    /// New sessions are refused with less free space than this on the folder's filesystem.
    pub min_free_bytes: u64,
    /// New sessions are refused while the recordings take more than this.
    pub total_bytes: Option<u64>,
    /// How long recordings are kept where no policy says; for ever without.
    pub keep: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
pub struct Requests {
    pub lapse_after: Duration,
    pub pending_per_person: i64,
}

#[derive(Clone, Copy, Debug)]
pub struct Sessions {
    /// How long an identity certificate lives; at most a working day.
    pub identity_lifetime: Duration,
    /// The most that the gateway lets one connection have.
    pub channels_per_session: u32,
    /// For every session; policies may set tighter ones.
    pub limits: SessionLimits,
    /// How long a session waits for a device whose connection is lost; with zero it ends at once.
    pub resume_grace: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug)]
pub struct Log {
    pub format: LogFormat,
    /// A filter of tracing-subscriber: `info,daypass_broker=debug`.
    pub filter: String,
}

/// A checked configuration.
#[derive(Clone)]
pub struct Config {
    pub https: Https,
    pub ssh: Ssh,
    pub database_url: Zeroizing<String>,
    pub keys_dir: PathBuf,
    pub key_passphrase: Zeroizing<String>,
    pub policies_dir: PathBuf,
    pub recordings: Recordings,
    pub requests: Requests,
    pub sessions: Sessions,
    pub log: Log,
    pub login: LoginSettings,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Neither the passphrase nor a database password is ever printed.
        f.debug_struct("Config").field("https", &self.https).field("ssh", &self.ssh).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not TOML: {why}")]
    Toml { path: PathBuf, why: String },
    #[error("{path}: {mistakes}")]
    Mistakes { path: PathBuf, mistakes: Mistakes },
}

impl Config {
    /// Reads and checks a file. Relative paths in it are relative to its folder.
    pub fn load(path: &Path, env: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let base = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, base, env).map_err(|error| match error {
            ParseError::Toml(why) => ConfigError::Toml { path: path.to_owned(), why },
            ParseError::Mistakes(mistakes) => ConfigError::Mistakes { path: path.to_owned(), mistakes },
        })
    }

    pub fn parse(text: &str, base: &Path, env: impl Fn(&str) -> Option<String>) -> Result<Self, ParseError> {
        let table: toml::Table =
            text.parse().map_err(|error: toml::de::Error| ParseError::Toml(error.to_string()))?;
        let mut fields = Fields::new(table, base);

        let data_dir = fields.path("data_dir");
        let in_data = |name: &str| data_dir.as_ref().map(|dir| dir.join(name));

        let listen = fields.parsed_or("https.listen", "127.0.0.1:8443");
        let url = fields.url("https.url");
        let https_limits = http::Limits {
            connections: fields.count_or("https.connections", 50_000, 16..=1_000_000),
            unanswered: Bounds {
                altogether: fields.count_or("https.unanswered", 2048, 16..=100_000),
                per_source: fields.count_or("https.unanswered_per_source", 1024, 1..=100_000),
            },
            patience: Duration::from_secs(fields.number_or("https.patience_s", 15, 1..=300)),
        };
        let certificate = match (fields.path_opt("https.certificate"), fields.path_opt("https.key")) {
            (Some(certificate), Some(key)) => Some(CertificateFiles { certificate, key }),
            (None, None) => {
                if listen.is_some_and(|listen: SocketAddr| !listen.ip().is_loopback()) {
                    fields.mistake(
                        "https.certificate",
                        "is needed: without one a certificate is made here, and that is for loopback only",
                    );
                }
                None
            }
            (Some(_), None) => {
                fields.mistake("https.key", "is needed beside https.certificate");
                None
            }
            (None, Some(_)) => {
                fields.mistake("https.certificate", "is needed beside https.key");
                None
            }
        };
        let ssh_listen = fields.parsed_or("ssh.listen", "127.0.0.1:2222");
        let ssh_host = fields
            .text_opt("ssh.host")
            .or_else(|| url.as_ref().and_then(|url: &Url| url.host_str()).map(str::to_owned));
        let ssh_port = fields.number_or("ssh.port", 0, 0..=65535);
        let login_grace_s = fields.number_or("ssh.login_grace_s", 20, 1..=600);
        let ssh_connections = fields.count_or("ssh.connections", 1000, 1..=100_000);
        let unproven = Bounds {
            altogether: fields.count_or("ssh.unproven", 512, 1..=100_000),
            per_source: fields.count_or("ssh.unproven_per_source", 16, 1..=100_000),
        };
        let host_suffix = fields.text_or("ssh.host_suffix", "daypass");
        if !host_suffix.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        }) {
            fields.mistake("ssh.host_suffix", "is not a host name: letters a-z, digits, - and dots");
        }

        let database_url = fields
            .text_opt("database.url")
            .or_else(|| env(DATABASE_URL))
            .or_else(|| in_data("daypass.db").map(|file| format!("sqlite:{}?mode=rwc", file.display())));
        if database_url
            .as_ref()
            .is_some_and(|url| !["sqlite:", "postgres:", "postgresql:"].iter().any(|s| url.starts_with(s)))
        {
            fields.mistake("database.url", "must start with sqlite: or postgres:");
        }
        let keys_dir = fields.path_opt("keys.dir").or_else(|| in_data("keys"));
        let key_passphrase = match fields.path_opt("keys.passphrase_file") {
            Some(path) => fields.secret_file("keys.passphrase_file", &path),
            None => env(KEY_PASSPHRASE).filter(|text| !text.is_empty()).map(Zeroizing::new).or_else(|| {
                fields.mistake(
                    "keys.passphrase_file",
                    &format!("is needed, or the environment variable {KEY_PASSPHRASE}"),
                );
                None
            }),
        };
        let policies_dir = fields.path("policies.dir");
        let recordings_dir = fields.path_opt("recordings.dir").or_else(|| in_data("recordings"));
        let min_free_bytes = fields.number_or("recordings.min_free_mib", 256, 0..=1 << 30) * (1 << 20);
        let total_mib = fields.number_or("recordings.total_mib", 0, 0..=1 << 40);
        let session_mib = fields.number_or("recordings.session_mib", 16 * 1024, 0..=1 << 30);
        let keep_days = fields.number_or("recordings.keep_days", 0, 0..=36_500);
        let lapse_s = fields.number_or("requests.lapse_after_s", 3600, 60..=7 * 86_400);
        let pending = fields.number_or("requests.pending_per_person", 20, 1..=1000);
        let identity_s = fields.number_or("sessions.identity_lifetime_s", 12 * 3600, 60..=24 * 3600);
        let channels = fields.number_or("sessions.channels_per_session", 20, 1..=30);
        let per_person = fields.number_or("sessions.per_person", 20, 1..=1000);
        let per_device = fields.number_or("sessions.per_device", 20, 1..=1000);
        let idle_s = fields.number_or("sessions.idle_timeout_s", 3600, 0..=24 * 3600);
        // 0 is without limit.
        let limited = |number: u64| (number > 0).then_some(number);
        let resume_grace_s = fields.number_or("sessions.resume_grace_s", 120, 0..=3600);
        let format = match fields.text_or("log.format", "text").as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                fields.mistake("log.format", &format!("is {other:?}; text or json"));
                LogFormat::Text
            }
        };
        let filter = fields.text_or("log.filter", "info");
        if let Err(error) = filter.parse::<tracing_subscriber::EnvFilter>() {
            fields.mistake("log.filter", &error.to_string());
        }

        let login = match fields.section("login") {
            None => {
                fields.mistake("login", "is needed: who signs people in");
                None
            }
            Some(section) => match section.try_into::<LoginConfig>() {
                Err(error) => {
                    fields.mistake("login", error.message());
                    None
                }
                Ok(mut login) => {
                    for path in [&mut login.client_secret_file, &mut login.ca_file].into_iter().flatten() {
                        *path = base.join(&*path);
                    }
                    match login.check(&env) {
                        Ok(settings) => Some(settings),
                        Err(faults) => {
                            for fault in faults {
                                fields.mistake(&format!("login.{}", fault.key), &fault.reason);
                            }
                            None
                        }
                    }
                }
            },
        };

        let mistakes = fields.finish();
        let config = || {
            Some(Self {
                https: Https { listen: listen?, url: url?, certificate, limits: https_limits },
                ssh: Ssh {
                    listen: ssh_listen?,
                    host: ssh_host?,
                    port: u16::try_from(ssh_port).ok()?,
                    host_suffix,
                    login_grace: Duration::from_secs(login_grace_s),
                    connections: ssh_connections,
                    unproven,
                },
                database_url: Zeroizing::new(database_url?),
                keys_dir: keys_dir?,
                key_passphrase: key_passphrase?,
                policies_dir: policies_dir?,
                recordings: Recordings {
                    dir: recordings_dir?,
                    min_free_bytes,
                    total_bytes: limited(total_mib).map(|mib| mib << 20),
                    keep: limited(keep_days).map(|days| Duration::from_hours(24 * days)),
                },
                requests: Requests {
                    lapse_after: Duration::from_secs(lapse_s),
                    pending_per_person: i64::try_from(pending).ok()?,
                },
                sessions: Sessions {
                    identity_lifetime: Duration::from_secs(identity_s),
                    channels_per_session: u32::try_from(channels).ok()?,
                    limits: SessionLimits {
                        idle: limited(idle_s).map(Duration::from_secs),
                        recording_bytes: limited(session_mib).map(|mib| mib << 20),
                        channels: u32::try_from(channels).ok(),
                        per_person: u32::try_from(per_person).ok(),
                        per_device: u32::try_from(per_device).ok(),
                        // Of how long recordings are kept, policies have the last word.
                        keep: None,
                    },
                    resume_grace: Duration::from_secs(resume_grace_s),
                },
                log: Log { format, filter },
                login: login?,
            })
        };
        match (mistakes.is_empty(), config()) {
            (true, Some(config)) => Ok(config),
            _ => Err(ParseError::Mistakes(mistakes)),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    #[error("{0}")]
    Toml(String),
    #[error("{0}")]
    Mistakes(Mistakes),
}
