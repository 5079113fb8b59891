//! `lathe chat`: a conversation in the terminal, or from a pipe, a line for each message.

use std::io::{BufRead, IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use data::Tokenizer;
use engine::{Generation, Sampler};
use model::Rule;
use opening::continuation::Reading;
use serde_json::json;
use server::Conversations;
use train::Stored;

use crate::arguments::Chat;
use crate::signals::Interrupt;
use crate::{conversation, generate, open, output, render_templates};

/// Tokens of an answer where nobody says how many.
const USUAL: usize = 1024;

/// What can be said beside messages.
const COMMANDS: &str = "/save FILE writes the conversation as a line of JSONL, /clear begins a new \
                        one, /quit ends; a message that begins with a slash is written with two";

/// `lathe chat`, until the last line, `/quit` or Ctrl-C at the prompt.
pub(crate) fn run(options: &Chat) -> Result<ExitCode> {
    let (stored, tokenizer) =
        open::adapted(&options.checkpoint, options.adapted.adapter.as_deref())?;
    let special = open::special(&stored, &tokenizer);
    let template = options.chat_template.as_deref();
    let text = conversation::chat_text(&options.checkpoint, special, tokenizer.clone(), template)?;
    let stop = text.special.eos.clone();
    let conversations = Conversations::to_answer(text, &render_templates::program());
    let conversations = conversations.map_err(|error| anyhow!(error))?;
    open::prepare(&stored.model, stored.rounded.as_ref(), options.weights.as_ref())?;
    let mut talk = Talk {
        options,
        rule: open::causal(&stored)?,
        sampler: options.drawing.sampler(),
        stored,
        tokenizer,
        conversations,
        stop,
        messages: Vec::new(),
        turns: 0,
    };
    talk.begin();
    let typed = std::io::stdin().is_terminal();
    if typed {
        output::note(COMMANDS);
    }
    let interrupt = Interrupt::listen()?;
    while let Some(line) = interrupt.waiting(|| next_line(typed))? {
        let done = talk.take(&line, &|| interrupt.stop());
        match done {
            Ok(true) if !output::is_lost() => {}
            Ok(_) => break,
            // Who types can say it otherwise; a program that writes lines cannot.
            Err(error) if typed => output::note(format!("error: {}", output::causes(&error))),
            Err(error) => return Err(error),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The next line without its end; none after the last one.
fn next_line(typed: bool) -> Result<Option<String>> {
    if typed {
        output::piece("> ");
    }
    let mut line = String::new();
    let mut input = std::io::stdin().lock().take(open::LONGEST_TEXT + 1);
    let read = input.read_line(&mut line).context("reading a message from standard input")?;
    ensure!(
        read as u64 <= open::LONGEST_TEXT,
        "standard input: expected lines of at most {} bytes, found a longer one",
        open::LONGEST_TEXT
    );
    if read == 0 && typed {
        output::line("");
    }
    Ok((read > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned()))
}

/// A conversation that goes on.
struct Talk<'o> {
    options: &'o Chat,
    stored: Stored,
    tokenizer: Tokenizer,
    rule: Rule,
    sampler: Sampler,
    conversations: Conversations,
    /// Ids that end an answer.
    stop: Vec<u32>,
    /// Role and content of what was said.
    messages: Vec<(String, String)>,
    /// Answers so far, those of earlier conversations among them: each draws afresh.
    turns: u64,
}

impl Talk<'_> {
    /// Nothing was said, but by the system.
    fn begin(&mut self) {
        let system = self.options.system.iter();
        self.messages = system.map(|text| ("system".to_owned(), text.clone())).collect();
    }

    /// A line that was typed; says whether there may be another one.
    fn take(&mut self, line: &str, stopped: &dyn Fn() -> bool) -> Result<bool> {
        let message = match line.strip_prefix('/') {
            Some(rest) if rest.starts_with('/') => rest,
            Some(command) => return self.obey(command),
            None => line,
        };
        if !message.trim().is_empty() {
            self.answer(message, stopped)?;
        }
        Ok(true)
    }

    fn obey(&mut self, command: &str) -> Result<bool> {
        match command.split_once(' ').map_or((command, ""), |(verb, rest)| (verb, rest.trim())) {
            ("quit", "") => return Ok(false),
            ("clear", "") => self.begin(),
            ("save", file) if !file.is_empty() => self.save(Path::new(file))?,
            _ => anyhow::bail!("/{command} is no command: {COMMANDS}"),
        }
        Ok(true)
    }

    /// Writes what was said as `lathe data build --chat` reads it.
    fn save(&self, path: &Path) -> Result<()> {
        ensure!(
            path.symlink_metadata().is_err(),
            "{} is there already, expected a new file: name another one",
            path.display()
        );
        let messages: Vec<_> = self
            .messages
            .iter()
            .map(|(role, content)| json!({ "role": role, "content": content }))
            .collect();
        let row = format!("{}\n", json!({ "messages": messages }));
        files::write_whole(path, row.as_bytes())
            .with_context(|| format!("writing {}", path.display()))?;
        output::note(format!("{} messages in {}", messages.len(), path.display()));
        Ok(())
    }

    /// Streams an answer. What cannot be answered was not said.
    fn answer(&mut self, message: &str, stopped: &dyn Fn() -> bool) -> Result<()> {
        self.messages.push(("user".to_owned(), message.to_owned()));
        match self.spoken(stopped) {
            Ok(answer) => self.messages.push(("assistant".to_owned(), answer)),
            Err(error) => {
                self.messages.pop();
                return Err(error);
            }
        }
        Ok(())
    }

    fn spoken(&mut self, stopped: &dyn Fn() -> bool) -> Result<String> {
        let prompt = self.conversations.prompt(&self.messages).map_err(|error| anyhow!(error))?;
        let context = self.stored.model.config().context;
        ensure!(
            prompt.len() < context,
            "the conversation has {} tokens, expected fewer than the model's context of {context}: \
             /clear begins a new one",
            prompt.len()
        );
        let left = context - prompt.len();
        let started = Instant::now();
        let what = Generation {
            prompt: &prompt,
            max_tokens: self.options.max_tokens.unwrap_or(USUAL).min(left),
            stop: &self.stop,
            sampler: &self.sampler,
            rule: &self.rule,
            state: &self.stored.state,
            max_depth: self.options.max_depth,
            choice: self.turns,
            constraint: None,
        };
        self.turns += 1;
        let show = self.options.show_depth;
        let mut written = generate::Written::new(&self.stored, show);
        let reading =
            Reading { tokenizer: &self.tokenizer, stops: &[], watch: None, ops: ops::Ops::Fast };
        let generated = generate::stream(&self.stored, &what, reading, &mut written, stopped)?;
        output::line("");
        if show {
            output::note(generate::summary(&generated, started));
        }
        Ok(written.whole())
    }
}
