//! Tables: aligned by what characters occupy on screen, and harmless whatever is in them.

use super::{Colour, Ui, clean, coloured};
use crate::failure::Failure;
use unicode_width::UnicodeWidthStr as _;

#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    colour: Colour,
}

impl Cell {
    /// Text from anywhere; made harmless here.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self::coloured(text, Colour::Plain)
    }

    pub fn coloured(text: impl AsRef<str>, colour: Colour) -> Self {
        Self { text: clean(text.as_ref()), colour }
    }

    /// At most so many columns; an ellipsis says that there was more.
    #[must_use]
    pub fn cut(mut self, columns: usize) -> Self {
        if self.text.width() > columns {
            while self.text.width() >= columns && self.text.pop().is_some() {}
            self.text.push('…');
        }
        self
    }
}

fn rendered(head: &[&str], rows: &[Vec<Cell>], colours: bool) -> String {
    let head = head.iter().map(|title| Cell::coloured(title, Colour::Faint)).collect::<Vec<_>>();
    let lines: Vec<&Vec<Cell>> = std::iter::once(&head).chain(rows).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|at| {
            lines.iter().filter_map(|line| line.get(at)).map(|cell| cell.text.width()).max().unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for line in lines {
        for (at, (cell, width)) in line.iter().zip(&widths).enumerate() {
            out.push_str(&coloured(&cell.text, cell.colour, colours));
            if at + 1 < line.len() {
                out.extend(std::iter::repeat_n(' ', width - cell.text.width() + 2));
            }
        }
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
    out
}

impl Ui {
    pub fn table(&self, head: &[&str], rows: &[Vec<Cell>]) -> Result<(), Failure> {
        self.data(&rendered(head, rows, self.colours_out()))
    }

    /// Names and values, one below the other. Those without a value are left out.
    pub fn facts(&self, facts: &[(&str, Option<String>)]) -> Result<(), Failure> {
        let shown = facts.iter().filter(|(_, value)| value.is_some());
        let width = shown.map(|(name, _)| name.width()).max().unwrap_or(0);
        let mut out = String::new();
        for (name, value) in facts {
            let Some(value) = value else { continue };
            let gap = " ".repeat(width - name.width() + 2);
            out.push_str(&coloured(name, Colour::Faint, self.colours_out()));
            out.push_str(&gap);
            out.push_str(&clean(value));
            out.push('\n');
        }
        self.data(&out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_by_width_on_screen() {
        let rows = vec![
            vec![Cell::new("gw-1"), Cell::new("日本"), Cell::new("x")],
            vec![Cell::new("gw-0042"), Cell::new("é"), Cell::new("")],
        ];
        assert_eq!(
            rendered(&["DEVICE", "SITE", "STATE"], &rows, false),
            "DEVICE   SITE  STATE\ngw-1     日本  x\ngw-0042  é\n"
        );
    }

    #[test]
    fn a_cell_cannot_act_on_the_terminal_or_start_a_line() {
        let rows = vec![vec![Cell::new("a\x1b]0;owned\x07\nfake  row\u{202e}")]];
        let out = rendered(&["REASON"], &rows, false);
        assert_eq!(out.lines().count(), 2, "{out:?}");
        assert!(!out.chars().any(|c| c != '\n' && daypass_protocol::text::is_hidden(c)), "{out:?}");
    }

    #[test]
    fn a_long_cell_is_cut_to_its_columns() {
        assert_eq!(Cell::new("日本語テキスト").cut(6).text, "日本…");
        assert_eq!(Cell::new("abc").cut(3).text, "abc");
        assert_eq!(Cell::new("abcd").cut(3).text, "ab…");
    }

    #[test]
    fn colours_do_not_count_as_width() {
        let rows = vec![vec![Cell::coloured("on", Colour::Good), Cell::new("x")]];
        assert_eq!(
            rendered(&["A", "B"], &rows, true),
            "\x1b[2mA\x1b[0m   \x1b[2mB\x1b[0m\n\x1b[32mon\x1b[0m  x\n"
        );
    }
}
