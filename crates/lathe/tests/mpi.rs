//! Training by several processes under a real launcher: the same bytes for any number of them, also
//! through kills and stops, and no launch that goes wrong in silence. Built with the feature `mpi`
//! alone; `.ci/mpi` runs it with every MPI. `LATHE_MPIRUN` names the launcher of the MPI that the
//! program was built with, `LATHE_OTHER_MPIRUN` one of another.
#![cfg(feature = "mpi")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Dice, EXPERT, Ended, Place, end, recipe};

/// The longest that all processes may take to end once one of them has: launchers take seconds.
const ENDING: Duration = Duration::from_secs(30);

fn launcher() -> String {
    std::env::var("LATHE_MPIRUN").unwrap_or_else(|_| "mpirun".into())
}

/// Makes a launcher start more processes than there are processors, as any user.
fn permissive(command: &mut Command) -> &mut Command {
    for name in [
        "OMPI_ALLOW_RUN_AS_ROOT",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
        "OMPI_MCA_rmaps_base_oversubscribe",
        "OMPI_MCA_mpi_yield_when_idle",
    ] {
        command.env(name, "1");
    }
    command.env("OMPI_MCA_hwloc_base_binding_policy", "none")
}

/// Training by so many processes, not yet started; by one without a launcher for 0.
fn train(place: &Place, processes: usize, run: &str, more: &[&str]) -> Command {
    launched(&launcher(), place, processes, run, more)
}

fn launched(launcher: &str, place: &Place, processes: usize, run: &str, more: &[&str]) -> Command {
    let own = place.command(&[&["train", "mpi.toml", "--out", run], more].concat());
    if processes == 0 {
        return own;
    }
    let mut command = Command::new(launcher);
    command.args(["-n", &processes.to_string()]).arg(own.get_program()).args(own.get_args());
    for (name, value) in own.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.current_dir(own.get_current_dir().expect("the place")).stdin(Stdio::null());
    command.env("RAYON_NUM_THREADS", "1");
    permissive(&mut command);
    command
}

/// A place with a recipe of so many steps, each of four passes in three shards.
fn place(steps: u64, every: u64) -> Place {
    let place = Place::with_data();
    let text = recipe(steps, every, EXPERT, "recursion_wise");
    let text = text.replace("batch = 2\nmicro_batch = 2", "batch = 4\nmicro_batch = 1\nshards = 3");
    place.write("mpi.toml", text);
    place
}

/// What must not depend on how a run came about: its log and the newest checkpoint.
fn result(place: &Place, run: &str) -> BTreeMap<String, Vec<u8>> {
    let newest = place.checkpoints(run).pop().expect("a checkpoint");
    let mut files = BTreeMap::from([("log".to_owned(), place.read(&format!("{run}/log.jsonl")))]);
    for name in place.names(&format!("{run}/checkpoints/{newest}")) {
        let bytes = place.read(&format!("{run}/checkpoints/{newest}/{name}"));
        files.insert(format!("{newest}/{name}"), bytes);
    }
    assert!(files.len() >= 8, "{:?}", files.keys());
    files
}

fn assert_same(place: &Place, run: &str, expected: &BTreeMap<String, Vec<u8>>) {
    let found = result(place, run);
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(expected), "{run}");
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{run}: {name} differs");
    }
}

fn signal(process: u32, name: &str) {
    let kill = format!("kill -{name} {process}");
    assert!(Command::new("sh").args(["-c", &kill]).status().expect("a shell").success());
}

/// The processes of `lathe` that a launcher has started, as far as they have begun.
fn ranks(launcher: u32) -> Vec<u32> {
    let parents: BTreeMap<u32, (u32, bool)> = fs::read_dir("/proc")
        .expect("lists")
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let process = path.file_name()?.to_str()?.parse().ok()?;
            let stat = fs::read_to_string(path.join("stat")).ok()?;
            let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
            let is_ours = fs::read_link(path.join("exe"))
                .ok()
                .is_some_and(|exe| exe == Path::new(env!("CARGO_BIN_EXE_lathe")));
            Some((process, (parent, is_ours)))
        })
        .collect();
    let below = |mut process: u32| {
        while let Some(&(parent, _)) = parents.get(&process) {
            if parent == launcher {
                return true;
            }
            process = parent;
        }
        false
    };
    let ours = parents.iter().filter(|(process, (_, is_ours))| *is_ours && below(**process));
    ours.map(|(process, _)| *process).collect()
}

fn log_lines(place: &Place, run: &str) -> usize {
    let log = fs::read(place.path(run).join("log.jsonl"));
    log.map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count())
}

/// Waits until a run has more than so many records.
fn wait_for_lines(place: &Place, run: &str, lines: usize) {
    let begin = Instant::now();
    while log_lines(place, run) <= lines {
        assert!(begin.elapsed() < Duration::from_secs(60), "{run}: no {lines} records");
        sleep(Duration::from_millis(2));
    }
}

/// What a launcher ended with and said. It must end in time, and leave nobody behind.
fn ended(mut child: Child, what: &str) -> Ended {
    let begin = Instant::now();
    let started = ranks(child.id());
    while child.try_wait().expect("asks").is_none() {
        assert!(begin.elapsed() < ENDING, "{what}: the launcher did not end");
        sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("ended");
    let left = || started.iter().filter(|id| Path::new(&format!("/proc/{id}/exe")).is_file());
    while left().count() > 0 {
        assert!(begin.elapsed() < ENDING, "{what}: {:?} are left", left().collect::<Vec<_>>());
        sleep(Duration::from_millis(5));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

fn begin(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the launcher starts")
}

#[test]
fn any_number_of_processes_writes_the_same_bytes() {
    let place = place(8, 3);
    end(&mut train(&place, 0, "alone", &[])).good();
    let expected = result(&place, "alone");
    for processes in [1, 2, 3] {
        let run = format!("by-{processes}");
        let ended = end(&mut train(&place, processes, &run, &[])).good();
        assert_eq!(ended.out.matches("causal routing").count(), 1, "one speaks: {ended:?}");
        assert_same(&place, &run, &expected);
    }
}

#[test]
fn killed_at_random_moments_and_continued_by_another_number() {
    let place = place(40, 4);
    end(&mut train(&place, 0, "alone", &[])).good();
    let expected = result(&place, "alone");
    let mut dice = Dice::new(11);
    for round in 0..4 {
        let run = format!("killed-{round}");
        for kill in 0..3 {
            let processes = 2 + (round + kill) % 2;
            let before = log_lines(&place, &run);
            let child = begin(&mut train(&place, processes, &run, &[]));
            // Somewhere between the start and some steps later.
            if dice.below(4) > 0 {
                wait_for_lines(&place, &run, before.min(30));
            }
            sleep(Duration::from_millis(dice.below(300)));
            let started = ranks(child.id());
            if let Some(&one) = started.get(dice.below(started.len().max(1) as u64) as usize) {
                // It may have come to its end by itself.
                let kill = format!("kill -KILL {one} 2>/dev/null || true");
                Command::new("sh").args(["-c", &kill]).status().expect("a shell");
            }
            let ended = ended(child, &run);
            assert!(started.len() <= processes, "{ended:?}");
        }
        let last = [0, 1, 2, 3][round];
        end(&mut train(&place, last, &run, &[])).good();
        assert_same(&place, &run, &expected);
    }
}

#[test]
fn a_signal_to_one_saves_and_stops_all() {
    let place = place(60, 50);
    end(&mut train(&place, 0, "alone", &[])).good();
    let expected = result(&place, "alone");
    for which in 0..2 {
        let run = format!("stopped-{which}");
        let child = begin(&mut train(&place, 2, &run, &[]));
        wait_for_lines(&place, &run, 5);
        signal(ranks(child.id())[which], "TERM");
        let ended = ended(child, &run);
        assert_eq!(ended.code, Some(75), "saved, and not done: {ended:?}");
        assert!(ended.out.contains("stopped and saved"), "{ended:?}");
        assert_eq!(place.checkpoints(&run).len(), 1, "{ended:?}");
        let ended = end(&mut train(&place, 3, &run, &[])).good();
        assert!(ended.err.contains("continuing from step"), "{ended:?}");
        assert_same(&place, &run, &expected);
    }
}

#[test]
fn one_that_stands_still_is_given_up() {
    let place = place(1_000_000, 1000);
    let child = begin(&mut train(&place, 2, "silent", &["--process-timeout", "2"]));
    wait_for_lines(&place, "silent", 3);
    let stopped = ranks(child.id())[1];
    signal(stopped, "STOP");
    let begin = Instant::now();
    let mut child = child;
    while child.try_wait().expect("asks").is_none() {
        assert!(begin.elapsed() < ENDING, "the launcher did not end");
        // A launcher may ask the one that stands still to end, which it does once it goes on.
        if begin.elapsed() > Duration::from_secs(8) {
            let _ = Command::new("sh").args(["-c", &format!("kill -CONT {stopped}")]).status();
        }
        sleep(Duration::from_millis(50));
    }
    let output = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("within 2 s") && said.contains("silent"), "{said}");
}

/// Processes hold experts of their own, whatever travels; one is killed, and others go on.
#[test]
fn experts_are_shared_out() {
    let place = place(12, 3);
    let experts = ["--set", "model.mlp.kind=experts", "--set", "model.mlp.count=5"];
    end(&mut train(&place, 0, "alone", &experts)).good();
    let expected = result(&place, "alone");
    for (processes, moved) in [(3, "rows"), (2, "weights"), (2, "fewest")] {
        let run = format!("shared-{moved}");
        let more = [&experts[..], &["--share-experts", moved]].concat();
        let child = begin(&mut train(&place, processes, &run, &more));
        wait_for_lines(&place, &run, 4);
        for one in ranks(child.id()).into_iter().take(1) {
            signal(one, "KILL");
        }
        ended(child, &run);
        let ended = end(&mut train(&place, processes, &run, &more)).good();
        assert!(ended.err.contains("continuing from step"), "{ended:?}");
        assert_same(&place, &run, &expected);
        let timing = String::from_utf8(place.read(&format!("{run}/timing.jsonl"))).expect("text");
        assert!(timing.contains("\"expert_bytes\":{"), "{timing}");
    }
}

/// What fails in one, here the disk of the first, ends all.
#[test]
fn an_error_of_one_ends_all() {
    let place = place(20, 2);
    let mut command = train(&place, 3, "full", &[]);
    let ended = ended(begin(command.env("LATHE_FAULT", "enospc:1")), "a full disk");
    assert_ne!(ended.code, Some(0));
    assert!(ended.err.contains("process 0 of 3") && ended.err.contains("no space"), "{ended:?}");
}

#[test]
fn launches_that_cannot_work_are_refused() {
    let place = place(4, 2);
    let ended = ended(begin(&mut train(&place, 4, "many", &[])), "more processes than shards");
    assert_ne!(ended.code, Some(0));
    assert!(ended.err.contains("train.shards") && ended.err.contains("at least 4"), "{ended:?}");
    assert!(!place.has("many"), "nothing was begun");
    let Ok(other) = std::env::var("LATHE_OTHER_MPIRUN") else { return };
    let child = begin(&mut launched(&other, &place, 2, "other", &[]));
    let ended = self::ended(child, "the launcher of another MPI");
    assert_ne!(ended.code, Some(0));
    assert!(ended.err.contains("of the same MPI"), "{ended:?}");
    assert!(!place.has("other"), "nothing was begun");
}
