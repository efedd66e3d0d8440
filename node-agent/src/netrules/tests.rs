//! The golden text, and the rules at work: in network namespaces of the test's own, with everything that connects to
//! anything else shown to do so before the rules are in place. These tests need root, iproute2 and nft, and fail
//! without them.

mod lab;

use super::*;
use lab::{Lab, Outcome};

/// The table of an agent with the usual bridges.
const TABLE: &str = "berth";

fn config() -> RulesConfig {
    let pool = SlotPool::new(200_000, "10.231.0.0/16").unwrap();
    RulesConfig {
        egress_allow: [
            "10.99.0.2:80",
            "169.254.169.253:53/udp",
            "203.0.113.1:81",
            "node:8081",
            "0.0.0.0/0:587",
        ]
        .map(|rule| rule.parse().unwrap())
        .to_vec(),
        connections_max: 20,
        ..RulesConfig::new(pool, BTreeSet::from([0, 201]))
    }
}

#[test]
fn the_rules_are_this_text() {
    // Written anew with BERTH_GOLDEN=1, to be read before it is committed.
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/netrules/golden.nft");
    let text = ruleset(&config(), &BTreeSet::new());
    if std::env::var_os("BERTH_GOLDEN").is_some() {
        std::fs::write(golden, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(golden).unwrap());
}

#[test]
fn without_users_and_exceptions_there_is_no_rule_that_lets_them_in() {
    let text = ruleset(&RulesConfig::new(config().pool, BTreeSet::new()), &BTreeSet::new());
    assert!(!text.contains("skuid"));
    assert!(!text.contains("goto cell_caps\n\t\tip daddr {"));
    // Two rules for each exception that is one address, one for each other, and three about users.
    assert_eq!(written_rules(&text), written_rules(&ruleset(&config(), &BTreeSet::new())) - 11);
}

#[test]
fn an_interface_that_would_be_taken_for_a_cells_is_found() {
    let classes = tempfile::tempdir().unwrap();
    let made = |name: &str| std::fs::create_dir_all(classes.path().join(name)).unwrap();
    let foreign = || foreign_interface(BridgePrefix::default(), classes.path()).unwrap();
    for name in ["lo", "ens3", "docker0/bridge", "bth0/bridge", "bth12/bridge", "bt"] {
        made(name);
    }
    assert_eq!(foreign(), None);
    // A card of that name, and a bridge that is no cell's.
    for name in ["bth3", "bthx/bridge", "bth/bridge", "bth-1/bridge"] {
        made(name);
        let first = name.split('/').next().unwrap();
        assert_eq!(foreign().as_deref(), Some(first));
        std::fs::remove_dir_all(classes.path().join(first)).unwrap();
    }
    assert!(foreign_interface(BridgePrefix::default(), &classes.path().join("none")).is_err());
}

#[tokio::test]
async fn cells_reach_the_internet_and_nothing_else() {
    let lab = Lab::new();
    let cases = [
        // (from, to, port, counter that tells of the refusal, or None where it has to go on working)
        ("cell1", "203.0.113.2", 80, None),
        ("cell1", "10.99.0.2", 80, None),
        ("cell1", "203.0.113.2", 587, None),
        ("cell1", "10.231.0.1", 8081, None),
        ("cell1", "203.0.113.1", 81, None),
        ("cell1", "10.231.0.1", 9184, None),
        ("cell2", "10.231.0.9", 9184, None),
        ("cell1", "10.231.0.9", 9184, Some("cell_to_node")),
        ("cell2", "10.231.0.1", 9184, Some("cell_to_node")),
        ("cell1", "203.0.113.1", 9184, Some("cell_to_node")),
        ("cell1", "10.231.0.10", 80, Some("cell_to_cell")),
        ("cell2", "10.231.0.2", 80, Some("cell_to_cell")),
        ("cell1", "10.231.0.1", 80, Some("cell_to_node")),
        ("cell1", "203.0.113.1", 80, Some("cell_to_node")),
        ("cell2", "10.231.0.1", 80, Some("cell_to_node")),
        ("cell1", "169.254.169.254", 80, Some("cell_to_metadata")),
        ("cell1", "169.254.169.254", 587, Some("cell_to_metadata")),
        ("cell1", "100.100.100.200", 80, Some("cell_to_metadata")),
        ("cell1", "168.63.129.16", 80, Some("cell_to_metadata")),
        ("cell1", "10.99.0.2", 81, Some("cell_to_private")),
        ("cell1", "192.168.7.7", 80, Some("cell_to_private")),
        ("cell1", "172.16.7.7", 80, Some("cell_to_private")),
        ("cell1", "203.0.113.2", 25, Some("cell_to_smtp")),
        ("cell1", "203.0.113.2", 465, Some("cell_to_smtp")),
        ("internet", "10.231.0.2", 80, Some("outside_to_cell")),
        ("internet", "10.231.0.1", 80, Some("outside_to_cell")),
    ];
    for (from, to, port, _) in cases {
        assert_eq!(lab.connect(from, to, port), Outcome::Connected, "{from} to {to}:{port} without rules");
    }
    // Where the bridge has an address of that kind: the node, and the metadata service behind it.
    let by_ipv6 = ["fd00:231::1", "fd00:a9fe:a9fe::1"];
    for to in by_ipv6 {
        assert_eq!(lab.connect("cell1", to, 80), Outcome::Connected, "{to} without rules");
    }
    let rules = lab.rules(&config());
    assert_eq!(rules.check().await.unwrap(), Standing::Missing);
    assert_eq!(rules.ensure().await.unwrap(), Standing::Missing);
    for (from, to, port, counter) in cases {
        let before = rules.refused().await.unwrap();
        let outcome = lab.connect(from, to, port);
        match counter {
            None => assert_eq!(outcome, Outcome::Connected, "{from} to {to}:{port}"),
            Some(counter) => {
                assert_ne!(outcome, Outcome::Connected, "{from} to {to}:{port}");
                let after = rules.refused().await.unwrap();
                assert!(after[counter] > before[counter], "{from} to {to}:{port}: {counter}, {after:?}");
            }
        }
    }
    for to in by_ipv6 {
        let before = rules.refused().await.unwrap();
        assert_ne!(lab.connect("cell1", to, 80), Outcome::Connected, "{to}");
        let after = rules.refused().await.unwrap();
        assert!(after["from_cell_ipv6"] > before["from_cell_ipv6"], "{to}: {after:?}");
    }
    // A sender that is not the cell's.
    assert_ne!(lab.connect_from("cell1", "10.77.0.1", "203.0.113.2", 80), Outcome::Connected);
    assert!(rules.refused().await.unwrap()["from_cell_forged"] > 0);
}

#[tokio::test]
async fn a_connection_from_before_the_rules_ends_with_them() {
    let lab = Lab::new();
    let forbidden = lab.open("cell1", "10.231.0.10", 80);
    let allowed = lab.open("cell1", "203.0.113.2", 80);
    let inbound = lab.open("internet", "10.231.0.2", 80);
    let by_a_user = lab.open_as(1000, "node", "10.231.0.2", 80);
    let by_the_ingress = lab.open_as(201, "node", "10.231.0.2", 80);
    let to_the_node = lab.open("cell1", "10.231.0.1", 80);
    let to_an_open_port = lab.open("cell1", "10.231.0.1", 8081);
    let all = [&forbidden, &allowed, &inbound, &by_a_user, &by_the_ingress, &to_the_node, &to_an_open_port];
    assert!(all.into_iter().all(lab::Open::echoes));
    lab.rules(&config()).ensure().await.unwrap();
    assert!([allowed, by_the_ingress, to_an_open_port].iter().all(lab::Open::echoes));
    for (name, ended) in
        [("cell", forbidden), ("outside", inbound), ("user", by_a_user), ("node", to_the_node)]
    {
        assert!(ended.is_cut(), "{name}");
    }
}

#[tokio::test]
async fn a_cell_that_was_called_before_the_rules_does_not_go_on_answering() {
    let lab = Lab::new();
    let (cell, caller) =
        (lab.datagrams("cell1", "10.231.0.2:7000"), lab.datagrams("internet", "203.0.113.2:7000"));
    caller.send(&cell);
    assert!(cell.hears());
    cell.send(&caller);
    assert!(caller.hears(), "without rules");
    let rules = lab.rules(&config());
    rules.ensure().await.unwrap();
    // Nothing has to come in any more for this one to go out: for the kernel it belongs to a call that began outside.
    let before = rules.refused().await.unwrap()["outside_to_cell"];
    cell.send(&caller);
    assert!(!caller.hears());
    assert!(rules.refused().await.unwrap()["outside_to_cell"] > before);
    // It is this one rule that keeps it in: what is established may go on.
    let shown = lab.nft(&["-a", "list", "chain", "inet", TABLE, "cell_caps"]);
    let rule = shown.lines().find(|line| line.contains("ct direction reply")).unwrap();
    let handle = rule.rsplit_once("# handle ").unwrap().1;
    lab.nft(&["delete", "rule", "inet", TABLE, "cell_caps", "handle", handle]);
    cell.send(&caller);
    assert!(caller.hears(), "without that rule");
}

#[tokio::test]
async fn only_the_agent_and_the_ingress_connect_from_the_node() {
    let lab = Lab::new();
    for uid in [0, 201, 1000] {
        assert_eq!(lab.connect_as(uid, "node", "10.231.0.2", 80), Outcome::Connected, "{uid} without rules");
    }
    let rules = lab.rules(&config());
    rules.ensure().await.unwrap();
    let ingress = lab.open("node", "10.231.0.2", 80);
    for uid in [0, 201] {
        assert_eq!(lab.connect_as(uid, "node", "10.231.0.2", 80), Outcome::Connected, "{uid}");
    }
    for uid in [1, 202, 1000, 65534] {
        // Rejected, not left waiting: it is the node's own program that asks.
        assert_eq!(lab.connect_as(uid, "node", "10.231.0.2", 80), Outcome::Refused, "{uid}");
    }
    assert!(rules.refused().await.unwrap()["node_user_to_cell"] >= 4);
    // A port that the cell does not listen on answers at once, through the rules for answers.
    assert_eq!(lab.connect_as(201, "node", "10.231.0.2", 9), Outcome::Refused);
    assert!(ingress.echoes());
}

#[tokio::test]
async fn one_cell_cannot_hold_more_connections_than_its_cap() {
    let lab = Lab::new();
    let rules = lab.rules(&config());
    rules.ensure().await.unwrap();
    let held: Vec<_> = (0..20).map(|_| lab.open("cell1", "203.0.113.2", 80)).collect();
    assert_eq!(lab.connect("cell1", "203.0.113.2", 80), Outcome::Refused);
    assert!(rules.refused().await.unwrap()["cell_over_connections"] > 0);
    assert_eq!(lab.connect("cell2", "203.0.113.2", 80), Outcome::Connected, "the other cell has its own cap");
    assert!(held.iter().all(lab::Open::echoes));
}

#[tokio::test]
async fn one_cell_cannot_begin_connections_faster_than_its_rate() {
    let lab = Lab::new();
    let slow = RulesConfig { connections_per_second: 1, connections_max: 1000, ..config() };
    let rules = lab.rules(&slow);
    rules.ensure().await.unwrap();
    // Ten in one go, as the burst allows, and what trickles in while we try.
    let outcomes: Vec<_> = (0..14).map(|_| lab.connect("cell1", "203.0.113.2", 80)).collect();
    assert!(outcomes[..10].iter().all(|outcome| *outcome == Outcome::Connected), "{outcomes:?}");
    assert!(outcomes.contains(&Outcome::Lost), "{outcomes:?}");
    assert!(rules.refused().await.unwrap()["cell_over_rate"] > 0);
    assert_eq!(lab.connect("cell2", "203.0.113.2", 80), Outcome::Connected);
}

#[tokio::test]
async fn one_cell_cannot_send_or_receive_more_than_its_bandwidth() {
    let lab = Lab::new();
    let narrow = RulesConfig { mbit_per_second: 1, ..config() };
    let rules = lab.rules(&narrow);
    rules.ensure().await.unwrap();
    let (cell, far) = lab.both_ends("cell1", "internet", "203.0.113.2");
    // Each way by itself: both ways at once would take as long through either cap alone.
    for (way, from, to) in [("sent", &cell, &far), ("received", &far, &cell)] {
        let before = rules.refused().await.unwrap()["cell_over_bandwidth"];
        // One second's worth, 125 kB, passes at once.
        let seconds = from.flow_takes(to, 600_000);
        assert!(seconds > 2.0, "600 kB {way} took {seconds} s at 125 kB/s");
        assert!(rules.refused().await.unwrap()["cell_over_bandwidth"] > before, "{way}");
    }
    let other = lab.open("cell2", "203.0.113.2", 80);
    assert!(other.echoes(), "the other cell has its own cap");
}

#[tokio::test]
async fn nothing_passes_from_or_to_a_quarantined_cell() {
    let lab = Lab::new();
    let rules = lab.rules(&config());
    rules.ensure().await.unwrap();
    let to_the_internet = lab.open("cell1", "203.0.113.2", 80);
    let by_the_ingress = lab.open_as(201, "node", "10.231.0.2", 80);
    let to_an_open_port = lab.open("cell1", "10.231.0.1", 8081);
    let of_another = lab.open("cell2", "203.0.113.2", 80);
    rules.quarantine([Slot(1)].into());
    assert_eq!(rules.check().await.unwrap(), Standing::Altered);
    rules.ensure_within(Duration::from_secs(3600)).await.unwrap();
    for (name, open) in
        [("internet", &to_the_internet), ("ingress", &by_the_ingress), ("node", &to_an_open_port)]
    {
        assert!(open.is_cut(), "{name}");
    }
    assert_ne!(lab.connect("cell1", "203.0.113.2", 80), Outcome::Connected);
    assert_ne!(lab.connect_as(0, "node", "10.231.0.2", 80), Outcome::Connected);
    assert!(of_another.echoes());
    assert!(rules.refused().await.unwrap()["cell_quarantined"] > 0);
    // It stays so when the rules are put right, and ends when it is told.
    lab.nft(&["flush", "ruleset"]);
    assert_eq!(rules.ensure().await.unwrap(), Standing::Missing);
    assert_ne!(lab.connect("cell1", "203.0.113.2", 80), Outcome::Connected);
    rules.quarantine(BTreeSet::new());
    assert_eq!(rules.ensure().await.unwrap(), Standing::Altered);
    assert_eq!(rules.ensure().await.unwrap(), Standing::InPlace);
    assert_eq!(lab.connect("cell1", "203.0.113.2", 80), Outcome::Connected);
}

#[tokio::test]
async fn missing_and_altered_rules_are_noticed_and_put_right() {
    let lab = Lab::new();
    let rules = lab.rules(&config());
    rules.ensure().await.unwrap();
    assert_eq!(rules.check().await.unwrap(), Standing::InPlace);
    assert_eq!(rules.ensure().await.unwrap(), Standing::InPlace);
    let handle_of = |chain: &str, text: &str| {
        let shown = lab.nft(&["-a", "list", "chain", "inet", TABLE, chain]);
        let line =
            shown.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{text} in {shown}"));
        line.rsplit_once("# handle ").unwrap().1.to_owned()
    };
    let smtp = || handle_of("from_cell", "cell_to_smtp");
    let harms: [(&str, Standing, &dyn Fn()); 7] = [
        ("the whole ruleset flushed", Standing::Missing, &|| drop(lab.nft(&["flush", "ruleset"]))),
        ("one rule deleted", Standing::Altered, &|| {
            lab.nft(&["delete", "rule", "inet", TABLE, "from_cell", "handle", &smtp()]);
        }),
        ("one rule replaced", Standing::Altered, &|| {
            lab.nft(&["replace", "rule", "inet", TABLE, "from_cell", "handle", &smtp(), "tcp dport 25 drop"]);
        }),
        ("a rule put before the others", Standing::Altered, &|| {
            lab.nft(&["insert", "rule", "inet", TABLE, "from_cell", "accept"]);
        }),
        ("a chain emptied", Standing::Altered, &|| {
            drop(lab.nft(&["flush", "chain", "inet", TABLE, "from_cell"]))
        }),
        ("a chain added", Standing::Altered, &|| drop(lab.nft(&["add", "chain", "inet", TABLE, "mine"]))),
        ("the table put to sleep", Standing::Altered, &|| {
            lab.nft(&["add", "table", "inet", TABLE, "{ flags dormant; }"]);
        }),
    ];
    for (harm, expected, act) in harms {
        act();
        assert_eq!(rules.check().await.unwrap(), expected, "{harm}");
        assert_eq!(rules.ensure().await.unwrap(), expected, "{harm}");
        assert_eq!(rules.check().await.unwrap(), Standing::InPlace, "{harm}");
        assert_ne!(lab.connect("cell1", "203.0.113.2", 25), Outcome::Connected, "{harm}");
    }
    // Others' tables are others' business, and stay.
    lab.nft(&["add", "table", "inet", "other"]);
    assert_eq!(rules.ensure().await.unwrap(), Standing::InPlace);
    rules.apply(&mut *rules.state.lock().await).await.unwrap();
    assert!(lab.nft(&["list", "tables"]).contains("inet other"));
    // Traffic fills sets and counters; that alters nothing.
    assert_eq!(lab.connect("cell1", "203.0.113.2", 80), Outcome::Connected);
    assert_eq!(rules.check().await.unwrap(), Standing::InPlace);
}

#[tokio::test]
async fn a_new_process_believes_no_table_that_it_did_not_put_there() {
    let lab = Lab::new();
    lab.rules(&config()).ensure().await.unwrap();
    let kept = lab.open("cell1", "203.0.113.2", 80);
    let rules = lab.rules(&config());
    assert_eq!(rules.check().await.unwrap(), Standing::Altered);
    assert_eq!(rules.ensure().await.unwrap(), Standing::Altered);
    assert_eq!(rules.check().await.unwrap(), Standing::InPlace);
    assert!(kept.echoes(), "replacing the rules breaks no connection that they allow");
}

#[tokio::test]
async fn a_crowd_of_callers_runs_nft_a_few_times_only() {
    let lab = Lab::new();
    let counted = lab.count_nft();
    let rules = NetRules::with(&config(), counted.nft());
    rules.ensure().await.unwrap();
    let before = counted.runs();
    for result in futures_util::future::join_all((0..100).map(|_| rules.ensure())).await {
        assert_eq!(result.unwrap(), Standing::InPlace);
    }
    // The first look may have begun before the last caller came; the second has not. Two runs for each.
    assert!(counted.runs() - before <= 4, "{} runs", counted.runs() - before);
    let before = counted.runs();
    rules.ensure_within(Duration::from_secs(3600)).await.unwrap();
    assert_eq!(counted.runs(), before);
}

#[tokio::test]
async fn two_agents_of_one_machine_leave_each_others_rules_alone() {
    let lab = Lab::new();
    let other_pool = SlotPool::new(300_000, "10.232.0.0/16").unwrap().with_bridges("oth".parse().unwrap());
    let (ours, others) =
        (lab.rules(&config()), lab.rules(&RulesConfig::new(other_pool, BTreeSet::from([0]))));
    ours.ensure().await.unwrap();
    assert_eq!(others.check().await.unwrap(), Standing::Missing);
    others.ensure().await.unwrap();
    for rules in [&ours, &others] {
        assert_eq!(rules.check().await.unwrap(), Standing::InPlace);
    }
    assert!(lab.nft(&["list", "table", "inet", "berth_oth"]).contains("oth*"));
    lab.nft(&["delete", "table", "inet", TABLE]);
    assert_eq!(
        (ours.check().await.unwrap(), others.check().await.unwrap()),
        (Standing::Missing, Standing::InPlace)
    );
}

#[tokio::test]
async fn the_machines_own_filter_is_told_apart_from_one_that_lets_everything_in() {
    let lab = Lab::new();
    let rules = lab.rules(&config());
    rules.ensure().await.unwrap();
    let seen = async || rules.host_filter().await.unwrap();
    assert_eq!(seen().await, HostFilter::Missing, "the table of cells is another one");
    lab.nft(&["-f", concat!(env!("CARGO_MANIFEST_DIR"), "/../systemd/firewall.nft")]);
    assert_eq!(seen().await, HostFilter::Drops);
    lab.nft(&["add", "chain", "inet", HOST_TABLE, "input", "{ policy accept; }"]);
    assert_eq!(seen().await, HostFilter::Open);
    lab.nft(&["delete", "chain", "inet", HOST_TABLE, "input"]);
    assert_eq!(seen().await, HostFilter::Open);
    lab.nft(&["delete", "table", "inet", HOST_TABLE]);
    assert_eq!(seen().await, HostFilter::Missing);
    assert_eq!(rules.check().await.unwrap(), Standing::InPlace);
}

#[tokio::test]
async fn when_nft_fails_nothing_counts_as_in_place() {
    for (command, expected) in
        [("/nonexistent/nft", "could not be run"), ("false", "failed (exit status: 1)")]
    {
        let rules = NetRules::with(&config(), Nft::through(&[command]));
        assert!(rules.check().await.is_err());
        assert!(rules.host_filter().await.is_err());
        let error = rules.ensure().await.unwrap_err();
        assert_eq!(error.problem().code, berth_shared::problem::Code::FirewallMissing);
        assert!(error.problem().detail.contains(expected), "{error:?}");
    }
    let rules = NetRules::with(&config(), Nft::through(&["true"]));
    assert!(matches!(rules.ensure().await, Err(NetRulesError::Output(_))));
}
