//! Authorization policies, both ways. Every value is either understood or refuses the whole policy: a dropped value would change who may
//! connect.

use ipnet::IpNet;
use mesh_core::{
    NamespacedName, Policy,
    policy::{Action, Clause, Match, Rule, Scope, ServiceAccountMatch, StringMatch},
};

use super::{ConvertError, field};
use crate::wire::authorization::{self as auth, string_match::MatchType};

pub(super) fn read_scope(value: i32) -> Result<Scope, ConvertError> {
    Ok(match field::known("scope", value)? {
        auth::Scope::Global => Scope::Global,
        auth::Scope::Namespace => Scope::Namespace,
        auth::Scope::WorkloadSelector => Scope::WorkloadSelector,
    })
}

pub(super) fn read(message: auth::Authorization, scope: Scope) -> Result<Policy, ConvertError> {
    if !message.extensions.is_empty() {
        return Err(ConvertError::invalid("extensions", "not supported"));
    }
    Ok(Policy {
        name: NamespacedName {
            namespace: field::name("namespace", message.namespace)?,
            name: field::name("name", message.name)?,
        },
        scope,
        action: match field::known("action", message.action)? {
            auth::Action::Allow => Action::Allow,
            auth::Action::Deny => Action::Deny,
        },
        rules: message.rules.into_iter().map(rule).collect::<Result<_, _>>()?,
        dry_run: message.dry_run,
    })
}

fn rule(message: auth::Rule) -> Result<Rule, ConvertError> {
    Ok(Rule { clauses: message.clauses.into_iter().map(clause).collect::<Result<_, _>>()? })
}

fn clause(message: auth::Clause) -> Result<Clause, ConvertError> {
    Ok(Clause { matches: message.matches.into_iter().map(r#match).collect::<Result<_, _>>()? })
}

fn r#match(message: auth::Match) -> Result<Match, ConvertError> {
    if !message.extensions.is_empty() {
        return Err(ConvertError::invalid("match.extensions", "not supported"));
    }
    Ok(Match {
        namespaces: strings("namespaces", message.namespaces)?,
        not_namespaces: strings("not_namespaces", message.not_namespaces)?,
        principals: strings("principals", message.principals)?,
        not_principals: strings("not_principals", message.not_principals)?,
        service_accounts: accounts("service_accounts", message.service_accounts)?,
        not_service_accounts: accounts("not_service_accounts", message.not_service_accounts)?,
        source_ips: nets("source_ips", &message.source_ips)?,
        not_source_ips: nets("not_source_ips", &message.not_source_ips)?,
        destination_ips: nets("destination_ips", &message.destination_ips)?,
        not_destination_ips: nets("not_destination_ips", &message.not_destination_ips)?,
        destination_ports: ports("destination_ports", &message.destination_ports)?,
        not_destination_ports: ports("not_destination_ports", &message.not_destination_ports)?,
    })
}

fn strings(field: &'static str, list: Vec<auth::StringMatch>) -> Result<Vec<StringMatch>, ConvertError> {
    let value = |text: String| match text {
        empty if empty.is_empty() => Err(ConvertError::invalid(field, "empty string")),
        text => field::text(field, text),
    };
    let one = |message: auth::StringMatch| match message.match_type {
        Some(MatchType::Exact(text)) => value(text).map(StringMatch::Exact),
        Some(MatchType::Prefix(text)) => value(text).map(StringMatch::Prefix),
        Some(MatchType::Suffix(text)) => value(text).map(StringMatch::Suffix),
        Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
        None => Err(ConvertError::invalid(field, "a match says neither exact, prefix, suffix nor presence")),
    };
    list.into_iter().map(one).collect()
}

fn accounts(
    field: &'static str,
    list: Vec<auth::ServiceAccountMatch>,
) -> Result<Vec<ServiceAccountMatch>, ConvertError> {
    let one = |message: auth::ServiceAccountMatch| {
        let namespace = field::name(field, message.namespace)?;
        Ok(ServiceAccountMatch { namespace, service_account: field::name(field, message.service_account)? })
    };
    list.into_iter().map(one).collect()
}

/// A length that was left out reads as 0, which would mean every address: only `0.0.0.0/0` and `::/0` may say that.
fn nets(field: &'static str, list: &[auth::Address]) -> Result<Vec<IpNet>, ConvertError> {
    let one = |message: &auth::Address| {
        if message.length == 0 && message.address.iter().any(|byte| *byte != 0) {
            return Err(ConvertError::invalid(field, "an address has no prefix length"));
        }
        field::net(field, &message.address, message.length)
    };
    list.iter().map(one).collect()
}

fn ports(field: &'static str, list: &[u32]) -> Result<Vec<u16>, ConvertError> {
    list.iter().map(|port| field::port(field, *port)).collect()
}

pub(super) fn write(policy: &Policy) -> auth::Authorization {
    auth::Authorization {
        name: policy.name.name.to_string(),
        namespace: policy.name.namespace.to_string(),
        scope: match policy.scope {
            Scope::Global => auth::Scope::Global,
            Scope::Namespace => auth::Scope::Namespace,
            Scope::WorkloadSelector => auth::Scope::WorkloadSelector,
        } as i32,
        action: match policy.action {
            Action::Allow => auth::Action::Allow,
            Action::Deny => auth::Action::Deny,
        } as i32,
        rules: policy.rules.iter().map(write_rule).collect(),
        dry_run: policy.dry_run,
        extensions: Vec::new(),
    }
}

fn write_rule(rule: &Rule) -> auth::Rule {
    let clause = |clause: &Clause| auth::Clause { matches: clause.matches.iter().map(write_match).collect() };
    auth::Rule { clauses: rule.clauses.iter().map(clause).collect() }
}

fn write_match(m: &Match) -> auth::Match {
    auth::Match {
        namespaces: write_strings(&m.namespaces),
        not_namespaces: write_strings(&m.not_namespaces),
        principals: write_strings(&m.principals),
        not_principals: write_strings(&m.not_principals),
        source_ips: write_nets(&m.source_ips),
        not_source_ips: write_nets(&m.not_source_ips),
        destination_ips: write_nets(&m.destination_ips),
        not_destination_ips: write_nets(&m.not_destination_ips),
        destination_ports: m.destination_ports.iter().map(|p| u32::from(*p)).collect(),
        not_destination_ports: m.not_destination_ports.iter().map(|p| u32::from(*p)).collect(),
        service_accounts: write_accounts(&m.service_accounts),
        not_service_accounts: write_accounts(&m.not_service_accounts),
        extensions: Vec::new(),
    }
}

fn write_strings(list: &[StringMatch]) -> Vec<auth::StringMatch> {
    let one = |m: &StringMatch| match m {
        StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
        StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
        StringMatch::Presence => MatchType::Presence(()),
    };
    list.iter().map(|m| auth::StringMatch { match_type: Some(one(m)) }).collect()
}

fn write_nets(list: &[IpNet]) -> Vec<auth::Address> {
    let one = |net: &IpNet| auth::Address { address: field::octets(net.addr()), length: net.prefix_len().into() };
    list.iter().map(one).collect()
}

fn write_accounts(list: &[ServiceAccountMatch]) -> Vec<auth::ServiceAccountMatch> {
    let one = |m: &ServiceAccountMatch| auth::ServiceAccountMatch {
        namespace: m.namespace.to_string(),
        service_account: m.service_account.to_string(),
    };
    list.iter().map(one).collect()
}
