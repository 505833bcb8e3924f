//! What a waypoint holds requests against before it answers them: policies, and whose tokens are believed. Made by the control plane for each waypoint; what of
//! it is about the requests of one connection is picked out once ([`Security::applied`]).

use std::sync::Arc;

use arcstr::ArcStr;
use http::HeaderName;

use super::authorizer::Authorizer;
use super::limit::RateLimit;
use super::path::Spelling;
use super::policy::{Policies, Policy};
use super::token::JwtRule;
use crate::NamespacedName;

/// Which requests something is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// All that the waypoint gets.
    All,
    /// Those of its listeners at the edge, and not what it does as a waypoint.
    Edge,
    /// Those to these services, or to a workload of one of them.
    Services(Vec<NamespacedName>),
}

impl Target {
    /// Whether requests that come in there are meant.
    pub fn is_about<'a>(&self, comes: Comes<impl Iterator<Item = &'a NamespacedName>>) -> bool {
        let Comes::For(mut services) = comes else { return matches!(self, Self::All | Self::Edge) };
        match self {
            Self::All => true,
            Self::Edge => false,
            Self::Services(own) => services.any(|service| own.contains(service)),
        }
    }
}

/// How requests come in.
#[derive(Clone, Copy, Debug)]
pub enum Comes<S> {
    /// Through the mesh: for a service, or for a workload of these.
    For(S),
    /// At a listener of a gateway: what they are for follows from them.
    AtEdge,
}

/// Whose tokens are believed, of one RequestAuthentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authentication {
    /// `namespace/name`
    pub name: NamespacedName,
    /// Which requests it is about.
    pub target: Target,
    /// Issuers.
    pub rules: Vec<Arc<JwtRule>>,
}

/// All that one waypoint is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// The waypoint's gateway.
    pub name: ArcStr,
    /// How paths are made one, if the mesh settings say so.
    pub spelling: Option<Spelling>,
    /// Policies.
    pub policies: Vec<Arc<Policy>>,
    /// Whose tokens are believed.
    pub authentications: Vec<Arc<Authentication>>,
    /// Whom policies ask. Of one that they name and that is not here nobody knows where it is: what they match is denied.
    pub authorizers: Vec<Arc<Authorizer>>,
    /// How many requests there may be.
    pub limits: Vec<Arc<RateLimit>>,
    /// Endpoints are told in `x-forwarded-client-cert` who the client has proved to be.
    pub names_clients: bool,
}

/// What is about the requests of one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Policies.
    pub policies: Policies,
    /// Whose tokens are believed.
    pub rules: Vec<Arc<JwtRule>>,
    /// Headers that only we may write: what was proved is sent on in them.
    pub outputs: Vec<HeaderName>,
}

impl Security {
    /// The authorizer of that name.
    #[must_use]
    pub fn authorizer(&self, name: &str) -> Option<&Arc<Authorizer>> {
        self.authorizers.iter().find(|one| one.name == name)
    }

    /// What is about requests that come in so.
    #[must_use]
    pub fn applied<'a>(&self, comes: Comes<impl Iterator<Item = &'a NamespacedName> + Clone>) -> Applied {
        let mut applied = Applied::default();
        for policy in self.policies.iter().filter(|policy| policy.target.is_about(comes.clone())) {
            applied.policies.add(policy);
        }
        let about = self.authentications.iter().filter(|one| one.target.is_about(comes.clone()));
        applied.rules = about.flat_map(|one| one.rules.iter().cloned()).collect();
        for name in applied.rules.iter().flat_map(|rule| rule.outputs()) {
            if !applied.outputs.contains(name) {
                applied.outputs.push(name.clone());
            }
        }
        applied
    }
}
