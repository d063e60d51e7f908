//! Configuration: one TOML file, all of its errors reported at once.

use crate::tunnel::forward::Rules;
use daypass_protocol::ids::Login;
use daypass_protocol::target::SSH_PORT;
use daypass_protocol::tunnel::MAX_STREAMS;
use nix::unistd::{User, geteuid};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::{Table, Value};

pub const DEFAULT_PATH: &str = "/etc/daypass/device.toml";
pub const DEFAULT_STATE: &str = "/var/lib/daypass";

/// A whole, checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Instead of the address that the join token named.
    pub broker_url: Option<String>,
    pub state_dir: PathBuf,
    /// Which Unix user a login runs as. A login that is not listed is not served.
    pub logins: BTreeMap<Login, String>,
    /// Instead of the shell in the password file.
    pub shell: Option<PathBuf>,
    /// Instead of the places where systems have their sftp-server.
    pub sftp_server: Option<PathBuf>,
    pub proxy: Option<Proxy>,
    pub keepalive: Duration,
    pub reconnect_first: Duration,
    pub reconnect_max: Duration,
    /// How long a channel that lost its tunnel is kept for the next one; with zero it ends at once.
    pub resume_grace: Duration,
    pub max_channels: usize,
    /// The switch of the device's owner.
    pub remote_access: bool,
    /// Where forwards may lead, at most.
    pub forward: Rules,
    /// Where to note who came in.
    pub journal: Option<PathBuf>,
}

/// An HTTP proxy that takes CONNECT. `Debug` does not show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub host: String,
    pub port: u16,
    /// `user:password` for Basic authorization.
    pub userinfo: Option<String>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({}:{})", self.host, self.port)
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    pub path: PathBuf,
    pub errors: Vec<ConfigError>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub key: String,
    pub reason: String,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not usable:", self.path.display())?;
        for ConfigError { key, reason } in &self.errors {
            if key.is_empty() {
                write!(f, "\n  {reason}")?;
            } else {
                write!(f, "\n  {key}: {reason}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl Default for Config {
    fn default() -> Self {
        Self {
            broker_url: None,
            state_dir: DEFAULT_STATE.into(),
            logins: BTreeMap::new(),
            shell: None,
            sftp_server: None,
            proxy: None,
            keepalive: Duration::from_mins(4),
            reconnect_first: Duration::from_secs(1),
            reconnect_max: Duration::from_mins(5),
            resume_grace: Duration::from_mins(2),
            // As many as a tunnel carries: a session of the broker's default takes 20 alone.
            max_channels: MAX_STREAMS - 1,
            remote_access: true,
            forward: Rules::default(),
            journal: None,
        }
    }
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigErrors {
            path: path.to_owned(),
            errors: vec![ConfigError { key: String::new(), reason: error.to_string() }],
        })?;
        Self::parse(&text).map_err(|errors| ConfigErrors { path: path.to_owned(), errors })
    }

    pub fn parse(text: &str) -> Result<Self, Vec<ConfigError>> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            vec![ConfigError { key: String::new(), reason: error.to_string() }]
        })?;
        let mut errors = Errors(Vec::new());
        let mut config = Self::default();
        for (key, value) in &table {
            config.set(key, value, &mut errors);
        }
        if errors.0.is_empty() { Ok(config) } else { Err(errors.0) }
    }

    fn set(&mut self, key: &str, value: &Value, errors: &mut Errors) {
        match key {
            "broker_url" => {
                if let Some(url) = errors.text(key, value) {
                    match crate::link::Endpoint::parse(url) {
                        Ok(_) => self.broker_url = Some(url.to_owned()),
                        Err(error) => errors.add(key, error.to_string()),
                    }
                }
            }
            "state_dir" => self.state_dir = errors.path(key, value).unwrap_or_default(),
            "shell" => self.shell = errors.path(key, value),
            "sftp_server" => self.sftp_server = errors.path(key, value),
            "journal" => self.journal = errors.path(key, value),
            "proxy" => {
                self.proxy = errors.text(key, value).and_then(|text| match Proxy::parse(text) {
                    Ok(proxy) => Some(proxy),
                    Err(reason) => {
                        errors.add(key, reason);
                        None
                    }
                });
            }
            "keepalive_s" => self.keepalive = Duration::from_secs(errors.number(key, value, 1, 3600)),
            "reconnect_first_ms" => {
                self.reconnect_first = Duration::from_millis(errors.number(key, value, 10, 60_000));
            }
            "reconnect_max_s" => {
                self.reconnect_max = Duration::from_secs(errors.number(key, value, 1, 86_400));
            }
            "resume_grace_s" => self.resume_grace = Duration::from_secs(errors.number(key, value, 0, 3600)),
            "max_channels" => {
                // The control stream is one of the streams of a tunnel.
                let most = MAX_STREAMS as u64 - 1;
                self.max_channels = usize::try_from(errors.number(key, value, 1, most)).unwrap_or(1);
            }
            "remote_access" => match value.as_bool() {
                Some(on) => self.remote_access = on,
                None => errors.add(key, "must be true or false"),
            },
            "forward" => {
                self.forward.loopback = false;
                for item in errors.list(key, value) {
                    match item.as_str().map(str::parse) {
                        _ if item.as_str() == Some("loopback") => self.forward.loopback = true,
                        Some(Ok(target)) => self.forward.targets.push(target),
                        _ => errors.add(key, "must list \"loopback\" or HOST:PORT"),
                    }
                }
            }
            "ssh_ports" => {
                for item in errors.list(key, value) {
                    let port = u16::try_from(errors.number(key, item, 1, 65_535)).unwrap_or(SSH_PORT);
                    self.forward.ssh_ports.push(port);
                }
            }
            "logins" => match value.as_table() {
                Some(table) => {
                    for (login, user) in table {
                        self.set_login(login, user, errors);
                    }
                }
                None => errors.add(key, "must be a table: logins = { diag = \"diag\" }"),
            },
            _ => errors.add(key, "is not a setting"),
        }
    }

    fn set_login(&mut self, login: &str, user: &Value, errors: &mut Errors) {
        let key = format!("logins.{login}");
        let login = match login.parse::<Login>() {
            Ok(login) => login,
            Err(error) => return errors.add(&key, error.to_string()),
        };
        let Some(user) = errors.text(&key, user) else { return };
        let euid = geteuid();
        match User::from_name(user) {
            Ok(Some(found)) if !euid.is_root() && found.uid != euid => {
                errors.add(
                    &key,
                    format!("only root can serve another user; this program runs as user {euid}, not {user}"),
                );
            }
            Ok(Some(_)) => {
                self.logins.insert(login, user.to_owned());
            }
            Ok(None) => errors.add(&key, format!("there is no user {user:?} on this device")),
            Err(errno) => errors.add(&key, format!("user {user:?} cannot be looked up: {errno}")),
        }
    }
}

struct Errors(Vec<ConfigError>);

impl Errors {
    fn add(&mut self, key: &str, reason: impl Into<String>) {
        self.0.push(ConfigError { key: key.to_owned(), reason: reason.into() });
    }

    fn list<'a>(&mut self, key: &str, value: &'a Value) -> &'a [Value] {
        value.as_array().map_or_else(
            || {
                self.add(key, "must be a list");
                &[][..]
            },
            Vec::as_slice,
        )
    }

    fn text<'a>(&mut self, key: &str, value: &'a Value) -> Option<&'a str> {
        let text = value.as_str().filter(|text| !text.is_empty());
        if text.is_none() {
            self.add(key, "must be a text that is not empty");
        }
        text
    }

    fn path(&mut self, key: &str, value: &Value) -> Option<PathBuf> {
        let path = self.text(key, value).map(PathBuf::from)?;
        if !path.is_absolute() {
            self.add(key, "must be an absolute path");
            return None;
        }
        Some(path)
    }

    fn number(&mut self, key: &str, value: &Value, least: u64, most: u64) -> u64 {
        match value.as_integer().and_then(|n| u64::try_from(n).ok()).filter(|n| (least..=most).contains(n)) {
            Some(number) => number,
            None => {
                self.add(key, format!("must be a whole number from {least} to {most}"));
                least
            }
        }
    }
}

impl Proxy {
    /// `http://[user:password@]host:port`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("http://").ok_or("must start with http://")?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (userinfo, authority) = match rest.rsplit_once('@') {
            Some((userinfo, authority)) => (Some(userinfo.to_owned()), authority),
            None => (None, rest),
        };
        let (host, port) = authority.rsplit_once(':').ok_or("must name a port, as in http://proxy:3128")?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err("its host does not read".to_owned());
        }
        let port = port.parse().map_err(|_| "its port does not read".to_owned())?;
        Ok(Self { host: host.to_owned(), port, userinfo })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_reported_at_once_with_its_key() {
        let errors = Config::parse(
            "broker_url = \"http://x\"\nmax_channels = 99\nkeepalive_s = \"long\"\nspeed = 1\nstate_dir = \"here\"\n\
             proxy = \"socks://p\"\n[logins]\nDiag = \"x\"\nghost = \"no-such-user-here\"\n",
        )
        .unwrap_err();
        let mut keys: Vec<_> = errors.iter().map(|error| error.key.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "broker_url",
                "keepalive_s",
                "logins.Diag",
                "logins.ghost",
                "max_channels",
                "proxy",
                "speed",
                "state_dir"
            ]
        );
    }

    #[test]
    fn forwards_are_for_loopback_unless_it_says_otherwise() {
        assert!(Config::parse("").unwrap().forward.loopback);
        assert!(!Config::parse("forward = []").unwrap().forward.loopback);
        let config =
            Config::parse("forward = [\"loopback\", \"192.168.7.2:80\"]\nssh_ports = [2222]").unwrap();
        assert!(config.forward.loopback && config.forward.targets.len() == 1);
        assert_eq!(config.forward.ssh_ports, [22, 2222]);
        for bad in
            ["forward = true", "forward = [\"any\"]", "forward = [80]", "ssh_ports = [0]", "ssh_ports = 22"]
        {
            assert!(Config::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_ordinary_user_serves_that_user_only() {
        let me = User::from_uid(geteuid()).unwrap().unwrap().name;
        assert!(Config::parse(&format!("logins = {{ diag = {me:?} }}")).is_ok());
        if !geteuid().is_root() {
            let errors = Config::parse("logins = { diag = \"root\" }").unwrap_err();
            assert_eq!(errors[0].key, "logins.diag");
        }
    }

    #[test]
    fn a_proxy_reads_with_and_without_a_password_and_does_not_show_it() {
        let proxy = Proxy::parse("http://ana:s3cret@proxy.example:3128/").unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.example", 3128));
        assert!(!format!("{proxy:?}").contains("s3cret"));
        assert!(Proxy::parse("http://proxy").is_err());
        assert_eq!(Proxy::parse("http://[::1]:80").unwrap().host, "::1");
    }
}
