//! Where HTTP requests go: one form for what VirtualServices, HTTPRoutes and GRPCRoutes say, matched without allocation. The control plane makes
//! tables, waypoints and gateways ask them.
//!
//! ```text
//! objects -> order::{arrange, assemble} -> VirtualHost -> Table          (once per change)
//! path::normalise, Authority::parse -> Request -> pick(Table) -> Decision (per request)
//!                                                    |-- rewrite, redirect, cors, retry: what a decision asks for, worked out
//!                                                    `-- Clusters::find -> balance::Set::pick: which endpoint of the place
//! objects -> Security -> Applied: token::found, authorizer, policy::decide   whether it may be answered at all
//! ```
//!
//! A rule that is not understood is in the table as one that answers 500. It is never left out: a later one would match instead.

pub mod action;
pub mod authorizer;
pub mod balance;
pub mod cluster;
pub mod condition;
pub mod cors;
pub mod headers;
pub mod host;
pub mod labels;
pub mod limit;
pub mod order;
pub mod path;
pub mod pattern;
mod pick;
pub mod policy;
mod query;
pub mod redirect;
pub(crate) mod reference;
pub mod retry;
pub mod rewrite;
pub mod security;
pub mod table;
#[cfg(test)]
mod tests;
pub mod token;

pub use action::{
    Abort, AbortStatus, Action, Backend, ClusterKey, Delay, DirectResponse, Fault, Forward, Mirror, Share, Target,
};
pub use authorizer::Authorizer;
pub use cluster::{Cluster, Clusters};
pub(crate) use condition::has_all;
pub use condition::{Client, Condition, HeaderMatch, Labels, PathKind, PathMatch, QueryMatch, Request, Text};
pub use cors::Cors;
pub use headers::HeaderChanges;
pub use host::{Authority, BadAuthority, HostIndex, HostPattern};
pub use labels::{LabelChange, LabelIndex};
pub use path::PathRefused;
pub use pattern::{Pattern, PatternError, Replacement};
pub use pick::{Decision, Mirrors, Miss, Outcome, pick};
pub use redirect::{Redirect, RedirectPort};
pub use retry::{Retries, RetryOn};
pub use rewrite::{PathChange, Rewrite};
pub use security::{Applied, Comes, Security, Target as SecurityTarget};
pub use table::{Handling, Rule, Table, VirtualHost};
pub use token::Token;
