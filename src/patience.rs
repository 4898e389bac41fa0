//! Deadlines of a process that may have stood still: a moved virtual machine, a throttled container, SIGSTOP.
//!
//! Whoever wakes up late finds its deadlines over and what would have kept them unread in its sockets. So a deadline that is
//! met late is no verdict: the runtime gets another moment to read what has come, and then it is judged. Knows nothing of
//! what is waited for.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Sleep as HyperSleep;
use pin_project_lite::pin_project;
use tokio::task::coop;
use tokio::time::{Instant, Sleep};

/// A deadline that is met so much too late was missed by the relay, not by whom it waited for.
pub const LATE: Duration = Duration::from_millis(500);

/// Time to read what came while the relay stood still.
pub const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Whether it is too late to judge by a deadline; until when to look again.
pub fn second_look(deadline: Instant, now: Instant) -> Option<Instant> {
    (now >= deadline + LATE).then(|| now + SECOND_LOOK)
}

/// Waits for a turn that may have come already: then not at all, where a timer would take until its clock's next tick, a
/// millisecond or two, and wake a thread for it.
pub async fn turn(at: std::time::Instant) {
    if at > std::time::Instant::now() {
        tokio::time::sleep_until(at.into()).await;
    }
}

/// As tokio's, with a second look.
pub fn timeout<F: Future>(limit: Duration, work: F) -> Timed<F> {
    timeout_at(Instant::now() + limit, work)
}

/// As tokio's, with a second look.
pub fn timeout_at<F: Future>(deadline: Instant, work: F) -> Timed<F> {
    Timed { work, sleep: tokio::time::sleep_until(deadline) }
}

/// It was not done in time, and everything that had come was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

pin_project! {
    /// Work with a deadline. Not an async function: its argument would take its room twice.
    #[must_use = "futures do nothing unless they are awaited"]
    pub struct Timed<F> {
        #[pin]
        work: F,
        #[pin]
        sleep: Sleep,
    }
}

impl<F: Future> Future for Timed<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut timed = self.project();
        if let Poll::Ready(output) = timed.work.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        // Work that uses up its task's budget at every turn would hide its deadline.
        while pin!(coop::unconstrained(timed.sleep.as_mut())).poll(cx).is_ready() {
            match second_look(timed.sleep.deadline(), Instant::now()) {
                Some(until) => timed.sleep.as_mut().reset(until),
                None => return Poll::Ready(Err(Elapsed)),
            }
        }
        Poll::Pending
    }
}

/// A sleep that is over only after a second look.
pub struct Timer {
    due: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Timer {
    pub fn until(deadline: Instant) -> Timer {
        Timer { due: deadline, sleep: Box::pin(tokio::time::sleep_until(deadline)) }
    }

    /// What it was set to; a second look comes later.
    pub fn deadline(&self) -> Instant {
        self.due
    }

    pub fn reset(&mut self, deadline: Instant) {
        self.due = deadline;
        self.sleep.as_mut().reset(deadline);
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = &mut self.sleep;
        while sleep.as_mut().poll(cx).is_ready() {
            match second_look(sleep.deadline(), Instant::now()) {
                Some(until) => sleep.as_mut().reset(until),
                None => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }
}

impl HyperSleep for Timer {}

/// hyper's deadlines, with a second look.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpTimer;

impl hyper::rt::Timer for HttpTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn HyperSleep>> {
        Box::pin(Timer::until(Instant::now() + duration))
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn HyperSleep>> {
        Box::pin(Timer::until(deadline.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    /// Of something that the relay should have looked at a while ago.
    fn missed() -> Instant {
        Instant::now() - 4 * LATE
    }

    #[tokio::test]
    async fn a_turn_that_has_come_is_not_waited_for() {
        use futures_util::FutureExt;
        let now = std::time::Instant::now();
        assert_eq!(turn(now).now_or_never(), Some(()));
        let later = now + Duration::from_millis(20);
        turn(later).await;
        assert!(std::time::Instant::now() >= later);
    }

    #[tokio::test]
    async fn a_deadline_takes_room_for_its_timer_only() {
        let work = async {
            let large = [0_u8; 4096];
            pending::<()>().await;
            large
        };
        let room = size_of_val(&work);
        assert!(size_of_val(&timeout(Duration::ZERO, work)) <= room + 256);
    }

    #[tokio::test]
    async fn a_deadline_that_is_met_in_time_is_judged() {
        let start = Instant::now();
        assert!(timeout(Duration::from_millis(20), pending::<()>()).await.is_err());
        assert!(start.elapsed() < SECOND_LOOK, "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn one_that_is_met_late_is_looked_at_again() {
        // What is waited for becomes readable only behind the timers.
        let work = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            7
        };
        assert_eq!(timeout_at(missed(), work).await, Ok(7));
    }

    #[tokio::test]
    async fn nothing_waits_for_ever() {
        let start = Instant::now();
        assert!(timeout_at(missed(), pending::<()>()).await.is_err());
        Timer::until(missed()).await;
        assert!(start.elapsed() >= 2 * SECOND_LOOK, "{:?}", start.elapsed());
    }
}
