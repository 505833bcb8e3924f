//! Edits as tables: the folder before and after.

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
        let taken_out = uninstall(&files);
        assert!(taken_out.iter().all(|change| change.remove.is_none()), "{taken_out:?}");
    }
}

#[test]
fn a_file_that_is_ours_alone_makes_no_network_and_goes_at_the_end() {
    for (name, value) in [("10-a.conflist", list("1.0.0", &[ours()])), ("10-a.conf", ours())] {
        let node = folder(&[(name, value)]);
        assert!(matches!(install(&files(&node), &ours()), Edit::Impossible(_)), "{name}");
        assert_eq!(names_us(&files(&node)), Some(name));
        assert_eq!(uninstall(&files(&node)), [Change { write: None, remove: Some(name.to_owned()) }]);
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
    uninstall(&files(&node)).into_iter().for_each(|change| carry_out(&mut node, change));
    assert_eq!(values(&node), values(&before));
    let both = folder(&[("10-a.conf", conf(1)), ("10-a.conflist", theirs()), ("10-a.conf.conflist", theirs())]);
    assert!(matches!(install(&files(&both), &ours()), Edit::Impossible(why) if why.contains("of others")));

    // The file that ours was made from, made anew while nobody of us looked.
    let mut node = folder(&[("10-a.conf", conf(1))]);
    let Edit::Change(change) = install(&files(&node), &ours()) else { panic!("no change") };
    carry_out(&mut node, change);
    node.insert("10-a.conf".to_owned(), conf(2).to_string());
    uninstall(&files(&node)).into_iter().for_each(|change| carry_out(&mut node, change));
    assert_eq!(values(&node), values(&folder(&[("10-a.conf", conf(2))])));
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
    ];
    for (name, text, expected) in rows {
        let node = Folder::from([(name.to_owned(), text.clone())]);
        assert_eq!(names_us(&files(&node)).is_some(), expected, "{name}: {text}");
    }
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
        for change in uninstall(&files(&node)) {
            carry_out(&mut node, change);
        }
        assert_eq!(values(&node), values(&before));
        assert_eq!(uninstall(&files(&node)), []);
    }
    // An entry that says it came from elsewhere leads nowhere.
    let mut entry = ours();
    entry[MADE_FROM] = "../../etc/shadow.conf".into();
    let node = folder(&[("10-a.conflist", list("1.0.0", &[json!({ "type": "bridge" }), entry]))]);
    let changes = uninstall(&files(&node));
    assert!(matches!(&changes[..], [Change { write: Some((name, _)), remove: None }] if name == "10-a.conflist"));
}
