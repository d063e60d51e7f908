// Who is signed in.

import { getMe, signOut } from '../api/broker';
import { ApiError, onSignedOut } from '../api/client';
import type { Me } from '../api/types';
import { place } from './place.svelte';

class Signed {
  /** `undefined` until the broker has said who it is; `null` when it is nobody. */
  me = $state<Me | null | undefined>(undefined);
  trouble = $state<unknown>(undefined);

  async load(): Promise<void> {
    this.trouble = undefined;
    try {
      this.me = await getMe();
    } catch (cause) {
      if (cause instanceof ApiError && cause.status === 401) this.me = null;
      else this.trouble = cause;
    }
  }

  async out(): Promise<void> {
    await signOut();
    this.me = null;
    place.go('/');
  }

  /** Whether policy lets this person do it at all. The broker decides again on each act. */
  may(...actions: string[]): boolean {
    return actions.some((action) => this.me?.may.includes(action));
  }

  is(person: { id: string }): boolean {
    return this.me?.id === person.id;
  }
}

export const signed = new Signed();

onSignedOut(() => {
  signed.me = null;
});
