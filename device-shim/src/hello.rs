//! The hello, `TUNNEL.md` section 4: is this the broker, on this very connection, and what time is it?

pub use crate::challenge::{Accepted, HelloError, STEP, check_challenge};
use crate::link::Link;
use daypass_protocol::tunnel::hello::Answer;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

impl Link {
    /// The next text message, as JSON.
    pub async fn hear<T: DeserializeOwned>(&mut self) -> Result<T, HelloError> {
        let step = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => {
                        return serde_json::from_str(&text)
                            .map_err(|error| HelloError::Malformed(error.to_string()));
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Close(frame))) => {
                        let why =
                            frame.map_or_else(String::new, |f| format!(" with {} {}", f.code, f.reason));
                        return Err(HelloError::Lost(format!("the broker closed{why}")));
                    }
                    Some(Ok(Message::Binary(_) | Message::Frame(_))) => {
                        return Err(HelloError::Malformed("a binary message in the hello".to_owned()));
                    }
                    Some(Err(error)) => return Err(HelloError::Lost(error.to_string())),
                    None => return Err(HelloError::Lost("the broker closed".to_owned())),
                }
            }
        };
        timeout(STEP, step).await.unwrap_or(Err(HelloError::Silent))
    }

    pub async fn say<T: Serialize>(&mut self, message: &T) -> Result<(), HelloError> {
        let text =
            serde_json::to_string(message).map_err(|error| HelloError::Malformed(error.to_string()))?;
        let send = self.socket.send(Message::text(text));
        match timeout(STEP, send).await {
            Ok(sent) => sent.map_err(|error| HelloError::Lost(error.to_string())),
            Err(_) => Err(HelloError::Silent),
        }
    }

    /// The broker's answer: what the welcome carries, or the refusal as an error.
    pub async fn hear_answer<T: DeserializeOwned>(&mut self) -> Result<T, HelloError> {
        match self.hear::<Answer<T>>().await? {
            Answer::Welcome(welcome) => Ok(welcome),
            Answer::Refused { code, message } => {
                Err(HelloError::Refused { code, message: message.chars().take(300).collect() })
            }
        }
    }
}
