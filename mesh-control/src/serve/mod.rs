//! Serves the view to agents: the world is what there is to send, a session is what one client has and still needs, the server moves bytes.

pub mod convergence;
pub mod request;
pub mod response;
pub mod server;
pub mod session;
pub mod throttle;
pub mod tls;
pub mod versions;

#[cfg(test)]
mod large;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod waypoints;
