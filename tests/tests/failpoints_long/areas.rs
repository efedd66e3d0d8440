//! Which of these tests kills a daemon at which of its failpoints, and at which nobody does, for what reason.
//!
//! Every name is written out: a failpoint that is added belongs nowhere until somebody has a test pass it, and the test
//! below, which runs in every `scripts/test`, says so at once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use berth_tests::lab::kills;

/// What is armed, or `list`.
pub(crate) const VARIABLE: &str = "BERTH_FAILPOINT";

/// The failpoints of a daemon.
pub(crate) struct Map {
    /// The daemon's name in words.
    pub(crate) daemon: &'static str,
    /// Its program.
    pub(crate) program: &'static str,
    /// What is killed at together, by one test, and the points.
    areas: &'static [(&'static str, &'static str)],
    /// Points at which nobody has to kill, and why.
    nowhere: &'static [(&'static str, &'static str)],
}

/// The agent's.
pub(crate) const AGENT: Map = Map {
    daemon: "agent",
    program: "berth-node-agent",
    areas: &[
        (
            "disk",
            "quota:place:made quota:image:created quota:image:synced quota:image:named quota:mountpoint:made
             quota:mkfs:running quota:mkfs:done quota:check:running quota:check:done quota:mount:running quota:mount:done
             quota:unmount:begun quota:unmount:done quota:image:moved quota:place:removed",
        ),
        (
            "around",
            "folder:dir:made folder:dir:owned folder:file:created folder:file:written folder:file:synced
             folder:file:named nft:apply:begun nft:apply:done route:made route:taken route:pushed door:bound
             durable:created durable:written durable:synced durable:named frozen:signalled",
        ),
        (
            "engine",
            "engine:sent engine:answered docker:engine:sent docker:engine:answered docker:look:sent docker:look:answered
             docker:create:sent docker:create:answered docker:start:sent docker:start:answered docker:thin:sent
             docker:thin:answered docker:pause:sent docker:pause:answered docker:unpause:sent docker:unpause:answered
             docker:push:sent docker:push:answered
             docker:stop:sent docker:stop:answered docker:kill_frozen:sent docker:kill_frozen:answered docker:repair:sent
             docker:repair:answered docker:remove:sent docker:remove:answered docker:logs:sent docker:logs:answered
             docker:events:sent docker:events:answered docker:list_ours:sent docker:list_ours:answered
             docker:remove_orphan:sent docker:remove_orphan:answered",
        ),
        (
            "operations",
            "intent:look done:look report:look intent:create done:create report:create intent:start done:start
             report:start intent:await_ready done:await_ready report:await_ready intent:fence done:fence intent:observe
             done:observe report:observe intent:suspend done:suspend report:suspend intent:pause done:pause report:pause
             intent:push done:push report:push intent:unpause done:unpause report:unpause intent:resume done:resume
             report:resume intent:stop done:stop report:stop intent:kill_frozen done:kill_frozen report:kill_frozen
             intent:repair done:repair report:repair intent:remove done:remove report:remove",
        ),
        (
            "journal",
            "journal:append:begun journal:append:written journal:append:synced journal:append:noted journal:write:torn
             journal:undo:begun journal:undo:cut journal:segment:created journal:segment:written journal:segment:synced
             journal:segment:renamed journal:open:cut journal:open:rewritten journal:open:synced journal:synced:written
             journal:drop:said journal:drop:removed store:snapshot:rotated store:snapshot:written",
        ),
        (
            "bucket",
            "snapshot:begun snapshot:taken restore:begun restore:done intent:restore done:restore report:restore
             intent:verify done:verify report:verify intent:archive done:archive report:archive quota:disk:discarded",
        ),
        ("joining", "key:created key:written key:synced key:named join:answered journal:synced:created"),
        ("rotating", "key:created key:written key:synced key:named key:replaced"),
        ("joining again", "key:removed key:replaced join:answered"),
        ("pulling", "intent:pull done:pull report:pull docker:pull:sent docker:pull:answered"),
        // By `stories/image.rs`.
        ("changing the image", "intent:save done:save report:save image:saved"),
    ],
    nowhere: &[
        (
            "report:fence",
            "only a fence that failed is reported by itself; of others `done:fence` is the same place",
        ),
        (
            "quota:setquota:running quota:setquota:done",
            "a node that joins tries it (see `first`), but only on ext4 and XFS",
        ),
        (
            "quota:repquota:running quota:repquota:done quota:chown:running quota:chown:done quota:files:made
             quota:files:named quota:files:bound",
            "only where the file system itself counts what each user has",
        ),
        (
            "quota:left:purged",
            "nobody is given to another node here; `stories/lease.rs` kills once where such a disk is destroyed",
        ),
        (
            "quota:image:extended quota:resize:running quota:resize:done",
            "nothing changes the size of a disk yet",
        ),
        (
            "quota:losetup:running quota:losetup:done",
            "only a disk that grows, or a loop device that the kernel keeps, needs it",
        ),
    ],
};

/// The coordinator's.
pub(crate) const COORDINATOR: Map = Map {
    daemon: "coordinator",
    program: "berth-coordinator",
    areas: &[
        (
            "serving",
            "durable:created durable:written durable:synced durable:named join:written journal:append:begun
             journal:append:written journal:append:synced journal:append:noted journal:write:torn journal:undo:begun
             journal:undo:cut journal:segment:created journal:segment:written journal:segment:synced
             journal:segment:renamed journal:open:cut journal:open:rewritten journal:open:synced journal:synced:written
             key:replaced push:made shelf:opening shelf:put shelf:removed store:decided store:published",
        ),
        (
            "first start",
            "key:created key:written key:synced key:named install:keyed journal:synced:created",
        ),
        ("pruning", "prune:begins prune:ended prune:recorded"),
        (
            "key store",
            "keystore:replaced keystore:overwritten keystore:next:taken keystore:next:undone",
        ),
    ],
    nowhere: &[
        ("journal:drop:said journal:drop:removed", "the coordinator keeps its whole journal"),
        ("key:removed", "the coordinator removes no key file"),
    ],
};

impl Map {
    /// The points of one area.
    pub(crate) fn area(&self, name: &str) -> Vec<String> {
        let area = self.areas.iter().find(|(area, _)| *area == name);
        let (_, points) = area.unwrap_or_else(|| panic!("the {} has no area `{name}`", self.daemon));
        points.split_whitespace().map(str::to_owned).collect()
    }
}

/// A program of the workspace, from where this test itself was built to.
pub(crate) fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(2).expect("a test is built below the target folder").join(name)
}

/// Every point that a program lists and that one can die at.
pub(crate) fn listed(program: &Path) -> BTreeSet<String> {
    let listed = Command::new(program).env(VARIABLE, "list").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    // Conditions make other points reachable and are none to die at: a kill there is the same as at what follows.
    let points =
        listed.lines().filter_map(|line| line.split_once(' ')).filter(|(_, kind)| *kind != "condition");
    points.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn at_every_failpoint_some_test_kills_or_a_reason_says_why_none_does() {
    for map in [AGENT, COORDINATOR] {
        let daemon = map.daemon;
        let listed = listed(&program(map.program));
        assert!(listed.len() > 20, "{daemon}: {listed:?}");
        let killed: BTreeSet<String> = map.areas.iter().flat_map(|(name, _)| map.area(name)).collect();
        let mut known = killed.clone();
        for (points, reason) in map.nowhere {
            for point in points.split_whitespace() {
                assert!(known.insert(point.to_owned()), "{daemon}: {point} is killed at, although: {reason}");
                kills::point(daemon, point, reason);
            }
        }
        for point in &killed {
            kills::point(daemon, point, "");
        }
        let new: Vec<&String> = listed.difference(&known).collect();
        assert!(
            new.is_empty(),
            "{daemon}: nobody kills at {new:?}: add a step that passes it, and put it into an area"
        );
        let gone: Vec<&String> = known.difference(&listed).collect();
        assert!(gone.is_empty(), "{daemon}: there is no such failpoint any more: {gone:?}");
    }
}
