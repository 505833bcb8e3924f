//! Where datagrams go that come to a listener: places by weight, drawn once for each session. Beside the place stands the application's port, because the ports
//! that services and workloads carry in the mesh are those of connections.

use rand::Rng;

use crate::ArcStr;
use crate::l4::WeightOverflow;
use crate::l7::Target;

/// What a UDPRoute says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatagramRoute {
    /// The object that it is written in, for logs.
    pub origin: ArcStr,
    places: Vec<DatagramPlace>,
    total: u32,
}

/// One place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatagramPlace {
    /// The service and its port.
    pub target: Target,
    /// The port that endpoints of the service have for it.
    pub port: u16,
    /// Its share of all weights.
    pub weight: u32,
}

impl DatagramRoute {
    /// To these places. What is drawn for a broken one is dropped, and so is everything if all weights are 0.
    pub fn new(origin: impl Into<ArcStr>, places: Vec<DatagramPlace>) -> Result<Self, WeightOverflow> {
        let sum = places.iter().map(|place| u64::from(place.weight)).sum();
        let total = u32::try_from(sum).map_err(|_| WeightOverflow(sum))?;
        Ok(Self { origin: origin.into(), places, total })
    }

    /// The places.
    #[must_use]
    pub fn places(&self) -> &[DatagramPlace] {
        &self.places
    }

    /// One of them, each as often as its weight says.
    pub fn draw(&self, rng: &mut impl Rng) -> Option<&DatagramPlace> {
        let mut point = (self.total > 0).then(|| rng.random_range(0..self.total))?;
        self.places.iter().find(|place| match point.checked_sub(place.weight) {
            Some(rest) => {
                point = rest;
                false
            }
            None => true,
        })
    }

    /// Whether a session that was begun for a place may go on: somebody may still draw it.
    #[must_use]
    pub fn keeps(&self, target: &Target, port: u16) -> bool {
        self.places.iter().any(|place| place.weight > 0 && place.port == port && place.target == *target)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::NamespacedName;
    use crate::l7::ClusterKey;

    fn place(service: &str, port: u16, weight: u32) -> DatagramPlace {
        let key = ClusterKey { service: NamespacedName::new("shop", service), port: 53, subset: ArcStr::new() };
        DatagramPlace { target: Target::Cluster(key), port, weight }
    }

    #[test]
    fn weights_decide_how_often_and_what_is_drawn_no_more_is_not_kept() {
        let broken = DatagramPlace { target: Target::Broken("gone".into()), port: 0, weight: 20 };
        let places = vec![place("one", 5353, 60), place("none", 53, 0), broken.clone(), place("two", 53, 20)];
        let route = DatagramRoute::new("UDPRoute shop/a", places).unwrap();
        let (mut rng, mut drawn) = (StdRng::seed_from_u64(7), [0; 4]);
        for _ in 0..10_000 {
            let one = route.draw(&mut rng).unwrap();
            drawn[route.places().iter().position(|place| place == one).unwrap()] += 1;
        }
        for (drawn, (least, most)) in drawn.into_iter().zip([(5_700, 6_300), (0, 0), (1_800, 2_200), (1_800, 2_200)]) {
            assert!((least..=most).contains(&drawn), "{drawn} is not {least} to {most}");
        }
        for (kept, expected) in [
            (place("one", 5353, 1), true),
            (place("one", 53, 1), false),
            (place("none", 53, 0), false),
            (place("gone", 53, 1), false),
        ] {
            assert_eq!(route.keeps(&kept.target, kept.port), expected, "{kept:?}");
        }
    }

    #[test]
    fn without_a_weight_nothing_is_drawn() {
        let mut rng = StdRng::seed_from_u64(1);
        for places in [vec![], vec![place("one", 53, 0)]] {
            assert_eq!(DatagramRoute::new("a", places).unwrap().draw(&mut rng), None);
        }
        let huge = vec![place("one", 53, u32::MAX), place("two", 53, 1)];
        assert_eq!(DatagramRoute::new("a", huge), Err(WeightOverflow(4_294_967_296)));
    }
}
