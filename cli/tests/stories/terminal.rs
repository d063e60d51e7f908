//! With a person in front of it.

use crate::asking::{live, request};
use crate::broker::{Broker, Reply};
use crate::place::Place;
use crate::reading::{recording, session};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::process::{Child, Command};
use std::time::Duration;

/// Reads what the terminal shows until `words` stand in it.
fn until(child: &mut Child, words: &str) -> String {
    let out = child.stdout.as_mut().unwrap();
    let mut seen = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&seen).contains(words) {
        assert_eq!(out.read(&mut byte).unwrap(), 1, "ended at {:?}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
    String::from_utf8(seen).unwrap()
}

fn without_a_grant() -> (Broker, Place) {
    let broker = Broker::start();
    broker.on("GET /v1/requests", Reply::json(200, &json!({"items": []})));
    broker.on("POST /v1/requests", Reply::json(201, &request("pending", &Value::Null)));
    let place = Place::signed_in(&broker, 300);
    (broker, place)
}

#[test]
fn the_reason_is_asked_and_the_approvers_are_named_while_it_waits() {
    let (broker, place) = without_a_grant();
    broker.on("GET /v1/requests/R-7K2M9QXD", Reply::json(200, &request("granted", &live())));
    let mut child = place.terminal("ssh gw-0042");
    until(&mut child, "What for? ");
    child.stdin.as_mut().unwrap().write_all(b"modem resets\n").unwrap();
    let shown = until(&mut child, "R-7K2M9QXD is granted for 30m.");
    assert!(shown.contains("R-7K2M9QXD waits for somebody of support-leads"), "{shown:?}");
    assert_eq!(child.wait().unwrap().code(), Some(7));
    assert!(broker.heard("POST /v1/requests").concat().contains("\"reason\":\"modem resets\""));
}

#[test]
fn ctrl_c_is_heard_while_a_question_is_open_and_while_a_request_waits() {
    let (broker, place) = without_a_grant();
    let mut child = place.terminal("ssh gw-0042");
    until(&mut child, "What for? ");
    child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    until(&mut child, "error: interrupted");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(broker.heard("POST /v1/requests").is_empty());

    broker.on("GET /v1/requests/R-7K2M9QXD", Reply::never());
    let mut child = place.terminal("ssh gw-0042 --reason x");
    until(&mut child, "support-leads");
    child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    until(&mut child, "R-7K2M9QXD stays open");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_replay_draws_and_does_nothing_else_to_the_terminal() {
    let broker = Broker::start();
    broker.on(
        "GET /v1/sessions/S-7K2M9QXD",
        Reply::json(200, &session(&json!([recording(1, "asciicast", 1)]))),
    );
    let cast = [
        json!({"version": 2, "width": 80, "height": 24}),
        json!([0.01, "o", "a\x1b[31mb\x1b[0m\x1b]0;title\x07\x1b]52;c;eA==\x07"]),
        json!([0.02, "o", "\x1b]8;;https://evil\x1b\\link\x1b]8;;\x1b\\\x1b[6n\x1b[c\x1b[?1000h"]),
        json!([9000.0, "o", "\x1b[?1049hend"]),
    ]
    .map(|line| format!("{line}\n"))
    .concat();
    broker.on("GET /v1/sessions/S-7K2M9QXD/recordings/1", Reply::text("application/x-asciicast", &cast));
    let place = Place::signed_in(&broker, 300);
    let mut child = place.terminal("play S-7K2M9QXD --idle 0.05");
    let mut shown = String::new();
    child.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(
        shown.trim_end(),
        "a\x1b[31mb\x1b[0mlink\x1b[?1049hend\x1b[?1049l\x1b7\x1b[r\x1b8\x1b[4l\x1b[?7h\x1b[?25h\x1b(B\x1b[0m"
    );
}

/// A real terminal of 80 by 24, gone with the test.
struct Tmux<'p>(&'p Place);

impl Tmux<'_> {
    fn call(&self, args: &[&str]) -> String {
        let mut tmux = Command::new("tmux");
        tmux.arg("-S").arg(self.0.dir.path().join("tmux")).args(["-f", "/dev/null"]).args(args).env_clear();
        tmux.envs(self.0.command(&[]).get_envs().filter_map(|(name, value)| Some((name, value?))));
        tmux.env("DAYPASS", env!("CARGO_BIN_EXE_daypass"));
        String::from_utf8(tmux.output().unwrap().stdout).unwrap()
    }

    /// What it shows once `words` stand in it.
    fn shows(&self, words: &str) -> Vec<String> {
        for _ in 0..400 {
            let lines: Vec<_> = self.call(&["capture-pane", "-p"]).lines().map(str::to_owned).collect();
            if lines.iter().any(|line| line == words) {
                return lines;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{words:?} is not shown: {}", self.call(&["capture-pane", "-p"]));
    }
}

impl Drop for Tmux<'_> {
    fn drop(&mut self) {
        self.call(&["kill-server"]);
    }
}

#[test]
fn a_replay_leaves_the_cursor_behind_what_it_showed() {
    for (output, shown) in [
        ("one\r\ntwo\r\n", &["before", "one", "two", "", "after"][..]),
        ("one\r\n\x1b[?1049hfull\x1b[?1049l\r\ntwo\r\n", &["before", "one", "", "two", "", "after"]),
        ("one\r\n\x1b[?1049hcut off", &["before", "one", "", "after"]),
    ] {
        let broker = Broker::start();
        broker.on(
            "GET /v1/sessions/S-7K2M9QXD",
            Reply::json(200, &session(&json!([recording(1, "asciicast", 1)]))),
        );
        let cast =
            format!("{}\n{}\n", json!({"version": 2, "width": 80, "height": 24}), json!([0.01, "o", output]));
        broker.on("GET /v1/sessions/S-7K2M9QXD/recordings/1", Reply::text("application/x-asciicast", &cast));
        let place = Place::signed_in(&broker, 300);
        let tmux = Tmux(&place);
        let script = "echo before; \"$DAYPASS\" play S-7K2M9QXD; echo after; exec sleep 60";
        tmux.call(&["new-session", "-d", "-x", "80", "-y", "24", script]);
        let lines = tmux.shows("after");
        assert_eq!(lines[..shown.len()], *shown, "{output:?}");
    }
}

#[test]
fn a_raw_recording_is_not_written_to_a_terminal() {
    let broker = Broker::start();
    broker.on(
        "GET /v1/sessions/S-7K2M9QXD",
        Reply::json(200, &session(&json!([recording(1, "asciicast", 1)]))),
    );
    broker.on("GET /v1/sessions/S-7K2M9QXD/recordings/1", Reply::text("application/x-asciicast", "x"));
    let place = Place::signed_in(&broker, 300);
    let mut child = place.terminal("play S-7K2M9QXD --raw");
    until(&mut child, "error: a raw recording is not for a terminal");
    assert_eq!(child.wait().unwrap().code(), Some(2));
}
