//! Chance of the system, made repeatable. `ractor_cluster` draws the times of its pings and the challenges of its
//! sessions from the system, and maps of the standard library their order: with these the same seed would give two
//! runs. So in this program the system's `getrandom` gives each thread the same bytes every time.
#![allow(unsafe_code)]

use std::cell::Cell;

thread_local! {
    static STATE: Cell<u64> = const { Cell::new(0) };
}

/// Takes the place of the C library's function in this program.
///
/// # Safety
/// `buffer` has room for `length` bytes, as its callers promise to the C library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    // SAFETY: by the contract of the function whose place this takes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer, length) };
    for byte in bytes {
        // SplitMix64, a byte of each number.
        let state = STATE.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        STATE.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        *byte = ((mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 56) as u8;
    }
    length as isize
}
