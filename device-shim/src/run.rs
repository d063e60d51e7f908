//! `daypass-shim run`: connect, serve, connect again; stop when asked to, or when retired.

use crate::backoff::{Backoff, Keepalive};
use crate::device::Device;
use crate::hello::HelloError;
use crate::link::LinkError;
use crate::note;
use crate::tunnel::{self, End, Over, Tunnel, TunnelError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// A tunnel that lasted this long makes the next retry quick again.
const LASTED: Duration = Duration::from_mins(1);
/// A tunnel that lasted this long earns a longer keepalive.
const LASTED_LONG: Duration = Duration::from_hours(24);
/// How often a device asks again when only a person can change the answer.
const RARELY: Duration = Duration::from_hours(1);

/// Longest wait between two tries while channels are kept for the next tunnel.
const KEEPING: Duration = Duration::from_secs(5);

/// Runs until the device is retired or `stopping` turns true.
pub async fn run(device: Arc<Device>, stopping: watch::Receiver<bool>) -> Over {
    let tunnel = Tunnel::new(device);
    let over = connect_again_and_again(&tunnel, stopping).await;
    tunnel.end_all(&End::Stopping);
    tunnel.until_empty().await;
    over
}

async fn connect_again_and_again(tunnel: &Arc<Tunnel>, stopping: watch::Receiver<bool>) -> Over {
    let device = &tunnel.device;
    let mut backoff = Backoff::new(device.config.reconnect_first, device.config.reconnect_max);
    let mut keepalive = Keepalive::new(device.config.keepalive);
    loop {
        let mut joined = None;
        let ended =
            tunnel::serve(tunnel, keepalive.current(), &stopping, || joined = Some(Instant::now())).await;
        let error = match ended {
            Ok(over) => return over,
            Err(error) => error,
        };
        if let TunnelError::Lost { half_open: true, .. } = error {
            keepalive.link_died_idle();
        }
        match joined.map(|at: Instant| at.elapsed()) {
            Some(lasted) if lasted >= LASTED_LONG => {
                keepalive.link_lasted();
                backoff.reset();
            }
            Some(lasted) if lasted >= LASTED => backoff.reset(),
            _ => {}
        }
        let wait = match &error {
            TunnelError::Hello(HelloError::Refused { code, .. }) if !code.is_passing() => {
                RARELY.mul_f64(0.5 + fraction())
            }
            // A broker that lives and knows how many want in: no need to guess, and to guess longer each time.
            TunnelError::Link(LinkError::Busy(within)) => {
                let within = Duration::from_secs((*within).into()).min(device.config.reconnect_max);
                within.mul_f64(fraction())
            }
            _ if tunnel.is_busy() => backoff.next(random()).min(KEEPING),
            _ => backoff.next(random()),
        };
        note!("{error}; trying again in {:.1} s", wait.as_secs_f64());
        let mut stop = stopping.clone();
        tokio::select! {
            () = sleep(wait) => {}
            _ = stop.wait_for(|stop| *stop) => return Over::Stopping,
        }
    }
}

/// Only spreads load; if the system has no randomness, the hello will say so.
fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}

/// Uniform from 0 to 1.
fn fraction() -> f64 {
    f64::from(random()) / f64::from(u32::MAX)
}
