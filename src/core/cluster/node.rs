//! Nodes: what they are called, which of their lives it is, and whom a node takes as a peer.
//!
//! Before anything else two nodes tell each other who they are, over a connection that is encrypted and whose
//! certificate is known. What follows from that is decided here, so that each refusal names what was found and what
//! would be right.
//!
//! Spec: ORCH-3044.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::core::cluster::link::Liveness;
use crate::core::cluster::membership::{CertificateId, Membership};

/// The protocol between nodes that this build speaks, oldest and newest. A node is refused that speaks none of them.
pub const PROTOCOLS: (u16, u16) = (1, 1);

/// Longest name of a node: that of a label in DNS.
pub const NODE_NAME_BYTES_MAX: usize = 63;

/// A node's name, which its certificate has to have too: a label of DNS in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(Arc<str>);

/// Why a text is no node's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of a node: 1 to {NODE_NAME_BYTES_MAX} of a-z, 0-9 and '-', and no '-' at either end")]
pub struct InvalidNodeName(String);

impl NodeName {
    /// Checks `text` and makes it a name.
    ///
    /// # Errors
    /// [`InvalidNodeName`] when it is no label of DNS in lower case.
    pub fn parse(text: &str) -> Result<Self, InvalidNodeName> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let good = (1..=NODE_NAME_BYTES_MAX).contains(&text.len()) && text.chars().all(allowed);
        if !good || text.starts_with('-') || text.ends_with('-') {
            return Err(InvalidNodeName(text.chars().take(NODE_NAME_BYTES_MAX + 1).collect()));
        }
        Ok(NodeName(text.into()))
    }

    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NodeName {
    type Error = InvalidNodeName;

    fn try_from(text: String) -> Result<Self, InvalidNodeName> {
        NodeName::parse(&text)
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> String {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One life of a node, from a start to its end: by chance, and new at every start. What an earlier life was lent is
/// lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub u64);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a node says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest and newest protocol that it speaks.
    pub protocols: (u16, u16),
    /// What it is called.
    pub name: NodeName,
    /// Which life of it this is.
    pub boot_id: BootId,
}

/// What is known of a peer beside its own words.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Its certificate is one for the name that it says.
    pub is_certified: bool,
    /// It has shown that it knows the cookie.
    pub knows_cookie: bool,
    /// The name that was dialled; `None` when it came by itself.
    pub wanted: Option<&'a NodeName>,
    /// An address was dialled to find out who is there.
    pub is_search: bool,
    /// The link that there is with a node of that name.
    pub linked: Option<(BootId, Liveness)>,
    /// What speaks against its certificate beside the name, such as that it has been revoked; `None` is nothing.
    pub objection: Option<&'a str>,
    /// The certificate, where there is one.
    pub certificate: Option<&'a CertificateId>,
    /// Who may come.
    pub membership: &'a Membership,
}

/// A peer that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The protocol that both speak.
    pub protocol: u16,
    /// The link that there is with it is over first.
    pub replaces: bool,
}

/// Why a peer is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefusal {
    /// They have no protocol in common.
    #[error("node {peer} speaks protocols {} to {}, this node {} to {}", .theirs.0, .theirs.1, .ours.0, .ours.1)]
    Protocol {
        /// Who it is.
        peer: NodeName,
        /// What it speaks.
        theirs: (u16, u16),
        /// What we speak.
        ours: (u16, u16),
    },
    /// Its certificate is another's.
    #[error("it says that it is node {0}, and its certificate is not for that name")]
    Certificate(NodeName),
    /// Its certificate is right for its name, and does not count any more.
    #[error("the certificate of node {peer} does not count: {why}")]
    NotVouchedFor {
        /// Who it is.
        peer: NodeName,
        /// What speaks against it.
        why: String,
    },
    /// It is none of the nodes that may come.
    #[error(
        "node {0} is not listed: add it to cluster.peers or cluster.allow of the node that says so, if it may link with it"
    )]
    NotListed(NodeName),
    /// It has been put out.
    #[error("node {peer} is denied by cluster.deny ({entry}) of the node that says so")]
    Denied {
        /// Who it is.
        peer: NodeName,
        /// The entry that names it.
        entry: String,
    },
    /// It does not know the cookie.
    #[error("node {0} does not have this cluster's cookie")]
    Cookie(NodeName),
    /// Somebody else was dialled.
    #[error("node {found} answered where node {wanted} was dialled")]
    OtherNode {
        /// Who was dialled.
        wanted: NodeName,
        /// Who answered.
        found: NodeName,
    },
    /// It is this node itself, or has its name.
    #[error("node {0} is this node's own name")]
    OwnName(NodeName),
    /// There is a link already that is well.
    #[error("there is a link with node {0} already")]
    Linked(NodeName),
    /// It was found, and of two that find each other it is the one to dial.
    #[error("node {0} was found; it dials first")]
    ItsTurn(NodeName),
}

impl PeerRefusal {
    /// Who was found, of one that is refused for nothing that is wrong with it.
    pub fn found(&self) -> Option<&NodeName> {
        match self {
            PeerRefusal::OwnName(peer) | PeerRefusal::Linked(peer) | PeerRefusal::ItsTurn(peer) => Some(peer),
            PeerRefusal::Protocol { .. }
            | PeerRefusal::Certificate(_)
            | PeerRefusal::NotVouchedFor { .. }
            | PeerRefusal::NotListed(_)
            | PeerRefusal::Denied { .. }
            | PeerRefusal::Cookie(_)
            | PeerRefusal::OtherNode { .. } => None,
        }
    }
}

/// Of two nodes that know each other's address, this one dials first; else both would, and each would end what the
/// other has begun.
pub fn dials_first(ours: &NodeName, theirs: &NodeName) -> bool {
    theirs > ours
}

/// Whether this node takes a peer. What proves who it is comes first, so that nobody learns more by lying.
///
/// # Errors
/// [`PeerRefusal`]; the connection is closed, and a link that there is stays as it is.
pub fn judge(ours: &Hello, theirs: &Hello, evidence: Evidence<'_>) -> Result<Taken, PeerRefusal> {
    let peer = || theirs.name.clone();
    if !evidence.is_certified {
        return Err(PeerRefusal::Certificate(peer()));
    }
    if let Some(why) = evidence.objection {
        return Err(PeerRefusal::NotVouchedFor { peer: peer(), why: why.to_owned() });
    }
    let protocol = ours.protocols.1.min(theirs.protocols.1);
    if protocol < ours.protocols.0.max(theirs.protocols.0) {
        return Err(PeerRefusal::Protocol { peer: peer(), theirs: theirs.protocols, ours: ours.protocols });
    }
    if !evidence.knows_cookie {
        return Err(PeerRefusal::Cookie(peer()));
    }
    if theirs.name == ours.name {
        return Err(PeerRefusal::OwnName(peer()));
    }
    if let Some(wanted) = evidence.wanted
        && *wanted != theirs.name
    {
        return Err(PeerRefusal::OtherNode { wanted: wanted.clone(), found: peer() });
    }
    evidence.membership.admit(&theirs.name, evidence.certificate)?;
    match evidence.linked {
        Some((boot_id, Liveness::Alive)) if boot_id == theirs.boot_id => Err(PeerRefusal::Linked(peer())),
        _ if evidence.is_search && !dials_first(&ours.name, &theirs.name) => Err(PeerRefusal::ItsTurn(peer())),
        linked => Ok(Taken { protocol, replaces: linked.is_some() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(name: &str, boot_id: u64, protocols: (u16, u16)) -> Hello {
        Hello { protocols, name: NodeName::parse(name).expect("a name"), boot_id: BootId(boot_id) }
    }

    static ANYBODY: Membership = Membership::open();

    const GOOD: Evidence<'static> = Evidence {
        is_certified: true,
        knows_cookie: true,
        wanted: None,
        is_search: false,
        linked: None,
        objection: None,
        certificate: None,
        membership: &ANYBODY,
    };

    fn says(theirs: &Hello, evidence: Evidence<'_>) -> String {
        judge(&hello("a", 1, (2, 3)), theirs, evidence).expect_err("refused").to_string()
    }

    #[test]
    fn a_name_is_a_label_of_dns() {
        for good in ["a", "node-7", "0", &"x".repeat(63)] {
            assert_eq!(NodeName::parse(good).expect("a name").as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a b", "é", &"x".repeat(64)] {
            assert!(NodeName::parse(bad).is_err(), "{bad}");
        }
        let long = NodeName::parse(&"y".repeat(1_000_000)).expect_err("too long").to_string();
        assert!(long.len() < 200, "what is said of it is short");
    }

    #[test]
    fn the_newest_protocol_that_both_speak_is_spoken() {
        let spoken = |theirs| judge(&hello("a", 1, (2, 3)), &hello("b", 1, theirs), GOOD).map(|taken| taken.protocol);
        assert_eq!((spoken((1, 2)), spoken((2, 9)), spoken((3, 4))), (Ok(2), Ok(3), Ok(3)));
        assert!(says(&hello("b", 1, (4, 5)), GOOD).contains("node b speaks protocols 4 to 5, this node 2 to 3"));
        assert!(says(&hello("b", 1, (1, 1)), GOOD).contains("1 to 1"));
        assert!(says(&hello("b", 1, (9, 0)), GOOD).contains("9 to 0"), "a range that is none");
    }

    #[test]
    fn each_lie_is_refused_by_name() {
        let b = hello("b", 5, (3, 3));
        let c = NodeName::parse("c").expect("a name");
        assert!(says(&b, Evidence { is_certified: false, ..GOOD }).contains("certificate is not for that name"));
        assert!(says(&b, Evidence { knows_cookie: false, ..GOOD }).contains("cookie"));
        assert!(says(&b, Evidence { wanted: Some(&c), ..GOOD }).contains("node b answered where node c was dialled"));
        assert!(says(&hello("a", 5, (3, 3)), GOOD).contains("own name"));
    }

    #[test]
    fn who_proves_itself_and_is_not_listed_or_not_vouched_for_is_refused() {
        let b = hello("b", 5, (3, 3));
        let nobody = Membership::new(std::collections::BTreeSet::new(), Vec::new(), Vec::new());
        let unlisted = Evidence { membership: &nobody, ..GOOD };
        assert!(says(&b, unlisted).contains("node b is not listed"));
        assert!(
            says(&b, Evidence { knows_cookie: false, ..unlisted }).contains("cookie"),
            "whoever lies learns no more"
        );
        let search = Evidence { is_search: true, ..unlisted };
        let refusal = judge(&hello("z", 1, (3, 3)), &b, search).expect_err("not listed");
        assert_eq!(refusal.found(), None, "it is not waited for either");
        let revoked = Evidence { objection: Some("it has been revoked"), ..GOOD };
        assert!(says(&b, revoked).contains("the certificate of node b does not count: it has been revoked"));
    }

    #[test]
    fn of_two_that_find_each_other_one_dials() {
        let search = Evidence { is_search: true, ..GOOD };
        let (a, b) = (hello("a", 1, (3, 3)), hello("b", 5, (3, 3)));
        assert!(judge(&a, &b, search).is_ok());
        let refusal = judge(&b, &a, search).expect_err("it is the one to dial");
        assert_eq!(refusal.found(), Some(&a.name));
        assert!(judge(&b, &a, GOOD).is_ok(), "when it comes, it is taken");
    }

    #[test]
    fn a_link_that_is_well_stays_and_one_that_is_not_or_is_of_an_earlier_life_is_replaced() {
        let taken = |linked| judge(&hello("a", 1, (3, 3)), &hello("b", 5, (3, 3)), Evidence { linked, ..GOOD });
        assert_eq!(taken(None), Ok(Taken { protocol: 3, replaces: false }));
        assert!(matches!(taken(Some((BootId(5), Liveness::Alive))), Err(PeerRefusal::Linked(_))));
        for linked in [(BootId(5), Liveness::Suspect), (BootId(5), Liveness::Dead), (BootId(4), Liveness::Alive)] {
            assert_eq!(taken(Some(linked)), Ok(Taken { protocol: 3, replaces: true }), "{linked:?}");
        }
    }
}
