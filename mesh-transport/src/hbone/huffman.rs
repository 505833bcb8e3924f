//! The Huffman code of HPACK (RFC 7541, appendix B). The code is canonical, so the lengths of the code words are all there is to write down.
//! Used by `hpack.rs` to read; we never write Huffman: our peers of the same kind read plain bytes faster.

/// Code word length of each byte value, and of the end-of-string symbol.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];
const LONGEST: usize = 30;
const END_OF_STRING: u16 = 256;

/// For each length: the first code word of that length, how many there are, and where their symbols start.
struct Code {
    first: [u32; LONGEST + 1],
    count: [u32; LONGEST + 1],
    start: [u16; LONGEST + 1],
    symbols: [u16; 257],
}

const CODE: Code = build();

const fn build() -> Code {
    let mut code =
        Code { first: [0; LONGEST + 1], count: [0; LONGEST + 1], start: [0; LONGEST + 1], symbols: [0; 257] };
    let mut next = 0u32;
    let mut filled = 0u16;
    let mut length = 1;
    while length <= LONGEST {
        next <<= 1;
        code.first[length] = next;
        code.start[length] = filled;
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol as usize] as usize == length {
                code.symbols[filled as usize] = symbol;
                filled += 1;
                code.count[length] += 1;
            }
            symbol += 1;
        }
        next += code.count[length];
        length += 1;
    }
    code
}

/// Decodes a whole string onto `out`. Fails on the end-of-string symbol, on padding that is not the most significant bits of it, on padding of a
/// byte or more, and when `out` would exceed `limit`.
pub(super) fn decode(input: &[u8], out: &mut Vec<u8>, limit: usize) -> Option<()> {
    let mut word = 0u32;
    let mut length = 0;
    for byte in input {
        for bit in (0..8).rev() {
            word = (word << 1) | u32::from(byte >> bit & 1);
            length += 1;
            if length > LONGEST {
                return None;
            }
            // A word below the first one of its length cannot occur: shorter words were tried before.
            let index = word.wrapping_sub(CODE.first[length]);
            if index < CODE.count[length] {
                let symbol = CODE.symbols[usize::from(CODE.start[length]) + index as usize];
                if symbol == END_OF_STRING || out.len() >= limit {
                    return None;
                }
                out.push(symbol as u8);
                word = 0;
                length = 0;
            }
        }
    }
    (length < 8 && word == (1 << length) - 1).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &[u8], expect: Option<&[u8]>) {
        let mut out = Vec::new();
        assert_eq!(decode(input, &mut out, 64).map(|()| out).as_deref(), expect, "{input:x?}");
    }

    #[test]
    fn decodes_the_examples_of_the_standard() {
        check(&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff], Some(b"www.example.com"));
        check(&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f], Some(b"custom-key"));
        check(&[], Some(b""));
    }

    #[test]
    fn refuses_bad_padding_and_end_of_string() {
        check(&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7e], None);
        check(&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f, 0xff], None);
        check(&[0xff, 0xff, 0xff, 0xff], None);
    }
}
