//! Jobs in parallel, within what the machine can carry.
//!
//! Each worker is a thread that lives until all jobs are done: QEMU dies with the thread that started it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// How many guests the machine carries: one per processor and no more than its free memory holds, at least one.
#[must_use]
pub fn guests(processors: usize, available_mib: u64, guest_mib: u32) -> usize {
    // QEMU itself takes about 200 MiB beside the guest's memory, most of it translated code.
    let by_memory =
        usize::try_from(available_mib / (u64::from(guest_mib) + 256)).unwrap_or(usize::MAX);
    processors.min(by_memory).max(1)
}

/// Runs all jobs on `workers` threads; results come in the order of the jobs' ends.
pub fn run<J: Send, R: Send>(jobs: Vec<J>, workers: usize, work: impl Fn(J) -> R + Sync) -> Vec<R> {
    let queue = Mutex::new(VecDeque::from(jobs));
    let results = Mutex::new(Vec::new());
    let take = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..workers.max(1) {
            scope.spawn(|| {
                while let Some(job) = take() {
                    let result = work(job);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_limits_the_guests_but_never_to_none() {
        assert_eq!(guests(8, 64_000, 1024), 8);
        assert_eq!(guests(8, 4_000, 1024), 3);
        assert_eq!(guests(8, 100, 1024), 1);
    }

    #[test]
    fn every_job_is_done_once() {
        let mut done = run((0..50).collect(), 4, |n: u32| n);
        done.sort_unstable();
        assert_eq!(done, (0..50).collect::<Vec<_>>());
    }
}
