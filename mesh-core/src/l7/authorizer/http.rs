//! The form of HTTP: the authorizer gets a request like the one that it is about, and its answer is the answer: 200 lets through, of anything else the client is told.

use arcstr::ArcStr;
use http::header::{AUTHORIZATION, LOCATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{Answer, Changes, Denial, Edit, HeaderEdits, is_theirs};
use crate::l7::headers::is_changeable;
use crate::policy::StringMatch;

/// In which an authorizer names headers of the request that are taken away, with commas between.
const REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

/// What is sent and what is heeded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpForm {
    /// Before the path.
    pub path_prefix: ArcStr,
    /// Headers of the request that are sent too. Names are compared in lower case.
    pub sent: Vec<StringMatch>,
    /// Headers that are always sent so.
    pub fixed: Vec<(HeaderName, HeaderValue)>,
    /// Headers of an answer that lets through which go on with the request.
    pub to_upstream: Vec<StringMatch>,
    /// Headers of an answer that does not which the client gets; without any, all.
    pub on_deny: Vec<StringMatch>,
    /// Headers of an answer that lets through which the client gets.
    pub on_allow: Vec<StringMatch>,
}

impl HttpForm {
    /// The headers of the request to the authorizer, but for the host and the length.
    #[must_use]
    pub fn request(&self, headers: &HeaderMap) -> HeaderMap {
        let mut sent = HeaderMap::new();
        for (name, value) in headers {
            if (*name == AUTHORIZATION || is_one(&self.sent, name)) && is_changeable(name) {
                _ = sent.try_append(name.clone(), value.clone());
            }
        }
        for (name, value) in &self.fixed {
            _ = sent.try_insert(name.clone(), value.clone());
        }
        sent
    }

    /// What an answer says; `None` if it is a failure of the authorizer's.
    #[must_use]
    pub fn answer(&self, status: StatusCode, headers: &HeaderMap, body: Vec<u8>) -> Option<Answer> {
        if status.is_server_error() || status.is_informational() {
            return None;
        }
        if status != StatusCode::OK {
            let always = [WWW_AUTHENTICATE, LOCATION];
            let is_told =
                |name: &HeaderName| self.on_deny.is_empty() || always.contains(name) || is_one(&self.on_deny, name);
            return Some(Answer::Denied(Denial { status, headers: all(headers, is_told), body }));
        }
        let mut request = all(headers, |name| is_one(&self.to_upstream, name) && *name != REMOVE);
        for text in headers.get_all(REMOVE).iter().filter_map(|line| line.to_str().ok()) {
            let names = text.split(',').filter_map(|name| HeaderName::try_from(name.trim()).ok());
            names.for_each(|name| request.remove(name));
        }
        Some(Answer::Allowed(Changes { request, response: all(headers, |name| is_one(&self.on_allow, name)) }))
    }
}

/// The headers that somebody gets: of each all lines, instead of those that were there.
fn all(headers: &HeaderMap, is_one: impl Fn(&HeaderName) -> bool) -> HeaderEdits {
    let mut edits = HeaderEdits::default();
    for name in headers.keys().filter(|name| is_theirs(name) && is_one(name)) {
        let lines = headers.get_all(name).iter();
        for (index, value) in lines.enumerate() {
            edits.edit(name.clone(), value.clone(), if index == 0 { Edit::Set } else { Edit::Append });
        }
    }
    edits
}

fn is_one(patterns: &[StringMatch], name: &HeaderName) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    fn texts(map: &HeaderMap) -> Vec<String> {
        let mut all: Vec<_> = map.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        all.sort();
        all
    }

    fn form() -> HttpForm {
        let exact = |text: &str| StringMatch::Exact(text.into());
        HttpForm {
            sent: vec![exact("x-ext-authz"), StringMatch::Prefix("x-user".into())],
            fixed: vec![(HeaderName::from_static("x-user-kind"), HeaderValue::from_static("mesh"))],
            to_upstream: vec![exact("x-checked"), StringMatch::Suffix("-group".into())],
            on_deny: vec![exact("x-why")],
            on_allow: vec![exact("set-cookie")],
            ..HttpForm::default()
        }
    }

    #[test]
    fn only_what_is_asked_for_is_sent() {
        let asked = headers(&[
            ("x-ext-authz", "allow"),
            ("x-user", "a"),
            ("x-user", "b"),
            ("x-user-kind", "forged"),
            ("authorization", "Bearer t"),
            ("cookie", "secret"),
            ("content-length", "9"),
        ]);
        assert_eq!(
            texts(&form().request(&asked)),
            ["authorization=Bearer t", "x-ext-authz=allow", "x-user-kind=mesh", "x-user=a", "x-user=b"]
        );
        let everything = HttpForm { sent: vec![StringMatch::Prefix("".into())], ..HttpForm::default() };
        assert!(!everything.request(&asked).contains_key("content-length"));
    }

    #[test]
    fn only_200_lets_through_and_only_what_is_listed_goes_on() {
        let said = headers(&[
            ("x-checked", "yes"),
            ("x-group", "a"),
            ("x-group", "b"),
            ("x-why", "because"),
            ("set-cookie", "c"),
            ("location", "/login"),
            ("x-other", "1"),
            ("content-length", "3"),
            ("x-mesh-hops", "0"),
            ("x-envoy-auth-headers-to-remove", "x-token, host,,x-mesh-hops"),
        ]);
        let Some(Answer::Allowed(changes)) = form().answer(StatusCode::OK, &said, Vec::new()) else { panic!() };
        let mut request = headers(&[("x-checked", "forged"), ("x-token", "t"), ("x-mesh-hops", "3"), ("x-group", "c")]);
        changes.request.apply(&mut request);
        assert_eq!(texts(&request), ["x-checked=yes", "x-group=a", "x-group=b", "x-mesh-hops=3"]);
        let mut response = HeaderMap::new();
        changes.response.apply(&mut response);
        assert_eq!(texts(&response), ["set-cookie=c"]);

        let denied = |form: HttpForm, status: u16| {
            let answer = form.answer(StatusCode::from_u16(status).unwrap(), &said, b"no".to_vec());
            let Some(Answer::Denied(denial)) = answer else { panic!("{status}: {answer:?}") };
            let mut headers = HeaderMap::new();
            denial.headers.apply(&mut headers);
            (denial.status.as_u16(), texts(&headers), denial.body)
        };
        let some = vec!["location=/login".to_owned(), "x-why=because".to_owned()];
        for status in [201, 204, 302, 401, 403, 499] {
            assert_eq!(denied(form(), status), (status, some.clone(), b"no".to_vec()));
        }
        let (_, all, _) = denied(HttpForm::default(), 403);
        assert!(all.contains(&"x-other=1".to_owned()) && !all.iter().any(|line| line.starts_with("content-length")));
        for status in [500, 503, 599] {
            assert_eq!(form().answer(StatusCode::from_u16(status).unwrap(), &said, Vec::new()), None);
        }
    }
}
