//! The way to endpoints: which one, the connection to it, and the connections that are kept. Each lane has its own; a connection serves one client, because
//! the endpoint's agent is told whose it is.

pub mod choose;
pub mod connection;
pub mod dial;
mod key;
mod pool;

pub use choose::{Endpoint, NoEndpoint};
pub use connection::{Connection, SendError};
pub use dial::{ConnectError, Wire};
pub use pool::Pool;
