//! The trait's methods, each with its record, its trouble, and its event.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Instant;

use berth_node_agent_core::cell::{Observation, Pushed, Seen};
use berth_node_agent_core::cold::{self, Cooled};
use berth_shared::cell::ImageRef;
use berth_shared::ids::NodeId;
use berth_shared::time::Millis;
use berth_shared::units::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::broadcast;

use super::world::{Container, State};
use super::{Call, FakeRuntime, StartScript, lost};
use crate::runtime::plan::label;
use crate::runtime::{
    CellEventKind, CellEvents, ContainerKey, ContainerPlan, Created, EngineFacts, Owned, OwnedState, Runtime,
    RuntimeError, Started, Usage,
};

impl Runtime for FakeRuntime {
    async fn engine(&self) -> Result<EngineFacts, RuntimeError> {
        self.enter(Call::Engine, None).await.map_err(RuntimeError::Engine)?;
        Ok(EngineFacts {
            version: "fake".to_owned(),
            cgroup_version: Some(2),
            live_restore: true,
            swap_limit: true,
            security_options: vec!["name=seccomp,profile=default".to_owned()],
            runtimes: vec!["runc".to_owned()],
        })
    }

    async fn look(&self, key: &ContainerKey, fingerprint: &str, port: u16) -> Result<Seen, RuntimeError> {
        let is_lost = self.enter(Call::Look, Some(key.cell)).await.map_err(RuntimeError::Look)?;
        if is_lost {
            return Err(RuntimeError::Look(lost()));
        }
        let world = self.world();
        let id = match world.mine(key) {
            Ok(id) => id,
            Err(RuntimeError::Foreign { detail }) => return Ok(Seen::Foreign { detail }),
            Err(_) => {
                return Ok(world.name_taken(key).map_or(Seen::Absent, |detail| Seen::Foreign { detail }));
            }
        };
        let container = world.containers.get(&id).expect("found a moment ago");
        let fits = container.label(label::PLAN) == Some(fingerprint);
        Ok(match (container.state, world.address(container, port)) {
            (State::Running, Some(address)) => Seen::Running { address, fits },
            (State::Paused, Some(address)) => Seen::Paused { address, fits },
            (State::Running | State::Paused, None) => Seen::Between,
            (state @ (State::Created | State::Exited(_)), _) => Seen::Exited { fits, code: state.code() },
        })
    }

    /// Nothing is in swap here.
    async fn limit_swap(&self, _key: &ContainerKey) {}

    async fn create(&self, plan: &ContainerPlan) -> Result<Created, RuntimeError> {
        self.act(Call::Create, plan.key.cell, RuntimeError::Create, |world| Ok((world.create(plan)?, None)))
            .await
    }

    async fn pull(&self, image: &ImageRef) -> Result<(), RuntimeError> {
        let failed = |source| RuntimeError::Pull { image: image.clone(), source };
        let is_lost = self.enter(Call::Pull, None).await.map_err(failed)?;
        self.world().pull(image)?;
        if is_lost { Err(failed(lost())) } else { Ok(()) }
    }

    async fn start(&self, key: &ContainerKey, port: u16) -> Result<Started, RuntimeError> {
        let asked = Instant::now();
        self.act(Call::Start, key.cell, RuntimeError::Start, |world| {
            let container = world.containers.get(&world.mine(key)?).cloned().expect("found a moment ago");
            let address = || {
                world.address(&container, port).ok_or(RuntimeError::Unconfirmed {
                    wanted: "running with an address",
                    found: "without".to_owned(),
                })
            };
            match container.state {
                State::Running => return Ok((Started { address: address()?, call: None }, None)),
                State::Paused => return Err(RuntimeError::IsPaused),
                State::Created | State::Exited(_) => {}
            }
            let address = address()?;
            let script = world.starts.get_mut(&key.cell).and_then(VecDeque::pop_front);
            let script = script.unwrap_or(StartScript::Runs);
            let container = world.mine_mut(key)?;
            container.starts += 1;
            match script {
                StartScript::Runs => {
                    container.state = State::Running;
                    let started = Started { address, call: Some(asked..Instant::now()) };
                    Ok((started, Some((container.clone(), CellEventKind::Started))))
                }
                StartScript::Exits(code) => {
                    container.state = State::Exited(code);
                    Err(RuntimeError::Exited { code })
                }
            }
        })
        .await
    }

    async fn pause(&self, key: &ContainerKey) -> Result<(), RuntimeError> {
        self.act(Call::Pause, key.cell, RuntimeError::Pause, |world| {
            let container = world.mine_mut(key)?;
            match container.state {
                State::Paused => Ok(((), None)),
                State::Running => {
                    container.state = State::Paused;
                    Ok(((), Some((container.clone(), CellEventKind::Paused))))
                }
                State::Created | State::Exited(_) => Err(RuntimeError::NotUp),
            }
        })
        .await
    }

    async fn unpause(&self, key: &ContainerKey) -> Result<Option<Range<Instant>>, RuntimeError> {
        self.act(Call::Unpause, key.cell, RuntimeError::Unpause, |world| {
            let container = world.mine_mut(key)?;
            match container.state {
                State::Running => Ok((None, None)),
                State::Paused => {
                    container.state = State::Running;
                    let now = Instant::now();
                    Ok((Some(now..now), Some((container.clone(), CellEventKind::Unpaused))))
                }
                State::Created | State::Exited(_) => Err(RuntimeError::NotUp),
            }
        })
        .await
    }

    async fn note_touched(&self, key: &ContainerKey) -> Result<(), RuntimeError> {
        self.world().mine(key).map(drop)
    }

    async fn read_back(&self, _key: &ContainerKey) -> Bytes {
        Bytes::ZERO
    }

    async fn observe(&self, key: &ContainerKey, _span: Millis) -> Result<Observation, RuntimeError> {
        let is_lost = self.enter(Call::Observe, Some(key.cell)).await.map_err(RuntimeError::Look)?;
        if is_lost {
            return Err(RuntimeError::Look(lost()));
        }
        let world = self.world();
        let id = world.mine(key)?;
        match world.containers.get(&id).map(|container| container.state) {
            Some(State::Running) => Ok(world.doings.get(&key.cell).cloned().unwrap_or_default()),
            _ => Err(RuntimeError::NotUp),
        }
    }

    async fn thin(&self, key: &ContainerKey) -> Result<Pushed, RuntimeError> {
        let mut world = self.world();
        let id = world.mine(key)?;
        if world.containers.get(&id).map(|container| container.state) != Some(State::Running) {
            return Err(RuntimeError::NotUp);
        }
        let held = world.doings.entry(key.cell).or_default().resident.replace(Bytes::ZERO);
        let before = held.unwrap_or_default();
        Ok(Pushed { before, resident: Bytes::ZERO, swapped: before, took: Millis(1) })
    }

    async fn held(&self, key: &ContainerKey) -> Result<Option<cold::Held>, RuntimeError> {
        let world = self.world();
        let id = world.mine(key)?;
        let runs = world.containers.get(&id).is_some_and(|container| container.state == State::Running);
        Ok(runs.then(|| cold::Held {
            resident: world.doings.get(&key.cell).and_then(|doing| doing.resident).unwrap_or_default(),
            cpu: world.cpu.get(&key.cell).copied().unwrap_or_default(),
            ..cold::Held::default()
        }))
    }

    async fn cool(&self, key: &ContainerKey, step: Bytes) -> Result<Cooled, RuntimeError> {
        let mut world = self.world();
        let id = world.mine(key)?;
        if world.containers.get(&id).map(|container| container.state) != Some(State::Running) {
            return Err(RuntimeError::NotUp);
        }
        let resident = world.doings.entry(key.cell).or_default().resident.get_or_insert_default();
        let out = step.min(*resident);
        *resident = resident.saturating_sub(out);
        Ok(Cooled { out, swapped: out })
    }

    async fn push(&self, key: &ContainerKey) -> Result<Pushed, RuntimeError> {
        self.act(Call::Push, key.cell, RuntimeError::Look, |world| {
            let held = world.doings.entry(key.cell).or_default();
            let before = held.resident.unwrap_or_default();
            let container = world.mine_mut(key)?;
            match container.state {
                State::Paused => {
                    world.doings.entry(key.cell).or_default().resident = Some(Bytes::ZERO);
                    let pushed = Pushed { before, resident: Bytes::ZERO, swapped: before, took: Millis(1) };
                    Ok((pushed, None))
                }
                State::Running => Err(RuntimeError::StillUp),
                State::Created | State::Exited(_) => Err(RuntimeError::NotUp),
            }
        })
        .await
    }

    async fn stop(&self, key: &ContainerKey, _grace: Millis) -> Result<i64, RuntimeError> {
        self.act(Call::Stop, key.cell, RuntimeError::Stop, |world| {
            let container = world.mine_mut(key)?;
            match container.state {
                State::Paused => Err(RuntimeError::IsPaused),
                State::Running => {
                    container.state = State::Exited(0);
                    Ok((0, Some((container.clone(), CellEventKind::Died { code: 0 }))))
                }
                state @ (State::Created | State::Exited(_)) => Ok((state.code(), None)),
            }
        })
        .await
    }

    async fn kill_frozen(&self, key: &ContainerKey) -> Result<i64, RuntimeError> {
        self.act(Call::KillFrozen, key.cell, RuntimeError::KillFrozen, |world| {
            let container = world.mine_mut(key)?;
            match container.state {
                State::Running => Err(RuntimeError::StillUp),
                State::Paused => {
                    container.state = State::Exited(137);
                    Ok((137, Some((container.clone(), CellEventKind::Died { code: 137 }))))
                }
                state @ (State::Created | State::Exited(_)) => Ok((state.code(), None)),
            }
        })
        .await
    }

    async fn repair(&self, plan: &ContainerPlan, _args: &[&str], _limit: Millis) -> Result<(), RuntimeError> {
        self.act(Call::Repair, plan.key.cell, RuntimeError::Repair, |world| {
            match world.mine(&plan.full_key()) {
                Ok(id) if world.containers.get(&id).is_some_and(|container| container.state.is_up()) => {
                    return Err(RuntimeError::StillUp);
                }
                Ok(_) => {}
                Err(RuntimeError::Gone) => drop(world.image(&plan.image)?),
                Err(error) => return Err(error),
            }
            match world.repairs.pop_front().unwrap_or(0) {
                0 => Ok(((), None)),
                code => Err(RuntimeError::RepairFailed { code, said: Vec::new() }),
            }
        })
        .await
    }

    async fn remove(&self, key: &ContainerKey, network: &str) -> Result<(), RuntimeError> {
        self.act(Call::Remove, key.cell, RuntimeError::Remove, |world| {
            let removed = match world.mine(key) {
                Ok(id) if world.containers.get(&id).is_some_and(|container| container.state.is_up()) => {
                    return Err(RuntimeError::StillUp);
                }
                Ok(id) => world.containers.remove(&id),
                Err(RuntimeError::Gone) => None,
                Err(error) => return Err(error),
            };
            if world.networks.get(network) == Some(&key.cell.to_string()) {
                world.networks.remove(network);
            }
            Ok(((), removed.map(|container| (container, CellEventKind::Removed))))
        })
        .await
    }

    async fn logs(
        &self,
        key: &ContainerKey,
        lines: usize,
        bytes_max: usize,
    ) -> Result<Vec<String>, RuntimeError> {
        self.enter(Call::Logs, Some(key.cell)).await.map_err(RuntimeError::Logs)?;
        let world = self.world();
        world.mine(key)?;
        let mut room = bytes_max;
        let mut kept = VecDeque::new();
        for line in world.said.get(&key.cell).into_iter().flatten().rev().take(lines) {
            let Some(left) = room.checked_sub(line.len()) else { break };
            room = left;
            kept.push_front(line.clone());
        }
        Ok(kept.into())
    }

    async fn usage(&self, key: &ContainerKey) -> Result<Option<Usage>, RuntimeError> {
        self.enter(Call::Usage, Some(key.cell)).await.map_err(RuntimeError::Look)?;
        let world = self.world();
        let id = world.mine(key)?;
        let runs = world.containers.get(&id).is_some_and(|container| container.state == State::Running);
        Ok(runs.then(|| Usage {
            cpu: world.cpu.get(&key.cell).copied().unwrap_or_default(),
            anonymous: world.doings.get(&key.cell).and_then(|doing| doing.resident),
        }))
    }

    async fn events(&self, node: &NodeId) -> Result<CellEvents, RuntimeError> {
        self.enter(Call::Events, None).await.map_err(RuntimeError::Events)?;
        let node = *node;
        let stream = futures_util::stream::unfold(self.events.subscribe(), move |mut receiver| async move {
            loop {
                match receiver.recv().await {
                    Ok((of, event)) if of == node => return Some((Ok(event), receiver)),
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        return Some((Err(RuntimeError::Events(lost())), receiver));
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        Ok(stream.boxed())
    }

    async fn list_ours(&self, node: &NodeId) -> Result<Vec<Owned>, RuntimeError> {
        self.enter(Call::ListOurs, None).await.map_err(RuntimeError::List)?;
        let node = node.to_string();
        let owned = |(id, container): (&String, &Container)| {
            if container.label(label::NODE) != Some(node.as_str()) {
                return None;
            }
            Some(Owned {
                id: id.clone(),
                cell: container.cell()?,
                op: container.label(label::OP)?.parse().ok()?,
                state: match container.state {
                    State::Running => OwnedState::Running,
                    State::Paused => OwnedState::Paused,
                    State::Created | State::Exited(_) => OwnedState::Exited,
                },
            })
        };
        Ok(self.world().containers.iter().filter_map(owned).collect())
    }

    async fn remove_orphan(&self, node: &NodeId, orphan: &Owned, _grace: Millis) -> Result<(), RuntimeError> {
        let is_lost =
            self.enter(Call::RemoveOrphan, Some(orphan.cell)).await.map_err(RuntimeError::Remove)?;
        let removed = {
            let mut world = self.world();
            let same = |container: &Container| {
                container.label(label::NODE) == Some(node.to_string().as_str())
                    && container.cell() == Some(orphan.cell)
                    && container.label(label::OP) == Some(orphan.op.to_string().as_str())
            };
            if world.containers.get(&orphan.id).is_some_and(|container| !same(container)) {
                let detail = format!("container {} is not the one that was listed", orphan.id);
                return Err(RuntimeError::Foreign { detail });
            }
            let owner = orphan.cell.to_string();
            world.networks.retain(|_, cell| *cell != owner);
            world.containers.remove(&orphan.id)
        };
        if let Some(container) = removed {
            if container.state.is_up() {
                self.tell(&container, CellEventKind::Died { code: 0 });
            }
            self.tell(&container, CellEventKind::Removed);
        }
        if is_lost { Err(RuntimeError::Remove(lost())) } else { Ok(()) }
    }

    fn calls(&self) -> u64 {
        u64::try_from(self.world().record.len()).unwrap_or(u64::MAX)
    }
}
