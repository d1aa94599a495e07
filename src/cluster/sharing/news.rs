//! What other nodes are to be told of usage and of sessions, until they are.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;

use crate::core::cluster::node::NodeName;
use crate::core::id::{ClientId, PoolId, TaskSeq};
use crate::core::task::Priority;
use crate::orchestrator::fabric::SessionLocation;

/// Guests whose gateways are remembered, the youngest: more than can be out at once.
const GATEWAYS_MAX: usize = 65_536;

/// What is to be told, and to whom.
#[derive(Default)]
pub(crate) struct ServedNews(pub(in crate::cluster) Mutex<News>);

#[derive(Default)]
pub(in crate::cluster) struct News {
    /// Where attempts came from.
    pub(in crate::cluster) gateways: BTreeMap<TaskSeq, NodeName>,
    /// For each node that is linked, by pool, client and class.
    pub(in crate::cluster) due: BTreeMap<NodeName, BTreeMap<(PoolId, ClientId, Priority), i64>>,
}

impl ServedNews {
    /// An attempt of this gateway is about to come to its queue.
    pub(crate) fn note_inbound(&self, seq: TaskSeq, gateway: NodeName) {
        let mut news = self.0.lock();
        news.gateways.insert(seq, gateway);
        if news.gateways.len() > GATEWAYS_MAX {
            news.gateways.pop_first();
        }
    }
}

/// What each linked node is to be told.
#[derive(Default)]
pub(crate) struct WarmNews(pub(in crate::cluster) Mutex<BTreeMap<NodeName, BTreeSet<SessionLocation>>>);
