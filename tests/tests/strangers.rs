//! Strangers cost next to nothing (invariant 5): nothing is asked of Docker, of the agent or of a cell, nothing grows,
//! and who is known does not notice.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic in a test is its report")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use berth_tests::lab::engine_proxy::EngineProxy;
use berth_tests::lab::raw::Connection;
use berth_tests::lab::shell::say;
use berth_tests::lab::tap::Tap;
use berth_tests::world::daemon::Daemon;
use berth_tests::world::metrics::{self, Metrics};
use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Options, Rest, World};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Requests of each kind.
const FLOOD: usize = 10_000;

/// Connections at a time; every second one is closed after each request.
const CONNECTIONS: usize = 16;

/// How much an idle process may grow by it.
const GROWTH_KIB_MAX: u64 = 2 * 1024;

/// The agent looks at its containers unasked every minute, and this long after the engine's last event.
const LOOKS_EVERY: Duration = Duration::from_secs(60);

/// Strangers' requests per second while the known user is measured. Open loop: each has its moment, whatever became of
/// the ones before. It leaves two cores room: were they full, the queue for the cores would be measured, which the
/// senders of the flood stand in, too.
const PACE: u32 = 2_000;

/// Requests per second of the one who is known, with and without the flood.
const KNOWN_PACE: u32 = 250;

/// A measurement's length. Quiet and flooded ones take turns, so that whatever else the machine does falls into both.
const SLICE: Duration = Duration::from_millis(250);

/// Strangers' requests in a flooded one.
const PER_SLICE: usize = 500;

/// Measurements of each kind whose requests make one p99: about 500.
const SLICES: u32 = 8;

/// Ratios of such p99s: the median counts. In these, [`FLOOD`] requests of each kind are sent.
const ROUNDS: u32 = 5;

/// Where the median of the first [`ROUNDS`] is too large, so many decide. Beside a compiler a p99 jumps from 2 to 60 ms and
/// back, flood or not, and three jumps on one side of five happen; eight of fifteen do not.
const ROUNDS_MAX: u32 = 15;

/// What of the strangers a known user may notice.
const SLOWDOWN_MAX: f64 = 2.0;

const KNOWN_HOSTS: [&str; 3] = ["anna", "bert", "cleo"];

fn head(method: &str, path: &str, host: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{more}\r\n")
}

/// Somebody at a host that is nobody's: below the domain, or not even that.
fn unknown_host(number: usize) -> (String, u16) {
    match number % 4 {
        0 => (head("GET", "/", &format!("h{number}.example.net"), "accept: text/html\r\n"), 404),
        1 => (head("GET", "/", &format!("h{number}.localhost"), "accept: text/html\r\n"), 401),
        2 => (head("GET", "/chat", &format!("h{number}.anna.localhost"), ""), 404),
        _ => (head("POST", "/echo", &format!("h{number}.localhost"), "content-length: 2\r\n") + "hi", 401),
    }
}

/// Somebody at a host of somebody who is there, with nothing that opens it.
fn no_credential(number: usize) -> (String, u16) {
    let host = format!("{}.localhost", KNOWN_HOSTS[number % KNOWN_HOSTS.len()]);
    let request = match number / KNOWN_HOSTS.len() % 8 {
        0 => head("GET", "/", &host, "accept: text/html\r\nsec-fetch-mode: navigate\r\n"),
        1 => head("POST", "/echo", &host, "content-length: 2\r\n") + "hi",
        2 => head("GET", "/whoami", &host, &format!("authorization: Bearer berth_user_{number:032}\r\n")),
        3 => head("GET", "/", &host, &format!("cookie: berth_session={number:064}\r\n")),
        4 => head("GET", "/sw.js", &host, "sec-fetch-mode: same-origin\r\n"),
        5 => head("GET", "/.berth/restic/config", &host, "authorization: Basic b3duZXI6YmVydGhfdXNlcl8=\r\n"),
        6 => head("GET", "/.berth/cell", &host, "accept: text/html\r\nsec-fetch-mode: navigate\r\n"),
        _ => head(
            "GET",
            "/ws",
            &host,
            "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ),
    };
    (request, 401)
}

/// Sends so many requests over [`CONNECTIONS`] connections, each answered as its maker says.
async fn flood(address: SocketAddr, count: usize, request: fn(usize) -> (String, u16)) {
    let mut senders = JoinSet::new();
    for sender in 0..CONNECTIONS {
        senders.spawn(async move {
            let mut connection = Connection::new(address);
            for number in (sender..count).step_by(CONNECTIONS) {
                let (text, status) = request(number);
                let reply = connection.ask(&text).await;
                assert_eq!(reply.status, status, "{text}{reply:?}");
                if sender % 2 == 1 {
                    connection.close();
                }
            }
        });
    }
    while let Some(ended) = senders.join_next().await {
        ended.unwrap();
    }
}

/// Both kinds in turn at [`PACE`] for a [`SLICE`], the first with this number.
async fn paced_flood(address: SocketAddr, first: usize) {
    let (mut senders, begun) = (JoinSet::new(), Instant::now());
    for sender in 0..CONNECTIONS {
        senders.spawn(async move {
            let mut connection = Connection::new(address);
            for number in (sender..PER_SLICE).step_by(CONNECTIONS) {
                let moment = begun + Duration::from_secs(1) / PACE * u32::try_from(number).unwrap();
                tokio::time::sleep_until(moment.into()).await;
                let (kind, number) = (sender % 2, (first + number) / 2);
                let (text, status) = if kind == 0 { unknown_host(number) } else { no_credential(number) };
                let reply = connection.ask(&text).await;
                assert_eq!(reply.status, status, "{text}{reply:?}");
                if sender / 2 % 2 == 1 {
                    connection.close();
                }
            }
        });
    }
    while let Some(ended) = senders.join_next().await {
        ended.unwrap();
    }
}

/// The one who is known, in a thread of its own: what the flood's senders wait for here is no delay of Berth's.
struct Known(mpsc::Sender<oneshot::Sender<Vec<Duration>>>);

impl Known {
    fn at(address: SocketAddr, request: String) -> Self {
        let (ask, mut asked) = mpsc::channel::<oneshot::Sender<_>>(1);
        let live = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut connection = Connection::new(address);
            while let Some(done) = asked.blocking_recv() {
                // A test that has failed meanwhile does not wait for it.
                let _unheard = done.send(runtime.block_on(slice(&mut connection, &request)));
            }
        };
        std::thread::Builder::new().name("known".into()).spawn(live).unwrap();
        Self(ask)
    }

    /// How long each request of a [`SLICE`] took.
    async fn measure(&self) -> Vec<Duration> {
        let (done, measured) = oneshot::channel();
        self.0.send(done).await.expect("the known user is answered, see above");
        measured.await.expect("the known user is answered, see above")
    }
}

/// At [`KNOWN_PACE`]. A request whose moment passed while the one before it was under way counts from its moment on, or
/// one long wait would hide those that it kept from being sent.
async fn slice(connection: &mut Connection, request: &str) -> Vec<Duration> {
    let gap = Duration::from_secs(1) / KNOWN_PACE;
    // Whatever has to be made anew after a pause is made by one that does not count.
    connection.ask(request).await;
    let (mut took, begun) = (vec![], Instant::now());
    let mut due = begun;
    while due < begun + SLICE {
        due += gap;
        let sent = if Instant::now() < due {
            tokio::time::sleep_until(due.into()).await;
            // That the timer was late is not the ingress's doing.
            Instant::now()
        } else {
            due
        };
        let reply = connection.ask(request).await;
        took.push(sent.elapsed());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    took
}

fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

/// How many times longer the known user's slowest hundredth takes in a flood.
///
/// No floor is put under the two figures: they are taken side by side, so whatever makes both of them small or large
/// (an idle core that has to wake, a compiler beside the test) is no part of their ratio.
async fn slowdown(address: SocketAddr, known: &Known) -> f64 {
    let mut ratios = vec![];
    for round in 0..ROUNDS_MAX {
        if round == ROUNDS && median(&ratios) <= SLOWDOWN_MAX {
            break;
        }
        let (mut quiet, mut flooded) = (vec![], vec![]);
        for number in 0..SLICES {
            quiet.extend(known.measure().await);
            let first = usize::try_from(round * SLICES + number).unwrap() * PER_SLICE;
            let ((), during) = tokio::join!(paced_flood(address, first), known.measure());
            flooded.extend(during);
        }
        let (quiet, flooded) = (p99(quiet), p99(flooded));
        let ratio = flooded.as_secs_f64() / quiet.as_secs_f64();
        say(&format!(
            "  p99 of a known user: {quiet:.1?} quiet, {flooded:.1?} in the flood, {ratio:.2} times"
        ));
        ratios.push(ratio);
    }
    median(&ratios)
}

fn median(of: &[f64]) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn resident_kib(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Series and values of all three.
async fn all_metrics(world: &World) -> BTreeMap<&'static str, Metrics> {
    BTreeMap::from([
        ("coordinator", metrics::scrape(world.coordinator.address("api_listen")).await),
        ("agent", world.metrics(&world.agent).await),
        ("ingress", world.metrics(&world.ingress).await),
    ])
}

fn series(all: &BTreeMap<&'static str, Metrics>) -> BTreeSet<String> {
    let of_one = |(name, metrics): (&&'static str, &Metrics)| -> Vec<String> {
        metrics.0.keys().map(|series| format!("{name}: {series}")).collect()
    };
    all.iter().flat_map(of_one).collect()
}

fn same_series(has: &BTreeSet<String>, had: &BTreeSet<String>) {
    let changed: Vec<&String> = has.symmetric_difference(had).collect();
    assert!(changed.is_empty(), "strangers made new series, or took some away: {changed:#?}");
}

/// What must not move: wakes asked and begun, fences, commands.
fn acts(all: &BTreeMap<&'static str, Metrics>) -> BTreeMap<&'static str, f64> {
    BTreeMap::from([
        ("wakes asked", all["ingress"].sum("berth_ingress_wakes_asked_total")),
        ("fences", all["ingress"].sum("berth_ingress_fences_total")),
        ("passed", all["ingress"].value("berth_ingress_requests_total{outcome=\"passed\"}")),
        ("wakes", all["agent"].sum("berth_agent_wakes_total")),
        ("rests", all["agent"].sum("berth_agent_rests_total")),
        ("operations", all["agent"].sum("berth_agent_operation_seconds_count")),
        ("commands", all["coordinator"].sum("berth_commands_total")),
        ("journal", all["coordinator"].sum("berth_journal_groups_total")),
    ])
}

#[tokio::test]
async fn ten_thousand_strangers_of_each_kind_change_nothing_and_nobody_notices() {
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let at = |name: &str| place.path().join(name);
    let proxy = EngineProxy::at(&at("docker.sock"));
    let wire = Tap::between(&at("tapped.sock"), &at("door.sock"));
    let world = World::start(Options {
        alone: true,
        agent: vec![
            format!("docker_socket={}", at("docker.sock").display()),
            format!("door_socket={}", at("door.sock").display()),
        ],
        ingress: vec![format!("door_socket={}", at("tapped.sock").display())],
        ..Options::default()
    })
    .await;
    let front = world.front_address();
    let anna = world.create_running("anna", Rest::AlwaysOn, Duration::from_secs(60)).await;
    let bert = world.create("bert", Rest::Stop, Duration::from_secs(2)).await;
    let cleo = world.create("cleo", Rest::Freeze, Duration::from_secs(2)).await;
    world.container_is(&bert.cell, "exited").await;
    world.container_is(&cleo.cell, "paused").await;
    world.cell_is("bert", "stopped").await;
    world.cell_is("cleo", "frozen").await;

    let token = anna.front.request("GET", "/").body(()).unwrap().headers()["authorization"]
        .to_str()
        .unwrap()
        .to_owned();
    let request = head("GET", "/whoami", "anna.localhost", &format!("authorization: {token}\r\n"));
    let known = Known::at(front, request);

    // Whatever is made once is made now, also what a look at the counters counts.
    all_metrics(&world).await;
    known.measure().await;
    flood(front, FLOOD / 5, unknown_host).await;
    flood(front, FLOOD / 5, no_credential).await;
    let mut told = wire.bytes();
    eventually("the wire between ingress and agent is still", BOUND, async || {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let still = wire.bytes() == told;
        told = wire.bytes();
        still.then_some(())
    })
    .await;

    assert!(told > 0, "the tap is not on the wire");

    let before = all_metrics(&world).await;
    let resident_before = [resident_kib(&world.ingress), resident_kib(&world.agent)];
    let seen = world.engine.record();
    let looked = proxy.last_call().unwrap();
    let begun = Instant::now();
    flood(front, FLOOD, unknown_host).await;
    flood(front, FLOOD, no_credential).await;
    let took = begun.elapsed();
    let calls = proxy.calls_since(begun);
    let on_the_wire = wire.bytes() - told;
    let after = all_metrics(&world).await;
    let resident_after = [resident_kib(&world.ingress), resident_kib(&world.agent)];
    let grown = [0, 1].map(|n| resident_after[n].saturating_sub(resident_before[n]));

    let mut report = String::new();
    writeln!(report, "  {FLOOD} unknown hosts and {FLOOD} without a credential in {took:.1?}").unwrap();
    writeln!(report, "  Docker calls: {}, bytes on the door's wire: {on_the_wire}", calls.len()).unwrap();
    writeln!(report, "  RSS of ingress and agent: {resident_before:?} KiB, grown by {grown:?} KiB").unwrap();
    say(&report);

    // The agent's own look of every minute may fall into a slow machine's flood; nothing else may.
    let looks = looked.elapsed().as_secs() / LOOKS_EVERY.as_secs();
    let looks_calls = usize::try_from(looks).unwrap() * 3 * KNOWN_HOSTS.len();
    assert!(calls.len() <= looks_calls, "Docker was asked for strangers: {calls:#?}");
    assert_eq!(seen.all().await, vec![], "Docker did something for strangers");
    assert_eq!(on_the_wire, 0, "the ingress told the agent of strangers");
    assert_eq!(acts(&after), acts(&before));
    let (had, has) = (series(&before), series(&after));
    same_series(&has, &had);
    let strangers = |all: &BTreeMap<&'static str, Metrics>| {
        let of =
            |outcome| all["ingress"].value(&format!("berth_ingress_requests_total{{outcome=\"{outcome}\"}}"));
        of("stranger") + of("unknown_host")
    };
    #[expect(clippy::cast_precision_loss, reason = "a count of thousands")]
    let expected = 2.0 * FLOOD as f64;
    assert_eq!(strangers(&after) - strangers(&before), expected, "not all were counted as strangers");
    for (name, grown) in ["ingress", "agent"].iter().zip(grown) {
        assert!(grown <= GROWTH_KIB_MAX, "the {name} grew by {grown} KiB");
    }

    let slowdown = slowdown(front, &known).await;
    assert!(slowdown <= SLOWDOWN_MAX, "a known user's p99 is {slowdown:.2} times as long in a flood");
    same_series(&series(&all_metrics(&world).await), &had);
    world.container_is(&bert.cell, "exited").await;
    world.container_is(&cleo.cell, "paused").await;
    world.end(&[]).await;
}
