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
        (
            "10-a.conflist",
            list("1.0.0", std::slice::from_ref(&bridge)),
            list("1.0.0", &[bridge.clone(), istio.clone()]),
        ),
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
        (
            "10-b.conflist",
            list("1.0.0", std::slice::from_ref(&bridge)),
            list("1.0.0", &[bridge.clone(), istio.clone()]),
        ),
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

fn multus(key: &str, value: Value) -> String {
    json!({ "cniVersion": "0.3.1", "name": "multus", "type": "multus", key: value }).to_string()
}

/// Its file.
const MULTUS: &str = "00-m.conf";

/// Lists within lists.
fn nested(levels: usize, innermost: Value) -> Value {
    (0..levels).fold(innermost, |within, _| json!([within]))
}

#[test]
fn which_file_names_us() {
    let cut = |value: Value| value.to_string()[..value.to_string().len() - 2].to_owned();
    let rows = [
        ("10-a.conflist", list("1.0.0", &[json!({ "type": "bridge" })]).to_string(), false),
        ("10-a.conflist", list("1.0.0", &[json!({ "type": "bridge", "remark": TYPE })]).to_string(), false),
        ("10-a.conflist", list("1.0.0", &[json!({ "type": "bridge" }), ours()]).to_string(), true),
        ("10-a.conflist", cut(list("1.0.0", &[json!({ "type": "bridge" }), ours()])), true),
        ("10-a.conflist", cut(list("1.0.0", &[json!({ "type": "bridge" })])), false),
        ("10-a.conflist.bak", list("1.0.0", &[ours()]).to_string(), false),
        // What Multus hands on to: plugins, lists of them, and files.
        ("00-m.conf", multus("delegates", json!([{ "type": "bridge" }])), false),
        ("00-m.conf", multus("delegates", json!([{ "type": "bridge" }, ours()])), true),
        ("00-m.conf", multus("delegates", json!([list("1.0.0", &[json!({ "type": "bridge" }), ours()])])), true),
        ("00-m.conf", multus("clusterNetwork", json!("/host/etc/cni/net.d/00-undermesh.conflist")), true),
        ("00-m.conf", multus("clusterNetwork", json!("/host/etc/cni/net.d/10-a.conflist")), false),
        ("00-m.conf", multus("defaultNetworks", json!(["a", "00-undermesh.conflist"])), true),
        ("00-m.conf", multus("readinessindicatorfile", json!("/etc/cni/net.d/00-undermesh.conflist")), true),
        ("00-m.conf", multus("kubeconfig", json!("/etc/00-undermesh.conflist")), false),
        ("00-m.conf", multus("delegates", nested(7, ours())), true),
        ("00-m.conf", multus("delegates", nested(100, ours())), true),
        ("00-m.conf", multus("delegates", nested(100, json!({ "type": "bridge" }))), false),
    ];
    for (name, text, expected) in rows {
        let node = Folder::from([(name.to_owned(), text.clone())]);
        assert_eq!(names_us(&files(&node)).is_some(), expected, "{name}: {text}");
    }
}

#[test]
fn who_hands_on_to_us_or_to_our_own_file_does_so_to_what_is_left() {
    let bridge = || json!({ "type": "bridge" });
    let theirs = || list("1.0.0", &[bridge()]);
    let rows = [
        (
            "delegates",
            json!([list("1.0.0", &[bridge(), ours()]), { "type": "ptp" }, ours()]),
            json!([theirs(), { "type": "ptp" }]),
        ),
        (
            "delegates",
            json!([{ "type": "x", "delegate": list("1.0.0", &[bridge(), ours()]) }]),
            json!([{ "type": "x", "delegate": theirs() }]),
        ),
        (
            "clusterNetwork",
            json!("/host/etc/cni/net.d/00-undermesh.conflist"),
            json!("/host/etc/cni/net.d/10-a.conflist"),
        ),
        ("readinessindicatorfile", json!("00-undermesh.conflist"), json!("10-a.conflist")),
        ("defaultNetworks", json!(["pods", "/n/00-undermesh.conflist"]), json!(["pods", "/n/10-a.conflist"])),
    ];
    for (key, before, after) in rows {
        let value = |text: String| serde_json::from_str::<Value>(&text).unwrap();
        // As a file for one plugin that stays one, as one that we have made a list of, and as a list.
        let listed = |value: &Value| json!({ "cniVersion": "0.3.1", "name": "multus", "plugins": [{ "type": "multus", key: value }] });
        let mut made = listed(&before);
        made["plugins"].as_array_mut().unwrap().push(ours_from("00-m.conf"));
        let single = |of: &Value| ("00-m.conf", value(multus(key, of.clone())));
        for (multus, left) in [
            (single(&before), single(&after)),
            (("00-m.conflist", made), single(&after)),
            (("00-m.conflist", listed(&before)), ("00-m.conflist", listed(&after))),
        ] {
            let own = (OWN, list("1.0.0", &[bridge(), copy_of("10-a.conflist")]));
            let mut node = folder(&[multus, own, ("10-a.conflist", list("1.0.0", &[bridge(), ours()]))]);
            assert!(names_us(&files(&node)).is_some());
            assert_eq!(remove(&mut node, false), None);
            assert_eq!(values(&node), values(&folder(&[left, ("10-a.conflist", theirs())])), "{key}");
            assert_eq!((names_us(&files(&node)), uninstall(&files(&node), false)), (None, Removal::default()));
        }
    }
    // What cannot be read nobody is led to.
    let mut node = folder(&[
        ("00-m.conf", serde_json::from_str(&multus("clusterNetwork", json!("/n/00-undermesh.conflist"))).unwrap()),
        (OWN, list("1.0.0", &[bridge(), copy_of("10-a.conflist")])),
        ("10-a.conflist", json!([])),
    ]);
    let before = node.clone();
    assert!(remove(&mut node, true).is_some() && node == before, "{node:?}");
    // Who hands on is no network himself, and what would be empty is for people to mend.
    for name in ["00-m.conf", "10-m.conf"] {
        let mut node = folder(&[
            (name, serde_json::from_str(&multus("clusterNetwork", json!("/n/00-undermesh.conflist"))).unwrap()),
            (OWN, list("1.0.0", &[bridge(), copy_of("10-a.conflist")])),
        ]);
        assert!(remove(&mut node, false).is_some());
        assert_eq!((remove(&mut node, true), names_us(&files(&node))), (None, Some(name)));
    }
    let alone = folder(&[("00-m.conf", serde_json::from_str(&multus("delegates", json!([ours()]))).unwrap())]);
    assert_eq!((uninstall(&files(&alone), true), names_us(&files(&alone))), (Removal::default(), Some("00-m.conf")));
}

#[test]
fn who_hands_on_to_our_own_file_is_led_to_what_is_there_in_the_end() {
    let (bridge, ptp) = (json!({ "type": "bridge" }), json!({ "type": "ptp" }));
    let single = |plugin: &str| json!({ "cniVersion": "1.0.0", "name": "pods", "type": plugin });
    let to = |file: &str| {
        let path = json!(format!("/host/etc/cni/net.d/{file}"));
        (MULTUS, serde_json::from_str::<Value>(&multus("clusterNetwork", path)).unwrap())
    };
    let own = |behind: &[Value]| (OWN, list("1.0.0", &[&[bridge.clone(), copy_of("10-a.conflist")], behind].concat()));
    let plugins = |plugins: &[Value]| json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": plugins });
    let made = ("10-a.conflist", plugins(&[bridge.clone(), ours_from("10-a.conf")]));
    let istio = json!({ "type": "istio-cni" });
    let later = ("20-b.conflist", list("1.0.0", std::slice::from_ref(&ptp)));
    let rows = [
        // A list that becomes the file again that it was made from.
        (vec![own(&[]), made.clone()], vec![to("10-a.conf"), ("10-a.conf", single("bridge"))]),
        // That has been made anew meanwhile, and the list goes.
        (
            vec![own(&[]), made.clone(), ("10-a.conf", single("ptp"))],
            vec![to("10-a.conf"), ("10-a.conf", single("ptp"))],
        ),
        // It stays a list, for there is somebody else in it.
        (
            vec![own(std::slice::from_ref(&istio)), made],
            vec![to("10-a.conflist"), ("10-a.conflist", plugins(&[bridge.clone(), istio]))],
        ),
        // What is nothing but us goes: there is another network, or none.
        (vec![own(&[]), ("10-a.conflist", list("1.0.0", &[ours()])), later.clone()], vec![to("20-b.conflist"), later]),
        (vec![own(&[]), ("10-a.conflist", list("1.0.0", &[ours()]))], vec![to(OWN)]),
    ];
    for (before, after) in rows {
        let mut node = folder(&[vec![to(OWN)], before].concat());
        for change in uninstall(&files(&node), true).changes {
            carry_out(&mut node, change);
            // At every moment: unless it is nowhere in the end either.
            let named =
                values(&node)[MULTUS]["clusterNetwork"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
            assert!(named == OWN && after.len() == 1 || node.contains_key(&named), "{named}: {node:?}");
        }
        assert_eq!(values(&node), values(&folder(&after)));
        assert_eq!(names_us(&files(&node)), (after.len() == 1).then_some(MULTUS));
    }
}
