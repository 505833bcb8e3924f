//! What goes over a simulated agent's stream: requests as frames of gRPC, and a reader that takes a response apart while it arrives, without keeping it.
use anyhow::{Context, Result, ensure};
use base64::Engine;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use mesh_proto::discovery::{DeltaDiscoveryRequest, Node};
use prost::Message;
use serde_json::json;

/// What a stream asks for: workloads and services, policies.
pub const TYPES: [&str; 2] = [mesh_proto::ADDRESS_TYPE, mesh_proto::AUTHORIZATION_TYPE];

/// One request in its frame.
pub fn frame(request: &DeltaDiscoveryRequest) -> Bytes {
    let mut frame = BytesMut::with_capacity(request.encoded_len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(request.encoded_len()).unwrap_or(u32::MAX));
    // It has room for it.
    let _ = request.encode(&mut frame);
    frame.freeze()
}

/// Who asks.
pub fn node(name: &str) -> Node {
    let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(name.to_owned())) };
    let metadata = prost_types::Struct { fields: [("NODE_NAME".to_owned(), value)].into() };
    Node {
        id: format!("ztunnel~198.18.0.1~agent.undermesh-system~{name}"),
        metadata: Some(metadata),
        ..Node::default()
    }
}

/// The token that the agent of a node presents. The API server here believes what it says.
pub fn token(node: &str) -> String {
    let subject = "system:serviceaccount:undermesh-system:mesh-agent";
    let claims = json!({ "aud": ["undermesh"], "sub": subject, "exp": 4_000_000_000u64, "node": node });
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims.to_string());
    format!("eyJhbGciOiJSUzI1NiJ9.{claims}.c2lnbmF0dXJl")
}

/// One resource of a response.
pub struct Resource<'a> {
    /// Which of the types it is of.
    pub kind: usize,
    /// Its name.
    pub name: &'a str,
    /// Its version.
    pub version: u64,
    /// The message.
    pub body: &'a [u8],
}

/// What a response was, without its resources.
#[derive(Default)]
pub struct Rest {
    /// Which of the types it was of.
    pub kind: Option<usize>,
    /// To be acknowledged.
    pub nonce: String,
    /// Names of what is gone.
    pub removed: Vec<String>,
}

/// Takes responses apart.
#[derive(Default)]
pub struct Reader {
    buffer: BytesMut,
    /// Of the message that is arriving.
    left: Option<usize>,
    rest: Rest,
}

impl Reader {
    /// Takes what has arrived.
    pub fn take(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Calls `each` with every resource that is there; the rest of a response when all of it is.
    pub fn next(&mut self, mut each: impl FnMut(Resource<'_>) -> Result<()>) -> Result<Option<Rest>> {
        let Some(mut left) = self.left.or_else(|| self.header()) else { return Ok(None) };
        loop {
            if left == 0 {
                self.left = None;
                return Ok(Some(std::mem::take(&mut self.rest)));
            }
            self.left = Some(left);
            let available = &self.buffer[..left.min(self.buffer.len())];
            let Some((field, value, size)) = field(available)? else { return Ok(None) };
            match field {
                2 => each(resource(value)?)?,
                4 => self.rest.kind = TYPES.iter().position(|url| url.as_bytes() == value),
                5 => self.rest.nonce = std::str::from_utf8(value)?.to_owned(),
                6 => self.rest.removed.push(std::str::from_utf8(value)?.to_owned()),
                _ => {}
            }
            self.buffer.advance(size);
            left -= size;
        }
    }

    fn header(&mut self) -> Option<usize> {
        if self.buffer.len() < 5 {
            return None;
        }
        self.buffer.advance(1);
        Some(self.buffer.get_u32() as usize)
    }
}

/// The first field of a message, if all of it is there: number, content, and how long it is altogether. All fields here are of the kind that has a length.
fn field(bytes: &[u8]) -> Result<Option<(u64, &[u8], usize)>> {
    let mut rest = bytes;
    let (Some(tag), Some(length)) = (varint(&mut rest), varint(&mut rest)) else { return Ok(None) };
    ensure!(tag & 7 == 2, "a field of another kind: {tag}");
    let length = usize::try_from(length)?;
    let size = bytes.len() - rest.len() + length;
    Ok(rest.get(..length).map(|value| (tag >> 3, value, size)))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let (all, mut value) = (*bytes, 0);
    for (index, byte) in all.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            *bytes = &all[index + 1..];
            return Some(value);
        }
    }
    None
}

fn resource(mut bytes: &[u8]) -> Result<Resource<'_>> {
    let (mut name, mut version, mut content) = ("", "", None);
    while !bytes.is_empty() {
        let (number, value, size) = field(bytes)?.context("half a resource")?;
        match number {
            1 => version = std::str::from_utf8(value)?,
            2 => content = Some(value),
            3 => name = std::str::from_utf8(value)?,
            _ => {}
        }
        bytes = &bytes[size..];
    }
    let (mut url, mut body): (&[u8], &[u8]) = (&[], &[]);
    let mut any = content.context("a resource without content")?;
    while !any.is_empty() {
        let (number, value, size) = field(any)?.context("half a content")?;
        match number {
            1 => url = value,
            2 => body = value,
            _ => {}
        }
        any = &any[size..];
    }
    let kind = TYPES.iter().position(|known| known.as_bytes() == url).context("a type that was not asked for")?;
    // None is nothing.
    let version = u64::from_str_radix(version, 16).with_context(|| format!("version {version:?}"))?.max(1);
    Ok(Resource { kind, name, version, body })
}
