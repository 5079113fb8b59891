//! Validation from the ends of documents, where whole documents would leave too little of it.

use super::{Around, BuildOptions, Encoded, SplitBy, split_of};
use crate::DataError;
use crate::documents::{Document, Documents, InputFile};
use crate::manifest::Split;
use crate::tokenizer::Tokenizer;

/// Of every thousand bytes of a document, how many at its end go to validation: the first of these
/// that fills a window, and none below the share that was asked for.
const SHARES: [u32; 5] = [100, 200, 300, 400, 500];

/// What decides the split of a document that its input leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// It goes to one side, by its hash: so many of a thousand are for validation.
    Whole(u32),
    /// Of every thousand bytes so many, at its end, are for validation.
    Ends(u32),
}

/// Whole documents where these fill a window on both sides, or where nothing was left open.
/// Otherwise the smallest share that does, of each document or, since half a conversation is none,
/// of all conversations; and the smallest of all where none does.
pub(super) fn cut(
    files: &[InputFile],
    tokenizer: &Tokenizer,
    options: &BuildOptions<'_>,
) -> Result<Cut, DataError> {
    let asked = options.valid_per_mille;
    let drawn = (1..1000).contains(&asked) && options.split_by == SplitBy::Content;
    let open = files.iter().any(|file| file.split.is_none());
    let Some(window) = options.window.filter(|_| drawn && open) else {
        return Ok(Cut::Whole(asked));
    };
    let larger = if options.chat.is_some() { Cut::Whole } else { Cut::Ends };
    let tries = SHARES.map(|share| larger(share.max(asked)));
    for cut in std::iter::once(Cut::Whole(asked)).chain(tries) {
        if fills_both(files, tokenizer, options, window, cut)? {
            return Ok(cut);
        }
    }
    Ok(tries[0])
}

/// Whether both sides have more than `window` tokens, so that there is something to predict in each
/// place of a window. Reads no further than that.
fn fills_both(
    files: &[InputFile],
    tokenizer: &Tokenizer,
    options: &BuildOptions<'_>,
    window: usize,
    cut: Cut,
) -> Result<bool, DataError> {
    let around = Around { begin: options.begin, end: 0 };
    let mut tokens = [0; 2];
    for next in Documents::new(files.to_vec(), options.read.clone()) {
        let (file, document) = next?;
        for (part, split) in parts(document, files[file].split, cut) {
            let side: &mut usize = &mut tokens[split as usize];
            if *side <= window {
                // What cannot be encoded is told, or left out, when the folder is built.
                *side += Encoded::new(tokenizer, options.chat, &part.text, around)
                    .map_or(0, |encoded| encoded.ids.len());
            }
        }
        if tokens.iter().all(|&tokens| tokens > window) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A document with its split, or its beginning and its end with theirs.
pub(super) fn parts(document: Document, given: Option<Split>, cut: Cut) -> Vec<(Document, Split)> {
    match (given, cut) {
        (Some(split), _) => vec![(document, split)],
        (None, Cut::Ends(per_mille)) => ends_apart(document, per_mille),
        (None, Cut::Whole(per_mille)) => {
            let split = split_of(document.text.as_bytes(), per_mille);
            vec![(document, split)]
        }
    }
}

/// A document as one for training and one for validation, which is its end. The cut is at the end
/// of a line where one is near. A part that would be blank is left out.
fn ends_apart(document: Document, per_mille: u32) -> Vec<(Document, Split)> {
    let text = &document.text;
    let end = text.len() as u128 * u128::from(per_mille.min(1000)) / 1000;
    let cut = text.floor_char_boundary(text.len() - end as usize);
    // No line end is looked for further back than a tenth of what is before it.
    let near = text.floor_char_boundary(cut - cut / 10);
    let cut = text[near..cut].rfind('\n').map_or(cut, |at| near + at + 1);
    let (head, tail) = text.split_at(cut);
    [(head, Split::Train), (tail, Split::Validation)]
        .into_iter()
        .filter(|(text, _)| !text.trim().is_empty())
        .map(|(text, split)| (Document { text: text.to_owned(), ..document.clone() }, split))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_at(text: &str, per_mille: u32) -> Vec<(String, Split)> {
        let document = Document { source: "s".to_owned(), license: None, text: text.to_owned() };
        let parts = ends_apart(document, per_mille).into_iter();
        parts.map(|(document, split)| (document.text, split)).collect()
    }

    #[test]
    fn the_end_goes_to_validation() {
        let lines = "a line of text\n".repeat(40);
        for per_mille in SHARES {
            let found = cut_at(&lines, per_mille);
            let splits: Vec<Split> = found.iter().map(|(_, split)| *split).collect();
            assert_eq!(splits, [Split::Train, Split::Validation]);
            assert_eq!(found[0].0.clone() + &found[1].0, lines);
            let share = lines.len() * per_mille as usize / 1000;
            assert!(found[0].0.ends_with('\n') && found[1].0.len() >= share);
            assert!(found[1].0.len() < share + lines.len() / 10, "{}", found[1].0.len());
        }
    }

    #[test]
    fn characters_stay_whole_and_blank_parts_go() {
        let text = "\u{4e2d}".repeat(31);
        assert_eq!(cut_at(&text, 100).into_iter().map(|(part, _)| part).collect::<String>(), text);
        assert_eq!(cut_at("abc", 100), [("abc".to_owned(), Split::Train)]);
        assert_eq!(cut_at("abc", 1000), [("abc".to_owned(), Split::Validation)]);
        let blank = format!("text{}", " ".repeat(400));
        assert_eq!(cut_at(&blank, 100).len(), 1);
    }
}
