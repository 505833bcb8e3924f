//! Whom CUSTOM policies ask, both ways. One that is not understood in all of its parts is none.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use mesh_core::ArcStr;
use mesh_core::l7::ClusterKey;
use mesh_core::l7::authorizer::{Authorizer, BodyShown, Form, HttpForm};
use mesh_core::policy::StringMatch;
use prost::Message;

use super::{few, policy};
use crate::convert::{ConvertError, field};
use crate::wire::l7::{self as wire, authorizer};

/// Patterns or headers of a list.
const MOST: usize = 1_000;
/// Bytes of a value.
const LONGEST: usize = 4096;
/// Bytes of a body that may be shown: they are kept for each request that waits.
const MOST_BODY: u32 = 16 << 20;

type Read<T> = Result<T, ConvertError>;

pub(super) fn read(name: ArcStr, bytes: &[u8]) -> Read<Authorizer> {
    let message = wire::Authorizer::decode(bytes).map_err(ConvertError::decode)?;
    if message.encoded_len() != bytes.len() {
        return Err(ConvertError::UnknownFields);
    }
    let form = match message.form {
        None => return Err(ConvertError::Missing { field: "form" }),
        Some(authorizer::Form::Grpc(())) => Form::Grpc,
        Some(authorizer::Form::Http(form)) => Form::Http(http(form)?),
    };
    if message.timeout_ms == 0 {
        return Err(ConvertError::Missing { field: "timeout_ms" });
    }
    let status = u16::try_from(message.status_on_error).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.filter(|status| status.as_u16() >= 200);
    let place = ClusterKey {
        service: field::key("service", &message.service)?,
        port: field::port("port", message.port)?,
        subset: ArcStr::new(),
    };
    Ok(Authorizer {
        name,
        place,
        form,
        timeout: Duration::from_millis(message.timeout_ms),
        fail_open: message.fail_open,
        status_on_error: status.ok_or_else(|| ConvertError::invalid("status_on_error", "not a status of an answer"))?,
        body: message.body.map(body).transpose()?,
        routes_again: message.routes_again,
    })
}

fn body(message: wire::BodyShown) -> Read<BodyShown> {
    if !(1..=MOST_BODY).contains(&message.most) {
        return Err(ConvertError::invalid("body.most", format!("{} bytes, of 1 to {MOST_BODY}", message.most)));
    }
    let most = usize::try_from(message.most).unwrap_or(usize::MAX);
    Ok(BodyShown { most, partial: message.partial, as_bytes: message.as_bytes })
}

fn http(message: wire::HttpForm) -> Read<HttpForm> {
    let patterns = |field: &'static str, all: Vec<wire::ValueMatch>| -> Read<Vec<StringMatch>> {
        few(field, all.len(), MOST)?;
        all.into_iter().map(|one| policy::read_match(field, one)).collect()
    };
    few("http.fixed", message.fixed.len(), MOST)?;
    let fixed = |one: wire::FixedHeader| {
        let name = HeaderName::try_from(one.name).map_err(|_| ConvertError::invalid("http.fixed", "not a header"))?;
        let value = HeaderValue::from_bytes(&one.value);
        Ok((name, value.map_err(|_| ConvertError::invalid("http.fixed", "not the value of a header"))?))
    };
    let path_prefix = field::bounded("http.path_prefix", message.path_prefix, LONGEST)?;
    if !path_prefix.is_empty() && !path_prefix.starts_with('/') {
        return Err(ConvertError::invalid("http.path_prefix", "it does not begin with a slash"));
    }
    Ok(HttpForm {
        path_prefix,
        sent: patterns("http.sent", message.sent)?,
        fixed: message.fixed.into_iter().map(fixed).collect::<Read<_>>()?,
        to_upstream: patterns("http.to_upstream", message.to_upstream)?,
        on_deny: patterns("http.on_deny", message.on_deny)?,
        on_allow: patterns("http.on_allow", message.on_allow)?,
    })
}

pub(super) fn write(authorizer: &Authorizer) -> Vec<u8> {
    let patterns = |all: &[StringMatch]| all.iter().map(policy::write_match).collect();
    let form = match &authorizer.form {
        Form::Grpc => authorizer::Form::Grpc(()),
        Form::Http(form) => authorizer::Form::Http(wire::HttpForm {
            path_prefix: form.path_prefix.to_string(),
            sent: patterns(&form.sent),
            fixed: form
                .fixed
                .iter()
                .map(|(name, value)| wire::FixedHeader { name: name.to_string(), value: value.as_bytes().to_vec() })
                .collect(),
            to_upstream: patterns(&form.to_upstream),
            on_deny: patterns(&form.on_deny),
            on_allow: patterns(&form.on_allow),
        }),
    };
    let body = authorizer.body.map(|body| wire::BodyShown {
        most: u32::try_from(body.most).unwrap_or(u32::MAX),
        partial: body.partial,
        as_bytes: body.as_bytes,
    });
    wire::Authorizer {
        service: authorizer.place.service.to_string(),
        port: authorizer.place.port.into(),
        timeout_ms: u64::try_from(authorizer.timeout.as_millis()).unwrap_or(u64::MAX).max(1),
        fail_open: authorizer.fail_open,
        status_on_error: authorizer.status_on_error.as_u16().into(),
        body,
        routes_again: authorizer.routes_again,
        form: Some(form),
    }
    .encode_to_vec()
}
