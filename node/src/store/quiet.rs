//! Panics of the index, caught and kept from the user's terminal.
//!
//! sled 0.34 panics on damage, in the caller's thread and in threads of its own. One hook for the process, set once,
//! stays silent where a flag of the thread says so or where the thread is sled's; every other panic goes on to the
//! hook that was there before.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
    thread,
};

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic becomes its text and is shown to nobody.
pub(super) fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let flagged = QUIET.try_with(Cell::get).unwrap_or(false);
            let current = thread::current();
            let sleds = current.name().is_some_and(|name| name.starts_with("sled-io") || name == "log flusher");
            if !flagged && !sleds {
                before(panic);
            }
        }));
    });
    let outer = QUIET.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    QUIET.set(outer);
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        text.unwrap_or("a panic without words").lines().next().unwrap_or_default().to_owned()
    })
}
