//! What a service that counts requests is asked, and what it answers. Only waypoints ask, so a question is written and an answer is read.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use mesh_core::l7::authorizer::{Edit, HeaderEdits};
use prost::Message;

use super::{ConvertError, field};
use crate::wire::rate_limit as wire;

/// What a service says of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// There are too many.
    pub is_over: bool,
    /// Of the limits that the request has reached, or is nearest to, the nearest one.
    pub nearest: Option<Nearest>,
    /// Added to the request.
    pub request: HeaderEdits,
    /// Added to the answer.
    pub response: HeaderEdits,
    /// What the client is told that comes too often.
    pub body: Vec<u8>,
}

/// How far a limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nearest {
    /// How many there may be.
    pub requests: u32,
    /// In how long; `None` if nobody says it.
    pub per: Option<Duration>,
    /// How many there may be now.
    pub left: u32,
    /// Until there may be all of them again.
    pub reset: Duration,
}

/// The bytes of a `RateLimitRequest`.
#[must_use]
pub fn encode_rate_limit(domain: &str, descriptors: &[Vec<(&str, Cow<'_, str>)>]) -> Vec<u8> {
    let entry = |(key, value): &(&str, Cow<'_, str>)| wire::Entry { key: (*key).to_owned(), value: value.to_string() };
    let descriptor =
        |entries: &Vec<(&str, Cow<'_, str>)>| wire::Descriptor { entries: entries.iter().map(entry).collect() };
    let descriptors = descriptors.iter().map(descriptor).collect();
    wire::RateLimitRequest { domain: domain.to_owned(), descriptors, hits_addend: 0 }.encode_to_vec()
}

/// Reads a `RateLimitResponse`. Fields that this version does not know are left: they describe.
pub fn rate_limit_answer(bytes: &[u8]) -> Result<Counted, ConvertError> {
    let message = wire::RateLimitResponse::decode(bytes).map_err(ConvertError::decode)?;
    let is_over = match field::known("overall_code", message.overall_code)? {
        wire::Code::Unknown => return Err(ConvertError::Missing { field: "overall_code" }),
        wire::Code::Ok => false,
        wire::Code::OverLimit => true,
    };
    // Of one that is over nothing is left, whatever is said.
    let left = |status: &wire::DescriptorStatus| match status.code() {
        wire::Code::OverLimit => 0,
        _ => status.limit_remaining,
    };
    let limited = message.statuses.iter().filter_map(|status| Some((status, status.current_limit.as_ref()?)));
    let nearest = limited.min_by_key(|(status, _)| left(status)).map(|(status, limit)| Nearest {
        requests: limit.requests_per_unit,
        per: unit(limit.unit()),
        left: left(status),
        reset: status.duration_until_reset.and_then(|reset| reset.try_into().ok()).unwrap_or_default(),
    });
    // A refusal is one, whatever is wrong with what it would add.
    let read = |all: &[_]| headers(all).or_else(|why| if is_over { Ok(HeaderEdits::default()) } else { Err(why) });
    let (request, response) = (read(&message.request_headers_to_add)?, read(&message.response_headers_to_add)?);
    Ok(Counted { is_over, nearest, request, response, body: message.raw_body })
}

fn unit(unit: wire::Unit) -> Option<Duration> {
    const DAY: u64 = 86_400;
    let seconds = match unit {
        wire::Unit::Unknown => return None,
        wire::Unit::Second => 1,
        wire::Unit::Minute => 60,
        wire::Unit::Hour => 3_600,
        wire::Unit::Day => DAY,
        wire::Unit::Month => 30 * DAY,
        wire::Unit::Year => 365 * DAY,
    };
    Some(Duration::from_secs(seconds))
}

fn headers(all: &[wire::Header]) -> Result<HeaderEdits, ConvertError> {
    let mut edits = HeaderEdits::default();
    for header in all.iter().filter(|header| !header.key.starts_with(':')) {
        let name = HeaderName::try_from(&header.key);
        let name = name.map_err(|_| ConvertError::invalid("header.key", format!("{:?} is no header", header.key)))?;
        let text = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
        let value = HeaderValue::from_bytes(text);
        let value = value.map_err(|_| ConvertError::invalid("header.value", format!("not a value of {name}")))?;
        edits.edit(name, value, Edit::Append);
    }
    Ok(edits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_limit_is_told() {
        let status = |code: wire::Code, requests, left, seconds| wire::DescriptorStatus {
            code: code.into(),
            current_limit: Some(wire::CurrentLimit { requests_per_unit: requests, unit: wire::Unit::Minute.into() }),
            limit_remaining: left,
            duration_until_reset: Some(prost_types::Duration { seconds, nanos: 0 }),
        };
        let header = |key: &str| wire::Header { key: key.into(), value: "1".into(), raw_value: Vec::new() };
        let message = wire::RateLimitResponse {
            overall_code: wire::Code::OverLimit.into(),
            statuses: vec![
                status(wire::Code::Ok, 100, 3, 1),
                wire::DescriptorStatus::default(),
                status(wire::Code::OverLimit, 5, 9, 40),
            ],
            response_headers_to_add: vec![header("x-a"), header("content-length")],
            request_headers_to_add: vec![header(":path"), header("x-b")],
            raw_body: b"slow".to_vec(),
        };
        let counted = rate_limit_answer(&message.encode_to_vec()).unwrap();
        let per = Some(Duration::from_secs(60));
        let nearest = Nearest { requests: 5, per, left: 0, reset: Duration::from_secs(40) };
        assert_eq!((counted.is_over, counted.nearest, &*counted.body), (true, Some(nearest), &b"slow"[..]));
        let names = |edits: &HeaderEdits| {
            let mut headers = http::HeaderMap::new();
            edits.apply(&mut headers);
            headers.keys().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            (names(&counted.response), names(&counted.request)),
            (vec!["x-a".to_owned()], vec!["x-b".to_owned()])
        );
        let ok = wire::RateLimitResponse { overall_code: wire::Code::Ok.into(), ..Default::default() };
        assert_eq!(rate_limit_answer(&ok.encode_to_vec()).unwrap(), Counted::default());
    }

    #[test]
    fn what_says_nothing_is_no_answer() {
        let of = |overall_code| wire::RateLimitResponse { overall_code, ..Default::default() }.encode_to_vec();
        let value = wire::Header { key: "a".into(), value: "1\n".into(), raw_value: Vec::new() };
        let broken =
            wire::RateLimitResponse { overall_code: 1, response_headers_to_add: vec![value], ..Default::default() };
        for bytes in [vec![], of(0), of(3), vec![0xff], broken.encode_to_vec()] {
            assert!(rate_limit_answer(&bytes).is_err(), "{bytes:?}");
        }
        let asked = encode_rate_limit("d", &[vec![("a", "1".into()), ("b", "2".into())], vec![]]);
        let asked = wire::RateLimitRequest::decode(&*asked).unwrap();
        let texts = asked.descriptors[0].entries.iter().map(|one| format!("{}={}", one.key, one.value));
        assert_eq!(
            (&*asked.domain, texts.collect::<Vec<_>>(), asked.descriptors.len()),
            ("d", vec!["a=1".into(), "b=2".into()], 2)
        );
    }
}
