use crate::broker::{Broker, Reply, now};
use crate::place::{Place, Told};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::process::Command;

pub fn request(state: &str, grant: &Value) -> Value {
    let now = now().as_millis();
    json!({"id": "R-7K2M9QXD", "state": state,
        "person": {"id": "P-7K2M9QXD", "email": "ana@example.com", "name": "Ana Silva"},
        "device": "gw-0042", "product_line": "edge-gateway", "login": "diag", "channels": ["shell", "exec"],
        "duration_s": 1800, "reason": "modem resets", "ticket": "T-1", "emergency": false, "asked_at": now,
        "lapses_at": now + 3_600_000, "why": ["field devices need a second pair of eyes"],
        "approver_teams": ["support-leads"], "answers": [], "grant": grant, "may_answer": false})
}

pub fn live() -> Value {
    let now = now().as_millis();
    json!({"state": "live", "channels": ["shell", "exec"], "starts_at": now, "ends_at": now + 1_800_000,
        "ended_by": null})
}

fn ask(place: &Place, more: &[&str]) -> Told {
    place.run(&[&["request", "gw-0042", "--reason", "modem resets"], more].concat())
}

#[test]
fn a_request_says_what_was_asked_and_who_can_approve() {
    let broker = Broker::start();
    broker.on("POST /v1/requests", Reply::json(201, &request("pending", &Value::Null)));
    let place = Place::signed_in(&broker, 300);
    let told = ask(&place, &["--for", "1h30m", "--channel", "shell", "--ticket", "T-1"]);
    assert_eq!(told.code, 0, "{told:?}");
    let sent = broker.heard("POST /v1/requests").concat();
    let body: Value =
        serde_json::from_str(sent.split_once(' ').unwrap().1.split_once(' ').unwrap().1).unwrap();
    assert_eq!(
        body,
        json!({"device": "gw-0042", "login": "diag", "channels": ["shell"], "duration_s": 5400,
            "reason": "modem resets", "ticket": "T-1", "emergency": false})
    );
    assert!(told.err.contains("waits for somebody of support-leads (field devices need"), "{told:?}");
    assert!(told.out.contains("request    R-7K2M9QXD\n"), "{told:?}");
}

#[test]
fn waiting_ends_with_the_answer() {
    let cases = [
        ("granted", live(), 0, ""),
        ("denied", Value::Null, 4, "error: R-7K2M9QXD is denied"),
        ("lapsed", Value::Null, 5, "error: R-7K2M9QXD lapsed"),
        ("cancelled", Value::Null, 1, "error: R-7K2M9QXD was cancelled"),
    ];
    for (state, grant, code, words) in cases {
        let broker = Broker::start();
        broker.on("POST /v1/requests", Reply::json(201, &request("pending", &Value::Null)));
        broker.on("GET /v1/requests/R-7K2M9QXD", Reply::json(200, &request("pending", &Value::Null)));
        broker.on("GET /v1/requests/R-7K2M9QXD", Reply::json(200, &request(state, &grant)));
        let told = ask(&Place::signed_in(&broker, 300), &["--wait"]);
        assert_eq!(told.code, code, "{state}: {told:?}");
        assert!(told.err.contains(words), "{state}: {told:?}");
        let polls = broker.heard("GET /v1/requests/R-7K2M9QXD");
        assert!(polls.len() == 2 && polls[0].contains("wait_s=25&state=pending"), "{polls:?}");
    }
}

#[test]
fn a_broker_that_fails_for_a_moment_is_asked_again() {
    let broker = Broker::start();
    broker.on("POST /v1/requests", Reply::json(201, &request("pending", &Value::Null)));
    broker.on("GET /v1/requests/R-7K2M9QXD", Reply::problem(503, "starting", None));
    broker.on("GET /v1/requests/R-7K2M9QXD", Reply::json(200, &request("granted", &live())));
    let told = ask(&Place::signed_in(&broker, 300), &["--wait"]);
    assert_eq!(told.code, 0, "{told:?}");
}

#[test]
fn ctrl_c_leaves_the_request_and_says_how_to_cancel_it() {
    let broker = Broker::start();
    broker.on("POST /v1/requests", Reply::json(201, &request("pending", &Value::Null)));
    broker.on("GET /v1/requests/R-7K2M9QXD", Reply::never());
    let place = Place::signed_in(&broker, 300);
    let mut child = place.command(&["request", "gw-0042", "--reason", "x", "--wait"]).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    err.read_line(&mut line).unwrap();
    assert!(line.contains("R-7K2M9QXD waits for"), "{line}");
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let rest: Vec<String> = err.lines().map(Result::unwrap).collect();
    assert_eq!(rest[0], "error: stopped waiting; R-7K2M9QXD stays open");
    assert!(rest[1].starts_with("hint: take it back with `daypass cancel R-7K2M9QXD`"), "{rest:?}");
}

#[test]
fn a_refusal_is_told_in_the_brokers_words_with_its_exit_code() {
    for (status, code) in [(401, 3), (403, 4), (404, 6), (409, 1), (422, 1)] {
        let broker = Broker::start();
        let reply = Reply::problem(status, "only 15 minutes\u{1b}[2J are allowed", Some("use --for 15m"));
        broker.on("POST /v1/requests", reply);
        let told = ask(&Place::signed_in(&broker, 300), &[]);
        assert_eq!(told.code, code, "{told:?}");
        if status != 401 {
            assert_eq!(
                told.err, "error: only 15 minutes\u{fffd}[2J are allowed\nhint: use --for 15m\n",
                "{status}"
            );
        }
    }
}

#[test]
fn hidden_characters_and_long_text_are_refused_before_they_are_sent() {
    let broker = Broker::start();
    let place = Place::signed_in(&broker, 300);
    let long = "a".repeat(100_000);
    for (reason, word) in
        [("a\u{202e}b", "U+202E"), (long.as_str(), "at most 2000"), ("  ", "needs a reason")]
    {
        let told = place.run(&["request", "gw-0042", "--reason", reason]);
        assert_eq!(told.code, 2, "{told:?}");
        assert!(told.err.contains(word), "{told:?}");
    }
    assert!(broker.heard("POST").is_empty());
}

#[test]
fn an_approver_shortens_and_narrows() {
    let broker = Broker::start();
    broker.on("POST /v1/requests/R-7K2M9QXD/approve", Reply::json(200, &request("granted", &live())));
    let place = Place::signed_in(&broker, 300);
    let told = place.run(&["approve", "R-7K2M9QXD", "--for", "15m", "--channel", "shell", "--comment", "ok"]);
    assert_eq!(told.code, 0, "{told:?}");
    let sent = broker.heard("POST /v1/requests/R-7K2M9QXD/approve").concat();
    assert!(sent.ends_with(r#"{"duration_s":900,"channels":["shell"],"comment":"ok"}"#), "{sent}");
    assert!(told.err.contains("R-7K2M9QXD is granted for 30m."), "{told:?}");
}
