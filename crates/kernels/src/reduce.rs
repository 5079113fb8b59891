//! Reductions in a fixed order, which make every compiled copy of a body give the same bits.

/// Number of partial sums in every reduction: element `j` of a row goes to lane `j % LANES`.
pub(crate) const LANES: usize = 16;

/// The sum of the lanes as a fixed tree: halves are added until one value is left.
#[inline(always)]
pub(crate) fn tree_sum(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The dot product in [`LANES`] chains of fused multiply-adds and a fixed tree.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_blocks, a_tail) = a.as_chunks::<LANES>();
    let (b_blocks, b_tail) = b.as_chunks::<LANES>();
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            lanes[lane] = x[lane].mul_add(y[lane], lanes[lane]);
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(a_tail.iter().zip(b_tail)) {
        *lane = x.mul_add(*y, *lane);
    }
    tree_sum(lanes)
}

/// The largest value, minus infinity for an empty slice; a NaN is passed over.
#[inline(always)]
pub(crate) fn max_value(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, tail) = x.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] = if block[lane] > lanes[lane] { block[lane] } else { lanes[lane] };
        }
    }
    for (lane, value) in lanes.iter_mut().zip(tail) {
        *lane = if *value > *lane { *value } else { *lane };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}
