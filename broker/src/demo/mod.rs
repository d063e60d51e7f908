//! The demonstration: a broker on loopback with a sign-in page of its own, two simulated devices, four
//! people. `serve` never comes here.
//!
//! Everything it shows is the real thing: devices enrol with a join token and run the shim, people sign in
//! through OpenID Connect with the real command line. Only the identity provider asks for no password.

mod browser;
pub mod idp;
mod people;
mod story;

pub use browser::Browser;

use crate::audit::Actor;
use crate::broker::Ctx;
use crate::certificate::{KeyPurpose, Keys};
use crate::clock::Clock;
use crate::config::Config;
use crate::device::{enrolment, lines, store};
use crate::{init, serve};
use anyhow::{Context as _, bail};
use daypass_protocol::api::{CraClass, EnrolTokenAsk, ProductLine};
use daypass_protocol::ids::DeviceId;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// What `daypass-broker demo` is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the demonstration keeps everything
    #[arg(long, default_value = "target/demo")]
    dir: PathBuf,
    /// Port of the web console, the API and the devices; 0 for any
    #[arg(long, default_value_t = 8443)]
    https_port: u16,
    /// Port of the SSH gateway; 0 for any
    #[arg(long, default_value_t = 2222)]
    ssh_port: u16,
    /// Port of the sign-in page; 0 for any
    #[arg(long, default_value_t = 8444)]
    idp_port: u16,
    /// Forget an earlier demonstration first
    #[arg(long)]
    reset: bool,
    /// Folder of the programs `daypass` and `daypass-shim`; that of this program otherwise
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Say nothing about what to try
    #[arg(long)]
    quiet: bool,
}

/// The two devices: id, label `env`. Policy lets anybody of support into the lab by themselves.
const DEVICES: [(&str, &str); 2] = [("gw-0042", "field"), ("gw-0043", "lab")];
const LINE: &str = "edge-gateway";

/// Where everything of a demonstration is.
#[derive(Debug)]
struct Place {
    dir: PathBuf,
    programs: PathBuf,
}

impl Place {
    fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    fn cli(&self) -> Command {
        let mut command = Command::new(self.program("daypass"));
        command
            .env("DAYPASS_HOME", self.dir.join("home"))
            .env_remove("DAYPASS_PROFILE")
            .env_remove("DAYPASS_BROKER");
        command
    }
}

/// Runs until Ctrl-C.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let programs = match args.programs {
        Some(programs) => programs,
        None => std::env::current_exe()?.parent().context("this program is in no folder")?.to_owned(),
    };
    std::fs::create_dir_all(&args.dir)?;
    let place = Place { dir: std::path::absolute(&args.dir)?, programs: std::path::absolute(programs)? };
    for name in ["daypass", "daypass-shim"] {
        if !place.program(name).is_file() {
            bail!("{} is missing; deploy/demo builds it", place.program(name).display());
        }
    }
    if args.reset {
        for name in ["broker", "devices", "home", "endpoints.json"] {
            forget(&place.dir.join(name))?;
        }
    }

    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let idp = idp::start(loopback(args.idp_port), Clock::system()).await?;
    let https_port = match args.https_port {
        // The broker's own address stands in tokens and profiles: it is chosen before it starts.
        0 => tokio::net::TcpListener::bind(loopback(0)).await?.local_addr()?.port(),
        port => port,
    };
    let config = config(&place, &idp, https_port, args.ssh_port)?;
    serve::start_log(&config)?;
    let ctx = Ctx::open(config, Clock::system()).await?;
    let running = serve::start(ctx.clone()).await?;

    let mut devices = start_devices(&ctx, &place).await?;
    people::sign_in_all(&ctx, &place, running.https, running.tls.fingerprint()).await?;
    story::leave_a_request(&place).await?;
    story::write_endpoints(&ctx, &place, &idp, running.https, running.ssh, running.tls.fingerprint())?;
    if !args.quiet {
        println!("{}", story::what_to_try(&ctx, &place));
    }

    let signalled = tokio::select! {
        signalled = running.until_signal() => signalled,
        gone = a_device_ended(&mut devices) => Err(anyhow::anyhow!("a simulated device ended: {gone}")),
    };
    for device in &mut devices {
        end(device).await;
    }
    running.stop().await;
    signalled
}

fn forget(path: &Path) -> anyhow::Result<()> {
    let gone = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match gone {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

/// The demonstration's configuration: made by `init` at the first start, and written anew at each, because
/// ports and the provider change. Whatever stands in `broker/extra.toml` is added to it.
fn config(place: &Place, idp: &idp::Handle, https_port: u16, ssh_port: u16) -> anyhow::Result<Config> {
    let dir = place.dir.join("broker");
    let url = format!("https://127.0.0.1:{https_port}");
    if !dir.join("broker.toml").exists() {
        std::fs::create_dir_all(&dir)?;
        init::init(&dir, &url)?;
    }
    let extra = match std::fs::read_to_string(dir.join("extra.toml")) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).context("extra.toml"),
    };
    let recordings = if extra.contains("[recordings]") { "" } else { "[recordings]\nmin_free_mib = 16\n" };
    let text = format!(
        "data_dir = \"data\"
[https]
listen = \"127.0.0.1:{https_port}\"
url = \"{url}\"
[ssh]
listen = \"127.0.0.1:{ssh_port}\"
[keys]
passphrase_file = \"passphrase\"
[policies]
dir = \"policies\"
{recordings}[login]
issuer = \"{}\"
client_id = \"{}\"
[log]
filter = \"warn,daypass_broker=info\"
{extra}",
        idp.issuer, idp.client_id
    );
    let path = dir.join("broker.toml");
    std::fs::write(&path, text)?;
    let secret = idp.client_secret.clone();
    Ok(Config::load(&path, move |name| {
        if name == crate::login::CLIENT_SECRET_VARIABLE {
            return Some(secret.clone());
        }
        // PostgreSQL, if somebody says so in the environment.
        std::env::var(name).ok()
    })?)
}

/// Enrols what is not enrolled, starts both, and waits until both have a tunnel.
async fn start_devices(ctx: &Ctx, place: &Place) -> anyhow::Result<Vec<Child>> {
    let line = LINE.parse()?;
    if store::line(ctx.db.pool(), &line).await?.is_none() {
        let line = ProductLine {
            name: line.clone(),
            title: "Edge gateway, demonstration".to_owned(),
            cra_class: CraClass::Important1,
            support_end: "2031-12-31".to_owned(),
            // Where such a gateway would have its own pages.
            forward_targets: vec!["127.0.0.1:80".parse()?, "127.0.0.1:8080".parse()?],
        };
        lines::register(&ctx.db, line, Actor::Broker, ctx.clock.now()).await?;
    }
    // An ordinary user serves only themselves: that is who `diag` is here.
    let user = String::from_utf8(std::process::Command::new("id").arg("-un").output()?.stdout)?;
    let mut children = Vec::new();
    for (id, env) in DEVICES {
        let device: DeviceId = id.parse()?;
        let dir = place.dir.join("devices").join(id);
        std::fs::create_dir_all(&dir)?;
        let file = dir.join("device.toml");
        std::fs::write(
            &file,
            format!(
                "state_dir = \"{}\"\njournal = \"{}\"\nlogins = {{ diag = \"{}\" }}\nreconnect_max_s = 10\n",
                dir.join("state").display(),
                dir.join("journal.ndjson").display(),
                user.trim()
            ),
        )?;
        if store::find(ctx.db.pool(), &device).await?.is_none() {
            forget(&dir.join("state"))?;
            enrol(ctx, place, &line, &file, id, env).await?;
        }
        let log = std::fs::File::create(dir.join("log"))?;
        let child = Command::new(place.program("daypass-shim"))
            .arg("run")
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        children.push(child);
    }
    let connected = async {
        for (id, _) in DEVICES {
            let id = id.parse()?;
            while !ctx.tunnels.is_online(&id) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(30), connected)
        .await
        .context("the simulated devices did not connect; see their log files")??;
    Ok(children)
}

async fn enrol(
    ctx: &Ctx,
    place: &Place,
    line: &daypass_protocol::ids::LineName,
    file: &Path,
    id: &str,
    env: &str,
) -> anyhow::Result<()> {
    let ask = EnrolTokenAsk {
        product_line: line.clone(),
        uses: 1,
        lifetime_s: 600,
        labels: BTreeMap::from([("env".to_owned(), env.to_owned())]),
    };
    let url = ctx.config.https.url.as_str().trim_end_matches('/');
    let mut tx = ctx.db.begin().await?;
    let (token, recorded) =
        enrolment::make_token(&mut tx, ctx.tunnel_server.trust(), url, &ask, Actor::Broker, ctx.clock.now())
            .await?;
    tx.commit(recorded).await?;
    let enrolled = Command::new(place.program("daypass-shim"))
        .args(["enrol", &token.token, "--device", id, "--serial-number", &format!("demo-{id}")])
        .arg("--config")
        .arg(file)
        .output()
        .await?;
    if !enrolled.status.success() {
        bail!("{id} did not enrol: {}", String::from_utf8_lossy(&enrolled.stderr));
    }
    Ok(())
}

async fn a_device_ended(devices: &mut [Child]) -> String {
    loop {
        for device in devices.iter_mut() {
            match device.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => return status.to_string(),
                Err(error) => return error.to_string(),
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn end(device: &mut Child) {
    if let Some(pid) =
        device.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw)
    {
        // Gone already is as good.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(Duration::from_secs(5), device.wait()).await.is_err() {
        let _ = device.kill().await;
    }
}

/// The public halves that anybody's scripts may want.
fn public_keys(keys: &Keys) -> serde_json::Value {
    KeyPurpose::ALL
        .iter()
        .filter(|purpose| **purpose != KeyPurpose::Token)
        .map(|purpose| (purpose.as_str().to_owned(), serde_json::json!(keys.public_lines(*purpose))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
