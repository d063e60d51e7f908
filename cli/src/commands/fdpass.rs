//! `daypass proxy --fdpass HOST`: opens the connection that `ssh` then talks on by itself (ProxyUseFdpass of
//! ssh_config(5)), straight to the device: a ticket that was asked for by HTTPS goes ahead of SSH, and no second
//! SSH connection is needed around the first.
//!
//! Where there is no ticket, the gateway is a jump host, for which `ssh` needs nothing but its certificate.

use super::Context;
use crate::failure::Failure;
use crate::ssh::config::{OWN_CONFIG, jump_alias};
use crate::ui::words;
use daypass_protocol::api::{SshTicket, TICKET, TICKET_LINE};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub async fn run(context: &Context, host: &str) -> Result<(), Failure> {
    let connection = match ticket(context, host).await {
        Ok(ticket) => straight(&ticket).await?,
        // The gateway would say the same.
        Err(Failure::Problem(problem)) if problem.status == 400 => return Err(Failure::Problem(problem)),
        Err(why) => {
            context.ui.note(&words::by_jump(&why));
            by_jump(context, host).map_err(Failure::Ssh)?
        }
    };
    hand_over(&connection).map_err(Failure::NotHandedOver)
}

async fn ticket(context: &Context, host: &str) -> Result<SshTicket, Failure> {
    let ticket: SshTicket = context.client()?.post_to(&["v1", "ssh", host, "tickets"]).await?;
    // Stands in a line of its own.
    let fits = ticket.ticket.len() + TICKET.len() + 2 <= TICKET_LINE
        && ticket.ticket.bytes().all(|byte| byte.is_ascii_graphic());
    if !fits {
        return Err(Failure::BadAnswer { what: words::ANSWER, why: words::BAD_TICKET.to_owned() });
    }
    Ok(ticket)
}

/// A connection to the gateway on which the ticket was said.
async fn straight(ticket: &SshTicket) -> Result<OwnedFd, Failure> {
    let SshTicket { ticket, ssh_host, ssh_port, .. } = ticket;
    let connecting = async {
        let mut connection = TcpStream::connect((ssh_host.as_str(), *ssh_port)).await?;
        connection.set_nodelay(true)?;
        connection.write_all(format!("{TICKET}{ticket}\r\n").as_bytes()).await?;
        let connection = connection.into_std()?;
        connection.set_nonblocking(false)?;
        Ok::<_, io::Error>(connection.into())
    };
    let connected = timeout(CONNECT_TIMEOUT, connecting).await;
    connected.unwrap_or_else(|late| Err(io::Error::new(io::ErrorKind::TimedOut, late))).map_err(|error| {
        Failure::NoGateway { host: ssh_host.clone(), port: *ssh_port, why: error.to_string() }
    })
}

/// One end of a connection through the gateway as a jump host; at the other is an `ssh` that stays.
fn by_jump(context: &Context, host: &str) -> io::Result<OwnedFd> {
    let (near, far) = UnixStream::pair()?;
    Command::new("ssh")
        .arg("-F")
        .arg(context.profile.path(OWN_CONFIG))
        .arg("-W")
        .arg(format!("[{host}]:22"))
        .arg(jump_alias(&context.profile))
        .stdin(Stdio::from(OwnedFd::from(far.try_clone()?)))
        .stdout(Stdio::from(OwnedFd::from(far)))
        .spawn()?;
    Ok(near.into())
}

/// Gives the connection to whoever reads our standard output.
fn hand_over(connection: &OwnedFd) -> io::Result<()> {
    let connection = [connection.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&connection)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    // One byte, because an ancillary message does not travel alone.
    match sendmsg(io::stdout(), &[IoSlice::new(&[0])], &mut ancillary, SendFlags::empty())? {
        1 => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}
