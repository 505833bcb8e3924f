//! Services and their indexes: by hostname, by address, by range. Indexes hold names, so that a new version of a service never leaves an old
//! one findable.

use std::{cmp::Reverse, sync::Arc};

use arcstr::ArcStr;

use super::{Diff, Store};
use crate::{NamespacedName, Service, service::ServiceAddress, workload::NetworkAddress};

impl Store {
    pub(super) fn put_service(&mut self, service: Service, diff: &mut Diff) {
        let key = service.key();
        let former = self.current.services.get(&key).cloned();
        if former.as_deref() == Some(&service) {
            return;
        }
        let service = Arc::new(service);
        if let Some(former) = &former {
            self.unindex(former);
        }
        self.current.services.insert(key.clone(), Arc::clone(&service));
        self.index(&service);
        let set = self.current.endpoints.get(&key).map(|set| set.with_service(Some(Arc::clone(&service))));
        if let Some(set) = set {
            self.current.endpoints.insert(key.clone(), Arc::new(set));
        }
        diff.services.insert(key);
    }

    pub(super) fn remove_service(&mut self, key: &NamespacedName, diff: &mut Diff) {
        let Some(former) = self.current.services.remove(key) else { return };
        self.unindex(&former);
        if let Some(set) = self.current.endpoints.get(key).map(|set| set.with_service(None)) {
            if set.is_empty() {
                self.current.endpoints.remove(key);
            } else {
                self.current.endpoints.insert(key.clone(), Arc::new(set));
            }
        }
        diff.services.insert(key.clone());
    }

    fn index(&mut self, service: &Arc<Service>) {
        let key = service.key();
        let host = host_key(service);
        let mut hosts = self.current.hosts.get(&host).map(|h| h.to_vec()).unwrap_or_default();
        hosts.push(Arc::clone(service));
        hosts.sort_by_key(|s| (Reverse(s.canonical), s.namespace.clone()));
        self.current.hosts.insert(host, hosts.into());
        for address in &service.addresses {
            self.edit_address(address, |keys| {
                if !keys.contains(&key) {
                    keys.push(key.clone());
                }
            });
        }
    }

    fn unindex(&mut self, service: &Service) {
        let key = service.key();
        let host = host_key(service);
        let mut hosts = self.current.hosts.get(&host).map(|h| h.to_vec()).unwrap_or_default();
        hosts.retain(|s| s.key() != key);
        if hosts.is_empty() {
            self.current.hosts.remove(&host);
        } else {
            self.current.hosts.insert(host, hosts.into());
        }
        for address in &service.addresses {
            self.edit_address(address, |keys| keys.retain(|k| *k != key));
        }
    }

    /// Changes the services that claim one address or range; the first of them, canonical ones before others, is the one that answers.
    fn edit_address(&mut self, address: &ServiceAddress, edit: impl FnOnce(&mut Vec<NamespacedName>)) {
        if let Some(ip) = address.single() {
            let at = NetworkAddress { network: address.network.clone(), address: ip.to_canonical() };
            let mut keys = self.current.vips.get(&at).map(|keys| keys.to_vec()).unwrap_or_default();
            edit(&mut keys);
            self.order(&mut keys);
            if keys.is_empty() {
                self.current.vips.remove(&at);
            } else {
                self.current.vips.insert(at, keys.into());
            }
            return;
        }
        let mut index = (*self.current.cidrs).clone();
        let ranges = index.entry(address.network.clone()).or_default();
        let mut keys = ranges.remove(&address.cidr.trunc()).unwrap_or_default();
        edit(&mut keys);
        self.order(&mut keys);
        if !keys.is_empty() {
            ranges.insert(address.cidr.trunc(), keys);
        }
        self.current.cidrs = Arc::new(index);
    }

    fn order(&self, keys: &mut [NamespacedName]) {
        keys.sort_by_key(|key| (Reverse(self.current.services.get(key).is_some_and(|s| s.canonical)), key.clone()));
    }
}

/// DNS does not distinguish case.
fn host_key(service: &Service) -> ArcStr {
    if service.hostname.bytes().any(|b| b.is_ascii_uppercase()) {
        service.hostname.to_ascii_lowercase().into()
    } else {
        service.hostname.clone()
    }
}
