//! What a pool serves: the model and all that makes its output what it is, and how a reload may change it (ORCH-3031).

use serde::{Deserialize, Serialize};

use crate::core::task::TaskRequest;

/// A model as a pool serves it. With the engine and its version it is what makes pools one replica set (ORCH-3007).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Its name, or the path of its file.
    pub model: String,
    /// Its quantisation.
    pub quant: String,
    /// Longest context of one task in tokens; `None` is what the engine says.
    pub ctx: Option<u32>,
    /// Name of the pinned sampler settings.
    pub sampler_profile_version: String,
}

impl ModelSpec {
    /// Whether a task that was accepted under another model may run on this one: it must have all that the task names.
    /// `aliases` are other names by which its pool's model may be asked for.
    ///
    /// # Errors
    /// The first field that it has not, what was asked for, and what there is.
    pub fn fits(&self, request: &TaskRequest, aliases: &[String]) -> Result<(), String> {
        let differs = |wanted: &Option<String>, have: &str| wanted.as_ref().filter(|wanted| *wanted != have).cloned();
        if let Some(wanted) = differs(&request.model_ref, &self.model).filter(|wanted| !aliases.contains(wanted)) {
            return Err(format!("the task asks for model {wanted:?}, and {:?} is served", self.model));
        }
        let have = &self.sampler_profile_version;
        if let Some(wanted) = differs(&request.sampler_profile_version, have) {
            return Err(format!("the task asks for sampler profile {wanted:?}, and {have:?} is served"));
        }
        match (request.ctx, self.ctx) {
            (Some(wanted), Some(ctx)) if wanted.0 > ctx => {
                Err(format!("the task asks for a context of {wanted} tokens, and {ctx} are served"))
            }
            _ => Ok(()),
        }
    }
}

/// What a reload changes; what is left out stays as it is. With nothing named, the same model is loaded anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "service", derive(utoipa::ToSchema))]
pub struct ModelChange {
    /// The model: its name, or the path of its file, as in the configuration.
    pub model: Option<String>,
    /// Its quantisation.
    pub quant: Option<String>,
    /// Longest context of one task, in tokens.
    pub ctx: Option<u32>,
    /// Name of the sampler settings to pin.
    pub sampler_profile_version: Option<String>,
    /// Go back to the model before the last completed reload. Nothing else may be named with it.
    pub undo: bool,
}

impl ModelChange {
    /// A reload with this model.
    pub fn to_model(model: impl Into<String>) -> Self {
        ModelChange { model: Some(model.into()), ..ModelChange::default() }
    }

    /// The way back to the model before the last completed reload.
    pub fn back() -> Self {
        ModelChange { undo: true, ..ModelChange::default() }
    }

    /// What is served when this change is made to `now`, where `before` is what the last completed reload replaced.
    ///
    /// # Errors
    /// What cannot be, and why.
    pub fn apply(&self, now: &ModelSpec, before: Option<&ModelSpec>) -> Result<ModelSpec, String> {
        if self.undo {
            if *self != ModelChange::back() {
                return Err("field 'undo': it goes back as a whole; leave the other fields out".into());
            }
            return before.cloned().ok_or_else(|| "field 'undo': no reload has been completed yet".into());
        }
        let text = |new: &Option<String>, old: &String| new.clone().unwrap_or_else(|| old.clone());
        Ok(ModelSpec {
            model: text(&self.model, &now.model),
            quant: text(&self.quant, &now.quant),
            ctx: self.ctx.or(now.ctx),
            sampler_profile_version: text(&self.sampler_profile_version, &now.sampler_profile_version),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::units::Tokens;

    fn spec(model: &str) -> ModelSpec {
        ModelSpec { model: model.into(), quant: "q4".into(), ctx: Some(100), sampler_profile_version: "1".into() }
    }

    #[test]
    fn what_is_left_out_stays() {
        let change = ModelChange { quant: Some("q8".into()), ..ModelChange::to_model("b") };
        let new = change.apply(&spec("a"), None).expect("possible");
        assert_eq!(new, ModelSpec { quant: "q8".into(), ..spec("b") });
        assert_eq!(ModelChange::default().apply(&spec("a"), None), Ok(spec("a")));
    }

    #[test]
    fn the_way_back_is_whole_and_needs_something_to_go_back_to() {
        assert_eq!(ModelChange::back().apply(&spec("b"), Some(&spec("a"))), Ok(spec("a")));
        assert!(ModelChange::back().apply(&spec("b"), None).is_err());
        let mixed = ModelChange { ctx: Some(7), ..ModelChange::back() };
        assert!(mixed.apply(&spec("b"), Some(&spec("a"))).unwrap_err().contains("'undo'"));
    }

    #[test]
    fn a_task_runs_only_on_what_it_named() {
        let request = TaskRequest::completion("x");
        assert_eq!(spec("b").fits(&request, &[]), Ok(()));
        let cases = [
            TaskRequest { model_ref: Some("a".into()), ..request.clone() },
            TaskRequest { sampler_profile_version: Some("2".into()), ..request.clone() },
            TaskRequest { ctx: Some(Tokens(101)), ..request.clone() },
        ];
        for wrong in cases {
            let text = spec("b").fits(&wrong, &[]).unwrap_err();
            assert!(text.contains("the task asks for"), "{text}");
        }
        let named = TaskRequest { model_ref: Some("b".into()), ctx: Some(Tokens(100)), ..request };
        assert_eq!(spec("b").fits(&named, &[]), Ok(()));
    }
}
