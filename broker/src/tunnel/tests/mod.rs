//! The broker's end of the tunnel against a device that behaves, and against one that does not.

mod channels;
mod hello;
mod resume;
mod world;
