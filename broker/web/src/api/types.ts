// The API's bodies by their short names. What they are is generated (`npm run api`) from openapi.json,
// which is what the broker says of itself; a test of the broker fails when it is not.
// Times are milliseconds since 1970 UTC, durations are seconds.

import type { components } from './types.gen';

type Schemas = components['schemas'];

export type Timestamp = Schemas['Timestamp'];
export type ChannelKind = Schemas['ChannelKind'];
export type ChannelSet = Schemas['ChannelSet'];

/** RFC 9457. */
export type Problem = Schemas['Problem'];

export type BrokerInfo = Schemas['BrokerInfo'];
export type Me = Schemas['Me'];
export type CliSignIn = Schemas['CliSignIn'];
export type CliSignInAnswer = Schemas['CliSignInAnswer'];
export type WithReason = Schemas['WithReason'];

export type RequestState = Schemas['RequestState'];
export type GrantState = Schemas['GrantState'];
export type Verdict = Schemas['Verdict'];
export type PersonRef = Schemas['PersonRef'];
export type Answer = Schemas['Answer'];
export type Grant = Schemas['Grant'];
export type Request = Schemas['Request'];
export type Approval = Schemas['Approval'];
export type Denial = Schemas['Denial'];

export type SessionState = Schemas['SessionState'];
export type EndReason = Schemas['EndReason'];
export type RecordingKind = Schemas['RecordingKind'];
export type Recording = Schemas['Recording'];
export type Session = Schemas['Session'];

/** OpenAPI has no generics: each page is a schema of its own, all of this shape. */
export type Page<T> = Omit<Schemas['Page_Request'], 'items'> & { items: T[] };
