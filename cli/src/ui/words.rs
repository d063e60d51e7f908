//! The words of the program, apart from those about failures and those in `--help`.

use super::clean;
use crate::failure::Failure;
use daypass_protocol::api::{Grant, PersonRef, Request};
use daypass_protocol::channel::{ChannelKind, ChannelSet};
use daypass_protocol::duration::spoken;
use daypass_protocol::said;

pub const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed
  2    the command line is wrong
  3    not signed in
  4    denied, by policy or by a person
  5    nobody answered in time
  6    not found, or not for you to see
  130  interrupted
  255  `daypass ssh`: the connection failed, as ssh says it; otherwise the command's own code

Environment:
  DAYPASS_PROFILE  as --profile
  DAYPASS_BROKER   as login --broker
  HTTPS_PROXY      http://[user:password@]host:port, through which the broker is reached
  NO_PROXY         hosts that are reached without it
  NO_COLOR         no colours";

pub const NO_CHANNELS: &str = "name at least one of shell, exec, sftp, forward";
pub const NOT_POSITIVE: &str = "a number above 0";

pub const URL_UNREADABLE: &str = "it cannot be read as one";
pub const URL_NOT_HTTPS: &str = "it does not start with https://";
pub const URL_TOO_MUCH: &str = "only a host and a port may stand in it";

pub const ANSWER: &str = "the broker's answer";
pub const BROKER_INFO: &str = "the broker's description of itself";
pub const CERTIFICATE: &str = "the certificate that the broker sent";
/// Of an operation on files that the device was asked for, when the record ends there.
pub const NO_ANSWER: &str = "(asked; no answer is on record)";
pub const RECORDING: &str = "the recording";
pub const CA_FILE: &str = "the certificate authority";
pub const NO_WEBSOCKET: &str = "it opened no WebSocket for SSH";
pub const BAD_TICKET: &str = "its ticket does not read";
pub const NOT_SSH: &str = "what came is not SSH";
pub const NO_ANSWER_IN_TIME: &str = "no answer";
pub const NO_GOODBYE: &str = "it ended without a goodbye";
pub const TOO_LARGE: &str = "it is too large";
pub const NO_CERTIFICATE: &str = "there is no PEM certificate in it";
pub const CA_MISSING: &str = "it is missing";
pub const NOT_TOKENS: &str = "it does not hold tokens";
pub const OTHER_KEY: &str = "it is over another key than ours";
pub const NOT_A_USER_CERTIFICATE: &str = "it is not a user certificate";
pub const BAD_SSH_HOST: &str = "its SSH address cannot stand in ssh_config";
pub const BAD_SUFFIX: &str = "its host suffix cannot stand in ssh_config";
pub const BAD_HOST_CA: &str = "it has no readable host CA key";
pub const LINE_TOO_LONG: &str = "a line is too long";
pub const NOT_ASCIICAST: &str = "it does not start as asciicast version 2";

pub const GENERATED: &str =
    "# Made by daypass and overwritten by it. Your own settings belong in ~/.ssh/config.\n";
pub const INCLUDE_MARK: &str = "# daypass: the next line is kept by `daypass setup ssh`";

pub const NO_DEVICES: &str = "No devices.";
pub const NO_REQUESTS: &str = "No requests.";
pub const NO_SESSIONS: &str = "No sessions.";
pub const MORE: &str = "There are more; --limit 0 shows all.";

pub const ASK_REASON: &str = "What for?";
pub const ASK_END_REASON: &str = "Why end it?";
pub const ENDED_WITHOUT_REASON: &str = "ended from the command line, without a reason";
pub const ASK_WRITE: &str = "Write this? [y/N]";
pub const NOTHING_WRITTEN: &str = "Nothing is written.";
pub const SIGNED_OUT: &str = "Signed out.";
pub const NOT_SIGNED_IN_ANYWAY: &str = "Nobody was signed in.";
pub const SET_UP_ALREADY: &str = "Everything is in place.";
pub const TOKEN_SHOWN_ONCE: &str = "The token is shown only this once.";

pub fn status(code: u16) -> String {
    format!("HTTP status {code} without a reason")
}

pub fn pending(left: &str) -> String {
    format!("pending, {left} left")
}

pub fn live(left: &str) -> String {
    format!("live, {left} left")
}

/// What a request is about, in a table's cell.
pub fn asked_for(request: &Request, channels: &ChannelSet) -> String {
    match &request.command {
        Some(command) => format!("asks to run: {command}"),
        None if channels.contains(ChannelKind::Forward) => format!("{channels} to {}", targets(request)),
        None => channels.to_string(),
    }
}

/// Where the forwards of a request lead.
pub fn targets(request: &Request) -> String {
    let targets: Vec<_> = request.forward_targets.iter().map(ToString::to_string).collect();
    targets.join(", ")
}

pub fn person(person: &PersonRef) -> String {
    format!("{} <{}>", person.name, person.email)
}

pub fn approvers(teams: &[String]) -> String {
    if teams.is_empty() { "nobody that policy names".to_owned() } else { teams.join(", ") }
}

pub fn window(grant: &Grant, ends: &str) -> String {
    let seconds = grant.starts_at.until(grant.ends_at).as_secs();
    format!("{} for {}, until {ends}", grant.channels, spoken(seconds))
}

pub fn confirm_code(uri: &str, code: &str, complete: &str) -> String {
    format!(
        "To sign in, open\n\n    {}\n\nand check that it shows the code  {}\n(or type the code at {})",
        clean(complete),
        clean(code),
        clean(uri)
    )
}

pub fn signed_in(name: &str, email: &str, broker: &str) -> String {
    format!("Signed in to {broker} as {} <{}>.", clean(name), clean(email))
}

pub fn trying_again(url: &str) -> String {
    format!("{url} does not answer; trying again.")
}

pub fn still_needs(request: &Request) -> String {
    format!("Counted. {}.", said::waits_for(request))
}

pub fn will_write(path: &str, content: &str) -> String {
    format!("{path}\n\n{}", indented(content.lines()))
}

pub fn will_include(path: &str, lines: &[&str]) -> String {
    format!("{path}, at the top\n\n{}", indented(lines.iter().copied()))
}

fn indented<'t>(lines: impl Iterator<Item = &'t str>) -> String {
    lines.fold(String::new(), |text, line| text + "    " + line + "\n")
}

pub fn set_up(login: &str, suffix: &str) -> String {
    format!("Now `ssh {login}@DEVICE.{suffix}` works: with a grant at once, and without one it asks for it.")
}

/// Said before ssh itself says that it fails.
/// `daypass proxy --fdpass` goes on without a ticket.
pub fn by_jump(why: &Failure) -> String {
    let why = super::failures::said(why).0;
    format!("{}: going through the gateway as a jump host", why.trim_end_matches('.'))
}

pub fn no_ssh_port(host: &str, port: u16, why: &str) -> String {
    format!(
        "{host} port {port} cannot be reached ({why}); \
         if only HTTPS gets out of your network, run `daypass setup ssh --over https`"
    )
}

pub fn client(version: &str, host: &str) -> String {
    format!("daypass {version} on {host}")
}
