//! What processes say to each other.

use processes::{ProcessError, Processes};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What everybody says, in the order of the processes, exact to the bit.
pub(crate) fn tell<T: Serialize + DeserializeOwned>(
    processes: &dyn Processes,
    mine: &T,
) -> Result<Vec<T>, ProcessError> {
    heard(processes, said(processes, mine)?)
}

/// What this process says, as bytes.
pub(crate) fn said<T: Serialize>(
    processes: &dyn Processes,
    mine: &T,
) -> Result<Vec<u8>, ProcessError> {
    let rank = processes.rank();
    postcard::to_stdvec(mine).map_err(|error| unread(rank, rank, &error))
}

/// Says it, and returns what everybody said.
pub(crate) fn heard<T: DeserializeOwned>(
    processes: &dyn Processes,
    mine: Vec<u8>,
) -> Result<Vec<T>, ProcessError> {
    let rank = processes.rank();
    let mut heard = Vec::with_capacity(processes.size());
    for (from, bytes) in processes.tell(mine)?.into_iter().enumerate() {
        heard.push(postcard::from_bytes(&bytes).map_err(|error| unread(rank, from, &error))?);
    }
    Ok(heard)
}

fn unread(rank: usize, from: usize, error: &postcard::Error) -> ProcessError {
    let expected = "what this program says".into();
    ProcessError::Unequal { rank, from, expected, found: error.to_string() }
}
