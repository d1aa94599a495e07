//! The ports that servers of ours are told: free ones, and no two servers the same.

use std::collections::BTreeSet;
use std::net::TcpListener;

/// Ports that one command may ask for: `{port}`, `{port2}`, `{port3}`.
pub(crate) const PORTS: [&str; 3] = ["{port}", "{port2}", "{port3}"];

/// Ports that servers of ours have been told. A server takes its time to bind its own, and meanwhile the system would
/// give it to another: whoever then answers there is taken for both.
static TOLD: parking_lot::Mutex<BTreeSet<u16>> = parking_lot::Mutex::new(BTreeSet::new());

/// Most ports that are looked at for those that no server of ours has.
const PORTS_TRIED_MAX: usize = 64;

/// Ports of one server, which no other of ours is told while it has them.
pub(crate) struct Ports(pub(crate) Vec<u16>);

impl Ports {
    /// Ports that were free a moment ago. A stranger who takes one in between makes the start fail, and the next start
    /// takes others.
    ///
    /// # Errors
    /// The system has none, or all that it gave are told already.
    pub(crate) fn free() -> std::io::Result<Ports> {
        let mut told = TOLD.lock();
        let (mut found, mut bound) = (Vec::new(), Vec::new());
        while found.len() < PORTS.len() && bound.len() < PORTS_TRIED_MAX {
            let listener = TcpListener::bind(("127.0.0.1", 0))?;
            let port = listener.local_addr()?.port();
            bound.push(listener); // All are held until the last is found, so that they differ.
            if told.insert(port) {
                found.push(port);
            }
        }
        let ports = Ports(found);
        drop(told);
        if ports.0.len() < PORTS.len() { Err(std::io::ErrorKind::AddrInUse.into()) } else { Ok(ports) }
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        let mut told = TOLD.lock();
        for port in &self.0 {
            told.remove(port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_servers_are_told_one_port() {
        let servers: Vec<Ports> = (0..20).map(|_| Ports::free().unwrap()).collect();
        let all: BTreeSet<u16> = servers.iter().flat_map(|ports| ports.0.clone()).collect();
        assert_eq!(all.len(), 60);
        drop(servers);
        assert!(all.is_disjoint(&TOLD.lock()), "they are given back");
    }
}
