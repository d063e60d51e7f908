//! Stories: the program as a person meets it, against a small broker over real TLS.

mod broker;
mod place;

mod asking;
mod connecting;
mod reading;
mod signing_in;
mod tokens;
