//! What rules do, both ways: where requests go and what is changed on the way. Every part must be understood.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, uri::Scheme};
use mesh_core::l7::{
    Action, Backend, ClusterKey, DirectResponse, Forward, Handling, HeaderChanges, Mirror, PathChange, Redirect,
    RedirectPort, Retries, Rewrite, Share, Target, headers::is_changeable,
};

use super::{budget::Budget, few, policy};
use crate::{
    convert::{ConvertError, field},
    wire::l7 as wire,
};

/// Bytes of an answer that is written in a rule.
const LONGEST_BODY: usize = 1 << 20;
/// Longest path or reason.
const LONGEST: usize = 8192;
/// Places of a rule, and changes of headers of each kind.
const MOST: usize = 1000;

pub(super) fn handling(message: wire::Handling, budget: &mut Budget) -> Result<Handling, ConvertError> {
    use wire::handling::Action as Kind;
    let action = match message.action {
        Some(Kind::Forward(forward)) => Action::Forward(read_forward(forward, budget)?),
        Some(Kind::Redirect(one)) => Action::Redirect(redirect(one, budget)?),
        Some(Kind::Respond(response)) => Action::Respond(respond(response)?),
        Some(Kind::Closed(why)) => Action::Closed(reason("closed", why)?),
        None => return Err(ConvertError::Missing { field: "handling.action" }),
    };
    few("mirrors", message.mirrors.len(), Handling::MOST_MIRRORS)?;
    Ok(Handling {
        name: field::text("handling.name", message.name)?,
        origin: field::text("handling.origin", message.origin)?,
        action,
        request: changes("request", message.request)?,
        response: changes("response", message.response)?,
        rewrite: rewrite(message.rewrite, budget)?,
        mirrors: message.mirrors.into_iter().map(mirror).collect::<Result<_, _>>()?,
        fault: message.fault.map(policy::fault).transpose()?,
        cors: message.cors.map(|cors| policy::cors(cors, budget)).transpose()?,
        timeout: message.timeout.map(|time| policy::time("timeout", time)).transpose()?,
        retries: message.retries.map_or_else(|| Ok(Retries::none()), policy::retries)?,
    })
}

pub(super) fn read_forward(message: wire::Forward, budget: &mut Budget) -> Result<Forward, ConvertError> {
    few("forward.backends", message.backends.len(), MOST)?;
    let backends = message.backends.into_iter().map(|one| backend(one, budget)).collect::<Result<_, _>>()?;
    Forward::new(backends).map_err(|error| ConvertError::invalid("forward.backends.weight", error.to_string()))
}

fn backend(message: wire::Backend, budget: &mut Budget) -> Result<Backend, ConvertError> {
    few("backends.mirrors", message.mirrors.len(), Handling::MOST_MIRRORS)?;
    Ok(Backend {
        target: target(message.target)?,
        weight: message.weight,
        request: changes("backends.request", message.request)?,
        response: changes("backends.response", message.response)?,
        rewrite: rewrite(message.rewrite, budget)?,
        redirect: message.redirect.map(|one| redirect(one, budget)).transpose()?,
        mirrors: message.mirrors.into_iter().map(mirror).collect::<Result<_, _>>()?,
    })
}

pub(super) fn reason(field: &'static str, mut why: String) -> Result<mesh_core::ArcStr, ConvertError> {
    // Somebody's name may be in it: it is for logs, and closed it stays.
    why.retain(|c| !c.is_control());
    if why.is_empty() {
        return Err(ConvertError::Missing { field });
    }
    Ok(why.chars().take(LONGEST).collect::<String>().into())
}

pub(super) fn target(message: Option<wire::Target>) -> Result<Target, ConvertError> {
    use wire::target::Kind;
    match message.and_then(|target| target.kind) {
        Some(Kind::Broken(why)) => Ok(Target::Broken(reason("target.broken", why)?)),
        Some(Kind::Cluster(cluster)) => cluster_key(cluster).map(Target::Cluster),
        None => Err(ConvertError::Missing { field: "target" }),
    }
}

pub(super) fn cluster_key(message: wire::Cluster) -> Result<ClusterKey, ConvertError> {
    Ok(ClusterKey {
        service: field::key("target.service", &message.service)?,
        port: field::port("target.port", message.port)?,
        subset: field::text("target.subset", message.subset)?,
    })
}

fn mirror(message: wire::Mirror) -> Result<Mirror, ConvertError> {
    Ok(Mirror { target: target(message.target)?, share: share("mirrors.millionths", message.millionths)? })
}

pub(super) fn share(field: &'static str, parts: u32) -> Result<Share, ConvertError> {
    Share::millionths(parts).ok_or_else(|| ConvertError::invalid(field, format!("{parts} of a million")))
}

fn changes(field: &'static str, message: Option<wire::HeaderChanges>) -> Result<HeaderChanges, ConvertError> {
    let Some(wire::HeaderChanges { set, add, remove }) = message else { return Ok(HeaderChanges::default()) };
    few(field, set.len().max(add.len()).max(remove.len()), MOST)?;
    let name = |text: String| {
        let name = HeaderName::try_from(&text);
        let name = name.map_err(|_| ConvertError::invalid(field, format!("{text:?} is no header")))?;
        match is_changeable(&name) {
            true => Ok(name),
            false => Err(ConvertError::invalid(field, format!("{name} is not a rule's to change"))),
        }
    };
    let header = |message: wire::Header| {
        let name = name(message.name)?;
        let value = HeaderValue::try_from(message.value);
        let value =
            value.map_err(|_| ConvertError::invalid(field, format!("{name} gets a value that no header has")))?;
        Ok((name, value))
    };
    Ok(HeaderChanges {
        set: set.into_iter().map(header).collect::<Result<_, _>>()?,
        add: add.into_iter().map(header).collect::<Result<_, _>>()?,
        remove: remove.into_iter().map(name).collect::<Result<_, _>>()?,
    })
}

fn rewrite(message: Option<wire::Rewrite>, budget: &mut Budget) -> Result<Rewrite, ConvertError> {
    let Some(message) = message else { return Ok(Rewrite::default()) };
    let path = message.path.map(|path| path_change("rewrite.path", path, Fragment::No, budget)).transpose()?;
    let authority = Some(message.authority).filter(|text| !text.is_empty());
    Ok(Rewrite { path, authority: authority.map(|text| host("rewrite.authority", text)).transpose()? })
}

/// A host, with a port or without.
fn host(field: &'static str, text: String) -> Result<mesh_core::ArcStr, ConvertError> {
    let authority = mesh_core::l7::Authority::parse(&text);
    let authority = authority.map_err(|error| ConvertError::invalid(field, format!("{text:?}: {error}")))?;
    Ok(authority.as_str().into())
}

/// Whether there may be a fragment: where a client is sent to, and not in what is asked for.
#[derive(Clone, Copy, PartialEq)]
enum Fragment {
    No,
    May,
}

fn path_change(
    field: &'static str,
    message: wire::PathChange,
    fragment: Fragment,
    budget: &mut Budget,
) -> Result<PathChange, ConvertError> {
    use wire::path_change::Kind;
    let text = |text: String| {
        let is_bad = |c: char| c.is_control() || c == ' ' || (c == '#' && fragment == Fragment::No) || !c.is_ascii();
        match text.len() > LONGEST || text.contains(is_bad) {
            true => Err(ConvertError::invalid(field, "a path that cannot be asked for")),
            false => Ok(text.into()),
        }
    };
    match message.kind {
        Some(Kind::Full(path)) => text(path).map(PathChange::Full),
        Some(Kind::Prefix(path)) => text(path).map(PathChange::Prefix),
        Some(Kind::Regex(wire::Replacement { pattern, substitution })) => {
            text(substitution.clone())?;
            budget.replacement(field, pattern, substitution).map(PathChange::Regex)
        }
        None => Err(ConvertError::invalid(field, "says neither full, prefix nor regex")),
    }
}

fn redirect(message: wire::Redirect, budget: &mut Budget) -> Result<Redirect, ConvertError> {
    let from = field::known("redirect.port_from", message.port_from)?;
    if from != wire::RedirectPort::Number && message.port != 0 {
        return Err(ConvertError::invalid("redirect.port", "a number that is not asked for"));
    }
    Ok(Redirect {
        scheme: match message.scheme.as_str() {
            "" => None,
            "http" => Some(Scheme::HTTP),
            "https" => Some(Scheme::HTTPS),
            other => {
                return Err(ConvertError::invalid("redirect.scheme", format!("{other:?} is neither http nor https")));
            }
        },
        host: match message.host {
            empty if empty.is_empty() => None,
            text => Some(host("redirect.host", text)?),
        },
        port: match from {
            wire::RedirectPort::AsWritten => RedirectPort::AsWritten,
            wire::RedirectPort::OfListener => RedirectPort::OfListener,
            wire::RedirectPort::OfScheme => RedirectPort::OfScheme,
            wire::RedirectPort::Number => RedirectPort::Number(field::port("redirect.port", message.port)?),
        },
        path: message.path.map(|path| path_change("redirect.path", path, Fragment::May, budget)).transpose()?,
        status: status("redirect.status", message.status, 300..400)?,
    })
}

fn respond(message: wire::DirectResponse) -> Result<DirectResponse, ConvertError> {
    few("respond.body", message.body.len(), LONGEST_BODY)?;
    Ok(DirectResponse { status: status("respond.status", message.status, 200..600)?, body: Bytes::from(message.body) })
}

pub(super) fn status(field: &'static str, value: u32, among: std::ops::Range<u16>) -> Result<StatusCode, ConvertError> {
    let status = u16::try_from(value).ok().filter(|value| among.contains(value));
    let status = status.and_then(|value| StatusCode::from_u16(value).ok());
    status.ok_or_else(|| {
        ConvertError::invalid(field, format!("{value} is not a status from {} to {}", among.start, among.end - 1))
    })
}

pub(super) fn write(handling: &Handling) -> wire::Handling {
    use wire::handling::Action as Kind;
    wire::Handling {
        name: handling.name.to_string(),
        origin: handling.origin.to_string(),
        action: Some(match &handling.action {
            Action::Forward(forward) => Kind::Forward(write_forward(forward)),
            Action::Redirect(redirect) => Kind::Redirect(write_redirect(redirect)),
            Action::Respond(response) => Kind::Respond(wire::DirectResponse {
                status: response.status.as_u16().into(),
                body: response.body.to_vec(),
            }),
            Action::Closed(why) => Kind::Closed(why.to_string()),
        }),
        request: write_changes(&handling.request),
        response: write_changes(&handling.response),
        rewrite: write_rewrite(&handling.rewrite),
        mirrors: handling.mirrors.iter().map(write_mirror).collect(),
        fault: handling.fault.as_ref().map(policy::write_fault),
        cors: handling.cors.as_ref().map(policy::write_cors),
        timeout: handling.timeout.map(policy::write_time),
        retries: (handling.retries != Retries::none()).then(|| policy::write_retries(&handling.retries)),
    }
}

pub(super) fn write_forward(forward: &Forward) -> wire::Forward {
    wire::Forward { backends: forward.backends().iter().map(write_backend).collect() }
}

fn write_backend(backend: &Backend) -> wire::Backend {
    wire::Backend {
        target: Some(write_target(&backend.target)),
        weight: backend.weight,
        request: write_changes(&backend.request),
        response: write_changes(&backend.response),
        rewrite: write_rewrite(&backend.rewrite),
        redirect: backend.redirect.as_ref().map(write_redirect),
        mirrors: backend.mirrors.iter().map(write_mirror).collect(),
    }
}

pub(super) fn write_target(target: &Target) -> wire::Target {
    use wire::target::Kind;
    let kind = match target {
        Target::Broken(why) => Kind::Broken(why.to_string()),
        Target::Cluster(key) => Kind::Cluster(write_key(key)),
    };
    wire::Target { kind: Some(kind) }
}

pub(super) fn write_key(key: &ClusterKey) -> wire::Cluster {
    wire::Cluster { service: key.service.to_string(), port: key.port.into(), subset: key.subset.to_string() }
}

fn write_mirror(mirror: &Mirror) -> wire::Mirror {
    wire::Mirror { target: Some(write_target(&mirror.target)), millionths: mirror.share.parts() }
}

fn write_changes(changes: &HeaderChanges) -> Option<wire::HeaderChanges> {
    let header = |(name, value): &(HeaderName, HeaderValue)| wire::Header {
        name: name.to_string(),
        value: value.as_bytes().to_vec(),
    };
    (!changes.is_empty()).then(|| wire::HeaderChanges {
        set: changes.set.iter().map(header).collect(),
        add: changes.add.iter().map(header).collect(),
        remove: changes.remove.iter().map(ToString::to_string).collect(),
    })
}

fn write_rewrite(rewrite: &Rewrite) -> Option<wire::Rewrite> {
    (*rewrite != Rewrite::default()).then(|| wire::Rewrite {
        path: rewrite.path.as_ref().map(write_path_change),
        authority: rewrite.authority.as_ref().map(ToString::to_string).unwrap_or_default(),
    })
}

fn write_path_change(change: &PathChange) -> wire::PathChange {
    use wire::path_change::Kind;
    let kind = match change {
        PathChange::Full(text) => Kind::Full(text.to_string()),
        PathChange::Prefix(text) => Kind::Prefix(text.to_string()),
        PathChange::Regex(replacement) => Kind::Regex(wire::Replacement {
            pattern: replacement.pattern().to_string(),
            substitution: replacement.substitution().to_string(),
        }),
    };
    wire::PathChange { kind: Some(kind) }
}

fn write_redirect(redirect: &Redirect) -> wire::Redirect {
    let (port_from, port) = match redirect.port {
        RedirectPort::AsWritten => (wire::RedirectPort::AsWritten, 0),
        RedirectPort::OfListener => (wire::RedirectPort::OfListener, 0),
        RedirectPort::OfScheme => (wire::RedirectPort::OfScheme, 0),
        RedirectPort::Number(port) => (wire::RedirectPort::Number, port),
    };
    wire::Redirect {
        scheme: redirect.scheme.as_ref().map(ToString::to_string).unwrap_or_default(),
        host: redirect.host.as_ref().map(ToString::to_string).unwrap_or_default(),
        port_from: port_from as i32,
        port: port.into(),
        path: redirect.path.as_ref().map(write_path_change),
        status: redirect.status.as_u16().into(),
    }
}
