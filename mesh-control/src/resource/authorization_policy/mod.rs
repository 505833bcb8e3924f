//! AuthorizationPolicy, translated to the L4 algebra of mesh-core as istiod does it for ambient, except where istiod fails open:
//!
//! | rule | here |
//! |---|---|
//! | ALLOW with anything that L4 cannot judge | the rule is left out: it allows nothing |
//! | DENY with anything that L4 cannot judge | that condition is left out: the rule denies more. Alone, it denies everything selected |
//! | CUSTOM | agents ask nobody, so what its rules match is denied |
//! | AUDIT | not sent; it never denied anything |
//! | bound by `targetRefs` | not sent: it is a waypoint's, in full ([`bound`]) |
//!
//! Gateways whose pods it selects get all of it, as waypoints do what is bound to them: no agent stands before these.
//!
//! A field or value that is not understood makes the whole policy unreadable; what happens then is the catalog's business.

pub mod bound;
mod values;

use mesh_core::ArcStr;
use mesh_core::policy::{Action, Clause, Match, Rule};

use bound::Bound;
use values::{blocks, patterns, ports, principals, service_accounts};

use super::fields::{Fields, Mapping};
use super::{Key, Labels, Object, Read, Unreadable, meta};
use crate::diagnosis::{Problem, Severity};
use crate::yaml::node::{Node as Tree, Value};

/// Set to `true`, the policy is evaluated and reported, never enforced.
pub const DRY_RUN: &str = "istio.io/dry-run";

/// An authorization policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Its namespace.
    pub namespace: ArcStr,
    /// Its name.
    pub name: ArcStr,
    /// Which workloads; empty means all of the namespace, or of the mesh for the root namespace.
    pub selector: Labels,
    /// What the agents get; `None` if the policy is not theirs.
    pub enforced: Option<Enforced>,
    /// What waypoints get, if it is bound to something.
    pub bound: Option<Bound>,
    /// What gateways get whose pods it selects, if it is bound to nothing; or why they cannot read it.
    pub at_gateways: Result<Bound, String>,
}

/// The part of a policy that agents enforce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enforced {
    /// Allow or deny.
    pub action: Action,
    /// Alternatives.
    pub rules: Vec<Rule>,
    /// Only reported.
    pub dry_run: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    Allow,
    Deny,
    Audit,
    Custom,
}

/// Reads an authorization policy.
pub fn read(key: &Key, tree: &Tree) -> Read {
    let mut fields = Fields::default();
    let mut unreadable = Unreadable::default();
    let policy = policy(key, tree, &mut fields, &mut unreadable);
    let outcome = match policy {
        Some(policy) if !meta::has_error(&fields.problems) => Ok(Object::AuthorizationPolicy(policy.into())),
        _ => Err(unreadable),
    };
    Read { outcome, problems: fields.problems }
}

fn policy(key: &Key, tree: &Tree, fields: &mut Fields, known: &mut Unreadable) -> Option<AuthorizationPolicy> {
    let top = fields.mapping(tree, "", &["apiVersion", "kind", "metadata", "spec", "status"])?;
    let empty = Tree { value: Value::Map(Vec::new()), span: tree.span };
    let spec = top.get("spec").unwrap_or(&empty);
    let spec = fields.mapping(spec, "spec", &["selector", "targetRef", "targetRefs", "rules", "action", "provider"])?;
    known.selector = fields.selector(&spec);
    let selector = known.selector.clone();

    let bound = ["targetRef", "targetRefs"].into_iter().find(|k| spec.get(k).is_some());
    if let Some(field) = bound {
        known.bound_elsewhere = spec.get("selector").is_none();
        if spec.get("selector").is_some() {
            fields.error(spec.field(field), "a policy has either a selector or target references, not both");
        }
        known.targets = bound::targets(&spec, fields);
        let dry_run = dry_run(tree, fields);
        let bound = bound::read(key, &spec, known.targets.clone().unwrap_or_default(), dry_run, fields)?;
        return Some(AuthorizationPolicy {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            selector: selector?,
            enforced: None,
            bound: Some(bound),
            at_gateways: Err("it is bound by `targetRefs`".to_owned()),
        });
    }

    let written = written(&spec, fields)?;
    let action = if written == Written::Allow { Action::Allow } else { Action::Deny };
    match written {
        Written::Custom => {
            let problem =
                Problem::warning("spec.action", "agents ask no external authorizer: what the rules match is denied");
            fields.problems.push(problem.help("bind the policy to a waypoint with `targetRefs`"));
        }
        Written::Audit => {
            fields.problems.push(Problem::warning("spec.action", "AUDIT is not supported, the policy has no effect"))
        }
        Written::Allow | Written::Deny => {
            if spec.get("provider").is_some() {
                fields.error("spec.provider", "only a policy with action CUSTOM has a provider");
            }
        }
    }

    let mut rules = Vec::new();
    if let Some(tree) = spec.get("rules") {
        match &tree.value {
            // No rules is a policy that matches nothing: for ALLOW, deny all.
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    rules.extend(rule(key, item, &format!("spec.rules[{index}]"), action, fields));
                }
            }
            _ => {
                fields.list(&spec, "rules");
            }
        }
    }
    let dry_run = dry_run(tree, fields);
    let enforced = (written != Written::Audit).then_some(Enforced { action, rules, dry_run });
    Some(AuthorizationPolicy {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        selector: selector?,
        enforced,
        bound: None,
        at_gateways: at_gateways(key, &spec, dry_run),
    })
}

/// All that a policy says that is bound to nothing. What agents do not look into may be wrong here: only gateways mind.
fn at_gateways(key: &Key, spec: &Mapping<'_>, dry_run: bool) -> Result<Bound, String> {
    let mut fields = Fields::default();
    let read = bound::read(key, spec, Vec::new(), dry_run, &mut fields);
    let wrong = fields.problems.iter().find(|problem| problem.severity == Severity::Error);
    match (read, wrong) {
        (Some(bound), None) => Ok(bound),
        (_, Some(problem)) => Err(format!("{}: {}", problem.field, problem.message)),
        (None, None) => Err("it is not understood".to_owned()),
    }
}

fn written(spec: &Mapping<'_>, fields: &mut Fields) -> Option<Written> {
    Some(match fields.string(spec, "action") {
        None => Written::Allow,
        Some("ALLOW") => Written::Allow,
        Some("DENY") => Written::Deny,
        Some("AUDIT") => Written::Audit,
        Some("CUSTOM") => Written::Custom,
        Some(other) => {
            let problem = Problem::error("spec.action", format!("unknown action {other:?}"));
            fields.problems.push(problem.help("write ALLOW or DENY"));
            return None;
        }
    })
}

fn dry_run(tree: &Tree, fields: &mut Fields) -> bool {
    let Some(value) = tree.get("metadata").and_then(|m| m.get("annotations")).and_then(|a| a.get(DRY_RUN)) else {
        return false;
    };
    match value.as_str() {
        Some("true" | "True" | "TRUE" | "1" | "t" | "T") => true,
        Some("false" | "False" | "FALSE" | "0" | "f" | "F") => false,
        _ => {
            let field = format!("metadata.annotations[\"{DRY_RUN}\"]");
            let problem = Problem::warning(field, "neither \"true\" nor \"false\": the policy is enforced");
            fields.problems.push(problem.help("write \"true\", in quotes, to only report what the policy would do"));
            false
        }
    }
}

/// What one item of a rule became.
struct Part {
    /// The conditions that agents can judge, if it has any.
    judged: Option<Match>,
    /// A field that they cannot judge.
    beyond: Option<String>,
}

/// One rule; `None` if it is left out. All parts are read even so, for their mistakes.
fn rule(key: &Key, tree: &Tree, path: &str, action: Action, fields: &mut Fields) -> Option<Rule> {
    let rule = fields.mapping(tree, path, &["from", "to", "when"])?;
    let mut clauses = Vec::new();
    let mut beyond = Vec::new();
    let mut add = |parts: Vec<Part>| {
        if parts.is_empty() {
            return;
        }
        // Of alternatives, one without a condition that can be judged may hold: for a denial the clause counts as held.
        if parts.iter().all(|p| p.judged.is_some()) {
            clauses.push(Clause { matches: parts.iter().filter_map(|p| p.judged.clone()).collect() });
        }
        beyond.extend(parts.into_iter().filter_map(|p| p.beyond));
    };

    let to = fields.list(&rule, "to").unwrap_or_default();
    add(to.iter().enumerate().filter_map(|(i, t)| operation(t, &format!("{path}.to[{i}]"), fields)).collect());
    let from = fields.list(&rule, "from").unwrap_or_default();
    add(from.iter().enumerate().filter_map(|(i, t)| source(key, t, &format!("{path}.from[{i}]"), fields)).collect());
    for (i, tree) in fields.list(&rule, "when").unwrap_or_default().iter().enumerate() {
        add(condition(tree, &format!("{path}.when[{i}]"), fields).into_iter().collect());
    }

    for field in &beyond {
        let problem = match action {
            Action::Allow => {
                Problem::warning(field.clone(), "an agent cannot judge it: this ALLOW rule allows nothing")
            }
            Action::Deny => Problem::warning(
                field.clone(),
                "an agent cannot judge it: this rule denies whatever its other conditions match",
            ),
        };
        fields.problems.push(problem.help(
            "a node's agent sees addresses, ports and identities only (gateways see all): bind the policy to a waypoint with `targetRefs`",
        ));
    }
    match action {
        Action::Allow if !beyond.is_empty() => None,
        _ => Some(Rule { clauses }),
    }
}

/// `to[].operation`
fn operation(tree: &Tree, path: &str, fields: &mut Fields) -> Option<Part> {
    const HTTP: [&str; 6] = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"];
    const KNOWN: [&str; 8] = ["ports", "notPorts", "hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"];
    let to = fields.mapping(tree, path, &["operation"])?;
    let Some(tree) = to.get("operation") else {
        fields.error(path, "the operation is missing");
        return None;
    };
    let operation = fields.mapping(tree, &to.field("operation"), &KNOWN)?;
    no_empty(&operation, fields);
    let judged = Match {
        destination_ports: ports(&operation, "ports", fields),
        not_destination_ports: ports(&operation, "notPorts", fields),
        ..Match::default()
    };
    Some(part(&operation, &HTTP, judged, fields))
}

/// The fields of `from[].source`.
fn source_fields<'a>(tree: &'a Tree, path: &str, fields: &mut Fields) -> Option<Mapping<'a>> {
    const KNOWN: [&str; 14] = [
        "principals",
        "notPrincipals",
        "requestPrincipals",
        "notRequestPrincipals",
        "namespaces",
        "notNamespaces",
        "ipBlocks",
        "notIpBlocks",
        "remoteIpBlocks",
        "notRemoteIpBlocks",
        "serviceAccounts",
        "notServiceAccounts",
        "trustDomains",
        "notTrustDomains",
    ];
    let from = fields.mapping(tree, path, &["source"])?;
    let Some(tree) = from.get("source") else {
        fields.error(path, "the source is missing");
        return None;
    };
    let source = fields.mapping(tree, &from.field("source"), &KNOWN)?;
    no_empty(&source, fields);
    let has = |k: &str| source.get(k).is_some();
    if (has("serviceAccounts") || has("notServiceAccounts"))
        && ["principals", "notPrincipals", "namespaces", "notNamespaces"].into_iter().any(has)
    {
        fields.error(source.path(), "serviceAccounts cannot stand beside principals or namespaces");
    }
    Some(source)
}

/// `from[].source`
fn source(key: &Key, tree: &Tree, path: &str, fields: &mut Fields) -> Option<Part> {
    const BEYOND: [&str; 6] = [
        "requestPrincipals",
        "notRequestPrincipals",
        "remoteIpBlocks",
        "notRemoteIpBlocks",
        "trustDomains",
        "notTrustDomains",
    ];
    let source = source_fields(tree, path, fields)?;
    let judged = Match {
        principals: principals(&source, "principals", fields),
        not_principals: principals(&source, "notPrincipals", fields),
        namespaces: patterns(&source, "namespaces", fields),
        not_namespaces: patterns(&source, "notNamespaces", fields),
        service_accounts: service_accounts(key, &source, "serviceAccounts", fields),
        not_service_accounts: service_accounts(key, &source, "notServiceAccounts", fields),
        source_ips: blocks(&source, "ipBlocks", fields),
        not_source_ips: blocks(&source, "notIpBlocks", fields),
        ..Match::default()
    };
    Some(part(&source, &BEYOND, judged, fields))
}

/// `when[]`: values and their opposites, each a condition of its own.
fn condition(tree: &Tree, path: &str, fields: &mut Fields) -> Option<Part> {
    let (when, key) = attribute(tree, path, fields)?;
    let mut judged = Match::default();
    match key {
        "source.ip" => (judged.source_ips, judged.not_source_ips) = both(&when, fields, blocks),
        "destination.ip" => (judged.destination_ips, judged.not_destination_ips) = both(&when, fields, blocks),
        "destination.port" => (judged.destination_ports, judged.not_destination_ports) = both(&when, fields, ports),
        "source.namespace" => (judged.namespaces, judged.not_namespaces) = both(&when, fields, patterns),
        "source.principal" => (judged.principals, judged.not_principals) = both(&when, fields, principals),
        other => {
            fields.strings(&when, "values");
            fields.strings(&when, "notValues");
            if !attribute_known(other) {
                let known = ["source.ip", "source.namespace", "source.principal", "destination.ip", "destination.port"];
                let problem = Problem::error(when.field("key"), format!("unknown attribute {other:?}"));
                fields.problems.push(problem.help(format!("known at L4: {}", known.join(", "))));
                return None;
            }
            return Some(Part { judged: None, beyond: Some(when.field("key")) });
        }
    }
    Some(Part { judged: Some(judged), beyond: None })
}

/// A condition of `when[]`, and what it is about.
fn attribute<'a>(tree: &'a Tree, path: &str, fields: &mut Fields) -> Option<(Mapping<'a>, &'a str)> {
    let when = fields.mapping(tree, path, &["key", "values", "notValues"])?;
    let Some(key) = fields.string(&when, "key") else {
        if when.get("key").is_none() {
            fields.error(path, "the key is missing");
        }
        return None;
    };
    if when.get("values").is_none() && when.get("notValues").is_none() {
        fields.error(path, "a condition has values or notValues");
        return None;
    }
    Some((when, key))
}

/// What a condition asks for, and what it rules out.
fn both<T>(when: &Mapping<'_>, fields: &mut Fields, read: fn(&Mapping<'_>, &str, &mut Fields) -> T) -> (T, T) {
    (read(when, "values", fields), read(when, "notValues", fields))
}

/// Attributes of Istio that only a waypoint can judge.
fn attribute_known(key: &str) -> bool {
    const PLAIN: [&str; 7] = [
        "remote.ip",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "connection.sni",
        "source.serviceAccount",
        "source.trustDomain",
    ];
    const INDEXED: [&str; 3] = ["request.headers[", "request.auth.claims[", "experimental.envoy.filters."];
    PLAIN.contains(&key) || INDEXED.iter().any(|p| key.starts_with(p))
}

fn no_empty(mapping: &Mapping<'_>, fields: &mut Fields) {
    if mapping.entries().is_empty() {
        let problem = Problem::error(mapping.path(), "it restricts nothing, so it would match everybody");
        fields.problems.push(problem.help("delete the item if that is meant, else add conditions"));
    }
}

/// One `from` or `to` item; `beyond` names the fields that agents cannot judge.
fn part(mapping: &Mapping<'_>, beyond: &[&str], judged: Match, fields: &mut Fields) -> Part {
    let mut found = None;
    for field in beyond {
        if mapping.get(field).is_some() {
            fields.strings(mapping, field);
            found.get_or_insert(mapping.field(field));
        }
    }
    Part { judged: (judged != Match::default()).then_some(judged), beyond: found }
}
