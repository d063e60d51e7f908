//! The fields of a packet, RFC 4251 section 5: big-endian numbers, and strings with their length before.

use super::operation::Attributes;
use super::{MAX_HANDLE, What};

/// Reads one field after the other; running out of bytes is an error, not a panic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], What> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(What::CutShort)?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn byte(&mut self) -> Result<u8, What> {
        self.take(1)?.first().copied().ok_or(What::CutShort)
    }

    pub fn u32(&mut self) -> Result<u32, What> {
        let bytes = self.take(4)?.try_into().map_err(|_| What::CutShort)?;
        Ok(u32::from_be_bytes(bytes))
    }

    pub fn u64(&mut self) -> Result<u64, What> {
        let bytes = self.take(8)?.try_into().map_err(|_| What::CutShort)?;
        Ok(u64::from_be_bytes(bytes))
    }

    pub fn string(&mut self) -> Result<&'a [u8], What> {
        let length = usize::try_from(self.u32()?).map_err(|_| What::CutShort)?;
        self.take(length)
    }

    pub fn handle(&mut self) -> Result<&'a [u8], What> {
        let handle = self.string()?;
        if handle.len() > MAX_HANDLE { Err(What::LongHandle) } else { Ok(handle) }
    }

    /// ATTRS, draft-ietf-secsh-filexfer-02 section 5.
    pub fn attributes(&mut self) -> Result<Attributes, What> {
        const SIZE: u32 = 1;
        const UID_GID: u32 = 2;
        const PERMISSIONS: u32 = 4;
        const TIMES: u32 = 8;
        const EXTENDED: u32 = 0x8000_0000;
        let flags = self.u32()?;
        if flags & !(SIZE | UID_GID | PERMISSIONS | TIMES | EXTENDED) != 0 {
            return Err(What::UnknownAttributes);
        }
        let mut attributes = Attributes::default();
        if flags & SIZE != 0 {
            attributes.size = Some(self.u64()?);
        }
        if flags & UID_GID != 0 {
            attributes.uid = Some(self.u32()?);
            attributes.gid = Some(self.u32()?);
        }
        if flags & PERMISSIONS != 0 {
            // Without the type of file, which nobody can set.
            attributes.mode = Some(format!("{:04o}", self.u32()? & 0o7777));
        }
        if flags & TIMES != 0 {
            attributes.atime = Some(self.u32()?);
            attributes.mtime = Some(self.u32()?);
        }
        if flags & EXTENDED != 0 {
            for _ in 0..self.u32()? {
                self.string()?;
                self.string()?;
            }
        }
        Ok(attributes)
    }

    /// Nothing may be left: what is not understood is not passed on.
    pub fn end(self) -> Result<(), What> {
        if self.0.is_empty() { Ok(()) } else { Err(What::TooMuch) }
    }
}
