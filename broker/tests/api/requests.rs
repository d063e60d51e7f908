//! Asking and answering, as a client sees it.

use crate::world::{FIELD, LAB, World, answer, ask_for};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_request_is_answered_when_it_is_approved() {
    let world = World::new().await;
    let (engineer, approver) = (world.sign_in("engineer").await, world.sign_in("approver").await);
    let id = world.ask(&engineer, FIELD).await;

    let started = Instant::now();
    let waited: Value =
        world.get(&engineer, &format!("/v1/requests/{id}?wait_s=1&state=pending")).await.json();
    assert_eq!(waited["state"], "pending");
    assert!(started.elapsed() >= Duration::from_secs(1));
    // For what is not the state any more, nobody waits.
    let other: Value =
        world.get(&engineer, &format!("/v1/requests/{id}?wait_s=60&state=granted")).await.json();
    assert_eq!(other["state"], "pending");

    let path = format!("/v1/requests/{id}?wait_s=50&state=pending");
    let waiting = tokio::spawn(answer(world.request("GET", &path).bearer_auth(&engineer.access)));
    while world.ctx.changed_requests.receiver_count() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished());
    let approved =
        world.post(&approver, &format!("/v1/requests/{id}/approve"), json!({ "duration_s": 600 })).await;
    assert_eq!(approved.status, 200, "{}", approved.text);
    let told: Value = waiting.await.unwrap().json();
    assert_eq!((&told["state"], &told["grant"]["state"]), (&json!("granted"), &json!("live")));
    // Of the ten minutes, to the whole second at which its certificates end.
    let time = |name: &str| told["grant"][name].as_i64().unwrap();
    assert_eq!(time("ends_at") % 1000, 0);
    assert!((599_001..=600_000).contains(&(time("ends_at") - time("starts_at"))), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_may_narrow_and_never_widen_and_is_given_once() {
    let world = World::new().await;
    let (engineer, approver) = (world.sign_in("engineer").await, world.sign_in("approver").await);
    let id = world.ask(&engineer, FIELD).await;
    let approve = format!("/v1/requests/{id}/approve");
    for wider in
        [json!({ "duration_s": 901 }), json!({ "channels": ["shell", "exec"] }), json!({ "duration_s": 0 })]
    {
        let (code, words) = world.post(&approver, &approve, wider).await.problem(400);
        assert_eq!(code, "unfit_answer", "{words}");
    }
    let (code, _) = world.post(&engineer, &approve, json!({})).await.problem(403);
    assert_eq!(code, "own_request");
    let tried: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM audit_event WHERE kind = 'action.refused' AND request = $1")
            .bind(id.clone())
            .fetch_one(world.ctx.db.pool())
            .await
            .unwrap();
    assert_eq!(tried, 1, "the attempt is on record");
    assert_eq!(world.post(&approver, &approve, json!({})).await.status, 200);
    let (code, _) = world.post(&approver, &approve, json!({})).await.problem(409);
    assert_eq!(code, "not_pending");
    let (code, _) = world.post(&engineer, &format!("/v1/requests/{id}/cancel"), json!({})).await.problem(409);
    assert_eq!(code, "not_pending");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_policy_refuses_is_refused_in_its_words() {
    let world = World::new().await;
    let engineer = world.sign_in("engineer").await;
    let ask = |field: &str, value: Value| {
        let mut body = ask_for(LAB);
        body[field] = value;
        body
    };
    let (code, words) =
        world.post(&engineer, "/v1/requests", ask("login", json!("oracle"))).await.problem(403);
    assert_eq!(code, "policy");
    assert!(
        words.contains("is refused") && words.contains("Would be possible") && words.contains("diag"),
        "{words}"
    );
    let (code, words) =
        world.post(&engineer, "/v1/requests", ask("duration_s", json!(9 * 3600))).await.problem(403);
    assert_eq!(code, "policy");
    assert!(words.contains("No window is longer than 8 hours"), "{words}");

    let (code, words) =
        world.post(&engineer, "/v1/requests", ask("device", json!("gw-9999"))).await.problem(404);
    assert_eq!(code, "not_found");
    assert!(words.contains("gw-9999"), "{words}");
    world.get(&engineer, "/v1/devices/gw-9999").await.problem(404);

    // A refused ask is history: the one who asked sees it, denied.
    let page: Value = world.get(&engineer, "/v1/requests?mine=true&state=denied").await.json();
    assert_eq!(page["items"].as_array().unwrap().len(), 2, "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_hides_something_is_refused_with_its_place() {
    let world = World::new().await;
    let engineer = world.sign_in("engineer").await;
    let (approver, operator) = (world.sign_in("approver").await, world.sign_in("operator").await);
    let with = |field: &str, text: &str| {
        let mut body = ask_for(FIELD);
        body[field] = json!(text);
        body
    };
    let (pending, granted) = (world.ask(&engineer, FIELD).await, world.ask(&engineer, LAB).await);
    let (deny, approve) = (format!("/v1/requests/{pending}/deny"), format!("/v1/requests/{pending}/approve"));
    let (revoke, suspend) = (format!("/v1/requests/{granted}/revoke"), format!("/v1/devices/{LAB}/suspend"));
    let line = |title: &str| json!({ "name": "a-line", "title": title, "cra_class": "default", "support_end": "2031-12-31" });
    for (hidden, name) in [
        ("pay \u{202e}load", "U+202E at byte 4"),
        ("a\u{1b}[2Jb", "U+001B at byte 1"),
        ("x\u{200b}", "U+200B at byte 1"),
    ] {
        for (who, path, body) in [
            (&engineer, "/v1/requests", with("reason", hidden)),
            (&engineer, "/v1/requests", with("ticket", hidden)),
            (&approver, deny.as_str(), json!({ "comment": hidden })),
            (&approver, approve.as_str(), json!({ "comment": hidden })),
            (&engineer, revoke.as_str(), json!({ "reason": hidden })),
            (&operator, suspend.as_str(), json!({ "reason": hidden })),
            (&operator, "/v1/product-lines", line(hidden)),
        ] {
            let (_, words) = world.post(who, path, body).await.problem(400);
            assert!(words.contains(name), "{path}: {words}");
        }
    }
    let long = "a".repeat(100_000);
    for (who, path, body) in [
        (&engineer, "/v1/requests", with("reason", &long)),
        (&approver, deny.as_str(), json!({ "comment": long })),
        (&operator, suspend.as_str(), json!({ "reason": long })),
    ] {
        let (_, words) = world.post(who, path, body).await.problem(400);
        assert!(words.contains("100000 bytes long; at most 2000"), "{path}: {words}");
    }
    // Nothing of it happened.
    let still: Value = world.get(&engineer, &format!("/v1/requests/{pending}")).await.json();
    assert_eq!(still["state"], "pending");
    let still: Value = world.get(&engineer, &format!("/v1/requests/{granted}")).await.json();
    assert_eq!(still["grant"]["state"], "live");
}
