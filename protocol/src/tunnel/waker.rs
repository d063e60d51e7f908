//! A waker for one part of a task.
//!
//! A task's futures share one waker, so what wakes one polls all: five parts of a tunnel, each with timers and
//! queues to ask, for every key that somebody types. And yamux measures the round trip whenever it is polled and has
//! not for ten seconds: were it polled by the ping and the pong that keep an idle connection alive, each of those
//! would cost four messages more, and a device its budget.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// A part of a task, polled only when it has something to do. Boxed, or whatever holds it has the room for it twice.
pub fn alone<F: Future>(part: F) -> impl Future<Output = F::Output> {
    let (own, mut part) = (OwnWaker::new(), Box::pin(part));
    poll_fn(move |cx| own.poll(cx, |cx| part.as_mut().poll(cx)))
}

/// Polls a part of a task only when that part has something to do.
#[derive(Debug)]
pub struct OwnWaker {
    woken: AtomicBool,
    task: Mutex<Waker>,
}

impl OwnWaker {
    /// The first poll is always due.
    #[allow(clippy::new_ret_no_self, reason = "it is only of use in an Arc")]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { woken: AtomicBool::new(true), task: Mutex::new(Waker::noop().clone()) })
    }

    /// Polls `part`, if it was woken since the last time. `cx` is the task's.
    pub fn poll<T>(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        part: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        // Before the look at the flag: whoever wakes in between finds the task to wake.
        self.task.lock().unwrap_or_else(PoisonError::into_inner).clone_from(cx.waker());
        if !self.woken.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(self));
        part(&mut Context::from_waker(&waker))
    }
}

impl Wake for OwnWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            // Not with the lock held: the task may run at once on another thread, and want it.
            let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).clone();
            task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_part_is_polled_at_first_and_then_only_when_it_was_woken() {
        let task = Arc::new(Counted::default());
        let waker = Waker::from(task.clone());
        let mut cx = Context::from_waker(&waker);
        let own = OwnWaker::new();
        let (mut polls, mut kept) = (0, None);
        let mut poll = |cx: &mut Context<'_>, kept: &mut Option<Waker>| {
            let _: Poll<()> = own.poll(cx, |cx| {
                polls += 1;
                *kept = Some(cx.waker().clone());
                Poll::Pending
            });
            polls
        };
        assert_eq!(poll(&mut cx, &mut kept), 1);
        // The task was woken by something else.
        assert_eq!(poll(&mut cx, &mut kept), 1);
        kept.as_ref().unwrap().wake_by_ref();
        assert_eq!(task.0.load(Ordering::SeqCst), 1, "the task learns");
        kept.as_ref().unwrap().wake_by_ref();
        assert_eq!(task.0.load(Ordering::SeqCst), 1, "once is enough");
        assert_eq!(poll(&mut cx, &mut kept), 2);
        assert_eq!(poll(&mut cx, &mut kept), 2);
    }

    #[test]
    fn what_wakes_itself_while_it_is_polled_is_polled_again() {
        let task = Arc::new(Counted::default());
        let waker = Waker::from(task.clone());
        let mut cx = Context::from_waker(&waker);
        let own = OwnWaker::new();
        for polls in 1..4 {
            let _: Poll<()> = own.poll(&mut cx, |cx| {
                cx.waker().wake_by_ref();
                Poll::Pending
            });
            assert_eq!(task.0.load(Ordering::SeqCst), polls);
        }
    }
}
