//! Chains of waiting tasks: doubly linked lists by index through a slab, so that any task leaves any chain in O(1).

use slab::Slab;

use crate::core::fairness::Size;
use crate::core::id::TaskSeq;
use crate::core::task::Priority;

/// Absent link.
pub(in crate::core) const NIL: u32 = u32::MAX;

/// The neighbours of a task in a chain. The head's `prev` and the tail's `next` mean nothing: whoever is at an end is
/// told by the list, so that taking a head out need not touch the next one, which is seldom in the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::core) struct Links {
    pub(in crate::core) prev: u32,
    pub(in crate::core) next: u32,
}

impl Links {
    pub(in crate::core) const NONE: Links = Links { prev: NIL, next: NIL };
}

/// The ends of a chain through the slab. Empty when both are [`NIL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::core) struct List {
    pub(in crate::core) head: u32,
    pub(in crate::core) tail: u32,
}

impl List {
    pub(in crate::core) const EMPTY: List = List { head: NIL, tail: NIL };
}

/// Chains `key` in front of `before`, at the end when that is [`NIL`].
pub(in crate::core) fn link<T>(
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
pub(in crate::core) fn unlink<T>(
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
pub(in crate::core) struct Node<T> {
    pub(in crate::core) seq: TaskSeq,
    pub(in crate::core) item: T,
    /// In its client's lane, or in its conversation's chain while it stands aside.
    pub(in crate::core) order: Links,
    /// Among its client's tasks that stand aside.
    pub(in crate::core) aside: Links,
    pub(in crate::core) client: u32,
    /// Its conversation's place in the gate, or [`NIL`].
    pub(in crate::core) session: u32,
    pub(in crate::core) size: Size,
    pub(in crate::core) class: Priority,
    pub(in crate::core) stands_aside: bool,
}

const _: () = assert!(size_of::<Node<Box<()>>>() == 64 && size_of::<[Lane; 2]>() <= 64);

/// What waits of one client in one class.
#[derive(Clone, Copy, Debug)]
pub(in crate::core) struct Lane {
    /// Tasks whose turn may come, in order.
    pub(in crate::core) ready: List,
    /// Tasks in the gate, in the order in which they stepped aside.
    pub(in crate::core) aside: List,
    /// The client may not run more now.
    pub(in crate::core) held: bool,
}

pub(in crate::core) const EMPTY: Lane = Lane { ready: List::EMPTY, aside: List::EMPTY, held: false };
