//! A bounded pool of threads for database calls, so that they never hold up async workers.
//!
//! Large values can block a call for long; a pool of our own keeps that from starving anything else, and its bound
//! is the back pressure: who asks for more than the queue holds waits, asynchronously.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

/// Threads: enough to overlap a few disk reads with a barrier, few enough to bound memory in flight.
const THREADS: usize = 6;
/// Calls that may wait for a thread. More would only hide that the disk is the limit.
const QUEUE: usize = 256;

type Job = Box<dyn FnOnce() + Send>;

pub(super) struct Pool {
    jobs: Sender<Job>,
    room: Arc<Semaphore>,
}

impl Pool {
    pub fn start() -> std::io::Result<Pool> {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..THREADS {
            let queue = queue.clone();
            std::thread::Builder::new().name(format!("store-{number}")).spawn(move || work(&queue))?;
        }
        Ok(Pool { jobs, room: Arc::new(Semaphore::new(QUEUE + THREADS)) })
    }

    /// Runs `call` on a thread of the pool. It runs to its end even if the caller stops waiting; a panic in it
    /// continues in the caller.
    pub async fn run<T: Send + 'static>(&self, call: impl FnOnce() -> T + Send + 'static) -> T {
        let permit = self.room.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || {
            let result = catch_unwind(AssertUnwindSafe(call));
            drop(permit);
            // A caller that went away does not want the answer.
            let _ = answer.send(result);
        });
        self.jobs.send(job).expect("the threads outlive the pool");
        match answered.await.expect("a job always answers") {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// Takes jobs until the pool is gone.
fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}
