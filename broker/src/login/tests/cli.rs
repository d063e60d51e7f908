//! The command line's way: codes, tokens, and what ends them.

use super::{Browser, House, NOW, send};
use crate::certificate;
use crate::login::{LastingCaller, from_identity_certificate};
use crate::testing;
use axum::body::Body;
use axum::extract::FromRequestParts as _;
use axum::http::Request;
use daypass_protocol::certificate::{Expectation, verify};
use serde_json::{Value, json};
use std::time::Duration;

const GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

async fn ask(house: &House) -> Value {
    let (status, codes) = house
        .form("/v1/device-authorization", &[("client_id", "daypass-cli"), ("client", "daypass on a laptop")])
        .await;
    assert_eq!(status, 200);
    codes
}

async fn poll(house: &House, codes: &Value) -> Value {
    let code = codes["device_code"].as_str().unwrap();
    let fields = [("grant_type", GRANT), ("device_code", code), ("client_id", "daypass-cli")];
    house.form("/v1/token", &fields).await.1
}

async fn refresh(house: &House, tokens: &Value) -> Value {
    let token = tokens["refresh_token"].as_str().unwrap();
    house.form("/v1/token", &[("grant_type", "refresh_token"), ("refresh_token", token)]).await.1
}

async fn answer(house: &House, browser: &mut Browser, code: &str, confirm: bool) -> u16 {
    let request = browser
        .meant("POST", &format!("/v1/cli-sign-ins/{code}"))
        .header("content-type", "application/json")
        .body(Body::from(json!({ "confirm": confirm }).to_string()))
        .unwrap();
    browser.send(house, request).await.status().as_u16()
}

async fn signed_in(house: &House) -> Value {
    let mut browser = Browser::signed_in(house).await;
    let codes = ask(house).await;
    assert_eq!(answer(house, &mut browser, codes["user_code"].as_str().unwrap(), true).await, 204);
    let tokens = poll(house, &codes).await;
    assert!(tokens["access_token"].is_string(), "{tokens}");
    tokens
}

fn access(tokens: &Value) -> &str {
    tokens["access_token"].as_str().unwrap()
}

#[tokio::test]
async fn a_command_line_is_signed_in_by_the_person_who_confirms_its_code_once() {
    for db in testing::databases().await {
        let house = House::new(db).await;
        let codes = ask(&house).await;
        assert_eq!(poll(&house, &codes).await["error"], "authorization_pending");
        assert_eq!(codes["verification_uri"], "https://daypass.example.com/device");

        let mut browser = Browser::signed_in(&house).await;
        let code = codes["user_code"].as_str().unwrap();
        let shown = browser.get(&house, &format!("/v1/cli-sign-ins/{}", code.to_lowercase())).await;
        let shown: Value = serde_json::from_str(&super::text(shown).await).unwrap();
        assert_eq!(
            (&shown["client"], &shown["address"]),
            (&json!("daypass on a laptop"), &json!("192.0.2.7"))
        );
        assert_eq!(answer(&house, &mut browser, code, true).await, 204);
        assert_eq!(answer(&house, &mut browser, code, false).await, 404, "answered once");

        let tokens = poll(&house, &codes).await;
        assert_eq!(house.whoami(access(&tokens)).await.1, "ana@example.com [\"support\"]");
        assert_eq!(poll(&house, &codes).await["error"], "invalid_grant", "given once");
        let kinds: Vec<_> = house.audit().await.into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, ["sign_in.succeeded", "cli_sign_in.confirmed", "sign_in.succeeded"]);
    }
}

#[tokio::test]
async fn a_code_that_was_refused_or_has_expired_gives_nothing() {
    let house = House::new(testing::sqlite().await).await;
    let mut browser = Browser::signed_in(&house).await;
    let (refused, late) = (ask(&house).await, ask(&house).await);
    assert_eq!(answer(&house, &mut browser, refused["user_code"].as_str().unwrap(), false).await, 204);
    assert_eq!(poll(&house, &refused).await["error"], "access_denied");
    assert_eq!(answer(&house, &mut browser, late["user_code"].as_str().unwrap(), true).await, 204);
    house.clock.set(NOW + Duration::from_mins(10));
    assert_eq!(poll(&house, &late).await["error"], "expired_token");
    assert_eq!(poll(&house, &json!({ "device_code": "never given" })).await["error"], "invalid_grant");
}

#[tokio::test]
async fn polling_too_fast_is_slowed_down_more_each_time() {
    let house = House::new(testing::sqlite().await).await;
    let codes = ask(&house).await;
    let after = async |seconds: u64| {
        house.clock.set(NOW + Duration::from_secs(seconds));
        poll(&house, &codes).await["error"].as_str().unwrap().to_owned()
    };
    assert_eq!(after(0).await, "authorization_pending");
    assert_eq!(after(4).await, "slow_down");
    assert_eq!(after(10).await, "slow_down", "ten seconds are asked for now");
    assert_eq!(after(25).await, "authorization_pending");
}

#[tokio::test]
async fn guessing_codes_is_bounded_for_each_person() {
    let house = House::new(testing::sqlite().await).await;
    let codes = ask(&house).await;
    let mut browser = Browser::signed_in(&house).await;
    for _ in 0..20 {
        assert_eq!(browser.get(&house, "/v1/cli-sign-ins/BBBB-BBBB").await.status(), 404);
    }
    let right = format!("/v1/cli-sign-ins/{}", codes["user_code"].as_str().unwrap());
    assert_eq!(browser.get(&house, &right).await.status(), 429);
}

#[tokio::test]
async fn an_access_token_confirms_no_command_line() {
    let house = House::new(testing::sqlite().await).await;
    let tokens = signed_in(&house).await;
    let codes = ask(&house).await;
    let request = Request::get(format!("/v1/cli-sign-ins/{}", codes["user_code"].as_str().unwrap()))
        .header("authorization", format!("Bearer {}", access(&tokens)))
        .body(Body::empty())
        .unwrap();
    assert_eq!(send(&house.router, request).await.status(), 401);
}

#[tokio::test]
async fn an_access_token_ends_after_ten_minutes_and_a_refresh_token_brings_the_next() {
    let house = House::new(testing::sqlite().await).await;
    let tokens = signed_in(&house).await;
    house.clock.set(NOW + Duration::from_mins(10));
    assert_eq!(house.whoami(access(&tokens)).await.0, 401);
    let next = refresh(&house, &tokens).await;
    assert_eq!(house.whoami(access(&next)).await.0, 200);
    house.clock.set(NOW + Duration::from_hours(12));
    assert_eq!(refresh(&house, &next).await["error"], "invalid_grant", "the sign-in itself has ended");
}

/// What lasts is asked again by [`LastingCaller`].
#[tokio::test]
async fn a_proof_that_is_asked_again_ends_with_its_token_and_with_the_sign_in() {
    let house = House::new(testing::sqlite().await).await;
    let lasting = async |tokens: &Value| {
        let request = Request::get("/").header("authorization", format!("Bearer {}", access(tokens)));
        let mut parts = request.body(()).unwrap().into_parts().0;
        LastingCaller::from_request_parts(&mut parts, &house.login).await.unwrap()
    };
    let (first, second) = (signed_in(&house).await, signed_in(&house).await);
    let (until_its_token_ends, until_signed_out) = (lasting(&first).await, lasting(&second).await);
    for caller in [&until_its_token_ends, &until_signed_out] {
        assert_eq!(caller.again(&house.login).await.unwrap().email(), "ana@example.com");
    }
    let token = second["refresh_token"].as_str().unwrap();
    assert_eq!(house.form("/v1/revoke", &[("token", token)]).await.0, 200);
    assert_eq!(until_signed_out.again(&house.login).await.unwrap_err().code(), "unauthenticated");
    assert!(until_its_token_ends.again(&house.login).await.is_ok(), "another sign-in");
    house.clock.set(NOW + Duration::from_mins(10));
    assert_eq!(until_its_token_ends.again(&house.login).await.unwrap_err().code(), "unauthenticated");
}

#[tokio::test]
async fn a_refresh_token_that_comes_back_ends_the_whole_sign_in() {
    for db in testing::databases().await {
        let house = House::new(db).await;
        let first = signed_in(&house).await;
        let second = refresh(&house, &first).await;
        assert_eq!(house.whoami(access(&second)).await.0, 200);
        assert_eq!(refresh(&house, &first).await["error"], "invalid_grant");
        assert_eq!(house.whoami(access(&second)).await.0, 401);
        assert_eq!(refresh(&house, &second).await["error"], "invalid_grant");
        assert_eq!(house.audit().await.iter().filter(|(kind, _)| kind == "token.reuse").count(), 1);
    }
}

#[tokio::test]
async fn of_two_refreshes_at_once_one_succeeds_and_the_sign_in_ends() {
    for db in testing::databases().await {
        let house = House::new(db).await;
        let tokens = signed_in(&house).await;
        let (a, b) = tokio::join!(refresh(&house, &tokens), refresh(&house, &tokens));
        let good = [&a, &b].into_iter().filter(|answer| answer["access_token"].is_string()).count();
        assert_eq!(good, 1, "{a} {b}");
        assert_eq!(house.audit().await.last().unwrap().0, "token.reuse");
    }
}

#[tokio::test]
async fn signing_out_ends_access_tokens_too() {
    for db in testing::databases().await {
        let house = House::new(db).await;
        let tokens = signed_in(&house).await;
        let (status, _) =
            house.form("/v1/revoke", &[("token", tokens["refresh_token"].as_str().unwrap())]).await;
        assert_eq!(status, 200);
        assert_eq!(house.whoami(access(&tokens)).await.0, 401);
        assert_eq!(refresh(&house, &tokens).await["error"], "invalid_grant");
        assert_eq!(house.audit().await.last().unwrap().0, "signed_out");
        assert_eq!(house.form("/v1/revoke", &[("token", "unknown")]).await.0, 200);
    }
}

#[tokio::test]
async fn a_change_of_teams_takes_effect_at_the_next_request() {
    let house = House::new(testing::sqlite().await).await;
    let tokens = signed_in(&house).await;
    house.idp.claim("groups", json!([]));
    Browser::signed_in(&house).await;
    assert_eq!(house.whoami(access(&tokens)).await.1, "ana@example.com []");
}

#[tokio::test]
async fn no_secret_stands_in_the_store() {
    let house = House::new(testing::sqlite().await).await;
    let codes = ask(&house).await;
    let tokens = signed_in(&house).await;
    for (sql, secret) in [
        ("SELECT device_code_hash FROM cli_sign_in", codes["device_code"].as_str().unwrap()),
        ("SELECT token_hash FROM refresh_token", tokens["refresh_token"].as_str().unwrap()),
    ] {
        let rows = sqlx::query(sql).fetch_all(house.db.pool()).await.unwrap();
        let stored: Vec<String> = rows.iter().map(|row| sqlx::Row::get(row, 0)).collect();
        assert!(stored.contains(&crate::random::hash(secret)) && !stored.contains(&secret.to_owned()));
    }
}

#[tokio::test]
async fn an_identity_certificate_proves_its_person_until_the_sign_in_it_came_from_ends() {
    for db in testing::databases().await {
        let house = House::new(db).await;
        let tokens = signed_in(&house).await;
        let person = house.login.from_access_token(access(&tokens)).await.unwrap();
        let keys = certificate::Keys::ephemeral().unwrap();
        let key = certificate::Signer::ephemeral().unwrap();
        let mut tx = house.db.begin().await.unwrap();
        let until = NOW + Duration::from_hours(1);
        let (certificate, recorded) =
            certificate::issue::identity(&mut tx, &keys, &person, key.public_key(), NOW, until)
                .await
                .unwrap();
        tx.commit(recorded).await.unwrap();
        let ca = keys.get(certificate::KeyPurpose::Identity).public_key().clone();
        let expect =
            Expectation { cas: &[ca], principal: None, now: NOW, source: None, revoked_serials: &[] };
        let verified = verify(&certificate, &expect).unwrap();

        let proven = from_identity_certificate(&house.db, &verified, NOW).await.unwrap();
        assert_eq!((proven.id(), proven.teams()), (person.id(), person.teams()));
        assert!(from_identity_certificate(&house.db, &verified, until).await.is_err());
        house.form("/v1/revoke", &[("token", tokens["refresh_token"].as_str().unwrap())]).await;
        assert!(from_identity_certificate(&house.db, &verified, NOW).await.is_err());
    }
}
