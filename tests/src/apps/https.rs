//! A server of HTTP in TLS, as one on the internet: its certificate has the names that it is given, by an authority that it makes and tells of in a file.
use super::servers::{listen, runtime, tell};
use anyhow::{Context, Result, anyhow};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::PrivateKeyDer;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// Serves a port. `roots` becomes the file with the authority's certificate.
pub fn run(port: u16, name: &str, hosts: &[String], roots: &Path) -> Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let chain = vec![CertificateParams::new(hosts)?.signed_by(&key, &issuer)?.der().clone()];
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| anyhow!("key: {error}"))?;
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = builder.with_safe_default_protocol_versions()?.with_no_client_auth().with_single_cert(chain, key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    std::fs::write(roots, issuer.pem()).with_context(|| format!("write {}", roots.display()))?;
    let listener = listen(port, false)?;
    listener.set_nonblocking(true).context("set non-blocking")?;
    runtime()?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).context("adopt listener")?;
        println!("ready");
        loop {
            let Ok((tcp, peer)) = listener.accept().await else { continue };
            let (acceptor, name) = (acceptor.clone(), name.to_string());
            tokio::spawn(async move {
                let stream = match acceptor.accept(tcp).await {
                    Ok(stream) => stream,
                    Err(error) => return println!("no TLS from {peer}: {error}"),
                };
                let (_, tls) = stream.get_ref();
                let group = tls.negotiated_key_exchange_group().and_then(|group| group.name().as_str()).unwrap_or("-");
                println!("TLS from {peer} sni={} group={group}", tls.server_name().unwrap_or("-"));
                let service = service_fn(move |request| {
                    let answer = tell(&name, peer, &request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                let _ = connection.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    })
}
