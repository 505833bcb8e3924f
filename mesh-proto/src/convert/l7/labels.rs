//! Labels of one workload, as far as a waypoint's routes and places ask for them, both ways.

use mesh_core::ArcStr;
use mesh_core::l7::Labels;
use prost::Message;

use super::cluster::{read_labels, write_labels};
use crate::convert::{ConvertError, field};
use crate::wire::l7 as wire;

/// Reads one `undermesh.l7.v1.WorkloadLabels`: the workload's uid and its labels. Fields that this version does not know refuse it.
pub fn workload_labels(bytes: &[u8]) -> Result<(ArcStr, Labels), ConvertError> {
    let message = wire::WorkloadLabels::decode(bytes).map_err(ConvertError::decode)?;
    if message.encoded_len() != bytes.len() {
        return Err(ConvertError::UnknownFields);
    }
    Ok((field::uid(message.uid)?, read_labels("labels", message.labels)?))
}

/// The bytes of an `undermesh.l7.v1.WorkloadLabels`. The same labels always give the same bytes.
#[must_use]
pub fn encode_workload_labels(uid: &str, labels: &Labels) -> Vec<u8> {
    wire::WorkloadLabels { uid: uid.to_owned(), labels: write_labels(labels) }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_back_as_they_were() {
        let labels: Labels = [("version".into(), "v1".into()), ("app".into(), "".into())].into();
        let bytes = encode_workload_labels("c//Pod/shop/a", &labels);
        assert_eq!(workload_labels(&bytes), Ok(("c//Pod/shop/a".into(), labels.clone())));
        let unknown = [bytes.as_slice(), &[0xf8, 0x07, 1]].concat();
        for bad in [unknown.as_slice(), &bytes[..bytes.len() - 1], &encode_workload_labels("", &labels), &[0xff]] {
            assert!(workload_labels(bad).is_err(), "{bad:?}");
        }
    }
}
