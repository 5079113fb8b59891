//! Where commands write: never into the checkpoints of a run, which it alone keeps and removes.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::arguments::{Command, DataCommand, TokenizerCommand};
use crate::bench::arguments::BenchCommand;

/// What a run calls the folder of its checkpoints.
const CHECKPOINTS: &str = "checkpoints";

/// Refuses a command that is to write into the checkpoints of a run.
pub(crate) fn check(command: &Command) -> Result<()> {
    for (flag, place) in written(command) {
        ensure!(
            checkpoints_above(place).is_none(),
            "{flag} is {}, expected a place outside of {CHECKPOINTS} of a run: the run keeps and \
             removes what is there; choose another path",
            place.display()
        );
    }
    Ok(())
}

/// The files and folders that a command makes, with the flags that name them.
fn written(command: &Command) -> Vec<(&'static str, &Path)> {
    let out = |path| vec![("--out", path)];
    match command {
        Command::Quickstart(options) => out(options.out.as_path()),
        Command::Tokenizer(TokenizerCommand::Train(options)) => out(&options.out),
        Command::Data(DataCommand::Build(options)) => out(&options.out),
        Command::Train(options) => out(&options.out),
        Command::Sweep(options) => {
            let out = options.out.iter().map(|path| ("--out", path.as_path()));
            out.chain([("--runs", options.shared.runs.as_path())]).collect()
        }
        Command::Compare(options) => {
            let out = options.out.iter().map(|path| ("--out", path.as_path()));
            out.chain([("--runs", options.shared.runs.as_path())]).collect()
        }
        Command::Import(options) => out(&options.out),
        Command::Export(options) => out(&options.out),
        Command::Convert(options) => out(&options.out),
        Command::Quantize(options) => out(&options.out),
        Command::Imatrix(options) => out(&options.out),
        Command::Shrink(options) => out(&options.out),
        Command::Frontier(options) => {
            options.out.iter().map(|path| ("--out", path.as_path())).collect()
        }
        Command::Eval(options) => {
            let items = options.items.iter().map(|path| ("--items", path.as_path()));
            items.chain(options.trace.iter().map(|path| ("--trace", path.as_path()))).collect()
        }
        Command::Generate(options) => {
            options.trace.iter().map(|path| ("--trace", path.as_path())).collect()
        }
        Command::Serve(options) => {
            options.trace.iter().map(|path| ("--trace", path.as_path())).collect()
        }
        Command::Inspect(options) => {
            let html = options.html.iter().map(|path| ("--html", path.as_path()));
            html.chain(options.out.iter().map(|path| ("--out", path.as_path()))).collect()
        }
        Command::Report(options) => vec![("--html", &options.html)],
        Command::Bench(BenchCommand::Growth(options)) => {
            options.out.iter().map(|path| ("--out", path.as_path())).collect()
        }
        Command::Bench(_)
        | Command::Chat(_)
        | Command::Verify(_)
        | Command::Presets(_)
        | Command::Completions(_)
        | Command::TrainPoint
        | Command::RenderTemplates => Vec::new(),
    }
}

/// The folder of a run's checkpoints that `path` is, or is in.
fn checkpoints_above(path: &Path) -> Option<PathBuf> {
    let whole = std::path::absolute(path).ok()?;
    // What is there may be a link, or be reached by one.
    let (there, real) =
        whole.ancestors().find_map(|above| Some((above, std::fs::canonicalize(above).ok()?)))?;
    let whole = real.join(whole.strip_prefix(there).ok()?);
    let mut above = whole.ancestors().filter(|above| above.ends_with(CHECKPOINTS));
    above.find(|folder| is_of_a_run(folder)).map(Path::to_path_buf)
}

/// Whether a folder holds steps, or stands beside the log of a run.
fn is_of_a_run(folder: &Path) -> bool {
    folder.with_file_name("log.jsonl").symlink_metadata().is_ok()
        || !checkpoint::list(folder).is_empty()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_what_belongs_to_a_run_is_taken() {
        let place = tempfile::TempDir::new().expect("a folder");
        let at = |path: &str| place.path().join(path);
        for folder in ["run/checkpoints", "models/checkpoints/mine", "copied/checkpoints"] {
            fs::create_dir_all(at(folder)).expect("makes");
        }
        fs::write(at("run/log.jsonl"), "").expect("writes");
        fs::create_dir(at("copied/checkpoints/step-00000004")).expect("makes");
        std::os::unix::fs::symlink(at("run/checkpoints"), at("link")).expect("links");
        for taken in [
            "run/checkpoints",
            "run/checkpoints/step-00000009",
            "run/checkpoints/new/deeper/page.html",
            "copied/checkpoints/step-00000004/x",
            "link/step-00000009",
        ] {
            assert!(checkpoints_above(&at(taken)).is_some(), "{taken}");
        }
        for free in ["run", "run/other", "models/checkpoints/mine", "models/checkpoints", "none/x"]
        {
            assert_eq!(checkpoints_above(&at(free)), None, "{free}");
        }
    }
}
