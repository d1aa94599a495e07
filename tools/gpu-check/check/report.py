"""What was found: one line for each fact, ours beside the driver's word."""
import json
import pathlib

SAME, DIFFERS, SHOWN, UNKNOWN, FAILED = "same", "differs", "shown", "not said", "failed"


class Report:
    """Lines by check, in the order in which they came; written after each check, so that a run that is cut off has what it had."""

    def __init__(self, folder, about):
        self.folder, self.about, self.checks = pathlib.Path(folder), about, []
        self.folder.mkdir(parents=True, exist_ok=True)

    def begin(self, name):
        self.checks.append({"check": name, "seconds": None, "lines": []})

    def end(self, seconds):
        self.checks[-1]["seconds"] = round(seconds, 2)
        self.write()

    def line(self, what, verdict, ours=None, driver=None, note=""):
        self.checks[-1]["lines"].append({"what": what, "verdict": verdict, "ours": ours, "driver": driver, "note": note})

    def compare(self, what, ours, driver, within=0.0, note=""):
        """The same, or within this much of it where both are numbers. One that is not said by either is no difference."""
        if ours is None and driver is None:
            verdict = UNKNOWN
        elif ours is None or driver is None:
            verdict = DIFFERS
        elif isinstance(ours, (int, float)) and isinstance(driver, (int, float)) and not isinstance(ours, bool):
            verdict = SAME if abs(ours - driver) <= within else DIFFERS
        else:
            verdict = SAME if ours == driver else DIFFERS
        self.line(what, verdict, ours, driver, note)

    def holds(self, what, is_so, seen=None, note=""):
        """Something that must be so."""
        self.line(what, SAME if is_so else DIFFERS, seen, None, note)

    def show(self, what, ours, note=""):
        """A figure without a counterpart."""
        self.line(what, SHOWN, ours, None, note)

    def fail(self, why):
        self.line("the check itself", FAILED, None, None, why)

    def all(self):
        return [(check["check"], line) for check in self.checks for line in check["lines"]]

    def bad(self):
        return [(check, line) for check, line in self.all() if line["verdict"] in (DIFFERS, FAILED)]

    def write(self):
        (self.folder / "report.json").write_text(json.dumps({"about": self.about, "checks": self.checks}, indent=1, default=str) + "\n")
        (self.folder / "report.txt").write_text(self.text())

    def text(self):
        lines = [f"{name}: {value}" for name, value in self.about.items()]
        for check in self.checks:
            lines += ["", f"== {check['check']} ({check['seconds']} s)"]
            for line in check["lines"]:
                seen = f": {shown(line['ours'])}" if line["ours"] is not None else ""
                beside = f", the driver {shown(line['driver'])}" if line["driver"] is not None else ""
                note = f" ({line['note']})" if line["note"] else ""
                lines.append(f"{line['verdict']:>9}  {line['what']}{seen}{beside}{note}")
        bad = self.bad()
        lines += ["", f"{len(self.all())} lines, {len(bad)} of them differ or failed"]
        return "\n".join(lines) + "\n"


def shown(value):
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value, default=str)
