//! Where a rule's requests go, and what is changed on the way.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::StatusCode;
use http::uri::Scheme;
use mesh_core::ArcStr;
use mesh_core::l7::{
    Action, Authority, Backend, ClusterKey, DirectResponse, Forward, HeaderChanges, PathChange, Redirect, RedirectPort,
    Replacement, Rewrite, Target,
};

use super::super::notes::Notes;
use super::super::text::{self, Dialect, Written, changes, host, status};
use super::Reading;
use crate::index::routing::findings::Flaw;
use crate::index::routing::virtual_services;
use crate::resource::routing::virtual_service::{self as kind, DerivePort, Destination, Headers, HttpRule, HttpTarget};

impl Reading<'_, '_> {
    /// What a rule does; `None` if another object says so.
    pub(super) fn action(&mut self, rule: &HttpRule, field: &str, notes: &mut Notes<'_>) -> Option<Action> {
        if let Some(written) = &rule.redirect {
            return redirect(written, &format!("{field}.redirect"), notes).map(Action::Redirect);
        }
        if let Some(answer) = &rule.direct_response {
            return direct_response(answer, &format!("{field}.directResponse"), notes).map(Action::Respond);
        }
        if rule.route.is_empty() {
            return None;
        }
        let is_only = rule.route.len() == 1;
        let targets = rule.route.iter().enumerate();
        let backends = targets.map(|(index, target)| {
            let mut backend = self.backend(target, &format!("{field}.route[{index}]"), notes);
            // A place that is alone gets everything, whatever its weight is.
            backend.weight = if is_only { 1 } else { target.weight };
            backend
        });
        match Forward::new(backends.collect()) {
            Ok(forward) => Some(Action::Forward(forward)),
            Err(why) => {
                notes.close(format!("{field}.route"), why.to_string(), "write smaller weights");
                None
            }
        }
    }

    fn backend(&mut self, written: &HttpTarget, field: &str, notes: &mut Notes<'_>) -> Backend {
        let headers_field = format!("{field}.headers");
        let ((request, response, authority), closed) =
            notes.apart(|notes| headers(&written.headers, &headers_field, notes));
        let target = match closed {
            Some(why) => Target::Broken(why.into()),
            None => self.target(&written.destination, &format!("{field}.destination"), notes),
        };
        let rewrite = Rewrite { authority, ..Rewrite::default() };
        Backend { request, response, rewrite, ..Backend::new(target, 1) }
    }

    /// Where a destination is. What is wrong with it is told where objects are looked at beside each other, but for what the port of the client brings.
    pub(super) fn target(&mut self, written: &Destination, field: &str, notes: &mut Notes<'_>) -> Target {
        let around = self.around;
        let place = match virtual_services::destination(field, written, self.namespace, &around.rules, &around.hosts) {
            Ok(place) => place,
            Err(Flaw::Wrong(problem)) => return Target::Broken(problem.message.into()),
            Err(Flaw::Unknown) => return Target::Broken("it is not known yet what there is of its kind".into()),
        };
        let port = match (place.port, self.port) {
            (Some(port), _) => port,
            (None, port) => {
                *self.by_port = true;
                let Some(port) = port else { return Target::Broken("it depends on the port".into()) };
                if !place.host.has_port(port) {
                    let why = format!("{} has no port {port}, to which clients connect", written.host);
                    let help = format!("add `port: {{number: …}}`; it has {}", place.host.ports().join(", "));
                    notes.apart(|notes| notes.close(field, why.clone(), &help));
                    return Target::Broken(why.into());
                }
                port
            }
        };
        let subset = written.subset.as_deref().unwrap_or_default().into();
        Target::Cluster(ClusterKey { service: place.service, port, subset })
    }
}

fn pairs(entries: &std::collections::BTreeMap<String, String>) -> Vec<(&str, &str)> {
    entries.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// Changes of the request, of the response, and the host.
pub fn headers(
    written: &Headers,
    field: &str,
    notes: &mut Notes<'_>,
) -> (HeaderChanges, HeaderChanges, Option<ArcStr>) {
    let mut of = |way: &str, one: &kind::HeaderChanges| {
        let (set, add) = (pairs(&one.set), pairs(&one.add));
        let written = Written { set: &set, add: &add, remove: &one.remove, of_requests: way == "request" };
        changes(written, Dialect::Istio, &format!("{field}.{way}"), notes)
    };
    let (request, authority) = of("request", &written.request);
    (request, of("response", &written.response).0, authority)
}

/// Another path or host. `authority` is the host that changes of headers ask for.
pub fn rewrite(
    written: Option<&kind::Rewrite>,
    authority: Option<ArcStr>,
    field: &str,
    notes: &mut Notes<'_>,
) -> Option<Rewrite> {
    let Some(written) = written else {
        return authority.map(|authority| Rewrite { path: None, authority: Some(authority) });
    };
    let own = written.authority.as_ref().and_then(|text| host(text, &format!("{field}.authority"), notes));
    let prefix = written.uri.as_ref().and_then(|uri| text::path(uri, &format!("{field}.uri"), notes));
    let pattern = written.uri_regex_rewrite.as_ref().and_then(|regex| {
        let made = Replacement::new(regex.matches.0.as_str(), regex.rewrite.as_str());
        made.map_err(|why| notes.close(format!("{field}.uriRegexRewrite"), why.to_string(), "")).ok()
    });
    let path = prefix.map(PathChange::Prefix).or(pattern.map(PathChange::Regex));
    Some(Rewrite { path, authority: own.or(authority) })
}

fn redirect(written: &kind::Redirect, field: &str, notes: &mut Notes<'_>) -> Option<Redirect> {
    let mut port = match (written.port, written.derive_port) {
        (Some(port), _) => RedirectPort::Number(port),
        (None, Some(DerivePort::FromProtocolDefault)) => RedirectPort::OfScheme,
        (None, Some(DerivePort::FromRequestPort)) => RedirectPort::OfListener,
        (None, None) => RedirectPort::AsWritten,
    };
    let mut name = None;
    if let Some(written) = &written.authority {
        let authority =
            host(written, &format!("{field}.authority"), notes).and_then(|text| Authority::parse(&text).ok())?;
        name = Some(ArcStr::from(authority.host()));
        if let (Some(number), RedirectPort::AsWritten) = (authority.port(), port) {
            port = RedirectPort::Number(number);
        }
    }
    let path = match (&written.uri, &written.prefix_rewrite) {
        (Some(uri), _) => Some(PathChange::Full(text::place(uri, &format!("{field}.uri"), notes)?)),
        (None, Some(prefix)) => {
            Some(PathChange::Prefix(text::place(prefix, &format!("{field}.prefixRewrite"), notes)?))
        }
        (None, None) => None,
    };
    let scheme = match written.scheme.as_deref().map(Scheme::try_from) {
        Some(Ok(scheme)) => Some(scheme),
        None => None,
        Some(Err(_)) => {
            notes.close(format!("{field}.scheme"), "neither http nor https", "");
            return None;
        }
    };
    let status = match written.redirect_code {
        Some(code) => status(code, &format!("{field}.redirectCode"), notes)?,
        None => StatusCode::MOVED_PERMANENTLY,
    };
    Some(Redirect { scheme, host: name, port, path, status })
}

fn direct_response(written: &kind::DirectResponse, field: &str, notes: &mut Notes<'_>) -> Option<DirectResponse> {
    let status = status(written.status, &format!("{field}.status"), notes)?;
    let body = match &written.body {
        Some(kind::Body { string: Some(text), .. }) => text.clone().into_bytes(),
        Some(kind::Body { bytes: Some(encoded), .. }) => match BASE64.decode(encoded) {
            Ok(bytes) => bytes,
            Err(why) => {
                notes.close(
                    format!("{field}.body.bytes"),
                    format!("not base64: {why}"),
                    "write `string`, or encode it",
                );
                return None;
            }
        },
        _ => Vec::new(),
    };
    Some(DirectResponse { status, body: body.into() })
}
