//! Fuzz targets of this crate: bytes in, no panic, and what came out holds together.

use mesh_core::Change;

use crate::index::{self, Settings};
use crate::manifest::file;
use crate::resource::catalog::{Catalog, Scan};
use crate::world::{Kind, World};

/// A file of manifests, from bytes to what is sent. Whatever is read must be readable by a client, and every policy that a workload lists must
/// be there.
pub fn manifests(data: &[u8]) {
    let read = file::read("fuzz.yaml", data);
    for diagnosis in &read.diagnoses {
        assert!(!diagnosis.to_string().is_empty());
    }
    let scan = Scan { found: read.found.into_iter().map(|(f, _)| f).collect(), ..Scan::default() };
    let (objects, _) = Catalog::default().apply(&scan);
    let view = index::build(&objects, &Settings::default());
    for workload in view.workloads.values() {
        for policy in workload.authorization_policies.iter() {
            assert!(view.policies.contains_key(policy), "{} lists {policy}, which is not there", workload.uid);
        }
    }
    let world = World::default().next(&view);
    let mut changes = Vec::new();
    for (name, resource) in world.table(Kind::Address).iter() {
        match mesh_proto::convert::address(&resource.bytes) {
            Ok(mesh_proto::convert::AddressResource::Workload(w)) => changes.push(Change::Workload(w)),
            Ok(mesh_proto::convert::AddressResource::Service(s)) => changes.push(Change::Service(s)),
            Err(error) => panic!("{name} cannot be read by a client: {error}"),
        }
    }
    for (name, resource) in world.table(Kind::Authorization).iter() {
        match mesh_proto::convert::policy(&resource.bytes) {
            Ok(policy) => changes.push(Change::Policy(policy)),
            Err(error) => panic!("{name} cannot be read by a client: {}", error.source),
        }
    }
    mesh_core::Store::new().apply(changes);
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_manifests_holds() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/manifests");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).expect("the corpus is part of the repository") {
            super::manifests(&std::fs::read(entry.expect("an entry").path()).expect("a file"));
            count += 1;
        }
        assert!(count >= 10, "{count} files");
    }
}
