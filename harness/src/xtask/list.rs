//! What `vm-test --list` prints: each case with what it needs, and below it each cell that is for it, with what becomes
//! of it there. Pure.

use crate::case::Listing;
use crate::matrix::{Axes, cells_of};

/// The text, which is of lines that end.
pub(super) fn text(cases: &[Listing], axes: &Axes<'_>) -> String {
    cases.iter().map(|case| listed(case, axes)).collect()
}

fn listed(case: &Listing, axes: &Axes<'_>) -> String {
    let mut text = case.name.clone();
    if !case.needs.is_empty() {
        text.push_str(&format!("  needs {:?}", case.needs));
    }
    let cells = cells_of(case, axes);
    if cells.is_empty() {
        return text + "\n    runs nowhere: no file system of the lane is for it\n";
    }
    text.push('\n');
    for (cell, why) in cells {
        let becomes = match why {
            None => "runs".to_owned(),
            Some((code, why)) => format!("skipped  {code}: {why}"),
        };
        text.push_str(&format!("    {:<28} {becomes}\n", cell.to_string()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::ListedNeed;
    use crate::guest::Subject;

    /// Issue 5: each cell is run, or the reason is known beforehand.
    #[test]
    fn every_cell_of_a_case_is_listed() {
        let case = |name: &str, needs: &[ListedNeed]| Listing {
            name: name.to_owned(),
            needs: needs.to_vec(),
            timeout_s: 1,
        };
        let fs = |name: &str| ListedNeed::Fs(name.to_owned());
        let cases = [
            case("a", &[]),
            case("b", &[fs("btrfs"), ListedNeed::Kernel(5, 15)]),
            case("z", &[fs("zfs")]),
        ];
        let kernels = [("new".to_owned(), (6, 1)), ("old".to_owned(), (5, 10))];
        let lane_fs = ["ext4".to_owned(), "btrfs".to_owned()];
        let subjects = &[Subject::Rspawn];
        let axes = Axes { kernels: &kernels, lane_fs: &lane_fs, every_fs: true, fs: &[], subjects };
        let expected = "\
a
    new ext4                     runs
    new btrfs                    runs
    old ext4                     runs
    old btrfs                    runs
b  needs [Fs(\"btrfs\"), Kernel(5, 15)]
    new btrfs                    runs
    old btrfs                    skipped  KERNEL_TOO_OLD: needs kernel >= 5.15
z  needs [Fs(\"zfs\")]
    runs nowhere: no file system of the lane is for it
";
        assert_eq!(text(&cases, &axes), expected);
    }
}
