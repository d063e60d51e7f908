//! `daypass proxy HOST`: what `ssh` talks through, as its ProxyCommand, where only HTTPS gets out. It carries
//! bytes and knows nothing of them: that the device's name is the device's, and who the engineer is, is SSH's
//! to prove.

use super::Context;
use crate::client::Client;
use crate::failure::Failure;
use crate::ui::words;
use daypass_protocol::api::{SSH_MESSAGE, SSH_PATH, SSH_PROTOCOL};
use futures_util::{SinkExt as _, StreamExt as _};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Message};

/// Messages that may wait each way.
const QUEUE: usize = 4;
/// How long ssh may take to go once its connection has ended.
const LINGER: Duration = Duration::from_secs(5);

pub async fn run(context: &Context, host: &str) -> Result<(), Failure> {
    let (client, _) = Client::of(&context.profile)?;
    let path: Vec<&str> = SSH_PATH.split('/').filter(|part| !part.is_empty()).chain([host]).collect();
    let stream = client.websocket(&path, SSH_PROTOCOL).await?;
    let bounds =
        WebSocketConfig::default().max_message_size(Some(SSH_MESSAGE)).max_frame_size(Some(SSH_MESSAGE));
    let socket = WebSocketStream::from_raw_socket(stream, Role::Client, Some(bounds)).await;
    let (mut sink, mut messages) = socket.split();
    let cut = |why: String| Failure::Cut { url: client.base().to_owned(), why };
    let mut input = input()?;
    let up = async {
        let mut taken = true;
        while let Some(bytes) = input.recv().await {
            // A broker that is gone takes nothing. ssh is read from all the same: it would fail at writing, and
            // then not read what the broker said last.
            taken = taken && sink.send(Message::Binary(bytes.map_err(Failure::Output)?)).await.is_ok();
        }
        if taken {
            // ssh has ended first. That the broker may be gone by now is as good.
            let _ = sink.close().await;
        }
        Ok(())
    };
    let (output, written) = output()?;
    let down = async {
        let ended = loop {
            match messages.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    if output.send(bytes).await.is_err() {
                        // Writing failed, and says why below.
                        break Ok(());
                    }
                }
                // The library answers pings.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) => {
                    // Sends the answer; then the broker knows that everything was taken.
                    while let Some(Ok(_)) = messages.next().await {}
                    break Ok(());
                }
                Some(Ok(Message::Text(_))) => break Err(cut(words::NOT_SSH.to_owned())),
                Some(Err(error)) => break Err(cut(error.to_string())),
                None => break Err(cut(words::NO_GOODBYE.to_owned())),
            }
        };
        drop(output);
        written.await.map_err(io::Error::other).flatten().map_err(Failure::Output)?;
        ended
    };
    tokio::pin!(up, down);
    tokio::select! {
        ended = &mut up => ended,
        ended = &mut down => {
            // Said while ssh still waits: once it sees the end, it ends this program too.
            ended?;
            // ssh reads to the end and goes; a read of standard input that still waits then is left behind.
            let nowhere = File::options().write(true).open("/dev/null").map_err(Failure::Output)?;
            rustix::stdio::dup2_stdout(nowhere).map_err(|error| Failure::Output(error.into()))?;
            let _ = timeout(LINGER, up).await;
            Ok(())
        }
    }
}

/// Standard input as it comes, read on a thread of its own.
fn input() -> Result<mpsc::Receiver<io::Result<Bytes>>, Failure> {
    let mut from = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(Failure::Output)?);
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; SSH_MESSAGE / 2];
        loop {
            let read = match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => Ok(Bytes::copy_from_slice(&buffer[..n])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let last = read.is_err();
            if sender.blocking_send(read).is_err() || last {
                return;
            }
        }
    });
    Ok(receiver)
}

/// The way to standard output, past the buffer that waits for the end of a line; and how writing ended.
fn output() -> Result<(mpsc::Sender<Bytes>, JoinHandle<io::Result<()>>), Failure> {
    let mut to = File::from(io::stdout().as_fd().try_clone_to_owned().map_err(Failure::Output)?);
    let (sender, mut receiver) = mpsc::channel::<Bytes>(QUEUE);
    let writing = tokio::task::spawn_blocking(move || {
        while let Some(bytes) = receiver.blocking_recv() {
            to.write_all(&bytes)?;
        }
        Ok(())
    });
    Ok((sender, writing))
}
