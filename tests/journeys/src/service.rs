//! Something that listens on a device.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// Serves whoever connects, each in a thread of their own, until the test is over; its port.
pub fn service(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
    port
}
