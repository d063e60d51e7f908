//! Forwards: connections to ports that the grant names and the device's owner allows.

use crate::link::Endpoint;
use daypass_protocol::target::{ForwardTarget, SSH_PORT, canonical};
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// How long one address may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);

/// Where the owner lets forwards lead, whatever a grant says.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Ports of the device itself, through loopback.
    pub loopback: bool,
    pub targets: Vec<ForwardTarget>,
    /// Ports of the device's own SSH servers. A session through one of them would not be recorded.
    pub ssh_ports: Vec<u16>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { loopback: true, targets: Vec::new(), ssh_ports: vec![SSH_PORT] }
    }
}

impl Rules {
    pub fn allow(&self, target: &ForwardTarget) -> bool {
        (self.loopback && target.is_loopback()) || self.targets.contains(target)
    }

    /// Whether an address, however it was found, is one of the device's own SSH servers.
    fn is_own_ssh(&self, address: IpAddr, port: u16) -> bool {
        // Only an address of this machine can be bound.
        self.ssh_ports.contains(&port) && (address.is_loopback() || UdpSocket::bind((address, 0)).is_ok())
    }
}

/// Whether it is the broker. Behind loopback that is one port; else a whole host.
async fn is_broker(broker: &Endpoint, address: IpAddr, port: u16) -> bool {
    let own_port = broker.port == port;
    if address.is_loopback() {
        return own_port
            && ForwardTarget::new(&broker.host, port.into()).is_ok_and(|broker| broker.is_loopback());
    }
    // A name that does not resolve leads nowhere else either.
    lookup_host((broker.host.as_str(), port))
        .await
        .is_ok_and(|mut found| found.any(|found| canonical(found.ip()) == address))
}

/// Connects, unless what the name turns out to be is nobody's to reach; the cause in words.
pub async fn connect(target: &ForwardTarget, rules: &Rules, broker: &Endpoint) -> Result<TcpStream, String> {
    let port = target.port();
    let words = |error: io::Error| error.kind().to_string();
    let mut cause = "no such host".to_owned();
    for found in lookup_host((target.host(), port)).await.map_err(words)? {
        let address = canonical(found.ip());
        if rules.is_own_ssh(address, port) {
            return Err("no forward leads to the device's own SSH".to_owned());
        }
        if is_broker(broker, address, port).await {
            return Err("no forward leads to the broker".to_owned());
        }
        match timeout(CONNECT_TIMEOUT, TcpStream::connect((address, port))).await {
            Ok(Ok(stream)) => {
                // Without it only slower.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => cause = words(error),
            Err(_) => "no answer".clone_into(&mut cause),
        }
    }
    Err(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker() -> Endpoint {
        Endpoint::parse("https://broker.invalid").unwrap()
    }

    #[tokio::test]
    async fn promise_1_no_grant_no_bytes_no_spelling_of_the_devices_ssh_is_connected_to() {
        let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let rules = Rules { ssh_ports: vec![SSH_PORT, port], ..Rules::default() };
        // Its own address beside loopback too, where it has one.
        let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
        let outside = probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr());
        let outside = outside.map_or_else(|_| "127.0.0.1".to_owned(), |own| own.ip().to_string());
        for host in ["localhost", "127.0.0.1", "127.1.2.3", "0.0.0.0", "::ffff:127.0.0.1", &outside] {
            let target = ForwardTarget::new(host, port.into()).unwrap();
            let refused = connect(&target, &rules, &broker()).await.unwrap_err();
            assert_eq!(refused, "no forward leads to the device's own SSH", "{host}");
            assert!(connect(&target, &Rules::default(), &broker()).await.is_ok(), "{host} without the rule");
        }
    }

    #[tokio::test]
    async fn a_forward_does_not_lead_to_the_broker() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = ForwardTarget::new("127.0.0.1", port.into()).unwrap();
        let own = Endpoint::parse(&format!("https://localhost:{port}")).unwrap();
        let refused = connect(&target, &Rules::default(), &own).await.unwrap_err();
        assert_eq!(refused, "no forward leads to the broker");
        let elsewhere = Endpoint::parse("https://192.0.2.7:443").unwrap();
        assert!(is_broker(&elsewhere, "192.0.2.7".parse().unwrap(), 9000).await, "any port of its host");
        assert!(!is_broker(&elsewhere, "192.0.2.8".parse().unwrap(), 443).await);
    }

    #[tokio::test]
    async fn what_does_not_answer_is_told_in_words() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let target = ForwardTarget::new("127.0.0.1", port.into()).unwrap();
        let refused = connect(&target, &Rules::default(), &broker()).await.unwrap_err();
        assert_eq!(refused, "connection refused");
    }

    #[test]
    fn loopback_is_allowed_unless_the_owner_says_otherwise_and_nothing_else_is() {
        let allow = |rules: &Rules, text: &str| rules.allow(&text.parse().unwrap());
        let usual = Rules::default();
        assert!(allow(&usual, "127.0.0.1:80") && allow(&usual, "[::1]:80"));
        assert!(!allow(&usual, "192.168.1.1:80") && !allow(&usual, "plc.local:502"));
        let named = Rules { loopback: false, targets: vec!["plc.local:502".parse().unwrap()], ..usual };
        assert!(allow(&named, "plc.local:502") && !allow(&named, "127.0.0.1:80"));
    }
}
