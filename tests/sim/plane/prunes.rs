//! Prunes of users' repositories, as the coordinator's upkeep does them: by the fleet's word on who may still write, by
//! what is in the bucket, and with a book that outlives the coordinator's death.
//!
//! The rule by time is the worst that there can be: of clocks that are all wrong. So whatever nobody spares goes.

use std::collections::{BTreeMap, BTreeSet};

use berth_coordinator_core::snapshots::SnapshotCommand;
use berth_coordinator_core::upkeep::{self, Every};
use berth_coordinator_core::{Actor, Command};
use berth_shared::ids::{Generation, UserId};
use berth_shared::snapshot::{Snapshot, SnapshotId};

use crate::coordinator::{Asker, Request};
use crate::data::Object;
use crate::engine::short;
use crate::plan::{At, MINUTE, SECOND};
use crate::snaps::tell;
use crate::world::{Happening, World};

/// So many of what is known stay, HEAD among them.
const KEPT: usize = 2;

/// How often it is looked for what a prune may have taken.
const LOOK_EVERY: At = MINUTE;

/// How long a node may be silent before the coordinator has to know.
const SILENCE_SEEN: At = 5 * MINUTE;

/// What a worker was told.
#[derive(Debug)]
pub(crate) struct Pruning {
    life: u64,
    user: UserId,
    keep: BTreeSet<SnapshotId>,
    head: (Generation, u64),
    over: BTreeMap<Generation, u64>,
    aside: BTreeSet<SnapshotId>,
}

impl Pruning {
    fn spares(&self, id: SnapshotId, object: &Object) -> bool {
        let is_untold = (object.generation, object.seq) > self.head;
        let is_beside = self.over.get(&object.generation).is_some_and(|told| object.seq > *told);
        is_untold || is_beside || self.keep.contains(&id) || self.aside.contains(&id)
    }
}

impl World {
    /// Somebody's repository is pruned, by time or because an operator asks: also of users that were removed.
    pub(crate) fn prune_somebody(&mut self) {
        let mut users: Vec<UserId> = self.truth.cells.values().map(|known| known.user).collect();
        users.extend(&self.truth.gone_users);
        if !users.is_empty() {
            let which = self.pick(users.len());
            self.prune(users[which]);
        }
    }

    fn prune(&mut self, user: UserId) {
        let now = self.coordinator.clock.wall(self.at);
        let Some(process) = &self.coordinator.process else { return };
        let boot = self.coordinator.clock.boot(self.at);
        let silent_for = |node| {
            let connected = process.live.is_connected(node);
            (!connected).then(|| process.silence.silent_for(boot, node))
        };
        if upkeep::unheard(&process.fleet, user, silent_for).is_some() {
            return self.count("prunes refused");
        }
        let Some(vault) = process.fleet.vault(user) else { return };
        let Some(head) = &vault.head else { return };
        if self.bucket.down_until > self.at || self.coordinator.pruning == Some(process.life) {
            return;
        }
        let known: Vec<&Snapshot> = [head].into_iter().chain(&vault.history).collect();
        let life = process.life;
        // Those that are gone would take the places of those that have to stay: they are written down first.
        if known.iter().any(|kept| !self.bucket.objects.contains_key(&kept.id)) {
            self.coordinator.pruning = Some(life);
            return self.list(user);
        }
        let keep = known.iter().map(|kept| kept.id).take(KEPT).collect();
        let head = head.place();
        let over = vault.over.clone();
        let aside = vault.orphans.iter().map(|orphan| orphan.snapshot.id).collect();
        let pruning = Pruning { life, user, keep, head, over, aside };
        self.note(|| format!("a prune of {user} begins, {pruning:?}"));
        self.count("prunes");
        self.check_prune(user);
        self.coordinator.pruning = Some(life);
        self.coordinator.book.prune_begins(now, user, Some(head));
        let wait = self.dice.between(1, 40) * SECOND;
        self.later(wait, Happening::PruneTakes(Box::new(pruning)));
    }

    /// The worker takes what nobody spares. It does not outlive the coordinator.
    pub(crate) fn prune_takes(&mut self, pruning: &Pruning) {
        if self.coordinator.process.as_ref().is_none_or(|process| process.life != pruning.life) {
            return;
        }
        if self.bucket.down_until > self.at || self.strikes(self.plan.store_fails) {
            self.coordinator.pruning = None;
            return;
        }
        let user = pruning.user;
        let of_user = self.bucket.objects.iter().filter(|(_, object)| object.user == user && !object.aside);
        let goes = of_user.filter(|(id, object)| !pruning.spares(**id, object));
        let goes: Vec<SnapshotId> = goes.map(|(id, _)| *id).collect();
        for id in goes {
            self.note(|| format!("snapshot {} is pruned", tell(id)));
            self.bucket.objects.remove(&id);
            self.bucket.pruned.insert(id);
            self.count("snapshots pruned");
            self.check_pruned(user, id);
            // More often than at other writes: few prunes take anything.
            if self.strikes(100) {
                self.count("prunes cut");
                return self.coordinator_falls();
            }
        }
        self.list(user);
    }

    /// What of a user's history is not in the bucket is forgotten. Its end is the turn's.
    fn list(&mut self, user: UserId) {
        let process = self.coordinator.process.as_ref();
        let Some(vault) = process.and_then(|process| process.fleet.vault(user)) else {
            self.coordinator.pruning = None;
            return;
        };
        let history = vault.history.iter().map(|kept| kept.id);
        let gone: BTreeSet<SnapshotId> = history.filter(|id| !self.bucket.objects.contains_key(id)).collect();
        if gone.is_empty() {
            self.coordinator.book.listed(user);
            self.coordinator.pruning = None;
            return;
        }
        let command = Command::Snapshot(SnapshotCommand::Forget { user, gone });
        self.submit(Request { asker: Asker::Listed(user), actor: Actor::System, command });
    }

    /// What prunes have taken is asked for until it is known.
    pub(crate) fn look_behind_prunes(&mut self, life: u64) {
        let now = self.coordinator.clock.wall(self.at);
        let Some(process) = self.coordinator.process.as_ref().filter(|process| process.life == life) else {
            return;
        };
        let vaults = process.fleet.vaults().filter(|vault| vault.head.is_some());
        let users = vaults.map(|vault| vault.user).collect();
        self.coordinator.book.settle(now, &users, Every { prune: None, check: None });
        if self.coordinator.pruning == Some(life) {
            return self.later(LOOK_EVERY, Happening::LookBehindPrunes { life });
        }
        if let Some(user) = self.coordinator.book.unlisted(now) {
            if self.bucket.down_until > self.at {
                self.coordinator.book.not_listed(now, user);
            } else {
                self.count("prunes looked behind");
                self.coordinator.pruning = Some(life);
                self.list(user);
            }
        }
        self.later(LOOK_EVERY, Happening::LookBehindPrunes { life });
    }

    /// A prune may begin only where nobody of before can still believe that the user is its own.
    fn check_prune(&mut self, user: UserId) {
        let Some(cell) = self.truth.cell_of(user) else { return };
        let home = self.home_machine(cell);
        for machine in 0..self.machines.len() {
            let present = &self.machines[machine];
            let believes = present.disk.told.here.contains_key(&cell) && home != Some(machine);
            let member = present.node.filter(|node| self.machine_of(*node) == Some(machine));
            let Some(member) = member.and_then(|node| self.truth.nodes.get(&node)) else { continue };
            let silence = self.silence(machine);
            // That it is off may be wrong: only its lease's end keeps it from writing.
            let may_write = silence > SILENCE_SEEN && (!member.off || silence < self.plan.autonomy);
            if believes && may_write {
                let text =
                    format!("{} is pruned while machine {machine} may believe it its own", short(cell));
                return self.broken("pruned", &text);
            }
        }
    }

    /// HEAD stays, whatever goes.
    fn check_pruned(&mut self, user: UserId, id: SnapshotId) {
        let head = self.truth.heads.get(&user).and_then(|heads| heads.last()).copied();
        if head == Some(id) {
            self.broken("pruned", &format!("{} is HEAD of {user}, and was pruned", tell(id)));
        }
    }

    /// Quiet: what is known is there, each from the one before.
    pub(crate) fn judge_pruned(&mut self) {
        let Some(process) = &self.coordinator.process else { return };
        let (mut wrong, mut forks) = (None, 0);
        for vault in process.fleet.vaults() {
            let line = vault.head.iter().chain(&vault.history);
            // What a prune took may be told again as an orphan, by a machine of an old image.
            let orphans = vault.orphans.iter().map(|orphan| orphan.snapshot.id);
            let orphans = orphans.filter(|id| !self.truth.was_forgotten(*id));
            let mut known = line.map(|kept| kept.id).chain(orphans);
            let gone = known.find(|id| !self.bucket.objects.contains_key(id));
            if let Some(id) = gone {
                wrong = Some(format!("{} of {} is known, and is gone", tell(id), vault.user));
            }
            // Nobody is suspected of an older disk who has none.
            let is_doubted = |id| self.bucket.objects.get(&id).is_none_or(|object| object.excused);
            if let Some((left, came)) = vault.fork() {
                forks += 1;
                if !is_doubted(left.id) && !is_doubted(came.id) {
                    wrong = Some(format!("{} is a fork behind {}", tell(came.id), tell(left.id)));
                }
            }
        }
        for _ in 0..forks {
            self.count("forks told");
        }
        if let Some(wrong) = wrong {
            self.broken("pruned", &wrong);
        }
    }
}
