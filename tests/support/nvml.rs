//! A copy of the fake NVIDIA library for each test, and the file that tells it what its devices are like.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use orchestrator_core::gpu::DeviceProbe;
use orchestrator_core::gpu::nvml;
use serde_json::{Value, json};

/// One copy of the library, with statics of its own; removed with this.
pub struct FakeDriver {
    pub library: PathBuf,
    scenario: Value,
}

/// Where cargo has put the library that this test depends on.
fn built() -> PathBuf {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("libfake_nvml") && name.ends_with(".so")
    };
    let found = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).filter(is_it);
    found.max_by_key(|path| path.metadata().unwrap().modified().unwrap()).expect("it is built with the tests")
}

/// A device as the scenario has it.
pub fn device(index: u32) -> Value {
    json!({
        "uuid": uuid(index), "name": "Fake H100", "memory_total": 80_u64 << 30, "memory_used": 1_u64 << 30, "cc": [9, 0],
        "gpu_util": 37, "mem_util": 11, "temperature": 41, "power_mw": 70_000, "power_limit_mw": 700_000, "throttle": 1,
        "ecc_enabled": true, "numa_node": index / 2, "cpu_affinity": [3], "pci": format!("00000000:0{index}:00.0"),
        "pcie_gen": 5, "pcie_width": 16, "nvlinks": [true, true, false],
    })
}

pub fn uuid(index: u32) -> String {
    format!("GPU-{index:08x}-0000-0000-0000-000000000000")
}

impl FakeDriver {
    /// A driver with this many devices, all well.
    pub fn new(name: &str, devices: u32) -> Self {
        let scenario = json!({ "driver": "570.00", "devices": (0..devices).map(device).collect::<Vec<_>>() });
        Self::with(name, scenario)
    }

    pub fn with(name: &str, scenario: Value) -> Self {
        let library = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("nvml-{}-{name}.so", std::process::id()));
        std::fs::copy(built(), &library).unwrap();
        let driver = FakeDriver { library, scenario };
        driver.write();
        driver
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("{}.json", self.library.display()))
    }

    fn write(&self) {
        let new = self.path().with_extension("new");
        std::fs::write(&new, self.scenario.to_string()).unwrap();
        std::fs::rename(new, self.path()).unwrap();
    }

    /// Changes the world from now on.
    pub fn change(&mut self, change: impl FnOnce(&mut Value)) {
        change(&mut self.scenario);
        self.write();
    }

    /// Sets a field of a device.
    pub fn set(&mut self, index: usize, field: &str, value: impl Into<Value>) {
        let value = value.into();
        self.change(|scenario| scenario["devices"][index][field] = value);
    }

    /// Has the driver report an XID of a device.
    pub fn xid(&mut self, index: u32, number: u64) {
        self.change(|scenario| {
            let events = scenario.as_object_mut().unwrap().entry("events").or_insert(json!([])).as_array_mut().unwrap();
            events.push(json!({ "id": events.len(), "uuid": uuid(index), "xid": number }));
        });
    }

    /// Takes a symbol out of the copy, as an older driver lacks it. Before it is opened.
    pub fn without(self, symbol: &str) -> Self {
        let mut bytes = std::fs::read(&self.library).unwrap();
        let name = format!("\0{symbol}\0").into_bytes();
        let places: Vec<usize> = (0..bytes.len() - name.len()).filter(|at| bytes[*at..].starts_with(&name)).collect();
        assert!(!places.is_empty(), "{symbol} is exported");
        places.iter().for_each(|at| bytes[at + 1] = b'x');
        std::fs::write(&self.library, bytes).unwrap();
        self
    }

    pub fn open(&self) -> Arc<dyn DeviceProbe> {
        nvml::open(Some(self.library.as_os_str()), Duration::from_secs(10)).unwrap()
    }
}

impl Drop for FakeDriver {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.library);
        let _ = std::fs::remove_file(self.path());
    }
}
