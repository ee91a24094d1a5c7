//! Two targets by turns: the ratio of B to A with its 95 % interval.
//!
//! Runs alternate (ABAB…), so that what drifts on the machine hits both. Each pair gives one ratio; their logarithms
//! are treated as a sample of a normal distribution (Student's t).

/// A ratio with its 95 % interval.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct Ratio {
    pub ratio: f64,
    pub low: f64,
    pub high: f64,
    pub pairs: usize,
}

/// Two-sided 97.5 % quantiles of Student's t for 1, 2, … degrees of freedom.
const STUDENT_T: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// The ratio of the second to the first over all pairs; `None` for fewer than two pairs or a value that is not
/// above zero.
pub fn ratio(pairs: &[(f64, f64)]) -> Option<Ratio> {
    let usable = pairs.len() >= 2 && pairs.iter().all(|(a, b)| *a > 0.0 && *b > 0.0);
    if !usable {
        return None;
    }
    let logs: Vec<f64> = pairs.iter().map(|(a, b)| (b / a).ln()).collect();
    let count = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / count;
    let variance = logs.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let t = STUDENT_T.get(pairs.len() - 2).copied().unwrap_or(1.96);
    let half = t * (variance / count).sqrt();
    Some(Ratio { ratio: mean.exp(), low: (mean - half).exp(), high: (mean + half).exp(), pairs: pairs.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_pairs_give_an_exact_ratio() {
        let r = ratio(&[(100.0, 200.0), (50.0, 100.0), (10.0, 20.0)]).unwrap();
        assert!((r.ratio - 2.0).abs() < 1e-9 && (r.low - 2.0).abs() < 1e-9 && (r.high - 2.0).abs() < 1e-9);
    }
    #[test]
    fn the_interval_holds_the_truth_about_95_times_in_100() {
        let mut random = fastrand::Rng::with_seed(11);
        // A sum of uniforms is near enough to normal.
        let mut noise = || ((0..12).map(|_| random.f64()).sum::<f64>() - 6.0) * 0.05;
        let trials = 2_000;
        let held = (0..trials).filter(|_| {
            let pairs: Vec<(f64, f64)> = (0..5).map(|_| (100.0 * noise().exp(), 130.0 * noise().exp())).collect();
            let r = ratio(&pairs).unwrap();
            r.low <= 1.3 && 1.3 <= r.high
        });
        let share = held.count() as f64 / f64::from(trials);
        assert!((0.93..0.97).contains(&share), "{share}");
    }
    #[test]
    fn nothing_is_claimed_of_too_little() {
        assert_eq!(ratio(&[(1.0, 2.0)]), None);
        assert_eq!(ratio(&[(1.0, 2.0), (0.0, 2.0)]), None);
    }
}
