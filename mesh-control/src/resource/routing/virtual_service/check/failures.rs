//! What must hold between the fields of a VirtualService about requests that fail: what is tried again, and what fails on purpose.

use mesh_core::grpc;

use crate::diagnosis::closest;
use crate::resource::routing::Check;
use crate::resource::routing::values::{Span, attempts};
use crate::resource::routing::virtual_service::{Fault, Percent, Retries};

/// Conditions of one rule: far fewer than readers take, more than anybody needs.
const MOST_RETRY_ON: usize = 100;

/// What requests are tried again for.
const RETRY_ON: [&str; 22] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
    "unknown",
    "aborted",
    "already-exists",
    "data-loss",
    "not-found",
    "permission-denied",
];

impl Retries {
    /// `timeout` is that of the rule.
    pub(in crate::resource) fn check(&self, field: &str, timeout: Option<Span>, check: &mut Check<'_>) {
        attempts(&format!("{field}.attempts"), self.attempts, check);
        if let (Some(each), Some(all)) = (self.per_try_timeout, timeout)
            && each > all
            && all > Span::default()
        {
            check.warning(
                format!("{field}.perTryTimeout"),
                "longer than `timeout`, which ends all attempts together",
                "write a shorter one, or delete it",
            );
        }
        if self.attempts == Some(0) && (self.per_try_timeout.is_some() || self.retry_on.is_some()) {
            check.error(
                format!("{field}.attempts"),
                "0 attempts: nothing is tried again",
                "delete the other fields, or the 0",
            );
        }
        if self.attempts.is_none() && *self != Self::default() {
            check.warning(field, "nothing is tried again without `attempts`, which is 0 then", "write `attempts: 2`");
        }
        check.time(format!("{field}.perTryTimeout"), self.per_try_timeout);
        check.time(format!("{field}.backoff"), self.backoff);
        let words = self.retry_on.iter().flat_map(|words| words.split(',')).count();
        check.few(format!("{field}.retryOn"), words, MOST_RETRY_ON);
        for word in self.retry_on.iter().flat_map(|words| words.split(',')).map(str::trim) {
            let is_status = word.parse::<u16>().is_ok_and(|status| (100..=599).contains(&status));
            if RETRY_ON.contains(&word) || is_status {
                continue;
            }
            let help = closest(word, &RETRY_ON).map(|meant| format!("did you mean `{meant}`?"));
            let help =
                help.unwrap_or_else(|| "write conditions as connect-failure, 5xx or 503, with commas".to_owned());
            check.error(format!("{field}.retryOn"), format!("nothing is tried again for {word:?}"), &help);
        }
    }
}

impl Fault {
    pub(super) fn check(&self, field: &str, check: &mut Check<'_>) {
        if let Some(delay) = &self.delay {
            let field = format!("{field}.delay");
            match (delay.fixed_delay, delay.exponential_delay) {
                (None, None) => check.error(&field, "the field `fixedDelay` is missing", "write `fixedDelay: 5s`"),
                (_, Some(_)) => {
                    check.error(format!("{field}.exponentialDelay"), "there is no such delay", "write `fixedDelay`")
                }
                _ => check.time(format!("{field}.fixedDelay"), delay.fixed_delay),
            }
            if let Some(percent) = delay.percent {
                check.percent(format!("{field}.percent"), f64::from(percent));
                check.warning(format!("{field}.percent"), "an old name", "write `percentage: {value: …}`");
            } else {
                share(delay.percentage, &field, check);
            }
        }
        if let Some(abort) = &self.abort {
            let field = format!("{field}.abort");
            if abort.http2_error.is_some() {
                check.error(
                    format!("{field}.http2Error"),
                    "nobody ends streams with it",
                    "write `httpStatus` or `grpcStatus`",
                );
            }
            let ways = [("httpStatus", abort.http_status.is_some()), ("grpcStatus", abort.grpc_status.is_some())];
            if check.one_of(&field, &ways) == 0 && abort.http2_error.is_none() {
                check.error(&field, "the field `httpStatus` is missing", "write `httpStatus: 503`");
            }
            if let Some(status) = abort.http_status.filter(|status| !(200..=599).contains(status)) {
                check.error(
                    format!("{field}.httpStatus"),
                    format!("{status} is not the status of an answer"),
                    "write a number from 200 to 599",
                );
            }
            if let Some(status) = abort.grpc_status.as_deref().filter(|status| !grpc::NAMES.contains(status)) {
                let help = closest(status, &grpc::NAMES).map(|meant| format!("did you mean `{meant}`?"));
                check.error(
                    format!("{field}.grpcStatus"),
                    format!("{status:?} is not a code of gRPC"),
                    &help.unwrap_or_else(|| "write as UNAVAILABLE".into()),
                );
            }
            share(abort.percentage, &field, check);
        }
        if self.delay.is_none() && self.abort.is_none() {
            check.error(field, "nothing goes wrong", "add `delay` or `abort`");
        }
    }
}

/// How many requests something happens to on purpose.
fn share(percentage: Option<Percent>, field: &str, check: &mut Check<'_>) {
    match percentage {
        Some(percentage) => percentage.check(format!("{field}.percentage"), check),
        None => {
            check.warning(field, "without `percentage` it happens to no request", "write `percentage: {value: 100}`")
        }
    }
}
