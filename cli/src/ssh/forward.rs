//! What follows `-L` and `-D` of ssh, read before anybody is asked: ssh itself would refuse a broken one only
//! after somebody has approved it, and what it leads to is part of the question.
//!
//! ssh(1), `-L` and `-D`.

use daypass_protocol::target::ForwardTarget;
use daypass_protocol::text::made_visible;
use std::str::FromStr;

/// `[bind:]port:host:port` or `socket:host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalForward {
    /// As it was written, for ssh.
    pub text: String,
    pub target: ForwardTarget,
}

/// `[bind:]port`, as it was written, for ssh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicForward(pub String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidForward {
    #[error("{0:?} is not a forward: write [BIND:]PORT:HOST:PORT, as in 8080:127.0.0.1:80")]
    Local(String),
    #[error("{0:?} is not a forward: write [BIND:]PORT, as in 1080")]
    Dynamic(String),
    #[error("{0:?} leads to a socket on the device; only ports are forwarded")]
    Socket(String),
    #[error(transparent)]
    Target(#[from] daypass_protocol::target::InvalidTarget),
}

impl FromStr for LocalForward {
    type Err = InvalidForward;

    fn from_str(text: &str) -> Result<Self, InvalidForward> {
        let shown = made_visible(text, 80);
        let fields = fields(text).ok_or_else(|| InvalidForward::Local(shown.clone()))?;
        let target = match fields.as_slice() {
            [.., socket] if socket.contains('/') && fields.len() > 1 => {
                return Err(InvalidForward::Socket(shown));
            }
            [socket, host, port] if socket.contains('/') => (host, port),
            [listen, host, port] | [_, listen, host, port] if is_port(listen) => (host, port),
            _ => return Err(InvalidForward::Local(shown)),
        };
        let (host, port) = target;
        let host = if host.contains(':') { format!("[{host}]") } else { (*host).to_owned() };
        Ok(Self { text: text.to_owned(), target: format!("{host}:{port}").parse()? })
    }
}

impl FromStr for DynamicForward {
    type Err = InvalidForward;

    fn from_str(text: &str) -> Result<Self, InvalidForward> {
        match fields(text).as_deref() {
            Some([port] | [_, port]) if is_port(port) => Ok(Self(text.to_owned())),
            _ => Err(InvalidForward::Dynamic(made_visible(text, 80))),
        }
    }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
}

/// What stands between colons, where one in square brackets is none.
fn fields(text: &str) -> Option<Vec<&str>> {
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return None;
    }
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = match rest.strip_prefix('[') {
            Some(inside) => inside.split_once(']')?,
            None => rest.split_at(rest.find(':').unwrap_or(rest.len())),
        };
        fields.push(field);
        if after.is_empty() {
            return Some(fields);
        }
        rest = after.strip_prefix(':')?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_forward_says_where_it_leads() {
        for (text, target) in [
            ("8080:localhost:80", "127.0.0.1:80"),
            ("127.0.0.1:8080:PLC.local:502", "plc.local:502"),
            ("[::1]:8080:[::1]:80", "[::1]:80"),
            (":8080:10.0.0.7:443", "10.0.0.7:443"),
            ("*:8080:10.0.0.7:443", "10.0.0.7:443"),
            ("/tmp/s.sock:127.0.0.1:80", "127.0.0.1:80"),
        ] {
            let forward: LocalForward = text.parse().unwrap();
            assert_eq!((forward.target.to_string().as_str(), forward.text.as_str()), (target, text));
        }
    }

    #[test]
    fn a_broken_forward_is_refused_before_anybody_is_asked() {
        for text in [
            "",
            "8080",
            "8080:80",
            "0:127.0.0.1:80",
            "70000:127.0.0.1:80",
            "8080:127.0.0.1:0",
            "8080:127.0.0.1:http",
            "8080:127.1:80",
            "8080:::1:80",
            "8080:[::1:80",
            "8080:[::1]80",
            "a:b:c:127.0.0.1:80",
            "8080:127.0.0.1 :80",
            "+8080:127.0.0.1:80",
            "8080:127.0.0.1:80:",
        ] {
            assert!(text.parse::<LocalForward>().is_err(), "{text:?}");
        }
        for text in ["8080:/run/docker.sock", "/tmp/a:/run/b", "127.0.0.1:8080:/run/b"] {
            assert!(matches!(text.parse::<LocalForward>(), Err(InvalidForward::Socket(_))), "{text:?}");
        }
        for text in ["", "0", "x", "a:b:1080", "1080:", "127.0.0.1:1080:a:1"] {
            assert!(text.parse::<DynamicForward>().is_err(), "{text:?}");
        }
        for text in ["1080", "127.0.0.1:1080", "[::1]:1080", "*:1080"] {
            assert!(text.parse::<DynamicForward>().is_ok(), "{text:?}");
        }
    }
}
