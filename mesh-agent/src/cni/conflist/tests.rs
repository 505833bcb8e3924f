//! Edits as tables: the folder before and after.

mod removal;

use std::collections::BTreeMap;

use super::*;

type Folder = BTreeMap<String, String>;

fn ours() -> Value {
    entry("/run/undermesh/cni.sock", "/var/lib/undermesh/scope.json", &["kube-system"])
}

fn ours_from(name: &str) -> Value {
    let mut entry = ours();
    entry[MADE_FROM] = name.into();
    entry
}

fn folder(files: &[(&str, Value)]) -> Folder {
    files.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect()
}

fn files(folder: &Folder) -> Vec<ConfFile> {
    // In the worst order.
    let file = |(name, text): (&String, &String)| ConfFile { name: name.clone(), content: Ok(text.clone().into()) };
    folder.iter().rev().map(file).collect()
}

/// Carries a change out; the folder has a configuration at every moment.
fn carry_out(folder: &mut Folder, change: Change) {
    if let Some((name, bytes)) = change.write {
        folder.insert(name, String::from_utf8(bytes).unwrap());
    }
    assert!(!folder.is_empty());
    if let Some(name) = change.remove {
        folder.remove(&name);
    }
    assert!(!folder.is_empty());
}

/// The folder as values, to compare.
fn values(folder: &Folder) -> BTreeMap<String, Value> {
    let read = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| json!({ "text": text }));
    folder.iter().map(|(name, text)| (name.clone(), read(text))).collect()
}

fn list(version: &str, plugins: &[Value]) -> Value {
    json!({ "cniVersion": version, "name": "pods", "disableCheck": true, "plugins": plugins })
}

#[test]
fn the_entry_goes_to_the_end_of_the_first_chain_and_is_found_there() {
    let (bridge, portmap) = (json!({ "type": "bridge", "mtu": 1500 }), json!({ "type": "portmap" }));
    let stale = json!({ "type": TYPE, "socket": "/old" });
    let rows: Vec<(&str, Folder, Folder)> = vec![
        (
            "a list",
            folder(&[("10-a.conflist", list("1.0.0", &[bridge.clone(), portmap.clone()]))]),
            folder(&[("10-a.conflist", list("1.0.0", &[bridge.clone(), portmap.clone(), ours()]))]),
        ),
        (
            "only the first of two",
            folder(&[
                ("10-a.conflist", list("0.3.1", std::slice::from_ref(&bridge))),
                ("20-b.conflist", list("0.3.1", std::slice::from_ref(&portmap))),
            ]),
            folder(&[
                ("10-a.conflist", list("0.3.1", &[bridge.clone(), ours()])),
                ("20-b.conflist", list("0.3.1", std::slice::from_ref(&portmap))),
            ]),
        ),
        (
            "an entry of an older agent, and one too many",
            folder(&[(
                "10-a.conflist",
                list("1.0.0", &[bridge.clone(), stale.clone(), portmap.clone(), stale.clone()]),
            )]),
            folder(&[("10-a.conflist", list("1.0.0", &[bridge.clone(), portmap.clone(), ours()]))]),
        ),
        (
            "an entry in front of all others",
            folder(&[("10-a.conflist", list("1.0.0", &[ours(), bridge.clone()]))]),
            folder(&[("10-a.conflist", list("1.0.0", &[bridge.clone(), ours()]))]),
        ),
        (
            "a file for one plugin",
            folder(&[("10-a.conf", json!({ "cniVersion": "0.4.0", "name": "pods", "type": "bridge", "mtu": 1500 }))]),
            folder(&[(
                "10-a.conflist",
                json!({ "cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ours_from("10-a.conf")] }),
            )]),
        ),
        (
            "one that is older than chains",
            folder(&[("x.json", json!({ "name": "pods", "type": "bridge", "mtu": 1500 }))]),
            folder(&[(
                "x.conflist",
                json!({ "cniVersion": "0.3.1", "name": "pods", "plugins": [bridge, ours_from("x.json")] }),
            )]),
        ),
        (
            "what is no configuration is passed over",
            [
                ("00-x.conflist".to_owned(), "{".to_owned()),
                ("01-x.conflist".to_owned(), r#"{"plugins":[]}"#.to_owned()),
                ("02-x.conf".to_owned(), "[]".to_owned()),
                ("03-x.conflist.bak".to_owned(), list("1.0.0", std::slice::from_ref(&portmap)).to_string()),
                (".04-x.conflist".to_owned(), list("1.0.0", std::slice::from_ref(&portmap)).to_string()),
                ("10-a.conflist".to_owned(), list("1.1.0", std::slice::from_ref(&bridge)).to_string()),
            ]
            .into(),
            [
                ("00-x.conflist".to_owned(), "{".to_owned()),
                ("01-x.conflist".to_owned(), r#"{"plugins":[]}"#.to_owned()),
                ("02-x.conf".to_owned(), "[]".to_owned()),
                ("03-x.conflist.bak".to_owned(), list("1.0.0", std::slice::from_ref(&portmap)).to_string()),
                (".04-x.conflist".to_owned(), list("1.0.0", std::slice::from_ref(&portmap)).to_string()),
                ("10-a.conflist".to_owned(), list("1.1.0", &[bridge.clone(), ours()]).to_string()),
            ]
            .into(),
        ),
    ];
    for (what, mut before, after) in rows {
        let Edit::Change(change) = install(&files(&before), &ours()) else { panic!("{what}: no change") };
        carry_out(&mut before, change);
        assert_eq!(values(&before), values(&after), "{what}");
        assert!(matches!(install(&files(&before), &ours()), Edit::Chained(_)), "{what}: it is done once");
    }
}

#[test]
fn somebody_who_appends_himself_behind_us_is_not_fought() {
    let others = json!({ "type": "other-mesh" });
    let chain = folder(&[("10-a.conflist", list("1.0.0", &[json!({ "type": "bridge" }), ours(), others]))]);
    assert_eq!(install(&files(&chain), &ours()), Edit::Chained("10-a.conflist".to_owned()));
}

#[test]
fn hardening_f46_another_writer_takes_us_out_and_we_are_put_back() {
    let plain = || list("1.0.0", &[json!({ "type": "bridge" })]);
    let mut node = folder(&[("10-a.conflist", plain())]);
    for _ in 0..2 {
        let Edit::Change(change) = install(&files(&node), &ours()) else { panic!("no change") };
        carry_out(&mut node, change);
        assert!(node["10-a.conflist"].contains(TYPE));
        node.insert("10-a.conflist".to_owned(), plain().to_string());
    }
    // One that writes files for one plugin makes it anew beside the list that we made.
    let conf = || json!({ "cniVersion": "0.4.0", "name": "pods", "type": "ptp" }).to_string();
    let mut node: Folder = [("10-a.conf".to_owned(), conf())].into();
    for _ in 0..2 {
        let Edit::Change(change) = install(&files(&node), &ours()) else { panic!("no change") };
        carry_out(&mut node, change);
        assert_eq!(node.keys().collect::<Vec<_>>(), ["10-a.conflist"]);
        node.insert("10-a.conf".to_owned(), conf());
    }
}

#[test]
fn hardening_b137_a_chain_that_cannot_be_edited_is_left_as_it_is() {
    let unreadable = |why: &str| ConfFile { name: "10-a.conflist".to_owned(), content: Err(why.to_owned()) };
    let text = |name: &str, text: &str| ConfFile { name: name.to_owned(), content: Ok(text.into()) };
    let rows = [
        (vec![], "no network configuration yet"),
        (vec![unreadable("longer than 1048576 bytes")], "10-a.conflist: longer than"),
        (vec![text("10-a.conflist", "\u{0}")], "10-a.conflist: not JSON"),
        (vec![text("10-a.conflist", "[]")], "not an object"),
        (vec![text("10-a.conflist", r#"{"cniVersion":"1.0.0"}"#)], "no plugins"),
        (vec![text("10-a.conf", r#"{"name":"pods"}"#)], "names no plugin"),
        (vec![text("10-a.conflist", &list("2.0.0", &[json!({ "type": "x" })]).to_string())], "newer than the plugin's"),
        (vec![text("README", "{}")], "no network configuration yet"),
    ];
    for (files, expected) in rows {
        match install(&files, &ours()) {
            Edit::Impossible(why) => assert!(why.contains(expected), "{files:?}: {why}"),
            other => panic!("{files:?}: {other:?}"),
        }
        let taken_out = uninstall(&files, true).changes;
        assert!(taken_out.iter().all(|change| change.remove.is_none()), "{taken_out:?}");
    }
}

#[test]
fn a_file_that_is_ours_alone_makes_no_network_and_goes_at_the_end() {
    for (name, value) in [("10-a.conflist", list("1.0.0", &[ours()])), ("10-a.conf", ours())] {
        let node = folder(&[(name, value)]);
        assert!(matches!(install(&files(&node), &ours()), Edit::Impossible(_)), "{name}");
        assert_eq!(names_us(&files(&node)), Some(name));
        assert_eq!(
            uninstall(&files(&node), false).changes,
            [Change { remove: Some(name.to_owned()), ..Change::default() }]
        );
    }
}

#[test]
fn what_others_put_beside_our_list_is_not_touched() {
    let conf = |mtu: u32| json!({ "cniVersion": "0.4.0", "name": "pods", "type": "ptp", "mtu": mtu });
    let theirs = || list("0.4.0", &[json!({ "type": "bridge" })]);
    // A list of theirs that has the name which ours would get.
    let before = folder(&[("10-a.conf", conf(1)), ("10-a.conflist", theirs())]);
    let mut node = before.clone();
    let Edit::Change(change) = install(&files(&node), &ours()) else { panic!("no change") };
    carry_out(&mut node, change);
    assert_eq!(node.keys().collect::<Vec<_>>(), ["10-a.conf.conflist", "10-a.conflist"]);
    assert_eq!(values(&node)["10-a.conflist"], theirs());
    assert_eq!(install(&files(&node), &ours()), Edit::Chained("10-a.conf.conflist".to_owned()));
    uninstall(&files(&node), false).changes.into_iter().for_each(|change| carry_out(&mut node, change));
    assert_eq!(values(&node), values(&before));
    let both = folder(&[("10-a.conf", conf(1)), ("10-a.conflist", theirs()), ("10-a.conf.conflist", theirs())]);
    assert!(matches!(install(&files(&both), &ours()), Edit::Impossible(why) if why.contains("of others")));

    // The file that ours was made from, made anew while nobody of us looked.
    let mut node = folder(&[("10-a.conf", conf(1))]);
    let Edit::Change(change) = install(&files(&node), &ours()) else { panic!("no change") };
    carry_out(&mut node, change);
    node.insert("10-a.conf".to_owned(), conf(2).to_string());
    uninstall(&files(&node), false).changes.into_iter().for_each(|change| carry_out(&mut node, change));
    assert_eq!(values(&node), values(&folder(&[("10-a.conf", conf(2))])));
}

#[test]
fn what_was_installed_is_taken_out_again() {
    let rows = [
        folder(&[
            ("10-a.conflist", list("1.0.0", &[json!({ "type": "bridge" }), json!({ "type": "portmap" })])),
            ("20-b.conflist", list("1.0.0", &[json!({ "type": "ptp" })])),
        ]),
        folder(&[("10-a.conf", json!({ "cniVersion": "0.4.0", "name": "pods", "type": "bridge", "mtu": 1500 }))]),
    ];
    for before in rows {
        let mut node = before.clone();
        let Edit::Change(change) = install(&files(&node), &ours()) else { panic!("no change") };
        carry_out(&mut node, change);
        assert_ne!(values(&node), values(&before));
        for change in uninstall(&files(&node), false).changes {
            carry_out(&mut node, change);
        }
        assert_eq!(values(&node), values(&before));
        assert_eq!(uninstall(&files(&node), false), Removal::default());
    }
    // An entry that says it came from elsewhere leads nowhere.
    let mut entry = ours();
    entry[MADE_FROM] = "../../etc/shadow.conf".into();
    let node = folder(&[("10-a.conflist", list("1.0.0", &[json!({ "type": "bridge" }), entry]))]);
    let changes = uninstall(&files(&node), false).changes;
    assert!(matches!(&changes[..], [Change { write: Some((name, _)), remove: None, .. }] if name == "10-a.conflist"));
}

const OWN: &str = "00-undermesh.conflist";

/// Carries out all that is planned with our own file, and tells what there is then.
fn follow(node: &mut Folder, bereft: bool) -> (Plan, bool) {
    let first = plan(&files(node), &ours(), Own::On { bereft, rests: false });
    let changed = !first.changes.is_empty();
    for change in first.changes.clone() {
        if let Some((name, bytes)) = change.write {
            node.insert(name, String::from_utf8(bytes).unwrap());
        }
        change.remove.into_iter().for_each(|name| drop(node.remove(&name)));
    }
    (first, changed)
}

fn plugins(node: &Folder, name: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(&node[name]).unwrap();
    let plugins = list["plugins"].as_array().unwrap().iter();
    plugins.map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn hardening_f45_our_own_file_is_a_copy_of_the_first_of_the_others() {
    let bridge = || json!({ "type": "bridge", "mtu": 1500 });
    let appended = || list("1.0.0", &[bridge(), ours()]);
    let first = |names: &[(&str, Value)]| {
        let mut node = folder(names);
        let (first, _) = follow(&mut node, false);
        // A file for one plugin becomes a list, of which the next look makes the copy.
        follow(&mut node, false);
        assert!(!follow(&mut node, false).1, "it is done once: {node:?}");
        (node, first.chain)
    };
    let (node, chain) = first(&[("10-a.conflist", list("1.0.0", &[bridge()]))]);
    assert_eq!(chain.as_deref(), Ok(OWN));
    let mut entry = ours();
    entry["copyOf"] = "10-a.conflist".into();
    let expected = folder(&[("10-a.conflist", appended()), (OWN, list("1.0.0", &[bridge(), entry]))]);
    assert_eq!(values(&node), values(&expected), "name and all: addresses are kept under it");

    // From the form of earlier agents; from a file for one plugin; of several.
    assert_eq!(plugins(&first(&[("10-a.conflist", appended())]).0, OWN), ["bridge", TYPE]);
    let single = json!({ "cniVersion": "0.4.0", "name": "pods", "type": "ptp" });
    assert_eq!(plugins(&first(&[("10-a.conf", single)]).0, OWN), ["ptp", TYPE]);
    let (node, _) =
        first(&[("10-a.conflist", appended()), ("20-b.conflist", list("1.0.0", &[json!({ "type": "ptp" })]))]);
    assert_eq!(
        (plugins(&node, OWN), plugins(&node, "20-b.conflist")),
        (vec!["bridge".into(), TYPE.into()], vec!["ptp".into()])
    );

    // Of no use behind an earlier one, and never of one that hands on.
    for name in ["00-multus.conflist", "00-aaa.conflist"] {
        let (node, chain) = first(&[("10-a.conflist", appended()), (name, list("1.0.0", &[bridge()]))]);
        assert_eq!((chain.as_deref(), node.contains_key(OWN)), (Ok(name), false));
    }
    let (node, chain) = first(&[("10-m.conflist", list("1.0.0", &[json!({ "type": "multus-shim" })]))]);
    assert_eq!((chain.as_deref(), node.contains_key(OWN)), (Ok("10-m.conflist"), false));
}

#[test]
fn hardening_f46_whoever_writes_what_our_own_file_is_followed_and_nobody_is_uncaptured_meanwhile() {
    let write = |node: &mut Folder, text: &str| drop(node.insert("10-a.conflist".to_owned(), text.to_owned()));
    let plain = |name: &str| list("1.0.0", &[json!({ "type": name })]).to_string();
    let mut node: Folder = [("10-a.conflist".to_owned(), plain("bridge"))].into();
    follow(&mut node, false);
    // Anew, without us.
    write(&mut node, &plain("ptp"));
    assert_eq!(plugins(&node, OWN), ["bridge", TYPE]);
    assert_eq!((follow(&mut node, false).1, plugins(&node, OWN)), (true, vec!["ptp".to_owned(), TYPE.to_owned()]));
    // Half written, endless, of a future version, for nobody, and gone: what there was stays, and people hear of it.
    for text in ["{\"cniVersion\":", "", &plain("x").replace("1.0.0", "9.0.0"), &list("1.0.0", &[ours()]).to_string()] {
        write(&mut node, text);
        let before = node[OWN].clone();
        let (plan, _) = follow(&mut node, true);
        assert_eq!((plan.chain.as_deref(), &node[OWN]), (Ok(OWN), &before), "{text}");
        assert!(plan.remark.unwrap().contains("10-a.conflist"), "{text}");
    }
    node.remove("10-a.conflist");
    let (plan, changed) = follow(&mut node, false);
    assert_eq!((plan.chain.as_deref(), plan.orphaned, changed), (Ok(OWN), true, false));
    // Back again; and for good.
    write(&mut node, &plain("bridge"));
    assert!(!follow(&mut node, true).0.orphaned && plugins(&node, OWN) == ["bridge", TYPE]);
    node.remove("10-a.conflist");
    let (plan, _) = follow(&mut node, true);
    assert!(plan.chain.is_err() && node.is_empty(), "{node:?}");
}

#[test]
fn hardening_f46_our_own_file_goes_with_its_original_whatever_else_no_copy_can_be_made_of() {
    let original = list("1.0.0", &[json!({ "type": "bridge" })]);
    for other in [
        "{".to_owned(),
        list("1.0.0", &[json!({ "type": "multus-shim" })]).to_string(),
        list("9.0.0", &[json!({ "type": "ptp" })]).to_string(),
    ] {
        for name in ["05-b.conflist", "20-b.conflist"] {
            let mut node = folder(&[("10-a.conflist", original.clone())]);
            follow(&mut node, false);
            node.insert(name.to_owned(), other.clone());
            let is_orphaned = |node: &mut Folder, bereft: bool| follow(node, bereft).0.orphaned;
            assert!(!is_orphaned(&mut node, true) && node.contains_key(OWN), "{name}: {other}");
            node.remove("10-a.conflist");
            assert!(is_orphaned(&mut node, false) && node.contains_key(OWN), "{name}: {other}");
            assert!(follow(&mut node, true).0.changes.len() == 1 && !node.contains_key(OWN), "{name}: {other}");
        }
    }
}

#[test]
fn hardening_f46_another_that_appends_himself_to_our_own_file_stays_there() {
    let other = json!({ "type": "istio-cni" });
    let mut node = folder(&[("10-a.conflist", list("1.0.0", &[json!({ "type": "bridge" })]))]);
    follow(&mut node, false);
    let mut own: Value = serde_json::from_str(&node[OWN]).unwrap();
    own["plugins"].as_array_mut().unwrap().push(other.clone());
    node.insert(OWN.to_owned(), own.to_string());
    assert!(!follow(&mut node, false).1, "not fought over");
    node.insert("10-a.conflist".to_owned(), list("1.0.0", &[json!({ "type": "ptp" })]).to_string());
    follow(&mut node, false);
    assert_eq!(plugins(&node, OWN), ["ptp", TYPE, "istio-cni"]);
    // One that has come into what ours is a copy of is not there twice.
    node.insert("10-a.conflist".to_owned(), list("1.0.0", &[json!({ "type": "ptp" }), other]).to_string());
    follow(&mut node, false);
    assert_eq!(plugins(&node, OWN), ["ptp", "istio-cni", TYPE]);
    assert!(!follow(&mut node, false).1);
    // At the end only ours goes.
    uninstall(&files(&node), false).changes.into_iter().for_each(|change| carry_out(&mut node, change));
    assert_eq!((node.len(), plugins(&node, "10-a.conflist")), (1, vec!["ptp".to_owned(), "istio-cni".to_owned()]));
}

#[test]
fn hardening_b137_a_file_that_cannot_be_read_and_comes_first_is_told_of() {
    let good = list("1.0.0", &[json!({ "type": "bridge" })]);
    let mut node = folder(&[("10-a.conflist", good.clone())]);
    node.insert("05-x.conflist".to_owned(), "{".to_owned());
    for own in [Own::Off, Own::On { bereft: false, rests: false }] {
        let plan = plan(&files(&node), &ours(), own);
        assert_eq!(plan.chain.as_deref(), Ok("10-a.conflist"));
        let remark = plan.remark.unwrap();
        assert!(
            remark.contains("05-x.conflist: not JSON") && remark.contains("containerd gives no pod a network"),
            "{remark}"
        );
        // What makes no network there as it is, is not made to by us.
        assert!(plan.changes.iter().all(|change| change.write.as_ref().is_none_or(|(name, _)| name != OWN)));
    }
    // Behind ours nobody reads it.
    let mut node = folder(&[("10-a.conflist", good)]);
    follow(&mut node, false);
    node.insert("20-x.conflist".to_owned(), "{".to_owned());
    assert_eq!(follow(&mut node, false).0.remark, None);
}
