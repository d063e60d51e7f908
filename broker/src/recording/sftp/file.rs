//! An open file or directory: how much went through it, and the running hash.

use super::operation::{Attributes, Name, Op, Operation, Transfer, WhyNone};
use sha2::{Digest, Sha256};

/// Bits of `pflags` in an OPEN, draft section 6.3.
pub(super) const READ: u32 = 0x01;
pub(super) const WRITE: u32 = 0x02;
pub(super) const APPEND: u32 = 0x04;
pub(super) const CREAT: u32 = 0x08;
pub(super) const TRUNC: u32 = 0x10;
pub(super) const EXCL: u32 = 0x20;

/// `write,creat,trunc`; bits that have no name are told as a number.
pub(super) fn flag_names(flags: u32) -> String {
    let names = [
        (READ, "read"),
        (WRITE, "write"),
        (APPEND, "append"),
        (CREAT, "creat"),
        (TRUNC, "trunc"),
        (EXCL, "excl"),
    ];
    let mut unnamed = flags;
    let mut text = Vec::new();
    for (bit, name) in names {
        if flags & bit != 0 {
            unnamed &= !bit;
            text.push(name.to_owned());
        }
    }
    if unnamed != 0 {
        text.push(format!("{unnamed:#x}"));
    }
    text.join(",")
}

/// The bytes of one direction, hashed as long as each follows the one before, from the first.
#[derive(Clone, Debug)]
struct Flow {
    /// Bytes that went through.
    bytes: u64,
    /// Bytes from the start of the file that are in the hash.
    hashed: u64,
    hash: Sha256,
    spoiled: Option<WhyNone>,
}

impl Flow {
    fn new(spoiled: Option<WhyNone>) -> Self {
        Self { bytes: 0, hashed: 0, hash: Sha256::new(), spoiled }
    }

    fn begin(&mut self, offset: u64, length: u32) {
        if offset != self.hashed && length > 0 {
            let why = if self.bytes == 0 { WhyNone::NotFromStart } else { WhyNone::OutOfOrder };
            self.spoiled.get_or_insert(why);
        }
        self.bytes = self.bytes.saturating_add(length.into());
    }

    fn piece(&mut self, piece: &[u8]) {
        // A hash that will not be told is not worth its work.
        if self.spoiled.is_none() {
            self.hash.update(piece);
            self.hashed += piece.len() as u64;
        }
    }

    fn end(&self, whole: bool) -> Transfer {
        let nothing = (self.bytes == 0 && !whole).then_some(WhyNone::NothingTransferred);
        let why_none = self.spoiled.or(nothing);
        let sha256 = why_none.is_none().then(|| hex::encode(self.hash.clone().finalize()));
        Transfer { bytes: self.bytes, sha256, why_none, whole: whole && why_none.is_none() }
    }
}

#[derive(Clone, Debug)]
pub(super) struct File {
    pub name: Name,
    pub is_dir: bool,
    /// Its close was asked for; the handle may be another file's at any moment.
    pub closing: bool,
    pub handle: Box<[u8]>,
    flags: u32,
    read: Flow,
    written: Flow,
    /// Writes without an answer.
    unanswered: u32,
    /// The least offset at which the device had nothing more to read.
    end: Option<u64>,
    /// As the device told it.
    size: Option<u64>,
    /// As it was set to while the file was open.
    set_to: Option<u64>,
    entries: u64,
}

impl File {
    pub fn new(name: Name, handle: &[u8], is_dir: bool, flags: u32) -> Self {
        let appended = (flags & APPEND != 0).then_some(WhyNone::Appended);
        Self {
            name,
            is_dir,
            closing: false,
            handle: handle.into(),
            flags,
            read: Flow::new(None),
            written: Flow::new(appended),
            unanswered: 0,
            end: None,
            size: None,
            set_to: None,
            entries: 0,
        }
    }

    pub fn weight(&self) -> usize {
        self.name.weight()
    }

    pub fn begin_read(&mut self, offset: u64, length: u32) {
        self.read.begin(offset, length);
    }

    pub fn read(&mut self, piece: &[u8]) {
        self.read.piece(piece);
    }

    /// The device has nothing at `offset` and behind it.
    pub fn ends_by(&mut self, offset: u64) {
        self.end = Some(self.end.map_or(offset, |end| end.min(offset)));
    }

    pub fn has_size(&mut self, size: u64) {
        self.size = Some(size);
    }

    pub fn begin_write(&mut self, offset: u64, length: u32) {
        self.unanswered += 1;
        self.written.begin(offset, length);
    }

    pub fn write(&mut self, piece: &[u8]) {
        self.written.piece(piece);
    }

    pub fn wrote(&mut self, length: u32, ok: bool) {
        self.unanswered = self.unanswered.saturating_sub(1);
        if !ok {
            self.written.bytes = self.written.bytes.saturating_sub(length.into());
            self.written.spoiled.get_or_insert(WhyNone::WriteFailed);
        }
    }

    /// The content was changed by other means than writes.
    pub fn changed(&mut self) {
        self.written.spoiled.get_or_insert(WhyNone::Changed);
    }

    /// Setting the size to what was written takes away what was behind: clients that do not empty a file
    /// when they open it end with that.
    pub fn set(&mut self, attributes: &Attributes) {
        self.set_to = attributes.size.or(self.set_to);
        if attributes.size.is_some_and(|size| size != self.written.hashed) {
            self.changed();
        }
    }

    pub fn listed(&mut self, entries: u32) {
        self.entries = self.entries.saturating_add(entries.into());
    }

    /// The operation that closes it. `None` for the result when the channel ended before it was closed.
    pub fn close(mut self, result: Option<String>) -> Operation {
        let mut operation =
            Operation::on(if self.is_dir { Op::Closedir } else { Op::Close }, self.name.clone());
        let finished = result.is_some();
        operation.result = result.or_else(|| Some(super::NO_ANSWER.to_owned()));
        if self.is_dir {
            operation.entries = Some(self.entries);
            return operation;
        }
        if !finished {
            self.read.spoiled.get_or_insert(WhyNone::Unfinished);
        }
        if !finished || self.unanswered > 0 {
            self.written.spoiled.get_or_insert(WhyNone::Unfinished);
        }
        if self.flags & READ != 0 || self.read.bytes > 0 {
            let read = Some(self.read.hashed);
            operation.read = Some(self.read.end(self.end == read || self.size == read));
        }
        if self.flags & (WRITE | APPEND) != 0 || self.written.bytes > 0 {
            let cut = self.set_to == Some(self.written.hashed);
            operation.written = Some(self.written.end(cut || self.flags & (TRUNC | EXCL) != 0));
        }
        operation
    }
}
