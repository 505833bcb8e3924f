//! Addresses of hosts that have none of their own: kept as their status says, and nobody has two or another's.

use super::*;

/// An entry as an API server shows it: when it was made, what is in its status, and what it asks for.
fn entry(name: &str, made: u32, status: &[(&str, &str)], spec: &str) -> String {
    let item = |(host, value): &(&str, &str)| format!("{{host: {host}, value: '{value}'}}");
    let addresses: Vec<String> = status.iter().map(item).collect();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop, creationTimestamp: '2026-01-01T00:00:{made:02}Z'}}\nspec: {{resolution: STATIC, endpoints: [{{address: 192.0.2.1}}], {spec}}}\nstatus: {{addresses: [{}]}}\n",
        addresses.join(", ")
    )
}

/// The addresses of each host, as `host address address`.
fn addresses(view: &View) -> BTreeMap<String, Vec<String>> {
    let of = |service: &mesh_core::Service| service.addresses.iter().map(|a| a.cidr.addr().to_string()).collect();
    view.services.iter().map(|(key, service)| (key.name.to_string(), of(service))).collect()
}

#[test]
fn features_SE_2_what_a_status_says_was_given_is_kept_while_it_is_good_and_free() {
    let usual = addresses(&view(&entry("a", 1, &[], "hosts: [a.example.com]")))["a.example.com"].clone();
    let (v4, v6) = ("240.240.9.9", "2001:2::9");
    let a = "a.example.com";
    for (what, status, expected) in [
        ("both are kept", vec![(a, v4), (a, v6)], [v4, v6]),
        ("in whatever order, and however the host is written", vec![("A.Example.com", v6), (a, v4)], [v4, v6]),
        ("of the one family it has the other is what its name means", vec![(a, v4)], [v4, &usual[1]]),
        ("as Istio may have it", vec![(a, "2001:2::1:0:0:7")], [&usual[0], "2001:2::1:0:0:7"]),
        ("of several the first", vec![(a, v4), (a, "240.240.9.8"), (a, v6)], [v4, v6]),
        ("another host's", vec![("b.example.com", v4)], [&usual[0], &usual[1]]),
        ("somebody's outside", vec![(a, "203.0.113.7"), (a, "2001:db8::7")], [&usual[0], &usual[1]]),
        ("a whole block", vec![(a, "240.240.0.0"), (a, "2001:2::")], [&usual[0], &usual[1]]),
        ("no address at all", vec![(a, "x")], [&usual[0], &usual[1]]),
        ("that of a service of Kubernetes", vec![(a, "240.240.1.1")], [&usual[0], &usual[1]]),
    ] {
        let web = service("web", "{clusterIP: 240.240.1.1, ports: [{port: 80}]}");
        let view = view(&format!("{web}{}", entry("a", 1, &status, "hosts: [a.example.com]")));
        assert_eq!(addresses(&view)[a], expected, "{what}");
        let key = crate::resource::Key { kind: Kind::ServiceEntry, namespace: "shop".into(), name: "a".into() };
        let given: Vec<String> = view.given[&key].iter().map(|(host, ip)| format!("{host} {ip}")).collect();
        assert_eq!(given, expected.map(|ip| format!("{a} {ip}")), "{what}: that is what its status is to say");
    }
    // Without a host it is that of the only one.
    let alone =
        entry("a", 1, &[], "hosts: [a.example.com]").replace("addresses: []", "addresses: [{value: 240.240.9.9}]");
    assert_eq!(addresses(&view(&alone))[a][0], v4);
}

#[test]
fn features_SE_2_of_several_that_want_one_address_the_oldest_has_it() {
    let (a, b) = ("a.example.com", "b.example.com");
    let held = |name: &str, made, host: &str| entry(name, made, &[(host, "240.240.9.9")], &format!("hosts: [{host}]"));
    let both = addresses(&view(&[held("a", 2, a), held("b", 1, b)].concat()));
    assert!(both[b][0] == "240.240.9.9" && both[a][0] != "240.240.9.9", "{both:?}");
    // A new host whose name means a number that somebody has already goes on to the next, also if it is of an older object.
    let usual = addresses(&view(&entry("a", 1, &[], "hosts: [a.example.com]")))[a].clone();
    let sits = entry("b", 2, &[(b, &usual[0])], "hosts: [b.example.com]");
    let moved = addresses(&view(&[entry("a", 1, &[], "hosts: [a.example.com]"), sits].concat()));
    assert_eq!(moved[b][0], usual[0]);
    assert!(moved[a][0] != usual[0] && moved[a][0].starts_with("240.240."), "{moved:?}");
    // What is written stays with whoever wrote it, of the older as of the younger.
    for made in [1, 3] {
        let written = entry("b", made, &[], "hosts: [b.example.com], addresses: [240.240.7.7]");
        let all = addresses(&view(&[entry("a", 2, &[], "hosts: [a.example.com]"), written].concat()));
        assert_eq!(all[b], ["240.240.7.7"], "{made}");
    }
    for (made, has) in [(1, false), (3, true)] {
        let written = entry("b", made, &[], "hosts: [b.example.com], addresses: [240.240.9.9]");
        let all = addresses(&view(&[held("a", 2, a), written].concat()));
        assert_eq!((all[a][0] == "240.240.9.9", all[b].is_empty()), (has, has), "{made}: {all:?}");
    }
}

#[test]
fn features_SE_2_a_full_status_is_the_same_mesh_and_who_has_addresses_is_given_none() {
    let hosts: Vec<String> = (0..300).map(|number| format!("h{number}.example.com")).collect();
    let text = |status: &dyn Fn(&str) -> Vec<(String, String)>| {
        let one = |(at, host): (usize, &String)| {
            let said = status(host);
            let said: Vec<(&str, &str)> = said.iter().map(|(host, ip)| (host.as_str(), ip.as_str())).collect();
            entry(&format!("e{at}"), u32::try_from(at % 60).unwrap(), &said, &format!("hosts: [{host}]"))
        };
        hosts.iter().enumerate().map(one).collect::<String>()
    };
    let first = addresses(&view(&text(&|_| Vec::new())));
    let all: std::collections::BTreeSet<&String> = first.values().flatten().collect();
    assert_eq!(all.len(), 600, "no two hosts have one");
    let said = |host: &str| first[host].iter().map(|ip| (host.to_owned(), ip.clone())).collect::<Vec<_>>();
    assert_eq!(addresses(&view(&text(&said))), first);

    for spec in [
        "hosts: [a.example.com], addresses: [192.0.2.9]",
        "hosts: [web.shop.svc.cluster.local]",
        "hosts: [a.example.com], resolution: NONE",
    ] {
        let web = service("web", "{clusterIP: 198.19.0.1, ports: [{port: 80}]}");
        let own = entry("a", 1, &[("a.example.com", "240.240.9.9")], "SPEC");
        let own = own.replace("resolution: STATIC, endpoints: [{address: 192.0.2.1}], SPEC", spec);
        let view = view(&format!("{web}{own}"));
        assert!(view.given.values().all(Vec::is_empty), "{spec}: {:?}", view.given);
        assert_eq!(view.given.len(), 1, "{spec}: what its status says is taken away");
    }
}

#[test]
fn features_SE_2_a_status_makes_no_other_object_and_is_heeded_by_the_next_joining() {
    let a = "a.example.com";
    let of = |status: &[(&str, &str)]| read(&entry("a", 1, status, "hosts: [a.example.com]"));
    let (bare, full) = (of(&[]), of(&[(a, "240.240.9.9")]));
    assert_eq!(bare.routes, full.routes);
    let mut join = crate::index::Join::default();
    let mut first = |objects: &Objects| addresses(&join.build(objects.clone(), &Settings::default()))[a][0].clone();
    assert_ne!(first(&bare), "240.240.9.9");
    assert_eq!(first(&full), "240.240.9.9");
}
