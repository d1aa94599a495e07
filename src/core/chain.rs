//! Chains of waiting tasks: doubly linked lists by index through a slab, so that any task leaves any chain in O(1).

use slab::Slab;

use crate::core::fairness::Size;
use crate::core::id::TaskSeq;
use crate::core::task::Priority;

/// Absent link.
pub(super) const NIL: u32 = u32::MAX;

/// The neighbours of a task in a chain. The head's `prev` and the tail's `next` mean nothing: whoever is at an end is told by
/// the list, so that taking a head out need not touch the next one, which is seldom in the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Links {
    pub(super) prev: u32,
    pub(super) next: u32,
}

impl Links {
    pub(super) const NONE: Links = Links { prev: NIL, next: NIL };
}

/// The ends of a chain through the slab. Empty when both are [`NIL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct List {
    pub(super) head: u32,
    pub(super) tail: u32,
}

impl List {
    pub(super) const EMPTY: List = List { head: NIL, tail: NIL };
}

/// Chains `key` in front of `before`, at the end when that is [`NIL`].
pub(super) fn link<T>(
    nodes: &mut Slab<Node<T>>,
    links: impl Fn(&mut Node<T>) -> &mut Links,
    list: &mut List,
    key: u32,
    before: u32,
) {
    let prev = match before {
        NIL => list.tail,
        before if before == list.head => NIL,
        before => links(&mut nodes[before as usize]).prev,
    };
    *links(&mut nodes[key as usize]) = Links { prev, next: before };
    match prev {
        NIL => list.head = key,
        prev => links(&mut nodes[prev as usize]).next = key,
    }
    match before {
        NIL => list.tail = key,
        next => links(&mut nodes[next as usize]).prev = key,
    }
}

/// Takes `key` out of its chain.
pub(super) fn unlink<T>(
    nodes: &mut Slab<Node<T>>,
    links: impl Fn(&mut Node<T>) -> &mut Links,
    list: &mut List,
    key: u32,
) {
    let Links { prev, next } = *links(&mut nodes[key as usize]);
    match (list.head == key, list.tail == key) {
        (true, true) => *list = List::EMPTY,
        (true, false) => list.head = next,
        (false, true) => list.tail = prev,
        (false, false) => {
            links(&mut nodes[prev as usize]).next = next;
            links(&mut nodes[next as usize]).prev = prev;
        }
    }
}

/// One waiting task, in one cache line: far more of them wait than the caches hold.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Node<T> {
    pub(super) seq: TaskSeq,
    pub(super) item: T,
    /// In its client's lane, or in its conversation's chain while it stands aside.
    pub(super) order: Links,
    /// Among its client's tasks that stand aside.
    pub(super) aside: Links,
    pub(super) client: u32,
    /// Its conversation's place in the gate, or [`NIL`].
    pub(super) session: u32,
    pub(super) size: Size,
    pub(super) class: Priority,
    pub(super) stands_aside: bool,
}

const _: () = assert!(size_of::<Node<Box<()>>>() == 64 && size_of::<[Lane; 2]>() <= 64);

/// What waits of one client in one class.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    /// Tasks whose turn may come, in order.
    pub(super) ready: List,
    /// Tasks in the gate, in the order in which they stepped aside.
    pub(super) aside: List,
    /// The client may not run more now.
    pub(super) held: bool,
}

pub(super) const EMPTY: Lane = Lane { ready: List::EMPTY, aside: List::EMPTY, held: false };
