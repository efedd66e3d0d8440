//! Network and container are there and fit; and the repair, which needs the same image.

use std::borrow::Cow;

use berth_node_agent_core::cell::OtherImage;
use berth_shared::cell::ImageRef;
use berth_shared::time::Millis;
use bollard::models::ImageInspect;
use bollard::query_parameters::CreateContainerOptions;

use super::engine::Engine;
use super::find::{self, Found, Up};
use super::profile::{self, Details};
use super::{ACT, ASK, image, network, remove_container, watch};
use crate::runtime::plan::label;
use crate::runtime::{ContainerPlan, Created, EngineError, RuntimeError};

/// The word of OpenClaw's command from which on its arguments are replaced.
const GATEWAY_WORD: &str = "gateway";

/// How often an end is looked for. Ends are rare and the question is cheap.
const END_POLL: Millis = Millis(100);

/// How much of a failed repair's output is kept.
const REPAIR_LINES: usize = 20;
const REPAIR_BYTES_MAX: usize = 8 * 1024;

fn volumes(image: &ImageInspect) -> &[String] {
    image.config.as_ref().and_then(|config| config.volumes.as_deref()).unwrap_or_default()
}

/// See [`crate::runtime::Runtime::create`].
pub(super) async fn create(engine: &Engine, plan: &ContainerPlan) -> Result<Created, RuntimeError> {
    let key = plan.full_key();
    let look = async {
        let find::Listed { claim, repairs } = find::list(engine, &key).await?;
        Ok((find::found(engine, &key, claim).await?, repairs))
    };
    let look = async { look.await.map_err(RuntimeError::Look) };
    let ((found, repairs), image_seen, network_seen) =
        tokio::try_join!(look, image::look(engine, &plan.image), network::look(engine, plan))?;
    // First what forbids everything, then what is slow, then what changes something.
    let mine = match found {
        Found::Stranger { detail } | Found::Nothing { name_taken_by: Some(detail) } => {
            return Err(RuntimeError::Foreign { detail });
        }
        Found::Nothing { name_taken_by: None } => None,
        Found::One(mine) => Some(mine),
    };
    let fingerprint = plan.fingerprint();
    if let Some(mine) = mine.as_ref().filter(|mine| matches!(mine.up(), Up::Running | Up::Paused)) {
        let fits = mine.fits(&fingerprint);
        return if fits { Ok(Created { op: mine.op, made: false }) } else { Err(RuntimeError::StillUp) };
    }
    let own = mine.as_ref().filter(|_| plan.other_image == OtherImage::Left).and_then(|mine| own_image(mine));
    let image_seen = match &own {
        Some(image) => image::look(engine, image).await?,
        None => image_seen,
    };
    let plan = &*of_image(plan, own);
    let fits = |mine: &find::Mine| mine.fits(&fingerprint) || plan.other_image == OtherImage::Left;
    let image = image::here(&plan.image, image_seen)?;
    let is_same = |mine: &find::Mine| mine.inspected.image.is_some() && mine.inspected.image == image.id;
    if plan.other_image == OtherImage::Told && mine.as_ref().is_some_and(|mine| !is_same(mine)) {
        return Err(RuntimeError::OtherImage);
    }
    let network = network::ensure(engine, plan, network_seen).await?;
    find::remove_repairs(engine, &repairs).await.map_err(RuntimeError::Create)?;
    if let Some(mine) = mine {
        if fits(&mine) && is_same(&mine) && !network.fresh && !mine.is_dead() {
            return Ok(Created { op: mine.op, made: false });
        }
        tracing::info!(cell = %key.cell, container = mine.id, "replacing a container that does not fit any more");
        remove_container(engine, &mine.id, mine.is_dead()).await.map_err(RuntimeError::Create)?;
    }
    let details = Details {
        role: label::ROLE_CELL,
        network: Some(&network.id),
        volumes: volumes(&image),
        command: None,
    };
    make(engine, plan, &key.container_name(), details).await.map_err(|source| {
        if source.is_conflict() {
            // Somebody took the name since the look.
            RuntimeError::Foreign { detail: source.to_string() }
        } else {
            RuntimeError::Create(source)
        }
    })?;
    Ok(Created { op: plan.op, made: true })
}

/// The very bytes that a container is made of, whatever their name means by now.
fn own_image(mine: &find::Mine) -> Option<ImageRef> {
    mine.inspected.image.as_deref()?.parse().ok()
}

fn of_image(plan: &ContainerPlan, image: Option<ImageRef>) -> Cow<'_, ContainerPlan> {
    match image {
        Some(image) => Cow::Owned(ContainerPlan { image, ..plan.clone() }),
        None => Cow::Borrowed(plan),
    }
}

async fn make(
    engine: &Engine,
    plan: &ContainerPlan,
    name: &str,
    details: Details<'_>,
) -> Result<String, EngineError> {
    let options = CreateContainerOptions { name: Some(name.to_owned()), ..Default::default() };
    let request = profile::request(plan, details);
    let made = engine
        .call(ACT, |docker| async move { docker.create_container(Some(options), request).await })
        .await?;
    for warning in &made.warnings {
        // Such as a kernel without swap accounting: a limit of the profile that is not there.
        tracing::warn!(cell = %plan.key.cell, warning, "the container engine does not give all that was asked for");
    }
    Ok(made.id)
}

/// See [`crate::runtime::Runtime::repair`].
pub(super) async fn repair(
    engine: &Engine,
    plan: &ContainerPlan,
    args: &[&str],
    limit: Millis,
) -> Result<(), RuntimeError> {
    let key = plan.full_key();
    let find::Listed { claim, repairs } = find::list(engine, &key).await.map_err(RuntimeError::Look)?;
    let own = match find::found(engine, &key, claim).await.map_err(RuntimeError::Look)? {
        Found::Stranger { detail } => return Err(RuntimeError::Foreign { detail }),
        Found::One(mine) if mine.up() != Up::Exited => return Err(RuntimeError::StillUp),
        Found::One(mine) => own_image(&mine),
        Found::Nothing { .. } => None,
    };
    let plan = &*of_image(plan, own);
    let image_seen = image::look(engine, &plan.image).await?;
    let image = image::here(&plan.image, image_seen)?;
    let command =
        repair_command(&image, args).ok_or_else(|| RuntimeError::NoRepair { image: plan.image.clone() })?;
    find::remove_repairs(engine, &repairs).await.map_err(RuntimeError::Repair)?;
    let name = format!("{}-repair-{}", key.container_name(), plan.op);
    let details =
        Details { role: label::ROLE_REPAIR, network: None, volumes: volumes(&image), command: Some(command) };
    let id = make(engine, plan, &name, details).await.map_err(RuntimeError::Repair)?;
    let ran = run_to_end(engine, &id, limit).await;
    let said = match &ran {
        Ok(0) | Err(_) => Vec::new(),
        // Worth nothing if it cannot be read: the exit code tells the main thing.
        Ok(_) => watch::logs(engine, &id, REPAIR_LINES, REPAIR_BYTES_MAX).await.unwrap_or_default(),
    };
    // Also after a failure. What cannot be removed now is at the next create.
    let removed = remove_container(engine, &id, true).await;
    match ran.map_err(RuntimeError::Repair)? {
        0 => removed.map_err(RuntimeError::Repair),
        code => Err(RuntimeError::RepairFailed { code, said }),
    }
}

async fn run_to_end(engine: &Engine, id: &str, limit: Millis) -> Result<i64, EngineError> {
    engine.call(ACT, |docker| async move { docker.start_container(id, None).await }).await?;
    let ended = async {
        loop {
            let seen =
                engine.call(ASK, |docker| async move { docker.inspect_container(id, None).await }).await?;
            let state = seen.state.unwrap_or_default();
            if state.running != Some(true) {
                return Ok(state.exit_code.unwrap_or(-1));
            }
            tokio::time::sleep(END_POLL.to_std()).await;
        }
    };
    tokio::time::timeout(limit.to_std(), ended).await.unwrap_or(Err(EngineError::Late { limit }))
}

/// `node /app/…/openclaw.mjs gateway run …` becomes `node /app/…/openclaw.mjs` and the arguments. An image whose
/// entry point is the workload itself has no command of its own.
fn repair_command(image: &ImageInspect, args: &[&str]) -> Option<Vec<String>> {
    let command = image.config.as_ref().and_then(|config| config.cmd.as_deref()).unwrap_or_default();
    let has_entry_point = image
        .config
        .as_ref()
        .and_then(|config| config.entrypoint.as_deref())
        .is_some_and(|entry| !entry.is_empty());
    let kept = match command.iter().position(|word| word == GATEWAY_WORD) {
        Some(at) => command.get(..at)?,
        None if command.is_empty() && has_entry_point => &[],
        None => return None,
    };
    Some(kept.iter().cloned().chain(args.iter().map(|arg| (*arg).to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::ImageConfig;

    fn image(entry: &[&str], command: &[&str]) -> ImageInspect {
        let owned = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
        ImageInspect {
            config: Some(ImageConfig { entrypoint: owned(entry), cmd: owned(command), ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn the_repair_is_called_as_the_gateway_is() {
        let openclaw = image(&[], &["node", "/app/openclaw.mjs", "gateway", "run", "--port", "18789"]);
        let command = repair_command(&openclaw, &["doctor", "--fix"]);
        assert_eq!(command.unwrap(), ["node", "/app/openclaw.mjs", "doctor", "--fix"]);
        assert_eq!(repair_command(&image(&["/cell"], &[]), &["doctor"]).unwrap(), ["doctor"]);
    }

    #[test]
    fn an_image_of_something_else_has_no_repair() {
        assert_eq!(repair_command(&image(&[], &["nginx", "-g", "daemon off;"]), &["doctor"]), None);
        assert_eq!(repair_command(&image(&[], &[]), &["doctor"]), None);
    }
}
