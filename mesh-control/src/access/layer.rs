//! Puts the check of tokens before a service: nothing of a request is read before it is known whose it is. What comes through carries its [`Caller`].

use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;

use super::check::Access;

/// A service that only callers with a valid token reach.
#[derive(Clone, Debug)]
pub struct Authenticated<S> {
    inner: S,
    access: Access,
    name: &'static str,
}

impl<S> Authenticated<S> {
    /// `inner`, called `name` in the log.
    pub fn new(name: &'static str, access: Access, inner: S) -> Self {
        Self { inner, access, name }
    }
}

impl<S: NamedService> NamedService for Authenticated<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<Request<B>> for Authenticated<S>
where
    S: Service<Request<B>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The one that is ready does the work; its copy may not be.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let (access, name) = (self.access.clone(), self.name);
        Box::pin(async move {
            let now = mesh_runtime::clock::now();
            // Apart from the request: its body cannot be shared.
            let (headers, extensions) = (request.headers().clone(), request.extensions().clone());
            match access.caller(name, &headers, &extensions, now).await {
                Ok(caller) => {
                    request.extensions_mut().insert(caller);
                    inner.call(request).await
                }
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}
