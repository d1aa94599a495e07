//! Figures of a node of a cluster for `/metrics`: its links, and what it runs for others.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use crate::cluster::{LinkView, NodeView};
use crate::metrics::{Labels, counter, gauge};
use crate::service::config::node_rules::NodeRules;

fn of_peer(name: impl ToString) -> Labels {
    vec![("peer", name.to_string())]
}

/// The node, and each of its links.
pub(in crate::service) fn node(encoder: &mut DescriptorEncoder<'_>, node: &NodeView) -> fmt::Result {
    let peers = || node.peers.iter();
    let up = peers().map(|peer| (of_peer(&peer.name), f64::from(u8::from(peer.link.is_some()))));
    gauge(encoder, "cluster_link_up", "1 while there is a link with a node", up)?;
    let of_links = |figure: fn(&LinkView) -> f64| {
        peers().filter_map(move |peer| Some((of_peer(&peer.name), figure(peer.link.as_ref()?))))
    };
    let suspect = of_links(|link| f64::from(u8::from(link.state == "suspect")));
    gauge(encoder, "cluster_link_suspect", "1 while a node is silent", suspect)?;
    let round_trip = of_links(|link| link.round_trip_ms / 1000.0);
    gauge(encoder, "cluster_link_round_trip_seconds", "Time to a node and back, as last measured", round_trip)?;
    gauge(encoder, "cluster_link_outbox_messages", "Messages under way", of_links(|link| link.outbox_messages as f64))?;
    gauge(encoder, "cluster_link_outbox_bytes", "Their bytes", of_links(|link| link.outbox_bytes as f64))?;
    gauge(encoder, "cluster_lent", "Attempts that run on another node", of_links(|link| link.lent as f64))?;
    gauge(encoder, "cluster_guests", "Attempts of another node that are here", of_links(|link| link.guests as f64))?;
    let both = |figures: fn(&LinkView) -> [(&'static str, u64); 2]| {
        peers().filter_map(|peer| Some((&peer.name, peer.link.as_ref()?))).flat_map(move |(name, link)| {
            figures(link).map(|(direction, count)| {
                (vec![("peer", name.to_string()), ("direction", direction.to_owned())], count)
            })
        })
    };
    let envelopes = both(|link| [("in", link.envelopes_in), ("out", link.envelopes_out)]);
    counter(encoder, "cluster_link_envelopes", "Messages of this link", envelopes)?;
    let bytes = both(|link| [("in", link.bytes_in), ("out", link.bytes_out)]);
    counter(encoder, "cluster_link_bytes", "Bytes of this link", bytes)?;
    let made = peers().map(|peer| (of_peer(&peer.name), peer.links_made));
    counter(encoder, "cluster_links_made", "Links that have come about", made)?;
    let one = |count: u64| [(Labels::new(), count)];
    counter(encoder, "cluster_guests_taken", "Attempts of other nodes that were taken in", one(node.guests_taken))?;
    counter(encoder, "cluster_guests_lost", "Attempts of other nodes that failed here", one(node.guests_lost))?;
    counter(encoder, "cluster_leases_expired", "Attempts stopped since their node was silent", one(node.leases_expired))
}

/// When the node's certificates end, and who was not let in.
pub(in crate::service) fn rules(encoder: &mut DescriptorEncoder<'_>, rules: &NodeRules) -> fmt::Result {
    let expiries = rules.expiries().map(|(which, left_s)| (vec![("certificate", which.to_owned())], left_s as f64));
    let help = "Time until a certificate in use ends, below zero when it has";
    gauge(encoder, "cluster_certificate_expires_seconds", help, expiries)?;
    let refused = rules.refused().map(|(reason, count)| (vec![("reason", reason.to_owned())], count));
    counter(encoder, "cluster_peers_refused", "Connections with nodes that came to nothing", refused)
}
