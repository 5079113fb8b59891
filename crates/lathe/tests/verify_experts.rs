//! `lathe verify` over folders of models with experts: everything that is recorded of routers is
//! compared, and what is wrong or out of reach is told.

mod common;

use common::Place;

const CASES: [&str; 6] = [
    "deepseekv2_mla",
    "deepseekv3_mla",
    "gptoss_base",
    "granitemoeshared_base",
    "longcat_zero",
    "phimoe_base",
];

fn folders() -> String {
    format!("{}/tests/experts", env!("CARGO_MANIFEST_DIR"))
}

fn copy(place: &Place, case: &str) {
    for file in ["config.json", "model.safetensors", "refs.json", "refs.safetensors"] {
        let bytes = std::fs::read(format!("{}/{case}/{file}", folders())).expect("a file");
        place.write(&format!("cases/{case}/{file}"), bytes);
    }
}

#[test]
fn folders_of_experts_pass_with_fast_and_plain_operations() {
    let place = Place::empty();
    for plain in [&[][..], &["--plain"]] {
        let ended = place.run(&[&["verify", &folders(), "--json"], plain].concat()).good();
        let cases = ended.json();
        let cases = cases.as_array().expect("a list");
        let names: Vec<&str> = cases.iter().filter_map(|case| case["name"].as_str()).collect();
        assert_eq!(names, CASES);
        for case in cases {
            assert_eq!(case["passed"], true, "{case}");
            let checks = case["checks"].as_array().expect("a list");
            let kinds: Vec<&str> = checks.iter().filter_map(|c| c["what"].as_str()).collect();
            // The classes with latent attention have no balance loss.
            let without = ["deepseekv2_mla", "deepseekv3_mla", "longcat_zero"];
            let aux = !without.iter().any(|name| case["name"] == *name);
            assert_eq!(kinds.contains(&"aux"), aux, "{kinds:?}");
            for kind in [
                "logits",
                "ce",
                "loss",
                "hidden",
                "router logits",
                "selections",
                "weights",
                "gradients",
            ] {
                assert!(kinds.contains(&kind), "{kind}: {kinds:?}");
            }
        }
    }
}

/// Blocks of which some say their settings otherwise than models do: experts that compute nothing,
/// transposed banks, and a shared expert that is averaged with the others.
#[test]
fn layers_of_experts_alone_pass_and_a_wrong_setting_fails() {
    let place = Place::empty();
    let blocks = format!("{}/tests/blocks", env!("CARGO_MANIFEST_DIR"));
    for plain in [&[][..], &["--plain"]] {
        let ended = place.run(&[&["verify", &blocks, "--json"], plain].concat()).good();
        let cases = ended.json();
        let cases = cases.as_array().expect("a list");
        assert_eq!(cases.len(), 3, "{cases:?}");
        for case in cases {
            assert_eq!(case["passed"], true, "{case}");
            let kinds: Vec<&str> = (case["checks"].as_array().expect("a list").iter())
                .filter_map(|check| check["what"].as_str())
                .collect();
            let chosen = case["name"] != "dbrx";
            let expected =
                if chosen { &["y", "selections", "gradients"][..] } else { &["y", "gradients"] };
            assert_eq!(kinds, expected, "{case}");
        }
    }
    for (name, from, to, reason) in [
        ("longcat_zero", "\"routed_scaling_factor\": 1.5", "\"routed_scaling_factor\": 1.6", None),
        ("longcat_zero", "LongcatFlashMoE", "SwitchTransformersSparseMLP", Some("no gate")),
        ("longcat_zero", "LongcatFlashMoE", "SomethingElse", Some("SomethingElse")),
        ("dbrx", "weights\": 1.0", "weights\": 2.0", Some("moe_normalize_expert_weights = 2")),
    ] {
        let place = Place::empty();
        for file in ["block.safetensors", "refs.safetensors", "refs.json"] {
            let bytes = std::fs::read(format!("{blocks}/{name}/{file}")).expect("a file");
            place.write(&format!("cases/{name}/{file}"), bytes);
        }
        let path = format!("cases/{name}/refs.json");
        let text = String::from_utf8(place.read(&path)).expect("JSON");
        assert!(text.contains(from), "{text}");
        place.write(&path, text.replace(from, to));
        let ended = place.run(&["verify", "cases", "--json"]);
        let case = ended.json()[0].clone();
        assert_eq!(case["passed"], false, "{case}");
        match reason {
            Some(reason) => assert!(case["refused"].as_str().expect("why").contains(reason)),
            None => assert_eq!(ended.code, Some(1), "{ended:?}"),
        }
    }
}

#[test]
fn another_setting_fails_and_adapters_and_blocks_are_refused() {
    let place = Place::empty();
    let [_, _, gpt_oss, granite, ..] = CASES;
    copy(&place, gpt_oss);
    copy(&place, granite);
    let config = format!("cases/{gpt_oss}/config.json");
    let text = String::from_utf8(place.read(&config)).expect("JSON");
    place.write(&config, text.replace("\"sliding_window\": 9", "\"sliding_window\": 8"));
    for folder in ["cases/adapter", "cases/blocks/one"] {
        place.write(
            &format!("{folder}/refs.safetensors"),
            place.read(&format!("cases/{granite}/refs.safetensors")),
        );
    }
    place.write("cases/adapter/adapter_config.json", "{}");
    place.write("cases/blocks/one/block.safetensors", "");
    let ended = place.run(&["verify", "cases", "--json"]);
    let cases = ended.json();
    let of = |name: &str| {
        let found = cases.as_array().expect("a list").iter().find(|case| case["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {cases}")).clone()
    };
    assert_eq!((of(gpt_oss)["passed"] == true, of(granite)["passed"] == true), (false, true));
    for (name, reason) in [("adapter", "adapter"), ("one", "block")] {
        let why = of(name)["refused"].as_str().expect("a reason").to_owned();
        assert!(why.contains(reason), "{name}: {why}");
    }
    assert_eq!(ended.code, Some(1), "{ended:?}");
}
