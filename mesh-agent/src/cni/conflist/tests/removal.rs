//! What is left of others when we go: who counted on our own file, and who has it in what he hands on.

use super::*;

/// Ours as it stands in our own file.
fn copy_of(source: &str) -> Value {
    let mut entry = ours();
    entry["copyOf"] = source.into();
    entry
}

/// Removes us; the folder has a configuration at every moment.
fn remove(node: &mut Folder, bereft: bool) -> Option<String> {
    let Removal { changes, stays } = uninstall(&files(node), bereft);
    changes.into_iter().for_each(|change| carry_out(node, change));
    stays
}

#[test]
fn who_has_appended_himself_to_our_own_file_is_in_the_chain_that_is_left() {
    let (bridge, istio) = (json!({ "type": "bridge" }), json!({ "type": "istio-cni", "log_level": "info" }));
    let own = |plugins: &[Value]| (OWN, list("1.0.0", plugins));
    let rows = [
        // What ours is a copy of, with our entry in it or without.
        ("10-a.conflist", list("1.0.0", &[bridge.clone(), ours()]), list("1.0.0", &[bridge.clone(), istio.clone()])),
        ("10-a.conflist", list("1.0.0", &[bridge.clone()]), list("1.0.0", &[bridge.clone(), istio.clone()])),
        // He stands there already.
        (
            "10-a.conflist",
            list("1.0.0", &[bridge.clone(), istio.clone(), ours()]),
            list("1.0.0", &[bridge.clone(), istio.clone()]),
        ),
        // A file for one plugin stays the list that it has become: else there would be no room for him.
        (
            "10-a.conflist",
            list("1.0.0", &[bridge.clone(), ours_from("10-a.conf")]),
            list("1.0.0", &[bridge.clone(), istio.clone()]),
        ),
        // Under another name than ours says, which is what runtimes take then.
        ("10-b.conflist", list("1.0.0", &[bridge.clone()]), list("1.0.0", &[bridge.clone(), istio.clone()])),
    ];
    for (name, theirs, after) in rows {
        let entries = [bridge.clone(), copy_of("10-a.conflist"), istio.clone()];
        let last = ("90-z.conflist", list("1.0.0", &[json!({ "type": "ptp" })]));
        let mut node = folder(&[own(&entries), (name, theirs.clone()), last.clone()]);
        assert_eq!(remove(&mut node, false), None);
        assert_eq!(values(&node), values(&folder(&[(name, after), last])), "{theirs}");
    }
}

#[test]
fn our_own_file_stays_while_it_is_all_that_gives_pods_a_network() {
    let own = list("1.0.0", &[json!({ "type": "bridge" }), copy_of("10-a.conflist")]).to_string();
    let with = |text: Option<&str>| -> Folder {
        let theirs = text.map(|text| ("10-a.conflist".to_owned(), text.to_owned()));
        [(OWN.to_owned(), own.clone())].into_iter().chain(theirs).collect()
    };
    // What it is a copy of is being written, or broken for good.
    let mut node = with(Some("{\"cniVersion\":"));
    for bereft in [false, true] {
        let stays = remove(&mut node, bereft).unwrap();
        assert!(stays.contains("cannot be read: 10-a.conflist: not JSON"), "{stays}");
        assert_eq!(node.len(), 2);
    }
    // A later one is none that runtimes would come to.
    node.insert("20-b.conflist".to_owned(), list("1.0.0", &[json!({ "type": "ptp" })]).to_string());
    assert!(remove(&mut node, true).is_some());
    node.insert("10-a.conflist".to_owned(), list("1.0.0", &[json!({ "type": "bridge" })]).to_string());
    assert_eq!((remove(&mut node, false), node.contains_key(OWN)), (None, false));

    // It is gone: for a moment, as when somebody writes it anew, and for good.
    let mut node = with(None);
    assert!(remove(&mut node, false).unwrap().contains("is gone") && node.contains_key(OWN));
    let gone = uninstall(&files(&node), true);
    let change = Change { remove: Some(OWN.to_owned()), ..Change::default() };
    assert_eq!(gone, Removal { changes: vec![change], stays: None });
}
