//! Writes the f32 logits of some token ids, row after row, for comparison with other programs:
//! `cargo run --release -p convert --example logits CHECKPOINT 1,2,3 OUT`.

use std::path::Path;
use std::sync::Arc;

use model::{Address, NoProbe, Pass, PassCache, Rows, Rule};
use ops::{Ops, read_rows};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, checkpoint, ids, out] = arguments.as_slice() else {
        return Err("CHECKPOINT IDS OUT".into());
    };
    let stored = train::load_model(Path::new(checkpoint))?;
    let ids: Arc<[u32]> = ids.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>()?.into();
    if ids.iter().any(|&id| id as usize >= stored.model.config().vocab_size) {
        return Err("an id is outside of the vocabulary".into());
    }
    let rule = stored.rule.clone().unwrap_or(Rule::NonCausal);
    let (mut kv, mut probe) = (PassCache::new(true), NoProbe);
    let mut pass = Pass {
        ops: Ops::Fast,
        kv: &mut kv,
        rule: &rule,
        state: &stored.state,
        probe: &mut probe,
        record: false,
        recompute: false,
        address: Address { seed: 0, step: u64::MAX, place: 0 },
        sequences: 1,
        loads: &[],
        pool: Default::default(),
    };
    let passed = stored.model.forward(&ids, &Rows::batch(1, ids.len()), &mut pass);
    let logits = read_rows(&stored.model.logits(passed.x_td, &pass));
    let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(out, bytes)?;
    Ok(())
}
