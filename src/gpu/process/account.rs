//! The user that an engine runs as, where that is not the service's own.

use rustix::process::{getgroups, getuid};
use rustix::thread::{CapabilitySet, capabilities, capability_is_in_ambient_set};

/// Where the users of this host are.
const USERS: &str = "/etc/passwd";

/// What it takes to start a process as another user, and to end it.
const NEEDED: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SETGID).union(CapabilitySet::KILL);

/// A user of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
    pub(crate) shell: String,
}

impl Account {
    /// The user of this name.
    ///
    /// # Errors
    /// There is none, or it is root.
    pub(crate) fn named(name: &str) -> Result<Account, String> {
        let users = std::fs::read(USERS).map_err(|error| format!("process.user: {USERS}: {error}"))?;
        match found(&String::from_utf8_lossy(&users), name) {
            None => {
                Err(format!("process.user: there is no user {name:?} in {USERS}; make one: useradd --system {name}"))
            }
            Some(account) if account.uid == 0 => Err(format!("process.user: {name:?} is root; take another user")),
            Some(account) => Ok(account),
        }
    }

    /// What its environment says of it.
    pub(crate) fn variables(&self) -> [(&'static str, &str); 4] {
        [("HOME", &self.home), ("LOGNAME", &self.name), ("SHELL", &self.shell), ("USER", &self.name)]
    }
}

/// Whether this process may start engines as other users, so that nothing of its own rights goes with them.
///
/// # Errors
/// What it lacks, or has too much.
pub(crate) fn may_change_user() -> Result<(), String> {
    let sets = capabilities(None).map_err(|error| format!("process.user: capabilities: {error}"))?;
    if !sets.effective.contains(NEEDED) {
        let text = "process.user: this process may not start engines as another user; it must be root, or have CAP_SETUID, CAP_SETGID \
                    and CAP_KILL";
        return Err(text.into());
    }
    // Whoever is root loses groups and capabilities with its user. Others keep them.
    if getuid().is_root() {
        return Ok(());
    }
    let is_ambient = |capability: CapabilitySet| capability_is_in_ambient_set(capability).unwrap_or(false);
    if [CapabilitySet::SETUID, CapabilitySet::SETGID, CapabilitySet::KILL].into_iter().any(is_ambient) {
        return Err("process.user: engines would keep the capabilities of this process, which are ambient".into());
    }
    if getgroups().is_ok_and(|groups| groups.is_empty()) {
        return Ok(());
    }
    Err("process.user: engines would keep the supplementary groups of this process; leave it none but its own group"
        .into())
}

/// The user of this name, in a text such as that of `/etc/passwd`. The first one counts, as it does for the system.
fn found(users: &str, name: &str) -> Option<Account> {
    let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
    let fields: Vec<&str> = line.split(':').collect();
    let [_, _, uid, gid, _, home, shell] = fields.as_slice() else { return None };
    let home = if home.is_empty() { "/" } else { *home };
    let shell = if shell.is_empty() { "/bin/sh" } else { *shell };
    Some(Account {
        name: name.to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: home.to_owned(),
        shell: shell.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/bash\nllm:x:1500:1600:engines, of ours:/srv/llm:\nllm:x:1:1:::\n\
        short:x:7:7\nodd:x:-1:7:::\nmany:x:7:7:::::\nbare:*:7:8:::\n";

    #[test]
    fn a_user_is_found_by_its_whole_name_and_the_first_counts() {
        let llm = found(USERS, "llm").expect("it is there");
        assert_eq!((llm.uid, llm.gid, llm.home.as_str(), llm.shell.as_str()), (1500, 1600, "/srv/llm", "/bin/sh"));
        let bare = found(USERS, "bare").expect("it is there");
        assert_eq!((bare.uid, bare.gid, bare.home.as_str()), (7, 8, "/"));
        for name in ["", "ll", "llm:x", "short", "odd", "many", "x", "LLM"] {
            assert_eq!(found(USERS, name), None, "{name:?}");
        }
    }

    #[test]
    fn a_user_that_is_not_there_or_is_root_is_said_so() {
        let text = Account::named("no-such-user-here").expect_err("nobody is called so");
        assert!(text.contains("no-such-user-here") && text.contains("/etc/passwd"), "{text}");
        let text = Account::named("root").expect_err("no engine is root");
        assert!(text.contains("is root"), "{text}");
    }
}
