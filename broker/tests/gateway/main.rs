//! The gateway with the real OpenSSH client, a raw SSH client, and a door whose sessions run small
//! programs in memory.

mod flow;
mod refusals;
mod sessions;
mod trust;
mod world;
