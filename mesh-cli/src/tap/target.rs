//! What a user names: `service/reviews.shop`, `deploy/web`, `ns/shop`, `waypoint/wp`. Pure; read by [`super`], by which proxies are found and asked.

use std::fmt;

use crate::waypoint::object;

/// What a name is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Service.
    Service,
    /// What owns pods, as the mesh calls it: a Deployment, a Job, a CronJob; or whatever owns them in Kubernetes.
    Workload,
    /// StatefulSet, of which each pod is a workload of its own.
    StatefulSet,
    /// DaemonSet, the same.
    DaemonSet,
    /// Pod.
    Pod,
    /// Namespace.
    Namespace,
    /// The pods of a Gateway, waypoint or not.
    Gateway,
}

/// The words for them; the first one is that of messages.
const WORDS: [(Kind, &[&str]); 7] = [
    (Kind::Service, &["service", "svc", "services"]),
    (Kind::Workload, &["workload", "deployment", "deploy", "job", "cronjob", "cj", "deployments"]),
    (Kind::StatefulSet, &["statefulset", "sts", "statefulsets"]),
    (Kind::DaemonSet, &["daemonset", "ds", "daemonsets"]),
    (Kind::Pod, &["pod", "po", "pods"]),
    (Kind::Namespace, &["namespace", "ns", "namespaces"]),
    (Kind::Gateway, &["waypoint", "gateway", "gtw"]),
];

impl Kind {
    fn word(self) -> &'static str {
        WORDS.iter().find(|(kind, _)| *kind == self).map_or("", |(_, words)| words[0])
    }

    /// Its pods have to be found: by its name proxies do not know them all.
    pub fn owns_pods(self) -> bool {
        matches!(self, Kind::Workload | Kind::StatefulSet | Kind::DaemonSet)
    }
}

/// A name as it was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// Of what.
    pub kind: Kind,
    name: String,
    namespace: Option<String>,
}

/// The same, in a namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Named {
    /// Of what.
    pub kind: Kind,
    /// Where; its own name of a namespace.
    pub namespace: String,
    /// How it is called.
    pub name: String,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Namespace => write!(f, "namespace {}", self.namespace),
            kind => write!(f, "{} {}/{}", kind.word(), self.namespace, self.name),
        }
    }
}

/// Reads one. A name without a kind is a service's; what follows its last dot is its namespace.
pub fn target(text: &str) -> Result<Target, String> {
    let (kind, name) = match text.split_once('/') {
        None => (Kind::Service, text),
        Some((word, name)) => {
            let known = WORDS.iter().find(|(_, words)| words.contains(&word)).map(|(kind, _)| *kind);
            let kinds = "service/, deployment/, pod/, namespace/ or waypoint/";
            (known.ok_or_else(|| format!("{word:?} is no kind: write {kinds} and a name"))?, name)
        }
    };
    let (name, namespace) = match name.rsplit_once('.') {
        Some((name, namespace)) if kind != Kind::Namespace => (name, Some(namespace)),
        _ => (name, None),
    };
    object::name(name)?;
    if let Some(namespace) = namespace {
        object::name(namespace)?;
    }
    Ok(Target { kind, name: name.to_owned(), namespace: namespace.map(str::to_owned) })
}

impl Target {
    /// In its namespace, or in that which counts where it names none.
    pub fn within(&self, namespace: &str) -> Named {
        let own = match self.kind {
            Kind::Namespace => &self.name,
            _ => self.namespace.as_deref().unwrap_or(namespace),
        };
        Named { kind: self.kind, namespace: own.to_owned(), name: self.name.clone() }
    }
}

impl Named {
    /// As a proxy is asked for it by its name alone; nothing of a Gateway, of which all is meant, nor of what no proxy knows by name.
    pub fn term(&self) -> Option<String> {
        let Self { namespace, name, .. } = self;
        match self.kind {
            Kind::Gateway | Kind::StatefulSet | Kind::DaemonSet => None,
            Kind::Namespace => Some(format!("namespace:{namespace}")),
            kind => Some(format!("{}:{namespace}/{name}", kind.word())),
        }
    }
}

/// Who asks and who is asked, of what was written. `none` is asked where nothing else says who.
pub fn ends(
    target: Option<Named>,
    from: Option<Named>,
    to: Option<Named>,
    none: Option<Named>,
) -> Result<(Option<Named>, Option<Named>), String> {
    let is_gateway = |end: &Option<Named>| end.as_ref().is_some_and(|end| end.kind == Kind::Gateway);
    if is_gateway(&from) || is_gateway(&to) {
        return Err(
            "a waypoint or gateway is a TARGET: --from and --to say whose requests of those that pass it".into()
        );
    }
    if from.as_ref().is_some_and(|from| from.kind == Kind::Service) {
        return Err(
            "--from names who asks, which no service does: write deployment/NAME, pod/NAME or namespace/NAME".into()
        );
    }
    match (target, from, to) {
        (Some(target), from, to) if target.kind == Kind::Gateway => Ok((from, to)),
        (Some(_), Some(_), Some(_)) => {
            Err("with --to, TARGET is who asks, and --from says that too: leave one of them out".into())
        }
        (Some(target), None, Some(_)) if target.kind == Kind::Service => Err(
            "with --to, TARGET is who asks, which no service does: write deployment/NAME, pod/NAME or namespace/NAME"
                .into(),
        ),
        (Some(target), None, to @ Some(_)) => Ok((Some(target), to)),
        (Some(target), from, None) => Ok((from, Some(target))),
        (None, from, to) => Ok((from, to.or(none))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Named {
        target(text).unwrap().within("shop")
    }

    #[test]
    fn features_tm_16_a_target_is_what_kubectl_would_take_it_for() {
        for (text, term, shown) in [
            ("reviews", "service:shop/reviews", "service shop/reviews"),
            ("svc/reviews.books", "service:books/reviews", "service books/reviews"),
            ("deploy/web", "workload:shop/web", "workload shop/web"),
            ("cronjob/web.books", "workload:books/web", "workload books/web"),
            ("po/web-1", "pod:shop/web-1", "pod shop/web-1"),
            ("ns/books", "namespace:books", "namespace books"),
        ] {
            assert_eq!(
                (named(text).term().as_deref(), named(text).to_string().as_str()),
                (Some(term), shown),
                "{text}"
            );
        }
        for text in ["waypoint/wp.books", "sts/db", "daemonset/log"] {
            assert_eq!(named(text).term(), None, "{text}");
        }
        assert_eq!(named("sts/db.books").to_string(), "statefulset books/db");
        assert_eq!(named("gateway/wp.books").to_string(), "waypoint books/wp");
        for text in ["", "svc/", "thing/a", "a/b/c", "../x", "svc/A", "a..b", "ns/a/b"] {
            assert!(target(text).is_err(), "{text}");
        }
        assert!(target("configmap/x").unwrap_err().contains("write service/, deployment/"));
    }

    #[test]
    fn features_tm_16_who_asks_and_who_is_asked() {
        let some = |text: &str| if text.is_empty() { None } else { Some(named(text)) };
        for (target, from, to, expected) in [
            ("", "", "", Ok(("", "ns/shop"))),
            ("a", "", "", Ok(("", "a"))),
            ("a", "deploy/b", "", Ok(("deploy/b", "a"))),
            ("deploy/a", "", "b", Ok(("deploy/a", "b"))),
            ("", "deploy/b", "", Ok(("deploy/b", "ns/shop"))),
            ("", "", "b", Ok(("", "b"))),
            ("waypoint/w", "", "", Ok(("", ""))),
            ("waypoint/w", "deploy/b", "c", Ok(("deploy/b", "c"))),
            ("deploy/a", "deploy/b", "c", Err("leave one of them out")),
            ("a", "", "b", Err("which no service does")),
            ("", "a", "", Err("which no service does")),
            ("a", "waypoint/w", "", Err("is a TARGET")),
        ] {
            let found = ends(some(target), some(from), some(to), some("ns/shop"));
            match expected {
                Ok((from, to)) => assert_eq!(found, Ok((some(from), some(to))), "{target} {from} {to}"),
                Err(why) => assert!(found.unwrap_err().contains(why), "{target} {from} {to}"),
            }
        }
    }
}
