//! What goes wrong with bodies, in words that all that read them share.

use std::task::Poll;

use bytes::Bytes;
use hyper::body::Frame;

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What comes next of a body.
pub type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

/// A body did not come at the rate that it has to come at.
#[derive(Debug, thiserror::Error)]
#[error("the body of the request did not go on in time")]
pub struct TooSlow;
