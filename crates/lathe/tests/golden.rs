//! Reference cases: they pass, with the fast and with the plain operations, and a case that was
//! changed does not.

mod common;

use std::fs;
use std::path::Path;

use common::{Ended, Place, Tensors};
use serde_json::Value;

const CASES: [&str; 6] = [
    "expert_kv_shared_update_nr3",
    "expert_linear_sigmoid_nr3",
    "expert_mlp_tanh_nr3_zloss",
    "recursive_sequence_nr2",
    "token_sigmoid_zloss_nr3",
    "train_expert_nr3",
];
const EXPERT: &str = "expert_linear_sigmoid_nr3";
const TOKEN: &str = "token_sigmoid_zloss_nr3";
const TRAIN: &str = "train_expert_nr3";

fn golden() -> String {
    format!("{}/tests/golden", env!("CARGO_MANIFEST_DIR"))
}

/// A folder `cases` with copies of the named ones.
fn copies(names: &[&str]) -> Place {
    let place = Place::empty();
    for name in names {
        for ending in ["json", "safetensors"] {
            let bytes = fs::read(Path::new(&golden()).join(format!("{name}.{ending}")))
                .expect("a reference case");
            place.write(&format!("cases/{name}.{ending}"), bytes);
        }
    }
    place
}

/// Names of the kinds of quantity that are out of tolerance in the case `name`.
fn failed_checks(cases: &Value, name: &str) -> Vec<String> {
    let case = cases
        .as_array()
        .expect("a list")
        .iter()
        .find(|case| case["name"] == name)
        .expect("the case");
    assert_eq!(case["passed"], false, "{case}");
    let checks = case["checks"].as_array().expect("a list").iter();
    let failed = checks.filter(|c| {
        c["error"].as_f64().is_none_or(|e| e > c["tolerance"].as_f64().expect("a number"))
    });
    failed.map(|c| c["what"].as_str().expect("a name").to_owned()).collect()
}

fn change(place: &Place, name: &str, how: impl FnOnce(&mut Tensors)) {
    let file = format!("cases/{name}.safetensors");
    let mut tensors = Tensors::parse(&place.read(&file));
    how(&mut tensors);
    place.write(&file, tensors.to_bytes());
}

fn verify(place: &Place) -> Ended {
    place.run(&["verify", "cases", "--json"])
}

#[test]
fn every_case_passes_with_fast_and_plain_operations() {
    let place = Place::empty();
    for plain in [&[][..], &["--plain"]] {
        let ended = place.run(&[&["verify", &golden(), "--json"], plain].concat()).good();
        let cases = ended.json();
        let names: Vec<&str> =
            cases.as_array().expect("a list").iter().filter_map(|c| c["name"].as_str()).collect();
        assert_eq!(names, CASES);
        for case in cases.as_array().expect("a list") {
            assert_eq!(case["passed"], true, "{case}");
            let kinds: Vec<&str> = case["checks"]
                .as_array()
                .expect("a list")
                .iter()
                .filter_map(|c| c["what"].as_str())
                .collect();
            let expected: &[&str] = match case["name"] == TRAIN {
                true => &["train loss", "train norm"],
                false => &["selections", "hidden", "logits", "loss", "gradients"],
            };
            assert_eq!(kinds, expected, "{case}");
        }
    }
    let table = place.run(&["verify", &golden()]).good().out;
    assert!(
        table.contains("6 of 6 cases") && CASES.iter().all(|name| table.contains(name)),
        "{table}"
    );
}

#[test]
fn one_perturbed_weight_fails_its_case_and_only_that() {
    let place = copies(&[EXPERT, TOKEN]);
    change(&place, EXPERT, |tensors| {
        let place = tensors.place("param.model.layers.0.mlp.down_proj.weight");
        let value = f32::from_le_bytes(
            tensors.data[place.start..place.start + 4].try_into().expect("4 bytes"),
        );
        tensors.data[place.start..place.start + 4].copy_from_slice(&(value + 0.05).to_le_bytes());
    });
    let ended = verify(&place);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let cases = ended.json();
    assert!(failed_checks(&cases, EXPERT).contains(&"hidden".to_owned()), "{cases}");
    assert_eq!(cases[1]["passed"], true, "{cases}");
    let table = place.run(&["verify", "cases"]);
    assert_eq!(table.code, Some(1));
    let line = table.out.lines().find(|line| line.contains(EXPERT)).expect("its line");
    assert!(line.contains("FAIL") && table.out.contains("1 of 2 cases"), "{}", table.out);
}

#[test]
fn one_changed_number_of_a_result_fails_its_kind() {
    for (case, tensor, kind) in [
        (EXPERT, "hidden.3", "hidden"),
        (EXPERT, "logits", "logits"),
        (EXPERT, "loss.aux", "loss"),
        (EXPERT, "grad.model.layers.2.mor_router.router.weight", "gradients"),
        (TOKEN, "loss.z", "loss"),
        (TRAIN, "train.loss", "train loss"),
        (TRAIN, "train.grad_norm", "train norm"),
    ] {
        let place = copies(&[case]);
        change(&place, case, |tensors| {
            let at = tensors.place(tensor).start;
            let value = f32::from_le_bytes(tensors.data[at..at + 4].try_into().expect("4 bytes"));
            tensors.data[at..at + 4].copy_from_slice(&(value * 1.1 + 0.01).to_le_bytes());
        });
        let ended = verify(&place);
        assert_eq!(ended.code, Some(1), "{tensor}: {ended:?}");
        assert_eq!(failed_checks(&ended.json(), case), [kind], "{tensor}");
    }
}

#[test]
fn one_changed_selection_fails_its_case() {
    for (case, tensor) in [(EXPERT, "select.2"), (EXPERT, "select.3"), (TOKEN, "select.depth")] {
        let place = copies(&[case]);
        change(&place, case, |tensors| {
            let at = tensors.place(tensor).start;
            tensors.data[at] = if tensors.data[at] == 0 { 1 } else { 0 };
        });
        let ended = verify(&place);
        assert_eq!(ended.code, Some(1), "{tensor}: {ended:?}");
        assert_eq!(failed_checks(&ended.json(), case), ["selections"], "{tensor}");
    }
}

#[test]
fn a_case_that_cannot_be_read_is_an_error_with_its_name() {
    let json = format!("cases/{EXPERT}.json");
    let file = format!("cases/{EXPERT}.safetensors");
    let place = copies(&[EXPERT, TOKEN]);
    let (settings, tensors) = (place.text(&json), place.read(&file));
    let settings_cases: [(&str, String, &str); 7] = [
        ("cut short", settings[..settings.len() / 2].to_owned(), "expert_linear_sigmoid_nr3.json"),
        ("another width", settings.replace("\"hidden_size\": 64", "\"hidden_size\": 60"), "has"),
        ("no width", settings.replace("\"hidden_size\": 64", "\"hidden_size\": 0"), "width"),
        ("unknown sharing", settings.replace("middle_cycle", "spiral"), "sharing is spiral"),
        (
            "unknown kind",
            settings.replace("\"kind\": \"expert\"", "\"kind\": \"oracle\""),
            "kind is oracle",
        ),
        (
            "smaller vocabulary",
            settings.replace("\"vocab_size\": 97", "\"vocab_size\": 13"),
            "expected 13 x 64",
        ),
        ("wrong type", settings.replace("\"layers\": 8", "\"layers\": \"many\""), "line 7"),
    ];
    for (what, text, needle) in settings_cases {
        assert_ne!(text, settings, "{what} changes nothing");
        place.write(&json, text);
        verify(&place).bad(&[EXPERT, needle]);
    }
    fs::remove_file(place.path(&json)).expect("removes");
    verify(&place).bad(&[EXPERT, ".json"]);
    place.write(&json, &settings);
    for length in [0, 7, 4000, tensors.len() - 1] {
        place.write(&file, &tensors[..length]);
        verify(&place).bad(&[EXPERT, ".safetensors"]);
    }
    place.write(&file, &tensors);
    verify(&place).good();
}

/// Cases beside a damaged one are compared and shown, and no part of a case that is lost makes the
/// case vanish.
#[test]
fn a_damaged_case_fails_beside_the_others() {
    let tensors = format!("cases/{EXPERT}.safetensors");
    let settings = format!("cases/{EXPERT}.json");
    type Damage<'a> = &'a dyn Fn(&Place);
    let cut = |place: &Place, file: &str| {
        let bytes = place.read(file);
        place.write(file, &bytes[..bytes.len() / 2]);
    };
    let lose = |place: &Place, file: &str| fs::remove_file(place.path(file)).expect("removes");
    let ways: [Damage<'_>; 5] = [
        &|place| cut(place, &tensors),
        &|place| cut(place, &settings),
        &|place| lose(place, &tensors),
        &|place| lose(place, &settings),
        &|place| {
            lose(place, &tensors);
            cut(place, &settings);
        },
    ];
    for (number, damage) in ways.iter().enumerate() {
        let place = copies(&[EXPERT, TOKEN]);
        damage(&place);
        let ended = verify(&place).bad(&[&format!("case {EXPERT}: ")]);
        let cases = ended.json();
        assert_eq!(cases.as_array().map(Vec::len), Some(2), "{number}: {cases}");
        assert_eq!((&cases[0]["name"], &cases[0]["passed"]), (&EXPERT.into(), &false.into()));
        assert!(cases[0]["broken"].is_string(), "{number}: {cases}");
        assert_eq!((&cases[1]["name"], &cases[1]["passed"]), (&TOKEN.into(), &true.into()));
        let table = place.run(&["verify", "cases"]).bad(&[EXPERT]).out;
        let line = table.lines().find(|line| line.contains(EXPERT)).expect("its line");
        assert!(line.contains("FAIL") && table.contains("1 of 2 cases"), "{number}: {table}");
    }
    // Settings alone are a case too, and other JSON is none.
    let place = copies(&[EXPERT]);
    lose(&place, &tensors);
    verify(&place).bad(&[&format!("case {EXPERT}: "), ".safetensors"]);
    place.write(&settings, "{}");
    verify(&place).bad(&["holds no case"]);
}

/// Shapes that contradict each other inside a file that is sound as such.
#[test]
fn tensors_of_another_size_are_an_error_with_their_name() {
    type Change = fn(&mut Tensors);
    let cases: [(&str, &str, Change); 11] = [
        (EXPERT, "grad.model.embed_tokens.weight", |t| {
            let mut bytes = t.take("grad.model.embed_tokens.weight");
            bytes.extend([0; 256]);
            t.push("grad.model.embed_tokens.weight", "F32", &[98, 64], &bytes);
        }),
        (EXPERT, "grad of norm", |t| {
            let bytes = t.take("grad.model.norm.weight");
            t.push("grad.model.norm.weight", "F32", &[32], &bytes[..128]);
        }),
        (EXPERT, "grad.model.norm.weight", |t| {
            t.take("grad.model.norm.weight");
        }),
        (EXPERT, "logits", |t| {
            t.take("logits");
        }),
        (EXPERT, "hidden", |t| {
            t.take("hidden.5");
        }),
        (EXPERT, "input_ids", |t| {
            t.take("input_ids");
        }),
        (EXPERT, "input_ids", |t| {
            t.take("input_ids");
            t.push("input_ids", "I64", &[0, 33], &[]);
        }),
        (EXPERT, "stores", |t| t.push("param.stray", "F32", &[1], &[0; 4])),
        (TRAIN, "train.loss", |t| {
            t.take("train.loss");
            t.push("train.loss", "F32", &[1], &[0; 4]);
        }),
        (TRAIN, "train.input_ids", |t| {
            t.take("train.input_ids");
            t.push("train.input_ids", "I64", &[8, 0, 33], &[]);
        }),
        (TRAIN, "beyond vocab_size", |t| {
            let at = t.place("train.input_ids").start;
            t.data[at] = 97;
        }),
    ];
    for (case, needle, how) in cases {
        let place = copies(&[case]);
        change(&place, case, how);
        verify(&place).bad(&[case, needle]);
    }
}

#[test]
fn a_folder_without_cases_is_an_error() {
    let place = Place::empty();
    place.run(&["verify", "missing", "--json"]).bad(&["missing"]);
    fs::create_dir(place.path("empty")).expect("makes");
    place.run(&["verify", "empty"]).bad(&["empty", "holds no case"]);
    place.write("file", "text");
    place.run(&["verify", "file"]).bad(&["file"]);
}
