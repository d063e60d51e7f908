//! Tickets: what is ahead of SSH on the gateway's port.

use crate::world::{BEN, BENS_KEY, Done, Mint, World, until};
use daypass_broker::gateway::{Caller, Door as _, Limits, NotLetIn, RefusedKind};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

async fn ticket(world: &World, owner: &Mint, device: &str) -> Result<String, NotLetIn> {
    let source: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let person = world.door.authenticate(&owner.mint(), source).await.unwrap();
    let caller = Caller { person, source, tls: "X25519MLKEM768".to_owned() };
    world.gateway.entrance().ticket(caller, device).await
}

/// A port that says `ahead` to the gateway and then carries what comes, as `daypass proxy --fdpass` would have.
async fn saying(world: &World, ahead: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, gateway) = (listener.local_addr().unwrap().port(), world.gateway.address());
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut connection = TcpStream::connect(gateway).await.unwrap();
            connection.write_all(ahead.as_bytes()).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut connection).await });
        }
    });
    port
}

/// `ssh`, which is called for gw-0042 and reaches whatever is behind the port.
async fn ssh_to(world: &World, port: u16, command: &str) -> Done {
    let port = format!("Port={port}");
    let straight = [
        "-o",
        "ProxyJump=none",
        "-o",
        "HostName=127.0.0.1",
        "-o",
        &port,
        "-o",
        "HostKeyAlias=gw-0042.daypass",
    ];
    world.ssh(&[&straight[..], &["gw-0042.daypass", command]].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_leads_straight_to_its_device_and_is_good_once() {
    let world = World::new().await;
    let ticket = ticket(&world, &Mint::default(), "gw-0042.daypass").await.unwrap();
    let port = saying(&world, format!("daypass-ticket {ticket}\r\n")).await;
    let done = ssh_to(&world, port, "exit 7").await;
    assert_eq!(done.status, Some(7), "{}", done.err);
    {
        let begun = world.seen.begun.lock().unwrap();
        let only = begun.first().unwrap();
        assert_eq!((only.device.as_str(), only.login.as_str(), begun.len()), ("gw-0042", "diag", 1));
        // One SSH connection, and nothing around it.
        assert_eq!(only.client.outer_kex, None);
        assert!(only.client.kex.is_some() && only.client.version.starts_with("SSH-2.0-OpenSSH"));
    }
    let done = ssh_to(&world, port, "exit 7").await;
    assert_eq!(done.status, Some(255));
    assert!(done.err.contains("daypass: the ticket was used, or it is too late for it"), "{}", done.err);
    world.refusal(RefusedKind::Ticket).await;
    assert_eq!(world.seen.begun.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_nothing_to_anybody_but_who_asked_for_it() {
    let world = World::new().await;
    let bens = Mint { key: BENS_KEY, principals: vec![BEN], ..Mint::default() };
    let ticket = ticket(&world, &bens, "gw-0042").await.unwrap();
    let port = saying(&world, format!("daypass-ticket {ticket}\r\n")).await;
    // Ana's machine, with Ben's ticket.
    let done = ssh_to(&world, port, "exit 7").await;
    assert_eq!(done.status, Some(255), "{}", done.err);
    world.refusal(RefusedKind::OtherPerson).await;
    assert!(world.nothing_was_opened());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_somebody_exchanged_on_the_way_is_found_out_by_the_client() {
    let world = World::new().await;
    let ticket = ticket(&world, &Mint::default(), "gw-0043").await.unwrap();
    let port = saying(&world, format!("daypass-ticket {ticket}\r\n")).await;
    let done = ssh_to(&world, port, "exit 7").await;
    assert_eq!(done.status, Some(255));
    assert!(done.err.contains("Host key verification failed"), "{}", done.err);
    assert!(world.nothing_was_opened());
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_ticket_to_what_is_no_device() {
    let world = World::new().await;
    let mine = Mint::default();
    assert!(matches!(ticket(&world, &mine, "gw-9999").await, Err(NotLetIn::Refused(_))));
    assert!(matches!(ticket(&world, &mine, "not a name").await, Err(NotLetIn::NotADevice(_))));
    world.refusal(RefusedKind::Target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_neither_ssh_nor_a_ticket_is_closed_and_takes_no_memory() {
    let limits = Limits { login_grace: Duration::from_secs(3), ..Limits::default() };
    let world = World::with(limits).await;
    let hundred_thousand = format!("daypass-ticket {}", "x".repeat(100_000));
    for ahead in
        ["d", "daypass-ticket ", "daypass-tocket x\r\n", "daypass-ticket \u{7}\r\n", &hundred_thousand]
    {
        let mut connection = TcpStream::connect(world.gateway.address()).await.unwrap();
        // Closed before it has taken all of it, perhaps.
        let _ = connection.write_all(ahead.as_bytes()).await;
        let mut said = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(20), connection.read_to_end(&mut said)).await;
        // Closed over what was not read, a connection may be reset.
        let _ = closed.expect("it is closed");
    }
    // The one that reads as a ticket.
    until("the refusal", || world.refusals() == [RefusedKind::Ticket]).await;
    let done = world.ssh(&["gw-0042.daypass", "exit 7"]).await;
    assert_eq!(done.status, Some(7), "{}", done.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_a_ticket_has_no_longer_to_prove_itself_than_any() {
    let limits = Limits { login_grace: Duration::from_secs(3), ..Limits::default() };
    let world = World::with(limits).await;
    let ticket = ticket(&world, &Mint::default(), "gw-0042").await.unwrap();
    let mut connection = TcpStream::connect(world.gateway.address()).await.unwrap();
    let mut line = [0; 17];
    connection.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"SSH-2.0-Daypass\r\n");
    tokio::time::sleep(Duration::from_secs(2)).await;
    connection.write_all(format!("daypass-ticket {ticket}\r\nSSH-2.0-x\r\n").as_bytes()).await.unwrap();
    let since = std::time::Instant::now();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(20), connection.read_to_end(&mut rest)).await;
    let _ = closed.expect("it is closed");
    // Not another three seconds from the ticket on; the machine may be slow.
    assert!(since.elapsed() < Duration::from_millis(2500), "{:?}", since.elapsed());
    assert!(!rest.starts_with(b"SSH-"), "the identification is said once");
}
