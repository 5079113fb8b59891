use super::*;
use crate::table::{RoutingDecision, Site, TokenFacts};
use model::rng::{Purpose, Stream};

const TEXTS: [&str; 6] = [" the", " of", " river", " stone", ",", " moun"];

/// A trace of 3000 tokens in sequences of 60, drawn by dice among [`TEXTS`], whose depth `of` says
/// by position, token and the dice.
fn trace(of: impl Fn(u32, u32, &mut Stream) -> u32) -> Trace {
    let mut dice = Stream::at(7, Purpose::Shuffle, 1, 1);
    let mut trace = Trace::default();
    trace.sources = vec!["books".into(), "code".into()];
    trace.sites.insert(None, Site { targets: 3, computing: 3, uses: Vec::new() });
    trace.texts = (0..6).map(|token| (token, TEXTS[token as usize].to_owned())).collect();
    for sequence in 0..50 {
        for position in 0..60 {
            let token = (dice.uniform() * 6.0) as u32;
            let depth = of(position, token, &mut dice);
            let all: Vec<u32> = (0..depth).collect();
            let decision = RoutingDecision {
                step: None,
                sequence,
                position,
                token,
                layer: None,
                recursion: 0,
                targets: &all,
                weights: &[],
                dropped: &[],
            };
            let loss = Some(depth as f32 + dice.uniform() as f32);
            let source = Some(u32::from(sequence >= 25));
            trace.push_known(decision, TokenFacts { loss, source });
        }
    }
    trace
}

/// Depths by dice alone.
fn chance() -> Trace {
    trace(|_, _, dice| 1 + (dice.uniform() * 3.0) as u32)
}

/// Content words go deep: three of four tokens of them take all recursions, of others one of four.
fn planted() -> Trace {
    trace(|_, token, dice| {
        let content = [2, 3, 5].contains(&token);
        if (dice.uniform() < 0.75) == content { 3 } else { 1 }
    })
}

fn said(tokens: &[DepthToken], label: DepthLabel) -> DepthSaid {
    let how = Shuffles { count: 99, seed: 1 };
    depth_said(tokens, &label.of(tokens), how).expect("several labels")
}

#[test]
fn depth_by_dice_is_said_by_nothing() {
    let tokens = depth_tokens(&chance());
    assert_eq!(tokens.len(), 3000);
    let mut reached = 0;
    for (label, name) in DepthLabel::ALL {
        // The loss of this trace knows the depth.
        if label == DepthLabel::Loss {
            continue;
        }
        let how = Shuffles { count: 99, seed: 1 };
        let Some(found) = depth_said(&tokens, &label.of(&tokens), how) else { continue };
        for number in [found.explained, found.information, found.guessed] {
            assert!((number.value - number.by_chance).abs() < 0.02, "{name}: {number:?}");
            reached += usize::from(number.p <= 0.02);
        }
    }
    assert!(reached <= 3, "{reached} of 24 numbers reach the second of a hundred");
    let how = Shuffles { count: 99, seed: 2 };
    let found = rank_correlation(&tokens, |row| Some(f64::from(row.position)), how);
    let found = found.expect("numbers");
    assert!(found.value.abs() < 0.05 && found.p > 0.02, "{found:?}");
}

#[test]
fn an_effect_that_is_there_is_found() {
    let tokens = depth_tokens(&planted());
    // The last word of a sequence may go on outside of it.
    assert!(tokens[59].word.is_none_or(|word| word.kind == WordKind::Mark));
    assert!(tokens[1].word.is_some_and(|word| word.begins));
    let role = said(&tokens, DepthLabel::WordRole);
    assert_eq!((role.labels, role.explained.p, role.information.p), (3, 0.01, 0.01));
    // Half of the tokens are at 2.5 in the mean, half at 1.5: a quarter of a variance of 1.
    assert!((role.explained.value - 0.25).abs() < 0.04, "{role:?}");
    assert!(role.explained.by_chance < 0.003 && role.entropy > 0.6, "{role:?}");
    assert!((role.guessed.value - 0.75).abs() < 0.03, "{role:?}");
    // Where it stands and where it comes from says nothing.
    for label in [DepthLabel::Position, DepthLabel::Source] {
        let found = said(&tokens, label);
        assert!(found.explained.value < 0.01 && found.explained.p > 0.01, "{found:?}");
    }
    let groups = depth_groups(&tokens, &DepthLabel::WordRole.of(&tokens));
    let trace = planted();
    let named: BTreeMap<String, DepthGroup> = groups
        .into_iter()
        .map(|(label, group)| (DepthLabel::WordRole.name(label, &trace), group))
        .collect();
    let (content, function) = (named["content word"], named["function word"]);
    assert!((content.mean - 2.5).abs() < 0.1 && (content.deepest - 0.75).abs() < 0.05);
    assert!((function.mean - 1.5).abs() < 0.1, "{function:?}");
    assert!(content.loss > function.loss);
    // The same depths dealt out anew say nothing of it.
    let mut dealt: Vec<u32> = tokens.iter().map(|row| row.depth).collect();
    shuffle(&mut dealt, &mut Stream::at(3, Purpose::Shuffle, 0, 9));
    let dealt: Vec<DepthToken> =
        tokens.iter().zip(dealt).map(|(row, depth)| DepthToken { depth, ..*row }).collect();
    let role = said(&dealt, DepthLabel::WordRole);
    assert!(role.explained.value < 0.005 && role.explained.p > 0.01, "{role:?}");
}

#[test]
fn numbers_of_tokens_correlate_by_rank() {
    let tokens = depth_tokens(&planted());
    let how = Shuffles { count: 99, seed: 1 };
    // The loss is the depth and less than one more.
    let found = rank_correlation(&tokens, |row| row.loss.map(f64::from), how).expect("numbers");
    assert!(found.value > 0.8 && found.p == 0.01 && found.by_chance < 0.03, "{found:?}");
    let found = rank_correlation(&tokens, |row| row.loss.map(|loss| -f64::from(loss)), how);
    assert!(found.expect("numbers").value < -0.8);
    assert_eq!(rank_correlation(&tokens, |_| None, how), None);
    assert_eq!(rank_correlation(&tokens, |_| Some(1.0), how).expect("numbers").value, 0.0);
    // By hand: ranks 1, 2.5, 2.5, 4 and 2, 1, 3, 4.
    let found = correlated(&[1.0, 2.0, 2.0, 3.0], &[5.0, 4.0, 6.0, 7.0], how).expect("numbers");
    assert!((found.value - 3.0 / (4.5f64 * 5.0).sqrt()).abs() < 1e-12, "{found:?}");
    // What a token cost itself is the loss of the row before it; the first of a sequence has none.
    assert_eq!((tokens[0].surprisal, tokens[1].surprisal), (None, tokens[0].loss));
    assert_eq!(tokens[60].surprisal, None);
}

#[test]
fn the_id_says_as_much_as_it_does() {
    // Depth is a function of the id, and then of nothing but the position.
    let of_id = depth_tokens(&trace(|_, token, _| 1 + token % 3));
    let found = said(&of_id, DepthLabel::Token);
    assert!((found.explained.value - 1.0).abs() < 1e-9 && found.guessed.value == 1.0);
    assert!((found.information.value - found.entropy).abs() < 1e-9, "{found:?}");
    let of_place = depth_tokens(&trace(|position, _, _| 1 + position / 20));
    let found = said(&of_place, DepthLabel::Token);
    assert!(found.explained.value < 0.01 && found.information.value < 0.01, "{found:?}");
    // Equal depths leave nothing to be said.
    let equal = depth_tokens(&trace(|_, _, _| 2));
    let found = said(&equal, DepthLabel::Token);
    assert_eq!((found.explained.value, found.information.value, found.entropy), (0.0, 0.0, 0.0));
    assert!(depth_said(&equal, &vec![Some(1); equal.len()], Shuffles::default()).is_none());
    assert!(depth_said(&equal, &[], Shuffles::default()).is_none());
}

#[test]
fn depths_of_the_same_text_are_compared() {
    let how = Shuffles { count: 99, seed: 1 };
    let (one, other) = (depth_tokens(&planted()), depth_tokens(&chance()));
    let same = depth_change(&one, &one, how);
    assert_eq!((same.tokens, same.unmatched, same.same.value), (3000, 0, 1.0));
    assert!((same.correlation.expect("numbers").value - 1.0).abs() < 1e-9);
    assert!(same.same.p == 0.01 && same.same.by_chance < 0.7);
    // Other dice drew the text, so that few tokens are the same; what they have in depth is chance.
    let found = depth_change(&one, &other, how);
    assert_eq!(found.tokens * 2 + found.unmatched, 6000);
    assert!(found.same.p > 0.01 && found.correlation.expect("numbers").p > 0.01, "{found:?}");
    // A token that one trace has in several steps meets one of the other.
    let twice = [&one[..], &one[..]].concat();
    for (before, after) in [(&twice, &one), (&one, &twice)] {
        let found = depth_change(before, after, how);
        assert_eq!((found.tokens, found.unmatched, found.same.value), (3000, 3000, 1.0));
    }
    let none = depth_change(&one, &[], how);
    assert_eq!((none.tokens, none.unmatched, none.correlation), (0, 3000, None));
}

#[test]
fn parts_have_equal_sizes_and_keep_equal_numbers_together() {
    let numbers = (0..16).map(|i| Some(i as f32)).chain([None]);
    let found = parts(numbers);
    assert_eq!((found[0], found[1], found[2], found[15]), (Some(0), Some(0), Some(1), Some(7)));
    assert_eq!(found[16], None);
    assert_eq!(parts([Some(1.0); 5].into_iter()), [Some(0); 5]);
    // Without texts no token has a word.
    let mut bare = planted();
    bare.texts.clear();
    let tokens = depth_tokens(&bare);
    assert!(tokens.iter().all(|row| row.word.is_none()));
    assert!(depth_said(&tokens, &DepthLabel::WordKind.of(&tokens), Shuffles::default()).is_none());
    assert_eq!(DepthLabel::Token.name(4, &bare), "4");
}
