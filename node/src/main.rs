//! The binary `p2p-node`: run, and turn the outcome into an exit code.

use std::process::ExitCode;

// Measured: the allocator matters as much as the cipher when big buffers come and go. Its `no_thp` is on: huge pages
// cost an idle daemon 50 MiB (72 against 20 MiB resident) and bought no speed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    p2p_node::front::cli::main()
}
