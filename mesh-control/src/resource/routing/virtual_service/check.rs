//! What must hold between the fields of a VirtualService.

mod failures;

use super::{
    Body, Cors, Destination, DirectResponse, Headers, HttpMatch, HttpRule, Percent, Redirect, Rewrite, Target, TcpRule,
    TlsRule, VirtualService,
};
use crate::resource::routing::values::{StringMatch, block, covers, header, host, host_pattern, matchable, visibility};
use crate::resource::routing::{Check, Spec};
use crate::resource::{Labels, meta};

/// Bytes of a body that is written into a rule.
const LONGEST_BODY: usize = 1 << 20;

impl Spec for VirtualService {
    fn check(&self, check: &mut Check<'_>) {
        check.each("spec.hosts", &self.hosts, |host| match block(host) {
            Ok(()) => Ok(()),
            Err(_) => host_pattern(host),
        });
        check.once(self.hosts.iter().enumerate().map(|(i, host)| (format!("spec.hosts[{i}]"), host)));
        check.each("spec.gateways", &self.gateways, gateway);
        check.each("spec.exportTo", &self.export_to, visibility);
        if self.is_of_the_mesh() {
            for (index, host) in self.hosts.iter().enumerate().filter(|(_, host)| *host == "*") {
                check.error(
                    format!("spec.hosts[{index}]"),
                    format!("{host:?} cannot mean every host of the mesh"),
                    "name hosts, or bind it to gateways",
                );
            }
        }
        let is_delegate = self.hosts.is_empty();
        if is_delegate && (!self.gateways.is_empty() || !self.tls.is_empty() || !self.tcp.is_empty()) {
            check.error(
                "spec.hosts",
                "the hosts are missing",
                "without hosts it can only be delegated to: then it has `http` and no gateways",
            );
        }
        if self.http.is_empty() && self.tls.is_empty() && self.tcp.is_empty() {
            check.error("spec", "it has no rules", "add `http`, `tls` or `tcp`");
        }
        let mut catch_all = None;
        for (index, rule) in self.http.iter().enumerate() {
            let field = format!("spec.http[{index}]");
            if let Some(first) = catch_all {
                let message = format!("no request comes so far: http[{first}] takes all");
                check.warning(&field, message, "put the rule without conditions last");
            }
            rule.check(&field, is_delegate, check);
            if rule.matches.is_empty() || rule.matches.iter().any(|one| *one == HttpMatch::default()) {
                catch_all = catch_all.or(Some(index));
            }
        }
        for (index, rule) in self.tls.iter().enumerate() {
            rule.check(&format!("spec.tls[{index}]"), &self.hosts, check);
        }
        for (index, rule) in self.tcp.iter().enumerate() {
            rule.check(&format!("spec.tcp[{index}]"), check);
        }
    }
}

/// The name of a gateway, of this namespace or with one.
fn gateway(text: &str) -> Result<(), String> {
    let (namespace, name) = text.split_once('/').map_or((None, text), |(namespace, name)| (Some(namespace), name));
    let label = meta::label;
    let is_good =
        namespace.is_none_or(|namespace| namespace == "." || label(namespace).is_ok()) && meta::subdomain(name).is_ok();
    // Names of services were allowed once.
    match is_good {
        true => Ok(()),
        false => Err(format!("{text:?} is neither `mesh` nor the name of a gateway, as istio-system/public")),
    }
}

impl HttpRule {
    fn check(&self, field: &str, is_delegate: bool, check: &mut Check<'_>) {
        let ends = [
            ("route", !self.route.is_empty()),
            ("redirect", self.redirect.is_some()),
            ("directResponse", self.direct_response.is_some()),
            ("delegate", self.delegate.is_some()),
        ];
        if check.one_of(field, &ends) == 0 {
            check.error(field, "the rule does nothing", "add `route`, `redirect`, `directResponse` or `delegate`");
        }
        for (index, one) in self.matches.iter().enumerate() {
            one.check(&format!("{field}.match[{index}]"), check);
        }
        weights(&format!("{field}.route"), self.route.iter().map(|target| target.weight), check);
        for (index, target) in self.route.iter().enumerate() {
            let field = format!("{field}.route[{index}]");
            target.destination.check(&format!("{field}.destination"), check);
            target.headers.check(&format!("{field}.headers"), check);
        }
        self.headers.check(&format!("{field}.headers"), check);
        if let Some(redirect) = &self.redirect {
            redirect.check(&format!("{field}.redirect"), check);
            if self.rewrite.is_some() {
                check.error(format!("{field}.rewrite"), "a redirect rewrites nothing", "delete `rewrite`");
            }
        }
        if let Some(answer) = &self.direct_response {
            answer.check(&format!("{field}.directResponse"), check);
        }
        if let Some(delegate) = &self.delegate {
            let field = format!("{field}.delegate");
            if is_delegate {
                check.error(&field, "what is delegated to cannot delegate again", "write the rules here");
            }
            if delegate.name.is_empty() {
                check.error(&field, "the field `name` is missing", "");
            }
        }
        if let Some(rewrite) = &self.rewrite {
            rewrite.check(&format!("{field}.rewrite"), check);
        }
        if let Some(retries) = &self.retries {
            retries.check(&format!("{field}.retries"), self.timeout, check);
        }
        if let Some(fault) = &self.fault {
            fault.check(&format!("{field}.fault"), check);
        }
        self.check_mirrors(field, check);
        if let Some(cors) = &self.cors_policy {
            cors.check(&format!("{field}.corsPolicy"), check);
        }
    }

    fn check_mirrors(&self, field: &str, check: &mut Check<'_>) {
        check.one_of(field, &[("mirror", self.mirror.is_some()), ("mirrors", !self.mirrors.is_empty())]);
        if let Some(mirror) = &self.mirror {
            mirror.check(&format!("{field}.mirror"), check);
        }
        for (index, mirror) in self.mirrors.iter().enumerate() {
            let field = format!("{field}.mirrors[{index}]");
            mirror.destination.check(&format!("{field}.destination"), check);
            if let Some(percent) = mirror.percentage {
                percent.check(format!("{field}.percentage"), check);
            }
        }
        if let Some(percent) = self.mirror_percentage {
            percent.check(format!("{field}.mirrorPercentage"), check);
        }
        for (name, percent) in [("mirrorPercent", self.mirror_percent), ("mirror_percent", self.mirror_percent_oldest)]
        {
            let Some(percent) = percent else { continue };
            let field = format!("{field}.{name}");
            check.percent(&field, f64::from(percent));
            check.warning(&field, "an old name", "write `mirrorPercentage: {value: …}`");
        }
        let shares =
            [self.mirror_percentage.is_some(), self.mirror_percent.is_some(), self.mirror_percent_oldest.is_some()];
        if shares.contains(&true) && self.mirror.is_none() {
            check.warning(field, "a share of copies, and no `mirror`", "`mirrors` have a percentage each");
        }
    }
}

impl HttpMatch {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        let texts =
            [("uri", &self.uri), ("scheme", &self.scheme), ("method", &self.method), ("authority", &self.authority)];
        for (name, text) in texts {
            if *text == Some(StringMatch::Present) {
                check.error(format!("{field}.{name}"), "it matches nothing", "write exact, prefix or regex");
            }
        }
        if let Some(StringMatch::Exact(method)) = &self.method
            && method.to_ascii_uppercase() != *method
        {
            check.warning(format!("{field}.method"), "methods are in upper case: no request has this one", "");
        }
        if let (true, Some(StringMatch::Regex(_))) = (self.ignore_uri_case, &self.uri) {
            check.warning(
                format!("{field}.ignoreUriCase"),
                "it counts for exact and prefix only",
                "write (?i) into the regex",
            );
        }
        for (name, headers) in [("headers", &self.headers), ("withoutHeaders", &self.without_headers)] {
            for key in headers.keys() {
                let field = crate::yaml::node::join(&format!("{field}.{name}"), key);
                // Claims of a token stand among the headers.
                if key.starts_with("@request.auth.claims") {
                    continue;
                }
                check.must(&field, matchable(key));
                if key.chars().any(|c| c.is_ascii_uppercase()) {
                    let help = format!("write `{}`", key.to_ascii_lowercase());
                    check.warning(&field, "names of headers are in lower case here", &help);
                }
                if ["uri", "scheme", "method", "authority"].contains(&key.as_str()) {
                    check.warning(
                        &field,
                        "it is no header and is not looked at",
                        &format!("write it as `{key}` beside `headers`"),
                    );
                }
            }
        }
        if let Some(port) = self.port {
            check.port(format!("{field}.port"), port);
        }
        check.each(&format!("{field}.gateways"), &self.gateways, gateway);
        client(field, &self.source_labels, self.source_namespace.as_deref(), check);
    }
}

/// By what clients are known.
fn client(field: &str, labels: &Labels, namespace: Option<&str>, check: &mut Check<'_>) {
    check.labels(&format!("{field}.sourceLabels"), labels);
    if let Some(name) = namespace.filter(|name| !name.is_empty()) {
        let valid = meta::label(name).map_err(|why| format!("{name:?} is not the name of a namespace: {why}"));
        check.must(format!("{field}.sourceNamespace"), valid);
    }
}

/// Of several places some must get something.
fn weights(field: &str, weights: impl Iterator<Item = u32> + Clone, check: &mut Check<'_>) {
    if weights.clone().count() > 1 && weights.map(u64::from).sum::<u64>() == 0 {
        check.error(field, "all weights together are 0: nothing goes anywhere", "give each place a `weight`");
    }
}

impl Destination {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        check.must(format!("{field}.host"), host(&self.host));
        if self.subset.as_ref().is_some_and(String::is_empty) {
            check.error(format!("{field}.subset"), "an empty name", "delete the field");
        }
        if let Some(port) = self.port {
            check.port(format!("{field}.port.number"), port.number);
        }
    }
}

impl Headers {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        for (name, changes) in [("request", &self.request), ("response", &self.response)] {
            let field = format!("{field}.{name}");
            for (what, entries) in [("set", &changes.set), ("add", &changes.add)] {
                for (key, value) in entries {
                    let field = crate::yaml::node::join(&format!("{field}.{what}"), key);
                    // The authority and the path may be set by their names in HTTP/2.
                    check.must(&field, header(key.strip_prefix(':').unwrap_or(key)));
                    if http::HeaderValue::from_str(value).is_err() {
                        check.error(&field, "the value cannot stand in a header", "");
                    }
                }
            }
            check.each(&format!("{field}.remove"), &changes.remove, header);
        }
    }
}

impl Redirect {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        if *self == Redirect::default() {
            check.error(
                field,
                "it leads nowhere else",
                "add `uri`, `prefixRewrite`, `authority`, `port`, `derivePort` or `scheme`",
            );
        }
        check.one_of(field, &[("uri", self.uri.is_some()), ("prefixRewrite", self.prefix_rewrite.is_some())]);
        check.one_of(field, &[("port", self.port.is_some()), ("derivePort", self.derive_port.is_some())]);
        if let Some(port) = self.port {
            check.port(format!("{field}.port"), port);
        }
        if let Some(code) = self.redirect_code.filter(|code| ![301, 302, 303, 307, 308].contains(code)) {
            check.error(
                format!("{field}.redirectCode"),
                format!("{code} is not a redirect"),
                "write 301, 302, 303, 307 or 308",
            );
        }
        if self.scheme.as_ref().is_some_and(|scheme| !["http", "https"].contains(&scheme.as_str())) {
            check.error(format!("{field}.scheme"), "neither http nor https", "");
        }
    }
}

impl DirectResponse {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        if !(200..=599).contains(&self.status) {
            check.error(
                format!("{field}.status"),
                format!("{} is not the status of an answer", self.status),
                "write a number from 200 to 599",
            );
        }
        if let Some(Body { string, bytes }) = &self.body {
            check.one_of(&format!("{field}.body"), &[("string", string.is_some()), ("bytes", bytes.is_some())]);
            let length = string.as_ref().or(bytes.as_ref()).map_or(0, String::len);
            if length > LONGEST_BODY {
                check.error(format!("{field}.body"), "longer than 1 MiB", "serve it from a pod");
            }
        }
    }
}

impl Rewrite {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        if *self == Rewrite::default() {
            check.error(field, "it rewrites nothing", "add `uri`, `authority` or `uriRegexRewrite`");
        }
        check.one_of(field, &[("uri", self.uri.is_some()), ("uriRegexRewrite", self.uri_regex_rewrite.is_some())]);
    }
}

impl Cors {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        if !self.allow_origin.is_empty() {
            check.warning(format!("{field}.allowOrigin"), "an old name", "write `allowOrigins: [{exact: …}]`");
        }
        for (index, _) in self.allow_origins.iter().enumerate().filter(|(_, origin)| **origin == StringMatch::Present) {
            check.error(format!("{field}.allowOrigins[{index}]"), "it matches nothing", "write exact, prefix or regex");
        }
        check.each(&format!("{field}.allowMethods"), &self.allow_methods, |method| match method {
            "*" => Ok(()),
            _ => {
                http::Method::from_bytes(method.as_bytes()).map(drop).map_err(|_| format!("{method:?} is not a method"))
            }
        });
        for (name, headers) in [("allowHeaders", &self.allow_headers), ("exposeHeaders", &self.expose_headers)] {
            check.each(&format!("{field}.{name}"), headers, header);
        }
    }
}

impl TlsRule {
    fn check(&self, field: &str, hosts: &[String], check: &mut Check<'_>) {
        if self.matches.is_empty() {
            check.error(format!("{field}.match"), "no condition", "add `sniHosts`");
        }
        for (index, one) in self.matches.iter().enumerate() {
            let field = format!("{field}.match[{index}]");
            if one.sni_hosts.is_empty() {
                check.error(format!("{field}.sniHosts"), "no name", "name at least one host");
            }
            check.each(&format!("{field}.sniHosts"), &one.sni_hosts, host_pattern);
            for (index, name) in one.sni_hosts.iter().enumerate() {
                if !hosts.iter().any(|host| covers(host, name)) {
                    check.error(
                        format!("{field}.sniHosts[{index}]"),
                        format!("{name:?} is none of the object's hosts"),
                        "add it to spec.hosts",
                    );
                }
            }
            check.each(&format!("{field}.destinationSubnets"), &one.destination_subnets, block);
            check.each(&format!("{field}.gateways"), &one.gateways, gateway);
            client(&field, &one.source_labels, one.source_namespace.as_deref(), check);
            if let Some(port) = one.port {
                check.port(format!("{field}.port"), port);
            }
        }
        targets(field, &self.route, check);
    }
}

impl TcpRule {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        for (index, one) in self.matches.iter().enumerate() {
            let field = format!("{field}.match[{index}]");
            check.each(&format!("{field}.destinationSubnets"), &one.destination_subnets, block);
            check.each(&format!("{field}.gateways"), &one.gateways, gateway);
            client(&field, &one.source_labels, one.source_namespace.as_deref(), check);
            if one.source_subnet.is_some() {
                check.error(
                    format!("{field}.sourceSubnet"),
                    "nobody looks at it",
                    "write `sourceLabels` or `sourceNamespace`",
                );
            }
            if let Some(port) = one.port {
                check.port(format!("{field}.port"), port);
            }
        }
        targets(field, &self.route, check);
    }
}

fn targets(field: &str, route: &[Target], check: &mut Check<'_>) {
    let field = format!("{field}.route");
    if route.is_empty() {
        check.error(&field, "it leads nowhere", "name a destination");
    }
    weights(&field, route.iter().map(|target| target.weight), check);
    for (index, target) in route.iter().enumerate() {
        target.destination.check(&format!("{field}[{index}].destination"), check);
    }
}

impl Percent {
    fn check(self, field: String, check: &mut Check<'_>) {
        if !(0..=1_000_000).contains(&self.0) {
            check.error(format!("{field}.value"), "not a percentage", "write a number from 0 to 100");
        }
    }
}
