//! Of which requests and connections somebody wants to know, as a query: `to=service:shop/reviews&code=5xx&path=/api`. Several values of one key are
//! alternatives; different keys have all to hold.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{FLAGS, Kind, Seen};
use crate::grpc;

/// Longest query in bytes, and most values of one key: the pods of a service may all be named.
const LONGEST: usize = 64 * 1024;
const MOST: usize = 512;
/// Lines a second, unless said otherwise, and at most.
pub(super) const USUAL_RATE: u32 = 100;
pub(super) const MOST_RATE: u32 = 1000;
/// How long it goes on, unless said otherwise, and at most.
pub(super) const USUAL_TIME: u32 = 600;
pub(super) const MOST_TIME: u32 = 3600;

/// What is wrong with one: what, where, and what it should be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SelectorError {
    /// There is no such key.
    #[error(
        "`{0}` is no key of a selector: there are kind, from, to, method, path, authority, code, grpc, flag, max-rps and seconds"
    )]
    Key(String),
    /// A value is none of its key.
    #[error("`{key}={value}`: {expected}")]
    Value {
        /// Of that key.
        key: String,
        /// As it was written.
        value: String,
        /// What would do.
        expected: String,
    },
    /// There are too many of one key.
    #[error("`{0}` has more than {MOST} values")]
    TooMany(String),
    /// It is too long.
    #[error("a selector has at most {LONGEST} bytes")]
    TooLong,
}

/// Who is at an end.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Who {
    Namespace(String),
    Workload(String, String),
    Pod(String, String),
    Service(String, String),
}

/// A host that is asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Host {
    /// Of any port, unless it has one.
    Exact(String),
    /// With the dot.
    Suffix(String),
}

/// Of what somebody wants to know.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Selector {
    kind: Option<Kind>,
    from: Vec<Who>,
    to: Vec<Who>,
    methods: Vec<String>,
    paths: Vec<String>,
    hosts: Vec<Host>,
    codes: Vec<RangeInclusive<u16>>,
    grpc: Vec<u16>,
    flags: Vec<&'static str>,
    /// Lines a second that are wanted at most.
    pub rate: u32,
    /// How long it goes on.
    pub time: Duration,
}

impl Default for Selector {
    fn default() -> Self {
        Self {
            kind: None,
            from: Vec::new(),
            to: Vec::new(),
            methods: Vec::new(),
            paths: Vec::new(),
            hosts: Vec::new(),
            codes: Vec::new(),
            grpc: Vec::new(),
            flags: Vec::new(),
            rate: USUAL_RATE,
            time: Duration::from_secs(USUAL_TIME.into()),
        }
    }
}

impl Selector {
    /// Reads it, as the query of a URL.
    pub fn parse(query: &str) -> Result<Self, SelectorError> {
        if query.len() > LONGEST {
            return Err(SelectorError::TooLong);
        }
        let mut selector = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            selector.add(&key, &value)?;
        }
        Ok(selector)
    }

    fn add(&mut self, key: &str, value: &str) -> Result<(), SelectorError> {
        let wrong = |expected: String| SelectorError::Value {
            key: key.to_owned(),
            value: crate::telemetry::write::cut(value, 100).to_owned(),
            expected,
        };
        let count = match key {
            "kind" => {
                self.kind = Some(kind(value).map_err(wrong)?);
                return Ok(());
            }
            "max-rps" => {
                self.rate = number(value, MOST_RATE, "lines a second").map_err(wrong)?;
                return Ok(());
            }
            "seconds" => {
                self.time = Duration::from_secs(number(value, MOST_TIME, "seconds").map_err(wrong)?.into());
                return Ok(());
            }
            "from" => push(&mut self.from, who(value, false).map_err(wrong)?),
            "to" => push(&mut self.to, who(value, true).map_err(wrong)?),
            "method" => push(&mut self.methods, method(value).map_err(wrong)?),
            "path" => push(&mut self.paths, path(value).map_err(wrong)?),
            "authority" => push(&mut self.hosts, host(value).map_err(wrong)?),
            "code" => push(&mut self.codes, code(value).map_err(wrong)?),
            "grpc" => push(&mut self.grpc, grpc_status(value).map_err(wrong)?),
            "flag" => push(&mut self.flags, flag(value).map_err(wrong)?),
            _ => return Err(SelectorError::Key(crate::telemetry::write::cut(key, 100).to_owned())),
        };
        if count > MOST { Err(SelectorError::TooMany(key.to_owned())) } else { Ok(()) }
    }

    /// Whether it asks for what only requests have: no connection is ever meant.
    #[must_use]
    pub fn means_requests(&self) -> bool {
        let asks = [&self.methods, &self.paths].into_iter().any(|list| !list.is_empty())
            || !self.hosts.is_empty()
            || !self.codes.is_empty()
            || !self.grpc.is_empty();
        asks || self.kind == Some(Kind::Request)
    }

    /// Whether it means that. What is asked for and not known is not meant.
    #[must_use]
    pub fn selects(&self, seen: &Seen<'_>) -> bool {
        self.kind.is_none_or(|kind| kind == seen.kind)
            && any(&self.codes, |codes| seen.status.is_some_and(|status| codes.contains(&status)))
            && any(&self.grpc, |status| seen.grpc_status == Some(*status))
            && any(&self.flags, |flag| seen.flags.split(',').any(|has| has == *flag))
            && any(&self.methods, |method| seen.asked.is_some_and(|asked| asked.method.eq_ignore_ascii_case(method)))
            && any(&self.paths, |path| seen.asked.is_some_and(|asked| asked.path.starts_with(path.as_str())))
            && any(&self.hosts, |host| seen.asked.is_some_and(|asked| host.is(asked.authority)))
            && any(&self.from, |who| who.is(&seen.source, None))
            && any(&self.to, |who| who.is(&seen.destination, seen.service) || who.is(&seen.destination, seen.routed))
    }
}

/// Nothing asked for is anything.
fn any<T>(list: &[T], is: impl Fn(&T) -> bool) -> bool {
    list.is_empty() || list.iter().any(is)
}

fn push<T>(list: &mut Vec<T>, value: T) -> usize {
    list.push(value);
    list.len()
}

impl Who {
    fn is(&self, end: &super::End<'_>, service: Option<(&str, &str)>) -> bool {
        match self {
            Self::Namespace(namespace) => end.namespace == namespace || service.is_some_and(|(of, _)| of == namespace),
            Self::Workload(namespace, name) => end.namespace == namespace && end.workload == name,
            Self::Pod(namespace, name) => end.namespace == namespace && end.pod == name,
            Self::Service(namespace, name) => service.is_some_and(|(of, host)| {
                let is_inside = |rest: &str| {
                    rest.strip_prefix('.')
                        .and_then(|rest| rest.strip_prefix(namespace.as_str()))
                        .is_some_and(|rest| rest.starts_with(".svc."))
                };
                of == namespace && (host == name || host.strip_prefix(name.as_str()).is_some_and(is_inside))
            }),
        }
    }
}

impl Host {
    fn is(&self, authority: &str) -> bool {
        let bare = || bare(authority);
        match self {
            Self::Exact(host) => host.eq_ignore_ascii_case(authority) || host.eq_ignore_ascii_case(bare()),
            Self::Suffix(suffix) => {
                let host = bare();
                host.len()
                    .checked_sub(suffix.len())
                    .is_some_and(|at| at > 0 && host.is_char_boundary(at) && host[at..].eq_ignore_ascii_case(suffix))
            }
        }
    }
}

/// An authority without its port.
fn bare(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => authority,
    }
}

fn kind(value: &str) -> Result<Kind, String> {
    [Kind::Request, Kind::Connection]
        .into_iter()
        .find(|kind| kind.as_str() == value)
        .ok_or_else(|| "a kind is request or connection".to_owned())
}

fn number(value: &str, most: u32, what: &str) -> Result<u32, String> {
    let number = value.parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| format!("a number of {what} from 1 to {most}"))
}

fn who(value: &str, with_service: bool) -> Result<Who, String> {
    let kinds = if with_service {
        "namespace:NS, service:NS/NAME, workload:NS/NAME or pod:NS/NAME"
    } else {
        "namespace:NS, workload:NS/NAME or pod:NS/NAME"
    };
    let expected = || format!("an end is {kinds}");
    let is_name = |name: &str| {
        let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '*');
        !name.is_empty() && name.len() <= 253 && name.chars().all(is_good)
    };
    let (kind, rest) = value.split_once(':').ok_or_else(expected)?;
    if kind == "namespace" {
        return is_name(rest).then(|| Who::Namespace(rest.to_owned())).ok_or_else(expected);
    }
    let (namespace, name) = rest.split_once('/').filter(|(a, b)| is_name(a) && is_name(b)).ok_or_else(expected)?;
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    match kind {
        "workload" => Ok(Who::Workload(namespace, name)),
        "pod" => Ok(Who::Pod(namespace, name)),
        "service" if with_service => Ok(Who::Service(namespace, name)),
        _ => Err(expected()),
    }
}

fn method(value: &str) -> Result<String, String> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let is_good = !value.is_empty() && value.len() <= 64 && value.chars().all(is_token);
    is_good.then(|| value.to_owned()).ok_or_else(|| "a method is a word, as GET".to_owned())
}

fn path(value: &str) -> Result<String, String> {
    let is_good = value.starts_with('/') && !value.contains(['?', '#']) && value.len() <= 4096;
    is_good.then(|| value.to_owned()).ok_or_else(|| "a path begins with /, and has no query; it is a prefix".to_owned())
}

fn host(value: &str) -> Result<Host, String> {
    let is_good = |host: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
        !host.is_empty() && host.len() <= 300 && host.chars().all(plain)
    };
    match value.strip_prefix('*') {
        Some(suffix) if suffix.starts_with('.') && suffix.len() > 1 && is_good(suffix) => {
            Ok(Host::Suffix(suffix.to_owned()))
        }
        None if is_good(value) => Ok(Host::Exact(value.to_owned())),
        _ => Err("an authority is HOST, HOST:PORT or *.SUFFIX".to_owned()),
    }
}

fn code(value: &str) -> Result<RangeInclusive<u16>, String> {
    let one = |text: &str| text.parse().ok().filter(|code| text.len() == 3 && (100..=599).contains(code));
    let class = || {
        let class = value.strip_suffix("xx")?.parse::<u16>().ok().filter(|class| (1..=5).contains(class))?;
        Some(class * 100..=class * 100 + 99)
    };
    let range = || {
        let (first, last) = value.split_once('-')?;
        let (first, last) = (one(first)?, one(last)?);
        (first <= last).then_some(first..=last)
    };
    let none = || (value == "0").then_some(0..=0);
    let found = one(value).map(|code| code..=code).or_else(class).or_else(range).or_else(none);
    found.ok_or_else(|| "a code is 100 to 599, a class as 5xx, a range as 500-504, or 0 for no answer".to_owned())
}

fn grpc_status(value: &str) -> Result<u16, String> {
    let number = value.parse().ok().filter(|number| grpc::snake(*number).is_some());
    let found = number.or_else(|| grpc::by_name(value));
    found.ok_or_else(|| "a status of gRPC is 0 to 16, or its name, as UNAVAILABLE".to_owned())
}

fn flag(value: &str) -> Result<&'static str, String> {
    let found = FLAGS.iter().find(|flag| flag.eq_ignore_ascii_case(value));
    found.copied().ok_or_else(|| format!("a flag is one of {}", FLAGS.join(" ")))
}
