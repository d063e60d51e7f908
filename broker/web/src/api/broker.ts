// The operations the console uses, one function each.

import { getJson, getText, path, post } from './client';
import type {
  Approval,
  BrokerInfo,
  CliSignIn,
  CliSignInAnswer,
  Denial,
  Me,
  Page,
  Request,
  RequestState,
  Session,
  WithReason,
} from './types';

export const getBroker = () => getJson<BrokerInfo>('/v1/broker');
export const getMe = () => getJson<Me>('/v1/me');
export const signOut = () => post<undefined>('/logout');

export const getCliSignIn = (code: string) => getJson<CliSignIn>(path('v1', 'cli-sign-ins', code));
export const answerCliSignIn = (code: string, answer: CliSignInAnswer) =>
  post<undefined>(path('v1', 'cli-sign-ins', code), answer);

export interface RequestFilter {
  state?: RequestState | undefined;
  mine?: boolean;
  answerable?: boolean;
  device?: string;
  after?: string | undefined;
}

export const listRequests = (filter: RequestFilter, signal?: AbortSignal) =>
  getJson<Page<Request>>('/v1/requests', { query: { ...filter }, signal });
export const getRequest = (id: string, signal?: AbortSignal) =>
  getJson<Request>(path('v1', 'requests', id), { signal });
/** Answers when the request is no longer in `state`, or after `waitS`. */
export const awaitRequest = (id: string, state: RequestState, waitS: number, signal: AbortSignal) =>
  getJson<Request>(path('v1', 'requests', id), { query: { wait_s: waitS, state }, signal });
export const approve = (id: string, approval: Approval) =>
  post<Request>(path('v1', 'requests', id, 'approve'), approval);
export const deny = (id: string, denial: Denial) => post<Request>(path('v1', 'requests', id, 'deny'), denial);
export const cancel = (id: string) => post<Request>(path('v1', 'requests', id, 'cancel'));
export const revoke = (id: string, why: WithReason) =>
  post<Request>(path('v1', 'requests', id, 'revoke'), why);

export interface SessionFilter {
  live?: boolean;
  device?: string;
  person?: string;
  after?: string | undefined;
}

export const listSessions = (filter: SessionFilter, signal?: AbortSignal) =>
  getJson<Page<Session>>('/v1/sessions', { query: { ...filter }, signal });
export const getSession = (id: string, signal?: AbortSignal) =>
  getJson<Session>(path('v1', 'sessions', id), { signal });
export const endSession = (id: string, why: WithReason) =>
  post<Session>(path('v1', 'sessions', id, 'end'), why);
export const recordingPath = (session: string, number: number) =>
  path('v1', 'sessions', session, 'recordings', number);
export const getRecording = (session: string, number: number, signal?: AbortSignal) =>
  getText(recordingPath(session, number), signal);
