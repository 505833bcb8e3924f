//! Whether a pod may take one more slot. Called by the connect hook.
//!
//! ```text
//!  1 ..= share           the pod's own: nobody else can take them, for the shares of all pods that there may be fit
//!  share+1 ..= quota     from what is left, in which nobody may hold more than a quarter of what is free
//! ```
//! What is free never ends for good that way: who comes late finds a part, and with all of it gone each pod still has its share.

use crate::{Reason, row::Pod};

/// Where a slot comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Of the pod's own.
    Own,
    /// From the pool; the pod would hold so many of it.
    Pool(u64),
}

/// Where the pod's next slot comes from; `held` counts it already.
#[inline(always)]
pub fn place(pod: &Pod, held: u64) -> Result<Place, Reason> {
    if held > u64::from(pod.slot_quota) {
        Err(Reason::SlotQuota)
    } else if held <= u64::from(pod.slot_share) {
        Ok(Place::Own)
    } else {
        Ok(Place::Pool(held - u64::from(pod.slot_share)))
    }
}

/// Whether a pod may hold so many slots of the pool, of which so many have been taken, its new one included.
#[inline(always)]
pub fn is_fair(of_pool: u64, taken: u64, credit: u64) -> bool {
    let free = (credit + 1).saturating_sub(taken);
    of_pool <= free.div_ceil(4)
}

/// A pod's own share of a table, and what is left of it as the pool.
pub const fn divide(slots: u32, pods: u32) -> (u32, u32) {
    let share = match (slots / 2).checked_div(pods) {
        Some(share) => share,
        None => 0,
    };
    (share, slots - share * pods)
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use std::{vec, vec::Vec};

    use super::*;

    /// Takes as the hook does; how many a pod got of those that it wanted.
    fn take(pod: &Pod, held: &mut u64, pool: &mut u64, credit: u64, wanted: u64) -> u64 {
        for got in 0..wanted {
            match place(pod, *held + 1) {
                Ok(Place::Own) => {}
                Ok(Place::Pool(of_pool)) if is_fair(of_pool, *pool + 1, credit) => *pool += 1,
                _ => return got,
            }
            *held += 1;
        }
        wanted
    }

    #[test]
    fn no_pod_starves_another() {
        for (slots, pods) in [(65_536_u32, 1024_u32), (1024, 16), (8, 2), (7, 2), (100, 100), (10, 20)] {
            let (share, pool) = divide(slots, pods);
            let pod = Pod { slot_quota: slots, slot_share: share, ..Pod::default() };
            let (mut held, mut taken) = (vec![0; pods as usize], 0);
            // All but one want all there is, one after the other and again and again.
            for round in 0..3 {
                for held in &mut held[1..] {
                    let got = take(&pod, held, &mut taken, pool.into(), slots.into());
                    assert!(round > 0 || got >= u64::from(share), "{got} of {slots} for one of {pods}");
                }
            }
            let got = take(&pod, &mut held[0], &mut taken, pool.into(), slots.into());
            assert!(got >= u64::from(share), "{got} of {slots} for the last of {pods}");
            assert!(held.iter().sum::<u64>() <= u64::from(slots), "{held:?}");
        }
    }

    #[test]
    fn few_greedy_pods_leave_much() {
        let (share, pool) = divide(65_536, 1024);
        let pod = Pod { slot_quota: 8_192, slot_share: share, ..Pod::default() };
        let mut taken = 0;
        let got: Vec<u64> = (0..10).map(|_| take(&pod, &mut 0, &mut taken, pool.into(), u64::MAX)).collect();
        assert!(got[0] > 6_000 && got[9] > 800, "{got:?}");
    }

    #[test]
    fn the_quota_holds_whatever_is_free() {
        let pod = Pod { slot_quota: 4, slot_share: 32, ..Pod::default() };
        assert_eq!(take(&pod, &mut 0, &mut 0, 1_000, 10), 4);
        assert_eq!(place(&pod, 5), Err(Reason::SlotQuota));
        assert!(!is_fair(1, 1, 0) && is_fair(1, 1, 1) && !is_fair(1, 9, 5) && !is_fair(2, 2, 4));
    }
}
