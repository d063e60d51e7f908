//! Both directions of one channel: requests, and the answers that belong to them.

use super::fields::Fields;
use super::file::File;
use super::operation::{Attributes, NO_ANSWER, Name, Op, Operation, result};
use super::packet::{DATA, NAME, Packets, Passed, Taker};
use super::request::{self, Request};
use super::{Broken, MAX_KEPT, MAX_OPEN, MAX_OUTSTANDING, Side, What};
use bytes::Bytes;
use std::collections::BTreeMap;

/// What has to be on record before the bytes that it was found in may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The device is about to be asked for something that may change it.
    Asked(Operation),
    /// An operation with its outcome.
    Done(Operation),
}

/// Reads one channel; see the module.
#[derive(Debug)]
pub struct Reader {
    up: Packets,
    down: Packets,
    exchange: Exchange,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            up: Packets::new(Side::Client),
            down: Packets::new(Side::Device),
            exchange: Exchange::default(),
        }
    }
}

impl Reader {
    /// Takes the next bytes that `side` sent and gives back what may go on to the other, once what was
    /// put into `seen` is on record. After an error nothing passes any more.
    pub fn feed(&mut self, side: Side, bytes: &Bytes, seen: &mut Vec<Seen>) -> Result<Passed, Broken> {
        let exchange = &mut self.exchange;
        let fed = match side {
            _ if exchange.over => Err(What::Over),
            Side::Client => self.up.feed(bytes, &mut Up { exchange, seen }),
            Side::Device => self.down.feed(bytes, &mut Down { exchange, seen }),
        };
        fed.map_err(|what| {
            self.exchange.over = true;
            Broken { side, what }
        })
    }

    /// How many requests have no answer.
    pub fn outstanding(&self) -> usize {
        self.exchange.outstanding.len()
    }

    /// The channel has ended: what was asked and not answered, and the files that were not closed.
    pub fn finish(self, seen: &mut Vec<Seen>) {
        for asked in self.exchange.outstanding.into_values() {
            if let Asked::Open { operation, .. }
            | Asked::Plain(operation)
            | Asked::OnHandle { operation, .. } = asked
            {
                seen.push(Seen::Done(Operation { result: Some(NO_ANSWER.to_owned()), ..operation }));
            }
        }
        seen.extend(self.exchange.files.into_values().map(|file| Seen::Done(file.close(None))));
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Greeting {
    #[default]
    Awaited,
    Asked,
    Over,
}

/// A request without an answer.
#[derive(Debug)]
enum Asked {
    Open { operation: Operation, flags: u32, is_dir: bool },
    Close(u64),
    Read { file: u64, offset: u64, length: u32 },
    Write { file: u64, length: u32 },
    ReadDir(u64),
    Plain(Operation),
    OnHandle { operation: Operation, file: u64, attributes: Option<Attributes> },
}

impl Asked {
    fn weight(&self) -> usize {
        match self {
            Self::Open { operation, .. } | Self::Plain(operation) | Self::OnHandle { operation, .. } => {
                operation.weight()
            }
            Self::Close(_) | Self::Read { .. } | Self::Write { .. } | Self::ReadDir(_) => 0,
        }
    }
}

#[derive(Debug, Default)]
struct Exchange {
    greeting: Greeting,
    outstanding: BTreeMap<u32, Asked>,
    /// Handles are the device's names for files, and it uses them again.
    handles: BTreeMap<Box<[u8]>, u64>,
    files: BTreeMap<u64, File>,
    opened: u64,
    kept: usize,
    /// Whose content streams through, in each direction.
    writing: Option<u64>,
    reading: Option<u64>,
    over: bool,
}

impl Exchange {
    fn keep(&mut self, weight: usize) -> Result<(), What> {
        self.kept += weight;
        if self.kept > MAX_KEPT { Err(What::TooMuchKept) } else { Ok(()) }
    }

    fn ask(&mut self, number: u32, asked: Asked) -> Result<(), What> {
        if self.outstanding.len() >= MAX_OUTSTANDING {
            return Err(What::TooManyRequests);
        }
        self.keep(asked.weight())?;
        match self.outstanding.insert(number, asked) {
            None => Ok(()),
            Some(_) => Err(What::NumberInUse),
        }
    }

    /// The file of a handle that the device gave and nobody has asked to close. A client that guesses the
    /// next handle could have its writes taken for those to another file.
    fn file(&mut self, handle: &[u8]) -> Result<(u64, &mut File), What> {
        let id = *self.handles.get(handle).ok_or(What::UnknownHandle)?;
        match self.files.get_mut(&id) {
            Some(file) if !file.closing => Ok((id, file)),
            _ => Err(What::UnknownHandle),
        }
    }

    fn open_as(&mut self, handle: &[u8], is_dir: bool) -> Result<(u64, &mut File), What> {
        let (id, file) = self.file(handle)?;
        if file.is_dir == is_dir { Ok((id, file)) } else { Err(What::WrongHandle) }
    }

    fn opened(&mut self, name: Name, handle: &[u8], is_dir: bool, flags: u32) -> Result<(), What> {
        if self.files.len() >= MAX_OPEN {
            return Err(What::TooManyOpen);
        }
        let file = File::new(name, handle, is_dir, flags);
        self.keep(file.weight())?;
        self.opened += 1;
        if self.handles.insert(handle.into(), self.opened).is_some() {
            return Err(What::HandleInUse);
        }
        self.files.insert(self.opened, file);
        Ok(())
    }
}

/// From the client to the device.
struct Up<'a> {
    exchange: &'a mut Exchange,
    seen: &'a mut Vec<Seen>,
}

impl Taker for Up<'_> {
    fn head(&mut self, head: &[u8], content: u32) -> Result<(), What> {
        let exchange = &mut *self.exchange;
        exchange.writing = None;
        let (number, request) = request::read(head)?;
        match (exchange.greeting, &request) {
            (Greeting::Awaited, Request::Greeting) => {
                exchange.greeting = Greeting::Asked;
                return Ok(());
            }
            (Greeting::Awaited, _) => return Err(What::NoGreeting),
            _ => {}
        }
        let asked = match request {
            Request::Greeting => return Err(What::UnknownType(1)),
            Request::Open { operation, flags } => Asked::Open { operation, flags, is_dir: false },
            Request::OpenDir(operation) => Asked::Open { operation, flags: 0, is_dir: true },
            Request::Close(handle) => {
                let (id, file) = exchange.file(handle)?;
                file.closing = true;
                Asked::Close(id)
            }
            Request::Read { handle, offset, length } => {
                Asked::Read { file: exchange.open_as(handle, false)?.0, offset, length }
            }
            Request::Write { handle, offset } => {
                let (id, file) = exchange.open_as(handle, false)?;
                file.begin_write(offset, content);
                exchange.writing = Some(id);
                Asked::Write { file: id, length: content }
            }
            Request::ReadDir(handle) => Asked::ReadDir(exchange.open_as(handle, true)?.0),
            Request::Plain(operation) => Asked::Plain(operation),
            Request::OnHandle { op, handle, attributes } => {
                let (file, open) = exchange.file(handle)?;
                let mut operation = Operation::on(op, open.name.clone());
                operation.attributes = attributes.clone().filter(|set| *set != Attributes::default());
                Asked::OnHandle { operation, file, attributes }
            }
            Request::Copy { from, to } => {
                let from = exchange.open_as(from, false)?.1.name.clone();
                let (file, open) = exchange.open_as(to, false)?;
                open.changed();
                let mut operation = Operation::on(Op::CopyData, from);
                operation.to = Some(open.name.clone());
                Asked::OnHandle { operation, file, attributes: None }
            }
        };
        if let Asked::Open { operation, .. } | Asked::Plain(operation) | Asked::OnHandle { operation, .. } =
            &asked
            && operation.changes()
        {
            self.seen.push(Seen::Asked(operation.clone()));
        }
        exchange.ask(number, asked)
    }

    fn content(&mut self, piece: &[u8]) {
        let exchange = &mut *self.exchange;
        if let Some(file) = exchange.writing.and_then(|id| exchange.files.get_mut(&id)) {
            file.write(piece);
        }
    }
}

/// From the device to the client.
struct Down<'a> {
    exchange: &'a mut Exchange,
    seen: &'a mut Vec<Seen>,
}

/// What a device answers, draft section 7.
enum Answer<'a> {
    Status(u32),
    Handle(&'a [u8]),
    Data(u32),
    Names { count: u32, first: Option<&'a [u8]> },
    Attributes(Attributes),
    Extended,
}

impl<'a> Answer<'a> {
    fn read(kind: u8, mut fields: Fields<'a>, content: u32) -> Result<Self, What> {
        let answer = match kind {
            101 => {
                let code = fields.u32()?;
                // Servers of older versions leave message and language out.
                if fields.end().is_err() {
                    fields.string()?;
                    fields.string()?;
                }
                Self::Status(code)
            }
            102 => Self::Handle(fields.handle()?),
            DATA => {
                fields.u32()?;
                Self::Data(content)
            }
            NAME => {
                let count = fields.u32()?;
                // The names of a directory are not read; of a long list they are not even here.
                let first = if count > 0 && content == 0 { Some(fields.string()?) } else { None };
                return Ok(Self::Names { count, first });
            }
            105 => Self::Attributes(fields.attributes()?),
            201 => return Ok(Self::Extended),
            other => return Err(What::UnknownType(other)),
        };
        fields.end()?;
        Ok(answer)
    }
}

impl Taker for Down<'_> {
    fn head(&mut self, head: &[u8], content: u32) -> Result<(), What> {
        self.exchange.reading = None;
        let mut fields = Fields::of(head);
        let kind = fields.byte()?;
        let number = fields.u32()?;
        match (self.exchange.greeting, kind) {
            (Greeting::Asked, 2) if number == 3 => {
                self.exchange.greeting = Greeting::Over;
                return Ok(());
            }
            (Greeting::Asked, 2) => return Err(What::Version(number)),
            (Greeting::Awaited | Greeting::Asked, _) => return Err(What::NoGreeting),
            (Greeting::Over, _) => {}
        }
        let answer = Answer::read(kind, fields, content)?;
        let asked = self.exchange.outstanding.remove(&number).ok_or(What::UnknownNumber)?;
        self.exchange.kept = self.exchange.kept.saturating_sub(asked.weight());
        self.answered(asked, answer)
    }

    fn content(&mut self, piece: &[u8]) {
        let exchange = &mut *self.exchange;
        if let Some(file) = exchange.reading.and_then(|id| exchange.files.get_mut(&id)) {
            file.read(piece);
        }
    }
}

impl Down<'_> {
    fn done(&mut self, operation: Operation, code: u32) {
        self.seen.push(Seen::Done(Operation { result: Some(result(code)), ..operation }));
    }

    fn answered(&mut self, asked: Asked, answer: Answer<'_>) -> Result<(), What> {
        let exchange = &mut *self.exchange;
        match (asked, answer) {
            (Asked::Open { operation, flags, is_dir }, Answer::Handle(handle)) => {
                let name = operation.path.clone().unwrap_or_else(|| Name::from(&b""[..]));
                exchange.opened(name, handle, is_dir, flags)?;
                self.done(operation, 0);
            }
            (Asked::Open { operation, .. }, Answer::Status(code)) if code != 0 => self.done(operation, code),
            (Asked::Close(id), Answer::Status(code)) => {
                // Whatever it says, the handle is gone (OpenSSH's server frees it first).
                let Some(file) = exchange.files.remove(&id) else { return Err(What::UnknownHandle) };
                exchange.handles.remove(&file.handle);
                exchange.kept = exchange.kept.saturating_sub(file.weight());
                self.seen.push(Seen::Done(file.close(Some(result(code)))));
            }
            (Asked::Read { file, offset, length }, Answer::Data(count)) => {
                if count > length {
                    return Err(What::MoreThanAsked);
                }
                if let Some(open) = exchange.files.get_mut(&file) {
                    open.begin_read(offset, count);
                    exchange.reading = Some(file);
                } else {
                    // Its close was answered before: a server that keeps no order.
                    return Err(What::WrongAnswer);
                }
            }
            (Asked::Read { file, offset, .. }, Answer::Status(code)) => {
                if let (1, Some(open)) = (code, exchange.files.get_mut(&file)) {
                    open.ends_by(offset);
                }
            }
            (Asked::Write { file, length }, Answer::Status(code)) => {
                if let Some(open) = exchange.files.get_mut(&file) {
                    open.wrote(length, code == 0);
                }
            }
            (Asked::ReadDir(file), Answer::Names { count, .. }) => {
                if let Some(open) = exchange.files.get_mut(&file) {
                    open.listed(count);
                }
            }
            (Asked::ReadDir(_), Answer::Status(_)) => {}
            (Asked::Plain(operation), answer) => self.plain(operation, answer)?,
            (Asked::OnHandle { operation, file, attributes }, answer) => {
                if let Some(open) = exchange.files.get_mut(&file) {
                    match (&answer, attributes) {
                        (Answer::Status(0), Some(set)) => open.set(&set),
                        (Answer::Attributes(Attributes { size: Some(size), .. }), _) => open.has_size(*size),
                        _ => {}
                    }
                }
                self.plain(operation, answer)?;
            }
            (
                Asked::Open { .. }
                | Asked::Close(_)
                | Asked::Read { .. }
                | Asked::Write { .. }
                | Asked::ReadDir(_),
                _,
            ) => return Err(What::WrongAnswer),
        }
        Ok(())
    }

    fn plain(&mut self, mut operation: Operation, answer: Answer<'_>) -> Result<(), What> {
        match (operation.op, answer) {
            (_, Answer::Status(code)) => {
                self.done(operation, code);
                return Ok(());
            }
            (
                Op::Realpath | Op::ExpandPath | Op::HomeDirectory | Op::Readlink,
                Answer::Names { first: Some(first), .. },
            ) => operation.answer = Some(first.into()),
            (Op::Stat | Op::Lstat | Op::Fstat, Answer::Attributes(attributes)) => {
                operation.size = attributes.size;
            }
            (Op::Statvfs | Op::Fstatvfs | Op::Limits | Op::UsersGroupsById, Answer::Extended) => {}
            _ => return Err(What::WrongAnswer),
        }
        self.done(operation, 0);
        Ok(())
    }
}
