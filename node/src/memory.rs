//! How the allocator gives memory back.
//!
//! Measured with a 512 MiB `add --local` on 2 cores: by default mimalloc returns a freed chunk's pages within moments, and the next
//! chunk faults them in again: 1.2 s of kernel time, where reading, hashing and writing take 0.35 s together. Kept for a while they are
//! used again (0.24 s of kernel time; 0.39 s in all, a copy with fsync took 0.38 s). Huge pages cost an idle daemon 50 MiB (72 against
//! 20 MiB resident) and bought nothing, so the crate's `no_thp` is on.

use std::ffi::c_long;

/// `mi_option_purge_delay` of `mimalloc.h`; the crate's bindings name only its neighbours, 14 and 16.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// Long enough for a transfer to use its buffers again, short enough that a daemon is small soon after.
const KEEP_MILLISECONDS: c_long = 10_000;

/// Sets the allocator up. Call it first in `main`, before other threads are there.
pub fn tune() {
    // The user's own setting, in the allocator's words, comes first.
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_some() {
        return;
    }
    // SAFETY: sets one integer in a static table of the allocator; the index is in its range, and no other thread runs yet.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, KEEP_MILLISECONDS);
    }
}
