//! Every table survives the wire, and what cannot be read of a rule closes that rule and no other.

mod clusters;
mod limits;
mod listeners;
mod refusals;
mod round_trip;
