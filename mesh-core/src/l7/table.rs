//! What one waypoint, or one listener of a gateway, needs to know about HTTP requests: virtual hosts with their rules, and which of them a request means.

use std::{fmt, sync::Arc, time::Duration};

use arcstr::ArcStr;
use hashbrown::HashMap;

use super::{
    Action, Client, Condition, Cors, Fault, HeaderChanges, HostIndex, HostPattern, Mirror, Request, Retries, Rewrite,
};
use crate::NamespacedName;

/// Hosts with their rules. Immutable; a change makes a new one that may share hosts with the old one.
#[derive(Clone, Default)]
pub struct Table {
    name: ArcStr,
    retries: Retries,
    hosts: Vec<Arc<VirtualHost>>,
    by_host: HostIndex<Vec<Arc<VirtualHost>>>,
    by_service: HashMap<NamespacedName, Vec<Arc<VirtualHost>>>,
}

/// Rules of some hosts, or of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VirtualHost {
    /// For logs.
    pub name: ArcStr,
    /// The service that clients connect to. Its address decides then, and not the host that they ask for.
    pub service: Option<NamespacedName>,
    /// Hosts that are asked for, of connections that are not to a service of the table.
    pub hosts: Vec<HostPattern>,
    /// Ports that clients connect to; none means all.
    pub ports: Vec<u16>,
    /// Namespaces whose clients see it; `None` means all clients, also those that are not known.
    pub clients: Option<Vec<ArcStr>>,
    /// A request that no rule means may mean one of a less specific host: the Gateway API's way. Without it the answer is 404: Istio's way.
    pub falls_through: bool,
    /// In the order in which they are tried.
    pub rules: Vec<Rule>,
}

/// Which requests are meant, and what is done with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Alternatives; without any it means every request.
    pub conditions: Vec<Condition>,
    /// What is done. Rules that were one may share it.
    pub handling: Arc<Handling>,
}

/// What is done with requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handling {
    /// The rule's name, for logs.
    pub name: ArcStr,
    /// The object that it is written in, as `HTTPRoute shop/cart`, for logs.
    pub origin: ArcStr,
    /// Where they go.
    pub action: Action,
    /// Changes of the request.
    pub request: HeaderChanges,
    /// Changes of the response.
    pub response: HeaderChanges,
    /// Another path or host.
    pub rewrite: Rewrite,
    /// Copies, at most [`Handling::MOST_MIRRORS`].
    pub mirrors: Vec<Mirror>,
    /// What goes wrong on purpose.
    pub fault: Option<Fault>,
    /// Who may call from a page of another origin.
    pub cors: Option<Cors>,
    /// For all attempts together; `None` is for ever.
    pub timeout: Option<Duration>,
    /// What is tried again.
    pub retries: Retries,
}

impl Handling {
    /// Copies of one request, of the rule and of the place together.
    pub const MOST_MIRRORS: usize = 32;

    /// Nothing but the action, without a second attempt.
    #[must_use]
    pub fn new(action: Action) -> Self {
        Self {
            name: ArcStr::new(),
            origin: ArcStr::new(),
            action,
            request: HeaderChanges::default(),
            response: HeaderChanges::default(),
            rewrite: Rewrite::default(),
            mirrors: Vec::new(),
            fault: None,
            cors: None,
            timeout: None,
            retries: Retries::none(),
        }
    }
}

impl VirtualHost {
    fn takes(&self, port: u16, client: &Client<'_>) -> bool {
        let sees = |names: &Vec<ArcStr>| client.namespace.is_some_and(|own| names.iter().any(|name| name == own));
        (self.ports.is_empty() || self.ports.contains(&port)) && self.clients.as_ref().is_none_or(sees)
    }
}

impl Table {
    /// A table of these hosts. Of several for one name, those for some clients come before those for all, then those for some ports before those
    /// for all, then they stay in their order.
    #[must_use]
    pub fn new(name: impl Into<ArcStr>, hosts: Vec<Arc<VirtualHost>>) -> Self {
        let mut table = Self { name: name.into(), ..Self::default() };
        let mut sorted: Vec<_> = hosts.iter().collect();
        sorted.sort_by_key(|host| (host.clients.is_none(), host.ports.is_empty()));
        for host in sorted {
            if let Some(service) = &host.service {
                table.by_service.entry(service.clone()).or_default().push(Arc::clone(host));
            }
            for pattern in &host.hosts {
                table.by_host.entry(pattern).push(Arc::clone(host));
            }
        }
        table.hosts = hosts;
        table
    }

    /// Whose table it is.
    #[must_use]
    pub fn name(&self) -> &ArcStr {
        &self.name
    }

    /// The same with other retries of requests that no rule is about.
    #[must_use]
    pub fn retrying(self, retries: Retries) -> Self {
        Self { retries, ..self }
    }

    /// What is tried again of requests that no rule is about: Istio's defaults, unless the mesh has others.
    #[must_use]
    pub fn retries(&self) -> &Retries {
        &self.retries
    }

    /// All hosts, in the order in which they were given.
    #[must_use]
    pub fn hosts(&self) -> &[Arc<VirtualHost>] {
        &self.hosts
    }

    /// Hosts that a request means, the most specific first.
    pub(super) fn find<'t>(
        &'t self,
        request: &Request<'t>,
        client: &Client<'t>,
    ) -> impl Iterator<Item = &'t Arc<VirtualHost>> {
        let (port, client) = (request.port, *client);
        let of_service = request.service.and_then(|service| self.by_service.get(service));
        let host = if request.service.is_none() { request.authority.host() } else { "" };
        let of_host = self.by_host.find(host).take_while(move |_| !host.is_empty());
        of_service.into_iter().chain(of_host).flatten().filter(move |host| host.takes(port, &client))
    }
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.retries, &self.hosts) == (&other.name, &other.retries, &other.hosts)
    }
}

impl Eq for Table {}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Table");
        shown.field("name", &self.name).field("retries", &self.retries).field("hosts", &self.hosts).finish()
    }
}
