//! A command in a container, through the API server, as `kubectl exec` runs one. Only what the command says is read; it is told nothing. Called by `tap`.
//!
//! ```text
//! GET pods/NAME/exec ── WebSocket of `kube` ── standard output and error, as they come ── how it has ended
//! ```

use bytes::Bytes;
use futures_util::future::{self, OptionFuture};
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{AttachParams, AttachedProcess};
use kube::client::Body;
use kube::{Client, Error};
use serde_json::Value;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;
use tower::service_fn;

use crate::api::{Api, Failure, MAX_ANSWER, chain, failed, reason, refused};

/// What a command has said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Said {
    /// On its standard output.
    Out(Bytes),
    /// On its standard error.
    Err(Bytes),
    /// It has ended, with that status, or was never begun, for that reason.
    Ended(Result<i32, String>),
}

/// A command that runs. Who drops it does not hear of it any more.
pub struct Exec {
    said: BoxStream<'static, Result<Said, String>>,
}

impl Exec {
    /// Runs it.
    pub async fn begin(
        api: &Api,
        namespace: &str,
        pod: &str,
        container: &str,
        command: &[String],
    ) -> Result<Exec, Failure> {
        let pods = kube::Api::<Pod>::namespaced(telling(&api.client), namespace);
        let params = AttachParams::default().container(container);
        let begun = async { pods.exec(pod, command, &params).await.map_err(|error| not_begun(&error)) };
        Ok(Exec::of(api.in_time(begun).await?))
    }

    /// Both streams end with the connection; how the command has ended comes last.
    fn of(mut process: AttachedProcess) -> Exec {
        let out = pieces(process.stdout()).map(Said::Out);
        let err = pieces(process.stderr()).map(Said::Err);
        let end = stream::once(end(process)).filter_map(future::ready);
        Exec { said: stream::select(out, err).map(Ok).chain(end).boxed() }
    }

    /// What is said next; nothing if the other side has gone without a word about the command.
    pub async fn next(&mut self) -> Result<Option<Said>, String> {
        self.said.next().await.transpose()
    }
}

async fn end(mut process: AttachedProcess) -> Option<Result<Said, String>> {
    let status = OptionFuture::from(process.take_status()).await.flatten();
    match status {
        Some(status) => Some(Ok(Said::Ended(ended(&status)))),
        None => process.join().await.err().map(|why| Err(format!("it broke off before its time: {}", chain(&why)))),
    }
}

/// The pipe is one of this process: it ends, and has no errors.
fn pieces(pipe: Option<impl AsyncRead + Unpin>) -> impl Stream<Item = Bytes> {
    stream::iter(pipe).flat_map(ReaderStream::new).filter_map(|piece| future::ready(piece.ok()))
}

/// The same client, for which what is no upgrade is an error with the API server's reason: kube drops that answer, and with it who may not do what.
fn telling(client: &Client) -> Client {
    let inner = client.clone();
    let upgrade = move |request: Request<Body>| {
        let inner = inner.clone();
        async move {
            let response = inner.send(request).await?;
            let code = response.status();
            if code == StatusCode::SWITCHING_PROTOCOLS {
                return Ok(response);
            }
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(Error::Service)?;
            let answer: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
            Err(Error::Api(kube::core::Status::failure(reason(&answer), "").with_code(code.as_u16()).boxed()))
        }
    };
    Client::new(service_fn(upgrade), client.default_namespace())
}

/// Why a command was not begun.
fn not_begun(error: &Error) -> Failure {
    match error {
        Error::Api(status) => refused(status.code, &status.message),
        Error::UpgradeConnection(why) => failed(format!(
            "it does not speak over a WebSocket as Kubernetes does: {}; a proxy before it may not let that through",
            chain(why)
        )),
        error => failed(chain(error)),
    }
}

/// What the API server says of a command that has ended.
fn ended(status: &Status) -> Result<i32, String> {
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let mut causes = status.details.iter().flat_map(|details| details.causes.iter().flatten());
    let code = causes
        .find(|cause| cause.reason.as_deref() == Some("ExitCode"))
        .and_then(|cause| cause.message.as_ref()?.parse().ok());
    code.ok_or_else(|| {
        status.message.clone().unwrap_or_else(|| "the command was not run, and no reason is given".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_command_ended_is_told() {
        for (status, expected) in [
            (r#"{"status":"Success"}"#, Ok(0)),
            (r#"{"status":"Failure","details":{"causes":[{"reason":"ExitCode","message":"64"}]}}"#, Ok(64)),
            (r#"{"status":"Failure","message":"container not found"}"#, Err("container not found")),
            (
                r#"{"details":{"causes":[{"reason":"ExitCode","message":"x"}]}}"#,
                Err("the command was not run, and no reason is given"),
            ),
        ] {
            let read: Status = serde_json::from_str(status).unwrap();
            assert_eq!(ended(&read), expected.map_err(str::to_owned), "{status}");
        }
    }
}
