//! `daypass proxy HOST`: what `ssh` talks through, as its ProxyCommand, where only HTTPS gets out. It carries
//! bytes and knows nothing of them: that the device's name is the device's, and who the engineer is, is SSH's
//! to prove.

use super::Context;
use crate::client::Client;
use crate::failure::Failure;
use crate::ui::words;
use daypass_protocol::api::{SSH_MESSAGE, SSH_PATH, SSH_PROTOCOL};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Message};

pub async fn run(context: &Context, host: &str) -> Result<(), Failure> {
    let (client, _) = Client::of(&context.profile)?;
    let path: Vec<&str> = SSH_PATH.split('/').filter(|part| !part.is_empty()).chain([host]).collect();
    let stream = client.websocket(&path, SSH_PROTOCOL).await?;
    let bounds =
        WebSocketConfig::default().max_message_size(Some(SSH_MESSAGE)).max_frame_size(Some(SSH_MESSAGE));
    let socket = WebSocketStream::from_raw_socket(stream, Role::Client, Some(bounds)).await;
    let (mut sink, mut messages) = socket.split();
    let cut = |why: String| Failure::Cut { url: client.base().to_owned(), why };
    let up = async {
        let mut input = tokio::io::stdin();
        let mut buffer = vec![0; SSH_MESSAGE / 2];
        loop {
            let n = input.read(&mut buffer).await.map_err(Failure::Output)?;
            if n == 0 {
                // ssh has ended. A broker that is gone needs no close.
                let _ = sink.close().await;
                return Ok(());
            }
            let message = Message::Binary(Bytes::copy_from_slice(&buffer[..n]));
            if sink.send(message).await.is_err() {
                // What the broker said before it left is still to be read.
                return std::future::pending().await;
            }
        }
    };
    let down = async {
        let mut output = tokio::io::stdout();
        loop {
            match messages.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    output.write_all(&bytes).await.map_err(Failure::Output)?;
                    output.flush().await.map_err(Failure::Output)?;
                }
                // The library answers pings.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) => {
                    // Sends the answer, after which both sides are sure to have heard everything.
                    while let Some(Ok(_)) = messages.next().await {}
                    return Ok(());
                }
                Some(Ok(Message::Text(_))) => return Err(cut(words::NOT_SSH.to_owned())),
                Some(Err(error)) => return Err(cut(error.to_string())),
                None => return Err(cut(words::NO_GOODBYE.to_owned())),
            }
        }
    };
    // Whichever ends first: a read of standard input that waits is left behind with the program.
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}
