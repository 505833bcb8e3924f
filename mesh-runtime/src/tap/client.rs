//! The other end of a tap: asks a process on this machine over its Unix socket. `mesh-waypoint tap` and `mesh-agent tap` copy what it says to their standard
//! output, which is how it leaves a pod; `meshctl` reads it where it is on the same machine.

use std::borrow::Cow;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::http::{own_user, unix_address};

/// Exit status if the selector is none, as it is of a file with wrong data.
pub const EXIT_SELECTOR: i32 = 65;
/// Exit status if nobody answers.
pub const EXIT_UNAVAILABLE: i32 = 69;
/// Exit status if the lines cannot be written.
pub const EXIT_OUTPUT: i32 = 74;
/// Exit status if there are too many taps: later it may do.
pub const EXIT_BUSY: i32 = 75;
/// A text of an error that is longer than this is none of ours.
const LONGEST_ERROR: usize = 64 * 1024;
/// How long a process may take until its answer begins, which needs no work.
const ANSWER: Duration = Duration::from_secs(10);

/// Why there are no lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Refused {
    /// Of a process.
    pub status: i32,
    /// One line.
    pub why: String,
}

/// The lines, as they come.
pub struct Lines {
    body: Incoming,
    _connection: tokio_util::task::AbortOnDropHandle<()>,
}

impl Lines {
    /// What has come next; nothing at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            // Ended or broken: both have been told by a last line, or by none.
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                return Some(data);
            }
        }
    }
}

/// Asks the process behind a socket for a tap. A process that is stopped takes connections and says nothing.
pub async fn ask(socket: &Path, query: &str) -> Result<Lines, Refused> {
    let late =
        || unavailable(socket, format!("no answer within {} s: the proxy hangs, or is stopped", ANSWER.as_secs()));
    tokio::time::timeout(ANSWER, begin(socket, query)).await.unwrap_or_else(|_| Err(late()))
}

fn unavailable(socket: &Path, what: String) -> Refused {
    Refused { status: EXIT_UNAVAILABLE, why: format!("{}: {what}", socket.display()) }
}

async fn begin(socket: &Path, query: &str) -> Result<Lines, Refused> {
    let unavailable = |what: String| unavailable(socket, what);
    let stream = UnixStream::connect(unix_address(socket)).await.map_err(|error| {
        unavailable(format!("no proxy answers there: {error}; it has to run, and to be asked by its own user"))
    })?;
    // A name without a folder is whose who takes it first.
    let is_another = stream.peer_cred().map_or(true, |peer| peer.uid() != own_user());
    if is_another && matches!(unix_address(socket), Cow::Owned(_)) {
        return Err(unavailable("who answers there is not of our user".to_owned()));
    }
    let broken =
        |error: hyper::Error| unavailable(format!("it hangs up: {error}; it may be asked by its own user alone"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let connection = tokio_util::task::AbortOnDropHandle::new(crate::task::spawn("tap connection", async move {
        let _ = connection.await;
    }));
    let request = Request::get(format!("/tap?{query}")).header(header::HOST, "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| Refused { status: EXIT_SELECTOR, why: format!("{query}: {error}") })?;
    let response = sender.send_request(request).await.map_err(broken)?;
    if response.status() == StatusCode::OK {
        return Ok(Lines { body: response.into_body(), _connection: connection });
    }
    let status = match response.status() {
        StatusCode::BAD_REQUEST => EXIT_SELECTOR,
        StatusCode::TOO_MANY_REQUESTS => EXIT_BUSY,
        StatusCode::NOT_FOUND => return Err(unavailable("the proxy is too old for taps: upgrade it".to_owned())),
        _ => EXIT_UNAVAILABLE,
    };
    let text = http_body_util::Limited::new(response.into_body(), LONGEST_ERROR).collect().await;
    let text = text.map(|text| text.to_bytes()).unwrap_or_default();
    Err(Refused { status, why: String::from_utf8_lossy(&text).trim().to_owned() })
}

/// Copies a tap to the standard output until either ends. Gives the exit status.
pub fn main(socket: &Path, query: &str) -> i32 {
    let copied = tokio::runtime::Builder::new_current_thread().enable_all().build().map(|runtime| {
        runtime.block_on(async {
            let mut lines = ask(socket, query).await?;
            while let Some(piece) = lines.next().await {
                if !write(&piece, &mut std::io::stdout())? {
                    break;
                }
            }
            Ok(())
        })
    });
    let refused = match copied {
        Ok(Ok(())) => return 0,
        Ok(Err(refused)) => refused,
        Err(error) => Refused { status: EXIT_UNAVAILABLE, why: error.to_string() },
    };
    let _ = writeln!(std::io::stderr(), "{}", refused.why);
    refused.status
}

/// Writes what has come. Says whether anybody reads it.
pub(super) fn write(piece: &[u8], out: &mut impl Write) -> Result<bool, Refused> {
    match out.write_all(piece).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Refused { status: EXIT_OUTPUT, why: format!("standard output: {error}") }),
    }
}
