//! Jobs in parallel, within what the machine can carry.
//!
//! Each worker is a thread that lives until all jobs are done: QEMU dies with the thread that started it.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

/// What QEMU itself takes beside the guest's memory, in MiB, most of it translated code.
const QEMU_MIB: u64 = 256;

/// How many guests the machine carries: one per processor and no more than its free memory holds, at least one.
#[must_use]
pub fn guests(processors: usize, available_mib: u64, guest_mib: u32) -> usize {
    let by_memory =
        usize::try_from(available_mib / (u64::from(guest_mib) + QEMU_MIB)).unwrap_or(usize::MAX);
    processors.min(by_memory).max(1)
}

/// Memory that guests share, for which they wait.
#[derive(Debug)]
pub struct Budget {
    total_mib: u64,
    used_mib: Mutex<u64>,
    freed: Condvar,
}

/// A guest's part of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub struct Share<'a> {
    of: &'a Budget,
    mib: u64,
}

impl Budget {
    /// So much memory in MiB.
    #[must_use]
    pub fn of(total_mib: u64) -> Self {
        Self { total_mib, used_mib: Mutex::new(0), freed: Condvar::new() }
    }

    /// Waits until a guest with this much memory fits. One that never does is let in alone: the machine may cope.
    pub fn take(&self, guest_mib: u32) -> Share<'_> {
        let mib = u64::from(guest_mib) + QEMU_MIB;
        let used = self.used_mib.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |used: &mut u64| *used > 0 && *used + mib > self.total_mib;
        let mut used = self.freed.wait_while(used, full).unwrap_or_else(PoisonError::into_inner);
        *used += mib;
        Share { of: self, mib }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *self.of.used_mib.lock().unwrap_or_else(PoisonError::into_inner) -= self.mib;
        self.of.freed.notify_all();
    }
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
    fn guests_wait_for_memory_and_a_big_one_runs_alone() {
        let budget = Budget::of(2 * (1024 + QEMU_MIB));
        let most = Mutex::new((0, 0));
        let sizes = [1024, 4096, 1024, 1024, 4096, 1024];
        run(sizes.to_vec(), 6, |mib| {
            let share = budget.take(mib);
            let mut now = most.lock().unwrap();
            now.0 += mib;
            now.1 = now.0.max(now.1);
            drop(now);
            std::thread::yield_now();
            most.lock().unwrap().0 -= mib;
            drop(share);
        });
        assert_eq!(*most.lock().unwrap(), (0, 4096));
    }

    #[test]
    fn every_job_is_done_once() {
        let mut done = run((0..50).collect(), 4, |n: u32| n);
        done.sort_unstable();
        assert_eq!(done, (0..50).collect::<Vec<_>>());
    }
}
