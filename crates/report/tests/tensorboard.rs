//! Event files, read back by a decoder that shares no code with the writer.

use std::fs;

use report::EventWriter;

/// CRC-32C bit by bit: reflected polynomial 0x82F63B78.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
        crc
    })
}

fn masked(bytes: &[u8]) -> u32 {
    let crc = crc32c(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

fn frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(u32::from_le_bytes(bytes[8..12].try_into().unwrap()), masked(&bytes[..8]));
        let payload = &bytes[12..12 + length];
        assert_eq!(
            u32::from_le_bytes(bytes[12 + length..16 + length].try_into().unwrap()),
            masked(payload)
        );
        out.push(payload.to_vec());
        bytes = &bytes[16 + length..];
    }
    out
}

#[derive(Debug, Clone, PartialEq)]
enum Field {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(Vec<u8>),
    Fixed32([u8; 4]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            return value;
        }
    }
}

fn message(mut bytes: &[u8]) -> Vec<(u64, Field)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let take = match key & 7 {
            0 => {
                fields.push((key >> 3, Field::Varint(varint(&mut bytes))));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (head, rest) = bytes.split_at(take);
        fields.push((
            key >> 3,
            match key & 7 {
                1 => Field::Fixed64(head.try_into().unwrap()),
                2 => Field::Bytes(head.to_vec()),
                _ => Field::Fixed32(head.try_into().unwrap()),
            },
        ));
        bytes = rest;
    }
    fields
}

#[test]
fn events_decode_to_what_was_written() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283, "the decoder's own check value");
    let dir = tempfile::tempdir().unwrap();
    let long_tag = "x/".repeat(200);
    let mut writer = EventWriter::create(&dir.path().join("tb/run"), 1_700_000_000.25).unwrap();
    writer.scalars(0, 1_700_000_001.5, &[("loss/train", 3.25)]).unwrap();
    writer
        .scalars(u64::from(u32::MAX) + 7, 1_700_000_002.0, &[(&long_tag, f32::NAN), ("b", -0.0)])
        .unwrap();
    writer.scalars(9, 0.0, &[]).unwrap();

    let frames = frames(&fs::read(writer.path()).unwrap());
    assert_eq!(frames.len(), 3);
    let head = message(&frames[0]);
    assert_eq!(head[0], (1, Field::Fixed64(1_700_000_000.25f64.to_le_bytes())));
    assert!(head.contains(&(3, Field::Bytes(b"brain.Event:2".to_vec()))));

    let mut scalars = Vec::new();
    for frame in &frames[1..] {
        let event = message(frame);
        let Field::Varint(step) = event[1].1 else { panic!("step") };
        let (5, Field::Bytes(summary)) = &event[2] else { panic!("summary") };
        for (field, value) in message(summary) {
            let Field::Bytes(value) = value else { panic!("value") };
            let parts = message(&value);
            let [(1, Field::Bytes(tag)), (2, Field::Fixed32(number))] = &parts[..] else {
                panic!("{parts:?}")
            };
            scalars.push((
                field,
                step,
                String::from_utf8(tag.clone()).unwrap(),
                f32::from_le_bytes(*number).to_bits(),
            ));
        }
    }
    let far = u64::from(u32::MAX) + 7;
    assert_eq!(
        scalars,
        [
            (1, 0, "loss/train".to_string(), 3.25f32.to_bits()),
            (1, far, long_tag, f32::NAN.to_bits()),
            (1, far, "b".to_string(), (-0.0f32).to_bits()),
        ]
    );
}

#[test]
fn names_sort_by_time_and_never_collide() {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<_> = [5.0, 5.9, 1e9]
        .iter()
        .map(|t| EventWriter::create(dir.path(), *t).unwrap().path().to_path_buf())
        .collect();
    assert!(paths.windows(2).all(|pair| pair[0] < pair[1]), "{paths:?}");
    assert!(paths.iter().all(|p| p.file_name().unwrap().to_string_lossy().contains("tfevents")));
    assert!(EventWriter::create(dir.path(), f64::NAN).is_ok());
}

#[test]
fn a_directory_that_is_a_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("plain");
    fs::write(&file, b"").unwrap();
    let error = EventWriter::create(&file, 0.0).unwrap_err().to_string();
    assert!(error.contains("plain") && error.contains("create"), "{error}");
}

/// Tag and step of every scalar in the event files of `dir`.
fn points(dir: &std::path::Path) -> Vec<(String, u64)> {
    let mut points = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        for frame in frames(&fs::read(entry.unwrap().path()).unwrap()) {
            let event = message(&frame);
            let Field::Varint(step) = event[1].1 else { panic!("step") };
            let (5, Field::Bytes(summary)) = &event[2] else { continue };
            for (_, value) in message(summary) {
                let Field::Bytes(value) = value else { panic!("value") };
                let (1, Field::Bytes(tag)) = &message(&value)[0] else { panic!("tag") };
                points.push((String::from_utf8(tag.clone()).unwrap(), step));
            }
        }
    }
    points.sort();
    points
}

#[test]
fn each_step_stands_once_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let expected = |last| (1..=last).map(|step| ("loss".to_owned(), step)).collect::<Vec<_>>();
    let mut writer = EventWriter::resume(dir.path(), 5.0, 0).unwrap();
    (1..=300).for_each(|step| writer.scalars(step, 5.0, &[("loss", 1.0)]).unwrap());
    // The last write stopped in the middle.
    let first = writer.path().to_path_buf();
    let whole = fs::read(&first).unwrap();
    fs::write(&first, &whole[..whole.len() - 3]).unwrap();
    for last in [297, 200, 3] {
        let mut writer = EventWriter::resume(dir.path(), 6.0, last).unwrap();
        assert_eq!(points(dir.path()), expected(last), "resumed after step {last}");
        (last + 1..=last + 5).for_each(|step| writer.scalars(step, 6.0, &[("loss", 2.0)]).unwrap());
        assert_eq!(points(dir.path()), expected(last + 5), "went on after step {last}");
    }
    let foreign = dir.path().join("events.out.tfevents.1.elsewhere");
    fs::write(&foreign, b"of another program").unwrap();
    drop(EventWriter::resume(dir.path(), 7.0, 0).unwrap());
    assert_eq!(fs::read(&foreign).unwrap(), b"of another program");
    fs::remove_file(&foreign).unwrap();
    assert!(points(dir.path()).is_empty());
    assert!(
        fs::read_dir(dir.path())
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_string_lossy().ends_with(".tmp") })
    );
}
