//! Values as given, before they have types: where each came from, and every problem with them. Used by [`super`] alone.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use mesh_core::TrustDomain;
use mesh_runtime::logging::{Filter, LogFormat};

use super::{Chain, Config, EXIT_CONFIG, EXIT_USAGE, Problems, ranges};

/// Where a value came from.
#[derive(Clone, Debug)]
pub(super) enum Given {
    Flag(OsString),
    Environment(OsString),
    Nowhere,
}

impl Given {
    pub(super) fn of(flag: &Option<OsString>, environment: Option<OsString>) -> Given {
        match (flag, environment) {
            (Some(value), _) => Given::Flag(value.clone()),
            (None, Some(value)) => Given::Environment(value),
            (None, None) => Given::Nowhere,
        }
    }
}

pub(super) struct Problem {
    usage: bool,
    line: String,
}

/// The untyped values and what is wrong with them so far. A wrong value yields a default of its type, which nobody sees because
/// [`Raw::finish`] then fails.
pub(super) struct Raw {
    pub(super) values: Vec<(&'static str, &'static str, Given)>,
    pub(super) problems: Vec<Problem>,
}

impl Raw {
    /// The text of a value; `None` after reporting why there is none.
    pub(super) fn text(&mut self, flag: &'static str, default: Option<String>) -> Option<String> {
        let (_, variable, given) = self.values.iter().find(|(name, ..)| *name == flag)?.clone();
        let (name, value, usage) = match given {
            Given::Flag(value) => (format!("--{flag}"), value, true),
            Given::Environment(value) => (variable.to_owned(), value, false),
            Given::Nowhere => {
                if default.is_none() {
                    self.problems.push(Problem { usage: true, line: format!("--{flag} (or {variable}) is missing") });
                }
                return default;
            }
        };
        let line = match value.into_string() {
            Ok(text) if text.is_empty() && !matches!(flag, "network" | "control-name") => format!("{name} is empty"),
            Ok(text) if text.chars().any(char::is_control) => format!("{name} contains control characters"),
            Ok(text) if text.len() > 4096 => format!("{name} is longer than 4096 bytes"),
            Ok(text) => return Some(text),
            Err(_) => format!("{name} is not UTF-8"),
        };
        self.problems.push(Problem { usage, line });
        None
    }

    fn refuse(&mut self, flag: &'static str, value: &str, expected: &str) {
        let given = self.values.iter().find(|(name, ..)| *name == flag);
        let (name, usage) = match given {
            Some((_, variable, Given::Environment(_))) => ((*variable).to_owned(), false),
            _ => (format!("--{flag}"), true),
        };
        // Whoever gives the secret instead of the file that holds it should not find it in a log as well.
        let shown = if SECRETS.contains(&flag) { "not shown".to_owned() } else { format!("{value:?}") };
        self.problems.push(Problem { usage, line: format!("{name} is {shown}, expected {expected}") });
    }

    pub(super) fn check(
        &mut self,
        flag: &'static str,
        value: Option<String>,
        good: impl Fn(&str) -> bool,
        expected: &str,
    ) -> String {
        let value = value.unwrap_or_default();
        if !value.is_empty() && !good(&value) {
            self.refuse(flag, &value, expected);
        }
        value
    }

    pub(super) fn parse<T: Placeholder>(
        &mut self,
        flag: &'static str,
        default: Option<&str>,
        parse: impl Fn(&str) -> Option<T>,
        expected: &str,
    ) -> T {
        let Some(text) = self.text(flag, default.map(str::to_owned)) else { return T::placeholder() };
        parse(&text).unwrap_or_else(|| {
            self.refuse(flag, &text, expected);
            T::placeholder()
        })
    }

    /// Ranges separated by commas; each wrong one is a problem of its own.
    pub(super) fn ranges(&mut self, flag: &'static str) -> Vec<IpNet> {
        let Some(list) = self.text(flag, Some(String::new())) else { return Vec::new() };
        let (good, bad) = ranges::parse(&list);
        for (text, expected) in bad {
            self.refuse(flag, &text, &expected);
        }
        good
    }

    pub(super) fn path(&mut self, flag: &'static str, default: Option<&str>) -> PathBuf {
        self.parse(flag, default, |text| text.starts_with('/').then(|| PathBuf::from(text)), "an absolute path")
    }

    /// A path that is looked for if nobody says it.
    pub(super) fn path_or(
        &mut self,
        flag: &'static str,
        find: Option<impl FnOnce() -> Result<PathBuf, String>>,
    ) -> PathBuf {
        let given = self.values.iter().any(|(name, _, given)| *name == flag && !matches!(given, Given::Nowhere));
        let Some(find) = find.filter(|_| !given) else { return self.path(flag, None) };
        find().unwrap_or_else(|error| {
            self.problems.push(Problem { usage: false, line: format!("--{flag}: {error}") });
            PathBuf::placeholder()
        })
    }

    pub(super) fn file(&mut self, flag: &'static str) -> PathBuf {
        let path = self.path(flag, None);
        if path.is_absolute()
            && let Err(error) = std::fs::File::open(&path).and_then(|file| file.metadata()).and_then(must_be_file)
        {
            self.problems.push(Problem { usage: false, line: format!("--{flag}: cannot read {path:?}: {error}") });
        }
        path
    }

    pub(super) fn optional_file(&mut self, flag: &'static str) -> Option<PathBuf> {
        let given = self.values.iter().any(|(name, _, given)| *name == flag && !matches!(given, Given::Nowhere));
        given.then(|| self.file(flag))
    }

    /// Who says which pods are in the mesh.
    pub(super) fn sources(&mut self, config: &Config) {
        if config.zds.is_some() && config.kube.is_some() {
            let line = "--zds and --kube exclude each other: one of them says which pods are in the mesh".to_owned();
            self.problems.push(Problem { usage: true, line });
        }
        if config.cni == Chain::Kept && config.kube.is_none() {
            let line = "--cni on needs --kube: the Kubernetes API says which pods are held".to_owned();
            self.problems.push(Problem { usage: true, line });
        }
    }

    pub(super) fn cgroups(&mut self, config: &Config) {
        if !config.pods_cgroup.is_absolute() || !config.agent_cgroup.is_absolute() {
            return;
        }
        if !config.pods_cgroup.join("cgroup.controllers").exists() {
            let line = format!("--pods-cgroup: {:?} is not a cgroup v2 folder", config.pods_cgroup);
            self.problems.push(Problem { usage: false, line });
        }
        let (agent, pods) = (normal(&config.agent_cgroup), normal(&config.pods_cgroup));
        let line = if agent.starts_with(&pods) {
            "--agent-cgroup must not be --pods-cgroup or below it: the agent would capture itself"
        } else if pods.starts_with(&agent) {
            "--pods-cgroup must not be below --agent-cgroup: no pod could be told from the agent"
        } else {
            return;
        };
        self.problems.push(Problem { usage: false, line: line.to_owned() });
    }

    pub(super) fn finish<T>(self, config: T) -> Result<T, Problems> {
        if self.problems.is_empty() {
            return Ok(config);
        }
        let status = if self.problems.iter().any(|problem| problem.usage) { EXIT_USAGE } else { EXIT_CONFIG };
        Err(Problems { lines: self.problems.into_iter().map(|problem| problem.line).collect(), status })
    }
}

/// Flags that name the file of a secret.
const SECRETS: [&str; 1] = ["token"];

/// A value that stands in for a wrong one until all problems are known.
pub(super) trait Placeholder {
    fn placeholder() -> Self;
}

macro_rules! placeholders {
    ($($type:ty => $value:expr;)*) => { $(impl Placeholder for $type { fn placeholder() -> Self { $value } })* };
}

placeholders! {
    Chain => Chain::Alone;
    String => String::new();
    Option<String> => None;
    Option<PathBuf> => None;
    PathBuf => PathBuf::new();
    SocketAddr => SocketAddr::from(([0, 0, 0, 0], 0));
    LogFormat => LogFormat::Text;
    Filter => Filter::default();
    Duration => Duration::ZERO;
    usize => 1;
    u16 => 0;
    bool => false;
    TrustDomain => TrustDomain::default();
}

fn must_be_file(metadata: std::fs::Metadata) -> std::io::Result<()> {
    if metadata.is_file() { Ok(()) } else { Err(std::io::Error::other("not a file")) }
}

/// The path without `.` and repeated slashes, links resolved if it exists.
fn normal(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.components().collect())
}
