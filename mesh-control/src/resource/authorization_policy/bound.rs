//! Policies that are bound to a target: all that they say, for the waypoint that the target has. A field or value that is not understood makes the policy
//! unreadable, and what it is bound to is closed; an attribute that nobody can tell is kept as such.

use http::HeaderName;
use mesh_core::ArcStr;
use mesh_core::l7::headers::is_matchable;
use mesh_core::l7::policy::{
    Action, Address, Attribute, List, Operation, PathPattern, Rule, Source, StringMatch, When,
};

use super::values::{blocks, patterns, ports, principals, service_accounts};
use super::{DRY_RUN, Written, attribute, both, no_empty};
use crate::diagnosis::Problem;
use crate::resource::Key;
use crate::resource::fields::{Fields, Mapping};
use crate::resource::routing::telemetry::TargetReference;
use crate::yaml::node::Node as Tree;

/// What a policy may be bound to at once.
const MOST_TARGETS: usize = 16;
/// What nobody here can tell.
const FILTERS: &str = "experimental.envoy.filters.";

/// What a policy says that is bound to something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// To what.
    pub targets: Vec<TargetReference>,
    /// What a match means.
    pub action: Action,
    /// Alternatives.
    pub rules: Vec<Rule>,
    /// Only reported.
    pub dry_run: bool,
}

/// What it is bound to; `None` if any of it cannot be read.
pub(super) fn targets(spec: &Mapping<'_>, fields: &mut Fields) -> Option<Vec<TargetReference>> {
    let before = fields.problems.len();
    let mut trees: Vec<(String, &Tree)> =
        spec.get("targetRef").map(|tree| (spec.field("targetRef"), tree)).into_iter().collect();
    let list = fields.list(spec, "targetRefs").unwrap_or_default();
    trees.extend(list.iter().enumerate().map(|(i, tree)| (format!("{}[{i}]", spec.field("targetRefs")), tree)));
    if spec.get("targetRef").is_some() && spec.get("targetRefs").is_some() {
        fields.error(spec.field("targetRef"), "targetRef and targetRefs exclude each other");
    }
    if trees.len() > MOST_TARGETS {
        fields.error(spec.field("targetRefs"), format!("more than {MOST_TARGETS}"));
    }
    let targets: Vec<_> = trees.iter().filter_map(|(path, tree)| target(tree, path, fields)).collect();
    (fields.problems.len() == before && !targets.is_empty()).then_some(targets)
}

fn target(tree: &Tree, path: &str, fields: &mut Fields) -> Option<TargetReference> {
    const KINDS: [(&str, &str); 5] = [
        ("gateway.networking.k8s.io", "Gateway"),
        ("gateway.networking.k8s.io", "GatewayClass"),
        ("", "Service"),
        ("core", "Service"),
        ("networking.istio.io", "ServiceEntry"),
    ];
    let target = fields.mapping(tree, path, &["group", "kind", "name", "namespace"])?;
    // The core's group is written as an empty string.
    let group = target.get("group").and_then(Tree::as_str).unwrap_or_default().to_owned();
    let (Some(kind), Some(name)) = (fields.string(&target, "kind"), fields.string(&target, "name")) else {
        fields.error(path, "a target has `kind` and `name`");
        return None;
    };
    if !KINDS.contains(&(&group, kind)) {
        let problem = Problem::error(path, format!("nothing is bound to {kind}.{group}"));
        fields
            .problems
            .push(problem.help("bind it to a Gateway (group gateway.networking.k8s.io), a Service or a ServiceEntry"));
        return None;
    }
    let namespace = fields.string(&target, "namespace").map(str::to_owned);
    Some(TargetReference { group, kind: kind.to_owned(), name: name.to_owned(), namespace })
}

/// The rest of it.
pub(super) fn read(
    key: &Key,
    spec: &Mapping<'_>,
    targets: Vec<TargetReference>,
    dry_run: bool,
    fields: &mut Fields,
) -> Option<Bound> {
    if let Some(other) = targets.iter().filter_map(|one| one.namespace.as_deref()).find(|own| *own != &*key.namespace) {
        fields.error(spec.field("targetRefs"), format!("{other} is another namespace than the policy's"));
    }
    let written = super::written(spec, fields)?;
    let provider = match spec.get("provider") {
        Some(tree) => {
            let path = spec.field("provider");
            fields.mapping(tree, &path, &["name"]).and_then(|provider| fields.string(&provider, "name"))
        }
        None => None,
    };
    let action = match (written, provider) {
        (Written::Allow, None) => Action::Allow,
        (Written::Deny, None) => Action::Deny,
        (Written::Audit, None) => Action::Audit,
        (Written::Custom, Some(name)) => Action::Custom(name.into()),
        (Written::Custom, None) => {
            fields.error(spec.field("provider"), "a policy with action CUSTOM has a provider");
            return None;
        }
        (_, Some(_)) => {
            fields.error(spec.field("provider"), "only a policy with action CUSTOM has a provider");
            return None;
        }
    };
    if dry_run && matches!(action, Action::Custom(_)) {
        let field = format!("metadata.annotations[\"{DRY_RUN}\"]");
        let message = "there is no dry run of CUSTOM: nobody is asked, and nothing is denied";
        fields.problems.push(Problem::warning(field, message).help("delete the annotation to have the provider asked"));
    }
    let mut rules = Vec::new();
    if spec
        .get("rules")
        .is_some_and(|tree| !matches!(&tree.value, crate::yaml::node::Value::List(all) if all.is_empty()))
    {
        for (index, tree) in fields.list(spec, "rules").unwrap_or_default().iter().enumerate() {
            rules.extend(rule(key, tree, &format!("spec.rules[{index}]"), written, fields));
        }
    }
    Some(Bound { targets, action, rules, dry_run })
}

fn rule(key: &Key, tree: &Tree, path: &str, written: Written, fields: &mut Fields) -> Option<Rule> {
    let rule = fields.mapping(tree, path, &["from", "to", "when"])?;
    let mut out = Rule::default();
    for (i, tree) in fields.list(&rule, "from").unwrap_or_default().iter().enumerate() {
        out.from.extend(source(key, tree, &format!("{path}.from[{i}]"), fields));
    }
    for (i, tree) in fields.list(&rule, "to").unwrap_or_default().iter().enumerate() {
        out.to.extend(operation(tree, &format!("{path}.to[{i}]"), fields));
    }
    for (i, tree) in fields.list(&rule, "when").unwrap_or_default().iter().enumerate() {
        out.when.extend(condition(key, tree, &format!("{path}.when[{i}]"), written, fields));
    }
    Some(out)
}

fn list<T>(
    mapping: &Mapping<'_>,
    is: &str,
    not: &str,
    fields: &mut Fields,
    read: impl Fn(&Mapping<'_>, &str, &mut Fields) -> Vec<T>,
) -> List<T> {
    List { is: read(mapping, is, fields), not: read(mapping, not, fields) }
}

fn source(key: &Key, tree: &Tree, path: &str, fields: &mut Fields) -> Option<Source> {
    let source = super::source_fields(tree, path, fields)?;
    let accounts =
        |mapping: &Mapping<'_>, field: &str, fields: &mut Fields| service_accounts(key, mapping, field, fields);
    Some(Source {
        principals: list(&source, "principals", "notPrincipals", fields, principals),
        namespaces: list(&source, "namespaces", "notNamespaces", fields, patterns),
        service_accounts: list(&source, "serviceAccounts", "notServiceAccounts", fields, accounts),
        trust_domains: list(&source, "trustDomains", "notTrustDomains", fields, patterns),
        ips: list(&source, "ipBlocks", "notIpBlocks", fields, blocks),
        remote_ips: list(&source, "remoteIpBlocks", "notRemoteIpBlocks", fields, blocks),
        request_principals: list(&source, "requestPrincipals", "notRequestPrincipals", fields, patterns),
    })
}

fn operation(tree: &Tree, path: &str, fields: &mut Fields) -> Option<Operation> {
    const KNOWN: [&str; 8] = ["ports", "notPorts", "hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"];
    let to = fields.mapping(tree, path, &["operation"])?;
    let Some(tree) = to.get("operation") else {
        fields.error(path, "the operation is missing");
        return None;
    };
    let operation = fields.mapping(tree, &to.field("operation"), &KNOWN)?;
    no_empty(&operation, fields);
    Some(Operation {
        hosts: list(&operation, "hosts", "notHosts", fields, hosts),
        ports: list(&operation, "ports", "notPorts", fields, ports),
        methods: list(&operation, "methods", "notMethods", fields, patterns),
        paths: list(&operation, "paths", "notPaths", fields, paths),
    })
}

/// Hosts are compared in the one spelling that requests have: lower case, without a final dot.
fn hosts(mapping: &Mapping<'_>, field: &str, fields: &mut Fields) -> Vec<StringMatch> {
    let lower = |text: ArcStr| ArcStr::from(text.to_ascii_lowercase());
    let whole = |text: ArcStr| lower(text.strip_suffix('.').map_or(text.clone(), ArcStr::from));
    let spelt = |pattern| match pattern {
        StringMatch::Exact(text) => StringMatch::Exact(whole(text)),
        StringMatch::Suffix(text) => StringMatch::Suffix(whole(text)),
        StringMatch::Prefix(text) => StringMatch::Prefix(lower(text)),
        StringMatch::Presence => StringMatch::Presence,
    };
    patterns(mapping, field, fields).into_iter().map(spelt).collect()
}

fn paths(mapping: &Mapping<'_>, field: &str, fields: &mut Fields) -> Vec<PathPattern> {
    let mut out = Vec::new();
    for (path, text) in fields.strings(mapping, field) {
        match PathPattern::new(text) {
            Ok(pattern) => out.push(pattern),
            Err(error) => fields.error(path, error.to_string()),
        }
    }
    out
}

fn condition(key: &Key, tree: &Tree, path: &str, written: Written, fields: &mut Fields) -> Option<When> {
    let (when, name) = attribute(tree, path, fields)?;
    let of = |(is, not)| List { is, not };
    let address = |address, fields: &mut Fields| When::Ip(address, of2(both(&when, fields, blocks)));
    Some(match name {
        "source.ip" => address(Address::Source, fields),
        "remote.ip" => address(Address::Remote, fields),
        "destination.ip" => address(Address::Destination, fields),
        "destination.port" => When::Port(of2(both(&when, fields, ports))),
        "source.namespace" => When::Text(Attribute::Namespace, of(both(&when, fields, patterns))),
        "source.principal" => When::Text(Attribute::Principal, of(both(&when, fields, principals))),
        "source.serviceAccount" => {
            let accounts =
                |mapping: &Mapping<'_>, field: &str, fields: &mut Fields| service_accounts(key, mapping, field, fields);
            When::Account(list(&when, "values", "notValues", fields, accounts))
        }
        "source.trustDomain" => When::Text(Attribute::TrustDomain, of(both(&when, fields, patterns))),
        "request.auth.principal" => When::Text(Attribute::RequestPrincipal, of(both(&when, fields, patterns))),
        "request.auth.audiences" => When::Text(Attribute::Audience, of(both(&when, fields, patterns))),
        "request.auth.presenter" => When::Text(Attribute::Presenter, of(both(&when, fields, patterns))),
        "connection.sni" => When::Text(Attribute::Sni, of(both(&when, fields, patterns))),
        other if other.starts_with(FILTERS) => {
            both(&when, fields, patterns);
            let message = match written {
                Written::Allow => "nobody here can tell: this ALLOW rule allows nothing",
                _ => "nobody here can tell: this rule means whatever its other conditions match",
            };
            fields.problems.push(Problem::warning(when.field("key"), message).help("there is no Envoy here"));
            When::Unknown(other.into())
        }
        other => match indexed(other) {
            Ok(Attribute::Host) => When::Text(Attribute::Host, of(both(&when, fields, hosts))),
            Ok(attribute) => When::Text(attribute, of(both(&when, fields, patterns))),
            Err((message, help)) => {
                let problem = Problem::error(when.field("key"), format!("{other:?}: {message}"));
                fields.problems.push(problem.help(help));
                return None;
            }
        },
    })
}

fn of2<T>((is, not): (Vec<T>, Vec<T>)) -> List<T> {
    List { is, not }
}

/// `request.headers[name]` and `request.auth.claims[name][name]`.
fn indexed(key: &str) -> Result<Attribute, (&'static str, &'static str)> {
    const UNKNOWN: (&str, &str) = (
        "unknown attribute",
        "known: source.*, destination.*, remote.ip, connection.sni, request.headers[], request.auth.*",
    );
    if let Some(name) = key.strip_prefix("request.headers[").and_then(|rest| rest.strip_suffix(']')) {
        let name = name.to_ascii_lowercase();
        return match name.as_str() {
            "host" | ":authority" => Ok(Attribute::Host),
            ":method" => Ok(Attribute::Method),
            ":path" => Err(("a path is no header", "use `to.operation.paths`")),
            name => match HeaderName::try_from(name) {
                Ok(name) if is_matchable(&name) => Ok(Attribute::Header(name)),
                Ok(_) => Err(("the header is one of the connection", "requests cannot be told by it")),
                Err(_) => Err(("not the name of a header", "write request.headers[x-name]")),
            },
        };
    }
    let Some(rest) = key.strip_prefix("request.auth.claims[").and_then(|rest| rest.strip_suffix(']')) else {
        return Err(UNKNOWN);
    };
    let names: Vec<ArcStr> = rest.split("][").map(ArcStr::from).collect();
    match names.iter().any(|name| name.is_empty() || name.contains(['[', ']'])) {
        true => Err(("not the name of a claim", "write request.auth.claims[name] or [name][name]")),
        false => Ok(Attribute::Claim(names)),
    }
}
