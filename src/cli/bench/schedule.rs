//! When the next operation is due, by the plan and not by the answers: the heart of an open loop.

/// How arrivals are spread in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// Equal gaps.
    Uniform,
    /// Independent arrivals: exponential gaps, as from many unconnected clients.
    Poisson,
}

/// The arrivals of one thread. Times are nanoseconds since the run's start.
pub struct Schedule {
    arrivals: Arrivals,
    gap_ns: f64,
    /// The arrival at hand.
    next_ns: f64,
    count: u64,
    first_ns: f64,
    random: fastrand::Rng,
}

impl Schedule {
    /// `rate` arrivals a second for this thread, the `thread`-th of `threads`: uniform schedules of several threads
    /// interleave.
    pub fn new(arrivals: Arrivals, rate: f64, thread: usize, threads: usize, seed: u64) -> Schedule {
        let gap_ns = 1e9 / rate;
        let mut random = fastrand::Rng::with_seed(seed ^ (thread as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let first_ns = match arrivals {
            Arrivals::Uniform => gap_ns * thread as f64 / threads.max(1) as f64,
            Arrivals::Poisson => exponential(&mut random) * gap_ns,
        };
        Schedule { arrivals, gap_ns, next_ns: first_ns, count: 0, first_ns, random }
    }
    /// When the next operation is due.
    pub fn next_ns(&self) -> u64 {
        self.next_ns as u64
    }
    /// Takes the next arrival if it is due by `now_ns`.
    pub fn due(&mut self, now_ns: u64) -> Option<u64> {
        let at = self.next_ns();
        if at > now_ns {
            return None;
        }
        self.count += 1;
        self.next_ns = match self.arrivals {
            // From the count and not by adding up, so that rounding never drifts.
            Arrivals::Uniform => self.first_ns + self.count as f64 * self.gap_ns,
            Arrivals::Poisson => self.next_ns + exponential(&mut self.random) * self.gap_ns,
        };
        Some(at)
    }
}

/// A sample of the exponential distribution with mean 1.
fn exponential(random: &mut fastrand::Rng) -> f64 {
    -(1.0 - random.f64()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut schedule: Schedule, until_ns: u64) -> Vec<u64> {
        std::iter::from_fn(|| schedule.due(until_ns)).collect()
    }

    #[test]
    fn uniform_arrivals_keep_their_rate_without_drift() {
        let times = all(Schedule::new(Arrivals::Uniform, 3_000.0, 0, 1, 1), 10_000_000_000);
        assert_eq!(times.len(), 30_001);
        assert_eq!(times[30_000], 10_000_000_000);
        assert!(times.windows(2).all(|w| (333_333..=333_334).contains(&(w[1] - w[0]))));
    }
    #[test]
    fn threads_interleave_evenly() {
        let mut times: Vec<u64> =
            (0..4).flat_map(|t| all(Schedule::new(Arrivals::Uniform, 250.0, t, 4, 1), 999_999_999)).collect();
        times.sort_unstable();
        assert_eq!(times.len(), 1_000);
        assert!(times.windows(2).all(|w| w[1] - w[0] == 1_000_000));
    }
    #[test]
    fn poisson_gaps_have_mean_and_deviation_of_the_exponential() {
        let times = all(Schedule::new(Arrivals::Poisson, 10_000.0, 0, 1, 42), 20_000_000_000);
        let gaps: Vec<f64> = times.windows(2).map(|w| (w[1] - w[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((mean / 100_000.0 - 1.0).abs() < 0.02, "mean {mean}");
        assert!((deviation / mean - 1.0).abs() < 0.03, "deviation {deviation}");
    }
    #[test]
    fn a_late_caller_still_gets_every_arrival_with_its_own_time() {
        let mut schedule = Schedule::new(Arrivals::Uniform, 1_000.0, 0, 1, 1);
        assert_eq!(schedule.due(0), Some(0));
        assert_eq!(schedule.due(999_999), None);
        let late: Vec<u64> = std::iter::from_fn(|| schedule.due(3_500_000)).collect();
        assert_eq!(late, [1_000_000, 2_000_000, 3_000_000]);
    }
}
