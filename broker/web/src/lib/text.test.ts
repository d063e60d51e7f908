import { describe, expect, it } from 'vitest';
import { isHidden, pieces, visible } from './text';

describe('text from people and devices', () => {
  it('shows controls and reordering marks instead of obeying them', () => {
    expect(visible('a\u001b[2J')).toBe('a^[[2J');
    expect(visible('pay \u202eload')).toBe('pay ⟨U+202E⟩load');
    expect(visible('x\u200by')).toBe('x⟨U+200B⟩y');
    expect(visible('\u009b31m\u007f')).toBe('⟨U+009B⟩31m^?');
  });

  it('keeps line feeds and tabs only where lines are wanted', () => {
    expect(visible('a\n\tb')).toBe('a^J^Ib');
    expect(visible('a\n\tb', true)).toBe('a\n\tb');
    expect(visible('a\rb', true)).toBe('a^Mb');
  });

  it('leaves ordinary writing of any language as it is', () => {
    for (const text of ['Überhitzung an Säule 3 — 日本', 'שלום', '🛠 ok', '<b>"&amp;'])
      expect(pieces(text)).toEqual([{ text, hidden: false }]);
  });

  it('says apart what was written and what is a mark', () => {
    expect(pieces('^[\u001b\u0007z')).toEqual([
      { text: '^[', hidden: false },
      { text: '^[^G', hidden: true },
      { text: 'z', hidden: false },
    ]);
  });

  it('hides what protocol/src/text.rs hides', () => {
    for (const code of [0xad, 0x61c, 0x2066, 0xfeff, 0xe0041, 0xd800, 0xf8ff, 0x10ffff])
      expect(isHidden(code), code.toString(16)).toBe(true);
    for (const code of [0x20, 0xa0, 0x2010, 0x2070, 0xfffd, 0x1f600])
      expect(isHidden(code), code.toString(16)).toBe(false);
  });
});
