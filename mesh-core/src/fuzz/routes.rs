//! Target about which rule a request means: tables and requests, written in lines, against the plain matcher. Property tests share what it asks.

use std::sync::Arc;

use arcstr::ArcStr;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use rand::{SeedableRng, rngs::StdRng};

use super::matches;
use crate::NamespacedName;
use crate::l7::{
    Action, Authority, Client, Condition, Handling, HostPattern, Labels, Miss, PathKind, PathMatch, Pattern,
    QueryMatch, Request, Rule, Table, Text, VirtualHost,
    path::{Spelling, normalise},
    pick,
    reference::{Facts, find},
};

/// Requests, one a line as [`Sent::parse`] reads it, and behind an empty line a table, as [`table`] does.
pub fn routes_match(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (requests, lines) = text.split_once("\n\n").unwrap_or((&text, ""));
    let table = table(lines);
    requests.lines().take(4).filter_map(Sent::parse).for_each(|sent| agree(&table, &sent));
}

/// The matcher finds what the plain one finds.
pub(crate) fn agree(table: &Table, sent: &Sent) {
    let expected = match find(table, &Facts::of(&sent.request(), &sent.client())) {
        Ok(Ok((host, rule))) => format!("{host} {rule}"),
        Ok(Err(())) => Miss::Rule.to_string(),
        Err(()) => Miss::Host.to_string(),
    };
    assert_eq!(sent.ask(table), expected, "{sent:?} of {table:?}");
}

/// A request, with where it came in and who asks.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) method: Method,
    pub(crate) scheme: String,
    pub(crate) authority: Authority,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) headers: HeaderMap,
    pub(crate) port: u16,
    pub(crate) gateway: String,
    pub(crate) service: Option<NamespacedName>,
    pub(crate) namespace: Option<String>,
    pub(crate) labels: Option<Labels>,
}

impl Sent {
    /// Reads a line: method, URL, then headers, as `GET http://a.com/b?c=d x-user=jason`. Words with an `@` say where it came from, as `@port=81`,
    /// `@gateway=shop/in`, `@service=shop/cart`, `@namespace=shop`, `@label=app:web`.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let method = Method::from_bytes(words.next()?.as_bytes()).ok()?;
        let (scheme, rest) = words.next()?.split_once("://")?;
        let (authority, target) = rest.split_at(rest.find(['/', '\\', '*'])?);
        let target = normalise(&method, target, Spelling::Base).ok()?;
        let (path, query) = target.split_once('?').map_or((&*target, None), |(path, query)| (path, Some(query)));
        let mut sent = Self {
            scheme: scheme.to_owned(),
            authority: Authority::parse(authority).ok()?,
            path: path.to_owned(),
            query: query.map(str::to_owned),
            method,
            headers: HeaderMap::new(),
            port: 80,
            gateway: "mesh".into(),
            service: None,
            namespace: None,
            labels: None,
        };
        for word in words {
            let (name, value) = word.split_once('=')?;
            match name {
                "@port" => sent.port = value.parse().ok()?,
                "@gateway" => sent.gateway = value.into(),
                "@service" => sent.service = Some(service(value)?),
                "@namespace" => sent.namespace = Some(value.into()),
                "@label" => {
                    let (key, value) = value.split_once(':')?;
                    sent.labels.get_or_insert_default().insert(key.into(), value.into());
                }
                name => {
                    let value = HeaderValue::from_bytes(value.as_bytes()).ok()?;
                    sent.headers.append(HeaderName::try_from(name).ok()?, value);
                }
            }
        }
        Some(sent)
    }

    pub(crate) fn request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            scheme: &self.scheme,
            authority: &self.authority,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            port: self.port,
            gateway: &self.gateway,
            service: self.service.as_ref(),
        }
    }

    pub(crate) fn client(&self) -> Client<'_> {
        Client { identity: None, namespace: self.namespace.as_deref(), labels: self.labels.as_ref() }
    }

    /// `host rule`, or why there is none.
    pub(crate) fn ask(&self, table: &Table) -> String {
        match pick(table, &self.request(), &self.client(), &mut StdRng::seed_from_u64(7)) {
            Ok(decision) => format!("{} {}", decision.host.name, decision.handling.name),
            Err(miss) => miss.to_string(),
        }
    }
}

/// Reads a table: `host` begins a virtual host, with its names in the line, and with `@service=shop/cart`, `@port=80`, `@client=shop` and `@falls`; `rule`
/// begins a rule, `or` another of its conditions, and every other line is of the last condition, as [`condition`] reads it. What cannot be read is left out.
fn table(lines: &str) -> Table {
    let mut hosts: Vec<VirtualHost> = Vec::new();
    for line in lines.lines().take(64) {
        if line.split(' ').next() == Some("host") {
            hosts.push(VirtualHost { name: format!("host-{}", hosts.len()).into(), ..host(line) });
            continue;
        }
        let Some(host) = hosts.last_mut() else { continue };
        if line == "rule" {
            let name = ArcStr::from(host.rules.len().to_string());
            let handling = Arc::new(Handling { name, ..Handling::new(Action::Closed("fuzz".into())) });
            host.rules.push(Rule { conditions: Vec::new(), handling });
            continue;
        }
        let Some(rule) = host.rules.last_mut() else { continue };
        if line == "or" || rule.conditions.is_empty() {
            rule.conditions.push(Condition::default());
        }
        if let Some(last) = rule.conditions.last_mut() {
            let _ = condition(last, line);
        }
    }
    Table::new("fuzz", hosts.into_iter().map(Arc::new).collect())
}

fn host(line: &str) -> VirtualHost {
    let mut host = VirtualHost::default();
    for word in line.split(' ').skip(1) {
        match word.split_once('=').unwrap_or((word, "")) {
            ("@service", name) => host.service = service(name),
            ("@port", port) => host.ports.extend(port.parse::<u16>()),
            ("@client", name) => host.clients.get_or_insert_default().push(name.into()),
            ("@falls", _) => host.falls_through = true,
            _ => host.hosts.extend(HostPattern::parse(word)),
        }
    }
    host
}

/// Adds what a line says to a condition: `path segments /a`, or `~path` if the case of letters does not count, `method exact GET`, so of `scheme` and
/// `authority`, `header x-user exact jason`, or `!header`, so of `query`, `port 80`, `gateway shop/in`, `namespace shop`, `label app web`.
fn condition(condition: &mut Condition, line: &str) -> Option<()> {
    let (field, rest) = line.split_once(' ')?;
    let (first, value) = rest.split_once(' ').unwrap_or((rest, ""));
    match field {
        "path" | "~path" => {
            let kind = match first {
                "exact" => PathKind::Exact(value.into()),
                "prefix" => PathKind::Prefix(value.into()),
                "segments" => PathKind::Segments(value.into()),
                "regex" => PathKind::Regex(Pattern::new(value).ok()?),
                _ => return None,
            };
            condition.path = Some(PathMatch { kind, ignore_case: field == "~path" });
        }
        "method" => condition.method = Some(text(rest)?),
        "scheme" => condition.scheme = Some(text(rest)?),
        "authority" => condition.authority = Some(text(rest)?),
        "header" => condition.headers.push(matches::matcher(rest)?),
        "!header" => condition.headers.push(matches::matcher(&format!("!{rest}"))?),
        "query" => condition.query.push(QueryMatch { name: first.into(), value: text(value)? }),
        "port" => condition.port = Some(rest.parse().ok()?),
        "gateway" => condition.gateways.push(rest.into()),
        "namespace" => condition.source_namespace = Some(rest.into()),
        "label" => _ = condition.source_labels.insert(first.into(), value.into()),
        _ => return None,
    }
    Some(())
}

fn text(words: &str) -> Option<Text> {
    let (kind, value) = words.split_once(' ').unwrap_or((words, ""));
    matches::text(kind, value)
}

fn service(text: &str) -> Option<NamespacedName> {
    text.split_once('/').map(|(namespace, name)| NamespacedName::new(namespace, name))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_corpus_holds_and_its_requests_find_what_their_files_are_named_for() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/routes_match");
        let (mut count, mut answers) = (0, std::collections::BTreeSet::new());
        for entry in fs::read_dir(folder).unwrap() {
            let data = fs::read(entry.unwrap().path()).unwrap();
            routes_match(&data);
            let text = String::from_utf8_lossy(&data);
            let (requests, lines) = text.split_once("\n\n").unwrap_or((&text, ""));
            let table = table(lines);
            answers.extend(requests.lines().filter_map(Sent::parse).map(|sent| sent.ask(&table)));
            count += 1;
        }
        assert!(count >= 10, "{folder} has {count} files");
        for expected in ["host-0 0", "host-0 1", "host-1 0", "no rule fits", "no host fits"] {
            assert!(answers.contains(expected), "{expected} is in {answers:?}");
        }
    }

    #[test]
    fn a_table_is_read_as_it_is_written() {
        let table = table(
            "host *.com a.com @service=shop/cart @port=80 @client=shop @falls\nrule\n~path segments /A\nor\n!header x-a exact b c\nquery a prefix b\n\
             port 81\ngateway shop/in\nnamespace shop\nlabel app web\nmethod exact GET\nscheme present\nauthority regex a.*\nrule\nnonsense\nhost",
        );
        let (first, empty) = (&table.hosts()[0], &table.hosts()[1]);
        assert_eq!(**empty, VirtualHost { name: "host-1".into(), ..VirtualHost::default() });
        assert_eq!(
            (&first.service, &*first.ports, &first.clients, first.falls_through, first.hosts.len(), first.rules.len()),
            (&Some(NamespacedName::new("shop", "cart")), &[80][..], &Some(vec!["shop".into()]), true, 2, 2)
        );
        let path = PathMatch { kind: PathKind::Segments("/A".into()), ignore_case: true };
        let second = Condition {
            path: None,
            scheme: Some(Text::Present),
            method: Some(Text::Exact("GET".into())),
            authority: Some(Text::Regex(Pattern::new("a.*").unwrap())),
            headers: vec![matches::matcher("!x-a exact b c").unwrap()],
            query: vec![QueryMatch { name: "a".into(), value: Text::Prefix("b".into()) }],
            port: Some(81),
            gateways: vec!["shop/in".into()],
            source_labels: [("app".into(), "web".into())].into(),
            source_namespace: Some("shop".into()),
            ..Condition::default()
        };
        assert_eq!(first.rules[0].conditions, [Condition { path: Some(path), ..Condition::default() }, second]);
        assert_eq!(first.rules[1].conditions, [Condition::default()]);
    }
}
