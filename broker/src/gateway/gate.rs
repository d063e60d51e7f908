//! The gate: every wish of a client passes [`Gate::ask`], and what is not listed there is refused.

use super::door::{Refusal, RefusedKind};
use daypass_protocol::ids::{DeviceId, Login};
use daypass_protocol::target::ForwardTarget;
use daypass_protocol::text::made_visible;
use daypass_protocol::tunnel::open::{Octets, OpenKind, Pty, WindowSize};

/// What a connection is for, known once its person is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The outer hop of `ssh -J`: a way to a device's own SSH, and nothing else.
    Jump,
    /// A login on a device: the inner hop, or a single hop.
    Session { login: Login, device: DeviceId },
}

/// What a client may ask for once it is authenticated.
#[derive(Clone, Debug)]
pub enum Wish<'a> {
    /// A session channel, before anything is asked on it.
    SessionChannel,
    Shell(Option<Pty>),
    Exec(&'a [u8], Option<Pty>),
    Subsystem(&'a str),
    DirectTcpip {
        host: &'a str,
        port: u32,
    },
    RemoteForward,
    StreamLocal,
    Agent,
    X11,
}

/// What the gate lets through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    SessionChannel,
    Open(OpenKind),
    Jump(DeviceId),
}

/// What the gate does not let through: the kind for the log, the line for the person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAllowed {
    pub kind: RefusedKind,
    pub refusal: Refusal,
}

impl NotAllowed {
    fn new(kind: RefusedKind, message: impl Into<String>, hint: &str) -> Self {
        let refusal = Refusal::new(message);
        Self { kind, refusal: if hint.is_empty() { refusal } else { refusal.hint(hint) } }
    }
}

/// The fixed part of the gate's judgement.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Devices are `<id>.<suffix>` or `<id>`.
    pub suffix: String,
    /// Most bytes of a command.
    pub command: usize,
}

impl Gate {
    /// The one place that decides what kind of channel exists.
    pub fn ask(&self, purpose: &Purpose, wish: Wish<'_>) -> Result<Allowed, NotAllowed> {
        use RefusedKind as Kind;
        match (purpose, wish) {
            (Purpose::Jump, Wish::DirectTcpip { host, port: 22 }) => match self.device(host) {
                Some(device) => Ok(Allowed::Jump(device)),
                None => Err(Self::no_device(host)),
            },
            (Purpose::Jump, Wish::DirectTcpip { host, port }) => Err(NotAllowed::new(
                Kind::Target,
                format!("only port 22 of a device is reached here, not {}:{port}", made_visible(host, 80)),
                "",
            )),
            (Purpose::Jump, Wish::SessionChannel) => Err(NotAllowed::new(
                Kind::Session,
                "there is no shell on the gateway itself",
                "use ssh -J GATEWAY LOGIN@DEVICE, or ssh LOGIN%DEVICE@GATEWAY",
            )),
            (Purpose::Session { .. }, Wish::SessionChannel) => Ok(Allowed::SessionChannel),
            (Purpose::Session { .. }, Wish::Shell(Some(pty))) => Ok(Allowed::Open(OpenKind::Shell { pty })),
            (Purpose::Session { .. }, Wish::Exec(command, pty)) if self.fits(command) => {
                Ok(Allowed::Open(OpenKind::Exec { command: Octets(command.to_vec()), pty }))
            }
            (Purpose::Session { .. }, Wish::DirectTcpip { host, port }) => Self::forward(host, port),
            // Whether the grant has it is asked where the channel opens, as for every kind.
            (Purpose::Session { .. }, Wish::Subsystem("sftp")) => Ok(Allowed::Open(OpenKind::Sftp)),
            (_, Wish::Shell(_)) => {
                Err(NotAllowed::new(Kind::Shell, "a shell needs a terminal", "use ssh -t, or give a command"))
            }
            (_, Wish::Exec(..)) => Err(NotAllowed::new(
                Kind::Exec,
                format!("a command has 1 to {} bytes and no NUL", self.command),
                "",
            )),
            (_, Wish::Subsystem(name)) => Err(NotAllowed::new(
                Kind::Subsystem,
                format!("the subsystem {} is not open here", made_visible(name, 40)),
                "",
            )),
            (_, Wish::RemoteForward) => {
                Err(NotAllowed::new(Kind::RemoteForward, "remote forwarding is not open here", ""))
            }
            (_, Wish::StreamLocal) => {
                Err(NotAllowed::new(Kind::StreamLocal, "forwarding of sockets is not open here", ""))
            }
            (_, Wish::Agent) => {
                Err(NotAllowed::new(Kind::Agent, "agent forwarding is not open here", "use ssh -a"))
            }
            (_, Wish::X11) => {
                Err(NotAllowed::new(Kind::X11, "X11 forwarding is not open here", "use ssh -x"))
            }
        }
    }

    /// Whether the grant names the target is the session's to say, and the device's again.
    fn forward(host: &str, port: u32) -> Result<Allowed, NotAllowed> {
        match ForwardTarget::new(host, port) {
            Ok(target) if target.is_own_ssh() => Err(NotAllowed::new(
                RefusedKind::Forward,
                "no forward leads to the device's own SSH",
                "use ssh itself: it is recorded",
            )),
            Ok(target) => Ok(Allowed::Open(OpenKind::Forward { host: target.host(), port: target.port() })),
            Err(invalid) => Err(NotAllowed::new(RefusedKind::Forward, invalid.to_string(), "")),
        }
    }

    fn fits(&self, command: &[u8]) -> bool {
        !command.is_empty() && command.len() <= self.command && !command.contains(&0)
    }

    /// What is said of a name that no device can have.
    pub fn no_device(name: &str) -> NotAllowed {
        let message = format!("{} is not the name of a device", made_visible(name, 80));
        NotAllowed::new(RefusedKind::Target, message, "")
    }

    /// The device that an engineer calls by this name, if it can be one's.
    pub fn device(&self, name: &str) -> Option<DeviceId> {
        let name = name.strip_suffix('.').unwrap_or(name);
        // Host names are the same in capitals, and clients may write them so.
        let name = name.to_ascii_lowercase();
        let short = name.strip_suffix(&self.suffix).and_then(|short| short.strip_suffix('.'));
        short.unwrap_or(&name).parse().ok()
    }

    /// What a connection is for, by its user name: `login%device` is a single hop, anything else the
    /// outer hop of a jump.
    pub fn purpose_of_front(&self, user: &str) -> Result<Purpose, NotAllowed> {
        let Some((login, device)) = user.split_once('%') else { return Ok(Purpose::Jump) };
        match (login.parse(), self.device(device)) {
            (Ok(login), Some(device)) => Ok(Purpose::Session { login, device }),
            _ => Err(bad_user(user, "LOGIN%DEVICE")),
        }
    }

    /// The inner hop's user name is the login.
    pub fn purpose_of_inner(user: &str, device: &DeviceId) -> Result<Purpose, NotAllowed> {
        match user.parse() {
            Ok(login) => Ok(Purpose::Session { login, device: device.clone() }),
            Err(_) => Err(bad_user(user, "a login on the device")),
        }
    }
}

fn bad_user(user: &str, needed: &str) -> NotAllowed {
    let user = made_visible(user, 80);
    NotAllowed::new(RefusedKind::UserName, format!("the user name {user:?} is not {needed}"), "")
}

/// A terminal's size within what terminals have.
pub fn window(cols: u32, rows: u32, width_px: u32, height_px: u32) -> WindowSize {
    let cells = |n: u32| n.min(10_000);
    let pixels = |n: u32| n.min(100_000);
    WindowSize {
        cols: cells(cols),
        rows: cells(rows),
        width_px: pixels(width_px),
        height_px: pixels(height_px),
    }
}

/// A pseudo-terminal's description, bounded; `None` if its type cannot be one.
pub fn pty(term: &str, size: WindowSize, modes: &[(russh::Pty, u32)]) -> Option<Pty> {
    let fits = term.len() <= 64 && term.bytes().all(|b| b.is_ascii_graphic());
    let modes = modes.iter().filter(|(code, _)| *code != russh::Pty::TTY_OP_END);
    fits.then(|| Pty {
        term: term.to_owned(),
        size,
        modes: modes.map(|(code, n)| (*code as u8, *n)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        Gate { suffix: "daypass".to_owned(), command: 16 * 1024 }
    }

    fn session() -> Purpose {
        Purpose::Session { login: "diag".parse().unwrap(), device: "gw-0042".parse().unwrap() }
    }

    fn some_pty() -> Option<Pty> {
        pty("xterm", window(80, 24, 0, 0), &[])
    }

    #[test]
    fn the_outer_hop_reaches_port_22_of_devices_and_nothing_else() {
        let ask = |host: &str, port| gate().ask(&Purpose::Jump, Wish::DirectTcpip { host, port });
        let device: DeviceId = "gw-0042".parse().unwrap();
        for host in ["gw-0042", "gw-0042.daypass", "gw-0042.daypass.", "GW-0042.Daypass"] {
            assert_eq!(ask(host, 22), Ok(Allowed::Jump(device.clone())), "{host}");
        }
        for (host, port) in [
            ("gw-0042", 23),
            ("gw-0042", 22 + 65536),
            ("127.0.0.1", 22),
            ("db.example.com", 22),
            ("gw-0042.example.com", 22),
            ("gw-0042daypass", 80),
            ("::1", 22),
            ("", 22),
            (".daypass", 22),
        ] {
            assert_eq!(ask(host, port).unwrap_err().kind, RefusedKind::Target, "{host}:{port}");
        }
        for wish in [Wish::SessionChannel, Wish::Shell(some_pty()), Wish::Exec(b"id", None)] {
            assert!(gate().ask(&Purpose::Jump, wish).is_err());
        }
    }

    #[test]
    fn a_session_has_shells_on_terminals_and_commands() {
        let ask = |wish| gate().ask(&session(), wish);
        assert!(matches!(ask(Wish::Shell(some_pty())), Ok(Allowed::Open(OpenKind::Shell { .. }))));
        assert!(matches!(
            ask(Wish::Exec(b"uptime", None)),
            Ok(Allowed::Open(OpenKind::Exec { pty: None, .. }))
        ));
        assert!(ask(Wish::Exec(b"htop", some_pty())).is_ok());
    }

    #[test]
    fn of_the_subsystems_a_session_has_sftp_alone() {
        let ask = |purpose: &Purpose, name| gate().ask(purpose, Wish::Subsystem(name));
        assert_eq!(ask(&session(), "sftp"), Ok(Allowed::Open(OpenKind::Sftp)));
        for name in ["", "SFTP", "sftp ", "sftp2", "netconf", "sftp\0"] {
            assert_eq!(ask(&session(), name).unwrap_err().kind, RefusedKind::Subsystem, "{name:?}");
        }
        assert!(ask(&Purpose::Jump, "sftp").is_err());
    }

    #[test]
    fn kinds_that_are_not_listed_do_not_exist() {
        use RefusedKind as Kind;
        let long = vec![b'a'; 16 * 1024 + 1];
        for (wish, kind) in [
            (Wish::Shell(None), Kind::Shell),
            (Wish::Exec(b"", None), Kind::Exec),
            (Wish::Exec(b"a\0b", None), Kind::Exec),
            (Wish::Exec(&long, None), Kind::Exec),
            (Wish::Subsystem("netconf"), Kind::Subsystem),
            (Wish::DirectTcpip { host: "localhost", port: 22 }, Kind::Forward),
            (Wish::DirectTcpip { host: "127.1", port: 80 }, Kind::Forward),
            (Wish::DirectTcpip { host: "localhost", port: 0 }, Kind::Forward),
            (Wish::DirectTcpip { host: "localhost", port: 65536 + 22 }, Kind::Forward),
            (Wish::RemoteForward, Kind::RemoteForward),
            (Wish::StreamLocal, Kind::StreamLocal),
            (Wish::Agent, Kind::Agent),
            (Wish::X11, Kind::X11),
        ] {
            assert_eq!(gate().ask(&session(), wish).unwrap_err().kind, kind);
        }
    }

    #[test]
    fn promise_1_no_grant_no_bytes_no_forward_leads_to_the_devices_ssh() {
        let ask = |host, port| gate().ask(&session(), Wish::DirectTcpip { host, port });
        for host in
            ["localhost", "LOCALHOST.", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"]
        {
            assert_eq!(ask(host, 22).unwrap_err().kind, RefusedKind::Forward, "{host}");
        }
        let open = OpenKind::Forward { host: "127.0.0.1".to_owned(), port: 80 };
        assert_eq!(ask("LocalHost", 80), Ok(Allowed::Open(open)), "in one spelling from here on");
    }

    #[test]
    fn user_names_that_are_neither_are_refused_in_one_visible_line() {
        assert_eq!(gate().purpose_of_front("ana"), Ok(Purpose::Jump));
        assert_eq!(gate().purpose_of_front("diag%gw-0042.daypass"), Ok(session()));
        for bad in ["%", "diag%", "%gw-0042", "diag%gw-0042%x", "di ag%gw-0042", "diag%\x1b[2J"] {
            let refused = gate().purpose_of_front(bad).unwrap_err();
            assert_eq!(refused.kind, RefusedKind::UserName);
            assert!(!refused.refusal.message.contains('\x1b'));
        }
        assert!(Gate::purpose_of_inner("diag%gw-0042", &"gw-0042".parse().unwrap()).is_err());
    }

    #[test]
    fn terminals_are_described_within_bounds() {
        assert_eq!(window(u32::MAX, 5, 0, u32::MAX).cols, 10_000);
        assert!(pty("xterm\n", WindowSize::default(), &[]).is_none());
        assert!(pty(&"x".repeat(65), WindowSize::default(), &[]).is_none());
        let padded = [(russh::Pty::ECHO, 1), (russh::Pty::TTY_OP_END, 0)];
        assert_eq!(pty("vt100", WindowSize::default(), &padded).unwrap().modes, [(53, 1)]);
    }
}
