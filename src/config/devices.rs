//! Devices in the configuration: how they are watched, and what the names of pools mean on this host.

use serde::{Deserialize, Serialize};

use crate::config::section;
use crate::config::{Config, ConfigError, DeviceRef, PoolConfig, ReplicaConfig};
use crate::core::device::{DeviceInfo, Inventory};

/// Whether NVIDIA's driver is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "service", derive(schemars::JsonSchema))]
pub enum DriverUse {
    /// Where there is one; else devices are simulated.
    #[default]
    Auto,
    /// Always: without one nothing starts.
    Required,
    /// Never: devices are simulated.
    Off,
}

section! {
    /// The devices of this host, and how they are watched.
    pub struct GpuConfig {
        /// Whether NVIDIA's driver is asked.
        pub driver: DriverUse = DriverUse::Auto,
        /// Where NVIDIA's management library lies; left out, where the system finds `libnvidia-ml.so.1`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub library: Option<String> = None,
        /// Time between two looks at each device, in milliseconds.
        pub poll_ms: u64 = 1_000,
        /// How long the driver may take for one look, in milliseconds. Three looks in a row without an answer are a
        /// failure.
        pub answer_ms: u64 = 3_000,
        /// How long a device that has failed stays out at least, in milliseconds; doubled with each failure of an hour,
        /// and ten minutes behind the third.
        pub recover_ms: u64 = 10_000,
    }
}

section! {
    /// Where a pool's replicas must not be.
    pub struct AntiAffinity {
        /// Pools whose replicas use other devices.
        pub device: Vec<String> = Vec::new(),
        /// Pools whose replicas are near to other NUMA nodes.
        pub numa: Vec<String> = Vec::new(),
        /// Hosts, by name or label, on which this pool does not run.
        pub host: Vec<String> = Vec::new(),
        /// Nodes of the cluster, by their names, with which it exchanges no task, in either direction.
        pub node: Vec<String> = Vec::new(),
        /// The same by their zones.
        pub zone: Vec<String> = Vec::new(),
    }
}

/// A configuration with the names that this host has for its devices.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// It.
    pub config: Config,
    /// What cannot be with these devices, each with its place. Pools that it does not concern can be served all the
    /// same.
    pub faults: Vec<ConfigError>,
}

impl Resolved {
    /// Why this replica cannot be served, if so.
    pub fn fault_of(&self, pool: usize, replica: usize) -> Option<&ConfigError> {
        let (of_pool, of_replica) = (format!("pools[{pool}]."), format!("pools[{pool}].replicas[{replica}]."));
        self.faults.iter().find(|fault| {
            let path = fault.path.as_str();
            path.starts_with(&of_replica)
                || path.starts_with(&of_pool) && !path[of_pool.len()..].starts_with("replicas[")
        })
    }
}

/// Gives every device of a configuration without faults the name that this host has for it, and finds what cannot be
/// with these devices.
///
/// With simulated devices each name stands for itself, and nothing is known that could not be.
pub fn resolve(config: &Config, inventory: &Inventory) -> Resolved {
    let mut config = config.clone();
    let mut faults = Vec::new();
    if !inventory.is_real() {
        return Resolved { config, faults };
    }
    for (position, pool) in config.pools.iter_mut().enumerate() {
        let path = format!("pools[{position}]");
        if let Some(devices) = &mut pool.devices {
            rename(devices, inventory, &format!("{path}.devices"), &mut faults);
        }
        for (index, replica) in pool.replicas.iter_mut().enumerate() {
            rename(&mut replica.devices, inventory, &format!("{path}.replicas[{index}].devices"), &mut faults);
        }
    }
    faults.append(&mut config.faults()); // Two names of one device are one device now.
    for (position, pool) in config.pools.iter().enumerate() {
        let path = format!("pools[{position}]");
        for (index, replica) in pool.replicas.iter().enumerate() {
            replica_faults(pool, replica, inventory, &format!("{path}.replicas[{index}]"), &mut faults);
        }
        numa_faults(&config, position, inventory, &mut faults);
    }
    shared_faults(&config, inventory, &mut faults);
    Resolved { config, faults }
}

fn rename(devices: &mut [DeviceRef], inventory: &Inventory, path: &str, faults: &mut Vec<ConfigError>) {
    let mut seen: Vec<String> = Vec::new();
    for device in devices {
        match inventory.resolve(&device.to_string()) {
            Err(text) => faults.push(ConfigError::new(path, text)),
            Ok(found) => {
                let id = found.id.to_string();
                if seen.contains(&id) {
                    faults.push(ConfigError::new(
                        path,
                        format!("device {id} is named twice, the second time as {device}"),
                    ));
                }
                seen.push(id.clone());
                *device = DeviceRef::Uuid(id);
            }
        }
    }
}

fn devices_of<'a>(replica: &ReplicaConfig, inventory: &'a Inventory) -> Vec<&'a DeviceInfo> {
    let mask = replica.mask().unwrap_or_default();
    mask.devices().iter().filter_map(|id| inventory.get(id)).collect()
}

/// What a replica's devices cannot do: hold its model, or a model that is split over them without a word about how.
fn replica_faults(
    pool: &PoolConfig,
    replica: &ReplicaConfig,
    inventory: &Inventory,
    path: &str,
    faults: &mut Vec<ConfigError>,
) {
    let devices = devices_of(replica, inventory);
    if let Some(other) = devices.iter().skip(1).find(|other| !other.is_like(devices[0]))
        && replica.tensor_split.is_none()
    {
        let text = format!(
            "{} ({}) and {} ({}) are not alike; say how the model is divided over them, as in [0.6, 0.4]",
            devices[0].id, devices[0].name, other.id, other.name
        );
        faults.push(ConfigError::new(format!("{path}.tensor_split"), text));
    }
    let Some(need) = pool.need() else { return };
    for (device, share) in devices.iter().zip(replica.shares()) {
        let (wanted, most) = (need.on_device(share), replica.shared_bytes.or(device.memory.map(|memory| memory.0)));
        if let Some(most) = most.filter(|most| *most < wanted.0) {
            let text = format!(
                "model, KV caches of {} slots and reserve need {} bytes on {}, which has {most}; fewer slots, a shorter ctx, or \
                 another device",
                pool.slots, wanted.0, device.id
            );
            faults.push(ConfigError::new(format!("{path}.devices"), text));
        }
    }
}

/// Budgets of workers that share a device must fit into it together.
fn shared_faults(config: &Config, inventory: &Inventory, faults: &mut Vec<ConfigError>) {
    for device in &inventory.devices {
        let Some(memory) = device.memory else { continue };
        let mut sum = 0_u64;
        for (position, pool) in config.pools.iter().enumerate() {
            for (index, replica) in pool.replicas.iter().enumerate() {
                let Some(budget) = replica.shared_bytes else { continue };
                if !devices_of(replica, inventory).iter().any(|used| used.id == device.id) {
                    continue;
                }
                sum = sum.saturating_add(budget);
                if sum > memory.0 {
                    let text =
                        format!("the budgets on device {} add up to {sum} bytes; it has {}", device.id, memory.0);
                    faults.push(ConfigError::new(format!("pools[{position}].replicas[{index}].shared_bytes"), text));
                }
            }
        }
    }
}

fn numa_faults(config: &Config, position: usize, inventory: &Inventory, faults: &mut Vec<ConfigError>) {
    let pool = &config.pools[position];
    let nodes = |pool: &PoolConfig| -> Vec<u32> {
        let devices = pool.replicas.iter().flat_map(|replica| devices_of(replica, inventory));
        devices.filter_map(|device| device.numa_node).collect()
    };
    for (entry, name) in pool.anti_affinity.numa.iter().enumerate() {
        let Some(other) = config.pools.iter().find(|other| other.id == *name) else { continue };
        let theirs = nodes(other);
        if let Some(node) = nodes(pool).iter().find(|node| theirs.contains(node)) {
            let text = format!("pool {} and pool {name} both have devices near to NUMA node {node}", pool.id);
            faults.push(ConfigError::new(format!("pools[{position}].anti_affinity.numa[{entry}]"), text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::device::Origin;
    use crate::core::id::DeviceId;
    use crate::core::units::VramBytes;

    const GIB: u64 = 1 << 30;

    fn inventory() -> Inventory {
        let device = |index: u32, name: &str, gib: u64| DeviceInfo {
            index: Some(index),
            name: name.into(),
            memory: Some(VramBytes(gib * GIB)),
            numa_node: Some(index / 2),
            ..DeviceInfo::unknown(DeviceId::parse(&format!("GPU-{index}{index}{index}{index}")).expect("valid"))
        };
        let origin = Origin::Driver { version: "1".into() };
        Inventory { origin, devices: vec![device(0, "A", 80), device(1, "A", 80), device(2, "B", 24)] }
    }

    fn pool(id: &str, devices: &[u32]) -> PoolConfig {
        let devices = devices.iter().map(|index| DeviceRef::Index(*index)).collect();
        PoolConfig {
            replicas: vec![ReplicaConfig { devices, ..ReplicaConfig::default() }],
            ..PoolConfig::new(id, "sim", "m")
        }
    }

    fn faults(pools: Vec<PoolConfig>) -> String {
        let config = Config { pools, ..Config::default() };
        let faults = resolve(&config, &inventory()).faults;
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn names_become_uuids_once_and_two_names_of_one_device_are_one() {
        let config = Config { pools: vec![pool("a", &[1, 0])], ..Config::default() };
        let resolved = resolve(&config, &inventory()).config;
        assert_eq!(resolved.pools[0].mask().unwrap().to_string(), "GPU-0000,GPU-1111");
        let mut twice = pool("a", &[0]);
        twice.replicas[0].devices.push(DeviceRef::Uuid("GPU-0000".into()));
        assert!(faults(vec![twice]).contains("pools[0].replicas[0].devices: device GPU-0000 is named twice"));
        let mut other = pool("b", &[]);
        other.replicas[0].devices = vec![DeviceRef::Uuid("GPU-0000".into())];
        assert!(faults(vec![pool("a", &[0]), other]).contains("GPU-0000 belongs to pools[0].replicas[0]"));
        assert!(faults(vec![pool("a", &[9])]).contains("there is no device 9; there is 0 (GPU-0000)"));
    }

    #[test]
    fn a_fault_concerns_its_own_pool_or_replica_alone() {
        let mut two = pool("b", &[0]);
        two.replicas.push(ReplicaConfig { devices: vec![DeviceRef::Index(9)], ..ReplicaConfig::default() });
        let config = Config { pools: vec![pool("a", &[1]), two], ..Config::default() };
        let resolved = resolve(&config, &inventory());
        assert!(resolved.fault_of(0, 0).is_none() && resolved.fault_of(1, 0).is_none());
        assert!(resolved.fault_of(1, 1).is_some_and(|fault| fault.message.contains("no device 9")));
    }

    #[test]
    fn a_split_over_unlike_devices_is_said_in_shares() {
        assert!(
            faults(vec![pool("a", &[0, 2])])
                .contains("pools[0].replicas[0].tensor_split: GPU-0000 (A) and GPU-2222 (B)")
        );
        let mut split = pool("a", &[2, 0]);
        split.replicas[0].tensor_split = Some(vec![0.2, 0.8]);
        assert_eq!(faults(vec![split.clone()]), "");
        let config = Config { pools: vec![split], ..Config::default() };
        let resolved = resolve(&config, &inventory()).config;
        assert_eq!(resolved.pools[0].replicas[0].shares(), [0.8, 0.2], "in the order in which the engine sees them");
        assert_eq!(faults(vec![pool("a", &[0, 1])]), "", "alike");
    }

    #[test]
    fn what_does_not_fit_into_a_card_is_found_before_anything_is_started() {
        let mut large = pool("a", &[2]);
        (large.memory.model_bytes, large.slots, large.ctx) = (Some(16 * GIB), 16, Some(4096));
        assert!(
            faults(vec![large.clone()]).contains("pools[0].replicas[0].devices: model, KV caches of 16 slots"),
            "24.5 GiB"
        );
        large.slots = 8;
        assert_eq!(faults(vec![large]), "");
        let shared = |id: &str, gib: u64| {
            let mut pool = pool(id, &[0]);
            pool.replicas[0].shared_bytes = Some(gib * GIB);
            pool
        };
        assert_eq!(faults(vec![shared("a", 40), shared("b", 40)]), "");
        assert!(
            faults(vec![shared("a", 50), shared("b", 40)]).contains("pools[1].replicas[0].shared_bytes: the budgets")
        );
    }

    #[test]
    fn pools_that_are_to_be_apart_are_on_different_nodes() {
        let mut apart = pool("b", &[1]);
        apart.anti_affinity.numa = vec!["a".into()];
        assert!(faults(vec![pool("a", &[0]), apart.clone()]).contains("pools[1].anti_affinity.numa[0]"));
        apart.replicas[0].devices = vec![DeviceRef::Index(2)];
        assert_eq!(faults(vec![pool("a", &[0]), apart]), "");
    }
}
