//! Whole layers go: those behind which the stream is most like what it was before them (ShortGPT,
//! Men et al., 2024, arXiv 2403.03853), or those that are named. The others keep their numbers and
//! move together.

use model::mlp::experts;
use model::params::{ParamPlace, RouterSite};
use model::table::{buffers, specs};
use model::{LayerSet, MlpConfig, Model, ModelConfig, RouterState, Sharing};
use serde::{Deserialize, Serialize};

use super::drop::best;
use super::member::{LayerCall, PassSettings, RunningPass};
use crate::bank;
use crate::error::{check_share, nothing_goes, refused, unused};
use crate::seen::Wanted;
use crate::{ModelChange, ShrinkError};

/// `{ kind = "layers", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LayersSettings {
    /// The share of the layers that goes.
    pub share: f64,
    /// Layers that go, by their numbers, in place of the share and of scores.
    pub named: Vec<usize>,
}

impl Default for LayersSettings {
    fn default() -> Self {
        Self { share: 0.25, named: Vec::new() }
    }
}

impl PassSettings for LayersSettings {
    fn check(&self) -> Result<(), ShrinkError> {
        check_share("layers: share", self.share)?;
        if !self.named.is_empty() {
            let default = self.share == Self::default().share;
            unused("layers: share", default, "beside layers: named")?;
        }
        Ok(())
    }

    fn begin(&self, config: &ModelConfig, _: u64) -> Result<Box<dyn RunningPass>, ShrinkError> {
        let expected = "\"none\": where layers are shared, taking one out takes it out of every \
                        recursion";
        let next = "take recursions out (pass recursions), or unroll the model with lathe convert";
        plain(config, expected, next)?;
        let next = "make single layers smaller instead, such as with pass slim or wanda";
        bank::chosen_anywhere(config, next)?;
        let layers = config.layers;
        let all_stay = bank::staying(layers, self.share) == layers;
        if self.named.is_empty() && self.share > 0.0 && all_stay {
            let least = format!("one of the {layers} layers");
            return nothing_goes("layers: share", self.share, &least);
        }
        let twice = |(i, layer): (usize, &usize)| self.named[..i].contains(layer);
        let wrong = self.named.iter().enumerate().find(|&(i, l)| *l >= layers || twice((i, l)));
        if let Some((_, layer)) = wrong {
            let expected = format!("numbers below {layers}, each once");
            return refused("layers: named", expected, layer, "leave it out");
        }
        if self.named.len() >= layers {
            let expected = format!("fewer than all {layers} layers");
            return refused("layers: named", expected, self.named.len(), "name fewer");
        }
        Ok(Box::new(Layers { config: self.clone(), influence: vec![0.0; layers] }))
    }
}

/// Refuses models in which a layer is more than one layer.
pub(super) fn plain(
    config: &ModelConfig,
    expected: &str,
    next: &'static str,
) -> Result<(), ShrinkError> {
    if config.sharing != Sharing::None {
        let found = format!("\"{}\"", config.sharing);
        return refused("the checkpoint: sharing", expected, found, next);
    }
    if config.relax.kind() != "none" {
        let expected = "\"none\": adapters belong to numbered layers";
        let next = "merge them into the layers first, with lathe convert";
        return refused("the checkpoint: relax", expected, config.relax.kind(), next);
    }
    Ok(())
}

struct Layers {
    config: LayersSettings,
    /// `1 - cosine` of the stream before and behind each layer, in the mean.
    influence: Vec<f64>,
}

impl RunningPass for Layers {
    fn wanted(&self) -> Wanted {
        Wanted { rows: self.config.named.is_empty(), ..Wanted::default() }
    }

    fn acts_at_the_end(&self) -> bool {
        true
    }

    fn act(&mut self, layer: &LayerCall<'_>) -> Result<ModelChange, ShrinkError> {
        self.influence[layer.stored] = layer.seen.influence;
        Ok(ModelChange::default())
    }

    fn finish(&mut self, model: &Model, state: &RouterState) -> Result<ModelChange, ShrinkError> {
        let layers = model.config().layers;
        let keep: Vec<usize> = if self.config.named.is_empty() {
            best(&self.influence, bank::staying(layers, self.config.share))
        } else {
            (0..layers).filter(|layer| !self.config.named.contains(layer)).collect()
        };
        if keep.len() == layers {
            return Ok(ModelChange::default());
        }
        let mut change = chosen(model, state, &keep)?;
        for layer in (0..layers).filter(|layer| !keep.contains(layer)) {
            let influence = self.influence[layer];
            let told = if influence > 0.0 { format!(" ({influence:.4})") } else { String::new() };
            change.went.push(format!("layer {layer}{told}"));
            change.of_layers.insert(layer, "the layer".to_owned());
        }
        Ok(change)
    }
}

/// A model whose layer `i` is layer `of[i]` of this one.
pub(super) fn chosen(
    model: &Model,
    state: &RouterState,
    of: &[usize],
) -> Result<ModelChange, ShrinkError> {
    let old = model.config();
    let mut config = ModelConfig { layers: of.len(), ..old.clone() };
    config.attention.window_layers = moved(&old.attention.window_layers, of);
    config.rotary.layers = moved(&old.rotary.layers, of);
    if let MlpConfig::Experts(was) = &old.mlp {
        config.mlp = of_layers(was, of)?;
    }
    let plan = config.check()?;
    let mut change = ModelChange::default();
    for spec in specs(&config, &plan) {
        let from = at_layer(&spec.place, of);
        if let Some(values) = bank::weight(model, &from) {
            change.weights.insert(spec.place, values);
        }
    }
    let mut learned = RouterState::default();
    let known = buffers(old);
    for buffer in buffers(&config) {
        let from = of_buffer(&buffer.name, of);
        if let Some(values) =
            state.get(&from).filter(|_| known.iter().any(|known| known.name == from))
        {
            learned.set(&buffer.name, values.to_vec());
        }
    }
    change.state = (learned != *state).then_some(learned);
    change.config = Some(config);
    Ok(change)
}

fn moved(set: &LayerSet, of: &[usize]) -> LayerSet {
    match set {
        LayerSet::All => LayerSet::All,
        LayerSet::These(_) => LayerSet::of(of.len(), |layer| set.has(of[layer])),
    }
}

/// Experts in the layers that had some, by a list of those that have none.
fn of_layers(was: &experts::Config, of: &[usize]) -> Result<MlpConfig, ShrinkError> {
    let dense = (0..of.len()).filter(|&layer| !was.reaches(of[layer]));
    let counts = of.iter().filter(|&&layer| was.reaches(layer));
    let counts: Vec<usize> = counts.map(|&layer| was.experts(layer).computing).collect();
    if counts.is_empty() {
        let expected = "at least one layer with experts";
        return refused("the target: layers that stay", expected, "none", "choose fewer layers");
    }
    let mut now =
        experts::Config { dense_first: 0, every: 1, dense_layers: dense.collect(), ..was.clone() };
    if counts.iter().all(|count| *count == counts[0]) {
        (now.count, now.counts) = (counts[0], Vec::new());
    } else {
        now.counts = counts;
    }
    // Ways to say the same stay as they were said.
    let same = (0..of.len()).all(|layer| {
        let usual = experts::Config { counts: Vec::new(), ..was.clone() };
        usual.reaches(layer) == was.reaches(of[layer])
    });
    if same {
        (now.dense_first, now.every) = (was.dense_first, was.every);
        now.dense_layers.clone_from(&was.dense_layers);
    }
    Ok(MlpConfig::Experts(now))
}

/// The place that a place of the result has in the source.
fn at_layer(place: &ParamPlace, of: &[usize]) -> ParamPlace {
    let mut place = place.clone();
    match &mut place {
        ParamPlace::Layer { stored, .. }
        | ParamPlace::LayerNorm { stored, .. }
        | ParamPlace::Router { site: RouterSite::Layer(stored), .. } => *stored = of[*stored],
        _ => {}
    }
    place
}

/// The name that a buffer of the result has in the source: `experts.S.NAME` is of layer S.
fn of_buffer(name: &str, of: &[usize]) -> String {
    let mut words: Vec<String> = name.split('.').map(str::to_owned).collect();
    if let Some(word) = words.get_mut(1)
        && let Ok(layer) = word.parse::<usize>()
        && let Some(was) = of.get(layer)
    {
        *word = was.to_string();
    }
    words.join(".")
}
