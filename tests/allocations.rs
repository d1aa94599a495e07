//! What a queue costs in memory: nothing is allocated in steady state, and a waiting task takes little beside its
//! prompt.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use orchestrator_core::Priority;
use orchestrator_core::core::fairness::{Accounts, CostWeights, Served, Size};
use orchestrator_core::core::queue::overflow::{Bounds, FullPolicy};
use orchestrator_core::core::queue::{Arrival, Enqueued, Queue};
use orchestrator_core::core::{ClientId, SessionId, TaskSeq, Tokens};

struct Lab {
    queue: Queue<u64>,
    accounts: Accounts,
    clients: Vec<ClientId>,
    sessions: Vec<SessionId>,
    next: u64,
}

impl Lab {
    fn new(bounds: Bounds, clients: usize) -> Self {
        let mut accounts = Accounts::new(CostWeights::default(), [9, 1]);
        let queue = Queue::new(bounds, &mut accounts);
        let clients = (0..clients).map(|number| ClientId::parse(&format!("client-{number}")).unwrap()).collect();
        let sessions = (0..7).map(|number| SessionId::parse(&format!("session-{number}")).unwrap()).collect();
        Lab { queue, accounts, clients, sessions, next: 0 }
    }

    fn add(&mut self) -> Enqueued<u64> {
        let number = self.next;
        self.next += 1;
        let class = if number.is_multiple_of(4) { Priority::Batch } else { Priority::Interactive };
        let client = &self.clients[number as usize % self.clients.len()];
        let session = number.is_multiple_of(3).then(|| &self.sessions[number as usize % 7]);
        let size = Size::new(Tokens(100), Tokens(64), None);
        let arrival = Arrival { seq: TaskSeq(number), class, client, weight: 1, session, size };
        self.queue.enqueue(&mut self.accounts, arrival, number)
    }

    /// One task in, one cancelled now and then, one out and settled.
    fn turn(&mut self) {
        self.add();
        if self.next.is_multiple_of(5) {
            self.queue.cancel(&mut self.accounts, TaskSeq(self.next - 50));
        }
        if let Some((seq, _)) = self.queue.dispatch(&mut self.accounts, |_| true) {
            self.queue.settle(&mut self.accounts, seq, Served::Whole { prompt: Tokens(100), output: Tokens(9) });
        }
    }
}

#[test]
fn nothing_is_allocated_in_steady_state() {
    for policy in FullPolicy::ALL {
        for clients in [1, 100, 10_000] {
            let mut lab = Lab::new(Bounds::of(20_000, policy), clients);
            (0..20_000).for_each(|_| _ = lab.add());
            (0..60_000).for_each(|_| lab.turn()); // Every table has grown to its size.
            let count = allocation_counter::measure(|| (0..20_000).for_each(|_| lab.turn())).count_total;
            println!("{} with {clients} clients: {count} allocations in 20,000 turns", policy.as_str());
            assert_eq!(count, 0, "{policy:?} with {clients} clients");
        }
    }
}

#[test]
fn a_million_waiting_tasks_take_256_bytes_each_at_most() {
    const TASKS: u64 = 1_000_000;
    for clients in [1, 10_000] {
        let mut lab = None;
        let info = allocation_counter::measure(|| {
            let mut filled = Lab::new(Bounds::of(TASKS as u32, FullPolicy::DropLru), clients);
            (0..TASKS).for_each(|_| _ = filled.add());
            lab = Some(filled);
        });
        let (kept, peak) = (info.bytes_current as u64 / TASKS, info.bytes_max / TASKS);
        println!("{clients} clients: {kept} bytes a waiting task, {peak} at the peak of growing");
        assert!(kept <= 256);
    }
}
