//! One cell as its requests see it: may one go in now, who waits, what a fence sees.
//!
//! Going in and fencing happen under one lock. So a request either went in before the fence, and then the fence's
//! answer counts it as open, or it is held; and what a WebSocket's client sends either counted as use before the
//! fence's answer was measured, or waits. A message that is not known to be use by then cannot be whole inside. Nothing
//! else decides whether a cell may be put to rest (invariant 6).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_node_agent_core::may_wake::{Credential, Session};
use berth_shared::cell::WakeCause;
use berth_shared::door::{CellActivity, Route, RouteState, WAKE_REPEAT, WakeStage};
use berth_shared::ids::CellId;
use berth_shared::problem::Problem;
use berth_shared::time::{Millis, UnixMs};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::bell::{Bell, Wanting};
use crate::held_bytes::{HeldBytes, OfCell};
use crate::upstream::Pool;

/// How long an address that could not be connected to is left alone when nobody says that it is good again.
const STALE_FOR: Duration = Duration::from_secs(1);

/// Sessions that are remembered as logged out, per cell. More push out the oldest, whose cookies the browsers that
/// logged out have dropped anyway.
const LOGGED_OUT_MAX: usize = 256;

/// What all gates share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) bell: Arc<Bell>,
    /// Room for requests that are held, on the whole node.
    pub(crate) room: Arc<Semaphore>,
    pub(crate) held_per_cell: u32,
    pub(crate) held: Gauge,
    /// When the process drains, nobody waits any longer: nothing would release them.
    pub(crate) stop: CancellationToken,
    pub(crate) idle_per_cell: usize,
    /// Room for what clients of WebSockets send to cells that rest, on the whole node.
    pub(crate) held_bytes: HeldBytes,
}

/// One cell.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) cell: CellId,
    shared: Arc<Shared>,
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
    pub(crate) pool: Pool,
    held_bytes: OfCell,
}

#[derive(Debug)]
struct Inner {
    route: Arc<Route>,
    removed: bool,
    fence: Option<u64>,
    /// The route's address did not answer; it is not tried until then or until the agent says that it is good.
    stale_until: Option<Instant>,
    /// When the agent last said that requests can go in.
    up_since: Instant,
    stage: Option<WakeStage>,
    refusal: Option<(Refusal, Instant)>,
    /// Grows at each refusal, so that those who were held before it can tell.
    refusals: u64,
    open_requests: u32,
    open_sockets: u32,
    last_use: Option<Instant>,
    /// Use or openness changed since the last report.
    unreported: bool,
    held: u32,
    logged_out: BTreeSet<UnixMs>,
}

/// The agent could not wake the cell.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) problem: Problem,
    pub(crate) retry_after: Millis,
}

/// Why a request did not go in.
#[derive(Debug)]
pub(crate) enum NotIn {
    /// Its time is over, or the process's.
    TimedOut,
    /// Too many are held.
    Full,
    /// The cell cannot be woken now.
    Refused(Refusal),
    /// The route is no more.
    Gone,
}

/// A wake to be asked for while waiting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    pub(crate) cause: WakeCause,
    /// When the request's head was read.
    pub(crate) since: Instant,
    /// Is it asked for while the cell is frozen only?
    pub(crate) frozen_only: bool,
}

/// What a WebSocket that was opened to an address has to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Its bytes go through.
    Open,
    /// What its client sends is kept: the cell is frozen, is being thawed, or is asked whether it may rest.
    Resting,
    /// The same for a moment: the cell is stopped, or the agent has to look first.
    Down,
    /// It ends: the cell answers elsewhere.
    Elsewhere,
    /// It ends: the route is no more.
    Gone,
}

/// A WebSocket between a known caller and the cell; it is open until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenSocket(Arc<Gate>);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        let mut inner = self.0.inner();
        inner.open_sockets -= 1;
        inner.unreported = true;
    }
}

/// A request that went in; it is open until this is dropped.
#[derive(Debug)]
pub(crate) struct Inside {
    gate: Arc<Gate>,
    pub(crate) addr: SocketAddr,
    /// When the route came up, for one that was held.
    pub(crate) released: Option<Instant>,
    counts: bool,
}

impl Drop for Inside {
    fn drop(&mut self) {
        let mut inner = self.gate.inner();
        inner.open_requests -= 1;
        inner.unreported = true;
        if self.counts {
            inner.last_use = Some(Instant::now());
        }
    }
}

impl Inner {
    /// Where requests can go in now.
    fn open_at(&self, now: Instant) -> Option<SocketAddr> {
        let shut = self.removed || self.fence.is_some() || self.stale_until.is_some_and(|until| now < until);
        match self.route.state {
            RouteState::Up(addr) if !shut => Some(addr),
            RouteState::Up(_) | RouteState::Frozen(_) | RouteState::Down => None,
        }
    }

    fn way(&self, addr: SocketAddr) -> Way {
        if self.removed {
            return Way::Gone;
        }
        match self.route.state {
            RouteState::Up(here) | RouteState::Frozen(here) if here != addr => Way::Elsewhere,
            RouteState::Up(_) if self.fence.is_none() => Way::Open,
            RouteState::Up(_) | RouteState::Frozen(_) => Way::Resting,
            RouteState::Down => Way::Down,
        }
    }

    /// Is a wake to be asked for by a request that may not go in now?
    fn asks(&self, wish: Wish) -> bool {
        let is_frozen = self.fence.is_none() && matches!(self.route.state, RouteState::Frozen(_));
        is_frozen || !wish.frozen_only
    }

    fn used(&mut self, now: Instant) {
        self.last_use = Some(now);
        self.unreported = true;
    }

    fn activity(&self, cell: CellId, now: Instant) -> CellActivity {
        let idle = self.last_use.map(|used| {
            let span = now.saturating_duration_since(used);
            Millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
        });
        CellActivity { cell, idle, open_requests: self.open_requests, open_sockets: self.open_sockets }
    }
}

/// Counts a held request out.
struct Held<'a> {
    gate: &'a Gate,
    _room: OwnedSemaphorePermit,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.gate.inner().held -= 1;
        self.gate.shared.held.dec();
    }
}

impl Gate {
    pub(crate) fn new(route: Route, shared: Arc<Shared>) -> Arc<Self> {
        let inner = Inner {
            route: Arc::new(route),
            removed: false,
            fence: None,
            stale_until: None,
            up_since: Instant::now(),
            stage: None,
            refusal: None,
            refusals: 0,
            open_requests: 0,
            open_sockets: 0,
            last_use: None,
            unreported: true,
            held: 0,
            logged_out: BTreeSet::new(),
        };
        Arc::new(Self {
            cell: inner.route.cell,
            pool: Pool::new(shared.idle_per_cell),
            held_bytes: shared.held_bytes.of_cell(),
            shared,
            inner: Mutex::new(inner),
            changed: watch::Sender::new(()),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // No code between lock and unlock can panic half way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn route(&self) -> Arc<Route> {
        Arc::clone(&self.inner().route)
    }

    pub(crate) fn stage(&self) -> Option<WakeStage> {
        self.inner().stage
    }

    /// Is the cell only being asked whether it may rest? Then whatever was asked will go in soon.
    pub(crate) fn is_fenced(&self) -> bool {
        self.inner().fence.is_some()
    }

    // What the agent says.

    /// A new or repeated route: ends a fence, forgets refusals and whatever was thought of the address.
    pub(crate) fn set(&self, route: Route) {
        let now = Instant::now();
        let (was_open, is_open) = {
            let mut inner = self.inner();
            let was_open = inner.open_at(now).is_some() || inner.fence.is_some();
            let same_place = inner.route.state == route.state;
            let was_in = inner.open_at(now).is_some();
            inner.route = Arc::new(route);
            inner.fence = None;
            inner.stale_until = None;
            inner.refusal = None;
            let is_open = inner.open_at(now).is_some();
            if is_open {
                inner.stage = None;
            }
            if is_open && !(was_in && same_place) {
                inner.up_since = now;
            }
            if !same_place {
                self.pool.clear();
            }
            (was_open, is_open)
        };
        if is_open {
            self.shared.bell.settle(self.cell);
        } else if was_open {
            self.shared.bell.rearm(self.cell);
        }
        self.changed.send_replace(());
    }

    /// Holds new requests from now on; gives the cell's use as it is from then on.
    pub(crate) fn fence(&self, fence: u64) -> CellActivity {
        let now = Instant::now();
        let activity = {
            let mut inner = self.inner();
            inner.fence = Some(fence);
            inner.activity(self.cell, now)
        };
        self.shared.bell.rearm(self.cell);
        self.changed.send_replace(());
        activity
    }

    pub(crate) fn progress(&self, stage: WakeStage) {
        self.inner().stage = Some(stage);
    }

    pub(crate) fn refuse(&self, refusal: Refusal) {
        {
            let mut inner = self.inner();
            inner.refusals += 1;
            inner.stage = None;
            // Within the repeat nothing new would be asked, so those who come meanwhile get the same answer at once.
            let until = Instant::now() + refusal.retry_after.to_std().min(WAKE_REPEAT.to_std());
            inner.refusal = Some((refusal, until));
        }
        self.changed.send_replace(());
    }

    pub(crate) fn remove(&self) {
        self.inner().removed = true;
        self.pool.clear();
        self.changed.send_replace(());
    }

    // What the agent is told.

    /// The cell's use, if it changed since the last time.
    pub(crate) fn report(&self) -> Option<CellActivity> {
        let mut inner = self.inner();
        std::mem::take(&mut inner.unreported).then(|| inner.activity(self.cell, Instant::now()))
    }

    /// The next report has to have this cell: the agent is new.
    pub(crate) fn forget_report(&self) {
        self.inner().unreported = true;
    }

    // What requests ask.

    /// Goes in, or waits for it until `until`, asking for a wake meanwhile if `wish` says so. `counts` tells whether
    /// going in is use of the cell.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        until: Instant,
        wish: Option<Wish>,
        counts: bool,
    ) -> Result<Inside, NotIn> {
        let mut changed = self.changed.subscribe();
        // The wish is made under the lock: a route that comes up afterwards settles it.
        let (refusals, _held, mut wanting) = {
            let now = Instant::now();
            let mut inner = self.inner();
            if let Some(addr) = inner.open_at(now) {
                return Ok(self.go_in(&mut inner, addr, counts, None));
            }
            if inner.removed {
                return Err(NotIn::Gone);
            }
            if let Some((refusal, _)) = inner.refusal.as_ref().filter(|(_, until)| now < *until) {
                return Err(NotIn::Refused(refusal.clone()));
            }
            if inner.held >= self.shared.held_per_cell {
                return Err(NotIn::Full);
            }
            let room = Arc::clone(&self.shared.room).try_acquire_owned().map_err(|_| NotIn::Full)?;
            inner.held += 1;
            self.shared.held.inc();
            let wanting = wish.filter(|wish| inner.asks(*wish)).map(|wish| self.wants(wish));
            (inner.refusals, Held { gate: self, _room: room }, wanting)
        };
        loop {
            changed.borrow_and_update();
            let look_again = {
                let now = Instant::now();
                let mut inner = self.inner();
                if let Some(addr) = inner.open_at(now) {
                    let released = inner.up_since;
                    return Ok(self.go_in(&mut inner, addr, counts, Some(released)));
                }
                if inner.removed {
                    return Err(NotIn::Gone);
                }
                if let Some((refusal, _)) = inner.refusal.as_ref().filter(|_| inner.refusals != refusals) {
                    return Err(NotIn::Refused(refusal.clone()));
                }
                // What rests may have been frozen or stopped meanwhile.
                wanting = match (wish.filter(|wish| inner.asks(*wish)), wanting) {
                    (Some(wish), None) => Some(self.wants(wish)),
                    (Some(_), wanting) => wanting,
                    (None, _) => None,
                };
                inner.stale_until.filter(|stale| now < *stale).map_or(until, |stale| stale.min(until))
            };
            if Instant::now() >= until || self.shared.stop.is_cancelled() {
                return Err(NotIn::TimedOut);
            }
            tokio::select! {
                changed = changed.changed() => changed.expect("the sender lives in self"),
                () = sleep_until(look_again) => {}
                () = self.shared.stop.cancelled() => {}
            }
        }
    }

    fn go_in(
        self: &Arc<Self>,
        inner: &mut Inner,
        addr: SocketAddr,
        counts: bool,
        released: Option<Instant>,
    ) -> Inside {
        inner.open_requests += 1;
        inner.unreported = true;
        if counts {
            inner.used(Instant::now());
        }
        Inside { gate: Arc::clone(self), addr, released, counts }
    }

    fn wants(&self, wish: Wish) -> Wanting {
        self.shared.bell.want(self.cell, wish.cause, wish.since)
    }

    /// The address did not answer: requests are held until the agent says something, or a moment has passed.
    pub(crate) fn mark_stale(&self, addr: SocketAddr) {
        {
            let mut inner = self.inner();
            if inner.route.state != RouteState::Up(addr) {
                return;
            }
            if inner.stale_until.replace(Instant::now() + STALE_FOR).is_some() {
                // Asked already; the repeat goes on.
                return;
            }
        }
        self.shared.bell.rearm(self.cell);
        self.changed.send_replace(());
    }

    // What WebSockets ask.

    /// Counts a WebSocket in.
    pub(crate) fn open_socket(self: &Arc<Self>) -> OpenSocket {
        let mut inner = self.inner();
        inner.open_sockets += 1;
        inner.unreported = true;
        OpenSocket(Arc::clone(self))
    }

    /// Tells when [`Gate::way`] and [`Gate::is_refused_since`] are to be asked again.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// What a WebSocket that was opened to `addr` has to do now.
    pub(crate) fn way(&self, addr: SocketAddr) -> Way {
        self.inner().way(addr)
    }

    /// May bytes of a WebSocket's client go on to the cell at `addr` now? Marks use if they are any.
    pub(crate) fn passes(&self, addr: SocketAddr, is_use: bool) -> bool {
        let mut inner = self.inner();
        let open = inner.way(addr) == Way::Open;
        if open && is_use {
            inner.used(Instant::now());
        }
        open
    }

    /// Asks for a wake until the answer is dropped, with the number of refusals so far; `None` when the cell is awake.
    pub(crate) fn wake_for_socket(&self, addr: SocketAddr, cause: WakeCause) -> Option<(Wanting, u64)> {
        let inner = self.inner();
        let wish = Wish { cause, since: Instant::now(), frozen_only: false };
        match inner.way(addr) {
            Way::Resting | Way::Down => Some((self.wants(wish), inner.refusals)),
            Way::Open | Way::Elsewhere | Way::Gone => None,
        }
    }

    /// Was a wake refused since there were so many refusals?
    pub(crate) fn is_refused_since(&self, refusals: u64) -> bool {
        self.inner().refusals != refusals
    }

    /// Room for what is kept while the cell rests.
    pub(crate) const fn held_bytes(&self) -> &OfCell {
        &self.held_bytes
    }

    /// Waits until whoever has this credential has to leave: it was withdrawn, logged out, has run out, or the route
    /// is no more. `wall` tells the time.
    pub(crate) async fn until_void(&self, credential: &Credential, wall: impl Fn() -> UnixMs) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let now = wall();
            let left = {
                let inner = self.inner();
                let logged_out = matches!(credential, Credential::Session(session)
                    if inner.logged_out.contains(&session.issued_at));
                if inner.removed || logged_out || !credential.opens(&inner.route, now) {
                    return;
                }
                match credential {
                    Credential::Session(session) => Some(session.expires_at.since(now).to_std()),
                    Credential::Bearer(_) => None,
                }
            };
            let expiry = async {
                match left {
                    Some(left) => tokio::time::sleep(left).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changed.changed() => changed.expect("the sender lives in self"),
                () = expiry => {}
            }
        }
    }

    /// Was this session logged out since this process began?
    pub(crate) fn is_logged_out(&self, session: &Session) -> bool {
        self.inner().logged_out.contains(&session.issued_at)
    }

    /// Ends a session: its open sockets are cut, and its cookie is not taken again by this process.
    pub(crate) fn log_out(&self, session: &Session) {
        {
            let mut inner = self.inner();
            inner.logged_out.insert(session.issued_at);
            if inner.logged_out.len() > LOGGED_OUT_MAX {
                inner.logged_out.pop_first();
            }
        }
        self.changed.send_replace(());
    }
}

#[cfg(test)]
pub(crate) mod tests;
