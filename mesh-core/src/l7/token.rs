//! JSON Web Tokens of requests: where they stand, what they say, and whether that is what a rule believes. Whether they are signed is for whoever has the keys.
//!
//! Nothing that a token says chooses how it is checked: of its header only the name of its key and of its algorithm are read, and both must be the key's.

mod claims;
mod found;
mod parse;
#[cfg(test)]
mod tests;

use arcstr::ArcStr;
use http::HeaderName;

pub use claims::{LEEWAY_SECONDS, Token};
pub use found::{Found, found, is_parameter};
pub use parse::Unverified;

/// Longest token, in bytes.
pub const LONGEST: usize = 16 << 10;
/// Longest name of a key, in bytes.
pub const LONGEST_KEY_NAME: usize = 256;

/// Where a token may stand.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Location {
    /// `Authorization: Bearer`, in letters of either case.
    Bearer,
    /// A header, after a prefix.
    Header(HeaderName, ArcStr),
    /// A parameter of the query.
    Parameter(ArcStr),
    /// A cookie.
    Cookie(ArcStr),
}

/// Which tokens of one issuer are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtRule {
    /// Who has made them.
    pub issuer: ArcStr,
    /// For whom, one of them; anybody if there are none.
    pub audiences: Vec<ArcStr>,
    /// The keys, a set as RFC 7517 has it; `None` if they could never be had.
    pub keys: Option<ArcStr>,
    /// Where they may stand.
    pub locations: Vec<Location>,
    /// They are themselves sent on.
    pub forward: bool,
    /// What they say is sent on in this header.
    pub payload_header: Option<HeaderName>,
    /// Single claims are sent on in headers.
    pub claim_headers: Vec<(HeaderName, ArcStr)>,
    /// Claims that are lists with blanks between.
    pub spaced: Vec<ArcStr>,
}

impl JwtRule {
    /// Where tokens stand if nothing is said.
    #[must_use]
    pub fn usual_locations() -> Vec<Location> {
        vec![Location::Bearer, Location::Parameter(arcstr::literal!("access_token"))]
    }

    /// Headers that it writes.
    pub fn outputs(&self) -> impl Iterator<Item = &HeaderName> {
        self.payload_header.iter().chain(self.claim_headers.iter().map(|(name, _)| name))
    }
}

/// Why a token is refused, in Envoy's words: the body of the answer, which is 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TokenProblem {
    /// More than one where one is looked for.
    #[error("Jwt is there more than once")]
    Several,
    /// More than [`LONGEST`].
    #[error("Jwt is too long")]
    TooLong,
    /// Not three parts.
    #[error("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")]
    Form,
    /// The first part.
    #[error("Jwt header is an invalid JSON")]
    Header,
    /// The second part.
    #[error("Jwt payload is an invalid JSON")]
    Payload,
    /// The third part.
    #[error("Jwt signature is an invalid Base64url encoded")]
    Signature,
    /// Extensions that must be understood.
    #[error("Jwt header has critical extensions that are not understood")]
    Critical,
    /// No rule is for the issuer.
    #[error("Jwt issuer is not configured")]
    Issuer,
    /// For somebody else.
    #[error("Audiences in Jwt are not allowed")]
    Audience,
    /// A time that is none, or no end.
    #[error("Jwt has a time that cannot be read, or no expiry")]
    Time,
    /// It is over.
    #[error("Jwt is expired")]
    Expired,
    /// It has not begun.
    #[error("Jwt not yet valid")]
    Early,
    /// There are no keys.
    #[error("Jwks remote fetch is failed")]
    NoKeys,
    /// None of the keys is meant.
    #[error("Jwks doesn't have key to match kid or alg from Jwt")]
    NoKey,
    /// Not signed by the key.
    #[error("Jwt verification fails")]
    Forged,
}
