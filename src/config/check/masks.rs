//! Which workers may use which devices: masks are a law, and what would break it is a fault of the configuration
//! (ORCH-3011).

use crate::config::{Config, ConfigError, PoolConfig, ReplicaConfig};
use crate::core::id::DeviceMask;

/// How far shares may add up to something else than 1.
const SHARES_TOLERANCE: f64 = 0.001;

/// What is wrong between the masks of all workers.
pub(in crate::config) fn faults(config: &Config, faults: &mut Vec<ConfigError>) {
    let mut taken: Vec<(DeviceMask, bool, String)> = Vec::new();
    for (position, pool) in config.pools.iter().enumerate() {
        for (index, replica) in pool.replicas.iter().enumerate() {
            let path = format!("pools[{position}].replicas[{index}]");
            let Ok(mask) = replica.mask() else { continue };
            let shares = replica.shared_bytes.is_some();
            for (other, other_shares, owner) in &taken {
                let Some(device) = mask.overlap(other) else { continue };
                if !(shares && *other_shares) {
                    let text = format!(
                        "device {device} belongs to {owner} already; give each worker its own, or both a budget of its memory \
                         (shared_bytes)"
                    );
                    faults.push(ConfigError::new(format!("{path}.devices"), text));
                    break;
                }
            }
            taken.push((mask, shares, format!("{path}.devices")));
        }
        affinity_faults(config, position, faults);
    }
}

/// Pools that are to be apart from this one exist, and do not share devices with it; hosts that it avoids are not this
/// one.
fn affinity_faults(config: &Config, position: usize, faults: &mut Vec<ConfigError>) {
    let pool = &config.pools[position];
    let path = format!("pools[{position}].anti_affinity");
    for (field, names) in [("device", &pool.anti_affinity.device), ("numa", &pool.anti_affinity.numa)] {
        for (entry, name) in names.iter().enumerate() {
            let place = format!("{path}.{field}[{entry}]");
            match config.pools.iter().find(|other| other.id == *name) {
                None => {
                    let known: Vec<&str> = config.pools.iter().map(|pool| pool.id.as_str()).collect();
                    faults.push(ConfigError::new(
                        place,
                        format!("there is no pool {name:?}; there is {}", known.join(", ")),
                    ));
                }
                Some(_) if *name == pool.id => {
                    faults.push(ConfigError::new(place, "a pool cannot be apart from itself"));
                }
                Some(other) if field == "device" => {
                    let masks = (pool.mask().unwrap_or_default(), other.mask().unwrap_or_default());
                    if let Some(device) = masks.0.overlap(&masks.1) {
                        let text = format!("pool {} and pool {name} both use device {device}", pool.id);
                        faults.push(ConfigError::new(place, text));
                    }
                }
                Some(_) => {}
            }
        }
    }
    for (entry, label) in pool.anti_affinity.host.iter().enumerate() {
        if config.host_labels.contains(label) {
            let text = format!("this host is {label:?}, where pool {} must not run", pool.id);
            faults.push(ConfigError::new(format!("{path}.host[{entry}]"), text));
        }
    }
}

/// What is wrong with one pool's masks by themselves.
pub(in crate::config) fn pool_faults(pool: &PoolConfig, path: &str, faults: &mut Vec<ConfigError>) {
    let law = match pool.mask() {
        Ok(law) => law,
        Err(error) => return faults.push(ConfigError::new(format!("{path}.devices"), error.message)),
    };
    for (index, replica) in pool.replicas.iter().enumerate() {
        let path = format!("{path}.replicas[{index}]");
        split_faults(replica, &path, faults);
        match replica.mask() {
            Err(error) => faults.push(ConfigError::new(format!("{path}.devices"), error.message)),
            Ok(mask) if !mask.is_within(&law) => {
                let text = format!("devices {mask} are not all among the pool's, which are {law}");
                faults.push(ConfigError::new(format!("{path}.devices"), text));
            }
            Ok(mask) if mask.devices().len() < replica.devices.len() => {
                faults.push(ConfigError::new(format!("{path}.devices"), "a device is named twice"));
            }
            Ok(_) => {}
        }
    }
}

fn split_faults(replica: &ReplicaConfig, path: &str, faults: &mut Vec<ConfigError>) {
    if replica.shared_bytes == Some(0) {
        faults.push(ConfigError::new(format!("{path}.shared_bytes"), "a budget has at least one byte"));
    }
    let Some(split) = &replica.tensor_split else { return };
    let mut fault = |text: String| faults.push(ConfigError::new(format!("{path}.tensor_split"), text));
    if split.len() != replica.devices.len() {
        fault(format!("{} shares for {} devices; each device has one", split.len(), replica.devices.len()));
    } else if !split.iter().all(|share| *share > 0.0 && *share <= 1.0) {
        fault("each share must be above 0 and at most 1".into());
    } else if (split.iter().sum::<f64>() - 1.0).abs() > SHARES_TOLERANCE {
        fault(format!("the shares add up to {}, and must to 1", split.iter().sum::<f64>()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DeviceRef;

    fn pool(id: &str, devices: &[u32]) -> PoolConfig {
        let devices = devices.iter().map(|index| DeviceRef::Index(*index)).collect();
        PoolConfig {
            replicas: vec![ReplicaConfig { devices, ..ReplicaConfig::default() }],
            ..PoolConfig::new(id, "sim", "m")
        }
    }

    fn found(pools: Vec<PoolConfig>) -> String {
        let config = Config { pools, host_labels: vec!["spot".into()], ..Config::default() };
        config.faults().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn no_device_serves_two_workers_unless_both_have_a_budget() {
        let (a, mut b) = (pool("a", &[0]), pool("b", &[0, 1]));
        assert!(found(vec![a.clone(), b.clone()]).contains("pools[1].replicas[0].devices: device 0 belongs to"));
        b.replicas[0].shared_bytes = Some(1);
        assert!(found(vec![a.clone(), b.clone()]).contains("device 0 belongs to"), "one budget is not enough");
        let mut a = a;
        a.replicas[0].shared_bytes = Some(1);
        assert_eq!(found(vec![a, b]), "");
    }

    #[test]
    fn shares_are_one_for_each_device_and_add_up() {
        for (split, words) in [
            (vec![1.0], "1 shares for 2 devices"),
            (vec![0.5, 0.4], "add up to 0.9"),
            (vec![1.5, -0.5], "above 0"),
            (vec![f64::NAN, 0.5], "above 0"),
        ] {
            let mut pool = pool("a", &[0, 1]);
            pool.replicas[0].tensor_split = Some(split);
            let found = found(vec![pool]);
            assert!(found.starts_with("pools[0].replicas[0].tensor_split: ") && found.contains(words), "{found}");
        }
    }

    #[test]
    fn pools_that_are_to_be_apart_are() {
        let mut apart = pool("b", &[1]);
        apart.anti_affinity.device = vec!["a".into()];
        assert_eq!(found(vec![pool("a", &[0]), apart.clone()]), "");
        let mut shares = pool("a", &[1]);
        (shares.replicas[0].shared_bytes, apart.replicas[0].shared_bytes) = (Some(1), Some(1));
        assert!(
            found(vec![shares, apart.clone()]).contains("pools[1].anti_affinity.device[0]: pool b and pool a both use")
        );
        apart.anti_affinity.device = vec!["c".into()];
        assert!(found(vec![pool("a", &[0]), apart.clone()]).contains("there is no pool \"c\""));
        apart.anti_affinity.device.clear();
        apart.anti_affinity.host = vec!["spot".into()];
        assert!(found(vec![apart]).contains("this host is \"spot\""));
    }
}
