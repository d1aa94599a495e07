//! What nodes do for each other: pools of peers as pools here, attempts of peers as tasks here, usage and limits over all nodes.

pub(in crate::cluster) mod announce;
pub(in crate::cluster) mod apart;
pub(in crate::cluster) mod demand;
pub(in crate::cluster) mod guests;
pub(in crate::cluster) mod remote_engine;
pub(in crate::cluster) mod served;
pub(in crate::cluster) mod shadows;
pub(in crate::cluster) mod warm;
