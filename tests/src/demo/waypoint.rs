//! HTTP: a waypoint before the services of Bookinfo, and what routes do there.
use super::report::Progress;
use super::tour::{PAGE, SOON, Stage};
use crate::harness::bookinfo::{Load, parse};
use crate::harness::issuer::ISSUER;
use crate::harness::routing::{http_route, virtual_service};
use crate::harness::waypoint::USE_WAYPOINT;
use crate::harness::{Bookinfo, Issuer, Lab, Process, ServiceSpec, Stars, Waypoint, eventually, manifest};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::time::{Duration, Instant};

const JASON: Option<&str> = Some("jason");
/// Of what is put wrong on purpose a page says so.
const NO_REVIEWS: &str = "Error fetching product reviews!";
const NO_RATINGS: &str = "Ratings service is currently unavailable";

/// What pages are loaded by. Apart from the stage, whose report is busy meanwhile.
#[derive(Clone, Copy)]
struct Pages<'a> {
    lab: &'a Lab,
    bookinfo: &'a Bookinfo,
}

impl<'a> Stage<'a> {
    fn pages(&self) -> Pages<'a> {
        Pages { lab: self.lab, bookinfo: self.bookinfo }
    }

    pub(super) fn http(&mut self) {
        let pages = self.pages();
        self.report.chapter(
            "HTTP",
            "A Gateway and a label put a waypoint before the services of the namespace: agents lead requests through it, and nothing goes around it.",
        );
        let gateway = manifest::waypoint("default", "waypoint", "undermesh-waypoint", &Default::default());
        self.report.quote(gateway.trim_end());
        let mut waypoint = None;
        self.report.fact("the waypoint is ready, and each request of a page passes it", |progress| {
            let started = waypoint.insert(pages.waypoint()?);
            progress.say("the namespace is bound to it");
            pages.lab.enrol_namespace_with("default", &[(USE_WAYPOINT, "waypoint")])?;
            eventually("requests through the waypoint", SOON, || {
                pages.page(None)?;
                let counted = started.metrics()?.sum("istio_requests_total", &[]);
                ensure!(counted >= 3.0, "it counted {counted}");
                Ok(vec![format!("mesh-waypoint  {} on {}", started.pod.name, started.pod.node.name)])
            })
        });
        let Some(waypoint) = waypoint else { return };
        self.by_user();
        self.by_share();
        self.faults();
        self.timeout();
        self.mirror(&waypoint);
        self.circuits();
        self.tokens();
        self.report.fact("without the label requests go from agent to agent again", |_| {
            pages.lab.enrol_namespace("default")?;
            eventually("requests around it", SOON, || {
                let counted = || Ok::<_, anyhow::Error>(waypoint.metrics()?.sum("istio_requests_total", &[]));
                let before = counted()?;
                ensure!(pages.page(None)?.status == 200 && counted()? == before, "the waypoint still counts");
                Ok(())
            })?;
            pages.lab.delete_gateway("default", "waypoint")?;
            pages.lab.stop_waypoint(waypoint)?;
            Ok(Vec::new())
        });
    }

    fn by_user(&mut self) {
        let pages = self.pages();
        let text = http_route(
            "reviews",
            &[
                "{matches: [{headers: [{name: end-user, value: jason}]}], backendRefs: [{name: reviews-v2, port: 9080}]}",
                "{backendRefs: [{name: reviews-v1, port: 9080}]}",
            ],
        );
        self.report.quote(text.trim_end());
        self.report.fact("jason gets black stars, everybody else none", |_| {
            pages.lab.apply("reviews", &text)?;
            let start = Instant::now();
            // Without the route a third of his pages has black stars, too: only ten of them in a row are the route's.
            eventually("ten pages in a row with black stars", SOON, || {
                pages.all(JASON, 10, |load| load.stars == Stars::Black)
            })?;
            let took = start.elapsed().as_millis();
            pages.all(None, 10, |load| load.stars == Stars::None)?;
            Ok(vec![format!("ten pages of it in a row were there {took} ms after the file was written")])
        });
    }

    fn by_share(&mut self) {
        let pages = self.pages();
        let text = virtual_service(
            "reviews",
            &[
                "{route: [{destination: {host: reviews-v1}, weight: 50}, {destination: {host: reviews-v3}, weight: 50}]}",
            ],
        );
        self.report.quote(text.trim_end());
        // Half of n loads has a standard deviation of sqrt(1 / 4n): the slack is five of them.
        let (count, slack) = if self.options.fast { (80, 28.0) } else { (500, 11.2) };
        self.report.fact("half of the pages have red stars", |progress| {
            let took = pages.change("reviews", &text, None, |load| load.stars == Stars::Red)?;
            let loads = pages.loads(None, count, progress)?;
            let red = loads.iter().filter(|load| load.stars == Stars::Red).count() as f64 * 100.0 / f64::from(count);
            ensure!(loads.iter().all(|load| [Stars::Red, Stars::None].contains(&load.stars)), "a page failed");
            ensure!((red - 50.0).abs() <= slack, "{red:.1} % of {count} pages are red");
            Ok(vec![took, format!("{red:.1} % of {count} pages")])
        });
    }

    fn faults(&mut self) {
        let pages = self.pages();
        let fault = |fault: &str| {
            let first = format!(
                "{{match: [{{headers: {{end-user: {{exact: jason}}}}}}], fault: {{{fault}}}, route: [{{destination: {{host: ratings}}}}]}}"
            );
            virtual_service("ratings", &[&first, "{route: [{destination: {host: ratings}}]}"])
        };
        let all = |version: &str| {
            virtual_service("reviews", &[&format!("{{route: [{{destination: {{host: reviews-{version}}}}}]}}")])
        };
        self.report.fact("ratings two seconds late for jason: his pages wait, and have their stars", |_| {
            pages.change("reviews", &all("v2"), None, |load| load.stars == Stars::Black)?;
            let late = fault("delay: {percentage: {value: 100}, fixedDelay: 2s}");
            let took = pages.change("ratings", &late, JASON, |load| load.milliseconds >= 2000.0)?;
            pages.all(JASON, 1, |load| load.milliseconds >= 2000.0 && load.stars == Stars::Black)?;
            pages.all(None, 3, |load| load.milliseconds < 2000.0 && load.stars == Stars::Black)?;
            Ok(vec![took])
        });
        let failing = fault("abort: {percentage: {value: 100}, httpStatus: 500}");
        self.report.quote(failing.trim_end());
        self.report.fact("ratings answer 500 to jason: his pages say so, and others notice nothing", |_| {
            let took = pages.change("ratings", &failing, JASON, |load| load.text.contains(NO_RATINGS))?;
            pages.all(None, 3, |load| load.stars == Stars::Black)?;
            Ok(vec![took])
        });
    }

    fn timeout(&mut self) {
        let pages = self.pages();
        let late = virtual_service(
            "ratings",
            &["{fault: {delay: {percentage: {value: 100}, fixedDelay: 2s}}, route: [{destination: {host: ratings}}]}"],
        );
        let limit = virtual_service("reviews", &["{timeout: 0.5s, route: [{destination: {host: reviews-v2}}]}"]);
        self.report.fact(
            "half a second for reviews, whose ratings take two: the page tries twice and gives up",
            |_| {
                pages.change("ratings", &late, None, |load| load.milliseconds >= 2000.0)?;
                let took = pages.change("reviews", &limit, None, |load| load.text.contains(NO_REVIEWS))?;
                let direct = pages.bookinfo.client.get("http://reviews:9080/reviews/0")?;
                ensure!(direct.stdout == "upstream request timeout", "{direct:?}");
                pages.lab.delete("ratings")?;
                pages.change("reviews", &limit.replace("timeout: 0.5s, ", ""), None, |load| {
                    load.stars == Stars::Black
                })?;
                Ok(vec![took, format!("reviews: {}, {}", direct.stderr.trim(), direct.stdout)])
            },
        );
    }

    fn mirror(&mut self, waypoint: &Waypoint) {
        let pages = self.pages();
        let text = virtual_service(
            "reviews",
            &[
                "{route: [{destination: {host: reviews-v1}}], mirror: {host: reviews-v3}, mirrorPercentage: {value: 100}}",
            ],
        );
        self.report.quote(text.trim_end());
        self.report.fact("reviews v3 gets a copy of each request, and pages show v1", |_| {
            // v3 asks ratings for each, and v1 never does.
            let asked = || {
                Ok::<_, anyhow::Error>(
                    waypoint.metrics()?.sum("istio_requests_total", &[("destination_service_name", "ratings")]),
                )
            };
            pages.change("reviews", &text, None, |load| load.stars == Stars::None)?;
            let before = asked()?;
            pages.all(None, 10, |load| load.stars == Stars::None)?;
            eventually("ten copies", SOON, || {
                let more = asked()? - before;
                ensure!(more >= 10.0, "v3 was asked {more} times");
                Ok(())
            })?;
            pages.lab.delete("reviews")?;
            Ok(vec!["10 pages without stars, and 10 requests of v3 to ratings".into()])
        });
    }

    fn circuits(&mut self) {
        let pages = self.pages();
        let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews, namespace: default}\nspec:\n  host: reviews\n  trafficPolicy:\n    connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}\n";
        self.report.quote(rule.trim_end());
        self.report.fact("reviews serve one request, another one waits, and more at the same time are refused", |_| {
            pages.lab.apply("reviews", rule)?;
            let took = eventually("a request that is too much", SOON, || {
                let loads = pages.at_once("http://reviews:9080/reviews/0", 6, 4)?;
                let refused = loads.iter().filter(|load| load.status == 503).collect::<Vec<_>>();
                let served = loads.iter().filter(|load| load.status == 200).count();
                ensure!(served > 0 && served + refused.len() == loads.len(), "{loads:?}");
                let one = refused.first().context("none was refused")?;
                ensure!(one.text.ends_with("overflow"), "{one:?}");
                Ok(vec![format!(
                    "{served} of {} requests by six clients were served, the others: 503, {}",
                    loads.len(),
                    one.text
                )])
            })?;
            pages.lab.delete("reviews")?;
            eventually("no limit any more", SOON, || {
                let loads = pages.at_once("http://reviews:9080/reviews/0", 6, 4)?;
                ensure!(loads.iter().all(|load| load.status == 200), "{loads:?}");
                Ok(())
            })?;
            Ok(took)
        });
    }

    fn tokens(&mut self) {
        let pages = self.pages();
        self.report.fact("productpage asks for a token: 403 without one, 401 with a forged one, a page with a good one", |_| {
            let issuer = Issuer::new()?;
            let target = "{group: \"\", kind: Service, name: productpage}";
            let required = format!("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: tokens, namespace: default}}\nspec:\n  targetRefs: [{target}]\n  rules: [{{from: [{{source: {{requestPrincipals: [{ISSUER}/{ISSUER}]}}}}]}}]\n");
            pages.lab.apply("tokens", &issuer.request_authentication(target))?;
            pages.lab.apply("required", &required)?;
            let (good, forged) = (issuer.token(60, &json!({}))?, Issuer::new()?.token(60, &json!({}))?);
            let with = |token: &str| pages.bookinfo.client.lab(["get", "-H", &format!("authorization: Bearer {token}"), PAGE]);
            eventually("a page that is refused", SOON, || {
                let without = pages.bookinfo.client.get(PAGE)?;
                ensure!(without.stdout == "RBAC: access denied", "{without:?}");
                Ok(())
            })?;
            let (forged, good) = (with(&forged)?, with(&good)?);
            ensure!(forged.stderr.contains("HTTP 401"), "{forged:?}");
            ensure!(good.code == 0 && good.stdout.contains("Simple Bookstore App"), "{good:?}");
            pages.lab.delete("required")?;
            pages.lab.delete("tokens")?;
            eventually("pages for everybody", SOON, || pages.bookinfo.client.get(PAGE)?.success())?;
            Ok(vec![format!("forged: {}, {}", forged.stderr.trim(), forged.stdout)])
        });
    }
}

impl Pages<'_> {
    /// A Service for each version, and the waypoint that the manifests folder's Gateway asks for.
    fn waypoint(&self) -> Result<Waypoint> {
        for version in ["v1", "v2", "v3"] {
            let service = ServiceSpec::new(&format!("reviews-{version}"));
            let service = service.selector(&[("app", "reviews"), ("version", version)]).port("http", 9080, 9080);
            self.lab.add_service(service)?;
        }
        self.lab.add_gateway("default", "waypoint", "undermesh-waypoint", &Default::default())?;
        self.lab.start_waypoint("default", "waypoint", 2)
    }

    fn page(&self, user: Option<&str>) -> Result<Load> {
        self.loads(user, 1, &Progress::default())?.pop().context("no load")
    }

    fn loads(&self, user: Option<&str>, count: u32, progress: &Progress) -> Result<Vec<Load>> {
        let process = self.bookinfo.start_load_as(&self.bookinfo.client, user, count, Duration::ZERO)?;
        while process.running() {
            progress.say(format!("{} of {count}", process.stdout().lines().count()));
            std::thread::sleep(Duration::from_millis(5));
        }
        let loads = parse(&process.wait(SOON)?.stdout);
        ensure!(loads.len() == count as usize, "{} of {count} loads of {PAGE} were made", loads.len());
        Ok(loads)
    }

    fn all(&self, user: Option<&str>, count: u32, good: impl Fn(&Load) -> bool) -> Result<()> {
        let loads = self.loads(user, count, &Progress::default())?;
        let bad = loads.iter().find(|load| load.status != 200 || !good(load));
        ensure!(bad.is_none(), "{user:?}: {bad:?}");
        Ok(())
    }

    /// Requests by so many clients at the same time, each one after the other.
    fn at_once(&self, url: &str, clients: usize, each: usize) -> Result<Vec<Load>> {
        let count = each.to_string();
        let start = || self.bookinfo.client.start("lab", "lab", ["get", "--lines", "--count", &count, url]);
        let started: Vec<Process> = (0..clients).map(|_| start()).collect::<Result<_>>()?;
        let mut all = Vec::new();
        for process in started {
            all.extend(parse(&process.wait(SOON)?.stdout));
        }
        Ok(all)
    }

    /// Writes a route and waits for the first page that shows it.
    fn change(&self, file: &str, text: &str, user: Option<&str>, shown: impl Fn(&Load) -> bool) -> Result<String> {
        self.lab.apply(file, text)?;
        let start = Instant::now();
        eventually("the change", SOON, || {
            let load = self.page(user)?;
            ensure!(load.status == 200 && shown(&load), "{load:?}");
            Ok(format!("the first page of it came {} ms after the file was written", start.elapsed().as_millis()))
        })
    }
}
