//! Processes that are threads of one process: for tests, which then need no launcher.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::{ProcessError, Processes};

/// What a member hands to another.
#[derive(Debug)]
enum Parcel {
    Values(Vec<f32>),
    Bytes(Vec<u8>),
}

/// One of several threads that stand for processes. When it is dropped, the others notice.
#[derive(Debug)]
pub struct Member {
    rank: usize,
    /// How long it waits for another.
    patience: Duration,
    to: Vec<Sender<Parcel>>,
    from: Mutex<Vec<Receiver<Parcel>>>,
}

/// `size` members who know each other, and who wait for each other no longer than `patience`.
pub fn members(size: usize, patience: Duration) -> Vec<Member> {
    let mut to: Vec<Vec<_>> = (0..size).map(|_| Vec::new()).collect();
    let mut from: Vec<Vec<_>> = (0..size).map(|_| Vec::new()).collect();
    for sender in &mut to {
        for receiver in &mut from {
            let (there, here) = channel();
            sender.push(there);
            receiver.push(here);
        }
    }
    let both = to.into_iter().zip(from).enumerate();
    both.map(|(rank, (to, from))| Member { rank, patience, to, from: Mutex::new(from) }).collect()
}

impl Member {
    /// Hands each of the others its parcel and takes one from each.
    fn swap(&self, sent: Vec<Parcel>) -> Result<Vec<Parcel>, ProcessError> {
        let (rank, size) = (self.rank, self.to.len());
        for (from, (to, parcel)) in self.to.iter().zip(sent).enumerate() {
            to.send(parcel).map_err(|_| ProcessError::Ended { rank, size, from })?;
        }
        let receivers = self.from.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = receivers.iter().enumerate().map(|(from, receiver)| {
            receiver.recv_timeout(self.patience).map_err(|error| match error {
                RecvTimeoutError::Disconnected => ProcessError::Ended { rank, size, from },
                RecvTimeoutError::Timeout => {
                    ProcessError::Silent { rank, size, seconds: self.patience.as_secs() }
                }
            })
        });
        taken.collect()
    }

    /// The values of parcels that must have so many.
    fn values(
        &self,
        parcels: Vec<Parcel>,
        expected: &[usize],
    ) -> Result<Vec<Vec<f32>>, ProcessError> {
        let counted = parcels.into_iter().zip(expected).enumerate();
        let values = counted.map(|(from, (parcel, &expected))| match parcel {
            Parcel::Values(values) if values.len() == expected => Ok(values),
            Parcel::Values(values) => {
                Err(self.unequal(from, &format!("{expected} values"), values.len()))
            }
            Parcel::Bytes(_) => Err(self.unequal(from, &format!("{expected} values"), "bytes")),
        });
        values.collect()
    }

    fn unequal(&self, from: usize, expected: &str, found: impl ToString) -> ProcessError {
        let (expected, found) = (expected.to_owned(), found.to_string());
        ProcessError::Unequal { rank: self.rank, from, expected, found }
    }
}

impl Processes for Member {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn exchange(
        &self,
        sent: Vec<Vec<f32>>,
        expected: &[usize],
    ) -> Result<Vec<Vec<f32>>, ProcessError> {
        let parcels = self.swap(sent.into_iter().map(Parcel::Values).collect())?;
        self.values(parcels, expected)
    }

    fn gather(&self, mine: Vec<f32>, expected: &[usize]) -> Result<Vec<Vec<f32>>, ProcessError> {
        let parcels = (0..self.size()).map(|_| Parcel::Values(mine.clone())).collect();
        self.values(self.swap(parcels)?, expected)
    }

    fn tell(&self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>, ProcessError> {
        let parcels = (0..self.size()).map(|_| Parcel::Bytes(mine.clone())).collect();
        let told = self.swap(parcels)?.into_iter().enumerate();
        let bytes = told.map(|(from, parcel)| match parcel {
            Parcel::Bytes(bytes) => Ok(bytes),
            Parcel::Values(values) => {
                Err(self.unequal(from, "bytes", format!("{} values", values.len())))
            }
        });
        bytes.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// What each of `size` members makes of `act`, each in a thread of its own.
    fn all<T: Send>(size: usize, act: impl Fn(&Member) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let act = &act;
            let begun: Vec<_> = members(size, Duration::from_secs(20))
                .into_iter()
                .map(|member| scope.spawn(move || act(&member)))
                .collect();
            begun.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        })
    }

    /// `from` hands `to` as many values as both numbers say.
    fn parcel(from: usize, to: usize) -> Vec<f32> {
        (0..from + 2 * to).map(|i| (100 * from + 10 * to + i) as f32).collect()
    }

    #[test]
    fn everybody_gets_what_was_meant_for_it_in_order() {
        for size in 1..=5 {
            let got = all(size, |me| {
                let sent = (0..size).map(|to| parcel(me.rank(), to)).collect();
                let expected: Vec<usize> = (0..size).map(|from| from + 2 * me.rank()).collect();
                let exchanged = me.exchange(sent, &expected).expect("handed over");
                let counts: Vec<usize> = (0..size).collect();
                let gathered = me.gather(vec![me.rank() as f32; me.rank()], &counts).expect("told");
                let told = me.tell(vec![7; 3 * me.rank()]).expect("told");
                (exchanged, gathered, told)
            });
            for (rank, (exchanged, gathered, told)) in got.into_iter().enumerate() {
                for from in 0..size {
                    assert_eq!(exchanged[from], parcel(from, rank));
                    assert_eq!(gathered[from], vec![from as f32; from]);
                    assert_eq!(told[from], vec![7; 3 * from]);
                }
            }
        }
    }

    #[test]
    fn one_that_ends_or_differs_is_named() {
        let found = all(3, |me| match me.rank() {
            1 => None,
            _ => Some(me.tell(Vec::new()).expect_err("one is missing")),
        });
        for (rank, found) in [0, 2].map(|rank| (rank, found[rank].clone())) {
            let Some(ProcessError::Ended { rank: who, size: 3, .. }) = found else {
                panic!("{found:?}")
            };
            assert_eq!(who, rank);
        }
        let found = all(2, |me| me.gather(vec![0.0; 3], &[3, 3 + me.rank()]));
        assert!(found[0].is_ok());
        let unequal = ProcessError::Unequal {
            rank: 1,
            from: 1,
            expected: "4 values".into(),
            found: "3".into(),
        };
        assert_eq!(found[1], Err(unequal));
        let found = all(2, |me| match me.rank() {
            0 => me.tell(vec![1]).map(|_| ()),
            _ => me.gather(vec![1.0], &[1, 1]).map(|_| ()),
        });
        assert!(matches!(found[0], Err(ProcessError::Unequal { from: 1, .. })), "{found:?}");
        assert!(matches!(found[1], Err(ProcessError::Unequal { from: 0, .. })), "{found:?}");
    }

    #[test]
    fn nobody_waits_longer_than_it_was_told() {
        let mut pair = members(2, Duration::from_millis(20));
        let (silent, waits) = (pair.pop(), pair.pop().expect("two"));
        let found = waits.tell(vec![1]).expect_err("nobody answers");
        assert_eq!(found, ProcessError::Silent { rank: 0, size: 2, seconds: 0 });
        drop(silent);
        assert_eq!(
            waits.tell(vec![1]).expect_err("nobody is there"),
            ProcessError::Ended { rank: 0, size: 2, from: 1 }
        );
    }
}
