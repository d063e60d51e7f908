// Keeping what is on screen current.

import { awaitRequest, getRequest } from '../api/broker';
import { ApiError } from '../api/client';
import type { Request } from '../api/types';

/** Waits, or stops waiting when the signal says so. */
export function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((done) => {
    if (signal.aborted) return done();
    const timer = setTimeout(done, ms);
    signal.addEventListener('abort', () => (clearTimeout(timer), done()), { once: true });
  });
}

/** Grows with each failure in a row, to half a minute; spread, so that consoles do not come back all at once. */
export function backoffMs(failures: number, random: () => number = Math.random): number {
  return Math.min(30_000, 1000 * 2 ** failures) * (0.5 + random() / 2);
}

export interface Watcher {
  seen(request: Request): void;
  /** Set while the broker does not answer; undefined once it does again. */
  troubled(cause: unknown): void;
}

/**
 * Follows one request until it cannot change any more. While it waits, the broker holds each answer back until
 * the state changes; a live grant is asked for every few seconds.
 */
export async function watchRequest(id: string, watcher: Watcher, signal: AbortSignal): Promise<void> {
  let last: Request | undefined;
  let failures = 0;
  while (!signal.aborted) {
    try {
      const asked = Date.now();
      const request: Request =
        last?.state === 'pending'
          ? await awaitRequest(id, 'pending', 25, signal)
          : await getRequest(id, signal);
      if (signal.aborted) return;
      watcher.seen(request);
      if (failures) watcher.troubled(undefined);
      failures = 0;
      const settled = request.state !== 'pending' && request.grant?.state !== 'live';
      if (settled) return;
      if (request.state === 'granted') await pause(5000, signal);
      // A broker that does not hold the answer back is not asked more than once a second.
      else if (last && Date.now() - asked < 1000) await pause(1000, signal);
      last = request;
    } catch (cause) {
      if (signal.aborted) return;
      watcher.troubled(cause);
      if (cause instanceof ApiError && cause.status >= 400 && cause.status < 500 && cause.status !== 429)
        return;
      await pause(backoffMs(failures++), signal);
    }
  }
}

/** Repeats a look every `ms` while the page is visible, and at once when it becomes visible again. */
export function repeat(ms: number, look: (signal: AbortSignal) => Promise<void>): () => void {
  const stop = new AbortController();
  const { signal } = stop;
  void (async () => {
    while (!signal.aborted) {
      if (!document.hidden) await look(signal);
      await pauseUntilSeen(ms, signal);
    }
  })();
  return () => stop.abort();
}

async function pauseUntilSeen(ms: number, signal: AbortSignal): Promise<void> {
  const early = new AbortController();
  const wake = () => {
    if (!document.hidden) early.abort();
  };
  document.addEventListener('visibilitychange', wake);
  await pause(ms, AbortSignal.any([signal, early.signal]));
  document.removeEventListener('visibilitychange', wake);
}
