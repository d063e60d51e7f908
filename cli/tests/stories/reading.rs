use crate::broker::{Broker, Reply, now};
use crate::place::Place;
use daypass_protocol::text::is_hidden;
use serde_json::{Value, json};

fn device(id: &str, serial: &str) -> Value {
    json!({"id": id, "serial_number": serial, "product_line": "edge-gateway", "state": "active",
        "labels": {"site": "lisbon"}, "online": true, "last_seen_at": now(), "key_fingerprint": null,
        "shim_version": "0.1.0", "enrolled_at": null})
}

pub fn session(recordings: &Value) -> Value {
    json!({"id": "S-7K2M9QXD", "request": "R-7K2M9QXD",
        "person": {"id": "P-7K2M9QXD", "email": "ana@example.com", "name": "Ana Silva"}, "device": "gw-0042",
        "login": "diag", "state": "ended", "started_at": 1_795_345_512_345_i64, "ended_at": 1_795_345_572_345_i64,
        "end_reason": "expired", "end_detail": null, "client_address": "192.0.2.7", "recordings": recordings})
}

pub fn recording(number: u32, kind: &str, channel: u32) -> Value {
    json!({"number": number, "kind": kind, "channel": channel, "bytes": 10, "sha256": null, "closed": true})
}

#[test]
fn a_list_comes_whole_over_its_pages() {
    let broker = Broker::start();
    broker.on(
        "GET /v1/devices",
        Reply::json(200, &json!({"items": [device("gw-0042", "A1")], "next": "gw-0042"})),
    );
    broker.on("GET /v1/devices", Reply::json(200, &json!({"items": [device("gw-0043", "A2")]})));
    let place = Place::signed_in(&broker, 300);
    let told = place.run(&["devices", "--line", "edge-gateway", "--label", "site=lisbon", "a b&c"]);
    assert_eq!(
        told.out,
        "DEVICE   LINE          STATE   LINK    SERIAL  LABELS\n\
         gw-0042  edge-gateway  active  online  A1      site=lisbon\n\
         gw-0043  edge-gateway  active  online  A2      site=lisbon\n"
    );
    let asked = broker.heard("GET /v1/devices");
    assert!(asked[0].contains("?line=edge-gateway&label=site%3Dlisbon&text=a+b%26c "), "{asked:?}");
    assert!(asked[1].contains("&after=gw-0042"), "{asked:?}");
}

#[test]
fn a_page_that_leads_to_itself_is_not_followed_for_ever() {
    let broker = Broker::start();
    broker.on("GET /v1/devices", Reply::json(200, &json!({"items": [device("gw-0042", "A1")], "next": "x"})));
    assert_eq!(Place::signed_in(&broker, 300).run(&["devices"]).code, 0);
    assert_eq!(broker.heard("GET /v1/devices").len(), 2);
}

#[test]
fn hostile_text_does_not_reach_the_terminal() {
    let broker = Broker::start();
    let hostile = "A1\u{1b}]52;c;eA==\u{7}\nroot  \u{9b}2J\u{202e}x\u{200b}";
    broker.on("GET /v1/devices", Reply::json(200, &json!({"items": [device("gw-0042", hostile)]})));
    let place = Place::signed_in(&broker, 300);
    let table = place.run(&["devices"]).out;
    assert_eq!(table.lines().count(), 2, "{table:?}");
    let json = place.run(&["devices", "--json"]).out;
    for out in [&table, &json] {
        assert!(!out.chars().any(|c| c != '\n' && is_hidden(c)), "{out:?}");
    }
    let read: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(read[0]["serial_number"], hostile, "data stays what it is");
}

#[test]
fn an_answer_that_is_not_of_a_broker_is_said_to_be_none() {
    let broker = Broker::start();
    broker.on("GET /v1/devices", Reply::text("text/html", "<html>"));
    let told = Place::signed_in(&broker, 300).run(&["devices"]);
    assert_eq!(told.code, 1);
    assert!(told.err.starts_with("error: the broker's answer is not as it should be"), "{told:?}");
}

#[test]
fn a_broker_out_of_reach_is_said_to_be() {
    let broker = Broker::start();
    let place = Place::signed_in(&broker, 300);
    drop(broker);
    let told = place.run(&["devices"]);
    assert_eq!(told.code, 1);
    assert!(told.err.contains("cannot be reached"), "{told:?}");
}

#[test]
fn sessions_are_listed_with_how_they_ended() {
    let broker = Broker::start();
    broker.on("GET /v1/sessions", Reply::json(200, &json!({"items": [session(&json!([]))]})));
    let told = Place::signed_in(&broker, 300).run(&["sessions", "--live", "--device", "gw-0042"]);
    assert_eq!(
        told.out,
        "SESSION     STATE    PERSON           WHERE         STARTED            LASTED  REQUEST\n\
         S-7K2M9QXD  expired  ana@example.com  diag@gw-0042  2026-11-22 11:05Z  1m      R-7K2M9QXD\n"
    );
    assert!(broker.heard("GET /v1/sessions").concat().contains("?live=true&device=gw-0042 "));
}

#[test]
fn a_terminal_recording_is_played_without_its_escapes_where_there_is_no_terminal() {
    let broker = Broker::start();
    let recordings = json!([recording(0, "events", 0), recording(1, "asciicast", 1)]);
    broker.on("GET /v1/sessions/S-7K2M9QXD", Reply::json(200, &session(&recordings)));
    let cast = "{\"version\":2,\"width\":80,\"height\":24}\n[0.1,\"o\",\"a\\u001b[31mb\\u001b]0;t\"]\n[900.0,\"o\",\"\\u0007c\\r\\n\"]\n[901.0,\"r\",\"100x30\"]\n[902.0,\"o\",\"cut off";
    broker.on("GET /v1/sessions/S-7K2M9QXD/recordings/1", Reply::text("application/x-asciicast", cast));
    let place = Place::signed_in(&broker, 300);
    let told = place.run(&["play", "S-7K2M9QXD"]);
    assert_eq!((told.code, told.out.as_str()), (0, "abc\n"), "{told:?}");
    assert_eq!(place.run(&["play", "S-7K2M9QXD", "--raw"]).out, cast);
}

#[test]
fn the_output_of_a_command_goes_to_the_streams_it_came_from() {
    let broker = Broker::start();
    broker.on("GET /v1/sessions/S-7K2M9QXD", Reply::json(200, &session(&json!([recording(1, "output", 1)]))));
    let lines = "{\"t\":1,\"stream\":\"stdout\",\"data\":\"b3V0G1s2bgo=\"}\n{\"t\":2,\"stream\":\"stderr\",\"data\":\"ZXJyCg==\"}\n";
    broker.on("GET /v1/sessions/S-7K2M9QXD/recordings/1", Reply::text("application/x-ndjson", lines));
    let told = Place::signed_in(&broker, 300).run(&["play", "S-7K2M9QXD"]);
    assert_eq!((told.out.as_str(), told.err.as_str(), told.code), ("out\n", "err\n", 0));
}

#[test]
fn one_of_several_recordings_has_to_be_chosen() {
    let broker = Broker::start();
    let recordings = json!([recording(1, "asciicast", 1), recording(2, "output", 4)]);
    broker.on("GET /v1/sessions/S-7K2M9QXD", Reply::json(200, &session(&recordings)));
    let place = Place::signed_in(&broker, 300);
    let told = place.run(&["play", "S-7K2M9QXD"]);
    assert_eq!(
        (told.code, told.err.as_str()),
        (2, "error: S-7K2M9QXD has recordings of channels 1, 4\nhint: choose one with --channel 1\n")
    );
    assert_eq!(place.run(&["play", "S-7K2M9QXD", "--channel", "9"]).code, 6);
}
