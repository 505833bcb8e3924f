//! The ports of a gateway: opened when a listener asks for one, closed when none does any more. Connections that are there stay; so do those of other ports.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_runtime::{DrainToken, task};
use mesh_transport::socket::AcceptLoop;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::connection;
use crate::engine::Engine;

/// How soon a port that cannot be had is asked for again.
const AGAIN: Duration = Duration::from_secs(2);

/// Keeps the ports open that the listeners ask for, until the process drains. `own` are the process's own, which no listener gets.
pub async fn keep(engine: Engine, address: IpAddr, own: Vec<u16>, drain: DrainToken) {
    let mut wanted = engine.shared().state.ports();
    let mut open: BTreeMap<u16, DropGuard> = BTreeMap::new();
    let mut told = Vec::new();
    loop {
        let ports = wanted.borrow_and_update().clone();
        open.retain(|port, _| ports.contains(port));
        let mut missing = false;
        for port in ports.iter().filter(|port| !open.contains_key(port)).copied().collect::<Vec<_>>() {
            let bound = if own.contains(&port) {
                Err(std::io::Error::other("it is one of this process's own"))
            } else {
                bind(address, port).await
            };
            match bound {
                Ok(listener) => {
                    tracing::info!(port, "a port is open");
                    told.retain(|known| *known != port);
                    open.insert(port, accept(&engine, listener, port, &drain));
                }
                Err(error) => {
                    missing = true;
                    if !told.contains(&port) {
                        tracing::error!(port, %error, "a port cannot be opened");
                        told.push(port);
                    }
                }
            }
        }
        tokio::select! {
            () = drain.started() => return,
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if missing => {}
        }
    }
}

/// All addresses of both families, or of one where a node has one.
async fn bind(address: IpAddr, port: u16) -> std::io::Result<AcceptLoop> {
    let listener = match TcpListener::bind(SocketAddr::new(address, port)).await {
        Err(error) if address == IpAddr::from(Ipv6Addr::UNSPECIFIED) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.map_err(|_| error)?
        }
        bound => bound?,
    };
    AcceptLoop::new(listener)
}

/// Accepts until what is given back is dropped. Each connection lives on one lane.
fn accept(engine: &Engine, mut listener: AcceptLoop, port: u16, drain: &DrainToken) -> DropGuard {
    let (closed, engine, drain) = (CancellationToken::new(), engine.clone(), drain.clone());
    let guard = closed.clone().drop_guard();
    task::spawn("port of a gateway", async move {
        loop {
            let (tcp, from) = tokio::select! {
                () = drain.started() => return,
                () = closed.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => return tracing::error!(port, %error, "a port is lost"),
                },
            };
            let (engine, drain) = (engine.clone(), drain.clone());
            let thread = engine.threads().home().clone();
            task::spawn_on(&thread, "connection of a gateway", async move {
                // Its events come to this thread from now on.
                match tcp.moved() {
                    Ok(tcp) => connection::serve(Arc::clone(engine.here()), tcp, port, from, drain).await,
                    Err(error) => tracing::debug!(%error, "a connection was lost"),
                }
            });
        }
    });
    guard
}
