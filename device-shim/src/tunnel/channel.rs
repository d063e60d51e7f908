//! One channel: a stream of the tunnel, judged, joined to a process, and ended with everything it started.
//! [`super::flow`] carries the bytes.

use super::flow::{Flow, Link};
use super::forward;
use super::permit::{Permit, Refusal, passed_env};
use super::{Admitted, End, FrameWriter, Place, Tunnel};
use crate::journal::{Entry, spell};
use crate::note;
use crate::session::account::Account;
use crate::session::process::{Process, start};
use crate::session::{Order, Report, Tell, sftp};
use daypass_protocol::tunnel::frame::{CloseCode, Frame};
use daypass_protocol::tunnel::open::{Octets, OpenKind, RefusedCode};
use daypass_protocol::tunnel::stream::split;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

/// How long the `open` frame may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last frame may take to a peer that does not read.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest sleep of the timer at the end of the window: the counter it is compared with also counts while
/// the device sleeps, tokio's does not.
const MAX_NAP: Duration = Duration::from_secs(5);

/// Why a channel stopped.
#[derive(Debug)]
pub enum Stop {
    /// The process ended and everything was sent, a close too.
    Finished(String),
    /// The broker closed the channel.
    Closed,
    /// The stream ended without a word.
    StreamGone(String),
    Protocol(String),
    Failed(String),
    End(End),
}

impl Stop {
    fn close_code(&self) -> Option<CloseCode> {
        match self {
            Self::Closed => Some(CloseCode::Done),
            Self::Finished(_) | Self::StreamGone(_) => None,
            Self::Protocol(_) => Some(CloseCode::Protocol),
            Self::Failed(_) => Some(CloseCode::Failed),
            Self::End(End::Expired) => Some(CloseCode::Expired),
            Self::End(End::Ended(_) | End::Revoked) => Some(CloseCode::Ended),
            Self::End(End::Suspended(_) | End::Stopping) => Some(CloseCode::Suspended),
        }
    }

    /// For a person, and for the journal.
    fn words(&self) -> String {
        match self {
            Self::Finished(exit) => exit.clone(),
            Self::Closed => "closed by the broker".to_owned(),
            Self::StreamGone(why) => format!("the stream ended: {why}"),
            Self::Protocol(why) => format!("the broker broke the protocol: {why}"),
            Self::Failed(why) => why.clone(),
            Self::End(end) => end.words(),
        }
    }
}

/// Serves one stream of the tunnel from its `open` to the end of its last process.
/// `lost` ends with the tunnel.
pub async fn serve(stream: yamux::Stream, tunnel: Arc<Tunnel>, lost: watch::Receiver<()>) {
    let (mut reader, mut writer) = split(stream);
    let signed = match timeout(OPEN_TIMEOUT, reader.next()).await {
        Ok(Ok(Some(Frame::Open(signed)))) => signed,
        Ok(Ok(Some(_))) => return refuse(&mut writer, &malformed("its first frame is not open")).await,
        Ok(Ok(None)) => return note!("a channel ended before its open frame"),
        Ok(Err(error)) => return refuse(&mut writer, &malformed(&error.to_string())).await,
        Err(_) => return note!("a channel without an open frame within {} s", OPEN_TIMEOUT.as_secs()),
    };
    let (permit, mut place) = match tunnel.admit(&signed) {
        Ok(Admitted::First(permit, place)) => (permit, place),
        Ok(Admitted::Again(links, received)) => {
            let link = Link { reader, writer, tunnel: lost, resumed: Some(received) };
            // A channel that ends in this moment drops the stream, which says enough.
            let _ = links.try_send(link);
            return;
        }
        Err(refusal) => return refuse(&mut writer, &refusal).await,
    };
    match begin(&permit, &tunnel).await {
        Ok(process) => {
            note!(
                "{} channel {}: {} as {} by {}",
                permit.session(),
                permit.channel(),
                permit.kind().channel_kind(),
                permit.login(),
                permit.person()
            );
            let link = Link { reader, writer, tunnel: lost, resumed: None };
            run(process, &permit, link, &tunnel, &mut place).await;
        }
        Err(refusal) => refuse(&mut writer, &refusal).await,
    }
    drop(place);
}

fn malformed(cause: &str) -> Refusal {
    Refusal::new(RefusedCode::Malformed, "the request to open a channel does not read", cause)
}

async fn refuse(writer: &mut FrameWriter, refusal: &Refusal) {
    note!("a channel was refused ({:?}): {}", refusal.told.code, refusal.cause);
    let send = async {
        writer.send(&Frame::Refused(refusal.told.clone())).await?;
        writer.close().await
    };
    if !matches!(timeout(CLOSE_TIMEOUT, send).await, Ok(Ok(()))) {
        note!("the broker did not take the refusal");
    }
}

fn entry<'a>(permit: &'a Permit, tunnel: &Tunnel, event: &'a str, end: Option<String>) -> Entry<'a> {
    let command = match permit.kind() {
        OpenKind::Exec { command, .. } => Some(String::from_utf8_lossy(&command.0).into_owned()),
        _ => None,
    };
    Entry {
        at: spell(tunnel.device.clock.now()),
        event,
        session: permit.session().as_str(),
        channel: permit.channel(),
        person: permit.person(),
        grant: permit.grant(),
        login: permit.login().as_str(),
        kind: permit.kind().channel_kind().as_str(),
        command,
        target: permit.target(),
        end,
    }
}

/// Notes who comes in, then starts what was permitted.
async fn begin(permit: &Permit, tunnel: &Tunnel) -> Result<Process, Refusal> {
    let device = &tunnel.device;
    let failed = |cause: String| Refusal::new(RefusedCode::Failed, "the device could not start it", cause);
    let sftp_server = match permit.kind() {
        OpenKind::Sftp => Some(sftp::server(device.config.sftp_server.as_deref()).ok_or_else(|| {
            let message = "this device has no sftp-server";
            Refusal::new(RefusedCode::KindForbidden, message, message)
        })?),
        _ => None,
    };
    // The owner's journal is a promise: nobody comes in unseen.
    device
        .journal
        .write(&entry(permit, tunnel, "opened", None))
        .map_err(|error| failed(format!("the journal cannot be written: {error}")))?;
    let begun = if let Some(target) = permit.target() {
        let connected = forward::connect(&target, &device.config.forward, &device.endpoint).await;
        connected.map(Process::of_socket).map_err(|cause| {
            let message = format!("{target} is not reached: {cause}");
            Refusal::new(RefusedCode::Failed, message.clone(), message)
        })
    } else {
        let account = Account::find(permit.user(), device.config.shell.as_deref());
        let account = account.map_err(|error| failed(error.to_string()))?;
        let process =
            start(&order(permit, account, sftp_server), permit.kind().pty(), &device.monitors).await;
        process.map_err(|error| failed(error.to_string()))
    };
    if let Err(refusal) = &begun {
        let end = entry(permit, tunnel, "ended", Some(refusal.cause.clone()));
        if let Err(error) = device.journal.write(&end) {
            note!("the journal cannot be written: {error}");
        }
    }
    begun
}

/// Turns a permit into what the leader is to do.
fn order(permit: &Permit, account: Account, sftp_server: Option<PathBuf>) -> Order {
    let text = |path: &OsStr| path.to_string_lossy().into_owned();
    let shell_name = account.shell.file_name().map_or_else(|| "sh".to_owned(), text);
    let mut env = vec![
        ("HOME".to_owned(), text(account.home.as_os_str())),
        ("USER".to_owned(), account.user.clone()),
        ("LOGNAME".to_owned(), account.user.clone()),
        ("SHELL".to_owned(), text(account.shell.as_os_str())),
        ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("DAYPASS_SESSION".to_owned(), permit.session().to_string()),
    ];
    if let Some(pty) = permit.kind().pty() {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
        let term = if (1..=64).contains(&pty.term.len()) && pty.term.chars().all(plain) {
            pty.term.clone()
        } else {
            "dumb".to_owned()
        };
        env.push(("TERM".to_owned(), term));
    }
    env.extend(passed_env(permit.env()));
    let (program, arg0, args) = match permit.kind() {
        OpenKind::Exec { command, .. } => {
            (account.shell, shell_name, vec![Octets(b"-c".to_vec()), command.clone()])
        }
        // Not through the shell: nothing that a profile prints can get into the stream.
        OpenKind::Sftp => (sftp_server.unwrap_or_default(), "sftp-server".to_owned(), Vec::new()),
        // A name that starts with a minus makes it a login shell.
        _ => (account.shell, format!("-{shell_name}"), Vec::new()),
    };
    Order {
        program,
        arg0,
        args,
        env,
        home: account.home,
        user: account.user,
        uid: account.uid,
        gid: account.gid,
        terminal: permit.kind().pty().is_some(),
    }
}

async fn run(process: Process, permit: &Permit, link: Link, tunnel: &Tunnel, place: &mut Place) {
    let Process { input, output, error, terminal, mut teller, reports } = process;
    let mut flow = Flow::new(permit.binding().clone(), input, output, error, terminal, reports);
    let mut link = Some(link);
    let (tell, mut told) = mpsc::channel::<Tell>(4);
    let stop = {
        let carrying = flow.carry(&mut link, &mut place.links, &tell, tunnel.device.config.resume_grace);
        let telling = async {
            while let Some(what) = told.recv().await {
                teller.tell(&what).await;
            }
            std::future::pending::<Stop>().await
        };
        let expiry = expiry(permit, tunnel);
        tokio::select! {
            // An end that is due goes before bytes that could still flow.
            biased;
            end = ended(&mut place.end) => Stop::End(end),
            () = expiry => Stop::End(End::Expired),
            stop = telling => stop,
            stop = carrying => stop,
        }
        // Here nothing more is read or written.
    };
    // From here on there is nothing to go on with.
    place.links.close();
    let mut reports = flow.into_reports();
    if !matches!(stop, Stop::Finished(_)) {
        teller.tell(&Tell::End).await;
    }
    if let (Some(code), Some(link)) = (stop.close_code(), &mut link) {
        let farewell = async {
            link.writer.send(&Frame::Close { code, message: stop.words() }).await?;
            link.writer.close().await
        };
        if !matches!(timeout(CLOSE_TIMEOUT, farewell).await, Ok(Ok(()))) {
            note!("{} channel {}: the broker did not take its close", permit.session(), permit.channel());
        }
    }
    note!("{} channel {}: {}", permit.session(), permit.channel(), stop.words());
    while reports.next().await != Report::Gone {}
    if let Err(error) = tunnel.device.journal.write(&entry(permit, tunnel, "ended", Some(stop.words()))) {
        note!("the journal cannot be written: {error}");
    }
}

async fn ended(end: &mut watch::Receiver<Option<End>>) -> End {
    match end.wait_for(Option::is_some).await {
        Ok(end) => end.clone().unwrap_or(End::Stopping),
        Err(_) => End::Stopping,
    }
}

/// Until the certificate's time is over, by trusted time.
async fn expiry(permit: &Permit, tunnel: &Tunnel) {
    loop {
        let left = tunnel.device.clock.now().until(permit.valid_before());
        if left.is_zero() {
            return;
        }
        sleep(left.min(MAX_NAP)).await;
    }
}
