//! A matrix of a layer as attention and MLPs use it: the stored weight with what each use adds.

use std::sync::Arc;

use ops::{Tensor2, Weight};

use crate::adapters::member::{Adapter, AdapterSettings, UsedMatrix, stored_product};
use crate::layout::{DepthRuns, LayerPlan};
use crate::params::{ParamPlace, ParamSpec, Part, Take};
use crate::pass::Pass;
use crate::rows::Rows;
use crate::sizes::Sizes;

/// Builds the matrices of one stored layer, each with what its uses add.
pub struct LinearBuilder<'a> {
    pub(crate) sizes: &'a Sizes,
    pub(crate) plan: &'a LayerPlan,
    pub(crate) stored: usize,
    /// The layer's matrices in the table.
    pub(crate) table: Vec<ParamSpec>,
    /// What says which matrices get adapters, and builds these.
    pub(crate) adapters: &'a dyn AdapterSettings,
}

impl LinearBuilder<'_> {
    /// The matrix `part` of the layer, with the bias `bias` if there is one.
    pub fn build_biased(&self, part: Part, bias: Option<Part>, take: &mut Take) -> Linear {
        let stored = self.stored;
        let bias = bias.map(|part| take.take(&ParamPlace::Layer { stored, part }));
        Linear { bias, ..self.build(part, take) }
    }

    /// The matrix `part` of the layer.
    pub fn build(&self, part: Part, take: &mut Take) -> Linear {
        let place = ParamPlace::Layer { stored: self.stored, part };
        let weight = take.take(&place);
        let base = self.table.iter().find(|spec| spec.place == place);
        let Some(base) = base else {
            return Linear { weight, bias: None, adapters: Vec::new(), from_token: 0 };
        };
        let mut adapters = Vec::new();
        for &at in self.plan.uses_of(self.stored) {
            let site = UsedMatrix { sizes: self.sizes, plan: self.plan, at, base };
            if !self.adapters.adapts(site) {
                adapters.push(None);
                continue;
            }
            let specs = self.adapters.specs(site);
            let mut take = |factor| match self.adapters.home(site, factor) {
                Some(home) => take.take_shared(&ParamPlace::adapter(home, part, factor)),
                None => take.take(&ParamPlace::adapter(at, part, factor)),
            };
            adapters.push(self.adapters.build(site, &specs, &mut take));
        }
        if adapters.iter().all(Option::is_none) {
            adapters.clear();
        }
        Linear { weight, bias: None, adapters, from_token: self.adapters.first_token() }
    }

    /// The weights of a bank of matrices, which takes no adapters.
    pub fn bank(&self, part: Part, take: &mut Take) -> Arc<Weight> {
        take.take(&ParamPlace::Layer { stored: self.stored, part })
    }
}

/// A matrix of a layer with what each use adds to it.
#[derive(Debug)]
pub struct Linear {
    weight: Arc<Weight>,
    /// Added to every row, adapted or not.
    bias: Option<Arc<Weight>>,
    /// By recursion; empty if no use adds anything.
    adapters: Vec<Option<Box<dyn Adapter>>>,
    /// The first token whose rows the adapters change.
    from_token: u32,
}

impl Linear {
    /// `h W^T + b`, each row with what its use adds.
    pub fn apply(
        &self,
        h_td: Tensor2,
        rows: &Rows,
        at: &DepthRuns,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        self.biased(h_td, None, rows, at, pass)
    }

    /// The same added to `residual`.
    pub fn add(
        &self,
        h_td: Tensor2,
        residual_tn: Tensor2,
        rows: &Rows,
        at: &DepthRuns,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        self.biased(h_td, Some(residual_tn), rows, at, pass)
    }

    fn biased(
        &self,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        rows: &Rows,
        at: &DepthRuns,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        let y_tn = self.product(h_td, residual_tn, rows, at, pass);
        match &self.bias {
            Some(bias) => pass.ops.add_bias(y_tn, bias),
            None => y_tn,
        }
    }

    fn product(
        &self,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        rows: &Rows,
        at: &DepthRuns,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        if self.adapters.is_empty() || at.count() <= 1 {
            let recursion = at.runs().next().map_or(0, |(at, _)| at.recursion);
            return self.one(h_td, residual_tn, rows, recursion, pass);
        }
        let mut parts = Vec::new();
        for (at, range) in at.runs() {
            let residual = residual_tn.as_ref().map(|x| ops::rows_of(x, range.clone()));
            let rows = rows.stretch_of(range.clone());
            parts.push(self.one(ops::rows_of(&h_td, range), residual, &rows, at.recursion, pass));
        }
        ops::stack(parts)
    }

    /// The product of rows that are all at one use.
    fn one(
        &self,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        rows: &Rows,
        recursion: usize,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        pass.probe.product(&self.weight, &[], &h_td);
        match self.adapters.get(recursion).and_then(Option::as_ref) {
            Some(adapter) if self.from_token == 0 => {
                adapter.run(&self.weight, h_td, residual_tn, rows, pass)
            }
            Some(adapter) => self.masked(&**adapter, h_td, residual_tn, rows, pass),
            None => stored_product(pass.ops, &self.weight, h_td, residual_tn),
        }
    }

    /// The same where rows of tokens before the first one meet the stored matrix alone: these have
    /// the bits that they have without adapters.
    fn masked(
        &self,
        adapter: &dyn Adapter,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        rows: &Rows,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        let is_changed = |&row: &u32| rows.tokens()[row as usize] >= self.from_token;
        let all = 0..rows.len() as u32;
        let (changed, kept): (Vec<u32>, Vec<u32>) = all.partition(is_changed);
        if kept.is_empty() {
            return adapter.run(&self.weight, h_td, residual_tn, rows, pass);
        }
        if changed.is_empty() {
            return stored_product(pass.ops, &self.weight, h_td, residual_tn);
        }
        let ops = pass.ops;
        let only = |x: &Tensor2, numbers: &[u32]| ops.gather_rows(x.clone(), &numbers.into());
        let residual_kn = residual_tn.as_ref().map(|x_tn| only(x_tn, &kept));
        let kept_kn = stored_product(ops, &self.weight, only(&h_td, &kept), residual_kn);
        let residual_cn = residual_tn.as_ref().map(|x_tn| only(x_tn, &changed));
        let (h_cd, of) = (only(&h_td, &changed), rows.only(&changed));
        let changed_cn = adapter.run(&self.weight, h_cd, residual_cn, &of, pass);
        let mut back = vec![0; rows.len()];
        for (at, &row) in kept.iter().chain(&changed).enumerate() {
            back[row as usize] = at as u32;
        }
        ops.gather_rows(ops::stack(vec![kept_kn, changed_cn]), &back.into())
    }
}
