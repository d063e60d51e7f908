//! The browser's way: one attempt for one browser, and a session that only our own pages can use.

use super::{Browser, House, NOW, ORIGIN, text};
use crate::testing;
use axum::body::Body;
use std::time::Duration;

async fn house() -> House {
    House::new(testing::sqlite().await).await
}

#[tokio::test]
async fn after_signing_in_the_browser_goes_where_it_wanted() {
    let house = house().await;
    let mut browser = Browser::default();
    let answer = browser.sign_in(&house).await;
    assert_eq!(answer.headers()["location"], "/requests");
    assert_eq!(answer.headers()["cache-control"], "no-store");
}

#[tokio::test]
async fn a_next_that_leads_elsewhere_is_refused() {
    let house = house().await;
    for bad in ["//evil.example.com", "/%5Cevil.example.com", "https:%2F%2Fevil.example.com", "/%09/evil"] {
        let answer = Browser::default().get(&house, &format!("/login?next={bad}")).await;
        assert_eq!(answer.status(), 400, "{bad}");
    }
}

#[tokio::test]
async fn a_state_works_once() {
    for db in testing::databases().await {
        let house = House::new(db).await;
        let mut browser = Browser::default();
        let state = browser.leave(&house, "/").await;
        assert_eq!(browser.come_back(&house, &state).await.status(), 303);
        assert_eq!(browser.come_back(&house, &state).await.status(), 403);
        assert_eq!(house.audit().await.last().unwrap().1, "state");
    }
}

#[tokio::test]
async fn a_callback_in_another_browser_signs_nobody_in() {
    let house = house().await;
    let state = Browser::default().leave(&house, "/").await;
    let mut victim = Browser::default();
    victim.leave(&house, "/").await;
    assert_eq!(victim.come_back(&house, &state).await.status(), 403);
    assert!(!victim.cookies.contains_key("__Host-daypass"));
    assert_eq!(house.audit().await, [("sign_in.refused".to_owned(), "browser".to_owned())]);
}

#[tokio::test]
async fn a_second_tab_leaves_the_first_tabs_attempt_good() {
    let house = house().await;
    let mut browser = Browser::default();
    let first = browser.leave(&house, "/").await;
    let nonce = house.idp.says().nonce.clone();
    browser.leave(&house, "/").await;
    house.idp.says().nonce = nonce;
    assert_eq!(browser.come_back(&house, &first).await.status(), 303);
}

#[tokio::test]
async fn an_attempt_ends_after_ten_minutes() {
    let house = house().await;
    let mut browser = Browser::default();
    let state = browser.leave(&house, "/").await;
    house.clock.set(NOW + Duration::from_mins(10));
    assert_eq!(browser.come_back(&house, &state).await.status(), 403);
    assert_eq!(house.audit().await[0].1, "too_late");
}

#[tokio::test]
async fn an_answer_of_another_provider_is_refused() {
    let house = house().await;
    let mut browser = Browser::default();
    let state = browser.leave(&house, "/").await;
    let path = format!("/login/callback?code=good&state={state}&iss=https://elsewhere.example.com");
    assert_eq!(browser.get(&house, &path).await.status(), 403);
    assert_eq!(house.audit().await[0].1, "issuer");
}

#[tokio::test]
async fn what_the_provider_says_is_shown_as_text() {
    let house = house().await;
    let mut browser = Browser::default();
    let state = browser.leave(&house, "/").await;
    let path = format!("/login/callback?error=access_denied&error_description=%3Cscript%3E&state={state}");
    let html = text(browser.get(&house, &path).await).await;
    assert!(html.contains("access_denied: &lt;script&gt;"), "{html}");
    assert!(!html.contains("<script>"));
}

#[tokio::test]
async fn the_broker_starts_without_its_provider_and_says_so_when_asked() {
    let house = House::with(testing::sqlite().await, |c| c.issuer = "http://127.0.0.1:1".to_owned()).await;
    let answer = Browser::default().get(&house, "/login").await;
    assert_eq!(answer.status(), 503);
    assert!(text(answer).await.contains("cannot be reached"));
}

#[tokio::test]
async fn a_browser_session_ends_on_time_and_on_signing_out() {
    for db in testing::databases().await {
        let house = House::new(db).await;
        let mut browser = Browser::signed_in(&house).await;
        assert_eq!(text(browser.get(&house, "/whoami").await).await, "ana@example.com [\"support\"]");
        house.clock.set(NOW + Duration::from_hours(12));
        assert_eq!(browser.get(&house, "/whoami").await.status(), 401);
        house.clock.set(NOW);

        let token = browser.cookies["__Host-daypass"].clone();
        let request = browser.meant("POST", "/logout").body(Body::empty()).unwrap();
        assert_eq!(browser.send(&house, request).await.status(), 204);
        assert_eq!(browser.cookies["__Host-daypass"], "");
        assert!(house.login.from_browser_session(&token).await.is_err());
        assert_eq!(house.audit().await.last().unwrap().0, "signed_out");
    }
}

#[tokio::test]
async fn the_cookie_alone_changes_nothing() {
    let house = house().await;
    let mut browser = Browser::signed_in(&house).await;
    let bare = browser.request("POST", "/whoami").body(Body::empty()).unwrap();
    assert_eq!(browser.send(&house, bare).await.status(), 403);
    let wrong =
        browser.request("POST", "/whoami").header("x-csrf-token", "wrong").body(Body::empty()).unwrap();
    assert_eq!(browser.send(&house, wrong).await.status(), 403);
    let right = browser.meant("POST", "/whoami").body(Body::empty()).unwrap();
    assert_eq!(browser.send(&house, right).await.status(), 200);
    let ours =
        browser.meant("POST", "/whoami").header("origin", ORIGIN).header("sec-fetch-site", "same-origin");
    let ours = ours.body(Body::empty()).unwrap();
    assert_eq!(browser.send(&house, ours).await.status(), 200);
}

#[tokio::test]
async fn a_request_that_another_site_made_changes_nothing_even_with_the_token() {
    let house = house().await;
    let mut browser = Browser::signed_in(&house).await;
    for (name, value) in [
        ("origin", "https://evil.example.com"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        let request = browser.meant("POST", "/whoami").header(name, value).body(Body::empty()).unwrap();
        assert_eq!(browser.send(&house, request).await.status(), 403, "{name}: {value}");
    }
}

#[tokio::test]
async fn the_csrf_token_of_another_session_does_not_fit() {
    let house = house().await;
    let other = Browser::signed_in(&house).await;
    let mut browser = Browser::signed_in(&house).await;
    let request = browser
        .request("POST", "/whoami")
        .header("x-csrf-token", &other.cookies["daypass-csrf"])
        .body(Body::empty())
        .unwrap();
    assert_eq!(browser.send(&house, request).await.status(), 403);
}

#[tokio::test]
async fn a_wrong_access_token_is_not_saved_by_a_cookie_beside_it() {
    let house = house().await;
    let mut browser = Browser::signed_in(&house).await;
    let request = browser
        .request("GET", "/whoami")
        .header("authorization", "Bearer nonsense")
        .body(Body::empty())
        .unwrap();
    let answer = browser.send(&house, request).await;
    assert_eq!(answer.status(), 401);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
}
