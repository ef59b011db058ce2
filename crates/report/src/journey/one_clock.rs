//! The offset between two clocks, bounded by packets that crossed from one to the other.
//!
//! Nobody has a packet before it was sent. So each packet to the other clock gives an upper bound of the offset at its
//! time, and each packet back gives a lower one. Nothing is assumed about how long packets take, or that both ways take
//! the same time. The drift between the clocks is assumed to be constant and limited: the offset is `a + b t`.
//!
//! All bounds together leave a convex polygon of `(a, b)`. It depends only on the convex hulls of the bounds (L. Zhang,
//! Z. Liu, C. H. Xia, "Clock Synchronization Algorithms for Network Measurements", INFOCOM 2002). Building the hulls takes
//! `n log n` steps; the offset at a time then takes `log n`.

/// Largest time and offset, nanoseconds: 36 years. Beyond this it is no reading of a clock.
const LIMIT_NS: i64 = 1 << 60;
/// Times are rounded to whole nanoseconds.
const ROUNDING_NS: i64 = 1;
/// Steps of a search. Each step leaves at most two thirds of the range.
const STEPS: usize = 120;

/// An offset at a time, both in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    at: i64,
    offset: i64,
}

/// Bounds of the offset of one clock from another, each at a time of the other one.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    upper: Vec<Point>,
    lower: Vec<Point>,
}

/// Why bounds give no offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unbounded {
    /// There are no upper, or no lower bounds.
    OneSided,
    /// No offset of constant drift is within all bounds: a clock was set, for example.
    Contradiction,
}

impl Bounds {
    /// The offset is at most `offset` at the time `at`, nanoseconds. Numbers that no clock shows are ignored.
    pub fn at_most(&mut self, at: i64, offset: i64) {
        push(&mut self.upper, at, offset);
    }

    /// The offset is at least `offset` at the time `at`, nanoseconds. Numbers that no clock shows are ignored.
    pub fn at_least(&mut self, at: i64, offset: i64) {
        push(&mut self.lower, at, offset);
    }

    /// The earliest and the latest time of a bound, nanoseconds; `None` without bounds.
    pub fn span(&self) -> Option<[i64; 2]> {
        let times = || self.upper.iter().chain(&self.lower).map(|point| point.at);
        Some([times().min()?, times().max()?])
    }

    /// The offset within all these bounds and those of `also`, with a drift of at most `drift_max` (1e-6: a part in a
    /// million).
    ///
    /// # Errors
    /// If there is none, or if it has no bound on one side.
    pub fn solve(&self, also: &Self, drift_max: f64) -> Result<Offset, Unbounded> {
        let begin = [self, also].iter().filter_map(|it| it.span()).map(|[first, _]| first).min();
        let reference = self.upper.first().or(also.upper.first());
        let (Some(at), Some(&Point { offset, .. })) = (begin, reference) else {
            return Err(Unbounded::OneSided);
        };
        // Hulls are computed relative to a point, so that differences fit floating point.
        let relative = |sign: i64| {
            move |it: &Point| {
                let offset = sign * (it.offset - offset) + ROUNDING_NS;
                Point { at: it.at - at, offset }
            }
        };
        let upper = Hull::under(self.upper.iter().chain(&also.upper).map(relative(1)).collect());
        let lower = Hull::under(self.lower.iter().chain(&also.lower).map(relative(-1)).collect());
        if lower.points.is_empty() {
            return Err(Unbounded::OneSided);
        }
        let drift = drift(&upper, &lower, drift_max).ok_or(Unbounded::Contradiction)?;
        Ok(Offset { origin: Point { at, offset }, upper, lower, drift })
    }
}

fn push(points: &mut Vec<Point>, at: i64, offset: i64) {
    let limits = -LIMIT_NS..=LIMIT_NS;
    if limits.contains(&at) && limits.contains(&offset) {
        points.push(Point { at, offset });
    }
}

/// The smallest and the largest drift of a line between both hulls; `None` if there is no such line.
fn drift(upper: &Hull, lower: &Hull, drift_max: f64) -> Option<[f64; 2]> {
    // The distance between both hulls along lines of this slope: a concave function.
    let room = |slope: f64| upper.line(slope, 0.0) + lower.line(-slope, 0.0);
    let (mut from, mut to) = (-drift_max, drift_max);
    for _ in 0..STEPS {
        let third = (to - from) / 3.0;
        if room(from + third) < room(to - third) {
            from += third;
        } else {
            to -= third;
        }
    }
    let widest = f64::midpoint(from, to);
    if room(widest) < 0.0 {
        return None;
    }
    // The outer end of each search: the range is not smaller than it may be.
    let end = |mut outside: f64| {
        let mut inside = widest;
        if room(outside) >= 0.0 {
            return outside;
        }
        for _ in 0..STEPS {
            let middle = f64::midpoint(inside, outside);
            *(if room(middle) >= 0.0 { &mut inside } else { &mut outside }) = middle;
        }
        outside
    };
    Some([end(-drift_max), end(drift_max)])
}

/// The offset of one clock from another, as far as it is known.
#[derive(Clone, Debug)]
pub struct Offset {
    /// Hulls are relative to this point.
    origin: Point,
    upper: Hull,
    /// Of the lower bounds with the other sign.
    lower: Hull,
    drift: [f64; 2],
}

/// An interval in which an offset lies, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Its lower end.
    pub low: i64,
    /// Its upper end.
    pub high: i64,
}

impl Interval {
    /// Its middle, rounded down.
    pub const fn middle(self) -> i64 {
        self.low + self.width() / 2
    }

    /// Its width.
    pub const fn width(self) -> i64 {
        self.high.saturating_sub(self.low)
    }
}

impl Offset {
    /// The interval in which the offset lies at a time, nanoseconds.
    pub fn at(&self, at: i64) -> Interval {
        let [slow, fast] = self.drift;
        let since = at.saturating_sub(self.origin.at) as f64;
        let high = self.upper.highest(since, [slow, fast]);
        let low = -self.lower.highest(since, [-fast, -slow]);
        let absolute = |ns: f64| self.origin.offset.saturating_add(ns as i64);
        let low = absolute(low.floor());
        Interval { low, high: absolute(high.ceil()).max(low) }
    }

    /// The smallest and the largest drift: 1e-6 is a part in a million.
    pub const fn drift(&self) -> [f64; 2] {
        self.drift
    }
}

/// The largest convex function that is nowhere above a set of points: their lower convex hull.
#[derive(Clone, Debug)]
struct Hull {
    /// In the order of time.
    points: Vec<Point>,
    /// The slope from each point to the next one: increasing.
    slopes: Vec<f64>,
}

impl Hull {
    fn under(mut points: Vec<Point>) -> Self {
        points.sort_unstable_by_key(|point| (point.at, point.offset));
        points.dedup_by_key(|point| point.at);
        let mut kept = 0;
        for n in 0..points.len() {
            let point = points[n];
            while kept > 1 && !turns_up(points[kept - 2], points[kept - 1], point) {
                kept -= 1;
            }
            points[kept] = point;
            kept += 1;
        }
        points.truncate(kept);
        let slope = |pair: &[Point]| {
            (pair[1].offset - pair[0].offset) as f64 / (pair[1].at - pair[0].at) as f64
        };
        let slopes = points.windows(2).map(slope).collect();
        Self { points, slopes }
    }

    /// The value at a time of the highest line of this slope that is nowhere above a point.
    fn line(&self, slope: f64, at: f64) -> f64 {
        // Where the line touches the hull.
        let touched = self.points[self.slopes.partition_point(|it| *it < slope)];
        touched.offset as f64 + slope * (at - touched.at as f64)
    }

    /// The highest value at a time of all lines that are nowhere above a point and have a slope in this range.
    fn highest(&self, at: f64, [least, most]: [f64; 2]) -> f64 {
        let slope = match self.points.partition_point(|point| point.at as f64 <= at) {
            0 => least,
            n => self.slopes.get(n - 1).map_or(most, |slope| slope.clamp(least, most)),
        };
        self.line(slope, at)
    }
}

/// Whether the way over three points turns upwards at the second one. Exact: differences fit 63 bits.
fn turns_up(one: Point, two: Point, three: Point) -> bool {
    let product = |rise: [Point; 2], run: [Point; 2]| {
        i128::from(rise[1].offset - rise[0].offset) * i128::from(run[1].at - run[0].at)
    };
    product([one, two], [two, three]) < product([two, three], [one, two])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator of numbers that are the same in every run (Marsaglia's xorshift64).
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        /// A delay: at least `least`, mostly a few times that, seldom much more. Nanoseconds.
        fn delay(&mut self, least: u64) -> i64 {
            let usual = self.next() % (2 * least);
            let rare = if self.next().is_multiple_of(50) { self.next() % (100 * least) } else { 0 };
            (least + usual + rare).cast_signed()
        }
    }

    const BEGIN_NS: i64 = 5_000_000_000_000;
    const DRIFT: f64 = 1e-3;

    /// The true offset.
    fn truth(at: i64, ppm: f64) -> i64 {
        -3_600_000_000_000 + ((at - BEGIN_NS) as f64 * ppm * 1e-6).round() as i64
    }

    /// 10,000 exchanges, a millisecond apart: 20 us or more to the other clock, 5 us or more back. Returns the times too.
    fn exchanges(ppm: f64) -> (Bounds, Vec<i64>) {
        let (mut bounds, mut numbers) = (Bounds::default(), Numbers(0x9e37_79b9_7f4a_7c15));
        let times: Vec<_> = (0..10_000).map(|n| BEGIN_NS + n * 1_000_000).collect();
        for &at in &times {
            bounds.at_most(at, truth(at, ppm) + numbers.delay(20_000));
            let back = at + 150_000;
            bounds.at_least(back, truth(back, ppm) - numbers.delay(5_000));
        }
        (bounds, times)
    }

    #[test]
    fn the_true_offset_is_within_the_interval_of_every_exchange() {
        for (ppm, drift_max) in [(0.0, 0.0), (0.0, DRIFT), (37.0, DRIFT), (-400.0, DRIFT)] {
            let (bounds, times) = exchanges(ppm);
            let offset = bounds.solve(&Bounds::default(), drift_max).unwrap();
            let [slow, fast] = offset.drift().map(|drift| drift * 1e6);
            assert!(slow <= ppm && ppm <= fast && fast - slow < 10.0, "{slow} to {fast}: {ppm}");
            for &at in &times {
                let Interval { low, high } = offset.at(at);
                let truth = truth(at, ppm);
                assert!(low <= truth && truth <= high, "{ppm} ppm: {low} to {high}: {truth}");
                // The shortest way there and back is 25 us.
                assert!(high - low < 40_000, "{ppm} ppm: {low} to {high}");
            }
        }
    }

    #[test]
    fn bounds_of_a_few_nanoseconds_narrow_all_others() {
        let (bounds, times) = exchanges(12.0);
        let mut page = Bounds::default();
        for at in [times[0] - 5_000_000, times[9_999] + 5_000_000] {
            page.at_least(at, truth(at, 12.0) - 10);
            page.at_most(at, truth(at, 12.0) + 10);
        }
        let offset = bounds.solve(&page, DRIFT).unwrap();
        for &at in &times {
            let Interval { low, high } = offset.at(at);
            let truth = truth(at, 12.0);
            assert!(low <= truth && truth <= high && high - low <= 26, "{low} to {high}: {truth}");
        }
    }

    #[test]
    fn outside_of_all_bounds_the_drift_widens_the_interval() {
        let mut bounds = Bounds::default();
        bounds.at_most(1_000_000, 50);
        bounds.at_least(1_000_000, 30);
        let offset = bounds.solve(&Bounds::default(), DRIFT).unwrap();
        let close = |at: i64, low: i64, high: i64| {
            let found = offset.at(at);
            assert!(found.low.abs_diff(low) <= 3 && found.high.abs_diff(high) <= 3, "{found:?}");
        };
        close(1_000_000, 30, 50);
        // A thousandth of the time to the bounds.
        close(0, 30 - 1000, 50 + 1000);
        close(3_000_000, 30 - 2000, 50 + 2000);
    }

    #[test]
    fn a_clock_that_was_set_contradicts_itself() {
        for step in [-60_000_000_000, -200_000, 200_000, 3_600_000_000_000] {
            let mut bounds = Bounds::default();
            for n in 0..2_000 {
                let at = BEGIN_NS + n * 1_000_000;
                let offset = truth(at, 5.0) + if n < 1_000 { 0 } else { step };
                bounds.at_most(at, offset + 20_000);
                bounds.at_least(at, offset - 5_000);
            }
            let found = bounds.solve(&Bounds::default(), 1e-5).map(|it| it.drift());
            assert_eq!(found, Err(Unbounded::Contradiction), "{step}");
        }
    }

    #[test]
    fn bounds_on_one_side_or_of_no_clock_give_no_offset() {
        let nothing = Bounds::default();
        let one_sided = |bounds: &Bounds| {
            assert_eq!(
                bounds.solve(&nothing, DRIFT).map(|it| it.drift()),
                Err(Unbounded::OneSided)
            );
        };
        one_sided(&nothing);
        let mut bounds = Bounds::default();
        bounds.at_most(5, 5);
        one_sided(&bounds);
        bounds.at_least(i64::MIN, 0);
        bounds.at_least(0, i64::MAX);
        one_sided(&bounds);
    }

    #[test]
    fn equal_times_extreme_numbers_and_a_single_point_are_answered() {
        let mut bounds = Bounds::default();
        for n in 0..100 {
            bounds.at_most(7, 1_000 + n);
            bounds.at_least(7, 1_000 - n);
        }
        let offset = bounds.solve(&Bounds::default(), DRIFT).unwrap();
        assert_eq!(offset.at(7), Interval { low: 999, high: 1_001 });
        for at in [i64::MIN, 0, i64::MAX] {
            let found = offset.at(at);
            assert!(found.low <= found.high && found.middle() >= found.low, "{found:?}");
        }
        for (at, upper, lower) in [(LIMIT_NS, LIMIT_NS, -LIMIT_NS), (-LIMIT_NS, 5, -LIMIT_NS)] {
            bounds.at_most(at, upper);
            bounds.at_least(at, lower);
            let found = bounds.solve(&Bounds::default(), DRIFT).map(|offset| offset.at(7));
            assert!(found.is_ok_and(|found| found.low <= 1_000 && found.high >= 1_000));
        }
    }
}
