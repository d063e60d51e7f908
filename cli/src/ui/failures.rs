//! What is said when something fails: one line that says what, on what; one that says what to do.

use super::{clean, words};
use crate::failure::Failure;
use daypass_protocol::api::{Problem, Request};
use daypass_protocol::said;

/// RFC-less but documented in `--help`: see [`words::EXIT_CODES`].
pub mod exit {
    pub const FAILED: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const NOT_SIGNED_IN: u8 = 3;
    pub const DENIED: u8 = 4;
    pub const LAPSED: u8 = 5;
    pub const NOT_FOUND: u8 = 6;
    pub const INTERRUPTED: u8 = 130;
}

pub fn exit_code(failure: &Failure) -> u8 {
    match failure {
        Failure::NotSignedIn | Failure::NoBroker => exit::NOT_SIGNED_IN,
        Failure::Problem(problem) => match problem.status {
            401 => exit::NOT_SIGNED_IN,
            403 => exit::DENIED,
            404 => exit::NOT_FOUND,
            _ => exit::FAILED,
        },
        Failure::SignInRefused | Failure::Denied(_) | Failure::NoLongerWatched(_) => exit::DENIED,
        Failure::SignInLapsed | Failure::Lapsed(_) => exit::LAPSED,
        Failure::NoRecording(_) | Failure::NoSuchChannel { .. } => exit::NOT_FOUND,
        Failure::BadBrokerUrl { .. }
        | Failure::NoReason(_)
        | Failure::NeedsYes
        | Failure::Text(_)
        | Failure::SeveralRecordings { .. }
        | Failure::RawToTerminal
        | Failure::ProxyToWhere => exit::USAGE,
        Failure::Interrupted | Failure::StoppedWaiting(_) => exit::INTERRUPTED,
        _ => exit::FAILED,
    }
}

/// The message, and the hint where there is something to do. Each is one line, whatever is in it.
pub fn said(failure: &Failure) -> (String, Option<String>) {
    let (message, hint) = words_of(failure);
    (clean(&message), hint.map(|hint| clean(&hint)))
}

fn words_of(failure: &Failure) -> (String, Option<String>) {
    let hint = |text: &str| Some(text.to_owned());
    match failure {
        Failure::NotSignedIn => ("you are not signed in".to_owned(), hint("run `daypass login`")),
        Failure::NoBroker => (
            "this profile does not know a broker yet".to_owned(),
            hint("run `daypass login --broker https://…`"),
        ),
        Failure::BadBrokerUrl { url, why } => (
            format!("{url:?} is not the address of a broker: {why}"),
            hint("it looks like https://broker.example.com or https://127.0.0.1:8443"),
        ),
        Failure::Unreachable { url, why } => (
            format!("{url} cannot be reached: {why}"),
            hint("check the address and your network, then try again"),
        ),
        Failure::Proxy { url, why } => (
            format!("the proxy on the way to {url} refused: {why}"),
            hint(
                "HTTPS_PROXY names it, as http://user:password@host:port; NO_PROXY names what it is not for",
            ),
        ),
        Failure::Cut { url, why } => {
            (format!("the connection to {url} was cut: {why}"), hint("connect again"))
        }
        Failure::Untrusted { url, why } => (
            format!("the certificate of {url} is not trusted: {why}"),
            hint(
                "if it is your own broker, run `daypass login` with --ca-file PEM, or with --fingerprint SHA256:… as the broker prints it when it starts",
            ),
        ),
        Failure::Problem(problem) => problem_words(problem),
        Failure::BadAnswer { what, why } => (
            format!("{what} is not as it should be: {why}"),
            hint("check that the address is a Daypass broker and that this program is as new as it"),
        ),
        Failure::Token { error, description } => (
            format!("the broker refused to sign you in: {}", description.as_ref().unwrap_or(error)),
            hint("run `daypass login`"),
        ),
        Failure::NotRevoked(cause) => (
            format!("signed out here, but the broker could not be told: {}", words_of(cause).0),
            hint("if somebody else may have the tokens, ask who runs the broker to end your sign-in"),
        ),
        Failure::SignInRefused => (
            "the sign-in was refused in the browser".to_owned(),
            hint("run `daypass login` again, and confirm only a code that you started yourself"),
        ),
        Failure::SignInLapsed => {
            ("the code was not confirmed in time".to_owned(), hint("run `daypass login` again"))
        }
        Failure::Denied(request) => denied_words(request),
        Failure::Cancelled(id) => (format!("{id} was cancelled"), hint("ask again with `daypass request`")),
        Failure::Lapsed(id) => (
            format!("{id} lapsed: nobody answered in time"),
            hint("ask again, and tell somebody who can approve"),
        ),
        Failure::GrantOver(id) => {
            (format!("{id} was granted, and its time is over"), hint("ask again with `daypass request`"))
        }
        Failure::StoppedWaiting(id) => (
            format!("stopped waiting; {id} stays open"),
            Some(format!("take it back with `daypass cancel {id}`, or run the same command to wait again")),
        ),
        Failure::Interrupted => ("interrupted".to_owned(), None),
        Failure::NoReason(device) => {
            (format!("access to {device} needs a reason"), hint("say what for with --reason TEXT"))
        }
        Failure::NeedsYes => {
            ("there is no terminal to ask on".to_owned(), hint("run it with --yes to write without asking"))
        }
        Failure::Refused => (words::NOTHING_WRITTEN.trim_end_matches('.').to_lowercase(), None),
        Failure::Text(unfit) => (unfit.to_string(), None),
        Failure::File { path, error } => (
            format!("{}: {error}", path.display()),
            hint("check that the file and its directory are yours to write"),
        ),
        Failure::Corrupt { path, why } => (
            format!("{} cannot be used: {why}", path.display()),
            hint("`daypass logout` and `daypass login` make the profile's files anew"),
        ),
        Failure::UnfitPath(path) => (
            format!("{:?} has a character that ssh would read as something else", path.display().to_string()),
            hint(
                "move it to a path without quotes, %, $, *, ?, [, ] and backslash, for instance by XDG_CONFIG_HOME",
            ),
        ),
        Failure::NoHome => ("there is no home directory".to_owned(), hint("set HOME")),
        Failure::NoGateway { host, port, why } => (
            format!("{host} port {port} cannot be reached: {why}"),
            hint("if only HTTPS gets out of your network, run `daypass setup ssh --over https`"),
        ),
        Failure::NotHandedOver(error) => (
            format!("the connection could not be handed to ssh: {error}"),
            hint(
                "`daypass proxy --fdpass` is what ssh calls; its configuration needs `ProxyUseFdpass yes` beside it",
            ),
        ),
        Failure::Ssh(error) => {
            (format!("ssh cannot be started: {error}"), hint("install the OpenSSH client"))
        }
        Failure::Key(why) => (format!("the SSH key cannot be made: {why}"), None),
        Failure::NoRecording(id) => (
            format!("{id} has no recording to play"),
            hint("`daypass sessions --json` lists what was recorded"),
        ),
        Failure::NoSuchChannel { session, channel } => (
            format!("{session} has no recording of channel {channel}"),
            hint("`daypass sessions --json` lists what was recorded"),
        ),
        Failure::SeveralRecordings { session, channels } => {
            let list = channels.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            (
                format!("{session} has recordings of channels {list}"),
                Some(format!("choose one with --channel {}", channels.first().copied().unwrap_or(0))),
            )
        }
        Failure::RawToTerminal => (
            "a raw recording is not for a terminal: it can contain anything".to_owned(),
            hint("send it to a file, or play it without --raw and --json"),
        ),
        Failure::ProxyToWhere => (
            "-L asks for its own target, and -D without --forward for those of the product line".to_owned(),
            hint("name with --forward HOST:PORT where -D leads, or use one at a time"),
        ),
        Failure::NoLongerWatched(id) => (
            format!("you may not watch {id} any more"),
            hint("policy decides what each person may do; ask who keeps it"),
        ),
        Failure::NotShown(id) => (
            format!("the broker could not show more of {id}; the session is not touched by that"),
            hint("try again in a moment; the cause is in the broker's log"),
        ),
        Failure::Output(error) => (format!("input or output failed: {error}"), None),
        Failure::Random => ("the system gives no random numbers or no cryptography".to_owned(), None),
    }
}

fn problem_words(problem: &Problem) -> (String, Option<String>) {
    let hint = problem.hint.clone().or_else(|| match problem.status {
        401 => Some("run `daypass login`".to_owned()),
        403 => Some("policy decides what each person may do; ask who keeps it".to_owned()),
        404 => Some("check the spelling; what you may not see is not found either".to_owned()),
        429 | 503 => Some("try again in a moment".to_owned()),
        _ => None,
    });
    (problem.detail.clone().unwrap_or_else(|| problem.title.clone()), hint)
}

fn denied_words(request: &Request) -> (String, Option<String>) {
    let people: Vec<String> = request
        .answers
        .iter()
        .filter(|answer| answer.verdict == daypass_protocol::api::Verdict::Deny)
        .map(said::answer)
        .collect();
    if people.is_empty() {
        let why = if request.why.is_empty() {
            "policy does not allow it".to_owned()
        } else {
            request.why.join("; ")
        };
        (
            format!("{} is denied: {why}", request.id),
            Some("ask for less: a shorter time, fewer channels or another login".to_owned()),
        )
    } else {
        (format!("{} is {}", request.id, people.join("; ")), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(status: u16) -> Failure {
        Failure::Problem(Box::new(Problem {
            kind: "about:blank".to_owned(),
            title: "Title".to_owned(),
            status,
            detail: Some("it\nfailed\x1b[2J".to_owned()),
            hint: None,
            code: "x".to_owned(),
        }))
    }

    #[test]
    fn each_kind_of_refusal_has_its_exit_code() {
        for (failure, code) in [
            (problem(401), 3),
            (problem(403), 4),
            (problem(404), 6),
            (problem(409), 1),
            (problem(500), 1),
            (Failure::NotSignedIn, 3),
            (Failure::SignInRefused, 4),
            (Failure::SignInLapsed, 5),
            (Failure::Lapsed("R-00000000".parse().unwrap()), 5),
            (Failure::StoppedWaiting("R-00000000".parse().unwrap()), 130),
        ] {
            assert_eq!(exit_code(&failure), code, "{failure:?}");
        }
    }

    #[test]
    fn an_error_is_one_line_that_cannot_act_on_the_terminal() {
        let (message, hint) = said(&problem(403));
        assert_eq!(message, "it\u{fffd}failed\u{fffd}[2J");
        assert!(hint.is_some());
    }

    #[test]
    fn a_stopped_wait_says_that_the_request_stays_and_how_to_cancel_it() {
        let (message, hint) = said(&Failure::StoppedWaiting("R-7K2M9QXD".parse().unwrap()));
        assert!(message.contains("R-7K2M9QXD stays open"));
        assert!(hint.unwrap().contains("daypass cancel R-7K2M9QXD"));
    }
}
