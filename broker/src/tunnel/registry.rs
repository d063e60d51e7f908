//! The living tunnels, one for each device.
//!
//! A second connection with the same device key never replaces one that is alive: one of the two is a
//! clone, and the broker cannot know which. But one that is dead without knowing it makes room.

use super::connection::Tunnel;
use daypass_protocol::ids::DeviceId;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// The living tunnels. Clones are the same registry.
#[derive(Clone, Debug, Default)]
pub struct Tunnels {
    state: Arc<Mutex<State>>,
    /// A tunnel came.
    came: Arc<watch::Sender<()>>,
}

#[derive(Debug, Default)]
struct State {
    alive: HashMap<DeviceId, Arc<Tunnel>>,
    /// Devices whose hello is being answered right now.
    coming: HashSet<DeviceId>,
}

/// Why there is no room for another tunnel of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The first one answered: a clone is suspected.
    Alive(SocketAddr),
    /// Another hello of the same device is being answered.
    Coming,
}

/// The one place of a device in the registry, while its hello is being answered.
#[derive(Debug)]
pub(super) struct Place {
    tunnels: Tunnels,
    device: DeviceId,
}

impl Tunnels {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The living tunnel of a device.
    pub fn get(&self, device: &DeviceId) -> Option<Arc<Tunnel>> {
        self.lock().alive.get(device).filter(|tunnel| !tunnel.is_closed()).cloned()
    }

    /// The living tunnel of a device, as soon as there is one.
    pub async fn wait_for(&self, device: &DeviceId) -> Arc<Tunnel> {
        let mut came = self.came.subscribe();
        loop {
            if let Some(tunnel) = self.get(device) {
                return tunnel;
            }
            if came.changed().await.is_err() {
                // The sender lives as long as this registry.
                std::future::pending::<()>().await;
            }
        }
    }

    pub fn is_online(&self, device: &DeviceId) -> bool {
        self.get(device).is_some()
    }

    pub fn all(&self) -> Vec<Arc<Tunnel>> {
        self.lock().alive.values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.lock().alive.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the device's place, if no living tunnel has it. One that is there is asked, and has until
    /// `deadline` to answer.
    pub(super) async fn reserve(&self, device: &DeviceId, deadline: Duration) -> Result<Place, Taken> {
        if !self.lock().coming.insert(device.clone()) {
            return Err(Taken::Coming);
        }
        // From here on the place is given back when this is dropped.
        let place = Place { tunnels: self.clone(), device: device.clone() };
        if let Some(first) = self.get(device) {
            if first.answers(deadline).await {
                return Err(Taken::Alive(first.peer()));
            }
            first.close("the device connected again, and this connection did not answer");
        }
        Ok(place)
    }

    /// Takes a tunnel that is over out of the registry; not another one that came after it.
    pub(super) fn remove(&self, tunnel: &Arc<Tunnel>) {
        if let Entry::Occupied(entry) = self.lock().alive.entry(tunnel.device().clone())
            && Arc::ptr_eq(entry.get(), tunnel)
        {
            entry.remove();
        }
    }
}

impl Place {
    pub(super) fn fill(self, tunnel: Arc<Tunnel>) {
        self.tunnels.lock().alive.insert(self.device.clone(), tunnel);
        self.tunnels.came.send_replace(());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.tunnels.lock().coming.remove(&self.device);
    }
}
