//! A node of a cluster: what it is called, where it is reached, whom it knows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{Config, ConfigError};
use crate::core::node::NodeName;

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
    /// The nodes that it dials, by their names: address and port. Of two nodes it is enough that one knows the other's.
    #[serde(default)]
    pub peers: BTreeMap<String, String>,
    /// Certificates, for both directions: files in PEM format.
    pub tls: NodeTlsConfig,
    /// The file of the cookie that all nodes of a cluster have: 32 bytes of chance or more.
    pub cookie_file: String,
    /// Where it is: what nodes with one cause of failure have in common. Shown to its peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
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
}

/// Appends what is wrong with the node.
pub(super) fn faults(config: &Config, faults: &mut Vec<ConfigError>) {
    let Some(cluster) = &config.cluster else { return };
    let mut name = |path: String, text: &str| match NodeName::parse(text) {
        Ok(_) => {}
        Err(error) => faults.push(ConfigError::new(path, error.to_string())),
    };
    name("cluster.name".into(), &cluster.name);
    for peer in cluster.peers.keys() {
        name(format!("cluster.peers.{peer}"), peer);
    }
    if cluster.peers.contains_key(&cluster.name) {
        let text = "it is the node's own name; a node does not dial itself";
        faults.push(ConfigError::new(format!("cluster.peers.{}", cluster.name), text));
    }
    for (peer, address) in &cluster.peers {
        let port =
            address.rsplit_once(':').and_then(|(host, port)| port.parse::<u16>().ok().filter(|_| !host.is_empty()));
        if port.is_none() {
            let text = format!("{address:?} is no address and port, such as 10.0.0.2:7710");
            faults.push(ConfigError::new(format!("cluster.peers.{peer}"), text));
        }
    }
}
