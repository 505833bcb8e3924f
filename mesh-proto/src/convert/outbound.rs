//! What is said of connections to addresses that nobody is known to have, both ways. What cannot be read lets none of them go: the resource says that there
//! is a restriction to be had, and leaving it out would widen what may be reached.

use mesh_core::outbound::Outbound;
use prost::Message;

use super::{ConvertError, field};
use crate::wire::l4 as wire;

/// Reads one `undermesh.l4.v1.Outbound`.
///
/// # Errors
/// What is wrong with it; a field that this version does not know is, too.
pub fn outbound(bytes: &[u8]) -> Result<Outbound, ConvertError> {
    let message = wire::Outbound::decode(bytes).map_err(ConvertError::decode)?;
    if message.encoded_len() != bytes.len() {
        return Err(ConvertError::UnknownFields);
    }
    Ok(Outbound { registry_only: message.registry_only, origin: field::text("origin", message.origin)? })
}

/// What counts instead of one that cannot be read.
#[must_use]
pub fn unread_outbound() -> Outbound {
    Outbound { registry_only: true, origin: "what was sent about this cannot be read".into() }
}

/// The bytes of an `undermesh.l4.v1.Outbound`.
#[must_use]
pub fn encode_outbound(said: &Outbound) -> Vec<u8> {
    wire::Outbound { registry_only: said.registry_only, origin: said.origin.to_string() }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let said = Outbound { registry_only: true, origin: "Sidecar shop/default".into() };
        assert_eq!(outbound(&encode_outbound(&said)), Ok(said));
        assert_eq!(outbound(&[]), Ok(Outbound::default()));
        assert!(outbound(&[0xff]).is_err());
        assert_eq!(outbound(&[0x18, 1]), Err(ConvertError::UnknownFields));
        let long = wire::Outbound { registry_only: false, origin: "x".repeat(1000) };
        assert!(outbound(&long.encode_to_vec()).is_err());
    }
}
