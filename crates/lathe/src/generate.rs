//! `lathe generate`: continues a text, token by token.

use std::io::Read;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use data::Tokenizer;
use engine::{Generated, Generation, Sampler};
use report::DepthColors;
use train::Stored;

use crate::arguments::{Drawing, Generate};
use crate::{open, output};

/// `lathe generate`, with the prompt from `--prompt` or standard input.
pub(crate) fn run(options: &Generate) -> Result<ExitCode> {
    let (stored, tokenizer) = open::checkpoint(&options.checkpoint)?;
    let prompt = match &options.prompt {
        Some(prompt) => prompt.clone(),
        None => {
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
    open::prepare(&stored.model, stored.rounded.as_ref(), options.weights.as_ref())?;
    let started = Instant::now();
    let wanted = Wanted {
        prompt: &prompt,
        max_tokens: options
            .max_tokens
            .unwrap_or_else(|| default_length(&stored, &tokenizer, &prompt)),
        sampler: &sampler,
        max_depth: options.max_depth,
        show_depth: options.show_depth,
        ignore_eos: options.ignore_eos,
        choice: 0,
    };
    let generated = continue_text(&stored, &tokenizer, &wanted)?;
    output::line("");
    let summary = summary(&generated, started);
    if options.show_depth {
        output::note(summary)
    } else {
        tracing::info!("{summary}")
    }
    Ok(ExitCode::SUCCESS)
}

impl Drawing {
    pub(crate) fn sampler(&self) -> Sampler {
        let Self { temperature, top_k, top_p, min_p, seed } = *self;
        Sampler { temperature, top_k, top_p, min_p, seed }
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
    let used = open::prompt(stored, tokenizer, prompt).map_or(0, |ids| ids.len());
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
}

/// Streams the prompt and its continuation.
pub(crate) fn continue_text(
    stored: &Stored,
    tokenizer: &Tokenizer,
    wanted: &Wanted<'_>,
) -> Result<Generated> {
    let prompt = open::prompt(stored, tokenizer, wanted.prompt)?;
    let stop = if wanted.ignore_eos { Vec::new() } else { open::stops(stored, tokenizer) };
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
    };
    Ok(stream(stored, tokenizer, &what, wanted.show_depth, &|| false)?.0)
}

/// Streams what is generated, until its end or until `stopped`; gives its text, too.
pub(crate) fn stream(
    stored: &Stored,
    tokenizer: &Tokenizer,
    what: &Generation<'_>,
    show_depth: bool,
    stopped: &dyn Fn() -> bool,
) -> Result<(Generated, String)> {
    let painted = show_depth && output::colors();
    let colors = DepthColors::new(stored.model.config().recursions, painted);
    let (mut decoded, mut whole) = (tokenizer.decode_stream(), String::new());
    let mut bad = None;
    let generated = engine::generate(&stored.model, what, &mut |token| {
        if what.stop.contains(&token.id) {
            return true;
        }
        match decoded.push(token.id) {
            Ok(Some(text)) => {
                match painted {
                    true => output::piece(&colors.paint(&text, token.depth as f32)),
                    false => output::text(&text),
                }
                whole.push_str(&text);
            }
            Ok(None) => {}
            Err(error) => bad = Some(error),
        }
        bad.is_none() && !output::is_lost() && !stopped()
    })?;
    if let Some(error) = bad {
        return Err(error.into());
    }
    if let Some(rest) = decoded.finish() {
        output::text(&rest);
        whole.push_str(&rest);
    }
    Ok((generated, whole))
}
