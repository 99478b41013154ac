//! A straight line through points, by least squares.

/// By how much `y` rises when `x` rises by one; none for points that lie above each other.
#[must_use]
pub(in crate::bench::endure) fn slope(
    points: impl Iterator<Item = (f64, f64)> + Clone,
) -> Option<f64> {
    let count = points.clone().count() as f64;
    let (sum_x, sum_y) = points
        .clone()
        .fold((0.0, 0.0), |(x, y), (px, py)| (x + px, y + py));
    let (mean_x, mean_y) = (sum_x / count, sum_y / count);
    let (mut above, mut below) = (0.0, 0.0);
    for (x, y) in points {
        above += (x - mean_x) * (y - mean_y);
        below += (x - mean_x) * (x - mean_x);
    }
    (below > f64::EPSILON).then(|| above / below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_through_its_points_and_beside_them() {
        let line = (0..10).map(|x| (f64::from(x), 3.0 * f64::from(x) + 7.0));
        assert!((slope(line).expect("a line") - 3.0).abs() < 1e-9);
        let noise = [(0.0, 1.0), (1.0, -1.0), (2.0, -1.0), (3.0, 1.0)];
        assert!(slope(noise.into_iter()).expect("a line").abs() < 1e-9);
        assert_eq!(slope([(1.0, 1.0), (1.0, 2.0)].into_iter()), None);
        assert_eq!(slope(std::iter::empty()), None);
    }
}
