//! What is tried again, what goes wrong on purpose, what is copied, and who may call from a page of another origin.

use mesh_core::grpc;
use mesh_core::l7::retry::UnknownEvent;
use mesh_core::l7::{Abort, AbortStatus, Cors, Delay, Fault, Mirror, Retries, RetryOn, Share, Text};

use super::super::notes::Notes;
use super::super::text::{compared, status};
use super::Reading;
use crate::resource::routing::values::Limit;
use crate::resource::routing::virtual_service::{self as kind, HttpRule, Percent, Preflights};

/// What is tried again; `None` is the mesh's default.
pub fn retries(rule: &HttpRule, field: &str, notes: &mut Notes<'_>) -> Option<Retries> {
    match retries_of(rule.retries.as_ref()?) {
        Ok(retries) => Some(retries),
        Err(why) => {
            notes.close(format!("{field}.retryOn"), why.to_string(), "");
            None
        }
    }
}

/// What is tried again as it is written, in a rule or in the mesh settings; what is not said is Istio's default.
pub fn retries_of(written: &kind::Retries) -> Result<Retries, UnknownEvent> {
    let usual = Retries::default();
    let Some(attempts) = written.attempts.filter(|attempts| *attempts > 0) else { return Ok(Retries::none()) };
    let on = match written.retry_on.as_deref().filter(|words| !words.trim().is_empty()) {
        None => usual.on,
        Some(words) => RetryOn::parse(words)?,
    };
    let per_try_timeout = match Limit::from(written.per_try_timeout) {
        Limit::After(time) => Some(time),
        Limit::Unset | Limit::None => None,
    };
    Ok(Retries {
        attempts,
        per_try_timeout,
        on,
        backoff: written.backoff.map_or(usual.backoff, |span| span.0),
        elsewhere: written.retry_ignore_previous_hosts.unwrap_or(true),
        remote_localities: written.retry_remote_localities.unwrap_or(false),
        ..usual
    })
}

fn share(percent: Option<Percent>, field: &str, notes: &mut Notes<'_>) -> Option<Share> {
    let Some(Percent(parts)) = percent else { return Some(Share::default()) };
    let share = u32::try_from(parts).ok().and_then(Share::millionths);
    if share.is_none() {
        notes.close(field, "not a percentage", "write a number from 0 to 100");
    }
    share
}

fn hundredths(percent: u32) -> Percent {
    Percent(i64::from(percent).saturating_mul(10_000))
}

/// What goes wrong on purpose.
pub fn fault(rule: &HttpRule, field: &str, notes: &mut Notes<'_>) -> Option<Fault> {
    let written = rule.fault.as_ref()?;
    for (name, is_there) in [("timeout", rule.timeout.is_some()), ("retries", rule.retries.is_some())] {
        if is_there {
            notes.warn(
                format!("{field}.{name}"),
                "it does not count beside `fault`",
                "write it into the caller's rule",
            );
        }
    }
    let field = format!("{field}.fault");
    let delay = written.delay.as_ref().and_then(|delay| {
        let percent = delay.percent.map(hundredths).or(delay.percentage);
        Some(Delay { time: delay.fixed_delay?.0, share: share(percent, &format!("{field}.delay"), notes)? })
    });
    let abort = written.abort.as_ref().and_then(|abort| {
        let field = format!("{field}.abort");
        let status = match (abort.http_status, abort.grpc_status.as_deref()) {
            (Some(code), _) => AbortStatus::Http(status(code, &format!("{field}.httpStatus"), notes)?),
            (None, Some(name)) => match (0..).zip(grpc::NAMES).find(|(_, known)| *known == name) {
                Some((code, _)) => AbortStatus::Grpc(code),
                None => {
                    notes.close(format!("{field}.grpcStatus"), format!("{name:?} is not a code of gRPC"), "");
                    return None;
                }
            },
            (None, None) => {
                notes.close(&field, "it does not say with which status", "write `httpStatus: 503`");
                return None;
            }
        };
        Some(Abort { status, share: share(abort.percentage, &field, notes)? })
    });
    Some(Fault { delay, abort })
}

impl Reading<'_, '_> {
    /// Copies; `None` if nothing is said of them.
    pub(super) fn mirrors(&mut self, rule: &HttpRule, field: &str, notes: &mut Notes<'_>) -> Option<Vec<Mirror>> {
        let old = rule.mirror_percent.or(rule.mirror_percent_oldest).map(hundredths);
        let single = rule.mirror.iter().map(|mirror| ("mirror".to_owned(), mirror, rule.mirror_percentage.or(old)));
        let several = rule.mirrors.iter().enumerate();
        let several = several.map(|(at, one)| (format!("mirrors[{at}].destination"), &one.destination, one.percentage));
        let mut all = Vec::new();
        for (name, destination, percent) in single.chain(several) {
            let field = format!("{field}.{name}");
            let share = match percent {
                None => Some(Share::ALWAYS),
                percent => share(percent, &field, notes),
            };
            let target = self.target(destination, &field, notes);
            all.extend(share.map(|share| Mirror { target, share }));
        }
        (!all.is_empty()).then_some(all)
    }
}

/// Who may call from a page of another origin.
pub fn cors(written: Option<&kind::Cors>, field: &str, notes: &mut Notes<'_>) -> Option<Cors> {
    let written = written?;
    let mut origins: Vec<Text> =
        written.allow_origin.iter().map(|origin| Text::Exact(origin.as_str().into())).collect();
    for (index, origin) in written.allow_origins.iter().enumerate() {
        origins.extend(compared(origin, &format!("{field}.allowOrigins[{index}]"), notes));
    }
    let all = |names: &[String]| names.iter().map(|name| name.as_str().into()).collect();
    Some(Cors {
        origins,
        methods: all(&written.allow_methods),
        headers: all(&written.allow_headers),
        expose: all(&written.expose_headers),
        max_age: written.max_age.map(|span| span.0),
        credentials: written.allow_credentials.unwrap_or(false),
        forward_unmatched: written.unmatched_preflights != Some(Preflights::Ignore),
    })
}
