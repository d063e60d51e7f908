use super::*;
use bytes::{BufMut as _, Bytes, BytesMut};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

/// A packet put together by hand, as the draft says.
#[derive(Clone, Default)]
struct Packet(BytesMut);

impl Packet {
    fn of(kind: u8) -> Self {
        let mut bytes = BytesMut::new();
        bytes.put_u8(kind);
        Self(bytes)
    }
    fn u32(mut self, n: u32) -> Self {
        self.0.put_u32(n);
        self
    }
    fn u64(mut self, n: u64) -> Self {
        self.0.put_u64(n);
        self
    }
    fn string(mut self, text: impl AsRef<[u8]>) -> Self {
        self.0.put_u32(u32::try_from(text.as_ref().len()).unwrap());
        self.0.put_slice(text.as_ref());
        self
    }
    fn end(self) -> Vec<u8> {
        let mut whole = u32::try_from(self.0.len()).unwrap().to_be_bytes().to_vec();
        whole.extend_from_slice(&self.0);
        whole
    }
}

pub(in crate::recording) fn init() -> Vec<u8> {
    Packet::of(1).u32(3).end()
}
pub(in crate::recording) fn version() -> Vec<u8> {
    Packet::of(2).u32(3).string("posix-rename@openssh.com").string("1").end()
}
fn open(id: u32, path: &str, flags: u32) -> Vec<u8> {
    Packet::of(3).u32(id).string(path).u32(flags).u32(4).u32(0o100_644).end()
}
fn close(id: u32, handle: &str) -> Vec<u8> {
    Packet::of(4).u32(id).string(handle).end()
}
fn read(id: u32, handle: &str, offset: u64, length: u32) -> Vec<u8> {
    Packet::of(5).u32(id).string(handle).u64(offset).u32(length).end()
}
fn write(id: u32, handle: &str, offset: u64, content: &[u8]) -> Vec<u8> {
    Packet::of(6).u32(id).string(handle).u64(offset).string(content).end()
}
pub(in crate::recording) fn named(kind: u8, id: u32, path: &str) -> Vec<u8> {
    Packet::of(kind).u32(id).string(path).end()
}
pub(in crate::recording) fn status(id: u32, code: u32) -> Vec<u8> {
    Packet::of(101).u32(id).u32(code).string("words").string("").end()
}
fn handle(id: u32, handle: &str) -> Vec<u8> {
    Packet::of(102).u32(id).string(handle).end()
}
fn data(id: u32, content: &[u8]) -> Vec<u8> {
    Packet::of(103).u32(id).string(content).end()
}
#[allow(clippy::unnecessary_wraps, reason = "what it is compared with is an option")]
fn hex_of(content: &[u8]) -> Option<String> {
    Some(hex::encode(Sha256::digest(content)))
}

/// A channel and what was passed and seen on it.
#[derive(Default)]
struct Channel {
    reader: Reader,
    seen: Vec<Seen>,
    passed: [Vec<u8>; 2],
}

impl Channel {
    fn greeted() -> Self {
        let mut channel = Self::default();
        channel.up(&init());
        channel.down(&version());
        channel
    }
    fn feed(&mut self, side: Side, bytes: &[u8]) -> Result<(), Broken> {
        let passed = self.reader.feed(side, &Bytes::copy_from_slice(bytes), &mut self.seen)?;
        for piece in passed.pieces() {
            self.passed[side as usize].extend_from_slice(&piece);
        }
        Ok(())
    }
    #[track_caller]
    fn up(&mut self, bytes: &[u8]) {
        self.feed(Side::Client, bytes).unwrap();
    }
    #[track_caller]
    fn down(&mut self, bytes: &[u8]) {
        self.feed(Side::Device, bytes).unwrap();
    }
    #[track_caller]
    fn refuses(&mut self, side: Side, bytes: &[u8], what: What) {
        let before = self.passed[side as usize].clone();
        assert_eq!(self.feed(side, bytes), Err(Broken { side, what }));
        assert_eq!(self.passed[side as usize], before, "nothing of it went on");
        assert_eq!(self.feed(side, &init()), Err(Broken { side, what: What::Over }), "nor what comes after");
    }
    fn done(&self) -> Vec<&Operation> {
        let mut done = Vec::new();
        for seen in &self.seen {
            if let Seen::Done(operation) = seen {
                done.push(operation);
            }
        }
        done
    }
    #[track_caller]
    fn last(&self) -> &Operation {
        self.done().pop().unwrap()
    }
    /// Opens a file under the handle `h`.
    fn with_file(path: &str, flags: u32) -> Self {
        let mut channel = Self::greeted();
        channel.up(&open(1, path, flags));
        channel.down(&handle(1, "h"));
        channel
    }
    fn closed(mut self) -> Operation {
        self.up(&close(99, "h"));
        self.down(&status(99, 0));
        self.last().clone()
    }
    fn ended(self) -> Vec<Seen> {
        let mut seen = Vec::new();
        self.reader.finish(&mut seen);
        seen
    }
}

const UPLOAD: u32 = 2 | 8 | 16;

#[test]
fn a_write_of_nothing_goes_on_whole_wherever_it_is_cut() {
    let nothing = write(2, "h", 0, b"");
    for at in 1..nothing.len() {
        let mut channel = Channel::with_file("/tmp/a", UPLOAD);
        channel.up(&nothing[..at]);
        channel.up(&nothing[at..]);
        assert!(channel.passed[0].ends_with(&nothing), "its client waits for the answer; cut at {at}");
    }
}

#[test]
fn a_length_that_is_too_long_is_refused_with_the_byte_that_shows_it() {
    let mut channel = Channel::greeted();
    let mut packet = vec![];
    packet.put_u32(MAX_PACKET + 1);
    channel.up(&packet);
    channel.refuses(Side::Client, &[6], What::TooLong(MAX_PACKET + 1));
}

#[test]
fn an_upload_is_told_with_path_size_and_hash() {
    let mut channel = Channel::greeted();
    channel.up(&open(1, "/tmp/x", UPLOAD));
    let Some(Seen::Asked(asked)) = channel.seen.last() else { panic!("asked before the device is") };
    assert_eq!((asked.op, asked.path.as_ref().unwrap().text.as_str()), (Op::Open, "/tmp/x"));
    assert_eq!(asked.flags.as_deref(), Some("write,creat,trunc"));
    assert_eq!(asked.attributes.as_ref().unwrap().mode.as_deref(), Some("0644"));
    assert_eq!(asked.result, None);
    channel.down(&handle(1, "h"));
    let content: Vec<u8> = (0..100_000).map(|i: u32| (i >> 3).to_le_bytes()[0]).collect();
    for (i, part) in content.chunks(30_000).enumerate() {
        channel.up(&write(u32::try_from(i).unwrap() + 2, "h", i as u64 * 30_000, part));
    }
    // Answers in another order than the requests.
    for id in [5, 2, 4, 3] {
        channel.down(&status(id, 0));
    }
    let closed = channel.closed();
    assert_eq!((closed.op, closed.result.as_deref()), (Op::Close, Some("ok")));
    assert_eq!(closed.read, None);
    let written = Transfer { bytes: 100_000, sha256: hex_of(&content), why_none: None, whole: true };
    assert_eq!(closed.written, Some(written));
}

#[test]
fn a_download_is_told_with_path_size_and_hash() {
    let mut channel = Channel::with_file("/etc/motd", 1);
    assert!(!channel.seen.iter().any(|seen| matches!(seen, Seen::Asked(_))), "reading changes nothing");
    let content = vec![7; 40_000];
    channel.up(&read(2, "h", 0, 32_768));
    channel.up(&read(3, "h", 32_768, 32_768));
    channel.down(&data(2, &content[..32_768]));
    channel.down(&data(3, &content[32_768..]));
    channel.up(&read(4, "h", 40_000, 32_768));
    channel.down(&status(4, 1));
    let read = Transfer { bytes: 40_000, sha256: hex_of(&content), why_none: None, whole: true };
    assert_eq!(channel.closed().read, Some(read));
}

#[test]
fn a_download_that_stops_early_is_not_called_whole() {
    let mut channel = Channel::with_file("/etc/motd", 1);
    channel.up(&read(2, "h", 0, 100));
    channel.down(&data(2, &[1; 100]));
    let read = Transfer { bytes: 100, sha256: hex_of(&[1; 100]), why_none: None, whole: false };
    assert_eq!(channel.closed().read, Some(read));
}

#[test]
fn a_transfer_without_each_byte_once_and_in_order_has_no_hash_and_says_why() {
    type Case = (u32, &'static [(u64, u32)], WhyNone);
    let cases: [Case; 6] = [
        (UPLOAD, &[(10, 0)], WhyNone::NotFromStart),
        (UPLOAD, &[(0, 0), (20, 0)], WhyNone::OutOfOrder),
        (UPLOAD, &[(0, 0), (0, 0)], WhyNone::OutOfOrder),
        (UPLOAD, &[(0, 0), (10, 4)], WhyNone::WriteFailed),
        (2 | 4, &[(0, 0)], WhyNone::Appended),
        (2, &[], WhyNone::NothingTransferred),
    ];
    for (flags, writes, why) in cases {
        let mut channel = Channel::with_file("/tmp/x", flags);
        for (i, (offset, code)) in writes.iter().enumerate() {
            let id = u32::try_from(i).unwrap() + 10;
            channel.up(&write(id, "h", *offset, b"0123456789"));
            channel.down(&status(id, *code));
        }
        let written = channel.closed().written.unwrap();
        assert_eq!((written.sha256, written.why_none, written.whole), (None, Some(why), false));
    }
}

#[test]
fn an_empty_file_has_the_hash_of_nothing() {
    let written = Channel::with_file("/tmp/x", UPLOAD).closed().written.unwrap();
    assert_eq!((written.bytes, written.sha256, written.whole), (0, hex_of(b""), true));
}

#[test]
fn what_the_channels_end_leaves_open_is_told_as_unfinished() {
    let mut channel = Channel::with_file("/tmp/x", UPLOAD);
    channel.up(&write(2, "h", 0, b"half"));
    channel.up(&named(13, 3, "/tmp/y"));
    let seen = channel.ended();
    let Seen::Done(removed) = &seen[0] else { panic!() };
    assert_eq!((removed.op, removed.result.as_deref()), (Op::Remove, Some(NO_ANSWER)));
    let Seen::Done(closed) = &seen[1] else { panic!() };
    assert_eq!((closed.op, closed.result.as_deref()), (Op::Close, Some(NO_ANSWER)));
    let written = closed.written.as_ref().unwrap();
    assert_eq!((written.bytes, written.why_none), (4, Some(WhyNone::Unfinished)));
}

#[test]
fn setting_the_size_of_an_open_file_spoils_its_hash_unless_it_is_that_size() {
    for (size, why) in [(4, None), (0, Some(WhyNone::Changed)), (1 << 40, Some(WhyNone::Changed))] {
        // Not emptied when it was opened, as scp does it.
        let mut channel = Channel::with_file("/tmp/x", 2 | 8);
        channel.up(&write(2, "h", 0, b"four"));
        channel.down(&status(2, 0));
        channel.up(&Packet::of(10).u32(3).string("h").u32(1).u64(size).end());
        channel.down(&status(3, 0));
        assert_eq!(channel.last().attributes.as_ref().unwrap().size, Some(size));
        let written = channel.closed().written.unwrap();
        assert_eq!((written.why_none, written.whole), (why, why.is_none()));
    }
}

#[test]
fn every_operation_has_its_name_path_and_result() {
    let extended = |id: u32, name: &str| Packet::of(200).u32(id).string(name);
    let attributes = |kind, id: u32| Packet::of(kind).u32(id).string("/a").u32(4).u32(0o40_755).end();
    let two = |packet: Packet| packet.string("/a").string("/b").end();
    let cases = [
        (named(7, 5, "/a"), Op::Lstat, false),
        (named(17, 5, "/a"), Op::Stat, false),
        (attributes(9, 5), Op::Setstat, true),
        (named(13, 5, "/a"), Op::Remove, true),
        (attributes(14, 5), Op::Mkdir, true),
        (named(15, 5, "/a"), Op::Rmdir, true),
        (named(16, 5, "/a"), Op::Realpath, false),
        (named(19, 5, "/a"), Op::Readlink, false),
        (two(Packet::of(18).u32(5)), Op::Rename, true),
        (two(extended(5, "posix-rename@openssh.com")), Op::PosixRename, true),
        (extended(5, "statvfs@openssh.com").string("/a").end(), Op::Statvfs, false),
        (extended(5, "expand-path@openssh.com").string("/a").end(), Op::ExpandPath, false),
        (extended(5, "lsetstat@openssh.com").string("/a").u32(0).end(), Op::Lsetstat, true),
    ];
    for (request, op, changes) in cases {
        let mut channel = Channel::greeted();
        channel.up(&request);
        assert_eq!(matches!(channel.seen.last(), Some(Seen::Asked(_))), changes, "{op:?}");
        channel.down(&status(5, 3));
        let done = channel.last();
        assert_eq!((done.op, done.result.as_deref()), (op, Some("permission_denied")));
        assert_eq!(done.path.as_ref().unwrap().text, "/a");
        if matches!(op, Op::Rename | Op::PosixRename) {
            assert_eq!(done.to.as_ref().unwrap().text, "/b");
        }
    }
    // The target comes first: OpenSSH's order.
    for packet in [Packet::of(20).u32(5), extended(5, "hardlink@openssh.com")] {
        let mut channel = Channel::greeted();
        channel.up(&two(packet));
        channel.down(&status(5, 0));
        let done = channel.last();
        assert_eq!((&*done.path.as_ref().unwrap().text, &*done.to.as_ref().unwrap().text), ("/b", "/a"));
    }
}

#[test]
fn a_directory_is_told_with_how_many_names_it_had() {
    let mut channel = Channel::greeted();
    channel.up(&named(11, 1, "/etc"));
    channel.down(&handle(1, "d"));
    channel.up(&Packet::of(12).u32(2).string("d").end());
    let mut names = Packet::of(104).u32(2).u32(300);
    for _ in 0..300 {
        names = names.string("x".repeat(100)).string("-rw-r--r-- x").u32(0);
    }
    channel.down(&names.end());
    channel.up(&close(3, "d"));
    channel.down(&status(3, 0));
    assert_eq!((channel.last().op, channel.last().entries), (Op::Closedir, Some(300)));
}

#[test]
fn answers_with_a_name_or_a_size_are_told() {
    let mut channel = Channel::greeted();
    channel.up(&named(16, 1, "."));
    channel.down(&Packet::of(104).u32(1).u32(1).string("/home/diag").string("").u32(0).end());
    assert_eq!(channel.last().answer.as_ref().unwrap().text, "/home/diag");
    channel.up(&named(17, 1, "/x"));
    channel.down(&Packet::of(105).u32(1).u32(1).u64(77).end());
    assert_eq!(channel.last().size, Some(77));
}

#[test]
fn names_that_are_no_text_or_endless_are_kept_in_bounds() {
    let name = Name::from(&b"/a\xff"[..]);
    assert_eq!((name.text.as_str(), name.base64.as_deref()), ("/a\u{fffd}", Some("L2H/")));
    let long = Name::from(&[b'a'; 5000][..]);
    assert_eq!((long.text.len(), long.cut_from), (MAX_NAME, Some(5000)));
}

#[test]
fn what_cannot_be_accounted_for_does_not_pass() {
    let long = "h".repeat(300);
    let client: [(Vec<u8>, What); 16] = [
        (vec![0, 0, 0, 0, 1], What::Empty),
        (vec![0x7f, 0xff, 0xff, 0xff, 6], What::TooLong(0x7fff_ffff)),
        (vec![0, 4, 0, 0, 7], What::TooLong(0x40000)),
        (named(99, 5, "/a"), What::UnknownType(99)),
        (init(), What::UnknownType(1)),
        (Packet::of(13).u32(5).u32(100).end(), What::CutShort),
        (Packet::of(13).u32(5).string("/a").u32(0).end(), What::TooMuch),
        (Packet::of(200).u32(5).string("shell@example.com").end(), What::UnknownExtension),
        (Packet::of(9).u32(5).string("/a").u32(0x100).end(), What::UnknownAttributes),
        (close(5, "x"), What::UnknownHandle),
        (close(5, &long), What::LongHandle),
        (write(5, &long, 0, b"x"), What::LongHandle),
        (write(5, "x", 0, b"guessed"), What::UnknownHandle),
        (named(13, 1, "/a"), What::NumberInUse),
        (Packet::of(6).u32(5).string("h").u64(0).u32(9).end(), What::LengthsDisagree),
        (Packet::of(12).u32(5).string("h").end(), What::WrongHandle),
    ];
    for (bytes, what) in client {
        let mut channel = Channel::with_file("/tmp/x", UPLOAD);
        channel.up(&named(17, 1, "/tmp"));
        channel.refuses(Side::Client, &bytes, what);
    }
    let device: [(Vec<u8>, What); 9] = [
        (status(77, 0), What::UnknownNumber),
        (handle(5, "other"), What::WrongAnswer),
        (data(5, b"unasked"), What::WrongAnswer),
        (data(6, &[0; 11]), What::MoreThanAsked),
        (handle(7, "h"), What::HandleInUse),
        (status(7, 0), What::WrongAnswer),
        (Packet::of(150).u32(5).end(), What::UnknownType(150)),
        (Packet::of(103).u32(6).u32(4).u32(0).u32(0).end(), What::LengthsDisagree),
        (vec![0xff; 5], What::TooLong(u32::MAX)),
    ];
    for (bytes, what) in device {
        let mut channel = Channel::with_file("/tmp/x", 1);
        channel.up(&named(17, 5, "/a"));
        channel.up(&read(6, "h", 0, 10));
        channel.up(&open(7, "/b", 1));
        channel.refuses(Side::Device, &bytes, what);
    }
}

#[test]
fn a_handle_that_is_being_closed_takes_nothing_more() {
    let mut channel = Channel::with_file("/tmp/x", UPLOAD);
    channel.up(&close(2, "h"));
    // The device may give `h` to another file next; these bytes would be written there.
    channel.refuses(Side::Client, &write(3, "h", 0, b"elsewhere"), What::UnknownHandle);
}

#[test]
fn without_the_greeting_of_version_3_nothing_passes() {
    Channel::default().refuses(Side::Client, &named(13, 3, "/a"), What::NoGreeting);
    Channel::default().refuses(Side::Device, &version(), What::NoGreeting);
    let mut channel = Channel::default();
    channel.up(&init());
    channel.refuses(Side::Device, &Packet::of(2).u32(6).end(), What::Version(6));
    let mut channel = Channel::default();
    channel.up(&init());
    channel.refuses(Side::Device, b"Last login: never\r\n", What::TooLong(0x4c61_7374));
}

#[test]
fn requests_open_files_and_names_in_memory_are_bounded() {
    let mut channel = Channel::greeted();
    for id in 0..u32::try_from(MAX_OUTSTANDING).unwrap() {
        channel.up(&named(17, id, "/a"));
    }
    channel.refuses(Side::Client, &named(17, 9000, "/a"), What::TooManyRequests);

    let mut channel = Channel::greeted();
    for id in 0..u32::try_from(MAX_OPEN).unwrap() {
        channel.up(&open(id, "/a", 1));
        channel.down(&handle(id, &format!("{id}")));
    }
    channel.up(&open(5000, "/a", 1));
    channel.refuses(Side::Device, &handle(5000, "one more"), What::TooManyOpen);

    let mut channel = Channel::greeted();
    let long = "x".repeat(MAX_NAME);
    let fit = MAX_KEPT / MAX_NAME;
    for id in 0..u32::try_from(fit).unwrap() {
        channel.up(&named(17, id, &long));
    }
    channel.refuses(Side::Client, &named(17, 5000, &long), What::TooMuchKept);

    // And what is answered and closed makes room again.
    let mut channel = Channel::greeted();
    for _ in 0..3 * MAX_OPEN {
        channel.up(&open(1, &long, 1));
        channel.down(&handle(1, "h"));
        channel.up(&close(1, "h"));
        channel.down(&status(1, 0));
    }
}

#[test]
fn a_request_is_held_back_until_all_of_it_was_read() {
    let mut channel = Channel::greeted();
    let before = channel.passed[0].len();
    let request = named(13, 5, "/tmp/precious");
    let (last, first) = request.split_last().unwrap();
    channel.up(first);
    assert_eq!(channel.passed[0].len(), before, "not a byte of a request that is not on record");
    assert!(channel.seen.is_empty());
    channel.up(&[*last]);
    assert_eq!(channel.passed[0][before..], request[..]);
    assert!(matches!(channel.seen.last(), Some(Seen::Asked(_))));
}

#[test]
fn content_streams_through_without_being_held() {
    let mut channel = Channel::with_file("/tmp/x", UPLOAD);
    let request = write(2, "h", 0, &vec![9; 200_000]);
    let before = channel.passed[0].len();
    channel.up(&request[..50_000]);
    assert_eq!(channel.passed[0].len() - before, 50_000);
    channel.up(&request[50_000..]);
    assert_eq!(channel.passed[0][before..], request[..]);
}

/// A whole conversation, each side's bytes in the order in which they cross.
fn conversation() -> Vec<(Side, Vec<u8>)> {
    use Side::{Client, Device};
    let content: Vec<u8> = (0..5000_u32).map(|i| (i * 7).to_le_bytes()[0]).collect();
    vec![
        (Client, init()),
        (Device, version()),
        (Client, [named(17, 1, "/tmp"), open(2, "/tmp/x", UPLOAD)].concat()),
        (Device, [status(1, 2), handle(2, "h")].concat()),
        (Client, [write(3, "h", 0, &content[..3000]), write(4, "h", 3000, &content[3000..])].concat()),
        (Device, [status(3, 0), status(4, 0)].concat()),
        (Client, [close(5, "h"), open(6, "/tmp/x", 1)].concat()),
        (Device, [status(5, 0), handle(6, "h")].concat()),
        (Client, [read(7, "h", 0, 4000), read(8, "h", 4000, 4000), read(9, "h", 5000, 4000)].concat()),
        (Device, [data(7, &content[..4000]), data(8, &content[4000..]), status(9, 1)].concat()),
        (Client, close(10, "h")),
        (Device, status(10, 0)),
    ]
}

proptest! {
    #[test]
    fn cut_anywhere_a_conversation_passes_whole_and_is_told_the_same(cuts in prop::collection::vec(1usize..700, 1..60)) {
        let mut whole = Channel::default();
        let mut pieces = Channel::default();
        let mut cuts = cuts.into_iter().cycle();
        for (side, bytes) in conversation() {
            whole.feed(side, &bytes).unwrap();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                pieces.feed(side, piece).unwrap();
                rest = after;
            }
        }
        prop_assert_eq!(&pieces.seen, &whole.seen);
        prop_assert_eq!(&pieces.passed, &whole.passed);
        prop_assert_eq!(whole.done().len(), 5);
        let hashed = |one: &Transfer| one.sha256.is_some() && one.whole;
        let all = whole.done().into_iter().skip(2).all(|done| {
            done.read.iter().chain(&done.written).all(hashed)
        });
        prop_assert!(all, "every transfer has its hash");
    }

    #[test]
    fn garbage_is_refused_or_waited_for_and_never_a_panic(
        greeted in any::<bool>(),
        pieces in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)), 0..20),
    ) {
        let mut channel = if greeted { Channel::with_file("/a", 3) } else { Channel::default() };
        let mut fed = channel.passed.clone();
        for (up, bytes) in pieces {
            let side = if up { Side::Client } else { Side::Device };
            fed[side as usize].extend_from_slice(&bytes);
            if channel.feed(side, &bytes).is_err() {
                break;
            }
        }
        for side in [0, 1] {
            prop_assert!(fed[side].starts_with(&channel.passed[side]), "what passes is what came, in order");
        }
        channel.ended();
    }

    #[test]
    fn a_conversation_with_one_byte_changed_never_panics_and_passes_no_byte_that_did_not_come(
        at in any::<prop::sample::Index>(), to in any::<u8>(), step in any::<prop::sample::Index>(),
    ) {
        let mut talk = conversation();
        let broken = step.index(talk.len());
        let bytes = &mut talk[broken].1;
        let at = at.index(bytes.len());
        bytes[at] = to;
        let mut channel = Channel::default();
        let mut fed: [Vec<u8>; 2] = Default::default();
        for (side, bytes) in talk {
            fed[side as usize].extend_from_slice(&bytes);
            if channel.feed(side, &bytes).is_err() {
                break;
            }
        }
        for side in [0, 1] {
            prop_assert!(fed[side].starts_with(&channel.passed[side]));
        }
        channel.ended();
    }

    #[test]
    fn fields_of_any_packet_never_panic(kind in any::<u8>(), body in prop::collection::vec(any::<u8>(), 4..200), up in any::<bool>()) {
        let mut packet = u32::try_from(body.len() + 1).unwrap().to_be_bytes().to_vec();
        packet.push(kind);
        packet.extend_from_slice(&body);
        let mut channel = Channel::with_file("/a", 3);
        let _ = channel.feed(if up { Side::Client } else { Side::Device }, &packet);
        channel.ended();
    }
}
