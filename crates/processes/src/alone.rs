//! A process that nobody started others beside.

use crate::{ProcessError, Processes};

/// One process: what it hands over comes back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Processes for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn exchange(&self, sent: Vec<Vec<f32>>, _: &[usize]) -> Result<Vec<Vec<f32>>, ProcessError> {
        Ok(sent)
    }

    fn gather(&self, mine: Vec<f32>, _: &[usize]) -> Result<Vec<Vec<f32>>, ProcessError> {
        Ok(vec![mine])
    }

    fn tell(&self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>, ProcessError> {
        Ok(vec![mine])
    }
}
