//! Values that fields of several kinds have: lengths of time, string matches, names of hosts, and the grammar of each. Readers of `routing` use them.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::{Deserializer, Error};
use serde::{Deserialize, de};

/// Longest text of one pattern.
const LONGEST_PATTERN: usize = 4096;
/// Most attempts after the first.
const MOST_ATTEMPTS: u32 = 100;
/// What a pattern may become.
const PATTERN_SIZE: usize = 1 << 16;

/// How long something lasts, written as `1h30m`, `10s` or `500ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// The shortest that timers of proxies keep.
    pub const LEAST: Span = Span(Duration::from_millis(1));

    /// Reads one.
    pub fn parse(text: &str) -> Option<Span> {
        if text == "0" {
            return Some(Span::default());
        }
        let (mut rest, mut nanos) = (text, 0u128);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let (number, tail) = rest.split_at(digits);
            let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit);
            let scale: u128 = match unit {
                "h" => 3_600_000_000_000,
                "m" => 60_000_000_000,
                "s" => 1_000_000_000,
                "ms" => 1_000_000,
                "us" | "µs" => 1_000,
                "ns" => 1,
                _ => return None,
            };
            let (whole, part) = number.split_once('.').unwrap_or((number, ""));
            if whole.is_empty() && part.is_empty() || whole.len() > 10 || part.len() > 9 {
                return None;
            }
            let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
            let power = 10u128.pow(u32::try_from(part.len()).ok()?);
            nanos += digits(whole)? * scale + digits(part)? * scale / power;
            rest = tail;
        }
        let nanos = u64::try_from(nanos).ok().filter(|_| !text.is_empty())?;
        Some(Span(Duration::from_nanos(nanos)))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Span::parse(&text).ok_or_else(|| {
            D::Error::custom(format!("{text:?} is no length of time: write a number with a unit, as 500ms, 10s or 1h"))
        })
    }
}

/// A regular expression in RE2's language, which is held against the whole text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern(pub String);

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.0)
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty regular expression".into());
        }
        if text.len() > LONGEST_PATTERN {
            return Err(format!("a regular expression longer than {LONGEST_PATTERN} bytes"));
        }
        // Classes of Unicode are RE2's, too, but not known here: they are looked at by whoever uses the pattern.
        let is_beyond = ["\\p", "\\P"].iter().any(|class| text.contains(class));
        if !is_beyond {
            let mut pattern = regex::bytes::RegexBuilder::new(&text);
            pattern.unicode(false).size_limit(PATTERN_SIZE).nest_limit(100);
            pattern.build().map_err(|error| match error {
                regex::Error::CompiledTooBig(_) => "the regular expression is too large".to_owned(),
                error => {
                    let text = error.to_string();
                    let last = text.lines().last().unwrap_or_default();
                    format!("not a regular expression: {}", last.strip_prefix("error: ").unwrap_or(last))
                }
            })?;
        }
        Ok(Pattern(text))
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Pattern::try_from(String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// How a text is compared: Istio's StringMatch.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WrittenMatch")]
pub enum StringMatch {
    /// It is this.
    Exact(String),
    /// It begins with this.
    Prefix(String),
    /// All of it matches this.
    Regex(Pattern),
    /// It is there: nothing is written.
    Present,
}

#[derive(Deserialize)]
struct WrittenMatch {
    exact: Option<String>,
    prefix: Option<String>,
    regex: Option<Pattern>,
}

impl TryFrom<WrittenMatch> for StringMatch {
    type Error = &'static str;

    fn try_from(written: WrittenMatch) -> Result<Self, &'static str> {
        match (written.exact, written.prefix, written.regex) {
            (Some(text), None, None) => Ok(StringMatch::Exact(text)),
            (None, Some(text), None) => Ok(StringMatch::Prefix(text)),
            (None, None, Some(pattern)) => Ok(StringMatch::Regex(pattern)),
            (None, None, None) => Ok(StringMatch::Present),
            _ => Err("write one of exact, prefix and regex"),
        }
    }
}

/// Labels, or the part of a label that a wildcard leaves.
fn label(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    text.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_')
}

/// The name of a host, without wildcards.
pub fn host(text: &str) -> Result<(), String> {
    let bare = text.strip_suffix('.').unwrap_or(text);
    if text.contains('*') {
        return Err(format!("{text:?} has a wildcard, and one host is meant"));
    }
    if bare.is_empty() || bare.len() > 253 || !bare.split('.').all(label) {
        return Err(format!("{text:?} is not the name of a host"));
    }
    Ok(())
}

/// The name of a host, or of many: `*`, or a first label of `*`.
pub fn host_pattern(text: &str) -> Result<(), String> {
    match text {
        "*" => Ok(()),
        _ => match text.strip_prefix("*.") {
            Some(rest) => host(rest)
                .map_err(|_| format!("{text:?}: a wildcard is `*`, or the whole first label, as *.example.com")),
            None if text.contains('*') => {
                Err(format!("{text:?}: a wildcard is `*`, or the whole first label, as *.example.com"))
            }
            None => host(text),
        },
    }
}

/// Whether every host that `inner` means is one that `outer` means. Both may have wildcards.
pub fn covers(outer: &str, inner: &str) -> bool {
    match outer.strip_prefix('*') {
        Some(suffix) => {
            let inner = inner.strip_prefix('*').unwrap_or(inner);
            let end = inner.len().checked_sub(suffix.len()).and_then(|at| inner.get(at..));
            end.is_some_and(|end| end.eq_ignore_ascii_case(suffix))
        }
        None => outer.eq_ignore_ascii_case(inner),
    }
}

/// An address, or a block of them.
pub fn block(text: &str) -> Result<(), String> {
    match text.parse::<IpNet>().is_ok() || text.parse::<IpAddr>().is_ok() {
        true => Ok(()),
        false => Err(format!("{text:?} is neither an address nor a block as 10.0.0.0/8")),
    }
}

/// The name of a header.
pub fn header(text: &str) -> Result<(), String> {
    match http::HeaderName::from_bytes(text.as_bytes()) {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("{text:?} is not the name of a header")),
    }
}

/// The name of a header that a request can be told by. Those that are about one connection are gone, or another's, before anybody compares them, and the host
/// is what was asked for, however it was written.
pub fn matchable(text: &str) -> Result<(), String> {
    header(text)?;
    let lower = text.to_ascii_lowercase();
    match lower.as_str() {
        "host" => Err(format!("{text:?} is the host that is asked for, and has a match of its own")),
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" => {
            Err(format!("{text:?} is about one connection, and not a request"))
        }
        _ => Ok(()),
    }
}

/// How often a request is tried again.
pub fn attempts(field: &str, attempts: Option<u32>, check: &mut super::Check<'_>) {
    if let Some(attempts) = attempts.filter(|attempts| *attempts > MOST_ATTEMPTS) {
        check.error(
            field,
            format!("{attempts} attempts"),
            &format!("write at most {MOST_ATTEMPTS}: a request that fails as often only adds to what fails"),
        );
    }
}

/// How long something may take, as it is written: what is left out is not the same as what is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// It is not said: what stands above it counts, or the default.
    Unset,
    /// It is 0: for ever, whatever the default is.
    None,
    /// So long.
    After(Duration),
}

impl From<Option<Span>> for Limit {
    fn from(written: Option<Span>) -> Self {
        match written {
            None => Limit::Unset,
            Some(Span(Duration::ZERO)) => Limit::None,
            Some(Span(time)) => Limit::After(time),
        }
    }
}

/// Who may see an object: `.`, `*`, `~` or a namespace.
pub fn visibility(text: &str) -> Result<(), String> {
    match text {
        "." | "*" | "~" => Ok(()),
        _ => crate::resource::meta::label(text)
            .map_err(|why| format!("{text:?} is neither `.`, `*` nor the name of a namespace: {why}")),
    }
}

/// What an application speaks on a port.
pub const PROTOCOLS: [&str; 12] =
    ["HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "REDIS", "MYSQL", "TCP", "TLS", "UDP", "HTTP_PROXY"];

/// A protocol, however it is spelt.
pub fn protocol(text: &str) -> Option<&'static str> {
    PROTOCOLS.into_iter().find(|known| known.eq_ignore_ascii_case(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        for (text, millis) in [
            ("1h", Some(3_600_000)),
            ("1h30m", Some(5_400_000)),
            ("10s", Some(10_000)),
            ("1.5s", Some(1500)),
            ("500ms", Some(500)),
            (".5s", Some(500)),
            ("0s", Some(0)),
            ("0", Some(0)),
            ("", None),
            ("10", None),
            ("s", None),
            ("1d", None),
            ("-1s", None),
            ("1s ", None),
            ("1..s", None),
            ("99999999999h", None),
            ("9999999999h", None),
        ] {
            assert_eq!(Span::parse(text).map(|span| span.0.as_millis()), millis, "{text}");
        }
    }

    #[test]
    fn patterns_are_those_of_re2() {
        for (text, good) in [
            ("/v[0-9]+/.*", true),
            ("\\d+", true),
            ("^(?i)abc$", true),
            ("\\pL+", true),
            ("a(?=b)", false),
            ("(a)\\1", false),
            ("[a", false),
            ("", false),
            ("(a{1000}){1000}{1000}", false),
        ] {
            assert_eq!(Pattern::try_from(text.to_owned()).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn names_of_hosts() {
        for (text, one, many) in [
            ("reviews", true, true),
            ("reviews.default.svc.cluster.local", true, true),
            ("a.b.", true, true),
            ("A_b.example.com", true, true),
            ("*", false, true),
            ("*.example.com", false, true),
            ("*example.com", false, false),
            ("a.*.com", false, false),
            ("http://a", false, false),
            ("a:80", false, false),
            ("a/b", false, false),
            ("", false, false),
            ("-a", false, false),
            (".a", false, false),
        ] {
            assert_eq!((host(text).is_ok(), host_pattern(text).is_ok()), (one, many), "{text}");
        }
        for (outer, inner, expected) in [
            ("*", "a.com", true),
            ("*.com", "a.com", true),
            ("*.com", "*.a.com", true),
            ("*.Example.com", "a.EXAMPLE.com", true),
            ("*.Example.com", "example.com", false),
            ("*.a.com", "*.com", false),
            ("a.com", "a.com", true),
            ("a.com", "b.com", false),
        ] {
            assert_eq!(covers(outer, inner), expected, "{outer} {inner}");
        }
    }
}
