//! `lathe generate`: continues a text, token by token.

use std::collections::VecDeque;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use data::Tokenizer;
use engine::{Generated, Generation, Sampler, SharedProbe};
use grammar::{Compiled, Grammar};
use report::DepthColors;
use server::StopMatcher;
use trace::{Recorder, Trace};
use train::Stored;

use crate::arguments::{Drawing, Form, Generate};
use crate::{open, output, traces};

/// `lathe generate`, with the prompt from `--prompt` or standard input.
pub(crate) fn run(options: &Generate) -> Result<ExitCode> {
    let (stored, tokenizer) = open::adapted(&options.checkpoint, &options.adapted)?;
    ensure!(options.count > 0, "--n is 0, expected at least 1");
    let empty = options.stop.iter().any(String::is_empty);
    ensure!(!empty, "--stop is empty, expected a text: leave it out to end nowhere in the text");
    let prompt = match (&options.prompt, &options.prompt_file) {
        (Some(prompt), _) => prompt.clone(),
        (None, Some(path)) => open::text_file(path)?,
        (None, None) => {
            let mut text = String::new();
            std::io::stdin()
                .take(open::LONGEST_TEXT + 1)
                .read_to_string(&mut text)
                .context("reading the prompt from standard input")?;
            ensure!(
                text.len() as u64 <= open::LONGEST_TEXT,
                "standard input: expected a prompt of at most {} bytes, found more",
                open::LONGEST_TEXT
            );
            text
        }
    };
    let sampler = options.drawing.sampler();
    let form = options.form.compiled(&tokenizer)?;
    open::prepare(&stored.model, stored.rounded.as_ref(), options.weights.as_ref())?;
    let max_tokens =
        options.max_tokens.unwrap_or_else(|| default_length(&stored, &tokenizer, &prompt));
    options.trace.as_deref().map(traces::must_be_free).transpose()?;
    let mut trace = Trace::default();
    for choice in 0..options.count {
        let recorder = options.trace.as_ref().map(|_| recorder_of(&stored));
        let started = Instant::now();
        let wanted = Wanted {
            prompt: &prompt,
            max_tokens,
            sampler: &sampler,
            max_depth: options.max_depth,
            show_depth: options.show_depth,
            ignore_eos: options.ignore_eos,
            choice: choice as u64,
            stop: &options.stop,
            form: form.as_ref(),
            recorder: recorder.as_ref(),
        };
        if choice > 0 {
            output::line("");
        }
        let generated = continue_text(&stored, &tokenizer, &wanted)?;
        output::line("");
        if let Some(recorder) = recorder {
            let mut recorder = recorder.lock().unwrap_or_else(PoisonError::into_inner);
            trace.append(&recorder.take(), |_| choice as u64);
        }
        let summary = summary(&generated, started);
        if options.show_depth { output::note(summary) } else { tracing::info!("{summary}") }
    }
    if let Some(path) = &options.trace {
        traces::keep(&trace, path)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A recorder that an engine and this verb share.
pub(crate) type SharedRecorder = Arc<Mutex<Recorder>>;

fn recorder_of(stored: &Stored) -> SharedRecorder {
    Arc::new(Mutex::new(Recorder::of(&stored.model)))
}

impl Form {
    /// The form that is asked for, ready to be followed by text of this tokenizer.
    fn compiled(&self, tokenizer: &Tokenizer) -> Result<Option<Compiled>> {
        let (flag, grammar) = if let Some(schema) = &self.json_schema {
            let inline =
                schema.trim().starts_with('{') || ["true", "false"].contains(&schema.trim());
            let text = if inline { schema.clone() } else { open::text_file(Path::new(schema))? };
            let schema = serde_json::from_str(&text)
                .with_context(|| format!("--json-schema {schema}: expected a JSON Schema"))?;
            ("--json-schema", Grammar::JsonSchema(schema))
        } else if let Some(pattern) = &self.regex {
            ("--regex", Grammar::Regex(pattern.clone()))
        } else if !self.choice.is_empty() {
            ("--choice", Grammar::Choices(self.choice.clone()))
        } else {
            return Ok(None);
        };
        let compiled = server::vocabulary(tokenizer).and_then(|all| all.compile(&grammar));
        Ok(Some(compiled.with_context(|| flag)?))
    }
}

impl Drawing {
    pub(crate) fn sampler(&self) -> Sampler {
        let Self {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            presence_penalty,
            frequency_penalty,
            repetition_penalty,
        } = *self;
        Sampler {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            presence_penalty,
            frequency_penalty,
            repetition_penalty,
        }
    }
}

/// What a text cost that was begun at `started`.
pub(crate) fn summary(generated: &Generated, started: Instant) -> String {
    let seconds = started.elapsed().as_secs_f64();
    let passes: u32 = generated.tokens.iter().map(|t| t.depth).sum();
    let count = generated.tokens.len().max(1) as f64;
    format!(
        "{} tokens, {:.1} tokens/s with the prompt, mean depth {:.2}, {} of keys and values",
        generated.tokens.len(),
        count / seconds,
        f64::from(passes) / count,
        report::human_bytes(generated.kv_bytes as u64)
    )
}

/// As many tokens as fit, up to 128; at least one, so that a prompt without room is refused with
/// its reason.
fn default_length(stored: &Stored, tokenizer: &Tokenizer, prompt: &str) -> usize {
    let special = open::special(stored, tokenizer);
    let used = open::prompt(&special, tokenizer, prompt).map_or(0, |ids| ids.len());
    stored.model.config().context.saturating_sub(used).clamp(1, 128)
}

/// A continuation to stream to the terminal.
pub(crate) struct Wanted<'a> {
    pub(crate) prompt: &'a str,
    pub(crate) max_tokens: usize,
    pub(crate) sampler: &'a Sampler,
    pub(crate) max_depth: Option<usize>,
    pub(crate) show_depth: bool,
    pub(crate) ignore_eos: bool,
    pub(crate) choice: u64,
    /// Texts at which it ends, and which are left out.
    pub(crate) stop: &'a [String],
    /// What form it has.
    pub(crate) form: Option<&'a Compiled>,
    /// Who notes what routers decide.
    pub(crate) recorder: Option<&'a SharedRecorder>,
}

/// Streams the prompt and its continuation.
pub(crate) fn continue_text(
    stored: &Stored,
    tokenizer: &Tokenizer,
    wanted: &Wanted<'_>,
) -> Result<Generated> {
    let special = open::special(stored, tokenizer);
    let prompt = open::prompt(&special, tokenizer, wanted.prompt)?;
    let stop = if wanted.ignore_eos { Vec::new() } else { special.eos };
    let rule = open::causal(stored)?;
    output::text(wanted.prompt);
    let what = Generation {
        prompt: &prompt,
        max_tokens: wanted.max_tokens,
        stop: &stop,
        sampler: wanted.sampler,
        rule: &rule,
        state: &stored.state,
        max_depth: wanted.max_depth,
        choice: wanted.choice,
        constraint: wanted.form.map(Compiled::sequence),
    };
    let mut written = Written::new(stored, wanted.show_depth, wanted.stop);
    let watch = wanted.recorder.map(|recorder| recorder.clone() as SharedProbe);
    stream(stored, tokenizer, (&what, watch), &mut written, &|| false)
}

/// Text on its way out: held back while it may become a stop string, then written in the colours of
/// its tokens' depths where these are asked for.
pub(crate) struct Written {
    stops: StopMatcher,
    colors: Option<DepthColors>,
    /// Bytes of each token that are not out yet, with its depth.
    held: VecDeque<(usize, u32)>,
    whole: String,
}

impl Written {
    /// Nothing yet; `stop` holds the texts at which it ends.
    pub(crate) fn new(stored: &Stored, show_depth: bool, stop: &[String]) -> Self {
        let painted = show_depth && output::colors();
        let colors = painted.then(|| DepthColors::new(stored.model.config().recursions, true));
        let stops = StopMatcher::new(stop, false);
        Self { stops, colors, held: VecDeque::new(), whole: String::new() }
    }

    /// All that was written.
    pub(crate) fn whole(self) -> String {
        self.whole
    }

    /// Takes what a token spells; whether the text has come to its end with it.
    fn push(&mut self, text: &str, depth: u32) -> bool {
        self.held.push_back((text.len(), depth));
        let mut out = String::new();
        let hit = self.stops.push(text, &mut out);
        self.write(&out);
        hit.is_some()
    }

    /// Writes what was held back and became no stop string.
    fn finish(&mut self) {
        let mut out = String::new();
        self.stops.finish(&mut out);
        self.write(&out);
    }

    fn write(&mut self, mut text: &str) {
        self.whole.push_str(text);
        let Some(colors) = &self.colors else {
            self.held.clear();
            return output::text(text);
        };
        while !text.is_empty() {
            let Some((bytes, depth)) = self.held.pop_front() else { break };
            // A stop string may begin inside of a token, and the text may end there.
            let (now, later) = text.split_at(bytes.min(text.len()));
            output::piece(&colors.paint(now, depth as f32));
            if bytes > now.len() {
                self.held.push_front((bytes - now.len(), depth));
            }
            text = later;
        }
        output::text(text);
    }
}

/// Streams what is generated into `written`, until its end or until `stopped`.
pub(crate) fn stream(
    stored: &Stored,
    tokenizer: &Tokenizer,
    (what, watch): (&Generation<'_>, Option<SharedProbe>),
    written: &mut Written,
    stopped: &dyn Fn() -> bool,
) -> Result<Generated> {
    let mut decoded = tokenizer.decode_stream_after(what.prompt);
    let (mut bad, mut hit) = (None, false);
    let generated = engine::generate_watched(&stored.model, what, watch, &mut |token| {
        if what.stop.contains(&token.id) {
            return true;
        }
        match decoded.push(token.id) {
            Ok(Some(text)) => hit = written.push(&text, token.depth),
            Ok(None) => {}
            Err(error) => bad = Some(error),
        }
        bad.is_none() && !hit && !output::is_lost() && !stopped()
    })?;
    if let Some(error) = bad {
        return Err(error.into());
    }
    if !hit {
        if let Some(rest) = decoded.finish() {
            hit = written.push(&rest, generated.tokens.last().map_or(0, |token| token.depth));
        }
        if !hit {
            written.finish();
        }
    }
    Ok(generated)
}
