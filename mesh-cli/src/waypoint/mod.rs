//! `meshctl waypoint apply | generate | list | status | delete`: waypoints with the words of istioctl. A waypoint is a Gateway, and nothing more is written here
//! than that, and the label that a namespace is enrolled with; the control plane makes what serves it. What is written and shown is made by [`object`].

pub mod object;
mod users;

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::api::Api;
use crate::context::Context;
use crate::output::{Format, data, note, table};
use crate::progress::Progress;
use crate::stop::{FAILED, OK, Stop, USAGE};
use crate::template::yaml;
use crate::wait::{Look, duration, until};
use object::{Purpose, Standing, Wanted};

/// Where Gateways are.
const GATEWAYS: &str = "/apis/gateway.networking.k8s.io/v1";

/// Options of the verb.
#[derive(Clone, Debug, clap::Args)]
pub struct Waypoint {
    /// What to do
    #[command(subcommand)]
    order: Order,
}

impl Waypoint {
    /// It may change something.
    pub fn changes(&self) -> bool {
        matches!(self.order, Order::Apply(_) | Order::Delete { .. })
    }
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
enum Order {
    /// Make a waypoint, or bring it to the options given
    Apply(Apply),
    /// Print the Gateway that `apply` would make
    Generate(Shape),
    /// List waypoints
    List {
        /// Of all namespaces
        #[arg(short = 'A', long)]
        all_namespaces: bool,
    },
    /// Show how waypoints fare
    Status {
        /// Only this one
        name: Option<String>,
        /// Of all namespaces
        #[arg(short = 'A', long)]
        all_namespaces: bool,
        /// Wait until each is programmed
        #[arg(short, long)]
        wait: bool,
        /// How long to wait
        #[arg(long, value_name = "TIME", default_value = "90s", value_parser = duration)]
        waypoint_timeout: Duration,
    },
    /// Delete waypoints
    Delete {
        /// Which
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        names: Vec<String>,
        /// All of the namespace
        #[arg(long)]
        all: bool,
    },
}

/// What the waypoint is to be.
#[derive(Clone, Debug, clap::Args)]
struct Shape {
    /// Its name
    #[arg(long, value_name = "NAME", default_value = "waypoint", value_parser = object::name)]
    name: String,
    /// What it takes; without, services, or what the class says
    #[arg(long = "for", value_name = "WHAT")]
    purpose: Option<Purpose>,
    /// Its class
    #[arg(long, value_name = "NAME", default_value = "undermesh-waypoint", value_parser = object::name)]
    class: String,
}

#[derive(Clone, Debug, clap::Args)]
struct Apply {
    #[command(flatten)]
    shape: Shape,
    /// Send what is asked of the namespace's services through it
    #[arg(long)]
    enroll_namespace: bool,
    /// Take the place of another waypoint that the namespace has, and of another class
    #[arg(long)]
    overwrite: bool,
    /// Wait until it is programmed; with --enroll-namespace that is so unless it is false, and the namespace is enrolled only then
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    wait: Option<bool>,
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = duration)]
    waypoint_timeout: Duration,
}

impl Apply {
    /// A namespace whose waypoint cannot be reached yet is closed: it is waited for, unless somebody wants that.
    fn waits(&self) -> bool {
        self.wait.unwrap_or(self.enroll_namespace)
    }
}

impl Shape {
    fn wanted<'a>(&'a self, namespace: &'a str) -> Wanted<'a> {
        Wanted { namespace, name: &self.name, class: &self.class, purpose: self.purpose }
    }
}

/// Does it.
pub async fn run(options: &Waypoint, context: &Context) -> Result<u8, Stop> {
    let namespace = context.chosen.as_deref().unwrap_or("default");
    match &options.order {
        Order::Generate(shape) => {
            let gateway = object::gateway(&shape.wanted(context.chosen.as_deref().unwrap_or_default()));
            match context.format {
                Format::Text => data(&yaml::write(&gateway)).map_err(Stop::failed)?,
                _ => context.print(&gateway)?,
            }
            Ok(OK)
        }
        Order::Apply(options) => apply(options, namespace, context).await,
        Order::List { all_namespaces } => list(*all_namespaces, namespace, context).await,
        Order::Status { name, all_namespaces, wait, waypoint_timeout } => {
            let wait = wait.then_some(*waypoint_timeout);
            status(name.as_deref(), *all_namespaces, wait, namespace, context).await
        }
        Order::Delete { names, all } => delete(names, *all, namespace, context).await,
    }
}

fn path(namespace: &str, name: &str) -> String {
    format!("{GATEWAYS}/namespaces/{namespace}/gateways/{name}")
}

/// A cluster without the Gateway API answers as if an object were missing.
async fn with_gateways(api: &Api) -> Result<(), Stop> {
    match api.find(GATEWAYS).await? {
        Some(_) => Ok(()),
        None => Err(Stop::failed(
            "the cluster has no Gateway API, of which waypoints are made; install it, as with `kubectl apply --server-side -f \
             https://github.com/kubernetes-sigs/gateway-api/releases/latest/download/standard-install.yaml`",
        )),
    }
}

async fn apply(options: &Apply, namespace: &str, context: &Context) -> Result<u8, Stop> {
    let api = Api::connect(&context.access).await?;
    with_gateways(&api).await?;
    let name = &options.shape.name;
    let home = format!("/api/v1/namespaces/{namespace}");
    let Some(owner) = api.find(&home).await? else {
        return Err(Stop::failed(format!("there is no namespace {namespace}; -n says which is meant")));
    };
    // Both are looked at before anything is written.
    let enrolment = match options.enroll_namespace {
        true => object::enrolment(&owner, name, options.overwrite).map_err(Stop::failed)?,
        false => None,
    };
    let old = api.find(&path(namespace, name)).await?;
    if let Some(old) = &old {
        object::may_replace(old, &options.shape.class, options.overwrite).map_err(Stop::failed)?;
    }
    let gateway = object::gateway(&options.shape.wanted(namespace));
    let applied = api.applied(&path(namespace, name), &gateway, options.overwrite).await;
    let (code, _) = applied.map_err(|failure| match failure.code {
        409 => Stop::failed(format!("waypoint {namespace}/{name}: {failure}; --overwrite takes the fields over")),
        _ => Stop::from(failure),
    })?;
    let is_new = code == 201;
    say(context, &format!("waypoint {namespace}/{name} {}", if is_new { "made" } else { "is as asked for" }))?;
    // The Gateway first: what names one that there is not is closed.
    if options.waits() {
        wait_for(&api, &[(namespace.to_owned(), name.clone())], options.waypoint_timeout, context).await?;
        say(context, &format!("waypoint {namespace}/{name} is ready"))?;
    }
    if let Some(change) = &enrolment {
        api.merge(&home, change).await?;
    }
    if options.enroll_namespace {
        say(context, &format!("namespace {namespace} uses the waypoint {name}"))?;
        if !object::is_of_the_mesh(&owner) {
            note(&format!(
                "namespace {namespace} has no label istio.io/dataplane-mode=ambient: its pods do not use waypoints before they are in the mesh"
            ));
        }
    }
    if context.is_for_a_program() {
        let answer = json!({
            "namespace": namespace, "name": name, "created": is_new, "enrolled": options.enroll_namespace, "ready": options.waits(),
        });
        context.print(&answer)?;
    }
    Ok(OK)
}

/// A line for people; a program gets one answer at the end.
fn say(context: &Context, text: &str) -> Result<(), Stop> {
    match context.format {
        Format::Text => data(&format!("{text}\n")).map_err(Stop::failed),
        _ => Ok(()),
    }
}

/// Waypoints, by namespace and name.
async fn found(api: &Api, all: bool, namespace: &str) -> Result<Vec<Value>, Stop> {
    with_gateways(api).await?;
    let at = match all {
        true => format!("{GATEWAYS}/gateways"),
        false => format!("{GATEWAYS}/namespaces/{namespace}/gateways"),
    };
    let mut gateways: Vec<Value> = api.list(&at).await?.into_iter().filter(object::is_waypoint).collect();
    gateways.sort_by_key(object::key);
    Ok(gateways)
}

async fn list(all: bool, namespace: &str, context: &Context) -> Result<u8, Stop> {
    let api = Api::connect(&context.access).await?;
    let standings: Vec<Standing> = found(&api, all, namespace).await?.iter().map(Standing::of).collect();
    if context.is_for_a_program() {
        context.print(&standings)?;
    } else if standings.is_empty() {
        note(&none(all, namespace));
    } else {
        let rows: Vec<Vec<String>> = standings.iter().map(Standing::row).collect();
        data(&table(&["NAMESPACE", "NAME", "FOR", "PROGRAMMED", "ADDRESS"], &rows)).map_err(Stop::failed)?;
    }
    Ok(OK)
}

fn none(all: bool, namespace: &str) -> String {
    match all {
        true => "there are no waypoints".to_owned(),
        false => format!("there are no waypoints in namespace {namespace}; -A looks into all"),
    }
}

async fn status(
    name: Option<&str>,
    all: bool,
    wait: Option<Duration>,
    namespace: &str,
    context: &Context,
) -> Result<u8, Stop> {
    let api = Api::connect(&context.access).await?;
    let is_meant = |gateway: &Value| name.is_none_or(|name| object::key(gateway).1 == name);
    let look =
        || async { Ok::<_, Stop>(found(&api, all, namespace).await?.into_iter().filter(is_meant).collect::<Vec<_>>()) };
    let mut gateways = look().await?;
    if gateways.is_empty() {
        let why = name.map_or_else(|| none(all, namespace), |name| format!("there is no waypoint {namespace}/{name}"));
        return Err(Stop::failed(why));
    }
    if let Some(timeout) = wait {
        let keys: Vec<(String, String)> = gateways.iter().map(object::key).collect();
        wait_for(&api, &keys, timeout, context).await?;
        gateways = look().await?;
    }
    let standings: Vec<Standing> = gateways.iter().map(Standing::of).collect();
    match context.format {
        Format::Text => {
            let rows: Vec<Vec<String>> = standings.iter().map(Standing::detail).collect();
            let header = ["NAMESPACE", "NAME", "STATUS", "TYPE", "REASON", "MESSAGE"];
            data(&table(&header, &rows)).map_err(Stop::failed)?;
        }
        _ => context.print(&standings)?,
    }
    Ok(if standings.iter().all(|standing| standing.programmed) { OK } else { FAILED })
}

async fn wait_for(api: &Api, keys: &[(String, String)], timeout: Duration, context: &Context) -> Result<(), Stop> {
    let look = || async {
        let mut lines = Vec::new();
        for (namespace, name) in keys {
            match api.find(&path(namespace, name)).await? {
                None => lines.push(format!("waypoint {namespace}/{name}: it is gone")),
                Some(gateway) => lines.extend(Standing::of(&gateway).waiting()),
            }
        }
        Ok(Look { is_done: lines.is_empty(), lines, value: () })
    };
    until("waypoints", Progress::new(context.is_for_a_program(), timeout), look).await
}

async fn delete(names: &[String], all: bool, namespace: &str, context: &Context) -> Result<u8, Stop> {
    for name in names {
        object::name(name).map_err(|why| Stop::new(USAGE, format!("{name:?}: {why}")))?;
    }
    let api = Api::connect(&context.access).await?;
    let gateways = found(&api, false, namespace).await?;
    let there: Vec<String> = gateways.iter().map(|gateway| object::key(gateway).1).collect();
    if let Some(missing) = names.iter().find(|name| !there.contains(name)) {
        return Err(Stop::failed(format!("there is no waypoint {namespace}/{missing}; nothing was deleted")));
    }
    let chosen: &[String] = if all { &there } else { names };
    if chosen.is_empty() {
        note(&none(false, namespace));
    }
    // Before anything is changed: what cannot be read leaves all as it is.
    let users = users::of(&api, namespace, chosen).await?;
    let mut deleted = Vec::new();
    for name in chosen {
        users::leave(&api, &users, namespace, name).await?;
        if api.delete(&path(namespace, name)).await? {
            say(context, &format!("waypoint {namespace}/{name} deleted"))?;
            deleted.push(name.clone());
        }
    }
    if context.is_for_a_program() {
        context.print(&json!({ "namespace": namespace, "deleted": deleted }))?;
    }
    Ok(OK)
}
