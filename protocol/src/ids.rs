//! Identifiers. Each has one spelling, is checked when it is read, and can be trusted afterwards.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {what}: {rule}")]
pub struct InvalidId {
    pub what: &'static str,
    pub rule: &'static str,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:expr, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidId { what: $what, rule: $rule })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn is_slug(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

text_id!(
    /// A deployed product. A slug, so that it can stand in a host name and in a certificate's principal.
    DeviceId, "device id", "1 to 63 of a-z, 0-9 and -, not starting with -", is_slug
);
text_id!(
    /// The name of a product line, a slug as for devices.
    LineName, "product line name", "1 to 63 of a-z, 0-9 and -, not starting with -", is_slug
);
text_id!(
    /// The Unix account on the device that a session runs as, in the portable form of useradd(8).
    Login, "login", "1 to 32 of a-z, 0-9, _ and -, starting with a letter or _",
    |text| (1..=32).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
);

/// Crockford's base 32: no I, L, O or U, so that an id survives a telephone call.
const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Bytes of randomness in an id that a person may read out: 40 bits, 8 characters.
pub const ID_RANDOM_BYTES: usize = 5;

fn crockford(random: [u8; ID_RANDOM_BYTES]) -> String {
    let bits = random.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    (0..8).rev().map(|i| char::from(CROCKFORD[(bits >> (5 * i) & 31) as usize])).collect()
}

fn is_short_id(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix)
        .is_some_and(|rest| rest.len() == 8 && rest.bytes().all(|b| CROCKFORD.contains(&b)))
}

macro_rules! short_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $prefix:literal) => {
        text_id!($(#[$doc])* $name, $what,
            concat!($prefix, " and 8 characters of Crockford's base 32, as in ", $prefix, "7K2M9QXD"),
            |text| is_short_id(text, $prefix));

        impl $name {
            /// Forty random bits, spelled. Uniqueness is the database's to enforce.
            pub fn from_random(random: [u8; ID_RANDOM_BYTES]) -> Self {
                Self(format!("{}{}", $prefix, crockford(random)))
            }
        }
    };
}

short_id!(
    /// A request; and, once approved, the grant it became, which keeps the id.
    RequestId, "request id", "R-"
);
short_id!(
    /// A session: one connection of one person to one device under one grant.
    SessionId, "session id", "S-"
);
short_id!(
    /// A person who signed in, named by the issuer and subject of their sign-in.
    PersonId, "person id", "P-"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_ids_are_slugs_and_nothing_else() {
        for good in ["gw-0042", "0", "a".repeat(63).as_str()] {
            assert!(good.parse::<DeviceId>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a_b", "a.b", "a,b", "a b", "gw@x", "ä", "a".repeat(64).as_str(), "a\n"] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn logins_have_no_room_for_a_principal_separator() {
        for good in ["root", "_svc", "diag-2"] {
            assert!(good.parse::<Login>().is_ok(), "{good}");
        }
        for bad in ["", "0a", "a@b", "a,b", "a%b", "Root", "a b", "a\"", "a#", "../x", "-l"] {
            assert!(bad.parse::<Login>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_short_id_reads_back_as_it_was_spelled() {
        assert_eq!(RequestId::from_random([0; 5]).as_str(), "R-00000000");
        assert_eq!(RequestId::from_random([255; 5]).as_str(), "R-ZZZZZZZZ");
        let id = SessionId::from_random([1, 2, 3, 4, 5]);
        assert_eq!(id.as_str().parse::<SessionId>(), Ok(id.clone()));
        assert!(id.as_str().parse::<RequestId>().is_err(), "a session is not a request");
        assert!("R-0000000O".parse::<RequestId>().is_err(), "O is not a digit here");
    }
}
