//! The tap on an SFTP channel: what the reader saw goes into the events file before the bytes go on.

use super::RecordError;
use super::event::SessionEvent;
use super::seal::{Pending, Sealer};
use super::sftp::{Broken, ENOUGH, Passed, Reader, Seen, Side};
use super::writer::Piece;
use bytes::Bytes;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Why bytes do not go on.
#[derive(Debug, thiserror::Error)]
pub enum NotPassed {
    /// Ends the session.
    #[error(transparent)]
    Recorder(#[from] RecordError),
    /// Ends the channel.
    #[error(transparent)]
    Unreadable(#[from] Broken),
}

#[derive(Debug)]
pub(super) struct Tap {
    channel: u32,
    state: Mutex<State>,
    /// The device has said something, and so may have answered.
    answered: Notify,
}

#[derive(Debug, Default)]
struct State {
    reader: Reader,
    /// Seen and not yet with the writer, for each side: a call that is dropped half-way loses nothing,
    /// [`Tap::finish`] writes it.
    unwritten: [Vec<SessionEvent>; 2],
}

impl Tap {
    pub fn new(channel: u32) -> Self {
        Self { channel, state: Mutex::default(), answered: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn event(&self, seen: Seen) -> SessionEvent {
        match seen {
            Seen::Asked(operation) => SessionEvent::SftpAsked { channel: self.channel, operation },
            Seen::Done(operation) => SessionEvent::Sftp { channel: self.channel, operation },
        }
    }

    /// Reads what `side` sent; what comes back may be delivered when what is pending is on record.
    pub async fn take(
        &self,
        sealer: &Arc<Sealer>,
        side: Side,
        bytes: Bytes,
    ) -> Result<(Passed, Pending), NotPassed> {
        if side == Side::Client {
            self.room().await;
        }
        // Without a recorder that works nothing passes, whether or not there is something to write.
        sealer.check()?;
        let lane = side as usize;
        let fed = {
            let mut state = self.state();
            let mut seen = Vec::new();
            let fed = state.reader.feed(side, &bytes, &mut seen);
            let broken = fed.as_ref().err().map(|broken| SessionEvent::SftpUnreadable {
                channel: self.channel,
                why: broken.to_string(),
            });
            let events = seen.into_iter().map(|seen| self.event(seen)).chain(broken);
            if let Some(unwritten) = state.unwritten.get_mut(lane) {
                unwritten.extend(events);
            }
            fed
        };
        if side == Side::Device {
            self.answered.notify_one();
        }
        let mut pending = self.submit(sealer, lane).await?;
        match fed {
            Ok(passed) => Ok((passed, pending)),
            Err(broken) => {
                pending.recorded().await?;
                Err(broken.into())
            }
        }
    }

    /// Waits until few enough requests have no answer. Answers are a few bytes each, so that no bound on
    /// bytes would ever slow a client that does not wait for them.
    async fn room(&self) {
        while self.state().reader.outstanding() >= ENOUGH {
            self.answered.notified().await;
        }
    }

    async fn submit(&self, sealer: &Arc<Sealer>, lane: usize) -> Result<Pending, RecordError> {
        if self.state().unwritten.get(lane).is_none_or(Vec::is_empty) {
            return sealer.nothing();
        }
        let take = || Piece::Events(self.taken(lane));
        sealer.submit_taken(0, take).await
    }

    fn taken(&self, lane: usize) -> Vec<SessionEvent> {
        self.state().unwritten.get_mut(lane).map(std::mem::take).unwrap_or_default()
    }

    /// Writes what is left: what no call wrote, what had no answer, what was not closed. It is little, and
    /// is written also when the session's recording has reached its limit.
    pub async fn finish(&self, sealer: &Sealer) -> Result<(), RecordError> {
        let mut seen = Vec::new();
        std::mem::take(&mut self.state().reader).finish(&mut seen);
        let left = [self.taken(0), self.taken(1)].into_iter().flatten();
        for event in left.chain(seen.into_iter().map(|seen| self.event(seen))) {
            sealer.append(0, Piece::Event(Box::new(event))).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
