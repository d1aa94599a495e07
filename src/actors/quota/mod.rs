//! What a client may do, and what it uses of that now.

pub(crate) mod clients;
pub(crate) mod reservation;
