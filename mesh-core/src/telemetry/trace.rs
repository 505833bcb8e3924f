//! Which trace a request belongs to: read from and written to the headers of W3C (`traceparent`, `tracestate`) and of B3 (`b3`, `x-b3-*`), and whether it
//! is recorded. What does not read is as good as nothing: it is never sent on.

use http::{HeaderMap, HeaderName, HeaderValue};
use rand::Rng;

use crate::l7::Share;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CLIENT_TRACE: HeaderName = HeaderName::from_static("x-client-trace-id");
const FORCE_TRACE: HeaderName = HeaderName::from_static("x-envoy-force-trace");

/// Longest `tracestate` that is sent on, and most members of it, as W3C says.
const LONGEST_STATE: usize = 512;
const MOST_MEMBERS: usize = 32;
/// Where a request id says whether its trace is recorded, as Envoy writes it.
const MARK: usize = 14;

/// A span: what others are told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId {
    /// Never 0.
    pub trace: u128,
    /// Never 0.
    pub span: u64,
}

/// Ways to write it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Styles {
    /// `traceparent` and `tracestate`.
    pub w3c: bool,
    /// `b3`
    pub b3: bool,
    /// `x-b3-traceid` and the like.
    pub b3_multi: bool,
}

/// What a client has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Incoming {
    /// Its span.
    pub parent: Option<SpanId>,
    /// Whether it records.
    pub sampled: Option<bool>,
    /// What vendors say, of W3C.
    pub state: Option<HeaderValue>,
    /// How it was said, also where it could not be read.
    pub styles: Styles,
}

/// How many requests are recorded of which the client says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// So many.
    pub share: Share,
    /// A request id that says so counts.
    pub by_request_id: bool,
    /// A client may ask for it with `x-client-trace-id` or `x-envoy-force-trace`.
    pub on_demand: bool,
}

impl Sampling {
    /// So many, and what request ids say.
    #[must_use]
    pub fn of(share: Share) -> Self {
        Self { share, by_request_id: true, on_demand: false }
    }
}

/// Reads what a client has said. The first that reads counts: W3C, `b3`, `x-b3-*`.
#[must_use]
pub fn read(headers: &HeaderMap) -> Incoming {
    let styles = Styles {
        w3c: headers.contains_key(TRACEPARENT),
        b3: headers.contains_key(B3),
        b3_multi: headers.contains_key(B3_TRACE) || headers.contains_key(B3_SAMPLED) || headers.contains_key(B3_FLAGS),
    };
    if let Some((parent, sampled)) = only(headers, &TRACEPARENT).and_then(traceparent) {
        return Incoming { parent: Some(parent), sampled: Some(sampled), state: state(headers), styles };
    }
    let b3 = only(headers, &B3).and_then(single).or_else(|| multi(headers));
    let (parent, sampled) = b3.unwrap_or_default();
    Incoming { parent, sampled, state: None, styles }
}

/// Takes away all that says something of a trace.
pub fn strip(headers: &mut HeaderMap) {
    for name in [TRACEPARENT, TRACESTATE, B3, B3_TRACE, B3_SPAN, B3_PARENT, B3_SAMPLED, B3_FLAGS] {
        headers.remove(name);
    }
}

/// Says whose child the next one is, in place of all that was said before.
pub fn write(
    headers: &mut HeaderMap,
    span: SpanId,
    parent: Option<u64>,
    sampled: bool,
    state: Option<&HeaderValue>,
    styles: Styles,
) {
    strip(headers);
    let (trace, id, bit) = (span.trace, span.span, u8::from(sampled));
    let mut insert = |name: HeaderName, text: String| {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    };
    if styles.w3c {
        insert(TRACEPARENT, format!("00-{trace:032x}-{id:016x}-{bit:02x}"));
    }
    if styles.b3 {
        let parent = parent.map(|parent| format!("-{parent:016x}")).unwrap_or_default();
        insert(B3, format!("{trace:032x}-{id:016x}-{bit}{parent}"));
    }
    if styles.b3_multi {
        insert(B3_TRACE, format!("{trace:032x}"));
        insert(B3_SPAN, format!("{id:016x}"));
        if let Some(parent) = parent {
            insert(B3_PARENT, format!("{parent:016x}"));
        }
        insert(B3_SAMPLED, bit.to_string());
    }
    if let Some(state) = state.filter(|_| styles.w3c) {
        headers.insert(TRACESTATE, state.clone());
    }
}

/// Whether a request is recorded: the client's decision, then what its id says, then the lot.
pub fn decide(incoming: &Incoming, headers: &HeaderMap, sampling: Sampling, rng: &mut impl Rng) -> bool {
    if let Some(sampled) = incoming.sampled {
        return sampled;
    }
    if sampling.on_demand && (headers.contains_key(CLIENT_TRACE) || headers.contains_key(FORCE_TRACE)) {
        return true;
    }
    if sampling.by_request_id && marked(headers) {
        return true;
    }
    sampling.share.happens(rng)
}

/// Writes into a request id that is a UUID that its trace is recorded, as Envoy does, so that others who see only the id do the same.
pub fn mark(headers: &mut HeaderMap) {
    let Some(id) = headers.get_mut(REQUEST_ID) else { return };
    if !is_uuid(id.as_bytes()) || id.as_bytes()[MARK] != b'4' {
        return;
    }
    let mut text = id.as_bytes().to_vec();
    text[MARK] = b'9';
    if let Ok(marked) = HeaderValue::from_bytes(&text) {
        *id = marked;
    }
}

/// A new span, in the trace of `parent`.
pub fn child(parent: Option<SpanId>, rng: &mut impl Rng) -> SpanId {
    let trace = parent.map_or_else(|| rng.random_range(1..=u128::MAX), |parent| parent.trace);
    SpanId { trace, span: rng.random_range(1..=u64::MAX) }
}

fn marked(headers: &HeaderMap) -> bool {
    let id = headers.get(REQUEST_ID).map(HeaderValue::as_bytes);
    id.is_some_and(|id| is_uuid(id) && matches!(id[MARK], b'9' | b'a' | b'b'))
}

fn is_uuid(text: &[u8]) -> bool {
    let dashes = [8, 13, 18, 23];
    let good = |(at, byte): (usize, &u8)| if dashes.contains(&at) { *byte == b'-' } else { byte.is_ascii_hexdigit() };
    text.len() == 36 && text.iter().enumerate().all(good)
}

/// The value of a header that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    let one = all.next()?.to_str().ok()?;
    all.next().is_none().then_some(one)
}

fn traceparent(text: &str) -> Option<(SpanId, bool)> {
    let is_lower = |text: &str| !text.bytes().any(|byte| byte.is_ascii_uppercase());
    let mut parts = text.trim().splitn(5, '-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let version = u8::try_from(hex(version, 2).filter(|_| is_lower(version))?).ok()?;
    // Later versions may add something; this one has nothing more.
    if version == 0xff || (version == 0 && parts.next().is_some()) || !is_lower(text) {
        return None;
    }
    let id = SpanId { trace: hex(trace, 32)?, span: u64::try_from(hex(span, 16)?).ok()? };
    let flags = hex(flags, 2)?;
    (id.trace != 0 && id.span != 0).then_some((id, flags & 1 == 1))
}

type Said = (Option<SpanId>, Option<bool>);

fn single(text: &str) -> Option<Said> {
    let text = text.trim();
    let decision = |text: &str| match text {
        "0" => Some(false),
        "1" | "d" => Some(true),
        _ => None,
    };
    if !text.contains('-') {
        return Some((None, Some(decision(text)?)));
    }
    let parts: Vec<&str> = text.splitn(5, '-').collect();
    let (id, sampled) = match *parts {
        [trace, span] => (b3_span(trace, span)?, None),
        [trace, span, sampled] => (b3_span(trace, span)?, Some(decision(sampled)?)),
        [trace, span, sampled, parent] => {
            hex(parent, 16)?;
            (b3_span(trace, span)?, Some(decision(sampled)?))
        }
        _ => return None,
    };
    Some((Some(id), sampled))
}

fn multi(headers: &HeaderMap) -> Option<Said> {
    let sampled = match (only(headers, &B3_FLAGS), only(headers, &B3_SAMPLED)) {
        (Some("1"), _) => Some(true),
        (_, Some("1" | "true")) => Some(true),
        (_, Some("0" | "false")) => Some(false),
        _ => None,
    };
    let ids = (only(headers, &B3_TRACE), only(headers, &B3_SPAN));
    let id = if let (Some(trace), Some(span)) = ids { b3_span(trace, span) } else { None };
    (id.is_some() || sampled.is_some()).then_some((id, sampled))
}

fn b3_span(trace: &str, span: &str) -> Option<SpanId> {
    let trace = hex(trace, 32).or_else(|| hex(trace, 16))?;
    let id = SpanId { trace, span: u64::try_from(hex(span, 16)?).ok()? };
    (id.trace != 0 && id.span != 0).then_some(id)
}

/// A number of exactly so many digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let good = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    good.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

fn state(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut all = headers.get_all(TRACESTATE).iter();
    let first = all.next()?;
    let joined = match all.next() {
        None => first.clone(),
        Some(second) => {
            let mut text = first.as_bytes().to_vec();
            for more in std::iter::once(second).chain(all) {
                text.push(b',');
                text.extend_from_slice(more.as_bytes());
            }
            HeaderValue::from_bytes(&text).ok()?
        }
    };
    let text = joined.to_str().ok().filter(|text| text.len() <= LONGEST_STATE)?;
    let members: Vec<&str> = text.split(',').map(str::trim).filter(|member| !member.is_empty()).collect();
    let good = |member: &&str| {
        let Some((key, value)) = member.split_once('=') else { return false };
        let of_key = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(&byte);
        let of_value = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'=';
        !key.is_empty() && key.bytes().all(of_key) && value.bytes().all(of_value)
    };
    ((1..=MOST_MEMBERS).contains(&members.len()) && members.iter().all(good)).then_some(joined)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";
    const UUID: &str = "6e0b8a3c-1d2e-4f5a-8b9c-0d1e2f3a4b5c";

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let line =
            |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        lines.iter().map(line).collect()
    }

    /// `trace span sampled`, as far as it was understood.
    fn shown(lines: &[(&str, &str)]) -> String {
        let incoming = read(&headers(lines));
        let parent = incoming.parent.map(|id| format!("{:x} {:x} ", id.trace, id.span)).unwrap_or_default();
        let sampled = match incoming.sampled {
            None => "?",
            Some(true) => "1",
            Some(false) => "0",
        };
        parent + sampled
    }

    #[test]
    fn what_clients_say_and_what_is_garbage() {
        let (ids, short) = ("af7651916cd43dd8448eb211c80319c b7ad6b7169203331", "8448eb211c80319c b7ad6b7169203331");
        let good = format!("00-{TRACE}-{SPAN}-01");
        let row = |name: &'static str, value: String, expected: String| (vec![(name, value)], expected);
        let mut rows = vec![
            row("traceparent", good.clone(), format!("{ids} 1")),
            row("traceparent", format!("00-{TRACE}-{SPAN}-00"), format!("{ids} 0")),
            row("traceparent", format!("00-{TRACE}-{SPAN}-03"), format!("{ids} 1")),
            row("traceparent", format!("cc-{TRACE}-{SPAN}-01-more-and-more"), format!("{ids} 1")),
            row("b3", format!("{TRACE}-{SPAN}-1"), format!("{ids} 1")),
            row("b3", format!("{TRACE}-{SPAN}-d-{SPAN}"), format!("{ids} 1")),
            row("b3", format!("8448EB211C80319C-{SPAN}"), format!("{short} ?")),
            row("b3", "0".to_owned(), "0".to_owned()),
            row("x-b3-sampled", "true".to_owned(), "1".to_owned()),
            row("x-b3-flags", "1".to_owned(), "1".to_owned()),
            (vec![("x-b3-traceid", TRACE.to_owned()), ("x-b3-spanid", SPAN.to_owned())], format!("{ids} ?")),
            (vec![("x-b3-traceid", TRACE.to_owned()), ("x-b3-sampled", "0".to_owned())], "0".to_owned()),
            // The first that reads counts.
            (vec![("traceparent", good.clone()), ("b3", "0".to_owned())], format!("{ids} 1")),
            (vec![("traceparent", "garbage".to_owned()), ("b3", "0".to_owned())], "0".to_owned()),
            (vec![("traceparent", good.clone()), ("traceparent", good)], "?".to_owned()),
        ];
        let zero = "0".repeat(32);
        for garbage in [
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{zero}-{SPAN}-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}x-{SPAN}-01"),
            "x".repeat(5000),
            String::new(),
        ] {
            rows.push(row("traceparent", garbage, "?".to_owned()));
        }
        for garbage in [format!("{TRACE}-{SPAN}-2"), format!("{zero}-{SPAN}-1"), "2".to_owned(), "-".to_owned()] {
            rows.push(row("b3", garbage, "?".to_owned()));
        }
        for (lines, expected) in rows {
            let lines: Vec<(&str, &str)> = lines.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(shown(&lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn vendors_state_goes_on_if_it_is_one() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let long = format!("a={}", "x".repeat(LONGEST_STATE));
        let many: String = (0..=MOST_MEMBERS).map(|at| format!("k{at}=1,")).collect();
        for (state, goes_on) in [
            ("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", true),
            ("fw529a3039@dt=FfAAAA", true),
            ("Congo=1", false),
            ("congo", false),
            ("=1", false),
            ("", false),
            (&long, false),
            (&many, false),
        ] {
            let read = read(&headers(&[("traceparent", &parent), ("tracestate", state)]));
            assert_eq!(read.state.is_some(), goes_on, "{state}");
        }
        assert!(read(&headers(&[("tracestate", "a=1")])).state.is_none());
        let two = read(&headers(&[("traceparent", &parent), ("tracestate", "a=1"), ("tracestate", "b=2")]));
        assert_eq!(two.state.unwrap(), "a=1,b=2");
    }

    #[test]
    fn what_is_said_replaces_what_was_said() {
        let mut map =
            headers(&[("traceparent", "garbage"), ("x-b3-flags", "1"), ("tracestate", "a=1"), ("x-kept", "1")]);
        let span = SpanId { trace: 0xabc, span: 0xdef };
        write(&mut map, span, Some(7), true, None, Styles { w3c: true, b3: true, b3_multi: false });
        let (trace, id) = (format!("{:032x}", 0xabc), format!("{:016x}", 0xdef));
        let (w3c, b3) = (format!("00-{trace}-{id}-01"), format!("{trace}-{id}-1-0000000000000007"));
        assert_eq!(map, headers(&[("x-kept", "1"), ("traceparent", &w3c), ("b3", &b3)]));
        write(&mut map, span, None, false, None, Styles { b3_multi: true, ..Styles::default() });
        let expected =
            headers(&[("x-kept", "1"), ("x-b3-traceid", &trace), ("x-b3-spanid", &id), ("x-b3-sampled", "0")]);
        assert_eq!(map, expected);
    }

    #[test]
    fn the_clients_decision_comes_before_the_lot() {
        let (always, never) = (Sampling::of(Share::ALWAYS), Sampling::of(Share::default()));
        let asked = Sampling { on_demand: true, ..never };
        let marked = UUID.replace("-4f5a", "-9f5a");
        let blind = Sampling { by_request_id: false, ..never };
        for (lines, sampling, expected) in [
            (vec![], always, true),
            (vec![], never, false),
            (vec![("b3", "0")], always, false),
            (vec![("b3", "1")], never, true),
            (vec![("traceparent", "garbage")], never, false),
            (vec![("x-request-id", UUID)], never, false),
            (vec![("x-request-id", &*marked)], never, true),
            (vec![("x-request-id", &*marked)], blind, false),
            (vec![("x-request-id", "0123456789abcd9")], never, false),
            (vec![("x-client-trace-id", "1")], never, false),
            (vec![("x-envoy-force-trace", "1")], never, false),
            (vec![("x-client-trace-id", "1")], asked, true),
            (vec![("x-envoy-force-trace", "1"), ("b3", "0")], asked, false),
        ] {
            let (map, mut rng) = (headers(&lines), SmallRng::seed_from_u64(1));
            assert_eq!(decide(&read(&map), &map, sampling, &mut rng), expected, "{lines:?} {sampling:?}");
        }
        let mut rng = SmallRng::seed_from_u64(7);
        let one = Sampling::of(Share::millionths(10_000).unwrap());
        let count = (0..100_000).filter(|_| decide(&Incoming::default(), &HeaderMap::new(), one, &mut rng)).count();
        assert!((800..1200).contains(&count), "{count}");
    }

    #[test]
    fn a_request_id_says_that_its_trace_is_recorded() {
        let mut map = headers(&[("x-request-id", UUID)]);
        mark(&mut map);
        assert_eq!(map["x-request-id"], UUID.replace("-4f5a", "-9f5a"));
        let mut own = headers(&[("x-request-id", "mine")]);
        mark(&mut own);
        assert_eq!(own["x-request-id"], "mine");
    }

    #[test]
    fn a_child_is_in_the_trace_of_its_parent() {
        let mut rng = SmallRng::seed_from_u64(1);
        let parent = child(None, &mut rng);
        let next = child(Some(parent), &mut rng);
        assert!(parent.trace == next.trace && parent.span != next.span && next.span != 0);
    }
}
