//! What a pod's annotations take out of the mesh, by port and by range of addresses. Called by the connect hook for what it would capture, and by
//! sk_lookup for plaintext from the network; only for pods that have such rules.

use crate::row::{
    POD_INBOUND_LISTED, POD_INBOUND_OPEN, POD_OUTBOUND_LISTED, PORT_IN_EXCEPT, PORT_IN_ONLY, PORT_OUT_ALSO,
    PORT_OUT_EXCEPT, RANGE_EXCEPT, RANGE_ONLY,
};

/// True if a connect leaves the pod uncaptured. `port` and `range` are the rules of its destination, 0 if there are none; what is excepted
/// comes before what is named.
#[inline(always)]
pub const fn leaves(flags: u32, port: u32, range: u32) -> bool {
    if port & PORT_OUT_EXCEPT != 0 || range & RANGE_EXCEPT != 0 {
        return true;
    }
    port & PORT_OUT_ALSO == 0 && flags & POD_OUTBOUND_LISTED != 0 && range & RANGE_ONLY == 0
}

/// True if what comes from the network to a port goes past the agent.
#[inline(always)]
pub const fn enters(flags: u32, port: u32) -> bool {
    if flags & POD_INBOUND_OPEN != 0 {
        return true;
    }
    match flags & POD_INBOUND_LISTED != 0 {
        true => port & PORT_IN_ONLY == 0,
        false => port & PORT_IN_EXCEPT != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_en11_what_leaves_the_pod_uncaptured() {
        let listed = POD_OUTBOUND_LISTED;
        let table = [
            (0, 0, 0, false),
            (0, PORT_OUT_EXCEPT, 0, true),
            (0, 0, RANGE_EXCEPT, true),
            (0, PORT_OUT_ALSO, 0, false),
            // Ranges that are named change nothing unless the pod says that only they are captured.
            (0, 0, RANGE_ONLY, false),
            (listed, 0, 0, true),
            (listed, 0, RANGE_ONLY, false),
            (listed, PORT_OUT_ALSO, 0, false),
            // An exception comes first.
            (listed, PORT_OUT_EXCEPT, RANGE_ONLY, true),
            (listed, PORT_OUT_ALSO | PORT_OUT_EXCEPT, 0, true),
            (0, PORT_OUT_ALSO, RANGE_EXCEPT, true),
            // Rules of the other direction are none here.
            (0, PORT_IN_EXCEPT | PORT_IN_ONLY, 0, false),
            (POD_INBOUND_OPEN | POD_INBOUND_LISTED, 0, 0, false),
        ];
        for (flags, port, range, expected) in table {
            assert_eq!(leaves(flags, port, range), expected, "{flags:#x} {port:#x} {range:#x}");
        }
    }

    #[test]
    fn features_en9_en11_what_enters_the_pod_uncaptured() {
        let table = [
            (0, 0, false),
            (POD_INBOUND_OPEN, 0, true),
            (POD_INBOUND_OPEN | POD_INBOUND_LISTED, PORT_IN_ONLY, true),
            (0, PORT_IN_EXCEPT, true),
            (0, PORT_IN_ONLY, false),
            (POD_INBOUND_LISTED, 0, true),
            (POD_INBOUND_LISTED, PORT_IN_ONLY, false),
            // With a list, exceptions have nothing to say.
            (POD_INBOUND_LISTED, PORT_IN_ONLY | PORT_IN_EXCEPT, false),
            (POD_OUTBOUND_LISTED, PORT_OUT_EXCEPT | PORT_OUT_ALSO, false),
        ];
        for (flags, port, expected) in table {
            assert_eq!(enters(flags, port), expected, "{flags:#x} {port:#x}");
        }
    }
}
