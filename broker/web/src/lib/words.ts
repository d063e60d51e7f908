// The words of states, channels and reasons, in one place.

import type { ChannelKind, EndReason, GrantState, Request, RequestState, Session } from '../api/types';

export type Tone = 'wait' | 'good' | 'bad' | 'quiet' | 'live';

export const REQUEST_STATES: readonly RequestState[] = [
  'pending',
  'granted',
  'denied',
  'cancelled',
  'lapsed',
];

export const requestWords: Record<RequestState, string> = {
  pending: 'waiting',
  granted: 'granted',
  denied: 'refused',
  cancelled: 'cancelled',
  lapsed: 'lapsed',
};

export const grantWords: Record<GrantState, string> = {
  live: 'live',
  expired: 'expired',
  revoked: 'revoked',
  closed: 'closed',
};

export const CHANNELS: readonly ChannelKind[] = ['shell', 'exec', 'sftp', 'forward'];

export const channelWords: Record<ChannelKind, string> = {
  shell: 'an interactive shell',
  exec: 'single commands',
  sftp: 'copying files',
  forward: 'a connection to a fixed target',
};

export const endWords: Record<EndReason, string> = {
  closed: 'closed by the engineer',
  expired: 'the grant’s window was over',
  revoked: 'the grant was revoked',
  ended_by_person: 'ended by a person',
  device_suspended: 'the device was suspended',
  device_lost: 'the device’s connection was lost',
  recorder_failed: 'recording failed, so the session was ended',
  idle: 'nobody typed for too long',
  recording_limit: 'its recording reached the size that is allowed',
  policy_changed: 'policy no longer allows it',
  broker_stopped: 'the broker was stopped',
  interrupted: 'the broker was interrupted',
  failed: 'it failed',
};

/** What a badge says of a request: the grant's state says more than `granted`. */
export function requestBadge(request: Request): { word: string; tone: Tone } {
  if (request.state === 'granted' && request.grant) {
    const { state } = request.grant;
    return {
      word: grantWords[state],
      tone: state === 'live' ? 'live' : state === 'revoked' ? 'bad' : 'quiet',
    };
  }
  const tones: Record<RequestState, Tone> = {
    pending: 'wait',
    granted: 'good',
    denied: 'bad',
    cancelled: 'quiet',
    lapsed: 'quiet',
  };
  return { word: requestWords[request.state] ?? request.state, tone: tones[request.state] ?? 'quiet' };
}

export function sessionBadge(session: Session): { word: string; tone: Tone } {
  switch (session.state) {
    case 'open':
      return { word: 'live', tone: 'live' };
    case 'opening':
      return { word: 'opening', tone: 'wait' };
    default:
      return {
        word: 'ended',
        tone: session.end_reason && HARD_ENDS.has(session.end_reason) ? 'bad' : 'quiet',
      };
  }
}

const HARD_ENDS = new Set<EndReason>([
  'revoked',
  'ended_by_person',
  'device_suspended',
  'recorder_failed',
  'policy_changed',
  'interrupted',
  'failed',
]);

export function isLive(session: Session): boolean {
  return session.state !== 'ended';
}
