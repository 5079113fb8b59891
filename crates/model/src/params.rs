//! What the table of a model says of each number that is stored: its place, shape, start, optimizer
//! group, and how often a token meets it; and of buffers, which routers learn outside of gradients,
//! their name, length and range. The table itself is made in `table.rs`.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::sync::Arc;

use ops::{Format, Weight};
use serde::{Deserialize, Serialize, Serializer};

use crate::error::{ConfigError, refuse};
use crate::layout::LayerUse;
use crate::rng::{Purpose, Stream, name_place};
use crate::sizes::Sizes;

/// One matrix of a layer (or a bank of them), by its name in the table and in recipes. Attention
/// and each MLP list theirs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part(&'static str);

impl Part {
    /// A part of this name.
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// Its name in the table and in recipes.
    pub fn name(self) -> &'static str {
        self.0
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

/// One tensor of an adapter: its name, and a number where the adapter has several of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Factor {
    name: &'static str,
    number: Option<usize>,
}

impl Factor {
    /// The only tensor of this name.
    pub const fn new(name: &'static str) -> Self {
        Self { name, number: None }
    }

    /// Tensor `number` of this name, from 0.
    pub const fn numbered(name: &'static str, number: usize) -> Self {
        Self { name, number: Some(number) }
    }
}

impl Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        self.number.map_or(Ok(()), |number| write!(f, ".{number}"))
    }
}

/// Whose rows a router decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RouterSite {
    /// The recursions of the model: who goes on.
    Depth,
    /// The MLP of one stored layer: which experts.
    Layer(usize),
}

/// Where a parameter stands in the model. Its text form is the name of the tensor in checkpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParamPlace {
    /// `embed`: the token embedding, and the head where the two are tied.
    Embed,
    /// `layers.S.PART`: a matrix or a bias of stored layer S.
    Layer {
        /// Number of the stored layer.
        stored: usize,
        /// Which of its matrices or biases.
        part: Part,
    },
    /// `layers.S.NORM.U`: a norm of stored layer S for its use U; 0 where all uses share it.
    LayerNorm {
        /// Number of the stored layer.
        stored: usize,
        /// Which of its norms.
        part: Part,
        /// Which use of the layer, from 0.
        recursion: usize,
    },
    /// `relax.S.PART.R.FACTOR`: what use R of stored layer S adds to a matrix; `.K` behind it where
    /// the adapter has several tensors of that name.
    Adapter {
        /// Number of the stored layer.
        stored: usize,
        /// The matrix that it adds to.
        part: Part,
        /// Which use of the layer, from 0.
        recursion: usize,
        /// Which of the adapter's tensors.
        factor: Factor,
    },
    /// `encoding.R`: factors of the stream behind recursion R.
    Encoding {
        /// The recursion, from 0.
        recursion: usize,
    },
    /// `router.FACTOR`, `router.R.FACTOR` (one router for each recursion), with
    /// `auxiliary_router` for one that is trained on its own, and `layers.S.` ahead for the
    /// router of a layer.
    Router {
        /// Whose rows it decides about.
        site: RouterSite,
        /// Whether it is the auxiliary one.
        auxiliary: bool,
        /// The recursion it decides about; `None` where one router serves all.
        recursion: Option<usize>,
        /// Which of its tensors.
        factor: &'static str,
    },
    /// `routers.FACTOR`: what the routers of all layers share.
    Routers {
        /// Which of their tensors.
        factor: &'static str,
    },
    /// `norm`: the last norm.
    FinalNorm,
    /// `norm_bias`: what the last norm adds, where it does.
    FinalNormBias,
    /// `head`: the output head, where it is not the embedding.
    Head,
    /// `head_bias`: what is added to logits, where something is.
    HeadBias,
}

impl Display for ParamPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embed => f.write_str("embed"),
            Self::FinalNorm => f.write_str("norm"),
            Self::FinalNormBias => f.write_str("norm_bias"),
            Self::Head => f.write_str("head"),
            Self::HeadBias => f.write_str("head_bias"),
            Self::Layer { stored, part } => write!(f, "layers.{stored}.{}", part.0),
            Self::LayerNorm { stored, part, recursion } => {
                write!(f, "layers.{stored}.{}.{recursion}", part.0)
            }
            Self::Adapter { stored, part, recursion, factor } => {
                write!(f, "relax.{stored}.{}.{recursion}.{factor}", part.0)
            }
            Self::Encoding { recursion } => write!(f, "encoding.{recursion}"),
            Self::Router { site, auxiliary, recursion, factor } => {
                if let RouterSite::Layer(stored) = site {
                    write!(f, "layers.{stored}.")?;
                }
                f.write_str(if *auxiliary { "auxiliary_router." } else { "router." })?;
                if let Some(recursion) = recursion {
                    write!(f, "{recursion}.")?;
                }
                f.write_str(factor)
            }
            Self::Routers { factor } => write!(f, "routers.{factor}"),
        }
    }
}

/// How a weight starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Independent normal numbers with this standard deviation.
    Normal(f64),
    /// Ones, which scale nothing.
    Ones,
    /// Zeros, which add nothing.
    Zeros,
}

/// What kind of weight it is, for counting and for the optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Token embedding and an untied head.
    Embedding,
    /// Attention and feed-forward matrices.
    Block,
    /// What a use of a layer adds to its matrices.
    Adapter,
    /// Norm scales, biases, and other vectors that change nothing at first: never decayed.
    Norm,
    /// The router that decides.
    Router,
    /// The auxiliary router, trained on its own: ten times the learning rate, clipped apart.
    AuxiliaryRouter,
}

/// One weight of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Where it stands in the model.
    pub place: ParamPlace,
    /// Its name in checkpoints: the text of the place.
    pub name: String,
    /// (rows, columns); a vector is one row.
    pub shape: (usize, usize),
    /// What fresh values are.
    pub init: Init,
    /// How it is counted and trained.
    pub group: Group,
    /// The share of its numbers that a row which comes by is multiplied with: 1 for a matrix, `k/E`
    /// for a bank of E experts of which a row takes k, 0 for what is looked up or scales a row.
    pub active: f64,
}

impl ParamSpec {
    pub(crate) fn new(place: ParamPlace, shape: (usize, usize), init: Init, group: Group) -> Self {
        let looked_up = matches!(place, ParamPlace::Embed) || group == Group::Norm;
        let active = if looked_up { 0.0 } else { 1.0 };
        Self { name: place.to_string(), place, shape, init, group, active }
    }

    /// A matrix of stored layer `stored`, with normal numbers of the model's deviation.
    pub(crate) fn matrix(sizes: &Sizes, stored: usize, part: Part, shape: (usize, usize)) -> Self {
        let place = ParamPlace::Layer { stored, part };
        Self::new(place, shape, Init::Normal(sizes.init_std), Group::Block)
    }

    /// A bias of `length` in stored layer `stored`, which starts at zero.
    pub(crate) fn bias(stored: usize, part: Part, length: usize) -> Self {
        Self::new(ParamPlace::Layer { stored, part }, (1, length), Init::Zeros, Group::Norm)
    }

    /// How many numbers it has.
    pub fn count(&self) -> usize {
        self.shape.0 * self.shape.1
    }

    /// Floating-point operations of one row that comes by: a multiply and an add for each number
    /// that it meets.
    pub fn flops(&self) -> f64 {
        2.0 * self.count() as f64 * self.active
    }

    /// Whether a number format can be asked for this weight.
    pub fn can_be_rounded(&self) -> bool {
        matches!(self.group, Group::Embedding | Group::Block)
    }

    /// The format in which this weight is kept when a model is rounded to `format`; `None` if it
    /// stays as it is. Matrices of embedding, layers and head are rounded, norms, routers and
    /// adapters are not; with 4-bit codes embedding and head get 8 bits, as errors there reach
    /// every token.
    pub fn rounded(&self, format: Format) -> Option<Format> {
        match self.group {
            Group::Embedding => Some(format.of_embedding()),
            Group::Block => Some(format),
            _ => None,
        }
    }

    /// Fresh values: a function of the seed and the name alone.
    pub fn fresh(&self, seed: u64) -> Vec<f32> {
        match self.init {
            Init::Ones => vec![1.0; self.count()],
            Init::Zeros => vec![0.0; self.count()],
            Init::Normal(std) => {
                let mut stream = Stream::at(seed, Purpose::Init, 0, name_place(&self.name));
                (0..self.count()).map(|_| (stream.normal() * std) as f32).collect()
            }
        }
    }
}

/// One buffer: numbers that a router learns outside of gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct BufferSpec {
    /// Its name in checkpoints.
    pub name: String,
    /// Numbers in it. A buffer is absent until its router first writes it.
    pub length: usize,
    /// The least and the largest value that it may hold.
    pub range: (f64, f64),
    /// Whether every step of training writes it, so that a run that has done steps has it.
    pub every_step: bool,
}

/// The weights of a model while it is built: each must be taken once.
pub struct Take {
    left: BTreeMap<ParamPlace, Arc<Weight>>,
    /// Those that several may take.
    shared: BTreeMap<ParamPlace, Arc<Weight>>,
    wrong: Option<String>,
}

impl Take {
    pub(crate) fn new(weights: &[(ParamSpec, Arc<Weight>)]) -> Self {
        let left = weights.iter().map(|(spec, weight)| (spec.place.clone(), weight.clone()));
        Self { left: left.collect(), shared: BTreeMap::new(), wrong: None }
    }

    /// The weight at `place`. One that is not in the table, or was taken before, is an error of
    /// [`Take::finish`], and an empty weight stands in for it.
    pub(crate) fn take(&mut self, place: &ParamPlace) -> Arc<Weight> {
        self.left.remove(place).unwrap_or_else(|| {
            let what = format!("{place}, which the table has not, or which is taken twice");
            self.wrong.get_or_insert(what);
            Arc::new(Weight::new(Vec::new(), 0, 0))
        })
    }

    /// The weight at `place`, which others take too.
    pub(crate) fn take_shared(&mut self, place: &ParamPlace) -> Arc<Weight> {
        if let Some(weight) = self.shared.get(place) {
            return weight.clone();
        }
        let weight = self.take(place);
        self.shared.insert(place.clone(), weight.clone());
        weight
    }

    /// # Errors
    /// A weight that nobody took, that was taken twice, or that the table does not have.
    pub(crate) fn finish(self) -> Result<(), ConfigError> {
        let unused = self.left.keys().next().map(|place| format!("{place}, which nothing uses"));
        match self.wrong.or(unused) {
            None => Ok(()),
            Some(found) => {
                let expected = "a table whose every weight has one user: mend the part of the \
                                model that lists it";
                refuse("parameters", found, expected.into())
            }
        }
    }
}

impl ParamPlace {
    /// Whether it belongs to what single uses add to the layers: adapters and encodings.
    pub fn is_relaxation(&self) -> bool {
        matches!(self, Self::Adapter { .. } | Self::Encoding { .. })
    }

    /// Whether it belongs to a router.
    pub fn is_router(&self) -> bool {
        matches!(self, Self::Router { .. } | Self::Routers { .. })
    }

    /// The stored layer that it belongs to, but for what single uses add.
    pub fn layer(&self) -> Option<usize> {
        match self {
            Self::Layer { stored, .. } | Self::LayerNorm { stored, .. } => Some(*stored),
            Self::Router { site: RouterSite::Layer(stored), .. } => Some(*stored),
            _ => None,
        }
    }

    /// The part that it is of a layer, for a matrix.
    pub fn part(&self) -> Option<Part> {
        match self {
            Self::Layer { part, .. } => Some(*part),
            _ => None,
        }
    }

    /// The same place in stored layer `at`; a norm's is that of its use `norm`. Other places stay.
    pub fn in_layer(&self, at: usize, norm: usize) -> Self {
        match self.clone() {
            Self::Layer { part, .. } => Self::Layer { stored: at, part },
            Self::LayerNorm { part, .. } => Self::LayerNorm { stored: at, part, recursion: norm },
            Self::Router { site: RouterSite::Layer(_), auxiliary, recursion, factor } => {
                Self::Router { site: RouterSite::Layer(at), auxiliary, recursion, factor }
            }
            other => other,
        }
    }

    /// The place of the adapter tensor `factor` of a use.
    pub fn adapter(at: LayerUse, part: Part, factor: Factor) -> Self {
        Self::Adapter { stored: at.stored, part, recursion: at.recursion, factor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_without_a_user_or_with_two_does_not_build() {
        let weight = || Arc::new(Weight::new(vec![0.0], 1, 1));
        let spec = |place| ParamSpec::new(place, (1, 1), Init::Zeros, Group::Block);
        let weights =
            [(spec(ParamPlace::Embed), weight()), (spec(ParamPlace::FinalNorm), weight())];
        let mut take = Take::new(&weights);
        take.take(&ParamPlace::Embed);
        let error = take.finish().expect_err("the norm is left").to_string();
        assert!(error.contains("norm, which nothing uses"), "{error}");
        let mut take = Take::new(&weights);
        take.take(&ParamPlace::FinalNorm);
        take.take(&ParamPlace::Embed);
        take.take(&ParamPlace::Embed);
        let error = take.finish().expect_err("embed is taken twice").to_string();
        assert!(error.contains("embed") && error.contains("twice"), "{error}");
        let mut take = Take::new(&weights);
        take.take(&ParamPlace::Embed);
        take.take(&ParamPlace::FinalNorm);
        assert!(take.finish().is_ok());
    }
}
