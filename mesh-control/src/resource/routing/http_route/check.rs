//! What must hold between the fields of an HTTPRoute.

use super::{
    Filter, FilterKind, HeaderChanges, HttpRoute, Match, PathChange, PathChangeKind, PathKind, PathMatch, Rule,
    ValueKind,
};
use crate::resource::routing::reference::{check_backend, check_hostnames, check_parents, duration};
use crate::resource::routing::values::{Pattern, Span, attempts, header, host, matchable};
use crate::resource::routing::{Check, Spec};

impl Spec for HttpRoute {
    fn check(&self, check: &mut Check<'_>) {
        check_parents(&self.parent_refs, check);
        check_hostnames(&self.hostnames, check);
        for (index, rule) in self.rules.iter().enumerate() {
            rule.check(&format!("spec.rules[{index}]"), check);
        }
    }
}

impl Rule {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        for (index, one) in self.matches.iter().enumerate() {
            one.check(&format!("{field}.matches[{index}]"), check);
        }
        check_filters(&format!("{field}.filters"), &self.filters, self, check);
        for (index, backend) in self.backend_refs.iter().enumerate() {
            let field = format!("{field}.backendRefs[{index}]");
            check_backend(&field, &backend.reference(), check);
            check_filters(&format!("{field}.filters"), &backend.filters, self, check);
        }
        let redirects = self.filters.iter().any(|filter| filter.kind == FilterKind::RequestRedirect);
        if redirects && !self.backend_refs.is_empty() {
            check.error(
                format!("{field}.backendRefs"),
                "the client is sent elsewhere: no request comes here",
                "delete backendRefs or the redirect",
            );
        }
        let weights = self.backend_refs.iter().map(|backend| backend.weight.unwrap_or(1));
        if !self.backend_refs.is_empty() && weights.map(u64::from).sum::<u64>() == 0 {
            check.warning(
                format!("{field}.backendRefs"),
                "all weights together are 0: every request is answered with 500",
                "",
            );
        }
        if let Some(timeouts) = &self.timeouts {
            let field = format!("{field}.timeouts");
            let all = duration(&format!("{field}.request"), timeouts.request.as_deref(), check);
            let each = duration(&format!("{field}.backendRequest"), timeouts.backend_request.as_deref(), check);
            if let (Some(all), Some(each)) = (all, each)
                && each > all
                && all > Span::default()
            {
                check.error(
                    format!("{field}.backendRequest"),
                    "longer than `request`",
                    "each attempt is a part of the request",
                );
            }
        }
        if let Some(retry) = &self.retry {
            attempts(&format!("{field}.retry.attempts"), retry.attempts, check);
            duration(&format!("{field}.retry.backoff"), retry.backoff.as_deref(), check);
            for (index, code) in retry.codes.iter().enumerate().filter(|(_, code)| !(400..=599).contains(*code)) {
                check.error(
                    format!("{field}.retry.codes[{index}]"),
                    format!("{code} is not the status of a failure"),
                    "write a number from 400 to 599",
                );
            }
        }
        if let Some(session) = &self.session_persistence {
            let field = format!("{field}.sessionPersistence");
            duration(&format!("{field}.absoluteTimeout"), session.absolute_timeout.as_deref(), check);
            duration(&format!("{field}.idleTimeout"), session.idle_timeout.as_deref(), check);
        }
    }
}

impl Match {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        if let Some(path) = &self.path {
            path.check(&format!("{field}.path"), check);
        }
        for (name, matches) in [("headers", &self.headers), ("queryParams", &self.query_params)] {
            for (index, one) in matches.iter().enumerate() {
                let field = format!("{field}.{name}[{index}]");
                if name == "headers" {
                    check.must(format!("{field}.name"), matchable(&one.name));
                } else if one.name.is_empty() {
                    check.error(format!("{field}.name"), "an empty name", "");
                }
                if one.kind == Some(ValueKind::RegularExpression) {
                    check.must(format!("{field}.value"), Pattern::try_from(one.value.clone()).map(drop));
                }
            }
            let names = matches.iter().enumerate();
            check.once(names.map(|(i, one)| (format!("{field}.{name}[{i}].name"), one.name.to_ascii_lowercase())));
        }
    }
}

impl PathMatch {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        let Some(value) = &self.value else { return };
        let field = format!("{field}.value");
        if self.kind == Some(PathKind::RegularExpression) {
            return check.must(field, Pattern::try_from(value.clone()).map(drop));
        }
        if !value.starts_with('/') {
            check.error(field, format!("{value:?} does not begin with `/`"), &format!("write `/{value}`"));
        } else if ["//", "/./", "/../", "%2f", "%2F", "#"].iter().any(|odd| value.contains(odd))
            || value.ends_with("/..")
            || value.ends_with("/.")
        {
            check.error(
                field,
                format!("{value:?} is a path that no request has"),
                "write it without //, . and .., %2f and #",
            );
        }
    }
}

/// Filters of a rule, or of one of its backends.
fn check_filters(field: &str, filters: &[Filter], rule: &Rule, check: &mut Check<'_>) {
    let once = [
        FilterKind::RequestHeaderModifier,
        FilterKind::ResponseHeaderModifier,
        FilterKind::RequestRedirect,
        FilterKind::UrlRewrite,
        FilterKind::Cors,
    ];
    let kinds = filters.iter().enumerate().filter(|(_, filter)| once.contains(&filter.kind));
    check.once(kinds.map(|(i, filter)| (format!("{field}[{i}].type"), filter.kind)));
    let has = |kind: FilterKind| filters.iter().any(|filter| filter.kind == kind);
    if has(FilterKind::RequestRedirect) && has(FilterKind::UrlRewrite) {
        check.error(field, "RequestRedirect and URLRewrite exclude each other", "keep one of them");
    }
    for (index, filter) in filters.iter().enumerate() {
        filter.check(&format!("{field}[{index}]"), rule, check);
    }
}

impl Filter {
    /// What must hold of it, in a rule.
    pub(in crate::resource::routing) fn check(&self, field: &str, rule: &Rule, check: &mut Check<'_>) {
        let parts = [
            ("requestHeaderModifier", FilterKind::RequestHeaderModifier, self.request_header_modifier.is_some()),
            ("responseHeaderModifier", FilterKind::ResponseHeaderModifier, self.response_header_modifier.is_some()),
            ("requestMirror", FilterKind::RequestMirror, self.request_mirror.is_some()),
            ("requestRedirect", FilterKind::RequestRedirect, self.request_redirect.is_some()),
            ("urlRewrite", FilterKind::UrlRewrite, self.url_rewrite.is_some()),
            ("cors", FilterKind::Cors, self.cors.is_some()),
            ("externalAuth", FilterKind::ExternalAuth, self.external_auth.is_some()),
            ("extensionRef", FilterKind::ExtensionRef, self.extension_ref.is_some()),
        ];
        for (name, kind, is_there) in parts {
            match (kind == self.kind, is_there) {
                (true, false) => {
                    check.error(field, format!("the field `{name}` is missing"), "it is what the type says")
                }
                (false, true) => {
                    check.error(format!("{field}.{name}"), "the type says another filter", "make two filters of it")
                }
                _ => {}
            }
        }
        for (name, changes) in [
            ("requestHeaderModifier", &self.request_header_modifier),
            ("responseHeaderModifier", &self.response_header_modifier),
        ] {
            if let Some(changes) = changes {
                changes.check(&format!("{field}.{name}"), check);
            }
        }
        if let Some(mirror) = &self.request_mirror {
            let field = format!("{field}.requestMirror");
            check_backend(&format!("{field}.backendRef"), &mirror.backend_ref, check);
            check.one_of(&field, &[("percent", mirror.percent.is_some()), ("fraction", mirror.fraction.is_some())]);
            if let Some(percent) = mirror.percent {
                check.percent(format!("{field}.percent"), f64::from(percent));
            }
            if mirror
                .fraction
                .is_some_and(|f| f.denominator.unwrap_or(100) == 0 || f.numerator > f.denominator.unwrap_or(100))
            {
                check.error(format!("{field}.fraction"), "more than all of them", "");
            }
        }
        if let Some(redirect) = &self.request_redirect {
            let field = format!("{field}.requestRedirect");
            if redirect.scheme.as_ref().is_some_and(|scheme| !["http", "https"].contains(&scheme.as_str())) {
                check.error(format!("{field}.scheme"), "neither http nor https", "");
            }
            if redirect.status_code.is_some_and(|code| ![301, 302, 303, 307, 308].contains(&code)) {
                check.error(format!("{field}.statusCode"), "not a redirect", "write 301, 302, 303, 307 or 308");
            }
            if let Some(port) = redirect.port {
                check.port(format!("{field}.port"), port);
            }
            changed(&field, redirect.hostname.as_deref(), redirect.path.as_ref(), rule, check);
        }
        if let Some(rewrite) = &self.url_rewrite {
            changed(&format!("{field}.urlRewrite"), rewrite.hostname.as_deref(), rewrite.path.as_ref(), rule, check);
        }
    }
}

fn changed(field: &str, name: Option<&str>, path: Option<&PathChange>, rule: &Rule, check: &mut Check<'_>) {
    if let Some(name) = name {
        check.must(format!("{field}.hostname"), host(name));
    }
    let Some(path) = path else { return };
    let field = format!("{field}.path");
    let (wanted, is_there) = match path.kind {
        PathChangeKind::ReplaceFullPath => ("replaceFullPath", path.replace_full_path.is_some()),
        PathChangeKind::ReplacePrefixMatch => ("replacePrefixMatch", path.replace_prefix_match.is_some()),
    };
    if !is_there {
        check.error(&field, format!("the field `{wanted}` is missing"), "it is what the type says");
    }
    if path.replace_full_path.is_some() && path.replace_prefix_match.is_some() {
        check.error(
            &field,
            "replaceFullPath and replacePrefixMatch exclude each other",
            "keep the one that the type says",
        );
    }
    let is_prefix =
        |one: &Match| one.path.as_ref().is_none_or(|path| matches!(path.kind, None | Some(PathKind::PathPrefix)));
    if path.kind == PathChangeKind::ReplacePrefixMatch && !rule.matches.iter().all(is_prefix) {
        check.error(
            &field,
            "there is a match without a prefix that could be replaced",
            "match paths with `type: PathPrefix`",
        );
    }
}

impl HeaderChanges {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        for (what, headers) in [("set", &self.set), ("add", &self.add)] {
            for (index, one) in headers.iter().enumerate() {
                let field = format!("{field}.{what}[{index}]");
                check.must(format!("{field}.name"), header(&one.name));
                if http::HeaderValue::from_str(&one.value).is_err() {
                    check.error(format!("{field}.value"), "the value cannot stand in a header", "");
                }
            }
            let names = headers.iter().enumerate();
            check.once(names.map(|(i, one)| (format!("{field}.{what}[{i}].name"), one.name.to_ascii_lowercase())));
        }
        check.each(&format!("{field}.remove"), &self.remove, header);
    }
}
