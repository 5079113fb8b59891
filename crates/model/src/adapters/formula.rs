//! Adapters whose use computes with one matrix, which a formula makes of the stored one: merged
//! once while nothing changes, so that a row costs what it costs without the adapter. The formulas
//! are those by which folders of PEFT are read.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use ops::formulas::{Affine, LearnedChange};
use ops::{AdaptedWeight, AdapterLeaf, Tensor2, Weight};

use super::member::{Adapter, AdapterSettings, Factors, Matrices, UsedMatrix};
use super::places::Sites;
use crate::error::ConfigError;
use crate::layout::{LayerPlan, LayerUse};
use crate::params::{Factor, Group, Init, ParamSpec, Part};
use crate::pass::Pass;
use crate::rows::Rows;
use crate::sizes::Sizes;

/// A tensor of a formula: its name there, which is its factor's, and how it begins.
pub(super) struct Leaf {
    pub(super) name: &'static str,
    pub(super) shape: (usize, usize),
    pub(super) init: Init,
}

impl Leaf {
    pub(super) fn new(name: &'static str, shape: (usize, usize), init: Init) -> Self {
        Self { name, shape, init }
    }
}

/// The use that an adapter is made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Adapted {
    pub(super) part: Part,
    /// The matrix, `[n, d]`.
    pub(super) shape: (usize, usize),
    /// Which of the uses that share tensors.
    pub(super) number: usize,
}

/// The settings of such a kind.
pub(super) trait Formula: Clone + Debug + Send + Sync + 'static {
    /// Where its adapters stand.
    fn sites(&self) -> Sites<'_>;

    /// Refuses settings that do not fit the matrix `base`.
    fn fits(&self, base: &ParamSpec) -> Result<(), ConfigError>;

    /// Whether it multiplies the outputs of matrices of this part.
    fn scales_outputs(&self, _part: Part) -> bool {
        false
    }

    /// Refuses settings that do not fit the uses of the model's layers.
    fn fits_uses(
        &self,
        _sizes: &Sizes,
        _plan: &LayerPlan,
        _matrices: &Matrices,
    ) -> Result<(), ConfigError> {
        Ok(())
    }

    /// The use with which a tensor stands, where several uses share it.
    fn shared_home(&self, _site: UsedMatrix<'_>, _leaf: &'static str) -> Option<LayerUse> {
        None
    }

    /// Which of the uses that share tensors this is; 0 where none are shared.
    fn number_of(&self, _site: UsedMatrix<'_>) -> usize {
        0
    }

    /// The tensors that the adapter of a use computes with.
    fn leaves(&self, site: UsedMatrix<'_>) -> Vec<Leaf>;

    /// The formula of an adapter over the numbers of these tensors, in the order of
    /// [`Formula::leaves`].
    fn change(&self, of: &Adapted, numbers: Vec<Vec<f64>>) -> Box<dyn LearnedChange>;
}

impl<F: Formula> AdapterSettings for F {
    fn check(
        &self,
        sizes: &Sizes,
        plan: &LayerPlan,
        matrices: &Matrices,
    ) -> Result<(), ConfigError> {
        self.sites().check(sizes, plan, matrices, &|base| self.fits(base))?;
        self.fits_uses(sizes, plan, matrices)
    }

    /// Merged tensors are no product of a row's: they cost nothing that is counted.
    fn specs(&self, site: UsedMatrix<'_>) -> Vec<ParamSpec> {
        if !self.adapts(site) {
            return Vec::new();
        }
        let mut table = Vec::new();
        for leaf in self.leaves(site) {
            let stands_here = self.shared_home(site, leaf.name).is_none_or(|at| at == site.at);
            let (true, Some(place)) = (stands_here, site.own(Factor::new(leaf.name))) else {
                continue;
            };
            let group = if leaf.init == Init::Ones { Group::Norm } else { Group::Adapter };
            let spec = ParamSpec::new(place, leaf.shape, leaf.init, group);
            table.push(ParamSpec { active: 0.0, ..spec });
        }
        table
    }

    fn build(
        &self,
        site: UsedMatrix<'_>,
        _: &[ParamSpec],
        take: &mut dyn FnMut(Factor) -> Arc<Weight>,
    ) -> Option<Box<dyn Adapter>> {
        let mut leaves = Vec::new();
        for Leaf { name, .. } in self.leaves(site) {
            leaves.push(AdapterLeaf { name, weight: take(Factor::new(name)) });
        }
        let (settings, of) = (self.clone(), adapted(self, site)?);
        Some(Box::new(Merged { settings, of, leaves, made: Mutex::default() }))
    }

    fn adapts(&self, site: UsedMatrix<'_>) -> bool {
        self.sites().adapt(site)
    }

    fn home(&self, site: UsedMatrix<'_>, factor: Factor) -> Option<LayerUse> {
        let leaves = self.leaves(site).into_iter();
        let leaf = leaves.map(|leaf| leaf.name).find(|name| Factor::new(name) == factor)?;
        self.shared_home(site, leaf)
    }

    fn scales_outputs(&self, part: Part) -> bool {
        Formula::scales_outputs(self, part)
    }

    fn keeps_matrices(&self) -> bool {
        true
    }

    fn first_token(&self) -> u32 {
        self.sites().from_token
    }

    fn merges(&self) -> bool {
        self.sites().from_token == 0
    }

    fn merged(&self, site: UsedMatrix<'_>, w: &[f32], factors: &Factors<'_>) -> Option<Vec<f32>> {
        if !self.merges() {
            return None;
        }
        let (of, (out, into)) = (adapted(self, site)?, site.base.shape);
        let leaves = self.leaves(site).into_iter();
        let numbers: Option<_> =
            leaves.map(|leaf| factors(Factor::new(leaf.name)).map(wide)).collect();
        let mut affine = Affine { matrices: 1, out, into, weight: wide(w.to_vec()), bias: None };
        self.change(&of, numbers?).merge(&mut affine);
        Some(affine.weight.into_iter().map(|x| x as f32).collect())
    }
}

fn adapted(formula: &impl Formula, site: UsedMatrix<'_>) -> Option<Adapted> {
    let (part, shape) = (site.base.place.part()?, site.base.shape);
    Some(Adapted { part, shape, number: formula.number_of(site) })
}

/// The next tensor of a formula; empty where there is none.
pub(super) fn next(numbers: &mut impl Iterator<Item = Vec<f64>>) -> Vec<f64> {
    numbers.next().unwrap_or_default()
}

fn wide(numbers: Vec<f32>) -> Vec<f64> {
    numbers.into_iter().map(f64::from).collect()
}

/// The adapter of one use of a matrix.
#[derive(Debug)]
struct Merged<F> {
    settings: F,
    of: Adapted,
    leaves: Vec<AdapterLeaf>,
    made: Mutex<Option<Made>>,
}

/// The matrix that is merged.
#[derive(Debug)]
struct Made {
    /// Changes of the stored matrix and of the tensors until it was made.
    made_at: Vec<u64>,
    matrix: Arc<AdaptedWeight>,
}

impl<F: Formula> Merged<F> {
    /// Made anew only where a number has changed: between the steps of a training, and once in
    /// generation.
    fn matrix(&self, weight: &Weight) -> Arc<AdaptedWeight> {
        let all = std::iter::once(weight).chain(self.leaves.iter().map(|leaf| &*leaf.weight));
        let made_at: Vec<u64> = all.map(Weight::changes).collect();
        let mut kept = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.as_ref().filter(|kept| kept.made_at == made_at) {
            return kept.matrix.clone();
        }
        let numbers = self.leaves.iter().map(|leaf| wide(leaf.weight.read())).collect();
        let change = self.settings.change(&self.of, numbers);
        let matrix = Arc::new(AdaptedWeight::new(change, weight));
        *kept = Some(Made { made_at, matrix: matrix.clone() });
        matrix
    }
}

impl<F: Formula> Adapter for Merged<F> {
    fn run(
        &self,
        weight: &Weight,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        _: &Rows,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        pass.ops.adapted(h_td, residual_tn, weight, &self.matrix(weight), &self.leaves)
    }
}
