//! Every table survives the wire, and what cannot be read of a rule closes that rule and no other.

mod clusters;
mod limits;
mod refusals;
mod round_trip;
