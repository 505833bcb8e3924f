//! Between wire messages and domain values. Reading is strict: what cannot be understood exactly is refused with a reason, so that nothing is
//! ever enforced in a weaker form than it was written. Writing is total.

mod error;
mod read;
mod write;

pub use error::{ConvertError, PolicyError};
pub use read::{AddressResource, address, policy};
pub use write::{encode_policy, encode_service, encode_workload};
