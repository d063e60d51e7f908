//! The command line: what can be said, and how it is read.

use crate::profile::{Over, ProfileName};
use crate::ssh::forward::{DynamicForward, LocalForward};
use crate::ui::words;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use daypass_protocol::channel::ChannelSet;
use daypass_protocol::duration::Seconds;
use daypass_protocol::ids::{DeviceId, InvalidId, LineName, Login, RequestId, SessionId};
use daypass_protocol::target::ForwardTarget;
use std::path::PathBuf;
use std::str::FromStr;

#[derive(Debug, Parser)]
#[command(name = "daypass", version, about, after_help = words::EXIT_CODES, infer_subcommands = false)]
#[command(disable_help_subcommand = true)]
pub struct Cli {
    /// Which of your identities to use; each has its own directory, key and tokens
    #[arg(long, global = true, value_name = "NAME", env = "DAYPASS_PROFILE", default_value = ProfileName::USUAL)]
    pub profile: ProfileName,

    /// Print data as JSON on standard output
    #[arg(long, global = true)]
    pub json: bool,

    /// Directory of all profiles, instead of $XDG_CONFIG_HOME/daypass
    #[arg(long, global = true, value_name = "DIR", env = "DAYPASS_HOME", hide = true)]
    pub home: Option<PathBuf>,

    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Sign in, and get an SSH identity certificate
    Login(LoginArgs),
    /// Sign out, here and at the broker
    Logout,
    /// Say who is signed in
    Whoami,
    /// List devices
    Devices(DevicesArgs),
    /// Ask for access to a device
    Request(RequestArgs),
    /// List requests
    Requests(RequestsArgs),
    /// Take back a request of yours
    Cancel {
        #[arg(value_name = "R-…")]
        request: RequestId,
    },
    /// Approve a request, as asked or for less
    Approve(ApproveArgs),
    /// Refuse a request
    Deny {
        #[arg(value_name = "R-…")]
        request: RequestId,
        /// What the person who asked is told
        #[arg(long, value_name = "TEXT")]
        comment: String,
    },
    /// End a grant and its sessions
    Revoke {
        #[arg(value_name = "R-…")]
        request: RequestId,
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Open a shell on a device or run a command there; asks for access if there is none
    Ssh(SshArgs),
    /// List sessions
    Sessions(SessionsArgs),
    /// Replay a session's recording
    Play(PlayArgs),
    /// Show the terminal of a running session, from its start on and as it goes on
    Watch(WatchArgs),
    /// End a running session
    End {
        #[arg(value_name = "S-…")]
        session: SessionId,
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Prepare this machine for plain ssh, scp and rsync
    #[command(subcommand)]
    Setup(SetupVerb),
    /// Enrol, inspect, suspend and resume devices
    #[command(subcommand)]
    Device(DeviceVerb),
    /// Print a script that completes this command line
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Be what ssh reaches a device through: over HTTPS, between standard input and output, `ProxyCommand daypass
    /// proxy %h`
    Proxy {
        /// The device as ssh calls it, %h
        host: String,
        /// Connect to the gateway's SSH port instead, straight to the device, and hand the connection to ssh: with
        /// `ProxyUseFdpass yes`
        #[arg(long)]
        fdpass: bool,
    },
    /// Renew the identity certificate where it is about to end; called by ssh itself
    #[command(hide = true)]
    SshReady,
}

#[derive(Debug, Args)]
pub struct LoginArgs {
    /// Address of the broker, https://broker.example.com
    #[arg(long, value_name = "URL", env = "DAYPASS_BROKER")]
    pub broker: Option<String>,
    /// Trust this certificate authority for the broker, and no other
    #[arg(long, value_name = "PEM", conflicts_with = "fingerprint")]
    pub ca_file: Option<PathBuf>,
    /// Trust the one certificate with this SHA-256 fingerprint for the broker
    #[arg(long, value_name = "SHA256:…")]
    pub fingerprint: Option<crate::client::tls::Fingerprint>,
    /// Only print the address; never open a browser
    #[arg(long)]
    pub no_browser: bool,
}

#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Only this product line
    #[arg(long, value_name = "LINE")]
    pub line: Option<LineName>,
    /// Only devices with this label
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<Label>,
    /// Only devices whose id, serial number or labels contain this
    #[arg(value_name = "TEXT")]
    pub text: Option<String>,
}

/// What a person asks for; shared by `request` and `ssh`.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// Account on the device
    #[arg(short = 'l', long, value_name = "LOGIN")]
    pub login: Option<Login>,
    /// How long, like 30m, 2h or 1h30m
    #[arg(long = "for", value_name = "DURATION", default_value = "30m")]
    pub duration: Seconds,
    /// What the session may do: any of shell, exec, sftp, forward; without it shell and exec, or the one
    /// command that is named
    #[arg(long = "channel", value_name = "CHANNELS", value_parser = channels)]
    pub channels: Option<ChannelSet>,
    /// A port on the device, or one that it reaches, to forward to; without it those of the product line
    #[arg(long, value_name = "HOST:PORT")]
    pub forward: Vec<ForwardTarget>,
    /// Ticket this is about
    #[arg(long, value_name = "ID")]
    pub ticket: Option<String>,
    /// Say that this cannot wait; policy decides what that changes, and everybody will see it
    #[arg(long)]
    pub emergency: bool,
}

#[derive(Debug, Args)]
pub struct RequestArgs {
    /// Device, or LOGIN@DEVICE
    pub device: Target,
    #[command(flatten)]
    pub ask: AskArgs,
    /// What for
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Wait until it is answered
    #[arg(long)]
    pub wait: bool,
    /// Ask for this one command, and for nothing else
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["channels", "forward"])]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RequestsArgs {
    /// Only mine
    #[arg(long, conflicts_with = "answerable")]
    pub mine: bool,
    /// Only those that I can answer now
    #[arg(long)]
    pub answerable: bool,
    /// Only in this state
    #[arg(long, value_name = "STATE")]
    pub state: Option<StateArg>,
    /// At most this many, newest first; 0 for all
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum StateArg {
    Pending,
    Granted,
    Denied,
    Cancelled,
    Lapsed,
}

impl StateArg {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Granted => "granted",
            Self::Denied => "denied",
            Self::Cancelled => "cancelled",
            Self::Lapsed => "lapsed",
        }
    }
}

#[derive(Debug, Args)]
pub struct ApproveArgs {
    #[arg(value_name = "R-…")]
    pub request: RequestId,
    /// Shorter than asked
    #[arg(long = "for", value_name = "DURATION")]
    pub duration: Option<Seconds>,
    /// Fewer channels than asked
    #[arg(long = "channel", value_name = "CHANNELS", value_parser = channels)]
    pub channels: Option<ChannelSet>,
    /// What the person who asked is told
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,
}

#[derive(Debug, Args)]
pub struct SshArgs {
    /// Device, or LOGIN@DEVICE
    pub device: Target,
    #[command(flatten)]
    pub ask: AskArgs,
    /// What for; asked on the terminal if it is needed and not given
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Forward a local port, as ssh's own -L; HOST:PORT is asked for, as with --forward
    #[arg(short = 'L', value_name = "[BIND:]PORT:HOST:PORT")]
    pub local: Vec<LocalForward>,
    /// A local SOCKS proxy to the targets, as ssh's own -D
    #[arg(short = 'D', value_name = "[BIND:]PORT")]
    pub dynamic: Vec<DynamicForward>,
    /// Neither shell nor command: only forwards, as ssh's own -N
    #[arg(short = 'N', conflicts_with = "command")]
    pub no_command: bool,
    /// How the gateway is reached, this once; `setup ssh --over` says it for good
    #[arg(long, value_enum)]
    pub over: Option<Over>,
    /// Give the command a terminal
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Command to run there instead of a shell; where there is no grant yet, that command alone is asked for
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct SessionsArgs {
    /// Only running ones
    #[arg(long)]
    pub live: bool,
    /// Only on this device
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceId>,
    /// Only of this person: a P-… id or an e-mail address
    #[arg(long, value_name = "PERSON")]
    pub person: Option<String>,
    /// At most this many, newest first; 0 for all
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: usize,
}

#[derive(Debug, Args)]
pub struct PlayArgs {
    #[arg(value_name = "S-…")]
    pub session: SessionId,
    /// Times as fast
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = speed)]
    pub speed: f64,
    /// Longest pause, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = speed)]
    pub idle: f64,
    /// Which channel of the session
    #[arg(long, value_name = "N")]
    pub channel: Option<u32>,
    /// List what was done to files over SFTP
    #[arg(long, conflicts_with = "raw")]
    pub files: bool,
    /// Write the recording as it is stored
    #[arg(long)]
    pub raw: bool,
}

#[derive(Debug, Args)]
pub struct WatchArgs {
    #[arg(value_name = "S-…")]
    pub session: SessionId,
    /// Which channel of the session; without it the first terminal that is open, or that opens
    #[arg(long, value_name = "N")]
    pub channel: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub enum SetupVerb {
    /// Let `ssh LOGIN@DEVICE.daypass` work, after showing what is written
    Ssh {
        /// Write without asking
        #[arg(long)]
        yes: bool,
        /// How the gateway is reached from here; without it as last time
        #[arg(long, value_enum)]
        over: Option<Over>,
    },
}

#[derive(Debug, Subcommand)]
pub enum DeviceVerb {
    /// Make a token that new devices enrol with
    EnrolToken {
        /// Product line of the devices
        #[arg(long, value_name = "LINE")]
        line: LineName,
        /// How many devices may enrol with it
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// How long it is good for
        #[arg(long = "for", value_name = "DURATION", default_value = "1h")]
        lifetime: Seconds,
        /// Label that the devices get
        #[arg(long, value_name = "KEY=VALUE")]
        label: Vec<Label>,
    },
    /// Show a device and its ledger
    Show { device: DeviceId },
    /// Let nobody in until it is resumed; running sessions end
    Suspend {
        device: DeviceId,
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Let people in again
    Resume {
        device: DeviceId,
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// `DEVICE` or `LOGIN@DEVICE`; the device may carry the suffix that plain ssh needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub login: Option<Login>,
    pub device: DeviceId,
}

impl FromStr for Target {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let (login, device) = match text.split_once('@') {
            Some((login, device)) => (Some(login.parse()?), device),
            None => (None, text),
        };
        let device = device.strip_suffix(".daypass").unwrap_or(device).parse()?;
        Ok(Self { login, device })
    }
}

/// `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    pub key: String,
    pub value: String,
}

#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a label is written KEY=VALUE")]
pub struct NotALabel;

impl FromStr for Label {
    type Err = NotALabel;

    fn from_str(text: &str) -> Result<Self, NotALabel> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err(NotALabel),
        }
    }
}

fn channels(text: &str) -> Result<ChannelSet, String> {
    let set: ChannelSet =
        text.parse().map_err(|unknown: daypass_protocol::channel::UnknownChannel| unknown.to_string())?;
    if set.is_empty() { Err(words::NO_CHANNELS.to_owned()) } else { Ok(set) }
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err(words::NOT_POSITIVE.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_target_is_a_device_with_or_without_a_login() {
        let target: Target = "diag@gw-0042.daypass".parse().unwrap();
        assert_eq!(target.login.as_ref().map(Login::as_str), Some("diag"));
        assert_eq!(target.device.as_str(), "gw-0042");
        assert_eq!("gw-0042".parse::<Target>().unwrap().login, None);
        for bad in ["-oProxyCommand=x", "a@-x", "a b", "@gw", "GW", "gw.other"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_command_after_two_dashes_is_not_read_as_options() {
        let cli = Cli::try_parse_from(["daypass", "ssh", "gw-0042", "--", "ls", "-l", "--json"]).unwrap();
        let Verb::Ssh(args) = cli.verb else { panic!("not ssh") };
        assert_eq!(args.command, ["ls", "-l", "--json"]);
        assert!(!cli.json);
    }

    #[test]
    fn nonsense_is_refused_before_anything_is_sent() {
        for bad in [
            &["daypass", "request", "gw-0042", "--for", "soon", "--reason", "x"][..],
            &["daypass", "request", "gw-0042", "--channel", "x11", "--reason", "x"],
            &["daypass", "request", "gw-0042", "--channel", ",", "--reason", "x"],
            &["daypass", "approve", "S-7K2M9QXD"],
            &["daypass", "deny", "R-7K2M9QXD"],
            &["daypass", "--profile", "../x", "whoami"],
            &["daypass", "play", "S-7K2M9QXD", "--speed", "0"],
            &["daypass", "play", "S-7K2M9QXD", "--speed", "nan"],
            &["daypass", "device", "enrol-token", "--line", "edge-gateway", "--uses", "0"],
        ] {
            assert!(Cli::try_parse_from(bad).is_err(), "{bad:?}");
        }
    }
}
