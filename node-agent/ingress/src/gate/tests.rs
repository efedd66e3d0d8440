use super::*;
use berth_shared::cell::Workload;
use berth_shared::ids::UserId;
use berth_shared::problem::Code;

pub(crate) fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

pub(crate) fn route(state: RouteState) -> Route {
    Route {
        slug: "demo".parse().unwrap(),
        cell: CellId::from_random([1; 16]),
        user: UserId::from_random([2; 16]),
        workload: Workload::Http,
        bearers: Vec::new(),
        sessions_valid_from: UnixMs(0),
        state,
    }
}

pub(crate) fn gate(state: RouteState) -> (Arc<Gate>, Arc<Bell>) {
    let ([gate, _], bell) = neighbours(state, HeldBytes::new(1024, 2048, Gauge::default()));
    (gate, bell)
}

/// Two cells of one node.
pub(crate) fn neighbours(state: RouteState, held_bytes: HeldBytes) -> ([Arc<Gate>; 2], Arc<Bell>) {
    let bell = Arc::new(Bell::default());
    let shared = Shared {
        bell: Arc::clone(&bell),
        room: Arc::new(Semaphore::new(5)),
        held_per_cell: 3,
        held: Gauge::default(),
        stop: CancellationToken::new(),
        idle_per_cell: 1,
        held_bytes,
    };
    let shared = Arc::new(shared);
    let other = Route { cell: CellId::from_random([3; 16]), slug: "other".parse().unwrap(), ..route(state) };
    ([Gate::new(route(state), Arc::clone(&shared)), Gate::new(other, shared)], bell)
}

fn wish() -> Option<Wish> {
    Some(Wish { cause: WakeCause::Bearer, since: Instant::now(), frozen_only: false })
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

#[tokio::test(start_paused = true)]
async fn a_request_that_went_in_is_counted_by_a_fence_and_the_next_one_is_held() {
    let (gate, bell) = gate(RouteState::Up(addr(1)));
    assert_eq!(gate.fence(1).idle, None);
    gate.set(route(RouteState::Up(addr(1))));
    let inside = gate.enter(soon(), None, true).await.unwrap();
    assert_eq!(gate.fence(2).open_requests, 1);
    drop(inside);
    let activity = gate.fence(3);
    assert_eq!((activity.open_requests, activity.idle), (0, Some(Millis(0))));
    let held = gate.enter(soon(), wish(), true);
    let release = async {
        assert_eq!(bell.due(Instant::now()).0.len(), 1, "a held request asks to turn round");
        gate.set(route(RouteState::Up(addr(1))));
        assert_eq!(bell.due(Instant::now()).0.len(), 0, "one that is let in asks no more");
    };
    let (held, ()) = tokio::join!(held, release);
    assert!(held.unwrap().released.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_request_is_held_for_its_time_and_no_longer_and_asks_only_if_it_may() {
    let (gate, bell) = gate(RouteState::Down);
    let began = Instant::now();
    let until = began + Duration::from_secs(14);
    assert!(matches!(gate.enter(until, None, false).await, Err(NotIn::TimedOut)));
    assert_eq!(began.elapsed().as_secs(), 14);
    assert_eq!(bell.due(Instant::now()).0.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn held_requests_are_bounded_per_cell_and_node() {
    let (gate, _bell) = gate(RouteState::Down);
    let other = Gate::new(
        Route { cell: CellId::from_random([9; 16]), ..route(RouteState::Down) },
        Arc::clone(&gate.shared),
    );
    let enter = |gate: &Arc<Gate>| {
        let gate = Arc::clone(gate);
        async move { gate.enter(soon(), wish(), true).await.is_err_and(|not_in| matches!(not_in, NotIn::Full)) }
    };
    let full = tokio::join!(
        enter(&gate),
        enter(&gate),
        enter(&gate),
        enter(&gate),
        enter(&other),
        enter(&other),
        enter(&other)
    );
    assert_eq!(full, (false, false, false, true, false, false, true));
    assert_eq!(gate.shared.held.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_answers_all_that_are_held_and_for_a_moment_those_who_come() {
    let (gate, _bell) = gate(RouteState::Down);
    let refusal =
        Refusal { problem: Problem::new(Code::CrashLoop, "five times"), retry_after: Millis::secs(60) };
    let (one, two, ()) =
        tokio::join!(gate.enter(soon(), wish(), true), gate.enter(soon(), None, false), async {
            gate.refuse(refusal.clone());
        });
    for end in [one, two, gate.enter(soon(), wish(), true).await] {
        assert!(matches!(end, Err(NotIn::Refused(told)) if told.problem.code == Code::CrashLoop));
    }
    tokio::time::advance(WAKE_REPEAT.to_std()).await;
    let again = gate.enter(Instant::now() + Duration::from_secs(1), wish(), true).await;
    assert!(matches!(again, Err(NotIn::TimedOut)), "later ones ask again");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_does_not_answer_is_asked_about_once_and_tried_again_after_a_moment() {
    let (gate, bell) = gate(RouteState::Up(addr(1)));
    gate.mark_stale(addr(2));
    drop(gate.enter(soon(), None, false).await.unwrap());
    gate.mark_stale(addr(1));
    gate.mark_stale(addr(1));
    let began = Instant::now();
    let (inside, asks) =
        tokio::join!(gate.enter(soon(), wish(), true), async { bell.due(Instant::now()).0.len() });
    assert_eq!(asks, 1);
    assert!(inside.is_ok() && began.elapsed() == STALE_FOR);
}

#[test]
fn a_sockets_bytes_pass_at_its_own_address_while_the_cell_is_awake() {
    let (gate, bell) = gate(RouteState::Up(addr(1)));
    let asked = |gate: &Gate| gate.wake_for_socket(addr(1), WakeCause::Session).is_some();
    let look = |gate: &Gate| (gate.way(addr(1)), gate.passes(addr(1), false), asked(gate));
    assert_eq!(look(&gate), (Way::Open, true, false));
    assert_eq!(gate.fence(1).idle, None, "what does not count is no use");
    assert_eq!(look(&gate), (Way::Resting, false, true));
    for state in [RouteState::Frozen(addr(1)), RouteState::Down] {
        gate.set(route(state));
        let way = if state == RouteState::Down { Way::Down } else { Way::Resting };
        assert_eq!(look(&gate), (way, false, true));
    }
    assert!(!gate.passes(addr(1), true));
    assert_eq!(gate.fence(2).idle, None, "what is kept is no use yet");
    gate.set(route(RouteState::Up(addr(1))));
    assert!(gate.passes(addr(1), true));
    assert!(gate.fence(3).idle.is_some());
    for state in [RouteState::Up(addr(2)), RouteState::Frozen(addr(2))] {
        gate.set(route(state));
        assert_eq!(look(&gate), (Way::Elsewhere, false, false));
    }
    gate.remove();
    assert_eq!(look(&gate), (Way::Gone, false, false));
    assert_eq!(bell.due(Instant::now()).0.len(), 0, "nobody wants it any more");
}

#[test]
fn open_sockets_are_told_and_are_no_requests() {
    let (gate, _bell) = gate(RouteState::Up(addr(1)));
    let (one, other) = (gate.open_socket(), gate.open_socket());
    let told = |activity: CellActivity| (activity.open_requests, activity.open_sockets, activity.idle);
    assert_eq!(gate.report().map(told), Some((0, 2, None)));
    drop(one);
    assert_eq!(gate.report().map(told), Some((0, 1, None)));
    assert_eq!(told(gate.fence(1)), (0, 1, None));
    drop(other);
    assert_eq!(gate.report().map(told), Some((0, 0, None)));
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_asks_for_a_frozen_cell_and_for_no_other() {
    let (gate, bell) = gate(RouteState::Down);
    let upgrade = Some(Wish { frozen_only: true, ..wish().unwrap() });
    let asks = || bell.due(Instant::now()).0.len();
    let steps = async {
        tokio::task::yield_now().await;
        assert_eq!(asks(), 0, "stopped");
        gate.set(route(RouteState::Frozen(addr(1))));
        tokio::task::yield_now().await;
        assert_eq!(asks(), 1, "frozen");
        gate.set(route(RouteState::Down));
        tokio::task::yield_now().await;
        tokio::time::advance(WAKE_REPEAT.to_std()).await;
        tokio::task::yield_now().await;
        assert_eq!(asks(), 0, "killed while it was frozen");
        gate.set(route(RouteState::Up(addr(1))));
    };
    let (inside, ()) = tokio::join!(gate.enter(soon(), upgrade, false), steps);
    assert!(inside.is_ok());
    gate.fence(1);
    let (inside, ()) = tokio::join!(gate.enter(soon(), upgrade, false), async {
        assert_eq!(asks(), 0, "falling asleep");
        gate.set(route(RouteState::Up(addr(1))));
    });
    drop(inside.unwrap());
    assert_eq!(gate.fence(2).idle, None, "it is no use by itself");
}

#[tokio::test(start_paused = true)]
async fn a_credential_is_void_when_withdrawn_logged_out_or_run_out() {
    let (gate, _bell) = gate(RouteState::Up(addr(1)));
    let user = UserId::from_random([2; 16]);
    let began = Instant::now();
    let wall = move || UnixMs(1_000 + u64::try_from(began.elapsed().as_millis()).unwrap());
    let session = |at| Session { user, issued_at: UnixMs(at), expires_at: UnixMs(10_000) };
    gate.until_void(&Credential::Session(session(5)), wall).await;
    assert_eq!(began.elapsed().as_millis(), 9_000);
    let wall = || UnixMs(1_000);
    let credential = Credential::Session(session(5));
    let voided = gate.until_void(&credential, wall);
    tokio::join!(voided, async { gate.log_out(&session(5)) });
    assert!(gate.is_logged_out(&session(5)) && !gate.is_logged_out(&session(6)));
    let credential = Credential::Session(session(6));
    let voided = gate.until_void(&credential, wall);
    tokio::join!(voided, async {
        gate.set(Route { sessions_valid_from: UnixMs(7), ..route(RouteState::Down) })
    });
}

#[tokio::test(start_paused = true)]
async fn use_is_reported_once_per_change() {
    let (gate, _bell) = gate(RouteState::Up(addr(1)));
    assert!(gate.report().is_some());
    assert_eq!(gate.report(), None);
    let inside = gate.enter(soon(), None, false).await.unwrap();
    assert_eq!(gate.report().map(|activity| (activity.open_requests, activity.idle)), Some((1, None)));
    drop(inside);
    assert_eq!(gate.report().map(|activity| activity.open_requests), Some(0));
    gate.forget_report();
    assert!(gate.report().is_some());
}

#[tokio::test(start_paused = true)]
async fn nobody_is_held_when_the_process_drains() {
    let (gate, _bell) = gate(RouteState::Down);
    let began = Instant::now();
    let (end, ()) = tokio::join!(gate.enter(soon(), wish(), true), async { gate.shared.stop.cancel() });
    assert!(matches!(end, Err(NotIn::TimedOut)));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_cell_that_does_not_answer_is_asked_about_although_some_of_the_last_wake_are_still_leaving() {
    let (gate, bell) = gate(RouteState::Down);
    let _leaving = gate.wants(wish().unwrap());
    assert_eq!(bell.due(Instant::now()).0.len(), 1);
    gate.set(route(RouteState::Up(addr(1))));
    assert_eq!(bell.due(Instant::now()).0.len(), 0);
    gate.mark_stale(addr(1));
    assert_eq!(bell.due(Instant::now()).0.len(), 1);
}
