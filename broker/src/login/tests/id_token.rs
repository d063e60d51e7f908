//! Every check of the ID token, each with the lie that only it finds.

use super::{Browser, House, NOW, SignedBy};
use crate::testing;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Signs in with what the provider says, and finds nobody signed in, and `cause` in the audit log.
async fn nobody(house: &House, cause: &str) {
    let mut browser = Browser::default();
    let answer = browser.sign_in(house).await;
    assert_eq!(answer.status(), 403);
    assert!(!browser.cookies.contains_key("__Host-daypass"), "{:?}", browser.cookies);
    assert_eq!(house.audit().await, [("sign_in.refused".to_owned(), cause.to_owned())]);
    let people = sqlx::query("SELECT id FROM person").fetch_all(house.db.pool()).await.unwrap();
    assert!(people.is_empty());
}

async fn house() -> House {
    House::new(testing::sqlite().await).await
}

async fn with_claim(name: &str, value: Value) -> House {
    let house = house().await;
    house.idp.claim(name, value);
    house
}

async fn signed_by(signer: SignedBy) -> House {
    let house = house().await;
    house.idp.says().signed_by = signer;
    house
}

#[tokio::test]
async fn a_good_id_token_signs_its_person_in_on_both_databases() {
    for db in testing::databases().await {
        let house = House::new(db).await;
        let browser = Browser::signed_in(&house).await;
        let person = house.login.from_browser_session(&browser.cookies["__Host-daypass"]).await.unwrap();
        assert_eq!((person.email(), person.name()), ("ana@example.com", "Ana Silva"));
        assert_eq!(person.teams(), ["support"]);
        assert!(person.mfa());
        assert_eq!(person.signed_in_at(), NOW);
        assert_eq!(house.audit().await, [("sign_in.succeeded".to_owned(), String::new())]);

        // The same subject with another address is the same person, with the teams of now.
        house.idp.claim("email", json!("ana.silva@example.com"));
        house.idp.claim("groups", json!(["support", "support-leads"]));
        let again = Browser::signed_in(&house).await;
        let same = house.login.from_browser_session(&again.cookies["__Host-daypass"]).await.unwrap();
        assert_eq!(same.id(), person.id());
        assert_eq!(same.teams(), ["support", "support-leads"]);
    }
}

#[tokio::test]
async fn the_code_is_exchanged_with_the_verifier_of_its_challenge() {
    let house = house().await;
    Browser::signed_in(&house).await;
    let says = house.idp.says();
    let verifier = says.verifier.as_deref().unwrap();
    assert_eq!(URL_SAFE_NO_PAD.encode(Sha256::digest(verifier)), says.challenge);
}

#[tokio::test]
async fn an_id_token_of_another_issuer_signs_nobody_in() {
    nobody(&with_claim("iss", json!("https://elsewhere.example.com")).await, "issuer").await;
}

#[tokio::test]
async fn an_issuer_that_differs_by_a_slash_signs_nobody_in() {
    let house = house().await;
    let issuer = format!("{}/", house.idp.issuer);
    house.idp.claim("iss", json!(issuer));
    nobody(&house, "issuer").await;
}

#[tokio::test]
async fn an_id_token_for_another_audience_signs_nobody_in() {
    nobody(&with_claim("aud", json!("another-client")).await, "audience").await;
}

#[tokio::test]
async fn an_id_token_for_a_second_audience_too_signs_nobody_in() {
    nobody(&with_claim("aud", json!(["daypass", "another-client"])).await, "audience").await;
}

#[tokio::test]
async fn an_id_token_made_for_another_party_to_use_signs_nobody_in() {
    nobody(&with_claim("azp", json!("another-client")).await, "authorized_party").await;
}

#[tokio::test]
async fn an_id_token_signed_by_another_key_signs_nobody_in() {
    nobody(&signed_by(SignedBy::AnotherKey).await, "signature").await;
}

#[tokio::test]
async fn an_id_token_without_a_signature_signs_nobody_in() {
    nobody(&signed_by(SignedBy::Nobody).await, "algorithm").await;
}

#[tokio::test]
async fn an_id_token_with_an_hmac_by_the_client_secret_signs_nobody_in() {
    nobody(&signed_by(SignedBy::ClientSecret).await, "algorithm").await;
}

/// CVE-2015-9235.
#[tokio::test]
async fn an_id_token_with_an_hmac_by_the_public_key_signs_nobody_in() {
    nobody(&signed_by(SignedBy::PublicKeyAsSecret).await, "algorithm").await;
}

#[tokio::test]
async fn an_expired_id_token_signs_nobody_in() {
    nobody(&with_claim("exp", json!(NOW.as_secs() - 31)).await, "expired").await;
}

#[tokio::test]
async fn an_id_token_that_ended_within_the_skew_is_good() {
    let house = with_claim("exp", json!(NOW.as_secs() - 5)).await;
    Browser::signed_in(&house).await;
}

#[tokio::test]
async fn an_id_token_from_the_future_signs_nobody_in() {
    nobody(&with_claim("iat", json!(NOW.as_secs() + 31)).await, "issued_at").await;
}

#[tokio::test]
async fn an_id_token_issued_long_ago_signs_nobody_in() {
    nobody(&with_claim("iat", json!(NOW.as_secs() - 601)).await, "issued_at").await;
}

#[tokio::test]
async fn an_id_token_with_the_nonce_of_another_sign_in_signs_nobody_in() {
    nobody(&with_claim("nonce", json!("another")).await, "nonce").await;
}

#[tokio::test]
async fn an_id_token_without_nonce_signs_nobody_in() {
    nobody(&with_claim("nonce", Value::Null).await, "nonce").await;
}

#[tokio::test]
async fn an_id_token_that_lacks_a_claim_signs_nobody_in() {
    for claim in ["iss", "aud", "sub", "iat", "exp"] {
        let house = with_claim(claim, Value::Null).await;
        let mut browser = Browser::default();
        assert_eq!(browser.sign_in(&house).await.status(), 403, "without {claim}");
        assert!(!browser.cookies.contains_key("__Host-daypass"), "without {claim}");
    }
}

#[tokio::test]
async fn an_answer_without_id_token_signs_nobody_in() {
    let house = house().await;
    house.idp.says().id_token = false;
    nobody(&house, "no_id_token").await;
}

#[tokio::test]
async fn a_code_that_the_provider_does_not_know_signs_nobody_in() {
    let house = house().await;
    let mut browser = Browser::default();
    let state = browser.leave(&house, "/").await;
    let answer = browser.get(&house, &format!("/login/callback?code=stolen&state={state}")).await;
    assert_eq!(answer.status(), 403);
    assert_eq!(house.audit().await, [("sign_in.refused".to_owned(), "exchange".to_owned())]);
}

#[tokio::test]
async fn with_a_greatest_age_an_old_sign_in_at_the_provider_is_not_enough() {
    for auth_time in [json!(NOW.as_secs() - 4000), Value::Null] {
        let house = House::with(testing::sqlite().await, |config| config.max_age_s = Some(3600)).await;
        house.idp.claim("auth_time", auth_time);
        nobody(&house, "auth_time").await;
    }
}

#[tokio::test]
async fn user_information_about_another_subject_signs_nobody_in() {
    let house = with_claim("groups", Value::Null).await;
    house.idp.says().user_info = json!({ "sub": "mallory", "groups": ["security"] });
    nobody(&house, "user_info").await;
}

#[tokio::test]
async fn teams_come_from_the_claim_that_the_operator_names_or_there_are_none() {
    let roles = json!({ "roles": ["support", "support", "ops\u{202e}", 7] });
    let house =
        House::with(testing::sqlite().await, |c| c.groups_claim = "realm_access.roles".to_owned()).await;
    house.idp.claim("realm_access", roles);
    let browser = Browser::signed_in(&house).await;
    let person = house.login.from_browser_session(&browser.cookies["__Host-daypass"]).await.unwrap();
    assert_eq!(
        person.teams(),
        ["support"],
        "`groups` is not asked, and a name with a hidden mark is no team"
    );
}
