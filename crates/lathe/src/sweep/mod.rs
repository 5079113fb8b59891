//! `lathe sweep`: the runs of a study, each once, and one table of all of them.

mod board;
mod job;
mod pool;
mod results;
pub(crate) mod worker;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use report::{Best, Table, human_bytes, human_duration};
use study::{Goal, Objective, Sheet, Study, StudyPoint, mean_and_deviation};

pub(crate) use job::{Finding, Job, MEASURES, State, Taken, different};
pub(crate) use pool::Pool;
pub(crate) use results::{RUNS, SHEET, open as open_results, write as write_result};

use crate::study_arguments::{self, Sweep};
use crate::{SAVED_UNFINISHED, costs, output, recipe};

/// The runs of a study, ready to run.
struct Planned {
    study: Study,
    points: Vec<StudyPoint>,
    /// One for each point; points of the same recipe have the same run.
    jobs: Vec<Job>,
}

/// `lathe sweep`: runs what is not done and writes the table.
pub(crate) fn run(options: &Sweep) -> Result<ExitCode> {
    let at_once = options.shared.jobs.unwrap_or(1);
    ensure!(at_once > 0, "--jobs is 0, expected at least 1");
    let study = read(options)?;
    let planned = Planned::new(study, &options.shared.runs)?;
    if options.list {
        output::table(&planned.list()?);
        return Ok(ExitCode::SUCCESS);
    }
    let pool = Pool { jobs: at_once, retry: options.shared.retry };
    if !options.only.is_empty() {
        return planned.only(&options.only, &pool);
    }
    let out = options.out.clone().unwrap_or_else(|| default_out(&planned.study.name));
    let _lock = open_results(&out, "sweep", RUNS)?;
    let write = || planned.write(&out);
    let runs = different(&planned.jobs, |job| *job);
    pool.has_memory(&runs)?;
    let went_on = pool.run(&runs, &write)?;
    write()?;
    output::table(&planned.summary()?);
    if planned.study.seeds.len() > 1 {
        output::table(&planned.spread()?);
    }
    output::line(format!("results: {}", out.join(SHEET).display()));
    if !went_on {
        output::line("stopped and saved; the same command continues");
        return Ok(ExitCode::from(SAVED_UNFINISHED));
    }
    planned.verdict()
}

/// Where the results of a study are, if nothing else is said.
fn default_out(name: &str) -> PathBuf {
    Path::new("runs/studies").join(name)
}

/// The study that is asked for, with what the command line varies.
fn read(options: &Sweep) -> Result<Study> {
    let path = Path::new(&options.study);
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut study = if options.study.ends_with(".toml") {
        let text = study_arguments::read_study(path)?;
        match Study::is_one(&text) {
            true => {
                Study::parse(&text, &name).with_context(|| format!("study {}", path.display()))?
            }
            false => Study::of_recipe(&name, &options.study),
        }
    } else {
        Study::of_recipe(&options.study, &options.study)
    };
    for (at, entry) in options.vary.iter().enumerate() {
        let field = |entry: &str| entry.split('=').next().map(str::to_owned);
        ensure!(
            options.vary[..at].iter().all(|other| field(other) != field(entry)),
            "-m {entry} names a field that another -m names, expected each field once: give its \
             values together, like -m train.batch=8,16"
        );
        study.vary(entry)?;
    }
    ensure!(
        MEASURES.contains(&study.metric.name.as_str()),
        "metric.name is \"{}\", expected one of {}",
        study.metric.name,
        MEASURES.join(", ")
    );
    Ok(study)
}

impl Planned {
    /// Makes every run of the study without running one.
    ///
    /// # Errors
    /// The first point that cannot run, by its number and name; two points of one name.
    fn new(study: Study, runs: &Path) -> Result<Self> {
        let points = study.points();
        let mut jobs = Vec::new();
        for point in &points {
            let other = points[..point.number - 1].iter().find(|other| other.name == point.name);
            ensure!(
                other.is_none(),
                "points {} and {} of the study are both called \"{}\": give the recipes \
                 different names",
                other.map_or(0, |other| other.number),
                point.number,
                point.name
            );
            let job = job_of(point, runs);
            jobs.push(job.with_context(|| format!("point {}, {}", point.number, point.name))?);
        }
        Ok(Self { study, points, jobs })
    }

    /// Runs some points, by their numbers. No table is written, so that many processes may do so at
    /// the same time.
    fn only(&self, numbers: &[usize], pool: &Pool) -> Result<ExitCode> {
        let mut jobs = Vec::new();
        for &number in numbers {
            let job = number.checked_sub(1).and_then(|at| self.jobs.get(at));
            jobs.push(job.with_context(|| {
                format!("--only is {number}, expected 1 to {}: see --list", self.jobs.len())
            })?);
        }
        let runs = different(jobs.iter().copied(), |job| *job);
        pool.has_memory(&runs)?;
        let went_on = pool.run(&runs, &|| Ok(()))?;
        let mut done = true;
        for (&number, job) in numbers.iter().zip(jobs) {
            let state = job.state()?;
            done &= state == State::Done;
            output::line(format!("{number}  {}  {}: {}", job.key, job.name, named(&state)));
        }
        Ok(match (went_on, done) {
            (false, _) => ExitCode::from(SAVED_UNFINISHED),
            (true, true) => ExitCode::SUCCESS,
            (true, false) => ExitCode::FAILURE,
        })
    }

    /// The points with how far their runs are.
    fn list(&self) -> Result<Table> {
        let mut rows = Vec::new();
        for (point, job) in self.points.iter().zip(&self.jobs) {
            let state = named(&job.state()?);
            rows.push(vec![point.number.to_string(), job.key.clone(), point.name.clone(), state]);
        }
        let columns = ["", "run", "point", "state"].map(str::to_owned).to_vec();
        Ok(Table { columns, rows, caption: self.study.name.clone(), best: None })
    }

    /// Writes the table of results, which depends on nothing but the study and its runs.
    fn write(&self, out: &Path) -> Result<()> {
        write_result(&out.join(SHEET), self.sheet()?.to_csv().as_bytes())
    }

    fn sheet(&self) -> Result<Sheet> {
        let mut columns = vec!["point".to_owned(), "name".into(), "recipe".into()];
        columns.extend(self.study.varied().into_iter().map(str::to_owned));
        columns.push("seed".into());
        columns.extend(self::columns());
        let mut lines = Vec::new();
        for (point, job) in self.points.iter().zip(&self.jobs) {
            let mut line = vec![point.number.to_string(), point.name.clone(), point.recipe.clone()];
            line.extend(point.values.iter().cloned());
            line.push(job.recipe.train.seed.to_string());
            line.extend(job_cells(job)?);
            lines.push(line);
        }
        Ok(Sheet { columns, lines })
    }

    /// The points beside each other, the best by the study's metric marked.
    fn summary(&self) -> Result<Table> {
        let metric = &self.study.metric;
        let columns = ["", "point", "state", &metric.name, "steps took", "peak memory"];
        let mut rows = Vec::new();
        for (point, job) in self.points.iter().zip(&self.jobs) {
            let state = job.state()?;
            let mut row = vec![point.number.to_string(), point.name.clone(), named(&state)];
            if state == State::Done {
                let number = job.finding()?.get(&metric.name);
                row.push(number.map_or_else(String::new, |number| format!("{number:.4}")));
                row.push(human_duration(job.seconds()?));
                let peak = job.taken()?.and_then(|taken| taken.peak_memory);
                row.push(peak.map_or_else(String::new, human_bytes));
            }
            rows.push(row);
        }
        let columns = columns.map(str::to_owned).to_vec();
        let best = Some(best_of(metric, 3));
        Ok(Table { columns, rows, caption: self.study.name.clone(), best })
    }

    /// Points that differ in their seeds alone, as mean and spread of the metric.
    fn spread(&self) -> Result<Table> {
        let mut groups: Vec<(String, Vec<f64>)> = Vec::new();
        for (point, job) in self.points.iter().zip(&self.jobs) {
            if !groups.iter().any(|(name, _)| *name == point.group) {
                groups.push((point.group.clone(), Vec::new()));
            }
            let done = job.state()? == State::Done;
            let found = done.then(|| job.finding()).transpose()?;
            let number = found.and_then(|found| found.get(&self.study.metric.name));
            groups.iter_mut().filter(|(name, _)| *name == point.group).for_each(|(_, numbers)| {
                numbers.extend(number);
            });
        }
        let mut rows = Vec::new();
        for (name, numbers) in groups {
            let mut row = vec![name, numbers.len().to_string()];
            if !numbers.is_empty() {
                let (mean, deviation) = mean_and_deviation(&numbers);
                row.push(format!("{mean:.4}"));
                row.push(deviation.map_or_else(|| "-".to_owned(), |sd| format!("{sd:.4}")));
            }
            rows.push(row);
        }
        let metric = &self.study.metric;
        let columns = ["over seeds", "done", &metric.name, "deviation"];
        let best = Some(best_of(metric, 2));
        let columns = columns.map(str::to_owned).to_vec();
        Ok(Table { columns, rows, caption: String::new(), best })
    }

    /// Whether every point is done.
    fn verdict(&self) -> Result<ExitCode> {
        let (mut failed, mut missing) = (0, 0);
        for job in &self.jobs {
            match job.state()? {
                State::Done => {}
                State::Failed(_) => failed += 1,
                State::New | State::Begun(_) => missing += 1,
            }
        }
        if failed + missing == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        let all = self.jobs.len();
        output::note(format!(
            "of {all} points {failed} failed and {missing} are not done; the same command goes on, \
             with --retry through those that failed, too"
        ));
        Ok(ExitCode::FAILURE)
    }
}

/// Which cells of a column are marked.
fn best_of(metric: &Objective, column: usize) -> Best {
    match metric.goal {
        Goal::Minimize => Best::Lowest(column),
        Goal::Maximize => Best::Highest(column),
    }
}

/// Columns of every table of results before what [`MEASURES`] names.
const BEFORE: [&str; 8] = [
    "run",
    "state",
    "step",
    "stored_parameters",
    "active_parameters",
    "tokens",
    "training_flops",
    "kv_bytes",
];

/// Columns of every table of results, in the order of [`job_cells`].
pub(crate) fn columns() -> impl Iterator<Item = String> {
    BEFORE.into_iter().chain(MEASURES).chain(["error"]).map(str::to_owned)
}

fn cost_cells(job: &Job) -> Result<Vec<String>> {
    let costs = costs::Costs::of(&job.recipe)?;
    Ok(vec![
        costs.stored_parameters.to_string(),
        costs.active_parameters.to_string(),
        costs.tokens.to_string(),
        costs.training_flops.to_string(),
        costs.kv_bytes.to_string(),
    ])
}

/// Cells of a run, in the order of [`columns`].
pub(crate) fn job_cells(job: &Job) -> Result<Vec<String>> {
    let state = job.state()?;
    let (word, step, error) = match &state {
        State::New => ("missing", 0, ""),
        State::Begun(step) => ("begun", *step, ""),
        State::Done => ("done", job.recipe.train.steps, ""),
        State::Failed(failure) => ("failed", job.step().unwrap_or(0), failure.error.as_str()),
    };
    let mut cells = vec![job.key.clone(), word.to_owned(), step.to_string()];
    cells.extend(cost_cells(job)?);
    cells.extend(match state {
        State::Done => job.finding()?.numbers().map(|number| number.to_string()),
        _ => MEASURES.map(|_| String::new()),
    });
    cells.push(error.to_owned());
    Ok(cells)
}

/// A state in words.
fn named(state: &State) -> String {
    match state {
        State::New => "not begun".to_owned(),
        State::Begun(step) => format!("at step {step}"),
        State::Done => "done".to_owned(),
        State::Failed(failure) => format!("failed: {}", failure.error),
    }
}

/// The run of a point.
fn job_of(point: &StudyPoint, runs: &Path) -> Result<Job> {
    let text = recipe::text_of(&point.recipe)?;
    let recipe = recipe::with(&text, &point.settings, "the study")?;
    Job::new(&point.name, &recipe, runs)
}
