//! The proxy of a strict network: HTTP CONNECT (RFC 9110 section 9.3.6), and nothing else gets out.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Knows one host by a name that nobody else knows, and takes only who says the right password.
#[derive(Debug)]
pub struct ForwardProxy {
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    to: String,
    /// What `Proxy-Authorization` must say.
    authorization: Option<String>,
    carried: AtomicUsize,
    refused: AtomicUsize,
    links: Mutex<Vec<TcpStream>>,
}

impl ForwardProxy {
    /// `name:443` leads to this port of this machine. `authorization` is `Basic …`, if it is asked for.
    pub fn new(name: &str, port: &str, authorization: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            name: format!("{name}:443"),
            to: format!("127.0.0.1:{port}"),
            authorization: authorization.map(str::to_owned),
            carried: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            links: Mutex::default(),
        });
        let weak = Arc::downgrade(&shared);
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (Some(shared), Ok(near)) = (weak.upgrade(), near) else { return };
                std::thread::spawn(move || serve(near, &shared));
            }
        });
        Self { port: own, shared }
    }

    /// Connections that were let through.
    pub fn carried(&self) -> usize {
        self.shared.carried.load(Ordering::SeqCst)
    }

    pub fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::SeqCst)
    }

    /// Ends every connection, at both ends.
    pub fn cut(&self) {
        for link in self.shared.links.lock().unwrap().drain(..) {
            // Gone already is as good.
            let _ = link.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for ForwardProxy {
    fn drop(&mut self) {
        self.cut();
        // Wakes the thread that accepts, once what it shares is gone.
        let port = self.port;
        std::thread::spawn(move || TcpStream::connect(("127.0.0.1", port)));
    }
}

fn serve(mut near: TcpStream, shared: &Shared) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match near.read(&mut byte) {
            Ok(1) if head.len() < 8192 => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let asked = lines.next().unwrap_or_default();
    let said = lines.find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("proxy-authorization").then(|| value.to_owned())
    });
    let answer = if said != shared.authorization {
        "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
    } else if asked == format!("CONNECT {} HTTP/1.1", shared.name) {
        "HTTP/1.1 200 Connection established\r\n\r\n"
    } else {
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
    };
    let far = if answer.contains(" 200 ") { TcpStream::connect(&shared.to).ok() } else { None };
    let Some(far) = far else {
        shared.refused.fetch_add(1, Ordering::SeqCst);
        let _ = near.write_all(answer.as_bytes());
        return;
    };
    shared.carried.fetch_add(1, Ordering::SeqCst);
    let ends = [near.try_clone().unwrap(), far.try_clone().unwrap()];
    shared.links.lock().unwrap().extend(ends);
    near.write_all(answer.as_bytes()).unwrap();
    let (mut near_in, mut far_out) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    let up = std::thread::spawn(move || {
        let _ = std::io::copy(&mut near_in, &mut far_out);
        let _ = far_out.shutdown(Shutdown::Write);
    });
    let (mut far, mut near) = (far, near);
    let _ = std::io::copy(&mut far, &mut near);
    let _ = near.shutdown(Shutdown::Write);
    let _ = up.join();
}
