//! What is saved comes back bit for bit, here and in the reference reader of the format; what
//! cannot be kept is refused before anything is written.

use std::fs;

use crate::common::{Random, folder, large, same, small, stored, tensor};
use checkpoint::{
    Dtype, FaultyDisk, NamedTensor, Pieces, RealDisk, SaveError, Snapshot, TensorData, load,
    open_safetensors, save, sha256_file,
};
use serde_json::{Value, json};

#[test]
fn odd_shapes_names_and_values_come_back_bit_for_bit() {
    let random = &mut Random::new(11);
    let names = [
        "",
        " ",
        "a/b",
        "\"quoted\"",
        "back\\slash",
        "zeta\u{3b6}\u{1f600}",
        "line\nbreak\0",
        "metadata",
        "__metadata",
    ];
    let mut tensors: Vec<_> = names.iter().map(|name| tensor(name, &[2, 1, 3], random)).collect();
    tensors.push(tensor("scalar", &[], random));
    tensors.push(tensor("empty", &[0], random));
    tensors.push(tensor("empty in the middle", &[4, 0, 9], random));
    tensors.push(tensor("32 dimensions", &[1; 32], random));
    let edges = [
        0.0,
        -0.0,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        -f32::from_bits(0x7f_ffff),
        f32::MAX,
        f32::MIN,
        f32::EPSILON,
    ];
    tensors.push(NamedTensor { name: "edges".into(), shape: vec![8], data: edges[..].into() });
    tensors.push(tensor("empty at the end", &[0, 0], random));
    let mut snapshot = Snapshot::default();
    snapshot.tensors.insert("odd".into(), tensors);
    snapshot.tensors.insert("none".into(), Vec::new());
    snapshot.files.insert("empty.bin".into(), Vec::new());
    snapshot.files.insert("NO_ENDING".into(), (0..=255).collect());
    let parent = folder();
    let path = save(parent.path(), "odd", &snapshot, &RealDisk).unwrap();
    same(&load(&path).unwrap(), &snapshot).unwrap();
}

#[test]
fn empty_snapshot_and_missing_parents() {
    let parent = folder();
    let deep = parent.path().join("a/b/c");
    let path = save(&deep, "final", &Snapshot::default(), &RealDisk).unwrap();
    same(&load(&path).unwrap(), &Snapshot::default()).unwrap();
}

#[test]
fn json_numbers_come_back_exactly() {
    let random = &mut Random::new(5);
    let doubles =
        std::iter::repeat_with(|| f64::from_bits(random.next() << 3 | 5)).filter(|v| v.is_finite());
    let doubles: Vec<f64> = doubles.take(20_000).collect();
    let value = json!({"doubles": doubles, "u64": u64::MAX, "i64": i64::MIN, "order": {"z": 1, "a": [null, true, "\u{0}\u{ffff}"]}});
    let mut snapshot = Snapshot::default();
    snapshot.json.insert("state".into(), value);
    let parent = folder();
    let path = save(parent.path(), "x", &snapshot, &RealDisk).unwrap();
    let loaded = load(&path).unwrap();
    let bits =
        |values: &[Value]| values.iter().map(|v| v.as_f64().unwrap().to_bits()).collect::<Vec<_>>();
    let read = loaded.json["state"]["doubles"].as_array().unwrap();
    assert_eq!(bits(read), doubles.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
    assert_eq!(loaded.json, snapshot.json);
    assert_eq!(
        loaded.json["state"]["order"].to_string(),
        snapshot.json["state"]["order"].to_string()
    );
}

#[test]
fn the_reference_reader_accepts_what_is_written() {
    let (parent, snapshot) = (folder(), large(3));
    let path = save(parent.path(), "x", &snapshot, &RealDisk).unwrap().join("weights.safetensors");
    let bytes = fs::read(&path).unwrap();
    assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.len(), 3);
    for tensor in &snapshot.tensors["weights"] {
        let view = theirs.tensor(&tensor.name).unwrap();
        let (_, data) = stored(tensor);
        assert_eq!(
            (view.dtype(), view.shape(), view.data()),
            (safetensors::Dtype::F32, &tensor.shape[..], &data[..])
        );
    }
}

#[test]
fn what_the_reference_writer_writes_is_read() {
    use safetensors::tensor::TensorView;
    let halves: Vec<u8> =
        [0x3c00_u16, 0xc000, 0x0001].iter().flat_map(|v| v.to_le_bytes()).collect();
    let bfloats: Vec<u8> = [0x3f80_u16, 0xc040].iter().flat_map(|v| v.to_le_bytes()).collect();
    let views = vec![
        ("half", TensorView::new(safetensors::Dtype::F16, vec![3], &halves).unwrap()),
        ("bfloat", TensorView::new(safetensors::Dtype::BF16, vec![1, 2], &bfloats).unwrap()),
        ("bytes", TensorView::new(safetensors::Dtype::U8, vec![5], &[1, 2, 3, 4, 5]).unwrap()),
    ];
    let parent = folder();
    let path = parent.path().join("foreign.safetensors");
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    let file = open_safetensors(&path).unwrap();
    assert_eq!(file.read_f32("half").unwrap(), [1.0, -2.0, 2.0_f32.powi(-24)]);
    assert_eq!(file.read_f32("bfloat").unwrap(), [1.0, -3.0]);
    assert_eq!(
        (file.dtype("bfloat"), file.shape("bfloat")),
        (Some(Dtype::Bf16), Some(&[1, 2][..]))
    );
    let message = file.read_f32("bytes").unwrap_err().to_string();
    assert!(
        message.contains("foreign.safetensors")
            && message.contains("\"bytes\"")
            && message.contains("U8"),
        "{message}"
    );
    let message = file.read_f32("nowhere").unwrap_err().to_string();
    assert!(message.contains("\"nowhere\"") && message.contains('3'), "{message}");
}

#[test]
fn elements_of_other_types_come_back_as_they_were_given() {
    let of = |name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>| NamedTensor {
        name: name.into(),
        shape: shape.to_vec(),
        data: TensorData::Stored { dtype, bytes: bytes.into() },
    };
    let with = |tensor: NamedTensor<'static>| {
        let mut snapshot = small(1);
        snapshot.tensors.get_mut("weights").unwrap().push(tensor);
        snapshot
    };
    let parent = folder();
    let codes = |count: usize| (0..count).map(|i| (i * 31 % 256) as u8).collect::<Vec<u8>>();
    let mut snapshot = with(of("codes", Dtype::I8, &[5, 7], codes(35)));
    // More than a chunk, at no multiple of its size.
    let weights = snapshot.tensors.get_mut("weights").unwrap();
    weights.push(of("wide", Dtype::U8, &[1500, 1001], codes(1500 * 1001)));
    weights.push(of("scales", Dtype::F16, &[3], vec![0x00, 0x3c, 0xff, 0x7b, 0x01, 0x00]));
    weights.push(of("bfloats", Dtype::Bf16, &[2, 1], vec![0x80, 0x3f, 0x7f, 0x7f]));
    weights.push(tensor("last", &[3], &mut Random::new(2)));
    let loaded = load(&save(parent.path(), "x", &snapshot, &RealDisk).unwrap()).unwrap();
    same(&loaded, &snapshot).unwrap();
    let file = loaded.tensors("weights").unwrap();
    let message = file.read_bytes("codes", Dtype::U8).unwrap_err().to_string();
    assert!(message.contains("\"codes\": dtype: expected U8, found I8"), "{message}");
    assert_eq!(file.read_f32("scales").unwrap(), [1.0, 65504.0, 2_f32.powi(-24)]);

    let refused = |tensor, parts: &[&str]| {
        let message = save(parent.path(), "y", &with(tensor), &RealDisk).unwrap_err().to_string();
        assert!(
            parts.iter().all(|part| message.contains(part)),
            "{message} lacks one of {parts:?}"
        );
    };
    refused(of("s", Dtype::F16, &[2], vec![0, 0, 0, 0x7c]), &["\"s\"[1]", "inf"]);
    refused(
        of("s", Dtype::Bf16, &[5000], [vec![0; 9998], vec![0xc0, 0x7f]].concat()),
        &["\"s\"[4999]", "NaN"],
    );
    refused(of("s", Dtype::F16, &[2], vec![0; 6]), &["\"s\"", "expected 2 values", "found 3"]);
    refused(of("s", Dtype::I8, &[2, 2], vec![0; 3]), &["\"s\"", "expected 4 values", "found 3"]);
}

#[test]
fn stored_nan_and_infinity_are_refused_by_name_and_index() {
    use safetensors::tensor::TensorView;
    let cases: [(safetensors::Dtype, Vec<u8>); 6] = [
        (safetensors::Dtype::F32, f32::NAN.to_le_bytes().to_vec()),
        (safetensors::Dtype::F32, f32::NEG_INFINITY.to_le_bytes().to_vec()),
        (safetensors::Dtype::F16, vec![0x00, 0x7c]),
        (safetensors::Dtype::F16, vec![0x01, 0xfe]),
        (safetensors::Dtype::BF16, vec![0x80, 0x7f]),
        (safetensors::Dtype::BF16, vec![0xc0, 0xff]),
    ];
    let parent = folder();
    for (i, (dtype, bad)) in cases.into_iter().enumerate() {
        let mut data = vec![0; bad.len() * 2];
        data.extend(bad);
        let path = parent.path().join(format!("{i}.safetensors"));
        let view = TensorView::new(dtype, vec![3], &data).unwrap();
        fs::write(&path, safetensors::serialize([("layer.w", view)], None).unwrap()).unwrap();
        let message = open_safetensors(&path).unwrap().read_f32("layer.w").unwrap_err().to_string();
        assert!(message.contains(&format!("{i}.safetensors: tensor \"layer.w\"[2]")), "{message}");
    }
}

#[test]
fn bad_snapshots_are_refused_before_anything_is_written() {
    let one = |name: &str, shape: &[usize], data: &[f32]| NamedTensor {
        name: name.into(),
        shape: shape.to_vec(),
        data: data.to_vec().into(),
    };
    let with = |tensors: Vec<NamedTensor<'static>>| {
        let mut snapshot = Snapshot::default();
        snapshot.tensors.insert("weights".into(), tensors);
        snapshot
    };
    let file = |name: &str| {
        let mut snapshot = Snapshot::default();
        snapshot.files.insert(name.into(), vec![1]);
        snapshot
    };
    let mut clash = file("config.json");
    clash.json.insert("config".into(), json!(1));
    let mut taken = Snapshot::default();
    taken.json.insert("manifest".into(), json!(1));
    let mut deep = Snapshot::default();
    deep.json.insert("state".into(), (0..200).fold(json!(1), |inner, _| json!([inner])));
    let long = "x".repeat(129);
    let cases: Vec<(&str, Snapshot<'_>, &[&str])> = vec![
        (
            "x",
            with(vec![one("a", &[2], &[0.0, 1.0]), one("b", &[3], &[1.0, f32::NAN, 0.0])]),
            &["weights", "\"b\"[1]", "NaN"],
        ),
        ("x", with(vec![one("a", &[2], &[f32::INFINITY, 1.0])]), &["\"a\"[0]", "inf"]),
        ("x", with(vec![one("a", &[1], &[1.0]), one("a", &[1], &[1.0])]), &["\"a\"", "twice"]),
        (
            "x",
            with(vec![one("a", &[2, 2], &[1.0])]),
            &["\"a\"", "[2, 2]", "expected 4 values", "found 1"],
        ),
        ("x", with(vec![one("a", &[usize::MAX, 2], &[1.0])]), &["\"a\"", "2^62"]),
        ("x", with(vec![one("a", &[1; 33], &[1.0])]), &["\"a\"", "32 dimensions"]),
        ("x", with(vec![one("__metadata__", &[1], &[1.0])]), &["__metadata__", "weights"]),
        ("x", clash, &["config.json", "json and file"]),
        ("x", taken, &["manifest"]),
        ("x", deep, &["state.json", "recursion"]),
        ("x", file("../escape"), &["../escape"]),
        ("x", file(".hidden"), &[".hidden"]),
        ("x", file("manifest.json"), &["manifest.json"]),
        ("x", file(""), &["\"\""]),
        ("x", file(&long), &["xxx"]),
        ("a/b", Snapshot::default(), &["checkpoint", "a/b"]),
        ("..", Snapshot::default(), &["checkpoint", ".."]),
        (".tmp-x", Snapshot::default(), &["checkpoint", ".tmp-x"]),
    ];
    let parent = folder();
    for (name, snapshot, parts) in cases {
        let disk = FaultyDisk::default();
        let message = save(parent.path(), name, &snapshot, &disk).unwrap_err().to_string();
        assert!(
            parts.iter().all(|part| message.contains(part)),
            "{message} lacks one of {parts:?}"
        );
        assert_eq!(disk.operations(), 0, "{message}");
    }
    fs::write(parent.path().join("taken"), "a file").unwrap();
    let error = save(parent.path(), "taken", &small(1), &RealDisk).unwrap_err();
    assert!(matches!(&error, SaveError::Io { path, .. } if path.ends_with("taken")), "{error}");
    assert_eq!(fs::read(parent.path().join("taken")).unwrap(), b"a file");
}

#[test]
fn expect_names_everything_that_differs_at_once() {
    let random = &mut Random::new(1);
    let mut snapshot = Snapshot::default();
    let mut tensors: Vec<_> =
        (0..10).map(|i| tensor(&format!("extra.{i}"), &[1], random)).collect();
    tensors.push(tensor("right", &[2, 3], random));
    tensors.push(tensor("turned", &[4, 5], random));
    snapshot.tensors.insert("weights".into(), tensors);
    let parent = folder();
    let loaded = load(&save(parent.path(), "x", &snapshot, &RealDisk).unwrap()).unwrap();
    let file = loaded.tensors("weights").unwrap();
    let message = file
        .expect(&[
            ("right".into(), vec![2, 3]),
            ("turned".into(), vec![5, 4]),
            ("absent".into(), vec![1]),
        ])
        .unwrap_err()
        .to_string();
    let parts = [
        "weights.safetensors",
        "1 missing: \"absent\"",
        "10 extra: \"extra.0\"",
        "\"extra.7\" and 2 more",
        "1 wrongly shaped: \"turned\" (expected [5, 4], found [4, 5])",
    ];
    assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    assert!(!message.contains("extra.8") && !message.contains("\"right\""), "{message}");
    let all: Vec<_> =
        file.names().map(|name| (name.to_owned(), file.shape(name).unwrap().to_vec())).collect();
    file.expect(&all).unwrap();
    let message = loaded.tensors("optimizer").unwrap_err().to_string();
    assert!(message.contains("optimizer") && message.contains("weights"), "{message}");
}

#[test]
fn sha256_of_a_file_is_the_standard_one() {
    let parent = folder();
    let path = parent.path().join("abc");
    fs::write(&path, "abc").unwrap();
    // The one-block example of FIPS 180-2.
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(sha256_file(&path).unwrap(), digest);
    let message = sha256_file(&parent.path().join("nowhere")).unwrap_err().to_string();
    assert!(message.contains("nowhere"), "{message}");
}

/// A tensor that comes in pieces is the file that it would be at once; pieces that are no part of it
/// leave nothing behind.
#[test]
fn what_comes_in_pieces_is_written_as_if_it_were_whole() {
    let parent = folder();
    let whole = large(3);
    let saved = |name: &str, pieces: &[Vec<f32>]| {
        let left = std::cell::RefCell::new(pieces.iter().cloned());
        let next =
            || left.borrow_mut().next().ok_or_else(|| std::io::Error::other("nobody is left"));
        let mut snapshot = whole.clone();
        let wide = &mut snapshot.tensors.get_mut("weights").unwrap()[1];
        wide.data = TensorData::Pieces(Pieces { values: 700 * 500, next: &next });
        save(parent.path(), name, &snapshot, &RealDisk)
    };
    let TensorData::F32(values) = &whole.tensors["weights"][1].data else { panic!("of numbers") };
    let mut pieces: Vec<Vec<f32>> = vec![values[..1].to_vec(), values[1..200_000].to_vec()];
    pieces.push(values[200_000..].to_vec());
    let loaded = load(&saved("x", &pieces).unwrap()).unwrap();
    same(&loaded, &whole).unwrap();
    let files = |name: &str| std::fs::read(parent.path().join(name).join("weights.safetensors"));
    save(parent.path(), "whole", &whole, &RealDisk).unwrap();
    assert!(files("x").unwrap() == files("whole").unwrap());

    let mut wrong = vec![
        (pieces[..2].to_vec(), "nobody is left"),
        (vec![vec![]], "found 0"),
        (vec![vec![0.0; 350_001]], "found 350001"),
    ];
    pieces[2][7] = f32::NAN;
    wrong.push((pieces, "NaN among its values"));
    for (pieces, said) in wrong {
        let message = saved("y", &pieces).unwrap_err().to_string();
        assert!(message.contains(said) && message.contains("gather"), "{message}");
        assert!(message.contains("wide"), "{message}");
        let left =
            std::fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(left.into_iter().all(|name| !name.to_string_lossy().contains('y')));
    }
}
