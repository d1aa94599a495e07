//! What a client may do, and what it uses of that now.

pub(crate) mod claim;
pub(crate) mod clients;
