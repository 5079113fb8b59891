//! The tokens of a model as a tree of bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use llguidance::{Matcher, ParserFactory};
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use crate::constraint::Compiled;
use crate::{Grammar, GrammarError};

/// Marks a token that no text spells, in the tree of tokens. No UTF-8 text has this byte.
const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

/// Characters of what the library says.
const MOST_SAID: usize = 400;

/// The tokens that grammars choose from.
pub struct Vocabulary {
    factory: ParserFactory,
    /// Ids from 0 to before this one are tokens of the model; this one is the end of the text.
    end: u32,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    grammars: AtomicU64,
    compile_us: AtomicU64,
    tokens: AtomicU64,
    token_us: AtomicU64,
}

/// What grammars took so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrammarTimes {
    /// Grammars that were compiled.
    pub grammars: u64,
    /// Microseconds that this took.
    pub compile_us: u64,
    /// Tokens that were drawn under a grammar.
    pub tokens: u64,
    /// Microseconds that it took to find the tokens that may come, summed.
    pub token_us: u64,
}

impl Counters {
    fn compiled(&self, begun: Instant) {
        self.grammars.fetch_add(1, Ordering::Relaxed);
        self.compile_us.fetch_add(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    pub(crate) fn masked(&self, begun: Instant) {
        self.tokens.fetch_add(1, Ordering::Relaxed);
        self.token_us.fetch_add(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
    }
}

impl Vocabulary {
    /// The bytes of each token in the order of their ids; `None` for those that no text spells:
    /// control tokens and unused ids.
    ///
    /// # Errors
    /// A vocabulary without a token of text, or one that the library refuses.
    pub fn new(tokens: impl IntoIterator<Item = Option<Vec<u8>>>) -> Result<Self, GrammarError> {
        let mut words: Vec<Vec<u8>> = Vec::new();
        let mut spelled = 0;
        for (at, token) in tokens.into_iter().enumerate() {
            let bytes = token.filter(|bytes| !bytes.is_empty() && bytes[0] != MARKER);
            spelled += usize::from(bytes.is_some());
            words.push(bytes.unwrap_or_else(|| unspelled(at)));
        }
        if spelled == 0 {
            return Err(GrammarError::Vocabulary("no token of it is text".into()));
        }
        let end = words.len() as u32;
        words.push(unspelled(words.len()));
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env)
            .map_err(|e| GrammarError::Vocabulary(one_line(&e.to_string())))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory, end, counters: Arc::default() })
    }

    /// Makes a grammar ready for sequences to follow it.
    ///
    /// # Errors
    /// A grammar that makes no sense, that no text fits, or that is too large; in the words of the
    /// library, which name the place.
    pub fn compile(&self, grammar: &Grammar) -> Result<Compiled, GrammarError> {
        let begun = Instant::now();
        let top_level = grammar.top_level()?;
        let matcher = Matcher::new(self.factory.create_parser(top_level));
        if let Some(error) = matcher.get_error() {
            return Err(GrammarError::Refused(one_line(&error)));
        }
        self.counters.compiled(begun);
        Ok(Compiled::new(matcher, self.end, Arc::clone(&self.counters)))
    }

    /// What grammars of this vocabulary took so far.
    pub fn spent(&self) -> GrammarTimes {
        let counters = &self.counters;
        GrammarTimes {
            grammars: counters.grammars.load(Ordering::Relaxed),
            compile_us: counters.compile_us.load(Ordering::Relaxed),
            tokens: counters.tokens.load(Ordering::Relaxed),
            token_us: counters.token_us.load(Ordering::Relaxed),
        }
    }
}

/// The bytes of an id in the tree that no text spells.
fn unspelled(id: usize) -> Vec<u8> {
    [&[MARKER][..], format!("<{id}>").as_bytes()].concat()
}

/// What the library says, as one line: it may draw marks below a pattern, and go on with a
/// backtrace.
pub(crate) fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("<backtrace>"));
    let said = lines.filter(|line| !line.chars().all(|c| c == '^' || c == ' ') && !is_quoted(line));
    said.collect::<Vec<_>>().join(" ").chars().take(MOST_SAID).collect()
}

/// Whether a line repeats one of the grammar that the library was given, `1 | start: /a/`: users
/// wrote another.
fn is_quoted(line: &str) -> bool {
    let number = line.split_once(" | ").map_or("", |(number, _)| number);
    !number.is_empty() && number.chars().all(|c| c.is_ascii_digit())
}
