//! The clients that people have besides OpenSSH's own: Ansible, git, PuTTY; and one connection shared by many.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use journeys::{Done, Place, Program, content, eventually, service, sha256, until};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

fn line(text: &str) -> String {
    text.split_whitespace().nth(1).unwrap().to_owned()
}

/// Ansible with one device in its inventory; its own ways: ControlMaster, and sftp for files.
struct Ansible {
    place: Place,
    sockets: PathBuf,
}

impl Ansible {
    fn new(id: &str) -> Self {
        let place = Place::new(id, "shell,exec,sftp");
        let inventory = format!(
            "{id} ansible_host={id}.daypass ansible_user=diag ansible_python_interpreter=/usr/bin/python3\n"
        );
        place.write("inventory", inventory.as_bytes());
        place.write("ansible.cfg", b"");
        // Short: the path of a socket has 108 bytes.
        let sockets = place.world.dir().join("cp");
        Self { place, sockets }
    }

    fn run(&self, pipelining: bool, args: &[&str]) -> Done {
        let mut command = Command::new("ansible");
        let ssh =
            format!("-F {} -o ControlMaster=auto -o ControlPersist=60s", self.place.ssh_config().display());
        command
            .arg("-i")
            .arg(self.place.here.join("inventory"))
            .arg(&self.place.device.id)
            .args(args)
            .env("HOME", self.place.home())
            .env_remove("SSH_AUTH_SOCK")
            .env("ANSIBLE_CONFIG", self.place.here.join("ansible.cfg"))
            .env("ANSIBLE_NOCOLOR", "1")
            .env("ANSIBLE_LOAD_CALLBACK_PLUGINS", "1")
            .env("ANSIBLE_STDOUT_CALLBACK", "ansible.builtin.oneline")
            .env("ANSIBLE_LOCAL_TEMP", self.place.here.join("tmp"))
            .env("ANSIBLE_REMOTE_TMP", self.place.there.join("tmp"))
            .env("ANSIBLE_SSH_ARGS", ssh)
            .env("ANSIBLE_SSH_CONTROL_PATH_DIR", &self.sockets)
            .env("ANSIBLE_SSH_TRANSFER_METHOD", "sftp")
            .env("ANSIBLE_PIPELINING", if pipelining { "True" } else { "False" });
        Program::run(command, b"")
    }

    /// The shared connection that Ansible leaves behind.
    fn leave(&self) {
        for socket in std::fs::read_dir(&self.sockets).unwrap() {
            let path = format!("ControlPath={}", socket.unwrap().path().display());
            let _ = Program::run(self.place.command("ssh", &["-o", &path, "-O", "exit", "any"]), b"").ok();
        }
    }
}

#[test]
fn ansible_pings_copies_and_becomes_with_pipelining_and_without() {
    let ansible = Ansible::new("gw-ansible");
    for pipelining in [false, true] {
        let pong = ansible.run(pipelining, &["-m", "ping"]).ok();
        assert!(pong.out().contains("\"pong\""), "{pong}");

        let bytes = content(400_000 + u32::from(pipelining));
        let from = ansible.place.write("up", &bytes);
        let to = ansible.place.there.join(format!("copied-{pipelining}"));
        let arguments = format!("src={} dest={} mode=0640", from.display(), to.display());
        let copied = ansible.run(pipelining, &["-m", "copy", "-a", &arguments]).ok();
        assert!(copied.out().contains("CHANGED"), "{copied}");
        assert!(std::fs::read(&to).unwrap() == bytes, "the copy differs");
        let again = ansible.run(pipelining, &["-m", "copy", "-a", &arguments]).ok();
        assert!(again.out().contains("SUCCESS"), "the same once more changes nothing: {again}");

        let who = "echo who=$(id -un) asked-by=$SUDO_USER";
        let root = ansible.run(pipelining, &["-b", "-m", "shell", "-a", who]).ok();
        let user = Program::run(
            {
                let mut id = Command::new("id");
                id.arg("-un");
                id
            },
            b"",
        );
        let wanted = format!("who=root asked-by={}", user.out().trim());
        assert!(root.out().contains(&wanted), "{root}");
    }
    ansible.leave();
    // One connection, which Ansible shared for all of it.
    assert_eq!(ansible.place.world.sessions("gw-ansible").len(), 1);
    let events = ansible.place.all_events();
    let put = events.iter().any(|event| {
        event["event"] == "sftp" && event["written"]["sha256"] == sha256(&content(400_000)).as_str()
    });
    assert!(put, "what it copied is on record by its hash: {events:#?}");
}

/// git with the configuration of nobody.
fn git(place: &Place, dir: &Path, args: &[&str]) -> Done {
    let mut command = Command::new("git");
    command
        .arg("-C")
        .arg(dir)
        .args(["-c", "user.name=Ana", "-c", "user.email=ana@example.com", "-c", "safe.directory=*"])
        .args(args)
        .env("GIT_SSH_COMMAND", format!("ssh -F {}", place.ssh_config().display()))
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env_remove("SSH_AUTH_SOCK")
        .env("HOME", place.home());
    Program::run(command, b"")
}

#[test]
fn git_pushes_to_a_repository_on_the_device_and_clones_it() {
    let place = Place::new("gw-git", "exec");
    let bytes = content(3_000_000);
    let _ = git(&place, &place.there, &["init", "-q", "--bare", "it.git"]).ok();
    let _ = git(&place, &place.here, &["init", "-q", "-b", "main", "mine"]).ok();
    let mine = place.here.join("mine");
    std::fs::write(mine.join("firmware"), &bytes).unwrap();
    let _ = git(&place, &mine, &["add", "."]).ok();
    let _ = git(&place, &mine, &["commit", "-q", "-m", "one"]).ok();
    let there = place.there.join("it.git");
    let short = format!("{}:{}", place.host(), there.display());
    let _ = git(&place, &mine, &["push", "-q", &short, "main"]).ok();
    let url = format!("ssh://{}{}", place.host(), there.display());
    let _ = git(&place, &place.here, &["clone", "-q", "-b", "main", &url, "theirs"]).ok();
    assert!(std::fs::read(place.here.join("theirs/firmware")).unwrap() == bytes, "the clone differs");
    // Once more, where there is something to agree on.
    std::fs::write(mine.join("notes"), "two").unwrap();
    let _ = git(&place, &mine, &["add", "."]).ok();
    let _ = git(&place, &mine, &["commit", "-q", "-m", "two"]).ok();
    let _ = git(&place, &mine, &["push", "-q", &short, "main"]).ok();
    let theirs = place.here.join("theirs");
    let _ = git(&place, &theirs, &["pull", "-q"]).ok();
    assert_eq!(std::fs::read_to_string(theirs.join("notes")).unwrap(), "two");
    let missing = git(&place, &theirs, &["fetch", &format!("{}:/nonexistent", place.host())]);
    assert_eq!(missing.code(), 128);
    missing.says("'/nonexistent' does not appear to be a git repository");

    let commands: Vec<Value> = place.all_events();
    let ran = |word: &str| {
        commands.iter().any(|event| event["command"]["text"].as_str().is_some_and(|c| c.starts_with(word)))
    };
    assert!(ran("git-receive-pack ") && ran("git-upload-pack "), "{commands:#?}");
}

/// PuTTY's programs, which keep keys, hosts and sessions in files of their own.
struct Putty {
    place: Place,
    key: PathBuf,
    certificate: PathBuf,
}

impl Putty {
    fn new(id: &str) -> Self {
        let place = Place::new(id, "shell,exec,sftp");
        let key = place.here.join("key.ppk");
        let mut puttygen = Command::new("puttygen");
        puttygen.arg(place.world.profile("engineer", "id_ed25519")).args(["-O", "private", "-o"]).arg(&key);
        let _ = Program::run(puttygen, b"").ok();
        let certificate = place.world.profile("engineer", "id_ed25519-cert.pub");
        Self { place, key, certificate }
    }

    /// Believes the host CA, as somebody does who has entered it under "Host CAs".
    fn believe_the_host_ca(&self) {
        let folder = self.place.here.join(".putty/sshhostcas");
        std::fs::create_dir_all(&folder).unwrap();
        let known = std::fs::read_to_string(self.place.world.profile("engineer", "known_hosts")).unwrap();
        let key = known.lines().next().unwrap().split_whitespace().last().unwrap();
        let text = format!(
            "PublicKey={key}\nValidity=127.0.0.1\nPermitRSASHA1=0\nPermitRSASHA256=1\nPermitRSASHA512=1\n"
        );
        std::fs::write(folder.join("daypass"), text).unwrap();
    }

    /// What `ssh-keyscan` and `ssh-keygen -l` say about the gateway.
    fn fingerprint(&self) -> String {
        let mut scan = Command::new("ssh-keyscan");
        scan.args(["-t", "ed25519", "-p", self.place.world.port("ssh"), "127.0.0.1"]);
        let scanned = Program::run(scan, b"").ok();
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-l", "-f", "-"]);
        line(&Program::run(keygen, &scanned.stdout).ok().out())
    }

    fn command(&self, program: &str, before: &[&str], after: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(["-batch", "-P", self.place.world.port("ssh")])
            .args(["-l", &format!("diag%{}", self.place.device.id), "-i"])
            .arg(&self.key)
            .arg("-cert")
            .arg(&self.certificate)
            .args(before)
            .args(after)
            .env_remove("SSH_AUTH_SOCK")
            .env("HOME", &self.place.here);
        command
    }
}

#[test]
fn plink_runs_commands_and_carries_every_byte_once_it_believes_the_gateway() {
    let putty = Putty::new("gw-plink");
    let run = |before: &[&str], command: &str, input: &[u8]| {
        Program::run(putty.command("plink", before, &["127.0.0.1", command]), input)
    };
    let stranger = run(&[], "echo reached", b"");
    assert_ne!(stranger.code(), 0);
    assert_eq!(stranger.out(), "");
    stranger.says("host key is not cached");

    let fingerprint = putty.fingerprint();
    let done = run(&["-hostkey", &fingerprint], "echo out; echo apart >&2; exit 3", b"").with(3);
    assert_eq!((done.out().as_str(), done.stderr.as_str()), ("out\n", "apart\n"));
    let other = format!("SHA256:{}", "A".repeat(43));
    assert_ne!(run(&["-hostkey", &other], "echo reached", b"").code(), 0);

    putty.believe_the_host_ca();
    let bytes = content(5_000_000);
    let echo = run(&[], "cat", &bytes).ok();
    assert!(echo.stdout == bytes, "{} bytes came back, or others", echo.stdout.len());
    // A terminal.
    let shell = run(&["-t"], "test -t 0 && echo $((40 + 2)) on a terminal", b"").ok();
    assert!(shell.out().contains("42 on a terminal"), "{shell}");
    // The key without the certificate proves nobody.
    let mut bare = Command::new("plink");
    bare.args(["-batch", "-P", putty.place.world.port("ssh"), "-l", "diag%gw-plink", "-i"])
        .arg(&putty.key)
        .args(["127.0.0.1", "echo reached"])
        .env_remove("SSH_AUTH_SOCK")
        .env("HOME", &putty.place.here);
    let bare = Program::run(bare, b"");
    assert_ne!(bare.code(), 0);
    assert_eq!(bare.out(), "");
}

#[test]
fn psftp_and_pscp_copy_both_ways_and_what_they_copied_is_on_record() {
    let putty = Putty::new("gw-psftp");
    putty.believe_the_host_ca();
    let bytes = content(6_000_001);
    let (up, down) = (putty.place.write("up", &bytes), putty.place.here.join("down"));
    let there = putty.place.there.join("it");
    let folder = putty.place.there.join("d");
    let batch = putty.place.write(
        "batch",
        format!(
            "put {} {there}\nget {there} {}\nmkdir {folder}\nmv {there} {folder}\nls {folder}\n",
            up.display(),
            down.display(),
            there = there.display(),
            folder = folder.display()
        )
        .as_bytes(),
    );
    let psftp = putty.command("psftp", &["-b", batch.to_str().unwrap()], &["127.0.0.1"]);
    let _ = Program::run(psftp, b"").ok();
    assert!(std::fs::read(&down).unwrap() == bytes, "what psftp brought back differs");
    assert!(std::fs::read(folder.join("it")).unwrap() == bytes, "what psftp put and moved differs");

    let copied = putty.place.there.join("copied");
    let target = format!("127.0.0.1:{}", copied.display());
    let pscp = putty.command("pscp", &["-q"], &[up.to_str().unwrap(), &target]);
    let _ = Program::run(pscp, b"").ok();
    assert!(std::fs::read(&copied).unwrap() == bytes, "what pscp put differs");

    let events = putty.place.all_events();
    for (way, path) in [("written", &there), ("read", &there), ("written", &copied)] {
        let on_record = events.iter().any(|event| {
            event["event"] == "sftp"
                && event["path"]["text"] == path.to_str().unwrap()
                && event[way]["sha256"] == sha256(&bytes).as_str()
        });
        assert!(on_record, "{way} {} in {events:#?}", path.display());
    }
}

/// A service on the device that says everything again.
fn echo_service() -> u16 {
    service(|mut from| {
        let mut to = from.try_clone().unwrap();
        // A client that is cut off wants no more.
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    })
}

const EVERYTHING_IN_THE_LAB: &str = "@id(\"test-everything\")\n\
    @description(\"Support uses every channel on lab devices, to any port.\")\n\
    permit (principal in Team::\"support\", action == Action::\"connect\", resource)\n\
    when { resource.hasTag(\"env\") && resource.getTag(\"env\") == \"lab\" && context.login == \"diag\" };\n";

/// A channel that the shared connection does not get must not come over another.
const ALONE: [&str; 2] = ["-o", "ProxyCommand=false"];

/// Commands, file transfers and forwards: as many as the configuration allows, all of them open at once.
#[test]
fn twenty_channels_of_three_kinds_share_one_connection() {
    const COMMANDS: usize = 8;
    const TRANSFERS: usize = 6;
    const FORWARDS: usize = 6;
    let world = journeys::World::shared();
    world.add_policy("everything", EVERYTHING_IN_THE_LAB);
    let service = echo_service();
    let wants = format!("127.0.0.1:{service}");
    let place = Place::on(
        world,
        "gw-shared",
        &["--channel", "exec,sftp,forward", "--forward", &wants, "--for", "10m"],
    );
    let host = place.host();
    let mux = format!("ControlPath={}", place.world.dir().join("mux").display());
    let local = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let forward = format!("{local}:127.0.0.1:{service}");
    let master = Program::start(
        place.command("ssh", &["-o", &mux, "-o", "ControlMaster=yes", "-N", "-L", &forward, &host]),
    );
    until("the shared connection", || place.world.dir().join("mux").exists());

    let mut commands: Vec<_> = (0..COMMANDS)
        .map(|_| {
            Program::start(
                place.command("ssh", &["-o", &mux, ALONE[0], ALONE[1], &host, "echo ready >&2; cat"]),
            )
        })
        .collect();
    let mut transfers: Vec<_> = (0..TRANSFERS)
        .map(|n| {
            let mut sftp =
                Program::start(place.command("sftp", &["-o", &mux, ALONE[0], ALONE[1], "-b", "-", &host]));
            sftp.send(format!("mkdir {}\n", place.there.join(format!("d{n}")).display()).as_bytes());
            sftp
        })
        .collect();
    let mut forwards: Vec<_> = (0..FORWARDS)
        .map(|_| {
            let mut stream = eventually("ssh to listen", || TcpStream::connect(("127.0.0.1", local)).ok());
            stream.write_all(b"ready").unwrap();
            stream
        })
        .collect();
    for command in &commands {
        command.complains("ready");
    }
    for stream in &mut forwards {
        let mut ready = [0; 5];
        stream.read_exact(&mut ready).unwrap();
        assert_eq!(&ready, b"ready");
    }
    until("every transfer", || (0..TRANSFERS).all(|n| place.there.join(format!("d{n}")).is_dir()));
    // All are open, and that is all there may be.
    let one_more = place.world.ssh(&["-o", &mux, ALONE[0], ALONE[1], &host, "echo reached"]);
    assert!(!one_more.out().contains("reached"), "{one_more}");

    // Now every one of them moves something, at the same time as the others.
    let size = |n: usize| 1_500_000 + u32::try_from(n).unwrap();
    for (n, command) in commands.iter_mut().enumerate() {
        command.send(&content(size(n)));
    }
    for (n, sftp) in transfers.iter_mut().enumerate() {
        let (up, there) =
            (place.write(&format!("up{n}"), &content(size(n))), place.there.join(format!("d{n}/it")));
        let down = place.here.join(format!("down{n}"));
        sftp.send(
            format!(
                "put {} {there}\nget {there} {}\n",
                up.display(),
                down.display(),
                there = there.display()
            )
            .as_bytes(),
        );
    }
    let forwards: Vec<_> = forwards
        .into_iter()
        .enumerate()
        .map(|(n, stream)| {
            let mut writer = stream.try_clone().unwrap();
            std::thread::spawn(move || {
                writer.write_all(&content(size(n))).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            std::thread::spawn(move || {
                let mut back = Vec::new();
                let mut stream = stream;
                stream.read_to_end(&mut back).unwrap();
                assert!(back == content(size(n)), "forward {n}: {} bytes came back, or others", back.len());
            })
        })
        .collect();
    for (n, command) in commands.into_iter().enumerate() {
        let done = command.finish().ok();
        assert!(done.stdout == content(size(n)), "command {n}: {} bytes, or others", done.stdout.len());
    }
    for (n, sftp) in transfers.into_iter().enumerate() {
        let _ = sftp.finish().ok();
        assert!(
            std::fs::read(place.here.join(format!("down{n}"))).unwrap() == content(size(n)),
            "transfer {n}"
        );
    }
    for forward in forwards {
        forward.join().unwrap();
    }
    let _ = Program::run(place.command("ssh", &["-o", &mux, "-O", "exit", &host]), b"").ok();
    let _ = master.ends();
    assert_eq!(place.world.sessions(&place.device.id).len(), 1, "all of that was one session");
    let events = place.all_events();
    let opened = |kind: &str| {
        events.iter().filter(|event| event["event"] == "channel_opened" && event["kind"] == kind).count()
    };
    assert_eq!((opened("exec"), opened("sftp")), (COMMANDS, TRANSFERS), "{events:#?}");
    let forwarded = events.iter().filter(|event| event["event"] == "forward_closed").count();
    assert_eq!(forwarded, FORWARDS, "{events:#?}");
}
