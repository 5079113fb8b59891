//! Ids to text as they come, where there is no token, and where a text goes on.

use super::Tokenizer;
use super::tests::{SPACED, streamed, trained};

#[test]
fn unknown_ids_are_errors_and_no_text_of_a_model() {
    let tokenizer = trained();
    for id in [350, u32::MAX] {
        assert!(tokenizer.decode(&[5, id]).unwrap_err().to_string().contains(&id.to_string()));
        assert_eq!(tokenizer.decode_stream().push(id).unwrap(), None);
    }
    // Within a text, of either kind of vocabulary, and within a character.
    for (tokenizer, text) in
        [(tokenizer, "na\u{ef}ve"), (Tokenizer::from_json(SPACED).unwrap(), "ab \u{e9}")]
    {
        let ids = tokenizer.encode(text).unwrap();
        let padded: Vec<u32> = ids.iter().flat_map(|&id| [id, 5000]).collect();
        assert_eq!(streamed(&tokenizer, &padded), text);
    }
}

#[test]
fn a_continuation_is_decoded_as_it_follows() {
    let spaced = Tokenizer::from_json(SPACED).unwrap();
    let text = "ab a\u{e9} b a";
    let ids = spaced.encode(text).unwrap();
    for at in 0..ids.len() {
        let before = spaced.decode(&ids[..at]).unwrap();
        let mut stream = spaced.decode_stream_after(&ids[..at]);
        let mut rest = String::new();
        for &id in &ids[at..] {
            rest.push_str(&stream.push(id).unwrap().unwrap_or_default());
        }
        rest.push_str(&stream.finish().unwrap_or_default());
        // A character of two ids belongs to the second one.
        assert_eq!(before.trim_end_matches('\u{FFFD}').to_owned() + &rest, text, "{at}");
    }
}
