//! What HTTPRoutes and GRPCRoutes have in common: places by weight, and filters of rules and of single places.

use http::StatusCode;
use http::uri::Scheme;
use mesh_core::l7::{
    Action, Backend, Cors, Forward, HeaderChanges, Mirror, PathChange, Pattern, Redirect, RedirectPort, Rewrite, Share,
    Target, Text,
};

use super::Around;
use super::notes::Notes;
use super::parts::Parts;
use super::text::{self, Dialect, Written, changes, host, status};
use crate::index::routing::Route;
use crate::index::routing::backends::{Part, Spot};
use crate::index::target::of_reference;
use crate::resource::routing::http_route::{self as kind, Filter, FilterKind, PathChangeKind};
use crate::resource::routing::http_route::{NamedMatch, ValueKind};

/// A rule while it is read.
pub struct Reading<'a> {
    /// The other objects.
    pub around: &'a Around<'a>,
    /// Where the route's references lead.
    pub route: &'a Route,
    /// The namespace of the route.
    pub namespace: &'a str,
    /// Which rule.
    pub rule: usize,
}

/// What filters do.
#[derive(Debug, Default)]
struct Done {
    request: HeaderChanges,
    response: HeaderChanges,
    rewrite: Option<Rewrite>,
    redirect: Option<Redirect>,
    mirrors: Vec<Mirror>,
    cors: Option<Cors>,
}

impl Reading<'_> {
    /// Reads filters and places into a rule.
    pub fn actions(&self, parts: &mut Parts, filters: &[Filter], backends: &[kind::Backend], notes: &mut Notes<'_>) {
        let field = format!("spec.rules[{}]", self.rule);
        let done = self.filters(filters, None, &format!("{field}.filters"), notes);
        parts.request = done.request;
        parts.response = done.response;
        parts.rewrite = done.rewrite;
        parts.cors = done.cors;
        parts.mirrors = Some(done.mirrors);
        let redirects = filters.iter().any(|filter| filter.kind == FilterKind::RequestRedirect);
        parts.action = match done.redirect {
            None if !redirects => self.forward(backends, &field, notes),
            redirect => redirect.map(Action::Redirect),
        };
    }

    fn forward(&self, backends: &[kind::Backend], field: &str, notes: &mut Notes<'_>) -> Option<Action> {
        if backends.is_empty() {
            notes.warn(field, "it leads nowhere: its requests are answered with 500", "add `backendRefs`");
            return Some(Action::Closed("the rule has no backendRefs".into()));
        }
        let all = backends.iter().enumerate().map(|(index, backend)| self.backend(index, backend, field, notes));
        match Forward::new(all.collect()) {
            Ok(forward) => Some(Action::Forward(forward)),
            Err(why) => {
                notes.close(format!("{field}.backendRefs"), why.to_string(), "write smaller weights");
                None
            }
        }
    }

    /// One place. What of its filters cannot be done closes its share alone.
    fn backend(&self, index: usize, written: &kind::Backend, field: &str, notes: &mut Notes<'_>) -> Backend {
        let field = format!("{field}.backendRefs[{index}].filters");
        let (done, closed) = notes.apart(|notes| {
            let done = self.filters(&written.filters, Some(index), &field, notes);
            if done.cors.is_some() {
                notes.close(&field, "CORS of a single place", "write it into the filters of the rule");
            }
            done
        });
        let target = match closed {
            Some(why) => Target::Broken(why.into()),
            None => self.target(Part::Backend(index)),
        };
        Backend {
            request: done.request,
            response: done.response,
            rewrite: done.rewrite.unwrap_or_default(),
            redirect: done.redirect,
            mirrors: done.mirrors,
            ..Backend::new(target, written.weight.unwrap_or(1))
        }
    }

    /// Where a reference leads.
    pub fn target(&self, part: Part) -> Target {
        let place = self.route.backends.get(&Spot { rule: self.rule, part });
        of_reference(place, self.namespace, &self.around.hosts)
    }

    fn filters(&self, filters: &[Filter], backend: Option<usize>, field: &str, notes: &mut Notes<'_>) -> Done {
        let mut done = Done::default();
        for (index, filter) in filters.iter().enumerate() {
            let field = format!("{field}[{index}]");
            match filter.kind {
                FilterKind::RequestHeaderModifier => {
                    let written = filter.request_header_modifier.as_ref();
                    done.request = headers(written, true, &format!("{field}.requestHeaderModifier"), notes);
                }
                FilterKind::ResponseHeaderModifier => {
                    let written = filter.response_header_modifier.as_ref();
                    done.response = headers(written, false, &format!("{field}.responseHeaderModifier"), notes);
                }
                FilterKind::RequestMirror => {
                    let part = backend.map_or(Part::Filter(index), |backend| Part::BackendFilter(backend, index));
                    let written = filter.request_mirror.as_ref();
                    let share = share(written, &format!("{field}.requestMirror"), notes);
                    done.mirrors.extend(share.map(|share| Mirror { target: self.target(part), share }));
                }
                FilterKind::RequestRedirect => {
                    let written = filter.request_redirect.as_ref();
                    done.redirect = redirect(written, &format!("{field}.requestRedirect"), notes);
                }
                FilterKind::UrlRewrite => {
                    let written = filter.url_rewrite.as_ref();
                    done.rewrite = rewrite(written, &format!("{field}.urlRewrite"), notes);
                }
                FilterKind::Cors => done.cors = cors(filter.cors.as_ref(), &format!("{field}.cors"), notes),
                FilterKind::ExternalAuth => {
                    notes.close(&field, "nobody is asked here", "use an AuthorizationPolicy with the action CUSTOM");
                }
                FilterKind::ExtensionRef => {
                    let named = filter.extension_ref.as_ref().map(|to| format!("{}.{}", to.kind, to.group));
                    let message = format!("no filter here is a {}", named.unwrap_or_default());
                    notes.close(&field, message, "say it with the filters of the Gateway API");
                }
            }
        }
        done
    }
}

fn headers(
    written: Option<&kind::HeaderChanges>,
    of_requests: bool,
    field: &str,
    notes: &mut Notes<'_>,
) -> HeaderChanges {
    let Some(written) = written else {
        notes.close(field, "it does not say what is changed", "");
        return HeaderChanges::default();
    };
    let pairs = |all: &'_ [kind::Header]| -> Vec<(String, String)> {
        all.iter().map(|one| (one.name.clone(), one.value.clone())).collect()
    };
    let (set, add) = (pairs(&written.set), pairs(&written.add));
    let (set, add) = (borrowed(&set), borrowed(&add));
    let written = Written { set: &set, add: &add, remove: &written.remove, of_requests };
    changes(written, Dialect::Gateway, field, notes).0
}

fn borrowed(pairs: &[(String, String)]) -> Vec<(&str, &str)> {
    pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

fn share(written: Option<&kind::Mirror>, field: &str, notes: &mut Notes<'_>) -> Option<Share> {
    let written = written?;
    let share = match (written.percent, written.fraction) {
        (None, None) => Some(Share::ALWAYS),
        (Some(percent), _) => percent.checked_mul(10_000).and_then(Share::millionths),
        (None, Some(part)) => Share::fraction(part.numerator, part.denominator.unwrap_or(100)),
    };
    if share.is_none() {
        notes.close(field, "more than all of them", "write a share of at most 100 percent");
    }
    share
}

/// `read`: what of a text is a path there.
fn changed(
    written: &kind::PathChange,
    read: fn(&str, &str, &mut Notes<'_>) -> Option<mesh_core::ArcStr>,
    field: &str,
    notes: &mut Notes<'_>,
) -> Option<PathChange> {
    let (text, make): (_, fn(_) -> _) = match written.kind {
        PathChangeKind::ReplaceFullPath => (&written.replace_full_path, PathChange::Full),
        PathChangeKind::ReplacePrefixMatch => (&written.replace_prefix_match, PathChange::Prefix),
    };
    let Some(text) = text else {
        notes.close(field, "it does not say by what the path is replaced", "");
        return None;
    };
    read(text, field, notes).map(make)
}

fn redirect(written: Option<&kind::Redirect>, field: &str, notes: &mut Notes<'_>) -> Option<Redirect> {
    let written = written?;
    let scheme = match written.scheme.as_deref().map(Scheme::try_from) {
        Some(Err(_)) => {
            notes.close(format!("{field}.scheme"), "neither http nor https", "");
            None
        }
        scheme => scheme.and_then(Result::ok),
    };
    let port = match (written.port, &scheme) {
        (Some(port), _) => RedirectPort::Number(port),
        (None, Some(_)) => RedirectPort::OfScheme,
        (None, None) => RedirectPort::OfListener,
    };
    let code = written.status_code.unwrap_or(StatusCode::FOUND.as_u16());
    Some(Redirect {
        scheme,
        host: written.hostname.as_ref().and_then(|name| host(name, &format!("{field}.hostname"), notes)),
        port,
        path: written.path.as_ref().and_then(|path| changed(path, text::place, &format!("{field}.path"), notes)),
        status: status(code, &format!("{field}.statusCode"), notes)?,
    })
}

fn rewrite(written: Option<&kind::Rewrite>, field: &str, notes: &mut Notes<'_>) -> Option<Rewrite> {
    let written = written?;
    let path = written.path.as_ref().and_then(|path| changed(path, text::path, &format!("{field}.path"), notes));
    let authority = written.hostname.as_ref().and_then(|name| host(name, &format!("{field}.hostname"), notes));
    Some(Rewrite { path, authority })
}

fn cors(written: Option<&kind::Cors>, field: &str, notes: &mut Notes<'_>) -> Option<Cors> {
    let written = written?;
    let mut origins = Vec::new();
    for (index, origin) in written.allow_origins.iter().enumerate() {
        origins.extend(match origin.split_once('*') {
            Some((before, after)) if origin != "*" => {
                // A wildcard is any labels in front of a name, and they have no slash.
                let text = format!("{}[^/]+{}", regex::escape(before), regex::escape(after));
                text::pattern(&text, &format!("{field}.allowOrigins[{index}]"), notes).map(Text::Regex)
            }
            _ => Some(Text::Exact(origin.as_str().into())),
        });
    }
    let mut all = |name: &str, texts: &[String]| {
        for (index, text) in texts.iter().enumerate().filter(|(_, text)| http::HeaderName::try_from(*text).is_err()) {
            let message = format!("{text:?} is not a name");
            notes.close(format!("{field}.{name}[{index}]"), message, "write a name, or `*` alone");
        }
        texts.iter().map(|text| text.as_str().into()).collect()
    };
    Some(Cors {
        origins,
        methods: all("allowMethods", &written.allow_methods),
        headers: all("allowHeaders", &written.allow_headers),
        expose: all("exposeHeaders", &written.expose_headers),
        max_age: Some(std::time::Duration::from_secs(written.max_age.unwrap_or(5).into())),
        credentials: written.allow_credentials.unwrap_or(false),
        forward_unmatched: false,
    })
}

/// How the value of a header or a parameter is compared. `None`: the rule is closed, for every value.
pub fn value(one: &NamedMatch, field: &str, notes: &mut Notes<'_>) -> Option<Text> {
    match one.kind {
        Some(ValueKind::RegularExpression) => {
            let made: Option<Pattern> = text::pattern(&one.value, &format!("{field}.value"), notes);
            made.map(Text::Regex)
        }
        None | Some(ValueKind::Exact) => Some(Text::Exact(one.value.as_str().into())),
    }
}
