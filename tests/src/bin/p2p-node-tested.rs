//! The daemon that the process suites run: the same main and allocator as the binary `p2p-node`.
//!
//! It belongs to this package so that `cargo test` builds it by itself, with nothing built before.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    p2p_node::front::cli::main()
}
