//! Which endpoints come first because of where they are: levels, of which the next takes what the ones before cannot, or shares of places. What a DestinationRule
//! says counts; else what the Service asks for; else, where endpoints may be left out, nearness (Istio's default).

use crate::balance::Place;
use crate::l7::cluster::{Locality as Said, Policy};
use crate::l7::{LabelIndex, Labels};
use crate::{Client, Locality, Service, Workload};

/// Where an endpoint stands: the level, and which of the shares of that level it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stand {
    pub(super) level: u32,
    pub(super) share: u32,
}

/// How places are told apart.
pub(super) enum Order<'a> {
    /// They are all the same.
    None,
    /// By shares of a hundred, for places.
    Shares(Vec<(&'a str, u32)>),
    /// By labels that are like the client's, the weightiest first.
    Labels(&'a [arcstr::ArcStr]),
    /// By nearness, then by the region that stands in for the client's.
    Near(Option<&'a str>),
    /// As the Service says.
    Service(Place),
}

impl<'a> Order<'a> {
    pub(super) fn of(policy: &'a Policy, service: &Service, client: &Client) -> Self {
        let said: &Said = &policy.locality;
        let here = &client.locality;
        if said.enabled == Some(false) {
            return Self::None;
        }
        if let Some((_, to)) = said.distribute.iter().find(|(from, _)| matches(from, here)) {
            return Self::Shares(to.iter().map(|(place, share)| (place.as_str(), *share)).collect());
        }
        // A level whose endpoints fail is never left if none is ever left out.
        let fails_over = policy.outliers.is_some();
        if fails_over && !said.priority.is_empty() {
            return Self::Labels(&said.priority);
        }
        let place = Place::of(client, &service.load_balancing);
        if Place::is_asked(&service.load_balancing) && said.failover.is_empty() {
            return Self::Service(place);
        }
        match fails_over && !here.region.is_empty() {
            true => {
                let next = said.failover.iter().find(|(from, _)| *from == here.region);
                Self::Near(next.map(|(_, to)| to.as_str()))
            }
            false => Self::None,
        }
    }

    /// Whether labels of workloads are looked at.
    pub(super) fn reads_labels(&self) -> bool {
        matches!(self, Self::Labels(_))
    }

    /// Shares of the first level, by number; none if all are equal.
    pub(super) fn shares(&self) -> &[(&'a str, u32)] {
        match self {
            Self::Shares(shares) => shares,
            _ => &[],
        }
    }

    /// Where an endpoint stands; `None`: it gets nothing.
    pub(super) fn stand(
        &self,
        workload: &Workload,
        client: &Client,
        own: Option<&Labels>,
        service: &Service,
        labels: &LabelIndex,
    ) -> Option<Stand> {
        let level = match self {
            Self::None => 0,
            Self::Shares(shares) => {
                // The most exact pattern counts.
                let fits = (0_u32..)
                    .zip(shares)
                    .filter(|(_, (place, share))| *share > 0 && matches(place, &workload.locality));
                let (share, _) = fits.max_by_key(|(_, (place, _))| exactness(place))?;
                return Some(Stand { level: 0, share });
            }
            Self::Labels(keys) => {
                let like = |key: &str| is_alike(key, workload, client, own, labels);
                keys.len() - keys.iter().take_while(|key| like(key)).count()
            }
            Self::Near(next) => near(&client.locality, &workload.locality, *next),
            Self::Service(place) => {
                let rank = place.rank(&service.load_balancing, workload)?;
                service.load_balancing.preferences.len().saturating_sub(rank)
            }
        };
        Some(Stand { level: u32::try_from(level).unwrap_or(u32::MAX), share: 0 })
    }
}

fn near(here: &Locality, there: &Locality, next: Option<&str>) -> usize {
    if here.region != there.region {
        return if next.is_some_and(|next| next == there.region) { 3 } else { 4 };
    }
    match (here.zone == there.zone, here.subzone == there.subzone) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }
}

/// Whether `region/zone/subzone`, of which the last may be `*` or all that follows may be missing, is said of a place.
fn matches(pattern: &str, place: &Locality) -> bool {
    let mut parts = pattern.split('/');
    for own in [&place.region, &place.zone, &place.subzone] {
        match parts.next() {
            None | Some("*") => return true,
            Some(part) if part != own => return false,
            Some(_) => {}
        }
    }
    true
}

fn exactness(pattern: &str) -> usize {
    pattern.split('/').filter(|part| *part != "*").count()
}

/// Whether an endpoint has a label as the client has it, or as it is written with the key.
fn is_alike(key: &str, workload: &Workload, client: &Client, own: Option<&Labels>, labels: &LabelIndex) -> bool {
    let (name, wanted) = key.split_once('=').map_or((key, None), |(name, value)| (name, Some(value)));
    let place = |locality: &Locality, network: &str, cluster: &str| -> Option<String> {
        Some(match name {
            "topology.kubernetes.io/region" => locality.region.to_string(),
            "topology.kubernetes.io/zone" => locality.zone.to_string(),
            "topology.istio.io/subzone" => locality.subzone.to_string(),
            "topology.istio.io/network" => network.to_owned(),
            "topology.istio.io/cluster" => cluster.to_owned(),
            _ => return None,
        })
    };
    let of = |labels: Option<&Labels>| labels.and_then(|labels| labels.get(name)).map(ToString::to_string);
    let there = place(&workload.locality, &workload.network, &workload.cluster_id)
        .or_else(|| of(labels.get(&workload.uid).map(|labels| &**labels)));
    let here = match wanted {
        Some(value) => Some(value.to_owned()),
        None => place(&client.locality, &client.network, &client.cluster_id).or_else(|| of(own)),
    };
    // Who has no such label has it as whoever has none either, as in Istio: then the next key decides.
    here.unwrap_or_default() == there.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::l7::cluster::Outliers;

    fn at(text: &str) -> Locality {
        let mut parts = text.split('/').map(Into::into);
        let mut next = || parts.next().unwrap_or_default();
        Locality { region: next(), zone: next(), subzone: next() }
    }

    /// Where endpoints at `places` stand for a client at `r1/z1/s1`, as `level` or `level.share`.
    fn stands(policy: &Policy, service: &Service, places: &[&str]) -> Vec<Option<(u32, u32)>> {
        let client = Client { locality: at("r1/z1/s1"), ..Client::default() };
        let own: Labels = [("app".into(), "a".into())].into();
        let order = Order::of(policy, service, &client);
        let labels = LabelIndex::default().with([
            ("r1/z1/s1".into(), Some(Arc::new([("app".into(), "a".into())].into()))),
            ("r2".into(), Some(Arc::new([("app".into(), "b".into()), ("v".into(), "1".into())].into()))),
        ]);
        let stand = |place: &&str| {
            let mut workload = Workload::new(*place, "shop", "x");
            workload.locality = at(place);
            order.stand(&workload, &client, Some(&own), service, &labels).map(|stand| (stand.level, stand.share))
        };
        places.iter().map(stand).collect()
    }

    #[test]
    fn features_DR_7_who_comes_first() {
        let said = |locality: Said| Policy { locality, outliers: Some(Outliers::default()), ..Policy::default() };
        let service = Service::new("shop", "cart", "cart.shop.svc.cluster.local");
        let places = ["r1/z1/s1", "r1/z1/s2", "r1/z2/s1", "r2", "r3"];
        let levels = |levels: [u32; 5]| levels.map(|level| Some((level, 0))).to_vec();
        let failover = vec![("r1".into(), "r3".into()), ("r3".into(), "r2".into())];
        let priority = |keys: &[&str]| keys.iter().map(|key| (*key).into()).collect::<Vec<_>>();
        let distribute = |from: &str| Said {
            distribute: vec![(from.into(), [("r1/z1/*".into(), 70), ("r1/*".into(), 20), ("r2".into(), 10)].into())],
            ..Said::default()
        };
        for (name, policy, expected) in [
            ("by default near ones", said(Said::default()), levels([0, 1, 2, 4, 4])),
            ("not without outliers", Policy::default(), levels([0; 5])),
            ("switched off", said(Said { enabled: Some(false), ..Said::default() }), levels([0; 5])),
            ("a region stands in", said(Said { failover, ..Said::default() }), levels([0, 1, 2, 4, 3])),
            (
                "labels of places",
                said(Said {
                    priority: priority(&["topology.kubernetes.io/region", "topology.kubernetes.io/zone"]),
                    ..Said::default()
                }),
                levels([0, 0, 1, 2, 2]),
            ),
            ("labels of pods", said(Said { priority: priority(&["app"]), ..Said::default() }), levels([0, 1, 1, 1, 1])),
            (
                "labels that nobody has decide nothing",
                said(Said { priority: priority(&["none", "topology.kubernetes.io/zone"]), ..Said::default() }),
                levels([0, 0, 1, 1, 1]),
            ),
            ("as written", said(Said { priority: priority(&["v=1"]), ..Said::default() }), levels([1, 1, 1, 0, 1])),
            (
                "shares",
                said(distribute("r1/*")),
                // In the order of their names: `r1/*`, `r1/z1/*`, `r2`.
                vec![Some((0, 1)), Some((0, 1)), Some((0, 0)), Some((0, 2)), None],
            ),
            ("shares of others", said(distribute("r9/*")), levels([0, 1, 2, 4, 4])),
        ] {
            assert_eq!(stands(&policy, &service, &places), expected, "{name}");
        }
    }

    #[test]
    fn what_a_service_asks_for_counts_where_no_rule_says_more() {
        use crate::service::{Mode, Scope};
        let mut service = Service::new("shop", "cart", "cart.shop.svc.cluster.local");
        service.load_balancing.preferences = vec![Scope::Region, Scope::Zone];
        service.load_balancing.mode = Mode::Failover;
        let expected = [Some((0, 0)), Some((1, 0)), Some((2, 0))];
        assert_eq!(stands(&Policy::default(), &service, &["r1/z1/s9", "r1/z2/s9", "r2"]), expected);
        service.load_balancing.mode = Mode::Strict;
        assert_eq!(stands(&Policy::default(), &service, &["r1/z1/s9", "r1/z2/s9"]), [Some((0, 0)), None]);
    }
}
