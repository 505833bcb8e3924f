//! Asking external authorizers about a request, before anything else decides about it. Without an answer in time, or with one that cannot be heeded, a request is
//! denied, unless the provider is said to fail open.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, StatusCode, Version};
use hyper::body::Body as _;
use mesh_core::NamespacedName;
use mesh_core::l7::Authority;
use mesh_core::l7::authorizer::{Answer, Authorizer, BodyShown, Changes, Denial, Form, HttpForm};
use mesh_proto::CHECK_PATH;
use mesh_proto::convert::{Asked, CheckError, Shown, check_answer, encode_check};
use mesh_runtime::clock;
use mesh_transport::hbone;

use crate::callout::{self, Call, CallError};
use crate::downstream::{Bound, Downstream};
use crate::http::ClientBody;
use crate::telemetry::{Remark, Ruled};

/// Says to an authorizer whether it sees the beginning of a body only.
const PARTIAL: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Who is to be asked, and by which policy.
pub struct Asker {
    /// The policy.
    pub policy: NamespacedName,
    /// The provider, as the policy calls it.
    pub provider: String,
    /// Whom it means; `None` if nobody is known by that name.
    pub authorizer: Option<Arc<Authorizer>>,
}

/// What is asked about.
pub struct Question<'a> {
    /// Whose connection it came by.
    pub down: &'a Downstream,
    /// What the connection leads to.
    pub bound: &'a Bound,
    /// The request.
    pub parts: &'a Parts,
    /// The host that it is for.
    pub authority: &'a Authority,
    /// It becomes another protocol: its body has no end.
    pub is_endless: bool,
}

/// All have let the request through.
#[derive(Default)]
pub struct Allowed {
    /// What each of them changes.
    pub changes: Vec<Changes>,
    /// The changes count for the choice of a route.
    pub routes_again: bool,
}

/// Why a request is not let through.
pub enum Refusal {
    /// Somebody has said so.
    Denied(Denial),
    /// There was no answer; the client is told this.
    NoAnswer(StatusCode),
    /// Nobody is known by the name of the provider.
    Nobody,
    /// More of a body than may be shown.
    TooLarge,
    /// The client's body broke off.
    Body,
}

/// Why an answer is none.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Answer(#[from] CheckError),
    #[error("it answers with status {0}")]
    Status(StatusCode),
    #[error("it cannot be asked for such a path")]
    Path,
    #[error("it takes longer than {0:?}")]
    Late(std::time::Duration),
}

/// A body as it is shown.
struct Sample {
    bytes: Bytes,
    is_whole: bool,
}

/// Asks each in turn; the first that does not let the request through ends it.
pub async fn ask(question: &Question<'_>, askers: &[Asker], body: &mut ClientBody) -> Result<Allowed, Refusal> {
    let mut allowed = Allowed::default();
    for asker in askers {
        let meters = &question.down.lane.meters;
        let Some(authorizer) = &asker.authorizer else {
            let (policy, provider) = (&asker.policy, &asker.provider);
            tracing::debug!(%policy, provider, "denied: no authorizer is known by that name");
            meters.ruled(&asker.policy, Ruled::Denied);
            return Err(Refusal::Nobody);
        };
        let sample = match authorizer.body.filter(|_| !question.is_endless) {
            Some(shown) => {
                let patience = question.down.lane.shared.settings.body_timeout;
                let begun = || question.down.watch.has_body();
                let seen = tokio::time::timeout(patience, sample(shown, body, begun)).await;
                Some(seen.unwrap_or(Err(Refusal::Body))?)
            }
            None => None,
        };
        let one = question.one(authorizer, sample);
        let answer = tokio::time::timeout(authorizer.timeout, one).await;
        let answer = answer.unwrap_or_else(|_| Err(AskError::Late(authorizer.timeout)));
        match answer {
            Ok(Answer::Allowed(changes)) => {
                allowed.routes_again |= authorizer.routes_again;
                allowed.changes.push(changes);
            }
            Ok(Answer::Denied(denial)) => {
                meters.ruled(&asker.policy, Ruled::Denied);
                return Err(Refusal::Denied(denial));
            }
            Err(error) => {
                // Whoever has answered was not away: what cannot be read may be a refusal.
                let is_away = !matches!(error, AskError::Answer(_) | AskError::Call(CallError::Body(_)));
                let (policy, open) = (&asker.policy, authorizer.fail_open && is_away);
                if let Some(suppressed) = question.down.remark(Remark::NoAuthorizer) {
                    let name = &authorizer.name;
                    tracing::warn!(%policy, authorizer = %name, %error, open, suppressed, "an authorizer has not answered");
                }
                meters.ruled(policy, if open { Ruled::FailedOpen } else { Ruled::Failed });
                if !open {
                    return Err(Refusal::NoAnswer(authorizer.status_on_error));
                }
            }
        }
    }
    Ok(allowed)
}

async fn sample(shown: BodyShown, body: &mut ClientBody, begun: impl Fn()) -> Result<Sample, Refusal> {
    if !shown.partial && body.size_hint().lower() > shown.most as u64 {
        return Err(Refusal::TooLarge);
    }
    let seen = body.look(shown.most, begun).await.map_err(|_| Refusal::Body)?;
    if !seen.is_whole && !shown.partial {
        return Err(Refusal::TooLarge);
    }
    Ok(Sample { bytes: seen.bytes, is_whole: seen.is_whole })
}

impl Question<'_> {
    async fn one(&self, authorizer: &Authorizer, sample: Option<Sample>) -> Result<Answer, AskError> {
        let mut headers = self.parts.headers.clone();
        if let Some(sample) = &sample {
            headers.insert(PARTIAL, HeaderValue::from_static(if sample.is_whole { "false" } else { "true" }));
        }
        let as_bytes = authorizer.body.is_some_and(|body| body.as_bytes);
        match &authorizer.form {
            Form::Http(form) => self.http(authorizer, form, headers, sample).await,
            Form::Grpc => self.grpc(authorizer, &headers, sample, as_bytes).await,
        }
    }

    async fn http(
        &self,
        authorizer: &Authorizer,
        form: &HttpForm,
        headers: HeaderMap,
        sample: Option<Sample>,
    ) -> Result<Answer, AskError> {
        let mut sent = form.request(&headers);
        if let Some(partial) = headers.get(PARTIAL) {
            sent.insert(PARTIAL, partial.clone());
        }
        let target = self.parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let target = PathAndQuery::try_from(format!("{}{target}", form.path_prefix)).map_err(|_| AskError::Path)?;
        let host = HeaderValue::from_str(self.authority.as_str()).map_err(|_| AskError::Path)?;
        let body = sample.map_or_else(Bytes::new, |sample| sample.bytes);
        let call = Call { method: self.parts.method.clone(), target, host, headers: sent, body };
        let answered = callout::call(&self.down.lane, &self.bound.view, &authorizer.place, call).await?;
        let answer = form.answer(answered.status, &answered.headers, answered.body.to_vec());
        answer.ok_or(AskError::Status(answered.status))
    }

    async fn grpc(
        &self,
        authorizer: &Authorizer,
        headers: &HeaderMap,
        sample: Option<Sample>,
        as_bytes: bool,
    ) -> Result<Answer, AskError> {
        let (parts, shared) = (self.parts, &self.down.lane.shared);
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let message = encode_check(&Asked {
            source: self.down.from(),
            client: &self.down.proved().map(ToString::to_string).unwrap_or_default(),
            destination: match self.down.asked {
                hbone::Authority::Address(address) => Some(address),
                hbone::Authority::Host(..) => None,
            },
            server: &shared.own.identity.to_string(),
            time: clock::now(),
            id: text(&REQUEST_ID).unwrap_or_default(),
            method: parts.method.as_str(),
            scheme: self.down.scheme(),
            host: self.authority.as_str(),
            path: parts.uri.path_and_query().map_or("/", PathAndQuery::as_str),
            headers,
            protocol: if parts.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" },
            size: text(&CONTENT_LENGTH).and_then(|length| length.parse().ok()),
            body: match &sample {
                None => Shown::Nothing,
                Some(sample) if as_bytes => Shown::Bytes(&sample.bytes),
                Some(sample) => Shown::Text(&sample.bytes),
            },
        });
        let place = &authorizer.place;
        let answer = callout::grpc(&self.down.lane, &self.bound.view, place, CHECK_PATH, &message).await?;
        Ok(check_answer(&answer)?)
    }
}
