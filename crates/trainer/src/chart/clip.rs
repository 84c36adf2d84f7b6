//! Lines cut at the frame, and thinned to what can be seen.

use super::{
    canvas::{Point, UNITS},
    draw::Area,
};

/// The pieces of a line that are in a rectangle. A point alone is a piece.
pub(super) fn inside(points: &[Point], area: &Area) -> Vec<Vec<Point>> {
    if let [point] = points {
        return segment(*point, *point, area).map(|_| vec![*point]).into_iter().collect();
    }
    let mut pieces: Vec<Vec<Point>> = Vec::new();
    for ends in points.windows(2) {
        let Some((from, to)) = segment(ends[0], ends[1], area) else { continue };
        match pieces.last_mut() {
            Some(piece) if piece.last() == Some(&from) => piece.push(to),
            _ => pieces.push(vec![from, to]),
        }
    }
    pieces
}

/// The part of a segment that is in a rectangle, by the algorithm of Liang and Barsky.
fn segment(from: Point, to: Point, area: &Area) -> Option<(Point, Point)> {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let (mut enters, mut leaves) = (0f64, 1f64);
    for (step, room) in
        [(-dx, from.0 - area.left), (dx, area.right - from.0), (-dy, from.1 - area.top), (dy, area.bottom - from.1)]
    {
        if step == 0.0 && room < 0.0 {
            return None;
        } else if step < 0.0 {
            enters = enters.max(room / step);
        } else if step > 0.0 {
            leaves = leaves.min(room / step);
        }
    }
    let at = |share: f64| match share {
        0.0 => from,
        1.0 => to,
        _ => (from.0 + share * dx, from.1 + share * dy),
    };
    (enters <= leaves).then(|| (at(enters), at(leaves)))
}

/// The same picture of fewer points: of neighbours in one column of units, the first, the last, the highest and the lowest.
pub(super) fn thinned(points: &[Point]) -> Vec<Point> {
    let same_column = |a: &Point, b: &Point| (a.0 * UNITS).round() == (b.0 * UNITS).round();
    let mut thin = Vec::new();
    for column in points.chunk_by(same_column) {
        let by_height = |a: &usize, b: &usize| column[*a].1.total_cmp(&column[*b].1);
        let all = || 0..column.len();
        let mut kept: Vec<usize> =
            [Some(0), all().min_by(by_height), all().max_by(by_height), all().last()].into_iter().flatten().collect();
        kept.sort_unstable();
        kept.dedup();
        thin.extend(kept.into_iter().map(|n| column[n]));
    }
    thin
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: Area = Area { left: 0.0, top: 0.0, right: 10.0, bottom: 10.0 };

    #[test]
    fn a_line_is_cut_where_it_leaves_the_frame_and_goes_on_where_it_enters_it() {
        let line = [(-5.0, 5.0), (5.0, 5.0), (5.0, 15.0), (8.0, 15.0), (8.0, 5.0), (9.0, 5.0)];
        let pieces = inside(&line, &AREA);
        assert_eq!(pieces, [vec![(0.0, 5.0), (5.0, 5.0), (5.0, 10.0)], vec![(8.0, 10.0), (8.0, 5.0), (9.0, 5.0)]]);
        assert!(inside(&[(-1.0, -1.0), (11.0, -1.0), (-5.0, 4.0)], &AREA).len() == 1);
        assert_eq!(inside(&[(3.0, 3.0)], &AREA), [[(3.0, 3.0)]]);
        assert!(inside(&[(3.0, 11.0)], &AREA).is_empty() && inside(&[], &AREA).is_empty());
    }

    #[test]
    fn a_thinned_line_keeps_its_peaks() {
        let line: Vec<Point> = (0..10_000).map(|n| (f64::from(n) / 1000.0, f64::from(n * 7919 % 1000))).collect();
        let thin = thinned(&line);
        assert!(thin.len() <= 4 * 41, "{}", thin.len());
        let range =
            |points: &[Point]| points.iter().fold((f64::MAX, f64::MIN), |(low, high), p| (low.min(p.1), high.max(p.1)));
        assert_eq!(range(&thin), range(&line));
        assert_eq!((thin[0], thin[thin.len() - 1]), (line[0], line[9999]));
        assert_eq!(thinned(&line[..1]), line[..1]);
    }
}
