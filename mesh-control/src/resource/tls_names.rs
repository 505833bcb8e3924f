//! What Istio calls suites and groups of TLS, and which of them are spoken here: fields of servers of its Gateway, and of the mesh settings.

use mesh_core::ArcStr;

use crate::diagnosis::Problem;

/// Istio's name, and IANA's.
type Named = (&'static str, &'static str);

/// The suites of TLS 1.2.
pub const SUITES: &[Named] = &[
    ("ECDHE-ECDSA-AES256-GCM-SHA384", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
    ("ECDHE-ECDSA-AES128-GCM-SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
    ("ECDHE-RSA-AES256-GCM-SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"),
    ("ECDHE-RSA-AES128-GCM-SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
    ("ECDHE-RSA-CHACHA20-POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
];

/// The groups in which keys are exchanged.
pub const GROUPS: &[Named] =
    &[("X25519MLKEM768", "X25519MLKEM768"), ("X25519", "X25519"), ("P-256", "secp256r1"), ("P-384", "secp384r1")];

/// IANA's names of what is written at `field`, in its order, each once. What is not spoken is left out, and told.
pub fn spoken(written: &[String], all: &[Named], field: &str, problems: &mut Vec<Problem>) -> Vec<ArcStr> {
    let mut known: Vec<ArcStr> = Vec::new();
    for (index, name) in written.iter().enumerate() {
        match all.iter().find(|(istio_s, iana)| istio_s.eq_ignore_ascii_case(name) || iana == name) {
            Some((_, iana)) if known.iter().any(|one| one == iana) => {}
            Some((_, iana)) => known.push((*iana).into()),
            None => {
                let message = format!("{name:?} is not spoken");
                let all: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
                let problem = Problem::warning(format!("{field}[{index}]"), message);
                problems.push(problem.help(format!("there are {}", all.join(", "))));
            }
        }
    }
    known
}
