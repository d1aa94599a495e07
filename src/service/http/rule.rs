//! Who may use a route.

use crate::service::access::keys::Scope;

/// Who is served by a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Whoever submits tasks.
    Public,
    /// Whoever operates the service: on the listener of their own, when there is one.
    Operator,
    /// Everybody, on every listener, without a key: health, and pages that are the same for all.
    Open,
}

/// The scopes of which a key needs one; none where any key will do.
pub(crate) type Needs = &'static [Scope];
