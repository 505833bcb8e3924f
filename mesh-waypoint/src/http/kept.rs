//! Pieces of bodies that are kept: what they cost. Used by `tape` and `feed`.

use bytes::Bytes;

/// What one piece takes beside its bytes.
pub const PIECE: usize = 64;
/// A piece that is shorter is copied. What hyper gives are slices of what it reads into, 8 KiB at least, which a single byte would keep whole.
const SHORT: usize = 2048;

/// The piece as it is kept, and what it is to be counted as.
pub fn kept(data: &Bytes) -> (Bytes, usize) {
    let piece = if data.len() < SHORT { Bytes::copy_from_slice(data) } else { data.clone() };
    (piece, data.len() + PIECE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_piece_does_not_keep_what_it_was_read_into() {
        let read = Bytes::from(vec![7; 16 * 1024]);
        for (length, is_copied) in [(1, true), (SHORT - 1, true), (SHORT, false)] {
            let data = read.slice(..length);
            let (piece, counted) = kept(&data);
            assert_eq!((piece.as_ptr() != data.as_ptr(), counted), (is_copied, length + PIECE));
            assert_eq!(piece, data);
        }
    }
}
