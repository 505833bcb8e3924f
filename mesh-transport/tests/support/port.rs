//! An acceptor whose judgement of clients a test asks for.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_transport::hbone::{Acceptor, AcceptorConfig};
use mesh_transport::tls::IdentityCertificate;
use rcgen::CertificateParams;
use rustls::version::TLS13;
use tokio::io::AsyncReadExt;

use super::{Ca, client, identity, pair_from, soon};

pub const CLIENT: &str = "spiffe://cluster.local/ns/app/sa/client";

pub struct Port {
    pub ca: Ca,
    pub certificate: Arc<IdentityCertificate>,
    pub acceptor: Acceptor,
}

impl Port {
    pub fn new(config: AcceptorConfig) -> Self {
        let ca = Ca::new();
        let certificate = ca.issue(&identity("spiffe://cluster.local/ns/app/sa/server"));
        Self { ca, certificate, acceptor: Acceptor::new(config) }
    }

    /// What the acceptor says about a client: its identity, or the reason of the refusal.
    pub async fn judge(&self, config: rustls::ClientConfig) -> Result<String, String> {
        self.judge_from([127, 0, 0, 1].into(), config).await
    }

    pub async fn judge_from(&self, ip: IpAddr, config: rustls::ClientConfig) -> Result<String, String> {
        let (near, far) = pair_from(ip).await;
        let client = tokio::spawn(async move {
            let mut tls = client::connect(near, config).await?;
            // Keeps the connection until the server has decided.
            tls.read_u8().await
        });
        let judged = soon("handshake", self.acceptor.accept(far, &self.certificate)).await;
        client.abort();
        judged.map(|tunnel| tunnel.peer().to_string()).map_err(|error| format!("{}: {error}", error.reason()))
    }

    pub async fn judge_params(&self, params: CertificateParams) -> Result<String, String> {
        let (chain, key) = self.ca.sign(params);
        self.judge(client::config(Some((&chain, &key)), &["h2"], &[&TLS13])).await
    }
}
