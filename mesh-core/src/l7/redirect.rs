//! Where a client is sent: the value of `Location`.

use std::fmt::Write;

use arcstr::ArcStr;
use http::{StatusCode, uri::Scheme};

use super::{Authority, Condition, PathChange, Request, rewrite::with_query};

/// Where a client is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The scheme; the request's if it is not said.
    pub scheme: Option<Scheme>,
    /// The host; the request's if it is not said. A port that is written with it counts only where [`port`](Self::port) leaves it as it is written.
    pub host: Option<ArcStr>,
    /// The port.
    pub port: RedirectPort,
    /// The path; the request's if it is not said. The query stays.
    pub path: Option<PathChange>,
    /// A status of 3xx.
    pub status: StatusCode,
}

/// The port that a client is sent to. The one that a scheme has anyway is not written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RedirectPort {
    /// As the request wrote it, if the host stays; dropped if it was the scheme's and the scheme changes. Istio's way.
    #[default]
    AsWritten,
    /// The one that the client connected to: the Gateway API's way without a scheme, and Istio's `FROM_REQUEST_PORT`.
    OfListener,
    /// The scheme's: the Gateway API's way with a scheme, and Istio's `FROM_PROTOCOL_DEFAULT`.
    OfScheme,
    /// This one.
    Number(u16),
}

impl Redirect {
    /// The value of `Location`.
    #[must_use]
    pub fn location(&self, request: &Request<'_>, condition: Option<&Condition>) -> String {
        let scheme = self.scheme.as_ref().map_or(request.scheme, Scheme::as_str);
        let written;
        let host = match &self.host {
            None => request.authority.host(),
            Some(host) if self.port == RedirectPort::AsWritten => host,
            // One port, and which is said apart from the host.
            Some(host) => {
                written = Authority::parse(host);
                written.as_ref().map_or(host.as_str(), Authority::host)
            }
        };
        let usual = |scheme: &str| if scheme == "https" { 443 } else { 80 };
        let port = match self.port {
            RedirectPort::Number(port) => Some(port),
            RedirectPort::OfListener => Some(request.port),
            RedirectPort::OfScheme => None,
            RedirectPort::AsWritten if self.host.is_some() => None,
            RedirectPort::AsWritten => request.authority.port().filter(|port| *port != usual(request.scheme)),
        };
        let mut location = format!("{scheme}://{host}");
        if let Some(port) = port.filter(|port| *port != usual(scheme)) {
            _ = write!(location, ":{port}");
        }
        let path = match &self.path {
            Some(change) => change.apply(request.path, condition),
            None => request.path.to_owned(),
        };
        location + &with_query(path, request.query)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::l7::PathKind;

    #[test]
    fn features_VS_10_where_a_client_is_sent() {
        use RedirectPort::{AsWritten, Number, OfListener, OfScheme};
        let https = Some(Scheme::HTTPS);
        for (scheme, host, port, path, expected) in [
            (None, None, AsWritten, None, "http://a.com:8080/p/q?x=1"),
            (None, Some("b.com"), AsWritten, None, "http://b.com/p/q?x=1"),
            (https.clone(), None, AsWritten, None, "https://a.com:8080/p/q?x=1"),
            (https.clone(), None, OfScheme, None, "https://a.com/p/q?x=1"),
            (https.clone(), None, OfListener, None, "https://a.com:81/p/q?x=1"),
            (None, Some("b.com:8443"), AsWritten, None, "http://b.com:8443/p/q?x=1"),
            (https.clone(), Some("b.com:8443"), Number(9), None, "https://b.com:9/p/q?x=1"),
            (https.clone(), Some("b.com:8443"), Number(443), None, "https://b.com/p/q?x=1"),
            (https.clone(), Some("b.com:8443"), OfListener, None, "https://b.com:81/p/q?x=1"),
            (https.clone(), Some("b.com:8443"), OfScheme, None, "https://b.com/p/q?x=1"),
            (https.clone(), Some("[fd00::1]:8443"), Number(9), None, "https://[fd00::1]:9/p/q?x=1"),
            (https, Some("b.com"), Number(443), None, "https://b.com/p/q?x=1"),
            (None, None, Number(80), None, "http://a.com/p/q?x=1"),
            (None, None, Number(8443), Some(PathChange::Prefix("/r".into())), "http://a.com:8443/r/q?x=1"),
            (None, None, OfScheme, Some(PathChange::Full("/r".into())), "http://a.com/r?x=1"),
            (None, None, OfScheme, Some(PathChange::Full("/r?y=2".into())), "http://a.com/r?y=2"),
            // What stands behind `#` is no query, and the query is not in it.
            (None, None, OfScheme, Some(PathChange::Full("/#/login".into())), "http://a.com/?x=1#/login"),
            (None, None, OfScheme, Some(PathChange::Full("/r?y=2#/login".into())), "http://a.com/r?y=2#/login"),
            (None, None, OfScheme, Some(PathChange::Full("/#/a?b".into())), "http://a.com/?x=1#/a?b"),
            (None, None, OfScheme, Some(PathChange::Prefix("/#".into())), "http://a.com/?x=1#/q"),
        ] {
            let redirect = Redirect { scheme, host: host.map(Into::into), port, path, status: StatusCode::FOUND };
            let request = Request {
                method: &Method::GET,
                scheme: "http",
                authority: &Authority::parse("A.com:8080").unwrap(),
                path: "/p/q",
                query: Some("x=1"),
                headers: &HeaderMap::new(),
                port: 81,
                gateway: "mesh",
                service: None,
            };
            let path = Some(PathKind::Segments("/p".into()).into());
            let condition = Condition { path, ..Condition::default() };
            assert_eq!(redirect.location(&request, Some(&condition)), expected, "{redirect:?}");
        }
    }
}
