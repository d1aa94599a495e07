//! What a node takes up while the service runs: who may link with it, its certificates, and what their authority has
//! revoked. And when its certificates end, which is said in time.

use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;

use crate::cluster::transport::identity::CertificateFiles;
use crate::cluster::{Acceptor, Cookie, Identity, Roster};
use crate::config::{ClusterConfig, Config};
use crate::core::cluster::node::NodeName;
use crate::env::Env;

const DAY_S: i64 = 24 * 60 * 60;
/// How long before a certificate ends that is said: a month of work to renew it.
const WARN_BEFORE_S: i64 = 30 * DAY_S;
/// How often.
const WARN_PERIOD_S: i64 = DAY_S;

/// A node's certificates, by whose they are.
const CERTIFICATES: [&str; 2] = ["node", "authority"];

/// The rules of a running node.
pub(crate) struct NodeRules {
    own: NodeName,
    cookie: Cookie,
    files: CertificateFiles,
    acceptor: Acceptor,
    roster: Roster,
    env: Env,
    state: Mutex<State>,
}

/// What was done last. A short lock, at each look.
struct State {
    /// `allow` and `deny` as they are in force.
    lists: (Vec<String>, Vec<String>),
    /// When the end of each certificate was last said, in seconds since 1970.
    warned_at_s: [Option<i64>; CERTIFICATES.len()],
}

impl NodeRules {
    /// The rules of a node that has just started with this configuration.
    pub(crate) fn new(
        config: &ClusterConfig,
        (own, cookie, files): (NodeName, Cookie, CertificateFiles),
        (acceptor, roster): (Acceptor, Roster),
        env: Env,
    ) -> Self {
        if config.takes_any_by_dns() {
            tracing::warn!(
                "every node with a certificate of the cluster's authority may link with this one, since cluster.dns is set and \
                 cluster.allow is not: name them there, such as [\"worker-*\"], or say [\"*\"] if that is meant"
            );
        }
        let lists = (config.allow.clone(), config.deny.clone());
        let state = Mutex::new(State { lists, warned_at_s: [None; CERTIFICATES.len()] });
        NodeRules { own, cookie, files, acceptor, roster, env, state }
    }

    /// Takes up what has changed in the configuration and in the files.
    pub(crate) fn follow(&self, config: &Config, has_changed: impl FnMut(&str) -> bool) {
        let changed: Vec<bool> = self.files.all().map(has_changed).collect();
        if changed.contains(&true) {
            self.read_files();
        }
        if let Some(cluster) = &config.cluster {
            self.take_lists(cluster);
        }
        self.warn_of_ends();
    }

    /// What is in use stays when the files are wrong.
    fn read_files(&self) {
        match Identity::load(self.own.clone(), self.cookie.clone(), &self.files) {
            Ok(identity) => {
                self.acceptor.renew(identity);
                tracing::info!(target: "audit", event = "certificates_read", "new certificates of the node are in use");
            }
            Err(error) => tracing::error!(%error, "new certificates of the node are wrong; the old ones stay in use"),
        }
    }

    fn take_lists(&self, cluster: &ClusterConfig) {
        let mut state = self.state.lock();
        let (allow, deny) = &state.lists;
        if (allow, deny) == (&cluster.allow, &cluster.deny) {
            return;
        }
        match cluster.membership() {
            Ok(membership) => {
                self.roster.set(membership);
                let (allow, deny) = (&cluster.allow, &cluster.deny);
                tracing::info!(target: "audit", event = "membership_changed", ?allow, ?deny, "other nodes may link");
            }
            // Checked before it was put in force.
            Err(error) => tracing::error!(%error, "who may link with this node stays as it was"),
        }
        state.lists = (cluster.allow.clone(), cluster.deny.clone());
    }

    /// Says of each certificate that ends soon that it does, now and then.
    fn warn_of_ends(&self) {
        let (now_s, left_s) = (self.now_s(), self.left_s());
        let paths = [&self.files.certificate, &self.files.ca];
        let mut state = self.state.lock();
        for ((left_s, file), warned_at_s) in left_s.into_iter().zip(paths).zip(&mut state.warned_at_s) {
            if is_due(left_s, now_s, *warned_at_s) {
                *warned_at_s = Some(now_s);
                let days = left_s.div_euclid(DAY_S);
                tracing::warn!(
                    %file, days,
                    "a certificate of the cluster ends soon or has ended: renew it, as docs/cluster.md says; without it there are no links"
                );
            }
        }
    }

    fn now_s(&self) -> i64 {
        i64::try_from(self.env.unix_ms() / 1000).unwrap_or(i64::MAX)
    }

    /// Seconds until each certificate ends.
    fn left_s(&self) -> [i64; CERTIFICATES.len()] {
        let (ends, now_s) = (self.acceptor.ends(), self.now_s());
        [ends.own_s, ends.authority_s].map(|end_s| end_s.saturating_sub(now_s))
    }

    /// Seconds until each certificate ends, by whose it is; below zero when it has.
    pub(crate) fn expiries(&self) -> impl Iterator<Item = (&'static str, i64)> + use<> {
        CERTIFICATES.into_iter().zip(self.left_s())
    }

    /// Connections that came to nothing, by why.
    pub(crate) fn refused(&self) -> [(&'static str, u64); 5] {
        let counts = self.acceptor.counts();
        [
            ("not_listed", &counts.not_listed),
            ("denied", &counts.denied),
            ("certificate", &counts.not_vouched_for),
            ("silent", &counts.silent),
            ("other", &counts.other),
        ]
        .map(|(reason, count)| (reason, count.load(Relaxed)))
    }
}

/// Whether the end of a certificate is to be said.
fn is_due(left_s: i64, now_s: i64, warned_at_s: Option<i64>) -> bool {
    left_s < WARN_BEFORE_S && warned_at_s.is_none_or(|at_s| now_s - at_s >= WARN_PERIOD_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_said_from_a_month_before_and_once_a_day() {
        let now_s = 1_000 * DAY_S;
        assert!(!is_due(30 * DAY_S, now_s, None) && is_due(30 * DAY_S - 1, now_s, None));
        assert!(!is_due(DAY_S, now_s, Some(now_s - DAY_S + 1)) && is_due(DAY_S, now_s, Some(now_s - DAY_S)));
        assert!(is_due(-5, now_s, None), "and when it has ended");
        assert!(!is_due(300 * DAY_S, now_s, Some(now_s - 9 * DAY_S)), "renewed");
    }
}
