//! The authority's only call, over gRPC: who calls, may the caller have it, sign. Each refusal has a reason in the log; none has a secret.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use mesh_core::Identity;
use mesh_proto::ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use mesh_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use parking_lot::Mutex;
use prost_types::value::Kind as ValueKind;
use tonic::{Request, Response, Status};

use super::authority::Authority;
use super::ledger::{Keys, Rates};
use super::sign::{self, SignError};
use crate::access::check::Access;
use crate::access::layer::Authenticated;
use crate::access::pace::Lines;
use crate::access::token::Caller;
use crate::access::who::Who;
use crate::diagnosis::printable;
use crate::metrics::Metrics;

/// Bytes of a request: the longest CSR and the longest identity, with room.
const MAX_REQUEST: usize = 64 << 10;

/// The service.
#[derive(Clone)]
pub struct Issuing {
    /// Who may call.
    pub access: Access,
    /// Who signs; replaced when the root is.
    pub authority: Arc<ArcSwap<Authority>>,
    /// The longest lifetime of a certificate.
    pub longest: Duration,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Refusals in the log.
    pub lines: Lines,
    /// What happened before. Short critical sections, never held over an await.
    pub ledger: Arc<Mutex<(Rates, Keys)>>,
}

#[tonic::async_trait]
impl IstioCertificateService for Issuing {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.metrics.csrs.inc();
        let now = mesh_runtime::clock::now();
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Status::unauthenticated("authentication failed"))?;
        if !self.ledger.lock().0.admit(&caller.who.share(), Instant::now()) {
            self.metrics.limited.inc();
            return Err(Status::resource_exhausted(
                "too many certificate requests from this node, or from waypoints of this namespace",
            ));
        }
        let result = self.issue(&caller, request.into_inner(), now);
        match &result {
            Ok(_) => self.metrics.issued.inc(),
            Err(_) => self.metrics.refused.inc(),
        };
        result.map(|chain| Response::new(IstioCertificateResponse { cert_chain: chain }))
    }
}

impl Issuing {
    /// The service behind the check of tokens.
    pub fn service(self) -> Authenticated<IstioCertificateServiceServer<Self>> {
        let access = self.access.clone();
        let service = IstioCertificateServiceServer::new(self).max_decoding_message_size(MAX_REQUEST);
        Authenticated::new("ca", access, service)
    }

    fn issue(&self, caller: &Caller, request: IstioCertificateRequest, now: SystemTime) -> Result<Vec<String>, Status> {
        let refuse = |reason: &str, identity: &str| {
            if self.lines.admit() {
                tracing::warn!(node = %caller.name, identity = %printable(identity), reason, "certificate refused");
            }
        };
        let asked = impersonated(&request).ok_or_else(|| {
            refuse("no identity asked for", "");
            Status::invalid_argument("metadata.ImpersonatedIdentity is missing: a node has no identity of its own")
        })?;
        let identity: Identity = asked.parse().map_err(|_| {
            refuse("not a SPIFFE identity of a workload", &asked);
            Status::invalid_argument("metadata.ImpersonatedIdentity is not a SPIFFE identity of a workload")
        })?;
        let view = self.access.view();
        if identity.trust_domain != view.settings.trust_domain {
            refuse("other trust domain", &asked);
            return Err(Status::invalid_argument("the identity is of another trust domain"));
        }
        if !caller.who.may_be(&identity, &view) {
            let (reason, told) = match caller.who {
                Who::Node { .. } => {
                    ("no pod of that identity runs on the node", "no pod of that identity runs on the caller's node")
                }
                Who::Waypoint { .. } => {
                    ("not the waypoint's own identity", "a waypoint gets its own identity, while a pod of it is there")
                }
            };
            refuse(reason, &asked);
            return Err(Status::permission_denied(told));
        }
        let key = sign::check(&request.csr).map_err(|why| {
            refuse("bad request", &asked);
            Status::invalid_argument(why.to_string())
        })?;
        let lifetime = sign::lifetime(request.validity_duration, self.longest);
        if !self.ledger.lock().1.claim(key.der(), &identity, &caller.who.share(), now + lifetime, now) {
            refuse("the key belongs to another identity", &asked);
            return Err(Status::invalid_argument("the key belongs to another identity"));
        }
        let authority = self.authority.load();
        let signed = sign::sign(&authority, &key, &identity, lifetime, now).map_err(|why| {
            tracing::error!(node = %caller.name, %identity, error = %why, "cannot sign");
            match why {
                SignError::Key(_) => Status::invalid_argument(why.to_string()),
                _ => Status::unavailable("the authority cannot sign now"),
            }
        })?;
        tracing::info!(node = %caller.name, %identity, seconds = lifetime.as_secs(), "certificate issued");
        Ok(signed.chain)
    }
}

fn impersonated(request: &IstioCertificateRequest) -> Option<String> {
    match &request.metadata.as_ref()?.fields.get("ImpersonatedIdentity")?.kind {
        Some(ValueKind::StringValue(text)) if !text.is_empty() => Some(text.clone()),
        _ => None,
    }
}
