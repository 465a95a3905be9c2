//! Who may use how much: quotas per class, promises, and what is left of the disk.
//!
//! Quota is logical: it counts the bytes of live blocks, each once, for the class that brought it first. Space promised
//! to an agreement counts as used before its bytes arrive; an ingest that fills a promise draws from it, so that
//! nothing is counted twice.

use std::collections::HashMap;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{Class, StoreError};

/// Most bytes that each class may hold; `None` means as much as the disk has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// What the user added or keeps.
    pub own: Option<u64>,
    /// What others rent.
    pub hosted: Option<u64>,
    /// What was fetched in passing.
    pub cache: Option<u64>,
}

impl Quota {
    /// The limit of one class.
    pub fn of(&self, class: Class) -> Option<u64> {
        match class {
            Class::Own => self.own,
            Class::Hosted => self.hosted,
            Class::Cache => self.cache,
        }
    }
}

/// Space promised before it arrives, as it is kept in the state database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Promise {
    pub class: Class,
    pub bytes: u64,
}

/// The books.
pub(super) struct Space {
    state: Mutex<State>,
}

struct State {
    quota: Quota,
    used: [u64; 3],
    promises: HashMap<String, Open>,
}

/// A promise in memory, with what ingests under way have drawn from it.
struct Open {
    promise: Promise,
    drawn: u64,
}

impl State {
    fn promised(&self, class: Class) -> u64 {
        let open = self.promises.values().filter(|open| open.promise.class == class);
        open.map(|open| open.promise.bytes.saturating_sub(open.drawn)).fold(0, u64::saturating_add)
    }

    /// Refuses `asked` more bytes of `class` that are not covered by a promise.
    fn admit(&self, class: Class, asked: u64) -> Result<(), StoreError> {
        let Some(quota) = self.quota.of(class) else { return Ok(()) };
        let taken = self.used[class.index()].saturating_add(self.promised(class));
        let free = quota.saturating_sub(taken);
        if asked <= free { Ok(()) } else { Err(StoreError::QuotaExceeded { class, asked, free, quota }) }
    }
}

impl Space {
    pub fn new(quota: Quota, used: [u64; 3], promises: impl IntoIterator<Item = (String, Promise)>) -> Space {
        let promises = promises.into_iter().map(|(id, promise)| (id, Open { promise, drawn: 0 })).collect();
        Space { state: Mutex::new(State { quota, used, promises }) }
    }

    /// Refuses if `asked` bytes more of `class` would not fit now.
    pub fn check(&self, class: Class, asked: u64) -> Result<(), StoreError> {
        self.state.lock().admit(class, asked)
    }

    /// Books `growth` bytes of `class`, as far as possible from the promise `draws_on`. Returns how many came from it.
    pub fn grow(&self, class: Class, growth: u64, draws_on: Option<&str>) -> Result<u64, StoreError> {
        let mut state = self.state.lock();
        let open = draws_on.and_then(|id| state.promises.get(id)).filter(|open| open.promise.class == class);
        let left = open.map_or(0, |open| open.promise.bytes.saturating_sub(open.drawn));
        let drawn = growth.min(left);
        state.admit(class, growth - drawn)?;
        if let Some(open) = draws_on.and_then(|id| state.promises.get_mut(id)) {
            open.drawn += drawn;
        }
        let used = &mut state.used[class.index()];
        *used = used.saturating_add(growth);
        Ok(drawn)
    }

    /// Takes bytes of `class` off the books.
    pub fn shrink(&self, class: Class, bytes: u64) {
        let used = &mut self.state.lock().used[class.index()];
        *used = used.saturating_sub(bytes);
    }

    /// Gives back what an ingest drew from a promise and did not keep.
    pub fn undraw(&self, id: &str, drawn: u64) {
        if let Some(open) = self.state.lock().promises.get_mut(id) {
            open.drawn = open.drawn.saturating_sub(drawn);
        }
    }

    /// Promises space, or refuses. A promise of the same id is replaced; the old one is returned.
    pub fn promise(&self, id: &str, promise: Promise) -> Result<Option<Promise>, StoreError> {
        let mut state = self.state.lock();
        let old = state.promises.remove(id);
        let verdict = state.admit(promise.class, promise.bytes);
        match (verdict, old) {
            (Ok(()), old) => {
                state.promises.insert(id.to_owned(), Open { promise, drawn: 0 });
                Ok(old.map(|open| open.promise))
            }
            (Err(refused), old) => {
                if let Some(old) = old {
                    state.promises.insert(id.to_owned(), old);
                }
                Err(refused)
            }
        }
    }

    /// Sets a promise back to what it was before [`promise`](Self::promise), or removes it.
    pub fn restore(&self, id: &str, old: Option<Promise>) {
        let mut state = self.state.lock();
        match old {
            Some(promise) => state.promises.insert(id.to_owned(), Open { promise, drawn: 0 }),
            None => state.promises.remove(id),
        };
    }

    /// Sets the quota from now on. What is over a lowered one stays; only new bytes are refused.
    pub fn set_quota(&self, quota: Quota) {
        self.state.lock().quota = quota;
    }

    /// Replaces the used bytes after the block database was reopened.
    pub fn set_used(&self, used: [u64; 3]) {
        self.state.lock().used = used;
    }

    /// Quota, used and promised bytes of a class.
    pub fn of(&self, class: Class) -> (Option<u64>, u64, u64) {
        let state = self.state.lock();
        (state.quota.of(class), state.used[class.index()], state.promised(class))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(hosted: u64) -> Space {
        Space::new(Quota { hosted: Some(hosted), ..Quota::default() }, [0; 3], [])
    }

    #[test]
    fn promises_count_as_used_and_are_drawn_once() {
        let space = space(100);
        space.promise("a", Promise { class: Class::Hosted, bytes: 60 }).unwrap();
        assert!(space.promise("b", Promise { class: Class::Hosted, bytes: 41 }).is_err());
        assert!(space.grow(Class::Hosted, 41, None).is_err());
        assert_eq!(space.grow(Class::Hosted, 50, Some("a")).unwrap(), 50);
        assert_eq!(space.of(Class::Hosted), (Some(100), 50, 10));
        // Beyond its promise an ingest competes for free space like any other.
        assert_eq!(space.grow(Class::Hosted, 50, Some("a")).unwrap(), 10);
        assert!(space.grow(Class::Hosted, 1, Some("a")).is_err());
        space.restore("a", None);
        assert_eq!(space.of(Class::Hosted), (Some(100), 100, 0));
    }

    #[test]
    fn a_refused_replacement_keeps_the_old_promise() {
        let space = space(100);
        let small = Promise { class: Class::Hosted, bytes: 60 };
        space.promise("a", small).unwrap();
        assert!(space.promise("a", Promise { bytes: 101, ..small }).is_err());
        assert_eq!(space.of(Class::Hosted).2, 60);
        assert_eq!(space.promise("a", Promise { bytes: 100, ..small }).unwrap(), Some(small));
        space.restore("a", Some(small));
        assert_eq!(space.of(Class::Hosted).2, 60);
    }

    #[test]
    fn classes_do_not_share_room() {
        let space = space(10);
        space.grow(Class::Own, 1 << 40, None).unwrap();
        assert!(space.grow(Class::Hosted, 11, None).is_err());
        space.grow(Class::Hosted, 10, None).unwrap();
        space.shrink(Class::Hosted, 4);
        assert_eq!(space.of(Class::Hosted), (Some(10), 6, 0));
    }
}
