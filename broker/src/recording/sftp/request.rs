//! Requests, read whole.

use super::What;
use super::fields::Fields;
use super::file::flag_names;
use super::operation::{Attributes, Name, Op, Operation};
use super::packet::WRITE;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request<'a> {
    /// Draft section 4.
    Greeting,
    Open {
        operation: Operation,
        flags: u32,
    },
    OpenDir(Operation),
    Close(&'a [u8]),
    Read {
        handle: &'a [u8],
        offset: u64,
        length: u32,
    },
    Write {
        handle: &'a [u8],
        offset: u64,
    },
    ReadDir(&'a [u8]),
    /// By name.
    Plain(Operation),
    /// Of an open file.
    OnHandle {
        op: Op,
        handle: &'a [u8],
        attributes: Option<Attributes>,
    },
    Copy {
        from: &'a [u8],
        to: &'a [u8],
    },
}

/// Reads the head of a packet; the number of the request, and what it asks for.
pub(super) fn read(head: &[u8]) -> Result<(u32, Request<'_>), What> {
    let mut fields = Fields::of(head);
    let kind = fields.byte()?;
    let number = fields.u32()?;
    if kind == 1 {
        // `number` is the version that the client would like; the device chooses.
        return Ok((number, Request::Greeting));
    }
    let request = match kind {
        3 => {
            let path = fields.string()?;
            let flags = fields.u32()?;
            let attributes = fields.attributes()?;
            let mut operation = Operation::on(Op::Open, path.into());
            operation.flags = Some(flag_names(flags));
            operation.attributes = Some(attributes).filter(|set| *set != Attributes::default());
            Request::Open { operation, flags }
        }
        4 => Request::Close(fields.handle()?),
        5 => Request::Read { handle: fields.handle()?, offset: fields.u64()?, length: fields.u32()? },
        WRITE => {
            let handle = fields.handle()?;
            let offset = fields.u64()?;
            fields.u32()?;
            Request::Write { handle, offset }
        }
        7 => Request::Plain(on(Op::Lstat, &mut fields)?),
        8 => on_handle(Op::Fstat, &mut fields)?,
        9 => Request::Plain(setting(Op::Setstat, &mut fields)?),
        10 => Request::OnHandle {
            op: Op::Fsetstat,
            handle: fields.handle()?,
            attributes: Some(fields.attributes()?),
        },
        11 => Request::OpenDir(on(Op::Opendir, &mut fields)?),
        12 => Request::ReadDir(fields.handle()?),
        13 => Request::Plain(on(Op::Remove, &mut fields)?),
        14 => Request::Plain(setting(Op::Mkdir, &mut fields)?),
        15 => Request::Plain(on(Op::Rmdir, &mut fields)?),
        16 => Request::Plain(on(Op::Realpath, &mut fields)?),
        17 => Request::Plain(on(Op::Stat, &mut fields)?),
        18 => Request::Plain(on_two(Op::Rename, &mut fields)?),
        19 => Request::Plain(on(Op::Readlink, &mut fields)?),
        // OpenSSH has the target first, against the draft (its PROTOCOL, section 4.1).
        20 => Request::Plain(link(Op::Symlink, &mut fields)?),
        200 => extended(&mut fields)?,
        other => return Err(What::UnknownType(other)),
    };
    fields.end()?;
    Ok((number, request))
}

/// OpenSSH's PROTOCOL, section 4. One that is not known here could do anything unseen.
fn extended<'a>(fields: &mut Fields<'a>) -> Result<Request<'a>, What> {
    Ok(match fields.string()? {
        b"posix-rename@openssh.com" => Request::Plain(on_two(Op::PosixRename, fields)?),
        // The link is the second name, as with SYMLINK.
        b"hardlink@openssh.com" => Request::Plain(link(Op::Hardlink, fields)?),
        b"statvfs@openssh.com" => Request::Plain(on(Op::Statvfs, fields)?),
        b"fstatvfs@openssh.com" => on_handle(Op::Fstatvfs, fields)?,
        b"fsync@openssh.com" => on_handle(Op::Fsync, fields)?,
        b"lsetstat@openssh.com" => Request::Plain(setting(Op::Lsetstat, fields)?),
        b"limits@openssh.com" => Request::Plain(Operation::new(Op::Limits)),
        b"expand-path@openssh.com" => Request::Plain(on(Op::ExpandPath, fields)?),
        b"home-directory" => Request::Plain(on(Op::HomeDirectory, fields)?),
        b"users-groups-by-id@openssh.com" => {
            fields.string()?;
            fields.string()?;
            Request::Plain(Operation::new(Op::UsersGroupsById))
        }
        b"copy-data" => {
            let from = fields.handle()?;
            fields.u64()?;
            fields.u64()?;
            let to = fields.handle()?;
            fields.u64()?;
            Request::Copy { from, to }
        }
        _ => return Err(What::UnknownExtension),
    })
}

fn on(op: Op, fields: &mut Fields<'_>) -> Result<Operation, What> {
    Ok(Operation::on(op, fields.string()?.into()))
}

fn on_two(op: Op, fields: &mut Fields<'_>) -> Result<Operation, What> {
    let mut operation = on(op, fields)?;
    operation.to = Some(Name::from(fields.string()?));
    Ok(operation)
}

fn link(op: Op, fields: &mut Fields<'_>) -> Result<Operation, What> {
    let target = Name::from(fields.string()?);
    let mut operation = on(op, fields)?;
    operation.to = Some(target);
    Ok(operation)
}

fn setting(op: Op, fields: &mut Fields<'_>) -> Result<Operation, What> {
    let mut operation = on(op, fields)?;
    operation.attributes = Some(fields.attributes()?).filter(|set| *set != Attributes::default());
    Ok(operation)
}

fn on_handle<'a>(op: Op, fields: &mut Fields<'a>) -> Result<Request<'a>, What> {
    Ok(Request::OnHandle { op, handle: fields.handle()?, attributes: None })
}
