//! Processes that an MPI launcher started.
//!
//! MPI moves values here and adds nothing up. One thread starts it, makes every call and ends it:
//! the handles of the library stay where they were made, a transfer goes on while the caller
//! computes, and a caller can give up on others that do not come.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mpi::Threading;
use mpi::datatype::Equivalence;
use mpi::request::scope;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, Destination, Source};

use crate::{ProcessError, Processes};

/// The most values of one message: MPI counts them in 32 bits.
const MESSAGE: usize = 1 << 28;

/// What came from each process.
type Swapped<T> = Result<Vec<Vec<T>>, ProcessError>;

/// What the thread is asked to do, and where the answer goes.
enum Call {
    Exchange(Vec<Vec<f32>>, Vec<usize>, Sender<Swapped<f32>>),
    Gather(Vec<f32>, Vec<usize>, Sender<Swapped<f32>>),
    Tell(Vec<u8>, Sender<Swapped<u8>>),
    End(Sender<()>),
}

/// This process among those that an MPI launcher started.
///
/// A process that goes without [`Mpi::end`] leaves MPI as it is, upon which the launcher ends all
/// others: nothing is waited for where something has failed.
pub struct Mpi {
    rank: usize,
    size: usize,
    patience: Duration,
    calls: Mutex<Sender<Call>>,
}

impl Mpi {
    /// Starts MPI in this process, which may be done once, and only under a launcher. Whoever calls
    /// waits for others no longer than `patience`.
    ///
    /// # Errors
    /// MPI that was started before, or a thread that cannot be.
    pub fn start(patience: Duration) -> Result<Self, ProcessError> {
        let (calls, asked) = channel();
        let (ready, known) = channel();
        let thread = std::thread::Builder::new().name("mpi".into());
        let begun = thread.spawn(move || serve(&ready, &asked));
        begun
            .map_err(|error| ProcessError::Start(format!("starting a thread for MPI: {error}")))?;
        let (rank, size) = known.recv_timeout(patience).map_err(|_| {
            let seconds = patience.as_secs();
            ProcessError::Start(format!(
                "MPI: expected it to start within {seconds} s, found that it did not, or had been \
                 started before; see whether a small program starts under the same launcher"
            ))
        })?;
        Ok(Self { rank, size, patience, calls: Mutex::new(calls) })
    }

    /// Ends MPI, which returns when all processes have come to their end.
    ///
    /// # Errors
    /// A process that does not come.
    pub fn end(&self) -> Result<(), ProcessError> {
        self.ask(Call::End)
    }

    fn ask<T>(&self, call: impl FnOnce(Sender<T>) -> Call) -> Result<T, ProcessError> {
        let (rank, size) = (self.rank, self.size);
        let (answer, got) = channel();
        let gone = ProcessError::Ended { rank, size, from: rank };
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.send(call(answer)).map_err(|_| gone.clone())?;
        drop(calls);
        got.recv_timeout(self.patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                ProcessError::Silent { rank, size, seconds: self.patience.as_secs() }
            }
            RecvTimeoutError::Disconnected => gone,
        })
    }
}

impl Processes for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(
        &self,
        sent: Vec<Vec<f32>>,
        expected: &[usize],
    ) -> Result<Vec<Vec<f32>>, ProcessError> {
        self.ask(|answer| Call::Exchange(sent, expected.to_vec(), answer))?
    }

    fn gather(&self, mine: Vec<f32>, expected: &[usize]) -> Result<Vec<Vec<f32>>, ProcessError> {
        self.ask(|answer| Call::Gather(mine, expected.to_vec(), answer))?
    }

    fn tell(&self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>, ProcessError> {
        self.ask(|answer| Call::Tell(mine, answer))?
    }
}

/// The life of the thread that calls MPI. Who asked may have given up on the answer.
fn serve(ready: &Sender<(usize, usize)>, asked: &Receiver<Call>) {
    let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else { return };
    let world = universe.world();
    let _ = ready.send((world.rank() as usize, world.size() as usize));
    for call in asked {
        match call {
            Call::Exchange(sent, expected, answer) => {
                let each: Vec<&[f32]> = sent.iter().map(Vec::as_slice).collect();
                let _ = answer.send(swap(&world, &each, &expected));
            }
            Call::Gather(mine, expected, answer) => {
                let each = vec![mine.as_slice(); expected.len()];
                let _ = answer.send(swap(&world, &each, &expected));
            }
            Call::Tell(mine, answer) => {
                let _ = answer.send(tell(&world, &mine));
            }
            Call::End(answer) => {
                drop(universe);
                let _ = answer.send(());
                return;
            }
        }
    }
    // Nobody is left to ask, and nobody said that all is done: to end MPI would wait for others,
    // who wait for this process.
    std::mem::forget(universe);
}

/// Hands `sent[r]` to each process and takes `expected[r]` values from each. A message that is
/// shorter is refused; one that is longer ends MPI, and one that does not come is waited for.
fn swap<T: Equivalence + Copy + Default>(
    world: &SimpleCommunicator,
    sent: &[&[T]],
    expected: &[usize],
) -> Swapped<T> {
    let me = world.rank() as usize;
    let fits = |from: usize, expected: usize, found: usize| match found == expected {
        true => Ok(()),
        false => Err(ProcessError::Unequal {
            rank: me,
            from,
            expected: format!("{expected} values"),
            found: found.to_string(),
        }),
    };
    fits(me, expected[me], sent[me].len())?;
    let mut got: Vec<Vec<T>> = expected.iter().map(|&count| vec![T::default(); count]).collect();
    got[me].copy_from_slice(sent[me]);
    let mut came = vec![0; expected.len()];
    scope(|scope| {
        let mut under_way = Vec::new();
        for (rank, values) in got.iter_mut().enumerate().filter(|(rank, _)| *rank != me) {
            let from = world.process_at_rank(rank as i32);
            for message in values.chunks_mut(MESSAGE) {
                under_way.push((rank, from.immediate_receive_into(scope, message)));
            }
        }
        let mut sending = Vec::new();
        for (to, values) in sent.iter().enumerate().filter(|(to, _)| *to != me) {
            let to = world.process_at_rank(to as i32);
            for message in values.chunks(MESSAGE) {
                sending.push(to.immediate_send(scope, message));
            }
        }
        for (rank, request) in under_way {
            came[rank] += request.wait().count(T::equivalent_datatype()) as usize;
        }
        sending.into_iter().for_each(|request| request.wait_without_status());
    });
    came[me] = expected[me];
    for (from, (&expected, &came)) in expected.iter().zip(&came).enumerate() {
        fits(from, expected, came)?;
    }
    Ok(got)
}

fn tell(world: &SimpleCommunicator, mine: &[u8]) -> Swapped<u8> {
    let size = world.size() as usize;
    let length = [mine.len() as u64];
    let lengths = swap(world, &vec![&length[..]; size], &vec![1; size])?;
    let expected: Vec<usize> = lengths.iter().flatten().map(|&length| length as usize).collect();
    swap(world, &vec![mine; size], &expected)
}
