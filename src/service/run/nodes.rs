//! The service as a node of a cluster: what its configuration says, and what of the cluster operators see. Without the
//! feature `cluster` there is nothing to it but a refusal.

use serde_json::Value;

use crate::config::{ClusterConfig, Config};
use crate::orchestrator::Orchestrator;

/// The node, if the service is one. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Nodes {
    #[cfg(feature = "cluster")]
    pub(crate) node: Option<crate::cluster::Node>,
    #[cfg(feature = "cluster")]
    pub(crate) rules: Option<std::sync::Arc<crate::service::config::node_rules::NodeRules>>,
}

impl Nodes {
    /// Makes the service a node, if its configuration says so.
    ///
    /// # Errors
    /// One line: a file is wrong, or the address is taken; or this build cannot be one.
    #[cfg(not(feature = "cluster"))]
    pub(crate) async fn start(config: Option<&ClusterConfig>, _: &Orchestrator) -> Result<Self, String> {
        match config {
            None => Ok(Nodes::default()),
            Some(_) => Err("cluster: this build was made without the feature 'cluster'".into()),
        }
    }

    /// Makes the service a node, if its configuration says so.
    ///
    /// # Errors
    /// One line: a file is wrong, or the address is taken.
    #[cfg(feature = "cluster")]
    pub(crate) async fn start(config: Option<&ClusterConfig>, orchestrator: &Orchestrator) -> Result<Self, String> {
        use crate::cluster::transport::identity::CertificateFiles;
        use crate::cluster::{Acceptor, Cookie, Identity, Node, NodeArgs, NodePolicy, Roster, TlsNetwork};
        use crate::core::cluster::node::{BootId, NodeName};
        use crate::service::config::node_rules::NodeRules;

        let Some(config) = config else { return Ok(Nodes::default()) };
        let name = |text: &str| NodeName::parse(text).map_err(|error| error.to_string());
        let cookie = Cookie::from_file(&config.cookie_file)?;
        let files = CertificateFiles {
            ca: config.tls.ca_file.clone(),
            certificate: config.tls.certificate_file.clone(),
            key: config.tls.key_file.clone(),
            crl: config.crl_file.clone(),
        };
        let roster = Roster::new(config.membership().map_err(|error| error.to_string())?);
        let own = name(&config.name)?;
        let identity = Identity::load(own.clone(), cookie.clone(), &files)?;
        let listener = tokio::net::TcpListener::bind(&config.listen)
            .await
            .map_err(|error| format!("cluster.listen: cannot listen on {}: {error}", config.listen))?;
        let env = orchestrator.env().clone();
        let chance = env.secret().map_err(|error| format!("the system has no chance for us: {error}"))?;
        let boot_id = BootId(u64::from_le_bytes(chance[..8].try_into().unwrap_or_default()));
        let peers = config.peers.iter().map(|(peer, address)| Ok((name(peer)?, address.clone())));
        let args = NodeArgs {
            name: own.clone(),
            boot_id,
            zone: config.zone.clone(),
            anti_affinity: config.anti_affinity.clone(),
            cookie: cookie.clone(),
            peers: peers.collect::<Result<_, String>>()?,
            dns: config.dns.clone(),
            roster: roster.clone(),
            policy: NodePolicy::default(),
        };
        let (mut opened, of_acceptor) = (None, (env.clone(), roster.clone()));
        let network = |linked| {
            let acceptor = Acceptor::new(identity, of_acceptor.0, boot_id, linked).admitting(of_acceptor.1);
            TlsNetwork::open(opened.insert(acceptor).clone(), listener)
        };
        let node = Node::start(orchestrator.clone(), args, network).await.map_err(|error| error.to_string())?;
        let rules = opened.map(|acceptor| NodeRules::new(config, (own, cookie, files), (acceptor, roster), env));
        Ok(Nodes { node: Some(node), rules: rules.map(std::sync::Arc::new) })
    }

    /// Takes up what has changed in the configuration and in the node's files.
    #[cfg_attr(not(feature = "cluster"), expect(unused_variables, reason = "there is no node"))]
    pub(crate) fn follow(&self, config: &Config, has_changed: impl FnMut(&str) -> bool) {
        #[cfg(feature = "cluster")]
        if let Some(rules) = &self.rules {
            rules.follow(config, has_changed);
        }
    }

    /// The node as it stands now.
    pub(crate) fn view(&self) -> Option<Value> {
        #[cfg(feature = "cluster")]
        if let Some(node) = &self.node {
            return serde_json::to_value(node.view()).ok();
        }
        None
    }

    /// Begins to drain the node; returns whether there is one.
    pub(crate) fn drain(&self) -> bool {
        #[cfg(feature = "cluster")]
        if let Some(node) = &self.node {
            node.drain();
            return true;
        }
        false
    }
}
