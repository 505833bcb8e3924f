//! HTTP as hyper speaks it, over whatever carries bytes: what a connection speaks, its bodies, what belongs to one connection only, what hyper is not to see, and
//! how it is served.

pub mod body;
pub mod calm;
pub mod client_body;
pub mod cork;
pub mod count;
pub mod error;
pub mod feed;
pub mod fields;
pub mod grpc;
pub mod guard;
pub mod hop;
pub mod io;
mod kept;
pub mod outgoing;
pub mod paced;
pub mod serve;
pub mod sniff;
pub mod tape;
mod unread;
pub mod until;
pub mod wait;
pub mod web;
pub mod window;

pub use body::{RequestBody, ResponseBody};
pub use client_body::ClientBody;
pub use count::Count;
pub use error::BoxError;
pub use fields::Fields;
pub use until::Until;
pub use web::Web;
