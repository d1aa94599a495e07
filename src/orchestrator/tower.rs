//! The runtime as a [`tower_service::Service`]: for hosts whose middleware is tower's.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tower_service::Service;

use crate::core::task::error::TaskError;
use crate::core::task::request::TaskRequest;
use crate::orchestrator::{Orchestrator, Submitted};

/// Submits each task as soon as there is room ([`Orchestrator::submit_when_room`]).
///
/// It is always ready: whether there is room depends on who asks for what, so the call waits, and its future may be
/// dropped at any time.
impl Service<TaskRequest> for Orchestrator {
    type Response = Submitted;
    type Error = TaskError;
    type Future = Pin<Box<dyn Future<Output = Result<Submitted, TaskError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TaskError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: TaskRequest) -> Self::Future {
        let orchestrator = self.clone();
        Box::pin(async move { orchestrator.submit_when_room(request).await })
    }
}
