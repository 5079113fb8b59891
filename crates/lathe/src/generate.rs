//! `lathe generate`: continues a text, token by token.

use std::collections::VecDeque;
use std::io::Read;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use data::Tokenizer;
use engine::{Generated, Generation, Sampler, SharedProbe};
use grammar::Compiled;
use opening::continuation::{self, Asked, Reading, TextPiece};
use ops::Ops;
use report::DepthColors;
use trace::{Recorder, Trace};
use train::Stored;

use crate::arguments::{Drawing, Form, Generate};
use crate::{device, open, output, traces};

/// `lathe generate`, with the prompt from `--prompt` or standard input.
pub(crate) fn run(options: &Generate) -> Result<ExitCode> {
    let device = options.on.open()?;
    let (stored, tokenizer) =
        open::adapted(&options.checkpoint, options.adapted.adapter.as_deref())?;
    device::takes(device, &[stored.rounded.as_ref(), options.weights.as_ref()])?;
    ensure!(options.count > 0, "--n is 0, expected at least 1");
    continuation::check_stops(&options.stop)?;
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
        let recorder = options.trace.as_ref().map(|_| recorder_of(&stored)).transpose()?;
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
            ops: Ops::on(device),
        };
        if choice > 0 {
            output::line("");
        }
        let generated = device.guard(|| continue_text(&stored, &tokenizer, &wanted))??;
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

fn recorder_of(stored: &Stored) -> Result<SharedRecorder> {
    Ok(Arc::new(Mutex::new(traces::recorder(&stored.model)?)))
}

impl Form {
    /// The form that is asked for, ready to be followed by text of this tokenizer.
    fn compiled(&self, tokenizer: &Tokenizer) -> Result<Option<Compiled>> {
        let asked = match (&self.json_schema, &self.regex) {
            (Some(schema), _) => Asked::JsonSchema(schema),
            (None, Some(pattern)) => Asked::Regex(pattern),
            (None, None) if !self.choice.is_empty() => Asked::Choice(&self.choice),
            (None, None) => return Ok(None),
        };
        continuation::form(asked, tokenizer).map(Some)
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

/// As many tokens as fit behind the prompt.
fn default_length(stored: &Stored, tokenizer: &Tokenizer, prompt: &str) -> usize {
    let special = open::special(stored, tokenizer);
    let used = open::prompt(&special, tokenizer, prompt).map_or(0, |ids| ids.len());
    continuation::usual_length(stored, used)
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
    /// The operations that passes run.
    pub(crate) ops: Ops,
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
    let mut written = Written::new(stored, wanted.show_depth);
    let watch = wanted.recorder.map(|recorder| recorder.clone() as SharedProbe);
    let reading = Reading { tokenizer, stops: wanted.stop, watch, ops: wanted.ops };
    stream(stored, &what, reading, &mut written, &|| false)
}

/// Text on its way out, in the colours of its tokens' depths where these are asked for.
pub(crate) struct Written {
    colors: Option<DepthColors>,
    /// Bytes of each token that are not out yet, with its depth.
    held: VecDeque<(usize, u32)>,
    /// Depth of the last token.
    depth: u32,
    whole: String,
}

impl Written {
    /// Nothing is written yet.
    pub(crate) fn new(stored: &Stored, show_depth: bool) -> Self {
        let painted = show_depth && output::colors();
        let colors = painted.then(|| DepthColors::new(stored.model.config().recursions, true));
        Self { colors, held: VecDeque::new(), depth: 0, whole: String::new() }
    }

    /// All that was written.
    pub(crate) fn whole(self) -> String {
        self.whole
    }

    /// Writes what is certain with a piece.
    fn take(&mut self, piece: &TextPiece<'_>) {
        self.depth = piece.token.map_or(self.depth, |token| token.depth);
        if !piece.spelled.is_empty() {
            self.held.push_back((piece.spelled.len(), self.depth));
        }
        if !piece.text.is_empty() {
            self.write(piece.text);
        }
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
    what: &Generation<'_>,
    reading: Reading<'_>,
    written: &mut Written,
    stopped: &dyn Fn() -> bool,
) -> Result<Generated> {
    let (generated, _) = continuation::stream(stored, what, reading, &mut |piece| {
        written.take(piece);
        !output::is_lost() && !stopped()
    })?;
    Ok(generated)
}
