//! Entry of the fuzz target `kernel_events`: bytes as a ring buffer could hold them. Its corpus is replayed by a test here.

use crate::event::{EVENT_SIZE, Event};

/// Parses any bytes: a record is read whole and gives back what it was made of, anything else is an error.
pub fn kernel_events(data: &[u8]) {
    for record in data.chunks(EVENT_SIZE) {
        match Event::parse(record) {
            Ok(event) => {
                assert_eq!(record.len(), EVENT_SIZE);
                assert_eq!(record[16..20], (event.reason as u32).to_ne_bytes());
                assert_eq!(record[20..24], u32::from(event.protocol).to_ne_bytes());
                assert_eq!(record[56..58], event.source_port.to_ne_bytes());
            }
            Err(_) => assert!(
                record.len() != EVENT_SIZE || record[17..20] != [0; 3] || record[16] >= 20 || record[21..24] != [0; 3]
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn the_corpus_is_parsed() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/kernel_events");
        let files: std::vec::Vec<_> = fs::read_dir(folder).unwrap().flatten().collect();
        assert!(files.len() >= 10, "{} files", files.len());
        for file in files {
            super::kernel_events(&fs::read(file.path()).unwrap());
        }
    }
}
