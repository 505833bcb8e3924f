//! A request as its stream reads it: the message, and apart from it, as the bytes that came, the list of what the client has. A thousand clients that
//! come back list a hundred thousand names each: to make texts and a map of every such list would cost more than all else that a stream does.

use bytes::{Bytes, BytesMut};
use mesh_proto::discovery::DeltaDiscoveryRequest;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// The field of a request that lists versions by name, one entry of a map in each.
const VERSIONS: u32 = 5;

/// One request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// All but the list.
    pub message: DeltaDiscoveryRequest,
    /// What the client has.
    pub versions: Versions,
}

/// Names and versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// The whole message, of which they are fields.
    message: Bytes,
    count: usize,
}

impl Request {
    /// The request in these bytes. `None` if there is none.
    pub fn read(bytes: Bytes) -> Option<Request> {
        let (mut others, mut count, mut rest) = (BytesMut::new(), 0, &*bytes);
        while !rest.is_empty() {
            let field = Field::next(&mut rest)?;
            if field.tag == VERSIONS {
                entry(field.value?)?;
                count += 1;
            } else {
                others.extend_from_slice(field.whole);
            }
        }
        let message = DeltaDiscoveryRequest::decode(others).ok()?;
        Some(Request { message, versions: Versions { message: if count == 0 { Bytes::new() } else { bytes }, count } })
    }
}

impl Versions {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Names with versions. A version that is none of ours is 0; of a name that is there twice the last one counts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> + Clone {
        let mut rest = &*self.message;
        let entries = std::iter::from_fn(move || {
            // It has been read before.
            while !rest.is_empty() {
                let field = Field::next(&mut rest)?;
                if field.tag == VERSIONS {
                    return entry(field.value?);
                }
            }
            None
        });
        entries.map(|(name, version)| (name, u64::from_str_radix(version, 16).unwrap_or(0)))
    }
}

struct Field<'a> {
    tag: u32,
    /// If it is of the kind that has a length.
    value: Option<&'a [u8]>,
    whole: &'a [u8],
}

impl<'a> Field<'a> {
    fn next(rest: &mut &'a [u8]) -> Option<Field<'a>> {
        let start = *rest;
        let (tag, kind) = decode_key(rest).ok()?;
        let value = if kind == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
            let (value, after) = rest.split_at_checked(length)?;
            *rest = after;
            Some(value)
        } else {
            skip_field(kind, tag, rest, DecodeContext::default()).ok()?;
            None
        };
        Some(Field { tag, value, whole: &start[..start.len() - rest.len()] })
    }
}

fn entry(mut rest: &[u8]) -> Option<(&str, &str)> {
    let (mut name, mut version) = ("", "");
    while !rest.is_empty() {
        let field = Field::next(&mut rest)?;
        match field.tag {
            1 => name = std::str::from_utf8(field.value?).ok()?,
            2 => version = std::str::from_utf8(field.value?).ok()?,
            _ => {}
        }
    }
    Some((name, version))
}

#[cfg(test)]
impl From<DeltaDiscoveryRequest> for Request {
    fn from(message: DeltaDiscoveryRequest) -> Self {
        Request::read(message.encode_to_vec().into()).expect("a message")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn message(versions: HashMap<String, String>) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: "t".into(),
            resource_names_subscribe: vec!["a".into(), "b".into()],
            initial_resource_versions: versions,
            response_nonce: "7".into(),
            ..Default::default()
        }
    }

    proptest! {
        #[test]
        fn the_list_is_what_the_library_reads(versions: HashMap<String, u64>) {
            let texts = versions.iter().map(|(name, version)| (name.clone(), format!("{version:016x}")));
            let request = Request::from(message(texts.collect()));
            prop_assert_eq!(request.versions.count(), versions.len());
            let read = request.versions.iter().map(|(name, version)| (name.to_owned(), version));
            prop_assert_eq!(read.collect::<HashMap<_, _>>(), versions);
            prop_assert_eq!(request.message, message(HashMap::new()));
        }

        #[test]
        fn hardening_B94_what_the_library_refuses_is_refused(at: prop::sample::Index, byte: u8, end: prop::sample::Index) {
            let mut bytes = message([("name".to_owned(), "1f".to_owned())].into()).encode_to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes.truncate(end.index(bytes.len()) + 1);
            let whole = DeltaDiscoveryRequest::decode(&*bytes);
            let read = Request::read(bytes.into());
            // The library looks over a map's entry that is written as something else, and sees none.
            prop_assert!(read.is_none() || whole.is_ok(), "{:?}", whole);
            if let (Some(read), Ok(mut whole)) = (read, whole) {
                let versions = std::mem::take(&mut whole.initial_resource_versions);
                let of = |version: &String| u64::from_str_radix(version, 16).unwrap_or(0);
                let versions = versions.iter().map(|(name, version)| (name.as_str(), of(version))).collect::<HashMap<_, _>>();
                prop_assert_eq!(read.versions.iter().collect::<HashMap<_, _>>(), versions);
                prop_assert_eq!(read.message, whole);
            }
        }
    }
}
