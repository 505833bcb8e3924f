//! The command line. What is wrong with it is said by clap, with the nearest right word; `main` runs what comes out.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::api::Access;
use crate::check::Check;
use crate::context::Context;
use crate::install::Install;
use crate::output::{Colour, Format};
use crate::status::Status;
use crate::stop::{OK, USAGE};
use crate::tap::Tap;
use crate::uninstall::Uninstall;
use crate::version::Version;
use crate::wait::duration;
use crate::waypoint::Waypoint;
use crate::webhook::Webhook;

/// Installs, checks and shows Undermesh in a Kubernetes cluster.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, disable_help_subcommand = true)]
pub struct Cli {
    /// Kubeconfig [default: $KUBECONFIG, ~/.kube/config, or the pod that this runs in]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Cluster")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Cluster")]
    context: Option<String>,
    /// User to act as
    #[arg(long = "as", global = true, value_name = "USER", help_heading = "Cluster")]
    impersonate: Option<String>,
    /// Namespace of the mesh [default: undermesh-system]; with `waypoint` and `tap`, that of waypoints and of what is tapped [default: default]
    #[arg(short, long, global = true, value_name = "NAME", value_parser = label, help_heading = "Cluster")]
    namespace: Option<String>,
    /// How long to wait for one answer of the API server
    #[arg(long, global = true, value_name = "TIME", default_value = "30s", value_parser = duration, help_heading = "Cluster")]
    request_timeout: Duration,
    /// How the answer looks
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "text", help_heading = "Output")]
    output: Format,
    /// When colour is used
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", help_heading = "Output")]
    color: Colour,
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Install the mesh, or bring it to the version and the values given
    Install(Box<Install>),
    /// Remove the mesh from the cluster and from its nodes
    Uninstall(Uninstall),
    /// Say what is not as it should be, why, and what to do
    Check(Check),
    /// Show what is installed and how it fares
    Status(Status),
    /// Show requests and connections as they pass
    Tap(Box<Tap>),
    /// Make, show and delete waypoints, which act on requests
    Waypoint(Waypoint),
    /// Let edits of policies pass unchecked while nobody can answer for them
    Webhook(Webhook),
    /// Show versions
    Version(Version),
}

/// Reads the command line. The error is what clap prints, with the exit code. Called as `kubectl-mesh`, it is a plugin of kubectl.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, (clap::Error, u8)> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let own = arguments.first().and_then(|own| Path::new(own).file_name());
    let name = if own.is_some_and(|own| own == "kubectl-mesh") { "kubectl mesh" } else { "meshctl" };
    let matches = Cli::command().bin_name(name).try_get_matches_from(arguments);
    matches.and_then(|matches| Cli::from_arg_matches(&matches)).map_err(|error| {
        let code = if error.use_stderr() { USAGE } else { OK };
        (error, code)
    })
}

impl Verb {
    /// It may change something: who stops it has to know that what was done stays.
    pub fn changes(&self) -> bool {
        match self {
            Verb::Install(_) | Verb::Uninstall(_) | Verb::Webhook(_) => true,
            Verb::Waypoint(waypoint) => waypoint.changes(),
            Verb::Check(_) | Verb::Status(_) | Verb::Tap(_) | Verb::Version(_) => false,
        }
    }
}

impl Cli {
    /// What every command knows.
    pub fn context(&self) -> Context {
        Context {
            access: Access {
                kubeconfig: self.kubeconfig.clone(),
                context: self.context.clone(),
                impersonate: self.impersonate.clone(),
                timeout: self.request_timeout,
            },
            namespace: self.namespace.clone().unwrap_or_else(|| "undermesh-system".to_owned()),
            chosen: self.namespace.clone(),
            format: self.output,
            colour: self.color,
        }
    }
}

/// A name that Kubernetes takes for a namespace. It becomes part of paths.
fn label(text: &str) -> Result<String, String> {
    let is_plain = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    match is_plain && !text.is_empty() && text.len() <= 63 && !text.starts_with('-') && !text.ends_with('-') {
        true => Ok(text.to_owned()),
        false => Err("lower-case letters, digits and dashes, at most 63".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Cli, u8> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|(_, code)| code)
    }

    #[test]
    fn hardening_b192_a_wrong_command_line_is_64() {
        Cli::command().debug_assert();
        for line in [
            "meshctl",
            "meshctl instal",
            "meshctl install --nope",
            "meshctl install --timeout",
            "meshctl install --timeout 5",
            "meshctl install --timeout 0s",
            "meshctl install --timeout -1s",
            "meshctl install --timeout 2d",
            "meshctl -o xml status",
            "meshctl -n ../x status",
            "meshctl -n A status",
            "meshctl -n a -n b status",
            "meshctl install --dry-run --reuse-values",
            "meshctl webhook",
            "meshctl webhook puase",
            "meshctl waypoint",
            "meshctl waypoint apply --for everything",
            "meshctl waypoint apply --name ../x",
            "meshctl waypoint apply --waypoint-timeout 90",
            "meshctl waypoint delete",
            "meshctl waypoint delete wp --all",
            "meshctl tap thing/web",
            "meshctl tap web -A",
            "meshctl tap --only everything",
            "meshctl tap --duration 5",
            "meshctl tap --max-rps many",
        ] {
            assert_eq!(read(line).err(), Some(USAGE), "{line}");
        }
        for line in ["meshctl --help", "meshctl --version", "meshctl install --help"] {
            assert_eq!(read(line).err(), Some(OK), "{line}");
        }
    }

    #[test]
    fn kubectls_flags_are_taken_on_either_side_of_the_verb() {
        let cli =
            read("kubectl-mesh status --context c --kubeconfig /k -n m --as u --request-timeout 5s -o json").unwrap();
        let context = cli.context();
        assert_eq!((context.namespace.as_str(), context.format), ("m", Format::Json));
        assert_eq!(context.access.context.as_deref(), Some("c"));
        assert_eq!(context.access.impersonate.as_deref(), Some("u"));
        assert_eq!(context.access.timeout, Duration::from_secs(5));
        assert!(matches!(read("kubectl-mesh webhook pause -o json").unwrap().verb, Verb::Webhook(_)));
        assert_eq!(read("meshctl -n x check").unwrap().context().namespace, "x");
        let context = read("meshctl waypoint list").unwrap().context();
        assert_eq!((context.namespace.as_str(), context.chosen), ("undermesh-system", None));
        let tap = read("meshctl tap deploy/web -n shop --to svc/a.b --code 5xx --flag - --path /a -o json").unwrap();
        assert_eq!((tap.context().chosen.as_deref(), tap.context().format), (Some("shop"), Format::Json));
        let apply = read("meshctl waypoint apply -n shop --for all --enroll-namespace --wait --waypoint-timeout 10s");
        assert_eq!(apply.unwrap().context().chosen.as_deref(), Some("shop"));
    }

    #[test]
    fn help_is_that_of_how_it_was_called() {
        let help = |line: &str| parse(line.split_whitespace().map(OsString::from)).err().unwrap().0.to_string();
        assert!(help("/usr/bin/kubectl-mesh check --help").contains("Usage: kubectl mesh check"));
        assert!(help("meshctl check --help").contains("Usage: meshctl check"));
    }
}
