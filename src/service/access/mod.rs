//! Who may do what: every request passes here, before anything of it is looked at but its head (ORCH-3035).
//!
//! With a file of keys, a request needs one key in one `Authorization: Bearer` header; without the file everybody may
//! do everything, and says who it is in `X-Client-Id`. A wrong key is 401 whatever is wrong with it, a key that does
//! not reach so far is 403. Which scope a route needs stands with the route ([`routes`](crate::service::http::routes)).

pub mod keys;
pub(in crate::service) mod keys_lock;
pub(in crate::service) mod throttle;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use parking_lot::RwLock;
use tokio::sync::Notify;

use crate::config::AccessConfig;
use crate::core::id::{ClientId, PoolId};
use crate::core::task::error::ErrorCode;
use crate::core::units::millis_ceil;
use crate::env::Env;
use crate::service::access::keys::{Denied, KeyFile, KeyTable, KnownKey, Scope};
use crate::service::access::throttle::Throttle;
use crate::service::http::error::ApiError;
use crate::service::telemetry::named_counts::NamedCounts;

/// The header that names the client while authentication is off.
const CLIENT_HEADER: &str = "x-client-id";

/// Why a request was not let in, for counting.
const REASONS: [&str; 6] = ["missing", "invalid", "expired", "revoked", "scope", "throttled"];

/// Seconds since 1970. Keys end by the wall clock.
#[expect(clippy::disallowed_methods, reason = "keys end by the wall clock, which decides nothing else")]
pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    pub(crate) client_id: ClientId,
    /// `None` while authentication is off.
    right: Option<Right>,
}

/// What a key allows. It is asked for again while an answer goes on.
#[derive(Clone)]
struct Right {
    access: Arc<Access>,
    /// As it was when the request came.
    key: Arc<KnownKey>,
}

impl std::fmt::Debug for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Right").field("key", &self.key.key.id).finish_non_exhaustive()
    }
}

/// How often a key with an end is looked at while an answer goes on.
const EXPIRY_PERIOD: Duration = Duration::from_secs(1);

impl Principal {
    fn key(&self) -> Option<&KnownKey> {
        self.right.as_ref().map(|right| &*right.key)
    }

    /// The key's id; `None` while authentication is off.
    pub(crate) fn key_id(&self) -> Option<&str> {
        self.key().map(|known| known.key.id.as_str())
    }

    /// The only pools that the key may use.
    pub(crate) fn pools(&self) -> Option<Arc<[PoolId]>> {
        self.key()?.pools.clone()
    }

    /// Whether it may do what needs this scope.
    pub(crate) fn has(&self, scope: Scope) -> bool {
        let has = |known: &KnownKey| known.key.scopes.iter().any(|own| [Scope::Admin, scope].contains(own));
        self.key().is_none_or(has)
    }

    /// Whether it may see the content of this client's tasks, and end them.
    pub(crate) fn owns(&self, client: &ClientId) -> bool {
        self.client_id == *client || self.has(Scope::Admin)
    }

    /// Whether it may see how this client's tasks stand.
    pub(crate) fn sees(&self, client: &ClientId) -> bool {
        self.owns(client) || self.has(Scope::Read)
    }

    /// Why the key opens nothing any more, if so.
    pub(crate) fn void(&self) -> Option<&'static str> {
        self.right.as_ref()?.void()
    }

    /// Returns why the key opens nothing any more, when that is so; never while authentication is off.
    ///
    /// # Cancel safety
    /// Dropping the future is harmless.
    pub(crate) async fn until_void(&self) -> &'static str {
        let Some(right) = &self.right else { return std::future::pending().await };
        loop {
            let changed = right.access.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable(); // Before the look, so that no change is missed.
            if let Some(why) = right.void() {
                return why;
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep(EXPIRY_PERIOD), if right.key.key.expires_at.is_some() => {}
            }
        }
    }
}

impl Right {
    fn void(&self) -> Option<&'static str> {
        let keys = self.access.keys.read().clone();
        match keys.standing(&self.key.key.id, unix_s()) {
            Err(Denied::Expired) => Some("the key has expired"),
            Err(Denied::Unknown | Denied::Revoked) => Some("the key has been revoked"),
            // An answer was begun for what the key allowed then.
            Ok(known) => (!known.allows_the_same(&self.key)).then_some("the key does not allow the same any more"),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Principal {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // The guard in front of every route has put it there.
        let missing = || ApiError::with_status(StatusCode::UNAUTHORIZED, ErrorCode::InvalidParams, "nobody asks");
        parts.extensions.get::<Principal>().cloned().ok_or_else(missing)
    }
}

/// The address that a connection comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// The keys, and what becomes of requests without one.
pub(crate) struct Access {
    env: Env,
    file: Option<PathBuf>,
    /// Read once for each request, written when the file has changed.
    keys: RwLock<Arc<KeyTable>>,
    /// Tells answers that go on that the keys are others.
    changed: Notify,
    /// Wrong keys.
    throttle: Throttle,
    /// Requests that were not let in.
    pub(crate) denied: NamedCounts<{ REASONS.len() }>,
}

impl Access {
    /// Access by this configuration.
    ///
    /// # Errors
    /// The file of keys cannot be read, or is not one.
    pub(crate) fn new(config: &AccessConfig, env: Env) -> Result<Self, String> {
        let file = config.keys_file.as_ref().map(PathBuf::from);
        let keys = file.as_deref().map(KeyFile::load).transpose()?.unwrap_or_default();
        let throttle = Throttle::new(config.failures_per_s, config.failures_burst);
        let keys = RwLock::new(Arc::new(KeyTable::new(&keys)));
        Ok(Access { env, file, keys, changed: Notify::new(), throttle, denied: NamedCounts::new(REASONS) })
    }

    /// Whether a key is needed.
    pub(crate) fn is_on(&self) -> bool {
        self.file.is_some()
    }

    /// The file of keys.
    pub(crate) fn file(&self) -> Option<&PathBuf> {
        self.file.as_ref()
    }

    /// Takes the keys of a file that has changed.
    pub(crate) fn set(&self, file: &KeyFile) {
        *self.keys.write() = Arc::new(KeyTable::new(file));
        self.changed.notify_waiters();
    }

    /// Who asks, by the head of a request.
    fn find(self: &Arc<Self>, headers: &HeaderMap, peer: IpAddr) -> Result<Principal, ApiError> {
        if !self.is_on() {
            return open_principal(headers);
        }
        let found = bearer(headers).and_then(|text| {
            let keys = self.keys.read().clone();
            let key = keys.find(text, unix_s()).map_err(Denied::as_str)?.clone();
            Ok(Principal { client_id: key.client.clone(), right: Some(Right { access: self.clone(), key }) })
        });
        found.map_err(|reason| self.deny(reason, peer))
    }

    /// Notes a request without a key that opens. What is wrong with it is for us to know.
    fn deny(&self, reason: &'static str, peer: IpAddr) -> ApiError {
        self.denied.count(reason);
        if reason != "missing"
            && let Err(wait) = self.throttle.take(peer, self.env.now())
        {
            self.denied.count("throttled");
            let text = "too many wrong keys from this address";
            return ApiError::with_status(StatusCode::TOO_MANY_REQUESTS, ErrorCode::AdmissionReject, text)
                .retry_after_ms(millis_ceil(wait));
        }
        if reason != "missing" {
            // Behind the throttle, so that guessing does not fill the log.
            tracing::warn!(target: "audit", event = "key_refused", reason, %peer, "a key was refused");
        }
        no_key()
    }

    /// Who sends a request.
    ///
    /// # Errors
    /// The refusal of whoever has no key that opens.
    pub(crate) fn principal(self: &Arc<Self>, request: &Request) -> Result<Principal, ApiError> {
        self.find(request.headers(), peer_of(request))
    }
}

/// The refusal of whoever has no key that opens.
pub(crate) fn no_key() -> ApiError {
    let text = "a valid API key is needed: send one header 'Authorization: Bearer oc_…'";
    ApiError::with_status(StatusCode::UNAUTHORIZED, ErrorCode::InvalidParams, text)
}

/// The answer to whoever has no key that opens.
pub(crate) fn turned_away(error: ApiError) -> Response {
    let mut response = error.into_response();
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// The address that a request comes from.
pub(crate) fn peer_of(request: &Request) -> IpAddr {
    request.extensions().get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0)
}

/// Who asks while authentication is off.
pub(crate) fn open_principal(headers: &HeaderMap) -> Result<Principal, ApiError> {
    let client_id = match headers.get(CLIENT_HEADER) {
        None => ClientId::anonymous(),
        Some(value) => {
            let client = ClientId::parse(value.to_str().unwrap_or("\u{fffd}"));
            client.map_err(|error| ApiError::invalid(format!("header 'X-Client-Id': {error}")))?
        }
    };
    Ok(Principal { client_id, right: None })
}

/// The key of a request: exactly one, in its place.
fn bearer(headers: &HeaderMap) -> Result<&str, &'static str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or("missing")?;
    if values.next().is_some() {
        return Err("invalid");
    }
    let (scheme, key) = value.to_str().map_err(|_| "invalid")?.split_once(' ').ok_or("invalid")?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(key.trim_start()) } else { Err("invalid") }
}
