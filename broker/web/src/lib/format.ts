// How times, durations and sizes are written.

/** `45 s`, `30 min`, `1 h 30 min`, `2 days`: two units at most. */
export function duration(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  const days = Math.floor(s / 86400);
  const hours = Math.floor((s % 86400) / 3600);
  const minutes = Math.floor((s % 3600) / 60);
  const rest = s % 60;
  const words = (a: string, b: string, second: number) => (second ? `${a} ${b}` : a);
  if (days) return words(days === 1 ? '1 day' : `${days} days`, `${hours} h`, hours);
  if (hours) return words(`${hours} h`, `${minutes} min`, minutes);
  if (minutes) return minutes < 5 ? words(`${minutes} min`, `${rest} s`, rest) : `${minutes} min`;
  return `${rest} s`;
}

/** `just now`, `4 min ago`, `in 20 min`. */
export function relative(at: number, now: number): string {
  const s = Math.round((at - now) / 1000);
  if (Math.abs(s) < 10) return 'just now';
  const far = coarse(Math.abs(s));
  return s < 0 ? `${far} ago` : `in ${far}`;
}

function coarse(s: number): string {
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.round(s / 60)} min`;
  if (s < 86400) return `${Math.round(s / 3600)} h`;
  const days = Math.round(s / 86400);
  return days === 1 ? '1 day' : `${days} days`;
}

/** Countdown to a moment, never negative: `12:05`, `1:02:09`. */
export function countdown(at: number, now: number): string {
  const s = Math.max(0, Math.ceil((at - now) / 1000));
  const two = (n: number) => String(n).padStart(2, '0');
  const h = Math.floor(s / 3600);
  const m = Math.floor((s % 3600) / 60);
  return h ? `${h}:${two(m)}:${two(s % 60)}` : `${m}:${two(s % 60)}`;
}

/** To the second, in the reader's zone, with the zone named. */
export function exact(at: number, zone?: string): string {
  const when = new Date(at);
  if (Number.isNaN(when.getTime())) return 'unknown time';
  return new Intl.DateTimeFormat('en-GB', {
    dateStyle: 'medium',
    timeStyle: 'long',
    ...(zone ? { timeZone: zone } : {}),
  }).format(when);
}

/** For a list: the clock time today, otherwise day and time. */
export function moment(at: number, now: number, zone?: string): string {
  const when = new Date(at);
  if (Number.isNaN(when.getTime())) return 'unknown time';
  const named = zone ? { timeZone: zone } : {};
  const day = (ms: number) => new Intl.DateTimeFormat('en-CA', { dateStyle: 'short', ...named }).format(ms);
  const time = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', ...named }).format(
    when,
  );
  if (day(at) === day(now)) return time;
  const date = new Intl.DateTimeFormat('en-GB', {
    day: 'numeric',
    month: 'short',
    ...(when.getFullYear() === new Date(now).getFullYear() ? {} : { year: 'numeric' as const }),
    ...named,
  }).format(when);
  return `${date}, ${time}`;
}

/** For `datetime=`; empty where the moment is not one. */
export function iso(at: number): string {
  const when = new Date(at);
  return Number.isNaN(when.getTime()) ? '' : when.toISOString();
}

export function bytes(n: number): string {
  if (n < 1000) return `${n} B`;
  if (n < 1_000_000) return `${(n / 1000).toFixed(n < 10_000 ? 1 : 0)} kB`;
  if (n < 1_000_000_000) return `${(n / 1_000_000).toFixed(1)} MB`;
  return `${(n / 1_000_000_000).toFixed(1)} GB`;
}

const STEPS = [300, 600, 900, 1800, 2700, 3600, 7200, 10800, 14400, 21600, 28800, 43200, 86400];

/** What an approver may shorten a request to: the asked duration last, familiar shorter ones before it. */
export function shorterChoices(asked: number): number[] {
  return [...STEPS.filter((step) => step < asked), asked];
}

/** A CLI sign-in code as it is printed: `ABCD-EFGH`. */
export function signInCode(typed: string): string {
  const bare = typed.toUpperCase().replace(/[^A-Z0-9]/g, '');
  return bare.length > 4 ? `${bare.slice(0, 4)}-${bare.slice(4, 12)}` : bare;
}
