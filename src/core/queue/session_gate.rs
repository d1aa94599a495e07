//! The session gate: of one conversation one task is out at a time, and the next waits here (FAIR-1, F8).
//!
//! A conversation is *closed* while a task of it is dispatched. A head of a lane that finds its conversation closed
//! steps aside into the conversation's chain; when the one that is out has ended, the first of the chain goes back to
//! the front of its lane. Tasks are kept by the queue; the gate knows their keys.

use std::collections::HashMap;

use slab::Slab;

use crate::core::id::SessionId;
use crate::core::queue::linked_list::{List, NIL};

#[derive(Debug)]
struct Session {
    client: u32,
    id: SessionId,
    /// A task of it is out.
    closed: bool,
    /// Tasks that stand aside, in order.
    chain: List,
    /// The task that was let go last and is still in its lane, or [`NIL`]. Invariant: with a chain, there is one or the
    /// conversation is closed; else nobody would ever let the chain go.
    let_go: u32,
    /// Tasks that wait, in their lane or aside.
    waiting: u32,
}

/// The conversations that have a task waiting or out.
#[derive(Debug, Default)]
pub(in crate::core) struct Gate {
    sessions: Slab<Session>,
    by_id: HashMap<(u32, SessionId), u32>,
}

impl Gate {
    /// Each conversation: its place, how many of its tasks wait, and whether one is out.
    pub(in crate::core) fn conversations(&self) -> impl Iterator<Item = (u32, u32, bool)> {
        self.sessions.iter().map(|(key, session)| (key as u32, session.waiting, session.closed))
    }

    fn find(&mut self, client: u32, id: &SessionId) -> u32 {
        let place = (client, id.clone());
        if let Some(known) = self.by_id.get(&place) {
            return *known;
        }
        let (id, chain) = (id.clone(), List::EMPTY);
        let session = Session { client, id, closed: false, chain, let_go: NIL, waiting: 0 };
        let key = self.sessions.insert(session) as u32;
        self.by_id.insert(place, key);
        key
    }

    /// A task of this conversation comes to wait. Returns the conversation's place.
    pub(in crate::core) fn enter(&mut self, client: u32, id: &SessionId) -> u32 {
        let session = self.find(client, id);
        self.sessions[session as usize].waiting += 1;
        session
    }

    /// A task of this conversation is out, as a queue that is built anew learns.
    pub(in crate::core) fn close(&mut self, client: u32, id: &SessionId) {
        let session = self.find(client, id);
        self.sessions[session as usize].closed = true;
    }

    /// Whether this head of a lane has to step aside: a task of its conversation is out, or others were here before it.
    pub(in crate::core) fn is_closed_to(&self, session: u32, task: u32) -> bool {
        let session = &self.sessions[session as usize];
        session.closed || (session.chain.head != NIL && session.let_go != task)
    }

    /// Whether those who stand aside here will be let go: a task of the conversation is out, or before them in its
    /// lane.
    pub(in crate::core) fn will_let_go(&self, session: u32) -> bool {
        let session = &self.sessions[session as usize];
        session.closed || session.let_go != NIL
    }

    /// The chain of those that stand aside.
    pub(in crate::core) fn chain(&mut self, session: u32) -> &mut List {
        &mut self.sessions[session as usize].chain
    }

    /// The same, to look at.
    pub(in crate::core) fn chain_of(&self, session: u32) -> List {
        self.sessions[session as usize].chain
    }

    /// A task steps aside, to the end of this chain.
    pub(in crate::core) fn step_aside(&mut self, session: u32, task: u32) -> &mut List {
        let session = &mut self.sessions[session as usize];
        if session.let_go == task {
            session.let_go = NIL;
        }
        &mut session.chain
    }

    /// A task goes back to its lane.
    pub(in crate::core) fn let_go(&mut self, session: u32, task: u32) {
        self.sessions[session as usize].let_go = task;
    }

    /// A waiting task is dispatched: the conversation is closed. Returns its id.
    pub(in crate::core) fn depart(&mut self, session: u32, task: u32) -> SessionId {
        let session = &mut self.sessions[session as usize];
        session.waiting -= 1;
        session.closed = true;
        if session.let_go == task {
            session.let_go = NIL;
        }
        session.id.clone()
    }

    /// The task that was out is back in its lane, before all others of its conversation.
    pub(in crate::core) fn came_back(&mut self, session: u32, task: u32) {
        let session = &mut self.sessions[session as usize];
        (session.closed, session.let_go) = (false, task);
    }

    /// The task that was out has ended. Returns who is to be let go, or [`NIL`].
    pub(in crate::core) fn open(&mut self, client: u32, id: &SessionId) -> u32 {
        let Some(key) = self.by_id.get(&(client, id.clone())).copied() else { return NIL };
        self.sessions[key as usize].closed = false;
        self.next_or_forget(key)
    }

    /// A waiting task goes for good; it is out of its chain already. Returns who is to be let go, or [`NIL`].
    pub(in crate::core) fn leave(&mut self, key: u32, task: u32) -> u32 {
        let session = &mut self.sessions[key as usize];
        session.waiting -= 1;
        if session.let_go == task {
            session.let_go = NIL;
        }
        self.next_or_forget(key)
    }

    /// Checks what must always hold, by a full scan. For tests and debug builds.
    ///
    /// # Panics
    /// When something does not hold.
    pub(in crate::core) fn invariants(&self) {
        assert_eq!(self.sessions.len(), self.by_id.len(), "each conversation is found by its name");
        for (key, session) in &self.sessions {
            assert_eq!(self.by_id.get(&(session.client, session.id.clone())), Some(&(key as u32)));
            assert!(session.closed || session.chain.head == NIL || session.let_go != NIL, "somebody lets the chain go");
            assert_eq!(session.chain.head == NIL, session.chain.tail == NIL, "a chain has two ends or none");
            assert!(
                session.waiting > 0 || (session.let_go == NIL && session.chain.head == NIL),
                "who waits is counted"
            );
        }
    }

    fn next_or_forget(&mut self, key: u32) -> u32 {
        let session = &self.sessions[key as usize];
        if session.closed || session.let_go != NIL {
            return NIL;
        }
        let next = session.chain.head;
        if session.waiting == 0 {
            let session = self.sessions.remove(key as usize);
            self.by_id.remove(&(session.client, session.id));
        }
        next
    }
}
