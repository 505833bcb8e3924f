//! What is spoken of TLS where that of the world ends or begins: at listeners of gateways and towards places outside of the mesh. Members speak TLS 1.3 with each
//! other, and choose by themselves.

use arcstr::ArcStr;

/// A version of TLS. Older ones are not spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2
    V1_2,
    /// 1.3
    V1_3,
}

/// What is spoken of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spoken {
    /// The oldest version.
    pub oldest: TlsVersion,
    /// The newest.
    pub newest: TlsVersion,
    /// Names of suites as IANA has them, for TLS 1.2; none means all that are good.
    pub suites: Vec<ArcStr>,
    /// Names of groups for the exchange of keys as IANA has them, the best one first; none means all that are good.
    pub groups: Vec<ArcStr>,
}

impl Default for Spoken {
    /// Everything that is good.
    fn default() -> Self {
        Self { oldest: TlsVersion::V1_2, newest: TlsVersion::V1_3, suites: Vec::new(), groups: Vec::new() }
    }
}
