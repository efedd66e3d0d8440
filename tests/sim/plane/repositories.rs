//! Users' repositories as the coordinator sees to them: keys made for users that have none, nodes told of their users'
//! repositories before they are told of the users, reports of snapshots judged.

use std::collections::BTreeMap;

use berth_coordinator_core::fleet::Due;
use berth_coordinator_core::snapshots::{SnapshotCommand, StaleGeneration, Standing, is_final};
use berth_coordinator_core::{Actor, Command, Event};
use berth_shared::ids::{CellId, Generation, KeyId, NodeId, UserId};
use berth_shared::problem::Problem;
use berth_shared::repository::{Bucket, MASTER_KEY_BYTES, MasterKey, RepositoryKey, UserRepository};
use berth_shared::secret::Secret;
use berth_shared::snapshot::{SnapshotId, SnapshotOutcome};
use berth_shared::time::Millis;
use berth_shared::wire::CoordinatorFrame;

use crate::coordinator::{Asker, Request};
use crate::world::{Happening, World};

/// What a session was told: of whom, for which generation, with which key.
pub(crate) type Told = BTreeMap<UserId, (Generation, KeyId)>;

impl World {
    pub(crate) fn bucket_frame(&self) -> CoordinatorFrame {
        CoordinatorFrame::Bucket(Box::new(Bucket {
            endpoint: None,
            region: "r".to_owned(),
            bucket: "b".to_owned(),
            path_style: false,
            access_key: "a".to_owned(),
            secret_key: Secret::new("s"),
            every: Millis(self.plan.snapshot_every),
        }))
    }

    /// What there is to tell a node of its users' repositories.
    pub(crate) fn repositories_news(&self, node: NodeId, told: &mut Told) -> Option<CoordinatorFrame> {
        let fleet = &self.coordinator.process.as_ref()?.fleet;
        let found = fleet.node(node)?;
        told.retain(|user, _| found.users.contains(user));
        let due: Vec<Due<'_>> = fleet.repositories_due(found, told).collect();
        let told_of = |due: &Due<'_>| UserRepository {
            user: due.user,
            cell: due.cell,
            generation: due.generation,
            prefix: "u".to_owned(),
            orphans_prefix: "o".to_owned(),
            key: RepositoryKey {
                id: due.key,
                master: MasterKey::from_bytes(&[1; MASTER_KEY_BYTES]),
                password: Secret::new("p"),
            },
            head: due.head.cloned(),
        };
        told.extend(due.iter().map(|due| (due.user, (due.generation, due.key))));
        let users: Vec<UserRepository> = due.iter().map(told_of).collect();
        (!users.is_empty()).then_some(CoordinatorFrame::Repositories { users })
    }

    /// Somebody may have no key yet.
    pub(crate) fn keys_wanted(&mut self) {
        let Some(process) = &mut self.coordinator.process else { return };
        if process.fleet.users_without_key().next().is_some() && !process.makes_keys {
            process.makes_keys = true;
            let life = process.life;
            let wait = self.dice.between(1, 50);
            self.later(wait, Happening::MakeKeys { life });
        }
    }

    pub(crate) fn make_keys(&mut self, life: u64) {
        let Some(process) = self.coordinator.process.as_mut().filter(|process| process.life == life) else {
            return;
        };
        process.makes_keys = false;
        let users: Vec<UserId> = process.fleet.users_without_key().collect();
        for user in users {
            // The key store has one for each user, and keeps it.
            let command = SnapshotCommand::AdoptKey { user, key: KeyId::from_random(*user.bytes()) };
            let command = Command::Snapshot(command);
            self.submit(Request { asker: Asker::Nobody, actor: Actor::System, command });
        }
    }

    /// A node told of a snapshot.
    pub(crate) fn snapshot_decided(
        &mut self,
        (node, user, id): (NodeId, UserId, SnapshotId),
        outcome: Result<Vec<Event>, Problem>,
    ) {
        let Some(process) = &self.coordinator.process else { return };
        let standing = process.fleet.vault(user).and_then(|vault| vault.standing(id));
        let outcome = match (outcome, standing) {
            (Ok(_), Some(Ok(Standing::Head))) => SnapshotOutcome::Head,
            (Ok(_), Some(Ok(Standing::Kept)) | None) => SnapshotOutcome::Kept,
            (Ok(_), Some(Err(StaleGeneration { current, .. }))) => SnapshotOutcome::Orphan { current },
            (Err(problem), _) if is_final(problem.code) => SnapshotOutcome::Refused(problem),
            (Err(problem), _) => SnapshotOutcome::Later(problem),
        };
        if let Some(session) = process.sessions.get(&node).map(|session| session.connection) {
            self.send_down(session, CoordinatorFrame::SnapshotJudged { user, snapshot: id, outcome });
        }
    }

    /// The state that HEAD stands for, and whether nobody is to be blamed for it.
    pub(crate) fn head_state(&self, cell: CellId) -> Option<crate::data::Object> {
        self.bucket.objects.get(&self.truth.head_of(cell)?).copied()
    }
}
