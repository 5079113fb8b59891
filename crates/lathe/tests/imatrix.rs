//! `lathe imatrix` and what rounds by it: files are those of llama.cpp, read back they decide how
//! weights are rounded, and those that lie or belong to another model are refused.

mod common;

use common::{Place, dense_recipe};
use formats::gguf::Imatrix;
use serde_json::Value;

const MOE: &str = "mlp = { kind = \"experts\", count = 4, width = 32 }\n";

/// Two trained models, dense and of experts, and the run.
fn place() -> Place {
    let place = Place::with_run();
    let whole = dense_recipe().replace("[model]\n", &format!("[model]\n{MOE}"));
    for (name, recipe) in [("dense", dense_recipe()), ("moe", whole)] {
        place.write(&format!("{name}.toml"), recipe);
        place.run(&["train", &format!("{name}.toml"), "--out", name]).good();
    }
    place
}

fn measured(place: &Place, model: &str) -> (Value, Imatrix) {
    let out = format!("{model}.gguf");
    let line = ["imatrix", model, "--text", "data", "--out", &out, "--json"];
    let told = place.run(&[&line[..], &["--calibration-rows", "512"]].concat()).good().json();
    assert_eq!(told["path"], out);
    (told["importance"].clone(), Imatrix::read(&place.path(&out)).expect("a file"))
}

#[test]
fn a_file_has_the_names_of_llama_cpp_and_decides_what_is_rounded() {
    let place = place();
    let (told, dense) = measured(&place, "dense");
    assert_eq!(told["rows"], 512);
    assert_eq!(told["tensors"], dense.entries.len());
    // Seven matrices a layer: query, key, value, output, gate, up and down.
    let names: Vec<&str> = dense.entries.keys().map(String::as_str).collect();
    for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
        assert!(names.contains(&format!("blk.0.{name}.weight").as_str()), "{names:?}");
    }
    let of = |name: &str| &dense.entries[&format!("blk.0.{name}.weight")];
    assert_eq!(of("attn_q"), of("attn_v"), "one input");
    assert_eq!(of("ffn_down").counts, [512.0]);
    assert_eq!(dense.chunk_count * dense.chunk_size, 512);
    let (_, own) = measured(&place, "run");
    assert!(own.entries.keys().all(|name| name.starts_with("layers.")), "{:?}", own.entries.keys());
    let (_, moe) = measured(&place, "moe");
    let experts = moe.entries.iter().find(|(_, entry)| entry.counts.len() == 4);
    let (name, entry) = experts.expect("a bank");
    // Two experts a row.
    assert_eq!(entry.counts.iter().sum::<f32>(), 1024.0, "{name}: {:?}", entry.counts);
    for model in ["dense", "run", "moe"] {
        let mut codes = Vec::new();
        for (i, more) in [&[][..], &["--importance", &format!("{model}.gguf")]].iter().enumerate() {
            let out = format!("{model}-{i}");
            let line = ["quantize", model, "--weights", "int2", "--out", &out, "--json"];
            place.run(&[&line[..], more].concat()).good();
            codes.push(place.read(&format!("{out}/weights.safetensors")));
            place.run(&["generate", &out, "--prompt", "the", "--max-tokens", "4"]).good();
        }
        assert!(codes[0] != codes[1] && codes[0].len() == codes[1].len(), "{model}");
    }
}

#[test]
fn files_of_other_models_and_none_are_refused() {
    let place = place();
    measured(&place, "dense");
    measured(&place, "moe");
    place.write("cut.gguf", &place.read("dense.gguf")[..200]);
    place.write("text.gguf", "no file of this kind, but one that is long enough to be one");
    place.run(&["export", "dense", "--out", "model.gguf"]).good();
    for (file, needles) in [
        ("absent.gguf", &["absent.gguf"][..]),
        ("cut.gguf", &["cut.gguf"]),
        ("text.gguf", &["text.gguf", "magic"]),
        ("model.gguf", &["general.type", "imatrix"]),
        ("moe.gguf", &["moe.gguf", "tensors of this model"]),
    ] {
        let line = ["quantize", "dense", "--weights", "int4", "--out", "no", "--importance", file];
        place.run(&line).bad(needles);
        assert!(!place.has("no"), "{file}");
    }
    let idle = ["quantize", "dense", "--weights", "int8", "--out", "no", "--importance"];
    let idle = [&idle[..], &["dense.gguf"]].concat();
    place.run(&idle).bad(&["looks at importance: int4, ", "leave the importance out"]);
    assert!(!place.has("no"));
    for (line, needles) in [
        (&["imatrix", "dense", "--out", "x.gguf"][..], &["--text"][..]),
        (&["imatrix", "dense", "--text", "absent", "--out", "x.gguf"], &["absent"]),
        (&["imatrix", "dense", "--text", "data", "--out", "dense.gguf"], &["dense.gguf", "taken"]),
        (
            &["imatrix", "dense", "--text", "data", "--out", "x.gguf", "--calibration-rows", "32"],
            &["at least 64"],
        ),
    ] {
        let ended = place.run(line);
        assert_ne!(ended.code, Some(0), "{line:?}");
        assert!(needles.iter().all(|needle| ended.err.contains(needle)), "{line:?}: {ended:?}");
        assert!(!place.has("x.gguf"));
    }
}
