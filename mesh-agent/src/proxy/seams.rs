//! The two things that the proxy takes from elsewhere in the agent and that a test has to stand in for: what the kernel knows about a socket, and where
//! a pod's certificate comes from. Production uses [`crate::bpf::Kernel`] and [`mesh_client`]'s certificate manager; nothing else implements these.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::Identity;
use mesh_transport::tls::IdentityCertificate;

use crate::bpf::{InboundMode, Kernel};

/// What the kernel knows and does for one enrolled pod, named by the cookie of its network namespace.
pub trait Interception: Send + Sync + 'static {
    /// The destination that the app asked for, from the slot address that its captured connection was sent to.
    fn original_destination(&self, cookie: u64, local: SocketAddr) -> Option<SocketAddr>;

    /// The destination of a plaintext connection that was steered to the agent. Steering leaves the address as it was.
    fn plaintext_destination(&self, _cookie: u64, local: SocketAddr) -> SocketAddr {
        local
    }

    /// Makes the app that `socket` is going to connect to see `client` as its peer.
    fn set_client(&self, socket: BorrowedFd<'_>, client: SocketAddr) -> io::Result<()>;

    /// Whether the app that `socket` is connected to sees the client: not if the kernel had no place left for its address.
    fn client_shown(&self, socket: BorrowedFd<'_>) -> bool;

    /// Sets on which ports plaintext is refused before it reaches the agent. False: the kernel has no room for them and leaves it all to the agent.
    fn set_inbound(&self, cookie: u64, mode: &InboundMode) -> io::Result<bool>;

    /// Says whether the pod may reach only what the kernel knows of the registry.
    fn set_registry_only(&self, cookie: u64, registry_only: bool) -> io::Result<()>;

    /// What the kernel knows of the registry.
    fn registry(&self) -> io::Result<BTreeSet<IpNet>>;

    /// Changes that; returned is what it has no room for.
    fn set_registry(&self, add: &[IpNet], remove: &[IpNet]) -> io::Result<Vec<IpNet>>;
}

impl Interception for Kernel {
    fn original_destination(&self, cookie: u64, local: SocketAddr) -> Option<SocketAddr> {
        Kernel::original_destination(self, cookie, local)
    }

    fn set_client(&self, socket: BorrowedFd<'_>, client: SocketAddr) -> io::Result<()> {
        Kernel::set_client(self, socket, client).map_err(io::Error::other)
    }

    fn client_shown(&self, socket: BorrowedFd<'_>) -> bool {
        Kernel::client_shown(self, socket)
    }

    fn set_inbound(&self, cookie: u64, mode: &InboundMode) -> io::Result<bool> {
        Kernel::set_inbound(self, cookie, mode).map_err(io::Error::other)
    }

    fn set_registry_only(&self, cookie: u64, registry_only: bool) -> io::Result<()> {
        Kernel::set_registry_only(self, cookie, registry_only).map_err(io::Error::other)
    }

    fn registry(&self) -> io::Result<BTreeSet<IpNet>> {
        Kernel::registry(self).map_err(io::Error::other)
    }

    fn set_registry(&self, add: &[IpNet], remove: &[IpNet]) -> io::Result<Vec<IpNet>> {
        Kernel::set_registry(self, add, remove).map_err(io::Error::other)
    }
}

/// A certificate that is being fetched.
pub type FetchedCertificate<'a> = Pin<Box<dyn Future<Output = io::Result<Arc<IdentityCertificate>>> + Send + 'a>>;

/// Where certificates of local identities come from.
pub trait Certificates: Send + Sync + 'static {
    /// The certificate in use, if there is a valid one. Never waits.
    fn current(&self, identity: &Identity) -> Option<Arc<IdentityCertificate>>;

    /// The same, waiting for the certificate authority if there is none yet. The caller bounds the wait.
    fn fetch<'a>(&'a self, identity: &'a Identity) -> FetchedCertificate<'a>;
}

impl Certificates for mesh_client::CertificateManager {
    fn current(&self, identity: &Identity) -> Option<Arc<IdentityCertificate>> {
        mesh_client::CertificateManager::current(self, identity)
    }

    fn fetch<'a>(&'a self, identity: &'a Identity) -> FetchedCertificate<'a> {
        Box::pin(async move { Ok(self.certificate(identity).await) })
    }
}
