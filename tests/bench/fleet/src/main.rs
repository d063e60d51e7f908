//! Many devices in one process: what `tests/bench/tunnels` sets on a broker.
//!
//! Each is the device's program as a library, with a key and a state directory of its own: it enrols with
//! a join token, says the real hello, keeps the real tunnel, and comes back as devices do.
//!
//!     bench-fleet enrol DIR FROM TO < TOKEN
//!     bench-fleet run DIR FROM TO AT_ONCE
#![forbid(unsafe_code)]

use anyhow::Context as _;
use daypass_protocol::ids::DeviceId;
use daypass_protocol::join::JoinToken;
use daypass_shim::config::Config;
use daypass_shim::device::Device;
use daypass_shim::enrol::{EnrolError, NewDevice, enrol};
use daypass_shim::hello::HelloError;
use daypass_shim::run::run;
use daypass_shim::tunnel::{self, Tunnel};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Enrolments at the same time, in one process.
const ENROLMENTS: usize = 8;
/// How often a device asks a broker again that has no time.
const TRIES: u32 = 30;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // One thread, as on a device: how many cores a load takes is for whoever starts several of these.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match args[..] {
        ["enrol", dir, from, to] => {
            let mut token = String::new();
            std::io::stdin().read_to_string(&mut token)?;
            let token = JoinToken::parse(token.trim())?;
            runtime.block_on(enrol_all(dir.into(), from.parse()?..to.parse()?, token))
        }
        ["run", dir, from, to, at_once] => {
            runtime.block_on(run_all(dir.as_ref(), from.parse()?..to.parse()?, at_once.parse()?))
        }
        _ => anyhow::bail!("enrol DIR FROM TO, or run DIR FROM TO AT_ONCE"),
    }
}

fn id(number: u32) -> String {
    format!("bench-{number:05}")
}

/// A device as it comes, with the usual times.
fn config(dir: &Path, number: u32) -> Config {
    Config { state_dir: dir.join(id(number)), ..Config::default() }
}

async fn enrol_all(dir: PathBuf, numbers: std::ops::Range<u32>, token: JoinToken) -> anyhow::Result<()> {
    let (room, token) = (Arc::new(Semaphore::new(ENROLMENTS)), Arc::new(token));
    let mut tasks = JoinSet::new();
    for number in numbers {
        let (place, token) = (room.clone().acquire_owned().await?, token.clone());
        let config = config(&dir, number);
        tasks.spawn(async move {
            let name = id(number);
            let device: DeviceId = name.parse()?;
            let new = NewDevice { serial_number: name.clone(), id: Some(device) };
            for tried in 1.. {
                match enrol(&config, &token, new.clone()).await {
                    Err(EnrolError::Hello(HelloError::Refused { code, .. }))
                        if code.is_passing() && tried < TRIES =>
                    {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    done => {
                        done.context(name)?;
                        break;
                    }
                }
            }
            drop(place);
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn run_all(dir: &Path, numbers: std::ops::Range<u32>, at_once: usize) -> anyhow::Result<()> {
    let (stop, stopping) = watch::channel(false);
    let room = Arc::new(Semaphore::new(at_once));
    let mut tasks = JoinSet::new();
    for number in numbers {
        let device = Device::load(config(dir, number)).with_context(|| id(number))?;
        tasks.spawn(live(Arc::new(device), room.clone(), stopping.clone()));
    }
    let mut terminate = signal(SignalKind::terminate())?;
    terminate.recv().await;
    stop.send_replace(true);
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// The first connection is made when it is this device's turn, so that a rate can be measured; every
/// one after it as the device's program makes it.
async fn live(device: Arc<Device>, room: Arc<Semaphore>, stopping: watch::Receiver<bool>) {
    let Ok(place) = room.acquire_owned().await else { return };
    let first = Tunnel::new(device.clone());
    let ended = tunnel::serve(&first, device.config.keepalive, &stopping, || drop(place)).await;
    let Err(error) = ended else { return };
    daypass_shim::note!("{}: {error}", device.identity.device);
    // As after the loss of any tunnel: again within a second.
    let random = f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX);
    tokio::time::sleep(Duration::from_secs(1).mul_f64(random)).await;
    run(device, stopping).await;
}
