//! Signing in. What comes out is a [`VerifiedPerson`], which nothing outside this module can make.

mod person;

pub use person::VerifiedPerson;
