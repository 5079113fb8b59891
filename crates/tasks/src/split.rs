//! Texts to the ids that are scored and the ids they are scored after, cut as lm-evaluation-harness
//! cuts them for a completions server (`TemplateLM._encode_pair`, `TemplateLM.loglikelihood`,
//! `TemplateAPI.batch_loglikelihood_requests`, `TemplateAPI.loglikelihood_rolling`).

/// A sequence in which `ids[from..]` is scored given `ids[..from]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) ids: Vec<u32>,
    pub(crate) from: usize,
}

/// What Python's `str.isspace` calls space: Unicode's white space and the four separators below the
/// space.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Moves the space at the end of a context to its continuation.
pub(crate) fn move_space<'a>(context: &'a str, continuation: &str) -> (&'a str, String) {
    let kept = context.trim_end_matches(is_space);
    (kept, format!("{}{continuation}", &context[kept.len()..]))
}

/// The ids of the context, then those of the whole text from the context's length on. Where a token
/// of the whole reaches over the border this is not the whole text: the split counts tokens of the
/// context alone.
pub(crate) fn join(context: &[u32], whole: &[u32]) -> Cut {
    let own = whole.get(context.len()..).unwrap_or_default();
    Cut { ids: [context, own].concat(), from: context.len() }
}

/// The ids of a continuation that follows nothing: they are scored after the prefix token, unless
/// they begin with it.
pub(crate) fn after_prefix(mut ids: Vec<u32>, prefix: u32) -> Cut {
    if ids.first() != Some(&prefix) {
        ids.insert(0, prefix);
    }
    Cut { ids, from: 1 }
}

/// Drops ids at the left until one place of `limit` is free for the token that a completions server
/// generates. `None` where nothing would be left to score the first continuation id after.
pub(crate) fn truncate(mut cut: Cut, limit: usize) -> Option<Cut> {
    let excess = cut.ids.len().saturating_sub(limit - 1);
    if excess >= cut.from {
        return None;
    }
    cut.ids.drain(..excess);
    cut.from -= excess;
    Some(cut)
}

/// Windows that score every id of a document once. The first comes after the prefix token, the
/// following ones after the id before them. The last window is as long as the others and so sees
/// more of what went before.
///
/// A window predicts at most `limit - 2` ids.
pub(crate) fn windows(ids: &[u32], prefix: u32, limit: usize) -> Vec<Cut> {
    let most = limit - 2;
    let first = most.min(ids.len());
    let mut cuts = vec![Cut { ids: [&[prefix], &ids[..first]].concat(), from: 1 }];
    let mut done = first;
    while done < ids.len() {
        let count = most.min(ids.len() - done);
        let end = done + count;
        cuts.push(Cut { ids: ids[end - most - 1..end].to_vec(), from: most + 1 - count });
        done = end;
    }
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_of_any_sort_moves() {
        assert_eq!(move_space("a b", " c"), ("a b", " c".to_owned()));
        assert_eq!(move_space("a  ", "c"), ("a", "  c".to_owned()));
        assert_eq!(move_space("a:\n", " c"), ("a:", "\n c".to_owned()));
        assert_eq!(
            move_space("a\u{a0}\u{3000}\u{1f}", "c"),
            ("a", "\u{a0}\u{3000}\u{1f}c".to_owned())
        );
        assert_eq!(move_space("a\u{200b}", "c"), ("a\u{200b}", "c".to_owned()));
        assert_eq!(move_space(" \t", "c"), ("", " \tc".to_owned()));
    }

    #[test]
    fn a_continuation_after_nothing() {
        assert_eq!(after_prefix(vec![5, 6], 0), Cut { ids: vec![0, 5, 6], from: 1 });
        assert_eq!(after_prefix(vec![0, 5, 6], 0), Cut { ids: vec![0, 5, 6], from: 1 });
    }

    #[test]
    fn a_token_over_the_border() {
        assert_eq!(join(&[1, 2], &[1, 2, 3]), Cut { ids: vec![1, 2, 3], from: 2 });
        assert_eq!(join(&[1, 2], &[1, 9, 3]), Cut { ids: vec![1, 2, 3], from: 2 });
        assert_eq!(join(&[1, 2], &[7]), Cut { ids: vec![1, 2], from: 2 });
    }

    #[test]
    fn one_place_is_kept_free() {
        let cut = Cut { ids: vec![1, 2, 3, 4, 5], from: 3 };
        assert_eq!(truncate(cut.clone(), 6), Some(cut.clone()));
        assert_eq!(truncate(cut.clone(), 5), Some(Cut { ids: vec![2, 3, 4, 5], from: 2 }));
        assert_eq!(truncate(cut.clone(), 4), Some(Cut { ids: vec![3, 4, 5], from: 1 }));
        assert_eq!(truncate(cut, 3), None);
    }

    #[test]
    fn windows_as_the_harness_makes_them() {
        // get_rolling_token_windows(range(1, 11), prefix_token=0, max_seq_len=4, context_len=1) and
        // make_disjoint_window.
        let ids: Vec<u32> = (1..=10).collect();
        let expected = [
            Cut { ids: vec![0, 1, 2, 3, 4], from: 1 },
            Cut { ids: vec![4, 5, 6, 7, 8], from: 1 },
            Cut { ids: vec![6, 7, 8, 9, 10], from: 3 },
        ];
        assert_eq!(windows(&ids, 0, 6), expected);
        assert_eq!(windows(&ids[..3], 0, 6), [Cut { ids: vec![0, 1, 2, 3], from: 1 }]);
        assert_eq!(windows(&ids[..4], 0, 6), [Cut { ids: vec![0, 1, 2, 3, 4], from: 1 }]);
    }

    #[test]
    fn windows_score_each_id_once() {
        for count in 1..40u32 {
            let ids: Vec<u32> = (1..=count).collect();
            for limit in 3..20 {
                let cuts = windows(&ids, 0, limit);
                let scored: Vec<u32> =
                    cuts.iter().flat_map(|cut| cut.ids[cut.from..].to_vec()).collect();
                assert_eq!(scored, ids);
                assert!(
                    cuts.iter().all(|cut| cut.from >= 1 && cut.ids.len() < limit),
                    "{count} ids, limit {limit}"
                );
            }
        }
    }
}
