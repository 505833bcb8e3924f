//! Objects are checked before they are kept: the API server asks this process about each policy and each edit of the mesh settings. The readers are those
//! of the sources, so that what is let in is what is understood.
//!
//! ```text
//! API server --AdmissionReview--> server (TLS) -> review (pure) -> resource::read
//! registration: caBundle of our ValidatingWebhookConfiguration, `Ignore` until the API server has been seen to ask us, then `Fail`
//! ```

pub mod registration;
pub mod review;
pub mod server;
