//! placeholder body
/// A bidirectional byte stream through a tunnel.
#[derive(Debug)]
pub struct HboneStream { _private: () }
