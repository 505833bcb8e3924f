//! What requests are held against before they are answered: whose token they have (`authenticate`), whether whoever is to be asked lets them through (`custom`),
//! whether policies do (`authorize`), and whether there are too many of them (`limit`). The rules are `mesh_core::l7::security`; here is what is done with what they say.

pub mod authenticate;
pub mod authorize;
pub mod custom;
pub mod limit;
