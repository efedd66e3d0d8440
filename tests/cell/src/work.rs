//! Work under way, and whether new work may begin: one lock, so that a lease and an admission never cross.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::clock::Now;
use crate::mode::ModeBlocker;
use crate::suspend::{Ask, Blocker, Prepared, Resumed, Status, Suspension};

/// A kind of work, in upstream's words for blockers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A request on a route of the user.
    RootRequest,
    /// A chat turn that was started over the WebSocket.
    ChatRun,
    /// A job of the scheduler.
    CronRun,
}

impl Kind {
    fn blocker(self, count: u64) -> Blocker {
        let (kind, message) = match self {
            Kind::RootRequest => ("root-request", format!("{count} active gateway request(s): http:request")),
            Kind::ChatRun => ("chat-run", format!("{count} active chat run(s)")),
            Kind::CronRun => ("cron-run", format!("{count} active cron run(s)")),
        };
        Blocker { kind: kind.to_owned(), count, message }
    }
}

#[derive(Debug, Default)]
struct Inner {
    counts: BTreeMap<Kind, u64>,
    suspension: Suspension,
    terminating: bool,
}

/// Counts the work and keeps the fence.
#[derive(Debug, Default)]
pub(crate) struct Work {
    inner: Mutex<Inner>,
    less: Notify,
}

/// One piece of work; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct WorkGuard {
    work: Arc<Work>,
    kind: Kind,
}

impl Work {
    /// Begins a piece of work, unless the cell is suspended or on its way out.
    pub(crate) fn admit(self: &Arc<Self>, kind: Kind, now: Now) -> Option<WorkGuard> {
        let mut inner = self.lock();
        if inner.terminating || inner.suspension.is_closed(now) {
            return None;
        }
        *inner.counts.entry(kind).or_default() += 1;
        Some(WorkGuard { work: Arc::clone(self), kind })
    }

    /// Is new work refused?
    pub(crate) fn is_closed(&self, now: Now) -> bool {
        let mut inner = self.lock();
        inner.terminating || inner.suspension.is_closed(now)
    }

    /// How many pieces of work are under way.
    pub(crate) fn active(&self) -> u64 {
        self.lock().counts.values().sum()
    }

    /// Asks for a lease. `busy` are blockers that a test configured on top of the real ones.
    pub(crate) fn prepare(
        &self,
        now: Now,
        ask: Ask,
        busy: &[ModeBlocker],
        new_id: String,
        lease_ms: u64,
    ) -> (Prepared, Vec<Blocker>) {
        let mut inner = self.lock();
        let blockers = inner.blockers(busy);
        let prepared = inner.suspension.prepare(now, ask, blockers.is_empty(), new_id, lease_ms);
        (prepared, blockers)
    }

    /// Looks at the lease `id`.
    pub(crate) fn status(&self, now: Now, id: &str, busy: &[ModeBlocker]) -> (Status, Vec<Blocker>) {
        let mut inner = self.lock();
        let blockers = inner.blockers(busy);
        (inner.suspension.status(now, id, blockers.is_empty()), blockers)
    }

    /// Ends the lease `id`.
    pub(crate) fn resume(&self, now: Now, id: &str) -> Resumed {
        self.lock().suspension.resume(now, id)
    }

    /// Closes admission for good: the process is leaving.
    pub(crate) fn terminate(&self) {
        self.lock().terminating = true;
    }

    /// Waits until nothing is under way.
    pub(crate) async fn idle(&self) {
        loop {
            let less = self.less.notified();
            tokio::pin!(less);
            // Registered before the look, so that a piece of work ending in between is not missed.
            less.as_mut().enable();
            if self.lock().counts.is_empty() {
                return;
            }
            less.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn blockers(&self, busy: &[ModeBlocker]) -> Vec<Blocker> {
        let real = self.counts.iter().map(|(kind, count)| kind.blocker(*count));
        let configured = busy.iter().map(|blocker| match blocker.clone() {
            ModeBlocker::Kind(kind) => Blocker { message: format!("1 active {kind}"), kind, count: 1 },
            ModeBlocker::Full { kind, count, message } => Blocker { kind, count, message },
        });
        real.chain(configured).collect()
    }
}

impl Drop for WorkGuard {
    fn drop(&mut self) {
        {
            let mut inner = self.work.lock();
            if let Some(count) = inner.counts.get_mut(&self.kind) {
                *count -= 1;
                if *count == 0 {
                    inner.counts.remove(&self.kind);
                }
            }
        }
        self.work.less.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suspend::TerminalPolicy;

    const NOW: Now = Now { wall_ms: 1000, mono_ms: 0 };

    fn prepare(work: &Work) -> (Prepared, Vec<Blocker>) {
        let ask = Ask { request_id: "r".into(), terminal_policy: TerminalPolicy::Preserve, drain: false };
        work.prepare(NOW, ask, &[], "s".into(), 100)
    }

    #[test]
    fn work_under_way_makes_the_cell_busy_and_a_lease_refuses_work() {
        let work = Arc::new(Work::default());
        let guard = work.admit(Kind::RootRequest, NOW).unwrap();
        let (prepared, blockers) = prepare(&work);
        assert_eq!(prepared, Prepared::Busy);
        assert_eq!(blockers[0].kind, "root-request");
        drop(guard);
        assert!(matches!(prepare(&work).0, Prepared::Ready { .. }));
        assert!(work.admit(Kind::RootRequest, NOW).is_none());
    }

    #[tokio::test]
    async fn idle_is_reached_when_the_last_work_ends() {
        let work = Arc::new(Work::default());
        let guard = work.admit(Kind::ChatRun, NOW).unwrap();
        let (waited, ()) =
            tokio::join!(tokio::time::timeout(std::time::Duration::from_secs(10), work.idle()), async {
                tokio::task::yield_now().await;
                drop(guard);
            });
        assert!(waited.is_ok());
    }
}
