//! What requests are held against before they are answered: whose token they have (`authenticate`), and whether policies let them through (`authorize`). The
//! rules are `mesh_core::l7::security`; here is what is done with what they say.

pub mod authenticate;
pub mod authorize;
