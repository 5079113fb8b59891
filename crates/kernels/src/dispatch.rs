//! Compiles one plain body for several vector widths and picks among them at run time, and the
//! fixed-order reductions that make every copy give the same bits.

/// Defines a function whose body is compiled for AVX-512, for AVX2 and for the baseline, and which
/// runs the widest copy that the machine has.
///
/// Bodies write every fused multiply-add as `mul_add` and every sum in lanes, so the copies agree bit for bit.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn wide($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn middle($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match $crate::dispatch::width() {
                    // SAFETY: `width` found every feature that `wide` is compiled for.
                    $crate::dispatch::Width::Wide => return unsafe { wide($($arg),*) },
                    // SAFETY: `width` found every feature that `middle` is compiled for.
                    $crate::dispatch::Width::Middle => return unsafe { middle($($arg),*) },
                    $crate::dispatch::Width::Base => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use multiversion;

/// The copies of a body that [`multiversion`] makes.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) enum Width {
    Wide,
    Middle,
    Base,
}

/// The widest copy that this machine runs.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn width() -> Width {
    let middle = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let wide = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (middle, wide) {
        (true, true) => Width::Wide,
        (true, false) => Width::Middle,
        _ => Width::Base,
    }
}

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

/// Panics, naming the argument, when a slice has not the length that its shape asks for.
#[track_caller]
pub(crate) fn check_len(function: &str, argument: &str, found: usize, expected: usize) {
    assert!(
        found == expected,
        "{function}: `{argument}` holds {found} values where its shape needs {expected}"
    );
}
