//! Who may call from a page of another origin: what browsers ask before, and what they look for in answers.

use std::{fmt::Write, time::Duration};

use arcstr::ArcStr;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::{HeaderChanges, Text};

/// One policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    /// Origins; exactly `*` means all.
    pub origins: Vec<Text>,
    /// Methods, or `*`.
    pub methods: Vec<ArcStr>,
    /// Headers that may be sent, or `*`.
    pub headers: Vec<ArcStr>,
    /// Headers that may be read, or `*`.
    pub expose: Vec<ArcStr>,
    /// How long a browser may remember the answer; `None` says nothing of it.
    pub max_age: Option<Duration>,
    /// With cookies.
    pub credentials: bool,
    /// Questions of origins that are not meant go on to the application.
    pub forward_unmatched: bool,
}

/// What a request is to such a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsVerdict {
    /// Nothing is added: not of a page, or of an origin that is not meant.
    Pass,
    /// A browser asks what it may do: 200 with these headers, and nothing goes on.
    Answer(HeaderMap),
    /// It goes on, and its answer is changed: headers of browsers' questions are instead of its own of these names, `Vary` is one more beside its own.
    Change(HeaderChanges),
}

const ANY: HeaderValue = HeaderValue::from_static("*");

impl Cors {
    /// Judges a request by its headers.
    #[must_use]
    pub fn judge(&self, method: &Method, headers: &HeaderMap) -> CorsVerdict {
        let Some(origin) = headers.get(header::ORIGIN).filter(|origin| !origin.is_empty()) else {
            return CorsVerdict::Pass;
        };
        let asked = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD).filter(|_| method == Method::OPTIONS);
        let all = self.origins.iter().any(|text| matches!(text, Text::Exact(text) if text == "*"));
        if !all && !self.origins.iter().any(|text| text.matches(origin.as_bytes())) {
            return match asked.is_some() && !self.forward_unmatched {
                true => CorsVerdict::Answer(HeaderMap::new()),
                false => CorsVerdict::Pass,
            };
        }
        let mut answer = HeaderMap::new();
        // `*` is not believed of an answer to a request with cookies.
        let named = if all && !self.credentials { ANY } else { origin.clone() };
        // What is for every origin does not vary with it.
        let vary = (named != ANY).then(|| (header::VARY, HeaderValue::from_static("origin")));
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, named);
        if self.credentials {
            answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        // Browsers look for it in answers alone; the Gateway API wants it said to questions, too.
        list(&mut answer, header::ACCESS_CONTROL_EXPOSE_HEADERS, &self.expose, None);
        let Some(asked) = asked else {
            let set = answer.into_iter().filter_map(|(name, value)| Some((name?, value))).collect();
            let add = vary.into_iter().collect();
            return CorsVerdict::Change(HeaderChanges { set, add, remove: Vec::new() });
        };
        answer.extend(vary);
        let asked_headers = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
        let instead = |value| self.credentials.then_some(value).flatten();
        list(&mut answer, header::ACCESS_CONTROL_ALLOW_METHODS, &self.methods, instead(Some(asked)));
        list(&mut answer, header::ACCESS_CONTROL_ALLOW_HEADERS, &self.headers, instead(asked_headers));
        if let Some(age) = self.max_age {
            answer.insert(header::ACCESS_CONTROL_MAX_AGE, age.as_secs().into());
        }
        CorsVerdict::Answer(answer)
    }
}

/// `instead` stands for `*`, where that would not be believed.
fn list(answer: &mut HeaderMap, name: HeaderName, values: &[ArcStr], instead: Option<&HeaderValue>) {
    let mut text = String::new();
    for value in values {
        _ = write!(text, "{}{value}", if text.is_empty() { "" } else { ", " });
    }
    let value = match values.iter().any(|value| value == "*") {
        true => Some(instead.cloned().unwrap_or(ANY)),
        false => HeaderValue::try_from(text).ok().filter(|value| !value.is_empty()),
    };
    if let Some(value) = value {
        answer.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors() -> Cors {
        Cors {
            origins: vec![Text::Exact("https://a.com".into()), Text::Prefix("https://b.".into())],
            methods: vec!["GET".into(), "PUT".into()],
            headers: vec!["x-a".into()],
            expose: vec!["x-b".into(), "x-c".into()],
            max_age: Some(Duration::from_secs(60)),
            credentials: false,
            forward_unmatched: true,
        }
    }

    fn judge(cors: &Cors, method: Method, headers: &[(&'static str, &str)]) -> String {
        let pair = |(name, value): &(&'static str, &str)| (HeaderName::from_static(name), value.parse().unwrap());
        let verdict = cors.judge(&method, &headers.iter().map(pair).collect());
        let one = |mark: &str, (name, value): (&HeaderName, &HeaderValue)| {
            format!(" {mark}{}={}", name.as_str().replace("access-control-", ""), value.to_str().unwrap())
        };
        let changes = |HeaderChanges { set, add, remove }: &HeaderChanges| {
            assert!(remove.is_empty());
            let set = set.iter().map(|(n, v)| one("", (n, v)));
            set.chain(add.iter().map(|(n, v)| one("+", (n, v)))).collect::<String>()
        };
        match verdict {
            CorsVerdict::Pass => "pass".to_owned(),
            CorsVerdict::Answer(headers) => {
                format!("answer{}", headers.iter().map(|pair| one("", pair)).collect::<String>())
            }
            CorsVerdict::Change(all) => format!("change{}", changes(&all)),
        }
    }

    #[test]
    fn features_VS_19_browsers_are_answered() {
        let (a, asks) = (("origin", "https://a.com"), ("access-control-request-method", "PUT"));
        let names = ("access-control-request-headers", "x-z");
        let all = Cors {
            origins: vec![Text::Exact("*".into())],
            methods: vec!["*".into()],
            headers: vec!["*".into()],
            expose: vec!["*".into()],
            max_age: None,
            ..cors()
        };
        let cookies = Cors { credentials: true, ..all.clone() };
        let closed = Cors { forward_unmatched: false, ..cors() };
        let known = "answer allow-origin=https://a.com expose-headers=x-b, x-c vary=origin allow-methods=GET, PUT allow-headers=x-a max-age=60";
        for (cors, method, headers, expected) in [
            (cors(), Method::OPTIONS, vec![a, asks], known),
            (
                cors(),
                Method::OPTIONS,
                vec![a],
                "change allow-origin=https://a.com expose-headers=x-b, x-c +vary=origin",
            ),
            (
                cors(),
                Method::GET,
                vec![a, asks],
                "change allow-origin=https://a.com expose-headers=x-b, x-c +vary=origin",
            ),
            (cors(), Method::GET, vec![], "pass"),
            (cors(), Method::GET, vec![("origin", "https://c.com")], "pass"),
            (cors(), Method::OPTIONS, vec![("origin", "https://c.com"), asks], "pass"),
            (closed.clone(), Method::OPTIONS, vec![("origin", "https://c.com"), asks], "answer"),
            (closed, Method::GET, vec![("origin", "https://c.com")], "pass"),
            (
                all.clone(),
                Method::OPTIONS,
                vec![a, asks, names],
                "answer allow-origin=* expose-headers=* allow-methods=* allow-headers=*",
            ),
            (all, Method::GET, vec![a], "change allow-origin=* expose-headers=*"),
            (
                cookies,
                Method::OPTIONS,
                vec![a, asks, names],
                "answer allow-origin=https://a.com allow-credentials=true expose-headers=* vary=origin allow-methods=PUT allow-headers=x-z",
            ),
        ] {
            assert_eq!(judge(&cors, method.clone(), &headers), expected, "{method} {headers:?}");
        }
    }

    #[test]
    fn what_an_answer_of_the_application_varies_with_stays() {
        let asked: HeaderMap = [(header::ORIGIN, HeaderValue::from_static("https://a.com"))].into_iter().collect();
        let CorsVerdict::Change(changes) = cors().judge(&Method::GET, &asked) else { panic!("not of a page") };
        let own = [
            (header::VARY, HeaderValue::from_static("accept-encoding")),
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("https://evil.com")),
        ];
        let mut answer: HeaderMap = own.into_iter().collect();
        changes.apply(&mut answer);
        let lines = |name| answer.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(lines(header::VARY), ["accept-encoding", "origin"]);
        assert_eq!(lines(header::ACCESS_CONTROL_ALLOW_ORIGIN), ["https://a.com"]);
    }
}
