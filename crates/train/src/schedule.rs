//! The learning rate at each step.

use crate::ScheduleConfig;

/// Learning rate of the update that makes step `t` (from 0) of `steps`, relative to the peak.
///
/// Trapezoid: `t/w` up to `w` warm-up steps, 1, then `1 - (t - p)/d` over the last `d` steps, `p =
/// steps - d`. The first update already has a rate above 0: warm-up counts from 1.
pub fn learning_rate(schedule: &ScheduleConfig, t: u64, steps: u64) -> f64 {
    match *schedule {
        ScheduleConfig::Constant { warmup_steps } => warm(t, warmup_steps),
        ScheduleConfig::Trapezoid { warmup_steps, decay_fraction } => {
            let decay = (steps as f64 * decay_fraction).round();
            let into = (t as f64 - (steps as f64 - decay)).max(0.0);
            warm(t, warmup_steps) * if decay > 0.0 { 1.0 - into / decay } else { 1.0 }
        }
        ScheduleConfig::Cosine { warmup_steps, floor } => {
            let rest = steps.saturating_sub(warmup_steps).max(1) as f64;
            let into = (t.saturating_sub(warmup_steps) as f64 / rest).min(1.0);
            warm(t, warmup_steps)
                * (floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * into).cos()))
        }
    }
}

/// `(t + 1) / w` in the first `w` steps, 1 afterwards.
fn warm(t: u64, w: u64) -> f64 {
    if t < w { (t + 1) as f64 / w as f64 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners() {
        let trapezoid = ScheduleConfig::Trapezoid { warmup_steps: 10, decay_fraction: 0.2 };
        let at = |t| learning_rate(&trapezoid, t, 100);
        for (t, rate) in [(0, 0.1), (9, 1.0), (50, 1.0), (80, 1.0), (90, 0.5), (99, 0.05)] {
            assert!((at(t) - rate).abs() < 1e-12, "step {t}: {}", at(t));
        }
        let cosine = ScheduleConfig::Cosine { warmup_steps: 0, floor: 0.1 };
        assert!((learning_rate(&cosine, 0, 100) - 1.0).abs() < 1e-12);
        assert!((learning_rate(&cosine, 50, 100) - 0.55).abs() < 1e-12);
        assert!((learning_rate(&cosine, 100, 100) - 0.1).abs() < 1e-12);
        let constant = ScheduleConfig::Constant { warmup_steps: 2 };
        assert_eq!(
            (0..4).map(|t| learning_rate(&constant, t, 4)).collect::<Vec<_>>(),
            [0.5, 1.0, 1.0, 1.0]
        );
    }
}
