//! Entry points for fuzzers. Each takes arbitrary bytes and panics only on a bug.
#![doc(hidden)]

/// A header block, read as a request that arrived at a pod.
pub fn hbone_request(data: &[u8]) {
    crate::hbone::fuzz_request(data);
}

/// The values of the `baggage`, `forwarded` and `traceparent` headers and of `:authority`.
pub fn baggage_forwarded(data: &[u8]) {
    crate::hbone::fuzz_values(data);
}

#[cfg(test)]
mod tests {
    /// Replays what fuzzing started from and found.
    fn replay(target: &str, run: fn(&[u8])) {
        let folder = format!("{}/../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).unwrap() {
            let data = std::fs::read(entry.unwrap().path()).unwrap();
            run(&data);
            // And each of its prefixes and single-byte changes.
            for end in 0..data.len() {
                run(&data[..end]);
                let mut changed = data.clone();
                changed[end] ^= 0x81;
                run(&changed);
            }
            count += 1;
        }
        assert!(count >= 10, "{folder} has {count} files");
    }

    #[test]
    fn hbone_request_corpus() {
        replay("hbone_request", super::hbone_request);
    }

    #[test]
    fn baggage_forwarded_corpus() {
        replay("baggage_forwarded", super::baggage_forwarded);
    }
}
