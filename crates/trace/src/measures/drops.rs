//! Where in a sequence experts have no room.

use super::choices::Choices;
use super::{Controlled, Shuffles, shuffle};

/// Choices without room, by stretches of positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Drops {
    /// What rows chose in each of equal stretches of the longest sequence.
    pub chosen: Vec<u64>,
    /// How many of these had no room.
    pub dropped: Vec<u64>,
    /// Largest less smallest share that a stretch lost, beside the same with what rows lost dealt
    /// out anew over their positions.
    pub spread: Controlled,
}

/// Drops in `parts` stretches.
pub fn drops(choices: &Choices, parts: usize, how: Shuffles) -> Drops {
    let longest = choices.rows.iter().map(|row| row.position as usize + 1).max().unwrap_or(1);
    let mut rows: Vec<RowLoss> = Vec::with_capacity(choices.rows.len());
    for row in &choices.rows {
        let part = row.position as usize * parts / longest;
        rows.push((part, row.chosen.len() as u64, row.dropped as u64));
    }
    let (chosen, dropped) = by_part(&rows, parts);
    let spread = how.beside(spread(&chosen, &dropped), |dice| {
        let mut lost: Vec<(u64, u64)> = rows.iter().map(|&(_, all, lost)| (all, lost)).collect();
        shuffle(&mut lost, dice);
        let dealt = rows.iter().zip(lost).map(|(&(part, ..), (all, lost))| (part, all, lost));
        let (chosen, dropped) = by_part(&dealt.collect::<Vec<_>>(), parts);
        self::spread(&chosen, &dropped)
    });
    Drops { chosen, dropped, spread }
}

/// A row's stretch, how much it chose, and how much of that it lost.
type RowLoss = (usize, u64, u64);

fn by_part(rows: &[RowLoss], parts: usize) -> (Vec<u64>, Vec<u64>) {
    let (mut chosen, mut dropped) = (vec![0; parts], vec![0; parts]);
    for &(part, all, lost) in rows {
        chosen[part] += all;
        dropped[part] += lost;
    }
    (chosen, dropped)
}

fn spread(chosen: &[u64], dropped: &[u64]) -> f64 {
    let with_rows = chosen.iter().zip(dropped).filter(|(chosen, _)| **chosen > 0);
    let shares: Vec<f64> = with_rows.map(|(&all, &lost)| lost as f64 / all as f64).collect();
    let most = shares.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
    if shares.is_empty() { 0.0 } else { most - least }
}

#[cfg(test)]
mod tests {
    use super::super::choices::ChoiceRow;
    use super::*;

    #[test]
    fn ends_of_sequences_that_lose_are_seen() {
        // Two choices a row, 64 positions in 10 sequences; the last quarter loses one of both.
        let row = |sequence: u64, position: u32| ChoiceRow {
            sequence: (None, sequence),
            position,
            token: 0,
            recursion: 0,
            chosen: vec![0, 1],
            dropped: usize::from(position >= 48),
        };
        let rows = (0..640).map(|i| row(i / 64, (i % 64) as u32)).collect();
        let choices = Choices { targets: 2, computing: 2, rows };
        let found = drops(&choices, 4, Shuffles::default());
        assert_eq!((found.chosen, found.dropped), (vec![320; 4], vec![0, 0, 0, 160]));
        assert_eq!((found.spread.value, found.spread.p), (0.5, 0.05));
        assert!(found.spread.by_chance < 0.15, "{:?}", found.spread);
    }
}
