//! What is tried again, and when. How often a request may be repeated at all (its body, a budget) is the caller's to know.

use std::time::Duration;

use rand::Rng;

use crate::grpc;

/// Retries of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Attempts after the first; 0 is none.
    pub attempts: u32,
    /// For each attempt; `None` is what is left of the request's own.
    pub per_try_timeout: Option<Duration>,
    /// What is tried again.
    pub on: RetryOn,
    /// The span that grows with each attempt, of which a random part is waited.
    pub backoff: Duration,
    /// What is waited at least.
    pub least_pause: Duration,
    /// Endpoints that failed are avoided.
    pub elsewhere: bool,
    /// Where one has failed, endpoints of other localities are asked before those of its own.
    pub remote_localities: bool,
}

impl Default for Retries {
    /// Istio's: twice, for what has not reached an application, or says itself that it may be repeated.
    fn default() -> Self {
        let on = RetryOn {
            events: RetryOn::CONNECT_FAILURE | RetryOn::REFUSED_STREAM,
            grpc: grpc_bit(1) | grpc_bit(14),
            statuses: Vec::new(),
        };
        Self { attempts: 2, on, elsewhere: true, ..Self::none() }
    }
}

impl Retries {
    /// How often the span doubles at most, and what it is limited to: ten times the first.
    const LARGEST: u32 = 10;

    /// Nothing is tried again.
    #[must_use]
    pub fn none() -> Self {
        Self {
            attempts: 0,
            per_try_timeout: None,
            on: RetryOn::default(),
            backoff: Duration::from_millis(25),
            least_pause: Duration::ZERO,
            elsewhere: false,
            remote_localities: false,
        }
    }

    /// Whether an attempt with this end is repeated; `attempt` is 1 for the first.
    #[must_use]
    pub fn again(&self, attempt: u32, end: &AttemptEnd) -> bool {
        attempt <= self.attempts && self.on.contains(end)
    }

    /// Whether an attempt with this end would be repeated if there had not been so many.
    #[must_use]
    pub fn is_exhausted(&self, attempt: u32, end: &AttemptEnd) -> bool {
        attempt > self.attempts && self.on.contains(end)
    }

    /// How long is waited after attempt `attempt`: a random part of a span that doubles.
    pub fn pause(&self, attempt: u32, rng: &mut impl Rng) -> Duration {
        let factor = 1_u32.checked_shl(attempt).map_or(Self::LARGEST, |two| (two - 1).min(Self::LARGEST));
        let span = u64::try_from(self.backoff.saturating_mul(factor).as_nanos()).unwrap_or(u64::MAX);
        let drawn = if span == 0 { 0 } else { rng.random_range(0..span) };
        Duration::from_nanos(drawn).max(self.least_pause)
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptEnd {
    /// No connection came about.
    ConnectFailure,
    /// The peer says that it has not looked at the request.
    RefusedStream,
    /// The connection was lost before the request was sent.
    ResetBeforeRequest,
    /// The connection or the stream was lost before an answer.
    Reset,
    /// The attempt's own time was over.
    PerTryTimeout,
    /// An answer.
    Response {
        /// Its status.
        status: u16,
        /// Its status of gRPC, if it has one before its body.
        grpc: Option<u8>,
        /// It says that a limit of rates was reached.
        rate_limited: bool,
    },
}

/// What is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetryOn {
    /// The constants of this type.
    pub events: u16,
    /// A bit for each status of gRPC, 0 to 16.
    pub grpc: u32,
    /// Statuses of answers.
    pub statuses: Vec<u16>,
}

/// A word that says nothing to try again for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing is tried again for {0:?}")]
pub struct UnknownEvent(pub String);

/// The code of gRPC that a condition names: with dashes, and in no other way.
fn grpc_code(word: &str) -> Option<u16> {
    let is_written_so = word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    grpc::by_name(word).filter(|_| is_written_so)
}

const fn grpc_bit(code: u8) -> u32 {
    1 << code
}

impl RetryOn {
    /// No connection came about.
    pub const CONNECT_FAILURE: u16 = 1;
    /// The peer has not looked at the request.
    pub const REFUSED_STREAM: u16 = 1 << 1;
    /// Lost before the request was sent.
    pub const RESET_BEFORE_REQUEST: u16 = 1 << 2;
    /// Anything but an answer.
    pub const RESET: u16 = 1 << 3;
    /// Answers of 5xx, or none.
    pub const ANY_5XX: u16 = 1 << 4;
    /// 502, 503 and 504, or no answer.
    pub const GATEWAY_ERROR: u16 = 1 << 5;
    /// 409.
    pub const RETRIABLE_4XX: u16 = 1 << 6;
    /// A limit of rates was reached.
    pub const RATE_LIMITED: u16 = 1 << 7;
    /// All of them.
    pub const ALL: u16 = (1 << 8) - 1;
    /// All statuses of gRPC.
    pub const ALL_GRPC: u32 = (1 << 17) - 1;

    /// Reads Istio's `retryOn`: words and statuses with commas. `retriable-status-codes` alone names none, and two words are about what does not
    /// exist here: they are read and mean nothing.
    pub fn parse(text: &str) -> Result<Self, UnknownEvent> {
        let mut on = Self::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            on.events |= match word {
                "connect-failure" => Self::CONNECT_FAILURE,
                "refused-stream" => Self::REFUSED_STREAM,
                "reset-before-request" => Self::RESET_BEFORE_REQUEST,
                "reset" => Self::RESET,
                "5xx" => Self::ANY_5XX,
                "gateway-error" => Self::GATEWAY_ERROR,
                "retriable-4xx" => Self::RETRIABLE_4XX,
                "envoy-ratelimited" => Self::RATE_LIMITED,
                "retriable-status-codes" | "retriable-headers" | "http3-post-connect-failure" => 0,
                _ => {
                    let status = word.parse::<u16>().ok().filter(|status| (100..=599).contains(status));
                    match (status, grpc_code(word)) {
                        (Some(status), _) => on.statuses.push(status),
                        (None, Some(code)) => on.grpc |= 1 << code,
                        (None, None) => return Err(UnknownEvent(word.chars().take(100).collect())),
                    }
                    0
                }
            };
        }
        Ok(on)
    }

    /// Whether an attempt that ended so is tried again.
    #[must_use]
    pub fn contains(&self, end: &AttemptEnd) -> bool {
        let without_answer = Self::RESET | Self::ANY_5XX | Self::GATEWAY_ERROR;
        let of_events = match end {
            AttemptEnd::ConnectFailure => without_answer | Self::CONNECT_FAILURE | Self::RESET_BEFORE_REQUEST,
            AttemptEnd::RefusedStream => without_answer | Self::REFUSED_STREAM,
            AttemptEnd::ResetBeforeRequest => without_answer | Self::RESET_BEFORE_REQUEST,
            AttemptEnd::Reset | AttemptEnd::PerTryTimeout => without_answer,
            AttemptEnd::Response { status, grpc, rate_limited } => {
                let by_status = self.statuses.contains(status) || grpc.is_some_and(|code| self.has_grpc(code));
                if by_status || (*rate_limited && self.events & Self::RATE_LIMITED != 0) {
                    return true;
                }
                match status {
                    // A limit of rates is no failure of a server.
                    _ if *rate_limited => 0,
                    502..=504 => Self::ANY_5XX | Self::GATEWAY_ERROR,
                    500..=599 => Self::ANY_5XX,
                    409 => Self::RETRIABLE_4XX,
                    _ => 0,
                }
            }
        };
        self.events & of_events != 0
    }

    fn has_grpc(&self, code: u8) -> bool {
        code < 17 && self.grpc & grpc_bit(code) != 0
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const fn answer(status: u16, grpc: Option<u8>) -> AttemptEnd {
        AttemptEnd::Response { status, grpc, rate_limited: false }
    }

    const LIMITED: AttemptEnd = AttemptEnd::Response { status: 429, grpc: None, rate_limited: true };

    #[test]
    fn features_VS_15_what_is_tried_again() {
        use AttemptEnd::{ConnectFailure, PerTryTimeout, RefusedStream, Reset, ResetBeforeRequest};
        let ends = [
            ConnectFailure,
            RefusedStream,
            ResetBeforeRequest,
            Reset,
            PerTryTimeout,
            answer(500, None),
            answer(503, None),
            answer(409, None),
            answer(200, Some(1)),
            answer(200, Some(14)),
            answer(200, Some(200)),
            answer(200, None),
            LIMITED,
        ];
        for (on, expected) in [
            ("", ".............".to_owned()),
            ("connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", "xx......xx...".to_owned()),
            ("5xx", "xxxxxxx......".to_owned()),
            ("gateway-error", "xxxxx.x......".to_owned()),
            ("reset", "xxxxx........".to_owned()),
            ("reset-before-request", "x.x..........".to_owned()),
            ("retriable-4xx, 503", "......xx.....".to_owned()),
            ("envoy-ratelimited", "............x".to_owned()),
            ("retriable-headers", ".............".to_owned()),
        ] {
            let on = RetryOn::parse(on).unwrap();
            let row: String = ends.iter().map(|end| if on.contains(end) { 'x' } else { '.' }).collect();
            assert_eq!(row, expected, "{on:?}");
        }
        let written =
            RetryOn::parse("connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes").unwrap();
        assert_eq!(Retries::default().on, written);
        for bad in ["5x", "99", "600", "ok,nothing", "UNAVAILABLE", "data_loss"] {
            assert!(RetryOn::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn attempts_and_pauses_have_limits() {
        let (retries, mut rng) = (Retries::default(), StdRng::seed_from_u64(7));
        let failed = AttemptEnd::ConnectFailure;
        assert_eq!([1, 2, 3].map(|attempt| retries.again(attempt, &failed)), [true, true, false]);
        assert!(!Retries::none().again(1, &failed));
        for (attempt, most) in [(1, 25), (2, 75), (3, 175), (4, 250), (31, 250), (32, 250), (u32::MAX, 250)] {
            let pauses: Vec<_> = (0..1000).map(|_| retries.pause(attempt, &mut rng)).collect();
            let longest = *pauses.iter().max().unwrap();
            assert!(
                longest < Duration::from_millis(most) && longest > Duration::from_millis(most * 9 / 10),
                "{attempt} {longest:?}"
            );
        }
        let least = Duration::from_millis(100);
        let slow = Retries { least_pause: least, backoff: Duration::ZERO, ..retries };
        assert_eq!(slow.pause(1, &mut rng), least);
    }
}
