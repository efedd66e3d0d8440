use std::io::ErrorKind;

use berth_daemon::tasks::Tasks;
use berth_node_agent_core::frames::{Kind, server_frame};
use berth_node_agent_core::may_wake::{Credential, Session};
use berth_shared::door::{Route, RouteState, WAKE_REPEAT};
use berth_shared::ids::{CellId, UserId};
use berth_shared::problem::{Code, Problem};
use berth_shared::time::{Millis, UnixMs};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::oneshot;
use tokio::time::{advance, sleep};

use crate::bell::Bell;
use crate::gate::Refusal;
use crate::gate::tests::{addr, gate, neighbours, route};
use crate::held_bytes::HeldBytes;

use super::*;

const POLL: &str = r#"{"type":"req","id":"1","method":"sessions.catalog.list","params":{}}"#;
const SEND: &str = r#"{"type":"req","id":"2","method":"chat.send","params":{"text":"hello"}}"#;
const UP: fn() -> RouteState = || RouteState::Up(addr(1));
const FROZEN: fn() -> RouteState = || RouteState::Frozen(addr(1));

/// Longer than anything here takes, in a time that is only waited out by a test that fails.
const PATIENCE: Duration = Duration::from_secs(3600);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it never came")
}

/// A socket of a tab, with both of its ends in the test's hands.
struct Scene {
    gate: Arc<Gate>,
    bell: Arc<Bell>,
    metrics: Arc<Metrics>,
    client: DuplexStream,
    cell: DuplexStream,
    tasks: Tasks,
    leave: Option<oneshot::Sender<Closing>>,
}

/// A frame as a client makes it.
fn masked(opcode: u8, last: bool, payload: &[u8]) -> Vec<u8> {
    let mask = [7, 0, 99, 255];
    let mut frame = vec![opcode | if last { 0x80 } else { 0 }];
    match payload.len() {
        short @ 0..126 => frame.push(0x80 | u8::try_from(short).unwrap()),
        long => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(long).unwrap().to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.into_iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn text(payload: &str) -> Vec<u8> {
    masked(1, true, payload.as_bytes())
}

fn said(payload: &str) -> Vec<u8> {
    server_frame(Kind::Text, payload.as_bytes())
}

impl Scene {
    fn open(workload: Workload, buffer: usize) -> Self {
        let (gate, bell) = gate(UP());
        let tasks = Tasks::new();
        let metrics = Arc::new(Metrics::new(&mut Registry::default()));
        let (client, cell, leave) = Self::socket(&gate, &metrics, &tasks, workload, buffer);
        Self { gate, bell, metrics, client, cell, tasks, leave: Some(leave) }
    }

    fn socket(
        gate: &Arc<Gate>,
        metrics: &Arc<Metrics>,
        tasks: &Tasks,
        workload: Workload,
        buffer: usize,
    ) -> (DuplexStream, DuplexStream, oneshot::Sender<Closing>) {
        let session = Session {
            user: UserId::from_random([2; 16]),
            issued_at: UnixMs(5),
            expires_at: UnixMs(u64::MAX),
        };
        let known =
            Known { user: session.user, cause: WakeCause::Session, credential: Credential::Session(session) };
        let tunnel =
            Tunnel { gate: Arc::clone(gate), known, workload, addr: addr(1), _open: gate.open_socket() };
        let (client, client_far) = duplex(buffer);
        let (cell, cell_far) = duplex(buffer);
        let (leave, left) = oneshot::channel();
        let metrics = Arc::clone(metrics);
        tasks.spawn_client("socket", async move {
            let pump = Pump::new(&tunnel, metrics, client_far, cell_far);
            let has_to_leave = async {
                match left.await {
                    Ok(closing) => closing,
                    Err(_) => std::future::pending().await,
                }
            };
            pump.run(has_to_leave).await;
        });
        (client, cell, leave)
    }

    /// An open tab that its gateway has greeted.
    async fn tab() -> Self {
        let mut scene = Self::open(Workload::Openclaw, 64 * 1024);
        scene.cell.write_all(&said("hello-ok")).await.unwrap();
        scene.hears(&said("hello-ok")).await;
        scene
    }

    fn set(&self, state: RouteState) {
        self.gate.set(route(state));
    }

    fn freeze(&self) {
        self.gate.fence(1);
        self.set(FROZEN());
    }

    fn wakes_asked(&self) -> usize {
        self.bell.due(Instant::now()).0.len()
    }

    /// The client's next bytes are these.
    async fn hears(&mut self, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        soon(self.client.read_exact(&mut got)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(bytes));
    }

    /// The cell's next bytes are these.
    async fn gets(&mut self, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        soon(self.cell.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, bytes);
    }

    async fn gets_nothing_for(&mut self, span: Duration) {
        assert!(timeout(span, self.cell.read_u8()).await.is_err());
    }

    async fn hears_a_tick(&mut self) {
        let head =
            server_frame(Kind::Text, br#"{"type":"event","event":"tick","payload":{"ts":1700000000000}}"#);
        let mut got = vec![0; head.len()];
        soon(self.client.read_exact(&mut got)).await.unwrap();
        assert!(got.starts_with(&head[..48]), "{}", String::from_utf8_lossy(&got));
    }

    /// All that the client hears from now on is this close.
    async fn hears_the_end(&mut self, number: u16, reason: &str) {
        let mut payload = number.to_be_bytes().to_vec();
        payload.extend(reason.as_bytes());
        self.hears(&server_frame(Kind::Close, &payload)).await;
        assert_eq!(soon(self.client.read(&mut [0; 16])).await.unwrap(), 0);
    }

    async fn cell_is_left(&mut self) {
        let left = soon(self.cell.read(&mut [0; 16])).await;
        assert!(matches!(left, Ok(0)) || left.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe));
    }

    /// Waits until nothing of the socket is left.
    async fn is_over(&self) {
        while [SocketState::Open, SocketState::Resting, SocketState::Closing]
            .iter()
            .any(|state| self.metrics.sockets(*state) != 0)
        {
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(self.gate.fence(99).open_sockets, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_tabs_polls_do_not_count_and_a_message_does() {
    let mut scene = Scene::tab().await;
    for frame in [text(POLL), masked(9, true, b"ping"), masked(10, true, b"pong")] {
        scene.client.write_all(&frame).await.unwrap();
        scene.gets(&frame).await;
    }
    let activity = scene.gate.fence(1);
    assert_eq!((activity.idle, activity.open_sockets, activity.open_requests), (None, 1, 0));
    scene.set(UP());
    scene.client.write_all(&text(SEND)).await.unwrap();
    scene.gets(&text(SEND)).await;
    assert_eq!(scene.gate.fence(2).idle, Some(Millis(0)));
    let frames = |result| scene.metrics.frames.get_or_create(&crate::metrics::UseLabel::of(result)).get();
    assert_eq!((frames(Use::Counted), frames(Use::NotCounted)), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn a_tab_of_a_frozen_cell_hears_a_tick_every_20_seconds_and_wakes_nothing() {
    let mut scene = Scene::tab().await;
    let began = Instant::now();
    scene.freeze();
    for tick in 1..=9_u64 {
        scene.hears_a_tick().await;
        let after = began.elapsed().as_millis();
        assert!((20_000 * u128::from(tick)..20_000 * u128::from(tick) + 50).contains(&after), "{after}");
        scene.client.write_all(&text(POLL)).await.unwrap();
    }
    assert_eq!(scene.wakes_asked(), 0);
    assert_eq!((scene.metrics.ticks.get(), scene.metrics.sockets(SocketState::Resting)), (9, 1));
    scene.gets_nothing_for(Duration::from_secs(1)).await;
    scene.set(UP());
    scene.gets(&text(POLL).repeat(9)).await;
    scene.cell.write_all(&said("awake")).await.unwrap();
    scene.hears(&said("awake")).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(scene.metrics.ticks.get(), 9, "a cell that is awake speaks for itself");
}

#[tokio::test(start_paused = true)]
async fn a_message_to_a_frozen_cell_wakes_it_and_goes_in_once_in_order_after_it_is_up() {
    let mut scene = Scene::tab().await;
    scene.freeze();
    scene.client.write_all(&text(POLL)).await.unwrap();
    scene.gets_nothing_for(Duration::from_secs(1)).await;
    assert_eq!(scene.wakes_asked(), 0);
    scene.client.write_all(&[text(SEND), text(POLL)].concat()).await.unwrap();
    scene.gets_nothing_for(Duration::from_millis(100)).await;
    assert_eq!(scene.wakes_asked(), 1);
    scene.gets_nothing_for(Duration::from_millis(1_500)).await;
    assert_eq!(scene.wakes_asked(), 0, "asked again after {WAKE_REPEAT:?} only");
    assert!(scene.gate.held_bytes().held() > 0);
    // The agent thaws, resumes, and says so.
    scene.set(UP());
    scene.gets(&[text(POLL), text(SEND), text(POLL)].concat()).await;
    assert_eq!(scene.gate.fence(2).idle, Some(Millis(0)), "what went in is use");
    scene.set(UP());
    scene.gets_nothing_for(Duration::from_secs(5)).await;
    assert_eq!((scene.wakes_asked(), scene.gate.held_bytes().held()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_message_during_a_fence_turns_it_round_and_a_poll_waits_for_its_end() {
    let mut scene = Scene::tab().await;
    scene.gate.fence(1);
    scene.client.write_all(&text(POLL)).await.unwrap();
    scene.gets_nothing_for(Duration::from_millis(100)).await;
    assert_eq!(scene.wakes_asked(), 0);
    scene.client.write_all(&text(SEND)).await.unwrap();
    scene.gets_nothing_for(Duration::from_millis(100)).await;
    assert_eq!(scene.wakes_asked(), 1);
    scene.set(UP());
    scene.gets(&[text(POLL), text(SEND)].concat()).await;
}

#[tokio::test(start_paused = true)]
async fn a_message_that_was_cut_by_the_fence_wakes_with_its_last_piece() {
    let mut scene = Scene::tab().await;
    let send = text(SEND);
    let (first, second) = send.split_at(30);
    scene.client.write_all(first).await.unwrap();
    scene.gets(first).await;
    assert_eq!(scene.gate.fence(1).idle, None, "nobody can tell yet, and the cell neither");
    scene.set(FROZEN());
    scene.client.write_all(second).await.unwrap();
    scene.gets_nothing_for(Duration::from_millis(100)).await;
    assert_eq!(scene.wakes_asked(), 1);
    scene.set(UP());
    scene.gets(second).await;
}

#[tokio::test(start_paused = true)]
async fn no_tick_comes_into_the_middle_of_a_message_that_the_freeze_cut() {
    let mut scene = Scene::tab().await;
    let mut first = server_frame(Kind::Text, b"half a ");
    first[0] = 0x01;
    let mut second = server_frame(Kind::Text, b"message");
    second[0] = 0x80;
    scene.cell.write_all(&first).await.unwrap();
    scene.hears(&first).await;
    scene.freeze();
    sleep(Duration::from_secs(61)).await;
    scene.set(UP());
    scene.cell.write_all(&second).await.unwrap();
    scene.hears(&second).await;
    assert_eq!(scene.metrics.ticks.get(), 0);
    scene.freeze();
    scene.hears_a_tick().await;
}

#[tokio::test(start_paused = true)]
async fn a_frozen_cells_client_is_answered_its_pings_and_its_close() {
    let mut scene = Scene::tab().await;
    scene.freeze();
    scene.client.write_all(&masked(9, true, b"there?")).await.unwrap();
    scene.hears(&server_frame(Kind::Pong, b"there?")).await;
    scene.client.write_all(&[text(POLL), masked(8, true, &[3, 233])].concat()).await.unwrap();
    scene.hears(&server_frame(Kind::Close, &[3, 233])).await;
    assert_eq!(soon(scene.client.read(&mut [0; 16])).await.unwrap(), 0);
    scene.cell_is_left().await;
    assert_eq!(scene.wakes_asked(), 0);
    drop(scene.client.shutdown().await);
    scene.is_over().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_client_sent_before_it_left_a_frozen_cell_is_delivered_if_it_counts() {
    for close in [masked(8, true, &[3, 232]), Vec::new()] {
        let mut scene = Scene::tab().await;
        scene.freeze();
        scene.client.write_all(&[text(SEND), close.clone()].concat()).await.unwrap();
        scene.client.shutdown().await.unwrap();
        scene.gets_nothing_for(Duration::from_secs(3)).await;
        assert_eq!(scene.wakes_asked(), 1);
        scene.set(UP());
        scene.gets(&[text(SEND), close].concat()).await;
        scene.cell_is_left().await;
        scene.is_over().await;
    }
    let mut scene = Scene::tab().await;
    scene.freeze();
    scene.client.write_all(&text(SEND)).await.unwrap();
    scene.client.shutdown().await.unwrap();
    let began = Instant::now();
    scene.cell_is_left().await;
    assert_eq!(began.elapsed(), DELIVER_WITHIN, "not for ever");
}

#[tokio::test(start_paused = true)]
async fn a_cell_that_dies_is_told_as_a_restart_and_one_that_says_so_itself_is_not_repeated() {
    let mut scene = Scene::tab().await;
    drop(scene.cell.shutdown().await);
    scene.hears_the_end(1012, "service restart").await;

    let mut scene = Scene::tab().await;
    let own = server_frame(Kind::Close, &[3, 232]);
    scene.cell.write_all(&own).await.unwrap();
    scene.cell.shutdown().await.unwrap();
    scene.hears(&own).await;
    assert_eq!(soon(scene.client.read(&mut [0; 16])).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cell_that_stays_down_or_answers_elsewhere_ends_its_sockets() {
    let mut scene = Scene::tab().await;
    scene.set(RouteState::Down);
    scene.client.write_all(&text(SEND)).await.unwrap();
    sleep(DOWN_FOR / 2).await;
    assert_eq!(scene.wakes_asked(), 1);
    scene.set(UP());
    scene.gets(&text(SEND)).await;
    scene.set(FROZEN());
    scene.set(RouteState::Down);
    let began = Instant::now();
    scene.hears_the_end(1012, "service restart").await;
    assert_eq!(began.elapsed(), DOWN_FOR, "an agent that was restarted has had time to look");
    scene.cell_is_left().await;

    for state in [RouteState::Up(addr(2)), RouteState::Frozen(addr(2))] {
        let mut scene = Scene::tab().await;
        let began = Instant::now();
        scene.set(state);
        scene.hears_the_end(1012, "service restart").await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_may_not_stay_is_told_so_also_while_its_cell_is_frozen() {
    for frozen in [false, true] {
        let mut scene = Scene::tab().await;
        if frozen {
            scene.freeze();
        }
        scene.leave.take().unwrap().send(Closing::NotAllowed).unwrap();
        scene.hears_the_end(1008, "no longer allowed").await;
        scene.cell_is_left().await;
    }
    let mut scene = Scene::tab().await;
    scene.gate.remove();
    scene.hears_the_end(1008, "no longer allowed").await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_wake_ends_the_socket_that_asked_for_it_and_no_other() {
    let mut scene = Scene::tab().await;
    let (mut other, _cell, _leave) =
        Scene::socket(&scene.gate, &scene.metrics, &scene.tasks, Workload::Openclaw, 1024);
    scene.freeze();
    scene.client.write_all(&text(SEND)).await.unwrap();
    other.write_all(&text(POLL)).await.unwrap();
    sleep(Duration::from_millis(10)).await;
    let problem = Problem::new(Code::CrashLoop, "five times");
    scene.gate.refuse(Refusal { problem, retry_after: Millis::secs(60) });
    scene.hears_the_end(1013, "try again later").await;
    other.write_all(&masked(9, true, b"x")).await.unwrap();
    let mut pong = [0; 3];
    soon(other.read_exact(&mut pong)).await.unwrap();
    assert_eq!(pong, server_frame(Kind::Pong, b"x")[..]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_more_than_is_kept_wakes_its_cell_and_loses_nothing() {
    let scene = Scene::open(Workload::Openclaw, 256);
    scene.freeze();
    let polls = text(POLL).repeat(100);
    let (mut far, cell) = (scene.client, scene.cell);
    let sending = async {
        far.write_all(&polls).await.unwrap();
        far
    };
    let (gate, bell) = (Arc::clone(&scene.gate), Arc::clone(&scene.bell));
    let mut cell = cell;
    let (_far, got) = tokio::join!(sending, async {
        sleep(Duration::from_secs(1)).await;
        assert_eq!(gate.held_bytes().held(), 1024, "the bound of the test's gate");
        assert_eq!(bell.due(Instant::now()).0.len(), 1);
        gate.set(route(UP()));
        let mut got = vec![0; polls.len()];
        soon(cell.read_exact(&mut got)).await.unwrap();
        got
    });
    assert!(got == polls);
    assert_eq!(gate.held_bytes().held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_user_whose_sockets_keep_all_that_they_may_wakes_no_neighbour() {
    let room = HeldBytes::new(64 * 1024, 64 * 1024, Gauge::default());
    let ([greedy, quiet], bell) = neighbours(UP(), room);
    let (tasks, metrics) = (Tasks::new(), Arc::new(Metrics::new(&mut Registry::default())));
    let open = |gate: &Arc<Gate>| Scene::socket(gate, &metrics, &tasks, Workload::Openclaw, 1024);
    let mut sockets: Vec<_> = (0..4).map(|_| open(&greedy)).collect();
    let (mut tab, _cell, _leave) = open(&quiet);
    for gate in [&greedy, &quiet] {
        gate.fence(1);
        gate.set(route(FROZEN()));
    }
    let long = masked(1, true, &[b'x'; 60_000]);
    for (client, ..) in &mut sockets {
        let sent = timeout(Duration::from_secs(5), client.write_all(&long)).await;
        assert!(sent.is_err(), "no more is read than is kept");
    }
    tab.write_all(&text(POLL)).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let asked = || -> Vec<CellId> { bell.due(Instant::now()).0.into_iter().map(|ask| ask.cell).collect() };
    assert_eq!(asked(), [greedy.cell]);
    tab.write_all(&text(SEND)).await.unwrap();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(asked(), [quiet.cell], "and is heard when it says something");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_holds_up_nobody_else_and_gets_no_heap_of_ticks() {
    let mut scene = Scene::open(Workload::Openclaw, 64);
    let (mut other, mut other_cell, _leave) =
        Scene::socket(&scene.gate, &scene.metrics, &scene.tasks, Workload::Openclaw, 64 * 1024);
    let long = said(&"x".repeat(1_000));
    let blocked = timeout(Duration::from_secs(5), scene.cell.write_all(&said(&"x".repeat(50_000)))).await;
    assert!(blocked.is_err(), "no more is read from the cell than is taken from it");
    other_cell.write_all(&long).await.unwrap();
    let mut got = vec![0; long.len()];
    soon(other.read_exact(&mut got)).await.unwrap();
    scene.freeze();
    let waited = timeout(Duration::from_secs(600), scene.gets_nothing_for(Duration::from_secs(599))).await;
    waited.unwrap();
    assert_eq!(scene.metrics.ticks.get(), 29, "all of them for the other");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_breaks_the_protocol_is_told_so() {
    let mut scene = Scene::tab().await;
    scene.client.write_all(b"not a frame").await.unwrap();
    scene.hears_the_end(1002, "protocol error").await;
    scene.cell_is_left().await;
    let mut scene = Scene::tab().await;
    scene.cell.write_all(b"not a frame").await.unwrap();
    assert_eq!(soon(scene.client.read(&mut [0; 64])).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn another_workloads_socket_survives_a_freeze_without_a_word_of_ours() {
    let mut scene = Scene::open(Workload::Http, 1024);
    scene.cell.write_all(&said("hello")).await.unwrap();
    scene.hears(&said("hello")).await;
    scene.freeze();
    advance(Duration::from_secs(300)).await;
    scene.client.write_all(&text(POLL)).await.unwrap();
    scene.gets_nothing_for(Duration::from_secs(1)).await;
    assert_eq!((scene.wakes_asked(), scene.metrics.ticks.get()), (1, 0), "whatever it is, it counts");
    scene.set(UP());
    scene.gets(&text(POLL)).await;
}

#[tokio::test(start_paused = true)]
async fn a_route_that_changes_otherwise_leaves_open_sockets_alone() {
    let mut scene = Scene::tab().await;
    scene.gate.set(Route { slug: "other".parse().unwrap(), ..route(UP()) });
    scene.client.write_all(&text(POLL)).await.unwrap();
    scene.gets(&text(POLL)).await;
}
