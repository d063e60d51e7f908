//! The command line, read by hand: every kilobyte of a parser would be on every device.

use daypass_protocol::ids::DeviceId;
use std::path::PathBuf;

pub const HELP: &str = "\
daypass-shim: the device side of Daypass

It keeps one outbound connection to the broker and starts shells and commands
for sessions whose certificate was made for this device. It listens on nothing.

Usage:
  daypass-shim enrol TOKEN [--serial-number S] [--device ID]
                           [--state DIR] [--config FILE]
  daypass-shim run         [--config FILE] [--state DIR]
  daypass-shim status      [--config FILE] [--state DIR]

Commands:
  enrol    Join a fleet. Makes the device key, proves it to the broker of the
           join token, and stores what the broker answers. TOKEN is what
           `daypass device enrol-token` printed; `-` reads it from standard
           input, where other users of this machine cannot see it.
  run      Connect and serve until stopped by SIGTERM or SIGINT. Ends by itself,
           with status 0, only when the device is retired.
  status   Say who this device is, what it believes, and whether it runs.

Options:
  --config FILE        Configuration, TOML [default: /etc/daypass/device.toml]
  --state DIR          State directory, instead of the configuration's
                       [default: /var/lib/daypass]
  --serial-number S    The product's serial number [default: the hardware's]
  --device ID          The device id to ask for; the broker derives one from the
                       serial number otherwise
  -h, --help           This text
  -V, --version        The version

Configuration (every key may be left out):
  logins = { diag = \"diag\" }   which Unix user a login runs as; others are refused
  remote_access = true         the owner's switch: false refuses every session
  journal = \"/var/log/daypass.ndjson\"   who came in, one JSON object a line
  broker_url = \"https://…\"     instead of the address in the join token
  proxy = \"http://[user:password@]host:port\"   an HTTP proxy that takes CONNECT
  state_dir = \"/var/lib/daypass\"
  shell = \"/bin/sh\"            instead of the shell in the password file
  sftp_server = \"/usr/lib/openssh/sftp-server\"   instead of the places where it usually is
  forward = [\"loopback\"]       where forwards may lead at all; [] for nowhere
  ssh_ports = [2222]           of the device's own SSH besides 22: no forward leads there
  max_channels = 31            how many may be open at once
  keepalive_s = 240            shortens by itself when idle links drop
  resume_grace_s = 120         how long sessions wait for a lost connection to come back
  reconnect_first_ms = 1000, reconnect_max_s = 300

Exit status: 0 done, stopped or retired; 1 it failed; 2 the command line or the
configuration is wrong.
";

#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Help,
    Version,
    Enrol {
        token: String,
        serial_number: Option<String>,
        device: Option<DeviceId>,
        files: Files,
    },
    Run(Files),
    Status(Files),
    /// A process of a session; not for people.
    Monitor(i32),
    Leader(i32),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Files {
    pub config: Option<PathBuf>,
    pub state: Option<PathBuf>,
}

/// Reads the arguments after the program's name.
pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Command, String> {
    let mut args = args.into_iter();
    let Some(command) = args.next() else {
        return Err("which command? One of enrol, run, status".to_owned());
    };
    let mut files = Files::default();
    let (mut serial_number, mut device, mut plain) = (None, None, Vec::new());
    while let Some(arg) = args.next() {
        let (name, given) = match arg.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
            _ => (arg, None),
        };
        let mut value = || given.clone().or_else(|| args.next()).ok_or(format!("{name} needs a value"));
        match name.as_str() {
            "-h" | "--help" => return Ok(Command::Help),
            "--config" => files.config = Some(value()?.into()),
            "--state" => files.state = Some(value()?.into()),
            "--serial-number" if command == "enrol" => serial_number = Some(value()?),
            "--device" if command == "enrol" => {
                device = Some(value()?.parse().map_err(|error| format!("--device: {error}"))?);
            }
            option if option.starts_with('-') && option != "-" => {
                return Err(format!("{option} is not an option of {command}"));
            }
            _ => plain.push(name),
        }
    }
    let fd =
        |plain: &[String]| plain.first().and_then(|fd| fd.parse().ok()).ok_or("not for people".to_owned());
    match (command.as_str(), plain.as_slice()) {
        ("-h" | "--help" | "help", _) => Ok(Command::Help),
        ("-V" | "--version", _) => Ok(Command::Version),
        ("enrol", [token]) => Ok(Command::Enrol { token: token.clone(), serial_number, device, files }),
        ("enrol", []) => Err("enrol needs a join token".to_owned()),
        ("run", []) => Ok(Command::Run(files)),
        ("status", []) => Ok(Command::Status(files)),
        (crate::session::MONITOR, plain) => fd(plain).map(Command::Monitor),
        (crate::session::LEADER, plain) => fd(plain).map(Command::Leader),
        ("enrol" | "run" | "status", [.., surplus]) => Err(format!("{surplus:?} is one argument too many")),
        (unknown, _) => Err(format!("{unknown:?} is not a command; one of enrol, run, status")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_command_line_reads_in_any_order_and_names_what_is_wrong() {
        let enrol = read("enrol --state /s dpj1.x --device=gw-1 --serial-number 7").unwrap();
        assert_eq!(
            enrol,
            Command::Enrol {
                token: "dpj1.x".into(),
                serial_number: Some("7".into()),
                device: Some("gw-1".parse().unwrap()),
                files: Files { state: Some("/s".into()), config: None },
            }
        );
        assert_eq!(read("run").unwrap(), Command::Run(Files::default()));
        for bad in [
            "",
            "enrol",
            "run x",
            "fly",
            "run --speed 1",
            "enrol t --device A_B",
            "run --config",
            "run --device x",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(read("enrol --help").unwrap(), Command::Help);
    }
}
