//! Over HTTPS: what an engineer's own `ssh` does by `ProxyCommand daypass proxy %h`, in a network that lets
//! nothing else out.
#![allow(
    non_snake_case,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests, named for what they try"
)]

use journeys::{Device, Done, ForwardProxy, Program, World, marker, sleepers, until};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Where the engineer's ssh goes over HTTPS.
fn world() -> Arc<World> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let world = World::shared();
    over_https(&world);
    world
}

fn over_https(world: &World) {
    let _ = world.cli("engineer", &["setup", "ssh", "--over", "https", "--yes"]).ok();
    let include = std::fs::read_to_string(world.profile("engineer", "ssh_include")).unwrap();
    assert!(include.contains(" proxy -- '%h'") && !include.contains("ProxyJump"), "{include}");
}

/// A device of the test's own, with a grant.
fn device(world: &World, id: &str, channels: &str) -> (Device, String) {
    let device = Device::enrol(world, id, "lab");
    let args = ["request", id, "-l", "diag", "--for", "10m", "--channel", channels, "--reason", "a journey"];
    let request = world.json("engineer", &args)["id"].as_str().unwrap().to_owned();
    (device, request)
}

/// `daypass proxy` of this person, as ssh would start it by hand-written configuration.
fn proxy_option(world: &World, persona: &str) -> String {
    let program = journeys::programs().join("daypass");
    let home = world.dir().join("home");
    format!("ProxyCommand='{}' --home '{}' --profile {persona} proxy %h", program.display(), home.display())
}

#[test]
fn over_https__shell_and_commands_with_input_output_and_exit_code() {
    let world = world();
    let (_device, _) = device(&world, "gw-wss", "shell,exec");
    let target = "diag@gw-wss.daypass";
    let command = world.ssh_command(&[target, "wc -c; echo apart >&2; exit 7"]);
    let done = Program::run(command, &vec![b'x'; 300_000]).with(7);
    assert_eq!((done.out().trim(), done.stderr.as_str()), ("300000", "apart\n"));
    let bytes: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    assert_eq!(Program::run(world.ssh_command(&[target, "cat"]), &bytes).ok().stdout, bytes);

    let mut shell = world.ssh_start("gw-wss", &["-tt"], "");
    shell.send(b"stty size; echo seen-$((40 + 2)); exit 5\n");
    shell.shows("seen-42");
    let _ = shell.finish().with(5);
    let done = world.cli("engineer", &["ssh", "gw-wss", "-l", "diag", "--", "echo", "hello"]).ok();
    assert_eq!((done.out().as_str(), done.stderr.as_str()), ("hello\n", ""));

    // One SSH connection, inside TLS: what protects it is on record.
    world.audited("session.opening", &["gw-wss", " via X25519MLKEM768\""]);
    world.evidence_is_whole();
}

#[test]
fn over_https__a_choice_is_made_once_or_for_good() {
    let world = World::start();
    for (id, over, around) in [
        ("gw-first", None, [false, false]),
        ("gw-once", Some("https"), [true, true]),
        ("gw-jump", Some("jump"), [true, false]),
        ("gw-good", None, [true, true]),
        ("gw-back", Some("ssh"), [false, false]),
    ] {
        let (_device, _) = device(&world, id, "exec");
        if id == "gw-good" {
            over_https(&world);
        }
        let mut args = vec!["ssh", id];
        args.extend(over.iter().flat_map(|over| ["--over", over]));
        args.extend(["--", "echo", "hello"]);
        assert_eq!(world.cli("engineer", &args).ok().out(), "hello\n");
        world.audited("session.opening", &[id, "\"device_kex\":\"X25519MLKEM768\""]);
        // What is around the SSH that is meant for the device: nothing, SSH, or TLS.
        let is = [" via ", " via X25519MLKEM768\""].map(|kex| world.has_event("session.opening", &[id, kex]));
        assert_eq!(is, around, "{id}");
    }
}

#[test]
fn over_https__files_by_scp_and_a_hundred_megabytes_byte_for_byte() {
    let world = world();
    let (_device, _) = device(&world, "gw-bulk", "exec,sftp");
    let here = world.dir().join("bulk");
    std::fs::create_dir_all(&here).unwrap();
    let content: Vec<u8> =
        (0..5_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0]).collect();
    let (up, there, down) = (here.join("up"), here.join("there"), here.join("down"));
    std::fs::write(&up, &content).unwrap();
    let remote = format!("diag@gw-bulk.daypass:{}", there.display());
    for (from, to) in [(up.to_str().unwrap(), remote.as_str()), (remote.as_str(), down.to_str().unwrap())] {
        let mut scp = Command::new("scp");
        scp.arg("-F").arg(world.home("engineer").join(".ssh/config")).args([from, to]);
        scp.env("HOME", world.home("engineer"));
        let _ = Program::run(scp, b"").ok();
    }
    assert!(std::fs::read(&down).unwrap() == content, "what came back differs");

    let large = here.join("large");
    let mut file = std::fs::File::create(&large).unwrap();
    for _ in 0..20 {
        file.write_all(&content).unwrap();
    }
    drop(file);
    let cat = format!("cat {}", large.display());
    let done = Program::run(world.ssh_command(&["diag@gw-bulk.daypass", &cat]), b"").ok();
    assert_eq!(done.stdout.len(), 20 * content.len());
    assert!(done.stdout.chunks(content.len()).all(|part| part == content), "what came differs");
    // And the other way.
    let sum = format!("cmp - {} && echo the same", large.display());
    let done = Program::run(world.ssh_command(&["diag@gw-bulk.daypass", &sum]), &done.stdout).ok();
    assert_eq!(done.out(), "the same\n");
}

#[test]
fn over_https__the_device_shows_its_own_host_certificate_and_no_other() {
    let world = world();
    let (device, _) = device(&world, "gw-host", "exec");
    let seen = world.ssh(&["-v", "diag@gw-host.daypass", "true"]).ok();
    seen.says("Host 'gw-host.daypass' is known and matches the ED25519-CERT host certificate.");
    seen.says("Authenticated to gw-host.daypass (via proxy)");
    let alias = ["-o", "HostKeyAlias=gw-0042.daypass", "diag@gw-host.daypass", "echo reached"];
    until("the device to have written the end", || device.journal().contains("\"ended\""));
    let journal = device.journal();
    let done = world.ssh(&alias).with(255);
    done.says("name is not a listed principal");
    assert_eq!((done.out(), device.journal()), (String::new(), journal));
}

#[test]
fn over_https__without_a_sign_in_there_is_no_way_in() {
    let world = world();
    let (device, _) = device(&world, "gw-nobody", "exec");
    // A profile like the engineer's, with the engineer's certificate and without tokens.
    let nobody = world.profile("nobody", "");
    std::fs::create_dir_all(&nobody).unwrap();
    std::fs::copy(world.profile("engineer", "config.toml"), nobody.join("config.toml")).unwrap();
    let proxy = proxy_option(&world, "nobody");
    let done = world.ssh(&["-o", &proxy, "diag@gw-nobody.daypass", "echo reached"]).with(255);
    done.says("error: you are not signed in").says("hint: run `daypass --profile nobody login`");
    assert_eq!(done.out(), "");
    assert_eq!(world.cli("nobody", &["proxy", "gw-nobody"]).code(), 3);

    // Tokens that the broker does not know.
    let tokens = std::fs::read_to_string(world.profile("engineer", "tokens.json")).unwrap();
    let mut tokens: serde_json::Value = serde_json::from_str(&tokens).unwrap();
    for name in ["access_token", "refresh_token"] {
        let reversed: String = tokens[name].as_str().unwrap().chars().rev().collect();
        tokens[name] = reversed.into();
    }
    std::fs::write(nobody.join("tokens.json"), tokens.to_string()).unwrap();
    let done = world.ssh(&["-o", &proxy, "diag@gw-nobody.daypass", "echo reached"]).with(255);
    done.says("error: you are not signed in");
    assert_eq!(done.out(), "");
    world.audited("gateway.refused", &["gw-nobody", "\"what\":\"token\""]);
    assert_eq!(device.journal(), "", "nothing reached the device");
}

#[test]
fn over_https__a_sign_in_is_no_certificate_and_a_certificate_of_another_opens_nothing() {
    let world = world();
    let (device, _) = device(&world, "gw-two", "exec");
    let file = |persona: &str, name: &str| world.profile(persona, name).display().to_string();
    let known = format!("UserKnownHostsFile={}", file("engineer", "known_hosts"));
    // Each has a grant of the engineer's in reach: by the certificate, or by the sign-in.
    for (signed_in, certified) in [("approver", "engineer"), ("engineer", "approver")] {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "IdentitiesOnly=yes", "-o", &known])
            .args(["-o", &proxy_option(&world, signed_in)])
            .args(["-o", &format!("IdentityFile={}", file(certified, "id_ed25519"))])
            .args(["-o", &format!("CertificateFile={}", file(certified, "id_ed25519-cert.pub"))])
            .args(["diag@gw-two.daypass", "echo reached"])
            .env_remove("SSH_AUTH_SOCK");
        let done = Program::run(ssh, b"").with(255);
        done.says("the certificate is another person's than the sign-in of daypass proxy");
        assert_eq!(done.out(), "");
    }
    world.audited("gateway.refused", &["gw-two", "\"what\":\"other-person\"", "another person's"]);

    // The sign-in alone proves nobody to SSH.
    let mut keygen = Command::new("ssh-keygen");
    let key = world.dir().join("bare");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key);
    let _ = Program::run(keygen, b"").ok();
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "PreferredAuthentications=publickey"])
        .args(["-o", &known, "-o", &proxy_option(&world, "engineer"), "-i"])
        .arg(&key)
        .args(["diag@gw-two.daypass", "echo reached"])
        .env_remove("SSH_AUTH_SOCK");
    let done = Program::run(ssh, b"").with(255);
    done.says("Permission denied");
    world.audited("gateway.refused", &["gw-two", "\"what\":\"bare-key\""]);
    assert_eq!(device.journal(), "", "nothing reached the device");
}

/// What the engineer is told, without what ssh adds.
fn told(done: &Done) -> Vec<String> {
    let said = format!("{}{}", done.out(), done.stderr);
    said.lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| line.starts_with("daypass:") || line.starts_with("hint:"))
        .collect()
}

#[test]
fn over_https__who_is_refused_is_told_the_same_as_on_the_other_ways() {
    let world = world();
    let single = |id: &str| {
        let user = format!("diag%{id}");
        world.ssh(&["-l", &user, "daypass-gateway-engineer", "echo reached"]).with(255)
    };
    let https = |id: &str| world.ssh(&[&format!("diag@{id}.daypass"), "echo reached"]).with(255);

    let none = Device::enrol(&world, "gw-no-grant", "field");
    let refused = https("gw-no-grant");
    assert_eq!(told(&refused), told(&single("gw-no-grant")), "{refused}");
    refused.says("daypass request gw-no-grant -l diag");
    world.audited("session.refused", &["ana@example.com", "gw-no-grant"]);
    assert_eq!(none.journal(), "", "nothing reached the device");

    let (device, _) = device(&world, "gw-stopped", "exec");
    let args = ["device", "suspend", "gw-stopped", "--reason", "stolen van"];
    let _ = world.cli("operator", &args).ok();
    let refused = https("gw-stopped");
    assert_eq!(told(&refused), told(&single("gw-stopped")), "{refused}");
    refused.says("A session opens only on a device that is active");
    assert_eq!(device.journal(), "", "nothing reached the device");

    // A device that is not there, and a name that none can have.
    assert_eq!(told(&https("gw-nowhere")), told(&single("gw-nowhere")));
    let done = world.cli("engineer", &["proxy", "db.example.com"]).with(1);
    done.says("error: db.example.com is not the name of a device");
    world.audited("gateway.refused", &["ana@example.com", "\"what\":\"target\"", "db.example.com"]);

    // Kinds of channels that do not exist.
    let _ = world.cli("operator", &["device", "resume", "gw-stopped", "--reason", "found"]).ok();
    let done = world.ssh(&["-W", "localhost:22", "diag@gw-stopped.daypass"]).with(255);
    done.says("no forward leads to the device's own SSH");
    assert_eq!(device.journal(), "", "nothing reached the device");
}

#[test]
fn over_https__when_access_ends_the_reason_is_read_however_much_is_on_its_way() {
    let world = world();
    let (_device, request) = device(&world, "gw-over", "shell,exec");
    let marker = marker();
    let command = format!("sleep {marker} & cat /dev/zero");
    let mut quiet = world.ssh_start("gw-over", &["-tt"], "");
    quiet.send(b"echo quiet-$((40 + 2))\n");
    quiet.shows("quiet-42");
    let flood = Program::start(world.ssh_command(&["diag@gw-over.daypass", &command]));
    until("the flood", || flood.out().len() > 1_000_000);
    let _ = world.cli("approver", &["revoke", &request, "--reason", "wrong customer"]).ok();
    for program in [quiet, flood] {
        let done = program.ends().with(255);
        assert!(
            format!("{}{}", done.out(), done.stderr).contains("your access was revoked"),
            "{}",
            done.stderr
        );
        assert!(!done.stderr.contains("error:"), "it ended in order: {}", done.stderr);
    }
    until("the device to be empty", || sleepers(&marker).is_empty());
    // What comes after that is refused.
    assert_eq!(world.ssh(&["diag@gw-over.daypass", "echo reached"]).with(255).out(), "");
}

#[test]
fn over_https__a_reader_that_stops_stops_itself_only() {
    let world = world();
    let (_device, _) = device(&world, "gw-slow", "exec");
    let sent = world.dir().join("slow-sent");
    let command = format!("head -c 60000000 /dev/zero; touch {}", sent.display());
    let mut slow = world
        .ssh_command(&["diag@gw-slow.daypass", &command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    let mut output = slow.stdout.take().unwrap();
    output.read_exact(&mut first).unwrap();
    // What is recorded is what the device has sent; it is sealed every two seconds while it grows.
    let recorded = || world.sessions("gw-slow")[0]["recordings"].to_string();
    let (mut last, mut since) = (recorded(), Instant::now());
    until("the stream to stand still", || {
        let now = recorded();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(5)
    });
    for _ in 0..3 {
        assert_eq!(world.ssh(&["diag@gw-slow.daypass", "echo through"]).ok().out(), "through\n");
    }
    assert!(!sent.exists(), "more is under way than there is room for");
    drop(output);
    slow.kill().unwrap();
    slow.wait().unwrap();
}

/// A home whose profiles know the broker by a name that only the proxy knows.
fn strict_network(world: &World, name: &str) -> PathBuf {
    let home = world.dir().join(name);
    let profile = home.join("profiles/engineer");
    std::fs::create_dir_all(&profile).unwrap();
    for file in std::fs::read_dir(world.profile("engineer", "")).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, profile.join(file.file_name().unwrap())).unwrap();
    }
    let config = profile.join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let inside = text.replace(world.endpoint("https"), "broker.strict.invalid");
    assert_ne!(text, inside);
    std::fs::write(&config, inside).unwrap();
    home
}

#[test]
fn over_https__through_an_http_proxy_which_is_the_only_way_out() {
    let world = world();
    let (_device, _) = device(&world, "gw-strict", "exec");
    let home = strict_network(&world, "strict");
    let program = journeys::programs().join("daypass");
    let ssh = |https_proxy: Option<&str>, no_proxy: &str, command: &str| {
        let option = format!(
            "ProxyCommand='{}' --home '{}' --profile engineer proxy %h",
            program.display(),
            home.display()
        );
        let mut ssh = world.ssh_command(&["-o", &option, "diag@gw-strict.daypass", command]);
        for name in ["https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "no_proxy"] {
            ssh.env_remove(name);
        }
        match https_proxy {
            // Both spellings are read.
            Some(url) if url.contains('@') => ssh.env_remove("HTTPS_PROXY").env("https_proxy", url),
            Some(url) => ssh.env("HTTPS_PROXY", url),
            None => ssh.env_remove("HTTPS_PROXY"),
        };
        ssh.env("NO_PROXY", no_proxy);
        Program::run(ssh, &vec![b'x'; 300_000])
    };
    let https = world.port("https");
    let open = ForwardProxy::new("broker.strict.invalid", https, None);
    let url = format!("http://127.0.0.1:{}", open.port);
    assert_eq!(ssh(Some(&url), "", "wc -c; exit 7").with(7).out().trim(), "300000");
    assert_eq!(open.carried(), 1);

    // There is no other way, and the proxy is left out where it is told to be.
    for (proxy, no_proxy) in [(None, ""), (Some(url.as_str()), ".strict.invalid")] {
        let done = ssh(proxy, no_proxy, "echo reached").with(255);
        done.says("error: https://broker.strict.invalid cannot be reached").says("hint: ");
        assert_eq!(done.out(), "");
    }
    assert_eq!(open.carried(), 1);

    // With a password: `ana:open sesame`.
    let closed = ForwardProxy::new("broker.strict.invalid", https, Some("Basic YW5hOm9wZW4gc2VzYW1l"));
    let with = |userinfo: &str| format!("http://{userinfo}127.0.0.1:{}", closed.port);
    assert_eq!(ssh(Some(&with("ana:open%20sesame@")), "", "wc -c").ok().out().trim(), "300000");
    assert_eq!((closed.carried(), closed.refused()), (1, 0));
    for wrong in ["", "ana:guess@"] {
        let done = ssh(Some(&with(wrong)), "", "echo reached").with(255);
        done.says("error: the proxy on the way to https://broker.strict.invalid refused: proxy authorization required");
        assert_eq!(done.out(), "");
    }
    assert_eq!((closed.carried(), closed.refused()), (1, 2));
}

#[test]
fn over_https__a_connection_that_is_cut_says_so_and_somebody_in_the_middle_is_not_believed() {
    let world = world();
    let (device, _) = device(&world, "gw-cut", "exec");
    let proxy = ForwardProxy::new("broker.strict.invalid", world.port("https"), None);
    let home = strict_network(&world, "cut");
    let marker = marker();
    let start = |home: &Path, port: u16, command: &str| {
        let option = format!(
            "ProxyCommand='{}' --home '{}' --profile engineer proxy %h",
            journeys::programs().join("daypass").display(),
            home.display()
        );
        let mut ssh = world.ssh_command(&["-o", &option, "diag@gw-cut.daypass", command]);
        ssh.env_remove("NO_PROXY").env_remove("no_proxy").env_remove("https_proxy");
        ssh.env("HTTPS_PROXY", format!("http://127.0.0.1:{port}"));
        Program::start(ssh)
    };
    let mut session = start(&home, proxy.port, &format!("sleep {marker} & echo there; wait"));
    session.shows("there");
    proxy.cut();
    let done = session.ends().with(255);
    done.says("error: the connection to https://broker.strict.invalid was cut");
    until("the device to be empty", || sleepers(&marker).is_empty());

    // The profile believes one certificate. Here another answers: that of a broker of somebody else's.
    let other = World::start();
    let middle = ForwardProxy::new("broker.strict.invalid", other.port("https"), None);
    let journal = device.journal();
    let done = start(&home, middle.port, "echo reached").finish().with(255);
    done.says("error: the certificate of https://broker.strict.invalid is not trusted");
    assert_eq!((done.out(), device.journal()), (String::new(), journal));
}

#[test]
fn over_https__connections_count_with_those_to_the_ssh_port() {
    let world = World::start();
    over_https(&world);
    // One source may have 16 connections on which nobody is proven yet.
    let proxies: Vec<Program> = (0..2)
        .map(|_| {
            let mut proxy = Program::start(world.command("engineer", &["proxy", "gw-0043"]));
            proxy.shows("SSH-2.0-Daypass");
            proxy
        })
        .collect();
    let banner = |stream: &mut TcpStream| {
        let mut banner = [0; 15];
        stream.read_exact(&mut banner).map(|()| banner)
    };
    let address = format!("127.0.0.1:{}", world.port("ssh"));
    let mut held: Vec<TcpStream> = (0..14).map(|_| TcpStream::connect(&address).unwrap()).collect();
    for stream in &mut held {
        assert_eq!(&banner(stream).unwrap(), b"SSH-2.0-Daypass");
    }
    let done = world.cli("engineer", &["proxy", "gw-0043"]).with(1);
    done.says("error: Too many SSH connections are being set up").says("hint: Try again");
    assert_eq!(done.out(), "");
    assert!(banner(&mut TcpStream::connect(&address).unwrap()).is_err(), "a 17th was let in");
    // Whoever leaves makes room.
    drop(proxies);
    until("room for one more", || banner(&mut TcpStream::connect(&address).unwrap()).is_ok());
}

#[test]
fn over_https__a_broker_that_stops_says_so() {
    let world = World::start();
    over_https(&world);
    let (_device, _) = device(&world, "gw-stop", "exec");
    let mut session = world.ssh_start("gw-stop", &[], "echo there; cat");
    session.shows("there");
    world.stop();
    let done = session.ends().with(255);
    done.says("the broker is stopping");
}
