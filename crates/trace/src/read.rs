//! A Parquet file as a trace.

use std::path::Path;

use data::{NumberColumn, NumberColumns, Numbers};

use crate::TraceError;
use crate::table::{RoutingDecision, Site, TokenFacts, Trace};
use crate::write::{SITES, SOURCES, TEXTS};

const NEXT: &str = "give a file that Lathe wrote, or one with the columns of docs/traces.md";
/// A model has fewer layers and recursions.
const MOST: u32 = 1 << 16;
/// A router has at most so many targets: tables of pairs of them must fit in memory.
pub(crate) const MOST_TARGETS: u32 = 1 << 12;
/// The columns that a trace may have.
const COLUMNS: [&str; 11] = [
    "step",
    "sequence",
    "position",
    "token",
    "layer",
    "recursion",
    "targets",
    "weights",
    "dropped",
    "loss",
    "source",
];

/// The decisions in the file at `path`, in its order. `step`, `layer`, `weights`, `dropped`, `loss`
/// and `source` may be missing.
///
/// # Errors
/// A file that is no Parquet, or whose columns are not those of a trace; rows of the same router
/// about the same token that differ; what it says of routers, where the rows say otherwise.
pub fn read(path: &Path) -> Result<Trace, TraceError> {
    let columns =
        NumberColumns::open(path).map_err(|found| refused(path, "file", "Parquet", found))?;
    let mut trace = Trace::default();
    for name in columns.names() {
        let first = name.split('.').next().unwrap_or_default();
        if !COLUMNS.contains(&first) {
            let expected = format!("columns named {}", COLUMNS.join(", "));
            return Err(refused(path, "columns", &expected, format!("{name:?}")));
        }
    }
    if let Some(sites) = columns.says(SITES) {
        let sites: Vec<(Option<u32>, Site)> = serde_json::from_str(sites).map_err(|error| {
            refused(path, SITES, "layers with numbers of targets", error.to_string())
        })?;
        let count = sites.len();
        for (layer, site) in sites {
            if let Some((expected, found)) = lie(&site) {
                let of = format!("{SITES} of {}", named(layer));
                return Err(refused(path, &of, &expected, found));
            }
            trace.sites.insert(layer, site);
        }
        if trace.sites.len() < count {
            return Err(refused(path, SITES, "each router once", "one twice".to_owned()));
        }
    }
    about_text(&columns, &mut trace, path)?;
    let told = trace.sites.clone();
    for number in 0..columns.groups() {
        let group = Group { columns: &columns, number, path };
        group.read(&mut trace)?;
    }
    for (layer, site) in &told {
        let most = trace.sites.get(layer).map_or(0, |site| site.targets);
        if most > site.targets {
            let of = format!("{SITES} of {}", named(*layer));
            let expected = format!("at least the {most} targets that its rows hold");
            return Err(refused(path, &of, &expected, site.targets.to_string()));
        }
    }
    if let Some(twice) = trace.contradiction() {
        let found = format!(
            "two that differ, of {} about position {} of sequence {}, recursion {}",
            named(twice.layer),
            twice.position,
            twice.sequence,
            twice.recursion
        );
        return Err(refused(path, "rows", "one for each router and use, or equal ones", found));
    }
    Ok(trace)
}

/// Reads what a file says of its text.
fn about_text(columns: &NumberColumns, trace: &mut Trace, path: &Path) -> Result<(), TraceError> {
    if let Some(texts) = columns.says(TEXTS) {
        let texts: Vec<(u32, String)> = serde_json::from_str(texts)
            .map_err(|error| refused(path, TEXTS, "tokens with their texts", error.to_string()))?;
        trace.texts = texts.into_iter().collect();
    }
    if let Some(sources) = columns.says(SOURCES) {
        trace.sources = serde_json::from_str(sources)
            .map_err(|error| refused(path, SOURCES, "names", error.to_string()))?;
    }
    Ok(())
}

fn named(layer: Option<u32>) -> String {
    layer.map_or_else(|| "the depth router".to_owned(), |layer| format!("layer {layer}"))
}

/// What cannot be true of a router: what was expected, and what is said.
fn lie(site: &Site) -> Option<(String, String)> {
    if site.targets > MOST_TARGETS {
        return Some((format!("at most {MOST_TARGETS} targets"), site.targets.to_string()));
    }
    if site.computing > site.targets {
        let expected = format!("at most {} computing targets", site.targets);
        return Some((expected, site.computing.to_string()));
    }
    let mut uses = site.uses.clone();
    uses.sort_unstable();
    uses.dedup();
    let whole = uses.len() == site.uses.len() && uses.iter().all(|&place| place < MOST);
    let expected = format!("uses below {MOST}, each once");
    (!whole).then(|| (expected, format!("{} uses", site.uses.len())))
}

/// Whether the file at `path` is a table that [`crate::write()`] made: Parquet that says what its
/// routers decide among. Others' files never say it.
pub fn is_own(path: &Path) -> bool {
    NumberColumns::open(path).is_ok_and(|columns| columns.says(SITES).is_some())
}

fn refused(path: &Path, field: &str, expected: &str, found: String) -> TraceError {
    TraceError::format(path, field, expected, found, NEXT)
}

/// A part of a file, as its writer cut it.
struct Group<'a> {
    columns: &'a NumberColumns,
    number: usize,
    path: &'a Path,
}

/// The values of a column with where those of each row end.
type Lists<T> = (Vec<T>, Vec<usize>);

impl Group<'_> {
    fn bad(&self, field: &str, expected: &str, found: impl Into<String>) -> TraceError {
        TraceError::format(self.path, format!("column {field:?}"), expected, found, NEXT)
    }

    fn missing(&self, name: &str) -> TraceError {
        self.bad(name, "a column of whole numbers", self.columns.names().join(", "))
    }

    fn column(&self, name: &str) -> Result<Option<NumberColumn>, TraceError> {
        self.columns.column(self.number, name).map_err(|found| self.bad(name, "numbers", found))
    }

    /// Whole numbers below `most`; `None` where the file has no such column.
    fn whole(&self, name: &str, most: u64) -> Result<Option<Lists<u64>>, TraceError> {
        let Some(column) = self.column(name)? else { return Ok(None) };
        let Numbers::Whole(values) = column.values else {
            return Err(self.bad(name, "whole numbers", "numbers with a fraction"));
        };
        let mut wrong = values.iter().filter(|&&v| !u64::try_from(v).is_ok_and(|v| v < most));
        if let Some(wrong) = wrong.next() {
            return Err(self.bad(name, &format!("from 0 and below {most}"), wrong.to_string()));
        }
        Ok(Some((values.into_iter().map(|value| value as u64).collect(), column.ends)))
    }

    /// One number a row.
    fn one(&self, name: &str, most: u64) -> Result<Vec<u64>, TraceError> {
        let (values, ends) = self.whole(name, most)?.ok_or_else(|| self.missing(name))?;
        if ends.iter().enumerate().any(|(row, &end)| end != row + 1) {
            return Err(self.bad(name, "one number a row", "null or several"));
        }
        Ok(values)
    }

    /// One number a row, or none.
    fn some(&self, name: &str, most: u64) -> Result<Vec<Option<u64>>, TraceError> {
        let rows = self.columns.rows(self.number);
        let Some((values, ends)) = self.whole(name, most)? else { return Ok(vec![None; rows]) };
        let mut each = Vec::with_capacity(rows);
        let mut start = 0;
        for end in ends {
            if end > start + 1 {
                return Err(self.bad(name, "one number a row, or null", "several"));
            }
            each.push((end > start).then(|| values[start]));
            start = end;
        }
        Ok(each)
    }

    /// Targets of each row, ascending and each once.
    fn targets(&self, name: &str) -> Result<Option<Lists<u32>>, TraceError> {
        let most = MOST_TARGETS.into();
        let Some((values, ends)) = self.whole(name, most)? else { return Ok(None) };
        let values: Vec<u32> = values.into_iter().map(|value| value as u32).collect();
        let mut start = 0;
        for &end in &ends {
            let list = &values[start..end];
            if list.windows(2).any(|pair| pair[0] >= pair[1]) {
                return Err(self.bad(
                    name,
                    "targets of a row ascending, each once",
                    format!("{list:?}"),
                ));
            }
            start = end;
        }
        Ok(Some((values, ends)))
    }

    /// What the token after each row's cost, where that is known.
    fn losses(&self) -> Result<Vec<Option<f32>>, TraceError> {
        let rows = self.columns.rows(self.number);
        let Some(column) = self.column("loss")? else { return Ok(vec![None; rows]) };
        let values = match column.values {
            Numbers::Real(values) => values,
            Numbers::Whole(values) => values.into_iter().map(|value| value as f32).collect(),
        };
        let (mut each, mut start) = (Vec::with_capacity(rows), 0);
        for end in column.ends {
            let loss = (end > start).then(|| values[start]);
            if end > start + 1 {
                return Err(self.bad("loss", "one number a row, or null", "several"));
            }
            if let Some(wrong) = loss.filter(|loss| !(loss.is_finite() && *loss >= 0.0)) {
                return Err(self.bad("loss", "nats from 0", wrong.to_string()));
            }
            each.push(loss);
            start = end;
        }
        Ok(each)
    }

    fn weights(&self) -> Result<Option<Lists<f32>>, TraceError> {
        let Some(column) = self.column("weights")? else { return Ok(None) };
        let values = match column.values {
            Numbers::Real(values) => values,
            Numbers::Whole(values) => values.into_iter().map(|value| value as f32).collect(),
        };
        Ok(Some((values, column.ends)))
    }

    fn read(&self, trace: &mut Trace) -> Result<(), TraceError> {
        let step = self.some("step", 1 << 62)?;
        if step.contains(&Some(0)) {
            return Err(self.bad("step", "steps from 1, or null", "0"));
        }
        let sequence = self.one("sequence", 1 << 62)?;
        let position = self.one("position", 1 << 31)?;
        let token = self.one("token", 1 << 31)?;
        let layer = self.some("layer", MOST.into())?;
        let recursion = self.one("recursion", MOST.into())?;
        let targets = self.targets("targets")?.ok_or_else(|| self.missing("targets"))?;
        let (weights, dropped) = (self.weights()?, self.targets("dropped")?);
        let (loss, source) = (self.losses()?, self.some("source", trace.sources.len() as u64)?);
        for row in 0..sequence.len() {
            let of_row = list(&targets, row);
            let weights = weights.as_ref().map_or(&[][..], |all| list(all, row));
            if !weights.is_empty() && weights.len() != of_row.len() {
                let found = format!("{} beside {} targets", weights.len(), of_row.len());
                return Err(self.bad("weights", "one for each target, or none", found));
            }
            let layer = layer[row].map(|layer| layer as u32);
            let dropped = dropped.as_ref().map_or(&[][..], |all| list(all, row));
            let most = of_row.iter().chain(dropped).max();
            trace.widen(layer, most.map_or(0, |most| most + 1));
            let source = source[row].map(|source| source as u32);
            let facts = TokenFacts { loss: loss[row], source };
            let decision = RoutingDecision {
                step: step[row],
                sequence: sequence[row],
                position: position[row] as u32,
                token: token[row] as u32,
                layer,
                recursion: recursion[row] as u32,
                targets: of_row,
                weights,
                dropped,
            };
            trace.push_known(decision, facts);
        }
        Ok(())
    }
}

/// The values of one row.
fn list<T>((values, ends): &Lists<T>, row: usize) -> &[T] {
    let start = if row == 0 { 0 } else { ends[row - 1] };
    &values[start..ends[row]]
}
