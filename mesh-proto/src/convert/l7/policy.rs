//! What rules do when requests fail, or are made to, both ways: times, retries, faults, and who may call from pages of other origins.

use std::time::Duration;

use http::{HeaderName, Method};
use mesh_core::l7::{Abort, AbortStatus, Cors, Delay, Fault, Retries, RetryOn};
use prost_types::Duration as Time;

use super::{
    action::{share, status},
    budget::Budget,
    condition::{read_text, write_text},
    few,
};
use crate::{
    convert::{ConvertError, field},
    wire::l7 as wire,
};

/// Attempts after the first.
const MOST_ATTEMPTS: u32 = 100;
/// Entries of a list.
const MOST: usize = 1000;

/// An event of retries, on the wire and in the core.
const EVENTS: [(wire::RetryEvent, u16); 8] = [
    (wire::RetryEvent::ConnectFailure, RetryOn::CONNECT_FAILURE),
    (wire::RetryEvent::RefusedStream, RetryOn::REFUSED_STREAM),
    (wire::RetryEvent::ResetBeforeRequest, RetryOn::RESET_BEFORE_REQUEST),
    (wire::RetryEvent::Reset, RetryOn::RESET),
    (wire::RetryEvent::Any5xx, RetryOn::ANY_5XX),
    (wire::RetryEvent::GatewayError, RetryOn::GATEWAY_ERROR),
    (wire::RetryEvent::Retriable4xx, RetryOn::RETRIABLE_4XX),
    (wire::RetryEvent::RateLimited, RetryOn::RATE_LIMITED),
];

pub(super) fn time(field: &'static str, time: Time) -> Result<Duration, ConvertError> {
    let is_whole = (0..1_000_000_000).contains(&time.nanos);
    Duration::try_from(time)
        .ok()
        .filter(|_| is_whole)
        .ok_or_else(|| ConvertError::invalid(field, "not a length of time"))
}

/// Times of more than 2^63 seconds become those.
pub(super) fn write_time(time: Duration) -> Time {
    Time { seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), nanos: time.subsec_nanos().cast_signed() }
}

pub(super) fn retries(message: wire::Retries) -> Result<Retries, ConvertError> {
    if message.attempts > MOST_ATTEMPTS {
        let problem = format!("{}, the limit is {MOST_ATTEMPTS}", message.attempts);
        return Err(ConvertError::invalid("retries.attempts", problem));
    }
    few("retries", message.events.len().max(message.grpc.len()).max(message.statuses.len()), MOST)?;
    let mut on = RetryOn::default();
    for value in message.events {
        let event: wire::RetryEvent = field::known("retries.events", value)?;
        let known = EVENTS.iter().find(|(known, _)| *known == event);
        on.events |= known.ok_or_else(|| ConvertError::invalid("retries.events", "an event that is not said"))?.1;
    }
    for code in message.grpc {
        on.grpc |= 1 << grpc("retries.grpc", code)?;
    }
    for code in message.statuses {
        on.statuses.push(status("retries.statuses", code, 100..600)?.as_u16());
    }
    let pause = |field, given: Option<Time>| given.map_or(Ok(Duration::ZERO), |given| time(field, given));
    Ok(Retries {
        attempts: message.attempts,
        per_try_timeout: message.per_try_timeout.map(|t| time("retries.per_try_timeout", t)).transpose()?,
        on,
        backoff: pause("retries.backoff", message.backoff)?,
        least_pause: pause("retries.least_pause", message.least_pause)?,
        elsewhere: message.elsewhere,
        remote_localities: message.remote_localities,
    })
}

fn grpc(field: &'static str, code: u32) -> Result<u8, ConvertError> {
    let known = u8::try_from(code).ok().filter(|code| *code <= 16);
    known.ok_or_else(|| ConvertError::invalid(field, format!("{code} is not a code of gRPC")))
}

pub(super) fn write_retries(retries: &Retries) -> wire::Retries {
    let events = EVENTS.iter().filter(|(_, bit)| retries.on.events & bit != 0);
    wire::Retries {
        attempts: retries.attempts,
        per_try_timeout: retries.per_try_timeout.map(write_time),
        events: events.map(|(event, _)| *event as i32).collect(),
        grpc: (0..17).filter(|code| retries.on.grpc >> code & 1 == 1).collect(),
        statuses: retries.on.statuses.iter().map(|status| u32::from(*status)).collect(),
        backoff: Some(write_time(retries.backoff)),
        least_pause: Some(write_time(retries.least_pause)),
        elsewhere: retries.elsewhere,
        remote_localities: retries.remote_localities,
    }
}

pub(super) fn fault(message: wire::Fault) -> Result<Fault, ConvertError> {
    use wire::abort::Status;
    let delay = |message: wire::Delay| {
        let given = message.time.ok_or(ConvertError::Missing { field: "fault.delay.time" })?;
        let share = share("fault.delay.millionths", message.millionths)?;
        Ok(Delay { time: time("fault.delay.time", given)?, share })
    };
    let abort = |message: wire::Abort| {
        let status = match message.status {
            Some(Status::Http(value)) => AbortStatus::Http(status("fault.abort.http", value, 200..600)?),
            Some(Status::Grpc(code)) => AbortStatus::Grpc(grpc("fault.abort.grpc", code)?),
            None => return Err(ConvertError::Missing { field: "fault.abort.status" }),
        };
        Ok(Abort { status, share: share("fault.abort.millionths", message.millionths)? })
    };
    Ok(Fault { delay: message.delay.map(delay).transpose()?, abort: message.abort.map(abort).transpose()? })
}

pub(super) fn write_fault(fault: &Fault) -> wire::Fault {
    use wire::abort::Status;
    let delay = |delay: Delay| wire::Delay { time: Some(write_time(delay.time)), millionths: delay.share.parts() };
    let abort = |abort: Abort| wire::Abort {
        status: Some(match abort.status {
            AbortStatus::Http(status) => Status::Http(status.as_u16().into()),
            AbortStatus::Grpc(code) => Status::Grpc(code.into()),
        }),
        millionths: abort.share.parts(),
    };
    wire::Fault { delay: fault.delay.map(delay), abort: fault.abort.map(abort) }
}

pub(super) fn cors(message: wire::Cors, budget: &mut Budget) -> Result<Cors, ConvertError> {
    let counts = [message.origins.len(), message.methods.len(), message.headers.len(), message.expose.len()];
    few("cors", counts.into_iter().max().unwrap_or_default(), MOST)?;
    let list = |field: &'static str, list: Vec<String>, is_good: fn(&str) -> bool| {
        let one = |text: String| match text == "*" || is_good(&text) {
            true => Ok(text.into()),
            false => Err(ConvertError::invalid(field, format!("{text:?} is neither `*` nor such a name"))),
        };
        list.into_iter().map(one).collect::<Result<Vec<_>, _>>()
    };
    let method = |text: &str| Method::from_bytes(text.as_bytes()).is_ok();
    let header = |text: &str| HeaderName::try_from(text).is_ok();
    let origin = |text| read_text("cors.origins", text, budget);
    Ok(Cors {
        origins: message.origins.into_iter().map(origin).collect::<Result<_, _>>()?,
        methods: list("cors.methods", message.methods, method)?,
        headers: list("cors.headers", message.headers, header)?,
        expose: list("cors.expose", message.expose, header)?,
        max_age: message.max_age.map(|age| time("cors.max_age", age)).transpose()?,
        credentials: message.credentials,
        forward_unmatched: message.forward_unmatched,
    })
}

pub(super) fn write_cors(cors: &Cors) -> wire::Cors {
    let list = |list: &[mesh_core::ArcStr]| list.iter().map(ToString::to_string).collect();
    wire::Cors {
        origins: cors.origins.iter().map(write_text).collect(),
        methods: list(&cors.methods),
        headers: list(&cors.headers),
        expose: list(&cors.expose),
        max_age: cors.max_age.map(write_time),
        credentials: cors.credentials,
        forward_unmatched: cors.forward_unmatched,
    }
}
