//! How a request says where it goes, in the protocol of its connection.

use http::header::{HOST, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Uri, Version};

use super::RequestBody;

/// Writes where a request goes, as its protocol wants it.
pub fn address(request: &mut Request<RequestBody>, target: PathAndQuery, host: HeaderValue, http2: bool) -> Option<()> {
    if http2 {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(host.as_bytes().try_into().ok()?);
        parts.path_and_query = Some(target);
        *request.uri_mut() = Uri::from_parts(parts).ok()?;
        *request.version_mut() = Version::HTTP_2;
    } else {
        *request.uri_mut() = Uri::from(target);
        *request.version_mut() = Version::HTTP_11;
        request.headers_mut().insert(HOST, host);
    }
    Some(())
}
