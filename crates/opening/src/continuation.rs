//! Text that a model writes, piece by piece: tokens as they come, as text that is certain.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use data::{DecodeStream, Tokenizer};
use engine::{Generated, Generation, Sampler, SharedProbe, Token};
use grammar::{Compiled, Grammar};
use ops::Ops;
use server::{StopHit, StopMatcher};
use train::Stored;

use crate::open;

/// How tokens are drawn where nobody says how.
pub const USUAL: Sampler = Sampler {
    temperature: 0.8,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    seed: 1,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    repetition_penalty: 1.0,
};

/// What came with a token, or, without one, behind the last.
pub struct TextPiece<'a> {
    /// The token that came.
    pub token: Option<&'a Token>,
    /// What it completes: whole characters, none where one is still open.
    pub spelled: &'a str,
    /// Text that is certain with it. It trails behind what is spelled where that may become a stop
    /// string.
    pub text: &'a str,
}

/// How a text is read while it is written.
pub struct Reading<'a> {
    /// Who turns ids into text.
    pub tokenizer: &'a Tokenizer,
    /// Texts at which it ends, and which are left out.
    pub stops: &'a [String],
    /// Who hears what passes tell their probe.
    pub watch: Option<SharedProbe>,
    /// The operations that passes run.
    pub ops: Ops,
}

/// The text on its way out.
struct Text {
    decoded: DecodeStream,
    stops: StopMatcher,
    hit: Option<StopHit>,
}

impl Text {
    /// Takes what a token spells; gives what is certain.
    fn push(&mut self, spelled: &str) -> String {
        let mut out = String::new();
        self.hit = self.stops.push(spelled, &mut out);
        out
    }
}

/// Refuses stop strings that end nothing.
///
/// # Errors
/// An empty one, by the name of its flag.
pub fn check_stops(stops: &[String]) -> Result<()> {
    let empty = stops.iter().any(String::is_empty);
    ensure!(!empty, "--stop is empty, expected a text: leave it out to end nowhere in the text");
    Ok(())
}

/// As many tokens as fit behind a prompt of `used` ids, up to 128; at least one, so that a prompt
/// without room is refused with its reason.
pub fn usual_length(stored: &Stored, used: usize) -> usize {
    stored.model.config().context.saturating_sub(used).clamp(1, 128)
}

/// Streams what is generated to `each`, until its end, a stop string, or until `each` says `false`.
/// Gives the stop string that it came to, too.
///
/// # Errors
/// What generation refuses; a decoder that breaks on the ids.
pub fn stream(
    stored: &Stored,
    what: &Generation<'_>,
    reading: Reading<'_>,
    each: &mut dyn FnMut(&TextPiece<'_>) -> bool,
) -> Result<(Generated, Option<StopHit>)> {
    let decoded = reading.tokenizer.decode_stream_after(what.prompt);
    let stops = StopMatcher::new(reading.stops, false);
    let mut text = Text { decoded, stops, hit: None };
    let mut bad = None;
    let generated =
        engine::generate_watched(reading.ops, &stored.model, what, reading.watch, &mut |token| {
            if what.stop.contains(&token.id) {
                return true;
            }
            let spelled = match text.decoded.push(token.id) {
                Ok(spelled) => spelled.unwrap_or_default(),
                Err(error) => {
                    bad = Some(error);
                    return false;
                }
            };
            let out = text.push(&spelled);
            let wanted = each(&TextPiece { token: Some(token), spelled: &spelled, text: &out });
            wanted && text.hit.is_none()
        })?;
    if let Some(error) = bad {
        return Err(error.into());
    }
    if text.hit.is_none() {
        let Text { decoded, mut stops, .. } = text;
        let (mut out, mut hit) = (String::new(), None);
        let rest = decoded.finish().unwrap_or_default();
        if !rest.is_empty() {
            hit = stops.push(&rest, &mut out);
        }
        if hit.is_none() {
            stops.finish(&mut out);
        }
        if !out.is_empty() || !rest.is_empty() {
            each(&TextPiece { token: None, spelled: &rest, text: &out });
        }
        return Ok((generated, hit));
    }
    Ok((generated, text.hit))
}

/// A form of text as it is asked for: one of the three, each under the name of its flag.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    /// JSON that fits a JSON Schema: a file, or the schema itself.
    JsonSchema(&'a str),
    /// Text that matches a regular expression as a whole.
    Regex(&'a str),
    /// One of some texts.
    Choice(&'a [String]),
}

/// The form that is asked for, ready to be followed by text of this tokenizer.
///
/// # Errors
/// A schema that cannot be read, a form that cannot be followed.
pub fn form(asked: Asked<'_>, tokenizer: &Tokenizer) -> Result<Compiled> {
    let (flag, grammar) = match asked {
        Asked::JsonSchema(schema) => {
            let inline =
                schema.trim().starts_with('{') || ["true", "false"].contains(&schema.trim());
            let text = if inline { schema.to_owned() } else { open::text_file(Path::new(schema))? };
            let schema = serde_json::from_str(&text)
                .with_context(|| format!("--json-schema {schema}: expected a JSON Schema"))?;
            ("--json-schema", Grammar::JsonSchema(schema))
        }
        Asked::Regex(pattern) => ("--regex", Grammar::Regex(pattern.to_owned())),
        Asked::Choice(texts) => ("--choice", Grammar::Choices(texts.to_vec())),
    };
    let compiled = server::vocabulary(tokenizer).and_then(|all| all.compile(&grammar));
    compiled.with_context(|| flag)
}
