//! What a gateway listens for, with what it takes to end TLS there. Made once for each change; terms that stay the same are kept, so that sessions of others
//! are not forgotten with each certificate.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use mesh_core::ArcStr;
use mesh_core::listener::{Certificates, Credential, Encryption, Listener, Listeners, Serves, Tls};

use super::terms::{self, Terms};

/// One moment. Immutable.
#[derive(Clone, Default)]
pub struct Edge {
    /// What is listened for.
    pub listeners: Arc<Listeners>,
    /// What is shown and believed.
    pub certificates: Arc<Certificates>,
    /// By listener.
    terms: HashMap<ArcStr, Kept>,
}

/// Terms, and what they were made of.
#[derive(Clone)]
struct Kept {
    tls: Tls,
    http: bool,
    credentials: Vec<Option<Arc<Credential>>>,
    terms: Result<Arc<Terms>, Arc<str>>,
}

impl Edge {
    /// With other listeners, or other certificates.
    #[must_use]
    pub fn next(&self, listeners: Arc<Listeners>, certificates: Arc<Certificates>) -> Self {
        let mut kept = HashMap::new();
        for listener in listeners.all() {
            let Encryption::Ends(tls) = &listener.encryption else { continue };
            let http = matches!(listener.serves, Serves::Http(_));
            let named = tls.certificates.iter().chain(tls.clients.iter().flat_map(|clients| &clients.roots));
            let credentials: Vec<_> = named.map(|name| certificates.all.get(name).cloned()).collect();
            let same = |old: &&Kept| old.tls == *tls && old.http == http && old.credentials == credentials;
            let made = match self.terms.get(&listener.name).filter(same) {
                Some(old) => old.clone(),
                None => {
                    let terms = terms::make(tls, http, &certificates).map(Arc::new).map_err(Arc::<str>::from);
                    if let Err(why) = &terms {
                        tracing::warn!(listener = %listener.name, why = &**why, "a listener refuses all connections");
                    }
                    Kept { tls: tls.clone(), http, credentials, terms }
                }
            };
            kept.insert(listener.name.clone(), made);
        }
        Self { listeners, certificates, terms: kept }
    }

    /// How TLS ends at a listener, or why it cannot.
    pub fn terms(&self, listener: &Listener) -> Result<&Arc<Terms>, &str> {
        match self.terms.get(&listener.name).map(|kept| &kept.terms) {
            Some(Ok(terms)) => Ok(terms),
            Some(Err(why)) => Err(why),
            None => Err("TLS does not end here"),
        }
    }
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edge").field("listeners", &self.listeners).finish_non_exhaustive()
    }
}
