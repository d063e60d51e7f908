// The time, a second at a time, by the broker's clock.

import { createSubscriber } from 'svelte/reactivity';
import { brokerSkewMs } from '../api/client';

const ticking = createSubscriber((update) => {
  const timer = setInterval(update, 1000);
  return () => clearInterval(timer);
});

export function now(): number {
  ticking();
  return Date.now() + brokerSkewMs();
}
