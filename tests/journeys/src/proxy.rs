//! A bad network between a device and its broker.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Carries connections to one port, until it is told to be a bad network.
#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    state: Arc<State>,
}

/// What a connection does with bytes: carries them, throws them away, or is gone.
const CARRIES: u8 = 0;
const SWALLOWS: u8 = 1;
const GONE: u8 = 2;

#[derive(Debug, Default)]
struct State {
    /// Both ends of each connection, and what it does with what comes.
    links: Mutex<Vec<(TcpStream, TcpStream, Arc<AtomicU8>)>>,
    /// New connections are closed at once.
    closed: AtomicBool,
    accepted: AtomicUsize,
    /// Bytes, both ways.
    carried: AtomicUsize,
}

impl Proxy {
    pub fn to(port: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let (shared, target) = (Arc::downgrade(&state), format!("127.0.0.1:{port}"));
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (Some(state), Ok(near)) = (shared.upgrade(), near) else { return };
                if state.closed.load(Ordering::SeqCst) {
                    continue;
                }
                // A broker that is being started again is not there for a moment.
                let Ok(far) = TcpStream::connect(&target) else { continue };
                let alive = Arc::new(AtomicU8::new(CARRIES));
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (alive, state) = (alive.clone(), state.clone());
                    std::thread::spawn(move || carry(from, to, &alive, &state.carried));
                }
                state.links.lock().unwrap().push((near, far, alive));
                state.accepted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { port: own, state }
    }

    pub fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Bytes so far, both ways.
    pub fn carried(&self) -> usize {
        self.state.carried.load(Ordering::SeqCst)
    }

    /// Ends every connection, at both ends, without a word of their protocol; new ones come through.
    pub fn cut(&self) {
        for (near, far, alive) in self.state.links.lock().unwrap().drain(..) {
            alive.store(GONE, Ordering::SeqCst);
            for end in [near, far] {
                // Gone already is as good.
                let _ = end.shutdown(Shutdown::Both);
            }
        }
    }

    /// Nothing comes through any more on the connections that there are, and nobody is told.
    pub fn swallow(&self) {
        for (.., alive) in self.state.links.lock().unwrap().iter() {
            alive.store(SWALLOWS, Ordering::SeqCst);
        }
    }

    /// Resets every connection at both ends: what was on its way is lost, and nobody is told goodbye.
    pub fn reset(&self) {
        for (near, far, alive) in self.state.links.lock().unwrap().drain(..) {
            alive.store(GONE, Ordering::SeqCst);
            for end in [near, far] {
                // Closed without lingering, a socket says RST; and the threads let go of theirs.
                socket2::SockRef::from(&end).set_linger(Some(std::time::Duration::ZERO)).unwrap();
                // Gone already is as good.
                let _ = end.shutdown(Shutdown::Read);
            }
        }
    }

    /// Whether new connections come through.
    pub fn open(&self, open: bool) {
        self.state.closed.store(!open, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.open(false);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, alive: &AtomicU8, carried: &AtomicUsize) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        match alive.load(Ordering::SeqCst) {
            CARRIES => {}
            // Taken and thrown away: a network, not a peer.
            SWALLOWS => continue,
            _ => return,
        }
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
        carried.fetch_add(n, Ordering::SeqCst);
    }
    if alive.load(Ordering::SeqCst) == CARRIES {
        // Gone already is as good.
        let _ = to.shutdown(Shutdown::Both);
    }
}
