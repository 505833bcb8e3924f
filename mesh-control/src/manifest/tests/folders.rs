//! Folders: what is in force after a scan, whatever was done to the files.

use super::*;

pub const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";
pub const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";

pub fn deny(name: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{action: DENY, rules: [{{}}]}}\n"
    )
}

pub fn summary(seen: &Seen) -> String {
    let closed = |p: &Secured<_>| matches!(p, Secured::Unreadable(_));
    let policies = seen.objects.authorization_policies.iter();
    let policies: Vec<String> =
        policies.map(|(n, p)| if closed(p) { format!("!{n}") } else { n.to_string() }).collect();
    let names = |keys: Vec<String>| keys.join(",");
    format!(
        "nodes[{}] services[{}] policies[{}]",
        names(seen.objects.nodes.keys().map(ToString::to_string).collect()),
        names(seen.objects.services.keys().map(ToString::to_string).collect()),
        names(policies)
    )
}

pub fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}

#[test]
fn one_bad_document_stops_no_other_and_replaces_no_good_one() {
    let root = tempfile::tempdir().unwrap();
    let mut folder = Folder::new(root.path());
    let file = root.path().join("a.yaml");
    write(&file, &format!("{NODE}---\n{SERVICE}---\n{}", deny("p")));
    assert_eq!(summary(&folder.scan()), "nodes[n1] services[default/web] policies[shop/p]");

    // The service breaks, the policy breaks, a node comes: what was good stays, what is new is there.
    let broken = SERVICE.replace("port: 80", "port: eighty");
    let typo = deny("p").replace("rules", "rulez");
    write(&file, &format!("{}---\n{broken}---\n{typo}", NODE.replace("n1", "n2")));
    let seen = folder.scan();
    assert_eq!(summary(&seen), "nodes[n2] services[default/web] policies[shop/p]");
    assert_eq!(seen.diagnoses.iter().filter(|d| d.severity == Severity::Error).count(), 2);
    assert!(
        matches!(seen.objects.authorization_policies.values().next(), Some(Secured::Readable(p)) if p.enforced.is_some())
    );

    // Not even YAML, and it cannot be told what it was: all that came from the file stays.
    write(&file, &format!("{}---\n{{[", NODE.replace("n1", "n3")));
    assert_eq!(summary(&folder.scan()), "nodes[n2,n3] services[default/web] policies[shop/p]");

    // Deleted is deleted.
    write(&file, NODE);
    assert_eq!(summary(&folder.scan()), "nodes[n1] services[] policies[]");
    fs::remove_file(&file).unwrap();
    assert_eq!(summary(&folder.scan()), "nodes[] services[] policies[]");
}

#[test]
fn a_policy_that_never_was_good_is_closed() {
    let root = tempfile::tempdir().unwrap();
    let mut folder = Folder::new(root.path());
    write(&root.path().join("a.yaml"), &deny("a").replace("DENY", "DANY"));
    write(&root.path().join("b.yaml"), &deny("b").replace("spec: {", "spec: {{"));
    write(&root.path().join("c.yaml"), &deny("c").replace("/v1", "/v7"));
    assert_eq!(summary(&folder.scan()), "nodes[] services[] policies[!shop/a,!shop/b,!shop/c]");
    write(&root.path().join("a.yaml"), &deny("a"));
    fs::remove_file(root.path().join("b.yaml")).unwrap();
    assert_eq!(summary(&folder.scan()), "nodes[] services[] policies[shop/a,!shop/c]");
}

#[test]
fn a_misspelt_kind_takes_no_policy_out_of_force() {
    let root = tempfile::tempdir().unwrap();
    let mut folder = Folder::new(root.path());
    let file = root.path().join("a.yaml");
    let misspelt = deny("p").replace("AuthorizationPolicy", "AuthorisationPolicy");
    write(&file, &deny("p"));
    assert_eq!(summary(&folder.scan()), "nodes[] services[] policies[shop/p]");
    write(&file, &misspelt);
    let seen = folder.scan();
    assert_eq!(summary(&seen), "nodes[] services[] policies[shop/p]");
    assert_eq!(seen.diagnoses[0].help.as_deref(), Some("did you mean `AuthorizationPolicy`?"));
    // It was so from the start: what it would have selected is closed.
    assert_eq!(summary(&Folder::new(root.path()).scan()), "nodes[] services[] policies[!shop/p]");
}

#[test]
fn hardening_B152_files_that_are_replaced_truncated_or_locked() {
    let root = tempfile::tempdir().unwrap();
    let mut folder = Folder::new(root.path());
    let file = root.path().join("a.yaml");
    write(&file, &format!("{NODE}---\n{}", deny("p")));
    let all = "nodes[n1] services[] policies[shop/p]";
    assert_eq!(summary(&folder.scan()), all);

    // Truncated: somebody is about to write.
    write(&file, "");
    let seen = folder.scan();
    assert_eq!(summary(&seen), all);
    assert_eq!(seen.diagnoses[0].message, "the file is empty, its objects stay as they were");
    assert_eq!(summary(&folder.scan()), all, "it stays as long as it is empty");

    // Cut in the middle of a document.
    write(&file, &format!("{NODE}---\n{}", &deny("p")[..deny("p").len() - 12]));
    assert_eq!(summary(&folder.scan()), all);

    // Replaced by rename.
    write(&root.path().join("a.yaml.tmp"), &NODE.replace("n1", "n2"));
    fs::rename(root.path().join("a.yaml.tmp"), &file).unwrap();
    assert_eq!(summary(&folder.scan()), "nodes[n2] services[] policies[]");

    // A link that leads nowhere is a file that cannot be read, not a file that is gone.
    fs::remove_file(&file).unwrap();
    symlink(root.path().join("nowhere"), &file).unwrap();
    let seen = folder.scan();
    assert_eq!(summary(&seen), "nodes[n2] services[] policies[]");
    assert!(seen.diagnoses[0].message.starts_with("the file cannot be read"), "{:?}", seen.diagnoses);

    // The folder itself.
    let away = root.path().with_extension("away");
    fs::rename(root.path(), &away).unwrap();
    let seen = folder.scan();
    assert_eq!(summary(&seen), "nodes[n2] services[] policies[]");
    assert!(seen.diagnoses[0].message.starts_with("the folder cannot be read"), "{:?}", seen.diagnoses);
    fs::rename(&away, root.path()).unwrap();
}

#[test]
fn hardening_B152_a_file_that_is_written_while_it_is_read_has_not_been_read() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a.yaml");
    write(&path, &deny("p"));
    let file = fs::File::open(&path).unwrap();
    let before = file.metadata().unwrap();
    assert_eq!(read_whole(&file, &before).unwrap(), deny("p").as_bytes());
    // Somebody writes the second half behind what was there when it was looked at.
    let file = fs::File::open(&path).unwrap();
    write(&path, &format!("{}---\n{}", deny("p"), deny("q")));
    assert_eq!(read_whole(&file, &before).unwrap_err().to_string(), "it is being written");
}

#[test]
fn hardening_B152_lost_permission() {
    if nix::unistd::geteuid().is_root() {
        // Permissions do not bind root; a folder in the place of the file fails in the same way.
        let root = tempfile::tempdir().unwrap();
        write(&root.path().join("a.yaml"), NODE);
        let mut folder = Folder::new(root.path());
        folder.scan();
        fs::remove_file(root.path().join("a.yaml")).unwrap();
        symlink("a.yaml", root.path().join("a.yaml")).unwrap();
        assert_eq!(summary(&folder.scan()), "nodes[n1] services[] policies[]");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    write(&file, NODE);
    let mut folder = Folder::new(root.path());
    folder.scan();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    assert_eq!(summary(&folder.scan()), "nodes[n1] services[] policies[]");
}

#[test]
fn hardening_B152_the_way_kubernetes_mounts_a_config_map() {
    let root = tempfile::tempdir().unwrap();
    let at = |p: &str| root.path().join(p);
    for (version, node) in [("..1", "n1"), ("..2", "n2")] {
        fs::create_dir(at(version)).unwrap();
        write(&at(version).join("a.yaml"), &NODE.replace("n1", node));
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/a.yaml", at("a.yaml")).unwrap();
    let mut folder = Folder::new(root.path());
    assert_eq!(summary(&folder.scan()), "nodes[n1] services[] policies[]");
    let before = folder.fingerprint();
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    assert_ne!(folder.fingerprint(), before);
    assert_eq!(summary(&folder.scan()), "nodes[n2] services[] policies[]");
}

#[tokio::test]
async fn hardening_B152_changes_are_followed_however_they_are_made() {
    use crate::source::{Source, Update};
    async fn until(source: &mut crate::manifest::watch::FolderSource, node: &str) {
        let wanted = |u: &Update| u.objects.nodes.keys().map(ToString::to_string).collect::<Vec<_>>() == [node];
        let found = tokio::time::timeout(Duration::from_secs(20), async {
            while !wanted(&source.next().await.expect("the source goes on")) {}
        });
        found.await.unwrap_or_else(|_| panic!("{node} was never seen"));
    }
    let node = |name: &str| NODE.replace("n1", name);
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("m");
    let at = |p: &str| root.join(p);
    fs::create_dir_all(at("..1")).unwrap();
    write(&at("..1").join("a.yaml"), &node("first"));
    symlink("..1", at("..data")).unwrap();
    symlink("..data/a.yaml", at("a.yaml")).unwrap();
    let mut source = crate::manifest::watch::FolderSource::new(&root);
    until(&mut source, "first").await;
    // A ConfigMap that is mounted anew.
    fs::create_dir(at("..2")).unwrap();
    write(&at("..2").join("a.yaml"), &node("swapped"));
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    until(&mut source, "swapped").await;
    // A rename, a write in place, a folder that comes with its files.
    write(&at(".new"), &node("renamed"));
    fs::rename(at(".new"), at("a.yaml")).unwrap();
    until(&mut source, "renamed").await;
    write(&at("a.yaml"), &node("rewritten"));
    until(&mut source, "rewritten").await;
    fs::create_dir(parent.path().join("deep")).unwrap();
    write(&parent.path().join("deep/b.yaml"), &node("deep"));
    fs::rename(parent.path().join("deep"), at("deep")).unwrap();
    fs::remove_file(at("a.yaml")).unwrap();
    until(&mut source, "deep").await;
    write(&at("deep/b.yaml"), &node("deeper"));
    until(&mut source, "deeper").await;
    // The whole folder is another one.
    fs::rename(&root, parent.path().join("old")).unwrap();
    fs::create_dir(&root).unwrap();
    write(&at("a.yaml"), &node("replaced"));
    until(&mut source, "replaced").await;
    write(&at("a.yaml"), &node("watched"));
    until(&mut source, "watched").await;
}

#[test]
fn hardening_B139_a_file_that_is_too_large_is_refused_unread() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    write(&file, NODE);
    let mut folder = Folder::new(root.path());
    folder.scan();
    fs::File::create(&file).unwrap().set_len(50 << 20).unwrap();
    let seen = folder.scan();
    assert_eq!(summary(&seen), "nodes[n1] services[] policies[]");
    assert!(seen.diagnoses[0].message.contains(&format!("larger than {} MiB", MAX_FILE_BYTES >> 20)));
}

#[test]
fn folders_are_walked_and_hidden_files_are_not() {
    let root = tempfile::tempdir().unwrap();
    let at = |p: &str| root.path().join(p);
    fs::create_dir_all(at("b/c")).unwrap();
    write(&at("b/c/node.yml"), NODE);
    write(
        &at("b/service.json"),
        "{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"web\"},\"spec\":{\"ports\":[{\"port\":80}]}}",
    );
    write(&at(".hidden.yaml"), &deny("hidden"));
    write(&at("README.md"), "no manifest");
    write(&at("a.yaml~"), &deny("backup"));
    symlink("../b", at("b/loop")).unwrap();
    assert_eq!(summary(&Folder::new(root.path()).scan()), "nodes[n1] services[default/web] policies[]");
}

#[test]
fn hardening_B139_what_is_no_regular_file_is_refused_and_not_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let at = |p: &str| root.path().join(p);
    write(&at("a.yaml"), NODE);
    let mut folder = Folder::new(root.path());
    assert_eq!(summary(&folder.scan()), "nodes[n1] services[] policies[]");
    fs::remove_file(at("a.yaml")).unwrap();
    let mode = nix::sys::stat::Mode::S_IRUSR;
    nix::unistd::mkfifo(&at("a.yaml"), mode).unwrap();
    symlink("/dev/zero", at("b.yaml")).unwrap();
    nix::unistd::mkfifo(&at("no-manifest"), mode).unwrap();
    let seen = folder.scan();
    assert_eq!(summary(&seen), "nodes[n1] services[] policies[]");
    let messages: Vec<_> = seen.diagnoses.iter().map(|d| d.message.as_str()).collect();
    let message = "the file cannot be read: it is not a regular file; objects that came from it stay as they were";
    assert_eq!(messages, [message; 2]);
}

#[test]
fn names_that_look_alike_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let root = tempfile::tempdir().unwrap();
    for (byte, node) in [(0xfe, "n1"), (0xff, "n2")] {
        let name = std::ffi::OsStr::from_bytes(&[b'a', byte, b'.', b'y', b'm', b'l']).to_owned();
        write(&root.path().join(name), &NODE.replace("n1", node));
    }
    let seen = Folder::new(root.path()).scan();
    assert_eq!(summary(&seen), "nodes[] services[] policies[]");
    assert_eq!(seen.diagnoses.len(), 2);
    assert!(seen.diagnoses[0].message.contains("its name is not UTF-8"), "{:?}", seen.diagnoses);
}

#[test]
fn a_broken_copy_takes_no_good_object_s_place() {
    let root = tempfile::tempdir().unwrap();
    let broken = SERVICE.replace("port: 80", "port: eighty");
    write(&root.path().join("a.yaml"), &format!("{broken}---\n{}", deny("p").replace("rules", "rulez")));
    write(&root.path().join("b.yaml"), &format!("{SERVICE}---\n{}", deny("p")));
    let mut folder = Folder::new(root.path());
    let seen = folder.scan();
    assert_eq!(summary(&seen), "nodes[] services[default/web] policies[shop/p]");
    let copies = seen.diagnoses.iter().filter(|d| d.message.contains("more than once"));
    assert_eq!(copies.map(|d| d.place.clone().unwrap().file).collect::<Vec<_>>(), ["a.yaml", "a.yaml"]);
    // The good one's edits are followed, too.
    write(&root.path().join("b.yaml"), &SERVICE.replace("port: 80", "port: 81"));
    let seen = folder.scan();
    assert_eq!(seen.objects.services.values().next().unwrap().ports[0].port, 81);
    assert_eq!(summary(&seen), "nodes[] services[default/web] policies[shop/p]");
}

#[test]
fn hardening_F12_a_policy_in_a_file_that_is_no_text_is_closed() {
    // As at a start: there is no good form to keep.
    let broken = |text: &str| {
        let root = tempfile::tempdir().unwrap();
        write(&root.path().join("a.yaml"), text);
        write(&root.path().join("b.yaml"), NODE);
        summary(&Folder::new(root.path()).scan())
    };
    let json = r#"{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": "shop"}, "spec": {"#;
    for text in [
        format!("{SERVICE}---\n{}# \0\n", deny("p")),
        format!("{}---\nkind: [\n", deny("p").replace("rules", "rulez")),
        json.to_owned(),
        deny("p").replace("spec: {", "spec: {{").replace('\n', "\r\n"),
    ] {
        assert_eq!(broken(&text), "nodes[n1] services[] policies[!shop/p]", "{text}");
    }
}

#[test]
fn hardening_F12_whatever_looks_like_a_policy_is_closed_from_the_start() {
    let scan = |text: &[u8]| {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a.yaml"), text).unwrap();
        Folder::new(root.path()).scan()
    };
    // Which policies and which PeerAuthentications are closed, by namespace alone where there is no name.
    // `?` where a start waits until it is mended.
    let closed = |text: &str| {
        let Seen { objects, unread, again, .. } = scan(text.as_bytes());
        assert!(!again, "{text}");
        let policies = objects.authorization_policies.iter();
        let policies = policies.filter(|(_, p)| matches!(p, Secured::Unreadable(_))).map(|(name, _)| ("", name));
        let peers = objects.peer_authentications.iter();
        let peers = peers.filter(|(_, p)| matches!(p, Secured::Unreadable(_))).map(|(name, _)| ("peer ", name));
        let shown = policies.chain(peers).map(|(what, name)| match name.name.starts_with("unreadable-") {
            true => format!("{what}{}", name.namespace),
            false => format!("{what}{name}"),
        });
        shown.chain(unread.iter().map(|_| "?".to_owned())).collect::<Vec<_>>().join(",")
    };
    let p = deny("p");
    let peer = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";
    for (text, expected) in [
        // No YAML.
        (p.replace("name: p, ", "").replace("spec: {", "spec: {{"), "shop"),
        (p.replace("name: p", "name: P").replace("spec: {", "spec: {{"), "shop"),
        (p.replace("{name: p, namespace: shop}", "\n  name: [\n  namespace: \"shop]"), "shop"),
        (p.replace("AuthorizationPolicy", "AuthorizationPolcy").replace("spec: {", "spec: {{"), "shop/p"),
        (p.replace("AuthorizationPolicy", "Polizei").replace("spec: {", "spec: {{"), "shop/p"),
        (p.replace("kind: ", "kind ").replace("spec: {", "spec: {{"), "shop/p"),
        ("AuthorizationPolicy\n\tfor: [the shop\n".into(), "?"),
        (peer.replace("name: p, ", "").replace("spec: {", "spec: {{"), "peer shop"),
        // YAML, but of no kind or no name that there could be.
        (p.replace("AuthorizationPolicy", "Polizei"), "shop/p"),
        (
            p.replace("security.istio.io", "security.istio.oi").replace("AuthorizationPolicy", "AuthorizatoinPolicy"),
            "shop/p",
        ),
        (p.replace("kind: AuthorizationPolicy\n", ""), "shop"),
        (p.replace("name: p, ", ""), "shop"),
        (p.replace("name: p", "name: Deny_All"), "shop"),
        (p.replace(", namespace: shop", "").replace("name: p", "name: 7"), "default"),
        (peer.replace("name: p, ", ""), "peer shop"),
        (
            "kind: AuthorizationPolicyList\napiVersion: security.istio.io/v1\nitems: [{metadata: {namespace: shop}}]\n"
                .into(),
            "shop",
        ),
        // Nothing of the kind.
        (p.replace("AuthorizationPolicy", "RequestAuthentication").replace("name: p, ", ""), ""),
        (p.replace("AuthorizationPolicy", "RequestAuthentication").replace("spec: {", "spec: {{"), ""),
        (p.replace("namespace: shop", "namespace: Shop"), ""),
        (SERVICE.replace("name: web", "name: AuthorizationPolicy"), ""),
        ("kind: ConfigMap\nmetadata: {name: other}\ndata: {a: 'kind: AuthorizationPolicy\n".into(), ""),
        ("kind: [\n".into(), ""),
    ] {
        assert_eq!(closed(&text), expected, "{text}");
    }
    // As some editors of other systems save it.
    let wide: Vec<u8> = std::iter::once(0xfeff).chain(deny("p").encode_utf16()).flat_map(u16::to_le_bytes).collect();
    assert_eq!(summary(&scan(&wide)), "nodes[] services[] policies[!shop/p]");
}

#[test]
fn a_policy_that_cannot_be_named_any_more_stays_in_its_good_form() {
    let root = tempfile::tempdir().unwrap();
    let (file, other) = (root.path().join("a.yaml"), root.path().join("b.yaml"));
    let nameless = deny("p").replace("name: p, ", "");
    write(&file, &deny("p"));
    write(&other, &deny("q"));
    let mut folder = Folder::new(root.path());
    folder.scan();
    write(&file, &nameless);
    let seen = folder.scan();
    assert_eq!(summary(&seen), "nodes[] services[] policies[shop/p,shop/q]");
    assert!(seen.diagnoses.iter().any(|d| d.message.contains("unless what the file held before is still in force")));
    // In a file that held no policy it is a new one.
    write(&file, NODE);
    folder.scan();
    write(&file, &nameless);
    let shown = summary(&folder.scan());
    assert!(shown.starts_with("nodes[n1] services[] policies[shop/q,!shop/unreadable-"), "{shown}");
    // Mended, nothing of it is left.
    write(&file, &deny("p"));
    assert_eq!(summary(&folder.scan()), "nodes[] services[] policies[shop/p,shop/q]");
}

#[test]
fn of_two_objects_with_one_name_the_first_file_s_is_used() {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("a.yaml"), &deny("p"));
    write(&root.path().join("b.yaml"), &format!("{NODE}---\n{}", deny("p")));
    let seen = Folder::new(root.path()).scan();
    assert_eq!(seen.diagnoses.len(), 1);
    assert_eq!(
        seen.diagnoses[0].to_string(),
        "error: AuthorizationPolicy shop/p is there more than once, this one is not used\n --> b.yaml:5\n  = field `metadata.name` of AuthorizationPolicy shop/p\n  = help: the one in use is at a.yaml:1"
    );
}
