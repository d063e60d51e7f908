//! What a recording may do to the terminal that it is played in.
//!
//! A recorded session can contain anything: titles and clipboard writes (OSC), links (OSC 8), queries
//! that make the terminal type an answer (CVE-2003-0063 and its many successors), mouse and paste modes,
//! window operations, device control strings. This is an allow-list: printable characters, the plain
//! movements, and the CSI sequences that draw. Everything else is dropped.

use daypass_protocol::text::is_hidden;

/// Longest CSI sequence that is passed on.
const MAX_SEQUENCE: usize = 64;
/// Largest number in one: nobody's terminal is larger, and `CSI b` repeats that often.
const MAX_NUMBER: u32 = 9999;

/// How much is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allow {
    /// A full-screen program: colours, cursor, erasing, the alternate screen.
    Drawing,
    /// The output of a command: colours only.
    Colours,
    /// Not for a terminal: text only.
    Text,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Ground,
    Escape,
    /// `ESC` and intermediates: one more character ends it.
    EscapeIntermediate(char),
    Csi(String),
    /// A CSI sequence that is already known to be too long; its end is awaited.
    CsiOverlong,
    /// OSC, DCS, SOS, PM or APC, until ST, or BEL for OSC.
    Text {
        bell_ends: bool,
    },
    TextEscape,
}

/// Keeps its state between pieces: a sequence cut in two is still one sequence.
#[derive(Clone, Debug)]
pub struct Filter {
    allow: Allow,
    state: State,
    /// Whether what was let through is on the alternate screen now.
    alternate: bool,
}

/// Leaves the alternate screen; the cursor is then where it was on the main one.
const LEAVE: &str = "\x1b[?1049l";
/// Puts the rest of the terminal back: scroll region, insertion, wrapping, cursor, character set, attributes. Resetting
/// the region moves the cursor, which is saved and put back.
const RESET: &str = "\x1b7\x1b[r\x1b8\x1b[4l\x1b[?7h\x1b[?25h\x1b(B\x1b[0m";
/// What changes to the alternate screen and back, in its three forms.
const ALTERNATE: [&str; 3] = ["47", "1047", "1049"];

impl Filter {
    pub fn new(allow: Allow) -> Self {
        Self { allow, state: State::Ground, alternate: false }
    }

    /// Puts the terminal back as it was before all that was let through. A screen that was not entered is not left:
    /// terminals move the cursor for it.
    pub fn reset(&self) -> String {
        let leave = if self.alternate { LEAVE } else { "" };
        format!("{leave}{RESET}")
    }

    pub fn pass(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            self.step(c, &mut out);
        }
        out
    }

    fn step(&mut self, c: char, out: &mut String) {
        // CAN and SUB end any sequence; ESC starts a new one, except that it may end a text with ST.
        match (c, &self.state) {
            ('\x18' | '\x1a', _) => {
                self.state = State::Ground;
                return;
            }
            ('\x1b', State::Text { .. }) => {
                self.state = State::TextEscape;
                return;
            }
            ('\x1b', _) => {
                self.state = State::Escape;
                return;
            }
            _ => {}
        }
        self.state = match std::mem::replace(&mut self.state, State::Ground) {
            State::Ground => {
                self.print(c, out);
                State::Ground
            }
            State::EscapeIntermediate(intermediate) => {
                // G0 as ASCII or line drawing: what borders are made of.
                if self.allow == Allow::Drawing && intermediate == '(' && matches!(c, 'B' | '0') {
                    out.extend(['\x1b', '(', c]);
                }
                State::Ground
            }
            State::Csi(sequence) => self.csi(sequence, c, out),
            State::CsiOverlong => {
                if matches!(c, '\x40'..='\x7e') {
                    State::Ground
                } else {
                    State::CsiOverlong
                }
            }
            State::Text { bell_ends: true } if c == '\x07' => State::Ground,
            State::Text { bell_ends } => State::Text { bell_ends },
            State::TextEscape if c == '\\' => State::Ground,
            // ESC and anything but a backslash within a text: the text is over, the sequence begins.
            State::Escape | State::TextEscape => self.escape(c, out),
        };
    }

    fn print(&self, c: char, out: &mut String) {
        match c {
            '\n' | '\t' => out.push(c),
            '\r' | '\x08' if self.allow == Allow::Drawing => out.push(c),
            // In text not even CR, which would let a line be written over.
            '\0'..='\x1f' | '\x7f' => {}
            c if is_hidden(c) => {
                // Joiners and variation selectors carry no meaning that a reviewer would miss.
                if !matches!(c, '\u{200d}' | '\u{200c}' | '\u{fe00}'..='\u{fe0f}') {
                    out.push('\u{fffd}');
                }
            }
            c => out.push(c),
        }
    }

    fn escape(&self, c: char, out: &mut String) -> State {
        match c {
            '[' => State::Csi(String::new()),
            ']' => State::Text { bell_ends: true },
            'P' | 'X' | '^' | '_' => State::Text { bell_ends: false },
            ' '..='/' => State::EscapeIntermediate(c),
            // Save and restore the cursor; index, next line, reverse index.
            '7' | '8' | 'D' | 'E' | 'M' if self.allow == Allow::Drawing => {
                out.extend(['\x1b', c]);
                State::Ground
            }
            // A full reset would also forget the person's own settings: a clear screen has to do.
            'c' if self.allow == Allow::Drawing => {
                out.push_str("\x1b[0m\x1b[r\x1b[H\x1b[2J");
                State::Ground
            }
            _ => State::Ground,
        }
    }

    fn csi(&mut self, mut sequence: String, c: char, out: &mut String) -> State {
        match c {
            '\x40'..='\x7e' => {
                if self.may_draw(&sequence, c) {
                    let modes = sequence.strip_prefix('?').unwrap_or_default();
                    if modes.split(';').any(|mode| ALTERNATE.contains(&mode)) {
                        self.alternate = c == 'h';
                    }
                    out.push_str("\x1b[");
                    out.push_str(&sequence);
                    out.push(c);
                }
                State::Ground
            }
            '\x20'..='\x3f' if sequence.len() < MAX_SEQUENCE => {
                sequence.push(c);
                State::Csi(sequence)
            }
            '\x20'..='\x3f' => State::CsiOverlong,
            // Terminals act on a control character inside a sequence; here it is dropped.
            '\0'..='\x1f' | '\x7f' => State::Csi(sequence),
            // Nothing else belongs here: the sequence is broken off.
            _ => {
                self.print(c, out);
                State::Ground
            }
        }
    }

    fn may_draw(&self, parameters: &str, end: char) -> bool {
        let numbers = |text: &str, separators: &[char]| {
            text.split(separators).all(|n| n.is_empty() || n.parse::<u32>().is_ok_and(|n| n <= MAX_NUMBER))
                && text.chars().all(|c| c.is_ascii_digit() || separators.contains(&c))
        };
        if end == 'm' {
            return self.allow != Allow::Text && numbers(parameters, &[';', ':']);
        }
        if self.allow != Allow::Drawing {
            return false;
        }
        if let Some(modes) = parameters.strip_prefix('?') {
            // Wrapping, cursor blinking and visibility, the saved cursor, the alternate screen.
            return matches!(end, 'h' | 'l')
                && !modes.is_empty()
                && modes
                    .split(';')
                    .all(|mode| matches!(mode, "7" | "12" | "25" | "1048") || ALTERNATE.contains(&mode));
        }
        match end {
            // Movement, erasing, inserting, deleting, scrolling, tabs, repetition, scroll region.
            'A'..='I'
            | 'K'..='M'
            | 'P'
            | 'S'
            | 'T'
            | 'X'
            | 'Z'
            | '@'
            | '`'
            | 'a'
            | 'b'
            | 'd'
            | 'e'
            | 'f'
            | 'g'
            | 'r' => numbers(parameters, &[';']),
            // `3 J` would take the person's scrollback with it.
            'J' => matches!(parameters, "" | "0" | "1" | "2"),
            // Insert mode.
            'h' | 'l' => parameters == "4",
            // With parameters these are margins and keyboard protocols.
            's' | 'u' => parameters.is_empty(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(text: &str) -> String {
        Filter::new(Allow::Drawing).pass(text)
    }

    #[test]
    fn what_draws_is_passed_on() {
        for text in [
            "plain é 日本\r\n\tx\x08",
            "\x1b[1;31mred\x1b[0m\x1b[38;5;208m\x1b[38:2::1:2:3m",
            "\x1b[2J\x1b[H\x1b[10;20H\x1b[K\x1b[3A\x1b[2L\x1b[1P\x1b[5X\x1b[3@\x1b[1;24r",
            "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[?25h\x1b[?1049l",
            "\x1b7\x1b8\x1bM\x1b(0lqk\x1b(B",
            "\x1b[s\x1b[u\x1b[4h\x1b[4l",
        ] {
            assert_eq!(drawn(text), text);
        }
    }

    #[test]
    fn the_alternate_screen_is_left_only_where_it_was_entered() {
        for (text, entered) in [
            ("plain", false),
            ("\x1b[?1049h", true),
            ("\x1b[?25;1047h\x1b[?25l", true),
            ("\x1b[?1049h\x1b[?1049l", false),
            ("\x1b[1049h", false),
            ("\x1b]0;\x1b[?1049h", true),
        ] {
            let mut filter = Filter::new(Allow::Drawing);
            filter.pass(text);
            assert_eq!(filter.reset().starts_with(LEAVE), entered, "{text:?}");
        }
    }

    #[test]
    fn titles_clipboard_links_and_control_strings_are_dropped() {
        for text in [
            "\x1b]0;title\x07",
            "\x1b]0;title\x1b\\",
            "\x1b]52;c;aGVsbG8=\x07",
            "\x1b]8;;https://evil.example\x1b\\",
            "\x1b]1337;File=:AAAA\x07",
            "\x1bPq#0;2;0;0;0\x1b\\",
            "\x1bP$qm\x1b\\",
            "\x1b_Gf=100;AAAA\x1b\\",
            "\x1b^private\x1b\\",
            "\x1bXstring\x1b\\",
        ] {
            assert_eq!(drawn(&format!("a{text}b")), "ab", "{text:?}");
        }
        // A link's words stay.
        assert_eq!(drawn("\x1b]8;;https://evil\x1b\\click\x1b]8;;\x1b\\"), "click");
    }

    #[test]
    fn questions_that_a_terminal_would_answer_are_dropped() {
        for text in [
            "\x1b[c",
            "\x1b[>c",
            "\x1b[=c",
            "\x1b[5n",
            "\x1b[6n",
            "\x1b[?6n",
            "\x1b[21t",
            "\x1b[14t",
            "\x1b[x",
            "\x1b[?1$p",
            "\x1b[>q",
            "\x1bZ",
            "\x1b[1;1;1;1;1;1*y",
            "\x05",
            "\x1b]11;?\x07",
        ] {
            assert_eq!(drawn(text), "", "{text:?}");
        }
    }

    #[test]
    fn modes_that_outlive_the_replay_are_dropped() {
        for text in [
            "\x1b[?1000h",
            "\x1b[?1006h",
            "\x1b[?2004h",
            "\x1b[?1004h",
            "\x1b[?1h",
            "\x1b[?25;1000h",
            "\x1b[>4;2m",
            "\x1b[>1u",
            "\x1b[=1u",
            "\x1b[8;1;1t",
            "\x1b[3J",
            "\x1b[!p",
            "\x1b[ q",
            "\x1b#8",
            "\x1b=",
            "\x1b(A",
            "\x0e",
            "\x07",
            "\x1b[20h",
        ] {
            assert_eq!(drawn(text), "", "{text:?}");
        }
        assert!(!drawn("\x1bc").contains("\x1bc"));
    }

    #[test]
    fn eight_bit_controls_and_hidden_characters_do_nothing() {
        assert_eq!(drawn("\u{9b}2J"), "\u{fffd}2J");
        assert_eq!(drawn("\u{9d}0;x\x07"), "\u{fffd}0;x");
        assert_eq!(drawn("a\u{202e}b"), "a\u{fffd}b");
    }

    #[test]
    fn a_sequence_cut_anywhere_is_still_one_sequence() {
        let text = "a\x1b]52;c;aGVsbG8=\x1b\\b\x1b[31mc\x1b[6nd\x1bPq\x1b\\e\x1b]0;t\x07f";
        let whole = drawn(text);
        assert_eq!(whole, "ab\x1b[31mcdef");
        for at in 0..=text.len() {
            let mut filter = Filter::new(Allow::Drawing);
            assert_eq!(filter.pass(&text[..at]) + &filter.pass(&text[at..]), whole, "cut at {at}");
        }
    }

    #[test]
    fn a_sequence_within_a_sequence_does_not_get_through() {
        assert_eq!(drawn("\x1b]0;\x1b[31mred"), "\x1b[31mred", "ESC ends a text");
        assert_eq!(drawn("\x1b[\x1b]52;c;x\x07m"), "m");
        assert_eq!(drawn("\x1b[3\x181m"), "1m");
        assert_eq!(drawn("\x1b\x1b]0;x\x07y"), "y");
        assert_eq!(drawn("\x1b]0;x\x1b\x1b]52;c;x\x07y"), "y");
    }

    #[test]
    fn numbers_and_lengths_are_bounded() {
        assert_eq!(drawn("\x1b[99999b"), "");
        assert_eq!(drawn("\x1b[4294967297A"), "");
        assert_eq!(drawn(&format!("\x1b[{}mx", "1;".repeat(1000))), "x");
        let mut filter = Filter::new(Allow::Drawing);
        assert_eq!(filter.pass(&format!("\x1b]{}", "x".repeat(1_000_000))), "");
    }

    #[test]
    fn the_output_of_a_command_may_be_coloured_and_no_more() {
        let mut filter = Filter::new(Allow::Colours);
        assert_eq!(
            filter.pass("a\x1b[31mb\x1b[0m\x1b[2J\x1b[H\x1b7\x1bc\x1b(0\r\nc\rd\x08"),
            "a\x1b[31mb\x1b[0m\ncd"
        );
        assert_eq!(Filter::new(Allow::Text).pass("a\x1b[31mb\x1b[0m\n"), "ab\n");
    }
}
