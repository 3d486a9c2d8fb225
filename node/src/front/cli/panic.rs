//! A panic is a bug: it goes to the log as one line, and no message of Rust's reaches a user.
//!
//! The store catches panics of its index on purpose and silences them with a hook of its own, which hands all others on
//! to the hook that was there before it: this one.

use std::panic::{PanicHookInfo, set_hook};

/// Makes panics lines of the log.
pub(super) fn install() {
    set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "internal error: {}", text(panic));
    }));
}

fn text<'a>(panic: &'a PanicHookInfo<'_>) -> &'a str {
    let payload = panic.payload();
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("of an unknown kind")
}
