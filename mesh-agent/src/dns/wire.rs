//! DNS messages as bytes: what a query says, what a reply looks like, and what may pass of a nameserver's answer.
//!
//! Queries and answers that are not ours are passed on as they are, but for id, payload size and TTL, so nothing an application and its
//! nameserver agree on is lost in a decode and encode. That is why there is no message type here: a query is a checked view of its bytes,
//! and a reply starts with a copy of the question, which also keeps the case of its letters (0x20). Every walk is one pass: names are
//! skipped, not followed. Called by `handle`, `cache` and `upstream`; tests compare with hickory-proto.

use std::net::IpAddr;
use std::ops::Range;

/// Queries longer than this are refused: one question and an OPT record fit many times.
pub(crate) const MAX_QUERY: usize = 2048;
/// Largest datagram sent or asked for: fits one packet on every path.
pub(crate) const MAX_DATAGRAM: u16 = 1232;
/// Largest datagram for a client that does not say what it can take.
const MIN_DATAGRAM: u16 = 512;
/// Bounds of the TTLs that pass, in seconds.
pub(crate) const TTL: Range<u32> = 1..301;

const HEADER: usize = 12;
const MAX_NAME: usize = 255;
/// A query has no more additional records: OPT, and a signature.
const MAX_ADDITIONAL: u16 = 4;

const QR: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AA: u16 = 0x0400;
const TC: u16 = 0x0200;
const RD: u16 = 0x0100;
const RA: u16 = 0x0080;
const CD: u16 = 0x0010;

/// Types that this code knows by number.
pub(crate) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const TSIG: u16 = 250;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
}

/// Classes that this code knows by number.
pub(crate) mod class {
    pub(crate) const IN: u16 = 1;
    pub(crate) const ANY: u16 = 255;
}

/// Response codes.
pub(crate) mod code {
    pub(crate) const NO_ERROR: u16 = 0;
    pub(crate) const FORMAT_ERROR: u16 = 1;
    pub(crate) const SERVER_FAILURE: u16 = 2;
    pub(crate) const NAME_ERROR: u16 = 3;
    pub(crate) const NOT_IMPLEMENTED: u16 = 4;
    pub(crate) const BAD_VERSION: u16 = 16;
}

/// The EDNS record of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns {
    pub(crate) payload: u16,
    pub(crate) version: u8,
    pub(crate) dnssec_ok: bool,
    /// Whether it carries options, which are between this client and its nameserver.
    pub(crate) options: bool,
    /// Where the payload size stands.
    payload_at: usize,
}

/// A well-formed query with one question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query<'a> {
    bytes: &'a [u8],
    /// End of the question.
    end: usize,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    pub(crate) edns: Option<Edns>,
}

/// Why bytes are not a query for us.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotQuery {
    /// A response, or too little to answer at all.
    Ignore,
    /// Answer with this error.
    Error(Vec<u8>),
}

impl<'a> Query<'a> {
    /// Checks a message and finds its parts.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, NotQuery> {
        let flags = u16_at(bytes, 2).ok_or(NotQuery::Ignore)?;
        if flags & QR != 0 {
            return Err(NotQuery::Ignore);
        }
        let error = |code| NotQuery::Error(bare_error(bytes, flags, code));
        if bytes.len() < HEADER || bytes.len() > MAX_QUERY {
            return Err(error(code::FORMAT_ERROR));
        }
        if flags & OPCODE != 0 {
            return Err(error(code::NOT_IMPLEMENTED));
        }
        if u16_at(bytes, 4) != Some(1) {
            return Err(error(code::FORMAT_ERROR));
        }
        let query = Self::parse_sections(bytes).ok_or_else(|| error(code::FORMAT_ERROR))?;
        if matches!(query.kind, kind::AXFR | kind::IXFR) {
            return Err(NotQuery::Error(query.reply(code::NOT_IMPLEMENTED, 0, &[])));
        }
        Ok(query)
    }

    fn parse_sections(bytes: &'a [u8]) -> Option<Self> {
        let name_end = question_name(bytes)?;
        let (kind, class) = (u16_at(bytes, name_end)?, u16_at(bytes, name_end + 2)?);
        let mut query = Self { bytes, end: name_end + 4, kind, class, edns: None };
        let (answers, authorities, additional) = (u16_at(bytes, 6)?, u16_at(bytes, 8)?, u16_at(bytes, 10)?);
        // An incremental transfer names its version in an authority record; it is refused by type, not by form.
        let transfer = kind == kind::IXFR && authorities == 1;
        if answers != 0 || (authorities != 0 && !transfer) || additional > MAX_ADDITIONAL {
            return None;
        }
        let mut at = query.end;
        for _ in 0..authorities + additional {
            let record = Record::read(bytes, at)?;
            if record.kind == kind::OPT {
                let root = bytes[at] == 0;
                if query.edns.is_some() || !root || !options_fit(&bytes[record.data.clone()]) {
                    return None;
                }
                query.edns = Some(Edns {
                    payload: record.class,
                    version: (record.ttl >> 16) as u8,
                    dnssec_ok: record.ttl & 0x8000 != 0,
                    options: !record.data.is_empty(),
                    payload_at: record.kind_at + 2,
                });
            }
            at = record.data.end;
        }
        (at == bytes.len()).then_some(query)
    }

    /// The id that the client chose.
    pub(crate) fn id(&self) -> u16 {
        u16_at(self.bytes, 0).unwrap_or_default()
    }

    fn flags(&self) -> u16 {
        u16_at(self.bytes, 2).unwrap_or_default()
    }

    /// Name, type and class as they stand in the message.
    pub(crate) fn question(&self) -> &'a [u8] {
        &self.bytes[HEADER..self.end]
    }

    /// The name in lower case without the last dot; `None` if it holds bytes that no host name has.
    pub(crate) fn host(&self) -> Option<String> {
        let mut host = String::with_capacity(self.end - HEADER);
        let mut rest = &self.bytes[HEADER..self.end - 4];
        while let [length, tail @ ..] = rest
            && *length > 0
        {
            let (label, tail) = tail.split_at_checked(usize::from(*length))?;
            if !host.is_empty() {
                host.push('.');
            }
            for &byte in label {
                let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
                host.push(char::from(plain.then_some(byte)?.to_ascii_lowercase()));
            }
            rest = tail;
        }
        Some(host)
    }

    /// The longest datagram that may answer it.
    pub(crate) fn datagram(&self) -> usize {
        usize::from(self.edns.map_or(MIN_DATAGRAM, |edns| edns.payload.clamp(MIN_DATAGRAM, MAX_DATAGRAM)))
    }

    /// What distinguishes answers to equal questions: the flags that a nameserver heeds.
    pub(crate) fn variant(&self) -> (u16, Option<bool>) {
        (self.flags() & (RD | CD), self.edns.map(|edns| edns.dnssec_ok))
    }

    /// Whether others may get the same answer.
    pub(crate) fn cacheable(&self) -> bool {
        !self.edns.is_some_and(|edns| edns.options)
    }

    /// The query for the nameserver: another id, and a payload size that fits one packet.
    pub(crate) fn forwarded(&self, id: u16) -> Vec<u8> {
        let mut bytes = self.bytes.to_vec();
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        if let Some(edns) = self.edns {
            let payload = edns.payload.clamp(MIN_DATAGRAM, MAX_DATAGRAM);
            bytes[edns.payload_at..edns.payload_at + 2].copy_from_slice(&payload.to_be_bytes());
        }
        bytes
    }

    /// A reply without records.
    pub(crate) fn error(&self, code: u16) -> Vec<u8> {
        self.reply(code, 0, &[])
    }

    /// An authoritative reply with as many of the addresses as fit in `limit` bytes; the rest is announced by TC.
    pub(crate) fn addresses(&self, addresses: &[IpAddr], ttl: u32, limit: usize) -> Vec<u8> {
        let record = if self.kind == kind::AAAA { 28 } else { 16 };
        let room = limit.saturating_sub(self.end + self.opt_len()) / record;
        let fit = &addresses[..addresses.len().min(room)];
        let mut records = Vec::with_capacity(fit.len() * record);
        for address in fit {
            // A pointer to the question's name, so that the letters' case is the client's.
            records.extend_from_slice(&[0xc0, HEADER as u8]);
            records.extend_from_slice(&self.kind.to_be_bytes());
            records.extend_from_slice(&class::IN.to_be_bytes());
            records.extend_from_slice(&ttl.to_be_bytes());
            match address {
                IpAddr::V4(v4) => push_data(&mut records, &v4.octets()),
                IpAddr::V6(v6) => push_data(&mut records, &v6.octets()),
            }
        }
        let mut reply = self.reply(code::NO_ERROR, AA | if fit.len() < addresses.len() { TC } else { 0 }, &records);
        let count = u16::try_from(fit.len()).unwrap_or_default();
        reply[6..8].copy_from_slice(&count.to_be_bytes());
        reply
    }

    fn opt_len(&self) -> usize {
        if self.edns.is_some() { 11 } else { 0 }
    }

    fn reply(&self, code: u16, extra: u16, records: &[u8]) -> Vec<u8> {
        let flags = QR | (self.flags() & (RD | CD)) | RA | extra | (code & 0xf);
        let additional = u16::from(self.edns.is_some());
        let mut reply = Vec::with_capacity(self.end + records.len() + self.opt_len());
        for word in [self.id(), flags, 1, 0, 0, additional] {
            reply.extend_from_slice(&word.to_be_bytes());
        }
        reply.extend_from_slice(self.question());
        reply.extend_from_slice(records);
        if let Some(edns) = self.edns {
            reply.push(0);
            let dnssec_ok = if edns.dnssec_ok { 0x8000 } else { 0 };
            for word in [kind::OPT, MAX_DATAGRAM, (code >> 4) << 8, dnssec_ok, 0] {
                reply.extend_from_slice(&word.to_be_bytes());
            }
        }
        reply
    }

    /// Makes a checked answer of a nameserver the answer to this query: its id, its letters, `age` seconds off the TTLs, and no longer
    /// than `limit`, else only the question and TC.
    pub(crate) fn deliver(&self, answer: &[u8], age: u32, limit: usize) -> Vec<u8> {
        if answer.len() > limit || answer.len() < self.end {
            return self.reply(code::NO_ERROR, TC, &[]);
        }
        let mut reply = answer.to_vec();
        reply[..2].copy_from_slice(&self.id().to_be_bytes());
        reply[HEADER..self.end].copy_from_slice(self.question());
        if age > 0 {
            // Checked when it came, so the walk reaches the end.
            each_ttl(&mut reply, |ttl| ttl.saturating_sub(age).max(TTL.start));
        }
        reply
    }
}

/// What a nameserver answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The message, with TTLs inside [`TTL`].
    pub(crate) bytes: Vec<u8>,
    /// Its response code.
    pub(crate) code: u16,
    /// It did not fit; ask over TCP.
    pub(crate) truncated: bool,
    /// Seconds it may be kept; `None` if it may not.
    pub(crate) lifetime: Option<u32>,
}

/// Checks that a message answers our query: id, question, structure. `None` means that it is someone else's, or nobody's.
pub(crate) fn answer(query: &Query, id: u16, mut bytes: Vec<u8>) -> Option<Answer> {
    let flags = u16_at(&bytes, 2)?;
    if bytes.len() < HEADER || u16_at(&bytes, 0) != Some(id) || flags & QR == 0 || flags & OPCODE != 0 {
        return None;
    }
    let code = flags & 0xf;
    // Servers that cannot read a query may answer with the bare header. It is the client's to hear what went wrong.
    if u16_at(&bytes, 4) == Some(0) && bytes.len() == HEADER && !matches!(code, code::NO_ERROR | code::NAME_ERROR) {
        return Some(Answer { bytes: query.error(code), code, truncated: false, lifetime: None });
    }
    let question = bytes.get(HEADER..query.end)?;
    if u16_at(&bytes, 4) != Some(1) || !question.eq_ignore_ascii_case(query.question()) {
        return None;
    }
    if flags & TC != 0 {
        // It may end anywhere, and is only a reason to ask again.
        return Some(Answer { bytes: query.reply(code, TC, &[]), code, truncated: true, lifetime: None });
    }
    let survey = survey(&bytes, query.end)?;
    bytes.truncate(survey.end);
    each_ttl(&mut bytes, clamp);
    Some(Answer { lifetime: survey.lifetime(code), bytes, code, truncated: false })
}

/// A TTL inside [`TTL`]. One with the highest bit set means zero (RFC 2181, 8).
fn clamp(ttl: u32) -> u32 {
    let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
    ttl.clamp(TTL.start, TTL.end - 1)
}

/// What the records of an answer say about keeping it.
struct Survey {
    /// End of the last record.
    end: usize,
    answers: u16,
    least_ttl: u32,
    negative_ttl: Option<u32>,
}

impl Survey {
    fn lifetime(&self, code: u16) -> Option<u32> {
        let seconds = match code {
            code::NO_ERROR if self.answers > 0 => Some(self.least_ttl),
            code::NO_ERROR | code::NAME_ERROR => self.negative_ttl,
            _ => None,
        };
        seconds.map(clamp)
    }
}

/// Walks all records once.
fn survey(bytes: &[u8], start: usize) -> Option<Survey> {
    let (answers, authorities, additional) = (u16_at(bytes, 6)?, u16_at(bytes, 8)?, u16_at(bytes, 10)?);
    let mut survey = Survey { end: start, answers, least_ttl: TTL.end, negative_ttl: None };
    let mut at = start;
    for index in 0..u32::from(answers) + u32::from(authorities) + u32::from(additional) {
        let record = Record::read(bytes, at)?;
        if record.has_ttl() && index < u32::from(answers) {
            survey.least_ttl = survey.least_ttl.min(clamp(record.ttl));
        }
        if record.kind == kind::SOA && record.data.len() >= 22 {
            let minimum = u32_at(bytes, record.data.end - 4)?;
            survey.negative_ttl = Some(clamp(minimum).min(clamp(record.ttl)));
        }
        at = record.data.end;
    }
    survey.end = at;
    Some(survey)
}

/// Rewrites the TTLs of a checked message.
fn each_ttl(bytes: &mut [u8], change: impl Fn(u32) -> u32) {
    let Some(mut at) = question_name(bytes).map(|end| end + 4) else { return };
    while let Some(record) = Record::read(bytes, at) {
        if record.has_ttl() {
            let ttl = change(record.ttl).to_be_bytes();
            bytes[record.kind_at + 4..record.kind_at + 8].copy_from_slice(&ttl);
        }
        at = record.data.end;
    }
}

/// The fixed part of a record.
struct Record {
    kind_at: usize,
    kind: u16,
    class: u16,
    ttl: u32,
    data: Range<usize>,
}

impl Record {
    fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let kind_at = skip_name(bytes, at)?;
        let start = kind_at + 10;
        let end = start + usize::from(u16_at(bytes, kind_at + 8)?);
        (end <= bytes.len()).then_some(Self {
            kind_at,
            kind: u16_at(bytes, kind_at)?,
            class: u16_at(bytes, kind_at + 2)?,
            ttl: u32_at(bytes, kind_at + 4)?,
            data: start..end,
        })
    }

    /// OPT and TSIG keep other things where the TTL is.
    fn has_ttl(&self) -> bool {
        !matches!(self.kind, kind::OPT | kind::TSIG)
    }
}

/// End of the question's name, which cannot be compressed: nothing stands before it to point to.
fn question_name(bytes: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1 + length;
        if length > 63 || at - HEADER > MAX_NAME {
            return None;
        }
        if length == 0 {
            return Some(at);
        }
    }
}

/// End of a name that may end in a pointer. Pointers go strictly back, so whoever follows them comes to an end.
fn skip_name(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let length = usize::from(*bytes.get(at)?);
        match length {
            0 => return Some(at + 1),
            1..=63 => at += 1 + length,
            0xc0.. => {
                let target = (length & 0x3f) << 8 | usize::from(*bytes.get(at + 1)?);
                return (HEADER..start).contains(&target).then_some(at + 2);
            }
            _ => return None,
        }
        if at - start >= MAX_NAME {
            return None;
        }
    }
}

/// Whether the options fill the record's data exactly.
fn options_fit(mut data: &[u8]) -> bool {
    while !data.is_empty() {
        let Some(length) = u16_at(data, 2) else { return false };
        let Some(rest) = data.get(4 + usize::from(length)..) else { return false };
        data = rest;
    }
    true
}

/// An error for a message whose question cannot be read.
fn bare_error(bytes: &[u8], flags: u16, code: u16) -> Vec<u8> {
    let mut reply = vec![0; HEADER];
    reply[..2].copy_from_slice(&bytes[..2]);
    reply[2..4].copy_from_slice(&(QR | (flags & (OPCODE | RD)) | RA | code).to_be_bytes());
    reply
}

fn push_data(records: &mut Vec<u8>, data: &[u8]) {
    records.extend_from_slice(&(data.len() as u16).to_be_bytes());
    records.extend_from_slice(data);
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}
