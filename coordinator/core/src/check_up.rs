//! What the coordinator can say of a node's health from what it knows: its session, its clock, what it is made of.
//!
//! What only the machine itself can see, its agent tells: it examines itself as `berth-node-agent doctor` does and sends
//! what it finds.

use std::collections::BTreeMap;

use berth_shared::doctor::{Finding, Level};
use berth_shared::ids::{KeyId, UserId};
use berth_shared::problem::Code;
use berth_shared::snapshot::Snapshot;
use berth_shared::time::{Millis, UnixMs};
use berth_shared::units::Bytes;
use berth_shared::wire::NodeFacts;

use crate::fleet::{Fleet, LockedBy, Node, Standing, User, Vault};
use crate::liveness::Seen;

/// A node's clock may be this far off before it is worth a warning (DESIGN, section 4).
pub const CLOCK_WARNING: Millis = Millis::secs(30);

/// A node whose clock is further off than this is refused tokens and receipts (DESIGN, section 4).
pub const CLOCK_PROBLEM: Millis = Millis::minutes(5);

/// How long it is told that a node went on from an older disk.
const FORK_TOLD_FOR: Millis = Millis::minutes(7 * 24 * 60);

/// The checks that compare a node with the coordinator.
const OURS: [&str; 4] = [STANDING, SESSION, CLOCK_OFFSET, VERSIONS];
const STANDING: &str = "standing";
const SESSION: &str = "session";
const CLOCK_OFFSET: &str = "clock_offset";
const VERSIONS: &str = "versions";

/// Examines one node. `version` is the coordinator's own. What the coordinator finds comes first; of a check of the same
/// name the node's own finding stands instead: it has looked later, and closer. Of a revoked node nothing else is told.
pub fn node(node: &Node, seen: Option<&Seen>, version: &str) -> Vec<Finding> {
    if let Standing::Revoked { at } = node.standing {
        return vec![revoked(node, at)];
    }
    let mut findings: Vec<Finding> = locked(node).into_iter().collect();
    findings.push(session(seen));
    findings.extend(seen.map(|seen| clock_offset(seen.clock_offset_ms)));
    let facts = seen.map_or(&node.facts, |seen| &seen.facts);
    findings.push(versions(facts, version));
    findings.extend(parts(facts));
    let told = seen.map_or(&[][..], |seen| &seen.findings);
    // What only the coordinator can judge, no node overrides.
    findings
        .retain(|ours| OURS.contains(&ours.check.as_str()) || told.iter().all(|own| own.check != ours.check));
    findings.extend(told.iter().filter(|own| !OURS.contains(&own.check.as_str())).cloned());
    findings
}

/// Examines the fleet as a whole. Of nodes that are revoked none has to be connected. `autonomy` is how long a node may work
/// alone, `None` without end.
pub fn fleet(fleet: &Fleet, connected: usize, autonomy: Option<Millis>) -> Vec<Finding> {
    let is_let_in = |node: &&Node| !matches!(node.standing, Standing::Revoked { .. });
    let all = fleet.nodes().count();
    let nodes = fleet.nodes().filter(is_let_in).count();
    let found = format!("{connected} of {nodes} connected");
    let mut findings = vec![match (nodes, connected) {
        (0, _) => Finding::new(
            "nodes",
            Level::Note,
            "no node has joined that is still let in",
            "Let one in: `berth token create NAME`, then `berth-node-agent join` on the machine.",
        ),
        (nodes, connected) if connected < nodes => Finding::new(
            "nodes",
            Level::Warning,
            found,
            "`berth node ls` shows which are silent; look at the agent's log there.",
        ),
        _ => Finding::good("nodes", found),
    }];
    if let (None, 2..) = (autonomy, all) {
        findings.push(Finding::new(
            "autonomy",
            Level::Warning,
            format!("{all} nodes may work alone without end: users of a lost node can be given to another one only \
                     with --node-is-off"),
            "Set `autonomy`, such as 24h.",
        ));
    }
    findings
}

/// Since when a cell has been in use for too long without a new snapshot, if it has. `used_at`: until when it was in use, as far
/// as that is known.
pub fn late_since(fleet: &Fleet, user: &User, used_at: Option<UnixMs>, age_max: Millis) -> Option<UnixMs> {
    let head = fleet.vault(user.id).and_then(|vault| vault.head.as_ref());
    let late = head.map_or(user.created_at, |head| head.taken_at).after(age_max);
    used_at.is_some_and(|used| used > late).then_some(late)
}

/// Examines users' repositories. `keys` are those in the key store, `used_at` tells until when a user's cell was in use, as
/// far as that is known.
pub fn repositories(
    fleet: &Fleet,
    keys: &BTreeMap<UserId, KeyId>,
    used_at: impl Fn(&User) -> Option<UnixMs>,
    age_max: Millis,
) -> Vec<Finding> {
    let lost: Vec<&Vault> =
        fleet.vaults().filter(|vault| keys.get(&vault.user) != Some(&vault.key)).collect();
    let late = |user: &&User| late_since(fleet, user, used_at(user), age_max).is_some();
    let late: Vec<&User> = fleet.users().filter(late).collect();
    let keys = match lost.first() {
        None => Finding::good("repository_keys", format!("{} in the key store", keys.len())),
        Some(example) => Finding::new(
            "repository_keys",
            Level::Problem,
            format!("{} are not in the key store, such as that of {}", lost.len(), example.user),
            "Bring the newest backup back: `berth-coordinator keys restore`. Without a key its snapshots cannot be read.",
        ),
    };
    let ages = match late.first() {
        None => {
            Finding::good("snapshot_age", format!("no cell was in use for {age_max} without a new snapshot"))
        }
        Some(example) => Finding::new(
            "snapshot_age",
            Level::Warning,
            format!(
                "{} cells were in use for {age_max} without a new snapshot, such as `{}`",
                late.len(),
                example.slug
            ),
            "Look at the agent's log on the node, and whether the bucket can be reached from there.",
        ),
    };
    vec![keys, ages]
}

/// Examines whether users' snapshots were taken each from the one before, as far as they are remembered and new.
pub fn snapshot_lines(fleet: &Fleet, now: UnixMs) -> Finding {
    let is_new = |came: &Snapshot| came.taken_at.after(FORK_TOLD_FOR) > now;
    let forks = fleet.vaults().filter_map(|vault| Some((vault, vault.fork()?)));
    let forks: Vec<_> = forks.filter(|(_, (_, came))| is_new(came)).collect();
    let Some((vault, (left, came))) = forks.first() else {
        return Finding::good("snapshot_lines", "no node went on from an older disk");
    };
    let name = vault.slug.as_ref().map_or_else(|| vault.user.to_string(), |slug| format!("`{slug}`"));
    Finding::new(
        "snapshot_lines",
        Level::Warning,
        format!(
            "the nodes of {} users went on from older disks, such as that of {name}: snapshot {:.8} of {} was not taken from \
             {:.8} of {}, which was the newest",
            forks.len(),
            came.id,
            came.taken_at,
            left.id,
            left.taken_at
        ),
        "What came between is not on the cell's disk. `berth snapshot diff` tells what it is; `berth snapshot restore` with \
         the latter brings it back, and keeps what is there first. Told for a week.",
    )
}

fn locked(node: &Node) -> Option<Finding> {
    let Standing::Locked { at, by } = node.standing else { return None };
    let showed = match by {
        LockedBy::Counter { shown, stored } => format!("the join counter {shown} behind {stored}"),
        LockedBy::ReplacedKey(_) => "a key that it has replaced".to_owned(),
    };
    let found = format!(
        "locked since {at}, given nothing new and moving no HEAD: it showed {showed}, so that there may be two of it"
    );
    Some(Finding::new(STANDING, Level::Problem, found, Code::CounterReplayed.advice()))
}

fn revoked(node: &Node, at: UnixMs) -> Finding {
    let found = format!("revoked since {at}, not let in; {} users live there", node.users.len());
    // Nobody's cell is reached or snapshotted there.
    let level = if node.users.is_empty() { Level::Note } else { Level::Warning };
    Finding::new(STANDING, level, found, Code::NodeRevoked.advice())
}

fn session(seen: Option<&Seen>) -> Finding {
    const CHECK: &str = SESSION;
    const HOW: &str = "Look whether the machine runs, and at its log: `journalctl -u berth-node-agent`.";
    match seen {
        Some(seen) if seen.connection.is_some() => Finding::good(CHECK, "open"),
        Some(seen) => {
            Finding::new(CHECK, Level::Problem, format!("silent, last heard {}", seen.heard_at), HOW)
        }
        None => Finding::new(CHECK, Level::Problem, "not heard since the coordinator's start", HOW),
    }
}

fn clock_offset(offset_ms: i64) -> Finding {
    const CHECK: &str = CLOCK_OFFSET;
    let off = Millis(offset_ms.unsigned_abs());
    let direction = if offset_ms < 0 { "behind" } else { "ahead" };
    let found = format!("{off} {direction}, as of its last hello");
    let level = match off {
        off if off > CLOCK_PROBLEM => Level::Problem,
        off if off > CLOCK_WARNING => Level::Warning,
        _ => return Finding::good(CHECK, found),
    };
    Finding::new(
        CHECK,
        level,
        found,
        "Turn a time service on there (`timedatectl set-ntp true`), and look at ours.",
    )
}

fn versions(facts: &NodeFacts, version: &str) -> Finding {
    const CHECK: &str = VERSIONS;
    let found = format!("agent {}, coordinator {version}", facts.agent_version);
    if facts.agent_version == version {
        return Finding::good(CHECK, found);
    }
    Finding::new(CHECK, Level::Note, found, "Upgrade the older one; neighbouring versions work together.")
}

fn parts(facts: &NodeFacts) -> Vec<Finding> {
    let mut findings = vec![];
    findings.push(if facts.engine_version.is_empty() {
        Finding::new(
            "engine",
            Level::Problem,
            "Docker did not answer when the agent started",
            "Start it there: `systemctl start docker`, then the agent anew.",
        )
    } else {
        Finding::good("engine", format!("Docker {}", facts.engine_version))
    });
    findings.push(if facts.swap == Bytes::ZERO {
        Finding::new(
            "swap",
            Level::Warning,
            "there is none: idle cells are stopped instead of frozen",
            "Make an encrypted one; `berth-node-agent doctor` there tells how.",
        )
    } else {
        Finding::good("swap", facts.swap.to_string())
    });
    if facts.quota_backend == "none" {
        findings.push(Finding::new(
            "quota",
            Level::Problem,
            "no sized disks can be made, so no cell is started",
            "`berth-node-agent doctor` there tells why.",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use berth_shared::credential::SecretHash;
    use berth_shared::ids::{BootId, CellId, Generation, JoinCounter, NodeId, SessionNonce, TokenId};
    use berth_shared::signing::PublicKey;
    use berth_shared::snapshot::{SnapshotId, TreeHash};
    use berth_shared::time::UnixMs;
    use berth_shared::wire::Hello;

    use crate::liveness::{Connection, Liveness};

    use super::*;
    use crate::actor::Actor;
    use crate::event::{Event, Fact, KeyFact};
    use crate::fleet::FIRST_EPOCH;
    use crate::snapshots::SnapshotCommand;

    fn facts() -> NodeFacts {
        NodeFacts {
            agent_version: "1.2.3".into(),
            kernel: "6".into(),
            engine_version: "20".into(),
            memory: Bytes::gib(8),
            cpus: 2,
            disk: Bytes::gib(80),
            swap: Bytes::gib(8),
            cgroup_version: 2,
            quota_backend: "loop-ext4".into(),
        }
    }

    fn with_nodes(count: u8) -> Fleet {
        let mut fleet = Fleet::new(FIRST_EPOCH);
        for number in 1..=count {
            let (node, token) = (NodeId::from_random([number; 16]), TokenId::from_random([number; 16]));
            let name: berth_shared::ids::NodeName = format!("n{number}").parse().unwrap();
            let created = Fact::TokenCreated {
                token,
                node: name.clone(),
                hash: SecretHash::of("x"),
                expires_at: UnixMs(9),
            };
            let key = PublicKey::from_bytes([number; 32]);
            for fact in [created, Fact::NodeJoined { node, name, key, facts: facts() }] {
                fleet.apply(&Event { at: UnixMs(1), actor: Actor::System, fact }).unwrap();
            }
        }
        fleet
    }

    fn level(findings: &[Finding], check: &str) -> Option<Level> {
        findings.iter().find(|finding| finding.check == check).map(|finding| finding.level)
    }

    #[test]
    fn a_clock_is_judged_by_how_far_it_is_off_in_either_direction() {
        let cases = [
            (0, Level::Good),
            (-30_000, Level::Good),
            (30_001, Level::Warning),
            (-300_000, Level::Warning),
            (300_001, Level::Problem),
            (i64::MIN, Level::Problem),
        ];
        for (offset, expected) in cases {
            assert_eq!(clock_offset(offset).level, expected, "{offset}");
        }
    }

    #[test]
    fn a_node_that_was_never_heard_is_a_problem_and_its_parts_are_as_it_joined() {
        let fleet = with_nodes(1);
        let known = fleet.nodes().next().unwrap();
        let findings = node(known, None, "1.2.3");
        assert_eq!(level(&findings, "session"), Some(Level::Problem));
        assert_eq!(level(&findings, "clock_offset"), None);
        assert_eq!(level(&findings, "versions"), Some(Level::Good));
        assert_eq!(level(&node(known, None, "1.3.0"), "versions"), Some(Level::Note));
    }

    fn happens(fleet: &mut Fleet, fact: KeyFact) {
        fleet.apply(&Event { at: UnixMs(5), actor: Actor::System, fact: Fact::Key(fact) }).unwrap();
    }

    #[test]
    fn a_locked_node_is_a_problem_however_well_it_is_and_says_so_itself_or_not() {
        let mut fleet = with_nodes(1);
        let id = fleet.nodes().next().unwrap().id;
        assert_eq!(level(&node(fleet.node(id).unwrap(), None, "1.2.3"), "standing"), None);
        happens(&mut fleet, KeyFact::NodeLocked { node: id, shown: 4, stored: 7 });
        let mut live = Liveness::default();
        let hello = Hello {
            version_min: 1,
            version_max: 2,
            node: id,
            counter: JoinCounter(8),
            nonce: SessionNonce::from_random([1; 16]),
            boot: BootId::from_random([1; 16]),
            wall: UnixMs(0),
            facts: facts(),
        };
        live.opened(UnixMs(0), Connection(1), &hello);
        live.findings(UnixMs(1), id, Connection(1), vec![Finding::good("standing", "the only one")]);
        let findings = node(fleet.node(id).unwrap(), live.node(id), "1.2.3");
        assert_eq!(level(&findings, "session"), Some(Level::Good));
        let told: Vec<&Finding> = findings.iter().filter(|finding| finding.check == "standing").collect();
        let [finding] = told[..] else { panic!("one of it: {told:?}") };
        assert_eq!(finding.level, Level::Problem);
        assert_eq!(finding.advice, Code::CounterReplayed.advice());
        assert!(finding.found.contains("counter 4 behind 7"), "{}", finding.found);
        happens(&mut fleet, KeyFact::NodeUnlocked { node: id, any_counter: false });
        assert_eq!(level(&node(fleet.node(id).unwrap(), live.node(id), "1.2.3"), "standing"), None);
    }

    #[test]
    fn a_revoked_node_is_not_missed_and_its_users_are() {
        let mut world = crate::fleet::tests::World::with_nodes(2);
        world.run(&world.create("anna", 1)).unwrap();
        let mut fleet = world.fleet.clone();
        let home = fleet.users().next().unwrap().home.as_ref().unwrap().node;
        let other = fleet.nodes().map(|node| node.id).find(|id| *id != home).unwrap();
        let lease = Some(Millis::secs(1));
        happens(&mut fleet, KeyFact::NodeRevoked { node: other });
        let of = |fleet: &Fleet, id| node(fleet.node(id).unwrap(), None, "1.2.3");
        let found = of(&fleet, other);
        assert_eq!((found.len(), level(&found, "standing")), (1, Some(Level::Note)), "{found:?}");
        assert_eq!(self::fleet(&fleet, 1, lease)[0], Finding::good("nodes", "1 of 1 connected"));
        assert_eq!(level(&self::fleet(&fleet, 0, lease), "nodes"), Some(Level::Warning));
        happens(&mut fleet, KeyFact::NodeRevoked { node: home });
        assert_eq!(level(&of(&fleet, home), "standing"), Some(Level::Warning), "anna is there");
        assert_eq!(level(&self::fleet(&fleet, 0, lease), "nodes"), Some(Level::Note));
        assert_eq!(level(&self::fleet(&fleet, 0, None), "autonomy"), Some(Level::Warning), "they still work");
    }

    #[test]
    fn what_a_node_found_itself_stands_behind_and_instead_of_what_is_seen_from_here() {
        let fleet = with_nodes(1);
        let known = fleet.nodes().next().unwrap();
        let mut live = Liveness::default();
        let hello = Hello {
            version_min: 1,
            version_max: 2,
            node: known.id,
            counter: JoinCounter(1),
            nonce: SessionNonce::from_random([1; 16]),
            boot: BootId::from_random([1; 16]),
            wall: UnixMs(400_000),
            facts: NodeFacts { swap: Bytes::ZERO, ..facts() },
        };
        live.opened(UnixMs(0), Connection(1), &hello);
        let before = node(known, live.node(known.id), "1.2.3");
        assert_eq!(level(&before, "swap"), Some(Level::Warning));
        let own = vec![
            Finding::good("swap", "made since"),
            Finding::new("live_restore", Level::Problem, "no", "do"),
            Finding::good("clock", "kept right"),
            Finding::good("session", "I am fine"),
            Finding::good("clock_offset", "none at all"),
        ];
        live.findings(UnixMs(1), known.id, Connection(1), own.clone());
        let findings = node(known, live.node(known.id), "1.2.3");
        let names: Vec<&str> = findings.iter().map(|finding| finding.check.as_str()).collect();
        assert_eq!(names, ["session", "clock_offset", "versions", "engine", "swap", "live_restore", "clock"]);
        assert_eq!(findings[4..], own[..3]);
        assert_eq!(findings[0].found, "open");
        assert_eq!(
            level(&findings, "clock_offset"),
            Some(Level::Problem),
            "a node cannot say that it is right"
        );
    }

    #[test]
    fn what_a_node_lacks_is_told_apart() {
        let good = parts(&facts());
        assert!(good.iter().all(|finding| finding.level == Level::Good));
        let lacks = [
            (NodeFacts { engine_version: String::new(), ..facts() }, "engine", Level::Problem),
            (NodeFacts { swap: Bytes::ZERO, ..facts() }, "swap", Level::Warning),
            (NodeFacts { quota_backend: "none".into(), ..facts() }, "quota", Level::Problem),
        ];
        for (facts, check, expected) in lacks {
            assert_eq!(level(&parts(&facts), check), Some(expected));
        }
    }

    #[test]
    fn a_key_that_is_not_in_the_store_and_a_used_cell_without_a_new_snapshot_are_told() {
        let mut world = crate::fleet::tests::World::with_nodes(1);
        world.run(&world.create("anna", 1)).unwrap();
        let (user, key) = (UserId::from_random([1; 16]), KeyId::from_random([2; 16]));
        let adopt = SnapshotCommand::AdoptKey { user, key };
        world.run(&crate::command::Command::Snapshot(adopt)).unwrap();
        let created = world.fleet.user_by_id(user).unwrap().created_at;
        let (keys, age_max) = (BTreeMap::from([(user, key)]), Millis::minutes(60));
        let found = |keys: &BTreeMap<UserId, KeyId>, used: Option<UnixMs>| {
            let found = repositories(&world.fleet, keys, |_| used, age_max);
            (level(&found, "repository_keys").unwrap(), level(&found, "snapshot_age").unwrap())
        };
        let in_time = created.after(age_max);
        assert_eq!(found(&keys, Some(in_time)), (Level::Good, Level::Good));
        assert_eq!(found(&keys, None), (Level::Good, Level::Good));
        assert_eq!(found(&keys, Some(in_time.after(Millis(1)))), (Level::Good, Level::Warning));
        assert_eq!(found(&BTreeMap::new(), None), (Level::Problem, Level::Good));
        let other = BTreeMap::from([(user, KeyId::from_random([3; 16]))]);
        assert_eq!(found(&other, None), (Level::Problem, Level::Good));
    }

    #[test]
    fn a_node_that_went_on_from_an_older_disk_is_told_for_a_week() {
        let mut world = crate::fleet::tests::World::with_nodes(1);
        world.run(&world.create("anna", 1)).unwrap();
        let (user, key) = (UserId::from_random([1; 16]), KeyId::from_random([2; 16]));
        let mut run = |command| world.run(&crate::command::Command::Snapshot(command)).unwrap();
        run(SnapshotCommand::AdoptKey { user, key });
        let (node, at) = (NodeId::from_random([1; 16]), UnixMs(1_000_000));
        for (seq, parent) in [(1, 0), (2, 1), (3, 2), (4, 1)] {
            let snapshot = Snapshot {
                id: SnapshotId::from_bytes([seq; 32]),
                cell: CellId::from_random([1; 16]),
                generation: Generation { epoch: 1, number: 1 },
                seq: seq.into(),
                taken_at: at,
                bytes: Bytes::mib(1),
                tree: TreeHash::from_bytes([seq; 32]),
                image: "berth/test:1".parse().unwrap(),
                parent: Some(SnapshotId::from_bytes([parent; 32])),
            };
            run(SnapshotCommand::Take { node, user, snapshot: Box::new(snapshot), aside: false });
        }
        let found = snapshot_lines(&world.fleet, at.after(Millis(FORK_TOLD_FOR.0 - 1)));
        assert_eq!(found.level, Level::Warning);
        assert!(found.found.contains("`anna`: snapshot 04040404 of"), "{}", found.found);
        assert!(found.found.contains("from 03030303 of"), "{}", found.found);
        assert_eq!(snapshot_lines(&world.fleet, at.after(FORK_TOLD_FOR)).level, Level::Good);
    }

    #[test]
    fn several_nodes_without_a_lease_are_worth_a_warning_and_one_is_not() {
        let lease = Some(Millis::secs(1));
        assert_eq!(level(&fleet(&with_nodes(0), 0, None), "nodes"), Some(Level::Note));
        assert_eq!(level(&fleet(&with_nodes(1), 1, None), "autonomy"), None);
        assert_eq!(level(&fleet(&with_nodes(2), 1, None), "autonomy"), Some(Level::Warning));
        assert_eq!(level(&fleet(&with_nodes(2), 1, lease), "nodes"), Some(Level::Warning));
        assert_eq!(level(&fleet(&with_nodes(2), 2, lease), "autonomy"), None);
    }
}
