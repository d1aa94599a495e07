//! Commands that stay: `serve`, and the terminal view `top`.

pub(in crate::service) mod nodes;
pub(in crate::service) mod serve;
pub(in crate::service) mod signals;
pub(in crate::service) mod top;
pub(in crate::service) mod top_view;
