//! Where a forward leads: one host and one port, spelled in one way only.
//!
//! A grant names targets, a certificate carries them and a device compares; all three read them here, so
//! that `localhost:80`, `127.0.0.1:80` and `[::ffff:127.0.0.1]:80` are the same to each.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Most targets of one grant.
pub const MAX_TARGETS: usize = 16;
/// The port of SSH, which no forward reaches on the device itself.
pub const SSH_PORT: u16 = 22;

/// A host and a port. Text form `127.0.0.1:80`, `[::1]:80`, `plc.local:502`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ForwardTarget {
    host: Host,
    port: u16,
}

/// An address in its canonical form, or a name in lower case that a resolver cannot take for an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    Address(IpAddr),
    Name(String),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a target: write HOST:PORT, as in 127.0.0.1:80")]
pub struct InvalidTarget(pub String);

/// Brings every spelling of an address to one: IPv4 within IPv6 becomes IPv4, and "any" becomes what
/// connecting to it reaches, loopback.
pub fn canonical(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

impl ForwardTarget {
    /// Reads a host as SSH clients send it, without brackets.
    pub fn new(host: &str, port: u32) -> Result<Self, InvalidTarget> {
        let invalid = || {
            let shown = crate::text::made_visible(host, 80);
            InvalidTarget(format!("{shown}:{port}"))
        };
        let port = u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(invalid)?;
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let host = match host.parse::<IpAddr>() {
            Ok(address) => Host::Address(canonical(address)),
            Err(_) if name == "localhost" => Host::Address(Ipv4Addr::LOCALHOST.into()),
            Err(_) if is_name(&name) => Host::Name(name),
            Err(_) => return Err(invalid()),
        };
        Ok(Self { host, port })
    }

    /// Without brackets.
    pub fn host(&self) -> String {
        match &self.host {
            Host::Address(address) => address.to_string(),
            Host::Name(name) => name.clone(),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address, where it is one.
    pub fn address(&self) -> Option<IpAddr> {
        match &self.host {
            Host::Address(address) => Some(*address),
            Host::Name(_) => None,
        }
    }

    pub fn is_loopback(&self) -> bool {
        self.address().is_some_and(|address| address.is_loopback())
    }

    /// The device's own SSH, by the port that it has everywhere. Which others it has, only the device knows.
    pub fn is_own_ssh(&self) -> bool {
        self.is_loopback() && self.port == SSH_PORT
    }

    /// Writes what [`Self::list`] reads.
    pub fn listed(targets: &[Self]) -> String {
        targets.iter().map(Self::to_string).collect::<Vec<_>>().join(",")
    }

    /// Reads the form of a certificate: targets with a comma between them.
    pub fn list(text: &str) -> Result<Vec<Self>, InvalidTarget> {
        text.split(',').take(MAX_TARGETS + 1).map(str::parse).collect()
    }
}

/// Names of the DNS whose last label has a letter first, so that no resolver reads an address in it
/// (`127.1`, `0x7f000001` and `2130706433` are loopback to some). What ends in `localhost` is loopback too.
fn is_name(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253
        && last.starts_with(|c: char| c.is_ascii_lowercase())
        && last != "localhost"
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                && !label.starts_with('-')
        })
}

impl FromStr for ForwardTarget {
    type Err = InvalidTarget;
    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let invalid = || InvalidTarget(crate::text::made_visible(text, 80));
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) if v6.contains(':') => v6,
            None if !host.contains(':') => host,
            _ => return Err(invalid()),
        };
        // No sign, no blank: only what prints again as it was read.
        let digits = !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits).ok_or_else(invalid)?;
        Self::new(host, port)
    }
}

impl fmt::Display for ForwardTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V6(v6)) => write!(f, "[{v6}]:{}", self.port),
            Host::Address(IpAddr::V4(v4)) => write!(f, "{v4}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl TryFrom<String> for ForwardTarget {
    type Error = InvalidTarget;
    fn try_from(text: String) -> Result<Self, InvalidTarget> {
        text.parse()
    }
}

impl From<ForwardTarget> for String {
    fn from(target: ForwardTarget) -> Self {
        target.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_target_is_the_same_target() {
        let same = "127.0.0.1:80";
        for spelled in ["127.0.0.1:80", "localhost:80", "LOCALHOST:80", "localhost.:80", "0.0.0.0:80"] {
            assert_eq!(spelled.parse::<ForwardTarget>().unwrap().to_string(), same, "{spelled}");
        }
        for host in
            ["localhost", "127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:0.0.0.0", "0.0.0.0"]
        {
            assert_eq!(ForwardTarget::new(host, 80).unwrap().to_string(), same, "{host}");
        }
        assert_eq!(ForwardTarget::new("::", 80).unwrap().to_string(), "[::1]:80");
        assert_eq!(ForwardTarget::new("PLC.local.", 502).unwrap().to_string(), "plc.local:502");
    }

    #[test]
    fn promise_1_no_grant_no_bytes_the_devices_own_ssh_is_known_by_every_spelling() {
        for host in [
            "localhost",
            "Localhost",
            "localhost.",
            "127.0.0.1",
            "127.0.0.2",
            "127.255.255.254",
            "::1",
            "0:0:0:0:0:0:0:1",
            "::ffff:127.0.0.1",
            "::ffff:127.9.9.9",
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
        ] {
            assert!(ForwardTarget::new(host, 22).unwrap().is_own_ssh(), "{host}");
        }
        assert!(!ForwardTarget::new("127.0.0.1", 80).unwrap().is_own_ssh());
    }

    #[test]
    fn what_a_resolver_could_take_for_something_else_is_no_target() {
        for host in [
            "",
            ".",
            "127.1",
            "0x7f000001",
            "0x7f.1",
            "2130706433",
            "0177.0.0.1",
            "127.0.0.1.",
            "a.localhost",
            "a..b",
            "-a",
            "a b",
            "a,b",
            "a:b",
            "ü",
            "a\0",
            "fe80::1%eth0",
            "a/b",
            "a.1",
        ] {
            assert!(ForwardTarget::new(host, 22).is_err(), "{host:?}");
        }
        assert!(ForwardTarget::new("a", 0).is_err());
        assert!(ForwardTarget::new("a", 65536 + 22).is_err());
        for text in
            ["", "a", "a:", ":80", "a:+80", "a: 80", "a:99999", "::1:80", "[a]:80", "[::1:80", "a:080000"]
        {
            assert!(text.parse::<ForwardTarget>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_list_reads_back_as_it_prints() {
        let list = ForwardTarget::list("127.0.0.1:80,[::1]:8080,plc.local:502").unwrap();
        assert_eq!(list.len(), 3);
        assert!(ForwardTarget::list("").is_err());
        assert!(ForwardTarget::list("127.0.0.1:80,").is_err());
    }
}
