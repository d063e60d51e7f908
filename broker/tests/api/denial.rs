//! Every operation, for everybody: what they are answered.

use crate::world::{Answer, FIELD, LAB, Person, World, answer, ask_for};
use daypass_broker::audit::Actor;
use daypass_broker::http::router::openapi;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;

const CALLERS: [&str; 7] = ["nobody", "visitor", "engineer", "colleague", "approver", "reviewer", "operator"];

/// What each caller is answered, in the order of [`CALLERS`]. Requests, grants and sessions are the
/// engineer's; what somebody may not even know of is 404.
const TABLE: &[(&str, [u16; 7])] = &[
    // Public. What they give depends on what they are given, not on who calls.
    ("GET /login", [302; 7]),
    ("GET /login/callback", [403; 7]),
    ("GET /v1/broker", [200; 7]),
    ("POST /v1/device-authorization", [200; 7]),
    ("POST /v1/token", [400; 7]),
    ("POST /v1/revoke", [200; 7]),
    //                                  nobody visitor engineer colleague approver reviewer operator
    ("POST /logout", [401, 204, 204, 204, 204, 204, 204]),
    ("GET /v1/cli-sign-ins/{user_code}", [401, 200, 200, 200, 200, 200, 200]),
    ("POST /v1/cli-sign-ins/{user_code}", [401, 204, 204, 204, 204, 204, 204]),
    ("GET /v1/me", [401, 200, 200, 200, 200, 200, 200]),
    ("POST /v1/me/certificate", [401, 200, 200, 200, 200, 200, 200]),
    //                                  nobody visitor engineer colleague approver reviewer operator
    ("GET /v1/product-lines", [401, 200, 200, 200, 200, 200, 200]),
    ("POST /v1/product-lines", [401, 403, 403, 403, 403, 403, 201]),
    ("GET /v1/devices", [401, 200, 200, 200, 200, 200, 200]),
    ("GET /v1/devices/{id}", [401, 404, 200, 200, 200, 200, 200]),
    ("POST /v1/devices/{id}/suspend", [401, 404, 403, 403, 403, 403, 200]),
    ("POST /v1/devices/{id}/resume", [401, 404, 403, 403, 403, 403, 200]),
    ("POST /v1/enrol-tokens", [401, 403, 403, 403, 403, 403, 201]),
    //                                  nobody visitor engineer colleague approver reviewer operator
    ("GET /v1/requests", [401, 200, 200, 200, 200, 200, 200]),
    ("POST /v1/requests", [401, 403, 201, 201, 403, 403, 403]),
    ("GET /v1/requests/{id}", [401, 404, 200, 404, 200, 200, 200]),
    // Nobody answers their own request: 403 for the engineer.
    ("POST /v1/requests/{id}/approve", [401, 404, 403, 404, 200, 403, 403]),
    ("POST /v1/requests/{id}/deny", [401, 404, 403, 404, 200, 403, 403]),
    ("POST /v1/requests/{id}/cancel", [401, 404, 200, 404, 403, 403, 403]),
    ("POST /v1/requests/{id}/revoke", [401, 404, 200, 404, 200, 200, 200]),
    //                                  nobody visitor engineer colleague approver reviewer operator
    ("GET /v1/sessions", [401, 200, 200, 200, 200, 200, 200]),
    ("GET /v1/sessions/{id}", [401, 404, 200, 404, 404, 200, 200]),
    // 409: they may, and it is over already.
    ("POST /v1/sessions/{id}/end", [401, 404, 409, 404, 404, 409, 409]),
    ("GET /v1/sessions/{id}/live", [401, 404, 409, 404, 404, 409, 403]),
    ("GET /v1/sessions/{id}/recordings/{number}", [401, 404, 200, 404, 404, 200, 403]),
    // The way to SSH's own proof, which asks everybody for a grant: as open as the SSH port.
    ("GET /v1/ssh/{host}", [401, 101, 101, 101, 101, 101, 101]),
    ("POST /v1/ssh/{host}/tickets", [401, 201, 201, 201, 201, 201, 201]),
];

/// `GET /v1/me` and its description, for all that the API describes.
fn operations() -> Vec<(String, Value)> {
    let api = serde_json::to_value(openapi()).unwrap();
    let mut all = Vec::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            all.push((format!("{} {path}", method.to_uppercase()), operation.clone()));
        }
    }
    all
}

/// How an operation takes callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Public,
    /// A session cookie alone opens it.
    Browser,
    /// An access token, too.
    Either,
    /// An access token alone opens it.
    Token,
}

fn door(operation: &Value) -> Door {
    match operation.get("security").and_then(Value::as_array).map(Vec::as_slice) {
        None => Door::Either,
        Some([only]) if *only == json!({}) => Door::Public,
        Some([only]) if *only == json!({ "cookie": [] }) => Door::Browser,
        Some([only]) if *only == json!({ "access_token": [] }) => Door::Token,
        other => panic!("security that this test does not know: {other:?}"),
    }
}

/// The call, without who calls: on objects made for it, with a body that would do.
async fn call(
    world: &World,
    engineer: &Person,
    approver: &Person,
    operation: &str,
    nth: usize,
) -> RequestBuilder {
    let (method, path) = operation.split_once(' ').unwrap();
    let mut path = path.to_owned();
    let fill = |path: &mut String, id: &str| *path = path.replace("{id}", id);
    if path.starts_with("/v1/devices/") {
        fill(&mut path, LAB);
        // As it has to be for the step to be possible; it may be so already.
        let (server, device) = (&world.ctx.tunnel_server, LAB.parse().unwrap());
        let _ = match operation {
            "POST /v1/devices/{id}/resume" => server.suspend(&device, Actor::Broker, "for the test").await,
            _ => server.resume(&device, Actor::Broker, "for the test").await,
        };
    } else if path.starts_with("/v1/requests/") {
        let id = world.ask(engineer, FIELD).await;
        if operation == "POST /v1/requests/{id}/revoke" {
            let granted = world.post(approver, &format!("/v1/requests/{id}/approve"), json!({})).await;
            assert_eq!(granted.status, 200, "{}", granted.text);
        }
        fill(&mut path, &id);
    } else if path.starts_with("/v1/sessions/") {
        fill(&mut path, &world.past_session(engineer).await);
        path = path.replace("{number}", "0");
    } else if path.contains("{user_code}") {
        path = path.replace("{user_code}", &world.cli_asks().await.1);
    } else if path.starts_with("/v1/ssh/") {
        path = path.replace("{host}", LAB);
    }
    let request = world.request(method, &path);
    match operation {
        "POST /v1/device-authorization" => request.form(&[("client_id", "daypass-cli")]),
        "POST /v1/token" => request.form(&[("grant_type", "refresh_token"), ("refresh_token", "nobody's")]),
        "POST /v1/revoke" => request.form(&[("token", "nobody's")]),
        "POST /v1/cli-sign-ins/{user_code}" => request.json(&json!({ "confirm": true })),
        "POST /v1/me/certificate" => request.json(&json!({ "public_key": crate::sign_in::key(world, "ed25519") })),
        "POST /v1/product-lines" => request.json(&json!({
            "name": format!("line-{nth}"), "title": "A line", "cra_class": "default", "support_end": "2031-12-31",
        })),
        "POST /v1/enrol-tokens" => request.json(&json!({ "product_line": "edge-gateway" })),
        "POST /v1/requests" => request.json(&ask_for(FIELD)),
        "GET /v1/ssh/{host}" => request
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", daypass_protocol::api::SSH_PROTOCOL),
        "POST /v1/requests/{id}/deny" => request.json(&json!({ "comment": "not today" })),
        _ if method == "POST" => request.json(&json!({ "reason": "for the test" })),
        _ => request,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_is_denied_to_whoever_may_not() {
    let described = operations();
    let known: BTreeSet<&str> = TABLE.iter().map(|(operation, _)| *operation).collect();
    assert_eq!(known.len(), TABLE.len(), "an operation stands in TABLE twice");
    for (operation, _) in &described {
        assert!(
            known.contains(operation.as_str()),
            "`{operation}` is new. Add a line to TABLE in broker/tests/api/denial.rs that says what each caller \
             is answered, and to `call` what it is called with."
        );
    }
    for operation in &known {
        assert!(
            described.iter().any(|(name, _)| name == operation),
            "`{operation}` is not in the API's description any more. Take its line out of TABLE in \
             broker/tests/api/denial.rs, if it is really gone."
        );
    }

    let world = World::new().await;
    let mut people = Vec::new();
    for caller in &CALLERS[1..] {
        people.push(world.sign_in(caller).await);
    }
    let (engineer, approver) = (&people[1], &people[3]);
    let mut wrong = String::new();
    for (operation, expected) in TABLE {
        let door = door(&described.iter().find(|(name, _)| name == operation).unwrap().1);
        assert_eq!(door == Door::Public, expected[0] != 401, "{operation}: described as {door:?}");
        for (nth, (caller, expected)) in CALLERS.iter().zip(expected).enumerate() {
            let request = call(&world, engineer, approver, operation, nth).await;
            let person = nth.checked_sub(1).map(|nth| &people[nth]);
            let answer = match (person, door) {
                (None, _) | (_, Door::Public) => answer(request).await,
                (Some(_), Door::Browser) => {
                    // One of their own, since it may be signed out.
                    let mut browser = daypass_broker::demo::Browser::open(&world.ctx, world.client.clone());
                    browser.sign_in(caller).await.unwrap();
                    answer(browser.as_console(request).unwrap()).await
                }
                (Some(person), Door::Either | Door::Token) => {
                    answer(request.bearer_auth(&person.access)).await
                }
            };
            if answer.status != *expected {
                let _ = writeln!(
                    wrong,
                    "{operation} for {caller}: {}, not {expected}: {}",
                    answer.status, answer.text
                );
            } else if answer.status.is_client_error() && door != Door::Public {
                answer.problem(*expected);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Who is not somebody is nobody: a token that is no token, of somebody else's making, or beside a good
/// cookie; an access token where only a browser may.
#[tokio::test(flavor = "multi_thread")]
async fn what_proves_nobody_opens_nothing() {
    let world = World::new().await;
    let (engineer, approver) = (world.sign_in("engineer").await, world.sign_in("approver").await);
    let mut parts = engineer.access.split('.').map(str::to_owned).collect::<Vec<_>>();
    parts[2] = parts[2].chars().rev().collect();
    let forged = parts.join(".");
    for (operation, description) in operations() {
        let door = door(&description);
        if door == Door::Public {
            continue;
        }
        let refused = |answer: Answer, how: &str| {
            assert_eq!(answer.status, 401, "{operation} {how}: {}", answer.text);
            assert_eq!(answer.header("www-authenticate"), "Bearer", "{operation} {how}");
        };
        let request = call(&world, &engineer, &approver, &operation, 0).await;
        let again = || request.try_clone().unwrap();
        refused(answer(again().bearer_auth("no-token")).await, "with no token");
        refused(answer(again().bearer_auth(&forged)).await, "with a forged token");
        refused(answer(again().bearer_auth(&engineer.refresh)).await, "with a refresh token");
        refused(answer(again().header("authorization", "Basic YTpi")).await, "with a password");
        refused(answer(again().header("cookie", "__Host-daypass=nobody")).await, "with a wrong cookie");
        if door == Door::Browser {
            refused(answer(again().bearer_auth(&engineer.access)).await, "with an access token");
        } else if door == Door::Token {
            refused(answer(engineer.browser.as_console(again()).unwrap()).await, "with a cookie");
        } else {
            let both = engineer.browser.as_console(again().bearer_auth(&forged)).unwrap();
            refused(answer(both).await, "with a forged token beside a cookie");
        }
    }
}

/// A page of another site can make a browser send its cookie, and no more than that.
#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_alone_changes_nothing() {
    let world = World::new().await;
    let (engineer, approver) = (world.sign_in("engineer").await, world.sign_in("approver").await);
    let mut tried = 0;
    for (operation, description) in operations() {
        if door(&description) == Door::Public || operation.starts_with("GET ") {
            continue;
        }
        tried += 1;
        let request = call(&world, &engineer, &approver, &operation, 0).await;
        let again = || request.try_clone().unwrap();
        let ours = || engineer.browser.as_console(again()).unwrap();
        let cookie = || again().header("cookie", engineer.browser.cookie());
        for (how, request) in [
            ("without the header", cookie()),
            ("with a wrong header", cookie().header("x-csrf-token", "guessed")),
            ("from another site", ours().header("sec-fetch-site", "cross-site")),
            (
                "from another origin",
                cookie_of(&engineer, again()).header("origin", "https://evil.example.com"),
            ),
        ] {
            // Where a cookie never counts, it is not asked whose page sent it.
            let (status, wanted) = match door(&description) {
                Door::Token => (401, "unauthenticated"),
                _ => (403, "csrf"),
            };
            let (code, words) = answer(request).await.problem(status);
            assert_eq!(code, wanted, "{operation} {how}: {words}");
        }
    }
    assert!(tried > 10, "{tried}");
    // Nothing of it happened, and the session is still good for reading.
    let request = world.request("GET", "/v1/requests").header("cookie", engineer.browser.cookie());
    let page: Value = answer(request).await.json();
    assert!(page["items"].as_array().unwrap().iter().all(|item| item["state"] != "cancelled"), "{page}");
}

/// Cookie and token as the console would send them, without an origin.
fn cookie_of(person: &Person, request: RequestBuilder) -> RequestBuilder {
    let cookies = person.browser.cookie();
    let csrf = cookies.split("; ").find_map(|pair| pair.strip_prefix("daypass-csrf=")).unwrap().to_owned();
    request.header("cookie", cookies).header("x-csrf-token", csrf)
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_show_only_what_the_reader_may_read() {
    let world = World::new().await;
    let engineer = world.sign_in("engineer").await;
    let request = world.ask(&engineer, FIELD).await;
    let session = world.past_session(&engineer).await;
    for (caller, devices, requests, sessions) in [
        ("visitor", false, false, false),
        ("colleague", true, false, false),
        ("approver", true, true, false),
        ("operator", true, true, true),
    ] {
        let reader = world.sign_in(caller).await;
        for (path, id, seen) in [
            ("/v1/devices", FIELD, devices),
            ("/v1/requests", request.as_str(), requests),
            ("/v1/requests?device=gw-0042", request.as_str(), requests),
            ("/v1/sessions", session.as_str(), sessions),
            // Also when they ask for it by name.
            ("/v1/sessions?device=gw-0043", session.as_str(), sessions),
            ("/v1/sessions?person=ana@example.com", session.as_str(), sessions),
        ] {
            let page: Value = world.get(&reader, path).await.json();
            let there = page["items"].as_array().unwrap().iter().any(|item| item["id"] == id);
            assert_eq!(there, seen, "{caller} {path}: {page}");
        }
        let page: Value = world.get(&reader, "/v1/requests?answerable=true").await.json();
        assert_eq!(!page["items"].as_array().unwrap().is_empty(), caller == "approver", "{caller}: {page}");
    }
}

/// What was refused, and what was replayed, is on record with who and what.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_replays_are_on_record() {
    let world = World::new().await;
    let engineer = world.sign_in("engineer").await;
    let (reviewer, operator) = (world.sign_in("reviewer").await, world.sign_in("operator").await);
    let session = world.past_session(&engineer).await;
    let events = async |kind: &str, who: &Person| -> i64 {
        let count = "SELECT COUNT(*) FROM audit_event WHERE kind = $1 AND actor LIKE $2";
        sqlx::query_scalar(count)
            .bind(kind.to_owned())
            .bind(format!("person {} %", who.me.id))
            .fetch_one(world.ctx.db.pool())
            .await
            .unwrap()
    };
    let path = format!("/v1/sessions/{session}/recordings/0");
    let replayed = world.get(&reviewer, &path).await;
    assert_eq!((replayed.status.as_u16(), replayed.header("content-type")), (200, "application/x-ndjson"));
    assert_eq!(replayed.header("content-disposition"), "attachment");
    assert!(replayed.text.contains("session_opened"), "{}", replayed.text);
    assert_eq!(
        (events("recording.read", &reviewer).await, events("action.refused", &reviewer).await),
        (1, 0)
    );
    world.get(&operator, &path).await.problem(403);
    assert_eq!(
        (events("recording.read", &operator).await, events("action.refused", &operator).await),
        (0, 1)
    );

    // SSH over HTTPS without a sign-in, as on the SSH port; only so often.
    for _ in 0..25 {
        answer(world.request("GET", "/v1/ssh/gw-0043").bearer_auth("no-token")).await.problem(401);
    }
    let strangers: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM audit_event WHERE kind = 'gateway.refused' AND device = 'gw-0043' AND detail LIKE '%token%'",
    )
    .fetch_one(world.ctx.db.pool())
    .await
    .unwrap();
    assert_eq!(strangers, 20);
}
