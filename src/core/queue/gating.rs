//! Tasks of the queue that step aside into the session gate, and come back.

use crate::core::fairness::Accounts;
use crate::core::id::TaskSeq;
use crate::core::queue::Queue;
use crate::core::queue::linked_list::{List, NIL, link, unlink};

impl<T> Queue<T> {
    /// A head whose conversation has a task out waits in the gate from here on.
    pub(in crate::core) fn step_aside(&mut self, accounts: &mut Accounts, key: u32) {
        let (slot, class) = (self.nodes[key as usize].client, self.nodes[key as usize].class);
        let lane = &mut self.lanes[slot as usize][class.index()];
        unlink(&mut self.nodes, |node| &mut node.order, &mut lane.ready, key);
        link(&mut self.nodes, |node| &mut node.aside, &mut lane.aside, key, NIL);
        let node = &mut self.nodes[key as usize];
        node.stands_aside = true;
        let chain = self.gate.step_aside(node.session, key);
        link(&mut self.nodes, |node| &mut node.order, chain, key, NIL);
        self.update_turn(accounts, slot, class);
    }

    /// The task that this one comes before in this lane, or [`NIL`] at its end. Lanes are in the order of arrival,
    /// which is that of the numbers but for tasks that were submitted in the same moment on several threads.
    pub(in crate::core) fn place(&self, lane: List, seq: TaskSeq) -> u32 {
        if lane.tail != NIL && self.nodes[lane.tail as usize].seq < seq {
            return NIL; // The usual case of a queue that is filled again in order.
        }
        let mut before = lane.head;
        while before != NIL && self.nodes[before as usize].seq < seq {
            before = self.nodes[before as usize].order.next;
        }
        before
    }

    /// The next of a conversation goes back to its place: the front of its lane, behind those alone that came back too.
    pub(in crate::core) fn let_go(&mut self, accounts: &mut Accounts, key: u32) {
        if key == NIL {
            return;
        }
        self.leave_gate(key);
        let node = &self.nodes[key as usize];
        let before = self.place(self.lane(node.client, node.class).ready, node.seq);
        self.gate.let_go(node.session, key);
        self.link_ready(accounts, key, before);
    }

    pub(in crate::core) fn leave_gate(&mut self, key: u32) {
        let node = &mut self.nodes[key as usize];
        node.stands_aside = false;
        let (slot, class, session) = (node.client, node.class, node.session);
        unlink(&mut self.nodes, |node| &mut node.order, self.gate.chain(session), key);
        let lane = &mut self.lanes[slot as usize][class.index()];
        unlink(&mut self.nodes, |node| &mut node.aside, &mut lane.aside, key);
    }
}
