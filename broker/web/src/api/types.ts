// The API's bodies, as protocol/src/api.rs spells them. Times are milliseconds since 1970 UTC, durations
// are seconds. What is `Option` there may be absent or null here.
//
// Everything else imports its types from this file, so that `npm run api` (types.gen.ts, from openapi.json)
// can stand behind it: `export type Me = components['schemas']['Me']`, name by name.

export type Timestamp = number;
export type ChannelKind = 'shell' | 'exec' | 'sftp' | 'forward';
export type ChannelSet = ChannelKind[];

/** RFC 9457. */
export interface Problem {
  type: string;
  title: string;
  status: number;
  detail?: string | null;
  hint?: string | null;
  code: string;
}

export interface BrokerInfo {
  version: string;
  url: string;
  ssh_host: string;
  ssh_port: number;
  host_suffix: string;
  host_cas: string[];
  user_cas: string[];
  identity_cas: string[];
  broker_keys: string[];
}

export interface Me {
  id: string;
  email: string;
  name: string;
  teams: string[];
  signed_in_at: Timestamp;
  may: string[];
}

export interface CliSignIn {
  user_code: string;
  client: string;
  address: string;
  asked_at: Timestamp;
  expires_at: Timestamp;
}

export interface CliSignInAnswer {
  confirm: boolean;
}

export interface WithReason {
  reason: string;
}

export type RequestState = 'pending' | 'granted' | 'denied' | 'cancelled' | 'lapsed';
export type GrantState = 'live' | 'expired' | 'revoked' | 'closed';
export type Verdict = 'approve' | 'deny';

export interface PersonRef {
  id: string;
  email: string;
  name: string;
}

export interface Answer {
  by: PersonRef;
  at: Timestamp;
  verdict: Verdict;
  comment?: string | null;
  teams: string[];
  duration_s?: number | null;
  channels?: ChannelSet | null;
}

export interface Grant {
  state: GrantState;
  channels: ChannelSet;
  starts_at: Timestamp;
  ends_at: Timestamp;
  ended_by?: string | null;
}

export interface Request {
  id: string;
  state: RequestState;
  person: PersonRef;
  device: string;
  product_line: string;
  login: string;
  channels: ChannelSet;
  duration_s: number;
  reason: string;
  ticket?: string | null;
  emergency: boolean;
  asked_at: Timestamp;
  lapses_at: Timestamp;
  why: string[];
  approver_teams: string[];
  answers: Answer[];
  grant?: Grant | null;
  may_answer: boolean;
}

export interface Approval {
  duration_s?: number | null;
  channels?: ChannelSet | null;
  comment?: string | null;
}

export interface Denial {
  comment: string;
}

export type SessionState = 'opening' | 'open' | 'ended';

export type EndReason =
  | 'closed'
  | 'expired'
  | 'revoked'
  | 'ended_by_person'
  | 'device_suspended'
  | 'device_lost'
  | 'recorder_failed'
  | 'policy_changed'
  | 'broker_stopped'
  | 'interrupted'
  | 'failed';

export type RecordingKind = 'asciicast' | 'output' | 'events';

export interface Recording {
  number: number;
  kind: RecordingKind;
  channel?: number | null;
  bytes: number;
  sha256?: string | null;
  closed: boolean;
}

export interface Session {
  id: string;
  request: string;
  person: PersonRef;
  device: string;
  login: string;
  state: SessionState;
  started_at: Timestamp;
  ended_at?: Timestamp | null;
  end_reason?: EndReason | null;
  end_detail?: string | null;
  client_address: string;
  recordings: Recording[];
}

export interface Page<T> {
  items: T[];
  next?: string | null;
}
