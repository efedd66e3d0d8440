//! Which images are pulled, and which have to be there.
//!
//! Only a digest says which bytes are meant, so only an image that is named by one is pulled. A tag has to be on the
//! node already; whoever put it there answers for it.

use std::time::Duration;

use berth_shared::cell::ImageRef;
use berth_shared::time::Millis;
use bollard::models::ImageInspect;
use bollard::query_parameters::CreateImageOptions;
use futures_util::StreamExt as _;
use tokio::time::Instant;

use super::ASK;
use super::engine::{Engine, meaning};
use crate::runtime::{EngineError, RuntimeError};

/// How long a pull may take: below the bound of the whole operation, so that its failure can still be told.
const PULL_LIMIT: Millis = Millis::minutes(14);

/// How long a pull may stand still.
const PULL_STALL_LIMIT: Millis = Millis::secs(90);

/// How often a pull is mentioned in the log.
const PULL_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Asks for an image; `None`: it is not on the node.
pub(super) async fn look(engine: &Engine, image: &ImageRef) -> Result<Option<ImageInspect>, RuntimeError> {
    match engine.call(ASK, |docker| async move { docker.inspect_image(image.as_str()).await }).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(source) => Err(RuntimeError::Image { image: image.clone(), source }),
    }
}

/// The image, given what was seen of it; or whether it can be pulled.
pub(super) fn here(image: &ImageRef, seen: Option<ImageInspect>) -> Result<ImageInspect, RuntimeError> {
    seen.ok_or_else(|| {
        let image = image.clone();
        if is_pulled(&image) {
            RuntimeError::NotPulled { image }
        } else {
            RuntimeError::UnknownImage { image }
        }
    })
}

/// `sha256:…` alone names bytes, but no place to get them from.
fn is_pulled(image: &ImageRef) -> bool {
    image.as_str().contains("@sha256:")
}

/// Makes sure that the image is there. Docker bounds how much it downloads at a time, whoever asks.
pub(super) async fn pull(engine: &Engine, image: &ImageRef) -> Result<(), RuntimeError> {
    if look(engine, image).await?.is_some() {
        return Ok(());
    }
    let unknown = || RuntimeError::UnknownImage { image: image.clone() };
    if !is_pulled(image) {
        return Err(unknown());
    }
    let failed = |source| RuntimeError::Pull { image: image.clone(), source };
    match tokio::time::timeout(PULL_LIMIT.to_std(), download(engine, image)).await {
        Ok(pulled) => pulled.map_err(failed)?,
        Err(_) => return Err(failed(EngineError::Late { limit: PULL_LIMIT })),
    }
    look(engine, image).await?.map(drop).ok_or_else(unknown)
}

async fn download(engine: &Engine, image: &ImageRef) -> Result<(), EngineError> {
    let options = CreateImageOptions { from_image: Some(image.to_string()), ..Default::default() };
    let docker = engine.streaming().await?;
    // Dropping the stream makes Docker give up the pull.
    let mut progress = std::pin::pin!(docker.create_image(Some(options), None, None));
    tracing::info!(%image, "pulling the image");
    let mut mentioned = Instant::now();
    loop {
        let step = match tokio::time::timeout(PULL_STALL_LIMIT.to_std(), progress.next()).await {
            Ok(Some(step)) => step.map_err(|error| meaning(error, PULL_LIMIT))?,
            Ok(None) => break,
            Err(_) => return Err(EngineError::Late { limit: PULL_STALL_LIMIT }),
        };
        if mentioned.elapsed() >= PULL_LOG_INTERVAL {
            mentioned = Instant::now();
            let detail = step.progress_detail.unwrap_or_default();
            tracing::info!(
                %image,
                layer = step.id.as_deref().unwrap_or_default(),
                status = step.status.as_deref().unwrap_or_default(),
                bytes = detail.current.unwrap_or_default(),
                bytes_total = detail.total.unwrap_or_default(),
                "still pulling the image"
            );
        }
    }
    tracing::info!(%image, "the image is pulled");
    Ok(())
}
