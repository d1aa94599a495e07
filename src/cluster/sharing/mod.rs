//! What nodes do for each other: pools of peers as pools here, attempts of peers as tasks here, usage and limits over
//! all nodes.

pub(in crate::cluster) mod announce;
pub(in crate::cluster) mod anti_affinity;
pub(in crate::cluster) mod demand;
pub(in crate::cluster) mod inbound;
pub(in crate::cluster) mod news;
pub(in crate::cluster) mod remote_engine;
pub(in crate::cluster) mod remote_pools;
pub(in crate::cluster) mod served;
pub(in crate::cluster) mod warm;
