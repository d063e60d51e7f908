use crate::broker::{Broker, Reply, token_answer};
use crate::place::Place;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt as _;

fn code(url: &str) -> Value {
    json!({"device_code": "dc", "user_code": "ABCD-EFGH", "verification_uri": format!("{url}/device"),
        "verification_uri_complete": format!("{url}/device?code=ABCD-EFGH"), "expires_in": 60, "interval": 1})
}

pub fn me() -> Value {
    json!({"id": "P-7K2M9QXD", "email": "ana@example.com", "name": "Ana Silva", "teams": ["support"],
        "signed_in_at": 1_795_345_512_345_i64, "may": ["connect"]})
}

fn broker_that(answers: &[(u16, Value)]) -> Broker {
    let broker = Broker::start();
    broker.on("POST /v1/device-authorization", Reply::json(200, &code(&broker.url)));
    for (status, body) in answers {
        broker.on("POST /v1/token", Reply::json(*status, body));
    }
    broker.on("GET /v1/me", Reply::json(200, &me()));
    broker
}

#[test]
fn a_person_signs_in_by_a_code_and_gets_a_certificate() {
    let broker = broker_that(&[(400, json!({"error": "authorization_pending"})), (200, token_answer(0))]);
    let place = Place::new();
    let told = place.run(&["login", "--broker", &broker.url, "--fingerprint", &broker.fingerprint]);
    assert_eq!(told.code, 0, "{told:?}");
    assert_eq!(told.out, "");
    assert_eq!(
        told.err,
        format!(
            "To sign in, open\n\n    {url}/device?code=ABCD-EFGH\n\nand check that it shows the code  ABCD-EFGH\n\
             (or type the code at {url}/device)\nSigned in to {url} as Ana Silva <ana@example.com>.\n",
            url = broker.url
        )
    );
    assert_eq!(broker.heard("POST /v1/token").len(), 2);
    for name in ["tokens.json", "id_ed25519", "id_ed25519-cert.pub", "config.toml"] {
        let mode = std::fs::metadata(place.profile().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let asked = broker.heard("POST /v1/me/certificate").concat();
    assert!(asked.contains("ssh-ed25519 ") && !asked.contains("PRIVATE"), "{asked}");

    let told = place.run(&["whoami", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&told.out).unwrap(), me());
    // The address and its trust are known from now on.
    assert_eq!(place.run(&["login"]).code, 0);
}

#[test]
fn a_refusal_in_the_browser_ends_the_sign_in() {
    let broker = broker_that(&[(400, json!({"error": "access_denied"}))]);
    let place = Place::new();
    let told = place.run(&["login", "--broker", &broker.url, "--fingerprint", &broker.fingerprint]);
    assert_eq!(told.code, 4, "{told:?}");
    assert!(told.err.contains("error: the sign-in was refused"), "{told:?}");
    assert_eq!(place.read("tokens.json"), None);
}

#[test]
fn a_code_that_lapses_ends_the_sign_in() {
    let broker = broker_that(&[(400, json!({"error": "expired_token"}))]);
    let told = Place::new().run(&["login", "--broker", &broker.url, "--fingerprint", &broker.fingerprint]);
    assert_eq!(told.code, 5, "{told:?}");
}

#[test]
fn an_unknown_self_made_certificate_is_refused_and_the_flag_is_named() {
    let broker = broker_that(&[(200, token_answer(0))]);
    let place = Place::new();
    let told = place.run(&["login", "--broker", &broker.url]);
    assert_eq!(told.code, 1, "{told:?}");
    assert!(told.err.contains("is not trusted"), "{told:?}");
    assert!(told.err.contains("hint: ") && told.err.contains("--fingerprint"), "{told:?}");
    assert!(broker.inner.heard.lock().unwrap().is_empty(), "nothing was sent");
}

#[test]
fn another_certificate_than_the_pinned_one_is_refused() {
    let broker = broker_that(&[(200, token_answer(0))]);
    let other = Broker::start();
    let told = Place::new().run(&["login", "--broker", &broker.url, "--fingerprint", &other.fingerprint]);
    assert_eq!(told.code, 1, "{told:?}");
    assert!(told.err.contains("is not trusted"), "{told:?}");
    assert!(broker.inner.heard.lock().unwrap().is_empty(), "nothing was sent");
}

#[test]
fn a_pinned_certificate_without_its_key_is_refused() {
    let broker = Broker::start();
    let impostor = Broker::impostor(&broker);
    let told = Place::new().run(&["login", "--broker", &impostor.url, "--fingerprint", &broker.fingerprint]);
    assert_eq!(told.code, 1, "{told:?}");
    assert!(told.err.contains("is not trusted: invalid peer certificate: BadSignature"), "{told:?}");
    assert!(impostor.inner.heard.lock().unwrap().is_empty(), "nothing was sent");
}

#[test]
fn an_authority_from_a_file_is_trusted_and_no_other() {
    let broker = broker_that(&[(200, token_answer(0))]);
    let place = Place::new();
    let (good, bad) = (place.dir.path().join("ca.pem"), place.dir.path().join("other.pem"));
    std::fs::write(&good, &broker.pem).unwrap();
    std::fs::write(&bad, Broker::start().pem).unwrap();
    let told = place.run(&["login", "--broker", &broker.url, "--ca-file", bad.to_str().unwrap()]);
    assert_eq!(told.code, 1, "{told:?}");
    let told = place.run(&["login", "--broker", &broker.url, "--ca-file", good.to_str().unwrap()]);
    assert_eq!(told.code, 0, "{told:?}");
    // Copied: the file may go.
    std::fs::remove_file(&good).unwrap();
    assert_eq!(place.run(&["whoami"]).code, 0);
}

#[test]
fn signing_out_revokes_at_the_broker_and_leaves_no_key() {
    let broker = broker_that(&[(200, token_answer(0))]);
    broker.on("POST /v1/revoke", Reply::json(200, &json!({})));
    let place = Place::new();
    place.run(&["login", "--broker", &broker.url, "--fingerprint", &broker.fingerprint]);
    let told = place.run(&["logout"]);
    assert_eq!((told.code, told.err.as_str()), (0, "Signed out.\n"));
    assert!(broker.heard("POST /v1/revoke").concat().contains("token=refresh-0"));
    for name in ["tokens.json", "id_ed25519", "id_ed25519-cert.pub"] {
        assert_eq!(place.read(name), None, "{name}");
    }
    let told = place.run(&["whoami"]);
    assert_eq!(
        (told.code, told.err.as_str()),
        (3, "error: you are not signed in\nhint: run `daypass login`\n")
    );
}

#[test]
fn signing_out_without_the_broker_leaves_nothing_here_and_says_what_is_left_there() {
    let broker = Broker::start();
    let place = Place::signed_in(&broker, 300);
    drop(broker);
    let told = place.run(&["logout"]);
    assert_eq!(told.code, 1, "{told:?}");
    assert!(told.err.starts_with("error: signed out here, but the broker could not be told"), "{told:?}");
    assert_eq!(place.read("tokens.json"), None);
}

#[test]
fn profiles_keep_identities_apart() {
    let broker = broker_that(&[(200, token_answer(0))]);
    let place = Place::new();
    let login = ["login", "--broker", &broker.url, "--fingerprint", &broker.fingerprint];
    assert_eq!(place.run(&[&["--profile", "ana"], &login[..]].concat()).code, 0);
    assert_eq!(place.run(&["whoami"]).code, 3);
    assert_eq!(place.run(&["--profile", "ana", "whoami"]).code, 0);
    assert!(place.dir.path().join("config/daypass/profiles/ana/tokens.json").exists());
}

#[test]
fn a_broker_without_tls_is_refused() {
    let told = Place::new().run(&["login", "--broker", "http://broker.example.com"]);
    assert_eq!(told.code, 2, "{told:?}");
    assert!(told.err.contains("https://"), "{told:?}");
}
