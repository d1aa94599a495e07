//! A cursor over one task's event log. Any number of them read at their own pace; none holds up the task.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream};

use crate::actors::runtime::RuntimeShared;
use crate::actors::runtime::cancel::ReaderGuard;
use crate::actors::task::event_log::{Event, EventRef};
use crate::actors::task::lingering::Cut;
use crate::actors::task::record::TaskRecord;
use crate::actors::task::view::TaskView;
use crate::core::id::TaskId;

/// Most events that a reader copies at a time: what one that is far behind holds beside the log.
const FETCHED_MAX: usize = 256;

/// The events of one task, from an index on, as they come.
///
/// It stays readable after the runtime has forgotten the task, as long as what is so read has room of
/// `retention.bytes`, of which each client has a part; without room it ends. Dropping the last one of a task that says
/// [`OnDisconnect::Cancel`](crate::core::task::OnDisconnect) ends the task, unless another reader comes in time.
pub struct TaskStream {
    record: Arc<TaskRecord>,
    next: usize,
    /// Read from the log, not yet handed out: one lock for all events that have come since the last.
    fetched: VecDeque<(usize, Event)>,
    /// A wait for more, of whoever polls this as a [`Stream`].
    waiting: Option<BoxFuture<'static, ()>>,
    _presence: Option<ReaderGuard>,
    _reading: Reading,
}

/// Counts a reader of a task.
struct Reading(Arc<TaskRecord>);

impl Reading {
    fn new(record: &Arc<TaskRecord>) -> Self {
        record.readership.streams.fetch_add(1, Relaxed);
        Reading(record.clone())
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.readership.streams.fetch_sub(1, Relaxed);
    }
}

/// What a look at the log has found.
enum Fetched {
    Some,
    /// Nothing will follow.
    Over,
    /// Something may come.
    Later,
}

impl Stream for TaskStream {
    /// The event and its index in the log.
    type Item = (usize, Event);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.fetched.pop_front() {
                return Poll::Ready(Some(event));
            }
            match self.fetch() {
                Fetched::Some => continue,
                Fetched::Over => return Poll::Ready(None),
                Fetched::Later => {}
            }
            let (record, next) = (self.record.clone(), self.next);
            let wait = || Box::pin(async move { record.until_readable(next).await }) as BoxFuture<'static, ()>;
            ready!(self.waiting.get_or_insert_with(wait).poll_unpin(context));
            self.waiting = None;
        }
    }
}

impl std::fmt::Debug for TaskStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskStream").field("task_id", &self.record.id).field("next", &self.next).finish_non_exhaustive()
    }
}

impl TaskStream {
    pub(crate) fn new(record: Arc<TaskRecord>, from: usize, runtime: &Arc<RuntimeShared>) -> Self {
        let _presence = ReaderGuard::new(&record, runtime);
        let _reading = Reading::new(&record);
        TaskStream { record, next: from, fetched: VecDeque::new(), waiting: None, _presence, _reading }
    }

    #[cfg(feature = "service")]
    pub(crate) fn record(&self) -> &Arc<TaskRecord> {
        &self.record
    }

    /// The task.
    pub fn task_id(&self) -> &TaskId {
        &self.record.id
    }

    /// The next event with its index in the log, or `None` when nothing will follow.
    ///
    /// # Cancel safety
    /// Dropping the future loses no event.
    pub async fn next(&mut self) -> Option<(usize, Event)> {
        loop {
            if let Some(event) = self.fetched.pop_front() {
                return Some(event);
            }
            match self.fetch() {
                Fetched::Some => {}
                Fetched::Over => return None,
                Fetched::Later => self.record.until_readable(self.next).await,
            }
        }
    }

    /// Fetches what there is now. First a look, which is all that it takes for a reader that is behind; then a wait.
    fn fetch(&mut self) -> Fetched {
        if self.record.is_cut() {
            return Fetched::Over;
        }
        let fetched = &mut self.fetched;
        let (next, sealed) =
            self.record.visit(self.next, FETCHED_MAX, |index, event| fetched.push_back((index, event.to_owned())));
        self.next = self.next.max(next);
        match (self.fetched.is_empty(), sealed) {
            (false, _) => Fetched::Some,
            (true, true) => Fetched::Over,
            (true, false) => Fetched::Later,
        }
    }

    /// Reads to the end and returns the text of all tokens from here on, and the terminal event.
    ///
    /// # Cancel safety
    /// Dropping the future loses what it has read.
    pub async fn collect(mut self) -> (String, Option<Event>) {
        let mut text = String::new();
        while let Some((_, event)) = self.next().await {
            match event {
                Event::Token { text: token, .. } => text.push_str(&token),
                Event::Started(_) => {}
                terminal => return (text, Some(terminal)),
            }
        }
        (text, None)
    }

    /// Waits for events and visits those that are there, at most `most`, under the log's lock: for whoever copies them
    /// elsewhere at once. Returns whether anything may follow.
    ///
    /// # Errors
    /// The reader is cut off; nothing was visited.
    #[cfg_attr(
        not(any(feature = "service", feature = "cluster")),
        expect(dead_code, reason = "only the service and other nodes get a stream without a copy of it")
    )]
    pub(crate) async fn visit_next(
        &mut self,
        most: usize,
        visitor: impl FnMut(usize, EventRef<'_>),
    ) -> Result<bool, Cut> {
        self.record.until_readable(self.next).await;
        if self.record.is_cut() {
            return Err(Cut);
        }
        let (next, sealed) = self.record.visit(self.next, most, visitor);
        self.next = next;
        Ok(!sealed)
    }

    /// Readers of the task there are, this one among them.
    pub fn readers(&self) -> u32 {
        self.record.readership.streams.load(Relaxed)
    }

    /// Whether nothing will follow.
    pub fn is_exhausted(&self) -> bool {
        let (next, sealed) = self.record.visit(usize::MAX, 0, |_, _| ());
        self.fetched.is_empty() && sealed && self.next >= next
    }

    /// The task as it stands now.
    pub fn view(&self) -> TaskView {
        self.record.view()
    }
}
