//! A node of a cluster: what it is called, where it is reached, whom it knows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::section;
use crate::config::{Config, ConfigError};
use crate::core::cluster::membership::{Denial, InvalidEntry, Membership, NamePattern};
use crate::core::cluster::node::NodeName;

/// This service as a node of a cluster. Only a service with the feature `cluster` takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "service", derive(schemars::JsonSchema))]
pub struct ClusterConfig {
    /// The node's name: 1 to 63 of a-z, 0-9 and '-'. Its certificate is one for this name.
    pub name: String,
    /// Address and port where other nodes reach it.
    #[serde(default = "ClusterConfig::listen_default")]
    pub listen: String,
    /// The nodes that it dials, by their names: address and port. These may link with it, and those of `allow`; each of
    /// two nodes has to have the other in one of the two.
    #[serde(default)]
    pub peers: BTreeMap<String, String>,
    /// The nodes that may link with it beside those of `peers`: names, or patterns such as `worker-*`; `*` is every
    /// node with a certificate of the authority. With `dns` and nothing here, every such node may, and a line of the
    /// log says so at the start. Takes effect while the service runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// The nodes that may not, whoever else lists them: names or patterns; or certificates, as `serial:` or `sha256:`
    /// and hexadecimal digits. Takes effect while the service runs, and cuts the links with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
    /// A host name of the domain name system, with a port, that stands for the addresses of nodes: each of them is
    /// dialled, every five seconds, and who is there its certificate says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<String>,
    /// Certificates, for both directions: files in PEM format. They are read again when they have changed.
    pub tls: NodeTlsConfig,
    /// The authority's revocation lists, a file in PEM format. It is read again when it has changed, and links with
    /// nodes whose certificates it names are cut. A list counts until another takes its place, however old it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl_file: Option<String>,
    /// The file of the cookie that all nodes of a cluster have: 32 bytes of chance or more.
    pub cookie_file: String,
    /// Where it is: what nodes with one cause of failure have in common. Shown to its peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The nodes with which this one has nothing to do, whatever they serve.
    #[serde(default)]
    pub anti_affinity: NodeAntiAffinity,
}

section! {
    /// Nodes with which no task is exchanged, in either direction.
    #[derive(Eq)]
    pub struct NodeAntiAffinity {
        /// By their names.
        pub node: Vec<String> = Vec::new(),
        /// By where they are.
        pub zone: Vec<String> = Vec::new(),
    }
}

/// A node's certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "service", derive(schemars::JsonSchema))]
pub struct NodeTlsConfig {
    /// Who vouches for the nodes of the cluster.
    pub ca_file: String,
    /// The node's certificate, and behind it those that vouch for it.
    pub certificate_file: String,
    /// Its private key.
    pub key_file: String,
}

impl ClusterConfig {
    fn listen_default() -> String {
        "127.0.0.1:7710".into()
    }

    /// Which nodes may link with this one.
    ///
    /// # Errors
    /// The first entry that is none, and where.
    pub fn membership(&self) -> Result<Membership, ConfigError> {
        let peers = self.peers.keys().map(|peer| {
            NodeName::parse(peer).map_err(|error| ConfigError::new(format!("cluster.peers.{peer}"), error.to_string()))
        });
        let peers = peers.collect::<Result<_, _>>()?;
        let allow = entries("cluster.allow", &self.allow, NamePattern::parse).collect::<Result<_, _>>()?;
        let deny = entries("cluster.deny", &self.deny, Denial::parse).collect::<Result<_, _>>()?;
        let listed = Membership::new(peers, allow, deny);
        Ok(if self.takes_any_by_dns() { listed.and_any() } else { listed })
    }

    /// Whether every node may come since nodes are found by a name and nothing is said of who may.
    pub fn takes_any_by_dns(&self) -> bool {
        self.dns.is_some() && self.allow.is_empty()
    }

    /// A node of this name, for tests: it knows nobody, and its files are nowhere.
    #[cfg(test)]
    pub(in crate::config) fn example(name: &str) -> Self {
        let file = String::new();
        ClusterConfig {
            name: name.into(),
            listen: ClusterConfig::listen_default(),
            peers: BTreeMap::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            dns: None,
            tls: NodeTlsConfig { ca_file: file.clone(), certificate_file: file.clone(), key_file: file.clone() },
            crl_file: None,
            cookie_file: file,
            zone: None,
            anti_affinity: NodeAntiAffinity::default(),
        }
    }

    /// The same without what may change while the service runs.
    pub(in crate::config) fn fixed(&self) -> Self {
        ClusterConfig { allow: Vec::new(), deny: Vec::new(), ..self.clone() }
    }
}

/// The entries of a list, each read or with what is wrong with it.
fn entries<T>(
    path: &str,
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, InvalidEntry>,
) -> impl Iterator<Item = Result<T, ConfigError>> {
    texts.iter().enumerate().map(move |(position, text)| {
        parse(text).map_err(|error| ConfigError::new(format!("{path}[{position}]"), error.to_string()))
    })
}

/// Appends what is wrong with the node.
pub(in crate::config) fn faults(config: &Config, faults: &mut Vec<ConfigError>) {
    for (position, pool) in config.pools.iter().enumerate() {
        let law = &pool.anti_affinity;
        apart_faults(config, (&law.node, &law.zone), &format!("pools[{position}].anti_affinity"), faults);
    }
    let Some(cluster) = &config.cluster else { return };
    let law = &cluster.anti_affinity;
    apart_faults(config, (&law.node, &law.zone), "cluster.anti_affinity", faults);
    let mut name = |path: String, text: &str| match NodeName::parse(text) {
        Ok(_) => {}
        Err(error) => faults.push(ConfigError::new(path, error.to_string())),
    };
    name("cluster.name".into(), &cluster.name);
    for peer in cluster.peers.keys() {
        name(format!("cluster.peers.{peer}"), peer);
    }
    faults.extend(entries("cluster.allow", &cluster.allow, NamePattern::parse).filter_map(Result::err));
    faults.extend(entries("cluster.deny", &cluster.deny, Denial::parse).filter_map(Result::err));
    if cluster.peers.contains_key(&cluster.name) {
        let text = "it is the node's own name; a node does not dial itself";
        faults.push(ConfigError::new(format!("cluster.peers.{}", cluster.name), text));
    }
    for (peer, address) in &cluster.peers {
        if !has_port(address) {
            let text = format!("{address:?} is no address and port, such as 10.0.0.2:7710");
            faults.push(ConfigError::new(format!("cluster.peers.{peer}"), text));
        }
    }
    if let Some(dns) = cluster.dns.as_ref().filter(|dns| !has_port(dns)) {
        let text = format!("{dns:?} is no host name and port, such as nodes.example.org:7710");
        faults.push(ConfigError::new("cluster.dns", text));
    }
}

fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// Names of nodes are such, and neither this node nor its zone is among those to keep away from.
fn apart_faults(config: &Config, law: (&[String], &[String]), path: &str, faults: &mut Vec<ConfigError>) {
    let own = config.cluster.as_ref().map(|cluster| (cluster.name.as_str(), cluster.zone.as_deref()));
    for (entry, node) in law.0.iter().enumerate() {
        let place = format!("{path}.node[{entry}]");
        match NodeName::parse(node) {
            Err(error) => faults.push(ConfigError::new(place, error.to_string())),
            Ok(_) if own.is_some_and(|(name, _)| name == node) => {
                faults.push(ConfigError::new(place, format!("this node is {node:?}; it cannot keep away from itself")));
            }
            Ok(_) => {}
        }
    }
    for (entry, zone) in law.1.iter().enumerate() {
        if own.is_some_and(|(_, own)| own == Some(zone.as_str())) {
            let text = format!("this node is in zone {zone:?}; it cannot keep away from itself");
            faults.push(ConfigError::new(format!("{path}.zone[{entry}]"), text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PoolConfig;

    fn found(change: impl FnOnce(&mut ClusterConfig, &mut PoolConfig)) -> String {
        let mut pool = PoolConfig::new("a", "sim", "m");
        let mut cluster = ClusterConfig { zone: Some("east".into()), ..ClusterConfig::example("one") };
        change(&mut cluster, &mut pool);
        let config = Config { pools: vec![pool], cluster: Some(cluster), ..Config::default() };
        config.faults().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn what_cannot_be_of_a_node_is_said_with_its_place() {
        assert_eq!(found(|_, _| {}), "");
        assert_eq!(found(|cluster, _| cluster.dns = Some("nodes.example.org:7710".into())), "");
        let dns = found(|cluster, _| cluster.dns = Some("nodes.example.org".into()));
        assert!(dns.starts_with("cluster.dns: ") && dns.contains("no host name and port"), "{dns}");
        let peer = found(|cluster, _| drop(cluster.peers.insert("two".into(), "10.0.0.2".into())));
        assert!(peer.starts_with("cluster.peers.two: ") && peer.contains("no address and port"), "{peer}");
        let itself = found(|_, pool| pool.anti_affinity.node = vec!["two".into(), "one".into()]);
        assert!(itself.starts_with("pools[0].anti_affinity.node[1]: this node is \"one\""), "{itself}");
        let zone = found(|_, pool| pool.anti_affinity.zone = vec!["east".into()]);
        assert!(zone.starts_with("pools[0].anti_affinity.zone[0]: this node is in zone \"east\""), "{zone}");
        let none = found(|cluster, _| cluster.anti_affinity.node = vec!["No Name".into()]);
        assert!(none.starts_with("cluster.anti_affinity.node[0]: "), "{none}");
        let allow = found(|cluster, _| cluster.allow = vec!["worker-*".into(), "No Name".into()]);
        assert!(allow.starts_with("cluster.allow[1]: ") && allow.contains("worker-*"), "{allow}");
        let deny = found(|cluster, _| cluster.deny = vec!["serial:xyz".into(), "two".into(), "sha256:1".into()]);
        assert!(deny.starts_with("cluster.deny[0]: ") && deny.contains("; cluster.deny[2]: "), "{deny}");
    }

    /// A node of this name, and what decides about who may link with it.
    fn may_come(name: &str, change: impl FnOnce(&mut ClusterConfig)) -> bool {
        let mut rules = None;
        found(|cluster, _| {
            change(cluster);
            rules = Some(cluster.membership().expect("no fault"));
        });
        rules.is_some_and(|rules| rules.admit(&NodeName::parse(name).expect("a name"), None).is_ok())
    }

    #[test]
    fn who_may_come_is_who_is_named_and_with_dns_everybody_unless_something_is_said() {
        let peer = |cluster: &mut ClusterConfig| drop(cluster.peers.insert("two".into(), "10.0.0.2:1".into()));
        let by_dns = |cluster: &mut ClusterConfig| cluster.dns = Some("nodes.example.org:7710".into());
        assert!(may_come("two", peer) && !may_come("three", peer) && !may_come("two", |_| {}));
        let allowing = |cluster: &mut ClusterConfig| cluster.allow = vec!["w-*".into()];
        assert!(may_come("w-1", allowing) && !may_come("two", allowing));
        assert!(may_come("three", by_dns));
        let both = |cluster: &mut ClusterConfig| {
            by_dns(cluster);
            allowing(cluster);
        };
        assert!(may_come("w-1", both) && !may_come("three", both), "what is said counts");
        let denying = |cluster: &mut ClusterConfig| {
            by_dns(cluster);
            peer(cluster);
            cluster.deny = vec!["two".into()];
        };
        assert!(!may_come("two", denying) && may_come("three", denying));
    }
}
