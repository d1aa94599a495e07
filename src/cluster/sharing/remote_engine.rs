//! Another node's pool as an engine of this one: what is asked of it goes over the link, and its tokens come back.
//!
//! One engine is good for one life of the link and one identity of the pool. When either is over, the engine has
//! failed, its worker starts the next one, and that waits for the node to come back.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::timeout;

use crate::cluster::link::links::{InboundEvent, LinkShared};
use crate::cluster::link::protocol::{AdvertisedIdentity, AttemptEnd, AttemptTask, ENVELOPE_BYTES_MAX, LinkMessage};
use crate::cluster::shared::PeerShared;
use crate::core::id::PoolId;
use crate::core::task::FinishReason;
use crate::core::task::error::ErrorCode;
use crate::core::units::Tokens;
use crate::gpu::engine::{Engine, EngineError, EngineInfo, Finish, Job, Telemetry, TokenOutput};

/// Longest wait for an owner's first word about an attempt. On a link that lives it comes at once.
const TAKEN_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of an envelope that a task's texts must leave free.
const ENVELOPE_SPARE: usize = 64 * 1024;

/// The engine.
pub(crate) struct RemoteEngine {
    peer: Arc<PeerShared>,
    /// The pool's name at its node.
    pool: PoolId,
    /// The link, and what the pool was when the engine was loaded.
    on: Mutex<Option<(Arc<LinkShared>, AdvertisedIdentity)>>,
}

impl RemoteEngine {
    pub(crate) fn new(peer: Arc<PeerShared>, pool: PoolId) -> Self {
        RemoteEngine { peer, pool, on: Mutex::new(None) }
    }

    fn on(&self) -> Option<(Arc<LinkShared>, AdvertisedIdentity)> {
        self.on.lock().clone().filter(|(link, _)| !link.is_over())
    }

    fn gone(&self) -> EngineError {
        EngineError::Unreachable(format!("there is no link with node {}", self.peer.name).into())
    }

    /// Waits for a link on which the pool is announced with a Ready replica.
    async fn until_there(&self) -> (Arc<LinkShared>, AdvertisedIdentity) {
        loop {
            let linked = self.peer.changed.notified();
            tokio::pin!(linked);
            linked.as_mut().enable(); // Before the look, so that no change is missed.
            let Some(link) = self.peer.link() else {
                linked.await;
                continue;
            };
            let changed = link.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable(); // As above.
            match link.card(&self.pool).and_then(|card| card.identity) {
                Some(identity) => return (link.clone(), identity),
                None if link.is_over() => {}
                None => changed.await,
            }
        }
    }
}

/// Dropped behind an attempt, which counts no more among those that have begun.
struct ApplyLimits<'a>(&'a PeerShared);

impl Drop for ApplyLimits<'_> {
    fn drop(&mut self) {
        self.0.apply_limits();
    }
}

impl Engine for RemoteEngine {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        let (link, identity) = self.until_there().await;
        *self.on.lock() = Some((link, identity.clone()));
        self.peer.apply_limits();
        let AdvertisedIdentity { engine_version, model_digest, ctx } = identity;
        Ok(EngineInfo { ctx: Some(Tokens(ctx)), ..EngineInfo::new(engine_version, model_digest) })
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        let (link, _) = self.on().ok_or_else(|| self.gone())?;
        if job.request.text_bytes() > ENVELOPE_BYTES_MAX - ENVELOPE_SPARE {
            let most = ENVELOPE_BYTES_MAX - ENVELOPE_SPARE;
            return Err(EngineError::Refused(
                format!("its texts have more than the {most} bytes that nodes exchange").into(),
            ));
        }
        let _behind = ApplyLimits(&self.peer);
        let mut lent = link.lend();
        let task = Box::new(AttemptTask::new(self.pool.clone(), &job));
        link.say(LinkMessage::Run { attempt: lent.attempt, task });
        let mut given = 0_u32;
        let pool = self.peer.remote_pools.lock().get(&self.pool).map(|remote| remote.pool.clone());
        let mut heard = timeout(TAKEN_TIMEOUT, lent.port.next(&link)).await;
        let mut has_begun = false;
        loop {
            match heard {
                Err(_) => {
                    return Err(EngineError::Unreachable(format!("node {} does not answer", self.peer.name).into()));
                }
                Ok(None) if given == 0 => return Err(self.gone()),
                Ok(None) => {
                    return Err(EngineError::Lost(format!("the link with node {} is over", self.peer.name).into()));
                }
                Ok(Some(InboundEvent::Waits)) => out.is_alive(),
                Ok(Some(InboundEvent::Begun)) => {
                    has_begun = true;
                    out.is_alive();
                    lent.begin(&self.pool);
                    self.peer.apply_limits();
                }
                Ok(Some(InboundEvent::Tokens(texts))) => {
                    let (tokens, bytes) = (texts.len() as u32, texts.iter().map(String::len).sum::<usize>() as u32);
                    lent.port.take_up(tokens, bytes);
                    for text in texts {
                        out.push(&text)?;
                    }
                    given = given.saturating_add(tokens);
                    link.say(LinkMessage::Credit { attempt: lent.attempt, tokens, bytes });
                }
                Ok(Some(InboundEvent::End(end))) => {
                    lent.has_ended = true;
                    return finish(end);
                }
            }
            heard = Ok(match &pool {
                Some(pool) if !has_begun => tokio::select! {
                    biased;
                    heard = lent.port.next(&link) => heard,
                    () = pool.until_recalled() => return Err(EngineError::Recalled),
                },
                _ => lent.port.next(&link).await,
            });
        }
    }

    async fn probe(&self) -> Result<Telemetry, EngineError> {
        self.on().map(|_| Telemetry::default()).ok_or_else(|| self.gone())
    }

    async fn failure(&self) -> EngineError {
        loop {
            let Some((link, identity)) = self.on() else { return self.gone() };
            let changed = link.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable(); // Before the look, so that no change is missed.
            if link.is_over() {
                return self.gone();
            }
            if link.card(&self.pool).and_then(|card| card.identity) != Some(identity) {
                return EngineError::Unreachable(
                    format!("pool {} of node {} has changed", self.pool, self.peer.name).into(),
                );
            }
            changed.await;
        }
    }
}

/// What an owner's end of an attempt is for its gateway. Whatever is not the task's own fault may be tried elsewhere.
fn finish(end: AttemptEnd) -> Result<Finish, EngineError> {
    match end {
        // We did not stop it: somebody there did, who knows of the attempt only.
        AttemptEnd::Done { reason: FinishReason::Canceled, .. } => {
            Err(EngineError::Lost("it was cancelled at its owner".into()))
        }
        AttemptEnd::Done { reason, tokens_in } => Ok(Finish { reason, tokens_in: Some(Tokens(tokens_in)) }),
        AttemptEnd::Failed { code, message } => Err(match code {
            ErrorCode::InvalidParams => EngineError::Refused(message.as_str().into()),
            ErrorCode::DecodeTimeout => EngineError::Hung(message.as_str().into()),
            ErrorCode::WorkerReset | ErrorCode::Internal => EngineError::Lost(message.as_str().into()),
            ErrorCode::AdmissionReject
            | ErrorCode::QueueFullDropLru
            | ErrorCode::PoolUnready
            | ErrorCode::PoolUnavailable
            | ErrorCode::ReplicaExhausted => EngineError::Unreachable(message.as_str().into()),
        }),
    }
}
