//! Studies: each run once, whatever is killed, and one table that depends on nothing else.

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Dice, EXPERT, Ended, Place, end, recipe};

const KILL: i32 = 9;

/// Two depths by two seeds of 6 steps each.
const STUDY: &str = "recipes = [\"tiny.toml\"]\nseeds = 2\n\
                     [parameters]\nmodel.recursions = { values = [2, 3] }\n\
                     model.layers = { value = 8 }\n";

fn place() -> Place {
    let place = Place::with_data();
    place.write("tiny.toml", recipe(6, 2, EXPERT, "recursion_wise"));
    place.write("study.toml", STUDY);
    place
}

fn sweep(place: &Place, words: &str) -> Ended {
    end(&mut command(place, words))
}

fn command(place: &Place, words: &str) -> Command {
    let words: Vec<&str> = words.split_whitespace().collect();
    let mut command = place.command(&[&["sweep"][..], &words].concat());
    command.env("RAYON_NUM_THREADS", "1");
    command
}

/// Lines of a table as cells; no cell of these studies holds a comma.
fn cells(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split(',').collect()).collect()
}

/// What `--list` says of each point: its run and how far that is.
fn listed(place: &Place, words: &str) -> Vec<(String, String)> {
    let shown = sweep(place, &format!("{words} --list")).good().out;
    let lines = shown.lines().filter(|line| line.trim_start().starts_with(char::is_numeric));
    let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of = |line: Vec<&str>| {
        let at = line.iter().rposition(|word| word.starts_with("seed=")).expect("a seed");
        (line[1].to_owned(), line[at + 1..].join(" "))
    };
    words.map(of).collect()
}

#[test]
fn each_point_runs_once_and_studies_share_runs() {
    let place = place();
    let said = sweep(&place, "study.toml --out results").good().out;
    let spread = said.split("over seeds").nth(1).expect("a table over seeds");
    for group in ["tiny model.recursions=2  ", "tiny model.recursions=3  "] {
        let line = spread.lines().find(|line| line.starts_with(group)).expect(group);
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert!(cells.len() == 5 && cells[2] == "2", "{line}");
    }
    let table = place.text("results/results.csv");
    let lines = cells(&table);
    assert_eq!(lines.len(), 5, "{table}");
    let columns = &lines[0];
    let column = |name: &str| columns.iter().position(|known| *known == name).expect(name);
    for (line, (name, seed)) in lines[1..].iter().zip([
        ("tiny model.recursions=2 seed=1", "1"),
        ("tiny model.recursions=2 seed=2", "2"),
        ("tiny model.recursions=3 seed=1", "1"),
        ("tiny model.recursions=3 seed=2", "2"),
    ]) {
        assert_eq!((line[column("name")], line[column("seed")]), (name, seed), "{table}");
        assert_eq!((line[column("state")], line[column("step")]), ("done", "6"), "{table}");
        assert!(line[column("bits_per_byte_causal")].parse::<f64>().expect("a number") > 1.0);
        // The log of the run is where its numbers come from, and only its last checkpoint stays.
        let run = format!("runs/by-recipe/{}", line[column("run")]);
        let log = place.text(&format!("{run}/log.jsonl"));
        assert!(log.contains(line[column("nll_causal")]), "{log}");
        assert_eq!(place.checkpoints(&run), ["step-00000006"]);
    }
    // Again, nothing runs: the clocks of all steps stay.
    let runs = place.names("runs/by-recipe");
    let timing = |run: &String| place.read(&format!("runs/by-recipe/{run}/timing.jsonl"));
    let before: Vec<Vec<u8>> = runs.iter().map(timing).collect();
    sweep(&place, "study.toml --out results").good();
    assert!(before == runs.iter().map(timing).collect::<Vec<_>>(), "something ran twice");
    assert_eq!(place.text("results/results.csv"), table);
    // Another study of which half is known: by the command line, in another order, elsewhere.
    let other = "tiny.toml -m model.layers=8 --vary train.seed=2,3 -m model.recursions=3";
    sweep(&place, &format!("{other} --out other")).good();
    assert_eq!(place.names("runs/by-recipe").len(), runs.len() + 1);
    assert!(before == runs.iter().map(timing).collect::<Vec<_>>(), "something ran twice");
    // The folder of results follows from the name of the study.
    sweep(&place, "study.toml").good();
    assert_eq!(place.text("runs/studies/study/results.csv"), table);
    // A run is where it is asked for, and its data are known by what they hold.
    fs::rename(place.path("data"), place.path("moved")).expect("moves");
    sweep(&place, "study.toml -m data.dir=moved --out moved-results").good();
    assert_eq!(place.names("runs/by-recipe").len(), runs.len() + 1);
    sweep(&place, "study.toml -m data.dir=moved --runs elsewhere --out results").good();
    assert_eq!(place.text("results/results.csv"), table);
    assert_eq!(place.names("elsewhere"), runs);
}

#[test]
fn a_sweep_killed_at_random_moments_ends_with_the_same_table() {
    let place = place();
    let begin = Instant::now();
    sweep(&place, "study.toml --out whole --runs whole-runs").good();
    let whole = begin.elapsed().as_micros() as u64;
    let expected = place.text("whole/results.csv");
    let logs = |runs: &str| -> Vec<(String, Vec<u8>)> {
        let names = place.names(runs).into_iter();
        names.map(|run| (run.clone(), place.read(&format!("{runs}/{run}/log.jsonl")))).collect()
    };
    let mut dice = Dice::new(11);
    let mut kills = 0;
    while kills < 20 {
        // Until one comes to its end before it is killed.
        loop {
            let mut command = command(&place, "study.toml --out killed --runs killed-runs");
            let mut child =
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
            sleep(Duration::from_micros(dice.below(whole)));
            child.kill().expect("kills");
            if child.wait().expect("ends").signal() != Some(KILL) {
                break;
            }
            kills += 1;
        }
        sweep(&place, "study.toml --out killed --runs killed-runs").good();
        assert_eq!(place.text("killed/results.csv"), expected);
        assert!(logs("killed-runs") == logs("whole-runs"), "a log differs");
        fs::remove_dir_all(place.path("killed-runs")).expect("removes");
    }
}

#[test]
fn points_one_by_one_and_several_at_a_time_give_the_same_table() {
    let place = place();
    assert_eq!(listed(&place, "study.toml").len(), 4);
    assert!(!place.has("runs"), "--list made something");
    for number in [3, 1, 4] {
        let out = sweep(&place, &format!("study.toml --only {number}")).good().out;
        assert!(out.starts_with(&format!("{number}  ")) && out.ends_with(": done\n"), "{out}");
        assert!(!place.has("runs/studies"), "--only wrote a table");
    }
    let states: Vec<String> = listed(&place, "study.toml").into_iter().map(|one| one.1).collect();
    assert_eq!(states, ["done", "not begun", "done", "done"]);
    sweep(&place, "study.toml --only 2,1").good();
    sweep(&place, "study.toml --out one-by-one").good();
    // Two at a time share the threads.
    sweep(&place, "study.toml --threads 4 --jobs 2 --runs other --out together").good();
    assert_eq!(place.text("together/results.csv"), place.text("one-by-one/results.csv"));
    for run in place.names("other") {
        let taken: serde_json::Value =
            serde_json::from_str(&place.text(&format!("other/{run}/taken.json"))).expect("JSON");
        assert_eq!(taken["threads"], 2);
        assert!(taken["peak_memory"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{taken}");
    }
    sweep(&place, "study.toml --only 5").bad(&["--only is 5, expected 1 to 4"]);
    sweep(&place, "study.toml --only 0").bad(&["--only is 0, expected 1 to 4"]);
}

#[test]
fn a_run_that_another_process_ends_meanwhile_is_left_alone() {
    let place = place();
    let eight = "study.toml -m train.seed=1,2,3,4";
    let mut all = command(&place, &format!("{eight} --out results"));
    let all = all.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
    sweep(&place, &format!("{eight} --only 8")).good();
    let last = listed(&place, eight).swap_remove(7).0;
    let taken = format!("runs/by-recipe/{last}/taken.json");
    let elsewhere = "{\"machine\": \"elsewhere\", \"threads\": 1, \"peak_memory\": null}";
    place.write(&taken, elsewhere);
    let output = all.wait_with_output().expect("ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(place.text(&taken), elsewhere);
    let table = place.text("results/results.csv");
    assert_eq!(table.matches(",done,6,").count(), 8, "{table}");
}

#[test]
fn a_teacher_costs_in_the_table() {
    let place = Place::with_run();
    place.write("tiny.toml", recipe(6, 2, EXPERT, "recursion_wise"));
    let study = "tiny.toml -m distill.checkpoint=run -m distill.weight=0,0.5 --out results";
    sweep(&place, study).good();
    let table = place.text("results/results.csv");
    let lines = cells(&table);
    let at = lines[0].iter().position(|name| *name == "training_flops").expect("a column");
    let [alone, taught] = [1, 2].map(|line| lines[line][at].parse::<f64>().expect("a number"));
    assert!(taught > 1.1 * alone, "{table}");
}

#[test]
fn failed_points_stay_in_the_table_until_they_are_tried_again() {
    let place = place();
    let (run, _) = listed(&place, "study.toml").swap_remove(1);
    // A log that no run of Lathe wrote is in the way of one point.
    let log = format!("runs/by-recipe/{run}/log.jsonl");
    place.write(&log, "{\"step\": 1, \"mine\": 2}\n");
    let failed = sweep(&place, "study.toml --out results");
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.err.contains("of 4 points 1 failed and 0 are not done"), "{failed:?}");
    let table = place.text("results/results.csv");
    let lines = cells(&table);
    assert_eq!(lines.len(), 5, "{table}");
    assert!(lines[2].contains(&"failed") && table.contains("no run of Lathe wrote"), "{table}");
    assert_eq!(lines.iter().filter(|line| line.contains(&"done")).count(), 3, "{table}");
    // It is not tried again by itself.
    fs::remove_file(place.path(&log)).expect("removes");
    assert_eq!(sweep(&place, "study.toml --out results").code, Some(1));
    assert_eq!(place.text("results/results.csv"), table);
    assert!(table.contains(",failed,0,"), "{table}");
    sweep(&place, "study.toml --out results --retry").good();
    assert!(!place.text("results/results.csv").contains("failed"));
    // A run that fails later stands where its checkpoint is.
    let note = format!("runs/by-recipe/{run}/failed.json");
    place.write(&note, "{\"error\": \"a full disk\", \"again\": false}");
    assert_eq!(sweep(&place, "study.toml --out results").code, Some(1));
    let table = place.text("results/results.csv");
    assert!(table.contains(",failed,6,") && table.contains("a full disk"), "{table}");
}

#[test]
fn bad_studies_are_refused_before_anything_runs() {
    let place = place();
    for (text, needles) in [
        ("[parameters]\n", &["recipes is empty"][..]),
        ("recipes = [\"none.toml\"]\n", &["point 1, none", "reading the recipe none.toml"]),
        ("recipes = [\"cpu-9m\"]\n", &["model.preset is \"cpu-9m\""]),
        ("recipes = [\"tiny.toml\", \"tiny.toml\"]\n", &["\"tiny.toml\" twice"]),
        (
            "recipes = [\"tiny.toml\", \"sub/tiny.toml\"]\n",
            &["points 1 and 2", "both called \"tiny\""],
        ),
        (
            "recipes = [\"tiny.toml\"]\n[parameters]\ntrain.stepz = { values = [1, 2] }\n",
            &["point 1, tiny train.stepz=1", "unknown key `train.stepz`", "did you mean `steps`"],
        ),
        (
            "recipes = [\"tiny.toml\"]\n[parameters]\ntrain.batch = { values = [2, 3] }\n",
            &["point 2, tiny train.batch=3", "train.micro_batch"],
        ),
        (
            "recipes = [\"tiny.toml\"]\n[parameters]\ntrain.steps = { values = [] }\n",
            &["parameters.train.steps is without values"],
        ),
        (
            "recipes = [\"tiny.toml\"]\n[parameters]\nmodel.width = { values = [32, \"x\"] }\n",
            &["point 2", "model.width"],
        ),
        ("recipes = [\"tiny.toml\"]\nmetric = \"luck\"\n", &["metric.name is \"luck\""]),
        ("recipes = [\"tiny.toml\"]\nmethod = \"random\"\n", &["method is \"random\""]),
        (
            "recipes = [\"tiny.toml\"]\n[parameters]\ndata.dir = { value = \"text\" }\n",
            &["point 1, tiny", "text"],
        ),
    ] {
        place.write("sub/tiny.toml", recipe(4, 2, EXPERT, "recursion_wise"));
        place.write("bad.toml", text);
        sweep(&place, "bad.toml --out results").bad(needles);
        assert!(!place.has("runs") && !place.has("results"), "{text} ran");
    }
    sweep(&place, "study.toml -m train.batch").bad(&["-m is train.batch"]);
    sweep(&place, "study.toml -m train.batch=2 -m train.batch=4")
        .bad(&["-m train.batch=4 names a field that another -m names"]);
    sweep(&place, "study.toml --jobs 0").bad(&["--jobs is 0"]);
    // What somebody else keeps under the name of the table stays.
    place.write("mine/results.csv", "my,own\n");
    sweep(&place, "study.toml --out mine").bad(&["results.csv is there and no study wrote it"]);
    assert_eq!(place.text("mine/results.csv"), "my,own\n");
}

#[test]
fn one_sweep_at_a_time_writes_into_a_folder_and_a_signal_saves() {
    let place = place();
    place.write("long.toml", recipe(1_000_000, 1000, EXPERT, "recursion_wise"));
    let mut long = command(&place, "long.toml --out results");
    let child = long.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let begin = Instant::now();
    let run = loop {
        let run = place.names("runs/by-recipe").pop();
        let log = run.map(|run| format!("runs/by-recipe/{run}"));
        if let Some(run) = log.filter(|run| place.has(&format!("{run}/log.jsonl"))) {
            break run;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "no run began");
        sleep(Duration::from_millis(5));
    };
    sweep(&place, "study.toml --out results").bad(&["is held by lathe sweep"]);
    sleep(Duration::from_millis(200));
    let kill = format!("kill -TERM {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().expect("a shell").success());
    let output = child.wait_with_output().expect("ends");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(75), "saved, and not done: {said}");
    assert!(said.contains("stopped and saved; the same command continues"), "{said}");
    assert_eq!(place.checkpoints(&run).len(), 1, "the run was not saved");
    assert!(place.text("results/results.csv").contains(",begun,"));
}

#[test]
fn several_runs_are_drawn_over_one_another() {
    let place = place();
    sweep(&place, "study.toml --out results").good();
    let runs = place.names("runs/by-recipe");
    let paths: Vec<String> = runs.iter().map(|run| format!("runs/by-recipe/{run}")).collect();
    let mut words = vec!["report"];
    words.extend(paths.iter().map(String::as_str));
    words.extend(["--html", "page.html"]);
    place.run(&words).good();
    let page = place.text("page.html");
    for part in paths.iter().map(String::as_str).chain(["causal routing", "Mean recursions"]) {
        assert!(page.contains(part), "{part}");
    }
    for outside in ["src=", "href=\"http", "url(", "@import"] {
        assert!(!page.contains(outside), "the page is not whole: {outside}");
    }
    place.run(&["report", &paths[0], &paths[0], "--html", "page.html"]).bad(&["stands twice"]);
    place.run(&["report", &paths[0], "none", "--html", "page.html"]).bad(&["none"]);
}
