//! Hashing of our own numbers.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::core::id::TaskSeq;

/// Hashes a task number by one multiplication (Knuth's golden-ratio constant). The numbers are our own and dense, so
/// nobody can choose colliding ones, and SipHash would double the cost of a cancel. What comes from outside, such as a
/// client's name, keeps the standard library's keyed hash.
///
/// Sixteen numbers in a row fall into buckets in a row: tasks come in order and mostly go in order, so the next one's
/// bucket is in the caches already. The blocks themselves are scattered.
#[derive(Default)]
pub struct SeqHasher(u64);

impl Hasher for SeqHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }
    fn write_u64(&mut self, number: u64) {
        // The map takes its bucket from the low bits and its tag from the high seven: fold, so that both are mixed.
        let (block, place) = (number >> 4, number & 15);
        let product = u128::from(block) * 0x9E37_79B9_7F4A_7C15;
        let mixed = (product >> 64) as u64 ^ product as u64;
        self.0 = (mixed << 4 | place) ^ place << 58;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// A map by task number. Its order of iteration is never used.
pub(crate) type SeqMap<V> = HashMap<TaskSeq, V, BuildHasherDefault<SeqHasher>>;

/// Bytes as people write them: two hexadecimal digits each.
#[cfg(any(feature = "engines-http", feature = "cluster"))]
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
