//! Counting requests, of those that policies let through. What the waypoint counts itself is asked first; then services that count for many, which may
//! be away: then a request goes on, unless it is said that it must not.

use std::borrow::Cow;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue, StatusCode};
use mesh_core::l7::authorizer::{Denial, Edit, HeaderEdits};
use mesh_core::l7::limit::{Global, Local, RateLimit, Verdict};
use mesh_core::l7::policy::Subject;
use mesh_proto::RATE_LIMIT_PATH;
use mesh_proto::convert::{ConvertError, Counted, Nearest, encode_rate_limit, rate_limit_answer};

use crate::callout::{self, CallError};
use crate::downstream::{Bound, Downstream};
use crate::guard::Limiter;
use crate::telemetry::{Remark, Ruled};

const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// A request may go on.
#[derive(Default)]
pub struct Allowed {
    /// What services add to it.
    pub request: Vec<HeaderEdits>,
    /// What they add to the answer.
    pub response: Vec<HeaderEdits>,
}

/// Why a request may not.
pub enum Refusal {
    /// It comes too often; the client is told this.
    Over(Denial),
    /// Nobody could say, and then it is not let through.
    NoAnswer,
}

/// What services are to be asked.
pub struct Ask<'a> {
    limit: &'a RateLimit,
    global: &'a Global,
    descriptors: Vec<Vec<(String, String)>>,
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Answer(#[from] ConvertError),
    #[error("nobody knows where its service is")]
    Nowhere,
    #[error("its service takes longer than {0:?}")]
    Late(Duration),
}

/// Counts what is counted here, and says who else is to be asked.
pub fn count<'a>(down: &Downstream, bound: &'a Bound, subject: &Subject<'_>) -> Result<Vec<Ask<'a>>, Refusal> {
    let now = down.lane.shared.now_ns();
    let mut asked = Vec::new();
    for limiter in &bound.limiters {
        let Limiter { limit, .. } = &**limiter;
        if let Some((local, Verdict::Over { wait })) = limiter.count(subject, now) {
            down.lane.meters.ruled(&limit.name, Ruled::Limited);
            return Err(Refusal::Over(here(local, wait)));
        }
        if let Some(global) = &limit.global {
            let own = |(key, value): (&str, Cow<'_, str>)| (key.to_owned(), value.into_owned());
            let descriptors = global.descriptors(subject).into_iter();
            let descriptors: Vec<Vec<_>> = descriptors.map(|one| one.into_iter().map(own).collect()).collect();
            if !descriptors.is_empty() {
                asked.push(Ask { limit, global, descriptors });
            }
        }
    }
    Ok(asked)
}

/// Asks services.
pub async fn ask(down: &Downstream, bound: &Bound, asked: &[Ask<'_>]) -> Result<Allowed, Refusal> {
    let mut allowed = Allowed::default();
    for one in asked {
        let (name, timeout, open) = (&one.limit.name, one.global.timeout, one.global.fail_open);
        let meters = &down.lane.meters;
        let answer = tokio::time::timeout(timeout, one.call(down, bound)).await;
        match answer.unwrap_or(Err(AskError::Late(timeout))) {
            Ok(counted) if counted.is_over => {
                meters.ruled(name, Ruled::Limited);
                return Err(Refusal::Over(there(counted)));
            }
            Ok(counted) => {
                allowed.request.push(counted.request);
                allowed.response.push(counted.response);
            }
            Err(error) => {
                if let Some(suppressed) = down.remark(Remark::NoCount) {
                    tracing::warn!(limit = %name, %error, open, suppressed, "a rate limit is not known");
                }
                meters.ruled(name, if open { Ruled::FailedOpen } else { Ruled::Failed });
                if !open {
                    return Err(Refusal::NoAnswer);
                }
            }
        }
    }
    Ok(allowed)
}

impl Ask<'_> {
    async fn call(&self, down: &Downstream, bound: &Bound) -> Result<Counted, AskError> {
        let place = self.global.place.as_ref().ok_or(AskError::Nowhere)?;
        let descriptors: Vec<Vec<(&str, Cow<'_, str>)>> = self
            .descriptors
            .iter()
            .map(|one| one.iter().map(|(key, value)| (key.as_str(), Cow::from(value.as_str()))).collect())
            .collect();
        let message = encode_rate_limit(&self.global.domain, &descriptors);
        let answer = callout::grpc(&down.lane, &bound.view, place, RATE_LIMIT_PATH, &message).await?;
        Ok(rate_limit_answer(&answer)?)
    }
}

/// What a client is told whose request there is no room for here.
fn here(local: &Local, wait: Duration) -> Denial {
    let nearest = Nearest { requests: local.rate.requests, per: Some(local.rate.per), left: 0, reset: wait };
    over(Some(nearest), HeaderEdits::default(), b"local_rate_limited".to_vec())
}

/// The same, as a service says it.
fn there(counted: Counted) -> Denial {
    over(counted.nearest, counted.response, counted.body)
}

fn over(nearest: Option<Nearest>, mut headers: HeaderEdits, body: Vec<u8>) -> Denial {
    headers.edit(RATE_LIMITED, HeaderValue::from_static("true"), Edit::Set);
    if let Some(nearest) = nearest {
        // Rounded up: whoever waits as long as he is told has waited long enough.
        let seconds = |time: Duration| time.as_secs() + u64::from(time.subsec_nanos() > 0);
        let reset = seconds(nearest.reset).max(1);
        let limit = match nearest.per {
            Some(per) => format!("{0}, {0};w={1}", nearest.requests, seconds(per).max(1)),
            None => nearest.requests.to_string(),
        };
        let texts = [(LIMIT, limit), (REMAINING, nearest.left.to_string()), (RESET, reset.to_string())];
        for (name, text) in texts.into_iter().chain([(RETRY_AFTER, reset.to_string())]) {
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.edit(name, value, Edit::AddIfAbsent);
            }
        }
    }
    Denial { status: StatusCode::TOO_MANY_REQUESTS, headers, body }
}
