//! Whether somebody waits for a device: then its silence counts sooner.

use tokio::sync::{OwnedSemaphorePermit, watch};

/// A channel's place on a tunnel. While one is taken, the tunnel is attended.
#[derive(Debug)]
pub(super) struct Attention {
    count: watch::Sender<usize>,
    _room: OwnedSemaphorePermit,
}

impl Attention {
    pub fn pay(count: &watch::Sender<usize>, room: OwnedSemaphorePermit) -> Self {
        count.send_modify(|count| *count += 1);
        Self { count: count.clone(), _room: room }
    }
}

impl Drop for Attention {
    fn drop(&mut self) {
        self.count.send_modify(|count| *count -= 1);
    }
}
