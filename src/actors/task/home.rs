//! Where a task goes: its pool, as far as a record needs to know it.

use std::any::Any;
use std::sync::Arc;

use crate::actors::quota::clients::ClientShared;
use crate::actors::task::event_log::ReplicaIdentity;
use crate::config::PoolConfig;
use crate::core::id::PoolId;
use crate::core::pool::model::ModelSpec;
use crate::core::task::TaskRequest;
use crate::core::task::resume::LossRule;
use crate::core::units::Tokens;

/// The pool that has a task, as far as the task needs to know it. Records lie below pools: whoever needs the pool
/// itself asks [`PoolShared::of`](crate::actors::pool::shared::PoolShared::of).
pub(crate) trait Home: Any + Send + Sync {
    /// Its id.
    fn id(&self) -> &PoolId;

    /// Its number in the runtime.
    fn number(&self) -> u16;

    /// As it was configured.
    fn config(&self) -> &PoolConfig;

    /// What it serves.
    fn spec(&self) -> Arc<ModelSpec>;

    /// Longest context of one task, in tokens.
    fn ctx(&self) -> u32;

    /// The name by which clients are allowed to use it.
    fn allowed_as(&self) -> &PoolId;

    /// Whether it is another node's.
    fn is_remote(&self) -> bool;

    /// Whether an engine with this identity serves what it serves.
    fn serves_the_same_as(&self, identity: &ReplicaIdentity) -> bool;

    /// The rule for this task when its attempt is lost.
    fn loss_rule(&self, request: &TaskRequest) -> LossRule;
}

/// Where a task goes.
pub(crate) struct Route {
    /// The pool whose queue has it.
    pub(crate) pool: Arc<dyn Home>,
    /// Estimated length of its prompt.
    pub(crate) prompt_tokens: Tokens,
    /// What its client may do.
    pub(crate) client: Arc<ClientShared>,
}
