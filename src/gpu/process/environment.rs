//! The environment of an engine's process: built variable by variable, not inherited. [`crate::config::ProcessConfig`]
//! has the rules.

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::config::ProcessConfig;
use crate::gpu::process::account::Account;

/// What an engine gets of `ours`, the environment of this process, and beside it. The devices that it sees are not
/// among it.
pub(crate) fn of(
    process: &ProcessConfig,
    account: Option<&Account>,
    ours: impl Iterator<Item = (OsString, OsString)>,
) -> BTreeMap<OsString, OsString> {
    let is_given = |name: &OsString| name.to_str().is_some_and(|name| process.inherits(name));
    let mut given: BTreeMap<OsString, OsString> = ours.filter(|(name, _)| is_given(name)).collect();
    for (name, value) in account.into_iter().flat_map(Account::variables) {
        given.entry(name.into()).or_insert_with(|| value.into());
    }
    given.extend(process.env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))));
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(process: &ProcessConfig, account: Option<&Account>, ours: &[(&str, &str)]) -> Vec<String> {
        let ours = ours.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let given = of(process, account, ours).into_iter();
        given.map(|(name, value)| format!("{}={}", name.display(), value.display())).collect()
    }

    #[test]
    fn what_is_given_is_what_is_named_and_values_of_the_pool_go_first() {
        let process = ProcessConfig {
            env: [("PATH", "/own"), ("MODE", "x")].map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            env_inherit: vec!["HF_TOKEN".into()],
            ..ProcessConfig::default()
        };
        let ours =
            [("PATH", "/bin"), ("HOME", "/srv/ours"), ("HF_TOKEN", "t"), ("A_KEY", "k"), ("ORCHESTRATORD_KEY", "o")];
        assert_eq!(given(&process, None, &ours), ["HF_TOKEN=t", "HOME=/srv/ours", "MODE=x", "PATH=/own"]);
    }

    #[test]
    fn another_user_has_a_name_and_a_home_of_its_own() {
        let account = Account { name: "llm".into(), uid: 7, gid: 8, home: "/srv/llm".into(), shell: "/bin/sh".into() };
        let process = ProcessConfig { user: Some("llm".into()), ..ProcessConfig::default() };
        let ours = [("HOME", "/srv/ours"), ("PATH", "/bin"), ("USER", "root"), ("XDG_CACHE_HOME", "/srv/ours/.cache")];
        let wanted = ["HOME=/srv/llm", "LOGNAME=llm", "PATH=/bin", "SHELL=/bin/sh", "USER=llm"];
        assert_eq!(given(&process, Some(&account), &ours), wanted);
        let process = ProcessConfig { env_inherit: vec!["HOME".into()], ..process };
        assert_eq!(given(&process, Some(&account), &ours)[0], "HOME=/srv/ours", "the pool says so");
    }
}
