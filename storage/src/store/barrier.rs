//! Group commit: many waiters, one flush.

use parking_lot::{Condvar, Mutex};

/// Lets everyone who asks before a run begins share that run.
#[derive(Default)]
pub(super) struct Barrier {
    state: Mutex<State>,
    turned: Condvar,
}

#[derive(Default)]
struct State {
    /// Requests so far; a request's ticket is its number.
    asked: u64,
    /// Every ticket up to this one was covered by a run that succeeded.
    passed: u64,
    running: bool,
}

impl Barrier {
    /// Returns once a `run` that began after this call has succeeded: this caller's own or another's. When a run
    /// fails, its caller gets the error, and those who waited on it run again for themselves.
    pub fn pass<E>(&self, run: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut state = self.state.lock();
        state.asked += 1;
        let ticket = state.asked;
        while state.running && state.passed < ticket {
            self.turned.wait(&mut state);
        }
        if state.passed >= ticket {
            return Ok(());
        }
        state.running = true;
        let covered = state.asked;
        drop(state);
        let result = run();
        let mut state = self.state.lock();
        state.running = false;
        if result.is_ok() {
            state.passed = covered;
        }
        self.turned.notify_all();
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn waiters_share_a_run_and_a_failure_is_not_shared() {
        let barrier = Barrier::default();
        let runs = AtomicU64::new(0);
        let (entered, first_runs) = mpsc::channel();
        let (release, go) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let barrier = &barrier;
            let first = scope.spawn(move || {
                barrier.pass(|| {
                    entered.send(()).unwrap();
                    go.recv().unwrap();
                    Err("disk full")
                })
            });
            first_runs.recv().unwrap();
            let others: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.pass(|| {
                            runs.fetch_add(1, Ordering::SeqCst);
                            Ok::<(), &str>(())
                        })
                    })
                })
                .collect();
            // All eight have their tickets before the first run ends, so one run covers them.
            while barrier.state.lock().asked < 9 {
                std::thread::yield_now();
            }
            release.send(()).unwrap();
            assert_eq!(first.join().unwrap(), Err("disk full"));
            for other in others {
                assert_eq!(other.join().unwrap(), Ok(()));
            }
        });
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }
}
