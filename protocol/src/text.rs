//! Text that people wrote and other people, terminals and logs will read.
//!
//! A reason, a ticket or a name reaches an approver's phone, a terminal, a log and a certificate's key
//! id. Characters that move the cursor, reorder what stands beside them or cannot be seen are refused
//! where text comes in from a person, and replaced where it comes from a system that will not be argued
//! with (an identity provider).

/// Longest reason or comment, in bytes of UTF-8.
pub const MAX_REASON: usize = 2000;
/// Longest ticket reference, in bytes of UTF-8.
pub const MAX_TICKET: usize = 100;
/// Longest command that is asked for alone, in bytes of UTF-8: it has to fit in a certificate, and on a page.
pub const MAX_COMMAND: usize = 2000;
/// Longest name of a person, team or label, in bytes of UTF-8.
pub const MAX_NAME: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitText {
    #[error("{what} is {len} bytes long; at most {max} are allowed")]
    TooLong { what: &'static str, len: usize, max: usize },
    #[error(
        "{what} contains U+{code:04X} at byte {at}, a control or invisible formatting character; write it without"
    )]
    Hidden { what: &'static str, code: u32, at: usize },
    #[error("{what} is empty, or starts or ends with white space; write it without")]
    Blank { what: &'static str },
}

/// Characters that a reader cannot see or that change how their neighbours are shown: C0 and C1
/// controls, bidirectional marks and isolates (CVE-2021-42574), zero-width and other default-ignorable
/// formatting characters, variation of line ends, and private or tag characters.
pub fn is_hidden(c: char) -> bool {
    matches!(u32::from(c),
        0x00..=0x1f | 0x7f..=0x9f
        | 0x00ad | 0x034f | 0x061c | 0x115f..=0x1160 | 0x17b4..=0x17b5 | 0x180b..=0x180f
        | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0x3164
        | 0xd800..=0xf8ff | 0xfe00..=0xfe0f | 0xfeff | 0xffa0 | 0xfff0..=0xfffb
        | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a | 0xe0000..=0x10_ffff)
}

/// Text from a person: trimmed, bounded, and free of hidden characters, or an error that says where.
pub fn visible_line(what: &'static str, text: &str, max: usize) -> Result<String, UnfitText> {
    check(what, text, max, is_hidden)
}

/// As [`visible_line`], but line feeds and tabs may stand in it.
pub fn visible_lines(what: &'static str, text: &str, max: usize) -> Result<String, UnfitText> {
    check(what, text, max, |c| is_hidden(c) && c != '\n' && c != '\t')
}

/// A command that somebody asks for alone. Nothing of it is changed: what is shown to who approves is, byte
/// for byte, what may run.
pub fn visible_command(text: &str) -> Result<(), UnfitText> {
    let what = "the command";
    let shown = visible_line(what, text, MAX_COMMAND)?;
    if shown.is_empty() || shown != text { Err(UnfitText::Blank { what }) } else { Ok(()) }
}

fn check(what: &'static str, text: &str, max: usize, unfit: fn(char) -> bool) -> Result<String, UnfitText> {
    let text = text.trim();
    if text.len() > max {
        return Err(UnfitText::TooLong { what, len: text.len(), max });
    }
    match text.char_indices().find(|(_, c)| unfit(*c)) {
        Some((at, c)) => Err(UnfitText::Hidden { what, code: u32::from(c), at }),
        None => Ok(text.to_owned()),
    }
}

/// Text from a system: hidden characters become U+FFFD, and what is past `max` bytes is cut at a
/// character's border.
pub fn made_visible(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    for c in text.trim().chars().map(|c| if is_hidden(c) { '\u{fffd}' } else { c }) {
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(c);
    }
    out
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_taken_as_it_is_or_not_at_all() {
        for good in ["uptime", "systemctl status modem", "echo 'a  b' | wc -c", "printf ü"] {
            assert_eq!(visible_command(good), Ok(()), "{good}");
        }
        for bad in ["", " ", " ls", "ls ", "ls\n", "ls\nrm x", "a\tb", "a\x1b[2Kb", "a\u{202e}b", "a\0b"] {
            assert!(visible_command(bad).is_err(), "{bad:?}");
        }
        assert!(visible_command(&"x".repeat(MAX_COMMAND)).is_ok());
        assert!(visible_command(&"x".repeat(MAX_COMMAND + 1)).is_err());
    }

    #[test]
    fn hidden_characters_are_refused_with_their_place() {
        for (text, code, at) in [
            ("a\x1b[2J", 0x1b, 1),
            ("pay \u{202e}load", 0x202e, 4),
            ("x\u{200b}", 0x200b, 1),
            ("a\nb", 0x0a, 1),
        ] {
            assert_eq!(
                visible_line("reason", text, 100),
                Err(UnfitText::Hidden { what: "reason", code, at })
            );
        }
        assert_eq!(visible_lines("reason", "a\nb", 100).as_deref(), Ok("a\nb"));
        assert_eq!(
            visible_line("reason", " Überhitzung an Säule 3 — 日本 ", 100).as_deref(),
            Ok("Überhitzung an Säule 3 — 日本")
        );
    }

    #[test]
    fn a_reason_of_a_hundred_kilobytes_is_refused() {
        let long = "a".repeat(100_000);
        assert_eq!(
            visible_line("reason", &long, MAX_REASON),
            Err(UnfitText::TooLong { what: "reason", len: 100_000, max: MAX_REASON })
        );
    }

    #[test]
    fn text_from_a_system_is_made_visible_and_cut_at_a_character() {
        assert_eq!(made_visible("An\u{202e}a\x07", 100), "An\u{fffd}a\u{fffd}");
        assert_eq!(made_visible("ééé", 5), "éé");
    }
}
