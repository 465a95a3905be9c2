//! Work that is done side by side.

use parking_lot::Mutex;

/// Runs jobs side by side, the first one on this thread; answers in the order of the jobs. Where no thread can be had, this
/// one does it all.
pub(crate) fn on_threads<T: Send>(jobs: impl Iterator<Item = impl FnOnce() -> T + Send>) -> Vec<T> {
    let jobs: Vec<_> = jobs.map(|job| Mutex::new(Some(job))).collect();
    let run = |number: usize| {
        let job = jobs[number].lock().take().expect("each job is run once");
        job()
    };
    let run = &run;
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..jobs.len())
            .map(|number| (number, std::thread::Builder::new().spawn_scoped(scope, move || run(number))))
            .collect();
        let first = (!jobs.is_empty()).then(|| run(0));
        let others = others.into_iter().map(|(number, thread)| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(_) => run(number),
        });
        first.into_iter().chain(others).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_the_order_of_the_jobs() {
        for many in 0..9u32 {
            let answers = on_threads((0..many).map(|number| move || number * number));
            assert_eq!(answers, (0..many).map(|number| number * number).collect::<Vec<_>>());
        }
    }
}
