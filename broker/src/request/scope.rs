//! What a grant lets a session do, and the one question about it.

use daypass_protocol::channel::{ChannelKind, ChannelSet};
use daypass_protocol::target::ForwardTarget;
use daypass_protocol::tunnel::open::OpenKind;

/// The terms of a grant that bound each channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub channels: ChannelSet,
    /// The one command that may run; `None` where the channels alone are the bound.
    pub command: Option<String>,
    /// Where forwards may lead.
    pub targets: Vec<ForwardTarget>,
}

/// Why a channel is outside of a grant, after "your grant".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfScope {
    #[error("does not include {0}")]
    Channel(ChannelKind),
    #[error("is for one command and nothing else: {0}")]
    OtherThanCommand(String),
    #[error("does not name {0} as a target")]
    Target(String),
    #[error("does not reach the device's own SSH through a forward")]
    OwnSsh,
}

impl Scope {
    /// Whether a channel of this kind may be opened. Asked when a grant is chosen for a session and again at
    /// each channel; the device asks the same of the certificate.
    pub fn permits(&self, kind: &OpenKind) -> Result<(), OutOfScope> {
        if !self.channels.contains(kind.channel_kind()) {
            return Err(OutOfScope::Channel(kind.channel_kind()));
        }
        match (&self.command, kind) {
            (None, OpenKind::Forward { host, port }) => self.permits_forward_to(host, *port),
            (None, _) => Ok(()),
            // Byte for byte: a command is never read, so never taken for another.
            (Some(only), OpenKind::Exec { command, .. }) if command.0 == only.as_bytes() => Ok(()),
            (Some(only), _) => Err(OutOfScope::OtherThanCommand(only.clone())),
        }
    }

    fn permits_forward_to(&self, host: &str, port: u16) -> Result<(), OutOfScope> {
        let target =
            ForwardTarget::new(host, port.into()).map_err(|invalid| OutOfScope::Target(invalid.0))?;
        if target.is_own_ssh() {
            // Whatever a row says: a session through it would not be recorded.
            Err(OutOfScope::OwnSsh)
        } else if self.targets.contains(&target) {
            Ok(())
        } else {
            Err(OutOfScope::Target(target.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use daypass_protocol::tunnel::open::{Octets, Pty, WindowSize};

    fn exec(command: &str) -> OpenKind {
        OpenKind::Exec { command: Octets(command.into()), pty: None }
    }

    fn pty() -> Pty {
        Pty { term: "xterm".to_owned(), size: WindowSize::default(), modes: vec![] }
    }

    #[test]
    fn promise_3_one_certificate_a_grant_of_one_command_permits_that_command_and_nothing_else() {
        let channels: ChannelSet = "exec".parse().unwrap();
        let one = Scope { channels, command: Some("systemctl status modem".to_owned()), ..Scope::default() };
        assert_eq!(one.permits(&exec("systemctl status modem")), Ok(()));
        let on_terminal =
            OpenKind::Exec { command: Octets(b"systemctl status modem".to_vec()), pty: Some(pty()) };
        assert_eq!(one.permits(&on_terminal), Ok(()));
        for other in ["systemctl status modem; sh", "systemctl status", " systemctl status modem", "", "sh"] {
            assert!(matches!(one.permits(&exec(other)), Err(OutOfScope::OtherThanCommand(_))), "{other:?}");
        }
        assert!(one.permits(&OpenKind::Shell { pty: pty() }).is_err());
        // Even where a row of the database were wrong.
        let all: ChannelSet = ChannelKind::ALL.into_iter().collect();
        let wide = Scope { channels: all, ..one };
        let forward = OpenKind::Forward { host: "127.0.0.1".to_owned(), port: 80 };
        for kind in [OpenKind::Shell { pty: pty() }, OpenKind::Sftp, forward] {
            assert!(matches!(wide.permits(&kind), Err(OutOfScope::OtherThanCommand(_))), "{kind:?}");
        }
    }

    #[test]
    fn a_channel_that_was_not_granted_is_not_permitted() {
        let scope = Scope { channels: "exec".parse().unwrap(), ..Scope::default() };
        assert_eq!(scope.permits(&exec("anything")), Ok(()));
        assert_eq!(scope.permits(&OpenKind::Sftp), Err(OutOfScope::Channel(ChannelKind::Sftp)));
    }

    #[test]
    fn promise_1_no_grant_no_bytes_forwards_lead_where_the_grant_says_and_never_to_the_devices_ssh() {
        let forward = |host: &str, port| OpenKind::Forward { host: host.to_owned(), port };
        let targets = ["127.0.0.1:80", "127.0.0.1:22", "[::1]:22", "plc.local:502"];
        let scope = Scope {
            channels: "forward".parse().unwrap(),
            targets: targets.iter().map(|target| target.parse().unwrap()).collect(),
            ..Scope::default()
        };
        for host in ["127.0.0.1", "localhost", "::ffff:127.0.0.1"] {
            assert_eq!(scope.permits(&forward(host, 80)), Ok(()), "{host}");
            assert_eq!(scope.permits(&forward(host, 22)), Err(OutOfScope::OwnSsh), "{host}");
            assert!(matches!(scope.permits(&forward(host, 81)), Err(OutOfScope::Target(_))), "{host}");
        }
        for host in ["0.0.0.0", "::", "::1", "127.3.2.1"] {
            assert_eq!(scope.permits(&forward(host, 22)), Err(OutOfScope::OwnSsh), "{host}");
        }
        for (host, port) in [("::1", 80), ("plc.local", 80), ("plc", 502), ("127.1", 80), ("a,b", 80)] {
            assert!(matches!(scope.permits(&forward(host, port)), Err(OutOfScope::Target(_))), "{host}");
        }
        assert_eq!(scope.permits(&forward("PLC.local.", 502)), Ok(()));
        let without = Scope { channels: "exec".parse().unwrap(), ..scope };
        assert_eq!(
            without.permits(&forward("127.0.0.1", 80)),
            Err(OutOfScope::Channel(ChannelKind::Forward))
        );
    }
}
