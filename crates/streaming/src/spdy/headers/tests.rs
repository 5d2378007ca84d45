use proptest::prelude::*;

use super::*;

fn adler32(data: &[u8]) -> u32 {
    let (mut a, mut b) = (1u32, 0u32);
    for byte in data {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    b << 16 | a
}

#[test]
fn the_dictionary_is_the_one_of_the_draft() {
    assert_eq!(dictionary().len(), 1423);
    assert_eq!(adler32(&dictionary()), DICTIONARY_ID);
}

#[test]
fn a_block_made_by_zlib_with_the_dictionary_is_read() {
    // Python: c=zlib.compressobj(zdict=D); c.compress(b"\0\0\0\1\0\0\0\x0astreamtype\0\0\0\5stdin")+c.flush(Z_SYNC_FLUSH)
    let block = include!("zlib_block.in");
    let headers = Decompressor::default().headers(&block).expect("valid block");
    assert_eq!(headers, vec![("streamtype".to_owned(), "stdin".to_owned())]);
}

#[test]
fn a_bomb_is_refused() {
    let mut deflate = Compress::new(Compression::best(), true);
    let mut bomb = Vec::with_capacity(1 << 20);
    deflate.compress_vec(&vec![0; 1 << 24], &mut bomb, FlushCompress::Sync).expect("fits");
    assert_eq!(Decompressor::default().headers(&bomb), Err(ProtocolError::HeadersTooLarge(MAX_BLOCK)));
}

proptest! {
    #[test]
    fn blocks_survive_the_round_trip(blocks in prop::collection::vec(prop::collection::vec(("[a-z-]{1,20}", ".{0,200}"), 0..8), 1..6)) {
        let (mut compressor, mut decompressor) = (Compressor::default(), Decompressor::default());
        for headers in blocks {
            let block = compressor.block(&headers);
            prop_assert_eq!(decompressor.headers(&block), Ok(headers));
        }
    }

    #[test]
    fn noise_never_panics(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..5), zlib in any::<bool>()) {
        let mut decompressor = Decompressor::default();
        if zlib {
            let _ = decompressor.headers(&[0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2]);
        }
        for block in blocks {
            let _ = decompressor.headers(&block);
        }
    }
}
