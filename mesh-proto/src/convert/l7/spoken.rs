//! What is spoken of TLS, both ways. Names that nobody knows are for whoever speaks to refuse.

use mesh_core::ArcStr;
use mesh_core::spoken::{Spoken, TlsVersion};

use super::few;
use crate::convert::{ConvertError, field};
use crate::wire::l7 as wire;

/// Names of suites, or of groups: more than there are.
const MOST: usize = 1000;

pub(super) fn read(message: wire::Spoken) -> Result<Spoken, ConvertError> {
    let version = |field, value, usual| {
        Ok(match field::known(field, value)? {
            wire::ListenerTlsVersion::ListenerTlsUsual => usual,
            wire::ListenerTlsVersion::ListenerTls12 => TlsVersion::V1_2,
            wire::ListenerTlsVersion::ListenerTls13 => TlsVersion::V1_3,
        })
    };
    let texts = |field, all: Vec<String>| {
        few(field, all.len(), MOST)?;
        all.into_iter().map(|text| field::text(field, text)).collect::<Result<Vec<ArcStr>, _>>()
    };
    Ok(Spoken {
        oldest: version("tls.oldest", message.oldest, TlsVersion::V1_2)?,
        newest: version("tls.newest", message.newest, TlsVersion::V1_3)?,
        suites: texts("tls.suites", message.suites)?,
        groups: texts("tls.groups", message.groups)?,
    })
}

pub(super) fn write(spoken: &Spoken) -> wire::Spoken {
    let version = |version, usual| match version {
        version if version == usual => wire::ListenerTlsVersion::ListenerTlsUsual.into(),
        TlsVersion::V1_2 => wire::ListenerTlsVersion::ListenerTls12.into(),
        TlsVersion::V1_3 => wire::ListenerTlsVersion::ListenerTls13.into(),
    };
    let strings = |all: &[ArcStr]| all.iter().map(ToString::to_string).collect();
    wire::Spoken {
        oldest: version(spoken.oldest, TlsVersion::V1_2),
        newest: version(spoken.newest, TlsVersion::V1_3),
        suites: strings(&spoken.suites),
        groups: strings(&spoken.groups),
    }
}
