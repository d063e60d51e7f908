import { describe, expect, it } from 'vitest';
import {
  bytes,
  countdown,
  duration,
  exact,
  iso,
  moment,
  relative,
  shorterChoices,
  signInCode,
} from './format';

const NOON = Date.UTC(2026, 10, 22, 12, 0, 0);

describe('durations and times', () => {
  it('writes a duration in two units at most', () => {
    expect([0, 45, 65, 240, 1800, 3600, 5400, 86400, 180000].map(duration)).toEqual([
      '0 s',
      '45 s',
      '1 min 5 s',
      '4 min',
      '30 min',
      '1 h',
      '1 h 30 min',
      '1 day',
      '2 days 2 h',
    ]);
    expect(duration(-5)).toBe('0 s');
  });

  it('says how far away a moment is', () => {
    expect(relative(NOON - 3000, NOON)).toBe('just now');
    expect(relative(NOON - 240_000, NOON)).toBe('4 min ago');
    expect(relative(NOON + 1_200_000, NOON)).toBe('in 20 min');
    expect(relative(NOON - 86_400_000, NOON)).toBe('1 day ago');
  });

  it('counts down to zero and stays there', () => {
    expect(countdown(NOON + 3_729_000, NOON)).toBe('1:02:09');
    expect(countdown(NOON + 65_000, NOON)).toBe('1:05');
    expect(countdown(NOON - 1, NOON)).toBe('0:00');
  });

  it('names the day when it is not today, and the zone in the exact time', () => {
    expect(moment(NOON, NOON, 'UTC')).toBe('12:00');
    expect(moment(NOON - 86_400_000, NOON, 'UTC')).toBe('21 Nov, 12:00');
    expect(exact(NOON, 'UTC')).toContain('12:00:00 UTC');
  });

  it('survives a moment that is none', () => {
    for (const broken of [Number.NaN, 9e15]) {
      expect(exact(broken)).toBe('unknown time');
      expect(moment(broken, NOON)).toBe('unknown time');
      expect(iso(broken)).toBe('');
    }
  });

  it('offers an approver only what was asked or less', () => {
    expect(shorterChoices(3600)).toEqual([300, 600, 900, 1800, 2700, 3600]);
    expect(shorterChoices(120)).toEqual([120]);
  });

  it('writes sizes', () => {
    expect([12, 1500, 45_000, 3_200_000].map(bytes)).toEqual(['12 B', '1.5 kB', '45 kB', '3.2 MB']);
  });

  it('reads a sign-in code however it was typed', () => {
    for (const typed of ['abcd-efgh', 'ABCDEFGH', ' abcd efgh ']) expect(signInCode(typed)).toBe('ABCD-EFGH');
    expect(signInCode('')).toBe('');
  });
});
