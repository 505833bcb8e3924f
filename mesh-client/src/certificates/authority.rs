//! Who signs. In production the control plane over gRPC; tests bring their own.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use mesh_core::Identity;
use mesh_proto::ca::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient};
use prost_types::{Struct, Value, value::Kind};
use tonic::{Code, Request, Status, transport::Channel};

use crate::{
    ControlConfig,
    channel::{self, ChannelError},
};

/// A chain of at most 16 KiB and a root bundle of at most 256 KiB are accepted later; this bounds what is read at all.
const MAX_ANSWER: usize = 512 << 10;

/// Why the authority gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// It said no.
    #[error("the authority refuses: {message}")]
    Denied {
        /// What it said.
        message: String,
    },
    /// It cannot be reached, or failed.
    #[error("the authority is not available: {problem}")]
    Unavailable {
        /// What happened.
        problem: String,
    },
    /// It did not answer in time.
    #[error("the authority did not answer within 10 s")]
    Deadline,
}

/// What an authority's answer will be.
pub type Issued<'a> = Pin<Box<dyn Future<Output = Result<Vec<String>, IssueError>> + Send + 'a>>;

/// Signs certificate requests. The answer is PEM: leaf, intermediates, and last the root bundle.
pub trait Authority: Send + Sync + 'static {
    /// Asks for one certificate.
    fn issue<'a>(&'a self, identity: &'a Identity, csr: String, ttl: Duration) -> Issued<'a>;
}

/// The control plane's authority.
pub(super) struct GrpcAuthority {
    config: Arc<ControlConfig>,
    channel: Channel,
}

impl GrpcAuthority {
    pub(super) fn new(config: Arc<ControlConfig>) -> Result<Self, ChannelError> {
        let channel = channel::lazy(&config)?;
        Ok(Self { config, channel })
    }
}

impl Authority for GrpcAuthority {
    fn issue<'a>(&'a self, identity: &'a Identity, csr: String, ttl: Duration) -> Issued<'a> {
        Box::pin(async move {
            let mut client =
                IstioCertificateServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER);
            let impersonated = Value { kind: Some(Kind::StringValue(identity.to_string())) };
            let fields = [("ImpersonatedIdentity".to_owned(), impersonated)].into();
            let mut request = Request::new(IstioCertificateRequest {
                csr,
                validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
                metadata: Some(Struct { fields }),
            });
            let unavailable = |e: ChannelError| IssueError::Unavailable { problem: e.to_string() };
            *request.metadata_mut() = channel::credentials(&self.config).map_err(unavailable)?;
            match client.create_certificate(request).await {
                Ok(answer) => Ok(answer.into_inner().cert_chain),
                Err(status) => Err(classified(&status)),
            }
        })
    }
}

fn classified(status: &Status) -> IssueError {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument => {
            IssueError::Denied { message: status.message().to_owned() }
        }
        code => IssueError::Unavailable { problem: format!("{code:?}: {}", channel::chain(status)) },
    }
}
