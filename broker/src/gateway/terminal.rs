//! A person at the terminal of a channel on which nothing runs yet: lines to read, and lines to type.
//!
//! The client's terminal is in raw mode, so what is typed is echoed and edited here. Nothing that is typed
//! here reaches a device.

use super::transport::Control;
use crate::session::wire::{FromEngineer, Input};
use bytes::Bytes;
use daypass_protocol::text::{is_hidden, made_visible};
use daypass_protocol::tunnel::open::WindowSize;
use russh::ChannelWriteHalf;
use russh::server::Msg;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};
use unicode_width::UnicodeWidthChar as _;

/// SSH_EXTENDED_DATA_STDERR, RFC 4254 section 5.2: standard output is for what runs on the device.
const STDERR: u32 = 1;
/// Longest line that is shown, in bytes.
const LINE: usize = 2048;
/// What a pipe has to say, it says at once; a person's hands are slower.
const SETTLES: Duration = Duration::from_millis(150);
/// How long somebody may take over one line.
const PATIENCE: Duration = Duration::from_mins(5);
/// Most keys kept for the next line; what is pasted beyond is dropped.
const KEYS: usize = 4096;

const ERASE_LINE: &str = "\r\x1b[K";

/// Why somebody at a terminal is not waited for any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// They typed Ctrl-C or Ctrl-D.
    Interrupted,
    /// Their end is closed.
    Gone,
    /// They did not type for too long.
    Silent,
}

pub struct Terminal<'t> {
    write: &'t ChannelWriteHalf<Msg>,
    control: &'t Control,
    input: &'t mut Input,
    keyboard: Keyboard,
    /// What stands on the line that is drawn over.
    status: String,
    resized: Option<WindowSize>,
}

impl std::fmt::Debug for Terminal<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never what was typed.
        f.debug_struct("Terminal").field("resized", &self.resized).finish_non_exhaustive()
    }
}

impl<'t> Terminal<'t> {
    pub fn new(write: &'t ChannelWriteHalf<Msg>, control: &'t Control, input: &'t mut Input) -> Self {
        let (keyboard, status, resized) = (Keyboard::default(), String::new(), None);
        Self { write, control, input, keyboard, status, resized }
    }

    /// The terminal's newest size, if it changed meanwhile.
    pub fn resized(&self) -> Option<WindowSize> {
        self.resized
    }

    /// Whether a person seems to be there: a pipe's input ends with its bytes. What was typed so far was not
    /// typed for us, and is dropped.
    pub async fn is_attended(&mut self) -> bool {
        let until = Instant::now() + SETTLES;
        loop {
            match timeout_at(until, self.input.recv()).await {
                Err(_) => return true,
                Ok(None | Some(FromEngineer::Eof)) => return false,
                Ok(Some(message)) => self.take(&message),
            }
        }
    }

    /// One line, on a fresh one.
    pub async fn say(&mut self, line: &str) -> Result<(), Left> {
        let erase = if self.status.is_empty() { "\r" } else { ERASE_LINE };
        self.status.clear();
        self.put(format!("{erase}daypass: {}\r\n", made_visible(line, LINE))).await
    }

    /// A line that the next one is drawn over.
    pub async fn draw(&mut self, status: &str) -> Result<(), Left> {
        if status != self.status {
            status.clone_into(&mut self.status);
            self.put(format!("{ERASE_LINE}{}", made_visible(status, LINE))).await?;
        }
        Ok(())
    }

    /// Asks for one line of at most `most` bytes.
    pub async fn ask(&mut self, question: &str, most: usize) -> Result<String, Left> {
        self.put(format!("\rdaypass: {} ", made_visible(question, LINE))).await?;
        self.keyboard.keys.clear();
        let mut line = Line { text: String::new(), most };
        loop {
            let edited = line.edit(self.key().await?);
            self.put(edited.echo).await?;
            match edited.done {
                None => {}
                Some(Done::Entered) => return Ok(line.text.trim().to_owned()),
                Some(Done::Left) => return Err(Left::Interrupted),
            }
        }
    }

    /// Resolves when the person leaves; what else they type is dropped.
    pub async fn left(&mut self) -> Left {
        loop {
            match self.input.recv().await {
                None | Some(FromEngineer::Eof) => return Left::Gone,
                Some(message) => self.take(&message),
            }
            if std::mem::take(&mut self.keyboard.keys).contains(&Key::Interrupt) {
                self.wipe().await;
                return Left::Interrupted;
            }
        }
    }

    /// Drops what was typed so far, and what is still on its way of a paste: it was not typed for the device.
    pub async fn forget(&mut self) -> Result<(), Left> {
        let longest = Instant::now() + 10 * SETTLES;
        loop {
            let quiet = (Instant::now() + SETTLES).min(longest);
            match timeout_at(quiet, self.input.recv()).await {
                Err(_) => break,
                Ok(None | Some(FromEngineer::Eof)) => return Err(Left::Gone),
                Ok(Some(message)) => self.take(&message),
            }
        }
        let typed = std::mem::take(&mut self.keyboard.keys);
        if typed.contains(&Key::Interrupt) { Err(Left::Interrupted) } else { Ok(()) }
    }

    /// Wipes the line that is drawn over.
    async fn wipe(&mut self) {
        if !std::mem::take(&mut self.status).is_empty() {
            // Best effort: who is gone sees no line.
            let _ = self.put(ERASE_LINE.to_owned()).await;
        }
    }

    async fn key(&mut self) -> Result<Key, Left> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(key) = self.keyboard.keys.pop_front() {
                return Ok(key);
            }
            match timeout_at(until, self.input.recv()).await {
                Err(_) => return Err(Left::Silent),
                Ok(None | Some(FromEngineer::Eof)) => return Err(Left::Gone),
                Ok(Some(message)) => self.take(&message),
            }
        }
    }

    fn take(&mut self, message: &FromEngineer) {
        match message {
            FromEngineer::Data(bytes) => self.keyboard.feed(bytes),
            FromEngineer::Resize(size) => self.resized = Some(*size),
            FromEngineer::Signal(name) if name == "INT" => self.keyboard.push(Key::Interrupt),
            FromEngineer::Signal(_) | FromEngineer::Eof => {}
        }
    }

    async fn put(&self, text: String) -> Result<(), Left> {
        if text.is_empty() {
            return Ok(());
        }
        let put = async {
            self.control.room().await;
            self.write.extended_data_bytes(STDERR, Bytes::from(text)).await
        };
        // Somebody whose terminal is stopped for that long reads nothing.
        match timeout(PATIENCE, put).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Left::Gone),
            Err(_) => Err(Left::Silent),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Char(char),
    Enter,
    Erase,
    EraseWord,
    EraseLine,
    Interrupt,
    End,
}

/// Keys out of the bytes that a terminal sends. Escape sequences (cursor keys, a paste's brackets) are
/// understood well enough to be dropped.
#[derive(Default)]
struct Keyboard {
    parser: vte::Parser,
    keys: VecDeque<Key>,
}

impl Keyboard {
    fn feed(&mut self, bytes: &[u8]) {
        let mut typed = Typed(&mut self.keys);
        self.parser.advance(&mut typed, bytes);
    }

    fn push(&mut self, key: Key) {
        Typed(&mut self.keys).push(key);
    }
}

struct Typed<'k>(&'k mut VecDeque<Key>);

impl Typed<'_> {
    fn push(&mut self, key: Key) {
        // Leaving is heard over any paste.
        if key == Key::Interrupt {
            self.0.clear();
        }
        if self.0.len() < KEYS {
            self.0.push_back(key);
        }
    }
}

impl vte::Perform for Typed<'_> {
    fn print(&mut self, c: char) {
        match c {
            '\x7f' => self.push(Key::Erase),
            c if is_hidden(c) || c == char::REPLACEMENT_CHARACTER => {}
            c => self.push(Key::Char(c)),
        }
    }

    fn execute(&mut self, byte: u8) {
        match byte {
            b'\r' | b'\n' => self.push(Key::Enter),
            b'\t' => self.push(Key::Char(' ')),
            0x08 | 0x7f => self.push(Key::Erase),
            0x17 => self.push(Key::EraseWord),
            0x15 => self.push(Key::EraseLine),
            0x03 => self.push(Key::Interrupt),
            0x04 => self.push(Key::End),
            _ => {}
        }
    }
}

enum Done {
    Entered,
    Left,
}

/// What a key does to a line: what the terminal shows of it, and whether the line is finished.
struct Edited {
    echo: String,
    done: Option<Done>,
}

struct Line {
    text: String,
    most: usize,
}

impl Line {
    fn edit(&mut self, key: Key) -> Edited {
        let going_on = |echo: String| Edited { echo, done: None };
        match key {
            Key::Char(c) if self.text.len() + c.len_utf8() <= self.most => {
                self.text.push(c);
                going_on(c.to_string())
            }
            Key::Char(_) => going_on("\x07".to_owned()),
            Key::Erase => going_on(self.erase(1)),
            Key::EraseWord => {
                let kept = self.text.trim_end().rfind(' ').map_or(0, |at| at + 1);
                let count = self.text[kept..].chars().count();
                going_on(self.erase(count))
            }
            Key::EraseLine => going_on(self.erase(usize::MAX)),
            // An empty line says nothing; who wants to leave says so.
            Key::Enter if self.text.trim().is_empty() => going_on("\x07".to_owned()),
            Key::Enter => Edited { echo: "\r\n".to_owned(), done: Some(Done::Entered) },
            Key::End if !self.text.is_empty() => going_on("\x07".to_owned()),
            Key::End | Key::Interrupt => {
                self.text.clear();
                Edited { echo: "^C\r\n".to_owned(), done: Some(Done::Left) }
            }
        }
    }

    /// Takes characters from the end; what takes them from the screen.
    fn erase(&mut self, count: usize) -> String {
        let mut echo = String::new();
        for _ in 0..count {
            let Some(gone) = self.text.pop() else { break };
            echo.push_str(&"\x08 \x08".repeat(gone.width().unwrap_or(0)));
        }
        echo
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands on the line after these bytes, and what was shown of them.
    fn typed(bytes: &[u8], most: usize) -> (String, String, bool) {
        let mut keyboard = Keyboard::default();
        // In pieces of one byte, as a slow link brings them.
        bytes.chunks(1).for_each(|piece| keyboard.feed(piece));
        let mut line = Line { text: String::new(), most };
        let mut shown = String::new();
        let mut done = false;
        for key in keyboard.keys {
            let edited = line.edit(key);
            shown.push_str(&edited.echo);
            done |= edited.done.is_some();
        }
        (line.text, shown, done)
    }

    #[test]
    fn a_line_is_typed_and_mended() {
        assert_eq!(typed(b"modem\r", 100), ("modem".into(), "modem\r\n".into(), true));
        assert_eq!(typed(b"moden\x7fm", 100).0, "modem");
        assert_eq!(typed(b"one two  \x17three", 100).0, "one three");
        assert_eq!(typed(b"one two\x15three", 100).0, "three");
        assert_eq!(typed("Überhitzung 日\x7f".as_bytes(), 100).0, "Überhitzung ");
        assert!(typed("日\x7f".as_bytes(), 100).1.ends_with("\x08 \x08\x08 \x08"));
    }

    #[test]
    fn escape_sequences_and_invisible_characters_do_not_get_into_a_line() {
        let hostile = b"a\x1b[Db\x1b[200~c\x1b]0;title\x07d\xc2\x9b31me\xff\x00\x0ef\xe2\x80\xaeg";
        let (text, shown, _) = typed(hostile, 100);
        assert!(text.starts_with("abcd") && text.ends_with("fg"), "{text:?}");
        assert!(!text.chars().any(is_hidden), "{text:?}");
        assert!(!shown.contains('\x1b'), "{shown:?}");
    }

    #[test]
    fn a_line_has_an_end_and_so_has_a_paste() {
        let (text, shown, _) = typed(&[b'x'; 3000], 2000);
        assert_eq!(text.len(), 2000);
        assert_eq!(shown.matches('\x07').count(), 1000);
        let mut keyboard = Keyboard::default();
        keyboard.feed(&vec![b'x'; 1 << 20]);
        assert_eq!(keyboard.keys.len(), KEYS);
        keyboard.feed(b"\x03");
        assert_eq!(keyboard.keys, [Key::Interrupt]);
    }

    #[test]
    fn who_wants_to_leave_leaves_and_an_empty_line_is_no_reason() {
        assert!(typed(b"half a rea\x03", 100).2);
        assert!(typed(b"\x04", 100).2);
        assert!(!typed(b"x\x04", 100).2);
        assert!(!typed(b"  \r\r", 100).2);
    }
}
