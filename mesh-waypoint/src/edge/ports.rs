//! The ports of a gateway: opened when a listener asks for one, closed when none does any more. Connections that are there stay; so do those of other ports.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::listener::{Open, Transport};
use mesh_runtime::{DrainToken, task};
use mesh_transport::socket::AcceptLoop;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{connection, datagrams};
use crate::engine::Engine;

/// How soon a port that cannot be had is asked for again.
const AGAIN: Duration = Duration::from_secs(2);

/// Keeps the ports open that the listeners ask for, until the process drains. `own` are the process's own, which no listener gets.
pub async fn keep(engine: Engine, address: IpAddr, own: Vec<u16>, drain: DrainToken) {
    let mut wanted = engine.shared().state.ports();
    let mut open: BTreeMap<Open, DropGuard> = BTreeMap::new();
    let mut told = Vec::new();
    loop {
        let ports = wanted.borrow_and_update().clone();
        open.retain(|one, _| ports.contains(one));
        let mut missing = false;
        for one in ports.iter().filter(|one| !open.contains_key(one)).copied().collect::<Vec<_>>() {
            let (transport, port) = (one.transport, one.port);
            let opened = match transport {
                _ if own.contains(&port) => Err(std::io::Error::other("it is one of this process's own")),
                Transport::Tcp => bind(address, port).await.map(|listener| accept(&engine, listener, port, &drain)),
                Transport::Udp => {
                    let sockets = datagrams::port::open(address, port, engine.lanes().len());
                    sockets.map(|sockets| receive(&engine, sockets, port, &drain))
                }
            };
            match opened {
                Ok(guard) => {
                    tracing::info!(?transport, port, "a port is open");
                    told.retain(|known| *known != one);
                    open.insert(one, guard);
                }
                Err(error) => {
                    missing = true;
                    if !told.contains(&one) {
                        tracing::error!(?transport, port, %error, "a port cannot be opened");
                        told.push(one);
                    }
                }
            }
        }
        tokio::select! {
            // Whoever accepts has stopped by itself then, and sessions of datagrams go on for a while.
            () = drain.started() => return open.into_values().for_each(|guard| drop(guard.disarm())),
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

/// Serves datagrams until what is given back is dropped. Each lane has a socket, and the kernel gives all datagrams of one client to one of them.
fn receive(engine: &Engine, sockets: Vec<std::net::UdpSocket>, port: u16, drain: &DrainToken) -> DropGuard {
    let closed = CancellationToken::new();
    for ((lane, thread), socket) in engine.lanes().iter().zip(engine.threads().handles()).zip(sockets) {
        let (lane, closed, drain) = (Arc::clone(lane), closed.clone(), drain.clone());
        task::spawn_on(thread, "datagrams of a gateway", datagrams::port::serve(lane, socket, port, closed, drain));
    }
    closed.drop_guard()
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
