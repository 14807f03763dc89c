//! What do a lot of times come to? Pure sums; all times are in milliseconds.
//!
//! Invariant: a ratio is formed from times of one round, so that what slows the machine for a while slows both of its
//! sides.

use serde::Serialize;

/// What is reported of a row of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of these numbers; `None` when there are none.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Some(Self { min, median, max })
    }
}

/// The spread of `ours[i] / theirs[i]` over the rounds; `None` when there are none.
///
/// # Panics
/// When the two are not of the same rounds.
#[must_use]
pub fn ratio(ours: &[f64], theirs: &[f64]) -> Option<Spread> {
    assert_eq!(ours.len(), theirs.len(), "both sides of a ratio come from the same rounds");
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(our, their)| our / their).collect();
    Spread::of(&ratios)
}

/// The order in which `lanes` lanes take their turns in a round: forwards and backwards by turns, so that none always
/// runs right after the same other one, whose namespaces the kernel may still be taking down.
pub fn turns(lanes: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..lanes).map(move |turn| if round.is_multiple_of(2) { turn } else { lanes - 1 - turn })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&[3.0], 3.0, 3.0, 3.0)]
    #[case(&[4.0, 1.0], 1.0, 2.5, 4.0)]
    #[case(&[9.0, 1.0, 2.0], 1.0, 2.0, 9.0)]
    #[case(&[10.0, 9.0, 2.0, 1.0], 1.0, 5.5, 10.0)]
    fn the_median_is_the_middle_of_the_sorted_values(
        #[case] values: &[f64],
        #[case] min: f64,
        #[case] median: f64,
        #[case] max: f64,
    ) {
        assert_eq!(Spread::of(values), Some(Spread { min, median, max }));
    }

    #[test]
    fn nothing_has_no_spread() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(ratio(&[], &[]), None);
    }

    #[test]
    fn a_ratio_pairs_the_rounds() {
        // The ratio of the medians would be 1: each round tells more.
        let ratio = ratio(&[2.0, 20.0, 4.0], &[1.0, 10.0, 20.0]).unwrap();
        assert_eq!(ratio, Spread { min: 0.2, median: 2.0, max: 2.0 });
    }

    #[test]
    fn every_lane_has_one_turn_a_round_and_two_neighbours() {
        assert_eq!(turns(3, 0).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(turns(3, 1).collect::<Vec<_>>(), [2, 1, 0]);
    }
}
