//! A connection that stops being HTTP, as WebSockets do: both ends have agreed, and bytes are copied until both directions ended, or policies that change do not let
//! the request through any more that it began with. Its line is written then, and what the request holds is held until then.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::request::Parts;
use http::{HeaderName, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mesh_core::l7::{Authority, Token};
use mesh_runtime::task;
use mesh_transport::copy::ByteCounters;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

use super::report::Report;
use crate::counted::Counted;
use crate::downstream::Downstream;
use crate::http::{Fields, ResponseBody, hop};
use crate::record::DENIED;
use crate::security::authorize::{self, Said};

/// The answer to a key that the client of HTTP/2 does not have.
const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// Both ends, once they have agreed.
pub struct Switched {
    client: OnUpgrade,
    server: OnUpgrade,
}

/// What policies have looked at of the request, and are to look at again.
pub struct Judged {
    parts: Parts,
    authority: Authority,
    token: Option<Token>,
    remote: IpAddr,
    policies: watch::Receiver<()>,
}

impl Judged {
    /// To be taken before they look.
    pub fn of(down: &Downstream, of: &Parts, authority: &Authority, said: Said<'_>) -> Box<Self> {
        let (mut parts, ()) = Request::new(()).into_parts();
        (parts.method, parts.uri, parts.headers) = (of.method.clone(), of.uri.clone(), of.headers.clone());
        let (authority, token) = (authority.clone(), said.token.cloned());
        Box::new(Self { parts, authority, token, remote: *said.remote, policies: down.lane.shared.state.policies() })
    }

    /// Waits until they do not let it through any more.
    async fn withdrawn(&mut self, down: &Downstream) {
        loop {
            // At once as well: they may have changed while an authorizer or the endpoint was asked, and it was let through by what was there before.
            if let Ok(bound) = down.bound() {
                let said = Said { token: self.token.as_ref(), remote: &self.remote };
                let allowed = authorize::looked_at(down, &bound, &self.parts, &self.authority, said, |subject| {
                    bound.applied.policies.decide(subject).decision.is_allowed()
                });
                if !allowed.unwrap_or(false) {
                    return;
                }
            }
            if self.policies.changed().await.is_err() {
                // Nobody is left who could change any.
                return std::future::pending().await;
            }
        }
    }
}

/// Passes the agreement on, which has these fields. `socket`: in HTTP/2 it has no fields of its own, and its status is 200.
pub fn switch(
    client: OnUpgrade,
    (mut response, has): (Response<Incoming>, Fields),
    socket: bool,
) -> (Response<ResponseBody>, Switched) {
    let server = hyper::upgrade::on(&mut response);
    let said = hop::strip(response.headers_mut(), has);
    if socket {
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().remove(ACCEPT);
        response.headers_mut().remove(http::header::CONTENT_LENGTH);
    } else {
        hop::restore(response.headers_mut(), &said, http::Version::HTTP_11);
    }
    (response.map(|_| ResponseBody::whole(bytes::Bytes::new())), Switched { client, server })
}

/// Copies what follows the agreement. What goes to the endpoint holds its place among its connections.
pub fn run(down: Arc<Downstream>, switched: Switched, judged: Option<Box<Judged>>, report: Box<Report>) {
    task::spawn("upgraded connection", async move {
        let Switched { client, server } = switched;
        let counters = Arc::<ByteCounters>::default();
        let copying = async {
            let (client, server) = tokio::try_join!(client, server).map_err(|_| "DC")?;
            let mut near = Counted::new(TokioIo::new(client), Arc::clone(&counters));
            let copied = tokio::io::copy_bidirectional(&mut near, &mut TokioIo::new(server)).await;
            Ok::<_, &str>(near.ended(&copied))
        };
        let withdrawn = async {
            match judged {
                Some(mut judged) => judged.withdrawn(&down).await,
                None => std::future::pending().await,
            }
        };
        let (flag, ended) = tokio::select! {
            () = down.drain.forced() => ("LR", None),
            () = withdrawn => ("-", Some(DENIED)),
            flag = copying => (flag.unwrap_or_else(|flag| flag), None),
        };
        report.copied((flag, ended), counters.received.load(Relaxed), counters.sent.load(Relaxed));
    });
}

/// Nothing comes of it. hyper gives the connection away all the same when it ends; left alone it would be reset, and the answer perhaps not read.
pub fn decline(client: OnUpgrade) {
    task::spawn("declined upgrade", async move {
        if let Ok(connection) = client.await {
            let _ = TokioIo::new(connection).shutdown().await;
        }
    });
}
