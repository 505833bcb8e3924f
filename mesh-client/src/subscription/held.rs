//! What the subscription remembers of each resource: enough to tell the server on the next connect, in little memory.

use std::fmt;

/// A resource that was accepted, or refused while something must remember it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) version: Version,
    /// Counts for the guard against mass removal: a workload or a policy, not a service.
    pub(super) member: bool,
}

/// A version as the server named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// Sixteen lower-case hexadecimal digits, as content hashes are written.
    Hash(u64),
    /// Anything else.
    Text(Box<str>),
    /// The newest form was refused: no version that a server has is equal to it, so that it is sent again.
    Refused,
}

const REFUSED: &str = "refused";

impl From<String> for Version {
    fn from(text: String) -> Self {
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match u64::from_str_radix(&text, 16) {
            Ok(hash) if digits => Self::Hash(hash),
            _ => Self::Text(text.into()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hash(hash) => write!(f, "{hash:016x}"),
            Self::Text(text) => f.write_str(text),
            Self::Refused => f.write_str(REFUSED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_given_back_as_they_came() {
        for text in ["", "1", "00000000deadbeef", "DEADBEEFDEADBEEF", "+000000000000001", "v1.2", "ffffffffffffffff"] {
            assert_eq!(Version::from(text.to_owned()).to_string(), text);
        }
        assert_eq!(Version::from("00000000deadbeef".to_owned()), Version::Hash(0xdead_beef));
    }
}
