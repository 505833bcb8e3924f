//! Random orders of events against a model of the kernel, for the promises that hold in all of them.

use super::*;

/// What a kernel would have captured, and who waits for what, while a machine is driven.
#[derive(Default)]
struct World {
    machine: Machine<()>,
    starting: Vec<(Generation, u64, bool)>,
    stopping: Vec<(Generation, u64, bool)>,
    releasing: Vec<BTreeSet<u64>>,
    captured: BTreeSet<u64>,
    cookies: HashMap<Generation, u64>,
    answered: BTreeSet<RequestId>,
}

impl World {
    fn apply(&mut self, event: Event<()>) {
        for action in self.machine.apply(event) {
            match action {
                Action::Start { generation, spec, captured, .. } => {
                    let cookie = spec.netns.cookie;
                    assert!(self.cookies.keys().all(|earlier| *earlier < generation));
                    // A failed start lets go of what the machine did not know to be captured.
                    assert!(captured || !self.captured.contains(&cookie), "{cookie} would be let go by a failure");
                    self.cookies.insert(generation, cookie);
                    self.starting.push((generation, cookie, captured));
                }
                Action::Stop { generation, close } => {
                    assert!(!self.starting.iter().chain(&self.stopping).any(|(other, ..)| *other == generation));
                    self.stopping.push((generation, self.cookies[&generation], close));
                }
                Action::Reply { request, .. } => assert!(self.answered.insert(request), "{request} answered twice"),
                Action::Cancel { generation } => {
                    assert!(self.starting.iter().any(|(other, ..)| *other == generation));
                }
                Action::Release { cookies } => self.releasing.push(cookies),
            }
        }
    }

    fn start(&mut self, index: usize, works: bool) {
        let (generation, cookie, captured) = self.starting.swap_remove(index);
        if works {
            self.captured.insert(cookie);
        } else if !captured {
            self.captured.remove(&cookie);
        }
        self.apply(if works { started(generation) } else { failed(generation) });
    }

    fn stop(&mut self, index: usize) {
        let (generation, cookie, close) = self.stopping.swap_remove(index);
        if !close {
            self.captured.remove(&cookie);
        }
        self.apply(stopped(generation));
    }

    fn release(&mut self, index: usize) {
        let cookies = self.releasing.swap_remove(index);
        self.captured.retain(|cookie| !cookies.contains(cookie));
        self.apply(Event::Released { cookies });
    }

    fn settle(&mut self) {
        loop {
            match (self.starting.is_empty(), self.stopping.is_empty(), self.releasing.is_empty()) {
                (false, _, _) => self.start(0, true),
                (_, false, _) => self.stop(0),
                (_, _, false) => self.release(0),
                (true, true, true) => return,
            }
        }
    }
}

/// Whatever the order of events: every request is answered at most once, no start is left without its end, generations never repeat,
/// nothing captured is let go by a failure, and what nobody wants is let go in the end.
#[test]
fn random_orders_keep_the_promises() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    for seed in 0..500 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = World { captured: BTreeSet::from([1, 4]), ..World::default() };
        world.apply(adopt("a", 1));
        world.apply(Event::Captured { cookies: vec![1, 4] });
        world.apply(Event::Opened { session: 1 });
        for request in 0..120 {
            let uid = ["a", "b", "c"][random.random_range(0..3)];
            let (starting, stopping, releasing) = (world.starting.len(), world.stopping.len(), world.releasing.len());
            match random.random_range(0..9) {
                0 | 1 => {
                    let mut spec = spec(uid, random.random_range(1..5));
                    spec.pod.dns.ndots = random.random_range(0..2);
                    world.apply(Event::Add { session: 1, request, spec, payload: () });
                }
                2 => world.apply(del(request, uid)),
                3 if random.random_bool(0.3) => world.apply(Event::Snapshot { session: 1, request }),
                4 if stopping > 0 => world.stop(random.random_range(0..stopping)),
                5 if releasing > 0 => world.release(random.random_range(0..releasing)),
                _ if starting > 0 => world.start(random.random_range(0..starting), random.random_bool(0.7)),
                _ => world.apply(Event::Keep { request, uid: uid.into() }),
            }
        }
        // Let everything end, then remove everything.
        world.apply(Event::Closed { session: 1 });
        for (request, uid) in (1000..).zip(["a", "b", "c"]) {
            world.apply(del(request, uid));
        }
        world.settle();
        world.apply(Event::Opened { session: 2 });
        world.apply(Event::Snapshot { session: 2, request: 2000 });
        world.settle();
        assert_eq!(world.machine.counts(), Counts::default());
        assert_eq!(world.captured, BTreeSet::new());
    }
}
