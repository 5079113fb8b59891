//! Code of others that panics on what a file says: the panic becomes a value, and says nothing on
//! the terminal.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What `work` gives, or nothing if it panicked. Whatever it changed on the way must not be used
/// afterwards.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    static SILENCE: Once = Once::new();
    SILENCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                before(panic);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work)).ok();
    GUARDED.set(outer);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_nothing_and_are_heard_again_afterwards() {
        assert_eq!(guarded(|| 3), Some(3));
        let nested = guarded(|| {
            assert_eq!(guarded(|| -> u32 { panic!("inner") }), None);
            assert!(GUARDED.get());
            panic!("outer")
        });
        assert_eq!(nested, None::<()>);
        assert!(!GUARDED.get());
    }
}
