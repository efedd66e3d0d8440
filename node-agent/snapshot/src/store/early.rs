//! An answer that is asked for before it is needed.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use super::StoreError;

type Answer<T> = Result<T, StoreError>;

/// Comes from a thread of its own, which nobody has to wait for.
#[derive(Debug)]
pub(super) struct Early<T> {
    asking: Mutex<Option<JoinHandle<Answer<T>>>>,
    answer: OnceLock<Answer<T>>,
}

impl<T: Clone + Send + 'static> Early<T> {
    /// Begins to ask. `ask` has its own bound in time.
    pub(super) fn new(ask: impl FnOnce() -> Answer<T> + Send + 'static) -> Self {
        let builder = std::thread::Builder::new().name("early".to_owned());
        match builder.spawn(ask) {
            Ok(asking) => Self { asking: Mutex::new(Some(asking)), answer: OnceLock::new() },
            Err(error) => {
                Self { asking: Mutex::new(None), answer: OnceLock::from(Err(no_thread(&error.to_string()))) }
            }
        }
    }

    /// The answer, the same each time, once it is there.
    ///
    /// # Errors
    /// What the asking ended with.
    pub(super) fn get(&self) -> Answer<T> {
        let wait = || {
            let asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner).take();
            asking.map_or_else(
                || Err(no_thread("it is gone")),
                |asking| asking.join().unwrap_or_else(|_panic| Err(no_thread("it gave up"))),
            )
        };
        self.answer.get_or_init(wait).clone()
    }
}

fn no_thread(detail: &str) -> StoreError {
    StoreError::Unreachable { operation: "get", detail: format!("the thread that asks the store: {detail}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_early_answer_is_the_same_each_time() {
        let early = Early::new(|| Ok(7));
        assert_eq!((early.get().unwrap(), early.get().unwrap()), (7, 7));
        let early = Early::<u8>::new(|| Err(no_thread("x")));
        assert_eq!(early.get().unwrap_err().to_string(), early.get().unwrap_err().to_string());
        let early = Early::<u8>::new(|| panic!("for the test"));
        assert!(early.get().unwrap_err().to_string().contains("gave up"), "{:?}", early.get());
    }
}
