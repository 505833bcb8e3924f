//! Policies on requests, both ways. Every value is either understood or refuses the whole policy.

use http::HeaderName;
use ipnet::IpNet;
use mesh_core::NamespacedName;
use mesh_core::l7::policy::{
    Action, Address, Attribute, List, Operation, PathPattern, Policy, Rule, ServiceAccountMatch, Source, StringMatch,
    When,
};
use mesh_core::l7::security::Target;
use prost::Message;

use super::few;
use crate::convert::{ConvertError, field};
use crate::wire::l7::{self as wire, policy_condition, text_condition, value_match};

/// Rules of a policy, parts of a rule, values of a list.
const MOST_RULES: usize = 10_000;
const MOST_PARTS: usize = 1_000;
const MOST_VALUES: usize = 10_000;
/// Bytes of a value.
const LONGEST: usize = 4096;

type Read<T> = Result<T, ConvertError>;

/// Attributes that have no name of their own.
const ATTRIBUTES: [(wire::PolicyAttribute, Attribute); 9] = [
    (wire::PolicyAttribute::Host, Attribute::Host),
    (wire::PolicyAttribute::Method, Attribute::Method),
    (wire::PolicyAttribute::Namespace, Attribute::Namespace),
    (wire::PolicyAttribute::Principal, Attribute::Principal),
    (wire::PolicyAttribute::TrustDomain, Attribute::TrustDomain),
    (wire::PolicyAttribute::RequestPrincipal, Attribute::RequestPrincipal),
    (wire::PolicyAttribute::Audience, Attribute::Audience),
    (wire::PolicyAttribute::Presenter, Attribute::Presenter),
    (wire::PolicyAttribute::Sni, Attribute::Sni),
];

const ADDRESSES: [(wire::PolicyAddress, Address); 3] = [
    (wire::PolicyAddress::Source, Address::Source),
    (wire::PolicyAddress::Remote, Address::Remote),
    (wire::PolicyAddress::Destination, Address::Destination),
];

pub(super) fn read(name: &NamespacedName, target: &Target, bytes: &[u8]) -> Read<Policy> {
    let message = wire::RequestPolicy::decode(bytes).map_err(ConvertError::decode)?;
    if message.encoded_len() != bytes.len() {
        return Err(ConvertError::UnknownFields);
    }
    let action = match field::known("action", message.action)? {
        wire::PolicyAction::Unsaid => return Err(ConvertError::Missing { field: "action" }),
        wire::PolicyAction::Allow => Action::Allow,
        wire::PolicyAction::Deny => Action::Deny,
        wire::PolicyAction::Audit => Action::Audit,
        wire::PolicyAction::Custom => Action::Custom(field::name("provider", message.provider)?),
    };
    few("rules", message.rules.len(), MOST_RULES)?;
    let rules = message.rules.into_iter().map(read_rule).collect::<Read<_>>()?;
    Ok(Policy { name: name.clone(), target: target.clone(), action, rules, dry_run: message.dry_run })
}

pub(super) fn read_rule(message: wire::PolicyRule) -> Read<Rule> {
    for count in [message.from.len(), message.to.len(), message.when.len()] {
        few("rules.parts", count, MOST_PARTS)?;
    }
    Ok(Rule {
        from: message.from.into_iter().map(source).collect::<Read<_>>()?,
        to: message.to.into_iter().map(operation).collect::<Read<_>>()?,
        when: message.when.into_iter().map(condition).collect::<Read<_>>()?,
    })
}

fn source(message: wire::PolicySource) -> Read<Source> {
    let source = Source {
        principals: texts("principals", message.principals)?,
        namespaces: texts("namespaces", message.namespaces)?,
        service_accounts: accounts(message.service_accounts)?,
        trust_domains: texts("trust_domains", message.trust_domains)?,
        ips: blocks("ips", message.ips)?,
        remote_ips: blocks("remote_ips", message.remote_ips)?,
        request_principals: texts("request_principals", message.request_principals)?,
    };
    // It would be everybody.
    if source == Source::default() {
        return Err(ConvertError::invalid("from", "a source that says nothing"));
    }
    Ok(source)
}

fn operation(message: wire::PolicyOperation) -> Read<Operation> {
    let paths = message.paths.unwrap_or_default();
    let pattern = |text: &String| {
        let text = value("paths", text.clone())?;
        PathPattern::new(text).map_err(|error| ConvertError::invalid("paths", error.to_string()))
    };
    let operation = Operation {
        hosts: texts("hosts", message.hosts)?,
        ports: ports(message.ports)?,
        methods: texts("methods", message.methods)?,
        paths: list("paths", &paths.is, &paths.not, pattern)?,
    };
    if operation == Operation::default() {
        return Err(ConvertError::invalid("to", "an operation that says nothing"));
    }
    Ok(operation)
}

fn condition(message: wire::PolicyCondition) -> Read<When> {
    use policy_condition::Kind;
    let empty = || Err(ConvertError::invalid("when", "a condition without a value"));
    Ok(match message.kind {
        Some(Kind::Text(text)) => {
            let of = match text.of {
                Some(text_condition::Of::Header(name)) => {
                    let name = HeaderName::try_from(name);
                    Attribute::Header(name.map_err(|_| ConvertError::invalid("when.header", "not a header"))?)
                }
                Some(text_condition::Of::Claim(path)) => {
                    few("when.claim", path.names.len(), 32)?;
                    let path: Vec<_> =
                        path.names.into_iter().map(|name| value("when.claim", name)).collect::<Read<_>>()?;
                    Attribute::Claim(
                        Some(path)
                            .filter(|path| !path.is_empty())
                            .ok_or(ConvertError::Missing { field: "when.claim" })?,
                    )
                }
                Some(text_condition::Of::Attribute(number)) => {
                    let wanted: wire::PolicyAttribute = field::known("when.attribute", number)?;
                    let found = ATTRIBUTES.iter().find(|(known, _)| *known == wanted);
                    found.ok_or(ConvertError::Missing { field: "when.attribute" })?.1.clone()
                }
                None => return Err(ConvertError::Missing { field: "when.of" }),
            };
            let values = texts("when.values", text.values)?;
            if values.is_empty() {
                return empty();
            }
            When::Text(of, values)
        }
        Some(Kind::Account(values)) => match accounts(Some(values))? {
            none if none.is_empty() => return empty(),
            values => When::Account(values),
        },
        Some(Kind::Address(address)) => {
            let wanted: wire::PolicyAddress = field::known("when.address", address.of)?;
            let found = ADDRESSES.iter().find(|(known, _)| *known == wanted);
            let of = found.ok_or(ConvertError::Missing { field: "when.address" })?.1;
            match blocks("when.address", address.values)? {
                none if none.is_empty() => return empty(),
                values => When::Ip(of, values),
            }
        }
        Some(Kind::Port(values)) => match ports(Some(values))? {
            none if none.is_empty() => return empty(),
            values => When::Port(values),
        },
        Some(Kind::Unknown(what)) => When::Unknown(value("when.unknown", what)?),
        None => return Err(ConvertError::Missing { field: "when.kind" }),
    })
}

fn value(field: &'static str, text: String) -> Read<mesh_core::ArcStr> {
    if text.is_empty() {
        return Err(ConvertError::invalid(field, "empty string"));
    }
    field::bounded(field, text, LONGEST)
}

fn list<M, T>(field: &'static str, is: &[M], not: &[M], read: impl Fn(&M) -> Read<T>) -> Read<List<T>> {
    few(field, is.len().max(not.len()), MOST_VALUES)?;
    let all = |messages: &[M]| messages.iter().map(&read).collect::<Read<Vec<_>>>();
    Ok(List { is: all(is)?, not: all(not)? })
}

fn texts(field: &'static str, message: Option<wire::Values>) -> Read<List<StringMatch>> {
    let message = message.unwrap_or_default();
    list(field, &message.is, &message.not, |one| read_match(field, one.clone()))
}

pub(super) fn read_match(field: &'static str, message: wire::ValueMatch) -> Read<StringMatch> {
    use value_match::Kind;
    match message.kind {
        Some(Kind::Exact(text)) => value(field, text).map(StringMatch::Exact),
        Some(Kind::Prefix(text)) => value(field, text).map(StringMatch::Prefix),
        Some(Kind::Suffix(text)) => value(field, text).map(StringMatch::Suffix),
        Some(Kind::Present(())) => Ok(StringMatch::Presence),
        None => Err(ConvertError::invalid(field, "a match says neither exact, prefix, suffix nor present")),
    }
}

fn accounts(message: Option<wire::Accounts>) -> Read<List<ServiceAccountMatch>> {
    const FIELD: &str = "service_accounts";
    let message = message.unwrap_or_default();
    list(FIELD, &message.is, &message.not, |one| {
        let namespace = field::name(FIELD, one.namespace.clone())?;
        Ok(ServiceAccountMatch { namespace, service_account: field::name(FIELD, one.name.clone())? })
    })
}

fn blocks(field: &'static str, message: Option<wire::Blocks>) -> Read<List<IpNet>> {
    let message = message.unwrap_or_default();
    list(field, &message.is, &message.not, |one| {
        if one.length == 0 && one.address.iter().any(|byte| *byte != 0) {
            return Err(ConvertError::invalid(field, "an address has no prefix length"));
        }
        field::net(field, &one.address, one.length)
    })
}

fn ports(message: Option<wire::PortNumbers>) -> Read<List<u16>> {
    let message = message.unwrap_or_default();
    list("ports", &message.is, &message.not, |port| field::port("ports", *port))
}

pub(super) fn write(policy: &Policy) -> Vec<u8> {
    let (action, provider) = match &policy.action {
        Action::Allow => (wire::PolicyAction::Allow, String::new()),
        Action::Deny => (wire::PolicyAction::Deny, String::new()),
        Action::Audit => (wire::PolicyAction::Audit, String::new()),
        Action::Custom(provider) => (wire::PolicyAction::Custom, provider.to_string()),
    };
    let rules = policy.rules.iter().map(write_rule).collect();
    wire::RequestPolicy { action: action.into(), provider, dry_run: policy.dry_run, rules }.encode_to_vec()
}

pub(super) fn write_rule(rule: &Rule) -> wire::PolicyRule {
    wire::PolicyRule {
        from: rule.from.iter().map(write_source).collect(),
        to: rule.to.iter().map(write_operation).collect(),
        when: rule.when.iter().map(|one| wire::PolicyCondition { kind: Some(write_condition(one)) }).collect(),
    }
}

fn write_source(source: &Source) -> wire::PolicySource {
    wire::PolicySource {
        principals: write_texts(&source.principals),
        namespaces: write_texts(&source.namespaces),
        service_accounts: write_accounts(&source.service_accounts),
        trust_domains: write_texts(&source.trust_domains),
        ips: write_blocks(&source.ips),
        remote_ips: write_blocks(&source.remote_ips),
        request_principals: write_texts(&source.request_principals),
    }
}

fn write_operation(operation: &Operation) -> wire::PolicyOperation {
    let paths = |list: &[PathPattern]| list.iter().map(|pattern| pattern.text().to_string()).collect();
    let List { is, not } = &operation.paths;
    wire::PolicyOperation {
        hosts: write_texts(&operation.hosts),
        ports: write_ports(&operation.ports),
        methods: write_texts(&operation.methods),
        paths: (!operation.paths.is_empty()).then(|| wire::PathPatterns { is: paths(is), not: paths(not) }),
    }
}

fn write_condition(condition: &When) -> policy_condition::Kind {
    use policy_condition::Kind;
    match condition {
        When::Text(of, values) => {
            let attribute = || ATTRIBUTES.iter().find(|(_, known)| known == of).map_or(0, |(wire, _)| *wire as i32);
            let of = match of {
                Attribute::Header(name) => text_condition::Of::Header(name.to_string()),
                Attribute::Claim(path) => {
                    let names = path.iter().map(ToString::to_string).collect();
                    text_condition::Of::Claim(wire::ClaimPath { names })
                }
                _ => text_condition::Of::Attribute(attribute()),
            };
            Kind::Text(wire::TextCondition { of: Some(of), values: write_texts(values) })
        }
        When::Account(values) => Kind::Account(write_accounts(values).unwrap_or_default()),
        When::Ip(of, values) => {
            let of = ADDRESSES.iter().find(|(_, known)| known == of).map_or(0, |(wire, _)| *wire as i32);
            Kind::Address(wire::AddressCondition { of, values: write_blocks(values) })
        }
        When::Port(values) => Kind::Port(write_ports(values).unwrap_or_default()),
        When::Unknown(what) => Kind::Unknown(what.to_string()),
    }
}

pub(super) fn write_match(value: &StringMatch) -> wire::ValueMatch {
    use value_match::Kind;
    let kind = match value {
        StringMatch::Exact(text) => Kind::Exact(text.to_string()),
        StringMatch::Prefix(text) => Kind::Prefix(text.to_string()),
        StringMatch::Suffix(text) => Kind::Suffix(text.to_string()),
        StringMatch::Presence => Kind::Present(()),
    };
    wire::ValueMatch { kind: Some(kind) }
}

fn write_texts(list: &List<StringMatch>) -> Option<wire::Values> {
    let all = |values: &[StringMatch]| values.iter().map(write_match).collect();
    (!list.is_empty()).then(|| wire::Values { is: all(&list.is), not: all(&list.not) })
}

fn write_accounts(list: &List<ServiceAccountMatch>) -> Option<wire::Accounts> {
    let one = |account: &ServiceAccountMatch| wire::Account {
        namespace: account.namespace.to_string(),
        name: account.service_account.to_string(),
    };
    let all = |values: &[ServiceAccountMatch]| values.iter().map(one).collect();
    (!list.is_empty()).then(|| wire::Accounts { is: all(&list.is), not: all(&list.not) })
}

fn write_blocks(list: &List<IpNet>) -> Option<wire::Blocks> {
    let one = |net: &IpNet| wire::Block { address: field::octets(net.addr()), length: net.prefix_len().into() };
    let all = |values: &[IpNet]| values.iter().map(one).collect();
    (!list.is_empty()).then(|| wire::Blocks { is: all(&list.is), not: all(&list.not) })
}

fn write_ports(list: &List<u16>) -> Option<wire::PortNumbers> {
    let all = |values: &[u16]| values.iter().map(|port| u32::from(*port)).collect();
    (!list.is_empty()).then(|| wire::PortNumbers { is: all(&list.is), not: all(&list.not) })
}
