//! Header compression (RFC 7541): a full reader, and a writer that uses the static table and plain literals only.
//!
//! The driver reads header blocks with [`Decoder`]; requests and answers are written with [`literal`] and [`status`]. Limits hold on the *decoded* size.

use std::collections::VecDeque;

use super::huffman;

/// Size of the dynamic table that we allow, the protocol's default; we never announce another.
const TABLE_LIMIT: usize = 4096;
/// What an entry counts besides its bytes.
const ENTRY_OVERHEAD: usize = 32;
/// Most header fields of one block.
const FIELDS_LIMIT: usize = 256;

/// Why a header block is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HpackError {
    /// Not HPACK; the table is out of step, so the tunnel must end.
    Malformed,
    /// Larger than we accept.
    TooLarge,
}

/// One header field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: Vec<u8>,
    pub(super) value: Vec<u8>,
}

impl Field {
    fn size(&self) -> usize {
        self.name.len() + self.value.len() + ENTRY_OVERHEAD
    }
}

/// Reads the header blocks of one tunnel.
pub(super) struct Decoder {
    table: VecDeque<Field>,
    table_size: usize,
    table_limit: usize,
    list_limit: usize,
}

impl Decoder {
    /// `list_limit` is the largest header list, counted as the protocol counts it.
    pub(super) fn new(list_limit: usize) -> Self {
        Self { table: VecDeque::new(), table_size: 0, table_limit: TABLE_LIMIT, list_limit }
    }

    /// Reads a whole block.
    pub(super) fn decode(&mut self, mut block: &[u8]) -> Result<Vec<Field>, HpackError> {
        let mut fields: Vec<Field> = Vec::new();
        let mut size = 0;
        while let Some(&first) = block.first() {
            if first & 0xe0 == 0x20 {
                // A table size update: only before the first field.
                let limit = integer(&mut block, 5)?;
                if limit > TABLE_LIMIT || !fields.is_empty() {
                    return Err(HpackError::Malformed);
                }
                self.table_limit = limit;
                self.evict(limit);
                continue;
            }
            let field = if first & 0x80 != 0 {
                let index = integer(&mut block, 7)?;
                self.entry(index)?
            } else {
                let indexed = first & 0x40 != 0;
                let name = integer(&mut block, if indexed { 6 } else { 4 })?;
                let name = if name == 0 { self.string(&mut block)? } else { self.entry(name)?.name };
                let value = self.string(&mut block)?;
                let field = Field { name, value };
                if indexed {
                    self.insert(field.clone());
                }
                field
            };
            size += field.size();
            if size > self.list_limit || fields.len() == FIELDS_LIMIT {
                return Err(HpackError::TooLarge);
            }
            fields.push(field);
        }
        Ok(fields)
    }

    fn entry(&self, index: usize) -> Result<Field, HpackError> {
        let index = index.checked_sub(1).ok_or(HpackError::Malformed)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Ok(Field { name: name.as_bytes().to_vec(), value: value.as_bytes().to_vec() });
        }
        self.table.get(index - STATIC.len()).cloned().ok_or(HpackError::Malformed)
    }

    fn insert(&mut self, field: Field) {
        let size = field.size();
        self.evict(self.table_limit.saturating_sub(size));
        // An entry larger than the table empties it and is not kept.
        if size <= self.table_limit {
            self.table_size += size;
            self.table.push_front(field);
        }
    }

    fn evict(&mut self, limit: usize) {
        while self.table_size > limit {
            let Some(oldest) = self.table.pop_back() else { return };
            self.table_size -= oldest.size();
        }
    }

    fn string(&self, block: &mut &[u8]) -> Result<Vec<u8>, HpackError> {
        let huffman = block.first().ok_or(HpackError::Malformed)? & 0x80 != 0;
        let length = integer(block, 7)?;
        if length > self.list_limit {
            return Err(HpackError::TooLarge);
        }
        let (raw, rest) = block.split_at_checked(length).ok_or(HpackError::Malformed)?;
        *block = rest;
        if !huffman {
            return Ok(raw.to_vec());
        }
        let mut out = Vec::with_capacity(length * 8 / 5 + 1);
        huffman::decode(raw, &mut out, self.list_limit).ok_or(HpackError::Malformed)?;
        Ok(out)
    }
}

/// An integer with an `n`-bit prefix (RFC 7541 5.1), at most 2^28.
fn integer(block: &mut &[u8], prefix: u32) -> Result<usize, HpackError> {
    let (&first, mut rest) = block.split_first().ok_or(HpackError::Malformed)?;
    let mask = (1usize << prefix) - 1;
    let mut value = usize::from(first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (&byte, tail) = rest.split_first().ok_or(HpackError::Malformed)?;
            rest = tail;
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            if shift > 21 {
                return Err(HpackError::Malformed);
            }
        }
    }
    *block = rest;
    Ok(value)
}

fn put_integer(out: &mut Vec<u8>, first: u8, prefix: u32, value: usize) {
    let mask = (1usize << prefix) - 1;
    if value < mask {
        out.push(first | value as u8);
        return;
    }
    out.push(first | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Writes a field as a literal that no table remembers.
pub(super) fn literal(out: &mut Vec<u8>, name: &str, value: &str) {
    match STATIC.iter().position(|(known, _)| *known == name) {
        Some(index) => put_integer(out, 0, 4, index + 1),
        None => {
            put_integer(out, 0, 4, 0);
            put_integer(out, 0, 7, name.len());
            out.extend_from_slice(name.as_bytes());
        }
    }
    put_integer(out, 0, 7, value.len());
    out.extend_from_slice(value.as_bytes());
}

/// Writes `:status`.
pub(super) fn status(out: &mut Vec<u8>, status: http::StatusCode) {
    match STATIC.iter().position(|(name, value)| *name == ":status" && *value == status.as_str()) {
        Some(index) => put_integer(out, 0x80, 7, index + 1),
        None => literal(out, ":status", status.as_str()),
    }
}

/// RFC 7541, appendix A.
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"), (":scheme", "http"), (":scheme", "https"),
    (":status", "200"), (":status", "204"), (":status", "206"), (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"),
    ("accept-charset", ""), ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""), ("content-disposition", ""),
    ("content-encoding", ""), ("content-language", ""), ("content-length", ""), ("content-location", ""), ("content-range", ""), ("content-type", ""),
    ("cookie", ""), ("date", ""), ("etag", ""), ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""), ("location", ""), ("max-forwards", ""),
    ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""), ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""),
    ("set-cookie", ""), ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""), ("www-authenticate", ""),
];

#[cfg(test)]
#[allow(non_snake_case)]
mod tests {
    use super::*;

    fn field(name: &str, value: &str) -> Field {
        Field { name: name.into(), value: value.into() }
    }

    #[test]
    fn reads_the_request_examples_of_the_standard() {
        let mut decoder = Decoder::new(1 << 16);
        let first =
            [0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        let expect = vec![
            field(":method", "GET"),
            field(":scheme", "http"),
            field(":path", "/"),
            field(":authority", "www.example.com"),
        ];
        assert_eq!(decoder.decode(&first), Ok(expect));
        let second = [0x82, 0x86, 0x84, 0xbe, 0x58, 0x86, 0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf];
        let expect = vec![
            field(":method", "GET"),
            field(":scheme", "http"),
            field(":path", "/"),
            field(":authority", "www.example.com"),
            field("cache-control", "no-cache"),
        ];
        assert_eq!(decoder.decode(&second), Ok(expect));
    }

    #[test]
    fn reads_what_it_writes() {
        let long = "x".repeat(300);
        let mut block = Vec::new();
        status(&mut block, http::StatusCode::OK);
        status(&mut block, http::StatusCode::SERVICE_UNAVAILABLE);
        literal(&mut block, ":authority", "10.0.0.1:80");
        literal(&mut block, "baggage", &long);
        let expect = vec![
            field(":status", "200"),
            field(":status", "503"),
            field(":authority", "10.0.0.1:80"),
            field("baggage", &long),
        ];
        assert_eq!(Decoder::new(1 << 16).decode(&block), Ok(expect));
    }

    #[test]
    fn hardening_B40_limits_hold_on_the_decoded_size() {
        // One 4000-byte cookie in the table, then a thousand one-byte references to it.
        let mut block = vec![0x40];
        put_integer(&mut block, 0, 7, 6);
        block.extend_from_slice(b"cookie");
        put_integer(&mut block, 0, 7, 4000);
        block.extend(std::iter::repeat_n(b'c', 4000));
        block.extend(std::iter::repeat_n(0xbe, 1000));
        assert_eq!(Decoder::new(64 * 1024).decode(&block), Err(HpackError::TooLarge));
        // Ten thousand fields.
        assert_eq!(Decoder::new(1 << 20).decode(&vec![0x82; 10_000]), Err(HpackError::TooLarge));
        // A string that claims more than there is, or more than allowed.
        assert_eq!(Decoder::new(1 << 16).decode(&[0x40, 0x05, b'a']), Err(HpackError::Malformed));
        assert_eq!(Decoder::new(1 << 10).decode(&[0x40, 0x7f, 0xff, 0xff, 0x03]), Err(HpackError::TooLarge));
        // Table sizes above the limit, indexes out of range, integers without end.
        assert_eq!(Decoder::new(1 << 16).decode(&[0x3f, 0xe2, 0x1f]), Err(HpackError::Malformed));
        assert_eq!(Decoder::new(1 << 16).decode(&[0xff, 0x7f]), Err(HpackError::Malformed));
        assert_eq!(Decoder::new(1 << 16).decode(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Err(HpackError::Malformed));
        assert_eq!(Decoder::new(1 << 16).decode(&[0x80]), Err(HpackError::Malformed));
    }

    #[test]
    fn table_stays_within_its_size() {
        let mut decoder = Decoder::new(1 << 16);
        for number in 0..1000 {
            let mut block = vec![0x40];
            let name = format!("n{number}");
            put_integer(&mut block, 0, 7, name.len());
            block.extend_from_slice(name.as_bytes());
            put_integer(&mut block, 0, 7, 100);
            block.extend(std::iter::repeat_n(b'v', 100));
            decoder.decode(&block).unwrap();
            assert!(decoder.table_size <= TABLE_LIMIT);
        }
        decoder.decode(&[0x20]).unwrap();
        assert_eq!((decoder.table.len(), decoder.table_size), (0, 0));
    }
}
