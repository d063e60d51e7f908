//! What every answer has to do right, whatever it is about.

use crate::world::{FIELD, World, answer, ask_for};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_read_is_answered_in_one_shape() {
    let world = World::new().await;
    let engineer = world.sign_in("engineer").await;
    let post = |path: &str| world.request("POST", path).bearer_auth(&engineer.access);
    let json_type = ("content-type", "application/json");

    for path in [
        "/v1/requests/xyz",
        "/v1/requests/R-7K2M9QX",
        "/v1/sessions/R-7K2M9QXD",
        "/v1/sessions/S-7K2M9QXD/recordings/one",
        "/v1/sessions/S-7K2M9QXD/recordings/-1",
        "/v1/devices/GW_0042",
        "/v1/devices/%FF",
        "/v1/devices/a%2Fb",
    ] {
        let (code, words) = world.get(&engineer, path).await.problem(400);
        assert_eq!(code, "malformed_path", "{path}: {words}");
    }
    for path in [
        "/v1/requests?state=waiting",
        "/v1/requests?mine=perhaps",
        "/v1/requests?after=R-1",
        "/v1/sessions?live=1&device=GW",
        "/v1/devices?line=A%20B",
        "/v1/requests/R-7K2M9QXD?wait_s=-1",
        "/v1/requests?mine=true&mine=true",
    ] {
        let (code, words) = world.get(&engineer, path).await.problem(400);
        assert_eq!(code, "malformed_query", "{path}: {words}");
    }
    let (code, _) = world.get(&engineer, "/v1/devices?label=env").await.problem(400);
    assert_eq!(code, "label");

    let malformed = post("/v1/requests").header(json_type.0, json_type.1).body("{\"device\": ");
    let (code, _) = answer(malformed).await.problem(400);
    assert_eq!(code, "malformed_body");
    let (code, words) = answer(post("/v1/requests").json(&json!({ "device": "gw-0042" }))).await.problem(422);
    assert_eq!(code, "malformed_body");
    assert!(words.contains("missing field"), "{words}");
    for (field, value) in [
        ("device", json!("GW 0042")),
        ("login", json!("../root")),
        ("channels", json!(["everything"])),
        ("duration_s", json!(-1)),
        ("duration_s", json!(1e30)),
        ("reason", json!(null)),
    ] {
        let mut body = ask_for(FIELD);
        body[field] = value;
        answer(post("/v1/requests").json(&body)).await.problem(422);
    }
    for (field, value) in [("channels", json!([])), ("duration_s", json!(0)), ("duration_s", json!(u64::MAX))]
    {
        let mut body = ask_for(FIELD);
        body[field] = value;
        let (code, _) = answer(post("/v1/requests").json(&body)).await.problem(400);
        assert_eq!(code, "unfit_request");
    }
    // A form is what another site's page could send without asking.
    let (code, _) = answer(post("/v1/requests").form(&[("device", "gw-0042")])).await.problem(415);
    assert_eq!(code, "not_json");
    let nested = format!("{{\"x\": {}", "[".repeat(100_000));
    answer(post("/v1/requests").header(json_type.0, json_type.1).body(nested)).await.problem(400);
    let mut large = ask_for(FIELD);
    large["reason"] = json!("a".repeat(300 * 1024));
    answer(post("/v1/requests").json(&large)).await.problem(413);

    for (method, path) in [
        ("GET", "/v1/nothing"),
        ("GET", "/v1"),
        ("GET", "/v1/"),
        ("POST", "/v1/requests/"),
        ("POST", "/nothing"),
    ] {
        let (code, _) = answer(world.request(method, path).bearer_auth(&engineer.access)).await.problem(404);
        assert_eq!(code, "not_found", "{method} {path}");
    }
    for (method, path, allowed) in [
        ("DELETE", "/v1/requests", "GET HEAD POST"),
        ("PUT", "/v1/me", "GET HEAD"),
        ("GET", "/logout", "POST"),
    ] {
        let refused = answer(world.request(method, path).bearer_auth(&engineer.access)).await;
        let (code, _) = refused.problem(405);
        let mut methods: Vec<_> = refused.header("allow").split(',').collect();
        methods.sort_unstable();
        assert_eq!(
            (code.as_str(), methods.join(" ").as_str()),
            ("method_not_allowed", allowed),
            "{method} {path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_that_do_not_read_are_answered_as_oauth_wants_it() {
    let world = World::new().await;
    for (path, fields, error) in [
        ("/v1/token", vec![], "invalid_request"),
        ("/v1/token", vec![("grant_type", "password"), ("username", "ana")], "unsupported_grant_type"),
        ("/v1/token", vec![("grant_type", "refresh_token")], "invalid_request"),
        ("/v1/token", vec![("grant_type", "refresh_token"), ("refresh_token", "x")], "invalid_grant"),
        ("/v1/device-authorization", vec![("client_id", "another")], "invalid_client"),
        ("/v1/device-authorization", vec![], "invalid_request"),
        ("/v1/revoke", vec![], "invalid_request"),
    ] {
        let refused = world.form(path, &fields).await;
        assert_eq!(refused.status, 400, "{path} {fields:?}");
        assert_eq!(refused.json::<serde_json::Value>()["error"], error, "{path} {fields:?}");
        assert_eq!(refused.header("cache-control"), "no-store");
    }
    let large = "a".repeat(20 * 1024);
    assert_eq!(world.form("/v1/revoke", &[("token", &large)]).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_fenced_in() {
    let world = World::new().await;
    for path in
        ["/", "/requests/R-7K2M9QXD", "/device?code=BCDF-GHJK", "/login/callback", "/login?next=//evil"]
    {
        let page = answer(world.request("GET", path)).await;
        let policy = page.header("content-security-policy");
        assert!(
            policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{path}: {policy}"
        );
        assert!(!policy.contains("unsafe-inline") && !policy.contains("'unsafe-eval'"), "{path}: {policy}");
        assert!(page.header("content-type").starts_with("text/html"), "{path}");
    }
    for path in ["/", "/v1/broker", "/v1/me", "/v1/nothing", "/healthz", "/login", "/assets/none.js"] {
        let page = answer(world.request("GET", path)).await;
        assert_eq!(page.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(page.header("x-frame-options"), "DENY", "{path}");
        assert!(page.header("strict-transport-security").starts_with("max-age="), "{path}");
        assert!(["same-origin", "no-referrer"].contains(&page.header("referrer-policy")), "{path}");
        assert!(["no-store", "no-cache"].contains(&page.header("cache-control")), "{path}");
        assert_eq!(page.header("access-control-allow-origin"), "", "{path}");
    }
    let start = answer(world.request("GET", "/login?next=/requests")).await;
    let cookie = start.header("set-cookie");
    for fence in ["__Host-", "; Path=/;", "; Secure", "; HttpOnly", "; SameSite=Lax"] {
        assert!(cookie.contains(fence), "{cookie}");
    }
    for next in
        ["//evil.example.com", "https://evil.example.com", "/\\evil.example.com", "javascript:alert(1)"]
    {
        let refused = answer(world.request("GET", "/login").query(&[("next", next)])).await;
        assert_eq!(refused.status, 400, "{next}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_readiness_and_metrics_are_there_and_devices_doors_are_for_devices() {
    let world = World::new().await;
    for (path, text) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
        let said = answer(world.request("GET", path)).await;
        assert_eq!((said.status.as_u16(), said.text.as_str()), (200, text));
    }
    let metrics = answer(world.request("GET", "/metrics")).await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.text.contains("daypass_tunnels_live 0"), "{}", metrics.text);
    // Numbers, and nobody's name.
    assert!(!metrics.text.contains("gw-0042"), "{}", metrics.text);
    for path in ["/v1/tunnel", "/v1/enrol"] {
        let refused = answer(world.request("GET", path)).await;
        assert!(refused.status.is_client_error(), "{path}: {}", refused.status);
    }
}
