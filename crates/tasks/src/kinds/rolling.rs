//! How well documents are predicted from their first token on: WikiText, or any text.

use crate::ask::SequenceScore;
use crate::error::TaskError;
use crate::kind::{Form, Item, Judged, Key, Kind, REQUIRED, Text};
use crate::report::{Measure, Score, Shape};
use crate::settings::TaskSettings;
use crate::split::is_space;

pub(crate) const KIND: Kind = Kind {
    name: "rolling",
    about: "How well documents are predicted from their first token on, in windows that do not \
            overlap: WikiText, or any text.",
    keys: &[Key { name: "text", without: REQUIRED, about: "template of the document" }],
    measures: &[
        Measure {
            name: "bits_per_byte",
            shape: Shape::Bits,
            about: "bits a byte of UTF-8; does not depend on the tokenizer",
        },
        Measure {
            name: "byte_perplexity",
            shape: Shape::Perplexity,
            about: "2 to the power of it",
        },
        Measure {
            name: "word_perplexity",
            shape: Shape::Perplexity,
            about: "a word, which is what space separates",
        },
    ],
    read,
    judge,
};

fn read(settings: &TaskSettings) -> Result<Form, TaskError> {
    let text = settings.template("text")?;
    Ok(Box::new(move |row| {
        let text = text.render(row)?;
        if text.is_empty() {
            return Err(row.wrong("text", "a document", "an empty one"));
        }
        Ok(Item {
            line: row.line,
            texts: vec![Text::Whole(text)],
            choices: Vec::new(),
            answer: None,
        })
    }))
}

/// `len(re.split(r"\s+", text))` of Python: space at an end makes an empty word there.
fn words(text: &str) -> usize {
    let mut before = false;
    let starts = text.chars().filter(|c| {
        let space = is_space(*c);
        let start = space && !before;
        before = space;
        start
    });
    starts.count() + 1
}

fn judge(item: &Item, answers: &[SequenceScore]) -> Judged {
    let (mut length, mut count) = (0, 0);
    for text in &item.texts {
        if let Text::Whole(text) = text {
            length += text.len();
            count += words(text);
        }
    }
    let amount = answers.iter().map(|answer| answer.log_likelihood).sum();
    let by_byte = Score { amount, weight: length as f64 };
    let by_word = Score { amount, weight: count as f64 };
    Judged { prediction: None, correct: None, scores: vec![by_byte, by_byte, by_word] }
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn words_as_the_harness_counts_them() {
        // len(re.split(r"\s+", text)) of CPython 3.11.
        for (text, count) in
            [("a", 1), ("a b", 2), ("a \n\t b", 2), (" a b ", 4), ("a\u{a0}b\u{1f}c", 3), (" ", 2)]
        {
            assert_eq!(words(text), count, "{text:?}");
        }
    }
}
