//! Watching a session that runs.

use crate::broker::{Broker, Reply};
use crate::place::Place;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};

const LIVE: &str = "GET /v1/sessions/S-7K2M9QXD/live";

fn lines(lines: &[Value]) -> Reply {
    let text: Vec<_> = lines.iter().map(|line| format!("{line}\n\n")).collect();
    Reply::text("application/x-ndjson", &text.concat())
}

fn end(what: &str, reason: Option<&str>, next: u64) -> Value {
    json!({"ended": what, "reason": reason, "detail": null, "channel": 0, "next": next})
}

/// The first answer ends with the access token, in the middle of an escape.
fn first_part() -> Reply {
    lines(&[
        json!({"version": 2, "width": 80, "height": 24}),
        json!([0.1, "o", "\u{1b}[?1049hone\u{1b}]0;ti"]),
        end("sign_in", None, 1234),
    ])
}

#[test]
fn watching_goes_on_where_it_was_when_an_access_token_ends_and_says_why_the_session_did() {
    let broker = Broker::start();
    broker.on(LIVE, first_part());
    broker.on(LIVE, lines(&[json!([2.0, "o", "tle\u{7} two\r\n"]), end("session", Some("idle"), 2000)]));
    let told = Place::signed_in(&broker, 300).run(&["watch", "S-7K2M9QXD"]);
    assert_eq!((told.code, told.out.as_str()), (0, "one two\n"), "{told:?}");
    assert!(told.err.contains("S-7K2M9QXD is over: idle.\nhint: `daypass play S-7K2M9QXD`"), "{told:?}");
    let asked = broker.heard(LIVE);
    assert!(asked[0].contains("?from=0 ") && asked[1].contains("?from=1234&channel=0 "), "{asked:?}");
}

#[test]
fn a_terminal_is_put_back_when_the_watching_is_broken_off() {
    let broker = Broker::start();
    broker.on(LIVE, first_part());
    broker.on(LIVE, Reply::never());
    let place = Place::signed_in(&broker, 300);
    let mut child = place.terminal("watch S-7K2M9QXD");
    let mut out = child.stdout.take().unwrap();
    let mut seen = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&seen).contains("one") {
        assert_eq!(out.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
    child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let (put_back, said) = (rest.find("\u{1b}[?1049l").unwrap(), rest.find("error: interrupted").unwrap());
    assert!(put_back < said, "{rest:?}");
}

#[test]
fn what_cannot_be_watched_to_its_end_says_so() {
    let header = json!({"version": 2, "width": 80, "height": 24});
    for (last, code, words) in [
        (Some(end("right", None, 9)), 4, "you may not watch S-7K2M9QXD any more"),
        (Some(end("failed", None, 9)), 1, "could not show more of S-7K2M9QXD"),
        (Some(end("terminal", None, 9)), 0, "The terminal was closed; S-7K2M9QXD goes on."),
        (None, 1, "ended without a goodbye"),
    ] {
        let broker = Broker::start();
        broker.on(LIVE, lines(&[vec![header.clone()], last.into_iter().collect()].concat()));
        let told = Place::signed_in(&broker, 300).run(&["watch", "S-7K2M9QXD"]);
        assert_eq!(told.code, code, "{told:?}");
        assert!(told.err.contains(words), "{told:?}");
    }
}
