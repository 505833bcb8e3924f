//! `meshctl tap`: what passes waypoints, gateways and agents, live. [`target`] reads what is named, [`find`] says which proxies see it, [`terms`] as what they know it,
//! [`stream`] reads them side by side, [`show`] makes lines of what they say. Proxies select: what is not asked for never leaves them.
//!
//! ```text
//! TARGET, --from, --to ── find ── a query for each proxy ── exec of `PROGRAM tap QUERY` in its pod ── lines, merged
//! --socket ────────────────────────────────────────────── its Unix socket ─────────────────────┘
//! ```

mod find;
mod show;
mod stream;
mod target;
mod terms;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use mesh_core::tap::Selector;
use tokio::sync::mpsc;

use crate::api::Api;
use crate::context::Context;
use crate::output::{Format, note};
use crate::stop::{FAILED, INTERRUPTED, OK, Stop, UNAVAILABLE, USAGE};
use find::{Found, World};
use show::{Counts, Line};
use stream::{Event, Way};
use target::{Kind, Named, Target};

/// Proxies that are asked at once.
const MOST: usize = 64;
/// Lines that wait to be shown, of all proxies.
const WAITING: usize = 256;

/// Options of the verb.
#[derive(Clone, Debug, clap::Args)]
pub struct Tap {
    /// What is asked: service/NAME, deployment/NAME, pod/NAME, namespace/NAME or waypoint/NAME, each also as NAME.NAMESPACE; a
    /// name alone is a service's. With --to it is who asks [default: the namespace of -n, or `default`]
    #[arg(value_name = "TARGET", value_parser = target::target)]
    target: Option<Target>,
    /// Only what this one asks
    #[arg(long, value_name = "WHO", value_parser = target::target)]
    from: Option<Target>,
    /// Only what is asked of this one
    #[arg(long, value_name = "WHOM", value_parser = target::target)]
    to: Option<Target>,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "target")]
    all_namespaces: bool,
    /// Only requests, or only connections
    #[arg(long, value_name = "KIND")]
    only: Option<Only>,
    /// Only requests of this method; may be said more than once, as all that follow
    #[arg(long, value_name = "METHOD")]
    method: Vec<String>,
    /// Only requests whose path begins so
    #[arg(long, value_name = "PREFIX")]
    path: Vec<String>,
    /// Only requests for this host, or for *.SUFFIX
    #[arg(long, value_name = "HOST")]
    authority: Vec<String>,
    /// Only requests with this status: 503, 5xx, 500-504, or 0 for no answer
    #[arg(long, value_name = "CODE")]
    code: Vec<String>,
    /// Only calls with this status of gRPC: 14 or UNAVAILABLE
    #[arg(long, value_name = "STATUS")]
    grpc_status: Vec<String>,
    /// Only what has this flag, as UH, UF or DENY; `-` is none
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    flag: Vec<String>,
    /// Most lines a second of each proxy; what is more is counted
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    max_rps: u32,
    /// How long, at most 1h
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = crate::wait::duration)]
    duration: Duration,
    /// Ask the proxy behind this Unix socket of this machine, and no cluster; may be said more than once
    #[arg(long, value_name = "PATH", conflicts_with = "all_namespaces")]
    socket: Vec<PathBuf>,
    /// Namespace of the mesh, where its agents are
    #[arg(long, value_name = "NAME", default_value = "undermesh-system", value_parser = crate::waypoint::object::name)]
    mesh_namespace: String,
}

/// What is wanted of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Only {
    /// Requests, which waypoints and gateways see
    Requests,
    /// Connections, which agents see, and waypoints where they are no HTTP
    Connections,
}

/// What is asked of each proxy, less whose.
struct Asked {
    pairs: Vec<(&'static str, String)>,
    from: End,
    to: End,
    selector: Selector,
}

/// One end.
#[derive(Default)]
struct End {
    named: Option<Named>,
    /// As proxies are asked for it: until pods are found by its name alone.
    terms: Vec<String>,
}

impl End {
    fn new(named: Option<Named>) -> Self {
        let terms = named.as_ref().and_then(Named::term).into_iter().collect();
        Self { named, terms }
    }

    /// Has it asked for by what proxies know its pods by; `world` are those of `seen_by`'s namespace.
    async fn find(&mut self, api: &Api, seen_by: Option<&Named>, world: &World) -> Result<(), Stop> {
        let Some(named) = &self.named else { return Ok(()) };
        let known = (seen_by == Some(named)).then_some(world.pods.as_slice());
        self.terms = terms::find(api, named, known).await?;
        if self.terms.len() > terms::MOST {
            note(&format!("{} of the {} pods of {named} are seen", terms::MOST, self.terms.len()));
            self.terms.truncate(terms::MOST);
        }
        Ok(())
    }
}

impl Tap {
    /// Reads it as the proxies will: what is wrong is told before anybody is asked.
    fn asked(&self, namespace: &str) -> Result<(Asked, Option<Named>), String> {
        let named = |target: &Option<Target>| target.as_ref().map(|target| target.within(namespace));
        let scope = match self.all_namespaces || !self.socket.is_empty() {
            true => None,
            false => Some(target::target(&format!("namespace/{namespace}"))?.within(namespace)),
        };
        let subject = named(&self.target);
        let gateway = subject.clone().filter(|subject| subject.kind == Kind::Gateway);
        let (from, asked_of) = target::ends(subject, named(&self.from), named(&self.to), scope)?;
        let mut pairs = vec![("max-rps", self.max_rps.to_string()), ("seconds", self.duration.as_secs().to_string())];
        if let Some(only) = self.only {
            pairs.push(("kind", if only == Only::Requests { "request" } else { "connection" }.to_owned()));
        }
        for (key, values) in [
            ("method", &self.method),
            ("path", &self.path),
            ("authority", &self.authority),
            ("code", &self.code),
            ("grpc", &self.grpc_status),
            ("flag", &self.flag),
        ] {
            pairs.extend(values.iter().map(|value| (key, value.clone())));
        }
        let (from, to) = (End::new(from), End::new(asked_of.clone()));
        let mut asked = Asked { pairs, from, to, selector: Selector::default() };
        asked.selector = Selector::parse(&asked.query(&[])).map_err(|error| error.to_string())?;
        if self.only == Some(Only::Connections)
            && Selector::parse(&without_kind(&asked)).is_ok_and(|s| s.means_requests())
        {
            return Err(
                "connections have no method, path, authority or status: leave --only connections out, or those".into(),
            );
        }
        Ok((asked, gateway.or(asked_of)))
    }
}

fn without_kind(asked: &Asked) -> String {
    let pairs = asked.pairs.iter().filter(|(key, _)| *key != "kind").cloned().collect();
    Asked { pairs, from: End::default(), to: End::default(), selector: Selector::default() }.query(&[])
}

impl Asked {
    /// As one proxy is asked. `pods` are those of the service that is asked, which agents know by them alone.
    fn query(&self, pods: &[String]) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (key, value) in &self.pairs {
            query.append_pair(key, value);
        }
        for (key, end) in [("from", &self.from), ("to", &self.to)] {
            for term in &end.terms {
                query.append_pair(key, term);
            }
        }
        for pod in pods {
            query.append_pair("to", &format!("pod:{pod}"));
        }
        query.finish()
    }
}

/// Shows.
pub async fn run(options: &Tap, context: &Context) -> Result<u8, Stop> {
    if context.format == Format::Yaml {
        return Err(Stop::new(USAGE, "a tap is text or JSON, a line for each request: -o text or -o json"));
    }
    let namespace = context.chosen.as_deref().unwrap_or("default");
    let (mut asked, seen_by) = options.asked(namespace).map_err(|why| Stop::new(USAGE, why))?;
    if !options.socket.is_empty() {
        let unknown = [&asked.from, &asked.to].into_iter().filter_map(|end| end.named.as_ref());
        if let Some(end) = unknown.into_iter().find(|end| end.kind.owns_pods() && end.term().is_none()) {
            let why = format!("a proxy knows the pods of {end} by their own names: with --socket write pod/NAME");
            return Err(Stop::new(USAGE, why));
        }
        let ways = options.socket.iter().map(|path| (Way::Socket(path.clone()), asked.query(&[]))).collect();
        return merge(None, ways, context).await;
    }
    let api = Api::connect(&context.access).await?;
    let world = find::read(&api, seen_by.as_ref(), &options.mesh_namespace).await?;
    let with_requests = options.only != Some(Only::Connections);
    let with_connections = !asked.selector.means_requests();
    let found = find::proxies(&world, seen_by.as_ref(), with_requests || with_connections, with_connections);
    let found = found.map_err(Stop::failed)?;
    asked.from.find(&api, seen_by.as_ref(), &world).await?;
    asked.to.find(&api, seen_by.as_ref(), &world).await?;
    found.missing.iter().for_each(|why| note(why));
    if found.proxies.is_empty() {
        return Err(Stop::failed(nobody(seen_by.as_ref(), with_connections)));
    }
    if found.proxies.len() > MOST {
        let count = found.proxies.len();
        return Err(Stop::failed(format!(
            "{count} proxies see that, of which {MOST} can be asked at once; name less as TARGET"
        )));
    }
    if with_requests && found.proxies.iter().all(|proxy| proxy.is_agent) {
        note(
            "no waypoint serves it: only its connections are seen; `meshctl waypoint apply --enroll-namespace` makes one",
        );
    }
    merge(Some(api), ways(&asked, found), context).await
}

/// Who is asked for what.
fn ways(asked: &Asked, found: Found) -> Vec<(Way, String)> {
    let pods = &found.pods[..found.pods.len().min(terms::MOST)];
    if pods.len() < found.pods.len() {
        note(&format!("connections are seen of {} of its {} pods", pods.len(), found.pods.len()));
    }
    let query = |is_agent: bool| asked.query(if is_agent { pods } else { &[] });
    let proxies = found.proxies.iter();
    proxies.map(|proxy| (Way::Pod(proxy.clone()), query(proxy.is_agent))).collect()
}

fn nobody(to: Option<&Named>, with_connections: bool) -> String {
    let what = to.map_or_else(|| "what passes".to_owned(), ToString::to_string);
    match with_connections {
        true => format!("no proxy sees {what}: no waypoint serves it, and no pod of it is on a node with an agent"),
        false => format!(
            "no waypoint or gateway that runs serves {what}, and nobody else sees requests: `meshctl waypoint apply --enroll-namespace` makes one, \
             and `--only connections`, without what only requests have, asks agents"
        ),
    }
}

/// What is known of one proxy while it is read.
#[derive(Default)]
struct Heard {
    name: String,
    counts: Counts,
    told: Counts,
    has_begun: bool,
    has_ended: bool,
}

/// Reads all of them, and shows what they say, until all have ended or nobody wants to know any more.
async fn merge(api: Option<Api>, ways: Vec<(Way, String)>, context: &Context) -> Result<u8, Stop> {
    let (sender, mut events) = mpsc::channel(WAITING);
    let mut heard: Vec<Heard> = ways.iter().map(|(way, _)| Heard { name: way.name(), ..Heard::default() }).collect();
    let read = |(number, (way, query))| stream::follow(api.as_ref(), way, query, number, sender.clone());
    let readers = join_all(ways.iter().map(|(way, query)| (way, query.as_str())).enumerate().map(read));
    drop(sender);
    tokio::pin!(readers);
    let (mut failed, mut are_done) = (0, false);
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let mut ended = OK;
    loop {
        let event = tokio::select! {
            biased;
            _ = &mut interrupted => {
                ended = INTERRUPTED;
                break;
            }
            event = events.recv() => event,
            // Only when all that was read is shown: they wait for who looks, and proxies count what they lose by that.
            _ = &mut readers, if !are_done => {
                are_done = true;
                continue;
            }
        };
        let Some((number, event)) = event else { break };
        let Some(proxy) = heard.get_mut(number) else { continue };
        match event {
            Event::Line(text) => match proxy.take(&text, context.format) {
                Ok(Some(shown)) => match write(&shown) {
                    // Nobody reads any more: `head` has seen enough.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(OK),
                    written => written.map_err(|error| Stop::failed(format!("standard output: {error}")))?,
                },
                Ok(None) => {}
                Err(why) => note(&format!("{}: {why}", proxy.name)),
            },
            // However it goes: it has told all.
            Event::End(_) if proxy.has_ended => {}
            Event::End(Ok(())) => {
                failed += usize::from(!proxy.has_begun);
                note(&format!("{}: it broke off before its time: the proxy has ended, or the way to it", proxy.name));
            }
            Event::End(Err(why)) => {
                failed += usize::from(!proxy.has_begun);
                note(&format!("{}: {why}", proxy.name));
            }
        }
    }
    let left_out = heard.iter().filter_map(|proxy| Some(format!("{}: {}", proxy.name, proxy.counts.left_out()?)));
    left_out.for_each(|line| note(&line));
    if failed == heard.len() {
        let why = if failed == 1 { "the proxy could not be tapped" } else { "none of the proxies could be tapped" };
        return Err(Stop::new(if api.is_some() { UNAVAILABLE } else { FAILED }, why));
    }
    Ok(ended)
}

impl Heard {
    /// What is to be shown of a line; the error is that it is none.
    fn take(&mut self, text: &str, format: Format) -> Result<Option<String>, String> {
        let line = show::line(text)?;
        match &line {
            Line::Begun(name) => {
                self.has_begun = true;
                // A socket says of whom it is.
                if !name.is_empty() && self.name.starts_with('/') {
                    self.name.clone_from(name);
                }
                note(&format!("{} is tapped", self.name));
            }
            Line::Counts(counts) | Line::End(counts) => {
                self.counts = *counts;
                self.has_ended = matches!(line, Line::End(_));
                let is_news = (counts.limited, counts.lost) != (self.told.limited, self.told.lost);
                if is_news
                    && format == Format::Text
                    && let Some(left_out) = counts.left_out()
                {
                    note(&format!("{}: {left_out}", self.name));
                }
                self.told = *counts;
            }
            Line::Seen(_) => {}
        }
        Ok(match (&line, format) {
            (_, Format::Json) => Some(show::json(&self.name, text)),
            (Line::Seen(seen), _) => Some(show::text(&self.name, seen)),
            _ => None,
        })
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}
