//! Wilcoxon's signed-rank test of paired differences, exact and two-sided, with the estimate and the interval that belong
//! to it.
//!
//! If two things do not differ, each difference of a pair has either sign with the same probability. So all `2^n` choices
//! of the signs of `n` differences are equally likely, and the test counts those that are at least as one-sided as what
//! was found. Nothing else is assumed of the differences: neither a normal distribution nor equal spreads.
//!
//! The test looks at the means of each two differences, and of each difference with itself (Walsh averages): their
//! number below 0 is the rank sum of the negative differences. A mean of exactly 0 counts against a difference, on
//! either side, so ties make the test more careful, never less. The median of the means estimates the shift (Hodges and
//! Lehmann, Annals of Mathematical Statistics 34, 1963), and the interval leaves out as many of them on each side as the
//! test allows. So the interval is without 0 exactly if the test finds a difference.

/// What the test says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SignedRank {
    /// The estimate of the shift, in the unit of the differences.
    pub estimate: f64,
    /// The interval of the shift; `None` if there are too few differences for any.
    pub interval: Option<(f64, f64)>,
    /// The probability of a result as one-sided as this one, if nothing differs.
    pub p: f64,
}

impl SignedRank {
    /// Tests finite differences at `level`; `None` if there are none.
    pub(crate) fn of(differences: &[f64], level: f64) -> Option<Self> {
        let mut means = Vec::new();
        for (n, one) in differences.iter().enumerate() {
            means.extend(differences[n..].iter().map(|other| f64::midpoint(*one, *other)));
        }
        means.sort_by(f64::total_cmp);
        let (count, middle) = (means.len(), means.len() / 2);
        let estimate = match count {
            0 => return None,
            _ if count % 2 == 1 => means[middle],
            _ => f64::midpoint(means[middle - 1], means[middle]),
        };
        let both_sides: Vec<f64> = cumulative(differences.len()).map(|it| 2.0 * it).collect();
        // Number of rank sums, from 0, that are improbable enough.
        let allowed = both_sides.iter().take_while(|&&it| it <= level).count();
        let interval = allowed.checked_sub(1).map(|out| (means[out], means[count - 1 - out]));
        let not_above = means.partition_point(|&it| it <= 0.0);
        let not_below = count - means.partition_point(|&it| it < 0.0);
        Some(Self { estimate, interval, p: both_sides[not_above.min(not_below)].min(1.0) })
    }
}

/// For each rank sum from 0, the probability that the rank sum of the negative ones of `n` differences does not exceed it.
fn cumulative(n: usize) -> impl Iterator<Item = f64> {
    let mut probabilities = vec![0.0; n * (n + 1) / 2 + 1];
    probabilities[0] = 1.0;
    for rank in 1..=n {
        for sum in (0..probabilities.len()).rev() {
            let with = if sum >= rank { probabilities[sum - rank] } else { 0.0 };
            probabilities[sum] = f64::midpoint(probabilities[sum], with);
        }
    }
    probabilities.into_iter().scan(0.0, |sum, it| {
        *sum += it;
        Some(*sum)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVEL: f64 = 0.05;

    fn finds(differences: &[f64]) -> bool {
        let test = SignedRank::of(differences, LEVEL).unwrap();
        let excludes = test.interval.is_some_and(|(low, high)| low > 0.0 || high < 0.0);
        assert_eq!(excludes, test.p <= LEVEL, "test and interval agree: {test:?}, {differences:?}");
        excludes
    }

    #[test]
    fn probabilities_are_those_of_the_tables() {
        // Critical values of the two-sided test at 5 %, as printed in every table of the statistic.
        for (n, critical) in [(6, 0), (7, 2), (8, 3), (9, 5), (10, 8), (12, 13), (15, 25), (20, 52)]
        {
            let all: Vec<_> = cumulative(n).collect();
            assert!(2.0 * all[critical] <= LEVEL && 2.0 * all[critical + 1] > LEVEL, "{n}");
            assert!((all.last().unwrap() - 1.0).abs() < 1e-9, "{n}");
        }
    }

    #[test]
    fn an_example_by_hand() {
        let test = SignedRank::of(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], LEVEL).unwrap();
        assert_eq!((test.estimate, test.interval, test.p), (3.5, Some((1.0, 6.0)), 2.0 / 64.0));
        let test = SignedRank::of(&[-2.0], LEVEL).unwrap();
        assert_eq!((test.estimate, test.interval, test.p), (-2.0, None, 1.0));
        assert_eq!(SignedRank::of(&[], LEVEL), None);
    }

    /// Every choice of signs is tried: at most 5 % of them lead to a difference, whatever the sizes are.
    #[test]
    fn false_findings_are_at_most_the_level() {
        for n in 1..=10_u32 {
            let sizes: [fn(u32) -> f64; 4] =
                [f64::from, |it| f64::from(it / 3), |_| 1.0, |it| f64::from(it).powi(9)];
            for size in sizes {
                let signed = |signs: u32| {
                    (0..n)
                        .map(|it| if signs >> it & 1 == 1 { -size(it) } else { size(it) })
                        .collect::<Vec<_>>()
                };
                let found = (0..1_u32 << n).filter(|&signs| finds(&signed(signs))).count();
                let share = found as f64 / f64::from(1_u32 << n);
                assert!(share <= LEVEL, "{share} of {n} differences");
                assert!(n >= 6 || found == 0, "no result of {n} differences is improbable enough");
            }
        }
    }

    #[test]
    fn equal_pairs_are_not_told_apart() {
        assert!(!finds(&[0.0; 20]));
    }
}
