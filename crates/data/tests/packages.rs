//! The text of the packages that this checkout depends on, as its own cargo finds them.

use data::packages::collect;
use std::path::Path;

#[test]
fn the_packages_of_this_checkout_give_text() {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let found = collect(&checkout, 300_000).unwrap();
    let bytes: u64 = found.files.iter().map(|file| file.bytes).sum();
    assert!((100_000..=300_000).contains(&bytes), "{bytes} bytes");
    assert_eq!(found.files.len(), found.texts.len());
    for (file, text) in found.files.iter().zip(&found.texts) {
        assert_eq!(file.bytes, text.len() as u64, "{file:?}");
        assert!(!file.package.is_empty() && !file.version.is_empty(), "{file:?}");
        assert!(file.path.ends_with(".md") || file.path.ends_with(".rs"), "{file:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    found.save(&dir.path().join("made")).unwrap();
    let list = std::fs::read(dir.path().join("made/packages.json")).unwrap();
    let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
    assert_eq!(list.as_array().map(Vec::len), Some(found.files.len()));
    let again = collect(&checkout, 300_000).unwrap();
    assert_eq!(again.texts, found.texts, "the same files each time");
}
