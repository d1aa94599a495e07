//! The configuration of a running service: where it comes from, what it was before, and how another one is put in
//! force.
//!
//! What is in force is the configuration that was given, with what the file of keys says of clients in front. Another
//! one is checked whole (its words, its values, this host's devices), compared, and put in force in one step; wrong
//! ones change nothing. The last ones are kept, so that one command goes back.
//!
//! Spec: ORCH-3030, ORCH-3031.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use crate::config::{Config, ConfigChange};
use crate::core::text::line::Line;
use crate::orchestrator::Orchestrator;
use crate::service::access::keys::ClientTerms;
use crate::service::config::config_diff::{Difference, differences};
use crate::service::config::config_file;
use crate::service::config::engines;
use crate::service::config::executed;
use crate::service::telemetry::named_counts::NamedCounts;

/// Most faults, and most changes, of a configuration that one line of the log has.
const FAULTS_LOGGED: usize = 8;
const CHANGES_LOGGED: usize = 32;
/// Earlier configurations that are kept.
const HISTORY_MAX: usize = 20;

/// What became of configurations that were offered, for counting.
const OUTCOMES: [&str; 3] = ["applied", "rejected", "rolled_back"];

/// One that was put in force.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    /// Its number.
    pub(crate) generation: u64,
    /// When, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// Where it came from: `start`, `file`, `api`, `rollback` or `keys`.
    pub(crate) source: &'static str,
    /// What it changed.
    pub(crate) differences: Vec<Difference>,
    #[serde(skip)]
    given: Arc<Config>,
}

/// What a configuration changes, or has changed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    /// The number of the configuration that is in force now.
    pub(crate) generation: u64,
    /// Whether anything was changed: not when it was only asked what would be, nor when nothing differs.
    pub(crate) applied: bool,
    /// What becomes of the pools.
    pub(crate) change: ConfigChange,
    /// Each field that differs.
    pub(crate) differences: Vec<Difference>,
}

/// What one wants to know or to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ApplyMode {
    /// What would change.
    Compare,
    /// That it changes.
    Apply,
}

/// What a configuration that somebody sends may make the service run or load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MayRun {
    /// What it names: whoever sends it has a key that allows everything.
    Anything,
    /// What is in force already.
    WhatIsInForce,
}

/// Why a configuration that somebody sends is not taken, a line for each fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// It is wrong.
    Wrong(Vec<String>),
    /// It would make the service run or load what is not in force.
    Executed(Vec<String>),
}

/// The configuration of a running service.
pub(crate) struct ConfigStore {
    orchestrator: Orchestrator,
    file: Option<PathBuf>,
    /// Addresses of the command line, which come before those of any configuration.
    listen: [Option<String>; 2],
    /// Held while one is put in force: one after the other.
    state: Mutex<State>,
    /// What became of those that were offered.
    pub(crate) counts: NamedCounts<{ OUTCOMES.len() }>,
}

struct State {
    /// As it was given last, without what the file of keys says.
    given: Arc<Config>,
    clients: BTreeMap<String, ClientTerms>,
    /// Oldest first; the last is in force.
    history: VecDeque<Entry>,
}

/// A configuration with what the file of keys says of clients in front.
pub(crate) fn merged(given: &Config, clients: &BTreeMap<String, ClientTerms>) -> Config {
    let mut config = given.clone();
    for (name, terms) in clients {
        let base = given.clients.get(name).unwrap_or(&given.default_client).clone();
        config.clients.insert(name.clone(), terms.over(base));
    }
    config
}

impl ConfigStore {
    /// The store of a service that has just started with this configuration.
    pub(crate) fn new(
        orchestrator: Orchestrator,
        (file, listen): (Option<PathBuf>, [Option<String>; 2]),
        given: Config,
        clients: BTreeMap<String, ClientTerms>,
    ) -> Self {
        let (given, at_ms) = (Arc::new(given), orchestrator.env().unix_ms());
        let first = Entry { generation: 1, at_ms, source: "start", differences: Vec::new(), given: given.clone() };
        let state = State { given, clients, history: VecDeque::from([first]) };
        ConfigStore { orchestrator, file, listen, state: Mutex::new(state), counts: NamedCounts::new(OUTCOMES) }
    }

    /// The file, if there is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// What was put in force, oldest first.
    pub(crate) fn history(&self) -> Vec<Entry> {
        self.state.lock().history.iter().cloned().collect()
    }

    /// Puts what the file says in force.
    ///
    /// # Errors
    /// Every fault, a line each; nothing has changed.
    pub(crate) fn reload_file(&self) -> Result<Outcome, Vec<String>> {
        let Some(file) = &self.file else { return Err(vec!["the service was started without --config".into()]) };
        self.take("file", ApplyMode::Apply, |_| config_file::load(file).map_err(|faults| faults.0))
    }

    /// Compares a configuration that somebody sends, or puts it in force.
    ///
    /// # Errors
    /// [`Rejected`]; nothing has changed.
    pub(crate) fn take_text(&self, text: &str, wish: ApplyMode, may_run: MayRun) -> Result<Outcome, Rejected> {
        let mut is_executed = false;
        let outcome = self.take("api", wish, |_| {
            let config = config_file::parse(text, "configuration").map_err(|faults| faults.0)?;
            let faults = match may_run {
                MayRun::Anything => Vec::new(),
                MayRun::WhatIsInForce => executed::faults(&self.orchestrator.config(), &config),
            };
            is_executed = !faults.is_empty();
            if is_executed { Err(faults) } else { Ok(config) }
        });
        outcome.map_err(|faults| if is_executed { Rejected::Executed(faults) } else { Rejected::Wrong(faults) })
    }

    /// Goes back to an earlier configuration: the one before, or the one with this number.
    ///
    /// # Errors
    /// There is none; or what is wrong with it by now, a line each. Nothing has changed.
    pub(crate) fn roll_back(&self, to: Option<u64>) -> Result<Outcome, Vec<String>> {
        self.take("rollback", ApplyMode::Apply, |state| {
            let earlier = || state.history.iter().rev().skip(1);
            let found = match to {
                None => state.history.iter().rev().find(|entry| entry.given != state.given),
                Some(number) => earlier().find(|entry| entry.generation == number),
            };
            let known: Vec<String> = earlier().map(|entry| entry.generation.to_string()).collect();
            let none = || match to {
                None => vec!["there is no earlier configuration that differs".to_owned()],
                Some(number) => vec![format!("configuration {number} is not kept; there is {}", known.join(", "))],
            };
            found.map(|entry| (*entry.given).clone()).ok_or_else(none)
        })
    }

    /// Puts what the file of keys says of clients in force.
    ///
    /// # Errors
    /// Every fault, a line each; nothing has changed.
    pub(crate) fn set_clients(&self, clients: BTreeMap<String, ClientTerms>) -> Result<(), Vec<String>> {
        if self.state.lock().clients == clients {
            return Ok(()); // Nothing is put in force, so nothing stands in the way of keys that change alone.
        }
        let mut before = None;
        let outcome = self.take("keys", ApplyMode::Apply, |state| {
            before = Some(std::mem::replace(&mut state.clients, clients));
            Ok((*state.given).clone())
        });
        if let (Err(_), Some(before)) = (&outcome, before) {
            self.state.lock().clients = before;
        }
        outcome.map(|_| ())
    }

    /// Compares or puts in force what `choose` gives, all under one lock.
    fn take(
        &self,
        source: &'static str,
        wish: ApplyMode,
        choose: impl FnOnce(&mut State) -> Result<Config, Vec<String>>,
    ) -> Result<Outcome, Vec<String>> {
        let outcome = {
            let mut state = self.state.lock();
            let [listen, admin_listen] = self.listen.clone();
            choose(&mut state)
                .and_then(|given| self.try_take(&mut state, given.with_listeners(listen, admin_listen), source, wish))
        };
        match &outcome {
            Err(faults) if wish == ApplyMode::Apply => {
                self.counts.count("rejected");
                let faults: Vec<Line> = faults.iter().take(FAULTS_LOGGED).map(Line::from).collect();
                tracing::warn!(target: "audit", event = "config_rejected", source, ?faults, "a configuration is wrong; nothing has changed");
            }
            Ok(Outcome { applied: true, generation, differences, .. }) => {
                self.counts.count(if source == "rollback" { "rolled_back" } else { "applied" });
                let changes: Vec<Line> = differences.iter().take(CHANGES_LOGGED).map(Difference::logged).collect();
                tracing::info!(target: "audit", event = "config_applied", source, generation, ?changes, "another configuration is in force");
            }
            Ok(_) | Err(_) => {}
        }
        outcome
    }

    fn try_take(
        &self,
        state: &mut State,
        given: Config,
        source: &'static str,
        wish: ApplyMode,
    ) -> Result<Outcome, Vec<String>> {
        let config = merged(&given, &state.clients);
        let lines =
            |faults: Vec<crate::config::ConfigError>| faults.iter().map(ToString::to_string).collect::<Vec<_>>();
        let on_host = self.orchestrator.device_faults(&config);
        if !on_host.is_empty() {
            return Err(lines(on_host));
        }
        let before = self.orchestrator.config();
        let found = differences(&before, &config);
        let change = match wish {
            ApplyMode::Compare => self.orchestrator.compare(&config).map_err(lines)?,
            ApplyMode::Apply => self.orchestrator.reconfigure(engines::builder(config)).map_err(lines)?,
        };
        let (generation, applied) =
            (self.orchestrator.config_generation(), wish == ApplyMode::Apply && !change.is_empty());
        if applied {
            let given = Arc::new(given);
            state.given = given.clone();
            let at_ms = self.orchestrator.env().unix_ms();
            if state.history.len() == HISTORY_MAX {
                state.history.pop_front();
            }
            state.history.push_back(Entry { generation, at_ms, source, differences: found.clone(), given });
        }
        Ok(Outcome { generation, applied, change, differences: found })
    }
}
