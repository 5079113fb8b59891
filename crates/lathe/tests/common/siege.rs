//! Attacks that go on for as long as they are asked to, for `cargo xtask siege`. Each is an ignored
//! test beside its short brothers.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Dice;

/// How many seconds each attack takes.
const SECONDS: &str = "LATHE_SIEGE_SECONDS";
/// Which dice it throws.
const SEED: &str = "LATHE_SIEGE_SEED";

/// One attack: its clock, its dice and what it counted.
pub(crate) struct Siege {
    name: &'static str,
    begin: Instant,
    time: Duration,
    seed: u64,
    pub(crate) dice: Dice,
    counts: BTreeMap<&'static str, u64>,
}

impl Siege {
    pub(crate) fn begin(name: &'static str) -> Self {
        let number = |name, otherwise| {
            let given = std::env::var(name).ok();
            given.map_or(otherwise, |text| text.parse().expect("a whole number"))
        };
        let (seconds, seed) = (number(SECONDS, 10), number(SEED, 1));
        Self {
            name,
            begin: Instant::now(),
            time: Duration::from_secs(seconds),
            seed,
            dice: Dice::new(seed),
            counts: BTreeMap::new(),
        }
    }

    pub(crate) fn goes_on(&self) -> bool {
        self.begin.elapsed() < self.time
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// One of `all`, each as likely as any other; there must be one.
    pub(crate) fn choose<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.dice.below(all.len() as u64) as usize]
    }

    /// Says what was tried; an attack that tried nothing has shown nothing.
    pub(crate) fn end(self) {
        assert!(self.counts.values().sum::<u64>() > 0, "{}: nothing was tried", self.name);
        let seconds = self.begin.elapsed().as_secs();
        let line = json!({ "name": self.name, "seed": self.seed, "seconds": seconds,
            "counts": self.counts });
        writeln!(std::io::stdout(), "siege: {line}").expect("says it");
    }
}

/// Bytes with some of them changed, lost, doubled or cut off.
pub(crate) fn mutate(bytes: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len().max(1) as u64) as usize;
        match dice.below(6) {
            _ if bytes.is_empty() => bytes.push(dice.below(256) as u8),
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => bytes[at] = dice.below(256) as u8,
            2 => bytes.truncate(at),
            3 => bytes.insert(at, dice.below(256) as u8),
            4 => {
                let end = bytes.len().min(at + 1 + dice.below(64) as usize);
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            _ => {
                let end = bytes.len().min(at + 1 + dice.below(64) as usize);
                bytes.drain(at..end);
            }
        }
    }
    bytes
}

/// A JSON document with one of its values replaced by another, doubled or removed.
pub(crate) fn mutate_json(value: &serde_json::Value, dice: &mut Dice) -> serde_json::Value {
    let mut value = value.clone();
    let mut at = &mut value;
    // Down to a place of any depth.
    loop {
        let inner = match at {
            serde_json::Value::Array(list) => list.len(),
            serde_json::Value::Object(map) => map.len(),
            _ => 0,
        };
        if inner == 0 || dice.below(5) == 0 {
            break;
        }
        let chosen = dice.below(inner as u64) as usize;
        at = match at {
            serde_json::Value::Array(list) => &mut list[chosen],
            serde_json::Value::Object(map) => {
                let key = map.keys().nth(chosen).cloned().expect("below its length");
                if dice.below(8) == 0 {
                    map.remove(&key);
                    return value;
                }
                map.get_mut(&key).expect("a key of it")
            }
            _ => break,
        };
    }
    *at = strange(dice, at);
    value
}

/// A value that few expect in the place of `old`.
fn strange(dice: &mut Dice, old: &serde_json::Value) -> serde_json::Value {
    match dice.below(16) {
        0 => json!(null),
        1 => json!(true),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(u64::MAX),
        5 => json!(1e308),
        6 => json!(0.5),
        7 => json!(""),
        8 => json!("x".repeat(dice.below(5000) as usize)),
        9 => json!("\u{1b}[2J\u{0}\u{202e}"),
        10 => json!([]),
        11 => json!({}),
        12 => json!([old, old]),
        13 => json!({ "type": old }),
        14 => json!(dice.below(1 << 40)),
        _ => (0..dice.below(200)).fold(old.clone(), |inner, _| json!([inner])),
    }
}
