//! Who is let in, and whom the engineer can trust to be the gateway and the device.

use crate::world::{ANA, ANAS_KEY, BEN, BENS_KEY, FOREIGN_CA, Mint, World, key};
use daypass_broker::gateway::RefusedKind;
use daypass_protocol::ssh_key::certificate::CertType;
use russh::client;
use russh::keys::PublicKeyOrCertificate;
use std::sync::Arc;

async fn is_refused(mint: Mint, what: &str) -> World {
    let world = World::new().await;
    world.write_key("id", mint.key);
    world.write_certificate(&mint);
    for target in ["gw-0042.daypass", "diag%gw-0042@gateway"] {
        let done = world.ssh(&[target, "exit 7"]).await;
        assert_eq!(done.status, Some(255), "{what}: {}", done.err);
    }
    assert!(world.nothing_was_opened(), "{what}");
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_prove_nobody_open_nothing() {
    let cases = [
        ("foreign CA", Mint { ca: FOREIGN_CA, ..Mint::default() }),
        ("signed by itself", Mint { ca: ANAS_KEY, ..Mint::default() }),
        ("host certificate", Mint { kind: CertType::Host, ..Mint::default() }),
        ("two principals", Mint { principals: vec![ANA, BEN], ..Mint::default() }),
        ("no principal", Mint { principals: vec![], ..Mint::default() }),
        ("a session's principal", Mint { principals: vec!["diag@gw-0042"], ..Mint::default() }),
        ("not yet valid", Mint { from: 1800, ..Mint::default() }),
        ("unknown critical option", Mint { critical: vec![("verify-required", "")], ..Mint::default() }),
        ("another source", Mint { critical: vec![("source-address", "192.0.2.0/24")], ..Mint::default() }),
    ];
    for (what, mint) in cases {
        is_refused(mint, what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_told_what_to_do() {
    let world = is_refused(Mint { from: -7200, until: -3600, ..Mint::default() }, "expired").await;
    world.refusal(RefusedKind::BareKey).await;
    for target in ["gw-0042.daypass", "diag%gw-0042@gateway"] {
        let done = world.ssh(&[target, "exit 7"]).await;
        let line = "daypass: your identity certificate has expired: run daypass login";
        assert!(done.err.contains(line), "{target} {}", done.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_ours_that_opens_nothing_is_told_so() {
    let world = is_refused(Mint { principals: vec![ANA, BEN], ..Mint::default() }, "two").await;
    let done = world.ssh(&["diag%gw-0042@gateway", "exit 7"]).await;
    assert!(
        done.err.contains("daypass: your identity certificate opens nothing: daypass login"),
        "{}",
        done.err
    );
    world.refusal(RefusedKind::Certificate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_key_is_refused_also_when_it_signs() {
    let world = World::new().await;
    world.write_key("id", BENS_KEY);
    std::fs::remove_file(world.path("id-cert.pub")).unwrap();
    let done = world.ssh(&["diag%gw-0042@gateway", "exit 7"]).await;
    assert_eq!(done.status, Some(255));
    assert!(done.err.contains("Permission denied (publickey)"), "{}", done.err);
    world.refusal(RefusedKind::BareKey).await;
    assert!(world.nothing_was_opened());
}

struct Anybody;

impl client::Handler for Anybody {
    type Error = russh::Error;
    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

async fn raw(world: &World) -> client::Handle<Anybody> {
    client::connect(Arc::new(client::Config::default()), world.gateway.address(), Anybody).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_whose_key_did_not_sign_and_a_password_are_refused() {
    let world = World::new().await;
    let user = "diag%gw-0042";
    let mut stranger = raw(&world).await;
    let answer = stranger
        .authenticate_openssh_cert(user, Arc::new(key(BENS_KEY)), Mint::default().mint())
        .await
        .map(|answer| answer.success());
    assert!(!matches!(answer, Ok(true)), "a certificate with somebody else's signature");
    let mut stranger = raw(&world).await;
    let answer = stranger.authenticate_password(user, "secret").await.map(|answer| answer.success());
    assert!(!matches!(answer, Ok(true)));
    let answer = stranger.authenticate_none(user).await.map(|answer| answer.success());
    assert!(!matches!(answer, Ok(true)));
    assert!(stranger.channel_open_session().await.is_err(), "no channel before a person is proven");
    assert!(world.nothing_was_opened());
}

/// Also: the post-quantum hybrid is what two sides that know it agree on.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_under_one_name_leaves_nothing_for_another() {
    let world = World::new().await;
    let mut client = raw(&world).await;
    let foreign = Mint { ca: FOREIGN_CA, ..Mint::default() }.mint();
    let ana = Arc::new(key(ANAS_KEY));
    let answer = client.authenticate_openssh_cert("root%gw-0043", ana.clone(), foreign).await.unwrap();
    assert!(!answer.success());
    let good = Mint::default().mint();
    let answer = client.authenticate_openssh_cert("diag%gw-0042", ana, good).await.unwrap();
    assert!(answer.success());
    let channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "stall").await.unwrap();
    crate::world::until("the session", || !world.seen.begun.lock().unwrap().is_empty()).await;
    let begun = world.seen.begun.lock().unwrap()[0].clone();
    assert_eq!((begun.login.as_str(), begun.device.as_str()), ("diag", "gw-0042"));
    assert_eq!(begun.client.kex.as_deref(), Some("mlkem768x25519-sha256"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_name_with_another_devices_certificate_is_not_believed() {
    let world = World::new().await;
    let done = world.ssh(&["gw-0666.daypass", "exit 7"]).await;
    assert_eq!(done.status, Some(255));
    assert!(done.err.contains("Host key verification failed") || done.err.contains("Certificate invalid"));
    assert!(world.nothing_was_opened());
}
