//! Opening what commands take: checkpoints with their tokenizer and their causal rule.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use checkpoint::{Disk, FaultyDisk, RealDisk};
use data::{SpecialTokens, Tokenizer};
use model::{Causality, Model, Rule, WeightFormats};
use train::{Stored, TrainError};

use crate::notes::note;
use crate::{cache, foreign};

/// The most bytes of a text that an option names, such as a prompt or a template.
pub const LONGEST_TEXT: u64 = 64 << 20;

/// The text of a file that an option names.
pub fn text_file(path: &Path) -> Result<String> {
    files::read_text(path, LONGEST_TEXT).with_context(|| format!("reading {}", path.display()))
}

/// The disk that everything is written to, or the one that tests ask for.
pub fn disk() -> Result<Box<dyn Disk>> {
    Ok(match FaultyDisk::from_env()? {
        Some(faulty) => Box::new(faulty),
        None => Box::new(RealDisk),
    })
}

/// A checkpoint in f32, from which something is made. Folders and files of other programs are
/// checkpoints, too: here and below.
pub fn source(path: &Path) -> Result<Stored> {
    let entry = &cache::checkpoint_of(path)?;
    told((path, entry), train::load_model(entry))
}

/// A checkpoint in f32, but for matrices that its run froze in fewer bits.
pub fn learned(path: &Path) -> Result<Stored> {
    let entry = &cache::checkpoint_of(path)?;
    told((path, entry), train::load_learned(entry))
}

/// A checkpoint for a form of others that holds rounded weights as well.
pub fn also_rounded(path: &Path) -> Result<Stored> {
    let entry = &cache::checkpoint_of(path)?;
    told((path, entry), train::load_for_use(entry))
}

/// Says aloud where an older checkpoint was taken than the one that was meant, and of what one was
/// imported that cannot be read.
fn told((given, path): (&Path, &Path), stored: Result<Stored, TrainError>) -> Result<Stored> {
    let stored = stored.with_context(|| match given == path {
        true => format!("opening the checkpoint {}", path.display()),
        false => cache::told(given, path),
    })?;
    train::older(&stored.passed_over, &stored.folder).iter().for_each(note);
    Ok(stored)
}

/// A checkpoint for use and its tokenizer.
pub fn checkpoint(path: &Path) -> Result<(Stored, Tokenizer)> {
    let entry = &cache::checkpoint_of(path)?;
    let stored = told((path, entry), train::load_for_use(entry))?;
    let path = entry;
    let json = stored.tokenizer.as_deref().with_context(|| {
        format!("checkpoint {} has no tokenizer.json, which commands on text need", path.display())
    })?;
    let json = std::str::from_utf8(json)
        .with_context(|| format!("tokenizer.json of {}", path.display()))?;
    let tokenizer = Tokenizer::from_json(json)
        .with_context(|| format!("tokenizer.json of {}", path.display()))?;
    let (found, expected) = (tokenizer.vocab_size(), stored.model.config().vocab_size);
    ensure!(
        found <= expected,
        "tokenizer.json of {} has {found} ids, the model's vocabulary {expected}: \
         they do not belong together",
        path.display()
    );
    Ok((stored, tokenizer))
}

/// The same with the adapters of a folder on its model, if one is asked for.
pub fn adapted(path: &Path, adapter: Option<&Path>) -> Result<(Stored, Tokenizer)> {
    let (mut stored, tokenizer) = checkpoint(path)?;
    if let Some(folder) = adapter {
        stored.model = with_adapter(&stored, folder)?;
    }
    Ok((stored, tokenizer))
}

/// The model of a checkpoint with the adapters of the folder at `path`.
pub fn with_adapter(stored: &Stored, path: &Path) -> Result<Arc<Model>> {
    let origin = stored.origin.as_ref();
    let architecture = origin.and_then(|origin| origin["architecture"].as_str());
    let adapted = convert::adapted_model(&stored.model, architecture, path);
    Ok(adapted.with_context(|| format!("the adapters of {}", path.display()))?.model)
}

/// A tokenizer with what is known about text beside it, from a checkpoint, or from a tokenizer.json
/// with its own end of text.
pub fn tokenizer(path: &Path) -> Result<(Tokenizer, SpecialTokens)> {
    if convert::is_foreign(path) {
        let foreign = foreign::opened(path)?;
        let tokenizer = foreign::tokenizer(foreign.text())?;
        let special = SpecialTokens::of(Some(&foreign.text().special), &tokenizer);
        return Ok((tokenizer, special));
    }
    foreign::not_below_a_file(path)?;
    if !path.is_dir() {
        let tokenizer = Tokenizer::load(path)?;
        let special = SpecialTokens::of(None, &tokenizer);
        return Ok((tokenizer, special));
    }
    let found = train::load_text(path)
        .with_context(|| format!("opening the checkpoint {}", path.display()))?;
    train::older(&found.passed_over, &found.folder).iter().for_each(note);
    let json = found.tokenizer.with_context(|| {
        format!("checkpoint {} has no tokenizer.json: name a tokenizer file", path.display())
    })?;
    let json = String::from_utf8(json);
    let json = json.with_context(|| format!("tokenizer.json of {}", path.display()))?;
    let tokenizer = Tokenizer::from_json(&json)
        .with_context(|| format!("tokenizer.json of {}", path.display()))?;
    let special = SpecialTokens::of(found.special.as_ref(), &tokenizer);
    Ok((tokenizer, special))
}

/// What the model of a checkpoint says about text.
pub fn special(stored: &Stored, tokenizer: &Tokenizer) -> SpecialTokens {
    SpecialTokens::of(stored.text.as_ref(), tokenizer)
}

/// The ids of a prompt, with the beginning that the model expects before every text.
pub fn prompt(special: &SpecialTokens, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode(text)?;
    special.put_begin(&mut ids);
    if ids.is_empty() {
        ids.extend(special.prefix());
    }
    Ok(ids)
}

/// The rule that generation uses.
pub fn causal(stored: &Stored) -> Result<Rule> {
    let router = &stored.model.config().router;
    match &stored.rule {
        Some(rule) => Ok(rule.clone()),
        None if router.settings().causality() == Causality::Always => Ok(Rule::NonCausal),
        None => anyhow::bail!(
            "the checkpoint has no causal routing rule for router \"{}\": it was not saved by \
             `lathe train`",
            router.kind()
        ),
    }
}

/// Rounds weights that are `stored` in f32 (none) or in formats to the `wanted` ones; says what
/// they are in then.
pub fn round(
    model: &Model,
    stored: Option<&WeightFormats>,
    wanted: Option<&WeightFormats>,
) -> Result<WeightFormats> {
    let Some(stored) = stored else {
        let wanted = wanted.cloned().unwrap_or_default();
        model.quantize(&wanted).with_context(|| format!("rounding the weights to {wanted}"))?;
        return Ok(wanted);
    };
    if let Some(wanted) = wanted.filter(|wanted| *wanted != stored) {
        anyhow::bail!(
            "--weights is {wanted}, but the checkpoint's weights are stored as {stored}: leave \
             --weights out, or name the f32 checkpoint that it was made from"
        );
    }
    Ok(stored.clone())
}

/// The same for generation, for which weights that stay in f32 are kept in panel order too.
pub fn prepare(
    model: &Model,
    stored: Option<&WeightFormats>,
    wanted: Option<&WeightFormats>,
) -> Result<WeightFormats> {
    let formats = round(model, stored, wanted)?;
    model.pack();
    Ok(formats)
}

/// The same for a model that shares weights with that of `stored`, which is prepared. What adapters
/// changed in a checkpoint that was rounded stays in f32.
pub fn prepare_beside(
    model: &Model,
    stored: &Stored,
    wanted: Option<&WeightFormats>,
) -> Result<()> {
    let formats = wanted.filter(|_| stored.rounded.is_none()).cloned().unwrap_or_default();
    for (spec, weight) in model.weights_beside(&stored.model) {
        match formats.of(spec) {
            Some(format) => {
                weight.quantize(format).with_context(|| format!("rounding {}", spec.name))?;
            }
            None if spec.shape.0 > 1 => weight.pack(),
            None => {}
        }
    }
    Ok(())
}
