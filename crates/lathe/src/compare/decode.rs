//! Tokens a second of the engine with the models that were trained.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::plan::{Entry, Plan};
use super::write_json;
use crate::own_process;
use crate::sweep::{Job, State, different};

/// Sequences that run at the same time.
pub(crate) const BATCHES: [usize; 3] = [1, 8, 32];
/// Tokens of each prompt, and new tokens at most.
const PROMPT: usize = 16;
const NEW: usize = 48;
/// What was measured, in the folder of results.
const RECORD: &str = "decode.json";
/// The most bytes of a record.
const LONGEST: u64 = 1 << 26;

/// What `lathe bench decode` said of the first finished run of each family and budget.
pub(crate) struct Decoding {
    /// One for each model and batch, as the bench prints them.
    results: Vec<Value>,
}

/// Measures in a process of its own, models in turns; what was measured of the same runs on as many
/// threads of this machine before is taken from `decode.json`.
pub(crate) fn measure(plan: &Plan, out: &Path) -> Result<Decoding> {
    let mut runs = Vec::new();
    for entry in &plan.entries {
        runs.extend(first_done(entry)?);
    }
    let runs = different(runs, |job| *job);
    let keys: Vec<&str> = runs.iter().map(|job| job.key.as_str()).collect();
    let mut measured = json!({
        "runs": keys, "machine": ops::machine(), "threads": rayon::current_num_threads(),
        "batches": BATCHES,
    });
    let record = record(out);
    if ["runs", "machine", "threads", "batches"].iter().all(|key| record[key] == measured[key]) {
        return Ok(Decoding { results: list(&record["bench"]) });
    }
    if runs.is_empty() {
        return Ok(Decoding { results: Vec::new() });
    }
    let bench = bench(&runs)?;
    let results = list(&bench);
    measured["bench"] = bench;
    write_json(&out.join(RECORD), &measured)?;
    Ok(Decoding { results })
}

/// What was measured before on this machine with these threads, of whatever runs.
pub(crate) fn known(out: &Path) -> Decoding {
    let record = record(out);
    let here = json!([ops::machine(), rayon::current_num_threads(), BATCHES]);
    let fits = json!([record["machine"], record["threads"], record["batches"]]) == here;
    Decoding { results: if fits { list(&record["bench"]) } else { Vec::new() } }
}

/// The record of an earlier measurement, or null.
fn record(out: &Path) -> Value {
    let text = files::read_text(&out.join(RECORD), LONGEST);
    text.ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

fn first_done(entry: &Entry) -> Result<Option<&Job>> {
    for job in &entry.jobs {
        if job.state()? == State::Done {
            return Ok(Some(job));
        }
    }
    Ok(None)
}

fn list(bench: &Value) -> Vec<Value> {
    bench["results"].as_array().cloned().unwrap_or_default()
}

fn bench(runs: &[&Job]) -> Result<Value> {
    let room = runs.iter().map(|job| job.recipe.model.context).min().unwrap_or(0);
    let new = NEW.min(room.saturating_sub(PROMPT)).max(2);
    let mut command = own_process::command()?;
    command.args(["bench", "decode"]).args(runs.iter().map(|job| &job.dir));
    let batches = BATCHES.map(|batch| batch.to_string()).join(",");
    let numbers = [PROMPT, new, rayon::current_num_threads()].map(|number| number.to_string());
    command.args(["--batch", &batches, "--context", &numbers[0], "--tokens", &numbers[1]]);
    command.args(["--rounds", "2", "--json", "--threads", &numbers[2]]);
    own_process::json(&mut command)
}

impl Decoding {
    /// What was measured of the runs of an entry at a batch.
    pub(crate) fn of(&self, entry: &Entry, batch: usize) -> Option<&Value> {
        self.results.iter().find(|result| {
            let model = result["model"].as_str().map(Path::new);
            result["batch"] == json!(batch)
                && entry.jobs.iter().any(|job| model == Some(job.dir.as_path()))
        })
    }
}
