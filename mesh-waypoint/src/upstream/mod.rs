//! The way to endpoints: which one, the connection to it, TLS in it where that is asked for, and the connections that are kept. Each lane has its own
//! connections; one serves one client, because the endpoint's agent is told whose it is. What is known of places is all lanes'.

pub mod choose;
pub mod connection;
pub mod dial;
mod dialing;
mod key;
mod life;
mod pool;
mod room;

pub use crate::origination::{Inside, Origin};
pub use choose::Endpoint;
pub use connection::{Connection, SendError};
pub use dial::{ConnectError, Wire};
pub use pool::Pool;
