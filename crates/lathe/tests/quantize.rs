//! `lathe quantize`: the folder it writes computes what rounding at load does, is as small as
//! promised, runs and nothing else, and is refused when damaged. Every test runs over the list of
//! formats.

mod common;

use common::fixture::Fixture;
use common::{EXPERT, Place, Tensors, recipe};
use ops::Format;
use serde_json::{Value, json};

/// The name of a format, and the folder of the run's weights in it.
fn names() -> Vec<(String, String)> {
    let all = Format::ALL.iter().map(|format| (format.to_string(), format!("in-{format}")));
    all.chain([("int8,*.down=bf16,layers.0.*=f32".to_owned(), "mixed".to_owned())]).collect()
}

fn quantize(place: &Place, format: &str, out: &str) -> Value {
    let done =
        place.run(&["quantize", "run", "--out", out, "--weights", format, "--json"]).good().json();
    assert_eq!(done["path"], out);
    done["quantization"].clone()
}

/// What `eval` says, but for the name of the checkpoint.
fn scores(place: &Place, checkpoint: &str, more: &[&str]) -> Value {
    let arguments = ["eval", checkpoint, "--data", "data", "--windows", "6", "--json"];
    let mut scores = place.run(&[&arguments[..], more].concat()).good().json();
    scores.as_object_mut().expect("an object").remove("checkpoint");
    scores
}

/// What `generate` says, with the depth of each token.
fn text(place: &Place, checkpoint: &str, more: &[&str]) -> (String, String) {
    let arguments =
        ["generate", checkpoint, "--prompt", "the model", "--max-tokens", "40", "--ignore-eos"];
    let ended = place.run(&[&arguments[..], more].concat()).good();
    (ended.out, ended.err)
}

#[test]
fn a_quantised_folder_computes_what_rounding_at_load_does() {
    let place = Place::with_run();
    let plain = scores(&place, "run", &[]);
    assert_eq!(plain["weights"], "f32");
    for (format, folder) in names() {
        quantize(&place, &format, &folder);
        let asked: [&[&str]; 2] = [&[], &["--weights", &format]];
        for asked in asked {
            let found = scores(&place, &folder, asked);
            assert_eq!(found, scores(&place, "run", &["--weights", &format]), "{format}");
            assert_ne!(
                found["causal_routing"]["all"]["nll"], plain["causal_routing"]["all"]["nll"],
                "{format}"
            );
            assert_eq!((&found["step"], &found["weights"]), (&json!(4), &json!(format)));
            assert_eq!(
                text(&place, &folder, asked),
                text(&place, "run", &["--weights", &format]),
                "{format}"
            );
        }
        let bench = [
            "bench",
            "decode",
            &folder,
            "--batch",
            "2",
            "--context",
            "8",
            "--tokens",
            "4",
            "--rounds",
            "1",
        ];
        let measured = place.run(&[&bench[..], &["--json"]].concat()).good().json();
        assert_eq!(measured["weights"], format.as_str());
        let seen = place.run(&["inspect", &folder, "--json"]).good().json();
        assert_eq!((&seen["weights"], &seen["step"]), (&json!(format), &json!(4)));
        assert!(
            place.run(&["inspect", &folder]).good().out.contains(&format!("rounded to {format}"))
        );
    }
}

/// Bytes of the data of a weights file.
fn data_bytes(place: &Place, checkpoint: &str) -> u64 {
    Tensors::parse(&place.read(&format!("{checkpoint}/weights.safetensors"))).data.len() as u64
}

#[test]
fn a_quantised_folder_is_as_small_as_its_format() {
    let place = Place::with_data();
    // Rows of whole groups, so that sizes are those of large models.
    let wide = recipe(2, 2, EXPERT, "recursion_wise")
        .replace("width = 32", "width = 128")
        .replace("ffn = 64", "ffn = 192");
    place.write("wide.toml", wide);
    place.run(&["train", "wide.toml", "--out", "run"]).good();
    let before = data_bytes(&place, "run/checkpoints/step-00000002");
    for (format, (name, folder)) in Format::ALL.iter().zip(names()) {
        let done = quantize(&place, &name, &folder);
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value}"));
        assert_eq!(done["bytes_before"], before, "{name}");
        assert_eq!(
            done["bytes_after"],
            data_bytes(&place, &folder),
            "{name}: the file holds what the table says"
        );
        let kinds = done["kinds"].as_array().expect("a list");
        let mut rounded = 0;
        for kind in kinds {
            let ratio = number(&kind["bytes_after"]) / number(&kind["bytes_before"]);
            let (largest, mean) = (number(&kind["largest_error"]), number(&kind["mean_error"]));
            if kind["format"] == "f32" {
                assert_eq!((ratio, largest, mean), (1.0, 0.0, 0.0), "{kind}");
                continue;
            }
            rounded += 1;
            // Scales, and minima beside 4 bits or fewer, of 16 bits each for 32 values at least; a
            // unit of 32 bits for the matrix.
            let kept: Format =
                kind["format"].as_str().and_then(|name| name.parse().ok()).expect("a format");
            let (codes, beside) =
                (kept.bits() as f64 / 32.0, if kept.bits() <= 4 { 1.0 / 32.0 } else { 0.5 / 32.0 });
            assert!(ratio >= codes && ratio <= codes + beside + 1e-3, "{kind}");
            // Codes reach about three times the root mean square: a step is that over half of their
            // number.
            let step = 8.0 / f64::from(1 << kept.bits().min(8));
            assert!(mean > 0.0 && mean < largest && mean < step && largest < 2.0 * step, "{kind}");
        }
        assert_eq!(rounded, 6, "embedding and five matrices of a layer: {done}");
        let whole = data_bytes(&place, &folder) as f64 / before as f64;
        let most = format.bits().max(5) as f64 / 32.0 * 1.35;
        assert!(whole < most, "{name}: {whole} of the bytes");
        let shown = place
            .run(&["quantize", "run", "--out", &format!("{folder}-again"), "--weights", &name])
            .good()
            .out;
        for needle in
            ["largest error", "mean error", "gate_up", "embed", "before", "after", "wrote in-"]
        {
            assert!(shown.contains(needle), "{needle}: {shown}");
        }
        for file in [
            "weights.safetensors",
            "config.json",
            "routing.json",
            "tokenizer.json",
            "recipe.json",
            "router.json",
        ] {
            assert_eq!(
                place.read(&format!("{folder}/{file}")),
                place.read(&format!("{folder}-again/{file}")),
                "{file}"
            );
        }
        assert!(
            !place.has(&format!("{folder}/optimizer.safetensors"))
                && !place.has(&format!("{folder}/state.json"))
        );
    }
}

#[test]
fn a_quantised_folder_runs_and_nothing_else() {
    let place = Place::with_run();
    let from = |start: &str| {
        format!(
            "[start]\ncheckpoint = \"{start}\"\n[data]\ndir = \"data\"\nsequence_length = 32\n\
             [train]\nsteps = 2\nbatch = 2\nmicro_batch = 2\n"
        )
    };
    place.write("up.toml", from("in-int8"));
    place.write(
        "taught.toml",
        format!("{}[distill]\ncheckpoint = \"in-int8\"\nweight = 0.5\n", from("run")),
    );
    for (i, (format, folder)) in names().into_iter().enumerate() {
        quantize(&place, &format, &folder);
        let next: &[&str] = &[&folder, "start from the f32 checkpoint"];
        place.refuses(&["quantize", &folder, "--out", "x", "--weights", "int4"], next);
        place.refuses(&["convert", &folder, "--out", "x"], next);
        for form in ["hf", "gguf", "lathe"] {
            place.refuses(&["export", &folder, "--out", "x", "--format", form], next);
        }
        place.write("up.toml", from(&folder));
        place.refuses(&["train", "up.toml", "--out", "y"], next);
        place.write(
            "up.toml",
            format!("{}[distill]\ncheckpoint = \"{folder}\"\nweight = 0.5\n", from("run")),
        );
        place.refuses(&["train", "up.toml", "--out", "y"], next);
        common::copy_folder(
            &place.path(&folder),
            &place.path(&format!("{folder}-run/checkpoints/step-00000001")),
        );
        place.refuses(&["train", "tiny.toml", "--out", &format!("{folder}-run")], &next[1..]);
        // Another format than the stored one: the next of the list, and none.
        let next_one = names().into_iter().cycle().skip(i + 1).map(|(other, _)| other).next();
        for other in next_one.into_iter().chain(["f32".to_owned()]) {
            let needles: &[&str] = &["--weights", &other, &format, "leave --weights out"];
            place.refuses(&["generate", &folder, "--prompt", "the", "--weights", &other], needles);
        }
        for verb in [
            &["eval", &folder, "--data", "data"][..],
            &["serve", &folder],
            &["bench", "decode", &folder],
        ] {
            place.refuses(&[verb, &["--weights", "f32"]].concat(), &["--weights", &format]);
        }
        place.refuses(
            &["quantize", "run", "--out", &folder, "--weights", &format],
            &[&folder, "taken"],
        );
    }
    for wrong in ["f32", "int5", ""] {
        place.refuses(
            &["quantize", "run", "--out", "x", "--weights", wrong],
            &["--weights", "int8-row"],
        );
    }
    place.refuses(&["quantize", "run", "--out", "x"], &["--weights"]);
    place.refuses(&["quantize", "nowhere", "--out", "x", "--weights", "int8"], &["nowhere"]);
    assert!(!place.has("x"));
}

/// What a dense folder of symmetric codes is to other programs, and what stays here.
#[test]
fn a_dense_folder_goes_out_in_its_codes() {
    let place = Place::with_data();
    place.make_dense();
    for (format, folder) in [("int8-row", "rows"), ("int4", "groups")] {
        place.run(&["quantize", "dense", "--weights", format, "--out", folder]).good();
    }
    place.run(&["export", "rows", "--out", "packed"]).good();
    let config: Value = serde_json::from_slice(&place.read("packed/config.json")).expect("JSON");
    let said = &config["quantization_config"];
    assert_eq!(said["quant_method"], "compressed-tensors");
    assert_eq!(said["config_groups"]["group_0"]["weights"]["num_bits"], 8, "{said}");
    let next: &[&str] = &["rows", "start from the f32 checkpoint"];
    place.refuses(&["export", "rows", "--out", "x.gguf"], next);
    place.refuses(&["export", "rows", "--out", "x", "--format", "lathe"], next);
    place.refuses(&["export", "rows", "--out", "x", "--dtype", "bf16"], &["--dtype", "rounded"]);
    place.refuses(&["export", "groups", "--out", "x"], &["int4", "minima", "int4-sym"]);
    assert!(!place.has("x") && !place.has("x.gguf"));
}

/// A tensor's bytes, overwritten from the start.
fn poke(tensors: &mut Tensors, name: &str, bytes: &[u8]) {
    let at = tensors.place(name).start;
    tensors.data[at..at + bytes.len()].copy_from_slice(bytes);
}

type Change = fn(&mut Tensors, &str);

#[test]
fn damaged_quantised_weights() {
    let mut place = Place::with_run();
    for (format, folder) in names() {
        quantize(&place, &format, &folder);
        let fixture = Fixture::new(place, &folder);
        let whole = fixture.file("weights.safetensors");
        let refuses = |bytes: &[u8], needles: &[&str]| {
            fixture.put("weights.safetensors", Some(bytes));
            fixture
                .place
                .refuses(&["inspect", &folder], &[&["weights.safetensors"], needles].concat());
            fixture.heal();
        };
        for length in [0, 100, whole.len() / 2, whole.len() - 1] {
            fixture.refuses(
                "weights.safetensors",
                Some(&whole[..length]),
                &["weights.safetensors"],
            );
            fixture.place.write(&format!("{folder}/weights.safetensors"), &whole[..length]);
            fixture.place.refuses(&["inspect", &folder], &["weights.safetensors", "size"]);
            fixture.heal();
        }
        let changed = |change: Change, name: &str, needles: &[&str]| {
            let mut tensors = Tensors::parse(&whole);
            change(&mut tensors, name);
            refuses(&tensors.to_bytes(), &[&[name], needles].concat());
        };
        let all = Tensors::parse(&whole).header;
        let parts = all
            .keys()
            .filter(|name| name.starts_with("embed") || name.starts_with("layers.1.down"));
        for name in parts {
            changed(|t, name| drop(t.take(name)), name, &["missing"]);
            changed(
                |t, name| t.header[name]["shape"] = json!([1, 1, t.place(name).len()]),
                name,
                &[],
            );
            changed(
                |t, name| {
                    let bytes = t.take(name);
                    t.push(name, "U8", &[1, bytes.len()], &bytes);
                },
                name,
                &["wrongly shaped"],
            );
            // An element type of the same size: the shape still fits.
            let (kind, other) = match all[name]["dtype"].as_str().expect("a name") {
                "F32" => ("F32", "I32"),
                "F16" => ("F16", "BF16"),
                "BF16" => ("BF16", "F16"),
                "I8" => ("I8", "U8"),
                kind => (kind, "I8"),
            };
            let mut tensors = Tensors::parse(&whole);
            tensors.header[name]["dtype"] = other.into();
            refuses(&tensors.to_bytes(), &[name, "dtype", kind, other]);
            match kind {
                "F16" => {
                    changed(|t, name| poke(t, name, &[0x00, 0x7e]), name, &["finite", "NaN"]);
                    changed(|t, name| poke(t, name, &[0x00, 0xfc]), name, &["finite", "inf"]);
                }
                "BF16" => changed(|t, name| poke(t, name, &[0xc0, 0x7f]), name, &["finite", "NaN"]),
                "F32" => {
                    let matrix = name.strip_suffix(".unit").expect("a unit");
                    changed(
                        |t, name| poke(t, name, &f32::NAN.to_le_bytes()),
                        name,
                        &["finite", "NaN"],
                    );
                    for wrong in [0.0, 3.0, -1.0, 1e-40_f32, f32::MAX] {
                        let mut tensors = Tensors::parse(&whole);
                        poke(&mut tensors, name, &wrong.to_le_bytes());
                        refuses(&tensors.to_bytes(), &[matrix, "unit", "power of two"]);
                    }
                    let mut tensors = Tensors::parse(&whole);
                    poke(&mut tensors, name, &2f32.powi(127).to_le_bytes());
                    refuses(&tensors.to_bytes(), &[matrix, "scale", "row 0"]);
                }
                _ => {}
            }
        }
        changed(|t, name| t.push(name, "F16", &[1], &[0; 2]), "stray.scales", &["extra"]);
        changed(|t, name| t.push(name, "F32", &[1], &[0; 4]), "norm.unit", &["extra"]);
        changed(|t, name| poke(t, name, &f32::NAN.to_le_bytes()), "norm", &["finite"]);
        place = fixture.place;
    }
}

#[test]
fn damaged_documents_of_quantised_folders() {
    let mut place = Place::with_run();
    for (format, folder) in names() {
        quantize(&place, &format, &folder);
        let fixture = Fixture::new(place, &folder);
        // Without its document the folder is one of f32 weights, which these are not.
        fixture.refuses("quantized.json", None, &["weights.safetensors"]);
        for text in ["", "{", "[]", "{}", "\"int8\""] {
            fixture.refuses("quantized.json", Some(text.as_bytes()), &["quantized.json"]);
        }
        let other = if format.starts_with("int8") { "bf16" } else { "int8" };
        let cases: [(&str, Value, &[&str]); 7] = [
            ("/weights", json!("int5"), &["quantized.weights", "int5", "int8-row"]),
            ("/weights", json!("f32"), &["quantized.weights", "f32"]),
            ("/weights", json!(other), &["weights.safetensors"]),
            ("/weights", json!(8), &["quantized.json"]),
            ("/step", json!(-1), &["quantized.json"]),
            ("/tokens", Value::Null, &["quantized.json", "tokens"]),
            ("/surprise", json!(1), &["quantized.json", "surprise"]),
        ];
        for (field, value, needles) in cases {
            fixture.refuses_field("quantized.json", field, value, needles);
        }
        for (field, value) in
            [("/vocab_size", json!(301)), ("/width", json!(48)), ("/layers", json!(8))]
        {
            fixture.refuses_field("config.json", field, value, &["weights.safetensors"]);
        }
        fixture.refuses("routing.json", Some(b"{}"), &["routing.json"]);
        fixture.put("routing.json", None);
        fixture
            .place
            .refuses(&["generate", &folder, "--prompt", "the"], &["no causal routing rule"]);
        place = fixture.place;
    }
}
