// Text that people and devices wrote, made safe to look at. It is only ever put into text nodes; here it is
// made honest as well: what cannot be seen, or would reorder its neighbours, is shown as a mark.
// The set is that of protocol/src/text.rs.

const HIDDEN: readonly (readonly [number, number])[] = [
  [0x00, 0x1f],
  [0x7f, 0x9f],
  [0xad, 0xad],
  [0x34f, 0x34f],
  [0x61c, 0x61c],
  [0x115f, 0x1160],
  [0x17b4, 0x17b5],
  [0x180b, 0x180f],
  [0x200b, 0x200f],
  [0x2028, 0x202e],
  [0x2060, 0x206f],
  [0x3164, 0x3164],
  [0xd800, 0xf8ff],
  [0xfe00, 0xfe0f],
  [0xfeff, 0xfeff],
  [0xffa0, 0xffa0],
  [0xfff0, 0xfffb],
  [0x1bca0, 0x1bca3],
  [0x1d173, 0x1d17a],
  [0xe0000, 0x10ffff],
];

/** Controls, bidirectional marks (CVE-2021-42574), zero-width and other characters a reader cannot see. */
export function isHidden(code: number): boolean {
  return HIDDEN.some(([from, to]) => from <= code && code <= to);
}

/** What stands for a hidden character: `^[` as cat -v writes it for C0, the code point for the rest. */
export function mark(code: number): string {
  if (code <= 0x1f || code === 0x7f) return '^' + String.fromCodePoint(code ^ 0x40);
  return `⟨U+${code.toString(16).toUpperCase().padStart(4, '0')}⟩`;
}

export interface Piece {
  text: string;
  /** The piece is a mark for a hidden character. */
  hidden: boolean;
}

/** Splits text into what can be shown as it is and marks. Line feeds and tabs stand when `lines` is set. */
export function pieces(text: string, lines = false): Piece[] {
  const out: Piece[] = [];
  let plain = '';
  for (const char of text) {
    const code = char.codePointAt(0) ?? 0;
    if (!isHidden(code) || (lines && (char === '\n' || char === '\t'))) {
      plain += char;
      continue;
    }
    if (plain) out.push({ text: plain, hidden: false });
    plain = '';
    const last = out.at(-1);
    if (last?.hidden) last.text += mark(code);
    else out.push({ text: mark(code), hidden: true });
  }
  if (plain) out.push({ text: plain, hidden: false });
  return out;
}

/** As one string, for titles and announcements. */
export function visible(text: string, lines = false): string {
  return pieces(text, lines)
    .map((piece) => piece.text)
    .join('');
}
