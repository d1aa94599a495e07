"""The driver's own word: what `nvidia-smi -q -x` says, as plain values; and the same text for a fake library, so that one reader serves both."""
import re
import xml.etree.ElementTree as Tree

# Bits of NVML's reasons for slower clocks, by the ends of their names in the text.
REASONS = {
    "gpu_idle": 0x1, "applications_clocks_setting": 0x2, "sw_power_cap": 0x4, "hw_slowdown": 0x8, "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20, "hw_thermal_slowdown": 0x40, "hw_power_brake_slowdown": 0x80, "display_clocks_setting": 0x100,
}
# What must be the same before and after: nobody here may change a setting.
SETTINGS = [
    "persistence_mode", "compute_mode", "mig_mode/current_mig", "mig_mode/pending_mig", "ecc_mode/current_ecc", "ecc_mode/pending_ecc",
    "gpu_power_readings/requested_power_limit", "gpu_power_readings/current_power_limit", "gpu_power_readings/default_power_limit",
    "applications_clocks/graphics_clock", "applications_clocks/mem_clock", "max_customer_boost_clocks/graphics_clock", "accounting_mode",
]


def number(text, to=float):
    """The number that a field begins with; None where it says N/A or is not there."""
    found = re.match(r"-?\d+(\.\d+)?", (text or "").strip())
    return to(float(found.group())) if found else None


def field(gpu, *paths):
    """The text of the first of these fields that is there and says something."""
    texts = (gpu.findtext(path) for path in paths)
    return next((text.strip() for text in texts if text and text.strip() not in ("N/A", "[N/A]", "")), None)


def reasons(gpu):
    """The bits of the reasons that are active; None where the driver does not say."""
    section = next((gpu.find(name) for name in ("clocks_event_reasons", "clocks_throttle_reasons") if gpu.find(name) is not None), None)
    if section is None:
        return None
    active = [element.tag for element in section if (element.text or "").strip() == "Active"]
    return sum(bit for name, bit in REASONS.items() if any(tag.endswith("reason_" + name) for tag in active))


def total(gpu, folder, names):
    """The sum of these counters; None where none is given."""
    counts = [number(field(gpu, f"{folder}/{name}"), int) for name in names]
    return sum(count for count in counts if count is not None) if any(count is not None for count in counts) else None


def device(gpu):
    """One device as plain values, in the units of the device layer: bytes, milliwatts, degrees, percent."""
    mib = lambda name: (lambda value: None if value is None else int(value * 2**20))(number(field(gpu, f"fb_memory_usage/{name}")))
    milliwatts = lambda *names: (lambda value: None if value is None else round(value * 1000))(
        number(field(gpu, *(f"{section}/{name}" for section in ("gpu_power_readings", "power_readings") for name in names))))
    processes = [
        {"pid": int(process.findtext("pid")), "type": (process.findtext("type") or "").strip(),
         "used": (lambda value: None if value is None else int(value * 2**20))(number(process.findtext("used_memory")))}
        for process in gpu.findall("processes/process_info")
    ]
    return {
        "uuid": field(gpu, "uuid"), "name": field(gpu, "product_name"), "pci": field(gpu, "pci/pci_bus_id"),
        "memory_total": mib("total"), "memory_reserved": mib("reserved"), "memory_used": mib("used"), "memory_free": mib("free"),
        "pcie_gen": number(field(gpu, "pci/pci_gpu_link_info/pcie_gen/current_link_gen"), int),
        "pcie_width": number(field(gpu, "pci/pci_gpu_link_info/link_widths/current_link_width"), int),
        "mig": field(gpu, "mig_mode/current_mig"), "ecc": field(gpu, "ecc_mode/current_ecc"),
        "ecc_uncorrected": total(gpu, "ecc_errors/volatile", (
            "sram_uncorrectable", "dram_uncorrectable", "sram_uncorrectable_parity", "sram_uncorrectable_secded")),
        "remap_pending": field(gpu, "remapped_rows/remapped_row_pending"), "retire_pending": field(gpu, "retired_pages/pending_retirement"),
        "temperature": number(field(gpu, "temperature/gpu_temp"), int),
        "power": milliwatts("instant_power_draw", "power_draw", "average_power_draw"),
        "power_limit": milliwatts("current_power_limit", "enforced_power_limit"),
        "reasons": reasons(gpu),
        "utilization": number(field(gpu, "utilization/gpu_util"), int),
        "clock_sm": number(field(gpu, "clocks/sm_clock"), int), "clock_memory": number(field(gpu, "clocks/mem_clock"), int),
        "performance_state": field(gpu, "performance_state"),
        "processes": sorted(processes, key=lambda process: process["pid"]),
        "settings": {path: (gpu.findtext(path) or "").strip() for path in SETTINGS if gpu.findtext(path) is not None},
    }


def read(text):
    """What the whole text says."""
    root = Tree.fromstring(text)
    return {"driver": (root.findtext("driver_version") or "").strip(), "cuda": (root.findtext("cuda_version") or "").strip(),
            "devices": [device(gpu) for gpu in root.findall("gpu")]}


def written(scenario):
    """The text that nvidia-smi would give for a fake library's devices."""
    root = Tree.Element("nvidia_smi_log")

    def put(parent, path, text):
        for name in path.split("/"):
            child = parent.find(name)
            parent = Tree.SubElement(parent, name) if child is None else child
        parent.text = str(text)

    put(root, "driver_version", scenario["driver"])
    for one in scenario["devices"]:
        gpu = Tree.SubElement(root, "gpu", id=one["pci"])
        mib = lambda count: f"{count // 2**20} MiB"
        ecc = "Enabled" if one["ecc_enabled"] else "Disabled"
        for path, text in {
            "product_name": one["name"], "uuid": one["uuid"], "pci/pci_bus_id": one["pci"], "persistence_mode": "Enabled",
            "compute_mode": "Default", "performance_state": "P0", "mig_mode/current_mig": "N/A",
            "ecc_mode/current_ecc": ecc, "ecc_mode/pending_ecc": ecc,
            "ecc_errors/volatile/dram_uncorrectable": one["ecc_uncorrected"], "remapped_rows/remapped_row_pending": "No",
            "pci/pci_gpu_link_info/pcie_gen/current_link_gen": one["pcie_gen"],
            "pci/pci_gpu_link_info/link_widths/current_link_width": f"{one['pcie_width']}x",
            "fb_memory_usage/total": mib(one["memory_total"]), "fb_memory_usage/reserved": mib(one["memory_reserved"]),
            "fb_memory_usage/used": mib(one["memory_used"]), "fb_memory_usage/free": mib(one["memory_total"] - one["memory_reserved"] - one["memory_used"]),
            "clocks/sm_clock": f"{one['clock_sm']} MHz", "clocks/mem_clock": f"{one['clock_memory']} MHz",
            "utilization/gpu_util": f"{one['gpu_util']} %", "temperature/gpu_temp": f"{one['temperature']} C",
            "gpu_power_readings/instant_power_draw": f"{one['power_mw'] / 1000:.2f} W",
            "gpu_power_readings/current_power_limit": f"{one['power_limit_mw'] / 1000:.2f} W",
        }.items():
            put(gpu, path, text)
        for name, bit in REASONS.items():
            put(gpu, f"clocks_event_reasons/clocks_event_reason_{name}", "Active" if one["throttle"] & bit else "Not Active")
        Tree.SubElement(gpu, "processes")
        for process in one["compute_processes"]:
            info = Tree.SubElement(gpu.find("processes"), "process_info")
            put(info, "pid", process["pid"])
            put(info, "type", "C")
            put(info, "used_memory", mib(process["memory"]))
    return Tree.tostring(root, encoding="unicode")
