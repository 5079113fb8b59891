//! Losses that are made inside a layer and join the backward pass from there (the auxiliary-loss
//! scaler of Megatron-LM), so that nobody has to carry them up to where the main loss is made.

use crate::seam::{FastOp, Raw, apply, make};
use crate::{Ops, Tensor2};

impl Ops {
    /// `x_td` as it is, bit for bit; a backward pass that comes through it also starts from the
    /// 1 x 1 tensor `loss` with the gradient `weight`. Then all gradients are those of `main +
    /// weight * loss`, whatever gradient arrives at `x_td`. If `main` is scaled before its
    /// backward, `weight` must contain that factor.
    ///
    /// Inside the piece of [`Ops::recompute`], `loss` must be made by the same piece: then it
    /// counts once, in the run of the backward pass. A loss is lost where no gradient comes
    /// through: attach it to rows that the main loss depends on, in front of any [`crate::cut`].
    ///
    /// # Panics
    /// If `loss` is not 1 x 1.
    pub fn attach_loss(self, x_td: Tensor2, loss: Tensor2, weight: f32) -> Tensor2 {
        assert_eq!(loss.dims(), [1, 1], "a loss to attach is a 1 x 1 tensor");
        // What Burn's own operations add to a gradient depends on the gradient that arrives, so the
        // plain body is the same node of the tape.
        #[cfg(any(feature = "gpu", feature = "cuda"))]
        if self.device() != crate::Device::CPU {
            return crate::device_seam::apply::<crate::device_seam::Cube, _, 2>(
                AttachLoss { weight },
                [x_td, loss],
            );
        }
        apply(AttachLoss { weight }, [x_td, loss])
    }
}

#[derive(Clone, Debug)]
struct AttachLoss {
    weight: f32,
}

impl FastOp<2> for AttachLoss {
    type Saved = ();

    fn forward(&self, [x_td, _]: [Raw; 2]) -> (Raw, ()) {
        (x_td, ())
    }

    fn backward(&self, (): (), g_td: Raw, _: [bool; 2], _: Option<Raw>) -> [Option<Raw>; 2] {
        [Some(g_td), Some(make(vec![self.weight], 1, 1))]
    }
}

#[cfg(any(feature = "gpu", feature = "cuda"))]
mod device {
    use burn_backend::tensor::FloatTensor;
    use burn_backend::{Backend, TensorData, TensorMetadata};

    use super::AttachLoss;
    use crate::device_seam::DeviceOp;

    impl<B: Backend> DeviceOp<B, 2> for AttachLoss {
        type Saved = ();

        fn forward(&self, [x_td, _]: [FloatTensor<B>; 2]) -> (FloatTensor<B>, ()) {
            (x_td, ())
        }

        fn backward(
            &self,
            (): (),
            g_td: FloatTensor<B>,
            _: [bool; 2],
        ) -> [Option<FloatTensor<B>>; 2] {
            let weight = TensorData::new(vec![self.weight], [1, 1]);
            let weight = B::float_from_data(weight, &g_td.device());
            [Some(g_td), Some(weight)]
        }
    }
}
