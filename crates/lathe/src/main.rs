//! `lathe`: trains, evaluates, inspects and runs language models that spend compute per token. One
//! file per verb; the only room that reads recipes, talks to the terminal and wires the others
//! together.

mod adapter_root;
mod arguments;
mod bench;
mod branches;
mod chat;
mod compare;
mod convert;
mod costs;
mod data_build;
mod device;
mod evaluate;
mod evaluate_tasks;
mod examples;
mod frontier;
mod generate;
mod generating_arguments;
mod imatrix;
mod import;
mod inspect;
mod inspect_depth;
mod inspect_trace;
mod launch;
mod numbers;
mod output;
mod own_process;
mod places;
mod plan;
mod progress;
mod quantize;
mod quickstart;
mod quickstart_page;
mod quickstart_text;
mod renamed;
mod run_opening;
mod run_page;
mod serve;
mod serving_arguments;
mod shrink;
mod shrink_arguments;
mod shrink_text;
mod signals;
mod study_arguments;
mod sweep;
mod traces;
mod train_run;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, FromArgMatches};
use opening::{
    cache, conversation, foreign, memory, open, recipe, render_templates, runs, threads,
};

use crate::arguments::{Arguments, Command, DataCommand, TokenizerCommand};

fn main() -> ExitCode {
    ops::keep_freed_pages();
    signals::outlive_full_files();
    let arguments = match parsed(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    output::logging(arguments.verbose);
    opening::notes::listen(|text| output::note(text));
    threads::set(arguments.threads);
    cache::set(arguments.cache_dir);
    if matches!(arguments.command, Command::RenderTemplates) {
        // Without the pool, whose threads would take the memory that this process may have.
        return code(render_templates::run().map(|()| ExitCode::SUCCESS));
    }
    // Inside the pool, an operation starts its share of the work at once instead of waking a worker
    // for it first.
    let done = threads::pool().and_then(|pool| pool.install(|| dispatch(arguments.command)));
    written(code(done))
}

/// The command line, whose help has examples.
#[allow(clippy::result_large_err, reason = "once, at the start")]
fn parsed<T: Into<OsString> + Clone>(
    words: impl IntoIterator<Item = T>,
) -> Result<Arguments, clap::Error> {
    let mut command = examples::with(Arguments::command());
    let matches = command.try_get_matches_from_mut(words)?;
    Arguments::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

fn code(done: anyhow::Result<ExitCode>) -> ExitCode {
    done.unwrap_or_else(|error| {
        output::note(format!("error: {}", output::causes(&error)));
        ExitCode::FAILURE
    })
}

/// What a command ends with that has saved its run before it was done: to be started again. The
/// number is that of `EX_TEMPFAIL`.
pub(crate) const SAVED_UNFINISHED: u8 = 75;

/// `code`, unless results were lost on the way out.
fn written(code: ExitCode) -> ExitCode {
    match output::finish() {
        Ok(()) => code,
        Err(error) => {
            output::note(format!(
                "error: standard output: expected to take the results, found {error}; what is \
                 missing there is lost, other files are written"
            ));
            ExitCode::FAILURE
        }
    }
}

/// Help, the version, or what is wrong with the command line.
fn refuse(error: &clap::Error) -> ExitCode {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let unknown = error
        .get(ContextKind::InvalidArg)
        .filter(|_| error.kind() == ErrorKind::UnknownArgument)
        .map(ToString::to_string);
    if let Some(old) = unknown
        && let Some(new) = renamed::flag_of(&given, &old)
    {
        output::note(format!("error: {old} was renamed: use {new}, with the same values"));
        return ExitCode::from(2);
    }
    if error.use_stderr() && error.render().to_string().chars().any(report::steers) {
        // The message quotes what was typed, which may be the name of a file.
        output::note(error.render().to_string().trim_end());
        return ExitCode::from(2);
    }
    if error.use_stderr() {
        error.exit()
    }
    let text = error.render();
    output::piece(&if output::colors() { text.ansi().to_string() } else { text.to_string() });
    written(ExitCode::SUCCESS)
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    places::check(&command)?;
    match command {
        Command::Quickstart(options) => quickstart::run(&options),
        Command::Tokenizer(TokenizerCommand::Train(options)) => {
            data_build::train_tokenizer(&options)
        }
        Command::Data(DataCommand::Build(options)) => data_build::build(&options),
        Command::Train(options) => train_run::run(&options),
        Command::Sweep(options) => sweep::run(&options),
        Command::Compare(options) => compare::run(&options),
        Command::Eval(options) => evaluate::run(&options),
        Command::Generate(options) => generate::run(&options),
        Command::Chat(options) => chat::run(&options),
        Command::Import(options) => import::import(&options),
        Command::Export(options) => import::export(&options),
        Command::Convert(options) => convert::run(&options),
        Command::Quantize(options) => quantize::run(&options),
        Command::Imatrix(options) => imatrix::run(&options),
        Command::Shrink(options) => shrink::run(&options),
        Command::Frontier(options) => frontier::run(&options),
        Command::Inspect(options) => inspect::run(&options),
        Command::Report(options) => run_page::run(&options),
        Command::Verify(options) => verify(&options),
        Command::Serve(options) => serve::run(&options),
        Command::Bench(bench) => bench::run(&bench),
        Command::Presets(options) => plan::presets(&options),
        Command::Completions(options) => completions(options.shell),
        Command::RenderTemplates => render_templates::run().map(|()| ExitCode::SUCCESS),
        Command::TrainPoint => sweep::worker::run(),
    }
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "lathe", &mut script);
    output::piece(&String::from_utf8(script)?);
    Ok(ExitCode::SUCCESS)
}

fn verify(options: &arguments::Verify) -> anyhow::Result<ExitCode> {
    let device = options.on.open()?;
    let ops = if options.plain { ops::Ops::PLAIN } else { ops::Ops::on(device) };
    let mut cases = Vec::new();
    for dir in &options.dirs {
        cases.extend(device.guard(|| verify::verify(dir, ops))??);
    }
    if options.json {
        output::json(&cases)?;
    } else {
        output::table(&verify::table(&cases));
        for case in &cases {
            if let Some(why) = &case.refused {
                output::line(format!("{}: refused: {why}", case.name));
            }
        }
        let passed = cases.iter().filter(|c| c.passed).count();
        output::line(format!("{passed} of {} cases within their tolerances", cases.len()));
    }
    let broken = cases.iter().filter_map(|case| Some((&case.name, case.broken.as_ref()?)));
    let broken: Vec<String> = broken.map(|(name, why)| format!("case {name}: {why}")).collect();
    anyhow::ensure!(broken.is_empty(), "{}", broken.join("\n"));
    let failed = cases.iter().any(verify::Case::failed);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
