//! Tokens, their end, and identity certificates.

use crate::world::{World, answer};
use daypass_protocol::api::{IdentityCertificate, TokenAnswer};
use daypass_protocol::ssh_key::Certificate;
use serde_json::{Value, json};
use std::process::Command;

/// A new public key of OpenSSH's making.
pub fn key(world: &World, kind: &str) -> String {
    let file = world.folder.path().join(format!("id_{kind}"));
    if !file.exists() {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", kind, "-N", "", "-C", "a test", "-f"])
            .arg(&file)
            .status()
            .expect("ssh-keygen must be installed");
        assert!(made.success());
    }
    std::fs::read_to_string(file.with_extension("pub")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_used_again_ends_the_whole_sign_in() {
    let world = World::new().await;
    let engineer = world.sign_in("engineer").await;
    let refresh = async |token: &str| {
        world.form("/v1/token", &[("grant_type", "refresh_token"), ("refresh_token", token)]).await
    };
    let renewed: TokenAnswer = refresh(&engineer.refresh).await.json();
    let alive = answer(world.request("GET", "/v1/me").bearer_auth(&renewed.access_token)).await;
    assert_eq!(alive.status, 200);

    // Somebody has a copy of the first; nobody can tell who of the two is the thief.
    let replayed = refresh(&engineer.refresh).await;
    assert_eq!(replayed.status, 400);
    assert_eq!(replayed.json::<Value>()["error"], "invalid_grant");
    assert_eq!(refresh(&renewed.refresh_token).await.status, 400);
    for token in [&engineer.access, &renewed.access_token] {
        answer(world.request("GET", "/v1/me").bearer_auth(token)).await.problem(401);
    }
    // The browser is a sign-in of its own.
    let browser = world.request("GET", "/v1/me").header("cookie", engineer.browser.cookie());
    assert_eq!(answer(browser).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_out_stops_tokens_and_cookies_that_others_may_have_copied() {
    let world = World::new().await;
    let engineer = world.sign_in("engineer").await;
    assert_eq!(world.form("/v1/revoke", &[("token", &engineer.refresh)]).await.status, 200);
    world.get(&engineer, "/v1/me").await.problem(401);
    let refreshed = world
        .form("/v1/token", &[("grant_type", "refresh_token"), ("refresh_token", &engineer.refresh)])
        .await;
    assert_eq!(refreshed.status, 400);

    let out = engineer.browser.as_console(world.request("POST", "/logout")).unwrap();
    let out = answer(out).await;
    assert_eq!(out.status, 204);
    assert!(out.headers.get_all("set-cookie").iter().all(|set| set.to_str().unwrap().contains("Max-Age=0")));
    let copied = world.request("GET", "/v1/me").header("cookie", engineer.browser.cookie());
    answer(copied).await.problem(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_signs_nobody_in_before_it_is_confirmed_and_once_only_after() {
    let world = World::new().await;
    let engineer = world.sign_in("engineer").await;
    let (device_code, user_code) = world.cli_asks().await;
    let fields = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
        ("device_code", device_code.as_str()),
        ("client_id", "daypass-cli"),
    ];
    let early = world.form("/v1/token", &fields).await;
    assert_eq!(
        (early.status.as_u16(), early.json::<Value>()["error"].clone()),
        (400, json!("authorization_pending"))
    );
    engineer.browser.confirm(&user_code).await.unwrap();
    assert!(engineer.browser.confirm(&user_code).await.is_err(), "confirmed twice");
    let first = world.form("/v1/token", &fields).await;
    assert_eq!((first.status.as_u16(), first.header("cache-control")), (200, "no-store"));
    assert_eq!(world.form("/v1/token", &fields).await.json::<Value>()["error"], "invalid_grant");
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_certificates_are_for_keys_that_are_good_enough() {
    let world = World::new().await;
    let engineer = world.sign_in("engineer").await;
    for kind in ["ed25519", "ecdsa"] {
        let key = key(&world, kind);
        let made = world.post(&engineer, "/v1/me/certificate", json!({ "public_key": key })).await;
        assert_eq!(made.status, 200, "{kind}: {}", made.text);
        let made: IdentityCertificate = made.json();
        let certificate = Certificate::from_openssh(&made.certificate).unwrap();
        assert_eq!(certificate.valid_principals(), [engineer.me.id.to_string()]);
        assert!(made.valid_until <= engineer.me.signed_in_at + std::time::Duration::from_hours(12));
    }
    for (key, words) in [
        (key(&world, "rsa"), "ssh-rsa"),
        ("ssh-ed25519 AAAA".to_owned(), "does not read"),
        ("hello".to_owned(), "does not read"),
        (format!("ssh-ed25519 {}", "A".repeat(5000)), "longer than 4096 bytes"),
    ] {
        let refused = world.post(&engineer, "/v1/me/certificate", json!({ "public_key": key })).await;
        let (code, said) = refused.problem(400);
        assert_eq!(code, "unfit_key");
        assert!(said.contains(words) && said.contains("ssh-keygen -t ed25519"), "{said}");
    }
}
