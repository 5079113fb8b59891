use serde_json::json;

use super::*;

fn said(text: &str) -> String {
    Study::parse(text, "it").expect_err(text).to_string()
}

#[test]
fn a_study_says_what_runs() {
    let study = Study::parse(
        "name = \"depth\"\nmethod = \"grid\"\nrecipes = \"cpu-1m-mor3\"\nseeds = 2\n\
         metric = { name = \"nll\", goal = \"maximize\" }\n\
         [parameters]\n\"train.batch\" = { values = [4, 8] }\n\
         model.router = { values = [{ kind = \"fixed\" }, { kind = \"random\" }] }\n\
         train.steps = { value = 3 }\n",
        "other",
    )
    .expect("legal");
    assert_eq!((study.name.as_str(), study.seeds.as_slice()), ("depth", &[1, 2][..]));
    assert_eq!(study.metric, Objective { name: "nll".into(), goal: Goal::Maximize });
    assert_eq!(study.varied(), ["model.router", "train.batch"]);
    assert_eq!(study.fixed().collect::<Vec<_>>(), [("train.steps".to_owned(), json!(3))]);
    assert_eq!(study.points().len(), 8);
    let bare = Study::parse("recipes = [\"a.toml\"]\n", "it").expect("legal");
    assert_eq!((bare.name.as_str(), bare.points().len()), ("it", 1));
    assert_eq!(bare.metric.name, COUNTS);
}

#[test]
fn seeds_among_the_parameters_are_seeds() {
    let recipes = "recipes = [\"a.toml\"]\n";
    let steps = "[parameters]\ntrain.steps = { value = 2 }\n";
    let [among, beside] = [
        format!("{recipes}{steps}train.seed = {{ values = [3, 4] }}"),
        format!("{recipes}seeds = [3, 4]\n{steps}"),
    ]
    .map(|text| Study::parse(&text, "it").expect("legal"));
    assert_eq!(among, beside);
    let bad = said(&format!("{recipes}[parameters]\ntrain.seed = {{ values = [\"x\"] }}"));
    assert!(bad.contains("parameters.train.seed is \"x\", expected whole numbers"), "{bad}");
}

#[test]
fn a_recipe_is_no_study() {
    assert!(Study::is_one("recipes = [\"a\"]") && Study::is_one("metod = 1\nparameters = 3"));
    assert!(!Study::is_one("[train]\nsteps = 3\n") && !Study::is_one("not toml"));
}

#[test]
fn bad_studies_are_refused_by_field() {
    let recipes = "recipes = [\"cpu-1m-mor3\"]\n";
    for (text, needles) in [
        ("parameters = 3", &["recipes is empty"][..]),
        ("recipes = []", &["recipes is empty"]),
        ("recipes = [1]", &["recipes is 1", "quotes"]),
        ("recipes = [\"a\", \"a\"]", &["\"a\" twice"]),
        ("recipe = \"a\"", &["recipe is no key", "did you mean `recipes`?"]),
        ("recipes = [", &["TOML parse error"]),
    ] {
        for needle in needles {
            assert!(said(text).contains(needle), "{text}: {}", said(text));
        }
    }
    for (rest, needle) in [
        ("method = \"bayes\"", "method is \"bayes\", expected \"grid\""),
        ("name = \"../up\"", "name is \"../up\""),
        ("name = \"..\"", "name is \"..\""),
        ("name = 3", "name is 3"),
        ("seeds = 0", "seeds is 0"),
        ("seeds = []", "seeds is an empty list"),
        ("seeds = [1, 1]", "1 twice"),
        ("seeds = [-1]", "seeds is -1"),
        ("seeds = [1.5]", "seeds is 1.5"),
        ("seeds = \"many\"", "seeds is \"many\""),
        ("metric = 3", "metric is 3"),
        ("metric = { goal = \"low\" }", "metric.goal is \"low\""),
        ("metric = { nane = \"nll\" }", "metric.nane is no key"),
        ("parameters = 3", "parameters is 3"),
        ("[parameters]\ntrain.batch = 8", "parameters.train.batch is 8, expected a table"),
        ("[parameters]\ntrain.batch = {}", "an empty table"),
        ("[parameters]\ntrain.batch = { values = [] }", "parameters.train.batch is without"),
        ("[parameters]\ntrain.batch = { values = 8 }", "a list of values"),
        ("[parameters]\ntrain.batch = { value = 1, values = [2] }", "value and values"),
        ("[parameters]\ntrain.batch = { values = [1], min = 0 }", "train.batch.min is beside"),
        ("[parameters]\ntrain.batch = { values = [8, 8] }", "8 twice"),
        ("[parameters]\n\"train..batch\" = { value = 8 }", "parameters.train..batch is no field"),
        ("[parameters]\n\"a.b\" = { value = 8 }\na.b = { value = 9 }", "\"a.b\" twice"),
        (
            "[parameters]\n\"a\" = { value = { b = 1 } }\n\"a.b\" = { value = 9 }",
            "parameters.a is set whole and in part",
        ),
        ("seeds = 2\n[parameters]\ntrain.seed = { value = 8 }", "given beside seeds"),
    ] {
        let text = format!("{recipes}{rest}\n");
        assert!(said(&text).contains(needle), "{text}: {}", said(&text));
    }
    let many: Vec<String> = (0..101).map(|n| n.to_string()).collect();
    let list = many.join(", ");
    let text = format!(
        "{recipes}[parameters]\na = {{ values = [{list}] }}\n\
                        b = {{ values = [{list}] }}\n"
    );
    assert!(said(&text).contains("a grid of 10201 points"), "{}", said(&text));
}

#[test]
fn the_command_line_varies_fields() {
    let mut study = Study::of_recipe("it", "a.toml");
    for entry in [
        "train.batch=8,16",
        "model.router={ kind = \"fixed\" },{ kind = \"random\" }",
        "model.kv=shared,recursion_wise",
        "data.dir=some/where",
        "train.batch=4",
        "train.seed=5,6",
    ] {
        study.vary(entry).expect(entry);
    }
    assert_eq!(study.varied(), ["model.router", "model.kv"]);
    assert_eq!(study.seeds, [5, 6]);
    let fixed: Vec<Setting> = study.fixed().collect();
    assert_eq!(
        fixed,
        [("data.dir".to_owned(), json!("some/where")), ("train.batch".to_owned(), json!(4))]
    );
    let kinds = [json!({ "kind": "fixed" }), json!({ "kind": "random" })];
    assert_eq!(study.parameters[0].values, kinds);
    for (entry, needle) in [
        ("train.batch", "FIELD=VALUE"),
        ("=3", "no field"),
        ("train.batch=", "without values"),
        ("train.batch=3,3", "3 twice"),
        ("train.seed=x", "whole numbers"),
    ] {
        let error = study.clone().vary(entry).expect_err(entry).to_string();
        assert!(error.contains(needle), "{entry}: {error}");
    }
}
