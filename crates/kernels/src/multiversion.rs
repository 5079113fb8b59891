//! Compiles one plain body for several vector widths and picks among them at run time.

/// Defines a function whose body is compiled for AVX-512, for AVX2 and for the baseline, and which
/// runs the widest copy that the machine has.
///
/// Bodies write every fused multiply-add as `mul_add` and every sum in lanes, so the copies agree
/// bit for bit.
macro_rules! multiversion {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    ) => {
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
                match $crate::multiversion::width() {
                    // SAFETY: `width` found every feature that `wide` is compiled for.
                    $crate::multiversion::Width::Wide => return unsafe { wide($($arg),*) },
                    // SAFETY: `width` found every feature that `middle` is compiled for.
                    $crate::multiversion::Width::Middle => return unsafe { middle($($arg),*) },
                    $crate::multiversion::Width::Base => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use multiversion;

/// The copies of a body that [`multiversion`] makes.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Width {
    Base,
    Middle,
    Wide,
}

/// The widest copy that tests let run: 0 for the baseline, 2 for all.
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) static WIDEST: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(2);

/// The widest copy that this machine runs.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn width() -> Width {
    let middle = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let wide = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    let width = match (middle, wide) {
        (true, true) => Width::Wide,
        (true, false) => Width::Middle,
        _ => Width::Base,
    };
    #[cfg(test)]
    let width = match WIDEST.load(std::sync::atomic::Ordering::Relaxed) {
        0 => Width::Base,
        1 => width.min(Width::Middle),
        _ => width,
    };
    width
}
