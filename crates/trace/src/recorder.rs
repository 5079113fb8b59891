//! The one definition of what is recorded.

use model::params::RouterSite;
use model::{Choice, Model, Probe, RoutingEvent};
use ops::read_rows;

use crate::table::{RoutingDecision, Site, Trace};

/// A probe that keeps every decision of the routers of passes.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    trace: Trace,
}

impl Recorder {
    /// Nothing yet. What the routers of `model` decide among is known from the start, so that
    /// experts without any row are known too.
    pub fn of(model: &Model) -> Self {
        let mut trace = Trace::default();
        let config = model.config();
        let mlp = config.mlp.settings();
        if config.router.settings().chooses() {
            let recursions = config.recursions as u32;
            let site = Site { targets: recursions, computing: recursions, uses: Vec::new() };
            trace.sites.insert(None, site);
        }
        for stored in 0..model.plan().stored {
            let computing = mlp.computing_experts(stored) as u32;
            if computing > 0 {
                let uses = model.plan().unrolled().filter(|at| at.stored == stored);
                let uses = uses.map(|at| at.layer as u32).collect();
                let site = Site { targets: computing, computing, uses };
                trace.sites.insert(Some(stored as u32), site);
            }
        }
        Self { trace }
    }

    /// What was heard so far, in order; the recorder forgets it.
    pub fn take(&mut self) -> Trace {
        let none = Trace::among(self.trace.sites.clone());
        let trace = std::mem::replace(&mut self.trace, none);
        trace.sorted()
    }

    /// Whether no router of the model decides anything.
    pub fn hears_nothing(&self) -> bool {
        self.trace.sites.is_empty()
    }

    /// How many decisions were heard.
    pub fn len(&self) -> usize {
        self.trace.len()
    }

    /// Whether nothing was heard.
    pub fn is_empty(&self) -> bool {
        self.trace.is_empty()
    }

    /// Notes what was decided about row `i` of an event.
    fn note(&mut self, event: &RoutingEvent<'_>, i: usize, recursion: u32, what: &Routed) {
        let address = event.address;
        let layer = match event.site {
            RouterSite::Depth => None,
            RouterSite::Layer(stored) => Some(stored as u32),
        };
        self.trace.push(RoutingDecision {
            // Outside of training there is no step.
            step: address.step.checked_add(1),
            sequence: address.place + u64::from(event.rows.sequence[i]),
            position: event.rows.position[i],
            token: event.rows.token.as_ref().map_or(0, |tokens| tokens[i]),
            layer,
            recursion,
            targets: &what.targets,
            weights: &what.weights,
            dropped: &what.dropped,
        });
    }
}

/// Where one row went.
#[derive(Clone, Debug, Default)]
struct Routed {
    targets: Vec<u32>,
    weights: Vec<f32>,
    dropped: Vec<u32>,
}

/// Where each row of an event went. `recursions` says at which recursion each is.
fn routed(event: &RoutingEvent<'_>, recursions: &[u32]) -> Vec<Routed> {
    let rows = event.rows.len();
    let mut all = vec![Routed::default(); rows];
    match event.choice {
        Choice::GoOn { kept, .. } => {
            for (i, one) in all.iter_mut().enumerate().filter(|(i, _)| kept[*i]) {
                one.targets.push(recursions[i]);
                one.weights.extend(event.scores.get(i));
            }
        }
        Choice::Target(last) => {
            let targets = event.scores.len() / rows.max(1);
            for (i, one) in all.iter_mut().enumerate() {
                one.targets.extend(recursions[i]..=last[i]);
                let score = event.scores.get(i * targets + last[i] as usize);
                one.weights.extend(score.into_iter().cycle().take(one.targets.len()));
            }
        }
        Choice::Plan(plan) => {
            let weights = plan.weights.as_ref().map(read_rows);
            for target in 0..plan.targets() {
                for entry in plan.offsets[target] as usize..plan.offsets[target + 1] as usize {
                    let one = &mut all[plan.rows[entry] as usize];
                    one.targets.push(target as u32);
                    one.weights.extend(weights.as_ref().map(|weights| weights[entry]));
                }
            }
            for dropped in &plan.dropped {
                all[dropped.row as usize].dropped.push(dropped.target);
            }
        }
    }
    all
}

impl Probe for Recorder {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        let mut recursions = Vec::with_capacity(event.rows.len());
        for &(recursion, count) in event.runs {
            recursions.resize(recursions.len() + count, recursion as u32);
        }
        if let (Choice::Plan(plan), RouterSite::Layer(stored)) = (event.choice, event.site) {
            // Experts that compute nothing stand behind those that do.
            let site = self.trace.sites.entry(Some(stored as u32)).or_default();
            site.targets = site.targets.max(plan.targets() as u32);
        }
        let all = routed(event, &recursions);
        for (i, (what, &recursion)) in all.iter().zip(&recursions).enumerate() {
            self.note(event, i, recursion, what);
        }
    }
}
