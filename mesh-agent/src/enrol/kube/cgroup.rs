//! Which pod a cgroup belongs to, by the names that kubelets and container runtimes give. Pure; called by [`super::find`].
//!
//! ```text
//!  driver     a pod's folder                                           in it
//!  cgroupfs   kubepods[/burstable|/besteffort]/pod<UID>                <id>  crio-<id>  crio-conmon-<id>
//!  systemd    kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<UID with _>.slice
//!                                                                      cri-containerd-<id>.scope  crio-<id>.scope  docker-<id>.scope
//!  mixed      <unit of containerd>/kubepods-burstable-pod<UID with _>.slice:cri-containerd:<id>
//! ```
//! Anything may stand before it (kind: `kubelet/`, `kubelet.slice/kubelet-`), and with a cgroup namespace of the reader's own it begins
//! with `..`. What stands after it the pod may have made itself, names of other pods included: the first pod in a path is the one.

/// The pods that the lines of `/proc/<pid>/cgroup` name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Membership {
    /// In the version 2 hierarchy, where programs are attached.
    pub unified: Option<String>,
    /// In a version 1 hierarchy.
    pub legacy: Option<String>,
}

/// Reads `/proc/<pid>/cgroup`.
pub fn membership(text: &str) -> Membership {
    let mut found = Membership::default();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        match (number, controllers) {
            ("0", "") => found.unified = pod_of(path),
            _ if found.legacy.is_none() => found.legacy = pod_of(path),
            _ => {}
        }
    }
    found
}

/// The UID of the first pod in a path.
pub fn pod_of(path: &str) -> Option<String> {
    path.split('/').find_map(pod_folder)
}

/// The UID of the pod whose folder has this name.
pub fn pod_folder(name: &str) -> Option<String> {
    let unit = name.split_once(':').map_or(name, |(unit, _)| unit);
    let uid = match unit.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod")?.1.replace('_', "-"),
        None if unit.len() == name.len() => unit.strip_prefix("pod")?.to_owned(),
        None => return None,
    };
    is_uid(&uid).then_some(uid)
}

/// A UUID, or the hash under which the kubelet runs pods of its own folder.
fn is_uid(uid: &str) -> bool {
    let groups: Vec<usize> = uid.split('-').map(str::len).collect();
    (groups == [8, 4, 4, 4, 12] || groups == [32]) && uid.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "2c48913c-b29f-11e7-9350-020968147796";
    const STATIC: &str = "8b0c8a7a8f3e4e1d9d4c1b2a3f4e5d6c";

    #[test]
    fn the_layouts_of_kubelets_and_runtimes() {
        let id = "0f9d1c2e".repeat(8);
        let under = "2c48913c_b29f_11e7_9350_020968147796";
        let rows = [
            // cgroupfs driver: guaranteed, burstable, best effort; version 2 and version 1 have the same paths.
            (format!("/kubepods/pod{UID}/{id}"), Some(UID)),
            (format!("/kubepods/burstable/pod{UID}/{id}"), Some(UID)),
            (format!("/kubepods/besteffort/pod{UID}"), Some(UID)),
            (format!("/kubepods/burstable/pod{STATIC}/{id}"), Some(STATIC)),
            (format!("/um-n1/kubepods/besteffort/pod{UID}/{id}"), Some(UID)),
            (format!("/kubepods/burstable/pod{UID}/crio-{id}"), Some(UID)),
            (format!("/kubepods/burstable/pod{UID}/crio-conmon-{id}"), Some(UID)),
            // systemd driver.
            (format!("/kubepods.slice/kubepods-pod{under}.slice/cri-containerd-{id}.scope"), Some(UID)),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-{id}.scope"
                ),
                Some(UID),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice/crio-{id}.scope/container"
                ),
                Some(UID),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice/docker-{id}.scope"
                ),
                Some(UID),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/crio-conmon-{id}.scope"
                ),
                Some(STATIC),
            ),
            // Kubelet with systemd, containerd without.
            (
                format!("/system.slice/containerd.service/kubepods-burstable-pod{under}.slice:cri-containerd:{id}"),
                Some(UID),
            ),
            (format!("/kubepods-besteffort-pod{under}.slice:cri-containerd:{id}"), Some(UID)),
            // kind: a kubelet in a container, both drivers, seen from inside and outside.
            (format!("/kubelet/kubepods/besteffort/pod{UID}/{id}"), Some(UID)),
            (format!("/docker/{id}/kubelet/kubepods/besteffort/pod{UID}/{id}"), Some(UID)),
            (
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{under}.slice/cri-containerd-{id}.scope"
                ),
                Some(UID),
            ),
            (
                format!(
                    "/system.slice/docker-{id}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{under}.slice/x"
                ),
                Some(UID),
            ),
            // A reader with a cgroup namespace of its own.
            (
                format!(
                    "/../../kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-{id}.scope"
                ),
                Some(UID),
            ),
            (format!("/../../pod{UID}/{id}"), Some(UID)),
            // No pods.
            ("/".into(), None),
            ("/kubepods".into(), None),
            ("/kubepods.slice/kubepods-burstable.slice".into(), None),
            ("/system.slice/containerd.service".into(), None),
            (format!("/docker/{id}"), None),
            (format!("/machine.slice/libpod-{id}.scope"), None),
            ("/kubepods/podman".into(), None),
            (format!("/kubepods/pod{UID}x"), None),
            (format!("/kubepods/xpod{UID}"), None),
            (format!("/kubepods/pod{}", UID.replace('-', "_")), None),
            (format!("/kubepods/pod{UID}:cri-containerd:{id}"), None),
        ];
        for (path, expected) in rows {
            assert_eq!(pod_of(&path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_pod_that_makes_a_folder_with_the_name_of_another_stays_itself() {
        let path = format!("/kubepods/burstable/pod{UID}/c/kubepods/pod11111111-1111-1111-1111-111111111111");
        assert_eq!(pod_of(&path).as_deref(), Some(UID));
        assert_eq!(membership(&format!("0::{path}\n")).unified.as_deref(), Some(UID));
    }

    #[test]
    fn the_versions_of_the_hierarchy() {
        let (unified, legacy) = (Some(UID.to_owned()), Some(UID.to_owned()));
        let none = || None;
        let path = format!("/kubepods/burstable/pod{UID}/x");
        let rows = [
            (format!("0::{path}\n"), Membership { unified: unified.clone(), legacy: none() }),
            (
                format!("12:pids:{path}\n1:name=systemd:{path}\n0::{path}\n"),
                Membership { unified, legacy: legacy.clone() },
            ),
            (
                format!("12:pids:/\n11:cpu,cpuacct:{path}\n0::/system.slice/containerd.service\n"),
                Membership { unified: none(), legacy: legacy.clone() },
            ),
            (format!("4:memory:{path}\n"), Membership { unified: none(), legacy }),
            ("0::/\n".into(), Membership::default()),
            ("garbage\n\n:::\n0:\n".into(), Membership::default()),
        ];
        for (text, expected) in rows {
            assert_eq!(membership(&text), expected, "{text}");
        }
    }
}
